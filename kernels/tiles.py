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


_BOTH = (16, 32)  # numbers of either size

# "head forward", "head backward" (of the head's loss, linear_cross_entropy.py), width the power of two from d on: rows that
# stay, vocabulary that passes (backward also the reverse), the step along d of a product (0: all of it, and what stays is
# loaded once), warps, stages, registers a thread at most (0: as the assembler sees fit); forward: in pairs. "uneven": rows of
# 2-byte numbers whose length no 16 divides, each with an address of its own. "ragged": d, V or rows do not fill their blocks,
# which costs masks. No tiles: backward in chunks of stored dlogits.
HEAD_ROWS = (
    Row("head forward", "sm_90", 16, 64, "uneven", (128, 64, 0, 8, 2, 128), "128 x 128 would spill addresses"),
    Row("head forward", "sm_90", 16, 128, "uneven", (128, 64, 0, 8, 2), "two programs would spill addresses"),
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
    Row("head forward", "*", 32, ANY, "", (128, 64, 32, 8, 2), "each operand is split in registers: 128 columns would spill"),
    Row("head backward", "sm_90", 16, 64, "", (128, 64, 0, 8, 2, 128), "two programs, one's exp beside the other's products"),
    Row("head backward", "sm_90", 16, 128, "uneven", (128, 64, 0, 8, 2), "64 rows and four warps would spill addresses"),
    Row("head backward", "sm_90", 16, 128, "", (64, 64, 0, 4, 2), "two programs of four warps, three where nothing is cut"),
    Row("head backward", "sm_90", 16, 256, "uneven", (64, 32, 64, 8, 2), "more rows or columns would spill addresses"),
    Row("head backward", "sm_90", 16, 256, "ragged", (128, 64, 0, 8, 2), "64 rows and four warps would spill masks"),
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
    Row(
        "adamw", "*", 32, ANY, "", (2048, 8, 1056),
        "eight numbers a thread: two loads of 16 bytes of each array; 1056 programs are what 132 multiprocessors hold at once",
    ),
)  # fmt: skip

ROWS: tuple[Row, ...] = (*HEAD_ROWS, *EMBEDDING_ROWS, *ADAMW_ROWS)
