"""Products over tensor descriptors, with the tiles of sm_90 in Triton's interpreter, and sums over rows in parts."""

import os
from functools import partial

import pytest
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from pyscaling.kernels import reference
from pyscaling.kernels.launch import compiled_for, observers
from pyscaling.kernels.layer_norm import (
    Norm,
    NormGradient,
    SplitSums,
    layer_norm_backward,
    layer_norm_forward,
    sum_all_parts,
)
from pyscaling.kernels.linear import (
    forms_delta,
    linear_backward,
    linear_forward,
    linear_job,
    weight_parts,
)
from pyscaling.kernels.mlp import down_job, mlp_backward, mlp_forward
from pyscaling.kernels.product import describable, described, sum_splits
from pyscaling.kernels.tiles import CANDIDATES, HANDED_OVER, ROWS, Row, checked, choose, preferring

DEVICE = os.environ.get("PYSCALING_TEST_DEVICE", "cpu")
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
# Small tiles of each described product, so that small tests visit several.
SMALL = [
    Row("linear forward", "sm_90", 16, 1e9, "", (64, 64, 32, 4, 1, False, 1), ""),
    Row("linear forward and norm", "sm_90", 16, 1e9, "", (64, 128, 32, 4, 1, False, 1), ""),
    Row("linear backward", "sm_90", 16, 1e9, "", (64, 64, 64, 64, 32, 4, 1), ""),
    Row("linear backward and norm", "sm_90", 16, 1e9, "", (64, 128, 64, 64, 32, 4, 1), ""),
    Row("mlp forward", "sm_90", 16, 1e9, "", (32, 64, 4, 1), ""),
    Row("mlp backward", "sm_90", 16, 1e9, "", (64, 64, 64, 64, 32, 4, 1), ""),
    Row("mlp up", "sm_90", 16, 1e9, "", (64, 64, 32, 4, 1), ""),
]


@pytest.fixture
def sm_90():
    with compiled_for("sm_90"), preferring(SMALL):
        yield


def random(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = HALF) -> torch.Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype).to(DEVICE)


def kernels_of(run) -> list[str]:  # type: ignore[no-untyped-def]
    seen: list[str] = []
    observers.append(lambda record: seen.append(record.kernel.fn.__name__))
    try:
        run()
    finally:
        observers.pop()
    return seen


def close(ours: torch.Tensor, truth: torch.Tensor, like: torch.dtype = HALF, roundings: float = 2.0) -> None:
    """To some roundings of `like`, of the largest number."""
    assert ours.shape == truth.shape
    worst = (ours.double() - truth.double()).abs().max() / truth.double().abs().max()
    assert worst <= roundings * torch.finfo(like).eps, worst


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("sizes", [(2, 100, 40, 72), (1, 7, 8, 200), (3, 65, 72, 8)])
def test_described_linear(sm_90, sizes: tuple[int, ...], dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    M, R, K, N = sizes
    x, weight, bias, residual, grad = (
        random(*shape, seed=k, dtype=dtype)
        for k, shape in enumerate([(M, R, K), (M, K, N), (M, N), (M, R, N), (M, R, N)])
    )
    assert describable("sm_90", x, weight) and linear_job(x, weight).described
    assert kernels_of(lambda: linear_forward(x, weight, bias, residual)) == ["linear_forward_described_kernel"]
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    truth = reference.linear(*exact) + residual.double()
    out = linear_forward(x, weight, bias, residual)
    close(out, truth, dtype)
    of_x, of_weight, of_bias = torch.autograd.grad(truth, exact, grad.double())
    float_grads = torch.full((M, K, N), torch.nan, device=DEVICE), torch.full((M, N), torch.nan, device=DEVICE)
    grad_x, grad_weight, grad_bias = linear_backward(grad, x, weight, *float_grads)
    close(grad_x, of_x, dtype)
    close(grad_weight, of_weight, SINGLE, 16)
    close(grad_bias, of_bias, SINGLE, 16)
    close(linear_backward(grad, x, weight, has_bias=False)[1], of_weight, dtype)


def test_what_is_described_and_what_is_not() -> None:
    x = random(2, 16, 24)
    assert describable("sm_90", x) and describable("sm_100", x, None)
    assert not describable("sm_80", x) and not describable("gfx942", x) and not describable("interpreter", x)
    assert not describable("sm_90", x.float()) and not describable("sm_90", random(2, 16, 25))
    assert not describable("sm_90", x[:, :, 1:9]) and describable("sm_90", x[:, :, 8:16])
    assert not describable("sm_90", x.mT) and not describable("sm_90", x[:, :0])
    checked = TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 16, 8])
    assert vars(described(x, 16, 8)) == vars(checked)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize(("n_row", "d"), [(70, 24), (130, 104)])
