"""Why a fit should be believed, or not: what an optimiser knows and seldom tells."""

import math
from dataclasses import dataclass, field

import numpy as np

from pyscaling.fitting.problem import Problem

_ROUNDING = 1e-9
_GAUSSIAN_MEDIAN = 1.4826  # standard deviation of a Gaussian over the median of its size
_SIGMAS = 3.3  # one in a thousand
_GROSS = 10.0  # times the replicates' noise by which a law may miss its runs and still be of use
_SAME = 1e-6  # relative difference of objectives below which two starts found the same minimum


@dataclass(frozen=True)
class Evidence:
    """What speaks for a fit.

    gradient_norm: largest derivative over its natural scale, near zero at a minimum. agreeing: share of starts that
    reach the best minimum. other_minima: objectives of other points where starts converged, relative to the best.
    at_bound, unmoved: parameters at a bound, or still where their start put them. condition_number: of the normalised
    normal matrix. unidentified: directions in which the data leave the parameters undetermined. misfit: what shows
    that the law does not fit: noise that is known, replicates. cautions: what may, and calls for a look at the residuals.
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
    misfit: tuple[str, ...] = field(default=())
    cautions: tuple[str, ...] = field(default=())

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
        found.extend(self.misfit)
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
        first = "no concerns" if self.trustworthy else f"CONCERNS: {'; '.join(self.concerns)}"
        if self.cautions:
            first += f"\n  caution: {'; '.join(self.cautions)}"
        agreement = f"{self.agreeing:.0%} of {self.n_starts} starts agree{minima}"
        if self.n_starts == 1:
            agreement = "one start, so nothing is known of other minima"
        return (
            f"{first}\n  scaled gradient {self.gradient_norm:.1e}; {agreement}; "
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
    residuals = problem.y - problem.value_and_jacobian(theta)[0]
    misfit, doubts = _misfit(problem, residuals)
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
        misfit=tuple(misfit) if lowest > exact else (),
        cautions=(*doubts, *_cautions(problem, residuals)) if lowest > exact else (),
    )


def replicate_noise(problem: Problem) -> tuple[float, int] | None:
    """Standard deviation of runs that differ in nothing the law knows, and its degrees of freedom; None without any."""
    counted = problem.weights > 0
    w, y = problem.weights[counted], problem.y[counted]
    _, group, count = np.unique(
        np.stack([problem.variables[name][counted] for name in problem.law.variables]),
        axis=1,
        return_inverse=True,
        return_counts=True,
    )
    degrees = len(y) - len(count)
    if not degrees:
        return None
    mean = np.bincount(group, w * y) / np.bincount(group, w)
    return float(np.sqrt(np.sum(w * (y - mean[group]) ** 2) / np.sum(w) * len(y) / degrees)), degrees


def _misfit(problem: Problem, residuals: np.ndarray) -> tuple[list[str], list[str]]:
    """What the noise, known or of replicates, says of the residuals: what condemns the law, and what calls for care.

    Seeds repeat to a tenth of a per cent, and no law holds to that; by how much it is missed is within its intervals.
    """
    found: list[str] = []
    doubts: list[str] = []
    degrees = max(1, problem.n_runs - problem.n_free)
    squares = float(np.sum(problem.weights * residuals**2))
    if problem.known_noise and squares / degrees > 1 + _SIGMAS * math.sqrt(2 / degrees):
        found.append(f"residuals are {math.sqrt(squares / degrees):.3g} times the noise that was given")
    replicates = replicate_noise(problem)
    if replicates is not None:
        noise, of_noise = replicates
        if noise <= 1e-12 * np.abs(problem.y).max():
            found.append(f"{of_noise} runs are copies of others, which makes intervals too narrow")
        elif of_noise >= 4 and degrees > of_noise:
            # Fisher's z of the F test of lack of fit.
            rest = squares * problem.n_runs / float(np.sum(problem.weights)) - of_noise * noise**2
            ratio = max(rest, 0.0) / (degrees - of_noise) / noise**2
            if ratio > 2 and math.log(ratio) > _SIGMAS * math.sqrt(2 / of_noise + 2 / (degrees - of_noise)):
                missed = f"the law misses the runs by {math.sqrt(ratio):.3g} times the noise of their replicates"
                (found if ratio > _GROSS**2 else doubts).append(missed)
    return found, doubts


def _cautions(problem: Problem, residuals: np.ndarray) -> tuple[str, ...]:
    """Too few runs to tell, and residuals whose signs follow a variable (runs test, Wald & Wolfowitz 1940)."""
    found = []
    if (degrees := problem.n_runs - problem.n_free) < 3:
        found.append(f"only {degrees} more runs than parameters, too few to tell whether the law fits")
    counted = problem.weights > 0
    names = [name for name in problem.law.variables if name not in problem.law.indicators.values()]
    for name in names:
        columns = [problem.variables[other][counted] for other in names if other != name]
        order = np.lexsort([*columns, problem.variables[name][counted]])
        sign = residuals[counted][order] > 0
        above, below = np.count_nonzero(sign), np.count_nonzero(~sign)
        expected = 1 + 2 * above * below / len(sign)
        deviation = math.sqrt(max((expected - 1) * (expected - 2) / max(1, len(sign) - 1), 1e-300))
        changes = 1 + np.count_nonzero(sign[1:] != sign[:-1])
        if min(above, below) >= 5 and changes < expected - _SIGMAS * deviation:
            found.append(f"residuals follow {name}: the law misses a trend, or runs share their noise (cluster=)")
            break
    return tuple(found)


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
    effect = size * np.where(
        [p.logarithmic for p in problem.law.parameters.values()], 1.0, np.maximum(np.abs(theta), 1.0)
    )
    vanished = free & (effect < 1e-9 * np.sqrt(problem.weights.sum()) * problem.spread)
    kept = np.flatnonzero(free & ~vanished)
    if not len(kept):
        return np.inf, (), vanished
    names = problem.law.names
    normal = (jacobian[:, kept] / size[kept]).T @ (jacobian[:, kept] / size[kept])
    eigenvalue, vector = np.linalg.eigh(normal)
    smallest = max(float(eigenvalue[0]), 0.0)
    residual = (value - problem.y) * np.sqrt(problem.weights)
    noise = np.sqrt(np.sum(residual**2) / max(1, len(residual) - len(kept)))
    if problem.objective != "gaussian":  # what a robust objective does not heed does not count here
        noise = min(
            noise,
            _GAUSSIAN_MEDIAN * np.median(np.abs(residual)) * np.sqrt(len(residual) / max(1, len(residual) - len(kept))),
        )
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
