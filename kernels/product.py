"""A tile of a matrix product of a fleet, by tensor descriptors or by pointers: what linear, mlp and the head are made of.

    tile = a b over a stretch of the inner dimension, of one member, in float32; a [rows, inner] or stored transposed
    [inner, rows] (A_T), b [inner, columns] or stored [columns, inner] (B_T)

Two ways to read the operands. *Described* (sm_90, sm_100, 16 bits, rows on 16 bytes): a tensor descriptor [M, rows, columns] of
which the copy engine brings a whole block to shared memory, zeros beyond the edge; no addresses or masks in registers, and so
tiles of 128 x 256, whose operands cost a multiprocessor 9.4 TB/s of the second-level cache over all at the peak of an
H100, where 128 x 128 would cost 12.5. What ends a product then works on the tile's left and right half in turn, for the
registers' and shared memory's sake. *By pointers*: any target, dtype and width.

The weight's gradient x^T dout has the longest loop, over a member's rows, and few tiles. Its programs come before all others
of a launch, those of all members, so that shorter ones fill the end; where a member has fewer tiles than
`weight_splits` wants, its rows are split, and a later launch adds the parts in their order. Neither depends on how many
members there are, nor does therefore any bit.

Not run on hardware: bfloat16 is checked by compilation and, cast up, in the interpreter.
"""

import functools
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pyscaling.kernels.launch import MULTIPROCESSORS, cdiv, dot, launch, next_power_of_2
from pyscaling.kernels.layer_norm import norm_rows
from pyscaling.kernels.tiles import choose


class Tiles(NamedTuple):
    """A program's output tile, its step along the inner dimension, and how the compiler spreads it."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    all_registers: bool = False  # see `launch`: without it a few bytes would spill
    programs: int = 0  # a multiprocessor, each of which walks through many tiles; 0: a program for each tile

    def options(self) -> dict[str, Any]:
        """What `launch` takes of it."""
        return {name: value for name, value in self._asdict().items() if name != "programs"}


def cut_tiles(tiles: Tiles, n_row: int, n_column: int, least: int = 16) -> Tiles:
    """Tiles no larger than the product, but for the least that instructions take."""

    def cut(block: int, n: int) -> int:
        return min(block, max(least, next_power_of_2(n)))

    return tiles._replace(BLOCK_M=cut(tiles.BLOCK_M, n_row), BLOCK_N=cut(tiles.BLOCK_N, n_column))


def tiles_of(
    operation: str,
    n_row: int,
    n_column: int,
    dtype: torch.dtype,
    target: str,
    width: int,
    *conditions: str,
    least: int = 16,
) -> Tiles:
    """The table's tiles for an operation, cut to the sizes of its product."""
    return cut_tiles(Tiles(*choose(operation, target, dtype, width, *conditions)), n_row, n_column, least)


# ---- descriptors ----------------------------------------------------------------------------------------------------


def describable(target: str, *tensors: Tensor | None) -> bool:
    """Whether every tensor [M, rows, columns] may be read through a descriptor: its rows start on 16 bytes."""
    if target not in ("sm_90", "sm_100"):
        return False
    for tensor in tensors:
        if tensor is None:
            continue
        if isinstance(tensor, FakeTensor) or tensor.dtype.itemsize != 2 or not tensor.numel():
            return False  # what torch.compile traces has sizes of its own, and its launches are not made
        member, row, column = tensor.stride()
        start = tensor.storage_offset() * 2 if tensor.is_meta else tensor.data_ptr()
        if column != 1 or (member | row) % 8 or start % 16:
            return False
    return True


_OPTIONS = {of.name: of.default for of in fields(TensorDescriptor) if of.default is not MISSING}


def described(tensor: Tensor, n_row: int, n_column: int) -> TensorDescriptor:
    """A descriptor of blocks [1, n_row, n_column] of a `describable` tensor."""
    descriptor = object.__new__(
        TensorDescriptor
    )  # what its constructor checks takes longer, and `describable` has seen to it
    places = {
        "base": tensor,
        "shape": list(tensor.shape),
        "strides": list(tensor.stride()),
        "block_shape": [1, n_row, n_column],
    }
    descriptor.__dict__.update(_OPTIONS, **places)
    return descriptor


