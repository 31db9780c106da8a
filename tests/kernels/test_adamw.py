"""AdamW of a fleet in one go against torch's own in float64, and members that fail, are clipped, or have died before."""

import math
import os

import pytest
import torch
from torch import Tensor

from pyscaling.kernels import adamw as kernels
from pyscaling.kernels import reference

DEVICE = os.environ.get("PYSCALING_TEST_DEVICE", "cpu")
STATE = ("flat", "gradient", "exp_avg", "exp_avg_sq", "settings", "clock", "loss", "alive", "failed_step")


def fleet(n_member: int, n_parameter: int, seed: int = 0) -> dict[str, Tensor]:
    """A state in the middle of training, settings different for each member."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(n_member, n_parameter, generator=generator) for name in STATE[:4]}
    state["exp_avg_sq"] = state["exp_avg_sq"].square()
    member = torch.arange(n_member, dtype=torch.float64)
    rows = (
        1e-2 * (1 + member),
        0.9 - 0.1 * member,
        0.999 - 0.02 * member,
        1e-8 * 10**member,
        0.1 * member,
        1.0 + member,
    )
    state["settings"] = torch.stack(rows)
    state["clock"] = torch.tensor([4.0, 0.5], dtype=torch.float64)
    state["loss"] = torch.ones(n_member)
    state["alive"] = torch.ones(n_member, dtype=torch.bool)
    state["failed_step"] = torch.full((n_member,), -1)
    return {name: tensor.to(DEVICE) for name, tensor in state.items()}


def _moved(value):  # type: ignore[no-untyped-def]
    return value.to(DEVICE) if isinstance(value, Tensor) else value


def copy(state: dict[str, Tensor], double: bool = False) -> dict[str, Tensor]:
    return {n: t.double() if double and t.dtype == torch.float32 else t.clone() for n, t in state.items()}


def guarded(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The same arrays between rows of NaN, and those rows."""
    stores = {n: torch.full((state[n].shape[0] + 2, state[n].shape[1]), torch.nan, device=DEVICE) for n in STATE[:4]}
    for name, store in stores.items():
        store[1:-1] = state[name]
    return state | {n: s[1:-1] for n, s in stores.items()}, [row for s in stores.values() for row in (s[0], s[-1])]


@pytest.mark.parametrize("n_decayed", [0, 3000, 5003])
@pytest.mark.parametrize("n_member", [1, 2, 5])
def test_one_step_in_float64(n_member: int, n_decayed: int) -> None:
    start = fleet(n_member, 5003)
    state, guards = guarded(copy(start))
    exact = copy(start, double=True)
    cast = torch.full((n_member, 5003), torch.nan, dtype=torch.float16, device=DEVICE)
    norm = kernels.adamw_step(**state, n_decayed=n_decayed, embedding_rate=3.0, cast=cast)
    exact_norm = reference.adamw_step(**exact, n_decayed=n_decayed, embedding_rate=3.0)
    torch.testing.assert_close(norm.double(), exact_norm, rtol=1e-6, atol=0)
    for name in ("flat", "exp_avg", "exp_avg_sq"):
        # a few roundings of numbers of the size of the old or new one
        size = torch.maximum(exact[name].abs(), start[name].abs().double()) + 0.1
        assert float(((state[name] - exact[name]).abs() / size).max()) < 8 * 2.0**-24
    assert torch.equal(cast, state["flat"].half())
    assert all(row.isnan().all() for row in guards)
    assert state["alive"].all() and (state["failed_step"] == -1).all()


