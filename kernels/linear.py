"""Linear layers of a fleet: out = x W + b (+ residual), one member's weights for each member's rows.

x [M, R, K], W [M, K, N], b [M, N], residual and out [M, R, N]; sums in float32. Gradients: dx = dout W^T, dW = x^T dout,
db = the sum of dout over rows; the residual's gradient is dout itself.

Launches: 1 forward, 1 backward, and 1 that adds the parts of dW where a member's rows are split for it (`weight_splits`), unless
the caller takes the parts. The backward's programs have two jobs by index: first the tiles of dW, of which those in its first
block of rows also sum db, then the tiles of dx. Each output element has one writer and its sum a fixed order.
Bytes at least (s a tensor's item size): forward s (R K + K N + N + 2 R N) a member, backward s (2 R N + 2 R K + K N) + the
gradients' own; dout and x are each read by both jobs, from the cache where a member's rows fit.

Where operands are described (kernels/product.py), the forward's programs are as many as the device holds and each walks through
many tiles, so that the next one's operands are on their way while one is stored.

Not run on hardware: bfloat16 is checked by compilation and, cast up, in the interpreter.
"""

from typing import Any, NamedTuple

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
    dot_mode,
    launch,
    next_power_of_2,
    operator,
    rows_contiguous,
    target_of,
)
from pyscaling.kernels.layer_norm import (
    Norm,
    NormGradient,
    norm_rows_backward,
    norm_tile_rows,
    rows_normed_again,
)
from pyscaling.kernels.product import (
    Tiles,
    add_bias_and_residual,
    cut_tiles,
    describable,
    described,
    finish_described,
    halves,
    load_columns,
    load_half,
    multiprocessors,
    norm_tile,
    product_tile,
    store_half,
    store_tile,
    sum_splits,
    tiles_of,
    weight_gradient_tile,
    weight_splits,
)
from pyscaling.kernels.tiles import choose, handed_over


def tiles_for(n_row: int, n_column: int, dtype: torch.dtype, target: str, *widths: int) -> Tiles:
    """Tiles of a product of n_row x n_column that reads by pointers; widths: of the rows of its operands in memory."""
    uneven = ("uneven",) if any(width % 16 for width in widths) else ()
    return tiles_of("product", n_row, n_column, dtype, target, n_column, *uneven)


def norm_tiles_for(n_row: int, d: int, dtype: torch.dtype, target: str, *widths: int) -> Tiles:
    """Tiles of whole rows of d numbers, so that a norm may follow, that read by pointers."""
    uneven = ("uneven",) if any(width % 16 for width in widths) else ()
    tiles = Tiles(*choose("product of whole rows", target, dtype, d, *uneven))
    M, N = norm_tile_rows(n_row, d, dtype, target), max(16, next_power_of_2(d))
    few = M * N < 64 * 128 and dtype.itemsize == 2 and not uneven
    return tiles._replace(BLOCK_M=M, BLOCK_N=N, num_warps=4 if few else tiles.num_warps)


