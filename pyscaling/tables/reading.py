"""Files of runs, as columns: what spreadsheets, loggers and other people's scripts write."""

import csv
import gzip
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyscaling.tables.headers import is_number, meaning

KNOWN = ".csv, .tsv, .txt, .md, .json, .jsonl, .parquet or .xlsx"
_SEPARATORS = ",;\t|"
_LONG = 2_000_000  # characters
_NA = ("", "NaN", "nan", "NA", "N/A", "<NA>", "null", "None")
_COMMA = re.compile(r"\s*-?\d+,(?:\d{1,2}|\d{4,})(?:e[-+]?\d+)?\s*", re.IGNORECASE)


def read_table(path: Path) -> dict[str, Any]:
    """Header -> values [n] of a file.

    .csv, .tsv and .txt may be separated by commas, semicolons, tabs or |, begin with comments (#), and be in UTF-8 or UTF-16;
    .json and .jsonl may be nested, and get dotted names; all of these may be compressed (.gz, .zst, .bz2, .xz). A line
    plot of Weights & Biases, a column for each run, becomes rows of run, step and metric.
    Raises ValueError for an unknown ending, a missing reader, or a file that is not what its ending says.
    """
    if not path.is_file():
        trouble = "is no file" if path.exists() else "is not found"
        raise ValueError(f"table {str(path)!r} {trouble}; give a {KNOWN} file.")
    endings = [ending.lower() for ending in path.suffixes]
    packed = endings[-1:] if endings[-1:] and endings[-1] in (".gz", ".zst", ".bz2", ".xz") else []
    ending = (endings[-1 - len(packed) :] or [""])[0]
    if ending in (".parquet", ".xlsx", ".xls", ".ods"):
        return _read_binary(path, ending)
    if ending not in (".csv", ".tsv", ".txt", ".md", ".json", ".jsonl", ".ndjson"):
        raise ValueError(
            f"table {path.name!r} has the unknown ending {ending!r}; known are {KNOWN}, compressed or not."
        )
    text = _decoded(_unpacked(path, *packed), path.name)
    if ending == ".json":
        return _from_json(_parsed(text, f"table {path.name!r}"))
    if ending in (".jsonl", ".ndjson"):
        lines = enumerate(text.splitlines(), 1)
        return _from_json([_parsed(line, f"line {i} of {path.name}") for i, line in lines if line.strip()])
    piped = _unpiped(text)
    return _long(_separated(piped or text, path.name, "\t" if ending == ".tsv" or piped else ""))


def as_mapping(data: Any) -> dict[str, Any]:
    """Header -> values of a mapping of columns, a dataframe of any kind or a sequence of mappings, one a run."""
    if isinstance(data, Mapping):
        return dict(data)
    if hasattr(data, "columns"):
        return {name: data[name] for name in data.columns}
    if isinstance(data, Sequence) and not isinstance(data, str) and all(isinstance(row, Mapping) for row in data):
        names = list(dict.fromkeys(name for row in data for name in row))
        return {name: [row.get(name) for row in data] for name in names}
    raise ValueError(
        f"runs must be a mapping of columns, a dataframe or a list of mappings, got {type(data).__name__}."
    )


def _unpacked(path: Path, packed: str = "") -> bytes:
    try:
        if packed == ".gz":
            return gzip.decompress(path.read_bytes())
        if packed == ".bz2":
            import bz2

            return bz2.decompress(path.read_bytes())
        if packed == ".xz":
            import lzma

            return lzma.decompress(path.read_bytes())
        if packed == ".zst":
            try:
                import zstandard
            except ImportError:
                raise ValueError(f"reading {path.name!r} needs zstandard: pip install zstandard.") from None
            with open(path, "rb") as file:
                return bytes(zstandard.ZstdDecompressor().stream_reader(file).read())
    except (OSError, EOFError) as error:
        raise ValueError(f"table {path.name!r} is no {packed} file: {error}.") from None
    return path.read_bytes()


def _decoded(raw: bytes, name: str) -> str:
    """UTF-8, or what the mark at the beginning says; spreadsheets write UTF-16."""
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"table {name!r} is not text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from None


