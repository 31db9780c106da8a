"""Linear layers of a fleet: out = x W + b (+ residual), one member's weights for each member's rows.

x [M, R, K], W [M, K, N], b [M, N], residual and out [M, R, N]; sums in float32. Gradients: dx = dout W^T, dW = x^T dout,
db = the sum of dout over rows; the residual's gradient is dout itself.

Launches: 1 forward, 1 backward. The backward's programs have two jobs by index, tiles of dx and tiles of dW; db is summed
by those tiles of dW that lie in its first block of rows. Each output element has one writer and its sum a fixed order.
Bytes at least (s a tensor's item size): forward s (R K + K N + N + 2 R N) a member, backward s (2 R N + 2 R K + K N) + the
gradients' own; dout and x are each read by both jobs, from the cache where a member's rows fit.

Not run on hardware: bfloat16 is checked by compilation and, cast up, in the interpreter.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyscaling.kernels.launch import (
    INTERPRETER_SIDE,
    cdiv,
    check,
    check_filled,
    check_first,
    check_tensors,
    dot,
    dot_mode,
    launch,
    operator,
    rows_contiguous,
    target_of,
)
from pyscaling.kernels.layer_norm import (
    Norm,
    NormGradient,
    norm_rows,
    norm_rows_backward,
    norm_tile_rows,
    rows_normed_again,
)


class Tiles(NamedTuple):
    """A program's output tile, its step along the inner dimension, and how the compiler spreads it."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    all_registers: bool = False  # see `launch`: without it a few bytes would spill


