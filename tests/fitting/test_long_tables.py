"""Tables of 60,000 runs and more: the search is on a sample, the minimum is that of all runs, and nothing hangs."""

import numpy as np
import pytest

import pyscaling as ps
from pyscaling.fitting.problem import automatic_starts
from pyscaling.fitting.sample import LONG, sample_of

COUNT = LONG + 10_000


def table(noise: float = 0.01) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    N, D = np.exp(generator.uniform(np.log([1e7, 1e9]), np.log([1e10, 1e12]), (COUNT, 2))).T
    loss = (1.8 + 480 / N**0.35 + 2100 / D**0.37) * np.exp(noise * generator.standard_normal(COUNT))
    return {"N": N, "D": D, "loss": loss}


def test_the_minimum_is_that_of_all_runs() -> None:
    runs = table()
    fit = ps.fit(runs)
    searched = fit.problem.solve(automatic_starts(fit.problem, 3))
    assert fit.objective_value == pytest.approx(searched["value"].min(), rel=1e-12)
    best = fit.problem.to_params(searched["theta"][np.argmin(searched["value"])])
    assert list(fit.params.values()) == pytest.approx(best, rel=1e-6)
    assert fit.evidence.trustworthy and fit.evidence.n_starts == 64 and not fit.evidence.cautions
    assert "(standard errors)" in str(fit)
    low, high = fit.intervals(0.9)["alpha"]
    error = fit.standard_errors()["alpha"]
    assert [low, high] == pytest.approx(
        [fit.params["alpha"] - 1.645 * error, fit.params["alpha"] + 1.645 * error], rel=1e-3
    )
    assert low < 0.35 < high
    place = fit.predict(N=1e12, D=1e13, kind="mean", level=0.9)
    true = 1.8 + 480 / 1e12**0.35 + 2100 / 1e13**0.37
    assert place.low < true < place.high and place.high / place.low - 1 < 0.005
    runs["loss"][1234] *= 2
    assert list(ps.fit(runs, starts=8).outliers) == [1234]


def test_a_small_group_is_not_lost() -> None:
    """Forty runs of another corpus among 60,000: a plain sample would hold seven."""
    runs, label = table(), np.full(COUNT, "text")
    label[-40:] = "code"
    runs["loss"][-40:] -= 0.8
    fit = ps.fit(runs, group=label, shared=["A", "alpha", "B", "beta"], starts=8)
    assert fit.params_of("code")["E"] == pytest.approx(1.0, abs=0.02)
    assert (sample_of(fit.problem).variables["in_code"] > 0).sum() == 40
