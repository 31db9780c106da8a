"""A fleet gives each member the numbers that it would have alone, and those of a plain model."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pyscaling.accounting import Shape, flops_per_token, parameter_count
from pyscaling.models import FleetTransformer

DEVICE = os.environ.get("PYSCALING_TEST_DEVICE", "cpu")
GPT2 = Shape(16, 2, 2, context=12, vocab_size=40)
RECIPE = Shape(
    16,
    2,
    2,
    context=12,
    vocab_size=40,
    position="rope",
    norm="rmsnorm",
    tied=False,
    bias=False,
    qk_norm=True,
    rope_base=100.0,
)
SHAPES = [GPT2, RECIPE, Shape(16, 1, 2, context=12, vocab_size=40, mlp="swiglu", qk_norm=True)]


def tokens(n_member: int, shape: Shape, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, shape.vocab_size, (n_member, 3, shape.context + 1), generator=generator).to(DEVICE)


def randomised(shape: Shape, seeds: list[int]) -> FleetTransformer:
    """A fleet whose zero-initialised weights are random too, each member's by its own seed."""
    model = FleetTransformer(shape, seeds, DEVICE)
    with torch.no_grad():
        for member, seed in enumerate(seeds):
            noise = torch.randn(model.flat.shape[1], generator=torch.Generator().manual_seed(seed))
            model.flat[member] += 0.1 * noise.to(DEVICE)
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_member_alone(shape: Shape) -> None:
    fleet, batch = randomised(shape, [3, 4, 5]), tokens(3, shape)
    loss = fleet.loss_and_gradient(batch)
    for member, seed in enumerate([3, 4, 5]):
        alone = randomised(shape, [seed])
        assert torch.equal(alone.flat[0], fleet.flat[member])
        torch.testing.assert_close(
            alone.loss_and_gradient(batch[member : member + 1])[0], loss[member], rtol=1e-6, atol=0
        )
        torch.testing.assert_close(alone.gradient[0], fleet.gradient[member], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_neighbours_change_no_bit(shape: Shape) -> None:
    fleet, batch = randomised(shape, [3, 4]), tokens(2, shape)
    before, gradient = fleet.loss_and_gradient(batch)[0].clone(), fleet.gradient[0].clone()
    with torch.no_grad():
        fleet.flat[1] = float("nan")
    assert torch.equal(fleet.loss_and_gradient(batch)[0], before)
    assert torch.equal(fleet.gradient[0], gradient)


@pytest.mark.parametrize("shape", SHAPES)
def test_future_is_hidden(shape: Shape) -> None:
    fleet, batch = randomised(shape, [1]), tokens(1, shape)[:, :, :-1]
    changed = batch.clone()
    changed[:, :, 7:] = (changed[:, :, 7:] + 1) % shape.vocab_size
    first, second = fleet.logits(batch), fleet.logits(changed)
    assert torch.equal(first[:, :, :7], second[:, :, :7])
    assert not torch.equal(first[:, :, 7:], second[:, :, 7:])


@pytest.mark.parametrize("shape", SHAPES)
def test_counts(shape: Shape) -> None:
    fleet = FleetTransformer(shape, [0, 1], DEVICE)
    assert fleet.flat.shape[1] == parameter_count(shape, "total")
    batch = tokens(2, shape)[:, :, :-1]
    # the counter knows no rule for the CPU's flash attention; the plain formula is two matrix products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fleet.logits(batch)
    assert counter.get_total_flops() == batch.numel() * flops_per_token(shape, "full", passes="forward")


def plain_gpt2(weights: dict[str, torch.Tensor], ids: torch.Tensor, shape: Shape) -> torch.Tensor:
    """GPT-2's formulas in float64, one head at a time."""
    p = {name: w.double() for name, w in weights.items()}
    length, d, hd = ids.shape[1], shape.d_model, shape.head_dim

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * p[f"{name}_gain"] + p[f"{name}_bias"]

    x = p["token_embedding"][ids] + p["position_embedding"][:length]
    future = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
    for i in range(shape.n_layer):
        qkv = norm(x, f"{i}.attention_norm") @ p[f"{i}.qkv"] + p[f"{i}.qkv_bias"]
        heads = []
        for h in range(shape.n_head):
            q, k, v = (qkv[..., part * d + h * hd : part * d + (h + 1) * hd] for part in range(3))
            score = (q @ k.mT / np.sqrt(hd)).masked_fill(future, -torch.inf)
            heads.append(score.softmax(-1) @ v)
        x = x + torch.cat(heads, -1) @ p[f"{i}.out"] + p[f"{i}.out_bias"]
        h = norm(x, f"{i}.mlp_norm") @ p[f"{i}.up"] + p[f"{i}.up_bias"]
        x = x + F.gelu(h, approximate="tanh") @ p[f"{i}.down"] + p[f"{i}.down_bias"]
    return norm(x, "final_norm") @ p["token_embedding"].T


def test_gpt2_formulas() -> None:
    fleet, batch = randomised(GPT2, [7, 8]), tokens(2, GPT2)
    for member in range(2):
        weights = {name: w[member].detach() for name, w in fleet.parameters.items()}
        logits = plain_gpt2(weights, batch[member, :, :-1], GPT2)
        expected = F.cross_entropy(logits.flatten(0, 1), batch[member, :, 1:].flatten())
        assert fleet.loss(batch)[member].item() == pytest.approx(expected.item(), rel=1e-6)
        torch.testing.assert_close(fleet.logits(batch[:, :, :-1])[member].double(), logits, rtol=1e-4, atol=1e-5)


def test_sequence_longer_than_context() -> None:
    with pytest.raises(ValueError, match="context is 12"):
        FleetTransformer(GPT2, [0]).hidden(torch.zeros(1, 1, 13, dtype=torch.int64))
