"""Plans along an isoFLOP and an envelope of data whose optimum at any compute has a closed form."""

import json
import warnings

import numpy as np
import pytest

import pyscaling as ps
from pyscaling.study import StudySpec

E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28
EXPONENT = BETA / (ALPHA + BETA)
NOISE = 0.001


def best_N(C: float) -> float:
    """Hoffmann et al. 2022, eq. 4."""
    return (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (C / 6) ** EXPONENT


def loss_of(N: np.ndarray, D: np.ndarray) -> np.ndarray:
    return E + A / N**ALPHA + B / D**BETA


def isoflop_runs(budgets: int = 7, tau: float = 0.0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    C = np.repeat(np.geomspace(1e18, 1e21, budgets), 9)
    shift = np.repeat(tau * generator.standard_normal(budgets), 9)
    N = best_N(C) * np.tile(np.geomspace(0.5, 2, 9), budgets)
    loss = loss_of(N * np.exp(-shift), C / (6 * N) * np.exp(shift))
    return {"N": N, "C": C, "loss": loss * np.exp(NOISE * generator.standard_normal(len(N)))}


def training_curves() -> dict[str, np.ndarray]:
    N, D = np.repeat(np.geomspace(1e7, 1e10, 40), 120), np.tile(np.geomspace(1e8, 5e11, 120), 40)
    return {"N": N, "D": D, "loss": loss_of(N, D)}


def test_plan_of_an_isoflop() -> None:
    optimal = ps.isoflop(isoflop_runs())
    plan = ps.plan(optimal, compute="1e22")
    C, N = 1e22, best_N(1e22)
    assert isinstance(plan, ps.Plan) and plan.compute == C
    assert plan.N.low < N < plan.N.high and plan.N.high / plan.N.low < 1.3
    assert plan.D.low < C / 6 / N < plan.D.high
    assert 6 * plan.N.value * plan.D.value == pytest.approx(C)
    assert (plan.N.value, plan.N.low, plan.N.high) == tuple(optimal.N(C))
    loss = float(loss_of(N, C / 6 / N))
    assert plan.loss.low < loss < plan.loss.high and plan.loss.value == pytest.approx(loss, rel=5e-3)
    assert plan.loss.high / plan.loss.low > np.exp(2 * 1.6 * NOISE)  # at least a run's own noise
    assert plan.extrapolation == pytest.approx(10)
    assert pytest.approx(plan.N.value, rel=0.05) == plan.shape.N
    assert plan.steps == np.ceil(plan.D.value / plan.batch.tokens)
    assert str(plan).startswith("plan by isoFLOP by parabola, 90% intervals, 10 x the data's largest compute")
    assert max(map(len, str(plan).split("\n!")[0].splitlines())) <= 110


def test_plan_of_an_envelope() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="envelope dropped", category=UserWarning)
        optimal = ps.envelope(training_curves(), points=300, n=50)
    plan = ps.plan(optimal, compute=1e22, level=0.5)
    assert plan.N.value == pytest.approx(best_N(1e22), rel=0.1)
    assert plan.loss.value == pytest.approx(loss_of(best_N(1e22), 1e22 / 6 / best_N(1e22)), rel=1e-3)
    assert (plan.level, plan.law) == (0.5, "envelope")


@pytest.mark.filterwarnings("ignore:isoflop:UserWarning")
def test_what_is_doubtful_is_said() -> None:
    scattered = ps.plan(ps.isoflop(isoflop_runs(tau=0.3)), compute=5e23)
    assert "scatters" in str(scattered).splitlines()[0]
    assert [text for text in scattered.warnings if text.startswith("the optima scatter")]
    assert any("500 x above the optima's range, more than 100 x" in text for text in scattered.warnings)
    two = ps.plan(ps.isoflop(isoflop_runs(2)), compute=1e22)
    assert np.isnan(two.N.low) and np.isnan(two.loss.value)
    assert "no interval" in str(two).splitlines()[0] and "loss L" in str(two)
    assert any("needs 5 optima, not 2" in text for text in two.warnings)
    assert json.loads(two.to_json())["loss"] == {"value": None, "low": None, "high": None}
    other = isoflop_runs()
    counted = ps.plan(ps.isoflop({**other, "D": other["C"] / (6 * other["N"]), "C": 1.2 * other["C"]}), compute=1e21)
    assert any("C is 1.2 x 6ND" in text for text in counted.warnings)


def test_loss_beyond_optima_that_do_not_tell_it_is_unknown() -> None:
    """Five budgets within a factor of two: a floor cannot be told from none."""
    C = np.repeat(np.geomspace(1e20, 2e20, 5), 9)
    N = best_N(C) * np.tile(np.geomspace(0.5, 2, 9), 5)
    noise = np.exp(0.003 * np.random.default_rng(1).standard_normal(45))
    runs = {"N": N, "C": C, "loss": loss_of(N, C / (6 * N)) * noise}
    plan = ps.plan(ps.isoflop(runs), compute=1e23)
    assert np.isnan(plan.loss.value)
    assert any("the loss beyond the data is unknown" in text for text in plan.warnings)
    inside = ps.plan(ps.isoflop(runs), compute=1.5e20).loss
    assert inside.low < loss_of(best_N(1.5e20), 1.5e20 / 6 / best_N(1.5e20)) < inside.high


def test_exports(tmp_path) -> None:
    plan = ps.plan(ps.isoflop(isoflop_runs()), time="30 days", devices=8, device="H100")
    assert plan.training_seconds == pytest.approx(30 * 86400)
    stored = json.loads(plan.to_json(tmp_path / "plan.json"))
    assert stored["N"]["value"] == plan.N.value and stored["device"] == "H100" and stored["binding"] == ["time"]
    assert {"N", "D", "loss", "steps"} <= set(plan.to_frame().index)
    assert StudySpec.from_toml(plan.to_toml(name="mine")).name == "mine"
    assert plan.plot().get_xlabel() == "C (FLOPs)"
    assert "model N" in plan._repr_html_()
    with pytest.raises(ValueError, match="has no region.*Fit a law of N and D"):
        plan.region()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_loss": 2.0}, "target_loss=2.0 cannot be answered by an isoFLOP.*Fit a law of N and D"),
        ({"compute": 1e21, "unique_tokens": "1B"}, "unique_tokens='1B' cannot be answered"),
        ({"compute": 1e21, "inference_tokens": 1e9, "serving_apart": True}, "inference_tokens=1000000000.0 cannot"),
        ({"compute": 1e21, "max_parameters": 1e9}, "max_parameters=1000000000.0 cannot"),
        ({}, "a plan by an isoFLOP needs a budget: compute"),
        ({"compute": 1e21, "level": 90}, "level must lie between 0 and 1, got 90"),
        ({"dollars": 10}, "dollars=10 needs device="),
        ({"compute": 1e21, "architecture": {"width": 3}}, "architecture=.*'width'.*known are context"),
    ],
)
def test_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ps.plan(ps.isoflop(isoflop_runs()), **arguments)
