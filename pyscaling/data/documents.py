"""Documents out of files: text as it stands, and the text field of records in JSON lines, JSON, parquet and arrow.

A name's ending says what a file holds, after one of compression (.gz, .bz2, .xz, .zst) is taken off. Tables and markup
(.csv, .html, ...) are refused by name: trained on as they stand they teach their syntax, and nobody would be told.
"""

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

TEXT = (".txt", ".md", ".rst", ".py", ".tex", ".c", ".cpp", ".h")
RECORDS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# What holds text that somebody may have meant, between marks that nobody meant.
REFUSED = {
    **dict.fromkeys(
        (".csv", ".tsv", ".xls", ".xlsx", ".ods"), "a table; write its column of text as .jsonl or .parquet"
    ),
    **dict.fromkeys(
        (".html", ".htm", ".xhtml", ".xml", ".svg"), "markup; take its text out of it, into .txt or .jsonl"
    ),
    **dict.fromkeys(
        (".pdf", ".ps", ".doc", ".docx", ".odt", ".rtf", ".epub"), "a document; take its text out, into .txt"
    ),
    ".ipynb": "a notebook; take its text out of it (jupyter nbconvert --to markdown)",
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), "an archive; unpack it"),
    **dict.fromkeys(
        (".yaml", ".yml", ".toml", ".ini", ".cfg"), "settings; rename it to .txt if it is to be trained on"
    ),
}
_METADATA = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
}  # of Hugging Face's `datasets`
_FIELDS = ("text", "content")
_SNIFFED = 1 << 16


class SettingsError(ValueError):
    """A .json file that is one object and no record of a text."""


def kind_of(path: Path) -> str:
    """The ending that says what a file holds, in lower case, that of a compression left out; "" if there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        return suffixes[-2] if len(suffixes) > 1 else ""
    return suffixes[-1] if suffixes else ""


def is_read(path: Path) -> bool:
    """Whether a folder's file is taken: by its ending, and not what a library wrote about the records beside it."""
    return kind_of(path) in (*TEXT, *RECORDS) and path.name not in _METADATA


def read_documents(path: Path, field: str | None = None) -> tuple[list[str], str | None]:
    """The documents of a file, and the field they were read from; None for text, which is one document.

    field: of records: a name, or a path into nested ones, as in "meta.body"; by default "text", else "content", else the one
    field that holds strings. Raises ValueError that names file, line and remedy where a record has no such field, where
    several would serve, and for a file that holds neither text nor records.
    """
    kind = kind_of(path)
    if kind not in RECORDS:
        return [_text(path, kind)], None
    rows = (
        _parquet(path, field) if kind == ".parquet" else _arrow(path) if kind == ".arrow" else _json(path, kind, field)
    )
    return _texts_of(
        path, rows, field, "row" if kind in (".parquet", ".arrow") else "line" if kind != ".json" else "record"
    )


def _text(path: Path, kind: str) -> str:
    if kind in REFUSED:
        raise ValueError(f"{str(path)!r} is {REFUSED[kind]}.")
    data = _bytes(path)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data[:_SNIFFED]:
        raise ValueError(
            f"{str(path)!r} holds no text (a byte of it is zero); leave it out, or write it as text in UTF-8."
        )
    if kind not in TEXT:  # of an ending that tells nothing, text is what reads as text
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(
                f"{str(path)!r} is not text in UTF-8, and {kind or 'no ending'!r} is no known ending; known are "
                f"{', '.join((*TEXT, *RECORDS))}, also with {', '.join(COMPRESSED)}."
            ) from None
    # as universal newlines have it, so that a corpus is the same whoever reads it
    return data.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def _bytes(path: Path) -> bytes:
    """A file's bytes, unpacked."""
    packed = path.read_bytes()
    unpack: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress, ".zst": _unzst
    }  # fmt: skip
    try:
        return unpack.get(path.suffix.lower(), bytes)(packed)
    except ModuleNotFoundError:
        raise ValueError(f"{str(path)!r} needs the package zstandard: pip install 'pyscaling[zst]'.") from None
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{str(path)!r} could not be unpacked: {error}.") from None


def _unzst(packed: bytes) -> bytes:
    """Of all frames: parallel compressors write many."""
    import zstandard

    pieces = []
    while packed:
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            pieces.append(frame.decompress(packed))
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from None
        if not frame.eof:
            raise EOFError("it ends within a frame")
        packed = frame.unused_data
    return b"".join(pieces)


def _json(path: Path, kind: str, field: str | None) -> Iterator[tuple[int, Any]]:
    """(line, or number of the record, from 1) and what stands there."""
    try:
        text = _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 (byte {error.start}); write it so.") from None
    if kind == ".json":
        try:
            whole = json.loads(text)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):
                raise ValueError(f"{str(path)!r} is not JSON: {error}.") from None
        else:
            yield from enumerate(_records(path, whole, field), 1)
            return  # else many files of that ending hold a record a line
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may stand in a text
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number} of {str(path)!r} is not JSON: {error}.") from None


