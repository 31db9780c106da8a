"""AdamW for a fleet: rates, betas, decay and clipping per member, on the fleet's flat storage.

A member whose loss or gradient is not finite is stopped where it stands and its neighbours go on. Nothing here
waits for the device: whether a member still lives is read by the host when it wants to know.
"""

import torch
from torch import Tensor

from pyscaling.models.transformer import FleetTransformer


class FleetAdamW:
    """AdamW (Loshchilov & Hutter 2019) with bias correction and clipping by each member's own gradient norm.

    learning_rate, beta1, beta2, weight_decay, clip: [M] or scalars. embedding_rate: factor on the rate of every
    weight that is not a hidden matrix (embeddings, gains, biases); muP keeps those rates constant as width grows.
    """

    def __init__(
        self,
        model: FleetTransformer,
        learning_rate: Tensor,
        *,
        beta1: float | Tensor = 0.9,
        beta2: float | Tensor = 0.95,
        weight_decay: float | Tensor = 0.1,
        clip: float | Tensor = 1.0,
        embedding_rate: float = 1.0,
        eps: float = 1e-8,
    ) -> None:
        def column(value: float | Tensor) -> Tensor:
            return torch.as_tensor(value, dtype=torch.float32, device=model.device).expand(model.n_member).unsqueeze(1)

        self.model, self.eps = model, eps
        self.learning_rate, self.weight_decay, self.clip = column(learning_rate), column(weight_decay), column(clip)
        self.beta1, self.beta2 = column(beta1), column(beta2)
        self.rate_scale = torch.ones(model.flat.shape[1], device=model.device)
        self.rate_scale[model.n_decayed :] = embedding_rate
        self.exp_avg = torch.zeros_like(model.flat)
        self.exp_avg_sq = torch.zeros_like(model.flat)
        self.alive = torch.ones(model.n_member, 1, dtype=torch.bool, device=model.device)
        self.failed_step = torch.full((model.n_member, 1), -1, dtype=torch.int64, device=model.device)

    def state(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name; the tensors themselves, not copies."""
        return {
            "flat": self.model.flat,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "alive": self.alive,
            "failed_step": self.failed_step,
        }

    def load(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.state().items():
                tensor.copy_(state[name])

    @torch.no_grad()
    def step(self, loss: Tensor, step: int, factor: float) -> Tensor:
        """Applies the model's gradient at the rate `factor` * learning_rate; returns the gradient norms before clipping, [M].

        loss: [M], of this step; step: 0-based count of updates so far, for the bias correction.
        """
        gradient = self.model.gradient
        norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        finite = torch.isfinite(norm) & torch.isfinite(loss.view(-1, 1))
        self.failed_step.copy_(torch.where(self.alive & ~finite, step, self.failed_step))
        self.alive &= finite
        gradient.masked_fill_(~self.alive, 0.0)
        gradient.mul_((self.clip / norm.clamp(min=1e-12)).nan_to_num(0.0).clamp(max=1.0))
        self.exp_avg.lerp_(gradient, 1 - self.beta1)
        # the gradient is scratch from here on: the next backward overwrites it
        self.exp_avg_sq.mul_(self.beta2).add_(gradient.square_().mul_(1 - self.beta2))
        rate = self.learning_rate * factor * self.alive
        decayed = self.model.flat[:, : self.model.n_decayed]
        decayed.mul_(1 - rate * self.weight_decay)
        torch.div(self.exp_avg_sq, 1 - self.beta2 ** (step + 1), out=gradient).sqrt_().add_(self.eps)
        torch.div(self.exp_avg, gradient, out=gradient).mul_(self.rate_scale)
        self.model.flat.sub_(gradient.mul_(rate / (1 - self.beta1 ** (step + 1))))
        return norm.squeeze(1)
