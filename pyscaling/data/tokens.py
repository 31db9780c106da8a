"""Token arrays, cached by content: the same corpus, split and tokenizer are tokenized once on a machine.

A cache entry is a folder named by a hash, holding tokenizer.json and one .npy per split; it is written under
a temporary name and renamed, so that two processes may race for it. Arrays are memory-mapped when read. Files that have not
changed since are not even read: their paths, sizes and times of change lead to the entry.
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pyscaling.data.corpora import Corpus, find_source, load_corpus
from pyscaling.data.tokenizers import END_OF_DOCUMENT, BytesTokenizer, Tokenizer, load_tokenizer, train_bpe

_FORMAT = "2"  # part of every key: raise it when the way text becomes tokens changes


@dataclass(frozen=True)
class TokenSet:
    """A tokenized corpus. train, validation: memory-mapped arrays of token ids, documents joined by token 0.

    bytes_per_token: UTF-8 bytes of the validation text per token, which turns nats per token into bits per byte.
    skipped: files of the corpus's folder that were passed over.
    """

    name: str
    tokenizer: Tokenizer
    train: np.ndarray
    validation: np.ndarray
    bytes_per_token: float
    key: str
    skipped: int = 0


def cache_folder() -> Path:
    """Where token arrays are kept: $PYSCALING_CACHE, else pyscaling/ in the user's cache folder."""
    if "PYSCALING_CACHE" in os.environ:
        return Path(os.environ["PYSCALING_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyscaling"


def open_corpus(
    source: str,
    tokenizer: Tokenizer | None = None,
    *,
    vocab_size: int | None = 1024,
    validation_fraction: float = 0.1,
    seed: int = 0,
    field: str | None = None,
    validation_only: bool = False,
) -> TokenSet:
    """`tokenize_corpus` of `load_corpus`, without reading anything where no file of the source has changed since."""
    found = find_source(source)
    stats = [(str(file.absolute()), file.stat()) for file in found.files]
    asked = {
        "format": _FORMAT, "tokenizer": _spelled(tokenizer, vocab_size), "fraction": validation_fraction, "seed": seed,
        "field": field, "validation_only": validation_only, "alone": found.alone, "skipped": len(found.skipped),
        "files": [(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats],
    }  # fmt: skip
    known = cache_folder() / "sources" / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:24]}.json"
    try:
        entry = json.loads(known.read_text())
        return _opened(entry["key"], entry["bytes_per_token"], source, entry["skipped"])
    except (OSError, ValueError, KeyError):  # never read, or its entry was cleared away
        pass
    corpus = load_corpus(source, validation_fraction=validation_fraction, seed=seed, field=field)
    tokens = tokenize_corpus(corpus, tokenizer, vocab_size=vocab_size, validation_only=validation_only)
    known.parent.mkdir(parents=True, exist_ok=True)
    temporary = known.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps({name: getattr(tokens, name) for name in ("key", "bytes_per_token", "skipped")}))
    temporary.replace(known)
    return tokens


def tokenize_corpus(
    corpus: Corpus,
    tokenizer: Tokenizer | None = None,
    *,
    vocab_size: int | None = 1024,
    validation_only: bool = False,
) -> TokenSet:
    """Tokenizes both splits of a corpus, or opens them from the cache.

    tokenizer: the one to use; without it a BPE of vocab_size is trained on the training split
    (vocab_size=None: bytes). validation_only: leave train empty, of a corpus that is only evaluated on.
    """
    spelled = _spelled(tokenizer, vocab_size) + "\nvalidation only" * validation_only
    key = hashlib.sha256("\n".join((_FORMAT, corpus.digest, spelled)).encode()).hexdigest()[:24]
    folder = cache_folder() / key
    if not (folder / "tokenizer.json").exists():
        if tokenizer is None:
            tokenizer = train_bpe(corpus.train, vocab_size) if vocab_size else BytesTokenizer()
        _write(folder, replace(corpus, train=()) if validation_only else corpus, tokenizer)
    n_token = len(np.load(folder / "validation.npy", mmap_mode="r"))
    n_byte = sum(len(text.encode()) for text in corpus.validation)
    return _opened(key, n_byte / n_token, corpus.name, corpus.skipped)


def _spelled(tokenizer: Tokenizer | None, vocab_size: int | None) -> str:
    return tokenizer.to_json() if tokenizer is not None else f"bpe {vocab_size}" if vocab_size else "bytes"


def _opened(key: str, bytes_per_token: float, name: str, skipped: int) -> TokenSet:
    folder = cache_folder() / key
    return TokenSet(
        name=name,
        tokenizer=load_tokenizer(folder / "tokenizer.json"),
        train=np.load(folder / "train.npy", mmap_mode="r"),
        validation=np.load(folder / "validation.npy", mmap_mode="r"),
        bytes_per_token=bytes_per_token,
        key=key,
        skipped=skipped,
    )


def _write(folder: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for split, texts in (("train", corpus.train), ("validation", corpus.validation)):
            pieces: list[np.ndarray] = [np.empty(0, dtype=np.uint16)]
            for ids in tokenizer.encode(texts):
                pieces += [ids, np.array([END_OF_DOCUMENT], dtype=ids.dtype)]
            np.save(temporary / f"{split}.npy", np.concatenate(pieces))
        (temporary / "tokenizer.json").write_text(tokenizer.to_json())
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / "tokenizer.json").exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
