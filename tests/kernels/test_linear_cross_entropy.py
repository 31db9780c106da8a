"""The fused loss against float64 autograd, its gradients into views, splits, and members that must not touch each other."""

import importlib
import os
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyscaling.kernels import launch as launching
from pyscaling.kernels import reference
from pyscaling.kernels.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_backward,
    linear_cross_entropy_forward,
    splits_for,
)

module = importlib.import_module("pyscaling.kernels.linear_cross_entropy")

# numpy, the interpreter's arithmetic, tells of each NaN and infinity, also where a mask drops them
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
DEVICE = os.environ.get("PYSCALING_TEST_DEVICE", "cpu")
# Of a product of float32 numbers, what "tf32x3" loses at most: each is split into 11 bits, rounded, and a rest below 2^-11 of
# it of which the tensor cores cut off all but 11 bits, 2^-21 of the number; twice that, and the product of the rests, 2^-22.
LOST = 5 * 2.0**-22 if DEVICE == "cuda" else 0.0
interpreted = pytest.mark.skipif(not launching.INTERPRETED, reason="a card takes its own tiles in every test here")


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN."""
    for name in ("empty", "empty_like"):
        allocate = getattr(torch, name)

        def nan(*args, allocate=allocate, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        monkeypatch.setattr(torch, name, nan)


def problem(
    n_member: int, n_row: int, d: int, vocab: int, dtype: torch.dtype = torch.float32, tied: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, targets (the first of every five ignored) and a gradient of the losses."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_member, n_row, d, generator=generator).to(DEVICE, dtype)
    shape = (n_member, vocab, d) if tied else (n_member, d, vocab)
    weight = torch.randn(*shape, generator=generator).to(DEVICE, dtype)
    targets = torch.randint(0, vocab, (n_member, n_row), generator=generator).to(DEVICE)
    targets[:, 1::5] = -100
    scale = torch.randn(n_member, n_row, generator=generator).to(DEVICE)
    return x, weight.mT if tied else weight, targets, scale


def exact(x: Tensor, weight: Tensor, targets: Tensor, z_loss: float, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and gradients of sum(scale * loss) in float64."""
    x, weight = (t.detach().double().requires_grad_() for t in (x, weight))
    loss = plain(x, weight, targets, z_loss)
    return loss.detach(), *torch.autograd.grad((loss * scale.double()).sum(), (x, weight))


def plain(x: Tensor, weight: Tensor, targets: Tensor, z_loss: float) -> Tensor:
    logits = x @ weight
    loss = F.cross_entropy(logits.mT, targets, reduction="none")
    return loss + z_loss * torch.where(targets == -100, 0, logits.logsumexp(-1) ** 2)


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.detach().double() - truth).abs().max())