@functools.cache
def multiprocessors(device: torch.device, target: str) -> int:
    """Of this very device: how many programs share the tiles changes no bit."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return MULTIPROCESSORS[target]


# ---- within a kernel ------------------------------------------------------------------------------------------------


@triton.jit
def activation_and_slope(u, ACTIVATION: tl.constexpr):
    """act(u) and its derivative, float32; of a gated one the activation of the gate."""
    if ACTIVATION == "gelu_exact":
        share = 0.5 * (1.0 + tl.math.erf(u * 0.7071067811865476))
        return u * share, share + u * tl.exp(-0.5 * u * u) * 0.3989422804014327
    elif ACTIVATION == "swiglu":
        share = tl.sigmoid(u)
        return u * share, share * (1.0 + u * (1.0 - share))
    else:  # (1 + tanh z) / 2 = sigmoid(2 z)
        share = tl.sigmoid(u * (1.5957691216057308 + 0.07135481282553384 * u * u))
        slope = 1.5957691216057308 + 0.21406443847660152 * u * u
        return u * share, share + u * share * (1.0 - share) * slope


@triton.jit
def product_tile(
    a, b, i_member, a_stride, b_stride, first_row, first_column, begin, end, n_row, n_column, value,
    A_T: tl.constexpr, B_T: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, SUMS: tl.constexpr,
    DESCRIBED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr, total=None,
):  # fmt: skip
    """(a b at [first_row, first_column] over inner begin to end, sums of b's columns if SUMS), in float32; total: what a b is
    added to.

    a, b: descriptors, or pointers to where the member's matrices begin, whose rows are a_stride and b_stride apart.
    ACTIVATION: act(a) takes a's place, times what lies `value` columns on in memory if GATED; only where a is transposed.
    """
    if total is None:
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    sums = tl.zeros([BLOCK_N], tl.float32)
    if DESCRIBED:
        for start in range(begin, end, BLOCK_K):
            if A_T:
                b_a = a.load([i_member, start, first_row]).reshape(BLOCK_K, BLOCK_M)
                if ACTIVATION != "":
                    b_h, _ = activation_and_slope(b_a.to(tl.float32), ACTIVATION)
                    if GATED:
                        b_h *= a.load([i_member, start, value + first_row]).reshape(BLOCK_K, BLOCK_M).to(tl.float32)
                    b_a = b_h if DOT == "cast" else b_h.to(b_a.dtype)
                b_a = tl.trans(b_a)
            else:
                b_a = a.load([i_member, first_row, start]).reshape(BLOCK_M, BLOCK_K)
            if B_T:
                b_b = tl.trans(b.load([i_member, first_column, start]).reshape(BLOCK_N, BLOCK_K))
            else:
                b_b = b.load([i_member, start, first_column]).reshape(BLOCK_K, BLOCK_N)
            total = dot(b_a, b_b, total, DOT)
            if SUMS:
                sums += tl.sum(b_b.to(tl.float32), 0)
    else:
        # 64 bits for where a block begins alone: offsets within it take half the registers
        o_row, o_column, o_inner = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
        m_row, m_column = first_row + o_row < n_row, first_column + o_column < n_column
        if A_T:
            a += tl.cast(begin, tl.int64) * a_stride + first_row
            o_a = o_row[:, None] + o_inner[None, :] * a_stride
        else:
            a += tl.cast(first_row, tl.int64) * a_stride + begin
            o_a = o_row[:, None] * a_stride + o_inner[None, :]
        if B_T:
            b += tl.cast(first_column, tl.int64) * b_stride + begin
            o_b = o_inner[:, None] + o_column[None, :] * b_stride
        else:
            b += tl.cast(begin, tl.int64) * b_stride + first_column
            o_b = o_inner[:, None] * b_stride + o_column[None, :]
        for start in range(begin, end, BLOCK_K):
            m_inner = start + o_inner < end
            m_a = m_row[:, None] & m_inner[None, :]
            b_a = tl.load(a + o_a, mask=m_a, other=0.0)  # [BLOCK_M, BLOCK_K]
            b_b = tl.load(b + o_b, mask=m_inner[:, None] & m_column[None, :], other=0.0)  # [BLOCK_K, BLOCK_N]
            if ACTIVATION != "":
                b_h, _ = activation_and_slope(b_a.to(tl.float32), ACTIVATION)
                if GATED:
                    b_h *= tl.load(a + value + o_a, mask=m_a, other=0.0).to(tl.float32)
                b_a = b_h if DOT == "cast" else b_h.to(b_b.dtype)
            total = dot(b_a, b_b, total, DOT)
            if SUMS:
                sums += tl.sum(b_b.to(tl.float32), 0)
            if A_T:
                a += BLOCK_K * a_stride
            else:
                a += BLOCK_K
            if B_T:
                b += BLOCK_K
            else:
                b += BLOCK_K * b_stride
    return total, sums


@triton.jit
def weight_gradient_tile(
    x, grad_out, grad_weight, grad_bias, i_member, i_tile, n_split, span, n_row, d_in, d_out, x_stride, value,
    weight_stride, weight_split, bias_stride, bias_split,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, DESCRIBED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """A tile of act(x)^T dout [d_in, d_out] over one part of the rows; those of the first rows also sum dout itself.

    x, grad_out: as `product_tile` takes them. grad_weight, grad_bias: the gradients, or their parts, in which members lie
    weight_stride and bias_stride apart, parts weight_split and bias_split.
    """
    split, i_tile = i_tile % n_split, i_tile // n_split
    n_tile = tl.cdiv(d_out, BLOCK_N)
    first_row, first_column = i_tile // n_tile * BLOCK_M, i_tile % n_tile * BLOCK_N
    begin = split * span
    end = tl.minimum(begin + span, n_row)
    member = i_member.to(tl.int64)
    if HAS_BIAS and first_row == 0:
        tile, sums = product_tile(
            x, grad_out, i_member, x_stride, d_out, first_row, first_column, begin, end, d_in, d_out, value,
            True, False, ACTIVATION, GATED, True, DESCRIBED, BLOCK_M, BLOCK_N, BLOCK_K, DOT,
        )  # fmt: skip
        o_column = first_column + tl.arange(0, BLOCK_N)
        p_bias = grad_bias + member * bias_stride + split * bias_split + o_column
        tl.store(p_bias, sums.to(grad_bias.dtype.element_ty), mask=o_column < d_out)
    else:
        tile, _ = product_tile(
            x, grad_out, i_member, x_stride, d_out, first_row, first_column, begin, end, d_in, d_out, value,
            True, False, ACTIVATION, GATED, False, DESCRIBED, BLOCK_M, BLOCK_N, BLOCK_K, DOT,
        )  # fmt: skip
    store_tile(
        grad_weight + member * weight_stride + split * weight_split, tile, first_row, first_column, d_in, d_out, BLOCK_M, BLOCK_N
    )  # fmt: skip


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
def norm_tile(
    tile, gain, norm_bias, normed, stats, i_member, n_member, first_row, n_row, d, eps,
    RMS: tl.constexpr, NORM_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Norms a tile of whole rows, rounded as it is stored; gain and norm_bias are the member's own."""
    o_row, o_column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    m_row = first_row + o_row < n_row
    row = i_member.to(tl.int64) * n_row + first_row
    norm_rows(
        tile.to(normed.dtype.element_ty).to(tl.float32), gain, norm_bias, normed + row * d,
        o_row[:, None] * d + o_column[None, :], stats + row + o_row, n_member.to(tl.int64) * n_row, eps, m_row,
        m_row[:, None] & (o_column < d)[None, :], d, RMS, NORM_BIAS, BLOCK_D,
    )  # fmt: skip


# ---- the ends of described products, by halves ----------------------------------------------------------------------


@triton.jit
def halves(tile, BLOCK_M: tl.constexpr, HALF: tl.constexpr):
    """The left and the right half of a tile [BLOCK_M, 2 HALF]."""
    return tl.split(tl.permute(tl.reshape(tile, (BLOCK_M, 2, HALF)), (0, 2, 1)))


@triton.jit
def load_half(source, i_member, first_row, first_column, BLOCK_M: tl.constexpr, HALF: tl.constexpr):
    return source.load([i_member, first_row, first_column]).reshape(BLOCK_M, HALF).to(tl.float32)


@triton.jit
def store_half(out, half, i_member, first_row, first_column, BLOCK_M: tl.constexpr, HALF: tl.constexpr):
    out.store([i_member, first_row, first_column], half.to(out.dtype).reshape(1, BLOCK_M, HALF))


@triton.jit
def load_columns(pointer, first_column, n_column, HALF: tl.constexpr):
    """[1, HALF] float32, zero beyond n_column."""
    o_column = first_column + tl.arange(0, HALF)
    return tl.load(pointer + o_column, mask=o_column < n_column, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _finished_half(
    half, bias, residual, out, i_member, first_row, first_column, n_column,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BLOCK_M: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    if HAS_BIAS:
        half += load_columns(bias, first_column, n_column, HALF)
    if HAS_RESIDUAL:
        half += load_half(residual, i_member, first_row, first_column, BLOCK_M, HALF)
    store_half(out, half, i_member, first_row, first_column, BLOCK_M, HALF)
    return half


@triton.jit
def finish_described(
    tile, bias, residual, out, gain, norm_bias, normed, stats, i_member, n_member, first_row, first_column, n_row, n_column,
    eps, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr, RMS: tl.constexpr,
    NORM_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Stores tile + bias + residual and, of a tile of whole rows, its norm.

    residual, out, normed: descriptors of blocks [1, BLOCK_M, HALF]; bias, gain, norm_bias: pointers to the member's own.
    """
    left, right = halves(tile, BLOCK_M, HALF)
    second = first_column + HALF
    left = _finished_half(
        left, bias, residual, out, i_member, first_row, first_column, n_column, HAS_BIAS, HAS_RESIDUAL, BLOCK_M, HALF
    )
    right = _finished_half(
        right, bias, residual, out, i_member, first_row, second, n_column, HAS_BIAS, HAS_RESIDUAL, BLOCK_M, HALF
    )
    if HAS_NORM:  # zeros beyond n_column take no part in the sums
        left, right = left.to(normed.dtype).to(tl.float32), right.to(normed.dtype).to(tl.float32)
        o_row, o_half = first_row + tl.arange(0, BLOCK_M), tl.arange(0, HALF)
        p_stats = stats + i_member.to(tl.int64) * n_row + o_row
        if not RMS:
            mean = (tl.sum(left, axis=1) + tl.sum(right, axis=1)) / n_column
            left = tl.where((o_half < n_column)[None, :], left - mean[:, None], 0.0)
            right = tl.where((HALF + o_half < n_column)[None, :], right - mean[:, None], 0.0)
            tl.store(p_stats + n_member.to(tl.int64) * n_row, mean, mask=o_row < n_row)
        rstd = tl.rsqrt((tl.sum(left * left, axis=1) + tl.sum(right * right, axis=1)) / n_column + eps)
        tl.store(p_stats, rstd, mask=o_row < n_row)
        left *= rstd[:, None] * load_columns(gain, 0, n_column, HALF)
        right *= rstd[:, None] * load_columns(gain, HALF, n_column, HALF)
        if NORM_BIAS:
            left += load_columns(norm_bias, 0, n_column, HALF)
            right += load_columns(norm_bias, HALF, n_column, HALF)
        store_half(normed, left, i_member, first_row, 0, BLOCK_M, HALF)
        store_half(normed, right, i_member, first_row, HALF, BLOCK_M, HALF)


# ---- parts of a sum over rows ---------------------------------------------------------------------------------------


def weight_splits(n_row: int, d_in: int, d_out: int, tiles: Tiles, target: str) -> int:
    """Into how many parts a member's rows are cut for the gradient of a weight [d_in, d_out].

    Its programs come near to a sixteenth of the multiprocessors: sixteen members fill the device, and a single one is not left
    with a handful. At least 16 steps a part; no part is empty.
    """
    n_tile = cdiv(d_in, tiles.BLOCK_M) * cdiv(d_out, tiles.BLOCK_N)
    n_step = cdiv(n_row, tiles.BLOCK_K)
    splits = max(1, min(MULTIPROCESSORS.get(target, 8) // 16 // n_tile, n_step // 16))
    return cdiv(n_step, cdiv(n_step, splits)) if n_step else 1


@triton.jit
def sum_splits_kernel(
    parts, grad_weight, grad_bias, n_split, n_member, n_weight, size, weight_stride, bias_stride, BLOCK: tl.constexpr
):  # fmt: skip
    """parts [S, M, size] summed over S, in order: the first n_weight numbers are the weight's, the others the bias's."""
    i_member = tl.program_id(1).to(tl.int64)
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    parts += i_member * size
    for _ in range(n_split):
        total += tl.load(parts + o, mask=o < size, other=0.0)
        parts += tl.cast(n_member, tl.int64) * size
    p_weight = grad_weight + i_member * weight_stride + o
    tl.store(p_weight, total.to(grad_weight.dtype.element_ty), mask=o < n_weight)
    p_bias = grad_bias + i_member * bias_stride + (o - n_weight)
    tl.store(p_bias, total.to(grad_bias.dtype.element_ty), mask=(o >= n_weight) & (o < size))


def sum_splits(parts: Tensor, grad_weight: Tensor, grad_bias: Tensor | None) -> None:
    """Sums parts [S, M, K N (+ N)] into grad_weight [M, K, N] and grad_bias [M, N]."""
    n_split, n_member, size = parts.shape
    launch(
        sum_splits_kernel,
        (cdiv(size, 1024), n_member),
        parts, grad_weight, grad_weight if grad_bias is None else grad_bias, n_split, n_member, grad_weight[0].numel(), size,
        grad_weight.stride(0), 0 if grad_bias is None else grad_bias.stride(0),
        reads=[parts],
        writes=[grad_weight, grad_bias],
        BLOCK=1024,
    )  # fmt: skip
