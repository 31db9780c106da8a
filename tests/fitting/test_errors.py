"""Bad input is named: the argument, the value and the remedy; and a fit not to be trusted says so."""

import math
import re

import numpy as np
import pytest

import pyscaling as ps

GENERATOR = np.random.default_rng(0)
N = np.exp(GENERATOR.uniform(np.log(1e6), np.log(1e9), 60))
D = np.exp(GENERATOR.uniform(np.log(1e8), np.log(1e11), 60))
LOSS = 1.7 + 400 / N**0.34 + 1500 / D**0.36


def table(**columns: object) -> dict[str, object]:
    return {"N": N, "D": D, "loss": LOSS, **columns}


@pytest.mark.parametrize("column", ["N", "D", "loss"])
@pytest.mark.parametrize("value", [0.0, -1e9, math.nan, math.inf])
def test_values(column: str, value: float) -> None:
    bad = dict(table())
    bad[column] = np.where(np.arange(60) == 16, value, bad[column])
    with pytest.raises(
        ValueError,
        match=rf"{column} must be finite and positive; row 17 of .*{column}={re.escape(f'{value:g}')}.*(Drop|fix)",
    ):
        ps.fit(bad)


def test_missing_column() -> None:
    with pytest.raises(ValueError, match=r"column 'D' is missing .*it holds N, loss.*columns="):
        ps.fit({"N": N, "loss": LOSS})


def test_three_points_for_five_parameters() -> None:
    with pytest.raises(ValueError, match=r"3 runs cannot determine the 5 free parameters of chinchilla.*at least 6"):
        ps.fit({"N": N[:3], "D": D[:3], "loss": LOSS[:3]})
    assert ps.fit(table(), fixed={"E": 1.7, "alpha": 0.34}).params["E"] == 1.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"law": "chinchila"}, "law 'chinchila' is unknown; known are .*chinchilla"),
        ({"law": "E + A/N**alpha + open(D)"}, "only exp, log, sqrt"),
        ({"law": "E + A/__import__"}, "no variable"),
        ({"objective": "l2"}, "objective='l2' is unknown; known are huber, lad, gaussian"),
        ({"residual": "ln"}, "residual='ln' is unknown; known are log, raw"),
        ({"delta": 0}, "delta must be finite and positive, got 0"),
        ({"starts": 0}, "starts must be at least 1, got 0"),
        ({"starts": "many"}, "starts='many' is unknown"),
        ({"starts": np.ones((2, 3))}, r"starts must be \[count, 5\].*got shape \(2, 3\)"),
        ({"starts": [{"E": 1.0}]}, "starts lack the parameter 'A'"),
        ({"weights": np.ones(3)}, r"weights must have one entry per run \(60\), got shape \(3,\)"),
        ({"weights": -np.ones(60)}, "none negative"),
        ({"bounds": {"gamma": (0, 1)}}, "bounds names 'gamma', not a parameter of chinchilla"),
        ({"bounds": {"alpha": (1, 0)}}, r"bounds of alpha must be \(low, high\).*got \(1, 0\)"),
        ({"fixed": {"A": -3.0}}, "A is positive in chinchilla"),
        ({"fixed": {"E": "1.7"}}, "fixed value of E must be a number, got '1.7'"),
        ({"fixed": ["E"]}, r"fixed must map parameters, as in fixed=\{.E.: 1.7\}, got \['E'\]"),
        ({"bounds": {"alpha": 0.5}}, r"bounds of alpha must be \(low, high\), numbers or None .*got 0.5"),
        ({"bounds": {"alpha": ("0", 1)}}, r"bounds of alpha must be .*got \('0', 1\)"),
        ({"law": None}, "law must be a name, an expression or a ps.Law, got None"),
        ({"law": 3}, "law must be a name, an expression or a ps.Law, got 3"),
        ({"law": "E + K*y"}, r"none is N, D, C, S or another column of the table, which holds N, D, loss, C"),
        ({"law": "loss + A/N**a"}, "holds 'loss', the column that it is to give"),
        ({"threads": -3}, "threads must be a number of cores, 1 or more, got -3"),
        ({"tied": [("alpha", "gamma")]}, "tied names 'gamma'"),
        ({"tied": "alpha"}, "tied must be groups of parameters, .*got 'alpha' as one"),
    ],
)
def test_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ps.fit(table(), **arguments)


