"""How the results of this room print: within 80 columns, notes wrapped beneath themselves."""

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

WIDTH = 80
_NARROWEST_NOTE = 28


def wrapped(text: str, indent: int) -> list[str]:
    """Lines of a text, each indented."""
    return wrap(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent, break_long_words=False)


def warned(warnings: Sequence[str]) -> list[str]:
    """Lines of warnings, each opened by an exclamation mark."""
    return [
        line
        for warning in warnings
        for line in wrap(f"! {warning}", WIDTH, subsequent_indent="  ", break_long_words=False)
    ]


def noted_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of rows of cells, of which the last is a note that wraps within its column, or beneath the row if that is narrow."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    column = sum(widths) + 2 * len(widths)
    lines = []
    for *cells, note in rows:
        row = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        if WIDTH - column >= _NARROWEST_NOTE:
            first, *rest = wrapped(note, column) or [""]
            lines += [f"{row}  {first.strip()}".rstrip(), *rest]
        else:
            lines += [row.rstrip(), *wrapped(note, widths[0] + 2)]
    return lines


def verdict_of(fit: Any, warnings: Sequence[str] = ()) -> str:
    """Whether to believe what is planned by a fit, in a few words: its concerns or cautions, or that there are warnings."""
    evidence = getattr(fit, "evidence", None)
    if evidence is None:
        return "by constants that are taken as given"
    if not evidence.trustworthy:
        return f"NOT TO BE TRUSTED, {'; '.join(evidence.concerns)}"
    if cautions := getattr(evidence, "cautions", ()):
        return f"to be trusted with care, {cautions[0]}"
    if warnings:
        return "to be trusted with care, see the warnings"
    return "to be trusted as far as its intervals go"
