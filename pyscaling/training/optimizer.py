"""AdamW for a fleet: rates, betas, decay and clipping per member, on the fleet's flat storage.

A member whose loss or gradient is not finite is stopped where it stands and its neighbours go on. Nothing here
waits for the device: whether a member still lives is read by the host when it wants to know.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyscaling.models.transformer import FleetTransformer

if TYPE_CHECKING:
    from pyscaling.models.fused import FusedTransformer


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
        self.model, self.eps, self.embedding_rate = model, eps, embedding_rate
        self.learning_rate, self.weight_decay = self.per_member(learning_rate), self.per_member(weight_decay)
        self.beta1, self.beta2 = self.per_member(beta1), self.per_member(beta2)
        self.clip = torch.tensor(self.per_member(clip), dtype=torch.float32, device=model.device)
        self.exp_avg = torch.zeros_like(model.flat)
        self.exp_avg_sq = torch.zeros_like(model.flat)
        self.alive = torch.ones(model.n_member, dtype=torch.bool, device=model.device)
        self.failed_step = torch.full((model.n_member,), -1, dtype=torch.int64, device=model.device)

    def per_member(self, value: float | Tensor) -> list[float]:
        return torch.as_tensor(value, dtype=torch.float64).expand(self.model.n_member).tolist()

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
        norm = torch.linalg.vector_norm(self.model.gradient, dim=1)
        finite = torch.isfinite(norm) & torch.isfinite(loss)
        self.failed_step.copy_(torch.where(self.alive & ~finite, step, self.failed_step))
        self.alive &= finite
        # What automatic mixed precision uses to unscale a gradient and to skip a bad one serves to clip and to stop.
        shrink, skip = (norm / self.clip).nan_to_num(1.0).clamp(min=1.0), (~self.alive).float()
        count = torch.full((), step + 1.0, device=self.model.device)
        matrices, rest = slice(0, self.model.n_decayed), slice(self.model.n_decayed, None)
        for member in range(self.model.n_member):
            rate = self.learning_rate[member] * factor
            for columns, lr, decay in (
                (matrices, rate, self.weight_decay[member]),
                (rest, rate * self.embedding_rate, 0.0),
            ):
                arrays = [
                    [array[member, columns]]
                    for array in (self.model.flat, self.model.gradient, self.exp_avg, self.exp_avg_sq)
                ]
                torch._fused_adamw_(  # type: ignore[call-overload]  # what torch.optim.AdamW(fused=True) calls, without its bookkeeping
                    *arrays, [], [count],
                    lr=lr, beta1=self.beta1[member], beta2=self.beta2[member], weight_decay=decay, eps=self.eps,
                    amsgrad=False, maximize=False, grad_scale=shrink[member], found_inf=skip[member],
                )  # fmt: skip
        return norm


class FusedAdamW(FleetAdamW):
    """The same step in two launches for all weights of all members (kernels/adamw.py), for a FusedTransformer.

    clock: [2] on the device, (step, factor): a captured step reads it anew at each replay.
    """

    model: "FusedTransformer"

    def __init__(self, model: "FusedTransformer", learning_rate: Tensor, **options: Any) -> None:
        super().__init__(model, learning_rate, **options)
        eps = [self.eps] * model.n_member
        rows = (
            self.learning_rate,
            self.beta1,
            self.beta2,
            eps,
            self.weight_decay,
            self.per_member(options.get("clip", 1.0)),
        )
        self.settings = torch.tensor(rows, dtype=torch.float64, device=model.device)
        self.clock = torch.zeros(2, dtype=torch.float64, device=model.device)

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        self.model.refresh()

    def set_clock(self, step: int, factor: float) -> None:
        self.clock.copy_(torch.tensor([step, factor], dtype=torch.float64), non_blocking=True)

    @torch.no_grad()
    def update(self, loss: Tensor) -> Tensor:
        """`step` at the time that `clock` tells."""
        from pyscaling.kernels.adamw import adamw_update

        return adamw_update(
            self.model.flat, self.model.gradient, self.exp_avg, self.exp_avg_sq, self.settings, self.clock, loss, self.alive,
            self.failed_step, self.model.n_decayed, self.embedding_rate, self.model.low,
        )  # fmt: skip

    def step(self, loss: Tensor, step: int, factor: float) -> Tensor:
        self.set_clock(step, factor)
        return self.update(loss)
