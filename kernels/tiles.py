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


ROWS: tuple[Row, ...] = ()
