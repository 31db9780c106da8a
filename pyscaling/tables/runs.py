"""A table of training runs: named columns of equal length, checked once, kept as numpy arrays.

N non-embedding parameters, D training tokens, C training FLOPs, loss in nats per token; any other column is kept as it is.
"""

import csv
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pyscaling.tables.checks import doubts
from pyscaling.tables.headers import EMPTY, Unit, bare_cell, cell_value, likely, match, meaning, unit_of
from pyscaling.tables.reading import as_mapping, read_table
from pyscaling.units import plain_number

_NUMBERS = ("N", "D", "C", "loss")  # must be there, finite and positive, in every row
_IN_MEMORY = "the table"


class Runs:
    """Runs as columns.

    data: a mapping of columns, a dataframe, a sequence of mappings (one per run), or Runs. source: where it was read,
    named in errors. columns: this library's name -> the table's, e.g. {"N": "Model Size"}; the usual headers of N, D, C, S,
    loss and seed are recognised without it, with the units that they or the cells carry ("Params (M)", "300B tokens").
    units: column -> what its numbers are multiplied by, or a unit: {"N": "M", "C": "PF-days", "loss": "perplexity"}.
    where: a condition on the table's own columns that rows must meet, as in pandas' query: 'State == "finished"'.
    drop_missing: leave out rows without N, D, C or loss (or the columns named), rather than refuse them.

    Columns N, D, C and loss must be numbers, finite and positive; of N, D and C the one that is missing, for all runs or for
    some, follows from the others by C = 6ND. renamed: ours -> the table's name, of the columns that were recognised. notes:
    what was done to the table. doubts: what makes its units doubtful. rows: [n], each run's row in the table, from 0.
    Raises ValueError that names row, column, value and remedy.
    """

    def __init__(
        self,
        data: Any,
        *,
        source: str = _IN_MEMORY,
        renamed: Mapping[str, str] | None = None,
        columns: Mapping[str, str] | None = None,
        units: Mapping[str, Any] | None = None,
        where: str | None = None,
        drop_missing: bool | Collection[str] = False,
    ) -> None:
        self.source: str = source
        self.notes: tuple[str, ...] = ()
        self.derived: frozenset[str] = frozenset()
        self.declared: frozenset[str] = frozenset(units or ())
        self.scaled: dict[str, float] = {}
        self._unclear: dict[str, list[str]] = {}
        if isinstance(data, str | Path):
            raise ValueError(f"runs={str(data)!r} is a path, not a table; read it first: ps.read_runs({str(data)!r}).")
        old = data if isinstance(data, Runs) else None
        if old is not None:
            renamed = old.renamed if renamed is None else renamed
            self.source = source = old.source if source == _IN_MEMORY else source
            self.notes, self.derived, self.declared = old.notes, old.derived, old.declared | self.declared
            self.scaled = dict(old.scaled)
        table = {str(name): values for name, values in (old.to_dict() if old else as_mapping(data)).items()}
        chosen: dict[str, Unit] = {}
        if renamed is None:
            found, chosen, self._unclear = _match(table, dict(columns or {}), source)
            scaled = chosen.keys() | (units or {}).keys()
            # what is read in a unit also stays as it stands, under its own name
            raw = {name: values for name, values in table.items() if name != found.get(name, name) in scaled}
            table = {found.get(name, name): values for name, values in table.items()}
            table |= {name: values for name, values in raw.items() if name not in table}
            renamed = {new: theirs for theirs, new in found.items() if new != theirs}
        self.renamed: dict[str, str] = dict(renamed)
        self._ours = {theirs: ours for ours, theirs in self.renamed.items()}
        self._columns = {}
        for name, values in table.items():
            array = _as_array(
                values, f"{name} of {source}", needed=name in (*_NUMBERS, *(units or ()), *(columns or ()))
            )
            if array is not None:
                self._columns[name] = array
            else:
                self.notes += (f"{name!r} left out, for it is not one value a run",)
        lengths = {name: len(column) for name, column in self._columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of {source} differ in length: {lengths}.")
        self.rows: np.ndarray = np.arange(next(iter(lengths.values()), 0)) if old is None else old.rows
        if where is not None:
            self._keep(self._query(where), f"where {where}")
        for name in (units or {}).keys() - self._columns.keys():
            self[name]  # says what there is
        for name, unit in {**chosen, **{name: unit_of(name, given) for name, given in (units or {}).items()}}.items():
            self._columns[name] = self._read(name, unit)
            if unit != Unit():
                self.notes += (unit.done_to(name),)
                self.scaled[name] = unit.scale
        self._check(drop_missing)

    def _check(self, drop_missing: bool | Collection[str]) -> None:
        """Reads the numbers, fills in the third of N, D and C, and leaves out or refuses rows without them."""
        also = () if isinstance(drop_missing, bool) else drop_missing
        asked = [also] if isinstance(also, str) else list(also)
        for name in _NUMBERS:
            if name in self._columns:
                self._columns[name] = self._read(name)
        self._derive()
        needed = {name: self._columns[name] for name in _NUMBERS if name in self._columns and name not in self.derived}
        needed |= {name: self._read(name) for name in asked}
        lost = {name: ~np.isfinite(column) for name, column in needed.items()}
        missing = {name: rows for name, rows in lost.items() if rows.any()}
        if missing and drop_missing is not False:
            gone = np.any(list(missing.values()), axis=0)
            self._keep(~gone, ", ".join(f"{name} missing in {rows.sum()}" for name, rows in missing.items()))
            if not len(self):
                raise ValueError(f"every row of {self.source} lacks {' or '.join(missing)}; nothing is left.")
        elif missing:
            raise ValueError(self._missing(missing, needed))
        for name in _NUMBERS:
            if name in self._columns and (bad := np.flatnonzero(self._columns[name] <= 0)).size:
                raise ValueError(
                    f"{name} must be finite and positive; row {self.rows[bad[0]] + 1} of {self.source} has "
                    f"{name}={self._columns[name][bad[0]]:g}{f' ({bad.size} such rows)' if bad.size > 1 else ''}. Drop the "
                    "row or fix its units."
                )

    def _missing(self, missing: Mapping[str, np.ndarray], needed: Mapping[str, np.ndarray]) -> str:
        """What is missing where, and the remedy that works."""
        name, lost = next(iter(missing.items()))
        row = int(np.flatnonzero(lost)[0])
        value = needed[name][row]
        gone = np.any(list(missing.values()), axis=0)
        counts = ", ".join(f"{name} in {rows.sum()}" for name, rows in missing.items())
        has = f"{name}={value:g}" if np.isinf(value) else f"no {name} ({name}=nan)"
        if gone.all():
            remedy = f"No run would be left: is {name} in another column? Name it: --column {name}=... (columns=...)"
        else:
            state = next((header for header in self._columns if header.lower() in ("state", "status")), "")
            picked = f"'{state} == \"finished\"'" if state else "a condition on its columns"
            remedy = f"Drop the rows: --drop-missing (drop_missing=True), or keep the right ones: --where {picked} (where=...)"
        return (
            f"{name} must be finite and positive; row {self.rows[row] + 1} of {self.source} has {has}"
            f" ({gone.sum()} of {len(self)} rows lack a value: {counts}). {remedy}."
        )

    def _derive(self) -> None:
        """Fills in what is missing of N, D and C, by C = 6ND: a whole column, or its empty cells."""
        columns = self._columns
        have = [name for name in ("N", "D", "C") if name in columns]
        if len(have) < 2:
            return

        def by_6ND(name: str) -> np.ndarray:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                if name == "C":
                    return 6 * columns["N"] * columns["D"]
                return columns["C"] / (6 * columns["D" if name == "N" else "N"])

        if len(have) == 2:
            third = ({"N", "D", "C"} - set(have)).pop()
            columns[third] = by_6ND(third)
            self.derived = self.derived | {third}
            known = np.isfinite(columns[have[0]]) & np.isfinite(columns[have[1]])
            bad = np.flatnonzero(known & ~np.isfinite(columns[third]))
            if bad.size:
                pair = " and ".join(f"{name}={columns[name][bad[0]]:g}" for name in have)
                raise ValueError(
                    f"row {self.rows[bad[0]] + 1} of {self.source} has {pair}, whose C = 6ND overflows. Fix their units."
                )
            return
        for name in have:
            filled = np.isnan(columns[name]) & np.isfinite(by_6ND(name))
            if filled.any():
                columns[name] = np.where(filled, by_6ND(name), columns[name])
                self.notes += (f"{name} of {filled.sum()} rows by C = 6ND",)

    def _query(self, where: str) -> np.ndarray:
        """Rows [n] that meet a condition on columns, under the table's names or this library's."""
        import pandas as pd

        columns = {self.renamed.get(name, name): column for name, column in self._columns.items()}
        frame = pd.DataFrame(columns | {name: column for name, column in self._columns.items() if name not in columns})
        try:
            met = np.asarray(frame.eval(where, engine="python"))
        except Exception as error:
            raise ValueError(
                f"where={where!r} cannot be answered ({error}); the columns are {', '.join(columns)}. Write for example "
                "'State == \"finished\"', and names with spaces or slashes in backticks: '`eval/loss` < 4'."
            ) from None
        if met.shape != (len(self),) or met.dtype != bool:
            raise ValueError(f"where={where!r} is no condition; write for example 'State == \"finished\"'.")
        if not met.any():
            raise ValueError(f"where={where!r} leaves none of the {len(self)} rows of {self.source}.")
        return met

    def _keep(self, kept: np.ndarray, why: str) -> None:
        self.notes += (f"{int((~kept).sum())} of {len(kept)} rows left out ({why})",)
        self._columns = {name: column[kept] for name, column in self._columns.items()}
        self.rows = self.rows[kept]

    def _read(self, name: str, unit: Unit = Unit()) -> np.ndarray:  # noqa: B008 - immutable
        """A column as floats [n] in a unit, NaN where a cell is empty; a cell's own unit, as in "1.3B", has the last word."""
        column = self[name]
        if column.dtype.kind in "biuf":
            return unit.apply(column.astype(np.float64))
        values, own = np.empty(len(column)), np.zeros(len(column), dtype=bool)
        for row, cell in enumerate(column.tolist()):
            text = bare_cell(cell)
            try:
                values[row] = np.nan if text.lower() in EMPTY else plain_number(text)
            except ValueError:
                try:
                    values[row], own[row] = cell_value(name, text), True
                except ValueError:
                    raise ValueError(
                        f"{name} must be a number; row {self.rows[row] + 1} of {self.source} has {name}={str(cell)!r}. Write it "
                        "as 1.3e9, 1.3B or 1,300,000,000, or leave the row out: --where (where=...)."
                    ) from None
        return np.where(own, values, unit.apply(values))

    def numbers(self, name: str) -> np.ndarray:
        """A column as floats [n]; NaN where a cell is empty. Raises ValueError that names the first row that holds none."""
        return self._read(name)

    @cached_property
    def doubts(self) -> tuple[str, ...]:
        """Sentences on units that cannot be right, see tables.checks; empty where nothing is odd."""
        return doubts(self)

    def doubts_about(self, columns: Collection[str]) -> tuple[str, ...]:
        """Those doubts that concern any of these columns."""
        return doubts(self, columns)

    @property
    def taken(self) -> str:
        """What was taken for what, in one line."""
        found = sorted(self.renamed.items(), key=lambda pair: ("N", "D", "C", "S", "loss", pair[0]).index(pair[0]))
        parts = [f"{ours} = {theirs!r}" for ours, theirs in found]
        parts += [f"{name} by C = 6ND" for name in sorted(self.derived)]
        return "; ".join([", ".join(parts) or "columns as named", *self.notes])

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self:
            raise ValueError(self.missing(name))
        return self._columns[name if name in self._columns else self._ours[name]]

    def missing(self, name: str) -> str:
        """What an error says of a column that is not there: what there is, and which may be it."""
        guesses = self._unclear.get(name) or [header for header in likely(self._columns, name) if header != name]
        header = guesses[0] if guesses else "its name there"
        remedy = (
            f'ps.Runs(table, columns={{"{name}": "{header}"}}), or frame.rename(columns={{"{header}": "{name}"}})'
            if self.source == _IN_MEMORY
            else f'read_runs(path, columns={{"{name}": "{header}"}}), or --column {name}="{header}"'
        )
        why = f" ({' and '.join(map(repr, guesses))} could each be it)" if name in self._unclear else ""
        steps = ""
        if name == "D" and "S" in self:
            steps = " Steps are no tokens: --column D=STEPS --unit D=BATCH, the batch in tokens (columns=, units=)."
        return (
            f"column {name!r} is missing from {self.source}{why}; it holds {', '.join(self._columns) or 'no column'}. "
            f"Name one: {remedy}.{steps}"
        )

    def __contains__(self, name: str) -> bool:
        return name in self._columns or name in self._ours

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), ()))

    @property
    def columns(self) -> list[str]:
        return list(self._columns)

    @property
    def N(self) -> np.ndarray:
        return self["N"]

    @property
    def D(self) -> np.ndarray:
        return self["D"]

    @property
    def C(self) -> np.ndarray:
        return self["C"]

    @property
    def loss(self) -> np.ndarray:
        return self["loss"]

    def labels(self, given: Any, argument: str) -> np.ndarray:
        """Labels [n]: those of a column, or those given, one per run. Raises ValueError where one is missing."""
        labels = self[given] if isinstance(given, str) else np.asarray(given)
        if labels.shape != (len(self),):
            raise ValueError(
                f"{argument} must name a column or hold one label per run ({len(self)}), got shape {labels.shape}."
            )
        empty = [
            row for row, label in enumerate(labels.tolist()) if label is None or str(label).strip().lower() in EMPTY
        ]
        if empty:
            raise ValueError(
                f"{argument}{f' {given!r}' if isinstance(given, str) else ''} has no label in row {self.rows[empty[0]] + 1} of "
                f"{self.source}{f' ({len(empty)} such rows)' if len(empty) > 1 else ''}. Fill it in or drop the row."
            )
        return labels.astype(str) if labels.dtype == object else labels

    def select(self, which: Any | Callable[["Runs"], Any]) -> "Runs":
        """The runs where a boolean mask (or a function of these runs that gives one), or an index array, points."""
        chosen = np.asarray(which(self) if callable(which) else which)
        if not chosen.size and chosen.dtype != bool:
            chosen = chosen.astype(np.intp)
        if chosen.dtype == bool and len(chosen) != len(self):
            raise ValueError(f"the mask has {len(chosen)} entries, {self.source} has {len(self)} rows.")
        return self._like({name: column[chosen] for name, column in self._columns.items()}, self.rows[chosen])

    def with_columns(self, columns: Mapping[str, Any]) -> "Runs":
        """The runs with further columns [n], or others in place of theirs."""
        return self._like(self._columns | {name: np.asarray(values) for name, values in columns.items()}, self.rows)

    def _like(self, columns: Mapping[str, np.ndarray], rows: np.ndarray) -> "Runs":
        other = Runs(columns, source=self.source, renamed=self.renamed)
        other.notes, other.derived, other.declared, other.rows = self.notes, self.derived, self.declared, rows
        other.scaled = self.scaled
        other._unclear = self._unclear
        return other

    def join(self, table: Any, on: str = "run") -> "Runs":
        """Curves with what a table of runs says of each: its N, its recipe; `on` (or Name) says which row belongs to which.

        What the curves hold is theirs: a run's final loss, tokens and compute are not taken for those on the way. Where they
        count steps alone, D is steps x (tokens / steps) of the run. Curves of runs that the table lacks are left out, as `notes`
        says. Raises ValueError for a label that the table has twice, steps without tokens a step, or if nothing is left.
        """
        other = table.to_dict() if isinstance(table, Runs) else as_mapping(table)
        key = next((name for name in other if name.lower() in (on.lower(), "name", "run name")), None)
        if key is None:
            raise ValueError(f"on={on!r} is no column of the table to join, which holds {', '.join(other)}.")
        place: dict[str, int] = {}
        for row, label in enumerate(np.asarray(other[key]).tolist()):
            if str(label) in place:
                raise ValueError(f"the table to join has {key}={label!r} twice; leave one out.")
            place[str(label)] = row
        there = np.array([str(label) in place for label in self[on].tolist()])
        if not there.any():
            raise ValueError(f"no label of {on} in {self.source} is a {key} of the table to join.")
        mine = self.select(there)
        index = np.array([place[str(label)] for label in mine[on].tolist()], dtype=np.intp)
        own = set(mine._columns) | set(mine.renamed.values())
        spent = {"D", "C"} & own
        found = match({name: values for name, values in other.items() if name != key})[0]
        ours = {name: found.get(name, name) for name in other if name != key}
        taken = {
            name: np.asarray(other[name])[index]
            for name, column in ours.items()
            if column not in own and column not in ("loss", *(("D", "C") if spent or "S" in own else ()))
        }
        columns = {name: column for name, column in mine._columns.items() if name not in mine.derived} | taken
        if not spent and "S" in own:
            finals = Runs({name: other[name] for name, column in ours.items() if column in ("D", "S")})
            if not {"D", "S"} <= set(finals.columns):
                raise ValueError(
                    f"{self.source} counts steps, and the table to join lacks tokens or steps of the runs, which would say how "
                    'many tokens a step takes; add them: curves.with_columns({"D": curves["S"] * batch}).'
                )
            columns["D"] = mine.numbers("S") * (finals.D / finals.numbers("S"))[index]
        joined = Runs(columns, source=self.source)
        if not there.all():
            lost = dict.fromkeys(str(label) for label in self[on][~there].tolist())
            joined.notes += (f"left out: {', '.join(lost)}, which the table joined does not hold",)
        return joined

    def to_dict(self) -> dict[str, np.ndarray]:
        return dict(self._columns)

    def to_frame(self) -> Any:
        """A pandas DataFrame of all columns."""
        import pandas as pd

        return pd.DataFrame(self._columns)

    def to_csv(self, path: str | Path) -> None:
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(self._columns)
            writer.writerows(self._rows())

    def to_json(self, path: str | Path | None = None) -> str:
        """The columns as JSON, also written to `path` if given; a number that is not finite becomes null."""
        columns = {
            name: [None if isinstance(value, float) and not np.isfinite(value) else value for value in column.tolist()]
            for name, column in self._columns.items()
        }
        text = json.dumps(columns, allow_nan=False)
        if path is not None:
            Path(path).write_text(text)
        return text

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        return zip(*(column.tolist() for column in self._columns.values()), strict=True)

    def __repr__(self) -> str:
        return f"Runs({len(self)} rows, columns {', '.join(self._columns)})"

    def __str__(self) -> str:
        head = [[_cell(value) for value in row] for _, row in zip(range(20), self._rows(), strict=False)]
        widths = [
            max(len(name), *(len(row[i]) for row in head)) if head else len(name)
            for i, name in enumerate(self._columns)
        ]
        lines = [
            "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
            for row in [self.columns, *head]
        ]
        if len(self) > 20:
            lines.append(f"... {len(self) - 20} more of {len(self)} rows")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        head = "".join(f"<th>{escape(name)}</th>" for name in self._columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(_cell(v))}</td>" for v in row) + "</tr>"
            for _, row in zip(range(20), self._rows(), strict=False)
        )
        return f"<table><tr>{head}</tr>{body}</table><p>{len(self)} runs</p>"


