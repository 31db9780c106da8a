"""What a file is to a corpus: texts, records of texts, or nothing to train on; and that no file is read twice for nothing."""

import bz2
import gzip
import json
import lzma
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyscaling.data import load_corpus, open_corpus, tokens
from pyscaling.data.documents import read_documents

TEXTS = ["first\n\nof two paragraphs", "zweiter: größer 数", "third \u2028 with a line separator"]


def records(**more: Any) -> list[dict[str, Any]]:
    return [{"id": str(i), "text": text, **more} for i, text in enumerate(TEXTS)]


def lines(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def parquet(rows: list[Any]) -> bytes:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def arrow(rows: list[Any], kind: str = "new_stream") -> bytes:
    pa = pytest.importorskip("pyarrow")
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with getattr(pa.ipc, kind)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def zst(data: bytes) -> bytes:
    """Of two frames, as parallel compressors write them."""
    compress = pytest.importorskip("zstandard").ZstdCompressor().compress
    return compress(data[:20]) + compress(data[20:])


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


FILES: dict[str, Callable[[], bytes]] = {
    "a.jsonl": lambda: lines(records()),
    "bom.ndjson": lambda: b"\xef\xbb\xbf" + lines(records()) + b"\n\n",
    "a.jsonl.gz": lambda: gzip.compress(lines(records())),
    "a.JSONL.bz2": lambda: bz2.compress(lines(records())),
    "a.ndjson.xz": lambda: lzma.compress(lines(records())),
    "a.jsonl.zst": lambda: zst(lines(records())),
    "list.json": lambda: json.dumps(records(), indent=1).encode(),
    "under a name.json": lambda: json.dumps({"version": 1, "data": records()}).encode(),
    "c4.json.gz": lambda: gzip.compress(lines(records())),  # lines, whatever it calls itself
    "plain.jsonl": lambda: lines(TEXTS),
    "content.jsonl": lambda: lines([{"id": "x", "content": text} for text in TEXTS]),
    "Text.jsonl": lambda: lines([{"id": "x", "Text": text, "content": "no"} for text in TEXTS]),
    "the one.jsonl": lambda: lines([{"n": 3, "body": text} for text in TEXTS]),
    "empty ones.jsonl": lambda: lines([{"text": ""}, {"text": None}, *records(), {"text": " \n"}]),
    "a.parquet": lambda: parquet(records(n=1)),
    "body.parquet": lambda: parquet([{"n": i, "body": text} for i, text in enumerate(TEXTS)]),
    "stream.arrow": lambda: arrow(records()),
    "file.arrow": lambda: arrow(records(), "new_file"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_record_is_a_document(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, FILES[name]())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        corpora = [load_corpus(path), load_corpus(tmp_path), load_corpus(tmp_path / "*.*")]
    for corpus in corpora:
        assert sorted(corpus.train + corpus.validation) == sorted(TEXTS)
    guessed = [str(w.message) for w in said if "the text of its records is taken from" in str(w.message)]
    assert len(guessed) == (3 if name.startswith(("content", "Text", "the one", "body")) else 0)


@pytest.mark.parametrize(
    "name", ["a.txt.gz", "a.md.zst", "a.py.xz", "a.txt", "wiki.train.tokens", "enwik8", "utf16.txt"]
)
def test_text(tmp_path: Path, name: str) -> None:
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zst}.get(Path(name).suffix, bytes)
    data = "one\n\ntwo é".encode("utf-16" if name.startswith("utf16") else "utf-8")
    assert read_documents(write(tmp_path / name, pack(data))) == (["one\n\ntwo é"], None)
    corpus = load_corpus(tmp_path / name)
    assert sorted(corpus.train + corpus.validation) == ["one", "two é"]


def test_named_field(tmp_path: Path) -> None:
    rows = [{"text": "no", "a.b": "dot", "meta": {"body": text, "n": 1}} for text in TEXTS]
    for path in (write(tmp_path / "a.jsonl", lines(rows)), write(tmp_path / "a.json", json.dumps(rows))):
        assert read_documents(path, "meta.body") == (TEXTS, "meta.body")
        assert read_documents(path, "a.b")[0] == ["dot"] * 3
    assert read_documents(write(tmp_path / "a.parquet", parquet(rows)), "meta.body")[0] == TEXTS


def test_half_a_surrogate_pair(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a \\ud83d\\ude00"}\n{"text": "b \\ud83d"}')
    assert read_documents(path)[0] == ["a 😀", "b ?"]
    load_corpus(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "a.jsonl",
            '{"text": "x"}\n\n{"txt": "y"}',
            r"line 3 of '.*a.jsonl' has no field 'text': it has txt. Name the field",
        ),
        ("a.jsonl", '{"id": "x"}\n{"id": "y", "text": "z"}', "line 1 of .* has no field 'text': it has id"),
        ("a.jsonl", '{"text": "x"}\n"y"', "line 2 of .* has no field 'text': it is 'y'"),
        ("a.jsonl", '{"text": "x"}\n{"text": ["y"]}', r"line 2 of .*: its field 'text' is no text but \['y'\]"),
        ("a.jsonl", '{"text": "x"}\n{"text": "y"', "line 2 of .* is not JSON"),
        (
            "a.jsonl",
            '{"a": "x", "b": "y"}',
            "neither a field 'text' nor 'content', and several hold strings: a, b. Name it: cor",
        ),
        ("a.jsonl", '{"n": 1}', "none holds strings of n"),
        ("a.jsonl", "1\n2", "line 1 of .* is neither a record nor a text: 1"),
        ("a.jsonl", b'{"text": "\xe9"}', "is not UTF-8"),
        ("a.json", '{"text": ["x", "y"]}', r"'.*a.json' is one object \(text\) that holds no list of records"),
        ("a.json", "[{", "is not JSON"),
        ("a.json", "3", "holds no list of records"),
        ("a.csv", "text\nx", "a.csv' is a table; write its column of text as .jsonl or .parquet"),
        ("a.csv.gz", gzip.compress(b"text\nx"), "is a table"),
        ("a.HTML", "<p>x", "is markup; take its text out of it"),
        ("a.pdf", "%PDF", "is a document"),
        ("a.tar.gz", gzip.compress(b"x"), "is an archive; unpack it"),
        ("a.ipynb", "{}", "is a notebook"),
        ("a.txt", b"x\0y", "holds no text .a byte of it is zero."),
        ("a.bin", b"\xe9\xe9", "is not text in UTF-8, and '.bin' is no known ending; known are .txt, "),
        ("a.txt.gz", b"not packed", "could not be unpacked"),
        ("a.txt.gz", gzip.compress(b"x" * 99)[:-9], "could not be unpacked"),
    ],
)
def test_what_does_not_serve_is_named(tmp_path: Path, name: str, data: str | bytes, message: str) -> None:
    path = write(tmp_path / name, data)
    write(tmp_path / "more.txt", "some\n\ntext")
    for source in (path, f"{tmp_path}/*"):
        with pytest.raises(ValueError, match=message):
            load_corpus(source)


def test_zst_that_ends_early_or_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl.zst", zst(lines(records()))[:-3])
    with pytest.raises(ValueError, match="could not be unpacked: it ends within a frame"):
        load_corpus(path)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ValueError, match=r"needs the package zstandard: pip install 'pyscaling\[zst\]'"):
        load_corpus(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(ValueError, match=r"needs the package pyarrow: pip install 'pyscaling\[parquet\]'"):
            load_corpus(write(tmp_path / name, "x"))


def test_a_folder_says_what_it_passes_over(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.txt", f"text {i} " * 9)
    for name in ("README.html", "fig/a.png", "b.png", "settings.json", ".git/HEAD"):
        write(tmp_path / name, '{"lr": 1}')
    with pytest.warns(
        UserWarning, match=r"passed over are 2 of .png, 1 of .html, 1 of .json, the first .*; read are 3 of 7 "
    ):
        corpus = load_corpus(tmp_path)
    assert (len(corpus.train) + len(corpus.validation), corpus.skipped) == (3, 4)
    write(tmp_path / "table.csv", "text\n" + "a row\n" * 99)
    with pytest.raises(ValueError, match=r"is mostly files that are not read: 1 of .html, 1 of .csv; known .* a glob"):
        load_corpus(tmp_path)
    for i in range(3):
        (tmp_path / f"{i}.txt").unlink()
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"holds no text file, but 2 of .png, 1 of .html, 1 of .csv; known"):
        load_corpus(tmp_path)


def test_folders_as_hugging_face_lays_them_out(tmp_path: Path) -> None:
    for split, word in (("train", "good"), ("test", "bad"), ("validation", "bad")):
        rows = [{"text": f"{word} {i}"} for i in range(4)]
        write(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet", parquet(rows))
        write(tmp_path / "disk" / split / "data-00000-of-00001.arrow", arrow(rows))
        write(tmp_path / "disk" / split / "state.json", "{}")
        write(tmp_path / "disk" / split / "dataset_info.json", "{}")
        write(tmp_path / "lines" / f"{split}.jsonl", lines(rows))
    write(tmp_path / "hub" / "README.md", "about")
    write(tmp_path / "disk" / "dataset_dict.json", "{}")
    for folder in ("hub", "disk", "lines"):
        with pytest.warns(UserWarning, match="passed over are"):
            corpus = load_corpus(tmp_path / folder)
        assert sorted(corpus.train + corpus.validation) == [f"good {i}" for i in range(4)]
    test = load_corpus(tmp_path / "lines" / "test.jsonl")
    assert sorted(test.train + test.validation) == [f"bad {i}" for i in range(4)]


def test_old_corpora_are_the_same_to_the_byte(tmp_path: Path) -> None:
    """Digests as they were when all files were read as text; their tokens lie in caches under them."""
    for name, data in {
        "a.txt": b"first\r\n\r\nline", "b.md": b"# second", "c.py": b"print('third')\n", "d.tex": b"fourth \xe9",
        "sub/e.h": b"int fifth;", ".hid/f.rst": b"sixth",
    }.items():  # fmt: skip
        write(tmp_path / name, data)
    assert load_corpus(tmp_path, seed=1, validation_fraction=0.3).digest == (
        "da7225db4c744339a054c484979a48775ff43cee8b6c6ad877bb74ca1731432b"
    )
    assert load_corpus(tmp_path / "a.txt", seed=1).digest == (
        "1a1100d5f9d1c1161a6e5605dc536721314bd6f3e60fda63d1d6a047b8c23076"
    )


def test_what_has_not_changed_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSCALING_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "texts"
    for i in range(9):
        write(source / f"{i}.txt", f"text {i} " * 20)
    read: list[str] = []
    load = tokens.load_corpus

    def counted(name: str, **options: Any) -> Any:
        read.append(name)
        return load(name, **options)

    monkeypatch.setattr(tokens, "load_corpus", counted)
    first = open_corpus(str(source), vocab_size=None)
    again = open_corpus(str(source), vocab_size=None)
    assert len(read) == 1
    assert (first.key, first.bytes_per_token, len(first.train)) == (again.key, again.bytes_per_token, len(again.train))
    assert open_corpus(str(source), vocab_size=None, seed=1).key != first.key and len(read) == 2
    assert open_corpus(str(source), vocab_size=260).key != first.key and len(read) == 3
    stamp = (source / "3.txt").stat().st_mtime_ns
    write(source / "3.txt", "text x " * 20)  # as long, and as old
    os.utime(source / "3.txt", ns=(stamp, stamp))
    changed = open_corpus(str(source), vocab_size=None)
    assert len(read) == 4 and changed.key != first.key
    write(source / "9.txt", "one more")
    assert len(open_corpus(str(source), vocab_size=None).train) != len(changed.train)
    for file in (tmp_path / "cache" / first.key).iterdir():  # a cache may be cleared
        file.unlink()
    (source / "9.txt").unlink()
    (source / "3.txt").write_text("text 3 " * 20)
    assert len(open_corpus(str(source), vocab_size=None).train) == len(first.train)


def test_what_is_only_evaluated_on_is_not_tokenized_for_training(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "\n\n".join(f"text {i}" for i in range(20)))
    whole, part = (
        open_corpus(str(tmp_path / "a.txt"), vocab_size=None, validation_only=only) for only in (False, True)
    )
    assert len(part.train) == 0 < len(whole.train)
    assert part.validation.tolist() == whole.validation.tolist()
    assert part.bytes_per_token == whole.bytes_per_token
