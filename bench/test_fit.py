"""The Chinchilla analysis, 4,500 published starts and 4,000 bootstrap resamples, against SciPy's published procedure.

pytest bench/test_fit.py -s
"""

import itertools
import time

import numpy as np
import pytest
from chinchilla_points import runs_240
from scipy.optimize import minimize

import pyscaling as ps

SCIPY_STARTS = 12  # of 4,500; a seeded sample, its time scaled up


def published_starts() -> np.ndarray:
    """In the order e, a, alpha, b, beta; E, A and B as logarithms."""
    grid = itertools.product(
        [-1, -0.5, 0, 0.5, 1], range(0, 30, 5), [0, 0.5, 1, 1.5, 2], range(0, 30, 5), [0, 0.5, 1, 1.5, 2]
    )
    return np.array(list(grid), dtype=float)


def scipy_objective(theta: np.ndarray, log_N: np.ndarray, log_D: np.ndarray, log_loss: np.ndarray) -> float:
    e, a, alpha, b, beta = theta
    terms = np.stack([np.broadcast_to(e, log_N.shape), a - alpha * log_N, b - beta * log_D])
    size = np.abs(np.logaddexp.reduce(terms, axis=0) - log_loss)
    return float(np.where(size < 1e-3, 0.5 * size**2, 1e-3 * (size - 0.5e-3)).sum())


def test_starts_and_bootstrap(benchmark) -> None:
    runs = runs_240()
    starts = published_starts()
    natural = np.stack(
        [np.exp(starts[:, 0]), np.exp(starts[:, 1]), starts[:, 2], np.exp(starts[:, 3]), starts[:, 4]], axis=1
    )

    def analysis() -> float:
        fit = ps.fit(runs, law="chinchilla", starts=natural)
        fit.bootstrap(4000)
        return fit.objective_value

    objective = benchmark.pedantic(analysis, rounds=7, warmup_rounds=1)
    arguments = (np.log(runs.N), np.log(runs.D), np.log(runs.loss))
    chosen = np.random.default_rng(0).choice(len(starts), SCIPY_STARTS, replace=False)
    started = time.perf_counter()
    found = [minimize(scipy_objective, starts[k], args=arguments, method="L-BFGS-B") for k in chosen]
    theirs = (time.perf_counter() - started) * len(starts) / SCIPY_STARTS
    ours = benchmark.stats.stats.median
    benchmark.extra_info |= {"scipy_starts_s": theirs, "ratio": theirs / ours}
    print(
        f"\n4,500 starts and 4,000 resamples: {ours:.2f} s; SciPy, 4,500 starts alone: {theirs:.0f} s "
        f"(scaled up from {SCIPY_STARTS}), ratio {theirs / ours:.0f}"
    )
    assert objective <= min(result.fun for result in found) * (1 + 1e-9)
    assert ours < 1.0


@pytest.mark.parametrize("level", [1, 2], ids=["gauss-newton", "hessian"])
def test_one_evaluation(benchmark, level: int) -> None:
    """Value, gradient and second-order matrix of the law at 240 points."""
    from pyscaling._core import evaluate

    fit = ps.fit(runs_240(), law="chinchilla")
    p = fit.problem
    arguments = (p.compiled.tape, p.columns, p.y, p.weights, fit.theta, p.core_delta, level)
    benchmark.pedantic(evaluate, args=(*arguments, 10_000), rounds=7)
    print(f"\none evaluation, level {level}: {benchmark.stats.stats.median / 10_000 * 1e6:.2f} us")
