"""Attention of a fleet: out = softmax(q k^T scale) v, causal or not, with rotary embedding and QK-norm applied inside.

q [..., n_head, T_q, head_dim], k and v [..., n_head, T_k, head_dim]; the leading axes, model axis included, are one batch
of B. The scores, T_q x T_k a head, never leave the chip: a program holds a block of queries, walks along the keys and keeps
a running maximum and sum of each row (Dao 2023, FlashAttention-2). Saved for backward: q, k, v as they came, out, and
lse [B, n_head, T_q] in float32, the logarithm to base 2 of each row's sum of 2^(score log2 e).

Backward, with P = 2^(S scale log2 e - lse), D = rowsum(dout * out), dS = P * (dout v^T - D):
dv = P^T dout, dk = scale dS^T q, dq = scale dS k, then back through rotation and norm, which are computed anew.

Launches: 1 forward; 1 backward, and 1 before it for D, unless the caller has D. The backward's programs have two jobs by
index: a block of keys walks along the queries and owns its rows of dk and dv; a block of queries walks along the keys and
owns its rows of dq. Each element has one writer and its sum a fixed order; nothing is shared between heads. Bytes at least
(s a tensor's item size), a head: forward s head_dim (2 T_q + 2 T_k) + 4 T_q; D, 2 s head_dim T_q + 4 T_q; backward
s head_dim (3 T_q + 4 T_k) + 8 T_q, of which only k, v and their gradients, or q and its own, are touched once: the rest is
walked over by each block, which is why D is not summed anew there.

Rotary embedding turns pairs (x_i, x_{i + half}): q and k are held as two parts, the first halves and the second, and their
product is the sum of the parts' products; the turning is then elementwise. Sines come from a polynomial in float32: a table
of T_k x head_dim would double what a program reads of k.

Keys stand at positions 0 to T_k - 1, query i at i + offset: in the mask, in the rotation and in the bounds of every loop.
offset is T_k - T_q for queries that follow on a cache of keys, else 0; a number at run time, of which no compiled variant
hangs. A program walks along all the keys that its queries see, and nothing splits them: a step of decoding (T_q = 1) has as
many programs as there are heads.

Not run on hardware: bfloat16 is checked by compilation and, cast up, in the interpreter.
"""

import math
from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyscaling.kernels import eager, reference
from pyscaling.kernels.launch import (
    cdiv,
    check,
    check_first,
    check_number,
    check_tensors,
    dot,
    dot_mode,
    launch,
    next_power_of_2,
    operator,
    target_of,
)
from pyscaling.kernels.tiles import choose, handed_over

EPSILON = torch.finfo(
    torch.float32
).eps  # of qk_norm: F.rms_norm's own for 16-bit inputs too, which it computes in float32
LOG2_E = tl.constexpr(math.log2(math.e))


class Blocks(NamedTuple):
    """A program's own rows, its step along the other axis, and how the compiler spreads it."""

    BLOCK: int
    STEP: int
    num_warps: int
    num_stages: int
    all_registers: bool = False  # see `launch`


def forward_blocks(q: Tensor, n_key: int, inside: bool) -> Blocks:
    """A block of queries and its step along keys. inside: whether rotation or norm is applied inside."""
    return _cut(_blocks("attention forward", q, inside), q.shape[2], n_key, q.shape[3])


def backward_blocks(q: Tensor, n_key: int, inside: bool) -> Blocks:
    """A block of keys and its step along queries, and of the other job a block of queries and its step along keys."""
    longest = max(q.shape[2], n_key)
    return _cut(_blocks("attention backward", q, inside), longest, longest, q.shape[3])


def _blocks(operation: str, q: Tensor, inside: bool) -> Blocks:
    """The table's: its width is head_dim as padded to a power of two, "padded" says that it was none."""
    wide = next_power_of_2(q.shape[3])
    conditions = [name for name, holds in (("inside", inside), ("padded", q.shape[3] != wide)) if holds]
    return Blocks(*choose(operation, target_of(q.device), q.dtype, wide, *conditions))


