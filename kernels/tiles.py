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

ROWS: tuple[Row, ...] = (*EMBEDDING_ROWS, *ADAMW_ROWS)
