"""Why a fit should be believed, or not: what an optimiser knows and seldom tells."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pyscaling.fitting.covariance import moments
from pyscaling.fitting.problem import Problem
from pyscaling.fitting.result import html_table
from pyscaling.fitting.sample import LONG, sample_of
from pyscaling.tables import Runs

_ROUNDING = 1e-9
_GAUSSIAN_MEDIAN = 1.4826  # standard deviation of a Gaussian over the median of its size
_SIGMAS = 3.3  # one in a thousand
_GROSS = 10.0  # times the replicates' noise by which a law may miss its runs and still be of use
_OUTLYING = 6.0  # times the robust noise off the law; of 1e8 Gaussian runs one
_NAMED = 5  # rows in a sentence
_SAME = 1e-6  # relative difference of objectives below which two starts found the same minimum


@dataclass(frozen=True)
class Evidence:
    """What speaks for a fit.

    gradient_norm: largest derivative over its natural scale, near zero at a minimum. agreeing: share of starts that
    reach the best minimum. other_minima: objectives of other points where starts converged, relative to the best.
    at_bound, unmoved: parameters at a bound, or still where their start put them. condition_number: of the normalised
    normal matrix. unidentified: directions in which the data leave the parameters undetermined. misfit: what shows
    that the law does not fit: noise that is known, replicates. cautions: what may, and calls for a look at the residuals.
    doubts: what the table itself gives reason to doubt: units, rows that are copies. outliers: row (from 0) -> how many times
    the robust noise it lies above the law (below, if negative).
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
    doubts: tuple[str, ...] = field(default=())
    outliers: dict[int, float] = field(default_factory=dict)

    @property
    def identifiable(self) -> bool:
        return not self.unidentified

    @property
    def concerns(self) -> list[str]:
        """Sentences on what should keep a user from trusting the fit, the worst first; empty if nothing does."""
        found = list(self.doubts)
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

    def _repr_html_(self) -> str:
        rows = [
            ("concerns", "; ".join(self.concerns) or "none"),
            ("cautions", "; ".join(self.cautions) or "none"),
            ("scaled gradient", f"{self.gradient_norm:.1e}"),
            ("starts that agree", f"{self.agreeing:.0%} of {self.n_starts}"),
            ("condition number", f"{self.condition_number:.2g}"),
        ]
        return html_table([("evidence", ""), *rows], align="left")

    def __str__(self) -> str:
        minima = (
            f"; {len(self.other_minima)} other minima, the next {self.other_minima[0]:.3g} times as high"
            if self.other_minima
            else ""
        )
        said = [f"CONCERNS: {'; '.join(self.concerns)}"] if self.concerns else []
        said += [f"caution: {'; '.join(self.cautions)}"] if self.cautions else []
        first = "\n  ".join(said) or "no concerns"
        agreement = f"{self.agreeing:.0%} of {self.n_starts} starts agree{minima}"
        if self.n_starts == 1:
            agreement = "one start, so nothing is known of other minima"
        return (
            f"{first}\n  scaled gradient {self.gradient_norm:.1e}; {agreement}; "
            f"condition number {self.condition_number:.2g}"
        )


def gather(
    problem: Problem,
    starts: np.ndarray,
    solved: dict[str, np.ndarray],
    best: int,
    runs: Runs,
    doubts: Sequence[str] = (),
) -> Evidence:
    """Evidence for the best of the solved starts. doubts: what the table is doubted for already."""
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
        # Of a long table first by a sample: what that determines all runs do.
        candidates = free & ~vanished & [domain.logarithmic for domain in problem.law.parameters.values()]
        if len(problem.y) > LONG:
            sample = sample_of(problem)
            flat = _plateaus(sample, theta, candidates, float(sample.solve(theta)["value"][0]))
            candidates &= [name in flat for name in problem.law.names]
        plateaus = (name for name in _plateaus(problem, theta, candidates, lowest) if name not in unidentified)
        unidentified = (*unidentified, *plateaus)
    residuals = problem.y - problem.value_and_jacobian(theta)[0]
    outliers = {} if lowest <= exact else _outliers(problem, theta, residuals)
    stand = runs.rows
    aside = [_without(problem, theta, starts, outliers, stand, runs.source)] if outliers else []
    copies = _copies(problem, runs, stand)
    still = (
        [f"{problem.law.response} is the same in all runs"]
        if np.ptp(problem.y) <= 1e-12 * np.abs(problem.y).max()
        else []
    )
    table = [*doubts, *still, *copies]
    misfit, amiss = _misfit(problem, residuals, bool(copies))
    if problem.objective == "gaussian" and (unidentified or vanished.any()):  # they spoil least squares, others not
        table, aside = table + aside, []
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
        cautions=(*aside, *amiss, *_cautions(problem, theta)) if lowest > exact else (),
        doubts=tuple(table),
        outliers={int(stand[row]): size for row, size in outliers.items()},
    )