def test_later_calls() -> None:
    fit = ps.fit(table())
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 90"):
        fit.predict(N=1e9, D=1e10, level=90)
    with pytest.raises(ValueError, match="D is missing: the law chinchilla is a function of N, D"):
        fit.predict(N=1e9)
    with pytest.raises(ValueError, match="N must be finite and positive to predict at"):
        fit.predict(N=-1e9, D=1e10)
    with pytest.raises(ValueError, match=r"the shapes of N \(2,\), D \(3,\) differ"):
        fit.predict(N=[1e9, 2e9], D=[1e10, 2e10, 3e10])
    with pytest.raises(ValueError, match="Q=2 is not a variable of chinchilla; those are N, D"):
        fit.predict(N=1e9, D=1e10, Q=2)
    with pytest.raises(ValueError, match="C=1e.20 is not a variable of chinchilla"):
        fit.predict(N=1e9, D=1e10, C=1e20)
    with pytest.raises(ValueError, match="N must be a number or an array of numbers, got 'large'"):
        fit.predict(N="large", D=1e10)
    assert fit.predict(N=1e9, C=6e19) == fit.predict(N=1e9, D=1e10) == fit.predict(D=1e10, C=6e19)
    with pytest.raises(ValueError, match="n must be at least 2"):
        fit.bootstrap(1)
    with pytest.raises(ValueError, match="starts must be at least 1, got 0"):
        fit.bootstrap(10, starts=0)
    boot = fit.bootstrap(10)
    for ask in (boot.interval, boot.standard_error):
        for quantity in ("gamma", lambda p: p["gamma"]):
            with pytest.raises(ValueError, match="'gamma' is not a parameter; those are E, A, alpha, B, beta"):
                ask(quantity)
        with pytest.raises(ValueError, match="quantity must be a parameter's name or a function"):
            ask(3)
    assert boot.standard_error(lambda p: 2 * p["E"]) == pytest.approx(2 * np.std(boot.params["E"], ddof=1))


def test_columns_of_an_expression_are_variables() -> None:
    heads = np.exp(np.random.default_rng(3).uniform(0, 3, 60))
    truth = {"E": 1.7, "A": 400.0, "alpha": 0.34, "K": 0.5, "p": 0.8}
    columns = table(heads=heads, loss=1.7 + 400 / N**0.34 + 0.5 * heads**-0.8)
    fit = ps.fit(columns, law="E + A/N**alpha + K*heads**-p")
    assert fit.params == pytest.approx(truth, rel=1e-5)
    assert "over the columns N, heads" in str(fit)
    score = ps.compare(columns, ["E + A/N**alpha + K*heads**-p"], holdout=0.2).scores[0]
    assert score.n_parameter == 5 and score.rms < 1e-6
    # a Law says itself what its variables are
    assert "heads" in ps.fit(columns, ps.Law("heads + A/N**alpha")).params
    with pytest.raises(ValueError, match="kind must be a number; row 1 of the table has kind='a'"):
        ps.fit(table(kind=["a"] * 60), law="E + A/N**alpha + kind")


def test_open_bounds() -> None:
    with pytest.warns(UserWarning, match="alpha ended at a bound"):
        assert ps.fit(table(), bounds={"alpha": (None, 0.3)}).params["alpha"] == pytest.approx(0.3)
    assert ps.fit(table(), bounds={"E": (None, None)}).params["E"] == pytest.approx(1.7)


def test_recovers_the_truth_without_noise() -> None:
    """An exact fit has an objective of rounding size, which must not look like a failure."""
    fit = ps.fit(table())
    assert fit.params == pytest.approx({"E": 1.7, "A": 400, "alpha": 0.34, "B": 1500, "beta": 0.36}, rel=1e-6)
    assert fit.evidence.trustworthy, fit.evidence
    assert str(fit).splitlines()[0] == "chinchilla: to be trusted as far as its intervals go"


def test_tied_bounds_and_weights() -> None:
    loss = 1.7 + 400 / N**0.34 + 1500 / D**0.34
    tied = ps.fit(table(loss=loss), tied=[("alpha", "beta")])
    assert tied.params == pytest.approx({"E": 1.7, "A": 400, "alpha": 0.34, "B": 1500}, rel=1e-6)
    with pytest.warns(UserWarning, match="alpha ended at a bound"):
        bounded = ps.fit(table(), bounds={"alpha": (0.1, 0.3)})
    assert bounded.params["alpha"] == pytest.approx(0.3)
    assert bounded.evidence.at_bound == ("alpha",)
    spoiled = np.where(np.arange(60) < 10, 9.0, LOSS)
    fit = ps.fit(table(loss=spoiled), objective="gaussian", weights=(np.arange(60) >= 10).astype(float))
    assert fit.params["E"] == pytest.approx(1.7, rel=1e-6)