def _unpiped(text: str) -> str:
    """The first table of a text in Markdown, its cells separated by tabs and without marks of emphasis; "" without any."""
    rows: list[str] = []
    for line in text.splitlines():
        if not re.match(r"\s*\|.*\|\s*$", line):
            if len(rows) > 1:
                break
            rows = []
            continue
        cells = [re.sub(r"[*`~\\]", "", cell).strip() for cell in line.strip()[1:-1].split("|")]
        if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            rows.append("\t".join(cells))
    return "\n".join(rows) if len(rows) > 1 else ""


def _separated(text: str, name: str, separator: str) -> dict[str, Any]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    comments = [i for i, line in enumerate(lines) if line.lstrip().startswith("#")] if "#" in text else []
    skipped = set(comments)
    first = next((i for i, line in enumerate(lines) if line.strip() and i not in skipped), None)
    if first is None:
        if not comments:
            raise ValueError(f"table {name!r} is empty; its first line must name the columns.")
        first = comments[0]
    separator = separator or _separator(lines[first : first + 20])
    if not separator:  # spaces, as numpy.savetxt writes
        lines, separator = ["\t".join(line.replace("# ", "#").split()) for line in lines], "\t"
    header, below = _cells(lines[first], separator), [i for i in comments if i < first]
    if below and all(map(is_number, header)):  # as numpy.savetxt writes: the header is a comment
        header = _cells(lines[below[-1]].lstrip().lstrip("#"), separator)
    else:
        first += 1
    repeated = sorted({column for column in header if header.count(column) > 1 and column})
    if repeated:
        raise ValueError(f"table {name!r} names the column {repeated[0]!r} twice; rename one of them.")
    body = [line for i, line in enumerate(lines[first:], first) if line and i not in skipped and not line.isspace()]
    header = [column or f"column {i}" for i, column in enumerate(header, 1)]
    if all(line.endswith(separator) for line in [lines[first - 1], *body[:20]]) and header[-1].startswith("column "):
        header[-1] = "\0"  # every line ends with the separator
    columns = (_by_pandas if len(text) > _LONG else _by_csv)(body, header, separator, name)
    columns.pop("\0", None)
    texts = {column: values for column, values in columns.items() if values.dtype == object}
    if separator != "," and any(_COMMA.fullmatch(str(cell)) for values in texts.values() for cell in values):
        for column, values in texts.items():  # 3,14 is a number where commas separate nothing
            plain = [None if cell is None else str(cell).replace(".", "").replace(",", ".") for cell in values.tolist()]
            columns[column] = _typed(plain) if all(cell is None or is_number(cell) for cell in plain) else values
    return columns


def _by_csv(body: list[str], header: list[str], separator: str, name: str) -> dict[str, np.ndarray]:
    """Columns of a short table, for which pandas would take longer to be imported than to read."""
    rows: list[list[str]] = []
    for row in csv.reader(body, delimiter=separator, skipinitialspace=True):
        if len(row) != len(header):
            raise ValueError(f"row {len(rows) + 1} of {name} has {len(row)} cells, its header {len(header)}.")
        if any(cell.strip() for cell in row):
            rows.append(row)
    cells = zip(*rows, strict=True) if rows else [()] * len(header)
    return {
        column: _typed([None if cell.strip() in _NA else cell.strip() for cell in of])
        for column, of in zip(header, cells, strict=True)
    }


def _by_pandas(body: list[str], header: list[str], separator: str, name: str) -> dict[str, np.ndarray]:
    import pandas as pd

    if '"' not in "".join(body):
        counts = [line.count(separator) + 1 for line in body]
        ragged = next((i for i, count in enumerate(counts) if count != len(header)), None)
        if ragged is not None:
            raise ValueError(f"row {ragged + 1} of {name} has {counts[ragged]} cells, its header {len(header)}.")
    # from pandas 3 on it is exact without being asked
    exact: Any = {"float_precision": "round_trip"} if pd.__version__ < "3" else {}
    try:
        frame = pd.read_csv(
            io.StringIO("\n".join(body)), sep=separator, header=None, names=header, index_col=False, skipinitialspace=True,
            keep_default_na=False, na_values=list(_NA), low_memory=False, on_bad_lines="error", **exact,
        )  # fmt: skip
    except (pd.errors.ParserError, ValueError) as error:
        found = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
        if found is None:
            raise ValueError(f"table {name!r} cannot be read: {error}.") from None
        raise ValueError(f"row {found[2]} of {name} has {found[3]} cells, its header {found[1]}.") from None
    frame = frame.dropna(how="all")
    out = {}
    for column in header:
        values = frame[column]
        number = values.dtype.kind in "biuf"
        out[column] = values.to_numpy() if number else _typed([None if pd.isna(cell) else cell for cell in values])
    return out


