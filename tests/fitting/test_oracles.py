"""Published numbers that a correct fitter reproduces: Besiroglu et al. 2024 on the Chinchilla points."""

import itertools

import numpy as np
import pytest

import pyscaling as ps


@pytest.fixture(scope="module")
def kept(chinchilla_runs):
    return chinchilla_runs.select(np.sort(np.argsort(chinchilla_runs.loss)[:-5]))


def published_starts() -> np.ndarray:
    """The 4,500 starts of Hoffmann et al. 2022, in the order E, A, alpha, B, beta."""
    grid = itertools.product(
        [-1, -0.5, 0, 0.5, 1], range(0, 30, 5), [0, 0.5, 1, 1.5, 2], range(0, 30, 5), [0, 0.5, 1, 1.5, 2]
    )
    e, a, alpha, b, beta = np.array(list(grid), dtype=float).T
    return np.stack([np.exp(e), np.exp(a), alpha, np.exp(b), beta], axis=1)


def test_true_minimum(kept) -> None:
    fit = ps.fit(kept, law="chinchilla")
    assert fit.objective_value == pytest.approx(0.001018274017801, rel=1e-10)
    published = {"A": 477.826, "B": 2143.42, "E": 1.8172181, "alpha": 0.3473105, "beta": 0.36717243}
    for name, value in published.items():
        assert fit.params[name] == pytest.approx(value, rel=2e-6), name
    assert fit.evidence.trustworthy
    assert fit.evidence.agreeing > 0.5


def test_published_starts_find_it_too(kept) -> None:
    fit = ps.fit(kept, law="chinchilla", starts=published_starts())
    assert len(published_starts()) == 4500
    assert fit.objective_value == pytest.approx(0.001018274017801, rel=1e-10)
    assert fit.evidence.agreeing > 0.95


def test_all_points(chinchilla_runs) -> None:
    fit = ps.fit(chinchilla_runs, law="chinchilla")
    assert fit.objective_value == pytest.approx(0.001826010523069, rel=1e-10)
    published = {"A": 495.726, "B": 12845.6, "E": 1.8913385, "alpha": 0.3493129, "beta": 0.4530493}
    for name, value in published.items():
        assert fit.params[name] == pytest.approx(value, rel=5e-6), name


def test_least_absolute_deviations(kept) -> None:
    fit = ps.fit(kept, law="chinchilla", objective="lad")
    published = {"A": 482.006, "B": 2085.43, "E": 1.816864, "alpha": 0.34781303, "beta": 0.36585412}
    for name, value in published.items():
        assert fit.params[name] == pytest.approx(value, rel=1e-5), name
    absolute = np.abs(np.log(fit.evaluate(N=kept.N, D=kept.D) / kept.loss)).sum()
    assert fit.objective_value == pytest.approx(absolute, rel=1e-5)


def test_scale_of_the_objective_does_not_matter(kept) -> None:
    """The original fit stopped early because it minimised a mean with a default tolerance."""
    total = ps.fit(kept, law="chinchilla")
    mean = ps.fit(kept, law="chinchilla", weights=np.full(len(kept), 1 / len(kept)))
    for name in total.params:
        assert mean.params[name] == pytest.approx(total.params[name], rel=1e-5)


def test_published_bootstrap(kept) -> None:
    boot = ps.fit(kept, law="chinchilla").bootstrap(4000)
    published = {
        "A": (285, 744),
        "B": (1042, 5810),
        "E": (1.769, 1.871),
        "alpha": (0.317, 0.373),
        "beta": (0.331, 0.415),
    }
    for name, (low, high) in published.items():
        # An end of a 95 % interval from 4,000 draws has a standard error of about 4 % of the interval's width.
        error = 4 * 0.04 * (high - low)
        assert boot.interval(name, 0.95, "percentile") == pytest.approx((low, high), abs=error), name
    exponent = boot.params["beta"] / (boot.params["alpha"] + boot.params["beta"])
    assert exponent.mean() == pytest.approx(0.513, abs=0.005)
    assert exponent.std() == pytest.approx(0.020, abs=0.002)


def test_threads_do_not_change_a_bit(kept) -> None:
    one, two = (ps.fit(kept, law="chinchilla", threads=n).bootstrap(200, seed=3).samples for n in (1, 2))
    assert np.array_equal(one, two)
