"""Each operation of a fleet's step in plain PyTorch, on any device: what the fused kernels must reproduce.

Every tensor carries the model axis M first: weights W [M, d_in, d_out], activations x [M, R, d] with the
R = batch * time rows of one member flattened.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W + b for each member: x [M, R, d_in], weight [M, d_in, d_out], bias [M, d_out] -> [M, R, d_out]."""
    return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """LayerNorm over the last axis (Ba et al. 2016), gain and bias [M, d] per member."""
    normed = F.layer_norm(x, x.shape[-1:], eps=eps)
    return normed * gain.unsqueeze(1) if bias is None else torch.addcmul(bias.unsqueeze(1), normed, gain.unsqueeze(1))


def rms_norm(x: Tensor, gain: Tensor, eps: float = 1e-5) -> Tensor:
    """RMSNorm over the last axis (Zhang & Sennrich 2019), gain [M, d] per member."""
    return F.rms_norm(x, x.shape[-1:], eps=eps) * gain.unsqueeze(1)


def embedding(tokens: Tensor, weight: Tensor) -> Tensor:
    """Rows of each member's own table: tokens [M, ...] int64, weight [M, V, d] -> [M, ..., d]."""
    n_member, vocab_size, d = weight.shape
    offsets = vocab_size * torch.arange(n_member, device=tokens.device)
    return F.embedding(tokens + offsets.view(-1, *[1] * (tokens.dim() - 1)), weight.reshape(-1, d))


def rotary(x: Tensor, base: float) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of x [..., T, head_dim], halves rotated against each other."""
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.outer(torch.arange(x.shape[-2], device=x.device, dtype=torch.float32), frequency)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)  # [T, half]
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat((a * cos - b * sin, a * sin + b * cos, x[..., 2 * half :]), dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, scale: float | None = None) -> Tensor:
    """softmax(q k^T scale) v on [..., n_head, T, head_dim]; scale defaults to 1 / sqrt(head_dim)."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradient in one pass over blocks of rows, so that a block of logits never leaves the cache."""

    rows_per_block = 256  # 256 rows of 1024 logits are 1 MiB, half of a common L2 cache; 128 and 512 were 5 % slower

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor):  # type: ignore[override]
        n_member, n_row, _ = x.shape
        loss = x.new_empty(n_member, n_row)
        needs_gradient = any(ctx.needs_input_grad)
        grad_x = torch.empty_like(x) if needs_gradient else None
        grad_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format) if needs_gradient else None
        block = x.new_empty(min(n_row, _LinearCrossEntropy.rows_per_block), weight.shape[2])
        for m in range(n_member):
            for start in range(0, n_row, len(block)):
                rows = slice(start, min(n_row, start + len(block)))
                x_rows, target = x[m, rows], targets[m, rows, None]
                logits = block[: rows.stop - start]
                torch.mm(x_rows, weight[m], out=logits)
                target_logit, top = logits.gather(1, target), logits.amax(1, keepdim=True)
                p = torch.softmax(logits, dim=1, out=logits)
                # p at the largest logit is 1 / sum exp(z - max), so the loss stays exact where p[target] underflows
                loss[m, rows] = (top - p.amax(1, keepdim=True).log() - target_logit).squeeze(1)
                if grad_x is not None and grad_weight is not None:
                    grad_logits = p.scatter_add_(1, target, p.new_full((1, 1), -1.0).expand_as(target))
                    torch.mm(grad_logits, weight[m].t(), out=grad_x[m, rows])
                    grad_weight[m].addmm_(x_rows.t(), grad_logits)
        if needs_gradient:
            ctx.save_for_backward(grad_x, grad_weight)
        return loss.mean(1)

    @staticmethod
    def backward(ctx, grad_loss: Tensor):  # type: ignore[override]
        grad_x, grad_weight = ctx.saved_tensors
        share = (grad_loss / grad_x.shape[1]).view(-1, 1, 1)
        return grad_x * share, grad_weight * share, None


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of each member's logits x W: x [M, R, d], weight [M, d, V], targets [M, R] -> [M], in nats."""
    return _LinearCrossEntropy.apply(x, weight, targets)


def mlp(
    x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, activation: str
) -> Tensor:
    """Up-projection, activation, down-projection: up [M, d, d_ff], or [M, d, 2 d_ff] if gated; down [M, d_ff, d].

    activation: "gelu" (tanh form), "gelu_exact", "swiglu" or "geglu".
    """
    hidden = linear(x, up, up_bias)
    if activation in ("swiglu", "geglu"):
        gate, value = hidden.chunk(2, dim=-1)
        hidden = (F.silu(gate) if activation == "swiglu" else F.gelu(gate, approximate="tanh")) * value
    else:
        hidden = F.gelu(hidden, approximate="tanh" if activation == "gelu" else "none")
    return linear(hidden, down, down_bias)
