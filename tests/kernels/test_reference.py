"""The reference operations against plain float64 formulas, gradients included."""

import os

import pytest
import torch
import torch.nn.functional as F

from pyscaling.kernels import reference as ops

DEVICE = os.environ.get("PYSCALING_TEST_DEVICE", "cpu")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("rows", [1, 7, 256, 300])  # blocks hold 256 rows
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_linear_cross_entropy(rows: int, scale: float) -> None:
    x, weight = (scale * random(2, rows, 8)).requires_grad_(), random(2, 8, 33, seed=1).requires_grad_()
    targets = torch.randint(0, 33, (2, rows), generator=torch.Generator().manual_seed(2)).to(DEVICE)
    share = torch.tensor([1.0, -2.0], device=DEVICE)
    loss = ops.linear_cross_entropy(x, weight, targets)
    grads = torch.autograd.grad((loss * share).sum(), (x, weight))
    x64, weight64 = (t.detach().double().requires_grad_() for t in (x, weight))
    exact = F.cross_entropy((x64 @ weight64).flatten(0, 1), targets.flatten(), reduction="none").view(2, rows).mean(1)
    exact_grads = torch.autograd.grad((exact * share.double()).sum(), (x64, weight64))
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)
    for ours, truth in zip(grads, exact_grads, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-3, atol=1e-5 * float(truth.abs().max()))


def test_linear_cross_entropy_ties() -> None:
    """All logits equal: the loss is ln V and the gradient pushes the target against all others alike."""
    x, weight = (
        torch.full(size, value, device=DEVICE, requires_grad=True)
        for size, value in (((1, 4, 2), 1.0), ((1, 2, 10), 0.0))
    )
    loss = ops.linear_cross_entropy(x, weight, torch.full((1, 4), 3, device=DEVICE))
    assert loss.item() == pytest.approx(2.302585093, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, weight)
    expected = torch.full((1, 2, 10), 0.1, device=DEVICE)
    expected[:, :, 3] = -0.9
    torch.testing.assert_close(gradient, expected)


def test_rotary_scores_depend_on_distance_alone() -> None:
    q, k = random(1, 16).expand(9, 16), random(1, 16, seed=1).expand(9, 16)
    scores = ops.rotary(q, 100.0) @ ops.rotary(k, 100.0).T
    for offset in range(9):
        diagonal = scores.diagonal(-offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ops.rotary(q, 100.0).norm(dim=1), q.norm(dim=1))


def test_norms_and_linear() -> None:
    x, gain, bias = random(3, 5, 8).double(), random(3, 8, seed=1).double(), random(3, 8, seed=2).double()
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    exact = (x - mean) / (var + 1e-5).sqrt() * gain[:, None] + bias[:, None]
    torch.testing.assert_close(ops.layer_norm(x, gain, bias), exact)
    torch.testing.assert_close(ops.rms_norm(x, gain), x / ((x**2).mean(-1, keepdim=True) + 1e-5).sqrt() * gain[:, None])
    weight = random(3, 8, 6, seed=3).double()
    torch.testing.assert_close(ops.linear(x, weight), torch.stack([a @ b for a, b in zip(x, weight, strict=True)]))


def test_embedding_takes_each_members_rows() -> None:
    table, tokens = random(2, 5, 3), torch.tensor([[0, 4], [4, 1]], device=DEVICE)
    assert torch.equal(ops.embedding(tokens, table), torch.stack([table[0, [0, 4]], table[1, [4, 1]]]))


def test_attention_is_softmax_causal_or_not() -> None:
    q, k, v = (random(2, 3, 7, 4, seed=s).double() for s in range(3))
    score = q @ k.mT / 2.0
    torch.testing.assert_close(ops.attention(q, k, v), score.softmax(-1) @ v)
    score = score.masked_fill(torch.ones(7, 7, dtype=torch.bool, device=DEVICE).triu(1), -torch.inf)
    torch.testing.assert_close(ops.attention(q, k, v, causal=True), score.softmax(-1) @ v)
    whole = ops.attention(q, k, v, causal=True, rope_base=50.0, qk_norm=True)
    tail = ops.attention(q[..., 4:, :], k, v, causal="bottom_right", rope_base=50.0, qk_norm=True)
    torch.testing.assert_close(tail, whole[..., 4:, :])
