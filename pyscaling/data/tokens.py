"""Token arrays, cached by content: the same corpus, split and tokenizer are tokenized once on a machine.

A cache entry is a folder named by a hash, holding tokenizer.json and one .npy per split; it is written under
a temporary name and renamed, so that two processes may race for it. Arrays are memory-mapped when read.
"""

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyscaling.data.corpora import Corpus
from pyscaling.data.tokenizers import END_OF_DOCUMENT, BytesTokenizer, Tokenizer, load_tokenizer, train_bpe

_FORMAT = "2"  # part of every key: raise it when the way text becomes tokens changes


@dataclass(frozen=True)
class TokenSet:
    """A tokenized corpus. train, validation: memory-mapped arrays of token ids, documents joined by token 0.

    bytes_per_token: UTF-8 bytes of the validation text per token, which turns nats per token into bits per byte.
    """

    name: str
    tokenizer: Tokenizer
    train: np.ndarray
    validation: np.ndarray
    bytes_per_token: float
    key: str


def cache_folder() -> Path:
    """Where token arrays are kept: $PYSCALING_CACHE, else pyscaling/ in the user's cache folder."""
    if "PYSCALING_CACHE" in os.environ:
        return Path(os.environ["PYSCALING_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyscaling"


def tokenize_corpus(corpus: Corpus, tokenizer: Tokenizer | None = None, *, vocab_size: int | None = 1024) -> TokenSet:
    """Tokenizes both splits of a corpus, or opens them from the cache.

    tokenizer: the one to use; without it a BPE of vocab_size is trained on the training split
    (vocab_size=None: bytes).
    """
    spelled = tokenizer.to_json() if tokenizer is not None else f"bpe {vocab_size}" if vocab_size else "bytes"
    key = hashlib.sha256("\n".join((_FORMAT, corpus.digest, spelled)).encode()).hexdigest()[:24]
    folder = cache_folder() / key
    if not (folder / "tokenizer.json").exists():
        if tokenizer is None:
            tokenizer = train_bpe(corpus.train, vocab_size) if vocab_size else BytesTokenizer()
        _write(folder, corpus, tokenizer)
    validation = np.load(folder / "validation.npy", mmap_mode="r")
    return TokenSet(
        name=corpus.name,
        tokenizer=load_tokenizer(folder / "tokenizer.json"),
        train=np.load(folder / "train.npy", mmap_mode="r"),
        validation=validation,
        bytes_per_token=sum(len(text.encode()) for text in corpus.validation) / len(validation),
        key=key,
    )


def _write(folder: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for split, texts in (("train", corpus.train), ("validation", corpus.validation)):
            pieces: list[np.ndarray] = []
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
