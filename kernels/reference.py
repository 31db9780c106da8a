"""Each operation of a fleet's step in plain PyTorch, on any device: what the fused kernels must reproduce.

Every tensor carries the model axis M first: weights W [M, d_in, d_out], activations x [M, R, d] with the
R = batch * time rows of one member flattened.
"""

import warnings
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W + b for each member: x [M, R, d_in], weight [M, d_in, d_out], bias [M, d_out] -> [M, R, d_out]."""
    return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight)


def layer_norm(
    x: Tensor, gain: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, eps: float = 1e-5
) -> Any:
    """LayerNorm over the last axis (Ba et al. 2016), gain and bias [M, d] per member.

    With a residual: (that of x + residual, x + residual).
    """
    total = x if residual is None else x + residual
    normed, gain = F.layer_norm(total, x.shape[-1:], eps=eps), gain.unsqueeze(1)
    normed = normed * gain if bias is None else torch.addcmul(bias.unsqueeze(1), normed, gain)
    return normed if residual is None else (normed, total)


def rms_norm(x: Tensor, gain: Tensor, residual: Tensor | None = None, eps: float = 1e-5) -> Any:
    """RMSNorm over the last axis (Zhang & Sennrich 2019), gain [M, d] per member; residual as in `layer_norm`."""
    total = x if residual is None else x + residual
    normed = F.rms_norm(total, x.shape[-1:], eps=eps) * gain.unsqueeze(1)
    return normed if residual is None else (normed, total)


def embedding(tokens: Tensor, weight: Tensor, position: Tensor | None = None) -> Tensor:
    """Rows of each member's own table: tokens [M, ..., T] int64, weight [M, V, d] -> [M, ..., T, d].

    position: [M, context, d]; row t is added to the t-th token of every sequence.
    """
    n_member, vocab_size, d = weight.shape
    offsets = vocab_size * torch.arange(n_member, device=tokens.device)
    rows = F.embedding(tokens + offsets.view(-1, *[1] * (tokens.dim() - 1)), weight.reshape(-1, d))
    if position is None:
        return rows
    length = tokens.shape[-1]
    return rows + position[:, :length].reshape(n_member, *[1] * (tokens.dim() - 2), length, d)


def rotary(x: Tensor, base: float, back: bool = False, first: int = 0) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of x [..., T, head_dim], halves rotated against each other.

    back: by the negative angles, as a gradient is turned. first: the position of the first row.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    position = torch.arange(first, first + x.shape[-2], device=x.device, dtype=torch.float32)
    angle = torch.outer(position, frequency)
    cos, sin = angle.cos().to(x.dtype), (-angle if back else angle).sin().to(x.dtype)  # [T, half]
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat((a * cos - b * sin, a * sin + b * cos, x[..., 2 * half :]), dim=-1)


def offset_of_queries(q: Tensor, k: Tensor, causal: Any) -> int:
    """Query i of q [..., T_q, head_dim] stands at position i plus this: T_k - T_q if causal is "bottom_right", else 0.

    Raises ValueError for another causal, and for more queries than keys under bottom_right; warns of keys that causal=True
    hides from every query.
    """
    n_query, n_key = q.shape[-2], k.shape[-2]
    if causal is True and n_query < n_key and not torch.compiler.is_compiling():  # which traces no warning
        warnings.warn(
            f"causal=True counts queries and keys each from its first, as torch does: the last {n_key - n_query} of {n_key} "
            'keys are seen by no query. For queries that follow on a cache take causal="bottom_right"; if it is meant, hand '
            f"over k[..., :{n_query}, :] and v alike, which comes to the same.",
            stacklevel=3,
        )
    if isinstance(causal, bool):
        return 0
    if not isinstance(causal, str) or causal != "bottom_right":
        got = repr(causal) if isinstance(causal, str | int | float | None) else type(causal).__name__
        raise ValueError(f'causal must be True, False or "bottom_right", got {got}; a mask of one\'s own is not taken.')
    if n_query > n_key:
        raise ValueError(
            f'causal="bottom_right" takes at most as many queries as keys, got T_q {n_query} and T_k {n_key}: the first '
            f"{n_query - n_key} queries would see no key. Hand over q[..., {n_query - n_key}:, :], or take causal=True, by "
            "which query i sees keys j <= i."
        )
    return n_key - n_query


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool | Literal["bottom_right"] = False,
    scale: float | None = None,
    rope_base: float | None = None,
    qk_norm: bool = False,
) -> Tensor:
    """softmax(q k^T scale) v on [..., n_head, T, head_dim]; scale defaults to 1 / sqrt(head_dim).

    causal=True: query i sees keys j <= i. "bottom_right": the queries are the last T_q of T_k positions, as after a cache.
    rope_base: q and k go through `rotary` before; qk_norm: and are RMS-normalised over head_dim (Henry et al. 2020).
    """
    offset = offset_of_queries(q, k, causal)
    if rope_base is not None:
        q, k = rotary(q, rope_base, first=offset), rotary(k, rope_base)
    if qk_norm:
        q, k = F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:])
    if not offset:
        return F.scaled_dot_product_attention(q, k, v, is_causal=bool(causal), scale=scale)
    visible = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril(offset)
    return F.scaled_dot_product_attention(q, k, v, visible, scale=scale)


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


def linear_cross_entropy_tokens(x: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    """Cross-entropy of each token plus z_loss * lse^2, [M, R]: 0 where the target is -100, NaN where it is no token."""
    logits = linear(x, weight)  # [M, R, V]
    known = (targets >= 0) & (targets < weight.shape[2])
    log_p = logits.log_softmax(-1).gather(-1, targets.where(known, 0).unsqueeze(-1)).squeeze(-1)
    loss = z_loss * logits.logsumexp(-1).square() - log_p
    return loss.where(known, torch.nan).where(targets != -100, 0.0)


def activated(u: Tensor, activation: str) -> Tensor:
    """Of u [..., F], or of gates and values side by side [..., 2 F] if gated -> [..., F]; activation: as `mlp`'s."""
    if activation in ("swiglu", "geglu"):
        gate, value = u.chunk(2, dim=-1)
        return (F.silu(gate) if activation == "swiglu" else F.gelu(gate, approximate="tanh")) * value
    return F.gelu(u, approximate="tanh" if activation == "gelu" else "none")


