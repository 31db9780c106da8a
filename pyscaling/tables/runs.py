"""A table of training runs: named columns of equal length, checked once, kept as numpy arrays.

N non-embedding parameters, D training tokens, C training FLOPs, loss in nats per token; any other column is kept as it is.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_POSITIVE = ("N", "D", "C", "S", "loss")
# Spellings met in the tables that people publish; compared without case, spaces, dashes and underscores.
_SPELLINGS: dict[str, tuple[str, ...]] = {
    "N": ("n", "params", "nparams", "parameters", "numparams", "modelsize", "nonembeddingparams", "nnonembed"),
    "D": ("d", "tokens", "ntokens", "trainingtokens", "traintokens", "numtokens", "datasize"),
    "C": ("c", "flops", "flop", "compute", "trainingflop", "trainingflops", "trainflops"),
    "S": ("s", "steps", "nsteps", "trainingsteps"),
    "loss": ("loss", "l", "finalloss", "valloss", "validationloss", "testloss", "evalloss"),
    "seed": ("seed",),
    "group": ("group",),
}
_EMPTY = ("", "nan", "NaN", "<NA>", "NaT")  # a missing label as text
_IN_MEMORY = "the table"


class Runs:
    """Runs as columns.

    data: a mapping of columns, a dataframe, a sequence of mappings (one per run), or Runs. source: where it was read,
    named in errors. renamed: this library's name -> the table's, which names the column, too; by default the usual
    spellings of N, D, C, S, loss and seed are recognised. Columns N, D, C, S and loss must be numbers, finite and
    positive; N, D or C that is missing follows from the other two by C = 6ND.
    Raises ValueError that names row, column, value and remedy.
    """

    def __init__(self, data: Any, *, source: str = _IN_MEMORY, renamed: Mapping[str, str] | None = None) -> None:
        table = {str(name): values for name, values in _as_mapping(data).items()}
        if renamed is None and isinstance(data, Runs):
            renamed = data.renamed
        elif renamed is None:
            found = _match_columns(table, {}, source)
            table = {found.get(name, name): values for name, values in table.items()}
            renamed = _changed(found)
        self.source = source
        self.renamed: dict[str, str] = dict(renamed)
        self._ours = {theirs: ours for ours, theirs in self.renamed.items()}
        self._columns = {name: _as_array(values, f"{name} of {source}") for name, values in table.items()}
        lengths = {name: len(column) for name, column in self._columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of {source} differ in length: {lengths}.")
        for name in _POSITIVE:
            if name in self._columns:
                self._columns[name] = self._checked(name)
        self._derive()

    def _derive(self) -> None:
        """Fills in the one of N, D, C that is missing, by C = 6ND."""
        columns = self._columns
        have = [name for name in ("N", "D", "C") if name in columns]
        if len(have) != 2:
            return
        if "C" not in columns:
            with np.errstate(over="ignore"):
                columns["C"] = 6 * columns["N"] * columns["D"]
            if not np.all(np.isfinite(columns["C"])):
                row = int(np.flatnonzero(~np.isfinite(columns["C"]))[0])
                raise ValueError(
                    f"row {row + 1} of {self.source} has N={columns['N'][row]:g} and D={columns['D'][row]:g}, whose C = 6ND "
                    "overflows. Fix their units."
                )
        elif "D" not in columns:
            columns["D"] = columns["C"] / (6 * columns["N"])
        else:
            columns["N"] = columns["C"] / (6 * columns["D"])

    def numbers(self, name: str) -> np.ndarray:
        """A column as floats [n]. Raises ValueError that names the first row that holds none."""
        column = self[name]
        try:
            return column.astype(np.float64)
        except (TypeError, ValueError):
            row = next(i for i, value in enumerate(column) if not _is_number(value))
            raise ValueError(
                f"{name} must be a number; row {row + 1} of {self.source} has {name}={str(column[row])!r}. "
                "Drop the row or write it without units."
            ) from None

    def _checked(self, name: str) -> np.ndarray:
        column = self.numbers(name)
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if bad.size:
            raise ValueError(
                f"{name} must be finite and positive; row {bad[0] + 1} of {self.source} has {name}={column[bad[0]]:g}"
                + (f" ({bad.size} such rows)" if bad.size > 1 else "")
                + ". Drop the row or fix its units."
            )
        return column

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self:
            remedy = (
                f'Rename one: frame.rename(columns={{"its name there": "{name}"}})'
                if self.source == _IN_MEMORY
                else f'Rename one: read_runs(path, columns={{"{name}": "its name there"}}), or '
                f'--column {name}="its name there"'
            )
            raise ValueError(
                f"column {name!r} is missing from {self.source}; it holds {', '.join(self._columns) or 'no column'}. "
                f"{remedy}."
            )
        return self._columns[name if name in self._columns else self._ours[name]]

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
        empty = [row for row, label in enumerate(labels.tolist(), 1) if label is None or str(label).strip() in _EMPTY]
        if empty:
            raise ValueError(
                f"{argument}{f' {given!r}' if isinstance(given, str) else ''} has no label in row {empty[0]} of "
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
        return Runs(
            {name: column[chosen] for name, column in self._columns.items()}, source=self.source, renamed=self.renamed
        )

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
        """The columns as JSON, also written to `path` if given."""
        text = json.dumps({name: column.tolist() for name, column in self._columns.items()})
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


def read_runs(path: str | Path, columns: Mapping[str, str] | None = None) -> Runs:
    """Reads a table of runs from .csv, .tsv, .json, .jsonl or .parquet.

    columns: this library's name -> the file's, e.g. {"N": "Model Size", "C": "Training FLOP"}; the usual spellings of
    N, D, C, loss and seed are recognised without it, and `Runs.renamed` says which column was taken for what.
    Raises ValueError for an unknown ending, a column that is not there, or bad values.
    """
    path = Path(path)
    if not path.is_file():
        trouble = "is no file" if path.exists() else "is not found"
        raise ValueError(f"table {str(path)!r} {trouble}; give a .csv, .tsv, .json, .jsonl or .parquet file.")
    try:
        table = _read_table(path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"table {path.name!r} is not text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from None
    renamed = _match_columns(table, dict(columns or {}), path.name)
    data = {renamed.get(name, name): values for name, values in table.items()}
    return Runs(data, source=path.name, renamed=_changed(renamed))


def _match_columns(table: Mapping[str, Any], asked: dict[str, str], source: str) -> dict[str, str]:
    """File's name -> ours."""
    renamed: dict[str, str] = {}
    for ours, theirs in asked.items():
        if theirs not in table:
            raise ValueError(f"columns asks for {theirs!r} as {ours}, but {source} holds {', '.join(table)}.")
        renamed[theirs] = ours
    for ours, spellings in _SPELLINGS.items():
        if ours in asked or (ours in table and ours not in renamed):
            continue
        found = [name for name in table if name not in renamed and re.sub(r"[\s_-]", "", name.lower()) in spellings]
        if len(found) == 1:
            renamed[found[0]] = ours
    # A column that already bears the name of one that was asked for would collide with it.
    return {**{name: f"{name}_" for name in table if name in asked and name not in renamed}, **renamed}


