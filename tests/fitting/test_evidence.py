"""Whether a fit's first line is right: wrong laws are not believed, right ones are."""

import numpy as np
import pytest

import pyscaling as ps

pytestmark = pytest.mark.filterwarnings("ignore:fit of:UserWarning")
N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e6, 1e10, 8), np.geomspace(1e8, 1e12, 8)))
LOSS = 1.7 + 400 / N**0.34 + 2000 / D**0.37


def noise(size: float, n: int, seed: int = 0) -> np.ndarray:
    return np.exp(size * np.random.default_rng(seed).standard_normal(n))


def test_replicates_give_a_wrong_law_away() -> None:
    sizes = np.repeat(np.geomspace(1e6, 1e10, 12), 3)
    loss = (1.7 + 400 / sizes**0.34) * noise(0.002, 36)
    wrong = ps.fit({"N": sizes, "loss": loss}, law="kaplan_N")
    assert "times the noise of their replicates" in wrong.evidence.misfit[0]
    assert "NOT TO BE TRUSTED" in str(wrong).splitlines()[0]
    right = ps.fit({"N": sizes, "loss": loss}, law="power_constant_N")
    assert right.evidence.trustworthy and not right.evidence.cautions


def test_lack_of_fit_is_seldom_a_false_alarm() -> None:
    """Right laws: at most 2 of 100 may be doubted for what is tested at one in a thousand, three tests a fit."""
    twice = {"N": np.tile(N, 2), "D": np.tile(D, 2)}
    doubted = 0
    for seed in range(100):
        fit = ps.fit(twice | {"loss": np.tile(LOSS, 2) * noise(0.005, 128, seed)}, law="chinchilla", starts=8)
        doubted += bool(fit.evidence.misfit or fit.evidence.cautions)
    assert doubted <= 2


def test_known_noise_gives_a_wrong_law_away() -> None:
    table = {"N": N, "D": D, "loss": LOSS * noise(0.005, 64)}
    wrong = ps.fit(table, objective="gaussian", noise=0.0005)
    assert "times the noise that was given" in wrong.evidence.misfit[0]
    assert ps.fit(table, objective="gaussian", noise=0.005).evidence.trustworthy


@pytest.mark.parametrize("loss", [np.maximum(LOSS, 2.6), LOSS + 0.2 * np.log10(N) ** 2 / 100 * np.log10(D)])
def test_a_trend_of_the_residuals_calls_for_care(loss: np.ndarray) -> None:
    fit = ps.fit({"N": N, "D": D, "loss": loss * noise(0.002, 64)}, law="chinchilla")
    assert "residuals follow" in fit.verdict or not fit.evidence.trustworthy


def test_a_line_through_a_root() -> None:
    x = np.geomspace(1, 100, 30)
    fit = ps.fit({"x": x, "loss": 2 + 3 * np.sqrt(x)}, law=ps.Law("a + b*x", variables=["x"]))
    assert "to be trusted with care, residuals follow x" in str(fit).splitlines()[0]


def test_copies_are_not_replicates() -> None:
    table = {"N": np.tile(N, 3), "D": np.tile(D, 3), "loss": np.tile(LOSS * noise(0.005, 64), 3)}
    assert "128 runs are copies of others" in ps.fit(table).evidence.misfit[0]
    silent = np.repeat([1.0, 0.0, 0.0], 64)
    assert ps.fit(table, weights=silent).evidence.trustworthy


@pytest.mark.parametrize("factor", [1.5, 2.0, 10.0])
def test_an_outlier_does_not_spoil_a_robust_fit(factor: float) -> None:
    loss = LOSS * noise(0.004, 64)
    loss[20] *= factor
    fit = ps.fit({"N": N, "D": D, "loss": loss})
    assert fit.evidence.trustworthy, fit.evidence
    assert fit.params["alpha"] == pytest.approx(0.34, abs=0.02)


def test_few_degrees_of_freedom_call_for_care() -> None:
    C = np.geomspace(1e18, 1e22, 5)
    fit = ps.fit({"C": C, "loss": (1.5 + 4e3 * C**-0.18) * noise(0.001, 5)}, law="power_constant_C")
    assert "only 2 more runs than parameters" in fit.evidence.cautions[0]


def test_a_parameter_in_large_units_has_not_vanished() -> None:
    C = np.geomspace(1e18, 1e24, 25)
    law = ps.Law("a + b/(1 + (C/C0)**-k)", response="accuracy", parameters={"C0": ps.laws.Parameter(role="floor")})
    start = {"a": 0.2, "b": 0.5, "C0": 2e21, "k": 1.0}
    table = {"C": C, "accuracy": 0.25 + 0.7 / (1 + (C / 1e21) ** -1.2)}
    fit = ps.fit(table, law=law, residual="raw", starts=[start])
    assert fit.params["C0"] == pytest.approx(1e21, rel=1e-6)
    assert fit.evidence.at_bound == ()
    assert "one start, so nothing is known of other minima" in str(fit.evidence)
