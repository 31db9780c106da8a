"""Linear layers and MLP of a fleet, in Triton's interpreter or on a card, against float64 and against PyTorch in the same
precision."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from pyscaling.kernels import reference
from pyscaling.kernels.launch import INTERPRETED, compiled_for, dot_mode, observers, target_of
from pyscaling.kernels.layer_norm import Norm, NormGradient, layer_norm_backward, layer_norm_forward, norm_tile_rows
from pyscaling.kernels.linear import linear, linear_backward, linear_forward, tiles_for
from pyscaling.kernels.mlp import ACTIVATIONS, mlp, mlp_backward, mlp_forward

HALF, SINGLE, BRAIN = torch.float16, torch.float32, torch.bfloat16
DEVICE = os.environ.get("PYSCALING_TEST_DEVICE", "cpu")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="a card takes its own tiles; another's run in the interpreter")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that an operation allocates holds NaN until it is written."""
    new_empty, empty, empty_like = torch.Tensor.new_empty, torch.empty, torch.empty_like

    def filled(make):  # type: ignore[no-untyped-def]
        def poison(*args, **options):  # type: ignore[no-untyped-def]
            tensor = make(*args, **options)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return poison

    monkeypatch.setattr(torch.Tensor, "new_empty", filled(new_empty))
    monkeypatch.setattr(torch, "empty", filled(empty))
    monkeypatch.setattr(torch, "empty_like", filled(empty_like))


def random(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = SINGLE) -> torch.Tensor:
    numbers = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return numbers.to(DEVICE, dtype).requires_grad_()


