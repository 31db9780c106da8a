"""overestimate_penalty: quantiles and expectiles in closed form, SciPy's minimum, derivatives, and what it is for."""

import numpy as np
import pytest
from scipy.optimize import minimize

import pyscaling as ps
from pyscaling._core import evaluate

X = np.geomspace(1, 100, 400)


def runs(seed: int = 0) -> dict[str, np.ndarray]:
    """A lower edge, and runs above it by what they were left untuned."""
    generator = np.random.default_rng(seed)
    return {"x": X, "loss": (2 + 3 * X**-0.5) * np.exp(generator.exponential(0.03, 400))}


@pytest.mark.parametrize("penalty", [0.25, 1.0, 3.0, 19.0])
def test_quantiles_and_expectiles_of_a_constant(penalty: float) -> None:
    """Of absolute deviations the quantile 1 / (1 + penalty); of squares the root of its first-order condition."""
    y = np.random.default_rng(1).gamma(2, size=400)
    table = {"x": np.ones(400), "y": y}
    law = ps.Law("c*x", variables=["x"], response="y")
    quantile = ps.fit(table, law, "lad", residual="raw", overestimate_penalty=penalty).params["c"]
    assert np.mean(y < quantile) <= 1 / (1 + penalty) <= np.mean(y <= quantile * (1 + 1e-7))
    expectile = ps.fit(table, law, "gaussian", residual="raw", overestimate_penalty=penalty).params["c"]
    above, below = np.maximum(y - expectile, 0).sum(), np.maximum(expectile - y, 0).sum()
    assert above == pytest.approx(penalty * below, rel=1e-9)


@pytest.mark.parametrize("objective", ["huber", "gaussian"])
@pytest.mark.parametrize("residual", ["log", "raw"])
def test_against_scipy(objective: str, residual: str) -> None:
    table, penalty, delta = runs(), 8.0, 0.01

    def total(t: np.ndarray) -> float:
        law = np.exp(t[0]) + np.exp(t[1] - t[2] * np.log(X))
        r = np.log(law / table["loss"]) if residual == "log" else law - table["loss"]
        size = np.abs(r)
        rho = r**2 / 2 if objective == "gaussian" else np.where(size < delta, r**2 / 2, delta * (size - delta / 2))
        return float(np.sum(np.where(r > 0, penalty, 1.0) * rho))

    fit = ps.fit(table, "E + A*x**-p", objective, residual=residual, delta=delta, overestimate_penalty=penalty)
    start = [np.log(fit.params["E"]) + 0.02, np.log(fit.params["A"]) - 0.05, fit.params["p"] + 0.03]
    peer = minimize(total, start, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-15, "maxfev": 6000})
    assert fit.objective_value == pytest.approx(
        total(np.array([np.log(fit.params["E"]), np.log(fit.params["A"]), fit.params["p"]]))
    )
    assert fit.objective_value == pytest.approx(peer.fun, rel=1e-6) and fit.objective_value <= peer.fun * (1 + 1e-9)
    assert np.mean(fit.residuals < 0) < 0.4 < np.mean(ps.fit(table, "E + A*x**-p", objective).residuals < 0)


@pytest.mark.parametrize("residual", ["log", "raw"])
def test_derivatives(residual: str) -> None:
    """Gradient and Hessian of the core against differences of its own value and gradient."""
    p = ps.fit(runs(), "E + A*x**-p", "huber", residual=residual, delta=0.02, starts=4).problem
    theta = p.to_theta({"E": 2.05, "A": 2.9, "p": 0.48})

    def at(theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        return evaluate(p.compiled.tape, p.columns, p.y, p.weights, theta, p.core_delta, 2, 1, 7.0)

    value, gradient, curvature = at(theta)
    assert (
        value
        > at(theta)[0] * (1 - 1e-15)
        > evaluate(p.compiled.tape, p.columns, p.y, p.weights, theta, p.core_delta, 0)[0]
    )
    steps = 1e-6 * np.eye(3)
    assert gradient == pytest.approx([(at(theta + s)[0] - at(theta - s)[0]) / 2e-6 for s in steps], rel=1e-6)
    hessian = np.array([(at(theta + s / 100)[1] - at(theta - s / 100)[1]) / 2e-8 for s in steps])
    assert curvature == pytest.approx(hessian[np.tril_indices(3)], rel=2e-3)


def test_it_finds_the_edge_of_untuned_runs() -> None:
    """Untuned runs lie 3 % above on average; the penalty takes most of that away, and its errors are those of simulation."""
    edge = 2 + 3 * 30**-0.5
    plain, hugging, errors = [], [], []
    for seed in range(40):
        table = runs(seed)
        plain.append(ps.fit(table, "E + A*x**-p", starts=8).evaluate(x=30.0) / edge - 1)
        fit = ps.fit(table, "E + A*x**-p", "gaussian", starts=8, overestimate_penalty=50.0)
        hugging.append(fit.evaluate(x=30.0) / edge - 1)
        errors.append(fit.standard_errors(robust=True)["p"] / np.sqrt(40))
    assert np.mean(plain) > 0.015 and 0 < np.mean(hugging) < 0.01
    found = [
        ps.fit(runs(s), "E + A*x**-p", "gaussian", starts=4, overestimate_penalty=50.0).params["p"] for s in range(40)
    ]
    assert np.mean(errors) * np.sqrt(40) == pytest.approx(np.std(found), rel=0.35)


def test_errors() -> None:
    for penalty in (0, -1.0, np.inf, np.nan, "2"):
        with pytest.raises(ValueError, match="overestimate_penalty must be positive and at most 1e6"):
            ps.fit(runs(), "E + A*x**-p", overestimate_penalty=penalty)