def test_described_norm_within_a_product(sm_90, n_row: int, d: int, rms: bool) -> None:  # type: ignore[no-untyped-def]
    """As in test_linear: forward to a rounding; the backward takes the gradient before it is rounded."""
    x, up, down, bias, residual, gain, norm_bias, grad, add = (
        random(2, *size, seed=k, scale=size[0] ** -0.5 if k in (1, 2) else 1.0)
        for k, size in enumerate([(n_row, d), (d, 64), (64, d), (d,), (n_row, d), (d,), (d,), (n_row, 64), (n_row, d)])
    )
    norm_bias = None if rms else norm_bias
    for product, kernel in (
        (lambda norm: linear_forward(grad, down, bias, residual, norm), "linear_forward_described_kernel"),
        (
            lambda norm: mlp_forward(x, up, x.new_zeros(2, 64), down, bias, residual, "gelu", norm)[0],
            "mlp_forward_described_kernel",
        ),
    ):
        norm = Norm(
            gain,
            norm_bias,
            torch.full_like(x, torch.nan),
            torch.full((1 if rms else 2, 2, n_row), torch.nan, device=DEVICE),
        )
        out = product(norm)
        assert kernels_of(partial(product, norm)) == [kernel]
        normed, _, stats = layer_norm_forward(out, gain, norm_bias, rms=rms)
        close(out, product(None))
        close(norm.normed, normed)
        close(norm.stats, stats, SINGLE, 64)
    normed, _, stats = layer_norm_forward(residual, gain, norm_bias, rms=rms)
    for product in (
        lambda norm: linear_backward(grad, normed, up, norm=norm, has_bias=False)[:2],
        lambda norm: mlp_backward(add, normed, up, down, grad, "gelu", norm=norm, has_bias=False)[:2],
    ):
        parts = torch.full((1 if rms else 2, 2, -(-n_row // 64), d), torch.nan, device=DEVICE)
        grad_z, grad_weight = product(NormGradient(residual, gain, stats, add, parts))
        grad_normed, alone = product(None)
        truth, *of_weights = layer_norm_backward(grad_normed, residual, gain, stats, add, has_bias=not rms)
        close(grad_z, truth, roundings=8)
        close(grad_weight, alone)
        for ours, exact in zip(parts.sum(2), of_weights, strict=False):
            close(ours, exact, roundings=8)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "gelu_exact", "swiglu", "geglu"])
def test_described_mlp(sm_90, activation: str, wide: bool) -> None:  # type: ignore[no-untyped-def]
    M, R, d, F = 2, 70, 264 if wide else 24, 64
    U = F * (2 if activation in ("swiglu", "geglu") else 1)
    sizes = ((M, R, d), (M, d, U), (M, U), (M, F, d), (M, d), (M, R, d), (M, R, d))
    scales = (1.0, d**-0.5, 1.0, F**-0.5, 1.0, 1.0, 1.0)
    x, up, up_bias, down, down_bias, residual, grad = (
        random(*s, seed=k, scale=c) for k, (s, c) in enumerate(zip(sizes, scales, strict=True))
    )

    def forward():  # type: ignore[no-untyped-def]
        return mlp_forward(x, up, up_bias, down, down_bias, residual, activation)

    expected = ["up_forward_kernel", "linear_forward_described_kernel"] if wide else ["mlp_forward_described_kernel"]
    assert kernels_of(forward) == expected
    exact = [t.double().requires_grad_() for t in (x, up, up_bias, down, down_bias)]
    truth = reference.mlp(*exact, activation) + residual.double()
    out, u, hidden = forward()
    assert (hidden is not None) == wide and down_job(grad, u, hidden, down, activation).described
    close(out, truth, roundings=4)
    for kept in {id(hidden): hidden, id(None): None}.values():
        gradients = mlp_backward(grad, x, up, down, u, activation, hidden=kept)
        for ours, true in zip(
            gradients, torch.autograd.grad(truth, exact, grad.double(), retain_graph=True), strict=True
        ):
            close(ours, true, roundings=6)


def test_a_wide_mlp_by_pointers_keeps_its_activations() -> None:
    x, up, down, grad = (
        random(2, 20, 264, dtype=SINGLE),
        random(2, 264, 40, dtype=SINGLE),
        random(2, 20, 264),
        random(2, 20, 264),
    )
    down, grad = down.float(), grad.float()
    out, u, hidden = mlp_forward(x, up, None, down, None, None, "swiglu")
    assert hidden is not None
    torch.testing.assert_close(hidden, torch.nn.functional.silu(u[..., :20]) * u[..., 20:])
    torch.testing.assert_close(out, hidden @ down)
    kept, again = (mlp_backward(grad, x, up, down, u, "swiglu", hidden=h, has_bias=False) for h in (hidden, None))
    for a, b in zip(kept, again, strict=True):
        assert a is b or torch.equal(a, b)


@pytest.mark.parametrize("is_described", [False, True])
def test_rows_in_parts(is_described: bool) -> None:
    """Parts are summed in order to the same gradients; no part is empty; members have no say."""
    M, R, K, N = 2, 64 * 37, 24, 40
    x, weight, grad = random(M, R, K, seed=1), random(M, K, N, seed=2), random(M, R, N, seed=3)
    with compiled_for("sm_90" if is_described else "sm_80"), preferring(SMALL):
        job = linear_job(x, weight)
        assert job.described == is_described and job.n_split > 1 and linear_job(x[:1], weight[:1]) == job
        assert (job.n_split - 1) * job.span(R) < R <= job.n_split * job.span(R)
        grad_weight, grad_bias = (
            torch.full((M, K, N), torch.nan, device=DEVICE),
            torch.full((M, N), torch.nan, device=DEVICE),
        )
        launched = kernels_of(lambda: linear_backward(grad, x, weight, grad_weight, grad_bias))
        assert launched == ["linear_backward_kernel", "sum_splits_kernel"]
        alone = linear_backward(grad[1:], x[1:], weight[1:], grad_weight[1:].clone(), grad_bias[1:].clone())
        assert torch.equal(alone[1], grad_weight[1:]) and torch.equal(alone[2], grad_bias[1:])
        parts = weight_parts(job.n_split, weight, True).fill_(torch.nan)
        assert len(kernels_of(lambda: linear_backward(grad, x, weight, parts=parts))) == 1
    close(grad_weight, x.double().mT @ grad.double(), SINGLE, 64)
    close(grad_bias, grad.double().sum(1), SINGLE, 64)
    by_hand = parts[0]
    for part in parts[1:]:
        by_hand = by_hand + part
    assert torch.equal(by_hand[:, : K * N].view(M, K, N), grad_weight) and torch.equal(by_hand[:, K * N :], grad_bias)
    without = torch.full_like(grad_weight, torch.nan)
    sum_splits(parts[:, :, : K * N].contiguous(), without, None)
    assert torch.equal(without, grad_weight)


def test_sums_of_all_parts_in_one_launch() -> None:
    """Norms' parts and weights' parts, to their places in the gradient; the rest of it stays."""
    M, d = 3, 20
    norms, splits = random(2, M, 5, d, dtype=SINGLE), random(2 * M * 1500, seed=1, dtype=SINGLE)
    table = torch.tensor([[0, 1500, M * 1500, 2, 100, 1024], [1024, 1500, M * 1500, 2, 1124, 476]], device=DEVICE)
    gradient, places = torch.full((M, 2000), 7.0, device=DEVICE), torch.tensor([1700, 1900], device=DEVICE)
    launched = kernels_of(lambda: sum_all_parts(norms, gradient, places, SplitSums(splits, table, M * 1500)))
    assert launched == ["sum_all_parts_kernel"]
    parts = splits.view(2, M, 1500)
    assert torch.equal(gradient[:, 100:1600], parts[0] + parts[1])
    torch.testing.assert_close(gradient[:, 1700:1720], norms[0].sum(1))
    torch.testing.assert_close(gradient[:, 1900:1920], norms[1].sum(1))
    between = torch.ones(2000, dtype=torch.bool)
    for start, stop in ((100, 1600), (1700, 1720), (1900, 1920)):
        between[start:stop] = False
    assert (gradient[:, between] == 7.0).all()


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_delta_of_heads(target: str) -> None:
    """The sums that attention's backward needs are those of dx as it is stored, by head."""
    M, B, T, n_head, head_dim = 2, 3, 11, 4, 16
    d = n_head * head_dim
    x, weight, grad = random(M, B * T, d, seed=1), random(M, d, d, seed=2), random(M, B * T, d, seed=3)
    with compiled_for(target), preferring(SMALL):
        job = linear_job(x, weight)
        assert forms_delta(job, head_dim) and not forms_delta(job, 24)
        delta = torch.full((M * B, n_head, T), torch.nan, device=DEVICE)
        grad_x, *_ = linear_backward(grad, x, weight, has_bias=False, delta=delta)
        assert torch.equal(grad_x, linear_backward(grad, x, weight, has_bias=False)[0])
    truth = (grad_x.double() * x.double()).view(M * B, T, n_head, head_dim).sum(-1).transpose(1, 2)
    close(delta, truth, SINGLE, 16)


def test_every_row_of_the_table_says_what_it_means() -> None:
    """The table itself is checked when it is loaded."""
    for row in (*ROWS, *HANDED_OVER, *CANDIDATES):
        assert checked(row).reason and row.up_to > 0, row


def test_empty_tiles_keep_a_way_from_use() -> None:
    """Of a product over descriptors, and of the MLP in one launch: the numbers stay."""
    M, R, d, F = 2, 40, 24, 64
    x, up, down, gain = random(M, R, d), random(M, d, F, seed=1), random(M, F, d, seed=2), random(M, d, seed=3)
    off = [Row(name, "sm_90", 16, 1e9, "", (), "wrong") for name in ("linear forward", "linear backward")]
    two = [Row("mlp forward", "sm_90", 16, 1e9, "", (), "slow")]

    def normed() -> Norm:
        return Norm(gain, None, torch.empty_like(x), torch.empty(1, M, R, device=DEVICE))

    with compiled_for("sm_90"):
        with preferring(SMALL):
            truth, gradients = linear_forward(x, up), linear_backward(random(M, R, F, seed=4), x, up, has_bias=False)
            first = normed()
            out, u, hidden = mlp_forward(x, up, None, down, None, None, "gelu", first)
        with preferring([*off, *SMALL]):
            assert kernels_of(lambda: linear_forward(x, up)) == ["linear_forward_kernel"]
            assert not linear_job(x, up).described
            close(linear_forward(x, up), truth)
            for ours, theirs in zip(
                linear_backward(random(M, R, F, seed=4), x, up, has_bias=False), gradients, strict=True
            ):
                assert ours is theirs or close(ours, theirs) is None
        with preferring([*two, *SMALL]):
            second = normed()
            run = partial(mlp_forward, x, up, None, down, None, None, "gelu", second)
            assert kernels_of(run) == ["up_forward_kernel", "linear_forward_described_kernel"]
            again = run()
            close(again[0], out, roundings=4)
            close(second.normed, first.normed, roundings=4)
            assert torch.equal(again[1], u) and hidden is None and again[2] is not None


def test_an_operation_without_a_row_is_an_error_that_names_it() -> None:
    with pytest.raises(KeyError, match="no tiles for linear forward of 32 bits, width 64, on gfx942; add a row"):
        choose("linear forward", "gfx942", SINGLE, 64)
