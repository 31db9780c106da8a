"""Standard errors, profiles and intervals against closed forms and simulation."""

import numpy as np
import pytest
from scipy import stats

import pyscaling as ps
from pyscaling._core import resample_counts
from pyscaling.fitting.bootstrap import student_t

# log loss = log A - alpha log N: a straight line, whose least squares are known in closed form.
LINE = ps.Law("A/N**alpha", variables=["N"])
TRUTH = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37}


def line_runs(n: int = 40, size: float = 0.02, seed: int = 0) -> ps.Runs:
    generator = np.random.default_rng(seed)
    N = np.geomspace(1e6, 1e9, n)
    return ps.Runs(
        {"N": N, "loss": 20 * N**-0.12 * np.exp(size * generator.standard_normal(n)), "sd": np.full(n, size)}
    )


def chinchilla_runs(seed: int, noise: float = 0.005, n: int = 60, **columns: np.ndarray) -> ps.Runs:
    generator = np.random.default_rng(seed)
    N, D = (
        np.exp(generator.uniform(np.log(1e7), np.log(1e10), n)),
        np.exp(generator.uniform(np.log(1e9), np.log(1e11), n)),
    )
    loss = ps.Law("E + A/N**alpha + B/D**beta").evaluate(TRUTH, N=N, D=D)
    return ps.Runs({"N": N, "D": D, "loss": loss * np.exp(noise * generator.standard_normal(n)), **columns})


def ordinary_least_squares(runs: ps.Runs) -> tuple[np.ndarray, np.ndarray, float]:
    X = np.stack([np.ones(len(runs)), -np.log(runs.N)], axis=1)
    coefficients, squares, *_ = np.linalg.lstsq(X, np.log(runs.loss), rcond=None)
    return coefficients, np.linalg.inv(X.T @ X), float(squares[0]) / (len(runs) - 2)


def test_student_t() -> None:
    for degrees in (1, 2, 3, 5, 10, 100):
        for q in (0.9, 0.95, 0.975):
            assert student_t(q, degrees) == pytest.approx(stats.t.ppf(q, degrees), rel=2e-3)


def test_wald_is_ordinary_least_squares() -> None:
    runs = line_runs()
    fit = ps.fit(runs, LINE, objective="gaussian")
    coefficients, inverse, variance = ordinary_least_squares(runs)
    assert fit.params["alpha"] == pytest.approx(coefficients[1], rel=1e-9)
    assert fit.covariance(robust=False, units="theta") == pytest.approx(variance * inverse, rel=1e-7)
    assert fit.standard_errors(robust=False)["A"] == pytest.approx(np.sqrt(variance * inverse[0, 0]) * fit.params["A"])


def test_sandwich_is_whites() -> None:
    runs = line_runs()
    fit = ps.fit(runs, LINE, objective="gaussian")
    X = np.stack([np.ones(len(runs)), -np.log(runs.N)], axis=1)
    _, inverse, _ = ordinary_least_squares(runs)
    white = inverse @ (X.T * fit.residuals**2) @ X @ inverse * 40 / 38
    assert fit.covariance(units="theta") == pytest.approx(white, rel=1e-6)
    cluster = np.repeat(np.arange(10), 4)
    scores = np.add.reduceat(X * fit.residuals[:, None], np.arange(0, 40, 4))
    clustered = inverse @ scores.T @ scores @ inverse * 10 / 8
    assert fit.covariance(cluster, units="theta") == pytest.approx(clustered, rel=1e-6)


def test_known_noise() -> None:
    runs = line_runs(size=0.02)
    fit = ps.fit(runs, LINE, objective="gaussian", noise="sd")
    _, inverse, variance = ordinary_least_squares(runs)
    assert fit.covariance(robust=False, units="theta") == pytest.approx(0.02**2 * inverse, rel=1e-7)
    assert fit.chi2 == pytest.approx(variance / 0.02**2, rel=1e-9)
    assert fit.objective_value == pytest.approx(0.5 * 38 * fit.chi2)
    assert "chi^2 per degree of freedom" in str(fit)
    with pytest.raises(ValueError, match="noise= is the standard deviation of a Gaussian"):
        ps.fit(runs, LINE, noise=0.1)
    with pytest.raises(ValueError, match="noise must be finite and positive"):
        ps.fit(runs, LINE, objective="gaussian", noise=0.0)
    with pytest.raises(ValueError, match="noise and weights both"):
        ps.fit(runs, LINE, objective="gaussian", noise=0.1, weights="sd")


def test_huber_covariance_in_simulation() -> None:
    """Standard errors of a nearly absolute loss against the spread of 300 estimates."""
    found, wald, sandwich = [], [], []
    for seed in range(300):
        fit = ps.fit(line_runs(100, seed=seed), LINE, starts=[{"A": 20, "alpha": 0.12}])
        found.append(fit.params["alpha"])
        wald.append(fit.standard_errors(robust=False)["alpha"])
        sandwich.append(fit.standard_errors()["alpha"])
    spread = np.std(found)
    assert np.mean(wald) == pytest.approx(spread, rel=0.12)
    assert np.mean(sandwich) == pytest.approx(spread, rel=0.12)


def test_profile_of_a_line_is_students_t() -> None:
    runs = line_runs()
    fit = ps.fit(runs, LINE, objective="gaussian")
    coefficients, inverse, variance = ordinary_least_squares(runs)
    reach = stats.t.ppf(0.95, 38) * np.sqrt(variance * inverse[1, 1])
    profile = fit.profile("alpha")
    assert profile.interval(0.9) == pytest.approx((coefficients[1] - reach, coefficients[1] + reach), rel=1e-4)
    assert np.all(np.diff(profile.values) > 0)
    assert profile.objective_values.min() == pytest.approx(fit.objective_value, rel=1e-12)
    assert "< alpha <" in str(profile)
    assert profile.plot().get_xlabel() == "alpha"
    assert set(profile.to_frame()) == {"A", "alpha", "objective", "root"}
    with pytest.raises(ValueError, match="'gamma' is not a parameter"):
        fit.profile("gamma")
    with pytest.raises(ValueError, match="A is fixed at 20"):
        ps.fit(runs, LINE, fixed={"A": 20.0}).profile("A")


