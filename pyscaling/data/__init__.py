"""Text in, batches of tokens out: corpora, tokenizers, a memory-mapped cache and a seeded order."""

from pyscaling.data.batches import BatchOrder, FleetBatches
from pyscaling.data.corpora import Corpus, load_corpus
from pyscaling.data.tokenizers import BytesTokenizer, load_tokenizer, train_bpe
from pyscaling.data.tokens import TokenSet, open_corpus, tokenize_corpus

__all__ = [
    "BatchOrder",
    "BytesTokenizer",
    "Corpus",
    "FleetBatches",
    "TokenSet",
    "load_corpus",
    "load_tokenizer",
    "open_corpus",
    "tokenize_corpus",
    "train_bpe",
]