def _typed(cells: Sequence[Any]) -> np.ndarray:
    """Whole numbers, numbers with NaN for None, or whatever it is with None where nothing is."""
    try:
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        return np.array([np.nan if cell is None else float(cell) for cell in cells], dtype=np.float64)
    except (TypeError, ValueError):
        return np.array(cells, dtype=object)


def _separator(lines: list[str]) -> str:
    """What cuts the header and the lines below it into equally many cells, and into most; "" where only spaces do."""

    def cut(separator: str) -> tuple[bool, int]:
        counts = [len(_cells(line, separator)) for line in lines if line.strip()]
        return len(set(counts)) == 1 and counts[0] > 1, counts[0]

    best = max(_SEPARATORS, key=cut)
    spaced = {len(line.split()) for line in lines if line.strip()}
    return "" if cut(best)[1] == 1 and len(lines) > 1 and spaced != {1} and len(spaced) == 1 else best


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])]


def _read_binary(path: Path, ending: str) -> dict[str, Any]:
    import pandas as pd

    needs = {".parquet": "'pyscaling[parquet]'", ".xlsx": "'pyscaling[excel]'", ".xls": "xlrd", ".ods": "odfpy"}[ending]
    try:
        return as_mapping(pd.read_parquet(path) if ending == ".parquet" else pd.read_excel(path))
    except ImportError:
        raise ValueError(f"reading {path.name!r} needs another package: pip install {needs}.") from None
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"table {path.name!r} cannot be read as {ending}: {error}.") from None


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not valid JSON: {error}.") from None


def _from_json(data: Any) -> dict[str, Any]:
    """Columns, or records: a list of them, the one list of them in a mapping, or a mapping of names to them.

    Records may be nested: {"config": {"N": 1}} is the column config.N.
    """
    if isinstance(data, Mapping):
        lists = [part for part in data.values() if _are_records(part)]
        if len(lists) == 1:
            data = lists[0]
        elif data and _are_records(list(data.values())) and not any(meaning(str(name)) for name in data):
            data = [{"run": name, **row} for name, row in data.items()]
    return as_mapping([_flat(row) for row in data] if _are_records(data) else data)


def _are_records(data: Any) -> bool:
    return isinstance(data, list) and bool(data) and all(isinstance(row, Mapping) for row in data)


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in row.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return out


def _long(table: dict[str, Any]) -> dict[str, Any]:
    """A line plot of Weights & Biases, "run - metric" with __MIN and __MAX beside, as rows of run, step and metric."""
    extremes = {f"{name}{end}" for name in table for end in ("__MIN", "__MAX") if f"{name}__MIN" in table}
    plotted = [name for name in table if f"{name}__MIN" in table and " - " in name]
    if not plotted:
        return table
    step = next(name for name in table if name not in plotted and name not in extremes)
    curves: dict[str, dict[str, Any]] = {}
    for name in plotted:
        run, metric = name.rsplit(" - ", 1)
        curves.setdefault(run, {})[metric] = np.asarray(table[name], dtype=np.float64)
    x = np.asarray(table[step], dtype=np.float64)
    rows: dict[str, list[Any]] = {"run": [], step: [], **{metric: [] for of in curves.values() for metric in of}}
    for run, metrics in curves.items():
        there = np.flatnonzero(np.any([np.isfinite(values) for values in metrics.values()], axis=0))
        rows["run"] += [run] * len(there)
        rows[step] += x[there].tolist()
        for metric in list(rows)[2:]:
            rows[metric] += metrics.get(metric, np.full(len(x), np.nan))[there].tolist()
    return rows