def _cut(blocks: Blocks, n_own: int, n_walked: int, head_dim: int) -> Blocks:
    """Blocks no longer than the sequence, with as many warps as leave a thread its share, but at least four.

    Of heads wider than 64 the warps stay: what is walked over is shared by them all, and half of them would spill.
    """
    block = min(blocks.BLOCK, max(16, next_power_of_2(n_own)))
    step = min(blocks.STEP, max(16, next_power_of_2(n_walked)))
    num_warps = blocks.num_warps if head_dim > 64 else max(4, blocks.num_warps * block // blocks.BLOCK)
    return Blocks(block, step, num_warps, blocks.num_stages, blocks.all_registers)


@triton.jit
def _row_stride(stride, UNIT: tl.constexpr, FAR: tl.constexpr):
    """A row stride in elements; FAR: in 64 bits, and so what is multiplied by it."""
    if FAR:
        return tl.cast(stride, tl.int64) * UNIT
    else:
        return stride * UNIT


@triton.jit
def _load(
    pointer, first_row, row_stride, n_row,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Columns FIRST to FIRST + WIDTH of ROWS rows, zero beyond: [ROWS, PART]. MASKED: rows may lie beyond n_row."""
    o_row = tl.arange(0, ROWS)
    o_column = tl.arange(0, PART)
    # 64 bits for the block's start alone: the loop's inner offsets stay in 32, unless row_stride has 64
    pointer += tl.cast(first_row, tl.int64) * row_stride + FIRST
    p = pointer + o_row[:, None] * row_stride + o_column[None, :]
    if MASKED:
        if WIDTH < PART:
            return tl.load(p, mask=(o_row < n_row - first_row)[:, None] & (o_column < WIDTH)[None, :], other=0.0)
        else:
            return tl.load(p, mask=(o_row < n_row - first_row)[:, None], other=0.0)
    else:
        if WIDTH < PART:
            return tl.load(p, mask=(o_column < WIDTH)[None, :], other=0.0)
        else:
            return tl.load(p)


@triton.jit
def _store(
    pointer, block, first_row, row_stride, n_row,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    o_row = tl.arange(0, ROWS)
    o_column = tl.arange(0, PART)
    pointer += tl.cast(first_row, tl.int64) * row_stride + FIRST
    p = pointer + o_row[:, None] * row_stride + o_column[None, :]
    mask = (o_row < n_row - first_row)[:, None] & (o_column < WIDTH)[None, :]
    tl.store(p, block.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _sine_and_cosine(angle):
    """In float32, for |angle| < 2^17: reduced to r in [-pi/2, pi/2] in two steps, then polynomials (error < 3e-7).

    Beyond, as at any angle, what counts is the angle's own rounding, 6e-8 of it.
    """
    n = tl.floor(angle * 0.3183098861837907 + 0.5)
    r = (angle - n * 3.140625) - n * 0.0009676535897932385  # n 3.140625 is exact: eight bits times sixteen
    sign = 1.0 - 4.0 * (0.5 * n - tl.floor(0.5 * n))  # sin(r + n pi) = (-1)^n sin r, cosines likewise
    y = r * r
    sine = y * 2.5904878876e-06 - 1.98008974585e-04
    sine = y * (y * sine + 8.332899818387e-03) - 1.66666476343451e-01
    sine = sign * r * (y * sine + 9.99999976589422e-01)
    cosine = y * 2.3153918125e-05 - 1.385370363842e-03
    cosine = y * (y * cosine + 4.1663584584407e-02) - 4.99999053406887e-01
    cosine = sign * (y * cosine + 9.99999953456870e-01)
    return sine, cosine


@triton.jit
def _turned(
    x, y, first_position, rope_step, HALF: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, BACK: tl.constexpr
):  # fmt: skip
    """Rotates pairs (x, y) [ROWS, PART] by position * base^(-i / HALF), or back; the last of an odd number of columns stays."""
    o_pair = tl.arange(0, PART)
    frequency = tl.where(o_pair < HALF, tl.exp2(o_pair.to(tl.float32) * -rope_step), 0.0)  # [PART]
    position = first_position + tl.arange(0, ROWS)
    if BACK:  # negated here, not in the sum below: else the compiler keeps the sines of the way there, and spills them
        position = -position
    sine, cosine = _sine_and_cosine(position.to(tl.float32)[:, None] * frequency[None, :])
    return x * cosine - y * sine, y * cosine + x * sine


@triton.jit
def _load_inside(
    pointer, first_row, offset, row_stride, n_row, rope_step, epsilon,
    ROPE: tl.constexpr, NORM: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Rows of q or k as the scores take them, in two parts [ROWS, PART]; without ROPE the first part is all.

    Row i stands at position i + offset.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    WIDTH: tl.constexpr = HALF if ROPE else HEAD_DIM
    a = _load(pointer, first_row, row_stride, n_row, 0, WIDTH, ROWS, PART, MASKED)
    b = a
    if ROPE:
        b = _load(pointer, first_row, row_stride, n_row, HALF, HEAD_DIM - HALF, ROWS, PART, MASKED)
    if ROPE or NORM:
        x = a.to(tl.float32)
        y = b.to(tl.float32)
        if NORM:
            square = tl.sum(x * x + y * y, 1) if ROPE else tl.sum(x * x, 1)
            inverse = tl.rsqrt(square / HEAD_DIM + epsilon)  # [ROWS]
            x *= inverse[:, None]
            y *= inverse[:, None]
        if ROPE:
            x, y = _turned(x, y, first_row + offset, rope_step, HALF, ROWS, PART, False)
        a = x.to(a.dtype)
        b = y.to(b.dtype)
    return a, b


@triton.jit
def _store_inside(
    grad_pointer, grad_a, grad_b, grad_stride, pointer, row_stride, first_row, offset, n_row, rope_step, epsilon,
    ROPE: tl.constexpr, NORM: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Pulls gradients of what `_load_inside` gave back through rotation and norm, and stores them."""
    HALF: tl.constexpr = HEAD_DIM // 2
    WIDTH: tl.constexpr = HALF if ROPE else HEAD_DIM
    if ROPE:
        grad_a, grad_b = _turned(grad_a, grad_b, first_row + offset, rope_step, HALF, ROWS, PART, True)
    if NORM:
        # y = x r, r = (mean x^2 + eps)^(-1/2): dx = r (dy - y mean(dy y))
        x = _load(pointer, first_row, row_stride, n_row, 0, WIDTH, ROWS, PART, True).to(tl.float32)
        square = tl.sum(x * x, 1)
        along = tl.sum(grad_a * x, 1)
        y = x
        if ROPE:
            y = _load(pointer, first_row, row_stride, n_row, HALF, HEAD_DIM - HALF, ROWS, PART, True).to(tl.float32)
            square += tl.sum(y * y, 1)
            along += tl.sum(grad_b * y, 1)
        inverse = tl.rsqrt(square / HEAD_DIM + epsilon)
        mean = along * inverse * inverse / HEAD_DIM
        grad_a = inverse[:, None] * (grad_a - x * mean[:, None])
        if ROPE:
            grad_b = inverse[:, None] * (grad_b - y * mean[:, None])
    _store(grad_pointer, grad_a, first_row, grad_stride, n_row, 0, WIDTH, ROWS, PART)
    if ROPE:
        _store(grad_pointer, grad_b, first_row, grad_stride, n_row, HALF, HEAD_DIM - HALF, ROWS, PART)


@triton.jit
def _program(n_block, n_group):
    """This program's head, counted over the batch, and its rank within the head.

    n_group heads, whose k and v fit the second-level cache, are worked on at a time, all their first ranks first.
    """
    i = tl.program_id(0)
    first_head = i // (n_group * n_block) * n_group
    n_head = tl.minimum(tl.num_programs(0) // n_block - first_head, n_group)
    i_within = i % (n_group * n_block)
    return first_head + i_within % n_head, i_within // n_head


@triton.jit
def _attend(
    total, maximum, weight, q_a, q_b, k_pointer, v_pointer, k_time, v_time, first_position, first, last, n_key,
    log2_scale, rope_step, epsilon, CAUSAL: tl.constexpr, ROPE: tl.constexpr, NORM: tl.constexpr, MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PART: tl.constexpr, WIDE: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Takes keys first to last into the running sums of a block of queries. MASKED: some are hidden or beyond n_key."""
    o_position = first_position + tl.arange(0, BLOCK)
    o_key = tl.arange(0, STEP)
    for start in range(first, last, STEP):
        k_a, k_b = _load_inside(
            k_pointer, start, 0, k_time, n_key, rope_step, epsilon, ROPE, NORM, HEAD_DIM, STEP, PART, MASKED
        )  # [STEP, PART]
        score = dot(q_a, tl.trans(k_a), tl.full([BLOCK, STEP], 0.0, tl.float32), DOT)
        if ROPE:
            score = dot(q_b, tl.trans(k_b), score, DOT)
        if MASKED:
            visible = (start + o_key < n_key)[None, :]
            if CAUSAL:
                visible &= (start + o_key)[None, :] <= o_position[:, None]
            score = tl.where(visible, score, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(score, 1) * log2_scale)  # scale is positive
        p = tl.exp2(score * log2_scale - new_maximum[:, None])  # [BLOCK, STEP]
        shrink = tl.exp2(maximum - new_maximum)
        weight = weight * shrink + tl.sum(p, 1)
        v = _load(v_pointer, start, v_time, n_key, 0, HEAD_DIM, STEP, WIDE, MASKED)  # [STEP, WIDE]
        total = dot(p.to(v.dtype), v, total * shrink[:, None], DOT)
        maximum = new_maximum
    return total, maximum, weight


@triton.jit(do_not_specialize=["offset"])  # any length of a cache runs the same code
def attention_forward_kernel(
    q, k, v, out, lse, q_batch, q_head, q_time, k_batch, k_head, k_time, v_batch, v_head, v_time,
    n_head, n_query, n_key, offset, n_group, scale, rope_step, epsilon,
    CAUSAL: tl.constexpr, ROPE: tl.constexpr, NORM: tl.constexpr, HEAD_DIM: tl.constexpr, UNIT: tl.constexpr,
    FAR: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PART: tl.constexpr, WIDE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    n_block = tl.cdiv(n_query, BLOCK)
    i_head, rank = _program(n_block, n_group)
    first_query = (n_block - 1 - rank) * BLOCK  # under a causal mask the last queries have most to do
    i_batch, i_within = (i_head // n_head).to(tl.int64), (i_head % n_head).to(tl.int64)
    q += (i_batch * q_batch + i_within * q_head) * UNIT
    k += (i_batch * k_batch + i_within * k_head) * UNIT
    v += (i_batch * v_batch + i_within * v_head) * UNIT
    out += (i_batch * n_query * n_head + i_within) * HEAD_DIM
    q_time = _row_stride(q_time, UNIT, FAR)
    k_time = _row_stride(k_time, UNIT, FAR)
    v_time = _row_stride(v_time, UNIT, FAR)
    out_time = _row_stride(n_head, HEAD_DIM, FAR)
    log2_scale = tl.cast(scale, tl.float32) * LOG2_E
    rope_step = tl.cast(rope_step, tl.float32)
    epsilon = tl.cast(epsilon, tl.float32)

    q_a, q_b = _load_inside(
        q, first_query, offset, q_time, n_query, rope_step, epsilon, ROPE, NORM, HEAD_DIM, BLOCK, PART, True
    )  # [BLOCK, PART]
    total = tl.full([BLOCK, WIDE], 0.0, tl.float32)
    maximum = tl.full([BLOCK], -3.4e38, tl.float32)  # finite, so that a row without a visible key would not make NaN
    weight = tl.full([BLOCK], 0.0, tl.float32)
    last = n_key
    n_full = n_key
    first_position = first_query + offset
    if CAUSAL:
        last = tl.minimum(n_key, first_position + BLOCK)
        n_full = tl.minimum(n_key, first_position + 1)
    n_full = n_full // STEP * STEP
    total, maximum, weight = _attend(
        total, maximum, weight, q_a, q_b, k, v, k_time, v_time, first_position, 0, n_full, n_key,
        log2_scale, rope_step, epsilon, CAUSAL, ROPE, NORM, False, HEAD_DIM, BLOCK, STEP, PART, WIDE, DOT,
    )  # fmt: skip
    total, maximum, weight = _attend(
        total, maximum, weight, q_a, q_b, k, v, k_time, v_time, first_position, n_full, last, n_key,
        log2_scale, rope_step, epsilon, CAUSAL, ROPE, NORM, True, HEAD_DIM, BLOCK, STEP, PART, WIDE, DOT,
    )  # fmt: skip
    _store(out, total / weight[:, None], first_query, out_time, n_query, 0, HEAD_DIM, BLOCK, WIDE)
    o_query = first_query + tl.arange(0, BLOCK)
    tl.store(lse + i_head.to(tl.int64) * n_query + o_query, maximum + tl.log2(weight), mask=o_query < n_query)


@triton.jit
def attention_delta_kernel(
    grad_out, out, delta, grad_out_batch, grad_out_head, grad_out_time, n_head, n_query,
    HEAD_DIM: tl.constexpr, UNIT: tl.constexpr, FAR: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(dout * out) of ROWS queries of a head."""
    n_block = tl.cdiv(n_query, ROWS)
    i_head, first_row = tl.program_id(0) // n_block, tl.program_id(0) % n_block * ROWS
    i_batch, i_within = (i_head // n_head).to(tl.int64), (i_head % n_head).to(tl.int64)
    grad_out += (i_batch * grad_out_batch + i_within * grad_out_head) * UNIT
    out += (i_batch * n_query * n_head + i_within) * HEAD_DIM
    grad_out_time = _row_stride(grad_out_time, UNIT, FAR)
    out_time = _row_stride(n_head, HEAD_DIM, FAR)
    b_grad = _load(grad_out, first_row, grad_out_time, n_query, 0, HEAD_DIM, ROWS, WIDE, True)  # [ROWS, WIDE]
    b_out = _load(out, first_row, out_time, n_query, 0, HEAD_DIM, ROWS, WIDE, True)
    o_row = first_row + tl.arange(0, ROWS)
    b_delta = tl.sum(b_grad.to(tl.float32) * b_out.to(tl.float32), 1)
    tl.store(delta + i_head.to(tl.int64) * n_query + o_row, b_delta, mask=o_row < n_query)


@triton.jit
def _load_rows(
    grad_out, lse, delta, first_row, grad_out_time, n_query,
    HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dout [ROWS, WIDE], lse and D [ROWS]; lse is infinite beyond n_query, so that P is 0 there."""
    b_grad = _load(grad_out, first_row, grad_out_time, n_query, 0, HEAD_DIM, ROWS, WIDE, True)
    o_row = first_row + tl.arange(0, ROWS)
    b_lse = tl.load(lse + o_row, mask=o_row < n_query, other=float("inf"))
    return b_grad, b_lse, tl.load(delta + o_row, mask=o_row < n_query, other=0.0)


@triton.jit
def _gather_from_queries(
    grad_k_a, grad_k_b, grad_v, k_a, k_b, b_v, q, grad_out, lse, delta, q_time, grad_out_time,
    first_seeing, first, last, n_query, offset, log2_scale, rope_step, epsilon,
    ROPE: tl.constexpr, NORM: tl.constexpr, MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PART: tl.constexpr, WIDE: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Sums dk / scale and dv of a block of keys over queries first to last. MASKED: some see only some of the keys.

    first_seeing: the query, perhaps below 0, whose position is the first key's.
    """
    o_seeing = first_seeing + tl.arange(0, BLOCK)
    o_query = tl.arange(0, STEP)
    for start in range(first, last, STEP):
        q_a, q_b = _load_inside(
            q, start, offset, q_time, n_query, rope_step, epsilon, ROPE, NORM, HEAD_DIM, STEP, PART, True
        )  # [STEP, PART]
        score = dot(k_a, tl.trans(q_a), tl.full([BLOCK, STEP], 0.0, tl.float32), DOT)  # S^T
        if ROPE:
            score = dot(k_b, tl.trans(q_b), score, DOT)
        b_grad, b_lse, b_delta = _load_rows(grad_out, lse, delta, start, grad_out_time, n_query, HEAD_DIM, STEP, WIDE)
        p = tl.exp2(score * log2_scale - b_lse[None, :])  # [BLOCK, STEP]
        if MASKED:
            p = tl.where(o_seeing[:, None] <= (start + o_query)[None, :], p, 0.0)
        grad_v = dot(p.to(b_grad.dtype), b_grad, grad_v, DOT)
        grad_p = dot(b_v, tl.trans(b_grad), tl.full([BLOCK, STEP], 0.0, tl.float32), DOT)
        grad_score = (p * (grad_p - b_delta[None, :])).to(q_a.dtype)
        grad_k_a = dot(grad_score, q_a, grad_k_a, DOT)
        if ROPE:
            grad_k_b = dot(grad_score, q_b, grad_k_b, DOT)
    return grad_k_a, grad_k_b, grad_v


@triton.jit
def _gather_from_keys(
    grad_q_a, grad_q_b, q_a, q_b, b_grad, b_lse, b_delta, k, v, k_time, v_time, first_position, first, last, n_key,
    log2_scale, rope_step, epsilon, CAUSAL: tl.constexpr, ROPE: tl.constexpr, NORM: tl.constexpr, MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PART: tl.constexpr, WIDE: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Sums dq / scale of a block of queries over keys first to last. MASKED: some are hidden or beyond n_key."""
    o_position = first_position + tl.arange(0, BLOCK)
    o_key = tl.arange(0, STEP)
    for start in range(first, last, STEP):
        k_a, k_b = _load_inside(
            k, start, 0, k_time, n_key, rope_step, epsilon, ROPE, NORM, HEAD_DIM, STEP, PART, MASKED
        )  # [STEP, PART]
        score = dot(q_a, tl.trans(k_a), tl.full([BLOCK, STEP], 0.0, tl.float32), DOT)
        if ROPE:
            score = dot(q_b, tl.trans(k_b), score, DOT)
        b_v = _load(v, start, v_time, n_key, 0, HEAD_DIM, STEP, WIDE, MASKED)
        grad_p = dot(b_grad, tl.trans(b_v), tl.full([BLOCK, STEP], 0.0, tl.float32), DOT)
        p = tl.exp2(score * log2_scale - b_lse[:, None])  # [BLOCK, STEP]
        if MASKED:
            visible = (start + o_key < n_key)[None, :]
            if CAUSAL:
                visible &= (start + o_key)[None, :] <= o_position[:, None]
            p = tl.where(visible, p, 0.0)
        grad_score = (p * (grad_p - b_delta[:, None])).to(k_a.dtype)
        grad_q_a = dot(grad_score, k_a, grad_q_a, DOT)
        if ROPE:
            grad_q_b = dot(grad_score, k_b, grad_q_b, DOT)
    return grad_q_a, grad_q_b


@triton.jit(do_not_specialize=["offset"])  # any length of a cache runs the same code
def attention_backward_kernel(
    grad_out, q, k, v, lse, delta, grad_q, grad_k, grad_v,
    grad_out_batch, grad_out_head, grad_out_time, q_batch, q_head, q_time, k_batch, k_head, k_time,
    v_batch, v_head, v_time, grad_q_batch, grad_q_head, grad_q_time, grad_k_batch, grad_k_head, grad_k_time,
    grad_v_batch, grad_v_head, grad_v_time, n_head, n_query, n_key, offset, n_group, scale, rope_step, epsilon,
    CAUSAL: tl.constexpr, ROPE: tl.constexpr, NORM: tl.constexpr, HEAD_DIM: tl.constexpr, UNIT: tl.constexpr,
    FAR: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PART: tl.constexpr, WIDE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    n_key_block = tl.cdiv(n_key, BLOCK)
    n_block = n_key_block + tl.cdiv(n_query, BLOCK)
    i_head, rank = _program(n_block, n_group)
    i_batch, i_within = (i_head // n_head).to(tl.int64), (i_head % n_head).to(tl.int64)
    grad_out += (i_batch * grad_out_batch + i_within * grad_out_head) * UNIT
    q += (i_batch * q_batch + i_within * q_head) * UNIT
    k += (i_batch * k_batch + i_within * k_head) * UNIT
    v += (i_batch * v_batch + i_within * v_head) * UNIT
    lse += i_head.to(tl.int64) * n_query
    delta += i_head.to(tl.int64) * n_query
    grad_out_time = _row_stride(grad_out_time, UNIT, FAR)
    q_time = _row_stride(q_time, UNIT, FAR)
    k_time = _row_stride(k_time, UNIT, FAR)
    v_time = _row_stride(v_time, UNIT, FAR)
    grad_q_time = _row_stride(grad_q_time, UNIT, FAR)
    grad_k_time = _row_stride(grad_k_time, UNIT, FAR)
    grad_v_time = _row_stride(grad_v_time, UNIT, FAR)
    scale = tl.cast(scale, tl.float32)
    log2_scale = scale * LOG2_E
    rope_step = tl.cast(rope_step, tl.float32)
    epsilon = tl.cast(epsilon, tl.float32)
    if rank < n_key_block:
        first_key = rank * BLOCK  # under a causal mask the first keys have most to do
        k_a, k_b = _load_inside(
            k, first_key, 0, k_time, n_key, rope_step, epsilon, ROPE, NORM, HEAD_DIM, BLOCK, PART, True
        )  # [BLOCK, PART]
        b_v = _load(v, first_key, v_time, n_key, 0, HEAD_DIM, BLOCK, WIDE, True)  # [BLOCK, WIDE]
        total_k_a = tl.full([BLOCK, PART], 0.0, tl.float32)
        total_k_b = tl.full([BLOCK, PART], 0.0, tl.float32)
        total_v = tl.full([BLOCK, WIDE], 0.0, tl.float32)
        first_seeing = first_key - offset
        n_masked = 0
        if CAUSAL:
            first = tl.maximum(first_seeing, 0) // STEP * STEP
            n_masked = tl.cdiv(tl.maximum(first_seeing + BLOCK - 1, 0), STEP) * STEP
            total_k_a, total_k_b, total_v = _gather_from_queries(
                total_k_a, total_k_b, total_v, k_a, k_b, b_v, q, grad_out, lse, delta, q_time, grad_out_time,
                first_seeing, first, tl.minimum(n_masked, n_query), n_query, offset, log2_scale, rope_step, epsilon,
                ROPE, NORM, True, HEAD_DIM, BLOCK, STEP, PART, WIDE, DOT,
            )  # fmt: skip
        total_k_a, total_k_b, total_v = _gather_from_queries(
            total_k_a, total_k_b, total_v, k_a, k_b, b_v, q, grad_out, lse, delta, q_time, grad_out_time,
            first_seeing, n_masked, n_query, n_query, offset, log2_scale, rope_step, epsilon,
            ROPE, NORM, False, HEAD_DIM, BLOCK, STEP, PART, WIDE, DOT,
        )  # fmt: skip
        grad_v += (i_batch * grad_v_batch + i_within * grad_v_head) * UNIT
        _store(grad_v, total_v, first_key, grad_v_time, n_key, 0, HEAD_DIM, BLOCK, WIDE)
        grad_k += (i_batch * grad_k_batch + i_within * grad_k_head) * UNIT
        _store_inside(
            grad_k, total_k_a * scale, total_k_b * scale, grad_k_time, k, k_time, first_key, 0, n_key,
            rope_step, epsilon, ROPE, NORM, HEAD_DIM, BLOCK, PART,
        )  # fmt: skip
    else:
        first_query = (n_block - 1 - rank) * BLOCK
        q_a, q_b = _load_inside(
            q, first_query, offset, q_time, n_query, rope_step, epsilon, ROPE, NORM, HEAD_DIM, BLOCK, PART, True
        )  # [BLOCK, PART]
        b_grad, b_lse, b_delta = _load_rows(
            grad_out, lse, delta, first_query, grad_out_time, n_query, HEAD_DIM, BLOCK, WIDE
        )
        total_q_a = tl.full([BLOCK, PART], 0.0, tl.float32)
        total_q_b = tl.full([BLOCK, PART], 0.0, tl.float32)
        last = n_key
        n_full = n_key
        first_position = first_query + offset
        if CAUSAL:
            last = tl.minimum(n_key, first_position + BLOCK)
            n_full = tl.minimum(n_key, first_position + 1)
        n_full = n_full // STEP * STEP
        total_q_a, total_q_b = _gather_from_keys(
            total_q_a, total_q_b, q_a, q_b, b_grad, b_lse, b_delta, k, v, k_time, v_time,
            first_position, 0, n_full, n_key, log2_scale, rope_step, epsilon,
            CAUSAL, ROPE, NORM, False, HEAD_DIM, BLOCK, STEP, PART, WIDE, DOT,
        )  # fmt: skip
        total_q_a, total_q_b = _gather_from_keys(
            total_q_a, total_q_b, q_a, q_b, b_grad, b_lse, b_delta, k, v, k_time, v_time,
            first_position, n_full, last, n_key, log2_scale, rope_step, epsilon,
            CAUSAL, ROPE, NORM, True, HEAD_DIM, BLOCK, STEP, PART, WIDE, DOT,
        )  # fmt: skip
        grad_q += (i_batch * grad_q_batch + i_within * grad_q_head) * UNIT
        _store_inside(
            grad_q, total_q_a * scale, total_q_b * scale, grad_q_time, q, q_time, first_query, offset, n_query,
            rope_step, epsilon, ROPE, NORM, HEAD_DIM, BLOCK, PART,
        )  # fmt: skip


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    offset: int = 0,
    scale: float | None = None,
    rope_base: float | None = None,
    qk_norm: bool = False,
) -> tuple[Tensor, Tensor]:
    """out [B, n_head, T_q, head_dim], a view of [B, T_q, n_head, head_dim], and lse [B, n_head, T_q] in float32.

    q [B, n_head, T_q, head_dim], k and v [B, n_head, T_k, head_dim]: of any strides but the last, which is 1. Slices of a
    packed [B, T, 3, n_head, head_dim], say: `q, k, v = qkv.permute(2, 0, 3, 1, 4)`. Query i stands at position i + offset,
    by which it is rotated and, if causal, sees keys j <= i + offset; keys stand at positions from 0.
    """
    scale, rope_step = _check(q, k, v, offset, scale, rope_base)
    n_batch, n_head, n_query, head_dim = q.shape
    n_key = k.shape[2]
    out = q.new_empty(n_batch, n_query, n_head, head_dim).transpose(1, 2)
    lse = q.new_empty(n_batch, n_head, n_query, dtype=torch.float32)
    if handed_over("attention_forward", q):
        eager.attention_forward(q, k, v, out, lse, causal, offset, scale, rope_base, qk_norm)
        return out, lse
    blocks = forward_blocks(q, n_key, rope_base is not None or qk_norm)
    unit, strides = _strides(q, k, v)
    far = _far(max(blocks.BLOCK, blocks.STEP), q, k, v, out)
    launch(
        attention_forward_kernel,
        (n_batch * n_head * cdiv(n_query, blocks.BLOCK),),
        *(q, k, v, out, lse, *strides, n_head, n_query, n_key, offset, _heads_at_a_time(k), scale, rope_step, EPSILON),
        reads=[q, k, v],
        writes=[out, lse],
        flops=4 * n_batch * n_head * head_dim * _pairs(n_query, n_key, causal, offset),
        **_constants(q, causal, rope_base is not None, qk_norm, unit, far, blocks),
    )
    return out, lse


def attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    causal: bool = False,
    offset: int = 0,
    scale: float | None = None,
    rope_base: float | None = None,
    qk_norm: bool = False,
    grad_q: Tensor | None = None,
    grad_k: Tensor | None = None,
    grad_v: Tensor | None = None,
    delta: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, written into grad_q, grad_k and grad_v where given.

    out, lse: of `attention_forward` with the same options. grad_out and the gradients have any strides but the last, which
    is 1: slices of one packed gradient [B, T, 3, n_head, head_dim], say. delta [B, n_head, T_q] in float32: the sum over
    head_dim of grad_out, as rounded to its dtype, times out; where it is given `out` is not read, else one more launch
    computes it.
    """
    scale, rope_step = _check(q, k, v, offset, scale, rope_base)
    n_batch, n_head, n_query, head_dim = q.shape
    n_key = k.shape[2]
    grad_q = torch.empty_like(q) if grad_q is None else grad_q
    grad_k = torch.empty_like(k) if grad_k is None else grad_k
    grad_v = torch.empty_like(v) if grad_v is None else grad_v
    for name, tensor, like in (
        ("grad_out", grad_out, q),
        ("grad_q", grad_q, q),
        ("grad_k", grad_k, k),
        ("grad_v", grad_v, v),
    ):
        check(name, tensor, like.shape, q)
        _check_rows(name, tensor)
    check("out", out, q.shape, q)
    check("lse", lse, q.shape[:3], q, [torch.float32])
    if not out.transpose(1, 2).is_contiguous() or not lse.is_contiguous():
        raise ValueError(
            f"out and lse must be laid out as attention_forward gave them, got out of strides {out.stride()}."
        )
    if handed_over("attention_backward", q):
        eager.attention_backward(grad_out, q, k, v, grad_q, grad_k, grad_v, causal, offset, scale, rope_base, qk_norm)
        return grad_q, grad_k, grad_v
    if delta is None:
        delta = _delta(grad_out, out)
    check("delta", delta, q.shape[:3], q, [torch.float32])
    if not delta.is_contiguous():
        raise ValueError(f"delta must be contiguous, got strides {delta.stride()}; call .contiguous().")
    blocks = backward_blocks(q, n_key, rope_base is not None or qk_norm)
    walked = (grad_out, q, k, v, grad_q, grad_k, grad_v)
    unit, strides = _strides(*walked)
    far = _far(max(blocks.BLOCK, blocks.STEP), *walked)
    launch(
        attention_backward_kernel,
        (n_batch * n_head * (cdiv(n_key, blocks.BLOCK) + cdiv(n_query, blocks.BLOCK)),),
        *(grad_out, q, k, v, lse, delta, grad_q, grad_k, grad_v, *strides),
        *(n_head, n_query, n_key, offset, _heads_at_a_time(q, k), scale, rope_step, EPSILON),
        reads=[grad_out, q, k, v, lse, delta],
        writes=[grad_q, grad_k, grad_v],
        # both jobs form the scores and dout v^T
        flops=14 * n_batch * n_head * head_dim * _pairs(n_query, n_key, causal, offset),
        **_constants(q, causal, rope_base is not None, qk_norm, unit, far, blocks),
    )
    return grad_q, grad_k, grad_v


def _delta(grad_out: Tensor, out: Tensor) -> Tensor:
    """rowsum(grad_out * out) [B, n_head, T_q] in float32."""
    n_batch, n_head, n_query, head_dim = out.shape
    delta = out.new_empty(n_batch, n_head, n_query, dtype=torch.float32)
    wide = next_power_of_2(head_dim)
    rows = min(4096 // wide, max(16, next_power_of_2(n_query)))  # in 16 bits four loads of 16 bytes a thread and tensor
    unit, strides = _strides(grad_out)
    launch(
        attention_delta_kernel,
        (n_batch * n_head * cdiv(n_query, rows),),
        *(grad_out, out, delta, *strides, n_head, n_query),
        reads=[grad_out, out],
        writes=[delta],
        HEAD_DIM=head_dim,
        UNIT=unit,
        FAR=_far(rows, grad_out, out),
        ROWS=rows,
        WIDE=wide,
    )
    return delta


def _check(
    q: Tensor, k: Tensor, v: Tensor, offset: int, scale: float | None, rope_base: float | None
) -> tuple[float, float]:
    """Raises ValueError for what the kernels cannot take; the scale, and log2 of the ratio of neighbouring frequencies."""
    check_first("q", q)
    check("q", q, [None, None, None, None], q)
    n_batch, n_head, n_query, head_dim = q.shape
    check("k", k, [n_batch, n_head, None, head_dim], q)
    check("v", v, k.shape, q)
    if not 8 <= head_dim <= 256:
        raise ValueError(
            f"q must have a head_dim of 8 to 256, got {head_dim}; pad it with zeros, or use the reference."
        )
    if n_query < 1 or k.shape[2] < 1:
        raise ValueError(f"q and k must hold at least one position, got lengths {n_query} and {k.shape[2]}.")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _check_rows(name, tensor)
    if offset < 0:
        raise ValueError(f"offset must be at least 0, got {offset}; a query before the first key would see none.")
    if scale is None:
        scale = 1.0 / math.sqrt(head_dim)
    if not 0.0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}; negate q for a negative one.")
    if rope_base is None:
        return scale, 0.0
    if not 1.0 <= rope_base < math.inf:
        raise ValueError(f"rope_base must be at least 1 and finite, got {rope_base}; 10000 is usual.")
    return scale, math.log2(rope_base) / (head_dim // 2)


def _check_rows(name: str, tensor: Tensor) -> None:
    if tensor.stride(3) != 1:
        raise ValueError(
            f"{name} must be contiguous along its last axis, got strides {tensor.stride()}; call .contiguous()."
        )


def _strides(*tensors: Tensor) -> tuple[int, list[int]]:
    """Strides of all axes but the last in units of the first number.

    A unit of eight elements tells the compiler that every row starts on sixteen bytes, whatever head_dim is, and strides
    such as 24 or 40 do not bring it to load single elements.
    """
    strides = [stride for tensor in tensors for stride in tensor.stride()[:3]]
    unit = 8 if all(stride % 8 == 0 for stride in strides) else 1
    return unit, [stride // unit for stride in strides]


def _far(n_row: int, *tensors: Tensor) -> bool:
    """Whether n_row rows of one of them reach further than 32 bits count."""
    return any(n_row * tensor.stride(2) >= 2**31 for tensor in tensors)


def _heads_at_a_time(*walked: Tensor) -> int:
    """Heads whose walked tensors, read twice (k and v, or q and dout), take 16 MiB: a part of any second-level cache."""
    size = sum(2 * t.shape[2] * t.shape[3] * t.element_size() for t in walked)
    return max(1, (16 << 20) // size)


def _pairs(n_query: int, n_key: int, causal: bool, offset: int) -> int:
    """Query-key pairs that see each other: n queries see offset + 1, offset + 2, ... keys, later ones all."""
    if not causal:
        return n_query * n_key
    n = min(n_query, max(0, n_key - offset))
    return n * offset + n * (n + 1) // 2 + (n_query - n) * n_key


def _constants(q: Tensor, causal: bool, rope: bool, norm: bool, unit: int, far: bool, blocks: Blocks) -> dict[str, int]:
    head_dim = q.shape[3]
    wide = max(16, next_power_of_2(head_dim))
    part = max(16, next_power_of_2(head_dim - head_dim // 2)) if rope else wide
    return dict(
        CAUSAL=causal, ROPE=rope, NORM=norm, HEAD_DIM=head_dim, UNIT=unit, FAR=far, PART=part, WIDE=wide,
        DOT=dot_mode(q.dtype, target_of(q.device)), **blocks._asdict(),
    )  # fmt: skip


@operator()
def attention_and_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    offset: int,
    scale: float | None,
    rope_base: float | None,
    qk_norm: bool,
) -> tuple[Tensor, Tensor]:
    return attention_forward(q, k, v, causal=causal, offset=offset, scale=scale, rope_base=rope_base, qk_norm=qk_norm)


@operator()
def attention_gradients(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    offset: int,
    scale: float | None,
    rope_base: float | None,
    qk_norm: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return attention_backward(
        grad_out, q, k, v, out, lse, causal=causal, offset=offset, scale=scale, rope_base=rope_base, qk_norm=qk_norm
    )  # fmt: skip


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, *ctx.options = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse)


def _backward(ctx, grad_out: Tensor, grad_lse):  # type: ignore[no-untyped-def]
    grads = attention_gradients(_with_rows(grad_out), *ctx.saved_tensors, *ctx.options)
    return *grads, None, None, None, None, None


attention_and_lse.register_autograd(_backward, setup_context=_setup_context)


def _with_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


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
    """softmax(q k^T scale) v on [..., n_head, T, head_dim], as torch's scaled_dot_product_attention.

    k and v may have a length T_k of their own. causal=True is torch's rule, top-left: query i sees keys j <= i, each counted
    from its first, so that keys beyond T_q are seen by none. causal="bottom_right" is for queries that follow on a cache of
    keys: they are the last T_q of T_k positions, query i sees keys j <= i + T_k - T_q (torch's causal_lower_right) and is
    rotated as position i + T_k - T_q; T_q = 1 is a step of decoding. Where lengths are equal both are one. A longer buffer
    is handed over as `k[..., :T_k, :]`.

    scale defaults to 1 / sqrt(head_dim), head_dim is 8 to 256. rope_base: rotary embedding (Su et al. 2021) of q and k,
    halves rotated against each other, positions from 0 but for bottom_right's queries. qk_norm: RMS-normalises q and k over
    head_dim without a gain (Henry et al. 2020), eps as F.rms_norm's default. The result lies in memory as [..., T_q, n_head,
    head_dim], so that `.transpose(-3, -2).flatten(-2)` is a view. q, k and v are read in place if contiguous along the last
    axis (and their leading axes can be viewed as one); gradients once only.

    Raises ValueError for what it cannot take, and for more queries than keys under bottom_right, of which the first would
    see no key (NaN in torch). Warns of keys that causal=True hides from every query.
    """
    check_tensors({"q": q, "k": k, "v": v})
    for name, value in (("scale", scale), ("rope_base", rope_base)):
        if value is not None:
            check_number(name, value)
    if not isinstance(qk_norm, bool):
        raise ValueError(f"qk_norm must be True or False, got {type(qk_norm).__name__}.")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() < 3:
            raise ValueError(f"{name} must have at least 3 dimensions [..., n_head, T, head_dim], got {list(x.shape)}.")
        if x.shape[:-3] == q.shape[:-3] and x.shape[-3] != q.shape[-3]:
            raise ValueError(
                f"{name} has n_head {x.shape[-3]}, q {q.shape[-3]}; key and value heads must be as many as query heads: "
                f"repeat those that several queries share, {name}.repeat_interleave(n, dim=-3)."
            )
        if x.shape[:-3] != q.shape[:-3] or x.shape[-1] != q.shape[-1]:
            raise ValueError(
                f"{name} must have shape [..., n_head, T, head_dim] like q {list(q.shape)}, got {list(x.shape)}."
            )
    if v.shape != k.shape:
        raise ValueError(f"v must have shape {list(k.shape)}, got {list(v.shape)}.")
    offset = reference.offset_of_queries(q, k, causal)
    n_batch = math.prod(q.shape[:-3])
    q4, k4, v4 = (_with_rows(x.reshape(n_batch, *x.shape[-3:])) for x in (q, k, v))
    out, _ = attention_and_lse(q4, k4, v4, bool(causal), offset, scale, rope_base, qk_norm)
    return out.reshape(q.shape)