def tiles_for(n_row: int, n_column: int, dtype: torch.dtype, target: str, *widths: int) -> Tiles:
    """Tiles of a matrix product of n_row x n_column; widths: of the rows of its operands in memory."""

    def block(n: int, most: int) -> int:
        return min(most, max(16, triton.next_power_of_2(n)))

    if target == "interpreter":
        most, inner = 2 * INTERPRETER_SIDE, max(32, INTERPRETER_SIDE // 4)
        return Tiles(block(n_row, most), block(n_column, most), inner, 4, 1)
    if dtype == torch.float32 and target.startswith("gfx"):  # of a tile a thread of eight waves would load 8 bytes or 4
        return Tiles(block(n_row, 64), block(n_column, 32), 16, 4, 2)
    if dtype == torch.float32:  # no tensor cores: with 8 sums a thread, operands and pointers fit beside them
        spills = target == "sm_120" or (target == "sm_80" and any(width % 16 for width in widths))
        return Tiles(block(n_row, 64), block(n_column, 32), 16, 8, 2, spills)
    if any(width % 16 for width in widths):  # loads of one number each, whose addresses fill the registers
        return Tiles(block(n_row, 64), block(n_column, 64), 32, 8, 2, True)
    M, N = block(n_row, 128), block(n_column, 128)
    warps = 8 if M * N >= 128 * 64 else 4  # at most 64 registers of sums a thread
    if target.startswith("gfx"):  # 64 KiB of LDS, and operands of 64 would spill
        return Tiles(M, N, 32, warps, 2)
    # Three stages of 32 KiB leave room for two programs; sm_120 holds 99 KiB.
    return Tiles(M, N, 64, warps, 2 if target == "sm_120" else 3)


def norm_tiles_for(n_row: int, d: int, dtype: torch.dtype, target: str, *widths: int) -> Tiles:
    """Tiles of whole rows of d numbers, so that a norm may follow."""
    M, N = norm_tile_rows(n_row, d, dtype, target), max(16, triton.next_power_of_2(d))
    if target == "interpreter":
        return Tiles(M, N, max(32, INTERPRETER_SIDE // 4), 4, 1)
    if dtype == torch.float32 or any(width % 16 for width in widths):
        return Tiles(M, N, 16, 8, 2, True)
    # Two stages of (64 + 256) 64 numbers are 80 KiB: one program on sm_120, two on sm_90.
    return Tiles(M, N, 32 if target.startswith("gfx") else 64, 8 if M * N >= 64 * 128 else 4, 2, True)


@triton.jit
def matmul_tile(
    a_pointer, a_row_stride, a_inner_stride, b_pointer, b_inner_stride, b_column_stride, first_row, first_column,
    n_row, n_column, n_inner,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr, total=None,
):  # fmt: skip
    """a b at [first_row, first_column], in float32, added to `total` if that is given."""
    # 64 bits for where a block begins alone: offsets within it take half the registers
    o_row, o_column, o_inner = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    m_row, m_column = first_row + o_row < n_row, first_column + o_column < n_column
    a_pointer += tl.cast(first_row, tl.int64) * a_row_stride
    b_pointer += tl.cast(first_column, tl.int64) * b_column_stride
    o_a = o_row[:, None] * a_row_stride + o_inner[None, :] * a_inner_stride
    o_b = o_inner[:, None] * b_inner_stride + o_column[None, :] * b_column_stride
    if total is None:
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, n_inner, BLOCK_K):
        m_inner = start + o_inner < n_inner
        b_a = tl.load(a_pointer + o_a, mask=m_row[:, None] & m_inner[None, :], other=0.0)  # [BLOCK_M, BLOCK_K]
        b_b = tl.load(b_pointer + o_b, mask=m_inner[:, None] & m_column[None, :], other=0.0)  # [BLOCK_K, BLOCK_N]
        total = dot(b_a, b_b, total, DOT)
        a_pointer += BLOCK_K * a_inner_stride
        b_pointer += BLOCK_K * b_inner_stride
    return total


@triton.jit
def store_tile(pointer, tile, first_row, first_column, n_row, n_column, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A tile of a contiguous matrix [n_row, n_column]."""
    o_row, o_column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    p = pointer + tl.cast(first_row, tl.int64) * n_column + first_column + o_row[:, None] * n_column + o_column[None, :]
    mask = (first_row + o_row < n_row)[:, None] & (first_column + o_column < n_column)[None, :]
    tl.store(p, tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def add_bias_and_residual(
    tile, bias, residual, first_row, first_column, n_row, n_column,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    o_row, o_column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    m_column = first_column + o_column < n_column
    if HAS_BIAS:
        b_bias = tl.load(bias + first_column + o_column, mask=m_column, other=0.0).to(tl.float32)  # [BLOCK_N]
        tile += b_bias[None, :]
    if HAS_RESIDUAL:
        residual += tl.cast(first_row, tl.int64) * n_column + first_column
        mask = (first_row + o_row < n_row)[:, None] & m_column[None, :]
        tile += tl.load(residual + o_row[:, None] * n_column + o_column[None, :], mask=mask, other=0.0).to(tl.float32)
    return tile


@triton.jit
def column_sums(pointer, first_column, n_row, n_column, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr):
    """The sum over rows of a contiguous matrix [n_row, n_column], [BLOCK_N] of its columns."""
    o_row, o_column = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_N)
    m_column = first_column + o_column < n_column
    pointer += first_column
    total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, n_row, BLOCK_R):
        block = tl.load(
            pointer + o_row[:, None] * n_column + o_column[None, :],
            mask=(start + o_row < n_row)[:, None] & m_column[None, :], other=0.0,
        )  # [BLOCK_R, BLOCK_N]  # fmt: skip
        total += tl.sum(block.to(tl.float32), 0)
        pointer += BLOCK_R * n_column
    return total


@triton.jit
def store_weight_gradient(
    grad_weight, grad_bias, tile, grad_out, first_row, first_column, d_in, d_out, n_row,
    HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """A tile of a weight's gradient [d_in, d_out]; those of the first rows also sum the bias's, [d_out], over grad_out."""
    store_tile(grad_weight, tile, first_row, first_column, d_in, d_out, BLOCK_M, BLOCK_N)
    if HAS_BIAS:
        if first_row == 0:
            sums = column_sums(grad_out, first_column, n_row, d_out, BLOCK_R, BLOCK_N)
            o_column = first_column + tl.arange(0, BLOCK_N)
            tl.store(grad_bias + o_column, sums.to(grad_bias.dtype.element_ty), mask=o_column < d_out)


@triton.jit
def norm_tile(
    tile, gain, norm_bias, normed, stats, first_row, n_row, d, gain_stride, norm_bias_stride, eps,
    RMS: tl.constexpr, NORM_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Norms a tile of whole rows, rounded as it is stored, of the member that program 1 tells."""
    i_member = tl.program_id(1).to(tl.int64)
    o_row, o_column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    m_row = first_row + o_row < n_row
    row = i_member * n_row + first_row
    norm_rows(
        tile.to(normed.dtype.element_ty).to(tl.float32), gain + i_member * gain_stride,
        norm_bias + i_member * norm_bias_stride, normed + row * d, o_row[:, None] * d + o_column[None, :],
        stats + row + o_row, tl.num_programs(1).to(tl.int64) * n_row, eps, m_row, m_row[:, None] & (o_column < d)[None, :], d,
        RMS, NORM_BIAS, BLOCK_D,
    )  # fmt: skip


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
    tile = matmul_tile(
        x + i_member * n_row * d_in, d_in, 1, weight + i_member * weight_stride, d_out, 1, first_row, first_column,
        n_row, d_out, d_in, BLOCK_M, BLOCK_N, BLOCK_K, DOT,
    )  # fmt: skip
    offset = i_member * n_row * d_out
    tile = add_bias_and_residual(
        tile, bias + i_member * bias_stride, residual + offset, first_row, first_column, n_row, d_out,
        HAS_BIAS, HAS_RESIDUAL, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    store_tile(out + offset, tile, first_row, first_column, n_row, d_out, BLOCK_M, BLOCK_N)
    if HAS_NORM:
        norm_tile(
            tile, gain, norm_bias, normed, stats, first_row, n_row, d_out, gain_stride, norm_bias_stride, eps,
            RMS, NORM_BIAS, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def linear_backward_kernel(
    grad_out, x, weight, grad_x, grad_weight, grad_bias, n_row, d_in, d_out, n_tile_x,
    weight_stride, grad_weight_stride, grad_bias_stride, z, gain, stats, add, parts, gain_stride,
    HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, RMS: tl.constexpr, NORM_BIAS: tl.constexpr,
    X_M: tl.constexpr, X_N: tl.constexpr, W_M: tl.constexpr, W_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    i_tile, i_member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    grad_out += i_member * n_row * d_out
    x += i_member * n_row * d_in
    if i_tile < n_tile_x:
        n_tile = tl.cdiv(d_in, X_N)
        first_row, first_column = i_tile // n_tile * X_M, i_tile % n_tile * X_N
        tile = matmul_tile(
            grad_out, d_out, 1, weight + i_member * weight_stride, 1, d_out, first_row, first_column,
            n_row, d_in, d_out, X_M, X_N, BLOCK_K, DOT,
        )  # fmt: skip
        if HAS_NORM:  # a tile holds whole rows: i_tile counts blocks of them, and parts
            o_row, o_column = tl.arange(0, X_M), tl.arange(0, X_N)
            m_row, m_column = first_row + o_row < n_row, o_column < d_in
            mask = m_row[:, None] & m_column[None, :]
            row = i_member * n_row + first_row
            offset = row * d_in + (o_row[:, None] * d_in + o_column[None, :])  # [X_M, X_N]
            b_z = tl.load(z + offset, mask=mask, other=0.0).to(tl.float32)
            p_part = parts + (i_member * n_tile_x + i_tile) * d_in + o_column
            if NORM_BIAS:
                p_bias = p_part + tl.num_programs(1).to(tl.int64) * n_tile_x * d_in
                tl.store(p_bias, tl.sum(tile, axis=0), mask=m_column)
            n, rstd = rows_normed_again(
                b_z, stats + row + o_row, tl.num_programs(1).to(tl.int64) * n_row, m_row, m_column, RMS
            )
            tl.store(p_part, tl.sum(tile * n, axis=0), mask=m_column)
            tile = norm_rows_backward(tile, n, rstd, gain + i_member * gain_stride + o_column, m_column, d_in, RMS)
            tile += tl.load(add + offset, mask=mask, other=0.0).to(tl.float32)
        store_tile(grad_x + i_member * n_row * d_in, tile, first_row, first_column, n_row, d_in, X_M, X_N)
    else:
        n_tile = tl.cdiv(d_out, W_N)
        first_row, first_column = (i_tile - n_tile_x) // n_tile * W_M, (i_tile - n_tile_x) % n_tile * W_N
        tile_of_weight = matmul_tile(
            x, 1, d_in, grad_out, d_out, 1, first_row, first_column, d_in, d_out, n_row, W_M, W_N, BLOCK_K, DOT
        )
        store_weight_gradient(
            grad_weight + i_member * grad_weight_stride, grad_bias + i_member * grad_bias_stride, tile_of_weight, grad_out,
            first_row, first_column, d_in, d_out, n_row, HAS_BIAS, W_M, W_N, BLOCK_K,
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
    n_member, n_row, d_in = x.shape
    d_out = weight.shape[2]
    out = x.new_empty(n_member, n_row, d_out)
    tiles_of = tiles_for if norm is None else norm_tiles_for
    tiles = tiles_of(n_row, d_out, x.dtype, target_of(x.device), d_in, d_out)
    normed, constants = norm_arguments(norm, x)
    launch(
        linear_forward_kernel,
        (cdiv(n_row, tiles.BLOCK_M) * cdiv(d_out, tiles.BLOCK_N), n_member),
        x, weight, bias if bias is not None else x, residual if residual is not None else x, out,
        n_row, d_in, d_out, weight.stride(0), bias.stride(0) if bias is not None else 0, *normed,
        reads=[x, weight, bias, residual, *(norm[:2] if norm is not None else ())],
        writes=[out, *(norm[2:4] if norm is not None else ())],
        flops=2 * n_member * n_row * d_in * d_out,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        DOT=dot_mode(x.dtype, target_of(x.device)),
        **constants,
        **tiles._asdict(),
    )  # fmt: skip
    return out


def linear_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    grad_weight: Tensor | None = None,
    grad_bias: Tensor | None = None,
    norm: NormGradient | None = None,
    *,
    has_bias: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(grad_x, grad_weight, grad_bias) of `linear_forward`; those of the weights are written where they are given.

    norm: the norm that made x of z, if K <= WIDEST_TILE; grad_x is then the gradient of z.
    """
    n_member, n_row, d_in = x.shape
    d_out = weight.shape[2]
    grad_x = torch.empty_like(x)
    if grad_weight is None:
        grad_weight = torch.empty(weight.shape, dtype=weight.dtype, device=x.device)
    if grad_bias is None and has_bias:
        grad_bias = torch.empty(n_member, d_out, dtype=weight.dtype, device=x.device)
    target = target_of(x.device)
    of_x = (tiles_for if norm is None else norm_tiles_for)(n_row, d_in, x.dtype, target, d_in, d_out)
    of_weight = tiles_for(d_in, d_out, x.dtype, target, d_in, d_out)
    n_tile_x = cdiv(n_row, of_x.BLOCK_M) * cdiv(d_in, of_x.BLOCK_N)
    launch(
        linear_backward_kernel,
        (n_tile_x + cdiv(d_in, of_weight.BLOCK_M) * cdiv(d_out, of_weight.BLOCK_N), n_member),
        grad_out, x, weight, grad_x, grad_weight, grad_bias if has_bias else x, n_row, d_in, d_out, n_tile_x,
        weight.stride(0), grad_weight.stride(0), grad_bias.stride(0) if grad_bias is not None else 0,
        *(norm if norm is not None else [x] * 5), norm.gain.stride(0) if norm is not None else 0,
        reads=[grad_out, x, weight, *(norm[:4] if norm is not None else ())],
        writes=[grad_x, grad_weight, grad_bias if has_bias else None, norm.parts if norm is not None else None],
        flops=4 * n_member * n_row * d_in * d_out,
        HAS_BIAS=has_bias,
        HAS_NORM=norm is not None,
        RMS=norm is not None and norm.stats.shape[0] == 1,
        NORM_BIAS=norm is not None and norm.parts.shape[0] == 2,
        X_M=of_x.BLOCK_M,
        X_N=of_x.BLOCK_N,
        W_M=of_weight.BLOCK_M,
        W_N=of_weight.BLOCK_N,
        BLOCK_K=of_x.BLOCK_K,
        DOT=dot_mode(x.dtype, target_of(x.device)),
        num_warps=max(of_x.num_warps, of_weight.num_warps),
        num_stages=of_x.num_stages,
        all_registers=of_x.all_registers or of_weight.all_registers,
    )  # fmt: skip
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
    if x.dim() == 2:
        single = [t.unsqueeze(0) if t is not None else None for t in (x, weight, bias, residual)]
        return linear(*single).squeeze(0)  # type: ignore[arg-type]
    check_first("x", x)
    check("x", x, (None, None, None), x)
    check_filled("x", x, member=0, column=2)
    check("weight", weight, (x.shape[0], x.shape[2], None), x)
    check_filled("weight", weight, column=2)
    check("bias", bias, (x.shape[0], weight.shape[2]), x)
    check("residual", residual, (*x.shape[:2], weight.shape[2]), x)
    residual = residual.contiguous() if residual is not None else None
    return linear_op(x.contiguous(), rows_contiguous(weight), rows_contiguous(bias), residual)
