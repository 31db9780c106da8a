"""Standard errors, profiles and intervals against closed forms and simulation."""

import numpy as np
import pytest
from scipy import optimize, stats

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
            assert student_t(q, degrees) == pytest.approx(stats.t.ppf(q, degrees), rel=1e-9)
    # tables of the Biometrika trustees, to the digits printed
    assert student_t(0.995, 3) == pytest.approx(5.8409, abs=5e-5)
    assert student_t(0.9995, 3) == pytest.approx(12.924, abs=5e-4)


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
    """One loss that leaves the floor says little of the exponent, and so of A: both ends against a profile by search."""
    N = np.geomspace(1e6, 1e9, 30)
    loss = (2 + 1e-3 * (N / 1e6) ** -5) * np.exp(1e-4 * np.random.default_rng(0).standard_normal(30))
    with pytest.warns(UserWarning, match="do not determine"):
        fit = ps.fit({"N": N, "loss": loss}, "power_constant_N", objective="gaussian", bounds={"alpha": (0.01, 50)})

    def least(log_A: float) -> float:
        """The least sum of squares with A held, over alpha and E."""

        def squares(alpha: float) -> float:
            term = np.exp(log_A - alpha * np.log(N))
            rest = lambda e: np.sum(np.log((e + term) / loss) ** 2)  # noqa: E731
            return optimize.minimize_scalar(rest, bounds=(1.9, 2.1), method="bounded", options={"xatol": 1e-9}).fun

        grid = np.linspace(0.01, 50, 150)
        best = grid[int(np.argmin([squares(a) for a in grid]))]
        ends = (max(0.01, best - 0.4), min(50, best + 0.4))
        return optimize.minimize_scalar(squares, bounds=ends, method="bounded", options={"xatol": 1e-9}).fun

    limit = 2 * fit.objective_value * (1 + stats.t.ppf(0.95, 28 - 1) ** 2 / 27)
    low, high = fit.profile("A", robust=False).interval(0.9)
    width = np.log(high / low)
    assert 100 < width < 120  # e-folds
    for end, inside in ((np.log(low), 1), (np.log(high), -1)):
        reach = 0.005 * width * inside
        assert least(end - reach) > limit > least(end + reach)
    # farther out a steeper law is as good: of 99 % the interval is open, and A at 1e100 is no worse than the limit
    assert fit.profile("A", robust=False).interval(0.99)[1] == np.inf
    assert least(np.log(1e100)) < 2 * fit.objective_value * (1 + stats.t.ppf(0.995, 27) ** 2 / 27)


def test_a_parameter_at_its_bound_has_a_one_sided_interval() -> None:
    """E = 0 in a pure power law with E: the end is where the sum of squares leaves t's one-sided quantile."""
    N = np.geomspace(1e6, 1e9, 12)
    loss = 20 * N**-0.12 * np.exp(0.02 * np.random.default_rng(1).standard_normal(12)) - 0.4
    with pytest.warns(UserWarning, match="E ended at a bound"):
        fit = ps.fit({"N": N, "loss": loss}, "power_constant_N", objective="gaussian")

    def squares(E: float) -> float:
        def residuals(t: np.ndarray) -> np.ndarray:
            return np.log(E + np.exp(t[0] - t[1] * np.log(N))) - np.log(loss)

        return (
            2 * optimize.least_squares(residuals, [3.5, 0.15 + E / 10], xtol=1e-14, ftol=1e-14, x_scale=[1, 0.1]).cost
        )

    limit = squares(0.0) * (1 + stats.t.ppf(0.9, 9) ** 2 / 9)
    true = optimize.brentq(lambda E: squares(E) - limit, 1e-3, 1.5)
    for low, high in (fit.intervals()["E"], fit.bootstrap(50).interval("E"), fit.to_dict()["intervals"]["E"]):
        assert low == 0 and high == pytest.approx(fit.profile("E").interval(0.8)[1])
    assert fit.profile("E", robust=False).interval(0.8) == pytest.approx((0.0, true), rel=5e-3)
    assert "at its bound" in str(fit)


