"""Embeddings of a fleet against plain float64 indexing, and their gradient: exact sums, any vocabulary, one writer."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from pyscaling.kernels import launch as launching
from pyscaling.kernels import reference

kernels = importlib.import_module("pyscaling.kernels.embedding")
DEVICE = os.environ.get("PYSCALING_TEST_DEVICE", "cpu")

# (M, B, T, V, d, context): one of each; one bucket and several; d of several blocks; more rows than a step takes
SHAPES = [(1, 1, 1, 1, 1, 1), (2, 3, 5, 40, 24, 8), (5, 1, 7, 3, 100, 7), (1, 2, 129, 100, 40, 150)]


def inputs(shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """tokens, weight, position, gradient of the output."""
    n_member, n_sequence, length, vocab_size, d, context = shape
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab_size, (n_member, n_sequence, length), generator=generator)
    sizes = (n_member, vocab_size, d), (n_member, context, d), (n_member, n_sequence * length, d)
    return [tokens.to(DEVICE), *(torch.randn(*size, generator=generator).to(DEVICE, dtype) for size in sizes)]


def exact_gradients(tokens: Tensor, weight: Tensor, position: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.double().requires_grad_() for t in (weight, position)]
    return torch.autograd.grad(reference.embedding(tokens, *leaves).flatten(1, 2), leaves, grad.double())


@contextmanager
def recorded() -> Iterator[list[launching.Launch]]:
    seen: list[launching.Launch] = []
    with launching.replaced(launching, observers=[seen.append]):
        yield seen


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs hold NaN, and integers a place far out of range, before they are written."""
    empty = torch.empty

    def poison(*size, **options):  # type: ignore[no-untyped-def]
        tensor = empty(*size, **options)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else 2**30)

    monkeypatch.setattr(torch, "empty", poison)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_gradients(shape, dtype, poisoned) -> None:  # type: ignore[no-untyped-def]
    tokens, weight, position, grad = inputs(shape, dtype)
    # one rounding of an exact sum of two; the interpreter truncates bfloat16
    half = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}[dtype]
    leaves = [t.requires_grad_() for t in (weight, position)]
    out = kernels.embedding(tokens, *leaves)
    exact = reference.embedding(tokens, weight.double(), position.double()).flatten(1, 2)
    assert out.dtype == dtype and bool(((out - exact).abs() <= half * exact.abs()).all())
    assert torch.equal(kernels.embedding(tokens, weight), reference.embedding(tokens, weight).flatten(1, 2))
    for ours, truth in zip(
        torch.autograd.grad(out, leaves, grad), exact_gradients(tokens, weight, position, grad), strict=True
    ):
        # float32 sums of n numbers of unit size err by less than n 2^-24 of the largest, then one rounding
        bound = half * truth.abs() + tokens[0].numel() * 2.0**-24 * grad.double().abs().max()
        assert ours.dtype == dtype and bool(((ours - truth).abs() <= bound).all())
    with_context = torch.autograd.grad(kernels.embedding(tokens, *leaves), position, grad)[0]
    assert not with_context[:, shape[2] :].any()


def test_one_token_everywhere() -> None:
    tokens, weight, position, grad = inputs((1, 3, 100, 50, 24, 100))
    tokens.fill_(49)
    ours = kernels.embedding_backward(grad, tokens, 50)
    truth = exact_gradients(tokens, weight, position, grad)[0]
    assert float((ours - truth).abs().max()) < 300 * 2.0**-24 * float(grad.abs().max()) and not ours[0, :49].any()


def test_a_token_that_occurs_once_gets_its_gradient_to_the_bit() -> None:
    tokens, _, _, grad = inputs((2, 1, 40, 40, 24, 40))
    tokens = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(m)) for m in range(2)])[:, None]
    ours = kernels.embedding_backward(grad, tokens.to(DEVICE), 40)
    assert all(torch.equal(ours[m, tokens[m, 0].to(DEVICE)], grad[m]) for m in range(2))
    with launching.compiled_for("sm_90"), recorded() as seen:
        kernels.embedding_backward(grad.to("meta"), tokens.to("meta"), 40)
    assert seen[-1].constants["DOT"] == "ieee"  # in three parts a card's tensor cores would lose bits


def test_two_launches_sort_tokens_once() -> None:
    """However many buckets there are: the first launch has a program for each 256 tokens, not for each bucket."""
    grad, tokens = torch.empty(3, 4096, 64, device="meta"), torch.empty(3, 8, 512, device="meta", dtype=torch.int64)
    with launching.compiled_for("sm_90"), recorded() as seen:
        kernels.embedding_backward(grad.bfloat16(), tokens, 50257)
    assert [record.grid for record in seen] == [(16, 3), (512, 3, 1)]
    moved = seen[0].read_bytes + seen[0].write_bytes
    assert moved == 3 * (20 * 4096 + 4 * 513 * 16)