def _records(path: Path, whole: Any, field: str | None) -> list[Any]:
    """The records of a JSON document: a list, the one list in an object, or the object itself."""
    if isinstance(whole, dict):
        lists = [value for value in whole.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        known = [field] if field is not None else [name for name in whole if name.lower() in _FIELDS]
        if len(lists) != 1 and not any(isinstance(_at(whole, name)[1], str) for name in known):
            names = ", ".join(map(str, whole)) or "empty"
            raise SettingsError(
                f"{str(path)!r} is one object ({names}) that holds no list of records; write them as .jsonl, a record a line, or "
                "leave it out."
            )
        whole = lists[0] if len(lists) == 1 else [whole]
    if not isinstance(whole, list):
        raise ValueError(f"{str(path)!r} holds no list of records; write it as .jsonl, a record a line.")
    return whole


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise ValueError(f"{str(path)!r} needs the package pyarrow: pip install 'pyscaling[parquet]'.") from None
    return pyarrow


def _parquet(path: Path, field: str | None) -> Iterator[tuple[int, Any]]:
    pa = _pyarrow(path)
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from _rows(file.iter_batches(columns=_columns(file.schema_arrow, field)))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{str(path)!r} could not be read as parquet: {error}.") from None


def _arrow(path: Path) -> Iterator[tuple[int, Any]]:
    """As `datasets` saves to disk: a stream, or a file."""
    pa = _pyarrow(path)
    try:
        with pa.memory_map(str(path)) as source:
            try:
                batches: Any = pa.ipc.open_stream(source)
            except pa.ArrowInvalid:
                source.seek(0)
                reader = pa.ipc.open_file(source)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            yield from _rows(batches)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{str(path)!r} could not be read as arrow: {error}.") from None


def _columns(schema: Any, field: str | None) -> list[str] | None:
    """The columns that need be read; None for all, where which of them holds the text is yet to be told."""
    wanted = field if field is not None else next((name for name in _FIELDS if name in schema.names), None)
    if wanted is None:
        return None
    found = [name for name in (wanted, wanted.partition(".")[0]) if name in schema.names]
    return found[:1] or None


def _rows(batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, row


def _texts_of(
    path: Path, rows: Iterable[tuple[int, Any]], field: str | None, unit: str
) -> tuple[list[str], str | None]:
    records = list(rows)
    if not any(isinstance(record, Mapping) for _, record in records):
        for number, record in records:
            if not isinstance(record, str):
                raise ValueError(f"{unit} {number} of {str(path)!r} is neither a record nor a text: {_short(record)}.")
        return [record for _, record in records], None
    field = field if field is not None else _field_of(path, [r for _, r in records if isinstance(r, Mapping)])
    texts = []
    for number, record in records:
        found, value = _at(record, field)
        if not found:
            has = (
                f"it has {', '.join(map(str, record)) or 'none'}"
                if isinstance(record, Mapping)
                else f"it is {_short(record)}"
            )
            raise ValueError(
                f"{unit} {number} of {str(path)!r} has no field {field!r}: {has}. Name the field with corpus.field, or drop "
                "the record."
            )
        if value is not None and not isinstance(value, str):
            raise ValueError(
                f"{unit} {number} of {str(path)!r}: its field {field!r} is no text but {_short(value)}. Name another with "
                "corpus.field."
            )
        texts.append((value or "").encode("utf-8", "replace").decode())  # JSON may hold half a surrogate pair
    return texts, field


def _field_of(path: Path, records: list[Mapping[str, Any]]) -> str:
    """The field that holds the text, by all records: a name that only one of them has must not decide."""
    kinds: dict[str, set[type]] = {}
    for record in records:
        for name, value in record.items():
            kinds.setdefault(name, set()).add(type(value))
    for wanted in _FIELDS:
        for name in kinds:
            if name.lower() == wanted:
                return name
    strings = [name for name, types in kinds.items() if str in types and types <= {str, type(None)}]
    if len(strings) == 1:
        return strings[0]
    what = (
        f"several hold strings: {', '.join(strings)}"
        if strings
        else f"none holds strings of {', '.join(kinds) or 'none'}"
    )
    raise ValueError(
        f"the records of {str(path)!r} have neither a field 'text' nor 'content', and {what}. Name it: corpus.field = "
        f'"{strings[0] if strings else "..."}".'
    )


def _at(record: Any, field: str) -> tuple[bool, Any]:
    """Whether a record has a field, or a path of fields, and what it holds."""
    if not isinstance(record, Mapping):
        return False, None
    if field in record:
        return True, record[field]
    head, dot, rest = field.partition(".")
    return _at(record[head], rest) if dot and head in record else (False, None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
