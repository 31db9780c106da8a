"""What the results of this room share: they print, show in a notebook and export."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Result:
    """A result that prints by `__str__` and exports by `to_dict`."""

    def to_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def to_json(self, path: str | Path | None = None) -> str:
        """The result as JSON, also written to `path` if given; a number that is not finite becomes null."""
        text = json.dumps(finite(self.to_dict()), indent=1, allow_nan=False)
        if path is not None:
            Path(path).write_text(text)
        return text

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


class TableResult(Result):
    """A result of a title, tables and notes, as text and as HTML."""

    def _parts(self) -> tuple[str, list[Sequence[Sequence[str]]], list[str]]:
        """Title, tables of cells with their headers first, and notes; those that warn begin with "! "."""
        raise NotImplementedError

    def __str__(self) -> str:
        title, tables, notes = self._parts()
        return "\n".join([title, *map(text_table, tables), *notes])

    def _repr_html_(self) -> str:
        title, (first, *others), notes = self._parts()
        return html_table(first, title) + "".join(map(html_table, others)) + html_notes(notes)


def html_table(
    rows: Sequence[Sequence[str]], caption: str = "", notes: Sequence[str] = (), align: str = "right"
) -> str:
    """Rows of cells, the first the header, as an HTML table: the first column set left, the others as `align` says."""
    from html import escape

    def line(row: Sequence[str], tag: str) -> str:
        sides = ["left", *[align] * (len(row) - 1)]
        cells = (f'<{tag} style="text-align: {side}">{escape(c)}</{tag}>' for c, side in zip(row, sides, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    title = f'<caption style="text-align: left">{escape(caption)}</caption>' if caption else ""
    body = "".join(line(row, "td") for row in rows[1:])
    return f"<table>{title}<thead>{line(rows[0], 'th')}</thead><tbody>{body}</tbody></table>{html_notes(notes)}"


def html_notes(notes: Sequence[str]) -> str:
    """Notes as paragraphs; those that begin with "! " have a warning sign."""
    from html import escape

    return "".join(
        f"<p>{'&#9888; ' * note.startswith('! ')}{escape(note.removeprefix('! ').strip())}</p>" for note in notes
    )


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns: the first set left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def new_axes() -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(6, 4), layout="constrained")[1]


def groups_of_close(values: np.ndarray, tolerance: float) -> list[np.ndarray]:
    """Indices [k] of values that follow each other within a factor 1 + tolerance, in ascending order of the groups."""
    if not len(values):
        return []
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(np.log(values[order])) > np.log1p(tolerance)) + 1)


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return value if not isinstance(value, float) or np.isfinite(value) else None
