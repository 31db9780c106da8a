"""What the table of tiles hands over to plain PyTorch comes out as the kernels give it."""

import functools
import importlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from pyscaling import kernels
from pyscaling.accounting import Shape
from pyscaling.kernels import reference
from pyscaling.kernels.launch import observers, replaced
from pyscaling.kernels.linear_cross_entropy import linear_cross_entropy_backward, linear_cross_entropy_forward
from pyscaling.kernels.tiles import OPERATIONS, Row, handed_over, preferring
from pyscaling.models.fused import FusedTransformer
from pyscaling.training.optimizer import FusedAdamW

DEVICE = os.environ.get("PYSCALING_TEST_DEVICE", "cpu")
GPT2 = Shape(16, 1, 2, context=8, vocab_size=40)
RECIPE = Shape(
    16, 1, 2, context=8, vocab_size=40, position="rope", norm="rmsnorm", tied=False, bias=False, qk_norm=True, rope_base=100.0,
    mlp="swiglu",
)  # fmt: skip
# shape, dtype, the widest norm within a product: of wider models it is a launch of its own, and the MLP takes two
MODELS = {
    "gpt2": (GPT2, torch.float16, 256),
    "recipe": (RECIPE, torch.float32, 256),
    "wide": (GPT2, torch.float32, 8),
}
modules = [importlib.import_module(f"pyscaling.{name}") for name in ("models.fused", "kernels.mlp")]


def rows(*operations: str, targets: str = "*", up_to: float = 1e9) -> list[Row]:
    return [Row(name, targets, bits, up_to, "", (), "trial") for name in operations for bits in (16, 32)]


def stepped(name: str, *operations: str) -> tuple[dict[str, Tensor], int]:
    """What two steps change, the second with a loss that is none for one member; and how many launches they took."""
    launches: list[Any] = []
    shape, dtype, widest = MODELS[name]
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(replaced(module, WIDEST_TILE=widest))
        stack.enter_context(preferring(rows(*operations)))
        model = FusedTransformer(shape, [0, 1], DEVICE, dtype)
        optimizer = FusedAdamW(model, torch.tensor([0.01, 0.02]), embedding_rate=0.5)
        observers.append(launches.append)
        try:
            tokens = torch.randint(0, 40, (2, 3, 8), generator=torch.Generator().manual_seed(0)).to(DEVICE)
            loss = model.loss_and_gradient(tokens)
            found = {"loss": loss, "gradient": model.gradient.clone(), "norm": optimizer.step(loss, 0, 1.0)}
            optimizer.step(torch.tensor([3.0, torch.nan]).to(DEVICE), 1, 1.0)
        finally:
            observers.remove(launches.append)
    low = {"low": model.low} if model.low is not None else {}
    return found | low | optimizer.state(), len(launches)


by_kernels = functools.cache(stepped)


@pytest.mark.parametrize(
    "operation, name",
    [(operation, "gpt2") for operation in OPERATIONS]
    + [(operation, "recipe") for operation in OPERATIONS if operation.startswith(("attention", "mlp", "linear"))]
    + [(operation, "wide") for operation in OPERATIONS if operation.startswith(("mlp", "layer_norm"))],
)
def test_a_step_with_one_operation_handed_over(operation: str, name: str) -> None:
    """Beside kernels for all others: it reads what they wrote, and writes what they read."""
    truth, all_launches = by_kernels(name)
    found, launches = stepped(name, operation)
    assert launches < all_launches
    half = MODELS[name][1] == torch.float16
    rounding = 4e-3 if half else 2e-6
    for key in ("loss", "norm", "gradient"):
        size = float(truth[key].abs().max())
        torch.testing.assert_close(found[key], truth[key], rtol=5 * rounding, atol=rounding * size)
    assert found["alive"].tolist() == [True, False] and found["failed_step"].tolist() == [-1, 1]
    # of a weight whose gradient is nearly nothing the first step is a whole rate, either way
    apart = (found["flat"] - truth["flat"]).abs() > 0.05 * 0.02
    assert apart.float().mean() < 0.02, apart.sum()
    if half:
        assert torch.equal(found["low"], found["flat"].half())