def read_runs(
    path: str | Path,
    columns: Mapping[str, str] | None = None,
    *,
    units: Mapping[str, Any] | None = None,
    where: str | None = None,
    drop_missing: bool | Collection[str] = False,
) -> Runs:
    """Reads a table of runs from .csv, .tsv, .txt, .json, .jsonl (compressed or not), .parquet or .xlsx.

    columns, units, where, drop_missing: as in `Runs`. What was taken for what stands in `Runs.taken`. Rows are filtered before
    their numbers are checked, so that what crashed runs left empty does no harm. See tables.reading for what files may look like.
    Raises ValueError for an unknown ending, a column that is not there, or bad values.
    """
    path = Path(path)
    table = read_table(path)
    if not any(len(values) for values in table.values()):
        raise ValueError(f"table {path.name!r} has a header and no runs: {', '.join(table) or 'not even that'}.")
    return Runs(table, source=path.name, columns=columns, units=units, where=where, drop_missing=drop_missing)


def as_runs(runs: Any) -> Runs:
    """Runs, or what makes them: a table in memory, or the path of a file."""
    if isinstance(runs, str | Path):
        return read_runs(runs)
    return runs if isinstance(runs, Runs) else Runs(runs)


def _match(
    table: Mapping[str, Any], asked: Mapping[str, str], source: str
) -> tuple[dict[str, str], dict[str, Unit], dict[str, list[str]]]:
    """Table's name -> ours; ours -> the unit that the header carries; ours -> headers that could each be it."""
    found: dict[str, str] = {}
    for ours, theirs in asked.items():
        if theirs not in table:
            raise ValueError(f"columns asks for {theirs!r} as {ours}, but {source} holds {', '.join(table)}.")
        found[theirs] = ours
    rest = {name: values for name, values in table.items() if name not in found}
    chosen, unclear = match(rest, taken=asked)
    found |= chosen
    units = {}
    for theirs, ours in found.items():
        read = meaning(theirs)
        if read is not None and read.column == ours and read.unit != Unit():
            units[ours] = read.unit
    # A column that already bears the name of one that was found elsewhere would collide with it.
    taken = set(found.values())
    return {**{name: f"{name}_" for name in rest if name in taken and name not in found}, **found}, units, unclear


def _as_array(values: Any, place: str, needed: bool) -> np.ndarray | None:
    """A column; None for what is none and not needed."""
    if isinstance(values, Mapping):
        if not needed:
            return None
        raise ValueError(
            f"column {place} is a mapping, as DataFrame.to_json and to_dict write by default; "
            'give them orient="records".'
        )
    try:
        array = np.asarray(values)
    except ValueError:  # lists of unequal length
        array = np.empty((0, 0))
    if array.ndim != 1:
        if not needed:
            return None
        raise ValueError(f"column {place} must be one-dimensional, got shape {array.shape}; give one value per run.")
    if array.dtype.kind in "US":
        try:
            return array.astype(np.float64)
        except ValueError:
            return array
    return array


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
