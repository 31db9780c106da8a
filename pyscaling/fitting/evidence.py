"""Why a fit should be believed, or not: what an optimiser knows and seldom tells."""

import math
from dataclasses import dataclass, field

import numpy as np

from pyscaling.fitting.problem import Problem

_ROUNDING = 1e-9
_SAME = 1e-6  # relative difference of objectives below which two starts found the same minimum


@dataclass(frozen=True)
class Evidence:
    """What speaks for a fit.

    gradient_norm: largest derivative over its natural scale, near zero at a minimum. agreeing: share of starts that
    reach the best minimum. other_minima: objectives of other points where starts converged, relative to the best.
    at_bound, unmoved: parameters at a bound, or still where their start put them. condition_number: of the normalised
    normal matrix. unidentified: directions in which the data leave the parameters undetermined.
    """

    converged: bool
    gradient_norm: float
    n_starts: int
    agreeing: float
    other_minima: tuple[float, ...]
    at_bound: tuple[str, ...]
    unmoved: tuple[str, ...]
    condition_number: float
    unidentified: tuple[str, ...] = field(default=())

    @property
    def identifiable(self) -> bool:
        return not self.unidentified

    @property
    def concerns(self) -> list[str]:
        """Sentences on what should keep a user from trusting the fit; empty if nothing does."""
        found = []
        if not self.converged:
            found.append("the optimiser stopped before a minimum")
        if self.unmoved:
            found.append(f"{', '.join(self.unmoved)} never left the start")
        if self.at_bound:
            found.append(f"{', '.join(self.at_bound)} ended at a bound or vanished")
        if self.unidentified:
            found.append(f"the data do not determine {'; '.join(self.unidentified)}")
        if self.n_starts >= 8 and self.agreeing * self.n_starts < 2:
            found.append("only one start reached this minimum; a better one may exist")
        return found

    @property
    def trustworthy(self) -> bool:
        return not self.concerns

    def __str__(self) -> str:
        minima = (
            f"; {len(self.other_minima)} other minima, the next {self.other_minima[0]:.3g} times as high"
            if self.other_minima
            else ""
        )
        return (
            f"{'no concerns' if self.trustworthy else 'CONCERNS: ' + '; '.join(self.concerns)}\n"
            f"  scaled gradient {self.gradient_norm:.1e}; {self.agreeing:.0%} of {self.n_starts} starts agree{minima}; "
            f"condition number {self.condition_number:.2g}"
        )


def gather(problem: Problem, starts: np.ndarray, solved: dict[str, np.ndarray], best: int) -> Evidence:
    """Evidence for the best of the solved starts."""
    theta, value = solved["theta"][best], solved["value"]
    lowest = float(value[best])
    # Residuals of a billionth and less are rounding: a fit that exact is at its minimum, whatever its gradient says.
    exact = 0.5 * (_ROUNDING * problem.spread) ** 2 * problem.weights.sum()
    finite = np.isfinite(value) & (solved["status"] != 3)
    same = finite & (value <= max(lowest * (1 + _SAME), exact))
    settled = value[finite & ~same & (solved["status"] == 0) & (value < 10 * lowest)] / (lowest or 1.0)
    others = np.unique(np.round(settled, 6))
    names = np.array(problem.law.names)
    free = problem.lower < problem.upper
    moved = np.abs(solved["theta"][same] - starts[same]) > 1e-9 * (1 + np.abs(starts[same]))
    unmoved = free & ~moved.any(axis=0)
    condition, unidentified, vanished = _identifiability(problem, theta, free)
    if exact < lowest < np.inf:
        plateaus = (name for name in _plateaus(problem, theta, lowest, free & ~vanished) if name not in unidentified)
        unidentified = (*unidentified, *plateaus)
    at_bound = (free & ((theta <= problem.lower) | (theta >= problem.upper))) | vanished
    return Evidence(
        converged=int(solved["status"][best]) == 0 or lowest <= exact,
        gradient_norm=float(solved["gradient"][best]) if lowest > exact else 0.0,
        n_starts=len(value),
        agreeing=float(np.mean(same)),
        other_minima=tuple(float(v) for v in others[:10]),
        at_bound=tuple(names[at_bound]),
        unmoved=tuple(names[unmoved & ~at_bound]) if lowest > exact else (),
        condition_number=condition,
        unidentified=unidentified,
    )


def _plateaus(problem: Problem, theta: np.ndarray, lowest: float, free: np.ndarray) -> list[str]:
    """Positive parameters that may be ten times larger and smaller, the others refitted, within a 95 % likelihood ratio.

    A curvature at the minimum cannot tell: it is sharp where the kink of an absolute value happens to lie.
    """
    found = []
    limit = lowest * math.exp(3.84 / np.count_nonzero(problem.weights))
    for j in np.flatnonzero(free & [domain.logarithmic for domain in problem.law.parameters.values()]):

        def stays_low(step: float, j: int = int(j)) -> bool:
            moved = theta.copy()
            moved[j] += step
            held = problem.holding(j, moved[j]).solve(moved)
            return int(held["status"][0]) == 0 and float(held["value"][0]) < limit

        if stays_low(-math.log(10)) and stays_low(math.log(10)):
            found.append(problem.law.names[j])
    return found


def _identifiability(
    problem: Problem, theta: np.ndarray, free: np.ndarray
) -> tuple[float, tuple[str, ...], np.ndarray]:
    """Condition number, directions that are not determined, and parameters without any effect left."""
    value, jacobian = problem.value_and_jacobian(theta)
    jacobian = jacobian * np.sqrt(problem.weights)[:, None]
    size = np.linalg.norm(jacobian, axis=0)
    # A logarithm that ran off: its term no longer moves the law at all.
    vanished = free & (size < 1e-9 * np.sqrt(problem.weights.sum()) * problem.spread)
    kept = np.flatnonzero(free & ~vanished)
    if not len(kept):
        return np.inf, (), vanished
    names = problem.law.names
    normal = (jacobian[:, kept] / size[kept]).T @ (jacobian[:, kept] / size[kept])
    eigenvalue, vector = np.linalg.eigh(normal)
    smallest = max(float(eigenvalue[0]), 0.0)
    residual = (value - problem.y) * np.sqrt(problem.weights)
    noise = np.sqrt(np.sum(residual**2) / max(1, len(residual) - len(kept)))
    lost = []
    for root, direction in zip(eigenvalue, vector.T, strict=True):
        # One standard error along this direction, in units of theta: an e-fold or an exponent of one tells nothing.
        error = noise / np.sqrt(max(root, 1e-300)) * np.abs(direction) / size[kept]
        logarithmic = np.array([problem.law.parameters[names[k]].logarithmic for k in kept])
        limit = np.where(logarithmic, 3.0, np.maximum(np.abs(theta[kept]), 0.1))
        if root < 1e-10 * eigenvalue[-1] or np.any(error > limit):
            involved = [names[k] for k, share in zip(kept, np.abs(direction), strict=True) if share > 0.3]
            lost.append(" with ".join(involved) or names[kept[int(np.argmax(np.abs(direction)))]])
    return float(eigenvalue[-1] / smallest) if smallest > 0 else np.inf, tuple(dict.fromkeys(lost)), vanished