def test_profile_refits_the_others() -> None:
    """At a point of the profile the objective is that of a fit with the parameter fixed there."""
    fit = ps.fit(chinchilla_runs(0), law="chinchilla")
    profile = fit.profile("beta")
    for k in (0, len(profile.values) // 3, -1):
        held = ps.fit(fit.runs, law="chinchilla", fixed={"beta": float(profile.values[k])})
        assert profile.objective_values[k] == pytest.approx(held.objective_value, rel=1e-8)


def test_open_interval() -> None:
    """Losses that hardly leave their floor say only that the exponent is not small."""
    N = np.geomspace(1e6, 1e9, 30)
    loss = (2 + 1e-3 * (N / 1e6) ** -5) * np.exp(1e-3 * np.random.default_rng(0).standard_normal(30))
    with pytest.warns(UserWarning, match="do not determine"):
        fit = ps.fit({"N": N, "loss": loss}, "power_constant_N", objective="gaussian", bounds={"alpha": (0.01, 50)})
    low, high = fit.profile("A").interval()
    assert low == 0 or np.isinf(high)


def test_methods_of_intervals() -> None:
    boot = ps.fit(chinchilla_runs(1), law="chinchilla").bootstrap(400)
    samples = boot.params["alpha"]
    assert boot.interval("alpha", 0.9, "percentile") == pytest.approx(tuple(np.quantile(samples, [0.05, 0.95])))
    low, high = boot.interval("alpha", 0.9, "t")
    assert np.sqrt(low * high) == pytest.approx(boot.estimate["alpha"])  # symmetric in its logarithm
    assert np.log(high / low) / 2 == pytest.approx(
        stats.t.ppf(0.95, 55) * np.diff(np.log(np.quantile(samples, [0.158655, 0.841345])))[0] / 2, rel=1e-3
    )
    ratio = boot.interval(lambda p: p["beta"] / (p["alpha"] + p["beta"]), 0.9)
    assert 0.4 < ratio[0] < ratio[1] < 0.6
    with pytest.raises(ValueError, match="method='bca' is unknown"):
        boot.interval("alpha", method="bca")


def test_resampling_schemes() -> None:
    cluster = np.repeat(np.arange(12), 5)
    fit = ps.fit(chinchilla_runs(2, label=cluster), law="chinchilla")
    for resample in ("pairs", "wild"):
        assert len(fit.bootstrap(50, cluster="label", resample=resample)) == 50
    assert fit.bootstrap(50, cluster="label").degrees == 12 - 5
    with pytest.raises(ValueError, match='with cluster use "pairs" or "wild"'):
        fit.bootstrap(50, cluster="label", resample="residuals")
    with pytest.raises(ValueError, match="resample='jackknife' is unknown"):
        fit.bootstrap(50, resample="jackknife")


def test_a_resample_is_a_weighted_fit() -> None:
    """Its counts as weights give the same fit, and no start of eight finds a lower objective."""
    runs = chinchilla_runs(3)
    fit = ps.fit(runs, law="chinchilla")
    boot = fit.bootstrap(20, seed=5)
    counts = resample_counts(len(runs), 20, 5)
    assert np.all(counts.sum(axis=1) == len(runs))
    for k in range(20):
        alone = ps.fit(runs, law="chinchilla", weights=counts[k])
        assert boot.objective_values[k] <= alone.objective_value * (1 + 1e-9)


def test_coverage() -> None:
    """Nominal 90 % intervals in 200 simulated data sets; bench/coverage.py has the whole table."""
    hits = []
    for seed in range(200):
        fit = ps.fit(chinchilla_runs(seed, n=100), law="chinchilla", starts=[TRUTH])
        boot = fit.bootstrap(200, seed=seed, starts=1)
        ends = [boot.interval(name, 0.9) for name in ("alpha", "beta", "E")]
        curve = fit.predict(N=1e11, D=1e12, kind="mean", n=200, seed=seed)
        ends.append((curve.low, curve.high))
        true = [TRUTH["alpha"], TRUTH["beta"], TRUTH["E"], ps.laws.get("chinchilla").evaluate(TRUTH, N=1e11, D=1e12)]
        hits.append([low <= value <= high for (low, high), value in zip(ends, true, strict=True)])
    # Four standard errors of a share of 0.9 in 200.
    assert np.mean(hits, axis=0) == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / 200))


def test_replicates() -> None:
    runs = chinchilla_runs(4, noise=0.01)
    twice = ps.Runs(
        {name: np.concatenate([runs[name], runs[name]]) for name in ("N", "D")}
        | {"loss": np.concatenate([runs.loss, runs.loss * np.exp(0.01 * np.random.default_rng(9).standard_normal(60))])}
    )
    fit = ps.fit(twice, law="chinchilla", objective="gaussian")
    assert "2.36 times the noise of their replicates" in fit.evidence.cautions[0]  # each pair shares noise
    size, degrees = fit.replicates
    assert degrees == 60
    assert size == pytest.approx(np.std(np.log(twice.loss[:60] / twice.loss[60:]), ddof=0) / np.sqrt(2), rel=0.05)
    assert "replicates alone" in str(fit)
    assert ps.fit(runs, law="chinchilla").replicates is None