def test_large_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of more than the 16 rows that a dot takes at least."""
    monkeypatch.setattr(kernels, "MOST_BUCKETS", 8)
    tokens, weight, position, grad = inputs((1, 1, 99, 1000, 24, 99))  # 8 buckets of 125 rows
    tokens[0, 0, :3], tokens[0, 0, 3] = 999, 0
    truth = exact_gradients(tokens, weight, position, grad)[0]
    torch.testing.assert_close(kernels.embedding_backward(grad, tokens, 1000).double(), truth, rtol=1e-6, atol=1e-6)


def test_more_tokens_than_a_program_reads_at_once() -> None:
    tokens, weight, position, grad = inputs((1, 2, 2500, 20, 16, 2500))
    truth = exact_gradients(tokens, weight, position, grad)[0]
    torch.testing.assert_close(kernels.embedding_backward(grad, tokens, 20).double(), truth, rtol=1e-5, atol=1e-4)


def test_gradient_adds_to_a_strided_row_and_touches_nothing_else(poisoned) -> None:  # type: ignore[no-untyped-def]
    """The tied head's gradient stands in the flat row already; tokens are the batch without its last column."""
    batch, weight, position, _ = inputs((2, 3, 6, 40, 24, 8))
    tokens = batch[:, :, :-1]
    grad = torch.randn(2, 15, 24, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    size, extra = weight[0].numel(), position[0].numel()
    flat = torch.full((2, size + extra + 10), torch.nan, device=DEVICE)
    flat_weight = flat[:, 3 : 3 + size].view(2, 40, 24)
    flat_position = flat[:, 5 + size : 5 + size + extra].view(2, 8, 24)
    flat_weight.copy_(weight)
    kernels.embedding_backward(grad, tokens, 40, flat_weight, flat_position, accumulate=True)
    assert int(flat.isfinite().sum()) == 2 * (size + extra)
    truth = exact_gradients(tokens, weight, position, grad)
    torch.testing.assert_close(flat_weight.double(), weight + truth[0])
    torch.testing.assert_close(flat_position.double(), truth[1])
    unseen = torch.ones(2, 40, dtype=torch.bool, device=DEVICE).scatter_(1, tokens.flatten(1), False)
    assert torch.equal(flat_weight[unseen], weight[unseen])
    # a table in a flat row is read where it stands
    assert torch.equal(kernels.embedding(tokens, flat_weight), kernels.embedding(tokens, flat_weight.clone()))


@pytest.mark.parametrize("bad", [-1, 40, 2**40, -(2**63)])
def test_a_token_out_of_range_fails_its_member_visibly(bad: int) -> None:
    tokens, weight, position, grad = inputs((2, 1, 5, 40, 24, 5))
    before = kernels.embedding(tokens, weight, position)
    sums = kernels.embedding_backward(grad, tokens, 40)
    tokens[1, 0, 2] = bad
    after = kernels.embedding(tokens, weight, position)
    assert after[1, 2].isnan().all() and int(after.isnan().sum()) == 24
    assert torch.equal(after[0], before[0])
    assert torch.equal(kernels.embedding_backward(grad, tokens, 40)[0], sums[0])
    assert kernels.embedding_backward(grad, tokens, 40).isfinite().all()


def test_a_member_never_sees_another_and_runs_agree() -> None:
    tokens, weight, position, grad = inputs((3, 2, 9, 40, 24, 9))

    def both() -> tuple[Tensor, Tensor]:
        return kernels.embedding(tokens, weight, position), kernels.embedding_backward(grad, tokens, 40)

    first, again = both(), both()
    tokens[1], weight[1], grad[1] = 7, torch.nan, torch.nan
    for old, same, new in zip(first, again, both(), strict=True):
        assert torch.equal(old, same) and torch.equal(old[[0, 2]], new[[0, 2]])


def test_nothing_to_embed_and_a_single_model() -> None:
    tokens, weight, position, grad = inputs((2, 0, 5, 40, 24, 5))
    assert kernels.embedding(tokens, weight, position).shape == (2, 0, 24)
    assert not kernels.embedding_backward(grad, tokens, 40).any()
    tokens, weight, position, _ = inputs((1, 2, 5, 40, 24, 5))
    assert torch.equal(
        kernels.embedding(tokens[0], weight[0], position[0]), kernels.embedding(tokens, weight, position)[0]
    )


def test_operator() -> None:
    tokens, weight, position, _ = inputs((2, 2, 3, 20, 16, 4))
    arguments = (tokens, weight.requires_grad_(), position.requires_grad_())
    torch.library.opcheck(
        kernels.embedding_op, arguments, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(2, 9, 4).double()}, "weight must be float32, float16 or bfloat16, got float64"),
        ({"tokens": torch.zeros(2, 3, 5)}, "tokens must be int64, got float32"),
        ({"tokens": torch.zeros(1, 3, 5).long()}, r"tokens must have shape \[2, any, any\], got \[1, 3, 5\]"),
        ({"position": torch.zeros(2, 8, 3)}, r"position must have shape \[2, any, 4\]"),
        ({"tokens": torch.zeros(2, 3, 0).long()}, r"tokens is empty: \[2, 3, 0\]; it needs at least one position"),
        ({"tokens": torch.zeros(0, 3, 5).long(), "weight": torch.zeros(0, 9, 4)}, "weight is empty.* one member"),
        ({"weight": torch.zeros(2, 0, 4)}, "weight is empty.* one row"),
        ({"weight": torch.zeros(2, 9, 0)}, "weight is empty.* one column"),
        ({"tokens": [[1]]}, "tokens must be a tensor, got list"),
        ({"weight": None}, "weight must be a tensor, got NoneType"),
        ({"position": 1}, "position must be a tensor, got int"),
        ({"position": torch.zeros(2, 4, 4)}, "position has 4 rows for sequences of 5"),
    ],
)
def test_what_does_not_fit_is_named(change, message) -> None:  # type: ignore[no-untyped-def]
    arguments = {"tokens": torch.zeros(2, 3, 5).long(), "weight": torch.zeros(2, 9, 4)} | change
    arguments = {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=message):
        kernels.embedding(**arguments)


def test_nothing_to_accumulate_on() -> None:
    tokens, _, _, grad = inputs((1, 1, 2, 3, 4, 2))
    with pytest.raises(ValueError, match="accumulate=True adds to grad_weight; give it"):
        kernels.embedding_backward(grad, tokens, 3, accumulate=True)
