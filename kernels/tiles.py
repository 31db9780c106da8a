"""Which tiles an operation takes, by target, dtype and width: one table, each row with its reason.

A row says: *operation* on *targets* (shell patterns, "sm_90 sm_100" or "sm_*") with numbers of *bits* and a width of *up_to*
at most takes *tiles*, and why. *only* names what else must hold, such as "uneven" (widths that do not divide by 16) or
"inside" (rotation or norm within attention). The first row that fits counts, so narrow rows stand before wide ones. What a
width is, and what its tiles hold, the operation's own file says; a tile is cut there to sizes smaller than itself. Empty tiles
say that this way is not taken there: a product over descriptors reads by pointers, the MLP takes two launches, the head chunks. A
row of that kind, with the card and the date, is what keeps from use what a card has found wrong or slow. `HANDED_OVER`, at the
end, takes whole operations from their kernels.

`make gpu PARTS=tune` times candidates on a card and proposes rows; none of these has been timed on one yet: where no reason
says otherwise, a row holds the largest tiles seen to compile without spilled registers and within shared memory.
"""

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch

from pyscaling.kernels import eager
from pyscaling.kernels.launch import INTERPRETER_SIDE, MULTIPROCESSORS, target_of


class Row(NamedTuple):
    operation: str
    targets: str
    bits: int
    up_to: float
    only: str
    tiles: tuple[Any, ...]
    reason: str


ANY = float("inf")
# What a row's tiles are, by its operation; the last of them may be left out.
_TILE = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages", "all_registers", "programs")
_TWO_TILES = ("X_M", "X_N", "W_M", "W_N", "BLOCK_K", "num_warps", "num_stages", "all_registers")
_HEAD = ("STAY", "LOOP", "STEP", "num_warps", "num_stages", "registers", "paired")
_ATTENTION = ("BLOCK", "STEP", "num_warps", "num_stages", "all_registers")
FIELDS = {
    "product": _TILE,
    "product of whole rows": _TILE,
    "linear forward": _TILE,
    "linear forward and norm": _TILE,
    "linear backward": _TWO_TILES,
    "linear backward and norm": _TWO_TILES,
    "mlp up": _TILE,
    "mlp forward": ("COLUMNS", "BLOCK_M", "num_warps", "num_stages", "all_registers"),
    "mlp backward": _TWO_TILES,
    "head logits": _TILE,
    "head products": _TWO_TILES,
    "head forward": _HEAD,
    "head backward": _HEAD,
    "attention forward": _ATTENTION,
    "attention backward": _ATTENTION,
    "embedding forward": ("NUMBERS", "COLUMNS"),
    "embedding places": ("TOKENS", "BEFORE", "MOST", "ROWS", "COLUMNS", "num_warps"),
    "embedding bucket": ("ROWS",),
    "embedding backward": ("ROWS", "COLUMNS", "num_warps"),
    "adamw": ("BLOCK", "num_warps", "at_once"),
}


# What there is another way for, where a row has no tiles.
_OPTIONAL = (
    "linear forward", "linear forward and norm", "linear backward", "linear backward and norm", "mlp forward", "mlp backward",
    "head backward",
)  # fmt: skip
# What kernels/eager.py has a function for.
OPERATIONS = tuple(name for name, of in vars(eager).items() if inspect.isfunction(of) and not name.startswith("_"))


def checked(row: Row) -> Row:
    """The row. Raises ValueError where it could never hold or would break a launch, as a misspelt one."""
    if row.bits not in (16, 32):
        wrong = f"bits must be 16 or 32, got {row.bits!r}; write a row for each"
    elif not all(
        any(fnmatchcase(target, pattern) for target in MULTIPROCESSORS) for pattern in row.targets.split() or [""]
    ):
        wrong = f"targets must be patterns of {' '.join(MULTIPROCESSORS)}, got {row.targets!r}"
    elif row.operation in OPERATIONS:
        if not row.tiles and not row.only:
            return row
        wrong = "a whole operation is handed over without tiles, and whatever else holds: only must be empty"
    elif row.operation not in FIELDS:
        wrong = f"operation {row.operation!r} is unknown; known are {', '.join(FIELDS)}, and of whole operations {', '.join(OPERATIONS)}"
    elif len(row.tiles) > len(FIELDS[row.operation]):
        wrong = f"tiles are {FIELDS[row.operation]}, got {row.tiles}"
    elif not row.tiles and row.operation not in _OPTIONAL:
        wrong = (
            f"there is no other way for {row.operation}; to keep its kernel from use hand over {', '.join(OPERATIONS)}"
        )
    else:
        return row
    raise ValueError(f"{row}: {wrong}.")


