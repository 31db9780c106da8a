"""Which tiles an operation takes, by target, dtype and width: one table, each row with its reason.

A row says: *operation* on *targets* (shell patterns, "sm_90 sm_100" or "sm_*") with numbers of *bits* and a width of *up_to*
at most takes *tiles*, and why. *only* names what else must hold, such as "uneven" (widths that do not divide by 16) or
"inside" (rotation or norm within attention). The first row that fits counts, so narrow rows stand before wide ones. What a
width is, and what its tiles hold, the operation's own file says; a tile is cut there to sizes smaller than itself.

`make gpu PARTS=tune` times candidates on a card and proposes rows; none of these has been timed on one yet: where no reason
says otherwise, a row holds the largest tiles seen to compile without spilled registers and within shared memory.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch

from pyscaling.kernels.launch import INTERPRETER_SIDE


class Row(NamedTuple):
    operation: str
    targets: str
    bits: int
    up_to: float
    only: str
    tiles: tuple[Any, ...]
    reason: str


ANY = float("inf")


def choose(operation: str, target: str, dtype: torch.dtype, width: int, *conditions: str) -> tuple[Any, ...]:
    """The tiles of the first row that fits. Raises KeyError for an operation that has none there."""
    return _choose(operation, target, 8 * dtype.itemsize, width, conditions)


@functools.lru_cache(maxsize=4096)
def _choose(operation: str, target: str, bits: int, width: int, conditions: tuple[str, ...]) -> tuple[Any, ...]:
    for row in (*_preferred, *ROWS):
        if (
            row.operation == operation
            and row.bits == bits
            and width <= row.up_to
            and set(row.only.split()) <= set(conditions)
            and any(fnmatchcase(target, pattern) for pattern in row.targets.split())
        ):
            return row.tiles
    raise KeyError(
        f"no tiles for {operation} of {bits} bits, width {width}, on {target}; add a row to kernels/tiles.py."
    )


_preferred: tuple[Row, ...] = ()


@contextmanager
def preferring(rows: Sequence[Row]) -> Iterator[None]:
    """Within it these rows come before the table's: to time a candidate, or to force a card's tiles on the interpreter."""
    global _preferred
    before = _preferred
    _preferred = tuple(rows)
    _choose.cache_clear()
    try:
        yield
    finally:
        _preferred = before
        _choose.cache_clear()


FORWARD, BACKWARD = "attention forward", "attention backward"

# Width: head_dim as padded to a power of two. Tiles: rows that a program owns, its step along the other axis, warps, stages,
# and whether the assembler may use all registers (see `launch`). The bound in mind on sm_90: a wgmma of 64 rows by n columns
# and 16 deep takes n / 2 cycles and reads, at 128 bytes a cycle, 32 n bytes of one operand from shared memory and 2 KiB of
# the other unless it is in registers, as P and dS are. So the products with q or k and v to their left are bound by shared
# memory at steps below 64. Rows of a program's own are what divides the reads of the second-level cache: 4 head_dim
# products for each byte, so 128 of them keep 600 TFLOP/s below 2.4 TB/s in the backward, 4.7 in the forward.
ATTENTION_ROWS: tuple[Row, ...] = (
    *(
        Row(way, "interpreter", bits, ANY, "", (INTERPRETER_SIDE, INTERPRETER_SIDE // 2, 4, 1), "visits several blocks")
        for way in (FORWARD, BACKWARD)
        for bits in (16, 32)
    ),
    # ---- forward, 16 bits
    Row(FORWARD, "gfx*", 16, 64, "inside", (128, 64, 4, 2), "of a rotated half a thread of 8 waves loads 8 bytes or less"),
    Row(FORWARD, "gfx*", 16, 128, "", (128, 64, 8, 2), "64 KiB of LDS"),
    Row(FORWARD, "gfx*", 16, 256, "", (64, 32, 4, 1), "64 KiB of LDS"),
    Row(FORWARD, "sm_*", 16, 64, "", (128, 64, 8, 3), "119 registers: two programs a multiprocessor, one's exp beside the other's products, which take as long"),
    Row(FORWARD, "sm_90", 16, 128, "inside", (128, 64, 8, 2), "steps of 128 compile to 255 registers"),
    Row(FORWARD, "sm_90", 16, 128, "", (128, 128, 8, 2), "243 registers; half the barriers of steps of 64"),
    Row(FORWARD, "sm_100", 16, 128, "", (128, 64, 8, 2), ""),
    Row(FORWARD, "sm_*", 16, 128, "", (128, 32, 8, 2), "mma.sync reads its operands through registers"),
    Row(FORWARD, "sm_90 sm_100", 16, 256, "", (128, 32, 8, 2), "shared memory"),
    Row(FORWARD, "sm_*", 16, 256, "inside", (32, 32, 4, 2), "registers"),
    Row(FORWARD, "sm_*", 16, 256, "", (64, 32, 8, 2), "registers"),
    # ---- forward, 32 bits
    Row(FORWARD, "gfx*", 32, 64, "", (64, 32, 4, 1), "64 KiB of LDS"),
    Row(FORWARD, "gfx*", 32, 128, "", (32, 32, 4, 1), "64 KiB of LDS"),
    Row(FORWARD, "gfx*", 32, 256, "", (16, 16, 4, 1), "64 KiB of LDS"),
    Row(FORWARD, "sm_*", 32, 64, "", (64, 32, 4, 2), "tf32x3: one warpgroup, both halves of a number in registers"),
    Row(FORWARD, "sm_*", 32, 128, "", (64, 16, 4, 1), "tf32x3: 247 registers"),
    Row(FORWARD, "sm_*", 32, 256, "", (16, 16, 4, 1, True), ""),
    # ---- backward, 16 bits
    Row(BACKWARD, "gfx*", 16, 32, "inside", (64, 16, 4, 2), "steps of 32 leave no registers"),
    Row(BACKWARD, "gfx*", 16, 64, "", (64, 32, 4, 2), "by steps of 16 a thread would load 8 bytes"),
    Row(BACKWARD, "gfx*", 16, 128, "inside", (64, 16, 4, 2), "steps of 32 leave no registers"),
    Row(BACKWARD, "gfx*", 16, 128, "", (64, 32, 4, 2), "registers"),
    Row(BACKWARD, "gfx*", 16, 256, "", (32, 32, 4, 1), "registers"),
    Row(BACKWARD, "sm_90", 16, 64, "", (128, 64, 8, 3), "200 registers of 255, 249 with rotation and norm"),
    Row(BACKWARD, "sm_90", 16, 128, "inside", (64, 16, 8, 2), "steps of 32 spill 0.1 KB, 128 keys by 32 0.2 KB"),
    Row(BACKWARD, "sm_90", 16, 128, "", (128, 64, 8, 2), "255 registers; 64 keys read the second-level cache twice as often"),
    Row(BACKWARD, "sm_100", 16, 32, "inside", (64, 32, 8, 2), "128 by 32 spills a few bytes"),
    Row(BACKWARD, "sm_100", 16, 64, "inside", (128, 32, 8, 2), ""),
    Row(BACKWARD, "sm_100", 16, 64, "", (128, 64, 8, 2), ""),
    Row(BACKWARD, "sm_120", 16, 64, "inside", (64, 32, 8, 2), "128 by 32 spills a few bytes"),
    Row(BACKWARD, "sm_*", 16, 64, "", (128, 32, 8, 2), "dk and dv take 64 registers a thread"),
    Row(BACKWARD, "sm_100", 16, 128, "inside", (64, 32, 8, 2), ""),
    Row(BACKWARD, "sm_120", 16, 128, "inside", (32, 32, 8, 2), "registers"),
    Row(BACKWARD, "sm_*", 16, 128, "inside", (32, 32, 4, 2), "registers"),
    Row(BACKWARD, "sm_80", 16, 128, "", (64, 64, 8, 2), "registers"),
    Row(BACKWARD, "sm_*", 16, 128, "", (64, 32, 8, 2), "64 queries spill on sm_120"),
    Row(BACKWARD, "sm_100 sm_120", 16, 256, "inside", (32, 16, 8, 2), "registers"),
    Row(BACKWARD, "sm_100", 16, 256, "", (64, 32, 8, 2, True), "tensor memory holds the sums"),
    Row(BACKWARD, "sm_*", 16, 256, "", (32, 32, 8, 2), "mma.sync: of 64 keys, which wgmma takes at least, steps of 32 spill 8 bytes"),
    # ---- backward, 32 bits
    Row(BACKWARD, "gfx*", 32, 64, "", (32, 32, 4, 1), "64 KiB of LDS"),
    Row(BACKWARD, "gfx*", 32, 128, "", (32, 16, 4, 1), "64 KiB of LDS"),
    Row(BACKWARD, "gfx*", 32, 256, "", (16, 16, 4, 1), "64 KiB of LDS"),
    Row(BACKWARD, "sm_*", 32, 32, "", (64, 16, 4, 1), "tf32x3: 95 to 175 registers"),
    Row(BACKWARD, "sm_*", 32, 64, "inside", (16, 16, 4, 1), "tf32x3"),
    Row(BACKWARD, "sm_*", 32, 64, "", (32, 16, 4, 1), "tf32x3: 254 registers"),
    Row(BACKWARD, "sm_*", 32, 128, "", (16, 16, 4, 1), "tf32x3: 254 registers"),
    Row(BACKWARD, "sm_*", 32, 256, "", (16, 16, 8, 1), "spills 2.3 KB with rotation and norm"),
)

ROWS: tuple[Row, ...] = ATTENTION_ROWS