def mlp(
    x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, activation: str
) -> Tensor:
    """Up-projection, activation, down-projection: up [M, d, d_ff], or [M, d, 2 d_ff] if gated; down [M, d_ff, d].

    activation: "gelu" (tanh form), "gelu_exact", "swiglu" or "geglu".
    """
    return linear(activated(linear(x, up, up_bias), activation), down, down_bias)


def adamw_step(
    flat: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    settings: Tensor,
    clock: Tensor,
    loss: Tensor,
    alive: Tensor,
    failed_step: Tensor,
    n_decayed: int,
    embedding_rate: float = 1.0,
    cast: Tensor | None = None,
) -> Tensor:
    """AdamW (Loshchilov & Hutter 2019) of a fleet in place, clipped by each member's own gradient norm, which it returns.

    flat, gradient, exp_avg, exp_avg_sq: [M, P]; settings: [6, M], rows learning_rate, beta1, beta2, eps, weight_decay, clip;
    clock: [2], the count of steps before this one and the schedule's factor; loss, alive, failed_step: [M].
    """
    learning_rate, beta1, beta2, eps, decay, clip = settings.unsqueeze(2).unbind()  # [M, 1]
    norm = gradient.abs().amax(1).double()  # scaled, so that no square overflows
    norm = (norm * torch.linalg.vector_norm(gradient / norm.clamp(min=1e-45).unsqueeze(1), dim=1)).to(flat.dtype)
    norm = torch.where(gradient.isfinite().all(1), norm, torch.nan)
    finite = norm.isfinite() & loss.isfinite()
    failed_step.copy_(torch.where(alive & ~finite, clock[0].long(), failed_step))
    alive &= finite
    n, live = clock[0] + 1, alive.unsqueeze(1)
    decays = torch.arange(flat.shape[1], device=flat.device) < n_decayed
    rate = learning_rate * clock[1] * torch.where(decays, 1.0, embedding_rate)
    g = gradient / (norm.unsqueeze(1) / clip).clamp(min=1.0)
    first = exp_avg + (g - exp_avg) * (1 - beta1)
    second = beta2 * exp_avg_sq + (1 - beta2) * g**2
    weight = flat * (1 - rate * decay * decays)
    weight = weight - rate / (1 - beta1**n) * first / ((second / (1 - beta2**n)).sqrt() + eps)
    for old, new in ((flat, weight), (exp_avg, first), (exp_avg_sq, second)):
        old.copy_(torch.where(live, new, old))
    if cast is not None:
        cast.copy_(torch.where(live, flat, cast))
    return norm
