"""Token (+ position) embedding of a fleet: out[m, b T + t] = weight[m, tokens[m, b, t]] (+ position[m, t]).

tokens [M, B, T] int64, weight [M, V, d], position [M, context, d] -> out [M, B T, d]. A token outside [0, V) reads nothing and
gives a row of NaN, so that its member fails visibly; nothing waits for the device to find out. It has no gradient.

Backward: grad_weight[m, v] (+)= sum of grad over the places of v, grad_position[m, t] = sum of grad over B, zero beyond T.
Two launches, no atomics. Vocabulary rows are dealt to K buckets, v to v mod K, so that neighbours in the alphabet and the
common tokens at the head of a vocabulary do not meet in one.
1. One program a block of B tokens (256) sorts it by bucket: a token's rank is how many of its block come before it, counted by
   comparing all pairs. It writes the places in that order, and where each bucket begins: starts [M, K + 1, R / B]. Other
   programs of the launch sum grad_position.
2. One program a bucket and block of columns walks through its stretches of all blocks, in order, as if they were one: grad's
   rows, multiplied by the 0/1 matrix that says to which of the bucket's rows each belongs, on tensor cores, sums in float32.
   It alone writes those rows. float32 is multiplied as it stands ("ieee", see `dot_mode`), not as three products of which
   2^-22 is lost: the matrix has 16 rows only, and so the gradient of a token that occurs once is grad's row to the bit.
A non-finite gradient of one token may thus reach other tokens of the same member, never another member.

Bytes at least, of an item size s and R = B T: forward s R d 2 (+ position, from the cache) + 8 R; backward s R d (twice with
position) + 4 V d written, or with `accumulate` 8 d for each distinct token; 24 R of tokens and places, and (K + 1) R / 32 of
starts. On sm_90 in 16 bits K is 128 at V = 8192; of a member with R = 16384 launch 1 then reads 0.3 MB of tokens, compares 6
million pairs (R (B + K)) and writes 33 KB of starts. Where each bucket's program scanned all tokens twice, which is what this
replaces, they read 34 MB (16 K R), made 4 million comparisons and a prefix sum of 2 million numbers: for 16 members half a
gigabyte from the cache. At V = 50257 (K = 512) it is 13 million pairs against 134 MB.

Not run on hardware: bfloat16 is checked by compilation and, cast up, in the interpreter.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyscaling.kernels import eager
from pyscaling.kernels.launch import (
    as_fleet,
    cdiv,
    check,
    check_filled,
    check_first,
    check_members,
    check_tensors,
    dot,
    dot_mode,
    launch,
    next_power_of_2,
    operator,
    rows_contiguous,
    target_of,
)
from pyscaling.kernels.tiles import choose, handed_over

MOST_BUCKETS = 512  # more would read more bytes of tokens than the gradient has; exceeded from V = 65537 only


@triton.jit
def embedding_forward_kernel(
    tokens, weight, position, out, n_row, length, vocab_size, token_stride, sequence_stride, weight_stride, position_stride,
    HAS_POSITION: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_member = tl.program_id(1).to(tl.int64)
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_column = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_row, m_column = o_row < n_row, o_column < D
    o_time = o_row % length
    p_token = tokens + i_member * token_stride + (o_row // length).to(tl.int64) * sequence_stride + o_time
    token = tl.load(p_token, mask=m_row, other=-1)  # [ROWS]
    known = (token >= 0) & (token < vocab_size)
    p_weight = weight + i_member * weight_stride + token[:, None] * D + o_column[None, :]
    row = tl.load(p_weight, mask=known[:, None] & m_column[None, :], other=0.0).to(tl.float32)
    row = tl.where(known[:, None], row, float("nan"))  # [ROWS, BLOCK_D]
    mask = m_row[:, None] & m_column[None, :]
    if HAS_POSITION:
        p_position = position + i_member * position_stride + o_time[:, None].to(tl.int64) * D + o_column[None, :]
        row += tl.load(p_position, mask=mask, other=0.0).to(tl.float32)
    p_out = out + (i_member * n_row + o_row)[:, None] * D + o_column[None, :]
    tl.store(p_out, row.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _buckets(tokens, row, n_row, length, vocab_size, sequence_stride, BUCKETS: tl.constexpr):
    """Tokens of these rows and their buckets; BUCKETS, after all others, of a token outside the vocabulary or no row."""
    p_token = tokens + (row // length).to(tl.int64) * sequence_stride + row % length
    token = tl.load(p_token, mask=row < n_row, other=-1)
    known = (token >= 0) & (token < vocab_size)
    token = token.to(tl.int32)
    return token, tl.where(known, token % BUCKETS, BUCKETS)


@triton.jit
def embedding_places_kernel(
    tokens, places, starts, grad, grad_position, n_row, length, vocab_size, context, token_stride, sequence_stride,
    position_stride, BUCKETS: tl.constexpr, ALL_BUCKETS: tl.constexpr, SLOTS: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """places [M, R] int32: row * SLOTS + slot, each block's bucket by bucket; starts [M, BUCKETS + 1, blocks] int32."""
    i_program, i_member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tokens += i_member * token_stride
    n_block = tl.cdiv(n_row, BLOCK)
    if i_program < n_block:
        first = i_program * BLOCK
        o = tl.arange(0, BLOCK)
        token, bucket = _buckets(tokens, first + o, n_row, length, vocab_size, sequence_stride, BUCKETS)
        key = bucket * BLOCK + o
        rank = tl.zeros([BLOCK], tl.int32)
        o_bucket = tl.arange(0, ALL_BUCKETS)
        before = tl.zeros([ALL_BUCKETS], tl.int32)
        for start in range(0, BLOCK, STEP):
            o_step = start + tl.arange(0, STEP)
            _, other = _buckets(tokens, first + o_step, n_row, length, vocab_size, sequence_stride, BUCKETS)
            rank += tl.sum(((other * BLOCK + o_step)[None, :] < key[:, None]).to(tl.int32), axis=1)
            before += tl.sum((other[None, :] < o_bucket[:, None]).to(tl.int32), axis=1)
        place = (first + o) * SLOTS + token // BUCKETS
        tl.store(places + i_member * n_row + first + rank, place, mask=bucket < BUCKETS)
        p_start = starts + i_member * (BUCKETS + 1) * n_block + i_program
        tl.store(p_start + o_bucket.to(tl.int64) * n_block, before, mask=o_bucket <= BUCKETS)
    else:
        n_column_block = tl.cdiv(D, COLUMNS)
        i_tile = i_program - n_block
        o_time = i_tile // n_column_block * ROWS + tl.arange(0, ROWS)
        o_column = i_tile % n_column_block * COLUMNS + tl.arange(0, COLUMNS)
        m_column = (o_column < D)[None, :]
        mask = (o_time < length)[:, None] & m_column
        o_tile = o_time[:, None].to(tl.int64) * D + o_column[None, :]
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for first in range(0, n_row, length):
            p_grad = grad + (i_member * n_row + first) * D + o_tile
            total += tl.load(p_grad, mask=mask, other=0.0).to(tl.float32)
        p_out = grad_position + i_member * position_stride + o_tile
        tl.store(p_out, total.to(grad_position.dtype.element_ty), mask=(o_time < context)[:, None] & m_column)


