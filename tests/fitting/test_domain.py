"""Where a law is defined: a power at zero is zero, with its derivatives, and what is not finite is named by row."""

import numpy as np
import pytest

import pyscaling as ps

X = np.array([0, 1, 2, 4, 8, 16, 32, 64.0])


def fit(law: str, x: np.ndarray, y: np.ndarray, residual: str = "raw") -> ps.Fit:
    own = ps.Law(law, variables=["x"], response="y")
    return ps.fit({"x": x, "y": y}, own, objective="gaussian", residual=residual)


@pytest.mark.parametrize(
    ("law", "truth"),
    [
        ("a*x**p", {"a": 3.0, "p": 0.5}),
        ("E + a*x**p", {"E": 1.0, "a": 3.0, "p": 0.5}),
        ("E + a*(x/1e9)**p", {"E": 1.0, "a": 3 * 1e9**0.5, "p": 0.5}),
        ("E + a*exp(-c/x)", {"E": 1.0, "a": 2.0, "c": 5.0}),
        ("E + a*sqrt((x - 20)**2)", {"E": 1.0, "a": 2.0}),
        ("E + a*x**2*(x - 20)", {"E": 1.0, "a": 2.0}),
    ],
)
def test_zero_and_negative_numbers_that_a_law_can_take(law: str, truth: dict[str, float]) -> None:
    y = ps.Law(law, variables=["x"]).evaluate(truth, x=X)
    assert fit(law, X, y).params == pytest.approx(truth, rel=1e-6)


def test_a_power_at_zero_and_its_derivatives() -> None:
    """0**p = 0, and so is its derivative by p, 0 log 0."""
    found = fit("E + a*x**p", X, 1 + 3 * X**0.5 + 0.01 * np.sin(7 * X))
    value, jacobian = found.problem.value_and_jacobian(found.theta)
    p = found.params
    with np.errstate(all="ignore"):
        by_p = np.where(X > 0, p["a"] * X ** p["p"] * np.log(X), 0.0)
    assert value == pytest.approx(p["E"] + p["a"] * X ** p["p"], rel=1e-12)
    expected = {"E": np.ones(8), "a": p["a"] * X ** p["p"], "p": by_p}  # theta of a is its logarithm
    assert jacobian == pytest.approx(np.stack([expected[name] for name in found.law.names], axis=1), rel=1e-12)
    assert found.evidence.converged and found.evidence.gradient_norm < 1e-6
    assert found.predict(x=0.0, n=20).value == p["E"]
    assert np.isfinite(found.standard_errors()["p"])


@pytest.mark.parametrize(
    ("law", "x", "residual", "message"),
    [
        ("E + a*x**-p", X, "raw", r"x=0 in row 1 of the table: x\*\*-p is not finite there; drop the row"),
        ("E + a/x**p", X, "raw", r"x=0 in row 1 of the table: a/x\*\*p is not finite there"),
        ("E + a*log(x)", X[::-1], "raw", r"x=0 in row 8 of the table: log\(x\) is not finite there"),
        ("a*x**p", X - 1, "raw", r"x=-1 in row 1 of the table: x\*\*p is not finite there"),
        ("E + a*(x - 2)**p", X, "raw", r"x=0 in row 1 of the table: \(x - 2\)\*\*p is not .* \(2 such rows\)"),
        ("E + a/(x - 2)", X, "raw", r"x=2 in row 3 of the table: a/\(x - 2\) is not finite there"),
        ("E + a*sqrt(x - 1)", X, "log", r"x=0 in row 1 of the table: sqrt\(x - 1\) is not finite there"),
        ("a*x**p", X, "log", r"x=0 in row 1 of the table: a\*x\*\*p is not positive there, and has no logarithm"),
    ],
)
def test_rows_outside_a_law_are_named(law: str, x: np.ndarray, residual: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(law, x, 1 + X, residual)


def test_the_response_keeps_its_name() -> None:
    with pytest.raises(ValueError, match=r"y must be finite and positive; row 1 of the table has y=-1"):
        fit("E + a*x**p", X, X - 1, "log")
    N = np.geomspace(1e6, 1e9, 8)
    table = ps.Runs({"N": N, "loss": 2 + 30 * N**-0.3}, renamed={"loss": "eval/loss"})
    with pytest.raises(
        ValueError, match=r"no start of 1 gave a finite eval/loss for .*check the units of N and eval/loss"
    ):
        ps.fit(table, "E + exp(1e3*a*N)", starts=[{"E": 1.0, "a": 1.0}])
    with pytest.warns(UserWarning, match="y does not vary"):
        fit("E + a*x**p", X, np.full(8, 2.0))
