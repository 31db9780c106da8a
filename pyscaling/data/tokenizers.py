"""Tokenizers: byte-level BPE trained on the training split only, or plain bytes.

Token 0 always ends a document; the byte tokenizer shifts the 256 bytes up by one.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

END_OF_DOCUMENT = 0
_END_TEXT = "<|endoftext|>"
MIN_BPE_VOCABULARY = 257  # 256 bytes and the end of a document


class Tokenizer(Protocol):
    vocab_size: int

    def encode(self, texts: Sequence[str]) -> Iterable[np.ndarray]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def to_json(self) -> str: ...


class BytesTokenizer:
    """UTF-8 bytes shifted by one; vocabulary 257."""

    vocab_size = 257

    def encode(self, texts: Sequence[str]) -> Iterable[np.ndarray]:
        for text in texts:
            yield np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16) + 1

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - 1 for i in ids if i != END_OF_DOCUMENT).decode(errors="replace")

    def to_json(self) -> str:
        return json.dumps({"type": "bytes"})


class BPETokenizer:
    """Byte-level BPE (Sennrich et al. 2016; byte alphabet as in GPT-2) from the `tokenizers` library."""

    def __init__(self, text: str) -> None:
        from tokenizers import Tokenizer as Engine

        self._engine = Engine.from_str(text)
        self.vocab_size: int = self._engine.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> Iterable[np.ndarray]:
        dtype = np.uint16 if self.vocab_size <= 2**16 else np.uint32
        for encoding in self._engine.encode_batch_fast(list(texts), add_special_tokens=False):
            yield np.asarray(encoding.ids, dtype=dtype)

    def decode(self, ids: Sequence[int]) -> str:
        return self._engine.decode(list(ids))

    def to_json(self) -> str:
        return self._engine.to_str()


def train_bpe(texts: Iterable[str], vocab_size: int = 1024) -> BPETokenizer:
    """Trains a byte-level BPE on texts (give it the training split only).

    Raises ValueError if vocab_size is under 257, the bytes and the end of a document.
    """
    if vocab_size < MIN_BPE_VOCABULARY:
        raise ValueError(f"vocab_size must be at least {MIN_BPE_VOCABULARY} for byte-level BPE, got {vocab_size}.")
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, pre_tokenizers, trainers

    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(texts, trainer)
    return BPETokenizer(engine.to_str())


def load_tokenizer(text_or_path: str | Path) -> Tokenizer:
    """Restores a tokenizer from what `to_json` gave, or from the file it was written to."""
    text = text_or_path.read_text() if isinstance(text_or_path, Path) else text_or_path
    return BytesTokenizer() if json.loads(text).get("type") == "bytes" else BPETokenizer(text)