def test_specification_is_torchs_adamw() -> None:
    """Ten steps of each member alone by torch.optim.AdamW in float64, clipped by torch's own function."""
    state = fleet(3, 40)
    state["exp_avg"].zero_(), state["exp_avg_sq"].zero_()
    double, single = copy(state, double=True), copy(state)
    gradients = torch.randn(10, 3, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(DEVICE)
    gradients[3] *= 100.0
    for step in range(10):
        factor = 1.0 - step / 10
        for each, dtype in ((double, torch.float64), (single, torch.float32)):
            each["gradient"].copy_(gradients[step].to(dtype))
            each["clock"].copy_(torch.tensor([step, factor], dtype=torch.float64))
        reference.adamw_step(**double, n_decayed=30, embedding_rate=2.0)
        kernels.adamw_step(**single, n_decayed=30, embedding_rate=2.0)
    for member in range(3):
        rate, beta1, beta2, eps, decay, clip = state["settings"][:, member].tolist()
        weights = state["flat"][member].double()
        parts = [weights[:30].clone().requires_grad_(), weights[30:].clone().requires_grad_()]
        groups = [{"params": [p], "weight_decay": w} for p, w in zip(parts, (decay, 0.0), strict=True)]
        optimizer = torch.optim.AdamW(groups, lr=rate, betas=(beta1, beta2), eps=eps, fused=False)
        for step in range(10):
            for group, part, columns, scale in zip(
                optimizer.param_groups, parts, (slice(0, 30), slice(30, 40)), (1.0, 2.0), strict=True
            ):
                part.grad = gradients[step, member, columns].clone()
                group["lr"] = rate * scale * (1.0 - step / 10)
            norm = gradients[step, member].norm()
            for part in parts:
                part.grad /= max(1.0, float(norm) / clip)
            optimizer.step()
        truth = torch.cat(parts).detach()
        torch.testing.assert_close(double["flat"][member], truth, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(single["flat"][member].double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-37, 1e-25, 1e-15, 1.0, 1e15, 1e30, 1e36])
def test_norm_of_any_size(scale: float) -> None:
    """Squares of these are no float32 numbers; their norms are."""
    state = fleet(2, 2500)
    state["gradient"] *= scale
    state["gradient"][0, 7] = 1e-30  # sizes mixed
    truth = state["gradient"].double().norm(dim=1)
    before = copy(state)
    norm = kernels.adamw_step(**state, n_decayed=2500)
    torch.testing.assert_close(norm.double(), truth, rtol=1e-6, atol=0)
    assert state["alive"].all() and state["flat"].isfinite().all() and not torch.equal(state["flat"], before["flat"])


def test_a_rate_at_the_first_step_is_exact() -> None:
    """1 - beta2 in float32 would be wrong by 5e-5 at beta2 = 0.999, and 1 - beta^1 with it."""
    state = fleet(1, 16)
    state["exp_avg"].zero_(), state["exp_avg_sq"].zero_(), state["clock"].copy_(torch.tensor([0.0, 1.0]))
    state["settings"][4:] = torch.tensor([[0.0], [math.inf]])
    before = state["flat"].clone()
    kernels.adamw_step(**state, n_decayed=16)
    expected = before - 1e-2 * state["gradient"].sign()  # m / sqrt(v) is the gradient's sign
    torch.testing.assert_close(state["flat"], expected, rtol=2e-7, atol=2e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_a_member_fails_alone(bad: float, where: str) -> None:
    healthy, state = fleet(3, 2500), fleet(3, 2500)
    state[where][1, ...] = state[where][1, ...] if where == "gradient" else bad
    if where == "gradient":
        state["gradient"][1, 2499] = bad
    before = copy(state)
    casts = [torch.zeros(3, 2500, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]
    kernels.adamw_step(**state, n_decayed=100, cast=casts[0])
    kernels.adamw_step(**healthy, n_decayed=100, cast=casts[1])
    assert state["alive"].tolist() == [True, False, True] and state["failed_step"].tolist() == [-1, 4, -1]
    for name in ("flat", "exp_avg", "exp_avg_sq"):
        assert torch.equal(state[name][1], before[name][1])
        assert torch.equal(state[name][[0, 2]], healthy[name][[0, 2]])  # bit for bit
    assert not casts[0][1].any() and torch.equal(casts[0][[0, 2]], casts[1][[0, 2]])
    # healthy again, or failing again, it stays where it stopped
    state["clock"][0], state["gradient"][1], state["loss"][1] = 5.0, 1.0, 1.0
    state["gradient"][1, 0] = bad
    kernels.adamw_step(**state, n_decayed=100)
    state["gradient"][1], state["loss"][1] = 1.0, 1.0
    norm = kernels.adamw_step(**state, n_decayed=100)
    assert norm.isfinite().all() and not state["alive"][1] and state["failed_step"][1] == 4
    assert torch.equal(state["flat"][1], before["flat"][1])


def test_two_runs_agree_bit_for_bit() -> None:
    states = [fleet(2, 30011) for _ in range(2)]  # several blocks a program
    norms = [kernels.adamw_step(**state, n_decayed=20000) for state in states]
    assert torch.equal(*norms) and all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_operator() -> None:
    state = fleet(2, 33)
    torch.library.opcheck(
        kernels.adamw_op, (*state.values(), 20, 1.0, None), test_utils=("test_schema", "test_faketensor")
    )
    torch.library.opcheck(
        kernels.adamw_op,
        (*state.values(), 20, 1.0, state["flat"].half()),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flat": torch.zeros(2, 8).half()}, "flat must be float32, got float16"),
        ({"gradient": torch.zeros(2, 7)}, r"gradient must have shape \[2, 8\], got \[2, 7\]"),
        ({"exp_avg": torch.zeros(8, 2).T}, r"exp_avg must be contiguous, got strides \(1, 2\)"),
        ({"settings": torch.zeros(6, 2)}, "settings must be float64, got float32"),
        ({"clock": torch.zeros(3).double()}, r"clock must have shape \[2\], got \[3\]"),
        ({"alive": torch.zeros(2)}, "alive must be bool, got float32"),
        ({"cast": torch.zeros(2, 8)}, "cast must be float16 or bfloat16, got float32"),
        ({"n_decayed": 9}, "n_decayed must be from 0 to the 8 columns of flat, got 9"),
        ({"n_decayed": 1.5}, "n_decayed must be a whole number, got 1.5"),
        ({"embedding_rate": "a"}, "embedding_rate must be a number, got 'a'"),
        ({"embedding_rate": float("nan")}, "embedding_rate must be finite and not negative, got nan"),
        ({"flat": None}, "flat must be a tensor, got NoneType"),
        ({"loss": 1.0}, "loss must be a tensor, got float"),
    ],
)
def test_what_does_not_fit_is_named(change, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        kernels.adamw_step(**(fleet(2, 8) | {"n_decayed": 4} | {n: _moved(value) for n, value in change.items()}))
