"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019) of a fleet, with the residual sum before them.

    z = x (+ residual), normed = (z - mean(z)) rstd gain (+ bias), rstd = 1 / sqrt(var(z) + eps); RMSNorm: mean 0, var mean(z^2)
    with w = grad_normed gain and n = (z - mean) rstd:  grad_z = rstd (w - mean(w) - n mean(w n)) (+ add);  RMSNorm: no mean(w)
    grad_gain = sum over rows of grad_normed n, grad_bias = sum over rows of grad_normed

x, residual, normed, z [M, R, d], gain and bias [M, d] of any member stride; statistics [2, M, R] (rstd, mean) or [1, M, R] in
float32, of z as it is stored. `add` is the gradient that reaches z by the residual path.

Launches: 1 forward. Backward 2: rows of grad_z, whose programs also sum gain and bias over the rows they visit, and the
sum of those parts in a fixed order; 1 where a member has but one program. Each output element has one writer.
Bytes at least, of an item size s: forward s R d (2, with a residual 4), backward s R d (3, with `add` 4), and 4 or 8 R of
statistics each. Rows wider than 8192 are read twice, from the cache; their backward reads grad_normed and z once more.

Not run on hardware: bfloat16 is checked by compilation and, cast up, in the interpreter.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyscaling.kernels import eager
from pyscaling.kernels.launch import (
    INTERPRETER_SIDE,
    MULTIPROCESSORS,
    as_fleet,
    cdiv,
    check,
    check_filled,
    check_first,
    check_members,
    check_number,
    check_tensors,
    launch,
    next_power_of_2,
    operator,
    rows_contiguous,
    target_of,
)
from pyscaling.kernels.tiles import handed_over

WIDEST_TILE = 256  # of a product's tile; a wider row's norm is a launch of its own
WIDEST_BLOCK = 8192  # a wider row would take more registers than a program of 16 warps has


class Tile(NamedTuple):
    """Whole rows of a block of columns. The width itself is a constant of the kernels: rows of d = 24 load in 16 bytes, too."""

    ROWS: int
    BLOCK_D: int


class Norm(NamedTuple):
    """A norm that a product makes of the rows z that it writes, where a tile holds whole rows (d <= WIDEST_TILE).

    gain [M, d], bias [M, d] or None; normed [M, R, d] and stats [2 or 1, M, R] are written.
    """

    gain: Tensor
    bias: Tensor | None
    normed: Tensor
    stats: Tensor
    eps: float = 1e-5


class NormGradient(NamedTuple):
    """What takes the gradient of normed rows, as a product forms it, through the norm: see `layer_norm_backward`.

    parts [1 or 2, M, ceil(R / norm_tile_rows), d] is written: sums over rows of the gradients of gain and bias, to be summed.
    """

    z: Tensor
    gain: Tensor
    stats: Tensor
    add: Tensor
    parts: Tensor