@triton.jit
def embedding_backward_kernel(
    grad, places, starts, grad_weight, n_row, vocab_size, weight_stride,
    ACCUMULATE: tl.constexpr, DOT: tl.constexpr, BUCKETS: tl.constexpr, SLOTS: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    i_bucket, i_member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = (o_column < D)[None, :]
    o_slot = tl.arange(0, SLOTS)
    n_block = tl.cdiv(n_row, BLOCK)
    starts += (i_member * (BUCKETS + 1) + i_bucket) * n_block
    grad += i_member * n_row * D
    places += i_member * n_row
    total = tl.zeros([SLOTS, COLUMNS], tl.float32)
    count = tl.zeros([SLOTS], tl.int32)
    for first in range(0, n_block, BLOCKS):
        o_block = first + tl.arange(0, BLOCKS)
        begin = tl.load(starts + o_block, mask=o_block < n_block, other=0)
        stop = tl.load(starts + n_block + o_block, mask=o_block < n_block, other=0)
        end = tl.cumsum(stop - begin, axis=0)  # of each block's stretch, if they lay one after another
        gap = BLOCK - stop + tl.load(starts + o_block + 1, mask=o_block + 1 < n_block, other=0)  # to the next in places
        p_first = places + first * BLOCK + tl.load(starts + first)
        n_place = tl.sum(stop - begin, axis=0)
        for start in range(0, n_place, ROWS):
            o_place = start + tl.arange(0, ROWS)
            gaps = tl.sum(
                tl.where(end[None, :] <= o_place[:, None], gap[None, :], 0), axis=1
            )  # [ROWS] of [ROWS, BLOCKS]
            p_place = p_first + o_place + gaps
            place = tl.load(p_place, mask=o_place < n_place, other=-1)
            p_grad = grad + (place // SLOTS)[:, None].to(tl.int64) * D + o_column[None, :]
            b_grad = tl.load(p_grad, mask=(place >= 0)[:, None] & m_column, other=0.0)  # [ROWS, COLUMNS]
            belongs = (o_slot[:, None] == (place % SLOTS)[None, :]) & (place >= 0)[None, :]  # [SLOTS, ROWS]
            total = dot(belongs.to(tl.float32).to(b_grad.dtype), b_grad, total, DOT)
            if ACCUMULATE:
                count += tl.sum(belongs.to(tl.int32), axis=1)
    o_vocab = i_bucket + BUCKETS * o_slot
    m_slot = o_vocab < vocab_size
    if ACCUMULATE:
        m_slot = m_slot & (count > 0)
    mask = m_slot[:, None] & m_column
    p_out = grad_weight + i_member * weight_stride + o_vocab[:, None].to(tl.int64) * D + o_column[None, :]
    if ACCUMULATE:
        total += tl.load(p_out, mask=mask, other=0.0).to(tl.float32)
    tl.store(p_out, total.to(grad_weight.dtype.element_ty), mask=mask)


def embedding_forward(tokens: Tensor, weight: Tensor, position: Tensor | None = None) -> Tensor:
    """[M, B T, d]: tokens [M, B, T] of any stride but a contiguous T, weight [M, V, d], position of any member stride."""
    (n_member, n_sequence, length), (_, vocab_size, d) = tokens.shape, weight.shape
    n_row = n_sequence * length
    out = torch.empty(n_member, n_row, d, dtype=weight.dtype, device=weight.device)
    if handed_over("embedding_forward", weight):
        eager.embedding_forward(tokens, weight, position, out)
        return out
    numbers, most = choose("embedding forward", target_of(weight.device), weight.dtype, d)
    block = min(most, next_power_of_2(d))
    rows = max(1, min(numbers // block, 64))
    launch(
        embedding_forward_kernel,
        (cdiv(n_row, rows), n_member, cdiv(d, block)),
        tokens, weight, position if position is not None else weight, out,
        n_row, length, vocab_size, tokens.stride(0), tokens.stride(1),
        weight.stride(0), position.stride(0) if position is not None else 0,
        reads=[tokens, out, position[:, :length] if position is not None else None],  # a row of the table for each of out
        writes=[out],
        HAS_POSITION=position is not None,
        D=d,
        ROWS=rows,
        BLOCK_D=block,
    )  # fmt: skip
    return out


def embedding_backward(
    grad: Tensor,
    tokens: Tensor,
    vocab_size: int,
    grad_weight: Tensor | None = None,
    grad_position: Tensor | None = None,
    *,
    accumulate: bool = False,
) -> Tensor:
    """grad_weight [M, V, d] of grad [M, B T, d], float32 unless given; `accumulate` adds to the one given.

    grad_position [M, context, d] is written where it is given. Both of any member stride and floating dtype.
    """
    (n_member, n_sequence, length), d = tokens.shape, grad.shape[2]
    n_row = n_sequence * length
    if accumulate and grad_weight is None:
        raise ValueError("accumulate=True adds to grad_weight; give it.")
    if grad_weight is None:
        grad_weight = torch.empty(n_member, vocab_size, d, dtype=torch.float32, device=grad.device)
    if handed_over("embedding_backward", grad):
        eager.embedding_backward(grad, tokens, grad_weight, grad_position, accumulate)
        return grad_weight
    full, target = grad.dtype == torch.float32, target_of(grad.device)
    (least,) = choose("embedding bucket", target, grad.dtype, d)
    slots = min(128, max(least, next_power_of_2(cdiv(vocab_size, MOST_BUCKETS))))  # 128 at most, for the registers
    buckets = next_power_of_2(cdiv(vocab_size, slots))
    if n_row * slots >= 2**31:
        raise ValueError(f"tokens must hold fewer than {2**31 // slots} tokens a member, got {n_row}; split the batch.")
    places = torch.empty(n_member, n_row, dtype=torch.int32, device=grad.device)
    block, step, blocks, rows, most, num_warps = choose("embedding places", target, grad.dtype, d)
    n_block, columns = cdiv(n_row, block), min(most, next_power_of_2(d))
    starts = torch.empty(n_member, buckets + 1, n_block, dtype=torch.int32, device=grad.device)
    context = grad_position.shape[1] if grad_position is not None else 0
    launch(
        embedding_places_kernel,
        (n_block + cdiv(context, rows) * cdiv(d, columns), n_member),
        tokens, places, starts, grad, grad_position if grad_position is not None else grad,
        n_row, length, vocab_size, context, tokens.stride(0), tokens.stride(1),
        grad_position.stride(0) if grad_position is not None else 0,
        reads=[tokens, tokens, grad if grad_position is not None else None],
        writes=[places, starts, grad_position],
        BUCKETS=buckets,
        ALL_BUCKETS=next_power_of_2(buckets + 1),
        SLOTS=slots,
        D=d,
        BLOCK=block,
        STEP=step,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=num_warps,
    )  # fmt: skip
    rows, most, num_warps = choose("embedding backward", target, grad.dtype, slots)
    columns = min(most, max(16, next_power_of_2(d)))
    launch(
        embedding_backward_kernel,
        (buckets, n_member, cdiv(d, columns)),
        grad, places, starts, grad_weight, n_row, vocab_size, grad_weight.stride(0),
        reads=[grad, places, starts, grad if accumulate else None],  # at most a row of grad_weight for each of grad
        writes=[grad if accumulate else grad_weight],
        flops=2 * n_member * slots * n_row * d,
        ACCUMULATE=accumulate,
        DOT="ieee" if full else dot_mode(grad.dtype, target),
        BUCKETS=buckets,
        SLOTS=slots,
        D=d,
        BLOCK=block,
        BLOCKS=blocks,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=num_warps,
    )  # fmt: skip
    return grad_weight


@operator()
def embedding_op(tokens: Tensor, weight: Tensor, position: Tensor | None) -> Tensor:
    return embedding_forward(tokens, weight, position)


@operator()
def embedding_gradients(grad: Tensor, tokens: Tensor, weight: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
    grad_weight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    grad_position = position.new_empty(position.shape) if position is not None else None
    embedding_backward(grad.contiguous(), tokens, weight.shape[1], grad_weight, grad_position)
    return grad_weight, grad_position if grad_position is not None else grad.new_empty(0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tokens, weight, position = ctx.saved_tensors
    grad_weight, grad_position = embedding_gradients(grad, tokens, weight, position)
    return None, grad_weight, grad_position if position is not None else None


embedding_op.register_autograd(_gradients, setup_context=_save)


def embedding(tokens: Tensor, weight: Tensor, position: Tensor | None = None) -> Tensor:
    """Rows of each member's own table, and the position's row added, for each token.

    tokens: [M, B, T] int64, weight: [M, V, d], position: [M, context, d] with context >= T -> [M, B T, d]; of a single model
    tokens [B, T] and all without M. A token outside [0, V) gives a row of NaN. Raises ValueError for what does not fit.
    """
    check_tensors({"tokens": tokens, "weight": weight}, {"position": position})
    check_first("weight", weight)
    members = check_members("weight", weight)
    check_filled("weight", weight, row=-2, column=-1)
    check("tokens", tokens, (*members, None, None), weight, (torch.int64,))
    check_filled("tokens", tokens, position=-1)
    check("position", position, (*members, None, weight.shape[-1]), weight)
    if position is not None and position.shape[-2] < tokens.shape[-1]:
        raise ValueError(f"position has {position.shape[-2]} rows for sequences of {tokens.shape[-1]}; shorten them.")
    if not members:
        tokens, weight, position = as_fleet(tokens, weight, position)
    if tokens.shape[2] > 1 and tokens.stride(2) != 1:
        tokens = tokens.contiguous()
    out = embedding_op(tokens, rows_contiguous(weight), rows_contiguous(position))
    return out if members else out.squeeze(0)