def test_a_floor_lies_below_the_losses() -> None:
    """Runs that hardly bend leave the floor open, but never above what was achieved; a vanished term begins at zero."""
    D = np.geomspace(1e6, 3e7, 8)
    for seed in range(6):
        loss = (3 + 40 * D**-0.25) * np.exp(0.01 * np.random.default_rng(seed).standard_normal(8))
        low, high = ps.fit({"D": D, "loss": loss}, "power_constant_D").intervals()["E"]
        assert 0 <= low < high < loss.min() * 1.05
    N, D = np.exp(np.random.default_rng(1).uniform(np.log([1e7, 1e9]), np.log([1e10, 1e11]), (60, 2))).T
    loss = (1.8 + 2100 / D**0.37) * np.exp(0.005 * np.random.default_rng(2).standard_normal(60))
    fit = ps.fit({"N": N, "D": D, "loss": loss}, fixed={"alpha": 0.35})
    low, high = fit.intervals()["A"]
    assert low == 0 and 0 < high < 50  # 480 would be a tenth of the loss
    assert "fixed" in next(line for line in str(fit).splitlines() if " alpha " in line)


def test_one_level_and_one_method() -> None:
    fit = ps.fit(chinchilla_runs(1), law="chinchilla")
    boot = fit.bootstrap(1000, resample=None)
    for name in fit.params:
        ends = boot.interval(name, 0.9)
        assert boot.interval(name) == ends == fit.intervals()[name] == fit.to_dict()["intervals"][name]
        assert tuple(fit.to_frame().loc[name, ["low", "high"]]) == ends
        assert f"{ends[0]:.5g} .. {ends[1]:.5g}" in str(fit) and f"{ends[0]:.5g} .. {ends[1]:.5g}" in repr(boot)
    assert fit.to_dict()["level"] == 0.9
    profile = fit.profile("alpha")
    assert profile.interval() == profile.interval(0.9) == tuple(profile.to_dict()["interval"])
    assert profile.summary() == profile.summary(0.9)


@pytest.mark.parametrize("objective", ["huber", "gaussian"])
def test_runs_of_weight_zero_are_none(objective: str) -> None:
    """In every quantity, to the bit: four spoiled runs of weight zero against a table without them."""
    runs, spoiled = chinchilla_runs(5, label=np.arange(60) // 4).to_dict(), [3, 17, 40, 59]
    loss = runs["loss"].copy()
    loss[spoiled] *= 3
    weights = np.ones(60)
    weights[spoiled] = 0
    kept = weights > 0
    ours = ps.fit({**runs, "loss": loss}, weights=weights, objective=objective)
    rest = ps.fit({name: column[kept] for name, column in runs.items()}, objective=objective)
    assert ours.params == rest.params and ours.evidence == rest.evidence
    for name in ("noise", "r2", "adjusted_r2", "objective_value", "replicates"):
        assert getattr(ours, name) == getattr(rest, name), name
    for robust in (True, False):
        assert np.array_equal(ours.covariance(robust=robust), rest.covariance(robust=robust))
    assert np.array_equal(ours.covariance(runs["label"]), rest.covariance(runs["label"][kept]))
    assert ours.profile("alpha").interval() == rest.profile("alpha").interval()
    for resample in ("pairs", "residuals", "wild"):
        assert np.array_equal(*(fit.bootstrap(40, resample=resample).samples for fit in (ours, rest)))
    assert ours.bootstrap(20, cluster=runs["label"]).degrees == rest.bootstrap(20, cluster="label").degrees == 15 - 5
    assert ours.predict(N=1e11, D=1e12, n=40) == rest.predict(N=1e11, D=1e12, n=40)
    assert str(ours) == str(rest)
    loss[7] *= 1.5
    assert list(ps.fit({**runs, "loss": loss}, weights=weights).outliers) == [7]  # rows of the table as it came
    loss[7], loss[20] = runs["loss"][7], 1.5 * loss[20]
    assert list(ps.fit({**runs, "loss": loss}, weights=weights).outliers) == [20]
    if objective == "gaussian":
        noise = ps.fit({**runs, "loss": loss}, objective="gaussian", noise=0.005)
        assert noise.chi2 > 1


def test_responses_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A residual bootstrap holds few responses at once, and refits each as it would alone."""
    import pyscaling.fitting.bootstrap as module

    fit = ps.fit(chinchilla_runs(6), law="chinchilla")
    whole = {way: fit.bootstrap(64, resample=way).samples for way in ("residuals", "wild")}
    seen = []
    responses = module._responses
    monkeypatch.setattr(module, "_AT_ONCE", 600)
    monkeypatch.setattr(module, "_responses", lambda *a: seen.append(responses(*a)) or seen[-1])
    for way in whole:
        parts = fit.bootstrap(64, resample=way)
        assert max(len(part) for part in seen) == 10 and sum(len(part) for part in seen) == 64 * (1 + (way == "wild"))
        assert parts.interval("alpha") == pytest.approx(
            ps.fitting.Bootstrap(
                fit.params, whole[way], parts.objective_values, parts.converged, parts.degrees
            ).interval("alpha"),
            rel=0.05,
        )


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
