"""The fused transformer is the plain one: losses, gradients, steps; in Triton's interpreter where there is no GPU."""

import importlib
import os
from typing import Any

import pytest
import torch

from pyscaling.accounting import Shape
from pyscaling.kernels.launch import observers
from pyscaling.models import fused as fused_module
from pyscaling.models.fused import FusedTransformer
from pyscaling.models.transformer import FleetTransformer
from pyscaling.training.graph import GraphedStep
from pyscaling.training.optimizer import FleetAdamW, FusedAdamW

GPT2 = Shape(16, 2, 2, context=12, vocab_size=40)
RECIPE = Shape(
    16, 1, 2, context=12, vocab_size=40, position="rope", norm="rmsnorm", tied=False, bias=False, qk_norm=True, rope_base=100.0,
    mlp="swiglu",
)  # fmt: skip
linear_module = importlib.import_module("pyscaling.kernels.linear")
mlp_module = importlib.import_module("pyscaling.kernels.mlp")
DEVICE = os.environ.get("PYSCALING_TEST_DEVICE", "cpu")


def batch(n_member: int, seed: int = 0, length: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 40, (n_member, 3, length + 1), generator=generator).to(DEVICE)


def randomised(model: FleetTransformer) -> FleetTransformer:
    """Every weight random, zero-initialised ones too, each member's by its place in the whole."""
    with torch.no_grad():
        for member in range(model.n_member):
            noise = torch.randn(model.flat.shape[1], generator=torch.Generator().manual_seed(member))
            model.flat[member] += 0.1 * noise.to(DEVICE)
    if isinstance(model, FusedTransformer):
        model.refresh()
    return model


@pytest.mark.parametrize("norms", ["in products", "alone"])
@pytest.mark.parametrize("shape", [GPT2, RECIPE], ids=["gpt2", "recipe"])
def test_loss_and_gradient(shape: Shape, norms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if norms == "alone":  # as at widths beyond 256
        monkeypatch.setattr(fused_module, "WIDEST_TILE", 8)
        monkeypatch.setattr(mlp_module, "WIDEST_TILE", 8)
    plain, fused = (randomised(kind(shape, [3, 4], DEVICE)) for kind in (FleetTransformer, FusedTransformer))
    tokens = batch(2, length=9)  # shorter than the context
    torch.testing.assert_close(fused.loss_and_gradient(tokens), plain.loss_and_gradient(tokens), rtol=1e-6, atol=0)
    size = float(plain.gradient.abs().max())
    torch.testing.assert_close(fused.gradient, plain.gradient, rtol=1e-4, atol=2e-6 * size)
    torch.testing.assert_close(fused.loss(tokens), plain.loss(tokens), rtol=1e-6, atol=0)
    torch.testing.assert_close(fused.logits(tokens[:, :, :-1]), plain.logits(tokens[:, :, :-1]), rtol=1e-4, atol=1e-5)


def test_gradients_of_rows_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a member has few tiles its rows are split: the parts are summed by the launch that sums the norms' parts."""
    fleet, tokens = randomised(FusedTransformer(GPT2, [3, 4], DEVICE)), batch(2)
    fleet.loss_and_gradient(tokens)
    whole = fleet.gradient.clone()
    fleet.gradient.fill_(torch.nan)
    monkeypatch.setattr(linear_module, "weight_splits", lambda *_: 2)
    seen: dict[str, Any] = {}
    observers.append(lambda record: seen.update({record.kernel.fn.__name__: record}))
    try:
        fleet.loss_and_gradient(tokens)
    finally:
        observers.pop()
    n_norm, stretches = 2 * (2 * GPT2.n_layer + 1), GPT2.n_layer * (1 + 1 + 1 + 1 + 4)  # of weights and biases
    assert seen["sum_all_parts_kernel"].grid == (n_norm + stretches, 2) and "sum_splits_kernel" not in seen
    torch.testing.assert_close(fleet.gradient, whole, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))