def test_gaussian_against_scipy() -> None:
    from scipy.optimize import least_squares

    noisy = LOSS * np.exp(0.01 * np.random.default_rng(1).standard_normal(60))
    fit = ps.fit(table(loss=noisy), objective="gaussian")

    def residual(t: np.ndarray) -> np.ndarray:
        return np.log(np.exp(t[0]) + np.exp(t[1] - t[2] * np.log(N)) + np.exp(t[3] - t[4] * np.log(D))) - np.log(noisy)

    peer = least_squares(residual, [0.5, 6, 0.34, 7, 0.36], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert fit.objective_value == pytest.approx(peer.cost, rel=1e-9)
    assert fit.params["alpha"] == pytest.approx(peer.x[2], rel=1e-4)


def test_says_what_the_data_do_not_determine() -> None:
    """All runs have the same D: B and beta cannot be told from E."""
    with pytest.warns(UserWarning, match="do not determine|vanished|bound"):
        fit = ps.fit(table(D=np.full(60, 1e10), loss=1.7 + 400 / N**0.34 + 0.5 * np.exp(0.01 * np.sin(N))))
    assert not fit.evidence.trustworthy
    assert "NOT TO BE TRUSTED" in str(fit).splitlines()[0]


def test_law_of_ones_own() -> None:
    x = np.geomspace(1, 100, 40)
    law = ps.Law("E + K*x**-p", variables=["x"])
    fit = ps.fit({"x": x, "loss": 2 + 3 * x**-0.7}, law=law)
    assert fit.params == pytest.approx({"E": 2, "K": 3, "p": 0.7}, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("kaplan_N", {"N_c": 8.8e13, "alpha_N": 0.076}),
        ("power_constant_D", {"E": 1.5, "A": 70.0, "alpha": 0.18}),
        ("kaplan_ND", {"N_c": 6.4e13, "alpha_N": 0.076, "alpha_D": 0.103, "D_c": 1.8e13}),
        ("kaplan_NS", {"N_c": 6.5e13, "alpha_N": 0.077, "S_c": 2.1e3, "alpha_S": 0.76}),
    ],
)
def test_every_law_recovers_its_published_constants(name: str, truth: dict[str, float]) -> None:
    law = ps.laws.get(name)
    columns = {"N": N, "D": D, "S": np.exp(np.random.default_rng(2).uniform(np.log(1e3), np.log(1e6), 60))}
    columns["loss"] = law.evaluate(truth, **{v: columns[v] for v in law.variables})
    fit = ps.fit(columns, law=name)
    assert fit.params == pytest.approx(truth, rel=1e-4)


def test_prediction_interval_covers() -> None:
    """90 % intervals for a run at twice the largest N, on 150 simulated studies of the default design."""
    law, truth = ps.laws.get("kaplan_ND"), {"N_c": 4e10, "alpha_N": 0.087, "alpha_D": 0.145, "D_c": 2.7e9}
    sizes, budgets = 24.0 * np.array([8, 12, 16, 24, 32, 48, 64]) ** 2, np.geomspace(1.8e5, 2e6, 8)
    grid_N, grid_D = (a.ravel() for a in np.meshgrid(sizes, budgets))
    at = {"N": 2 * sizes[-1], "D": budgets[-1]}
    generator = np.random.default_rng(5)
    hits, count = 0, 150
    for _ in range(count):
        loss = law.evaluate(truth, N=grid_N, D=grid_D) * np.exp(0.006 * generator.standard_normal(len(grid_N)))
        fit = ps.fit({"N": grid_N, "D": grid_D, "loss": loss}, law="kaplan_ND", starts=16)
        interval = fit.predict(**at, level=0.9, n=400)
        new = law.evaluate(truth, **at) * np.exp(0.006 * generator.standard_normal())
        hits += interval.low <= new <= interval.high
    # three standard errors of a binomial of 150 at 0.9
    assert abs(hits / count - 0.9) <= 3 * math.sqrt(0.9 * 0.1 / count)


def test_a_prediction_says_where_it_stands() -> None:
    fit = ps.fit(table())
    assert (
        fit.predict(N=1e8, D="10B").notes == ()
        and fit.predict(N=1e8, D="10B").value == fit.predict(N=1e8, D=1e10).value
    )
    (far,) = fit.predict(N=1e15, D=1e10).notes
    assert far.startswith(f"N lies {1e15 / N.max():.3g} x above the fitted runs' {N.max():.3g}")
    assert far in str(fit.predict(N=1e15, D=1e10)) and far.split("'")[0] in fit.predict(N=1e15, D=1e10)._repr_html_()
    doubted = ps.fit({**table(), "C": 6e-9 * N * D})
    assert doubted.predict(N=1e8, D=1e10).notes[0] == doubted.verdict and "GFLOPs" in doubted.verdict


def test_a_loss_that_never_changes_is_said() -> None:
    with pytest.warns(UserWarning, match="loss is the same in all runs"):
        assert ps.fit({**table(), "loss": np.full(60, 3.0)}).verdict.startswith(
            "NOT TO BE TRUSTED: loss is the same in all runs"
        )


def test_a_response_may_be_named() -> None:
    runs = table(accuracy=0.9 - 30 / N**0.3)
    fit = ps.fit(runs, law="E - K*N**-p", response="accuracy")
    assert fit.params == pytest.approx({"E": 0.9, "K": 30, "p": 0.3}, rel=1e-5)
