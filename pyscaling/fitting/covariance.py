"""Standard errors without resampling: the sandwich of an M-estimator, and what makes its objective a likelihood ratio.

A fit minimises sum w rho(r). With psi = rho', s = E psi'(r) and v = E psi(r)^2, the parameters' covariance is
(v / s^2) (J'WJ)^-1 if all runs have the same noise (Huber 1964); else H^-1 (J'W psi psi' W J) H^-1 with
H = sum w psi'(r) J J' (White 1980; Powell 1991), scores summed by cluster if runs share their noise.
2 (s / v) times a rise of the objective is a chi-square.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from pyscaling.fitting.bootstrap import cluster_numbers
from pyscaling.fitting.problem import Problem

if TYPE_CHECKING:
    from pyscaling.fitting.fit import Fit


def score_moments(fit: "Fit") -> tuple[float, float]:
    """s = E psi'(r) and v = E psi(r)^2 of the fit's objective, v with n - p degrees of freedom."""
    return moments(fit.problem, fit.residuals)


def moments(problem: Problem, residuals: np.ndarray) -> tuple[float, float]:
    """See score_moments."""
    weights = problem.weights / problem.weights.mean()
    if problem.known_noise:
        return 1.0, 1 / float(problem.weights.mean())
    v = float(np.sum(weights * _psi(problem, residuals) ** 2) / max(1, len(weights) - problem.n_free))
    return float(np.mean(weights * _psi_slope(problem, residuals))), v


def covariance(fit: "Fit", cluster: Any, robust: bool) -> np.ndarray:
    """[P, P] in the units of theta, zero for parameters that are not free; NaN along directions that are undetermined."""
    problem = fit.problem
    _, jacobian = problem.value_and_jacobian(fit.theta)
    free = np.flatnonzero(problem.lower < problem.upper)
    J, weights = jacobian[:, free], problem.weights
    if robust or cluster is not None:
        number = cluster_numbers(fit, cluster)
        each = (weights * _psi(problem, fit.residuals))[:, None] * J
        scores = each if cluster is None else np.stack([np.bincount(number, column) for column in each.T], axis=1)
        units = len(scores)
        spread = _inverse(J, weights * _psi_slope(problem, fit.residuals)) @ scores.T
        inside = spread @ spread.T * units / max(1, units - len(free))
    else:
        s, v = score_moments(fit)
        inside = _inverse(J, weights) * (v / s**2 if s > 0 else np.nan) * weights.mean()
    out = np.zeros((len(fit.theta), len(fit.theta)))
    out[np.ix_(free, free)] = inside
    return out


def _inverse(J: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(J' diag(weights) J)^-1, NaN if it is singular to rounding."""
    normal = J.T @ (weights[:, None] * J)
    scale = np.sqrt(np.maximum(np.diag(normal), 1e-300))
    eigenvalue, axes = np.linalg.eigh(normal / np.outer(scale, scale))
    kept = np.where(eigenvalue > 1e-13 * eigenvalue[-1], eigenvalue, np.nan)
    with np.errstate(over="ignore", invalid="ignore"):  # of normals next to zero the inverse has no number
        inverse = (axes / kept) @ axes.T / np.outer(scale, scale)
    return np.where(np.isfinite(inverse), inverse, np.nan)


def _psi_slope(problem: Problem, residuals: np.ndarray) -> np.ndarray:
    """psi'(r) [n] as a central difference over shifts of half an interquartile range times n^-1/5, and delta at least.

    Of a Huber loss with a small delta few residuals lie in the part that bends, and they alone would say little.
    """
    delta = problem.core_delta
    if not np.isfinite(delta):
        return np.where(residuals < 0, problem.penalty, 1.0)
    low, high = np.quantile(residuals, [0.25, 0.75])
    h = max((high - low) / 2 * len(residuals) ** -0.2, delta, 1e-300)
    return (_psi(problem, residuals + h) - _psi(problem, residuals - h)) / (2 * h)


def _psi(problem: Problem, residuals: np.ndarray) -> np.ndarray:
    psi = np.clip(residuals, -problem.core_delta, problem.core_delta)
    return psi if problem.penalty == 1 else np.where(residuals < 0, problem.penalty * psi, psi)
