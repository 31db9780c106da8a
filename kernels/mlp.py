"""The MLP of a fleet: out = act(x W_up + b_up) W_down + b_down (+ residual), one member's weights for each member's rows.

x [M, R, d], W_up [M, d, F] ("gelu", "gelu_exact") or [M, d, 2 F] ("swiglu", "geglu": gate, then value; Shazeer 2020),
W_down [M, F, d], residual and out [M, R, d]. "gelu" is the tanh form of GPT-2, as is the gate of "geglu".

Kept for the backward is u = x W_up + b_up. Up to 256 columns of x and out that is all: one launch forms u by blocks of columns
and takes act(u) into the product with W_down at once; a program holds whole rows of out. act(u) is formed again wherever it
is read, once each, and writing and reading R F of it are saved. Wider rows take two launches, and the backward would form
act(u) again for each block of W_down's columns: there the first launch stores h = act(u), too.
The gradient of u is the epilogue of dout W_down^T.

Launches: 1 forward, or 2 (u and h; out); 2 backward (dW_down, db_down, du; dW_up, db_up, dx), and one for each weight whose rows
are split, unless the caller takes the parts (`linear_backward`). Programs of a backward launch have two jobs by index, the
weight's tiles first. Each output element has one writer.
Bytes at least, of an item size s and U columns of u (F or 2 F): forward s (R U + 3 R d) + the weights, with 2 launches
s (R U + 2 R F + 3 R d); backward s (4 R U + 3 R d) + the weights twice.

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
from pyscaling.kernels.layer_norm import WIDEST_TILE, Norm, NormGradient
from pyscaling.kernels.linear import (
    Job,
    backward_job,
    gradient_places,
    linear_backward,
    linear_forward,
    norm_arguments,
    norm_tiles_for,
    tiles_for,
    weight_parts,
)
from pyscaling.kernels.product import (
    Tiles,
    activation_and_slope,
    add_bias_and_residual,
    describable,
    described,
    finish_described,
    halves,
    load_columns,
    load_half,
    norm_tile,
    product_tile,
    store_half,
    store_tile,
    sum_splits,
    tiles_of,
    weight_gradient_tile,
)
from pyscaling.kernels.tiles import choose, handed_over

ACTIVATIONS = ("gelu", "gelu_exact", "swiglu", "geglu")
_GATED = ("swiglu", "geglu")


@triton.jit
def up_tile(
    b_x, x, weight, bias, u, first_row, first_column, n_row, d_in, n_column, u_width,
    HAS_BIAS: tl.constexpr, HELD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """A tile of x W + b, columns below n_column, as it is stored in u; b_x [BLOCK_M, BLOCK_D]: x's whole rows, if HELD."""
    o_row, o_column, o_inner = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_D)
    m_column = first_column + o_column < n_column
    if HELD:
        p_weight = weight + first_column + o_inner[:, None] * u_width + o_column[None, :]
        b_w = tl.load(p_weight, mask=(o_inner < d_in)[:, None] & m_column[None, :], other=0.0)  # [BLOCK_D, BLOCK_F]
        tile = dot(b_x, b_w, tl.zeros([BLOCK_M, BLOCK_F], tl.float32), DOT)
    else:
        tile, _ = product_tile(
            x, weight, 0, d_in, u_width, first_row, first_column, 0, d_in, n_row, u_width, 0,
            False, False, "", False, False, False, BLOCK_M, BLOCK_F, BLOCK_K, DOT,
        )  # fmt: skip
    if HAS_BIAS:
        tile += tl.load(bias + first_column + o_column, mask=m_column, other=0.0).to(tl.float32)[None, :]
    stored = tile.to(u.dtype.element_ty)
    p_u = u + tl.cast(first_row, tl.int64) * u_width + first_column + o_row[:, None] * u_width + o_column[None, :]
    tl.store(p_u, stored, mask=(first_row + o_row < n_row)[:, None] & m_column[None, :])
    return stored.to(tl.float32)