def test_twenty_steps_give_the_same_curve() -> None:
    curves = []
    for model_kind, optimizer_kind in ((FleetTransformer, FleetAdamW), (FusedTransformer, FusedAdamW)):
        model = model_kind(RECIPE, [0, 1], DEVICE)
        optimizer = optimizer_kind(model, torch.tensor([0.01, 0.02]), embedding_rate=3.0)
        curve = []
        for step in range(20):
            loss = model.loss_and_gradient(batch(2, seed=step % 2))
            optimizer.step(loss, step, min(1.0, (step + 1) / 5))
            curve.append(loss)
        curves.append(torch.stack(curve))
    assert float(curves[0][-1].max()) < 0.9 * float(curves[0][0].min())  # two batches are soon known by heart
    torch.testing.assert_close(curves[1], curves[0], rtol=2e-5, atol=0)


def test_neighbours_change_no_bit() -> None:
    fleet, tokens = randomised(FusedTransformer(GPT2, [3, 4], DEVICE)), batch(2)
    before = fleet.loss_and_gradient(tokens)[0].clone(), fleet.gradient[0].clone()
    with torch.no_grad():
        fleet.flat[1] = torch.nan
    after = fleet.loss_and_gradient(tokens)
    assert torch.equal(after[0], before[0]) and torch.equal(fleet.gradient[0], before[1])
    assert torch.isnan(after[1])
    alone = randomised(FusedTransformer(GPT2, [3], DEVICE))
    assert torch.equal(alone.loss_and_gradient(tokens[:1])[0], before[0])
    assert torch.equal(alone.gradient[0], before[1])


@pytest.mark.skipif(DEVICE != "cuda", reason="only a card has CUDA graphs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [GPT2, RECIPE], ids=["gpt2", "recipe"])
def test_a_graph_replays_what_launches_one_by_one_do(shape: Shape, dtype: torch.dtype) -> None:
    """Bit by bit, over new batches, step numbers and factors; making the graph leaves weights and moments as they were."""
    results = []
    for graphed in (False, True):
        model = randomised(FusedTransformer(shape, [0, 1], DEVICE, dtype))
        optimizer = FusedAdamW(model, torch.tensor([0.01, 0.02]), embedding_rate=3.0)
        graph = GraphedStep(model, optimizer, batch(2)) if graphed else None
        made = []
        for step, factor in enumerate((0.5, 1.0, 0.7)):
            tokens = batch(2, seed=step)
            if graph is None:
                loss = model.loss_and_gradient(tokens)
                norm = optimizer.step(loss, step, factor)
            else:
                loss, norm = graph(tokens, step, factor)
            made += [loss.clone(), norm.clone(), model.gradient.clone()]
        results.append([*made, *optimizer.state().values()])
    assert all(torch.equal(ours, eager) for ours, eager in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    """The gradient of activations in 16 bits points where the exact one does, and is kept in 32."""
    exact = randomised(FleetTransformer(RECIPE, [5], DEVICE))
    low = randomised(FusedTransformer(RECIPE, [5], DEVICE, dtype))
    loss = low.loss_and_gradient(batch(1)), exact.loss_and_gradient(batch(1))
    assert low.gradient.dtype == torch.float32
    torch.testing.assert_close(loss[0], loss[1], rtol=8 * torch.finfo(dtype).eps, atol=0)
    difference = torch.linalg.vector_norm(low.gradient - exact.gradient) / torch.linalg.vector_norm(exact.gradient)
    assert float(difference) < 12 * torch.finfo(dtype).eps


def test_launches_do_not_grow_with_members() -> None:
    counts = []
    for n_member in (1, 3):
        model = FusedTransformer(GPT2, range(n_member), DEVICE)
        seen: list[object] = []
        observers.append(seen.append)
        try:
            model.loss_and_gradient(batch(n_member))
        finally:
            observers.pop()
        counts.append(len(seen))
    assert counts[0] == counts[1]