SHAPES = [  # M, R, d, V; the interpreter's blocks are 32: held where d <= 32, one accumulator where d <= 64, else chunks
    (1, 1, 8, 2),
    (2, 37, 24, 40),
    (5, 3, 1, 33),
    (1, 33, 50, 40),
    (1, 33, 70, 40),
]
NARROW = (2, 37, 24, 70)
CUT_VOCABULARY, CUT_ROWS = (2, 19, 70, 140), (2, 140, 70, 19)  # with `small_chunks` each in 3


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 rows or columns, a side of the interpreter's tiles."""
    monkeypatch.setattr(module, "CHUNK", 1)
    monkeypatch.setattr(module, "CHUNK_STEP", 64)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(poisoned: None, shape: tuple[int, ...], dtype: torch.dtype, tied: bool) -> None:
    """No error above twice that of PyTorch in the same precision, beyond two roundings to be expected.

    They are of the result itself, and of lse and of the logits, which are formed again, perhaps summed in another order:
    they cost each p their eps (|lse| + |logit|). On a card a product of float32 loses LOST more.
    """
    x, weight, targets, scale = problem(*shape, dtype, tied)
    z_loss = 0.01 if tied else 0.0
    truth = exact(x, weight, targets, z_loss, scale)
    x, weight = x.requires_grad_(), weight.detach().requires_grad_()
    loss = linear_cross_entropy(x, weight, targets, z_loss, reduction="none")
    ours = (loss, *torch.autograd.grad((loss * scale).sum(), (x, weight)))
    peer = plain(x, weight, targets, z_loss)
    theirs = (peer, *torch.autograd.grad((peer.float() * scale).sum(), (x, weight)))
    assert loss.dtype == torch.float32 and ours[1].dtype == ours[2].dtype == dtype
    assert shape[2] == 1 or ours[2].stride() == weight.stride()
    x, weight = x.detach().double(), weight.detach().double()
    logits = x @ weight
    lse = logits.logsumexp(-1, keepdim=True)
    lost = (LOST if dtype == torch.float32 else 0.0) * (x.abs() @ weight.abs())
    size = scale.double().unsqueeze(-1).abs()
    p = (logits - lse).exp()
    moved = size * p * (torch.finfo(torch.float32).eps * (lse.abs() + logits.abs()) + 2 * lost)  # of the logit, of lse
    moved += LOST * size * (p + 1)  # of dlogits' own product
    moved = 2 * lost.amax(-1), moved @ weight.abs().mT, x.abs().mT @ moved
    for value, other, expected, of_lse in zip(ours, theirs, truth, moved, strict=True):
        rounding = torch.finfo(value.dtype).eps * float(expected.abs().max()) + float(of_lse.max())
        assert error(value, expected) <= 2 * error(other, expected) + rounding


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [CUT_VOCABULARY, CUT_ROWS])
def test_chunks_against_float64(
    poisoned: None, small_chunks: None, shape: tuple[int, ...], dtype: torch.dtype, tied: bool
) -> None:
    test_against_float64(None, shape, dtype, tied)


# M, R, d, V: the rows of `HEAD_ROWS` for sm_90, last blocks cut or, of V = 256, full; in pairs an odd number of blocks and an
# even one; stored dlogits, cut along V and along R
SM_90_PAIRS = [(1, 40, 200, 300), (1, 64, 256, 256)]
SM_90_CHUNKS = [(1, 20, 528, 140), (1, 140, 528, 20)]
SM_90 = [(1, 70, 24, 150), (1, 40, 100, 256), *SM_90_PAIRS, (1, 40, 300, 257), *SM_90_CHUNKS]


@interpreted
@pytest.mark.parametrize(("splits", "tied"), [(1, False), (2, True)])
@pytest.mark.parametrize("shape", SM_90)
def test_tiles_of_sm_90_in_bfloat16(
    poisoned: None, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], splits: int, tied: bool
) -> None:
    monkeypatch.setattr(module, "CHUNK", 1)  # of 128 rows or columns, a side of its tiles
    monkeypatch.setattr(module, "splits_for", lambda programs, blocks, *_: min(splits, blocks))
    with launching.compiled_for("sm_90"):
        test_bfloat16(None, None, shape, tied)


