"""The compute-efficient frontier: for a budget C = 6ND, the N that minimises L(N, D), for many samples at once.

Chinchilla's optimum has a closed form. Any other law is minimised along ln N: a grid finds the basin, golden section
the neighbourhood, and Newton steps on eighth-order differences the optimum to about 1e-11.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyscaling.laws import Law

Array = NDArray[np.float64]
Parameters = Mapping[str, Any]  # name -> float or array [R]

FLOPS_PER_PARAMETER_TOKEN = 6.0  # C = 6ND


def best_N(law: Law, params: Parameters, compute: float, low: float, high: float) -> Array:
    """N in [low, high] with the least loss at `compute` FLOPs, one for each sample: [R].

    params: name -> [R]. A sample without an optimum inside gets the better end of the range.
    """
    if law.name == "chinchilla":
        N = chinchilla_optimum(params, compute)
        return np.clip(np.where(np.isfinite(N), N, high), low, high)
    return _minimise(law, params, compute, low, high)


def chinchilla_optimum(params: Parameters, compute: float) -> Array:
    """N_opt = G (C/6)^(beta/(alpha+beta)), G = (alpha A / (beta B))^(1/(alpha+beta)) (Hoffmann et al. 2022, eq. 4)."""
    A, B, alpha, beta = (np.asarray(params[name], dtype=np.float64) for name in ("A", "B", "alpha", "beta"))
    with np.errstate(all="ignore"):  # a degenerate sample has no optimum: NaN or infinity
        log_G = np.log(alpha * A / (beta * B)) / (alpha + beta)
        return np.exp(log_G + np.log(compute / FLOPS_PER_PARAMETER_TOKEN) * beta / (alpha + beta))


def loss_at(law: Law, params: Parameters, N: Array, compute: float | Array) -> Array:
    """L(N, C / 6N) with params name -> [R] and N [R, K] (or [1, K]): [R, K]."""
    columns = {name: np.atleast_1d(np.asarray(value, dtype=np.float64))[:, None] for name, value in params.items()}
    D = np.asarray(compute) / (FLOPS_PER_PARAMETER_TOKEN * N)
    return np.asarray(law.evaluate(columns, N=N, D=D), dtype=np.float64)


def region_bounds(
    law: Law, params: Parameters, compute: float, best: float, limit: float, low: float, high: float
) -> tuple[float, float]:
    """Smallest and largest N around `best` whose loss at `compute` stays below `limit`; the range's end if none is."""
    ends = []
    for outer in (low, high):
        x = np.linspace(np.log(best), np.log(outer), 513)
        inside = loss_at(law, params, np.exp(x)[None], compute)[0] <= limit
        inside[0] = True
        if inside.all():
            ends.append(outer)
            continue
        first = int(np.argmin(inside))
        a, b = x[first - 1], x[first]  # inside, outside
        for _ in range(60):
            middle = 0.5 * (a + b)
            within = loss_at(law, params, np.exp([[middle]]), compute)[0, 0] <= limit
            a, b = (middle, b) if within else (a, middle)
        ends.append(float(np.exp(a)))
    return ends[0], ends[1]


_GOLDEN = 0.5 * (np.sqrt(5.0) - 1.0)
_STEP = 0.04
# Eighth-order central differences for f' and f'' at offsets -4..4 (Fornberg 1988, table 1).
_OFFSETS = np.arange(-4, 5)
_FIRST = np.array([1 / 280, -4 / 105, 1 / 5, -4 / 5, 0, 4 / 5, -1 / 5, 4 / 105, -1 / 280]) / _STEP
_SECOND = np.array([-1 / 560, 8 / 315, -1 / 5, 8 / 5, -205 / 72, 8 / 5, -1 / 5, 8 / 315, -1 / 560]) / _STEP**2


def _minimise(law: Law, params: Parameters, compute: float, low: float, high: float) -> Array:
    def f(x: Array) -> Array:
        return loss_at(law, params, np.exp(x), compute)

    grid = np.linspace(np.log(low), np.log(high), max(24, int(2 * np.log(high / low))))
    values = f(grid[None])
    values = np.where(np.isfinite(values), values, np.inf)
    start = values.argmin(axis=1)
    at_end = (start == 0) | (start == len(grid) - 1)
    a, b = grid[np.maximum(start - 1, 0)], grid[np.minimum(start + 1, len(grid) - 1)]  # [R]
    left, right = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
    f_left, f_right = f(left[:, None])[:, 0], f(right[:, None])[:, 0]
    for _ in range(14):
        lower = f_left < f_right
        a, b = np.where(lower, a, left), np.where(lower, right, b)
        new = np.where(lower, b - _GOLDEN * (b - a), a + _GOLDEN * (b - a))
        f_new = f(new[:, None])[:, 0]
        left, right = np.where(lower, new, right), np.where(lower, left, new)
        f_left, f_right = np.where(lower, f_new, f_right), np.where(lower, f_left, f_new)
    x = np.where(f_left < f_right, left, right)
    best = np.minimum(f_left, f_right)
    newton = x.copy()
    for _ in range(4):
        around = f(newton[:, None] + _STEP * _OFFSETS)
        slope, curvature = around @ _FIRST, around @ _SECOND
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(curvature > 0, slope / curvature, 0.0)
        newton = newton - np.clip(np.nan_to_num(step), -0.5, 0.5)
    # A kink or a flat valley can mislead differences: the golden section's point stands unless Newton's is as good.
    refined = f(newton[:, None])[:, 0]
    keep = (refined <= best * (1 + 1e-12)) & (newton > a - 0.5) & (newton < b + 0.5)
    x = np.where(keep & ~at_end, newton, x)
    ends = np.array([np.log(low), np.log(high)])
    f_ends = f(ends[None])
    end = np.where(f_ends[:, 0] < f_ends[:, 1], ends[0], ends[1])
    x = np.where(at_end & (np.nanmin(f_ends, axis=1) <= best), end, x)
    return np.exp(np.clip(x, ends[0], ends[1]))
