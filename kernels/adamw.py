"""AdamW (Loshchilov & Hutter 2019) for all weights of all members of a fleet, each clipped by its own gradient norm.

    norm = ||gradient||, a member fails if its norm or loss is not finite;  g = gradient / max(1, norm / clip)
    w *= 1 - rate decay;  m += (g - m) (1 - beta1);  v = beta2 v + (1 - beta2) g^2
    w -= rate / (1 - beta1^n) m / (sqrt(v / (1 - beta2^n)) + eps),  n = step + 1,  rate = learning_rate factor

weights, gradient, moments [M, P] float32. The first n_decayed columns are under decay; the others are not, and their rate is
multiplied by embedding_rate. Settings of a member are float64, for 1 - beta and 1 - beta^n are small differences.

Launches: 2. The first writes each program's part of the sum of squares [M, 3, parts]: of large, usual and tiny numbers
apart, scaled by powers of two as in Blue 1978, so that the norm is right wherever it is a float32 number itself
(torch.linalg.vector_norm gives inf from 1.8e19 and 0 below 1e-23). In the second every program sums its member's parts in
one order, so all agree on norm and life; the member's first writes norm, alive and failed_step. The others may read
`alive` before or after that: it only changes where the norm or loss says the same. Each element has one writer.
Bytes at least: 32 M P (gradient twice, weights and moments read and written), 2 M P more with a 16-bit copy.

Not run on hardware.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyscaling.kernels import eager
from pyscaling.kernels.launch import (
    cdiv,
    check,
    check_first,
    check_number,
    check_tensors,
    launch,
    next_power_of_2,
    operator,
    target_of,
)
from pyscaling.kernels.tiles import choose, handed_over

SETTINGS = ("learning_rate", "beta1", "beta2", "eps", "weight_decay", "clip")


@triton.jit
def adamw_norm_kernel(gradient, parts, n_parameter, BLOCK: tl.constexpr):
    i_part, n_part, i_member = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    large = tl.zeros([BLOCK], tl.float32)
    usual = tl.zeros([BLOCK], tl.float32)
    tiny = tl.zeros([BLOCK], tl.float32)
    gradient += i_member * n_parameter
    block = tl.full((), BLOCK, tl.int64)  # a member may hold more than 2^31 weights
    for i_block in range(i_part, tl.cdiv(n_parameter, BLOCK), n_part):
        o_column = i_block * block + tl.arange(0, BLOCK)
        g = tl.load(gradient + o_column, mask=o_column < n_parameter, other=0.0)
        is_large, is_tiny = tl.abs(g) > 1099511627776.0, tl.abs(g) < 9.094947017729282e-13  # 2^40, 2^-40
        g *= tl.where(is_large, 8.271806125530277e-25, tl.where(is_tiny, 1.2089258196146292e24, 1.0))  # 2^-80, 2^80
        square = g * g
        large += tl.where(is_large, square, 0.0)
        tiny += tl.where(is_tiny, square, 0.0)
        usual += tl.where(is_large | is_tiny, 0.0, square)  # NaN is neither
    p_part = parts + i_member * 3 * n_part + i_part
    tl.store(p_part, tl.sum(large, axis=0))
    tl.store(p_part + n_part, tl.sum(usual, axis=0))
    tl.store(p_part + 2 * n_part, tl.sum(tiny, axis=0))


@triton.jit
def adamw_update_kernel(
    weights, gradient, exp_avg, exp_avg_sq, cast, settings, clock, loss, alive, failed_step, parts, norms,
    n_parameter, n_decayed, n_part, embedding_rate, HAS_CAST: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i_program, n_member, i_member = tl.program_id(0), tl.num_programs(1), tl.program_id(1).to(tl.int64)
    o_part = tl.arange(0, PARTS)
    p_part = parts + i_member * 3 * n_part + o_part
    large = tl.sum(tl.load(p_part, mask=o_part < n_part, other=0.0), axis=0).to(tl.float64)
    usual = tl.sum(tl.load(p_part + n_part, mask=o_part < n_part, other=0.0), axis=0).to(tl.float64)
    tiny = tl.sum(tl.load(p_part + 2 * n_part, mask=o_part < n_part, other=0.0), axis=0).to(tl.float64)
    square = large * 1.461501637330903e48 + usual + tiny * 6.842277657836021e-49  # 2^160, 2^-160
    norm = tl.sqrt(square).to(tl.float32)
    member_loss = tl.load(loss + i_member).to(tl.float32)
    finite = (tl.abs(norm) < float("inf")) & (tl.abs(member_loss) < float("inf"))
    was_alive = tl.load(alive + i_member).to(tl.int1)
    step, factor = tl.load(clock), tl.load(clock + 1)
    if i_program == 0:
        tl.store(norms + i_member, norm)
        if was_alive & (not finite):
            tl.store(failed_step + i_member, step.to(tl.int64))
            tl.store(alive + i_member, False)
    if was_alive & finite:
        p_setting = settings + i_member
        rate = tl.load(p_setting) * factor
        beta1, beta2 = tl.load(p_setting + n_member), tl.load(p_setting + 2 * n_member)
        eps = tl.load(p_setting + 3 * n_member).to(tl.float32)
        decay = tl.load(p_setting + 4 * n_member)
        shrink = norm.to(tl.float64) / tl.load(p_setting + 5 * n_member)
        scale = (1.0 / tl.where(shrink > 1.0, shrink, 1.0)).to(tl.float32)
        correction1 = 1.0 - tl.exp((step + 1.0) * tl.log(beta1))
        correction2 = 1.0 - tl.exp((step + 1.0) * tl.log(beta2))
        root2 = tl.sqrt(correction2).to(tl.float32)
        stepsize = (rate / correction1).to(tl.float32)
        kept = (1.0 - rate * decay).to(tl.float32)  # share of a weight that decay leaves
        new1, new2, old2 = (1.0 - beta1).to(tl.float32), (1.0 - beta2).to(tl.float32), beta2.to(tl.float32)
        first = i_member * n_parameter
        block = tl.full((), BLOCK, tl.int64)
        for i_block in range(i_program, tl.cdiv(n_parameter, BLOCK), tl.num_programs(0)):
            o_column = i_block * block + tl.arange(0, BLOCK)
            mask = o_column < n_parameter
            o = first + o_column
            decays = o_column < n_decayed
            g = tl.load(gradient + o, mask=mask, other=0.0) * scale
            m = tl.load(exp_avg + o, mask=mask, other=0.0)
            v = tl.load(exp_avg_sq + o, mask=mask, other=0.0)
            w = tl.load(weights + o, mask=mask, other=0.0)
            m += (g - m) * new1
            v = v * old2 + g * g * new2
            w *= tl.where(decays, kept, 1.0)
            w -= tl.where(decays, stepsize, stepsize * embedding_rate) * (m / (tl.sqrt(v) / root2 + eps))
            tl.store(exp_avg + o, m, mask=mask)
            tl.store(exp_avg_sq + o, v, mask=mask)
            tl.store(weights + o, w, mask=mask)
            if HAS_CAST:
                tl.store(cast + o, w.to(cast.dtype.element_ty), mask=mask)


def adamw_update(
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
    """`adamw_step` without its checks."""
    if handed_over("adamw_update", flat):
        return eager.adamw_update(
            flat, gradient, exp_avg, exp_avg_sq, settings, clock, loss, alive, failed_step, n_decayed, embedding_rate, cast
        )  # fmt: skip
    n_member, n_parameter = flat.shape
    norm = torch.empty(n_member, dtype=torch.float32, device=flat.device)
    # A program reads its member's parts once for many blocks: no more programs than a large card holds at once.
    block, warps, at_once = choose("adamw", target_of(flat.device), flat.dtype, n_parameter)
    n_block = cdiv(n_parameter, block)
    # Whatever the number of members, or the norm's last bits would depend on it.
    n_part = max(1, min(n_block, at_once // 2))
    n_program = max(1, min(n_block, cdiv(at_once, max(1, n_member))))
    parts = torch.empty(n_member, 3, n_part, dtype=torch.float32, device=flat.device)
    launch(
        adamw_norm_kernel,
        (n_part, n_member),
        gradient, parts, n_parameter,
        reads=[gradient],
        writes=[parts],
        BLOCK=block,
        num_warps=warps,
    )  # fmt: skip
    launch(
        adamw_update_kernel,
        (n_program, n_member),
        flat, gradient, exp_avg, exp_avg_sq, cast if cast is not None else flat, settings, clock, loss, alive, failed_step,
        parts, norm, n_parameter, n_decayed, n_part, float(embedding_rate),
        reads=[flat, gradient, exp_avg, exp_avg_sq, settings, clock, loss, alive, parts],
        writes=[flat, exp_avg, exp_avg_sq, cast, norm],
        HAS_CAST=cast is not None,
        PARTS=next_power_of_2(n_part),
        BLOCK=block,
        num_warps=warps,
    )  # fmt: skip
    return norm


@operator(mutates=["flat", "exp_avg", "exp_avg_sq", "alive", "failed_step", "cast"])
def adamw_op(
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
    embedding_rate: float,
    cast: Tensor | None,
) -> Tensor:
    return adamw_update(
        flat, gradient, exp_avg, exp_avg_sq, settings, clock, loss, alive, failed_step, n_decayed, embedding_rate, cast
    )


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
    """One step of a fleet in place; returns the gradient norms before clipping, [M].

    flat, gradient, exp_avg, exp_avg_sq: [M, P] float32, contiguous. settings: [6, M] float64, rows in the order of SETTINGS.
    clock: [2] float64, the count of steps before this one and the schedule's factor on the rate; both stay on the device,
    so that a CUDA graph replays with their new values. loss: [M] of this step. A member whose norm or loss is not finite gets
    alive [M] (bool) False and failed_step [M] (int64) = step; from then on none of its numbers change. cast: [M, P] float16 or
    bfloat16, the new weights again. Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    check_number("n_decayed", n_decayed, whole=True)
    check_number("embedding_rate", embedding_rate)
    if not 0.0 <= embedding_rate < math.inf:
        raise ValueError(
            f"embedding_rate must be finite and not negative, got {embedding_rate}; 1 treats all weights alike."
        )
    check_tensors({"flat": flat})
    check("flat", flat, (None, None), flat, (torch.float32,))
    check_first("flat", flat)
    for name, tensor in (("gradient", gradient), ("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
        check(name, tensor, flat.shape, flat)
    check("cast", cast, flat.shape, flat, (torch.float16, torch.bfloat16))
    check("settings", settings, (len(SETTINGS), flat.shape[0]), flat, (torch.float64,))
    check("clock", clock, (2,), flat, (torch.float64,))
    check("loss", loss, (flat.shape[0],), flat, (torch.float32, torch.float16, torch.bfloat16))
    check("alive", alive, (flat.shape[0],), flat, (torch.bool,))
    check("failed_step", failed_step, (flat.shape[0],), flat, (torch.int64,))
    for name, tensor in {
        "flat": flat, "gradient": gradient, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "settings": settings,
        "clock": clock, "loss": loss, "alive": alive, "failed_step": failed_step, "cast": cast,
    }.items():  # fmt: skip
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous, got strides {tensor.stride()}; it is read or changed in place."
            )
    if not 0 <= n_decayed <= flat.shape[1]:
        raise ValueError(f"n_decayed must be from 0 to the {flat.shape[1]} columns of flat, got {n_decayed}.")
    return adamw_op(
        flat,
        gradient,
        exp_avg,
        exp_avg_sq,
        settings,
        clock,
        loss,
        alive,
        failed_step,
        n_decayed,
        float(embedding_rate),
        cast,
    )
