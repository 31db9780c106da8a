"""Output projection and cross-entropy of a fleet in one: the logits x W [M, R, V] are never stored, or a chunk at a time.

    loss = lse - logit[target] + z lse^2,   lse = log sum_v exp(logit_v),   0 where target == -100
    dlogits = scale (p (1 + 2 z lse) - onehot),   p = exp(logit - lse),   grad_x = dlogits W^T,   grad_W = x^T dlogits

x [M, R, d], W [M, d, V] (or the transposed view of a tied embedding [M, V, d]), targets [M, R] -> loss, lse [M, R] float32.

Forward, one launch: a program takes BLOCK_R rows of one member and walks the vocabulary in blocks of BLOCK_V, keeping
the running maximum, sum of exponentials and logit of the target (online softmax, Milakov & Gimelshein 2018). Where rows
are too few to fill the device, the vocabulary is split over programs, and a second launch combines their 3 floats a row.
So that tensor cores do not wait for exponentials, two programs share a multiprocessor, or one takes blocks in pairs.

Backward where d fits one accumulator (`backward_blocks`: 512 columns in 16 bits, 256 in float32), one launch: both gradients
have the form of attention's backward. With one side *staying* in a program and the other side *looping* past it, in blocks:
logits = stay loop^T, acc += dlogits loop. Rows stay and the vocabulary loops for grad_x; the vocabulary stays and rows loop
for grad_W; the program index tells which. The accumulator [BLOCK_S, BLOCK_G] lives in registers, and nothing of size R V
in memory. Where one side is too short to fill the device, the loop is split, too; float32 partial sums are added by a
second launch.

Backward of a wider d, two launches a chunk: each further accumulator would form the logits again, so dlogits [rows, columns]
are stored, in x's dtype. The longer of R and V is cut into chunks, so that a member's are CHUNK at most; one launch
forms them from x, W and lse, the next grad_x = dlogits W^T and grad_W = x^T dlogits, tiles of either by program index.
Where rows are cut, grad_W is the sum over chunks, and grad_x where the vocabulary is: the smaller of the two. A chunk's
launch adds to what those before it have left, in float32 (a buffer, if the gradient has 16 bits), in their order. float16
dlogits are stored in one unit of a member's rows, that of the largest scale; a row 2^20 below it may lose its grad_x.

FLOPs, in units of one product 2 M R V d: forward 1, backward 4 for a narrow d (3 with stored logits), 3 for a wide one. Bytes
at least: forward x + W + targets + 8 R M; backward of a narrow d x + W + both gradients + 20 R M, of a wide d in n chunks, for
V >= R, x (2 n) + W (2) + grad_W + grad_x in float32 (2 n - 2) and in its own dtype (1) + dlogits (2). Stored 16-bit logits
would move 4 R V M bytes forward (written, read) and 6 to 8 more backward.

lse is kept in float32, so backward p has a relative error of eps |lse| at most: at logits of 1000 a p of 1 is good to 6e-5.
Exponentials are of base 2, in one instruction where tl.exp takes four. Backward log2(e) is multiplied and lse subtracted by one
more (a fused multiply-add, exact but for its result); what lse log2(e) itself loses to rounding is a factor of its row.
Forward the largest logit is subtracted first, for there is a loss to lose.

Every element of every output and of every scratch has one writer in a launch; there are no atomics, so two runs give the same
bits. How a loop is split and cut depends on R, d and V but not on M: neither how many members run beside a member nor
what they hold changes a bit of it. Nothing of this file has run on hardware yet: numbers are from the interpreter, registers and
shared memory from compiling.
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
    check_first,
    check_members,
    check_number,
    check_tensors,
    dot,
    dot_mode,
    launch,
    next_power_of_2,
    operator,
    target_of,
)
from pyscaling.kernels.linear import tiles_for
from pyscaling.kernels.product import Tiles, cut_tiles, describable, described, product_tile, tiles_of
from pyscaling.kernels.tiles import choose, handed_over

IGNORED = tl.constexpr(-100)
LOG2E = tl.constexpr(math.log2(math.e))
# Numbers of one member's stored dlogits: the fewer chunks, the less traffic of partial sums. 192 MiB in 16 bits, 384 in
# float32, beside some GB of weights and moments of such a member. Not of all members together, or the chunks, and with them a
# member's last bits, would depend on how many there are.
CHUNK = 96 * 2**20
CHUNK_STEP = 128  # of its length, a multiple of any tile's side


@triton.jit
def _tile(
    pointer, n_start, n_end, stride_n, k_start, k_end, stride_k, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    FULL_N: tl.constexpr = False, FULL_K: tl.constexpr = False,
):  # fmt: skip
    """Part of a matrix [n_end, k_end] at (n_start, k_start), zero outside of it: [BLOCK_N, BLOCK_K].

    FULL_N, FULL_K: along this side no tile is cut, which saves the compiler a mask and its registers.
    """
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    pointer += tl.cast(n_start, tl.int64) * stride_n + tl.cast(k_start, tl.int64) * stride_k
    elements = pointer + n[:, None] * stride_n + k[None, :] * stride_k
    if FULL_N and FULL_K:
        return tl.load(elements)
    elif FULL_K:
        return tl.load(elements, mask=(n_start + n < n_end)[:, None], other=0.0)
    elif FULL_N:
        return tl.load(elements, mask=(k_start + k < k_end)[None, :], other=0.0)
    else:
        return tl.load(elements, mask=(n_start + n < n_end)[:, None] & (k_start + k < k_end)[None, :], other=0.0)


@triton.jit
def _exp(x):
    """e^x, and 0 below 2^-126: tl.exp spends three instructions more of NVIDIA's on numbers as small."""
    return tl.exp2(x * LOG2E)


@triton.jit
def _loss(top, total, target_logit, target, vocab, z_loss):
    """Loss and lse of rows from the largest logit, the sum of exp(logit - top) and the logit of the target."""
    log_total = tl.log(total)
    lse = top + log_total
    # top - target_logit first: where the target is the largest, no bit of log(total) is lost to large logits
    loss = (top - target_logit) + log_total + tl.cast(z_loss, tl.float32) * lse * lse
    loss = tl.where((target >= 0) & (target < vocab), loss, float("nan"))
    return tl.where(target == IGNORED, 0.0, loss), lse


