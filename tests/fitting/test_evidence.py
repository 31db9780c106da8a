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
    fit = ps.fit(table)
    assert "128 runs are copies of others, row 65 of 1, 66 of 2, " in fit.evidence.concerns[0]
    assert "NOT TO BE TRUSTED: 128 runs are copies of others" in str(fit).splitlines()[0]
    silent = np.repeat([1.0, 0.0, 0.0], 64)
    assert ps.fit(table, weights=silent).evidence.trustworthy


def test_rows_that_another_column_tells_apart_are_no_copies() -> None:
    """Losses of two digits: seeds repeat some, and one row is entered twice."""
    sizes = np.repeat(np.geomspace(1e6, 1e9, 10), 3)
    loss = np.round((1.7 + 400 / sizes**0.34) * noise(0.004, 30), 2)
    seeds = {"N": sizes, "loss": loss, "seed": np.tile([1, 2, 3], 10)}
    law = "power_constant_N"
    assert ps.fit(seeds, law=law).evidence.doubts == ()
    twice = {name: np.append(column, column[4]) for name, column in seeds.items()}
    assert ps.fit(twice, law=law).evidence.doubts == (
        "a run is a copy of another, row 31 of 5, which makes intervals too narrow",
    )
    exact = {"N": sizes, "loss": np.repeat(loss[::3], 3), "seed": seeds["seed"]}
    assert "20 runs repeat others to the last digit" in ps.fit(exact, law=law).evidence.misfit[0]


def test_the_verdict_carries_the_worst() -> None:
    """A doubt about units comes before all else, a misfit by the replicates' noise is never "no concerns"."""
    table = ps.Runs({"N": N, "D": D, "C": 6e-9 * N * D, "loss": LOSS * noise(0.004, 64)})
    (doubt,) = table.doubts
    fit = ps.fit(table, bounds={"alpha": (None, 0.2)})
    assert fit.evidence.concerns[:2] == [doubt, "alpha ended at a bound or vanished"]
    assert fit.verdict == f"NOT TO BE TRUSTED: {doubt}" and "GFLOPs" in doubt
    weights = np.where(np.arange(64) == 3, 0.0, 1.0)
    for way in ({"weights": weights}, {"group": np.arange(64) % 2, "shared": ["A", "alpha", "B", "beta"]}):
        assert ps.fit(table, **way).evidence.concerns[0] == doubt
    cell = np.repeat(np.arange(64), 3)
    shifted = LOSS[cell] * noise(0.006, 64)[cell] * noise(0.0015, 192)
    fit = ps.fit({"N": N[cell], "D": D[cell], "loss": shifted}, objective="gaussian")
    # an independent F test of lack of fit
    log = np.log(shifted).reshape(64, 3)
    pure = np.sum((log - log.mean(1, keepdims=True)) ** 2) / 128
    ratio = np.sqrt((np.sum(fit.residuals**2) - 128 * pure) / (64 - 5) / pure)
    said = f"the law misses the runs by {ratio:.3g} times the noise of their replicates"
    assert 4 < ratio < 10 and said in fit.verdict and fit.verdict.startswith("to be trusted with care")
    assert "no concerns" not in str(fit)


@pytest.mark.parametrize(("objective", "away"), [("huber", 1.3), ("huber", 1e3), ("gaussian", 1.3), ("gaussian", 1e3)])
def test_diverged_runs_are_named(objective: str, away: float) -> None:
    """Two among 100: the law is known as well as without them, and the fit without them is told."""
    generator = np.random.default_rng(1)
    sizes, tokens = np.exp(generator.uniform(np.log([1e7, 1e9]), np.log([1e10, 1e11]), (100, 2))).T
    loss = (1.8 + 480 / sizes**0.35 + 2100 / tokens**0.37) * np.exp(0.005 * generator.standard_normal(100))
    loss[[16, 62]] *= away
    fit = ps.fit({"N": sizes, "D": tokens, "loss": loss}, objective=objective)
    assert sorted(fit.outliers) == [16, 62] and min(fit.outliers.values()) > 30
    kept = np.setdiff1d(np.arange(100), [16, 62])
    rest = ps.fit({"N": sizes[kept], "D": tokens[kept], "loss": loss[kept]}, objective=objective)
    assert rest.outliers == {}
    told = (fit.evidence.doubts + fit.evidence.cautions)[0]
    assert told.startswith("rows 17 and 63 of the table lie ") and "noise off the law; without them E = " in told
    assert f"alpha = {rest.params['alpha']:.4g}, B = {rest.params['B']:.4g}" in told
    assert told in fit.verdict
    if objective == "huber":
        assert fit.evidence.trustworthy


@pytest.mark.parametrize(
    ("seed", "rows", "factor"), [(0, 1, 3.0), (2, 2, 100.0), (1, 5, 1.5), (4, 5, 3.0), (6, 5, 3.0)]
)
def test_runs_that_a_term_leans_on(seed: int, rows: int, factor: float) -> None:
    """The smallest D diverged: a minimum at least as low as the law of the other runs is, not one that a term makes of them."""
    generator = np.random.default_rng(seed)
    n = 60 if seed % 2 else 100
    sizes, tokens = np.exp(generator.uniform(np.log([1e7, 1e9]), np.log([1e10, 1e11]), (n, 2))).T
    loss = (1.8 + 480 / sizes**0.35 + 2100 / tokens**0.37) * np.exp(0.005 * generator.standard_normal(n))
    away = np.argsort(tokens)[:rows]
    kept = np.setdiff1d(np.arange(n), away)
    clean = ps.fit({"N": sizes[kept], "D": tokens[kept], "loss": loss[kept]}, starts=4)
    loss[away] *= factor
    fit = ps.fit({"N": sizes, "D": tokens, "loss": loss})
    size = np.abs(np.log(clean.evaluate(N=sizes, D=tokens) / loss))
    assert fit.objective_value <= np.sum(np.where(size < 1e-3, size**2 / 2, 1e-3 * (size - 0.5e-3)))
    assert fit.params["alpha"] == pytest.approx(0.35, abs=0.05)


def test_noise_that_grows_with_the_response_makes_no_outliers() -> None:
    x = np.linspace(0, 10, 60)
    table = {"x": x, "loss": 1e4 * np.exp(-x) * noise(0.01, 60)}
    fit = ps.fit(table, "a*exp(-b*x)", objective="gaussian", residual="raw")
    assert fit.outliers == {}
    table["loss"][7] *= 1.5
    assert list(ps.fit(table, "a*exp(-b*x)", residual="raw").outliers) == [7]


def test_outliers_are_rare_among_gaussian_runs() -> None:
    for seed in range(20):
        assert ps.fit({"N": N, "D": D, "loss": LOSS * noise(0.005, 64, seed)}, starts=4).outliers == {}


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