def norm_tile_rows(n_row: int, d: int, dtype: torch.dtype, target: str) -> int:
    """Rows of a product's tile that is d wide: of 8 warps a thread has at most 64 sums in 16 bits, 16 in float32.

    Half as many on sm_80 and sm_120, whose operands lie in registers, too.
    """
    sums = 4096 if dtype == torch.float32 else 8192 if target in ("sm_80", "sm_120") else 16384
    most = 2 * INTERPRETER_SIDE if target == "interpreter" else min(64, max(16, sums // next_power_of_2(d)))
    return min(most, max(16, next_power_of_2(n_row)))


def tile_for(n_row: int, d: int, elements: int, target: str) -> Tile:
    """Whole rows, `elements` numbers together, or fewer rows where one member would not fill a device twice over.

    How many members there are has no say, or a member's last bits would depend on it.
    """
    block = next_power_of_2(d)
    rows = max(1, min(elements // block, 128, next_power_of_2(n_row)))
    while rows > 1 and cdiv(n_row, rows) < 2 * MULTIPROCESSORS.get(target, 132):
        rows //= 2
    return Tile(rows, block)


def warps_for(elements: int, dtype: torch.dtype, target: str) -> int:
    """Two loads of 16 bytes a thread, so that the backward's five blocks fit into registers.

    With 16 numbers of float32 Triton 3.6 spills 8 to 24 bytes.
    """
    threads_a_warp = 64 if target.startswith("gfx") else 32
    return min(1024 // threads_a_warp, max(1, elements * dtype.itemsize // (32 * threads_a_warp)))


@triton.jit
def norm_rows(
    z, gain, bias, normed, offset, p_stats, mean_stride, eps, m_row, mask, D,
    RMS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Norms whole rows z [ROWS, BLOCK_D], float32 and zero beyond D; stores them at normed + offset, and their statistics."""
    o_column = tl.arange(0, BLOCK_D)
    m_column = o_column < D
    if not RMS:
        mean = tl.sum(z, axis=1) / D
        z = tl.where(mask, z - mean[:, None], 0.0)
        tl.store(p_stats + mean_stride, mean, mask=m_row)
    rstd = tl.rsqrt(tl.sum(z * z, axis=1) / D + eps)
    tl.store(p_stats, rstd, mask=m_row)
    out = z * rstd[:, None] * tl.load(gain + o_column, mask=m_column).to(tl.float32)[None, :]
    if HAS_BIAS:
        out += tl.load(bias + o_column, mask=m_column).to(tl.float32)[None, :]
    tl.store(normed + offset, out.to(normed.dtype.element_ty), mask=mask)


@triton.jit
def rows_normed_again(z, p_stats, mean_stride, m_row, m_column, RMS: tl.constexpr):
    """(n, rstd) of whole rows z [ROWS, BLOCK_D] by their statistics, float32; n is zero beyond d."""
    rstd = tl.load(p_stats, mask=m_row, other=0.0)[:, None]
    if not RMS:
        mean = tl.load(p_stats + mean_stride, mask=m_row, other=0.0)
        z = tl.where(m_column[None, :], z - mean[:, None], 0.0)
    return z * rstd, rstd


@triton.jit
def norm_rows_backward(grad, n, rstd, p_gain, m_column, d, RMS: tl.constexpr):
    """grad_z of whole rows [ROWS, BLOCK_D], float32; grad, the gradient of the normed rows, is zero beyond d."""
    # gain is loaded anew for each block, from the cache: kept, it would cost 16 registers a thread and spills
    w = grad * tl.load(p_gain, mask=m_column, other=0.0).to(tl.float32)[None, :]
    out = w - n * (tl.sum(w * n, axis=1) / d)[:, None]
    if not RMS:
        out -= (tl.sum(w, axis=1) / d)[:, None]
    return out * rstd


@triton.jit
def layer_norm_forward_kernel(
    x, residual, gain, bias, normed, total, stats, n_row, gain_stride, bias_stride, eps,
    RMS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_member = tl.program_id(1).to(tl.int64)
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_column = tl.arange(0, BLOCK_D)
    m_row, m_column = o_row < n_row, o_column < D
    mask = m_row[:, None] & m_column[None, :]
    first = (i_member * n_row + tl.program_id(0) * ROWS) * D
    offset = first + (tl.arange(0, ROWS)[:, None] * D + o_column[None, :])  # [ROWS, BLOCK_D]
    z = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        rounded = (z + tl.load(residual + offset, mask=mask, other=0.0).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + offset, rounded, mask=mask)
        z = rounded.to(tl.float32)
    norm_rows(
        z, gain + i_member * gain_stride, bias + i_member * bias_stride, normed, offset, stats + i_member * n_row + o_row,
        tl.num_programs(1).to(tl.int64) * n_row, eps, m_row, mask, D, RMS, HAS_BIAS, BLOCK_D,
    )  # fmt: skip


@triton.jit
def layer_norm_wide_forward_kernel(
    x, residual, gain, bias, normed, total, stats, n_row, gain_stride, bias_stride, eps,
    RMS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One row, a block at a time: mean and squares merged as in Chan et al. 1979, then the output."""
    i_member, i_row = tl.program_id(1).to(tl.int64), tl.program_id(0)
    row = (i_member * n_row + i_row) * D
    mean, squares = 0.0, 0.0
    for start in range(0, D, BLOCK_D):
        o_column = start + tl.arange(0, BLOCK_D)
        mask = o_column < D
        z = tl.load(x + row + o_column, mask=mask, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            other = tl.load(residual + row + o_column, mask=mask, other=0.0).to(tl.float32)
            rounded = (z + other).to(total.dtype.element_ty)
            tl.store(total + row + o_column, rounded, mask=mask)
            z = rounded.to(tl.float32)
        if RMS:
            squares += tl.sum(z * z)
        else:
            n = tl.minimum(D - start, BLOCK_D).to(tl.float32)
            block_mean = tl.sum(z) / n
            z = tl.where(mask, z - block_mean, 0.0)
            delta = block_mean - mean
            mean += delta * (n / (start + n))
            squares += tl.sum(z * z) + delta * delta * (start * n / (start + n))
    rstd = tl.rsqrt(squares / D + eps)
    tl.store(stats + i_member * n_row + i_row, rstd)
    if not RMS:
        tl.store(stats + (tl.num_programs(1).to(tl.int64) + i_member) * n_row + i_row, mean)
    for start in range(0, D, BLOCK_D):
        o_column = start + tl.arange(0, BLOCK_D)
        mask = o_column < D
        z = tl.load(x + row + o_column, mask=mask, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:  # summed again, not read back: another thread may have written it
            other = tl.load(residual + row + o_column, mask=mask, other=0.0).to(tl.float32)
            z = (z + other).to(total.dtype.element_ty).to(tl.float32)
        out = (z - mean) * rstd * tl.load(gain + i_member * gain_stride + o_column, mask=mask).to(tl.float32)
        if HAS_BIAS:
            out += tl.load(bias + i_member * bias_stride + o_column, mask=mask).to(tl.float32)
        tl.store(normed + row + o_column, out.to(normed.dtype.element_ty), mask=mask)


@triton.jit
def layer_norm_backward_kernel(
    grad, z, gain, stats, add, grad_z, gain_sum, bias_sum, n_row, gain_stride, gain_sum_stride, bias_sum_stride,
    RMS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ADD: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Part p of P visits blocks p, p + P, ... of a member's rows and writes row p of its sums."""
    i_part, i_member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_column = tl.arange(0, BLOCK_D)
    m_column = o_column < D
    o_block = tl.arange(0, ROWS)[:, None] * D + o_column[None, :]  # [ROWS, BLOCK_D]
    grad_gain = tl.zeros([ROWS, BLOCK_D], tl.float32)
    grad_bias = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for i_block in range(i_part, tl.cdiv(n_row, ROWS), tl.num_programs(0)):
        o_row = i_block * ROWS + tl.arange(0, ROWS)
        m_row = o_row < n_row
        mask = m_row[:, None] & m_column[None, :]
        offset = (i_member * n_row + i_block * ROWS) * D + o_block  # [ROWS, BLOCK_D]
        b_grad = tl.load(grad + offset, mask=mask, other=0.0).to(tl.float32)
        b_z = tl.load(z + offset, mask=mask, other=0.0).to(tl.float32)
        n, rstd = rows_normed_again(
            b_z, stats + i_member * n_row + o_row, tl.num_programs(1).to(tl.int64) * n_row, m_row, m_column, RMS
        )
        grad_gain += b_grad * n
        out = norm_rows_backward(b_grad, n, rstd, gain + i_member * gain_stride + o_column, m_column, D, RMS)
        if HAS_BIAS:
            grad_bias += b_grad
        if HAS_ADD:
            out += tl.load(add + offset, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_z + offset, out.to(grad_z.dtype.element_ty), mask=mask)
    o_sum = i_part.to(tl.int64) * D + o_column
    total = tl.sum(grad_gain, axis=0).to(gain_sum.dtype.element_ty)
    tl.store(gain_sum + i_member * gain_sum_stride + o_sum, total, mask=m_column)
    if HAS_BIAS:
        total = tl.sum(grad_bias, axis=0).to(bias_sum.dtype.element_ty)
        tl.store(bias_sum + i_member * bias_sum_stride + o_sum, total, mask=m_column)


@triton.jit
def layer_norm_wide_backward_kernel(
    grad, z, gain, stats, add, grad_z, gain_sum, bias_sum, n_row, n_part, gain_stride, gain_sum_stride, bias_sum_stride,
    RMS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ADD: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The first n_row programs of a member: one row of grad_z each, a block at a time. The others: sums over part of the
    rows of ROWS * BLOCK_D / ROWS columns."""
    i_program, i_member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if i_program < n_row:
        i_row = i_member * n_row + i_program
        row = i_row * D
        rstd, mean = tl.load(stats + i_row), 0.0
        if not RMS:
            mean = tl.load(stats + tl.num_programs(1).to(tl.int64) * n_row + i_row)
        sum_w, sum_wn = 0.0, 0.0
        for start in range(0, D, ROWS * BLOCK_D):
            o_column = start + tl.arange(0, ROWS * BLOCK_D)
            mask = o_column < D
            n = (tl.load(z + row + o_column, mask=mask, other=0.0).to(tl.float32) - mean) * rstd
            w = tl.load(grad + row + o_column, mask=mask, other=0.0).to(tl.float32)
            w *= tl.load(gain + i_member * gain_stride + o_column, mask=mask, other=0.0).to(tl.float32)
            sum_wn += tl.sum(w * n)
            if not RMS:
                sum_w += tl.sum(w)
        sum_w, sum_wn = sum_w / D, sum_wn / D
        for start in range(0, D, ROWS * BLOCK_D):
            o_column = start + tl.arange(0, ROWS * BLOCK_D)
            mask = o_column < D
            n = (tl.load(z + row + o_column, mask=mask, other=0.0).to(tl.float32) - mean) * rstd
            w = tl.load(grad + row + o_column, mask=mask, other=0.0).to(tl.float32)
            w *= tl.load(gain + i_member * gain_stride + o_column, mask=mask, other=0.0).to(tl.float32)
            out = (w - sum_w - n * sum_wn) * rstd
            if HAS_ADD:
                out += tl.load(add + row + o_column, mask=mask, other=0.0).to(tl.float32)
            tl.store(grad_z + row + o_column, out.to(grad_z.dtype.element_ty), mask=mask)
    else:
        i_part = (i_program - n_row) % n_part
        o_column = (i_program - n_row) // n_part * BLOCK_D + tl.arange(0, BLOCK_D)
        m_column = o_column < D
        o_block = tl.arange(0, ROWS)[:, None] * D + o_column[None, :]  # [ROWS, BLOCK_D]
        grad_gain = tl.zeros([ROWS, BLOCK_D], tl.float32)
        grad_bias = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for i_block in range(i_part, tl.cdiv(n_row, ROWS), n_part):
            o_row = i_block * ROWS + tl.arange(0, ROWS)
            m_row = o_row < n_row
            mask = m_row[:, None] & m_column[None, :]
            offset = (i_member * n_row + i_block * ROWS) * D + o_block  # [ROWS, BLOCK_D]
            b_grad = tl.load(grad + offset, mask=mask, other=0.0).to(tl.float32)
            n = tl.load(z + offset, mask=mask, other=0.0).to(tl.float32)
            p_stats = stats + i_member * n_row + o_row
            if not RMS:
                n -= tl.load(p_stats + tl.num_programs(1).to(tl.int64) * n_row, mask=m_row, other=0.0)[:, None]
            grad_gain += b_grad * (n * tl.load(p_stats, mask=m_row, other=0.0)[:, None])
            if HAS_BIAS:
                grad_bias += b_grad
        o_sum = i_part.to(tl.int64) * D + o_column
        total = tl.sum(grad_gain, axis=0).to(gain_sum.dtype.element_ty)
        tl.store(gain_sum + i_member * gain_sum_stride + o_sum, total, mask=m_column)
        if HAS_BIAS:
            total = tl.sum(grad_bias, axis=0).to(bias_sum.dtype.element_ty)
            tl.store(bias_sum + i_member * bias_sum_stride + o_sum, total, mask=m_column)


@triton.jit
def sum_of_parts(parts, i_array, i_member, n_member, i_block, n_part, d, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sum over n_part of parts [A, M, n_part, d]: COLUMNS of one array and member from i_block COLUMNS on."""
    o_column = i_block * COLUMNS + tl.arange(0, COLUMNS)
    parts += (i_array.to(tl.int64) * n_member + i_member) * n_part * d
    total = tl.zeros([PARTS, COLUMNS], tl.float32)
    for start in range(0, n_part, PARTS):
        o_part = start + tl.arange(0, PARTS)
        mask = (o_part < n_part)[:, None] & (o_column < d)[None, :]
        total += tl.load(parts + o_part[:, None] * d + o_column[None, :], mask=mask, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def sum_all_parts_kernel(
    parts, places, splits, table, gradient, n_array, n_part, d, gradient_stride,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr, STRETCH: tl.constexpr,
):  # fmt: skip
    """parts [A, M, n_part, d] summed over n_part; array a goes to column places[a] of gradient [M, any].

    The programs after those sum a stretch of `splits` each, as the table's row says: see `sum_all_parts`.
    """
    program, i_member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    gradient += i_member * gradient_stride
    n_block = tl.cdiv(d, COLUMNS)
    if program < n_array * n_block:
        i_array, i_block = program // n_block, program % n_block
        sums = sum_of_parts(parts, i_array, i_member, tl.num_programs(1), i_block, n_part, d, PARTS, COLUMNS)
        o_column = i_block * COLUMNS + tl.arange(0, COLUMNS)
        tl.store(gradient + tl.load(places + i_array) + o_column, sums.to(gradient.dtype.element_ty), mask=o_column < d)
    else:
        table += (program - n_array * n_block) * 6
        p_part = splits + tl.load(table) + i_member * tl.load(table + 1)
        part_stride, n_split, place, count = (
            tl.load(table + 2), tl.load(table + 3), tl.load(table + 4), tl.load(table + 5)
        )  # fmt: skip
        o = tl.arange(0, STRETCH)
        total = tl.zeros([STRETCH], tl.float32)
        for _ in range(n_split):
            total += tl.load(p_part + o, mask=o < count, other=0.0)
            p_part += part_stride
        tl.store(gradient + place + o, total.to(gradient.dtype.element_ty), mask=o < count)


@triton.jit
def sum_parts_kernel(
    parts, grad_gain, grad_bias, n_part, d, grad_gain_stride, grad_bias_stride,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """parts [1 or 2, M, n_part, d] summed over n_part; the first array is the gain's, the second the bias's."""
    i_block, i_member, i_array = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    o_column = i_block * COLUMNS + tl.arange(0, COLUMNS)
    m_column = o_column < d
    sums = sum_of_parts(parts, i_array, i_member, tl.num_programs(1), i_block, n_part, d, PARTS, COLUMNS)
    if i_array == 0:
        out = sums.to(grad_gain.dtype.element_ty)
        tl.store(grad_gain + i_member * grad_gain_stride + o_column, out, mask=m_column)
    else:
        out = sums.to(grad_bias.dtype.element_ty)
        tl.store(grad_bias + i_member * grad_bias_stride + o_column, out, mask=m_column)


def layer_norm_forward(
    x: Tensor,
    gain: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    *,
    rms: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(normed, x + residual or None, statistics): x, residual [M, R, d] contiguous, gain, bias [M, d] of any member stride."""
    if handed_over("layer_norm_forward", x):
        return eager.layer_norm_forward(x, gain, bias, residual, eps, rms=rms)
    n_member, n_row, d = x.shape
    normed = torch.empty_like(x)
    total = torch.empty_like(x) if residual is not None else None
    stats = torch.empty(1 if rms else 2, n_member, n_row, dtype=torch.float32, device=x.device)
    target = target_of(x.device)
    wide = d > WIDEST_BLOCK
    # 2048 numbers a program: four warps, so that many small programs hide each other's reductions
    tile = Tile(1, 4096) if wide else tile_for(n_row, d, 2048, target)
    launch(
        layer_norm_wide_forward_kernel if wide else layer_norm_forward_kernel,
        (cdiv(n_row, tile.ROWS), n_member),
        x, residual if residual is not None else x, gain, bias if bias is not None else gain,
        normed, total if total is not None else x, stats,
        n_row, gain.stride(0), bias.stride(0) if bias is not None else 0, eps,
        reads=[x, residual, gain, bias],
        writes=[normed, total, stats],
        RMS=rms,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        D=d,
        num_warps=warps_for(tile.ROWS * tile.BLOCK_D, x.dtype, target),
        **({"BLOCK_D": tile.BLOCK_D} if wide else tile._asdict()),
    )  # fmt: skip
    return normed, total, stats


def backward_tile(n_row: int, d: int, target: str) -> Tile:
    """4096 numbers a program: the parts to be summed later are few beside the rows."""
    return Tile(4, 1024) if d > WIDEST_BLOCK else tile_for(n_row, d, 4096, target)


def backward_parts(n_row: int, d: int, target: str) -> int:
    """Into how many parts the backward deals a member's rows: two programs a multiprocessor."""
    tile = backward_tile(n_row, d, target)
    most = cdiv(2 * MULTIPROCESSORS.get(target, 132), cdiv(d, tile.BLOCK_D))
    return max(1, min(cdiv(n_row, tile.ROWS), most))


STRETCH = 1024  # numbers that a program sums of parts of a weight's gradient


class SplitSums(NamedTuple):
    """Parts of weights' gradients that `sum_all_parts` is to sum.

    splits: float32, all of them; table: [stretches, 6] int64, of each stretch of at most STRETCH numbers where it begins in
    splits, how far members lie apart and parts, how many parts there are, its place in a row of the gradient, and its length.
    total: how many sums that makes, of all members.
    """

    splits: Tensor
    table: Tensor
    total: int


def sum_all_parts(parts: Tensor, gradient: Tensor, places: Tensor, sums: SplitSums | None = None) -> None:
    """Sums of many norms' parts [A, M, P, d], array a's to the d columns of gradient [M, any] that begin at places[a].

    sums: what else is to be summed by the same launch.
    """
    n_array, n_member, n_part, d = parts.shape
    columns = 32
    splits, table = (parts, places) if sums is None else (sums.splits, sums.table)
    launch(
        sum_all_parts_kernel,
        (n_array * cdiv(d, columns) + (0 if sums is None else len(table)), n_member),
        parts, places, splits, table, gradient, n_array, n_part, d, gradient.stride(0),
        reads=[parts, places, *([] if sums is None else [splits, table])],
        writes=[parts[:, :, 0], None if sums is None else splits[: sums.total]],
        PARTS=min(64, next_power_of_2(n_part)),
        COLUMNS=columns,
        STRETCH=STRETCH,
    )  # fmt: skip


def layer_norm_backward(
    grad_normed: Tensor,
    z: Tensor,
    gain: Tensor,
    stats: Tensor,
    add: Tensor | None = None,
    grad_gain: Tensor | None = None,
    grad_bias: Tensor | None = None,
    parts: Tensor | None = None,
    *,
    has_bias: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(grad_z, grad_gain, grad_bias) of `layer_norm_forward`; those of the weights are written where they are given.

    z: what was normed, x or x + residual; add: the gradient of z by other paths. grad_gain, grad_bias: [M, d] of any member
    stride and floating dtype; made in the gain's dtype where missing, the bias's if has_bias. With `parts` [1 or 2, M, any, d]
    float32 those are not formed: sums over parts of the rows are written there, for `sum_all_parts` of many norms.
    """
    n_member, n_row, d = z.shape
    rms, target = stats.shape[0] == 1, target_of(z.device)
    alone = parts is None
    if parts is not None:
        has_bias = len(parts) == 2
    else:
        if grad_gain is None:
            grad_gain = torch.empty(n_member, d, dtype=gain.dtype, device=z.device)
        if grad_bias is None and has_bias:
            grad_bias = torch.empty(n_member, d, dtype=gain.dtype, device=z.device)
        has_bias = grad_bias is not None
    if handed_over("layer_norm_backward", z):
        grad_z = eager.layer_norm_backward(grad_normed, z, gain, stats, add, grad_gain, grad_bias, parts)
        return grad_z, grad_gain, grad_bias
    grad_z = torch.empty_like(z)
    wide = d > WIDEST_BLOCK
    tile = backward_tile(n_row, d, target)
    n_column_block = cdiv(d, tile.BLOCK_D)
    n_part = backward_parts(n_row, d, target) if parts is None else parts.shape[2]
    if parts is None and n_part > 1:
        parts = torch.empty(1 + has_bias, n_member, n_part, d, dtype=torch.float32, device=z.device)
    if parts is not None:
        gain_sum, bias_sum = parts[0], parts[-1] if has_bias else None
    else:
        gain_sum, bias_sum = grad_gain, grad_bias
    launch(
        layer_norm_wide_backward_kernel if wide else layer_norm_backward_kernel,
        (n_row + n_part * n_column_block if wide else n_part, n_member),
        grad_normed, z, gain, stats, add if add is not None else z, grad_z,
        gain_sum, bias_sum if bias_sum is not None else gain_sum,
        n_row, *([n_part] if wide else []), gain.stride(0), gain_sum.stride(0), bias_sum.stride(0) if bias_sum is not None else 0,
        reads=[grad_normed, z, gain, stats, add],
        writes=[grad_z, gain_sum, bias_sum],
        RMS=rms,
        HAS_BIAS=has_bias,
        HAS_ADD=add is not None,
        D=d,
        num_warps=warps_for(tile.ROWS * tile.BLOCK_D, z.dtype, target),
        **tile._asdict(),
    )  # fmt: skip
    if alone and n_part > 1:
        columns = 32  # lines of 128 bytes, and enough programs at the usual widths
        launch(
            sum_parts_kernel,
            (cdiv(d, columns), n_member, 1 + has_bias),
            parts, grad_gain, grad_bias if grad_bias is not None else grad_gain,
            n_part, d, grad_gain.stride(0), grad_bias.stride(0) if grad_bias is not None else 0,
            reads=[parts],
            writes=[grad_gain, grad_bias],
            PARTS=min(64, next_power_of_2(n_part)),
            COLUMNS=columns,
        )  # fmt: skip
    return grad_z, grad_gain, grad_bias


@operator()
def layer_norm_op(
    x: Tensor, gain: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float, rms: bool
) -> tuple[Tensor, Tensor, Tensor]:
    normed, total, stats = layer_norm_forward(x, gain, bias, residual, eps, rms=rms)
    return normed, total if total is not None else x.new_empty(0), stats


@operator()
def layer_norm_gradients(
    grad_normed: Tensor, z: Tensor, gain: Tensor, stats: Tensor, add: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    grad_bias = torch.empty(bias.shape, dtype=bias.dtype, device=bias.device) if bias is not None else None
    add = add.contiguous() if add is not None else None
    grad_z, grad_gain, _ = layer_norm_backward(grad_normed.contiguous(), z, gain, stats, add, None, grad_bias)
    return grad_z, grad_gain, grad_bias if grad_bias is not None else z.new_empty(0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, gain, bias, residual, *_ = inputs
    _, total, stats = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(stats)
    ctx.save_for_backward(total if residual is not None else x, gain, bias, stats)
    ctx.has_residual = residual is not None


def _gradients(ctx: Any, grad_normed: Tensor | None, grad_total: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    z, gain, bias, stats = ctx.saved_tensors
    add = grad_total if ctx.has_residual else None
    if grad_normed is None:
        grad_normed = torch.zeros_like(z)
    grad_z, grad_gain, grad_bias = layer_norm_gradients(grad_normed, z, gain, stats, add, bias)
    return (
        grad_z, grad_gain, grad_bias if bias is not None else None, grad_z if ctx.has_residual else None, None, None
    )  # fmt: skip


layer_norm_op.register_autograd(_gradients, setup_context=_save)


def layer_norm(
    x: Tensor, gain: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, eps: float = 1e-5
) -> Tensor | tuple[Tensor, Tensor]:
    """LayerNorm over the last axis of x, or of x + residual, with each member's gain and bias.

    x, residual: [M, R, d]; gain, bias: [M, d], of x's dtype or float32; a single model's without M. Returns normed, or
    (normed, x + residual) where a residual is given. Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    return _norm(x, gain, bias, residual, eps, rms=False)


def rms_norm(
    x: Tensor, gain: Tensor, residual: Tensor | None = None, eps: float = 1e-5
) -> Tensor | tuple[Tensor, Tensor]:
    """RMSNorm over the last axis of x, or of x + residual; arguments and result as `layer_norm`'s."""
    return _norm(x, gain, None, residual, eps, rms=True)


def _norm(
    x: Tensor, gain: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float, *, rms: bool
) -> Tensor | tuple[Tensor, Tensor]:
    check_tensors({"x": x, "gain": gain}, {"bias": bias, "residual": residual})
    check_number("eps", eps)
    check_first("x", x)
    members = check_members("x", x)
    check_filled("x", x, column=-1)
    dtypes = (x.dtype,) if x.dtype == torch.float32 else (x.dtype, torch.float32)
    check("gain", gain, (*members, x.shape[-1]), x, dtypes)
    check("bias", bias, (*members, x.shape[-1]), x, dtypes)
    check("residual", residual, x.shape, x)
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be at least 0 and finite, got {eps}.")
    if not members:
        x, gain, bias, residual = as_fleet(x, gain, bias, residual)
    contiguous = residual.contiguous() if residual is not None else None
    bias = rows_contiguous(bias)
    normed, total, _ = layer_norm_op(x.contiguous(), rows_contiguous(gain), bias, contiguous, float(eps), rms)
    if not members:
        normed, total = normed.squeeze(0), total.squeeze(0)
    return normed if residual is None else (normed, total)