def replicate_noise(problem: Problem) -> tuple[float, int] | None:
    """Standard deviation of runs that differ in nothing the law knows, and its degrees of freedom; None without any."""
    w, y = problem.weights, problem.y
    group, count = _groups([problem.variables[name] for name in problem.law.variables])
    degrees = len(y) - count
    if not degrees:
        return None
    mean = np.bincount(group, w * y) / np.bincount(group, w)
    return float(np.sqrt(np.sum(w * (y - mean[group]) ** 2) / np.sum(w) * len(y) / degrees)), degrees


def _groups(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, int]:
    """Numbers [n] of rows that are equal in all columns, and how many differ."""
    if all(column.dtype == np.float64 for column in columns):  # a hash tells at once that all do
        mixed = np.zeros(len(columns[0]), dtype=np.uint64)
        for column in columns:
            mixed = (mixed ^ (column + 0.0).view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        mixed.sort()
        if np.all(mixed[1:] != mixed[:-1]):
            return np.arange(len(mixed)), len(mixed)
    group, count = np.zeros(len(columns[0]), dtype=np.int64), 1
    for column in columns:
        values, number = np.unique(column, return_inverse=True)
        _, group = np.unique(group * len(values) + number.ravel(), return_inverse=True)
        group = group.ravel()
        count = int(group.max()) + 1
        if count == len(group):
            break
    return group, count


def _copies(problem: Problem, runs: Runs, stand: np.ndarray) -> list[str]:
    """Rows that repeat another in every column of the table: seeds that agree to all digits are one run, entered twice."""
    if _groups([*(problem.variables[name] for name in problem.law.variables), problem.y])[1] == len(problem.y):
        return []
    columns = [column.astype(str) if column.dtype == object else column for column in runs.to_dict().values()]
    group, count = _groups(columns)
    if count == len(group):
        return []
    first = np.full(count, len(group))
    np.minimum.at(first, group, np.arange(len(group)))
    again = np.flatnonzero(first[group] < np.arange(len(group)))
    pairs = ", ".join(f"{stand[row] + 1} of {stand[first[group[row]]] + 1}" for row in again[:_NAMED])
    said = f"{len(again)} runs are copies of others" if len(again) > 1 else "a run is a copy of another"
    return [f"{said}, row {pairs}{', ...' if len(again) > _NAMED else ''}, which makes intervals too narrow"]


def _outliers(problem: Problem, theta: np.ndarray, residuals: np.ndarray) -> dict[int, float]:
    """row -> residual over the noise that most runs show (median of absolute deviations), where it is beyond _OUTLYING."""
    if problem.penalty != 1 or problem.n_runs < 3 * problem.n_free or problem.n_runs - problem.n_free < 3:
        return {}

    freedom = math.sqrt(problem.n_runs / (problem.n_runs - problem.n_free))

    def over_noise(weighted: np.ndarray, least: float) -> np.ndarray:
        return weighted / max(_GAUSSIAN_MEDIAN * float(np.median(np.abs(weighted))) * freedom, least)

    def sizes(residuals: np.ndarray) -> np.ndarray:
        root = np.sqrt(problem.weights)
        plain = over_noise(residuals * root, _ROUNDING * problem.spread * float(np.median(root)))
        if problem.residual == "log":
            return plain
        # Noise may grow with the response, of which the largest are then not outliers.
        share = over_noise(residuals / np.maximum(np.abs(problem.y - residuals), 1e-300), _ROUNDING)
        return np.where(np.abs(share) < np.abs(plain), share, plain)

    found = sizes(residuals)
    if problem.objective == "gaussian" and np.abs(found).max() > 4:
        # Least squares are drawn towards what they should not heed: an absolute loss tells who lies off.
        robust = replace(problem, objective="lad")
        solved = robust.solve(theta)
        if int(solved["status"][0]) != 3:
            found = sizes(problem.y - problem.value_and_jacobian(solved["theta"][0])[0])
    rows = np.flatnonzero(np.abs(found) > _OUTLYING)
    return {int(row): float(found[row]) for row in rows[np.argsort(-np.abs(found[rows]), kind="stable")]}


def _without(
    problem: Problem, theta: np.ndarray, starts: np.ndarray, outliers: dict[int, float], stand: np.ndarray, source: str
) -> str:
    """What the outliers are, and what the fit is without them."""
    rows = sorted(list(outliers)[:_NAMED])
    listed = " and ".join(filter(None, [", ".join(str(stand[row] + 1) for row in rows[:-1]), str(stand[rows[-1]] + 1)]))
    more = f" and {len(outliers) - _NAMED} more" if len(outliers) > _NAMED else ""
    sizes = [abs(size) for size in outliers.values()]
    size = f"{min(sizes):,.0f}" if max(sizes) < 1.2 * min(sizes) else f"{min(sizes):,.0f} to {max(sizes):,.0f}"
    said = f"row{'s' * (len(rows) > 1)} {listed}{more} of {source} lie{'s' * (len(rows) == 1)} {size} times the noise off the law"
    kept = np.setdiff1d(np.arange(len(problem.y)), list(outliers))
    if len(kept) <= problem.n_free:
        return said
    rest = problem.select(kept)
    # A robust fit is near already; least squares may have been drawn far away.
    solved = rest.solve(np.concatenate([theta[None], starts[: 7 if problem.objective == "gaussian" else 0]]))
    value = np.where(np.isfinite(solved["value"]) & (solved["status"] != 3), solved["value"], np.inf)
    params = problem.to_params(solved["theta"][int(np.argmin(value))])
    refitted = ", ".join(f"{name} = {x:.4g}" for name, x in zip(problem.law.names, params, strict=True))
    return f"{said}; without {'them' if len(rows) > 1 else 'it'} {refitted}"


def _misfit(problem: Problem, residuals: np.ndarray, copied: bool) -> tuple[list[str], list[str]]:
    """What the noise, known or of replicates, says of the residuals: what condemns the law, and what calls for care.

    Seeds repeat to a tenth of a per cent, and no law holds to that; by how much it is missed is within its intervals.
    """
    found: list[str] = []
    doubts: list[str] = []
    degrees = max(1, problem.n_runs - problem.n_free)
    squares = float(np.sum(problem.weights * residuals**2))
    if problem.known_noise and squares / degrees > 1 + _SIGMAS * math.sqrt(2 / degrees):
        found.append(f"residuals are {math.sqrt(squares / degrees):.3g} times the noise that was given")
    replicates = replicate_noise(problem) if problem.penalty == 1 else None  # else it is to lie below their mean
    if replicates is not None:
        noise, of_noise = replicates
        if noise <= 1e-12 * np.abs(problem.y).max():
            if not copied:
                found.append(f"{of_noise} runs repeat others to the last digit, as copies do and seeds do not")
        elif of_noise >= 4 and degrees > of_noise:
            # Fisher's z of the F test of lack of fit.
            rest = squares * problem.n_runs / float(np.sum(problem.weights)) - of_noise * noise**2
            ratio = max(rest, 0.0) / (degrees - of_noise) / noise**2
            if ratio > 2 and math.log(ratio) > _SIGMAS * math.sqrt(2 / of_noise + 2 / (degrees - of_noise)):
                missed = f"the law misses the runs by {math.sqrt(ratio):.3g} times the noise of their replicates"
                (found if ratio > _GROSS**2 else doubts).append(missed)
    return found, doubts


def _cautions(problem: Problem, theta: np.ndarray) -> tuple[str, ...]:
    """Too few runs to tell, and residuals whose signs follow a variable (runs test, Wald & Wolfowitz 1940)."""
    found = []
    if (degrees := problem.n_runs - problem.n_free) < 3:
        found.append(f"only {degrees} more runs than parameters, too few to tell whether the law fits")
    names = [name for name in problem.law.variables if name not in problem.law.indicators.values()]
    problem = sample_of(problem) if len(problem.y) > LONG else problem
    residuals = problem.y - problem.value_and_jacobian(theta)[0]
    for name in names:
        columns = [problem.variables[other] for other in names if other != name]
        order = np.lexsort([*columns, problem.variables[name]])
        sign = residuals[order] > 0
        above, below = np.count_nonzero(sign), np.count_nonzero(~sign)
        expected = 1 + 2 * above * below / len(sign)
        deviation = math.sqrt(max((expected - 1) * (expected - 2) / max(1, len(sign) - 1), 1e-300))
        changes = 1 + np.count_nonzero(sign[1:] != sign[:-1])
        if min(above, below) >= 5 and changes < expected - _SIGMAS * deviation:
            found.append(f"residuals follow {name}: the law misses a trend, or runs share their noise (cluster=)")
            break
    return tuple(found)


def _plateaus(problem: Problem, theta: np.ndarray, candidates: np.ndarray, lowest: float) -> list[str]:
    """Positive parameters that may be ten times larger and smaller, the others refitted, within a 95 % likelihood ratio.

    A curvature at the minimum cannot tell: it is sharp where the kink of an absolute value happens to lie. Nor can the
    objective's height, which runs that are far off may make up.
    """
    found: list[str] = []
    if not candidates.any():
        return found
    s, v = moments(problem, problem.y - problem.value_and_jacobian(theta)[0])
    if not s > 0:
        return found
    limit = lowest + 3.84 / 2 * v / s * problem.weights.mean()
    for j in np.flatnonzero(candidates):

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
    gram = (jacobian.T * problem.weights) @ jacobian
    size = np.sqrt(np.diag(gram))
    # A logarithm that ran off: its term no longer moves the law at all.
    effect = size * np.where(
        [p.logarithmic for p in problem.law.parameters.values()], 1.0, np.maximum(np.abs(theta), 1.0)
    )
    vanished = free & (effect < 1e-9 * np.sqrt(problem.weights.sum()) * problem.spread)
    kept = np.flatnonzero(free & ~vanished)
    if not len(kept):
        return np.inf, (), vanished
    names = problem.law.names
    normal = gram[np.ix_(kept, kept)] / np.outer(size[kept], size[kept])
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