def linear_case(M: int, R: int, K: int, N: int, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = ((M, R, K), (M, K, N), (M, N), (M, R, N))
    return [random(*shape, seed=k, dtype=dtype) for k, shape in enumerate(shapes)]


def mlp_case(M: int, R: int, d: int, F: int, activation: str, dtype: torch.dtype) -> list[torch.Tensor]:
    width = F * (2 if activation in ("swiglu", "geglu") else 1)
    shapes = ((M, R, d), (M, d, width), (M, width), (M, F, d), (M, d), (M, R, d))
    scales = (1.0, d**-0.5, 1.0, F**-0.5, 1.0, 1.0)
    return [random(*s, seed=k, scale=c, dtype=dtype) for k, (s, c) in enumerate(zip(shapes, scales, strict=True))]


def plain_linear(x, weight, bias, residual):  # type: ignore[no-untyped-def]
    return reference.linear(x, weight, bias) + residual


def plain_mlp(activation: str):  # type: ignore[no-untyped-def]
    def compute(x, up, up_bias, down, down_bias, residual):  # type: ignore[no-untyped-def]
        return reference.mlp(x, up, up_bias, down, down_bias, activation) + residual

    return compute


@contextmanager
def observed(names: list[str]) -> Iterator[None]:
    """Within it the names of kernels that are launched are added to these."""
    observers.append(lambda record: names.append(record.kernel.fn.__name__))
    try:
        yield
    finally:
        observers.pop()


def outputs_and_gradients(function, inputs, grad):  # type: ignore[no-untyped-def]
    out = function(*inputs)
    return [out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


def check_errors(ours, plain, inputs, factor: float = 2.0, chain: int = 1) -> None:  # type: ignore[no-untyped-def]
    """Our error, relative to the largest number, is at most `factor` times PyTorch's in the same precision, or an ulp.

    Where float32 is multiplied as tf32x3, a product a b may be off by 3 x 2^-22 |a b| besides: each factor's lower part is
    below 2^-11 of it, so that the product of both is left out and either, rounded to 11 bits, errs by as much again. The
    sum of |a b| is what `plain` makes of absolute values; chain: how many products follow each other, and the slope of an
    activation between them is at most 1.13.
    """
    grad = random(*ours(*inputs).shape, seed=9, dtype=inputs[0].dtype).detach()
    exact = outputs_and_gradients(plain, [t.detach().double().requires_grad_() for t in inputs], grad)
    absolute = outputs_and_gradients(plain, [t.detach().double().abs().requires_grad_() for t in inputs], grad.abs())
    split = 0.0
    if dot_mode(inputs[0].dtype, target_of(inputs[0].device)) == "tf32x3":
        split = 3 * 2.0**-22 * chain * 1.13 ** (chain - 1)
    peer = outputs_and_gradients(plain, inputs, grad)
    mine = outputs_and_gradients(ours, inputs, grad)
    for result, theirs, truth, terms in zip(mine, peer, exact, absolute, strict=True):
        size = truth.abs().max()
        allowed = factor * max((theirs.double() - truth).abs().max() / size, torch.finfo(result.dtype).eps)
        assert (result.double() - truth).abs().max() / size <= allowed + split * terms.abs().max() / size


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 100, 40, 72), (5, 7, 65, 3), (1, 63, 130, 129)])
def test_linear(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    check_errors(linear, plain_linear, linear_case(*sizes, dtype))


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp(activation: str, dtype: torch.dtype) -> None:
    check_mlp(activation, mlp_case(2, 70, 24, 50, activation, dtype))


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize(("d", "F", "dtype"), [(264, 20, SINGLE), (257, 33, HALF)])
def test_mlp_wider_than_a_tile(d: int, F: int, activation: str, dtype: torch.dtype) -> None:
    """Beyond 256 columns u and act(u) are written by a launch of their own, and the output is a linear layer of act(u)."""
    inputs, seen = mlp_case(2, 9, d, F, activation, dtype), []
    with observed(seen):
        check_mlp(activation, inputs)
    assert seen[:2] == ["up_forward_kernel", "linear_forward_kernel"] and "mlp_forward_kernel" not in seen


def check_mlp(activation: str, inputs: list[torch.Tensor], factor: float = 2.0) -> None:
    check_errors(lambda *i: mlp(*i[:5], activation, i[5]), plain_mlp(activation), inputs, factor, chain=3)


CARDS_TILES = {
    "linear": [(1, 150, 40, 136), (1, 20, 72, 264)],
    "mlp": [(1, 70, 40, 72), (1, 70, 72, 136), (1, 40, 264, 40)],
}


@interpreted
@pytest.mark.parametrize("dtype", [SINGLE, HALF])
@pytest.mark.parametrize("sizes", CARDS_TILES["linear"])
def test_linear_by_a_cards_tiles(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """sm_90's choice of blocks, by widths that divide by 16 and others that do not."""
    with compiled_for("sm_90"):
        check_errors(linear, plain_linear, linear_case(*sizes, dtype))
        uneven = sizes[0], sizes[1], sizes[2] + 1, sizes[3] - 3
        check_errors(linear, plain_linear, linear_case(*uneven, dtype))


@interpreted
@pytest.mark.parametrize("dtype", [SINGLE, HALF])
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("sizes", CARDS_TILES["mlp"])
def test_mlp_by_a_cards_tiles(sizes: tuple[int, ...], activation: str, dtype: torch.dtype) -> None:
    with compiled_for("sm_90"):
        check_mlp(activation, mlp_case(*sizes, activation, dtype))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16(activation: str) -> None:
    """The interpreter truncates where hardware rounds: twice the error; three roundings in a row (u, act(u), out)."""
    inputs = mlp_case(1, 33, 16, 40, activation, BRAIN)
    check_mlp(activation, inputs, factor=6.0)


@pytest.mark.parametrize("scale", [1e-20, 1e15])
def test_tiny_and_huge(scale: float) -> None:
    x, weight, bias, residual = linear_case(1, 20, 16, 20, SINGLE)
    check_errors(lambda *i: linear(*i), plain_linear, [(scale * x).detach().requires_grad_(), weight, bias, residual])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_far_out(activation: str) -> None:
    """Beyond |u| = 100 every activation is 0 or u, and its slope 0 or 1; nothing overflows."""
    u = torch.tensor([-3e4, -100.0, 0.0, 100.0, 3e4], device=DEVICE)
    inputs = [
        torch.ones(1, 1, 1, device=DEVICE), u.repeat(2 if "glu" in activation and activation[:4] != "gelu" else 1).view(1, 1, -1),
        None, torch.eye(5, device=DEVICE).view(1, 5, 5), None,
    ]  # fmt: skip
    out = mlp(*inputs, activation)
    ours, truth = out, reference.mlp(*inputs, activation)
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-30)


def test_without_bias_and_residual_and_of_one_model() -> None:
    x, weight, bias, residual = (t.detach() for t in linear_case(2, 10, 12, 9, SINGLE))
    torch.testing.assert_close(linear(x, weight), x @ weight)
    torch.testing.assert_close(linear(x[1], weight[1], bias[1], residual[1]), x[1] @ weight[1] + bias[1] + residual[1])
    inputs = [t.detach() for t in mlp_case(2, 10, 12, 20, "swiglu", SINGLE)]
    one = mlp(inputs[0][1], inputs[1][1], None, inputs[3][1], None, "swiglu")
    torch.testing.assert_close(one, reference.mlp(inputs[0], inputs[1], None, inputs[3], None, "swiglu")[1])


def test_weights_and_gradients_lie_in_flat_rows() -> None:
    """Weights are views of [M, P], and gradients are written into such views; the numbers between them stay untouched."""
    M, R, d, F = 3, 20, 8, 24
    x, up, up_bias, down, down_bias, residual = (t.detach() for t in mlp_case(M, R, d, F, "gelu", SINGLE))
    parts = (up, up_bias, down, down_bias)
    ends = torch.tensor([0, *(t[0].numel() + 5 for t in parts)]).cumsum(0).tolist()
    flat, gradient = (torch.full((M, ends[-1]), value, device=DEVICE) for value in (torch.nan, 77.0))
    views, outs = (
        [row[:, a : a + t[0].numel()].view(t.shape) for a, t in zip(ends, parts, strict=False)]
        for row in (flat, gradient)
    )
    for view, part in zip(views, parts, strict=True):
        view.copy_(part)
    out, u, _ = mlp_forward(x, *views, residual, "gelu")
    expected, u_contiguous, _ = mlp_forward(x, *parts, residual, "gelu")
    assert torch.equal(out, expected)
    grad = torch.ones_like(out)
    grad_x, *_ = mlp_backward(grad, x, views[0], views[2], u, "gelu", *outs)
    plain = mlp_backward(grad, x, up, down, u_contiguous, "gelu")
    assert torch.equal(grad_x, plain[0])
    for view, gradient_of in zip(outs, plain[1:], strict=True):
        assert torch.equal(view, gradient_of)
    between = torch.ones(ends[-1], dtype=torch.bool, device=DEVICE)
    for a, t in zip(ends, parts, strict=False):
        between[a : a + t[0].numel()] = False
    assert (gradient[:, between] == 77.0).all()


def test_members_do_not_touch() -> None:
    inputs = [t.detach() for t in mlp_case(3, 40, 16, 24, "geglu", SINGLE)]
    spoilt = [t.clone() for t in inputs]
    for tensor in spoilt:
        tensor[1] = torch.nan
    alone = [t[[0, 2]] for t in inputs]
    results = []
    for case in (inputs, spoilt, alone):
        case = [t.clone().requires_grad_() for t in case]
        grad = torch.ones_like(case[0])
        results.append(outputs_and_gradients(lambda *i: mlp(*i[:5], "geglu", i[5]), case, grad))
    for whole, with_nan, pair in zip(*results, strict=True):
        assert torch.equal(whole[[0, 2]], with_nan[[0, 2]]) and torch.equal(whole[[0, 2]], pair)


def test_guard_rows_are_not_read() -> None:
    x, weight, bias, residual = (t.detach() for t in linear_case(1, 30, 20, 10, SINGLE))
    guarded = torch.full((1, 40, 20), torch.nan, device=DEVICE)
    guarded[:, 5:35] = x
    assert torch.equal(linear(guarded[:, 5:35], weight, bias, residual), linear(x, weight, bias, residual))


def test_traceable() -> None:
    inputs = linear_case(2, 10, 8, 6, SINGLE)
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    grad = torch.ones(2, 10, 6, device=DEVICE)
    results = (outputs_and_gradients(function, inputs, grad) for function in (compiled, linear))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
    torch.library.opcheck(torch.ops.pyscaling.mlp_op, (*mlp_case(1, 5, 4, 6, "gelu", SINGLE), "gelu"))


@pytest.mark.parametrize("dtype", [SINGLE, HALF])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize(("n_row", "d"), [(70, 24), (5, 100)])
def test_a_norm_within_a_product_is_the_norm_after_it(n_row: int, d: int, rms: bool, dtype: torch.dtype) -> None:
    """Forward of both products to a rounding; the backward takes the gradient before it is rounded."""
    x, up, down, bias, residual, gain, norm_bias, grad, add = (
        random(2, *size, seed=k, dtype=dtype, scale=size[0] ** -0.5 if k in (1, 2) else 1.0).detach()
        for k, size in enumerate([(n_row, d), (d, 40), (40, d), (d,), (n_row, d), (d,), (d,), (n_row, 40), (n_row, d)])
    )
    norm_bias = None if rms else norm_bias
    eps = torch.finfo(dtype).eps
    for product in (
        lambda norm: linear_forward(grad, down, bias, residual, norm),
        lambda norm: mlp_forward(x, up, x.new_zeros(2, 40), down, bias, residual, "gelu", norm)[0],
    ):
        norm = Norm(gain, norm_bias, torch.empty_like(x), torch.empty(1 if rms else 2, 2, n_row, device=DEVICE))
        out = product(norm)
        normed, _, stats = layer_norm_forward(out, gain, norm_bias, rms=rms)
        torch.testing.assert_close(out, product(None), rtol=0, atol=4 * eps * float(out.abs().max()))  # other tiles
        torch.testing.assert_close(norm.normed, normed, rtol=0, atol=4 * eps * float(normed.abs().max()))
        torch.testing.assert_close(norm.stats, stats, rtol=1e-5, atol=1e-6)
    normed, _, stats = layer_norm_forward(residual, gain, norm_bias, rms=rms)
    for product in (
        lambda norm: linear_backward(grad, normed, up, norm=norm, has_bias=False)[:2],
        lambda norm: mlp_backward(add, normed, up, down, grad, "gelu", norm=norm, has_bias=False)[:2],
    ):
        n_part = -(-n_row // norm_tile_rows(n_row, d, dtype, target_of(x.device)))
        parts = torch.empty(1 if rms else 2, 2, n_part, d, device=DEVICE)
        grad_z, grad_weight = product(NormGradient(residual, gain, stats, add, parts))
        grad_normed, alone = product(None)
        truth, *of_weights = layer_norm_backward(grad_normed, residual, gain, stats, add, has_bias=not rms)
        torch.testing.assert_close(grad_z, truth, rtol=0, atol=8 * eps * float(truth.abs().max()))
        torch.testing.assert_close(grad_weight, alone, rtol=0, atol=4 * eps * float(alone.abs().max()))
        for ours, exact in zip(parts.sum(2), of_weights, strict=False):
            torch.testing.assert_close(ours, exact.float(), rtol=0, atol=8 * eps * float(exact.abs().max()))


def test_launches() -> None:
    """One forward and one backward of a linear layer, one and two of an MLP, two and two of a wide one; any members."""
    seen: list[str] = []
    with observed(seen):
        x, w = torch.empty(16, 64, 32, device="meta"), torch.empty(16, 32, 128, device="meta")
        linear_backward(linear_forward(x, w), x, w, has_bias=False)
        assert len(seen) == 2
        for width, launches in ((32, 3), (257, 4)):
            seen.clear()
            x, up, down = (torch.empty(16, *size, device="meta") for size in ((64, width), (width, 128), (128, width)))
            out, u, _ = mlp_forward(x, up, None, down, None, x, "gelu")
            mlp_backward(out, x, up, down, u, "gelu", has_bias=False)
            assert len(seen) == launches


def test_tiles_suit_the_target() -> None:
    """Stages fit the shared memory that a target has, in bytes."""
    limits = {"sm_80": 163, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64, "gfx950": 160}
    for target, kibibytes in limits.items():
        with compiled_for(target):
            tiles = tiles_for(4096, 4096, BRAIN, target)
        assert 2 * tiles.BLOCK_K * (tiles.BLOCK_M + tiles.BLOCK_N) * tiles.num_stages <= kibibytes * 1024


def test_no_rows_have_gradients_of_zero() -> None:
    inputs = linear_case(2, 0, 4, 3, SINGLE)
    out, *gradients = outputs_and_gradients(linear, inputs, torch.ones(2, 0, 3, device=DEVICE))
    assert out.shape == (2, 0, 3) and not any(g.any() for g in gradients)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, device=DEVICE)


X = zeros(2, 5, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear(X.double(), zeros(2, 4, 3)), "x must be float32, float16 or bfloat16, got float64"),
        (lambda: linear(X[None], zeros(2, 4, 3)), "x must have shape"),
        (lambda: linear(X, zeros(2, 5, 3)), r"weight must have shape \[2, 4, any\], got \[2, 5, 3\]"),
        (lambda: linear(X, zeros(3, 4, 3)), "weight must have shape"),
        (lambda: linear(X, zeros(2, 4, 3).half()), "weight must be float32, got float16"),
        (lambda: linear(X, torch.zeros(2, 4, 3, device="meta")), "weight is on meta"),
        (lambda: linear(X, zeros(2, 4, 3), zeros(3)), "bias must have shape"),
        (lambda: linear(X, zeros(2, 4, 3), None, zeros(2, 5, 4)), "residual must have shape"),
        (lambda: mlp(X, zeros(2, 4, 8), None, zeros(2, 8, 4), None, "relu"), "activation='relu' is unknown"),
        (lambda: mlp(X, zeros(2, 4, 8), None, zeros(2, 8, 4), None, "swiglu"), "up must have shape"),
        (lambda: mlp(X, zeros(2, 4, 8), zeros(2, 8), zeros(2, 8, 4), None), "both or neither"),
        (lambda: linear(zeros(0, 5, 4), zeros(0, 4, 3)), r"x is empty: \[0, 5, 4\]; it needs at least one member"),
        (lambda: linear(zeros(2, 5, 0), zeros(2, 0, 3)), r"x is empty: \[2, 5, 0\]; it needs at least one column"),
        (lambda: linear(X, zeros(2, 4, 0)), r"weight is empty: \[2, 4, 0\]; it needs at least one column"),
        (lambda: mlp(X[:0], zeros(0, 4, 8), None, zeros(0, 8, 4), None), "x is empty.* one member"),
        (lambda: mlp(X[..., :0], zeros(2, 0, 8), None, zeros(2, 8, 4), None), "x is empty.* one column"),
        (lambda: mlp(X, zeros(2, 4, 0), None, zeros(2, 0, 4), None), "down is empty.* one row"),
        (lambda: mlp(X, zeros(2, 4, 8), None, zeros(2, 8, 0), None), "down is empty.* one column"),
        (lambda: linear(X, None), "weight must be a tensor, got NoneType"),
        (lambda: linear(X.cpu().numpy(), zeros(2, 4, 3)), "x must be a tensor, got ndarray"),
        (lambda: linear(X, zeros(2, 4, 3), [0.0]), "bias must be a tensor, got list"),
        (lambda: linear(X.to_sparse(), zeros(2, 4, 3)), r"x must be dense, got layout .*; call .to_dense\(\)"),
        (lambda: mlp(X, None, None, zeros(2, 8, 4), None), "up must be a tensor, got NoneType"),
    ],
)  # fmt: skip
def test_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