def gradients(function: Callable[..., Any], leaves: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The result, and the gradient of each leaf for a random one of the result."""
    own = [leaf.to(dtype).to(DEVICE).requires_grad_() for leaf in leaves]
    out = function(*own)
    out = out if isinstance(out, Tensor) else torch.cat(out, -1)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out)
    return [out.detach(), *torch.autograd.grad(out, own, grad)]


def normal(*sizes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator) for size in sizes]


def heads(**options: Any) -> tuple[Any, Any, list[Tensor]]:
    of = functools.partial
    sizes = ((2, 3, 5, 13), (2, 3, 7, 13), (2, 3, 7, 13))
    return of(kernels.attention, **options), of(reference.attention, **options), normal(*sizes)


def of_mlp(activation: str) -> tuple[Any, Any, list[Tensor]]:
    F = 10 if activation in ("swiglu", "geglu") else 5
    leaves = normal((2, 7, 6), (2, 6, F), (2, F), (2, 5, 6), (2, 6))
    return *(functools.partial(f, activation=activation) for f in (kernels.mlp, reference.mlp)), leaves


CASES = {
    "attention": heads(),
    "attention, causal, scale": heads(causal=True, scale=0.7),
    "attention, inside": heads(rope_base=50.0, qk_norm=True),
    "attention, inside, after a cache": heads(causal="bottom_right", rope_base=50.0, qk_norm=True),
    **{f"mlp {activation}": of_mlp(activation) for activation in ("gelu", "gelu_exact", "swiglu", "geglu")},
    "layer_norm": (kernels.layer_norm, reference.layer_norm, normal((2, 7, 6), (2, 6), (2, 6), (2, 7, 6))),
    "rms_norm": (kernels.rms_norm, reference.rms_norm, normal((2, 7, 6), (2, 6))),
    "linear": (
        kernels.linear, lambda x, w, b, r: reference.linear(x, w, b) + r, normal((2, 7, 6), (2, 6, 5), (2, 5), (2, 7, 5)),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:causal=True counts queries and keys")
@pytest.mark.parametrize("case", CASES)
def test_functions_against_float64(case: str) -> None:
    ours, theirs, leaves = CASES[case]
    seen: list[Any] = []
    observers.append(seen.append)
    try:
        with preferring(rows(*OPERATIONS)):
            found = gradients(ours, leaves, torch.float32)
    finally:
        observers.remove(seen.append)
    assert not seen
    for mine, truth in zip(found, gradients(theirs, leaves, torch.float64), strict=True):
        torch.testing.assert_close(mine.double(), truth, rtol=1e-5, atol=1e-5)


def test_tokens_that_are_none() -> None:
    """A row of NaN, no gradient; of the head a loss of NaN, but nothing where the target is -100."""
    weight, position, x = normal((2, 9, 4), (2, 5, 4), (2, 6, 4))
    tokens = torch.tensor([[[1, 2, 1], [-1, 0, 8]], [[9, 3, 3], [4, 5, 1]]])
    with preferring(rows(*OPERATIONS)):
        leaves = [t.to(DEVICE).requires_grad_() for t in (weight, position)]
        out = kernels.embedding(tokens.to(DEVICE), *leaves)
        bad = ((tokens < 0) | (tokens >= 9)).flatten(1)
        assert torch.equal(out.isnan().all(-1).cpu(), bad) and torch.equal(out.isnan().any(-1).cpu(), bad)
        of_weight, of_position = torch.autograd.grad(out, leaves, x.to(DEVICE))
        expected = torch.zeros_like(weight)
        for m, r in (~bad).nonzero().tolist():
            expected[m, tokens[m].flatten()[r]] += x[m, r]
        torch.testing.assert_close(of_weight.cpu(), expected)
        torch.testing.assert_close(of_position[:, :3].cpu(), x.view(2, 2, 3, 4).sum(1))
        assert not of_position[:, 3:].any()

        head, targets = weight.mT.contiguous(), torch.tensor([[0, 8, -100, 3, 3, 2], [1, 2, 3, 9, 0, -100]])
        arguments = [t.to(DEVICE) for t in (x, head, targets)]
        loss, lse = linear_cross_entropy_forward(*arguments, 0.1)
        truth = reference.linear_cross_entropy_tokens(x.double(), head.double(), targets, 0.1)
        torch.testing.assert_close(loss.double().cpu(), truth, equal_nan=True, rtol=1e-5, atol=1e-6)
        own = [x[:1].double().requires_grad_(), head[:1].double().requires_grad_()]
        of_x, of_head = torch.autograd.grad(reference.linear_cross_entropy_tokens(*own, targets[:1], 0.1).sum(), own)
        held = torch.ones_like(head, device=DEVICE)
        grad_x, grad_head = linear_cross_entropy_backward(torch.ones_like(lse), *arguments, lse, 0.1, held, True)
        torch.testing.assert_close(grad_x[:1].double().cpu(), of_x, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grad_head[:1].double().cpu(), of_head + 1.0, rtol=1e-5, atol=1e-5)
        assert grad_x[1, 3].isnan().all() and grad_head[1].isnan().all() and grad_head is held


def test_a_row_means_its_target_bits_and_width() -> None:
    x = torch.ones(1, 1, 64, device=DEVICE)
    with preferring(rows("linear_forward", targets="sm_90", up_to=64)):
        assert not handed_over("linear_forward", x)
    with preferring(rows("linear_forward", up_to=64)):
        assert handed_over("linear_forward", x) and handed_over("linear_forward", x.half())
        assert not handed_over("linear_forward", torch.ones(1, 1, 65)) and not handed_over("linear_backward", x)
    assert not handed_over("linear_forward", x)


@pytest.mark.parametrize(
    "row, match",
    [
        (Row("attention_bakward", "sm_90", 16, 64, "", (), "wrong"), "'attention_bakward' is unknown; known are"),
        (
            Row("attention backward", "sm_90", 16, 64, "", (), "wrong"),
            "no other way for attention backward; .* hand over",
        ),
        (Row("attention_backward", "sm_90", 16, 64, "inside", (), "wrong"), "only must be empty"),
        (Row("attention_backward", "sm_90", 16, 64, "", (64, 64, 4, 1), "wrong"), "without tiles"),
        (Row("attention_backward", "H100", 16, 64, "", (), "wrong"), "targets must be patterns of sm_80 .* got 'H100'"),
        (Row("attention_backward", "sm_90", 8, 64, "", (), "wrong"), "bits must be 16 or 32, got 8"),
        (Row("adamw", "sm_90", 32, 64, "", (1, 2, 3, 4), "wrong"), "tiles are .'BLOCK', 'num_warps', 'at_once'.*got"),
    ],
)
def test_a_row_that_could_not_hold(row: Row, match: str) -> None:
    with pytest.raises(ValueError, match=match), preferring([row]):
        pass
    assert not handed_over("attention_backward", torch.ones(1, 1, 1, 64))
