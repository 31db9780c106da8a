"""LayerNorm and RMSNorm against their float64 formulas, forward and backward, and what a fleet demands of them."""

import importlib
import itertools
import os

import pytest
import torch
from torch import Tensor

from pyscaling.kernels import reference

kernels = importlib.import_module("pyscaling.kernels.layer_norm")
DEVICE = os.environ.get("PYSCALING_TEST_DEVICE", "cpu")

# (M, R, d): single numbers, blocks not filled, several parts a member, two blocks of a wide row
SHAPES = [(1, 5, 1), (2, 33, 24), (5, 7, 100), (1, 257, 64), (2, 2, 9000)]
EPS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}  # the interpreter truncates bfloat16


def inputs(n_member: int, n_row: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """x, residual, gain, bias, gradient of normed, gradient of the sum."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(n_member, n_row, d)] * 2 + [(n_member, d)] * 2 + [(n_member, n_row, d)] * 2
    return [torch.randn(*size, generator=generator).to(DEVICE, dtype) for size in sizes]


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, device=DEVICE)


def run(module, tensors: list[Tensor], rms: bool, residual: bool) -> list[Tensor]:
    """normed, (sum,) and the gradients of x, gain, (bias,) (residual)."""
    x, r, gain, bias, grad, grad_sum = tensors
    leaves = [t.detach().requires_grad_() for t in ([x, gain] if rms else [x, gain, bias]) + ([r] if residual else [])]
    x, gain, *rest = leaves
    r = rest.pop() if residual else None
    out = module.rms_norm(x, gain, r) if rms else module.layer_norm(x, gain, rest[0], r)
    out = out if residual else (out,)
    gradients = torch.autograd.grad(out, leaves, (grad, grad_sum)[: len(out)])
    return [t.detach() for t in (*out, *gradients)]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs hold NaN before they are written."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(tensor: Tensor) -> Tensor:
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rms", "residual"), list(itertools.product([False, True], repeat=2)))
def test_as_exact_as_plain_pytorch(shape, dtype, rms, residual, poisoned) -> None:  # type: ignore[no-untyped-def]
    tensors = inputs(*shape, dtype)
    if residual and dtype == torch.float16:  # the sum is rounded before it is normed: let both start from the same
        tensors[1] = tensors[1].round()
        tensors[0] = tensors[0].round()
    exact = run(reference, [t.double() for t in tensors], rms, residual)
    for ours, plain, truth in zip(
        run(kernels, tensors, rms, residual), run(reference, tensors, rms, residual), exact, strict=True
    ):
        assert ours.dtype == dtype
        # sums of up to R terms of unit size, rounded once: plain PyTorch may be lucky in a few numbers
        floor = 4 * EPS[dtype] * float(truth.abs().max())
        assert float((ours.double() - truth).abs().max()) <= 2 * float((plain.double() - truth).abs().max()) + floor


@pytest.mark.parametrize("rms", [False, True])
def test_bfloat16_within_its_rounding(rms: bool) -> None:
    tensors = inputs(2, 9, 24, torch.bfloat16)
    tensors[:2] = [t.round() for t in tensors[:2]]  # an exact sum
    exact = run(reference, [t.double() for t in tensors], rms, True)
    for ours, truth in zip(run(kernels, tensors, rms, True), exact, strict=True):  # one rounding at the end
        assert float((ours.double() - truth).abs().max()) <= EPS[torch.bfloat16] * float(truth.abs().max())


@pytest.mark.parametrize("d", [40, 8200])
def test_a_large_mean_leaves_the_variance(d: int) -> None:
    """Var of 1000 + N(0, 1) by mean(x^2) - mean(x)^2 would lose all its digits in float32."""
    x = inputs(1, 2, d)[0] + 1000.0
    gain = torch.ones(1, d, device=DEVICE)
    ours, truth = kernels.layer_norm(x, gain), reference.layer_norm(x.double(), gain.double())
    assert float((ours - truth).abs().max()) < 2 * 1000 * 2.0**-24 * 4


def test_constant_and_tiny_rows() -> None:
    x = zeros(1, 3, 24)
    x[0, 0], x[0, 1, 5] = 3.0, 1e-20
    gain, bias = zeros(1, 24) + 1, zeros(1, 24) + 0.5
    assert torch.equal(kernels.layer_norm(x, gain, bias)[0, 0], bias[0])
    assert kernels.layer_norm(x, gain, bias).isfinite().all() and kernels.rms_norm(x, gain).isfinite().all()


@pytest.mark.parametrize("d", [24, 8200])
@pytest.mark.parametrize("rms", [False, True])
def test_a_member_never_sees_another(d: int, rms: bool) -> None:
    tensors = inputs(3, 9 if d == 24 else 2, d)
    before = run(kernels, tensors, rms, True)
    again = run(kernels, tensors, rms, True)
    for t in tensors:
        t[1] = torch.nan
    for old, same, new in zip(before, again, run(kernels, tensors, rms, True), strict=True):
        assert torch.equal(old, same)  # two runs, the same bits
        assert torch.equal(old[[0, 2]], new[[0, 2]]) and new[1].isnan().any()


@pytest.mark.parametrize("d", [24, 8200])
def test_weights_and_gradients_in_a_flat_row(d: int) -> None:
    """Strided members, float32 weights of 16-bit activations, gradients written in place and nothing beside them."""
    x, _, gain, bias, grad, add = inputs(2, 9, d)
    flat, flat_gradient = (torch.full((2, 2 * d + 7), torch.nan, device=DEVICE) for _ in range(2))
    flat[:, 3 : 3 + d], flat[:, 4 + d : 4 + 2 * d] = gain, bias
    views = [t[:, a : a + d] for t in (flat, flat_gradient) for a in (3, 4 + d)]
    normed, total, stats = kernels.layer_norm_forward(x.half(), *views[:2])
    assert total is None
    grad_x, *written = kernels.layer_norm_backward(grad.half(), x.half(), views[0], stats, add.half(), *views[2:])
    assert all(a is b for a, b in zip(written, views[2:], strict=True))
    assert int(flat_gradient.isfinite().sum()) == 4 * d
    exact = [t.double() for t in (x.half(), x, gain, bias, grad.half(), grad)]
    out, *truth = run(reference, exact, False, False)
    assert float((normed - out).abs().max()) < 2.0**-10 * float(out.abs().max())
    assert float((grad_x - truth[0] - add.half()).abs().max()) < 2.0**-10 * float(grad_x.abs().max())
    for ours, exact in zip(views[2:], truth[1:], strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5)


def test_no_rows_and_a_single_model() -> None:
    normed, total, *gradients = run(kernels, inputs(2, 0, 24), False, True)
    assert normed.shape == total.shape == (2, 0, 24)
    assert torch.equal(gradients[1], zeros(2, 24)) and torch.equal(gradients[2], zeros(2, 24))
    x, r, gain, bias, *_ = inputs(1, 5, 24)
    fleet = kernels.layer_norm(x, gain, bias, r)
    single = kernels.layer_norm(x[0], gain[0], bias[0], r[0])
    assert all(torch.equal(a[0], b) for a, b in zip(fleet, single, strict=True))


def test_compiled_in_one_graph() -> None:
    x, r, gain, bias, grad, grad_sum = inputs(2, 5, 24)
    arguments = [t.requires_grad_() for t in (x, gain, bias, r)]
    compiled = torch.compile(kernels.layer_norm, backend="aot_eager", fullgraph=True)
    results = [
        torch.autograd.grad(f(x, gain, bias, r), arguments, (grad, grad_sum)) for f in (kernels.layer_norm, compiled)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": zeros(2, 3, 4).long()}, "x must be float32, float16 or bfloat16, got int64"),
        ({"x": zeros(2, 3, 0)}, r"x is empty: \[2, 3, 0\]; it needs at least one column"),
        ({"x": zeros(0, 3, 4), "gain": zeros(0, 4)}, "x is empty.* one member"),
        ({"x": [[0.0]]}, "x must be a tensor, got list"),
        ({"gain": None}, "gain must be a tensor, got NoneType"),
        ({"bias": 0.0}, "bias must be a tensor, got float"),
        ({"eps": "a"}, "eps must be a number, got 'a'"),
        ({"eps": True}, "eps must be a number, got True"),
        ({"eps": float("inf")}, "eps must be at least 0 and finite, got inf"),
        ({"eps": float("nan")}, "eps must be at least 0 and finite, got nan"),
        ({"gain": zeros(1, 4)}, r"gain must have shape \[2, 4\], got \[1, 4\]"),
        ({"bias": zeros(2, 4).half()}, "bias must be float32, got float16"),
        ({"residual": zeros(2, 3, 5)}, r"residual must have shape \[2, 3, 4\], got \[2, 3, 5\]"),
        ({"eps": -1.0}, "eps must be at least 0 and finite, got -1.0"),
    ],
)
def test_what_does_not_fit_is_named(change, message) -> None:  # type: ignore[no-untyped-def]
    arguments = {"x": zeros(2, 3, 4), "gain": zeros(2, 4)} | change
    with pytest.raises(ValueError, match=message):
        kernels.layer_norm(**arguments)
    if "bias" not in change:
        with pytest.raises(ValueError, match=message):
            kernels.rms_norm(**arguments)