def _changed(renamed: Mapping[str, str]) -> dict[str, str]:
    """Ours -> the table's, of those that differ."""
    return {new: old for old, new in renamed.items() if new != old}


def _read_table(path: Path) -> dict[str, Any]:
    ending = path.suffix.lower()
    if ending in (".csv", ".tsv", ".txt"):
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, delimiter="\t" if ending == ".tsv" else ","))
        if not rows:
            raise ValueError(f"table {path.name!r} is empty; its first line must name the columns.")
        names = [name.strip() for name in rows[0]]
        if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
            raise ValueError(
                f"table {path.name!r} seems to be separated by other than commas: {names[0]!r}; save it with commas."
            )
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"table {path.name!r} names the column {repeated[0]!r} twice; rename one of them.")
        body = [row for row in rows[1:] if any(cell.strip() for cell in row)]
        ragged = next((i for i, row in enumerate(body) if len(row) != len(names)), None)
        if ragged is not None:
            raise ValueError(f"row {ragged + 1} of {path.name} has {len(body[ragged])} cells, its header {len(names)}.")
        return {name: [row[i] for row in body] for i, name in enumerate(names)}
    if ending == ".json":
        return _as_mapping(_parse_json(path.read_text(encoding="utf-8"), f"table {path.name!r}"))
    if ending == ".jsonl":
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        return _as_mapping([_parse_json(line, f"line {i} of {path.name}") for i, line in lines if line.strip()])
    if ending == ".parquet":
        import pandas as pd

        try:
            return _as_mapping(pd.read_parquet(path))
        except ImportError:
            raise ValueError(f"reading {path.name!r} needs pyarrow: pip install 'pyscaling[parquet]'.") from None
    raise ValueError(
        f"table {path.name!r} has the unknown ending {ending!r}; known are .csv, .tsv, .json, .jsonl, .parquet."
    )


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not valid JSON: {error}.") from None


def _as_mapping(data: Any) -> dict[str, Any]:
    if isinstance(data, str | Path):
        raise ValueError(f"runs={str(data)!r} is a path, not a table; read it first: ps.read_runs({str(data)!r}).")
    if isinstance(data, Runs):
        return dict(data.to_dict())
    if isinstance(data, Mapping):
        return dict(data)
    if hasattr(data, "columns"):  # a dataframe of any kind
        return {name: data[name] for name in data.columns}
    if isinstance(data, Sequence) and all(isinstance(row, Mapping) for row in data):
        names = list(dict.fromkeys(name for row in data for name in row))
        return {name: [row.get(name) for row in data] for name in names}
    raise ValueError(
        f"runs must be a mapping of columns, a dataframe or a list of mappings, got {type(data).__name__}."
    )


def _as_array(values: Any, place: str) -> np.ndarray:
    if isinstance(values, Mapping):
        raise ValueError(
            f"column {place} is a mapping, as DataFrame.to_json and to_dict write by default; "
            'give them orient="records".'
        )
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"column {place} must be one-dimensional, got shape {array.shape}; give one value per run.")
    if array.dtype.kind in "US":
        try:
            return array.astype(np.float64)
        except ValueError:
            return array
    return array


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
