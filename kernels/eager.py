"""What each operation's kernels compute, in plain PyTorch: into the same places, of the same arguments.

A row of `HANDED_OVER` in kernels/tiles.py with an operation's name ("attention_backward", say) hands it over to the function of
that name here: where a card has found the kernel wrong, until it is mended. Products and sums are float32 as it stands
whatever the precision, and no memory is spared but for logits and scores, which come a member or some sequences at a time:
right before fast. Nothing waits for the device, so that a step may still be captured in a CUDA graph.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyscaling.kernels import reference

_gelu_backward = torch.ops.aten.gelu_backward
MOST_SCORES = 2**26  # of attention at a time, 256 MiB


def _write_gradients(
    of_weight: Tensor, of_bias: Tensor, grad_weight: Tensor, grad_bias: Tensor | None, parts: Tensor | None
) -> None:
    """parts [S, M, K N (+ N)]: whose sum over S is formed later."""
    if parts is not None:
        sums = (of_weight.flatten(1), of_bias)[: 1 if grad_bias is None else 2]
        parts.zero_()[0].copy_(torch.cat(sums, 1))
        return
    grad_weight.copy_(of_weight)
    if grad_bias is not None:
        grad_bias.copy_(of_bias)


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, norm: Any) -> Tensor:
    out = reference.linear(x.float(), weight.float(), bias.float() if bias is not None else None)
    out = (out if residual is None else out + residual).to(x.dtype)
    if norm is not None:
        rms = norm.stats.shape[0] == 1
        normed, _, stats = layer_norm_forward(out, norm.gain, norm.bias, None, norm.eps, rms=rms)
        norm.normed.copy_(normed)
        norm.stats.copy_(stats)
    return out


def linear_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, grad_weight: Tensor, grad_bias: Tensor | None, norm: Any = None,
    parts: Tensor | None = None, delta: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """grad_x, in x's dtype; the others are written."""
    grad, rows = grad_out.float(), x.float()
    grad_x = (grad @ weight.float().mT).to(x.dtype)
    _write_gradients(rows.mT @ grad, grad.sum(1), grad_weight, grad_bias, parts)
    if delta is not None:
        _, n_head, length = delta.shape
        delta.copy_((grad_x.float() * rows).view(-1, length, n_head, x.shape[2] // n_head).sum(-1).transpose(1, 2))
    if norm is None:
        return grad_x
    return layer_norm_backward(grad_x, norm.z, norm.gain, norm.stats, norm.add, None, None, norm.parts)


def mlp_forward(
    x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, residual: Tensor | None,
    activation: str, norm: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out, u)."""
    u = linear_forward(x, up, up_bias, None, None)
    hidden = reference.activated(u.float(), activation).to(x.dtype)
    return linear_forward(hidden, down, down_bias, residual, norm), u


def mlp_backward(
    grad_out: Tensor, u: Tensor, down: Tensor, activation: str, grad_down: Tensor, grad_down_bias: Tensor | None,
    parts: Tensor | None,
) -> Tensor:  # fmt: skip
    """grad_u; the others are written. What is left is `linear_backward`."""
    wide = u.float()
    hidden = reference.activated(wide, activation)
    grad = linear_backward(grad_out, hidden, down, grad_down, grad_down_bias, parts=parts)
    if activation not in ("swiglu", "geglu"):
        return _gelu_backward(grad, wide, approximate="none" if activation == "gelu_exact" else "tanh").to(u.dtype)
    gate, value = wide.chunk(2, dim=-1)
    if activation == "swiglu":
        through, opened = torch.ops.aten.silu_backward(grad * value, gate), F.silu(gate)
    else:
        through, opened = _gelu_backward(grad * value, gate, approximate="tanh"), F.gelu(gate, approximate="tanh")
    return torch.cat((through, grad * opened), -1).to(u.dtype)


def layer_norm_forward(
    x: Tensor, gain: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float, *, rms: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    total = x + residual if residual is not None else None
    z = (x if total is None else total).float()
    mean = torch.zeros_like(z[..., :1]) if rms else z.mean(-1, keepdim=True)
    rstd = torch.rsqrt((z - mean).square().mean(-1, keepdim=True) + eps)
    normed = (z - mean) * rstd * gain.float().unsqueeze(1)
    normed = (normed if bias is None else normed + bias.float().unsqueeze(1)).to(x.dtype)
    return normed, total, torch.stack([rstd.squeeze(-1)] if rms else [rstd.squeeze(-1), mean.squeeze(-1)])


def layer_norm_backward(
    grad_normed: Tensor, z: Tensor, gain: Tensor, stats: Tensor, add: Tensor | None,
    grad_gain: Tensor | None, grad_bias: Tensor | None, parts: Tensor | None,
) -> Tensor:  # fmt: skip
    """grad_z; the others are written."""
    rms, rstd = stats.shape[0] == 1, stats[0].unsqueeze(-1)
    n = (z.float() if rms else z.float() - stats[1].unsqueeze(-1)) * rstd
    grad = grad_normed.float()
    slope = grad * gain.float().unsqueeze(1)
    grad_z = slope - n * (slope * n).mean(-1, keepdim=True)
    grad_z = rstd * (grad_z if rms else grad_z - slope.mean(-1, keepdim=True))
    for place, sums in ((grad_gain, grad * n), (grad_bias, grad)):
        if place is not None:
            place.copy_(sums.sum(1))
    if parts is not None:
        parts.zero_()
        for part, sums in zip(parts, (grad * n, grad), strict=False):
            part[:, 0].copy_(sums.sum(1))
    return (grad_z if add is None else grad_z + add).to(z.dtype)


def _inside(x: Tensor, first: int, rope_base: float | None, qk_norm: bool) -> Tensor:
    """Queries or keys as they are multiplied, in float32. first: the position of the first."""
    x = x.float() if rope_base is None else reference.rotary(x.float(), rope_base, first=first)
    return F.rms_norm(x, x.shape[-1:]) if qk_norm else x


def _inside_backward(grad: Tensor, x: Tensor, first: int, rope_base: float | None, qk_norm: bool) -> Tensor:
    """The gradient of x, of that of `_inside`; turning leaves lengths alone, and is undone by turning back."""
    if qk_norm:
        turned = _inside(x, first, rope_base, False)
        rstd = torch.rsqrt(turned.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps)
        grad = rstd * (grad - turned * rstd.square() * (grad * turned).mean(-1, keepdim=True))
    return grad if rope_base is None else reference.rotary(grad, rope_base, back=True, first=first)


def _weights(q: Tensor, k: Tensor, causal: bool, offset: int, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(q k^T scale), and the natural logarithm of each row's sum."""
    scores = q @ k.mT * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1 + offset)
        scores = scores.masked_fill(hidden, -math.inf)
    return scores.softmax(-1), scores.logsumexp(-1)


def _some(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Stretches of the batch."""
    n_batch, n_head, n_query, _ = q.shape
    step = max(1, MOST_SCORES // (n_head * n_query * k.shape[2]))
    return (slice(first, first + step) for first in range(0, n_batch, step))


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, offset: int, scale: float, *inside: Any
) -> None:
    """out and lse (to base 2) are written. inside: rope_base, qk_norm."""
    for some in _some(q, k):
        p, of_part = _weights(_inside(q[some], offset, *inside), _inside(k[some], 0, *inside), causal, offset, scale)
        out[some] = (p @ v[some].float()).to(out.dtype)
        lse[some] = of_part / math.log(2)


def attention_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, causal: bool,
    offset: int, scale: float, *inside: Any,
) -> None:  # fmt: skip
    """grad_q, grad_k and grad_v are written. inside: rope_base, qk_norm."""
    for some in _some(q, k):
        of_q, of_k, grad = _inside(q[some], offset, *inside), _inside(k[some], 0, *inside), grad_out[some].float()
        p, _ = _weights(of_q, of_k, causal, offset, scale)
        grad_p = grad @ v[some].float().mT
        grad_scores = p * (grad_p - (p * grad_p).sum(-1, keepdim=True)) * scale
        grad_q[some] = _inside_backward(grad_scores @ of_k, q[some], offset, *inside).to(q.dtype)
        grad_k[some] = _inside_backward(grad_scores.mT @ of_q, k[some], 0, *inside).to(k.dtype)
        grad_v[some] = (p.mT @ grad).to(v.dtype)


def embedding_forward(tokens: Tensor, weight: Tensor, position: Tensor | None, out: Tensor) -> None:
    """out is written."""
    known = (tokens >= 0) & (tokens < weight.shape[1])
    rows = reference.embedding(tokens.where(known, 0), weight, position)
    out.copy_(rows.masked_fill(~known.unsqueeze(-1), math.nan).view(out.shape))


def embedding_backward(
    grad: Tensor, tokens: Tensor, grad_weight: Tensor, grad_position: Tensor | None, accumulate: bool
) -> None:
    """grad_weight and grad_position are written."""
    n_member, vocab_size, d = grad_weight.shape
    known, grad = (tokens >= 0) & (tokens < vocab_size), grad.float()
    # a row more, for what is no token
    rows = tokens.where(known, vocab_size) + (vocab_size + 1) * torch.arange(n_member, device=tokens.device).view(
        -1, 1, 1
    )
    sums = torch.ops.aten.embedding_dense_backward(
        grad.view(-1, d), rows.view(-1), n_member * (vocab_size + 1), -1, False
    )
    sums = sums.view(n_member, vocab_size + 1, d)[:, :vocab_size]
    grad_weight.copy_(grad_weight + sums if accumulate else sums)
    if grad_position is not None:
        grad_position.zero_()
        grad_position[:, : tokens.shape[2]] = grad.view(*tokens.shape, d).sum(1).to(grad_position.dtype)


def linear_cross_entropy_forward(x: Tensor, weight: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    loss = torch.empty(targets.shape, dtype=torch.float32, device=x.device)
    lse, vocab = torch.empty_like(loss), weight.shape[2]
    for m in range(len(x)):
        logits = x[m].float() @ weight[m].float()
        lse[m] = logits.logsumexp(-1)
        places = targets[m].clamp(0, vocab - 1).unsqueeze(1)
        loss[m] = z_loss * lse[m].square() - logits.log_softmax(-1).gather(1, places).squeeze(1)
    loss.masked_fill_((targets < 0) | (targets >= vocab), math.nan).masked_fill_(targets == -100, 0.0)
    return loss, lse


def linear_cross_entropy_backward(
    scale: Tensor, x: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, z_loss: float, grad_weight: Tensor,
    accumulate: bool,
) -> Tensor:  # fmt: skip
    """grad_x; grad_weight is written."""
    vocab, grad_x = weight.shape[2], torch.empty_like(x)
    scale = scale.masked_fill((targets < 0) | (targets >= vocab), math.nan).masked_fill(targets == -100, 0.0)
    for m in range(len(x)):
        rows, columns = x[m].float(), weight[m].float()
        p = (rows @ columns).softmax(-1) * (1.0 + 2.0 * z_loss * lse[m]).unsqueeze(1)
        places = targets[m].clamp(0, vocab - 1).unsqueeze(1)
        grad_logits = scale[m].unsqueeze(1) * p.scatter_add(1, places, p.new_full((1, 1), -1.0).expand_as(places))
        grad_x[m] = (grad_logits @ columns.mT).to(x.dtype)
        sums = rows.mT @ grad_logits
        grad_weight[m] = (grad_weight[m] + sums if accumulate else sums).to(grad_weight.dtype)
    return grad_x


def adamw_update(
    flat: Tensor, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, settings: Tensor, clock: Tensor, loss: Tensor,
    alive: Tensor, failed_step: Tensor, n_decayed: int, embedding_rate: float, cast: Tensor | None,
) -> Tensor:  # fmt: skip
    """The gradient norms [M]; the rest is changed in place."""
    rate, beta1, beta2, eps, decay, clip = settings
    step, rate = clock[0], rate * clock[1]
    norm = torch.linalg.vector_norm(gradient, dim=1, dtype=torch.float64)
    finite = norm.float().isfinite() & loss.isfinite()
    failed_step.copy_(torch.where(alive & ~finite, step.to(failed_step.dtype), failed_step))
    alive &= finite

    def of_member(value: Tensor) -> Tensor:
        return value.float().unsqueeze(1)

    g = gradient * of_member(1.0 / (norm / clip).clamp(min=1.0))
    m = exp_avg + (g - exp_avg) * of_member(1.0 - beta1)
    v = exp_avg_sq * of_member(beta2) + g.square() * of_member(1.0 - beta2)
    update = m / (v.sqrt() / of_member((1.0 - beta2 ** (step + 1.0)).sqrt()) + of_member(eps))
    update *= of_member(rate / (1.0 - beta1 ** (step + 1.0)))
    update[:, n_decayed:] *= embedding_rate
    w = flat.clone()
    w[:, :n_decayed] *= of_member(1.0 - rate * decay)
    for array, new in ((flat, w - update), (exp_avg, m), (exp_avg_sq, v)):
        array.copy_(torch.where(alive.unsqueeze(1), new, array))
    if cast is not None:
        cast.copy_(torch.where(alive.unsqueeze(1), flat.to(cast.dtype), cast))
    return norm.float()