def choose(operation: str, target: str, dtype: torch.dtype, width: int, *conditions: str) -> tuple[Any, ...]:
    """The tiles of the first row that fits. Raises KeyError for an operation that has none there."""
    if isinstance(
        width, torch.SymInt
    ):  # what torch.compile traces launches nothing: the size it stands for just now will do
        width = width.node.hint or 1
    return _choose(operation, target, 8 * dtype.itemsize, width, conditions)


def handed_over(operation: str, like: torch.Tensor) -> bool:
    """Whether a row gives the operation to kernels/eager.py. like: the tensor whose dtype and last axis the row means: x, q (so
    head_dim), the embedding's weight or grad, AdamW's flat weights."""
    return any(
        row.operation == operation and _fits(row, target_of(like.device), 8 * like.dtype.itemsize, like.shape[-1], ())
        for row in handing_over
    )


def _fits(row: Row, target: str, bits: int, width: int, conditions: tuple[str, ...]) -> bool:
    return (
        row.bits == bits
        and width <= row.up_to
        and set(row.only.split()) <= set(conditions)
        and any(fnmatchcase(target, pattern) for pattern in row.targets.split())
    )


@functools.lru_cache(maxsize=4096)
def _choose(operation: str, target: str, bits: int, width: int, conditions: tuple[str, ...]) -> tuple[Any, ...]:
    for row in (*_preferred, *ROWS):
        if row.operation == operation and _fits(row, target, bits, width, conditions):
            return row.tiles
    raise KeyError(
        f"no tiles for {operation} of {bits} bits, width {width}, on {target}; add a row to kernels/tiles.py."
    )


_preferred: tuple[Row, ...] = ()
handing_over: tuple[Row, ...] = ()


@contextmanager
def preferring(rows: Sequence[Row]) -> Iterator[None]:
    """Within it these rows come before the table's: to time a candidate, or to force a card's tiles on the interpreter."""
    before = _preferred
    _prefer(tuple(rows))
    try:
        yield
    finally:
        _prefer(before)


def _prefer(rows: tuple[Row, ...]) -> None:
    global _preferred, handing_over
    _preferred = tuple(map(checked, rows))
    handing_over = tuple(row for row in (*rows, *HANDED_OVER) if row.operation in OPERATIONS)
    _choose.cache_clear()


# ---- products -------------------------------------------------------------------------------------------------------