@interpreted
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (SM_90[0], torch.float16),
        (SM_90_PAIRS[0], torch.float32),
        *((shape, dtype) for shape in SM_90_CHUNKS for dtype in (torch.float16, torch.float32)),
    ],
)
def test_tiles_of_sm_90_against_float64(
    poisoned: None, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(module, "CHUNK", 1)
    with launching.compiled_for("sm_90"):
        test_against_float64(None, shape, dtype, False)


@interpreted
@pytest.mark.parametrize("shape", SM_90_PAIRS)
def test_tiles_of_sm_90_keep_members_apart(
    poisoned: None, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    with launching.compiled_for("sm_90"):
        test_members_do_not_touch_each_other(None, None, monkeypatch, 2, shape[1:], torch.bfloat16)


@interpreted
@pytest.mark.parametrize("d", [24, 200])
def test_tiles_of_sm_90_at_the_limits(d: int) -> None:
    """Of numbers; the first pair of blocks has nothing before it, and its target lies where nothing may be read."""
    with launching.compiled_for("sm_90"):
        test_huge_logits_and_ties_lose_no_bits(None, d)
        test_logits_of_minus_infinity(d)
        test_columns_past_the_vocabulary_do_not_count(d)


@pytest.mark.parametrize("shape", [NARROW, CUT_VOCABULARY, CUT_ROWS])
def test_bfloat16(poisoned: None, small_chunks: None, shape: tuple[int, ...], tied: bool = False) -> None:
    """dlogits and the results are cut to 8 bits (the interpreter truncates), so no more than 2^-7 of each term is lost."""
    x, weight, targets, scale = problem(*shape, torch.bfloat16, tied)
    loss, grad_x, grad_weight = exact(x, weight, targets, 0.01, scale)
    ours, lse = linear_cross_entropy_forward(x, weight, targets, 0.01)
    ours_x, ours_weight = linear_cross_entropy_backward(scale, x, weight, targets, lse, 0.01)
    assert error(ours, loss) < 1e-5 * float(loss.max())
    logits = (x.double() @ weight.double()).requires_grad_()
    losses = F.cross_entropy(logits.mT, targets, reduction="none")
    losses = losses + 0.01 * torch.where(targets == -100, 0, logits.logsumexp(-1) ** 2)
    (dlogits,) = torch.autograd.grad((losses * scale).sum(), logits)
    for value, truth, terms in (
        (ours_x, grad_x, dlogits.abs() @ weight.double().abs().mT),
        (ours_weight, grad_weight, x.double().abs().mT @ dlogits.abs()),
    ):
        assert ((value.double() - truth).abs() <= 2**-7 * (terms + truth.abs()) + 1e-5).all()


def test_mean_over_tokens_with_a_loss(poisoned: None) -> None:
    """As torch's ignore_index, a member without any such token included: NaN, with gradients of zero."""
    x, weight, targets, _ = problem(3, 11, 8, 40)
    targets[1] = -100
    x, weight = x.requires_grad_(), weight.requires_grad_()
    loss = linear_cross_entropy(x, weight, targets)
    truth = torch.stack([F.cross_entropy(x[m].double() @ weight[m].double(), targets[m]) for m in range(3)])
    assert loss[1].isnan()
    share = torch.tensor([1.0, 3.0, -2.0], device=DEVICE)
    ours = torch.autograd.grad((loss * share).sum(), (x, weight))
    theirs = torch.autograd.grad((truth * share).sum(), (x, weight))
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=1e-6, equal_nan=True)
    for value, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


def test_single_model_and_the_specification() -> None:
    x, weight, targets, _ = problem(1, 11, 8, 40)
    assert torch.equal(linear_cross_entropy(x[0], weight[0], targets[0]), linear_cross_entropy(x, weight, targets)[0])
    targets[0, 2], targets[0, 3] = 40, -1
    losses = linear_cross_entropy(x[0], weight[0], targets[0], 0.1, reduction="none")
    expected = reference.linear_cross_entropy_tokens(x, weight, targets, 0.1)[0]
    torch.testing.assert_close(losses, expected, equal_nan=True)


def test_huge_logits_and_ties_lose_no_bits(poisoned: None, d: int = 16) -> None:
    """Logits of thousands, exact in float32, several of them equal: the loss is good to its own last bits, not those of lse."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-40, 41, (1, 40, d), generator=generator).float().to(DEVICE)
    weight = torch.randint(-6, 7, (1, d, 45), generator=generator).float().to(DEVICE)
    weight = torch.cat((weight, weight), 2)  # each logit twice
    logits = x.double() @ weight.double()
    assert float(logits.abs().max()) > 1000
    targets = logits.argmax(-1)
    targets[:, ::3] = 7
    truth = F.cross_entropy(logits.mT, targets, reduction="none")
    loss, _ = linear_cross_entropy_forward(x, weight, targets)
    assert float(truth.min()) < 0.7  # ln 2: the two largest are equal
    assert ((loss.double() - truth).abs() <= 4 * torch.finfo(torch.float32).eps * truth).all()


def test_logits_of_minus_infinity(d: int = 1) -> None:
    """A whole first block without any finite logit leaves the loss of the others."""
    x, weight = torch.ones(1, 2, d, device=DEVICE), torch.zeros(1, d, 200, device=DEVICE)
    weight[:, :, :193] = -torch.inf
    loss, _ = linear_cross_entropy_forward(x, weight, torch.full((1, 2), 199, device=DEVICE))
    torch.testing.assert_close(loss, torch.full_like(loss, 7.0).log())


def test_columns_past_the_vocabulary_do_not_count(d: int = 4) -> None:
    """Where all logits are -200, a padded column of logit 0 would have p = e^200."""
    x, weight = torch.zeros(1, 2, d, device=DEVICE), torch.full((1, d, 33), -50.0, device=DEVICE)
    x[:, :, :4] = 1.0
    targets, scale = torch.full((1, 2), 32, device=DEVICE), torch.ones(1, 2, device=DEVICE)
    loss, lse = linear_cross_entropy_forward(x, weight, targets)
    grad_x, grad_weight = linear_cross_entropy_backward(scale, x, weight, targets, lse)
    torch.testing.assert_close(loss, torch.full_like(loss, 33.0).log())
    torch.testing.assert_close(grad_x, torch.zeros_like(x), rtol=0, atol=2e-3)  # 50 * eps * 200, and sums of 33
    torch.testing.assert_close(grad_weight[0, 0, :32], torch.full((32,), 2 / 33, device=DEVICE), rtol=5e-5, atol=0)


@pytest.mark.parametrize(("scale_of", "z_loss"), [(1e-9, 0.0), (1e6, 0.0), (1.0, 5.0)])
@pytest.mark.parametrize("shape", [NARROW, CUT_ROWS])
def test_float16_gradients_of_any_scale(
    poisoned: None, small_chunks: None, shape: tuple[int, ...], scale_of: float, z_loss: float
) -> None:
    """dlogits of a mean over many tokens vanish in float16, those of a strong z_loss overflow; neither does here.

    The last rows, of which CUT_ROWS makes a chunk, have none, and no gradient of another chunk overflows in their unit.
    """
    x, weight, targets, scale = problem(*shape, torch.float16)
    targets[:, 128:] = -100
    x, weight = 0.2 * x, (3 if shape == NARROW else 1.5) * weight
    scale *= scale_of
    _, _, truth = exact(x, weight, targets, z_loss, scale)
    _, lse = linear_cross_entropy_forward(x, weight, targets, z_loss)
    _, grad_weight = linear_cross_entropy_backward(scale, x, weight, targets, lse, z_loss)
    assert error(grad_weight, truth) <= 2e-3 * float(truth.abs().max())


def test_float16_grad_x_does_not_vanish(poisoned: None, small_chunks: None) -> None:
    """Its sums are in float32 until the last chunk; as float16 they are rounded once."""
    x, weight, targets, scale = problem(*CUT_VOCABULARY, torch.float16)
    scale *= 1e-2
    truth = exact(x, weight, targets, 0.0, scale)[1]
    _, lse = linear_cross_entropy_forward(x, weight, targets)
    grad_x, _ = linear_cross_entropy_backward(scale, x, weight, targets, lse)
    assert error(grad_x, truth) <= 2e-3 * float(truth.abs().max())


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("splits", "shape"), [(1, NARROW), (2, NARROW), (1, CUT_VOCABULARY), (1, CUT_ROWS)])
@pytest.mark.parametrize("tied", [False, True])
def test_views_of_flat_storage(
    poisoned: None,
    small_chunks: None,
    monkeypatch: pytest.MonkeyPatch,
    tied: bool,
    splits: int,
    shape: tuple[int, ...],
    accumulate: bool,
) -> None:
    """Weights and gradients between other parameters of a row of [M, P]: read and written in place, the rest untouched."""
    monkeypatch.setattr(module, "splits_for", lambda programs, blocks, *_: min(splits, blocks))
    n_member, _, d, vocab = shape
    x, weight, targets, scale = problem(*shape, tied=tied)
    scale = torch.where(
        targets == -100, torch.nan, scale
    )  # what an ignored token's loss is multiplied by is of no matter
    truth = exact(x, weight, targets, 0.01, torch.where(targets == -100, 0, scale))

    def view(flat: Tensor) -> Tensor:
        inner = flat[:, 5 : 5 + d * vocab]
        return inner.view(n_member, vocab, d).mT if tied else inner.view(n_member, d, vocab)

    flat, gradient = (torch.full((n_member, d * vocab + 12), torch.nan, device=DEVICE) for _ in range(2))
    view(flat).copy_(weight)
    if accumulate:
        view(gradient).fill_(3.0)
    loss, lse = linear_cross_entropy_forward(x, view(flat), targets, 0.01)
    grad_x, grad_weight = linear_cross_entropy_backward(
        scale, x, view(flat), targets, lse, 0.01, grad_weight=view(gradient), accumulate=accumulate
    )
    assert grad_weight.data_ptr() == view(gradient).data_ptr()
    expected = (truth[0], truth[1], truth[2] + (3.0 if accumulate else 0.0))
    for value, right in zip((loss, grad_x, grad_weight), expected, strict=True):
        torch.testing.assert_close(value.double(), right, rtol=1e-5, atol=1e-5 if d <= 64 else 1e-4)
    assert gradient[:, :5].isnan().all() and gradient[:, 5 + d * vocab :].isnan().all()


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("shape", [NARROW, CUT_VOCABULARY, CUT_ROWS])
def test_gradient_may_lie_the_other_way_and_in_half_precision(
    poisoned: None, small_chunks: None, shape: tuple[int, ...], accumulate: bool
) -> None:
    x, weight, targets, scale = problem(*shape, torch.float16)
    truth = exact(x, weight, targets, 0.0, scale)[2] + (3.0 if accumulate else 0.0)
    _, lse = linear_cross_entropy_forward(x, weight, targets)
    out = torch.full((2, shape[3], shape[2]), 3.0 if accumulate else torch.nan, dtype=torch.float16, device=DEVICE).mT
    linear_cross_entropy_backward(scale, x, weight, targets, lse, grad_weight=out, accumulate=accumulate)
    assert error(out, truth) <= 2e-3 * float(truth.abs().max())


@pytest.mark.parametrize(
    ("splits", "shape", "dtype"),
    [
        (1, (33, 8, 40), torch.float32),
        (2, (33, 8, 40), torch.float32),
        (1, CUT_VOCABULARY[1:], torch.float16),
        (1, CUT_ROWS[1:], torch.float32),
    ],
)
def test_members_do_not_touch_each_other(
    poisoned: None,
    small_chunks: None,
    monkeypatch: pytest.MonkeyPatch,
    splits: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> None:
    """Member 1 filled with NaN, or left out, changes no bit of the others; two runs give the same bits."""
    monkeypatch.setattr(module, "splits_for", lambda programs, blocks, *_: min(splits, blocks))
    x, weight, targets, scale = problem(3, *shape, dtype)

    def run(members: list[int]) -> list[Tensor]:
        arguments = x[members], weight[members], targets[members]
        loss, lse = linear_cross_entropy_forward(*arguments)
        return [loss, *linear_cross_entropy_backward(scale[members], *arguments, lse)]

    first, again, alone = run([0, 1, 2]), run([0, 1, 2]), run([2])
    x[1], weight[1], targets[1] = torch.nan, torch.nan, shape[2]
    with_nan = run([0, 1, 2])
    for a, b, c, n in zip(first, again, alone, with_nan, strict=True):
        assert torch.equal(a, b) and torch.equal(a[2:], c) and torch.equal(a[[0, 2]], n[[0, 2]])
        assert torch.isfinite(a).all() and n[1].isnan().all()


@pytest.mark.parametrize(
    ("wrong", "d", "dtype"),
    [
        *((wrong, 8, torch.float32) for wrong in (70, -1, 2**40, -(2**40))),
        (-1, 65, torch.float32),
        (2**40, 65, torch.float16),
    ],
)
def test_a_target_out_of_range_fails_its_member_alone(poisoned: None, wrong: int, d: int, dtype: torch.dtype) -> None:
    x, weight, targets, scale = problem(2, 12, d, 70, dtype)
    targets[0, 4] = wrong
    loss, lse = linear_cross_entropy_forward(x, weight, targets)
    grad_x, grad_weight = linear_cross_entropy_backward(scale, x, weight, targets, lse)
    assert loss.isnan().nonzero().tolist() == [[0, 4]]
    assert grad_x[0, 4].isnan().all() and torch.isfinite(grad_x[0, 5:]).all()
    assert grad_weight[0].isnan().all() and torch.isfinite(grad_weight[1]).all()
    assert linear_cross_entropy(x, weight, targets).isnan().tolist() == [True, False]


@pytest.mark.parametrize("d", [8, 65])
def test_no_rows(poisoned: None, d: int) -> None:
    x, weight, targets, scale = problem(2, 0, d, 5)
    loss, lse = linear_cross_entropy_forward(x, weight, targets)
    grad_x, grad_weight = linear_cross_entropy_backward(scale, x, weight, targets, lse)
    assert loss.shape == (2, 0) and grad_x.shape == (2, 0, d) and torch.equal(grad_weight, torch.zeros_like(weight))


def test_operator_is_traceable() -> None:
    x, weight, targets, _ = problem(2, 5, 8, 7, tied=True)
    leaves = x.requires_grad_(), weight.detach().requires_grad_()
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    torch.library.opcheck(module.linear_cross_entropy_tokens, (*leaves, targets, 0.1), test_utils=checks)
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    ours, eager = (f(*leaves, targets, 0.1) for f in (compiled, linear_cross_entropy))
    assert torch.equal(ours, eager)
    for a, b in zip(*(torch.autograd.grad(loss.sum(), leaves) for loss in (ours, eager)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("shape", "launches", "products"),
    [
        ((16, 4096, 256, 8192), 2, 5),
        ((1, 512, 512, 1024), 4, 5),
        ((4, 8192, 1024, 50257), 1 + 2 * 5, 4),
        ((1, 65536, 1024, 8192), 1 + 2 * 6, 4),
    ],
)
def test_launches_on_meta_tensors(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], launches: int, products: int
) -> None:
    """One launch each way where rows and vocabulary fill the device, two where they are split, and two a chunk of a wide d.

    FLOPs and, of chunks, bytes as the docstring counts them; no tensor takes more than one chunk's share.
    """
    seen: list[launching.Launch] = []
    monkeypatch.setattr(launching, "observers", [seen.append])
    n_member, n_row, d, vocab = shape
    x = torch.empty(n_member, n_row, d, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(n_member, d, vocab, dtype=torch.bfloat16, device="meta")
    targets = torch.empty(n_member, n_row, dtype=torch.int64, device="meta")
    with launching.compiled_for("sm_90"):
        loss, lse = linear_cross_entropy_forward(x, weight, targets)
        grad_x, grad_weight = linear_cross_entropy_backward(loss, x, weight, targets, lse)
    assert (grad_x.shape, grad_weight.shape) == (x.shape, weight.shape)
    assert len(seen) == launches
    assert sum(record.flops for record in seen) == 2 * n_member * n_row * d * vocab * products
    logits = n_member * n_row * vocab * 2
    moved = sum(record.read_bytes + record.write_bytes for record in seen)
    assert launches > 2 or moved < 3 * logits
    if d > 512:
        n = (launches - 1) // 2
        x_bytes, weight_bytes = n_member * n_row * d * 2, n_member * d * vocab * 2
        sums = (2 * n - 2) * 2 * min(x_bytes, weight_bytes)
        again = (x_bytes, weight_bytes) if n_row <= vocab else (weight_bytes, x_bytes)  # each chunk's, and in parts
        backward = 2 * n * again[0] + 2 * again[1] + 2 * weight_bytes + x_bytes + sums + 2 * logits
        of_tokens = moved - (x_bytes + weight_bytes + backward)
        assert 0 < of_tokens <= 24 * n_member * n_row * n
        assert seen[1].write_bytes <= n_member * module.CHUNK * 2


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942", "interpreter"])
def test_no_part_of_a_split_loop_is_empty(target: str) -> None:
    for programs in (0, 1, 3, 50, 132, 1000):
        for blocks in range(0, 300, 7):
            splits = splits_for(programs, blocks, target)
            assert splits >= 1 and (splits - 1) * -(-blocks // splits) <= max(0, blocks - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 8, dtype=torch.float64)}, "x must be float32, float16 or bfloat16, got float64."),
        ({"weight": torch.zeros(2, 7, 5)}, "weight must have shape [2, 8, any], got [2, 7, 5]."),
        ({"weight": torch.zeros(2, 8, 5, dtype=torch.float16)}, "weight must be float32, got float16"),
        ({"weight": torch.zeros(2, 8, 10)[:, :, ::2]}, "weight [M, d, V] must be contiguous within a member"),
        ({"weight": torch.zeros(2, 8, 0)}, "weight is empty: [2, 8, 0]"),
        ({"targets": torch.zeros(2, 4, dtype=torch.int64)}, "targets must have shape [2, 3], got [2, 4]."),
        ({"targets": torch.zeros(2, 3, dtype=torch.int32)}, "targets must be int64, got int32"),
        ({"x": torch.zeros(0, 3, 8)}, "x is empty: [0, 3, 8]; it needs at least one member."),
        ({"weight": None}, "weight must be a tensor, got NoneType."),
        ({"targets": None}, "targets must be a tensor, got NoneType."),
        ({"z_loss": "a"}, "z_loss must be a number, got 'a'."),
        ({"z_loss": float("nan")}, "z_loss must be finite, got nan."),
        ({"z_loss": float("inf")}, "z_loss must be finite, got inf."),
        ({"reduction": "sum"}, 'reduction must be "mean" or "none", got \'sum\'.'),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    arguments = {
        "x": torch.zeros(2, 3, 8),
        "weight": torch.zeros(2, 8, 5),
        "targets": torch.zeros(2, 3).long(),
    } | change
    arguments = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        linear_cross_entropy(**arguments)


def test_what_is_not_contiguous_is_copied() -> None:
    """By the function; the launchers say so."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 3, generator=generator).to(DEVICE).mT.requires_grad_()
    weight, targets = torch.randn(2, 8, 5, generator=generator).to(DEVICE), torch.arange(6, device=DEVICE) % 5
    targets = targets.reshape(3, 2).T
    loss = linear_cross_entropy(x, weight, targets)
    copied = x.detach().contiguous().requires_grad_()
    truth = linear_cross_entropy(copied, weight, targets.contiguous())
    assert torch.equal(loss, truth)
    (ours,), (theirs,) = (torch.autograd.grad(a.sum(), b) for a, b in ((loss, x), (truth, copied)))
    assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match=re.escape("x must be contiguous, got strides (24, 1, 3)")):
        linear_cross_entropy_forward(x, weight, targets.contiguous())
    with pytest.raises(ValueError, match=re.escape("targets must be contiguous, got strides (1, 2)")):
        linear_cross_entropy_forward(copied, weight, targets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": torch.zeros(2, 4)}, "scale must have shape [2, 3], got [2, 4]."),
        ({"scale": torch.zeros(2, 1).expand(2, 3)}, "scale must be contiguous, got strides (1, 0)"),
        ({"lse": torch.zeros(2, 3, dtype=torch.float16)}, "lse must be float32, got float16"),
        ({"grad_weight": torch.zeros(2, 5, 8)}, "grad_weight must have shape [2, 8, 5], got [2, 5, 8]."),
        ({"accumulate": True}, "accumulate=True needs grad_weight, the tensor to add to."),
    ],
)
def test_bad_input_backward(change: dict, message: str) -> None:
    arguments = {"x": torch.zeros(2, 3, 8), "weight": torch.zeros(2, 8, 5), "targets": torch.zeros(2, 3).long()}
    arguments |= {"scale": torch.zeros(2, 3), "lse": torch.zeros(2, 3)} | change
    arguments = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        linear_cross_entropy_backward(**arguments)