@triton.jit
def mlp_forward_kernel(
    x, up, up_bias, down, down_bias, residual, u, out, n_row, d_in, d_ff, d_model, u_width,
    up_stride, up_bias_stride, down_stride, down_bias_stride, gain, norm_bias, normed, stats, gain_stride, norm_bias_stride, eps,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    HAS_NORM: tl.constexpr, RMS: tl.constexpr, NORM_BIAS: tl.constexpr, HELD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    """Rows of u and of out: BLOCK_F columns of u at a time, whose activations go into the sum at once."""
    first_row, i_member = tl.program_id(0) * BLOCK_M, tl.program_id(1).to(tl.int64)
    x += i_member * n_row * d_in
    u += i_member * n_row * u_width
    up += i_member * up_stride
    up_bias += i_member * up_bias_stride
    down += i_member * down_stride
    o_row, o_inner, o_ff, o_column = (
        tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_N)
    )  # fmt: skip
    b_x = 0.0
    if HELD:
        p_x = x + tl.cast(first_row, tl.int64) * d_in + o_row[:, None] * d_in + o_inner[None, :]
        b_x = tl.load(p_x, mask=(first_row + o_row < n_row)[:, None] & (o_inner < d_in)[None, :], other=0.0)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, d_ff, BLOCK_F):
        gate = up_tile(
            b_x, x, up, up_bias, u, first_row, start, n_row, d_in, d_ff, u_width,
            HAS_BIAS, HELD, BLOCK_M, BLOCK_F, BLOCK_D, BLOCK_K, DOT,
        )  # fmt: skip
        b_h, _ = activation_and_slope(gate, ACTIVATION)
        if GATED:
            b_h *= up_tile(
                b_x, x, up, up_bias, u, first_row, d_ff + start, n_row, d_in, u_width, u_width,
                HAS_BIAS, HELD, BLOCK_M, BLOCK_F, BLOCK_D, BLOCK_K, DOT,
            )  # fmt: skip
        m_ff = start + o_ff < d_ff
        p_down = down + (start + o_ff)[:, None] * d_model + o_column[None, :]
        b_down = tl.load(p_down, mask=m_ff[:, None] & (o_column < d_model)[None, :], other=0.0)  # [BLOCK_F, BLOCK_N]
        if DOT != "cast":
            b_h = b_h.to(b_down.dtype)
        total = dot(b_h, b_down, total, DOT)
    offset = i_member * n_row * d_model
    total = add_bias_and_residual(
        total, down_bias + i_member * down_bias_stride, residual + offset, first_row, 0, n_row, d_model,
        HAS_BIAS, HAS_RESIDUAL, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    store_tile(out + offset, total, first_row, 0, n_row, d_model, BLOCK_M, BLOCK_N)
    if HAS_NORM:
        norm_tile(
            total, gain + i_member * gain_stride, norm_bias + i_member * norm_bias_stride, normed, stats,
            i_member, tl.num_programs(1), first_row, n_row, d_model, eps, RMS, NORM_BIAS, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def _stored_columns(b_x, up, up_bias, u, i_member, first_row, first_column, n_column,
    HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Columns of u of rows b_x [BLOCK_M, BLOCK_D], rounded as they are stored; up and u are descriptors."""
    b_up = up.load([i_member, 0, first_column]).reshape(BLOCK_D, BLOCK_F)
    tile = dot(b_x, b_up, tl.zeros([BLOCK_M, BLOCK_F], tl.float32), DOT)
    if HAS_BIAS:
        tile += load_columns(up_bias, first_column, n_column, BLOCK_F)
    store_half(u, tile, i_member, first_row, first_column, BLOCK_M, BLOCK_F)
    return tile.to(u.dtype).to(tl.float32)


@triton.jit
def mlp_forward_described_kernel(
    x, up, up_bias, down, down_bias, residual, u, out, n_member, n_row, d_ff, d_model, u_width, up_bias_stride, down_bias_stride,
    gain, norm_bias, normed, stats, gain_stride, norm_bias_stride, eps,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    HAS_NORM: tl.constexpr, RMS: tl.constexpr, NORM_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """`mlp_forward_kernel` of descriptors x, up, down, residual, u, out and normed; rows of x stay in shared memory.

    d_ff is a multiple of BLOCK_F, or the last block of u would run on into the values, or another program's rows.
    """
    n_block = tl.cdiv(n_row, BLOCK_M)
    i_member, first_row = tl.program_id(0) // n_block, tl.program_id(0) % n_block * BLOCK_M
    member = i_member.to(tl.int64)
    up_bias += member * up_bias_stride
    b_x = x.load([i_member, first_row, 0]).reshape(BLOCK_M, BLOCK_D)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, d_ff, BLOCK_F):
        gate = _stored_columns(
            b_x, up, up_bias, u, i_member, first_row, start, d_ff, HAS_BIAS, BLOCK_M, BLOCK_F, BLOCK_D, DOT
        )
        b_h, _ = activation_and_slope(gate, ACTIVATION)
        if GATED:
            b_h *= _stored_columns(
                b_x,
                up,
                up_bias,
                u,
                i_member,
                first_row,
                d_ff + start,
                u_width,
                HAS_BIAS,
                BLOCK_M,
                BLOCK_F,
                BLOCK_D,
                DOT,
            )
        b_down = down.load([i_member, start, 0]).reshape(BLOCK_F, BLOCK_N)
        if DOT != "cast":
            b_h = b_h.to(b_down.dtype)
        total = dot(b_h, b_down, total, DOT)
    finish_described(
        total, down_bias + member * down_bias_stride, residual, out, gain + member * gain_stride,
        norm_bias + member * norm_bias_stride, normed, stats, i_member, n_member, first_row, 0, n_row, d_model, eps,
        HAS_BIAS, HAS_RESIDUAL, HAS_NORM, RMS, NORM_BIAS, BLOCK_M, BLOCK_N // 2,
    )  # fmt: skip


@triton.jit
def _up_columns(
    x, weight, bias, u, i_member, first_row, first_column, n_row, d_in, n_column, u_width,
    HAS_BIAS: tl.constexpr, DESCRIBED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """A tile of x W + b, columns below n_column, rounded as it is stored in u."""
    tile, _ = product_tile(
        x, weight, i_member, d_in, u_width, first_row, first_column, 0, d_in, n_row, n_column, 0,
        False, False, "", False, False, DESCRIBED, BLOCK_M, BLOCK_N, BLOCK_K, DOT,
    )  # fmt: skip
    if HAS_BIAS:
        tile += load_columns(bias, first_column, n_column, BLOCK_N)
    o_row, o_column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    mask = (first_row + o_row < n_row)[:, None] & (first_column + o_column < n_column)[None, :]
    p_u = u + tl.cast(first_row, tl.int64) * u_width + first_column + o_row[:, None] * u_width + o_column[None, :]
    stored = tile.to(u.dtype.element_ty)
    tl.store(p_u, stored, mask=mask)
    return stored.to(tl.float32)


@triton.jit
def up_forward_kernel(
    x, weight, bias, u, hidden, n_row, d_in, d_ff, u_width, weight_stride, bias_stride,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, DESCRIBED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """u = x W + b and h = act(u), a tile of columns of h at a time; x and weight are descriptors where DESCRIBED."""
    n_tile, n_block = tl.cdiv(d_ff, BLOCK_N), tl.cdiv(n_row, BLOCK_M)
    i_member, i_tile = tl.program_id(0) // (n_tile * n_block), tl.program_id(0) % (n_tile * n_block)
    first_row, first_column = i_tile // n_tile * BLOCK_M, i_tile % n_tile * BLOCK_N
    member = i_member.to(tl.int64)
    if not DESCRIBED:
        x += member * n_row * d_in
        weight += member * weight_stride
    u += member * n_row * u_width
    bias += member * bias_stride
    gate = _up_columns(
        x, weight, bias, u, i_member, first_row, first_column, n_row, d_in, d_ff, u_width,
        HAS_BIAS, DESCRIBED, BLOCK_M, BLOCK_N, BLOCK_K, DOT,
    )  # fmt: skip
    b_h, _ = activation_and_slope(gate, ACTIVATION)
    if GATED:
        if DESCRIBED:
            value = _up_columns(
                x, weight, bias, u, i_member, first_row, d_ff + first_column, n_row, d_in, u_width, u_width,
                HAS_BIAS, DESCRIBED, BLOCK_M, BLOCK_N, BLOCK_K, DOT,
            )  # fmt: skip
        else:
            value = _up_columns(
                x, weight + d_ff, bias + d_ff, u + d_ff, i_member, first_row, first_column, n_row, d_in, d_ff, u_width,
                HAS_BIAS, DESCRIBED, BLOCK_M, BLOCK_N, BLOCK_K, DOT,
            )  # fmt: skip
        b_h *= value
    store_tile(hidden + member * n_row * d_ff, b_h, first_row, first_column, n_row, d_ff, BLOCK_M, BLOCK_N)


@triton.jit
def _half_of_grad_u(
    half, u, grad_u, i_member, first_row, first_column, d_ff, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    BLOCK_M: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    b_act, b_slope = activation_and_slope(load_half(u, i_member, first_row, first_column, BLOCK_M, HALF), ACTIVATION)
    if GATED:
        store_half(grad_u, half * b_act, i_member, first_row, d_ff + first_column, BLOCK_M, HALF)
        half *= load_half(u, i_member, first_row, d_ff + first_column, BLOCK_M, HALF)
    store_half(grad_u, half * b_slope, i_member, first_row, first_column, BLOCK_M, HALF)


@triton.jit
def down_backward_kernel(
    grad_out, grad_columns, u, hidden, weight, grad_u, grad_weight, grad_bias, n_member, n_row, d_ff, d_model, u_width, h_width,
    n_split, span, weight_stride, grad_weight_stride, grad_weight_split, grad_bias_stride, grad_bias_split,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr, STORED: tl.constexpr, DESCRIBED: tl.constexpr,
    X_M: tl.constexpr, X_N: tl.constexpr, W_M: tl.constexpr, W_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Tiles of dW_down = h^T dout, then of du. hidden: h where it is STORED, else u; grad_columns: see `linear_backward_kernel`.

    Where DESCRIBED, d_ff is a multiple of X_N: a block of the gate's columns beyond it would be the value's.
    """
    program = tl.program_id(0)
    n_tile_w = tl.cdiv(d_ff, W_M) * tl.cdiv(d_model, W_N) * n_split
    if program < n_member * n_tile_w:
        i_member, i_tile = program // n_tile_w, program % n_tile_w
        if not DESCRIBED:
            hidden += i_member.to(tl.int64) * n_row * h_width
            grad_columns += i_member.to(tl.int64) * n_row * d_model
        weight_gradient_tile(
            hidden, grad_columns, grad_weight, grad_bias, i_member, i_tile, n_split, span, n_row, d_ff, d_model, h_width, d_ff,
            grad_weight_stride, grad_weight_split, grad_bias_stride, grad_bias_split,
            HAS_BIAS, "" if STORED else ACTIVATION, GATED and not STORED, DESCRIBED, W_M, W_N, BLOCK_K, DOT,
        )  # fmt: skip
    else:
        program -= n_member * n_tile_w
        n_tile, n_block = tl.cdiv(d_ff, X_N), tl.cdiv(n_row, X_M)
        i_member, i_tile = program // (n_tile * n_block), program % (n_tile * n_block)
        first_row, first_column = i_tile // n_tile * X_M, i_tile % n_tile * X_N
        member = i_member.to(tl.int64)
        if not DESCRIBED:
            grad_out += member * n_row * d_model
            weight += member * weight_stride
        tile, _ = product_tile(
            grad_out, weight, i_member, d_model, d_model, first_row, first_column, 0, d_model, n_row, d_ff, 0,
            False, True, "", False, False, DESCRIBED, X_M, X_N, BLOCK_K, DOT,
        )  # fmt: skip
        if DESCRIBED:
            left, right = halves(tile, X_M, X_N // 2)
            _half_of_grad_u(left, u, grad_u, i_member, first_row, first_column, d_ff, ACTIVATION, GATED, X_M, X_N // 2)
            _half_of_grad_u(
                right, u, grad_u, i_member, first_row, first_column + X_N // 2, d_ff, ACTIVATION, GATED, X_M, X_N // 2
            )
        else:
            o_row, o_column = tl.arange(0, X_M), tl.arange(0, X_N)
            mask = (first_row + o_row < n_row)[:, None] & (first_column + o_column < d_ff)[None, :]
            offset = o_row[:, None] * u_width + o_column[None, :]  # [X_M, X_N]
            begin = (member * n_row + first_row) * u_width + first_column
            u += begin
            b_act, b_slope = activation_and_slope(tl.load(u + offset, mask=mask, other=0.0).to(tl.float32), ACTIVATION)
            p_grad = grad_u + begin + offset
            if GATED:
                b_value = tl.load(u + d_ff + offset, mask=mask, other=0.0).to(tl.float32)
                tl.store(p_grad + d_ff, (tile * b_act).to(grad_u.dtype.element_ty), mask=mask)
                tile *= b_value
            tl.store(p_grad, (tile * b_slope).to(grad_u.dtype.element_ty), mask=mask)


def _whole_tiles(
    n_row: int, d_in: int, d_model: int, dtype: torch.dtype, target: str, u_width: int, gated: bool
) -> tuple[Tiles, int]:
    """Tiles of whole rows of out, and how many columns of u to form at a time: of a gated one half, for there are two."""
    tiles = norm_tiles_for(n_row, d_model, dtype, target, d_in, d_model, u_width)
    if target == "interpreter" or dtype == torch.float32:  # x is read from the cache for each tile of u
        return tiles, 32
    columns = 32 if target.startswith("gfx") or target == "sm_120" else 64
    return tiles, columns // 2 if gated else columns


def mlp_forward(
    x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, residual: Tensor | None,
    activation: str, norm: Norm | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """(out, u, h) of the MLP; u and h are what `mlp_backward` needs, h None where it is formed again. Weights may have any
    member stride.

    norm: what to norm out by, too, if out has at most WIDEST_TILE columns.
    """
    if handed_over("mlp_forward", x):
        return *eager.mlp_forward(x, up, up_bias, down, down_bias, residual, activation, norm), None
    n_member, n_row, d_in = x.shape
    _, d_ff, d_model = down.shape
    u, gated, target = x.new_empty(n_member, n_row, up.shape[2]), activation in _GATED, target_of(x.device)
    kinds = {
        "ACTIVATION": activation,
        "GATED": gated,
        "HAS_BIAS": down_bias is not None,
        "DOT": dot_mode(x.dtype, target),
    }
    of_up_bias = (up_bias, up_bias.stride(0)) if up_bias is not None else (x, 0)
    is_described = describable(target, x, up, down, residual, u, None if norm is None else norm.normed)  # and so is out
    gate = ("gated",) if gated else ()
    chosen = None  # of the one launch by descriptors; () where the table has two launches instead
    if is_described and max(d_in, d_model) <= WIDEST_TILE:
        chosen = choose("mlp forward", target, x.dtype, max(d_in, d_model), *gate)
    if max(d_in, d_model) > WIDEST_TILE or chosen == ():
        hidden = x.new_empty(n_member, n_row, d_ff)
        if is_described:
            tiles = tiles_of("mlp up", n_row, d_ff, x.dtype, target, d_in, *gate, least=64)
        else:
            # gate and value: half a tile, or registers spill
            widest = (32 if x.dtype == torch.float32 else 64) if gated else 128
            tiles = tiles_for(n_row, min(d_ff, widest), x.dtype, target, u.shape[2], d_in)
        launch(
            up_forward_kernel,
            (n_member * cdiv(n_row, tiles.BLOCK_M) * cdiv(d_ff, tiles.BLOCK_N),),
            described(x, tiles.BLOCK_M, tiles.BLOCK_K) if is_described else x,
            described(up, tiles.BLOCK_K, tiles.BLOCK_N) if is_described else up, of_up_bias[0], u, hidden,
            n_row, d_in, d_ff, u.shape[2], up.stride(0), of_up_bias[1],
            reads=[x, up, up_bias],
            writes=[u, hidden],
            flops=2 * n_member * n_row * d_in * u.shape[2],
            DESCRIBED=is_described,
            **kinds,
            **tiles.options(),
        )  # fmt: skip
        return linear_forward(hidden, down, down_bias, residual, norm), u, hidden
    out = x.new_empty(n_member, n_row, d_model)
    normed, constants = norm_arguments(norm, x)
    of_down_bias = (down_bias, down_bias.stride(0)) if down_bias is not None else (x, 0)
    declared = dict(
        reads=[x, up, up_bias, down, down_bias, None if residual is x else residual, *(norm[:2] if norm else ())],
        writes=[u, out, *(norm[2:4] if norm else ())],
        flops=2 * n_member * n_row * (d_in * u.shape[2] + d_ff * d_model),
        HAS_RESIDUAL=residual is not None,
        BLOCK_D=max(16, next_power_of_2(d_in)),
        **kinds,
        **constants,
    )
    if chosen:
        columns, *rest = chosen
        if d_ff % columns == 0:
            tiles = Tiles(rest[0], max(64, next_power_of_2(d_model)), 0, *rest[1:])
            half = tiles.BLOCK_M, tiles.BLOCK_N // 2
            gain, norm_bias, rows, *others = normed
            options = tiles.options()
            del options["BLOCK_K"]
            launch(
                mlp_forward_described_kernel,
                (n_member * cdiv(n_row, tiles.BLOCK_M),),
                described(x, tiles.BLOCK_M, declared["BLOCK_D"]), described(up, declared["BLOCK_D"], columns), of_up_bias[0],
                described(down, columns, tiles.BLOCK_N), of_down_bias[0], described(out if residual is None else residual, *half),
                described(u, tiles.BLOCK_M, columns), described(out, *half), n_member, n_row, d_ff, d_model, u.shape[2],
                of_up_bias[1], of_down_bias[1],
                gain, norm_bias, described(out if norm is None else rows, *half), *others,
                BLOCK_F=columns, **declared, **options,
            )  # fmt: skip
            return out, u, None
    tiles, columns = _whole_tiles(n_row, d_in, d_model, x.dtype, target, u.shape[2], gated)
    launch(
        mlp_forward_kernel,
        (cdiv(n_row, tiles.BLOCK_M), n_member),
        x, up, of_up_bias[0], down, of_down_bias[0], residual if residual is not None else x, u, out,
        n_row, d_in, d_ff, d_model, u.shape[2], up.stride(0), of_up_bias[1], down.stride(0), of_down_bias[1], *normed,
        HELD=x.dtype != torch.float32, BLOCK_F=columns, **declared, **tiles.options(),
    )  # fmt: skip
    return out, u, None


def down_job(grad_out: Tensor, u: Tensor, hidden: Tensor | None, down: Tensor, activation: str) -> Job:
    """How the first launch of `mlp_backward` is cut."""
    (_, n_row, d_model), d_ff, target, dtype = grad_out.shape, down.shape[1], target_of(u.device), u.dtype
    widths, gated = (u.shape[2], d_model), activation in _GATED
    if describable(target, grad_out, u, hidden, down):
        conditions = (*(("gated",) if gated else ()), *(("stored",) if hidden is not None else ()))
        job = backward_job(
            "mlp backward", n_row, d_ff, d_model, dtype, target, True, width=d_model, conditions=conditions
        )
        if job.described and d_ff % job.of_x.BLOCK_N == 0 and d_ff % job.of_weight.BLOCK_M == 0:
            return job
    # Gate and value beside the sums, or what erf takes: half a tile, or registers spill.
    widest = 128 if activation == "gelu" else 64
    of_u = tiles_for(n_row, min(d_ff, widest), dtype, target, *widths)
    of_weight = tiles_for(d_ff, min(d_model, widest), dtype, target, *widths)
    return backward_job("mlp backward", n_row, d_ff, d_model, dtype, target, False, of_u, of_weight)


def _down_backward(
    grad_out: Tensor, u: Tensor, hidden: Tensor | None, down: Tensor, activation: str, grad_down: Tensor,
    grad_down_bias: Tensor | None, parts: Tensor | None,
) -> Tensor:  # fmt: skip
    """grad_u; the gradients of down and its bias are written, or their parts."""
    n_member, n_row, _ = u.shape
    _, d_ff, d_model = down.shape
    grad_u = torch.empty_like(u)
    job = down_job(grad_out, u, hidden, down, activation)
    summed_here = parts is None and job.n_split > 1
    if summed_here:
        parts = weight_parts(job.n_split, down, grad_down_bias is not None)
    places, strides = gradient_places(parts, grad_down, grad_down_bias, u)
    read = u if hidden is None else hidden
    launch(
        down_backward_kernel,
        (job.programs(n_member, n_row, d_ff, d_model),),
        *job.operands(grad_out, u, read, down, grad_u), *places,
        n_member, n_row, d_ff, d_model, u.shape[2], read.shape[2], job.n_split, job.span(n_row),
        down.stride(0), *strides,
        reads=[grad_out, u, hidden, down],
        writes=[grad_u, *([grad_down, grad_down_bias] if parts is None else [parts])],
        flops=4 * n_member * n_row * d_ff * d_model,
        HAS_BIAS=grad_down_bias is not None,
        ACTIVATION=activation,
        GATED=activation in _GATED,
        STORED=hidden is not None,
        DOT=dot_mode(u.dtype, target_of(u.device)),
        **job.options,
    )  # fmt: skip
    if summed_here and parts is not None:
        sum_splits(parts, grad_down, grad_down_bias)
    return grad_u


def mlp_backward(
    grad_out: Tensor, x: Tensor, up: Tensor, down: Tensor, u: Tensor, activation: str,
    grad_up: Tensor | None = None, grad_up_bias: Tensor | None = None,
    grad_down: Tensor | None = None, grad_down_bias: Tensor | None = None, norm: NormGradient | None = None,
    *, has_bias: bool = True, hidden: Tensor | None = None, parts_up: Tensor | None = None, parts_down: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:  # fmt: skip
    """(grad_x, grad_up, grad_up_bias, grad_down, grad_down_bias); those of the weights are written where they are given.

    hidden: h of `mlp_forward`. norm, parts_up, parts_down (of `linear_job` and `down_job`): as in `linear_backward`.
    """
    if grad_down is None:
        grad_down = torch.empty(down.shape, dtype=down.dtype, device=x.device)
    if grad_down_bias is None and has_bias:
        grad_down_bias = torch.empty(len(down), down.shape[2], dtype=down.dtype, device=x.device)
    if not has_bias:
        grad_down_bias = None
    if handed_over("mlp_backward", x):
        grad_u = eager.mlp_backward(grad_out, u, down, activation, grad_down, grad_down_bias, parts_down)
    else:
        grad_u = _down_backward(grad_out, u, hidden, down, activation, grad_down, grad_down_bias, parts_down)
    grad_x, grad_up, grad_up_bias = linear_backward(
        grad_u, x, up, grad_up, grad_up_bias, norm, has_bias=has_bias, parts=parts_up
    )
    return grad_x, grad_up, grad_up_bias, grad_down, grad_down_bias


@operator()
def mlp_op(
    x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, residual: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    out, u, hidden = mlp_forward(x, up, up_bias, down, down_bias, residual, activation)
    return out, u, hidden if hidden is not None else x.new_empty(0)


@operator()
def mlp_gradients(
    grad_out: Tensor, x: Tensor, up: Tensor, down: Tensor, u: Tensor, hidden: Tensor, activation: str, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    kept = hidden if hidden.dim() == 3 else None
    gradients = mlp_backward(grad_out.contiguous(), x, up, down, u, activation, has_bias=has_bias, hidden=kept)
    return tuple(g if g is not None else x.new_empty(0) for g in gradients)  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, up, up_bias, down, _, residual, activation = inputs
    _, u, hidden = output
    ctx.save_for_backward(x, up, down, u, hidden)
    ctx.mark_non_differentiable(u, hidden)
    ctx.activation, ctx.has_bias, ctx.has_residual = activation, up_bias is not None, residual is not None


def _gradients(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, up, down, u, hidden = ctx.saved_tensors
    grad_x, *weights = mlp_gradients(grad_out, x, up, down, u, hidden, ctx.activation, ctx.has_bias)
    grad_up, grad_up_bias, grad_down, grad_down_bias = weights
    biases = (grad_up_bias, grad_down_bias) if ctx.has_bias else (None, None)
    return grad_x, grad_up, biases[0], grad_down, biases[1], grad_out if ctx.has_residual else None, None


mlp_op.register_autograd(_gradients, setup_context=_save)


def mlp(
    x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, activation: str = "gelu",
    residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Up-projection, activation, down-projection, and the residual added, for each member of a fleet.

    x: [M, R, d], up: [M, d, F], or [M, d, 2 F] for a gated activation, up_bias: [M, F or 2 F], down: [M, F, d],
    down_bias: [M, d], residual: [M, R, d] -> [M, R, d]; of a single model all without M. Biases are given both or neither.
    activation: "gelu" (tanh form), "gelu_exact", "swiglu" or "geglu".
    float32, float16 or bfloat16, sums in float32. Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    check_tensors({"x": x, "up": up, "down": down}, {"up_bias": up_bias, "down_bias": down_bias, "residual": residual})
    check_first("x", x)
    members = check_members("x", x)
    check_filled("x", x, column=-1)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is unknown; known are {', '.join(ACTIVATIONS)}.")
    if (up_bias is None) != (down_bias is None):
        raise ValueError("up_bias and down_bias must be given both or neither; pass zeros for the one that is missing.")
    check("down", down, (*members, None, None), x)
    check_filled("down", down, row=-2, column=-1)
    width = down.shape[-2] * (2 if activation in _GATED else 1)
    check("up", up, (*members, x.shape[-1], width), x)
    check("up_bias", up_bias, (*members, width), x)
    check("down_bias", down_bias, (*members, down.shape[-1]), x)
    check("residual", residual, (*x.shape[:-1], down.shape[-1]), x)
    if not members:
        x, up, up_bias, down, down_bias, residual = as_fleet(x, up, up_bias, down, down_bias, residual)
    residual = residual.contiguous() if residual is not None else None
    weights = map(rows_contiguous, (up, up_bias, down, down_bias))
    out = mlp_op(x.contiguous(), *weights, residual, activation)[0]
    return out if members else out.squeeze(0)
