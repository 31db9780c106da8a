"""The peer of the kernels' benchmarks: a transformer as it is written in plain PyTorch, and its training step."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _foreach_utils

from pyscaling.accounting import Shape
from pyscaling.kernels.meter import Meter
from pyscaling.kernels.reference import rotary

# Tensors without storage, by which a step is counted, stand for a GPU's: they take the multi-tensor kernels, too.
_devices = _foreach_utils._get_foreach_kernels_supported_devices()
_foreach_utils._get_foreach_kernels_supported_devices = lambda: [*_devices, "meta", "cpu"]


class EagerBlock(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d, wide = shape.d_model, shape.d_ff * (2 if shape.mlp == "swiglu" else 1)
        norm = (lambda: nn.LayerNorm(d, bias=shape.bias)) if shape.norm == "layernorm" else (lambda: nn.RMSNorm(d))
        self.shape, self.attention_norm, self.mlp_norm = shape, norm(), norm()
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=shape.bias), nn.Linear(d, d, bias=shape.bias)
        self.up, self.down = nn.Linear(d, wide, bias=shape.bias), nn.Linear(shape.d_ff, d, bias=shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        shape = self.shape
        n, length, d = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(n, length, 3, shape.n_head, -1).permute(2, 0, 3, 1, 4)
        if shape.position == "rope":
            q, k = rotary(q, shape.rope_base), rotary(k, shape.rope_base)
        if shape.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, length, d)
        x = x + self.out(mixed)
        hidden = self.up(self.mlp_norm(x))
        if shape.mlp == "swiglu":
            gate, value = hidden.chunk(2, dim=-1)
            return x + self.down(F.silu(gate) * value)
        return x + self.down(F.gelu(hidden, approximate="tanh"))


class EagerGPT(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        learned = shape.position == "learned"
        self.position = nn.Parameter(torch.zeros(shape.context, shape.d_model)) if learned else None
        self.blocks = nn.Sequential(*(EagerBlock(shape) for _ in range(shape.n_layer)))
        self.norm = nn.LayerNorm(shape.d_model) if shape.norm == "layernorm" else nn.RMSNorm(shape.d_model)
        self.head = nn.Linear(shape.d_model, shape.vocab_size, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens[:, :-1])
        if self.position is not None:
            x = x + self.position[: x.shape[1]]
        logits = self.head(self.norm(self.blocks(x)))
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def eager_step(
    shape: Shape, device: str, dtype: torch.dtype, compile: Callable[..., Any] | None = None
) -> Callable[[Tensor], Tensor]:
    """A step of one model: loss, gradients, clipping, AdamW with multi-tensor kernels; in 16 bits by autocast.

    compile: torch.compile, or what else is to be done to the model. A step may be captured in a CUDA graph.
    """
    with torch.device(device):
        model = EagerGPT(shape)
    run = model if compile is None else compile(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, foreach=True, capturable=device == "cuda"
    )

    def step(tokens: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = run(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        return loss.detach()

    return step


def counted_eager_step(shape: Shape, n_sequence: int, dtype: torch.dtype, target: str) -> Meter:
    """What `eager_step` costs on a GPU.

    Counted on fake CPU tensors, because torch has no autocast for meta tensors. CPU autocast differs from CUDA's by what
    favours the peer: of what this model calls, rms_norm alone is not cast up to float32.
    """
    with FakeTensorMode():
        tokens = torch.zeros(n_sequence, shape.context + 1, dtype=torch.int64)
        step = eager_step(shape, "cpu", dtype)
        step(tokens)  # makes the optimiser's state
        with Meter(target=target) as meter:
            step(tokens)
    return meter


def vmapped_step(shape: Shape, n_member: int, device: str, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A step of n_member models by torch.func.vmap over their stacked weights; tokens [M, B, T + 1] -> losses [M]."""
    with torch.device(device):
        models = [EagerGPT(shape) for _ in range(n_member)]
    weights, buffers = torch.func.stack_module_state(models)
    leaves = list(weights.values())
    optimizer = torch.optim.AdamW(
        leaves, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, foreach=True, capturable=device == "cuda"
    )

    def loss_of(weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
        return torch.func.functional_call(models[0], (weights, buffers), (tokens,), tie_weights=True)

    gradients_of = torch.func.vmap(torch.func.grad_and_value(loss_of))

    def step(tokens: Tensor) -> Tensor:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            gradients, loss = gradients_of({name: w.detach() for name, w in weights.items()}, tokens)
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)  # [M]
        shrink = (1.0 / (norm + 1e-6)).clamp(max=1.0)
        for name, leaf in weights.items():
            leaf.grad = gradients[name] * shrink.view(-1, *[1] * (leaf.dim() - 1))
        optimizer.step()
        return loss

    return step
