"""The MLP of a fleet: out = act(x W_up + b_up) W_down + b_down (+ residual), one member's weights for each member's rows.

x [M, R, d], W_up [M, d, F] ("gelu", "gelu_exact") or [M, d, 2 F] ("swiglu", "geglu": gate, then value; Shazeer 2020),
W_down [M, F, d], residual and out [M, R, d]. "gelu" is the tanh form of GPT-2, as is the gate of "geglu".

What is kept for the backward is u = x W_up + b_up alone: act(u) is formed again wherever it is read, which costs a few
instructions a number and saves writing and reading R F of them. The product with W_down takes act(u) as its operand; the
gradient of u is the epilogue of dout W_down^T.

Launches: 1 forward where rows of x and out are at most 256 wide (a program holds whole rows of out and forms u by the way),
else 2 (u; out); 2 backward (du, dW_down, db_down; dx, dW_up, db_up). Programs of the first backward launch have two jobs
by index: tiles of du, and tiles of dW_down. Each output element has one writer.
Bytes at least, of an item size s and U columns of u (F or 2 F): forward s (R U + 3 R d) + the weights, with 2 launches
s (2 R U + 3 R d); backward s (4 R U + 3 R d) + the weights twice.

Not run on hardware: bfloat16 is checked by compilation and, cast up, in the interpreter.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyscaling.kernels.launch import (
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
from pyscaling.kernels.layer_norm import WIDEST_TILE, Norm, NormGradient
from pyscaling.kernels.linear import (
    Tiles,
    add_bias_and_residual,
    linear_backward,
    linear_forward,
    matmul_tile,
    norm_arguments,
    norm_tile,
    norm_tiles_for,
    store_tile,
    store_weight_gradient,
    tiles_for,
)

ACTIVATIONS = ("gelu", "gelu_exact", "swiglu", "geglu")
_GATED = ("swiglu", "geglu")


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
def activated_matmul_tile(
    u, u_row_stride, u_inner_stride, value_offset, b_pointer, b_inner_stride, first_row, first_column,
    n_row, n_column, n_inner, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """act(u) b at [first_row, first_column], in float32; b has contiguous columns."""
    o_row, o_column, o_inner = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    m_row, m_column = first_row + o_row < n_row, first_column + o_column < n_column
    u += tl.cast(first_row, tl.int64) * u_row_stride
    b_pointer += first_column
    o_u = o_row[:, None] * u_row_stride + o_inner[None, :] * u_inner_stride
    o_b = o_inner[:, None] * b_inner_stride + o_column[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, n_inner, BLOCK_K):
        m_inner = start + o_inner < n_inner
        m_u = m_row[:, None] & m_inner[None, :]
        b_h, _ = activation_and_slope(
            tl.load(u + o_u, mask=m_u, other=0.0).to(tl.float32), ACTIVATION
        )  # [BLOCK_M, BLOCK_K]
        if GATED:
            b_h *= tl.load(u + value_offset + o_u, mask=m_u, other=0.0).to(tl.float32)
        b_b = tl.load(b_pointer + o_b, mask=m_inner[:, None] & m_column[None, :], other=0.0)  # [BLOCK_K, BLOCK_N]
        if DOT != "cast":
            b_h = b_h.to(b_b.dtype)
        total = dot(b_h, b_b, total, DOT)
        u += BLOCK_K * u_inner_stride
        b_pointer += BLOCK_K * b_inner_stride
    return total


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
        tile = matmul_tile(
            x,
            d_in,
            1,
            weight,
            u_width,
            1,
            first_row,
            first_column,
            n_row,
            u_width,
            d_in,
            BLOCK_M,
            BLOCK_F,
            BLOCK_K,
            DOT,
        )
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
            total, gain, norm_bias, normed, stats, first_row, n_row, d_model, gain_stride, norm_bias_stride, eps,
            RMS, NORM_BIAS, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit
def down_forward_kernel(
    u, weight, bias, residual, out, n_row, d_ff, d_model, u_width, weight_stride, bias_stride,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    i_tile, i_member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    n_tile = tl.cdiv(d_model, BLOCK_N)
    first_row, first_column = i_tile // n_tile * BLOCK_M, i_tile % n_tile * BLOCK_N
    tile = activated_matmul_tile(
        u + i_member * n_row * u_width, u_width, 1, d_ff, weight + i_member * weight_stride, d_model, first_row, first_column,
        n_row, d_model, d_ff, ACTIVATION, GATED, BLOCK_M, BLOCK_N, BLOCK_K, DOT,
    )  # fmt: skip
    offset = i_member * n_row * d_model
    tile = add_bias_and_residual(
        tile, bias + i_member * bias_stride, residual + offset, first_row, first_column, n_row, d_model,
        HAS_BIAS, HAS_RESIDUAL, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    store_tile(out + offset, tile, first_row, first_column, n_row, d_model, BLOCK_M, BLOCK_N)


@triton.jit
def down_backward_kernel(
    grad_out, u, weight, grad_u, grad_weight, grad_bias, n_row, d_ff, d_model, u_width, n_tile_u,
    weight_stride, grad_weight_stride, grad_bias_stride,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    U_M: tl.constexpr, U_N: tl.constexpr, W_M: tl.constexpr, W_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    i_tile, i_member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    grad_out += i_member * n_row * d_model
    u += i_member * n_row * u_width
    if i_tile < n_tile_u:
        n_tile = tl.cdiv(d_ff, U_N)
        first_row, first_column = i_tile // n_tile * U_M, i_tile % n_tile * U_N
        tile = matmul_tile(
            grad_out, d_model, 1, weight + i_member * weight_stride, 1, d_model, first_row, first_column,
            n_row, d_ff, d_model, U_M, U_N, BLOCK_K, DOT,
        )  # fmt: skip
        o_row, o_column = tl.arange(0, U_M), tl.arange(0, U_N)
        mask = (first_row + o_row < n_row)[:, None] & (first_column + o_column < d_ff)[None, :]
        begin = tl.cast(first_row, tl.int64) * u_width + first_column
        offset = o_row[:, None] * u_width + o_column[None, :]  # [U_M, U_N]
        u += begin
        b_act, b_slope = activation_and_slope(tl.load(u + offset, mask=mask, other=0.0).to(tl.float32), ACTIVATION)
        p_grad = grad_u + i_member * n_row * u_width + begin + offset
        if GATED:
            b_value = tl.load(u + d_ff + offset, mask=mask, other=0.0).to(tl.float32)
            tl.store(p_grad + d_ff, (tile * b_act).to(grad_u.dtype.element_ty), mask=mask)
            tile *= b_value
        tl.store(p_grad, (tile * b_slope).to(grad_u.dtype.element_ty), mask=mask)
    else:
        n_tile = tl.cdiv(d_model, W_N)
        first_row, first_column = (i_tile - n_tile_u) // n_tile * W_M, (i_tile - n_tile_u) % n_tile * W_N
        tile_of_weight = activated_matmul_tile(
            u, 1, u_width, d_ff, grad_out, d_model, first_row, first_column,
            d_ff, d_model, n_row, ACTIVATION, GATED, W_M, W_N, BLOCK_K, DOT,
        )  # fmt: skip
        store_weight_gradient(
            grad_weight + i_member * grad_weight_stride, grad_bias + i_member * grad_bias_stride, tile_of_weight, grad_out,
            first_row, first_column, d_ff, d_model, n_row, HAS_BIAS, W_M, W_N, BLOCK_K,
        )  # fmt: skip


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
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out, u) of the MLP; u is what `mlp_backward` needs. Weights may have any member stride.

    norm: what to norm out by, too, if out has at most WIDEST_TILE columns.
    """
    n_member, n_row, d_in = x.shape
    _, d_ff, d_model = down.shape
    if max(d_in, d_model) <= WIDEST_TILE:
        u, out = x.new_empty(n_member, n_row, up.shape[2]), x.new_empty(n_member, n_row, d_model)
        gated, target = activation in _GATED, target_of(x.device)
        tiles, columns = _whole_tiles(n_row, d_in, d_model, x.dtype, target, u.shape[2], gated)
        normed, constants = norm_arguments(norm, x)
        launch(
            mlp_forward_kernel,
            (cdiv(n_row, tiles.BLOCK_M), n_member),
            x, up, up_bias if up_bias is not None else x, down, down_bias if down_bias is not None else x,
            residual if residual is not None else x, u, out, n_row, d_in, d_ff, d_model, u.shape[2],
            up.stride(0), up_bias.stride(0) if up_bias is not None else 0,
            down.stride(0), down_bias.stride(0) if down_bias is not None else 0, *normed,
            reads=[x, up, up_bias, down, down_bias, None if residual is x else residual, *(norm[:2] if norm else ())],
            writes=[u, out, *(norm[2:4] if norm else ())],
            flops=2 * n_member * n_row * (d_in * u.shape[2] + d_ff * d_model),
            HAS_BIAS=down_bias is not None,
            HAS_RESIDUAL=residual is not None,
            ACTIVATION=activation,
            GATED=activation in _GATED,
            HELD=x.dtype != torch.float32,
            BLOCK_F=columns,
            BLOCK_D=max(16, triton.next_power_of_2(d_in)),
            DOT=dot_mode(x.dtype, target_of(x.device)),
            **constants,
            **tiles._asdict(),
        )  # fmt: skip
        return out, u
    assert norm is None, "a norm follows a product whose tiles hold whole rows"
    u = linear_forward(x, up, up_bias)
    out = x.new_empty(n_member, n_row, d_model)
    tiles = tiles_for(n_row, d_model, x.dtype, target_of(x.device), u.shape[2], d_model)
    launch(
        down_forward_kernel,
        (cdiv(n_row, tiles.BLOCK_M) * cdiv(d_model, tiles.BLOCK_N), n_member),
        u, down, down_bias if down_bias is not None else u, residual if residual is not None else u, out,
        n_row, d_ff, d_model, u.shape[2], down.stride(0), down_bias.stride(0) if down_bias is not None else 0,
        reads=[u, down, down_bias, residual],
        writes=[out],
        flops=2 * n_member * n_row * d_ff * d_model,
        HAS_BIAS=down_bias is not None,
        HAS_RESIDUAL=residual is not None,
        ACTIVATION=activation,
        GATED=activation in _GATED,
        DOT=dot_mode(x.dtype, target_of(x.device)),
        **tiles._asdict(),
    )  # fmt: skip
    return out, u