@triton.jit
def _add_logits(
    top, total, target_logit, logits, v_start, column_of_target, vocab, FULL: tl.constexpr, BLOCK_V: tl.constexpr
):  # fmt: skip
    """A block of logits more: the largest, the sum of exp(logit - top) and the target's so far, each [BLOCK_R]."""
    column = tl.arange(0, BLOCK_V)
    if not FULL:
        logits = tl.where((v_start + column < vocab)[None, :], logits, float("-inf"))
    new_top = tl.maximum(top, tl.max(logits, 1))
    pivot = tl.where(new_top == float("-inf"), 0.0, new_top)  # finite for a row of -inf so far: -inf + inf is NaN
    total = total * _exp(top - pivot) + tl.sum(_exp(logits - pivot[:, None]), 1)
    # the target is moved, not the columns: an index for each of them would take a register
    is_target = column[None, :] == (column_of_target - v_start)[:, None]
    return new_top, total, target_logit + tl.sum(tl.where(is_target, logits, 0.0), 1)


@triton.jit
def _forward_kernel(
    x, weight, targets, loss, lse, partial, n_member, n_row, d, weight_member, z_loss, D: tl.constexpr, V: tl.constexpr,
    SPLITS: tl.constexpr, TRANSPOSED: tl.constexpr, HELD: tl.constexpr, PAIRED: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row_blocks = tl.cdiv(n_row, BLOCK_R)
    r_start = program % row_blocks * BLOCK_R
    split = program // row_blocks % SPLITS
    member = (program // row_blocks // SPLITS).to(tl.int64)
    x += member * n_row * D
    weight += member * weight_member
    stride_v: tl.constexpr = D if TRANSPOSED else 1
    stride_d: tl.constexpr = 1 if TRANSPOSED else V
    STEP: tl.constexpr = 2 * BLOCK_V if PAIRED else BLOCK_V
    FULL_V: tl.constexpr = V % STEP == 0
    FULL_D: tl.constexpr = D % BLOCK_D == 0

    rows = r_start + tl.arange(0, BLOCK_R)
    target = tl.load(targets + member * n_row + rows, mask=rows < n_row, other=IGNORED)  # [BLOCK_R]
    column_of_target = tl.where((target >= 0) & (target < V), target, -1).to(tl.int32)
    top = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    target_logit = tl.zeros([BLOCK_R], tl.float32)
    if HELD:
        x_held = _tile(x, r_start, n_row, D, 0, D, 1, BLOCK_R, BLOCK_D, False, FULL_D)
    span = tl.cdiv(tl.cdiv(V, STEP), SPLITS) * STEP
    if PAIRED:
        # The second product of a pair is waited for only in the next step, after the first product there: it runs
        # beside the exponentials of the two blocks before it.
        earlier = tl.full([BLOCK_R, BLOCK_V], float("-inf"), tl.float32)
        earlier_start = V  # where no target is
    for v_start in range(split * span, tl.minimum(split * span + span, V), STEP):
        logits = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
        if HELD:
            w = _tile(weight, v_start, V, stride_v, 0, D, stride_d, BLOCK_V, BLOCK_D, FULL_V, FULL_D)
            logits = dot(x_held, tl.trans(w), logits, DOT=DOT)
        else:
            for k_start in range(0, d, BLOCK_D):  # by D it would be unrolled, and spill
                x_block = _tile(x, r_start, n_row, D, k_start, D, 1, BLOCK_R, BLOCK_D, False, FULL_D)
                w = _tile(weight, v_start, V, stride_v, k_start, D, stride_d, BLOCK_V, BLOCK_D, FULL_V, FULL_D)
                logits = dot(x_block, tl.trans(w), logits, DOT=DOT)
        if PAIRED:
            w = _tile(weight, v_start + BLOCK_V, V, stride_v, 0, D, stride_d, BLOCK_V, BLOCK_D, FULL_V, FULL_D)
            later = dot(x_held, tl.trans(w), tl.zeros([BLOCK_R, BLOCK_V], tl.float32), DOT=DOT)
            top, total, target_logit = _add_logits(
                top, total, target_logit, earlier, earlier_start, column_of_target, V, FULL_V, BLOCK_V
            )
            earlier = later
            earlier_start = v_start + BLOCK_V
        top, total, target_logit = _add_logits(
            top, total, target_logit, logits, v_start, column_of_target, V, FULL_V, BLOCK_V
        )
    if PAIRED:
        top, total, target_logit = _add_logits(
            top, total, target_logit, earlier, earlier_start, column_of_target, V, FULL_V, BLOCK_V
        )
    row = member * n_row + rows
    if SPLITS == 1:
        row_loss, row_lse = _loss(top, total, target_logit, target, V, z_loss)
        tl.store(loss + row, row_loss, mask=rows < n_row)
        tl.store(lse + row, row_lse, mask=rows < n_row)
    else:
        size = tl.cast(n_member, tl.int64) * n_row
        partial += split * size + row  # [3, SPLITS, M, R]
        tl.store(partial, top, mask=rows < n_row)
        tl.store(partial + SPLITS * size, total, mask=rows < n_row)
        tl.store(partial + 2 * SPLITS * size, target_logit, mask=rows < n_row)


@triton.jit
def _combine_losses(
    partial, targets, loss, lse, size, vocab, z_loss, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # of M * R
    inside = row < size
    stride = tl.cast(size, tl.int64)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    target_logit = tl.zeros([BLOCK], tl.float32)
    for split in range(SPLITS):
        top_here = tl.load(partial + split * stride + row, mask=inside, other=0.0)
        total_here = tl.load(partial + (SPLITS + split) * stride + row, mask=inside, other=0.0)
        target_logit += tl.load(partial + (2 * SPLITS + split) * stride + row, mask=inside, other=0.0)
        new_top = tl.maximum(top, top_here)
        pivot = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * _exp(top - pivot) + total_here * _exp(top_here - pivot)
        top = new_top
    target = tl.load(targets + row, mask=inside, other=IGNORED)
    row_loss, row_lse = _loss(top, total, target_logit, target, vocab, z_loss)
    tl.store(loss + row, row_loss, mask=inside)
    tl.store(lse + row, row_lse, mask=inside)


@triton.jit
def _rows(scale, targets, lse, r_start, r_end, vocab, z_loss, BLOCK: tl.constexpr):
    """Of a block of rows: target (-1: none), and shift, a and b of dlogits = a 2^(logit log2(e) - shift) - b onehot."""
    rows = r_start + tl.arange(0, BLOCK)
    target = tl.load(targets + rows, mask=rows < r_end, other=IGNORED)
    lse = tl.load(lse + rows, mask=rows < r_end, other=0.0)
    b = tl.load(scale + rows, mask=rows < r_end, other=0.0)
    valid = (target >= 0) & (target < vocab)
    b = tl.where(target == IGNORED, 0.0, tl.where(valid, b, float("nan")))
    shift = lse * LOG2E
    a = b * (1.0 + 2.0 * tl.cast(z_loss, tl.float32) * lse) * tl.exp2(-tl.fma(lse, LOG2E, -shift))  # what rounding cost
    return tl.where(valid, target, -1).to(tl.int32), shift, a, b


@triton.jit
def _unit(a, b):
    """A power of two near the larger of |a| and |b|, over 1024: dlogits in this unit neither overflow nor vanish in float16."""
    return tl.exp2(tl.floor(tl.log2(tl.maximum(tl.maximum(tl.abs(a), tl.abs(b)), 1e-30))) - 10.0)


@triton.jit
def _unit_of_rows(scale, targets, lse, r_begin, r_end, vocab, z_loss):
    """The largest `_unit` of these rows, but not so small that sums of other rows would overflow in it."""
    units = tl.full([256], 2.0**-64, tl.float32)
    for r_start in range(r_begin, r_end, 256):
        _, _, a, b = _rows(scale, targets, lse, r_start, r_end, vocab, z_loss, 256)
        units = tl.maximum(units, _unit(a, b))
    return tl.max(units, 0)


@triton.jit
def _gradient(
    stay, n_stay, stay_n: tl.constexpr, stay_k: tl.constexpr, loop, n_loop, loop_n: tl.constexpr, loop_k: tl.constexpr, out,
    out_n: tl.constexpr, out_k: tl.constexpr, scale, targets, lse, d, z_loss, tile, split, D: tl.constexpr, V: tl.constexpr,
    SPLITS: tl.constexpr, VOCAB_STAYS: tl.constexpr, ACCUMULATE: tl.constexpr, HELD: tl.constexpr, FULL_L: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Rows [BLOCK_S, d] of grad_x [R, d] or of grad_W^T [V, d] of a member, over one part of the loop."""
    s_start = tile * BLOCK_S
    span = tl.cdiv(tl.cdiv(n_loop, BLOCK_L), SPLITS) * BLOCK_L
    l_begin = split * span
    l_end = tl.minimum(l_begin + span, n_loop)
    float16: tl.constexpr = stay.dtype.element_ty == tl.float16
    FULL_D: tl.constexpr = D % BLOCK_D == 0
    FULL_G: tl.constexpr = D == BLOCK_G
    if VOCAB_STAYS:
        unit = 1.0
        if float16:
            unit = _unit_of_rows(scale, targets, lse, l_begin, l_end, V, z_loss)
    else:
        target, shift, a, b = _rows(scale, targets, lse, s_start, n_stay, V, z_loss, BLOCK_S)
        if float16:
            unit = _unit(a, b)  # [BLOCK_S]
            a /= unit
            b /= unit
    if HELD:
        held = _tile(stay, s_start, n_stay, stay_n, 0, D, stay_k, BLOCK_S, BLOCK_D, False, FULL_D)
    acc = tl.zeros([BLOCK_S, BLOCK_G], tl.float32)
    for l_start in range(l_begin, l_end, BLOCK_L):
        logits = tl.zeros([BLOCK_S, BLOCK_L], tl.float32)
        if HELD:
            passing = _tile(loop, l_start, n_loop, loop_n, 0, D, loop_k, BLOCK_L, BLOCK_D, FULL_L, FULL_D)
            logits = dot(held, tl.trans(passing), logits, DOT=DOT)
        else:
            for k_start in range(0, d, BLOCK_D):
                stay_block = _tile(stay, s_start, n_stay, stay_n, k_start, D, stay_k, BLOCK_S, BLOCK_D, False, FULL_D)
                loop_block = _tile(loop, l_start, n_loop, loop_n, k_start, D, loop_k, BLOCK_L, BLOCK_D, FULL_L, FULL_D)
                logits = dot(stay_block, tl.trans(loop_block), logits, DOT=DOT)
            passing = _tile(loop, l_start, n_loop, loop_n, 0, D, loop_k, BLOCK_L, BLOCK_G, FULL_L, FULL_G)
        # What is compared with the target is counted from the block's first: an index of its own for each column that
        # passes would take a register.
        if VOCAB_STAYS:
            target, shift, a, b = _rows(scale, targets, lse, l_start, l_end, V, z_loss, BLOCK_L)
            if float16:
                a /= unit
                b /= unit
            p = tl.exp2(tl.fma(logits, LOG2E, -shift[None, :]))
            is_target = tl.arange(0, BLOCK_S)[:, None] == (target - s_start)[None, :]
            dlogits = a[None, :] * p - tl.where(is_target, b[None, :], 0.0)
        else:
            p = tl.exp2(tl.fma(logits, LOG2E, -shift[:, None]))
            column = tl.arange(0, BLOCK_L)
            if not FULL_L:  # columns past V have logit 0, which may be far above lse
                p = tl.where((l_start + column < V)[None, :], p, 0.0)
            is_target = column[None, :] == (target - l_start)[:, None]
            dlogits = a[:, None] * p - tl.where(is_target, b[:, None], 0.0)
        acc = dot(dlogits.to(passing.dtype), passing, acc, DOT=DOT)
    if float16:
        acc *= unit if VOCAB_STAYS else unit[:, None]
    s = tl.arange(0, BLOCK_S)
    g = tl.arange(0, BLOCK_G)
    out += tl.cast(s_start, tl.int64) * out_n
    out += s[:, None] * out_n + g[None, :] * out_k
    inside = (s_start + s < n_stay)[:, None] & (g < D)[None, :]
    if ACCUMULATE:
        acc += tl.load(out, mask=inside, other=0.0).to(tl.float32)
    tl.store(out, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    scale, x, weight, targets, lse, grad_x, grad_weight, n_member, n_row, d, weight_member, grad_member, z_loss,
    D: tl.constexpr, V: tl.constexpr, SPLITS_X: tl.constexpr, SPLITS_W: tl.constexpr, X_FIRST: tl.constexpr,
    TRANSPOSED: tl.constexpr, GRAD_TRANSPOSED: tl.constexpr, ACCUMULATE: tl.constexpr, HELD: tl.constexpr,
    FULL_R: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr,
    DOT: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    x_tiles = tl.cdiv(n_row, BLOCK_S)
    w_tiles = tl.cdiv(V, BLOCK_S)
    if X_FIRST:
        in_x = program < n_member * x_tiles * SPLITS_X
        index = program if in_x else program - n_member * x_tiles * SPLITS_X
    else:
        in_x = program >= n_member * w_tiles * SPLITS_W
        index = program - n_member * w_tiles * SPLITS_W if in_x else program
    tiles = x_tiles if in_x else w_tiles
    tile = index % tiles
    part = (index // tiles).to(tl.int64)  # member + split * M, as partial sums [SPLITS, M, ...] lie
    member = part % n_member
    split = (part // n_member).to(tl.int32)
    x += member * n_row * D
    weight += member * weight_member
    targets += member * n_row
    scale += member * n_row
    lse += member * n_row
    weight_v: tl.constexpr = D if TRANSPOSED else 1
    weight_d: tl.constexpr = 1 if TRANSPOSED else V
    grad_v: tl.constexpr = D if GRAD_TRANSPOSED else 1
    grad_d: tl.constexpr = 1 if GRAD_TRANSPOSED else V
    if in_x:
        _gradient(
            x, n_row, D, 1, weight, V, weight_v, weight_d, grad_x + part * n_row * D, D, 1, scale, targets, lse, d, z_loss, tile,
            split, D, V, SPLITS_X, False, False, HELD, V % BLOCK_L == 0, BLOCK_S, BLOCK_L, BLOCK_D, BLOCK_G, DOT,
        )  # fmt: skip
    else:
        _gradient(
            weight, V, weight_v, weight_d, x, n_row, D, 1, grad_weight + part * grad_member, grad_v, grad_d, scale, targets,
            lse, d, z_loss, tile, split, D, V, SPLITS_W, True, ACCUMULATE, HELD, FULL_R, BLOCK_S, BLOCK_L, BLOCK_D, BLOCK_G, DOT,
        )  # fmt: skip


@triton.jit
def _sum(
    partial, out, out_member, n_member, size, block, SPLITS: tl.constexpr, ACCUMULATE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out[m, i] = sum of partial [SPLITS, M, size] over splits, in order, for one block of one member."""
    blocks = tl.cdiv(size, BLOCK)
    member = (block // blocks).to(tl.int64)
    i = block % blocks * BLOCK + tl.arange(0, BLOCK)
    partial += member * size + i
    acc = tl.zeros([BLOCK], tl.float32)
    for split in range(SPLITS):
        acc += tl.load(partial + (split * n_member).to(tl.int64) * size, mask=i < size, other=0.0)
    out += member * out_member + i
    if ACCUMULATE:
        acc += tl.load(out, mask=i < size, other=0.0).to(tl.float32)
    tl.store(out, acc.to(out.dtype.element_ty), mask=i < size)


@triton.jit
def _combine_gradients(
    partial_x, grad_x, x_size, partial_w, grad_weight, w_size, grad_member, n_member, x_programs, SPLITS_X: tl.constexpr,
    SPLITS_W: tl.constexpr, ACCUMULATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < x_programs:
        _sum(partial_x, grad_x, x_size, n_member, x_size, program, SPLITS_X, False, BLOCK)
    else:
        _sum(
            partial_w, grad_weight, grad_member, n_member, w_size, program - x_programs, SPLITS_W, ACCUMULATE, BLOCK
        )  # fmt: skip


@triton.jit
def _dlogits_kernel(
    scale, x, weight, targets, lse, dlogits, units, n_row, row_member, v_first, n_column, dlogits_row, dlogits_member, d,
    vocab, weight_member, z_loss, TRANSPOSED: tl.constexpr, ROWS_NEXT: tl.constexpr, DESCRIBED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """A tile of a chunk: its rows begin where the pointers point, its columns of the vocabulary, and weight, at v_first.

    float16 is stored in one unit of the member's rows, which its first program writes to units [M].
    """
    tile, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if ROWS_NEXT:  # the shorter side of a chunk first: programs that run together share what they read
        n_tile = tl.cdiv(n_row, BLOCK_M)
        r_start, v_start = tile % n_tile * BLOCK_M, tile // n_tile * BLOCK_N
    else:
        n_tile = tl.cdiv(n_column, BLOCK_N)
        r_start, v_start = tile // n_tile * BLOCK_M, tile % n_tile * BLOCK_N
    targets += member * row_member
    scale += member * row_member
    lse += member * row_member
    if not DESCRIBED:
        x += member * row_member * d
        weight += member * weight_member
    logits, _ = product_tile(
        x, weight, member.to(tl.int32), d, d if TRANSPOSED else vocab, r_start, v_start, 0, d, n_row, n_column, 0,
        False, TRANSPOSED, "", False, False, DESCRIBED, BLOCK_M, BLOCK_N, BLOCK_K, DOT,
    )  # fmt: skip
    target, shift, a, b = _rows(scale, targets, lse, r_start, n_row, vocab, z_loss, BLOCK_M)
    if dlogits.dtype.element_ty == tl.float16:
        unit = _unit_of_rows(scale, targets, lse, 0, n_row, vocab, z_loss)
        a /= unit
        b /= unit
        if tile == 0:
            tl.store(units + member, unit)
    is_target = tl.arange(0, BLOCK_N)[None, :] == (target - v_first - v_start)[:, None]
    p = tl.exp2(tl.fma(logits, LOG2E, -shift[:, None]))
    tile_of_dlogits = a[:, None] * p - tl.where(is_target, b[:, None], 0.0)
    _store(
        dlogits + member * dlogits_member, tile_of_dlogits, r_start, n_row, dlogits_row, v_start, n_column, 1, BLOCK_M, BLOCK_N
    )  # fmt: skip


@triton.jit
def _store(
    pointer, tile, n_start, n_end, stride_n, k_start, k_end, stride_k, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """Writes what `_tile` reads."""
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    pointer += tl.cast(n_start, tl.int64) * stride_n + tl.cast(k_start, tl.int64) * stride_k
    inside = (n_start + n < n_end)[:, None] & (k_start + k < k_end)[None, :]
    tl.store(pointer + n[:, None] * stride_n + k[None, :] * stride_k, tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _products_kernel(
    dlogits, dlogits_columns, units, x_columns, weight, add_x, grad_x, add_weight, grad_weight, n_member, n_row, row_member,
    n_column, dlogits_row, dlogits_member, d, vocab, n_tile_x, n_tile_w, weight_member, add_member, grad_member,
    TRANSPOSED: tl.constexpr, GRAD_TRANSPOSED: tl.constexpr, IN_UNITS: tl.constexpr, DESCRIBED: tl.constexpr,
    ADD_X: tl.constexpr, ADD_WEIGHT: tl.constexpr, X_FIRST: tl.constexpr, X_M: tl.constexpr, X_N: tl.constexpr,
    W_M: tl.constexpr, W_N: tl.constexpr, BLOCK_K: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """A tile of grad_x = dlogits W^T or of grad_W = x^T dlogits of a chunk, where the pointers point, plus what add_ holds.

    x_columns, dlogits_columns: x and dlogits as the tiles of grad_W take them, where DESCRIBED in blocks of their own.
    """
    # those of one kind of all members come before those of the other: see `linear_cross_entropy_backward`
    program, n_first = tl.program_id(0), n_member * (n_tile_x if X_FIRST else n_tile_w)
    in_x = (program < n_first) == X_FIRST
    if program >= n_first:
        program -= n_first
    n_tile_here = n_tile_x if in_x else n_tile_w
    tile, member = program % n_tile_here, (program // n_tile_here).to(tl.int64)
    if not DESCRIBED:
        dlogits += member * dlogits_member
        dlogits_columns += member * dlogits_member
        weight += member * weight_member
        x_columns += member * row_member * d
    unit = 1.0
    if IN_UNITS:
        unit = tl.load(units + member)
    if in_x:
        n_tile = tl.cdiv(d, X_N)
        r_start, k_start = tile // n_tile * X_M, tile % n_tile * X_N
        tile_of_x = tl.zeros([X_M, X_N], tl.float32)
        if ADD_X:  # before the product, which starts from it: beside its sums there is no room for as many again
            add_x += member * row_member * d
            tile_of_x = _tile(add_x, r_start, n_row, d, k_start, d, 1, X_M, X_N).to(tl.float32) / unit
        tile_of_x, _ = product_tile(
            dlogits, weight, member.to(tl.int32), dlogits_row, d if TRANSPOSED else vocab, r_start, k_start, 0, n_column,
            n_row, d, 0, False, not TRANSPOSED, "", False, False, DESCRIBED, X_M, X_N, BLOCK_K, DOT, tile_of_x,
        )  # fmt: skip
        _store(grad_x + member * row_member * d, tile_of_x * unit, r_start, n_row, d, k_start, d, 1, X_M, X_N)
    else:
        n_tile = tl.cdiv(d, W_M)
        k_start, v_start = tile % n_tile * W_M, tile // n_tile * W_N
        grad_v = d if GRAD_TRANSPOSED else 1
        grad_d = 1 if GRAD_TRANSPOSED else vocab
        tile_of_weight = tl.zeros([W_M, W_N], tl.float32)
        if ADD_WEIGHT:
            add_weight += member * add_member
            tile_of_weight = (
                _tile(add_weight, k_start, d, grad_d, v_start, n_column, grad_v, W_M, W_N).to(tl.float32) / unit
            )
        tile_of_weight, _ = product_tile(
            x_columns, dlogits_columns, member.to(tl.int32), d, dlogits_row, k_start, v_start, 0, n_row, d, n_column, 0,
            True, False, "", False, False, DESCRIBED, W_M, W_N, BLOCK_K, DOT, tile_of_weight,
        )  # fmt: skip
        grad_weight += member * grad_member
        _store(grad_weight, tile_of_weight * unit, k_start, d, grad_d, v_start, n_column, grad_v, W_M, W_N)


class Blocks(NamedTuple):
    """Rows (or vocabulary) that stay in a program and that pass; the step along d of a product, 0 for all of it at once."""

    stay: int
    loop: int
    step: int
    warps: int
    stages: int
    registers: int = 0  # a thread's at most, of NVIDIA's assembler; 0: as it sees fit
    paired: bool = False  # forward: see `_forward_kernel`

    @property
    def least(self) -> int:
        """Of the steps of a loop, for a program of its own: few where nothing is loaded for all of them."""
        return 1 if self.step else 2 if self.paired else 4

    def options(self, width: int) -> dict[str, Any]:
        """What both kernels are launched with."""
        return {
            "HELD": self.step == 0, "BLOCK_D": self.step or width, "num_warps": self.warps, "num_stages": self.stages,
        } | ({"maxnreg": self.registers} if self.registers else {})  # fmt: skip


def width_of(d: int) -> int:
    return max(16, next_power_of_2(d))


def forward_blocks(d: int, dtype: torch.dtype, target: str, *conditions: str) -> Blocks:
    """Of `HEAD_ROWS` in kernels/tiles.py; conditions: see `_conditions`."""
    if target == "interpreter":
        side = INTERPRETER_SIDE
        return Blocks(side, side, 0 if width_of(d) <= side else side, 4, 1)
    return Blocks(*choose("head forward", target, dtype, width_of(d), *conditions))


def backward_blocks(d: int, dtype: torch.dtype, target: str, *conditions: str) -> Blocks | None:
    """Of the way without stored dlogits; None where d is too wide for it."""
    if target == "interpreter":
        side, width = INTERPRETER_SIDE, width_of(d)
        return Blocks(side, side, 0 if width <= side else side, 4, 1) if width <= 2 * side else None
    tiles = choose("head backward", target, dtype, width_of(d), *conditions)
    return Blocks(*tiles) if tiles else None


def _conditions(n_row: int, d: int, vocab: int, transposed: bool, dtype: torch.dtype) -> tuple[str, ...]:
    """What of `HEAD_ROWS` in kernels/tiles.py holds."""
    uneven = d % 16 or (not transposed and vocab % 16)
    ragged = d != width_of(d) or vocab % 64 or n_row % 64
    held = {"uneven": uneven, "ragged": ragged, "float16": dtype == torch.float16}
    return tuple(name for name, holds in held.items() if holds)


def chunk_length(n_row: int, vocab: int) -> int:
    """How much of the longer of rows and vocabulary, a multiple of CHUNK_STEP, a chunk of stored dlogits holds."""
    longer, shorter = max(n_row, vocab), max(1, min(n_row, vocab))
    most = max(1, CHUNK // shorter // CHUNK_STEP) * CHUNK_STEP
    return cdiv(cdiv(longer, cdiv(longer, most)), CHUNK_STEP) * CHUNK_STEP  # chunks of about equal length


def splits_for(programs: int, blocks: int, target: str, least: int = 4) -> int:
    """In how many parts a loop over `blocks` is cut for a member that has `programs` of them.

    Its programs come near to an eighth of the multiprocessors: eight members fill the device. The number of members has no
    say, or a member's last bits would depend on it. A part has `least` blocks, where loading the staying side would outweigh
    fewer. No part is empty.
    """
    splits = max(1, min(MULTIPROCESSORS.get(target, 8) // 8 // max(1, programs), blocks // least))
    return cdiv(blocks, cdiv(blocks, splits)) if blocks else 1


def linear_cross_entropy_forward(
    x: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Loss of each token and lse of its logits, both [M, R] float32.

    x [M, R, d] contiguous, weight [M, d, V] with any member stride and either V or d innermost, targets [M, R] int64. The
    loss is 0 where the target is -100 and NaN where it is any other number outside [0, V).
    """
    transposed = _check(x, weight, targets)
    if handed_over("linear_cross_entropy_forward", x):
        return eager.linear_cross_entropy_forward(x, weight, targets, z_loss)
    (n_member, n_row, d), vocab = x.shape, weight.shape[2]
    target = target_of(x.device)
    blocks = forward_blocks(d, x.dtype, target, *_conditions(n_row, d, vocab, transposed, x.dtype))
    programs = n_member * cdiv(n_row, blocks.stay)
    splits = splits_for(programs // n_member, cdiv(vocab, blocks.loop * (1 + blocks.paired)), target, blocks.least)
    loss = torch.empty(n_member, n_row, dtype=torch.float32, device=x.device)
    lse = torch.empty_like(loss)
    partial = torch.empty(3, splits, n_member, n_row, dtype=torch.float32, device=x.device) if splits > 1 else loss
    written = [loss, lse] if splits == 1 else [partial]
    launch(
        _forward_kernel, (programs * splits,), x, weight, targets, loss, lse, partial, n_member, n_row, d, weight.stride(0),
        float(z_loss), reads=[x, weight, targets], writes=written, flops=2 * x.numel() * vocab, D=d, V=vocab,
        SPLITS=splits, TRANSPOSED=transposed, PAIRED=blocks.paired, BLOCK_R=blocks.stay, BLOCK_V=blocks.loop,
        DOT=dot_mode(x.dtype, target), **blocks.options(width_of(d)),
    )  # fmt: skip
    if splits > 1:
        launch(
            _combine_losses, (cdiv(n_member * n_row, 256),), partial, targets, loss, lse, n_member * n_row, vocab,
            float(z_loss), reads=[partial, targets], writes=[loss, lse], SPLITS=splits, BLOCK=256,
        )  # fmt: skip
    return loss, lse


def linear_cross_entropy_backward(
    scale: Tensor,
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    z_loss: float = 0.0,
    grad_weight: Tensor | None = None,
    accumulate: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradients of sum(scale * loss): grad_x like x, and grad_weight [M, d, V].

    scale: [M, R] float32, the gradient of each token's loss; it does not matter where the target is -100. grad_weight: where to
    write, float32 or of weight's dtype, with any member stride and either V or d innermost (a view of the gradient of a
    tied embedding); by default new, float32, laid out like weight. accumulate: add to grad_weight what it holds.
    A token whose target is out of range makes both gradients of its member NaN.
    """
    transposed = _check(x, weight, targets)
    for name, tensor in (("scale", scale), ("lse", lse)):
        check(name, tensor, targets.shape, x, (torch.float32,))
        _check_contiguous(name, tensor)
    (n_member, n_row, d), vocab = x.shape, weight.shape[2]
    if grad_weight is None:
        if accumulate:
            raise ValueError("accumulate=True needs grad_weight, the tensor to add to.")
        grad_weight = _empty_like_weight(weight, torch.float32)
    check("grad_weight", grad_weight, weight.shape, x, (torch.float32, weight.dtype))
    grad_transposed = _is_transposed("grad_weight", grad_weight)
    if handed_over("linear_cross_entropy_backward", x):
        grad_x = eager.linear_cross_entropy_backward(scale, x, weight, targets, lse, z_loss, grad_weight, accumulate)
        return grad_x, grad_weight
    target = target_of(x.device)
    blocks = backward_blocks(d, x.dtype, target, *_conditions(n_row, d, vocab, transposed, x.dtype))
    if blocks is None:
        return _backward_in_chunks(scale, x, weight, targets, lse, z_loss, grad_weight, accumulate)
    x_programs = n_member * cdiv(n_row, blocks.stay)
    w_programs = n_member * cdiv(vocab, blocks.stay)
    splits_x = splits_for(x_programs // n_member, cdiv(vocab, blocks.loop), target)
    splits_w = splits_for(w_programs // n_member, cdiv(n_row, blocks.loop), target)
    grad_x = torch.empty_like(x)
    out_x, out_w, out_member = grad_x, grad_weight, grad_weight.stride(0)
    if splits_x > 1:
        out_x = torch.empty(splits_x, n_member, n_row, d, dtype=torch.float32, device=x.device)
    if splits_w > 1:
        out_w = torch.empty(splits_w, n_member, d * vocab, dtype=torch.float32, device=x.device)
        out_member = d * vocab
    launch(
        _backward_kernel, (x_programs * splits_x + w_programs * splits_w,), scale, x, weight, targets, lse, out_x, out_w,
        n_member, n_row, d, weight.stride(0), out_member, float(z_loss), reads=[scale, x, weight, targets, lse]
        + ([grad_weight] if accumulate and splits_w == 1 else []), writes=[out_x, out_w],
        flops=2 * x.numel() * vocab * 4, D=d, V=vocab, SPLITS_X=splits_x, SPLITS_W=splits_w,
        X_FIRST=vocab > n_row,  # the longer loops first: short ones fill the end
        TRANSPOSED=transposed, GRAD_TRANSPOSED=grad_transposed, ACCUMULATE=accumulate and splits_w == 1,
        FULL_R=n_row % blocks.loop == 0, BLOCK_S=blocks.stay, BLOCK_L=blocks.loop, BLOCK_G=width_of(d),
        DOT=dot_mode(x.dtype, target), **blocks.options(width_of(d)),
    )  # fmt: skip
    split = [(splits_x, out_x, grad_x), (splits_w, out_w, grad_weight)]
    if splits_x > 1 or splits_w > 1:
        x_programs = n_member * cdiv(n_row * d, 1024) if splits_x > 1 else 0
        w_programs = n_member * cdiv(d * vocab, 1024) if splits_w > 1 else 0
        launch(
            _combine_gradients, (x_programs + w_programs,), out_x, grad_x, n_row * d, out_w, grad_weight, d * vocab,
            grad_weight.stride(0), n_member, x_programs,
            reads=[partial for n, partial, _ in split if n > 1] + ([grad_weight] if accumulate and splits_w > 1 else []),
            writes=[total for n, _, total in split if n > 1],
            SPLITS_X=splits_x, SPLITS_W=splits_w, ACCUMULATE=accumulate, BLOCK=1024,
        )  # fmt: skip
    return grad_x, grad_weight


def _backward_in_chunks(
    scale: Tensor,
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    z_loss: float,
    grad_weight: Tensor,
    accumulate: bool,
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy_backward` with stored dlogits."""
    (n_member, n_row, d), vocab = x.shape, weight.shape[2]
    target = target_of(x.device)
    cut_rows, longer = n_row > vocab, max(n_row, vocab)
    length = chunk_length(n_row, vocab)
    rows, columns = (length, vocab) if cut_rows else (n_row, length)
    transposed = _is_transposed("weight", weight)
    rows_of_weight = weight.mT if transposed else weight  # as they lie in memory
    is_described = describable(target, x, rows_of_weight)
    if is_described:
        of_logits = tiles_of("head logits", rows, columns, x.dtype, target, d, least=64)
        X_M, X_N, W_M, W_N, *rest = choose("head products", target, x.dtype, d)
        of_x = cut_tiles(Tiles(X_M, X_N, *rest), rows, d, 64)
        of_weight = cut_tiles(Tiles(W_M, W_N, *rest), d, columns, 64)
    else:
        of_logits = tiles_for(rows, columns, x.dtype, target, d, vocab)
        of_x = tiles_for(rows, d, x.dtype, target, d, vocab)
        of_weight = tiles_for(d, columns, x.dtype, target, d, vocab)
    # sm_100: both jobs in one kernel would spill a few bytes for the sake of a second program beside the first
    crowded = target == "sm_100" and x.dtype != torch.float32
    all_registers = of_x.all_registers or of_weight.all_registers or crowded
    # rows on 16 bytes whatever V is
    dlogits = torch.empty(n_member, rows, cdiv(columns, 16) * 16, dtype=x.dtype, device=x.device)
    units = torch.empty(n_member, dtype=torch.float32, device=x.device) if x.dtype == torch.float16 else None
    grad_x = torch.empty_like(x)
    sum_x, sum_weight = grad_x, grad_weight
    if length < longer and not cut_rows and x.dtype != torch.float32:
        sum_x = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    if length < longer and cut_rows and grad_weight.dtype != torch.float32:
        sum_weight = _empty_like_weight(grad_weight, torch.float32)
    for start in range(0, longer, length):
        part, first, last = slice(start, start + length), start == 0, start + length >= longer
        of_rows, of_columns = (part, slice(None)) if cut_rows else (slice(None), part)
        in_rows, x_part, weight_part = (
            (t[:, of_rows] for t in (scale, targets, lse)),
            x[:, of_rows],
            weight[:, :, of_columns],
        )
        scale_part, targets_part, lse_part = in_rows
        n_row_part, n_column = x_part.shape[1], weight_part.shape[2]
        dlogits_part = dlogits[:, :n_row_part, :n_column]
        sizes = dlogits.stride(1), dlogits.stride(0), d, vocab
        operands: tuple[Any, ...] = (x_part, weight_part)
        if is_described:
            weight_rows = weight_part.mT if transposed else weight_part
            blocks = of_logits.BLOCK_N, of_logits.BLOCK_K
            of_rows_of_weight = described(weight_rows, *blocks[:: 1 if transposed else -1])
            operands = (described(x_part, of_logits.BLOCK_M, of_logits.BLOCK_K), of_rows_of_weight)
        launch(
            _dlogits_kernel, (cdiv(n_row_part, of_logits.BLOCK_M) * cdiv(n_column, of_logits.BLOCK_N), n_member),
            scale_part, *operands, targets_part, lse_part, dlogits_part, lse if units is None else units,
            n_row_part, n_row, 0 if cut_rows else start, n_column, *sizes, weight.stride(0), float(z_loss),
            reads=[scale_part, x_part, weight_part, targets_part, lse_part], writes=[dlogits_part, units],
            flops=2 * x_part.numel() * n_column, TRANSPOSED=transposed, ROWS_NEXT=cut_rows,
            DESCRIBED=is_described,
            DOT=dot_mode(x.dtype, target),
            **of_logits.options(),
        )  # fmt: skip
        add_x = None if cut_rows or first else sum_x
        out_x = (grad_x if cut_rows or last else sum_x)[:, of_rows]
        add_weight = sum_weight if cut_rows and not first else grad_weight if accumulate else None
        out_weight = grad_weight if not cut_rows or last else sum_weight
        add_member, out_member = (
            out_weight.stride(0) if add_weight is None else add_weight.stride(0),
            out_weight.stride(0),
        )
        add_weight, out_weight = (
            None if add_weight is None else add_weight[:, :, of_columns],
            out_weight[:, :, of_columns],
        )
        n_tile_x = cdiv(n_row_part, of_x.BLOCK_M) * cdiv(d, of_x.BLOCK_N)
        n_tile_w = cdiv(d, of_weight.BLOCK_M) * cdiv(n_column, of_weight.BLOCK_N)
        operands = (dlogits_part, dlogits_part, x_part, weight_part)
        if is_described:
            weight_rows = weight_part.mT if transposed else weight_part
            blocks = of_x.BLOCK_K, of_x.BLOCK_N
            operands = (
                described(dlogits_part, of_x.BLOCK_M, of_x.BLOCK_K), described(dlogits_part, of_x.BLOCK_K, of_weight.BLOCK_N),
                described(x_part, of_x.BLOCK_K, of_weight.BLOCK_M), described(weight_rows, *blocks[:: 1 if transposed else -1]),
            )  # fmt: skip
        launch(
            _products_kernel, (n_member * (n_tile_x + n_tile_w),), *operands[:2], lse if units is None else units, *operands[2:],
            out_x if add_x is None else add_x, out_x, out_weight if add_weight is None else add_weight, out_weight,
            n_member, n_row_part, n_row, n_column, *sizes, n_tile_x, n_tile_w, weight.stride(0), add_member, out_member,
            reads=[dlogits_part, units, x_part, weight_part, add_x, add_weight], writes=[out_x, out_weight],
            flops=4 * x_part.numel() * n_column, num_warps=max(of_x.num_warps, of_weight.num_warps),
            num_stages=of_x.num_stages, all_registers=all_registers,
            TRANSPOSED=transposed, GRAD_TRANSPOSED=_is_transposed("grad_weight", grad_weight),
            IN_UNITS=units is not None, DESCRIBED=is_described, ADD_X=add_x is not None, ADD_WEIGHT=add_weight is not None,
            X_FIRST=cut_rows,  # the longer loops first: short ones fill the end
            X_M=of_x.BLOCK_M, X_N=of_x.BLOCK_N, W_M=of_weight.BLOCK_M, W_N=of_weight.BLOCK_N, BLOCK_K=of_x.BLOCK_K,
            DOT=dot_mode(x.dtype, target),
        )  # fmt: skip
    return grad_x, grad_weight


def _check(x: Tensor, weight: Tensor, targets: Tensor) -> bool:
    """Raises ValueError unless the three fit and are contiguous; whether weight is a transposed view."""
    check("x", x, (None, None, None), x)
    transposed = _check_shapes(x, weight, targets)
    _check_contiguous("x", x)
    _check_contiguous("targets", targets)
    return transposed


def _check_shapes(x: Tensor, weight: Tensor, targets: Tensor) -> bool:
    """The same, contiguous or not, with or without the model axis."""
    check_first("x", x)
    members = check_members("x", x)
    check("weight", weight, (*members, x.shape[-1], None), x)
    check("targets", targets, x.shape[:-1], x, (torch.int64,))
    return _is_transposed("weight", weight)


def _check_contiguous(name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}; call .contiguous().")


def _is_transposed(name: str, weight: Tensor) -> bool:
    d, vocab = weight.shape[-2:]
    row, column = weight.stride()[-2:]
    if min(d, vocab) == 0:
        raise ValueError(f"{name} is empty: {list(weight.shape)}; it needs at least one row and one column.")
    if (column == 1 and row == vocab) or (d == 1 and column == 1):
        return False
    if (row == 1 and column == d) or (vocab == 1 and row == 1):
        return True
    raise ValueError(
        f"{name} [M, d, V] must be contiguous within a member, or the transposed view of [M, V, d]; got strides "
        f"{weight.stride()} for shape {list(weight.shape)}. Call .contiguous()."
    )


def _empty_like_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    if _is_transposed("weight", weight):
        return torch.empty(weight.mT.shape, dtype=dtype, device=weight.device).mT
    return torch.empty(weight.shape, dtype=dtype, device=weight.device)


@operator()
def linear_cross_entropy_tokens(x: Tensor, weight: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    return linear_cross_entropy_forward(x, weight, targets, z_loss)


@operator()
def linear_cross_entropy_gradients(
    scale: Tensor, x: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, z_loss: float
) -> tuple[Tensor, Tensor]:
    grad_weight = _empty_like_weight(weight, weight.dtype)
    return linear_cross_entropy_backward(scale, x, weight, targets, lse, z_loss, grad_weight)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, targets, ctx.z_loss = inputs
    ctx.save_for_backward(x, weight, targets, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, grad_loss: Tensor, _grad_lse):  # type: ignore[no-untyped-def]
    x, weight, targets, lse = ctx.saved_tensors
    scale = grad_loss.contiguous()
    return *linear_cross_entropy_gradients(scale, x, weight, targets, lse, ctx.z_loss), None, None


linear_cross_entropy_tokens.register_autograd(_gradients, setup_context=_save)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy, in nats, of each member's logits x W, plus z_loss * lse^2 (PaLM, Chowdhery et al. 2022, section 5).

    x [M, R, d], weight [M, d, V] (also the transposed view of a tied embedding [M, V, d]), targets [M, R] int64 with -100 for a
    token without loss -> [M], the mean over a member's tokens that have a loss (NaN if none has, as in torch), or with
    reduction="none" [M, R]. Without the model axis, for a single model, too. A target that is neither -100 nor in [0, V)
    makes its loss NaN, and so its member's mean and gradients.
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f'reduction must be "mean" or "none", got {reduction!r}.')
    check_tensors({"x": x, "weight": weight, "targets": targets})
    check_number("z_loss", z_loss)
    if not -math.inf < z_loss < math.inf:
        raise ValueError(f"z_loss must be finite, got {z_loss}.")
    _check_shapes(x, weight, targets)
    single = x.dim() == 2
    if single:
        x, weight, targets = as_fleet(x, weight, targets)
    loss, _ = linear_cross_entropy_tokens(x.contiguous(), weight, targets.contiguous(), float(z_loss))
    if reduction == "mean":
        loss = loss.sum(1) / (targets != -100).sum(1)
    return loss.squeeze(0) if single else loss