_side = INTERPRETER_SIDE
_inner = max(32, _side // 4)
# fmt: off
# BLOCK_M, BLOCK_N, BLOCK_K, num_warps, num_stages, all_registers, programs a multiprocessor (0: one for each tile)
PRODUCT_ROWS = (
    # by pointers; the width is that of the output
    *(Row("product", "interpreter", bits, ANY, "", (2 * _side, 2 * _side, _inner, 4, 1), "a program costs the same, whatever its size")
      for bits in (16, 32)),
    Row("product", "gfx*", 32, ANY, "", (64, 32, 16, 4, 2), "a thread of eight waves would load 8 bytes of a tile or 4"),
    Row("product", "sm_*", 32, ANY, "uneven", (64, 32, 16, 8, 2, True), "loads of one number each, whose addresses fill registers"),
    Row("product", "sm_100", 32, ANY, "", (128, 64, 16, 8, 2), "steps of 32 and an activation spill 8 bytes under Triton 3.6"),
    Row("product", "sm_*", 32, ANY, "", (128, 64, 32, 8, 2), "three products on tensor cores: operands of twice the size"),
    Row("product", "*", 16, ANY, "uneven", (64, 64, 32, 8, 2, True), "loads of one number each, whose addresses fill registers"),
    Row("product", "gfx*", 16, ANY, "", (128, 128, 32, 8, 2), "64 KiB of LDS, and operands of 64 would spill"),
    Row("product", "sm_120", 16, ANY, "", (128, 128, 64, 8, 2), "99 KiB of shared memory"),
    Row("product", "sm_*", 16, ANY, "", (128, 128, 64, 8, 3), "64 sums a thread; three stages of 32 KiB leave room for two programs"),
    # of whole rows, by pointers: BLOCK_M is norm_tile_rows, BLOCK_N the width
    *(Row("product of whole rows", "interpreter", bits, ANY, "", (0, 0, _inner, 4, 1), "as product") for bits in (16, 32)),
    Row("product of whole rows", "*", 32, ANY, "", (0, 0, 16, 8, 2, True), "16 sums a thread"),
    Row("product of whole rows", "*", 16, ANY, "uneven", (0, 0, 16, 8, 2, True), "loads of one number each"),
    Row("product of whole rows", "gfx*", 16, ANY, "", (0, 0, 32, 8, 2, True), "64 KiB of LDS"),
    Row("product of whole rows", "*", 16, ANY, "", (0, 0, 64, 8, 2, True), "two stages of (64 + 256) 64 are 80 KiB: two programs"),
    # over tensor descriptors; the width is that of x
    Row("linear forward", "sm_90 sm_100", 16, 256, "", (128, 128, 64, 8, 3, False, 2), "few steps: one program multiplies, one stores"),
    Row("linear forward", "sm_90 sm_100", 16, ANY, "", (128, 256, 64, 8, 3, False, 1), "9.4 TB/s of the cache at the peak, not 12.5"),
    Row("linear forward and norm", "sm_100", 16, ANY, "", (64, 256, 64, 8, 2, True, 1), "128 rows spill 0.6 KB"),
    Row("linear forward and norm", "sm_90", 16, ANY, "", (128, 256, 64, 8, 2, False, 1), "whole rows; bound by memory"),
    Row("mlp up", "sm_90 sm_100", 16, ANY, "gated", (128, 128, 64, 8, 3), "gate and value, one after the other; two programs"),
    Row("mlp up", "sm_90 sm_100", 16, ANY, "", (128, 128, 64, 8, 3), "two programs: one multiplies, one forms activations and stores"),
)
# tiles of dx and of dW: X_M, X_N, W_M, W_N, then BLOCK_K, num_warps, num_stages, all_registers; the width is that of dx, of the MLP
# that of dout
BACKWARD_ROWS = (
    Row("linear backward", "sm_90 sm_100", 16, 256, "", (128, 128, 128, 128, 64, 8, 3), "two programs, and enough tiles of dW"),
    Row("linear backward", "sm_90 sm_100", 16, ANY, "", (128, 256, 128, 256, 64, 8, 3), "9.4 TB/s of the cache at the peak, not 12.5"),
    Row("linear backward and norm", "sm_90 sm_100", 16, ANY, "", (64, 256, 128, 128, 64, 8, 3), "whole rows, norm_tile_rows of them"),
    Row("mlp backward", "sm_90 sm_100", 16, ANY, "gated stored", (128, 128, 128, 128, 64, 8, 3), "gate and value beside 128 x 128 sums"),
    Row("mlp backward", "sm_90 sm_100", 16, ANY, "stored", (128, 256, 128, 256, 64, 8, 3), "as linear backward"),
    Row("mlp backward", "sm_100", 16, ANY, "gated", (128, 128, 128, 128, 64, 8, 2, True), "as on sm_90, and a second program would spill"),
    Row("mlp backward", "sm_90 sm_100", 16, ANY, "gated", (128, 128, 128, 128, 64, 8, 2), "two tensors of u a step: two programs in 64 KiB"),
    Row("mlp backward", "sm_90 sm_100", 16, ANY, "", (128, 128, 128, 128, 64, 8, 3), "two programs: one multiplies, one forms activations"),
)
HEAD_CHUNK_ROWS = (
    # where a wide head stores its logits' gradient: as product, and as the tiles of dx and of dW
    Row("head logits", "sm_90 sm_100", 16, ANY, "", (128, 128, 64, 8, 3), "two programs: one multiplies, one takes exponentials and stores"),
    Row("head products", "sm_90 sm_100", 16, ANY, "", (128, 256, 128, 256, 64, 8, 3), "as linear backward"),
)
MLP_ROWS = (
    # columns of u at a time, BLOCK_M, num_warps, num_stages, all_registers
    Row("mlp forward", "sm_90 sm_100", 16, 128, "", (64, 128, 8, 2), "two programs a multiprocessor"),
    Row("mlp forward", "sm_90 sm_100", 16, ANY, "gated", (32, 128, 8, 2), "gate and value: 64 columns would take 272 KiB"),
    Row("mlp forward", "sm_100", 16, ANY, "", (64, 64, 8, 2), "128 rows and a norm spill 0.2 KB"),
    Row("mlp forward", "sm_90", 16, ANY, "", (64, 128, 8, 2), "each warp group multiplies 64 x 64 and 64 x 256"),
)
# fmt: on

# ---- attention ------------------------------------------------------------------------------------------------------

FORWARD, BACKWARD = "attention forward", "attention backward"
LDS, REGISTERS = "64 KiB of LDS", "registers"

# Width: head_dim as padded to a power of two, "padded" where that is more; "inside": rotation or norm. Tiles: rows that a
# program owns, its step along the other axis, warps, stages, and whether the assembler may use all registers (see `launch`).
# What to weigh on sm_90, in 16 bits: a wgmma of 64 by n by 16 takes n / 2 cycles, in which shared memory gives 64 n bytes. It
# reads 32 n of its right side, and 2048 of its left unless that is in registers, as P and dS are. So steps below 64 starve the
# products with q, k, v or dout to their left. A row walked over, of 4 head_dim bytes, serves 8 BLOCK head_dim FLOPs of the
# backward and 4 of the forward: with 128 rows of a program's own, 600 TFLOP/s take 2.3 and 4.7 TB/s from the second-level
# cache. And a program whose warps wait for each other wants a second one beside it.
ATTENTION_ROWS: tuple[Row, ...] = (
    *(
        Row(way, "interpreter", bits, ANY, "", (INTERPRETER_SIDE, INTERPRETER_SIDE // 2, 4, 1), "visits several blocks")
        for way in (FORWARD, BACKWARD)
        for bits in (16, 32)
    ),
    Row(FORWARD, "gfx*", 16, 64, "inside", (128, 64, 4, 2), "of a rotated half 8 waves would load 8 bytes a thread"),
    Row(FORWARD, "gfx*", 16, 128, "", (128, 64, 8, 2), LDS),
    Row(FORWARD, "gfx*", 16, 256, "", (64, 32, 4, 1), LDS),
    Row(FORWARD, "sm_*", 16, 32, "", (128, 64, 8, 3), "two programs, as exp takes as long as products"),
    Row(FORWARD, "sm_100", 16, 64, "inside", (128, 64, 8, 3), "steps of 32 load 8 bytes a thread of a half"),
    Row(FORWARD, "sm_100", 16, 64, "", (128, 32, 8, 3), "two programs; steps of 64 spill 32 bytes under Triton 3.6"),
    Row(FORWARD, "sm_*", 16, 64, "", (128, 64, 8, 3), "114 registers: two programs, as exp takes as long as products"),
    Row(FORWARD, "sm_90", 16, 128, "inside", (128, 64, 8, 2), "steps of 128 compile to 255 registers"),
    Row(FORWARD, "sm_90", 16, 128, "", (128, 128, 8, 2), "255 registers; half the barriers that steps of 64 have"),
    Row(FORWARD, "sm_100", 16, 128, "", (128, 64, 8, 2), "steps of 128 spill 76 bytes"),
    Row(FORWARD, "sm_*", 16, 128, "", (128, 32, 8, 2), "mma.sync reads its operands through registers"),
    Row(FORWARD, "sm_90", 16, 256, "inside", (128, 16, 8, 2), "steps of 32 spill 8 bytes under Triton 3.6"),
    Row(FORWARD, "sm_90 sm_100", 16, 256, "", (128, 32, 8, 2), REGISTERS),
    Row(FORWARD, "sm_120", 16, 256, "inside", (32, 16, 4, 2), "steps of 32 spill 24 bytes; and two programs"),
    Row(FORWARD, "sm_*", 16, 256, "inside", (32, 32, 4, 2), REGISTERS),
    Row(FORWARD, "sm_*", 16, 256, "", (64, 32, 8, 2), REGISTERS),
    Row(FORWARD, "gfx*", 32, 64, "", (64, 32, 4, 1), LDS),
    Row(FORWARD, "gfx*", 32, 128, "", (32, 32, 4, 1), LDS),
    Row(FORWARD, "gfx*", 32, 256, "", (16, 16, 4, 1), LDS),
    Row(FORWARD, "sm_100", 32, 16, "inside", (64, 16, 4, 2), "steps of 32 spill 8 bytes"),
    Row(FORWARD, "sm_100", 32, 64, "", (64, 32, 8, 2), "190 registers; 4 warps spill 20 bytes under Triton 3.6"),
    Row(FORWARD, "sm_90", 32, 64, "", (64, 32, 4, 2), "220 registers; a warpgroup takes 64 rows"),
    Row(FORWARD, "sm_90 sm_100", 32, 128, "", (64, 16, 4, 1), "247 registers"),
    Row(FORWARD, "sm_*", 32, 64, "", (64, 16, 4, 1), "222 registers; steps of 32 spill 0.3 KB"),
    Row(FORWARD, "sm_*", 32, 128, "", (32, 16, 4, 1), "255 registers"),
    Row(FORWARD, "sm_*", 32, 256, "", (16, 16, 4, 1, True), "64 rows spill 3 KB"),
    Row(BACKWARD, "gfx*", 16, 32, "inside", (64, 16, 4, 2), "steps of 32 spill"),
    Row(BACKWARD, "gfx*", 16, 64, "", (64, 32, 4, 2), "of a rotated half by steps of 16 a thread loads 8 bytes"),
    Row(BACKWARD, "gfx*", 16, 128, "inside", (64, 16, 4, 2), "steps of 32 spill 20 bytes on gfx942, 52 on gfx950"),
    Row(BACKWARD, "gfx942", 16, 128, "", (64, 16, 4, 2), "steps of 32 spill 60 bytes under Triton 3.6"),
    Row(BACKWARD, "gfx*", 16, 128, "", (64, 32, 4, 2), REGISTERS),
    Row(BACKWARD, "gfx*", 16, 256, "", (32, 32, 4, 1), REGISTERS),
    Row(BACKWARD, "sm_90", 16, 64, "", (128, 64, 8, 3), "200 registers, 249 inside; 220 and 255 with 2 stages"),
    Row(BACKWARD, "sm_90", 16, 128, "inside", (64, 16, 8, 2), "steps of 32 spill 0.1 KB, of 128 keys 0.2 KB"),
    Row(BACKWARD, "sm_90", 16, 128, "", (128, 64, 8, 3), "255 registers; with 2 stages Triton 3.6 spills 24 bytes"),
    Row(BACKWARD, "sm_100", 16, 32, "inside", (64, 32, 8, 2), "128 by 32 spills a few bytes"),
    Row(BACKWARD, "sm_100", 16, 64, "inside", (128, 32, 8, 2), REGISTERS),
    Row(BACKWARD, "sm_100", 16, 64, "", (128, 64, 8, 2, True), "183 registers, with 128 Triton 3.6 spills"),
    Row(BACKWARD, "sm_120", 16, 16, "", (64, 32, 4, 2), "128 keys spill 8 bytes under Triton 3.6"),
    Row(BACKWARD, "sm_120", 16, 64, "inside", (64, 32, 8, 2), "128 by 32 spills a few bytes"),
    Row(BACKWARD, "sm_*", 16, 64, "", (128, 32, 8, 2), "dk and dv take 64 registers a thread"),
    Row(BACKWARD, "sm_100", 16, 128, "inside", (64, 32, 8, 2), REGISTERS),
    Row(BACKWARD, "sm_100", 16, 128, "", (128, 64, 8, 2), "238 registers, all of tensor memory"),
    Row(BACKWARD, "sm_120", 16, 128, "inside", (32, 32, 8, 2), REGISTERS),
    Row(BACKWARD, "sm_*", 16, 128, "inside", (32, 32, 4, 2), REGISTERS),
    Row(BACKWARD, "sm_80", 16, 128, "", (64, 64, 8, 2), REGISTERS),
    Row(BACKWARD, "sm_*", 16, 128, "", (64, 32, 8, 2), "64 queries spill on sm_120"),
    Row(BACKWARD, "sm_100 sm_120", 16, 256, "inside", (32, 16, 8, 2), REGISTERS),
    Row(BACKWARD, "sm_100", 16, 256, "", (64, 32, 8, 2, True), REGISTERS),
    Row(
        BACKWARD,
        "sm_*",
        16,
        256,
        "",
        (32, 32, 8, 2),
        "64 keys, the least of wgmma, by 32 spill 8 bytes; by 16 it starves",
    ),
    Row(BACKWARD, "gfx*", 32, 64, "", (32, 32, 4, 1), LDS),
    Row(BACKWARD, "gfx*", 32, 128, "", (32, 16, 4, 1), LDS),
    Row(BACKWARD, "gfx*", 32, 256, "", (16, 16, 4, 1), LDS),
    Row(BACKWARD, "sm_120", 32, 16, "inside", (32, 16, 4, 1), "64 rows spill 52 bytes under Triton 3.6"),
    Row(BACKWARD, "sm_100", 32, 16, "inside", (64, 16, 8, 1), "4 warps spill 24 bytes under Triton 3.6"),
    Row(BACKWARD, "sm_*", 32, 32, "", (64, 16, 4, 1), "95 to 175 registers on sm_90"),
    Row(BACKWARD, "sm_*", 32, 64, "inside", (16, 16, 4, 1), "64 rows spill 0.3 KB"),
    Row(BACKWARD, "sm_*", 32, 64, "", (32, 16, 4, 1), "254 registers; 64 rows spill 20 bytes"),
    Row(BACKWARD, "sm_*", 32, 128, "", (16, 16, 4, 1), "254 registers"),
    Row(BACKWARD, "sm_*", 32, 256, "", (16, 16, 8, 1), "spills 2.3 KB inside, as nothing less does"),
)

# Compile for sm_90 without spilled registers, or nearly: for a tuner to time, each with `preferring`, beside the row above.
ATTENTION_CANDIDATES: tuple[Row, ...] = tuple(
    Row(way, "sm_90", bits, up_to, only, tiles, "to be timed")
    for way, bits, up_to, only, several in (
        (FORWARD, 16, 64, "", ((128, 64, 8, 2), (128, 64, 8, 4), (64, 64, 4, 3), (128, 128, 8, 2), (128, 64, 4, 3))),
        (FORWARD, 16, 128, "inside", ((128, 64, 8, 3), (128, 128, 8, 2))),
        (FORWARD, 16, 128, "", ((128, 64, 8, 2), (128, 64, 8, 3), (128, 128, 8, 3))),
        (BACKWARD, 16, 64, "inside", ((128, 64, 8, 2), (64, 64, 4, 3), (128, 32, 8, 3), (64, 32, 4, 3))),
        (BACKWARD, 16, 64, "", ((128, 64, 8, 2), (64, 64, 4, 3), (64, 128, 8, 2), (256, 32, 8, 2), (128, 32, 8, 3))),
        (BACKWARD, 16, 128, "", ((128, 64, 8, 2), (64, 64, 8, 3), (128, 32, 8, 2))),
        (BACKWARD, 16, 256, "", ((64, 16, 8, 2), (64, 32, 8, 2))),
        (FORWARD, 32, 64, "", ((64, 32, 4, 1), (64, 16, 4, 1), (64, 16, 8, 2))),
        (FORWARD, 32, 128, "", ((64, 16, 8, 1), (16, 16, 4, 1))),
        (BACKWARD, 32, 64, "inside", ((32, 16, 8, 1),)),
        (BACKWARD, 32, 64, "", ((64, 16, 8, 1), (64, 16, 4, 1))),
    )
    for tiles in several
)


_BOTH = (16, 32)  # numbers of either size

# "head forward", "head backward" (of the head's loss, linear_cross_entropy.py), width the power of two from d on: rows that
# stay, vocabulary that passes (backward also the reverse), the step along d of a product (0: all of it, and what stays is
# loaded once), warps, stages, registers a thread at most (0: as the assembler sees fit); forward: in pairs. "uneven": rows of
# 2-byte numbers whose length no 16 divides, each with an address of its own. "ragged": d, V or rows do not fill their blocks,
# which costs masks. No tiles: backward in chunks of stored dlogits.
HEAD_ROWS = (
    Row("head forward", "sm_90", 16, 64, "uneven", (128, 64, 0, 8, 2, 128), "128 x 128 would spill addresses"),
    Row("head forward", "sm_90", 16, 128, "uneven", (128, 64, 0, 8, 2), "two programs would spill addresses"),
    Row("head forward", "sm_100", 16, 128, "uneven", (128, 64, 0, 8, 2), "128 x 128 spills addresses"),
    Row(
        "head forward", "sm_90 sm_100", 16, 128, "", (128, 128, 0, 8, 2, 128),
        "128 registers and at most 96 KiB: two programs, one's exp beside the other's product of 64 x 128",
    ),
    Row(
        "head forward", "sm_90", 16, 256, "", (128, 64, 0, 8, 2, 0, True),
        "128 rows of x and two programs' weights exceed shared memory; in pairs one program's exp of two blocks runs beside the "
        "product of a third; 128 rows a block of weights are 6 TB/s from L2 at peak, 64 would be 12",
    ),
    Row("head forward", "sm_90", 16, ANY, "uneven", (128, 128, 64, 8, 2), "256 columns would spill addresses"),
    Row(
        "head forward", "sm_90", 16, ANY, "", (128, 256, 64, 8, 3),
        "no 128 rows of x fit; of tiles in steps along d the widest asks least of L2, 9 TB/s at peak, and exp is a third of it",
    ),
    Row("head forward", "sm_100", 16, 256, "", (128, 64, 0, 8, 2), "as many rows as L2 asks for, two stages"),
    Row("head forward", "sm_100", 16, ANY, "", (128, 128, 64, 8, 3, 255), "the assembler would spill for a second program"),
    Row("head forward", "sm_80 sm_120", 16, 32, "", (128, 32, 0, 8, 2), "a narrow d seldom divides by 16: addresses"),
    Row("head forward", "sm_80 sm_120", 16, 128, "", (128, 64, 0, 8, 2), "operands lie in registers, too"),
    Row("head forward", "sm_80 sm_120", 16, 256, "", (128, 32, 0, 8, 2), "operands lie in registers, too"),
    Row("head forward", "sm_80 sm_120", 16, ANY, "", (128, 64, 64, 8, 3), "operands lie in registers, too"),
    Row("head forward", "gfx*", 16, 128, "", (128, 64, 0, 8, 2), "64 KiB of LDS"),
    Row("head forward", "gfx*", 16, ANY, "", (128, 128, 64, 8, 2), "64 KiB of LDS"),
    Row("head forward", "gfx*", 32, ANY, "", (64, 64, 16, 4, 2), "of a tile a thread of eight warps would load 8 bytes"),
    Row("head forward", "sm_120", 32, ANY, "", (64, 32, 32, 8, 2), "each operand is split in registers: 64 columns spill"),
    Row("head forward", "sm_80", 32, ANY, "", (64, 64, 32, 8, 2), "each operand is split in registers: 128 rows spill"),
    Row("head forward", "sm_100", 32, ANY, "uneven", (64, 64, 32, 8, 2), "addresses of one number each: 128 rows spill 16 bytes"),
    Row("head forward", "*", 32, ANY, "", (128, 64, 32, 8, 2), "each operand is split in registers: 128 columns would spill"),
    Row("head backward", "sm_90", 16, 64, "uneven", (128, 64, 0, 8, 2), "two programs would spill addresses"),
    Row("head backward", "sm_90", 16, 64, "", (128, 64, 0, 8, 2, 128), "two programs, one's exp beside the other's products"),
    Row("head backward", "sm_90", 16, 128, "uneven", (128, 64, 0, 8, 2), "64 rows and four warps would spill addresses"),
    Row("head backward", "sm_90", 16, 128, "", (64, 64, 0, 4, 2), "two programs of four warps, three where nothing is cut"),
    Row("head backward", "sm_90", 16, 256, "uneven", (64, 32, 64, 8, 2), "more rows or columns would spill addresses"),
    Row("head backward", "sm_90", 16, 256, "ragged", (128, 64, 0, 8, 2), "64 rows and four warps would spill masks"),
    Row("head backward", "sm_90", 16, 256, "float16", (128, 64, 0, 8, 2), "its units beside 64 rows and four warps spill 8 bytes"),
    Row(
        "head backward", "sm_90", 16, 256, "", (64, 64, 0, 4, 2),
        "sums of 64 x 256 are half of a thread's registers: two programs, one's exp beside the other's products of 64 x 64 and "
        "64 x 256; what passes serves two products, so that 64 rows ask of L2 what 128 do forward",
    ),
    Row("head backward", "sm_90", 16, 512, "uneven", (32, 32, 64, 8, 2), "64 rows would spill addresses"),
    Row("head backward", "sm_90", 16, 512, "", (64, 64, 64, 8, 2), "sums of 64 x 512 are half of all registers"),
    Row("head backward", "sm_100", 16, 32, "", (128, 32, 0, 8, 2, 255), "a narrow d seldom divides by 16: addresses"),
    Row("head backward", "sm_100", 16, 128, "", (128, 64, 0, 8, 2), "128 sums a thread"),
    Row("head backward", "sm_100", 16, 256, "", (128, 32, 0, 8, 2), "128 sums a thread"),
    Row("head backward", "sm_100", 16, 512, "", (64, 32, 64, 8, 2), "64 rows are the least that its instructions take"),
    Row("head backward", "sm_120", 16, 256, "uneven", (64, 32, 0, 8, 2, 255), "64 columns, or a second program, spill addresses"),
    Row("head backward", "sm_80 sm_120", 16, 256, "", (64, 64, 0, 8, 2), "at most 64 sums a thread, and operands beside them"),
    Row("head backward", "sm_80 sm_120", 16, 512, "", (32, 32, 0, 8, 2), "at most 64 sums a thread, and operands beside them"),
    Row("head backward", "gfx*", 16, 64, "", (64, 32, 0, 4, 2), "held operands lie in registers"),
    Row("head backward", "gfx*", 16, 512, "", (64, 32, 64, 8, 2), "held operands would leave room for 64 columns only"),
    Row("head backward", "gfx*", 32, 256, "", (64, 32, 16, 8, 2), "64 sums a thread, operands of 16 columns"),
    Row("head backward", "*", 32, 128, "", (64, 32, 32, 8, 2), "each operand is split in registers: 64 columns would spill"),
    Row(
        "head backward", "*", 32, 256, "", (32, 32, 32, 8, 2),
        "each operand is split in registers: 64 rows would spill 300 bytes on sm_90, where 32 are too few for its own products",
    ),
    *(
        Row("head backward", "*", bits, ANY, "", (), "a second accumulator would form the logits again: three products, not four")
        for bits in _BOTH
    ),
)  # fmt: skip

# "embedding forward", width d: numbers a program, the most columns of a block.
# "embedding bucket", width d: the least rows of the vocabulary that a bucket holds.
# "embedding places", width d: tokens that a program sorts, how many it compares each with at once, blocks whose stretches a
# program of the second launch walks through as one, rows and the most columns of a tile of the position's gradient, warps.
# "embedding backward", width the rows of a bucket: rows of grad in a step, the most columns, warps.
EMBEDDING_ROWS = (
    *(
        row
        for bits in _BOTH
        for row in (
            Row("embedding forward", "*", bits, ANY, "", (2048, 1024), "16 numbers a thread: two 16-byte loads in 16 bits"),
            Row(
                "embedding places", "interpreter", bits, ANY, "", (2 * INTERPRETER_SIDE, 2 * INTERPRETER_SIDE, 4, 16, 128, 4),
                "tests visit several blocks, and several groups of them",
            ),
            Row(
                "embedding places", "*", bits, ANY, "", (256, 32, 32, 16, 128, 4),
                "all pairs are R (B + K): few where B is near K, 128 to 512; more than 32 stretches at once would cost the "
                "second launch a program a multiprocessor",
            ),
            Row("embedding bucket", "interpreter", bits, ANY, "", (INTERPRETER_SIDE // 2,), "few programs"),
        )
    ),
    Row("embedding bucket", "sm_90 sm_100", 16, ANY, "", (64,), "their matrix instructions take no fewer rows"),
    Row("embedding bucket", "*", 16, ANY, "", (16,), "a dot takes no fewer"),
    Row("embedding bucket", "*", 32, ANY, "", (16,), "a dot takes no fewer; more would be more FLOPs without tensor cores"),
    Row("embedding backward", "*", 16, 32, "", (64, 64, 4), "columns of 128 bytes and at most 16 sums a thread"),
    Row("embedding backward", "*", 16, ANY, "", (64, 64, 8), "columns of 128 bytes and at most 32 sums a thread"),
    Row("embedding backward", "gfx*", 32, 32, "", (32, 32, 4), "waves of 64 need 8 rows each for loads of 16 bytes"),
    Row("embedding backward", "gfx*", 32, ANY, "", (64, 32, 8), "waves of 64 need 8 rows each for loads of 16 bytes"),
    Row("embedding backward", "*", 32, 32, "", (16, 32, 4), "no tensor cores: few sums, short steps"),
    Row("embedding backward", "*", 32, ANY, "", (16, 32, 8), "no tensor cores: 16 sums a thread, short steps"),
)  # fmt: skip

# "adamw", width the parameters of a member: numbers of a block, warps, programs at once.
ADAMW_ROWS = (
    Row("adamw", "interpreter", 32, ANY, "", (2048, 8, 4), "small tests visit several parts and several blocks a part"),
    Row(
        "adamw", "gfx*", 32, ANY, "", (2048, 4, 1056),
        "eight numbers a thread: two loads of 16 bytes of each array; as many programs as for NVIDIA fit the device",
    ),
    Row("adamw", "sm_100", 32, ANY, "", (1024, 4, 1056), "eight numbers a thread; 8 warps spill 16 bytes under Triton 3.6"),
    Row(
        "adamw", "*", 32, ANY, "", (2048, 8, 1056),
        "eight numbers a thread: two loads of 16 bytes of each array; 1056 programs are what 132 multiprocessors hold at once",
    ),
)  # fmt: skip

ROWS: tuple[Row, ...] = (
    *PRODUCT_ROWS, *BACKWARD_ROWS, *HEAD_CHUNK_ROWS, *MLP_ROWS, *ATTENTION_ROWS, *HEAD_ROWS, *EMBEDDING_ROWS, *ADAMW_ROWS
)  # fmt: skip
# Whole operations that plain PyTorch does (kernels/eager.py), under their functions' names there and without tiles, because a card
# has found their kernels wrong. The tests try the kernels all the same.
#     Row("attention_backward", "sm_90", 16, 128, "", (), "wrong in bfloat16: H100, 2026-12-01"),
HANDED_OVER: tuple[Row, ...] = ()
for _row in (*ROWS, *HANDED_OVER):
    checked(_row)
_prefer(())
# What `make gpu PARTS=tune` times besides the neighbours of a row.
CANDIDATES: tuple[Row, ...] = (
    *ATTENTION_CANDIDATES,
    Row("mlp forward", "sm_90", 16, 256, "", (), "two launches, each with tiles of full width"),
    Row("mlp forward", "sm_90", 16, 256, "gated", (), "two launches, each with tiles of full width"),
)