@triton.jit
def linear_forward_kernel(
    x, weight, bias, residual, out, n_row, d_in, d_out, weight_stride, bias_stride,
    gain, norm_bias, normed, stats, gain_stride, norm_bias_stride, eps,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_NORM: tl.constexpr, RMS: tl.constexpr, NORM_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    i_tile, i_member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    # Programs that run side by side share a member's rows: consecutive tiles walk along a row.
    n_tile = tl.cdiv(d_out, BLOCK_N)
    first_row, first_column = i_tile // n_tile * BLOCK_M, i_tile % n_tile * BLOCK_N
    tile, _ = product_tile(
        x + i_member * n_row * d_in, weight + i_member * weight_stride, i_member, d_in, d_out, first_row, first_column,
        0, d_in, n_row, d_out, 0, False, False, "", False, False, False, BLOCK_M, BLOCK_N, BLOCK_K, DOT,
    )  # fmt: skip
    offset = i_member * n_row * d_out
    tile = add_bias_and_residual(
        tile, bias + i_member * bias_stride, residual + offset, first_row, first_column, n_row, d_out,
        HAS_BIAS, HAS_RESIDUAL, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    store_tile(out + offset, tile, first_row, first_column, n_row, d_out, BLOCK_M, BLOCK_N)
    if HAS_NORM:
        norm_tile(
            tile, gain + i_member * gain_stride, norm_bias + i_member * norm_bias_stride, normed, stats,
            i_member, tl.num_programs(1), first_row, n_row, d_out, eps, RMS, NORM_BIAS, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def linear_forward_described_kernel(
    x, weight, bias, residual, out, n_member, n_row, d_in, d_out, bias_stride,
    gain, norm_bias, normed, stats, gain_stride, norm_bias_stride, eps,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    HAS_NORM: tl.constexpr, RMS: tl.constexpr, NORM_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """The same of descriptors x, weight, residual, out and normed, by as many programs as the device holds."""
    n_tile = tl.cdiv(d_out, BLOCK_N)
    of_member = tl.cdiv(n_row, BLOCK_M) * n_tile
    for i in tl.range(tl.program_id(0), n_member * of_member, tl.num_programs(0), flatten=True):
        i_member, i_tile = i // of_member, i % of_member
        first_row, first_column = i_tile // n_tile * BLOCK_M, i_tile % n_tile * BLOCK_N
        tile, _ = product_tile(
            x, weight, i_member, d_in, d_out, first_row, first_column, 0, d_in, n_row, d_out, 0,
            False, False, "", False, False, True, BLOCK_M, BLOCK_N, BLOCK_K, DOT,
        )  # fmt: skip
        member = i_member.to(tl.int64)
        finish_described(
            tile, bias + member * bias_stride, residual, out, gain + member * gain_stride,
            norm_bias + member * norm_bias_stride, normed, stats, i_member, n_member, first_row, first_column, n_row, d_out, eps,
            HAS_BIAS, HAS_RESIDUAL, HAS_NORM, RMS, NORM_BIAS, BLOCK_M, BLOCK_N // 2,
        )  # fmt: skip


@triton.jit
def _delta(
    grad, x, delta, i_member, first_row, first_column, n_row, length, n_head,
    HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of each head within columns of grad [ROWS, COLUMNS], rounded as it is stored, the sum of grad x; delta [M B, n_head, T]."""
    HEADS: tl.constexpr = COLUMNS // HEAD_DIM
    sums = tl.sum(tl.reshape(grad * x, (ROWS, HEADS, HEAD_DIM)), axis=2)  # [ROWS, HEADS]
    o_row, o_head = first_row + tl.arange(0, ROWS), first_column // HEAD_DIM + tl.arange(0, HEADS)
    sequence = i_member.to(tl.int64) * (n_row // length) + o_row // length
    p_delta = delta + (sequence[:, None] * n_head + o_head[None, :]) * length + (o_row % length)[:, None]
    tl.store(p_delta, sums, mask=(o_row < n_row)[:, None] & (o_head < n_head)[None, :])


@triton.jit
def _finish_gradient(
    tile, x, grad_x, z, gain, stats, add, parts, delta, i_member, n_member, i_block, n_block,
    first_row, first_column, n_row, d, length, n_head,
    HAS_NORM: tl.constexpr, RMS: tl.constexpr, NORM_BIAS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Stores a tile of dx, taken through the norm that made x or with the sums that attention's backward needs of it."""
    member = i_member.to(tl.int64)
    o_row, o_column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    m_row, m_column = first_row + o_row < n_row, first_column + o_column < d
    mask = m_row[:, None] & m_column[None, :]
    row = member * n_row + first_row
    offset = row * d + first_column + (o_row[:, None] * d + o_column[None, :])  # [BLOCK_M, BLOCK_N]
    if HAS_NORM:  # a tile holds whole rows
        b_z = tl.load(z + offset, mask=mask, other=0.0).to(tl.float32)
        p_part = parts + (member * n_block + i_block) * d + o_column
        if NORM_BIAS:
            tl.store(p_part + n_member.to(tl.int64) * n_block * d, tl.sum(tile, axis=0), mask=m_column)
        n, rstd = rows_normed_again(b_z, stats + row + o_row, n_member.to(tl.int64) * n_row, m_row, m_column, RMS)
        tl.store(p_part, tl.sum(tile * n, axis=0), mask=m_column)
        tile = norm_rows_backward(tile, n, rstd, gain + o_column, m_column, d, RMS)
        tile += tl.load(add + offset, mask=mask, other=0.0).to(tl.float32)
    stored = tile.to(grad_x.dtype.element_ty)
    tl.store(grad_x + offset, stored, mask=mask)
    if HEAD_DIM > 0:
        b_x = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
        _delta(
            stored.to(tl.float32), b_x, delta, i_member, first_row, first_column, n_row, length, n_head,
            HEAD_DIM, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def _finish_half_gradient(
    half, x, grad_x, delta, i_member, first_row, first_column, n_row, length, n_head,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    store_half(grad_x, half, i_member, first_row, first_column, BLOCK_M, HALF)
    if HEAD_DIM > 0:
        _delta(
            half.to(grad_x.dtype).to(tl.float32), load_half(x, i_member, first_row, first_column, BLOCK_M, HALF), delta,
            i_member, first_row, first_column, n_row, length, n_head, HEAD_DIM, BLOCK_M, HALF,
        )  # fmt: skip


@triton.jit
def _finish_gradient_described(
    tile, x, grad_x, z, gain, stats, add, parts, delta, i_member, n_member, i_block, n_block,
    first_row, first_column, n_row, d, length, n_head,
    HAS_NORM: tl.constexpr, RMS: tl.constexpr, NORM_BIAS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """`_finish_gradient` by halves; x, grad_x, z and add are descriptors of blocks [1, BLOCK_M, HALF]."""
    left, right = halves(tile, BLOCK_M, HALF)
    if HAS_NORM:
        member = i_member.to(tl.int64)
        o_row, o_half = first_row + tl.arange(0, BLOCK_M), tl.arange(0, HALF)
        m_row, m_left, m_right = o_row < n_row, o_half < d, HALF + o_half < d
        mean_stride = n_member.to(tl.int64) * n_row
        p_stats = stats + member * n_row + o_row
        z_left, z_right = (
            load_half(z, i_member, first_row, 0, BLOCK_M, HALF), load_half(z, i_member, first_row, HALF, BLOCK_M, HALF)
        )  # fmt: skip
        n_left, rstd = rows_normed_again(z_left, p_stats, mean_stride, m_row, m_left, RMS)
        n_right, _ = rows_normed_again(z_right, p_stats, mean_stride, m_row, m_right, RMS)
        p_part = parts + (member * n_block + i_block) * d + o_half
        if NORM_BIAS:
            p_bias = p_part + n_member.to(tl.int64) * n_block * d
            tl.store(p_bias, tl.sum(left, axis=0), mask=m_left)
            tl.store(p_bias + HALF, tl.sum(right, axis=0), mask=m_right)
        tl.store(p_part, tl.sum(left * n_left, axis=0), mask=m_left)
        tl.store(p_part + HALF, tl.sum(right * n_right, axis=0), mask=m_right)
        left *= load_columns(gain, 0, d, HALF)
        right *= load_columns(gain, HALF, d, HALF)
        along = (tl.sum(left * n_left, axis=1) + tl.sum(right * n_right, axis=1)) / d
        shift = tl.zeros([BLOCK_M], tl.float32)
        if not RMS:
            shift = (tl.sum(left, axis=1) + tl.sum(right, axis=1)) / d
        left = (left - n_left * along[:, None] - shift[:, None]) * rstd
        right = (right - n_right * along[:, None] - shift[:, None]) * rstd
        left += load_half(add, i_member, first_row, 0, BLOCK_M, HALF)
        right += load_half(add, i_member, first_row, HALF, BLOCK_M, HALF)
    _finish_half_gradient(
        left, x, grad_x, delta, i_member, first_row, first_column, n_row, length, n_head, HEAD_DIM, BLOCK_M, HALF
    )
    _finish_half_gradient(
        right,
        x,
        grad_x,
        delta,
        i_member,
        first_row,
        first_column + HALF,
        n_row,
        length,
        n_head,
        HEAD_DIM,
        BLOCK_M,
        HALF,
    )


@triton.jit
def linear_backward_kernel(
    grad_out, grad_columns, x, x_columns, weight, grad_x, grad_weight, grad_bias, n_member, n_row, d_in, d_out, n_split, span,
    weight_stride, grad_weight_stride, grad_weight_split, grad_bias_stride, grad_bias_split,
    z, gain, stats, add, parts, gain_stride, delta, length, n_head,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, RMS: tl.constexpr, NORM_BIAS: tl.constexpr, HEAD_DIM: tl.constexpr,
    DESCRIBED: tl.constexpr, X_M: tl.constexpr, X_N: tl.constexpr, W_M: tl.constexpr, W_N: tl.constexpr,
    BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """grad_columns, x_columns: grad_out and x as the tiles of dW take them, where DESCRIBED in blocks of their own."""
    program = tl.program_id(0)
    n_tile_w = tl.cdiv(d_in, W_M) * tl.cdiv(d_out, W_N) * n_split
    if program < n_member * n_tile_w:
        i_member, i_tile = program // n_tile_w, program % n_tile_w
        if not DESCRIBED:
            x_columns += i_member.to(tl.int64) * n_row * d_in
            grad_columns += i_member.to(tl.int64) * n_row * d_out
        weight_gradient_tile(
            x_columns, grad_columns, grad_weight, grad_bias, i_member, i_tile, n_split, span, n_row, d_in, d_out, d_in, 0,
            grad_weight_stride, grad_weight_split, grad_bias_stride, grad_bias_split,
            HAS_BIAS, "", False, DESCRIBED, W_M, W_N, BLOCK_K, DOT,
        )  # fmt: skip
    else:
        program -= n_member * n_tile_w
        n_tile, n_block = tl.cdiv(d_in, X_N), tl.cdiv(n_row, X_M)
        i_member, i_tile = program // (n_tile * n_block), program % (n_tile * n_block)
        i_block = i_tile // n_tile
        first_row, first_column = i_block * X_M, i_tile % n_tile * X_N
        if not DESCRIBED:
            grad_out += i_member.to(tl.int64) * n_row * d_out
            weight += i_member.to(tl.int64) * weight_stride
        tile, _ = product_tile(
            grad_out, weight, i_member, d_out, d_out, first_row, first_column, 0, d_out, n_row, d_in, 0,
            False, True, "", False, False, DESCRIBED, X_M, X_N, BLOCK_K, DOT,
        )  # fmt: skip
        gain += i_member.to(tl.int64) * gain_stride
        if DESCRIBED:
            _finish_gradient_described(
                tile, x, grad_x, z, gain, stats, add, parts, delta, i_member, n_member, i_block, n_block,
                first_row, first_column, n_row, d_in, length, n_head, HAS_NORM, RMS, NORM_BIAS, HEAD_DIM, X_M, X_N // 2,
            )  # fmt: skip
        else:
            _finish_gradient(
                tile, x, grad_x, z, gain, stats, add, parts, delta, i_member, n_member, i_block, n_block,
                first_row, first_column, n_row, d_in, length, n_head, HAS_NORM, RMS, NORM_BIAS, HEAD_DIM, X_M, X_N,
            )  # fmt: skip


def norm_arguments(norm: Norm | None, like: Tensor) -> tuple[tuple[Any, ...], dict[str, bool]]:
    """What kernels that end in `norm_tile` are given; `like` stands for the tensors of no norm."""
    if norm is None:
        return (like, like, like, like, 0, 0, 0.0), {"HAS_NORM": False, "RMS": False, "NORM_BIAS": False}
    gain, bias, normed, stats, eps = norm
    arguments = (
        gain,
        gain if bias is None else bias,
        normed,
        stats,
        gain.stride(0),
        0 if bias is None else bias.stride(0),
        eps,
    )
    return arguments, {"HAS_NORM": True, "RMS": stats.shape[0] == 1, "NORM_BIAS": bias is not None}


def linear_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, norm: Norm | None = None
) -> Tensor:
    """x W + b (+ residual): x [M, R, K] contiguous, weight [M, K, N] and bias [M, N] of any member stride -> [M, R, N].

    norm: what to norm the result by, too, if N <= WIDEST_TILE.
    """
    if handed_over("linear_forward", x):
        return eager.linear_forward(x, weight, bias, residual, norm)
    n_member, n_row, d_in = x.shape
    d_out = weight.shape[2]
    out = x.new_empty(n_member, n_row, d_out)
    target = target_of(x.device)
    normed, constants = norm_arguments(norm, x)
    of_bias = (bias, bias.stride(0)) if bias is not None else (x, 0)
    declared = dict(
        reads=[x, weight, bias, residual, *(norm[:2] if norm is not None else ())],
        writes=[out, *(norm[2:4] if norm is not None else ())],
        flops=2 * n_member * n_row * d_in * d_out,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        DOT=dot_mode(x.dtype, target),
        **constants,
    )
    kind = "linear forward" if norm is None else "linear forward and norm"
    if describable(target, x, weight, residual, out, None if norm is None else norm.normed) and (
        chosen := choose(kind, target, x.dtype, d_in)
    ):
        tiles = cut_tiles(Tiles(*chosen), n_row, d_out, least=64)
        n_tile = n_member * cdiv(n_row, tiles.BLOCK_M) * cdiv(d_out, tiles.BLOCK_N)
        half = tiles.BLOCK_M, tiles.BLOCK_N // 2
        gain, norm_bias, rows, *rest = normed
        launch(
            linear_forward_described_kernel,
            (min(n_tile, tiles.programs * multiprocessors(x.device, target)),),
            described(x, tiles.BLOCK_M, tiles.BLOCK_K), described(weight, tiles.BLOCK_K, tiles.BLOCK_N), of_bias[0],
            described(out if residual is None else residual, *half), described(out, *half),
            n_member, n_row, d_in, d_out, of_bias[1],
            gain, norm_bias, described(out if norm is None else rows, *half), *rest, **declared, **tiles.options(),
        )  # fmt: skip
        return out
    tiles = (tiles_for if norm is None else norm_tiles_for)(n_row, d_out, x.dtype, target, d_in, d_out)
    launch(
        linear_forward_kernel,
        (cdiv(n_row, tiles.BLOCK_M) * cdiv(d_out, tiles.BLOCK_N), n_member),
        x, weight, of_bias[0], x if residual is None else residual, out, n_row, d_in, d_out, weight.stride(0), of_bias[1],
        *normed, **declared, **tiles.options(),
    )  # fmt: skip
    return out


class Job(NamedTuple):
    """How the backward of a weight [d_in, d_out] is cut: tiles of dx and of dW, and parts of the rows for dW."""

    of_x: Tiles
    of_weight: Tiles
    n_split: int
    described: bool

    @property
    def options(self) -> dict[str, Any]:
        x, w = self.of_x, self.of_weight
        return {
            "X_M": x.BLOCK_M, "X_N": x.BLOCK_N, "W_M": w.BLOCK_M, "W_N": w.BLOCK_N, "BLOCK_K": x.BLOCK_K,
            "num_warps": max(x.num_warps, w.num_warps), "num_stages": x.num_stages,
            "all_registers": x.all_registers or w.all_registers, "DESCRIBED": self.described,
        }  # fmt: skip

    def programs(self, n_member: int, n_row: int, d_in: int, d_out: int) -> int:
        of_weight = cdiv(d_in, self.of_weight.BLOCK_M) * cdiv(d_out, self.of_weight.BLOCK_N) * self.n_split
        return n_member * (of_weight + cdiv(n_row, self.of_x.BLOCK_M) * cdiv(d_in, self.of_x.BLOCK_N))

    def operands(
        self, grad_out: Tensor, read: Tensor, columns: Tensor, weight: Tensor, grad: Tensor
    ) -> tuple[Any, ...]:
        """What a backward kernel takes: grad_out twice, read and grad by tiles of dx, columns by tiles of dW, and the weight."""
        if not self.described:
            return grad_out, grad_out, read, columns, weight, grad
        (X_M, X_N, step, *_), (W_M, W_N, *_) = self.of_x, self.of_weight
        return (
            described(grad_out, X_M, step), described(grad_out, step, W_N), described(read, X_M, X_N // 2),
            described(columns, step, W_M), described(weight, X_N, step), described(grad, X_M, X_N // 2),
        )  # fmt: skip

    def span(self, n_row: int) -> int:
        """Rows of a part, a multiple of a step."""
        return cdiv(cdiv(n_row, self.of_x.BLOCK_K), self.n_split) * self.of_x.BLOCK_K


def backward_job(
    operation: str, n_row: int, d_in: int, d_out: int, dtype: torch.dtype, target: str, is_described: bool,
    of_x: Tiles | None = None, of_weight: Tiles | None = None, *, width: int | None = None, conditions: tuple[str, ...] = (),
) -> Job:  # fmt: skip
    """The table's for `operation` where operands are described, else of_x and of_weight, by default `tiles_for`'s.

    width, by default d_in, and conditions: as the table has them.
    """
    chosen = choose(operation, target, dtype, width or d_in, *conditions) if is_described else ()
    is_described = bool(chosen)
    if chosen:
        X_M, X_N, W_M, W_N, *rest = chosen
        of_x = cut_tiles(Tiles(X_M, X_N, *rest), n_row, d_in, 64)
        of_weight = cut_tiles(Tiles(W_M, W_N, *rest), d_in, d_out, 64)
    else:
        of_x = of_x or tiles_for(n_row, d_in, dtype, target, d_in, d_out)
        of_weight = of_weight or tiles_for(d_in, d_out, dtype, target, d_in, d_out)
    splits = weight_splits(n_row, d_in, d_out, of_weight._replace(BLOCK_K=of_x.BLOCK_K), target)
    return Job(of_x, of_weight, splits, is_described)


def linear_job(x: Tensor, weight: Tensor, norm: bool = False) -> Job:
    """How `linear_backward` is cut for these x [M, R, K] and weight [M, K, N]; norm: whether x is a norm's output."""
    (_, n_row, d_in), d_out, target = x.shape, weight.shape[2], target_of(x.device)
    is_described = d_out % 8 == 0 and describable(target, x, weight)
    of_x = norm_tiles_for(n_row, d_in, x.dtype, target, d_in, d_out) if norm and not is_described else None
    operation = "linear backward and norm" if norm else "linear backward"
    job = backward_job(operation, n_row, d_in, d_out, x.dtype, target, is_described, of_x)
    if norm:
        job = job._replace(of_x=job.of_x._replace(BLOCK_M=norm_tile_rows(n_row, d_in, x.dtype, target)))
    return job


def forms_delta(job: Job, head_dim: int) -> bool:
    """Whether the tiles of dx hold whole heads, so that they may form what attention's backward needs: see `linear_backward`."""
    width = job.of_x.BLOCK_N // 2 if job.described else job.of_x.BLOCK_N
    return head_dim & (head_dim - 1) == 0 and width % head_dim == 0


def weight_parts(n_split: int, weight: Tensor, has_bias: bool) -> Tensor:
    """Room for the parts of a weight's gradient and its bias's: [S, M, K N (+ N)] float32."""
    n_member, d_in, d_out = weight.shape
    size = (n_split, n_member, (d_in + has_bias) * d_out)
    return torch.empty(size, dtype=torch.float32, device=weight.device)


def gradient_places(
    parts: Tensor | None, grad_weight: Tensor, grad_bias: Tensor | None, like: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[int, int, int, int]]:
    """Where kernels write a weight's and its bias's gradient, and strides for members and parts of either."""
    if parts is None:
        if grad_bias is None:
            return (grad_weight, like), (grad_weight.stride(0), 0, 0, 0)
        return (grad_weight, grad_bias), (grad_weight.stride(0), 0, grad_bias.stride(0), 0)
    of_bias = parts if grad_bias is None else parts[:, :, grad_weight[0].numel() :]
    return (parts, of_bias), (parts.stride(1), parts.stride(0), parts.stride(1), parts.stride(0))


def linear_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    grad_weight: Tensor | None = None,
    grad_bias: Tensor | None = None,
    norm: NormGradient | None = None,
    *,
    has_bias: bool = True,
    parts: Tensor | None = None,
    delta: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(grad_x, grad_weight, grad_bias) of `linear_forward`; those of the weights are written where they are given.

    norm: the norm that made x of z, if K <= WIDEST_TILE; grad_x is then the gradient of z. parts: of `weight_parts`, where
    `linear_job` splits rows: they are written in place of the weights' gradients, and the caller sums them (`sum_splits`);
    without them they are summed here. delta [M B, n_head, T] float32, where `forms_delta`: the sums of grad_x x over each
    head's columns are written, of rows in the order [B, T].
    """
    n_member, n_row, d_in = x.shape
    d_out = weight.shape[2]
    if grad_weight is None:
        grad_weight = torch.empty(weight.shape, dtype=weight.dtype, device=x.device)
    if grad_bias is None and has_bias:
        grad_bias = torch.empty(n_member, d_out, dtype=weight.dtype, device=x.device)
    if not has_bias:
        grad_bias = None
    if handed_over("linear_backward", x):
        grad_x = eager.linear_backward(grad_out, x, weight, grad_weight, grad_bias, norm, parts, delta)
        return grad_x, grad_weight, grad_bias
    grad_x = torch.empty_like(x)
    job = linear_job(x, weight, norm is not None)
    summed_here = parts is None and job.n_split > 1
    if summed_here:
        parts = weight_parts(job.n_split, weight, has_bias)
    places, strides = gradient_places(parts, grad_weight, grad_bias, x)
    z, gain, stats, add, norm_parts = norm if norm is not None else [x] * 5
    if job.described:
        half = job.of_x.BLOCK_M, job.of_x.BLOCK_N // 2
        z, add = described(z, *half), described(add, *half)
    launch(
        linear_backward_kernel,
        (job.programs(n_member, n_row, d_in, d_out),),
        *job.operands(grad_out, x, x, weight, grad_x), *places,
        n_member, n_row, d_in, d_out, job.n_split, job.span(n_row), weight.stride(0), *strides,
        z, gain, stats, add, norm_parts, norm.gain.stride(0) if norm is not None else 0,
        x if delta is None else delta, 1 if delta is None else delta.shape[2], 1 if delta is None else delta.shape[1],
        reads=[grad_out, x, weight, *(norm[:4] if norm is not None else ())],
        writes=[
            grad_x, *([grad_weight, grad_bias] if parts is None else [parts]), norm.parts if norm is not None else None, delta,
        ],
        flops=4 * n_member * n_row * d_in * d_out,
        HAS_BIAS=has_bias,
        HAS_NORM=norm is not None,
        RMS=norm is not None and norm.stats.shape[0] == 1,
        NORM_BIAS=norm is not None and norm.parts.shape[0] == 2,
        HEAD_DIM=0 if delta is None else d_in // delta.shape[1],
        DOT=dot_mode(x.dtype, target_of(x.device)),
        **job.options,
    )  # fmt: skip
    if summed_here and parts is not None:
        sum_splits(parts, grad_weight, grad_bias)
    return grad_x, grad_weight, grad_bias


@operator()
def linear_op(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    return linear_forward(x, weight, bias, residual)


@operator()
def linear_gradients(grad_out: Tensor, x: Tensor, weight: Tensor, has_bias: bool) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_weight, grad_bias = linear_backward(grad_out.contiguous(), x, weight, has_bias=has_bias)
    return grad_x, grad_weight, grad_bias if grad_bias is not None else x.new_empty(0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, residual = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias, ctx.has_residual = bias is not None, residual is not None


def _gradients(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = linear_gradients(grad_out, x, weight, ctx.has_bias)
    return grad_x, grad_weight, grad_bias if ctx.has_bias else None, grad_out if ctx.has_residual else None


linear_op.register_autograd(_gradients, setup_context=_save)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """x W + b, and the residual added, for each member of a fleet.

    x: [M, R, K], weight: [M, K, N], bias: [M, N], residual: [M, R, N] -> [M, R, N]; of a single model all without M.
    float32, float16 or bfloat16, sums in float32. Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    check_tensors({"x": x, "weight": weight}, {"bias": bias, "residual": residual})
    check_first("x", x)
    members = check_members("x", x)
    check_filled("x", x, column=-1)
    check("weight", weight, (*members, x.shape[-1], None), x)
    check_filled("weight", weight, column=-1)
    check("bias", bias, (*members, weight.shape[-1]), x)
    check("residual", residual, (*x.shape[:-1], weight.shape[-1]), x)
    if not members:
        x, weight, bias, residual = as_fleet(x, weight, bias, residual)
    residual = residual.contiguous() if residual is not None else None
    out = linear_op(x.contiguous(), rows_contiguous(weight), rows_contiguous(bias), residual)
    return out if members else out.squeeze(0)
