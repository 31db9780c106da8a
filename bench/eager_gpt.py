"""The peer of the kernels' benchmarks: a transformer as it is written in plain PyTorch, and its training step."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _foreach_utils

from pyscaling.accounting import Shape
from pyscaling.kernels.reference import rotary

# Meta tensors, by which a step is counted, stand for a GPU's: they take the multi-tensor kernels, too.
_devices = _foreach_utils._get_foreach_kernels_supported_devices()
_foreach_utils._get_foreach_kernels_supported_devices = lambda: [*_devices, "meta"]


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


def eager_step(shape: Shape, device: str, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A step of one model: loss, gradients, clipping, AdamW with multi-tensor kernels; in 16 bits by autocast."""
    with torch.device(device):
        model = EagerGPT(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, foreach=True)

    def step(tokens: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device if device != "meta" else "cuda", dtype, enabled=dtype != torch.float32):
            loss = model(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        return loss.detach()

    return step