def mlp_backward(
    grad_out: Tensor, x: Tensor, up: Tensor, down: Tensor, u: Tensor, activation: str,
    grad_up: Tensor | None = None, grad_up_bias: Tensor | None = None,
    grad_down: Tensor | None = None, grad_down_bias: Tensor | None = None, norm: NormGradient | None = None,
    *, has_bias: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:  # fmt: skip
    """(grad_x, grad_up, grad_up_bias, grad_down, grad_down_bias); those of the weights are written where they are given.

    norm: the norm that made x of z, as in `linear_backward`; grad_x is then the gradient of z.
    """
    n_member, n_row, _ = x.shape
    _, d_ff, d_model = down.shape
    grad_u = torch.empty_like(u)
    if grad_down is None:
        grad_down = torch.empty(down.shape, dtype=down.dtype, device=x.device)
    if grad_down_bias is None and has_bias:
        grad_down_bias = torch.empty(n_member, d_model, dtype=down.dtype, device=x.device)
    target = target_of(x.device)
    # Gate and value beside the sums, or what erf takes: half a tile, or registers spill.
    widest = 128 if activation == "gelu" else 64
    of_u, of_weight = (
        tiles_for(n_row, min(d_ff, widest), x.dtype, target, u.shape[2], d_model),
        tiles_for(d_ff, min(d_model, widest), x.dtype, target, u.shape[2], d_model),
    )
    n_tile_u = cdiv(n_row, of_u.BLOCK_M) * cdiv(d_ff, of_u.BLOCK_N)
    launch(
        down_backward_kernel,
        (n_tile_u + cdiv(d_ff, of_weight.BLOCK_M) * cdiv(d_model, of_weight.BLOCK_N), n_member),
        grad_out, u, down, grad_u, grad_down, grad_down_bias if has_bias else u,
        n_row, d_ff, d_model, u.shape[2], n_tile_u, down.stride(0), grad_down.stride(0),
        grad_down_bias.stride(0) if grad_down_bias is not None else 0,
        reads=[grad_out, u, down],
        writes=[grad_u, grad_down, grad_down_bias if has_bias else None],
        flops=4 * n_member * n_row * d_ff * d_model,
        HAS_BIAS=has_bias,
        ACTIVATION=activation,
        GATED=activation in _GATED,
        U_M=of_u.BLOCK_M,
        U_N=of_u.BLOCK_N,
        W_M=of_weight.BLOCK_M,
        W_N=of_weight.BLOCK_N,
        BLOCK_K=of_u.BLOCK_K,
        DOT=dot_mode(x.dtype, target_of(x.device)),
        num_warps=max(of_u.num_warps, of_weight.num_warps),
        num_stages=of_u.num_stages,
        all_registers=of_u.all_registers,
    )  # fmt: skip
    grad_x, grad_up, grad_up_bias = linear_backward(grad_u, x, up, grad_up, grad_up_bias, norm, has_bias=has_bias)
    return grad_x, grad_up, grad_up_bias, grad_down, grad_down_bias


@operator()
def mlp_op(
    x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, residual: Tensor | None,
    activation: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return mlp_forward(x, up, up_bias, down, down_bias, residual, activation)


@operator()
def mlp_gradients(
    grad_out: Tensor, x: Tensor, up: Tensor, down: Tensor, u: Tensor, activation: str, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = mlp_backward(grad_out.contiguous(), x, up, down, u, activation, has_bias=has_bias)
    return tuple(g if g is not None else x.new_empty(0) for g in gradients)  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, up, up_bias, down, _, residual, activation = inputs
    ctx.save_for_backward(x, up, down, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.activation, ctx.has_bias, ctx.has_residual = activation, up_bias is not None, residual is not None


def _gradients(ctx: Any, grad_out: Tensor, _grad_u: Tensor) -> tuple[Tensor | None, ...]:
    x, up, down, u = ctx.saved_tensors
    grad_x, *weights = mlp_gradients(grad_out, x, up, down, u, ctx.activation, ctx.has_bias)
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
    if x.dim() == 2:
        single = [t.unsqueeze(0) if t is not None else None for t in (x, up, up_bias, down, down_bias, residual)]
        return mlp(*single[:5], activation, single[5]).squeeze(0)  # type: ignore[arg-type]
    check_first("x", x)
    check("x", x, (None, None, None), x)
    check_filled("x", x, member=0, column=2)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is unknown; known are {', '.join(ACTIVATIONS)}.")
    if (up_bias is None) != (down_bias is None):
        raise ValueError("up_bias and down_bias must be given both or neither; pass zeros for the one that is missing.")
    n_member, _, d = x.shape
    check("down", down, (n_member, None, None), x)
    check_filled("down", down, row=1, column=2)
    width = down.shape[1] * (2 if activation in _GATED else 1)
    check("up", up, (n_member, d, width), x)
    check("up_bias", up_bias, (n_member, width), x)
    check("down_bias", down_bias, (n_member, down.shape[2]), x)
    check("residual", residual, (*x.shape[:2], down.shape[2]), x)
    residual = residual.contiguous() if residual is not None else None
    weights = map(rows_contiguous, (up, up_bias, down, down_bias))
    return mlp_op(x.contiguous(), *weights, residual, activation)[0]
