"""The bootstrap of a fit: every resample refitted, thousands a second."""

from collections.abc import Callable, Mapping
from operator import itemgetter
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from pyscaling.fitting.fit import Fit

MANY = 20_000  # runs; of more, a thousand refits take many seconds, and none is made without being asked for
_VANISHED = 1e-150
_AT_ONCE = 1 << 22  # responses held in memory
Resample = Literal["pairs", "residuals", "wild"]
Method = Literal["t", "percentile", "bc"]
Quantity = str | Callable[[Mapping[str, np.ndarray]], np.ndarray]


class Bootstrap:
    """Resampled fits.

    samples: [R, P], columns in the order of `names`, in the parameters' own units. estimate: name -> fitted value.
    objective_values: [R]. converged: [R], whether each resample reached its minimum. degrees: of freedom, units that
    were resampled less free parameters. fit: what was resampled, which knows the parameters' domains.
    """

    def __init__(
        self,
        estimate: Mapping[str, float],
        samples: np.ndarray,
        objective_values: np.ndarray,
        converged: np.ndarray,
        degrees: int,
        fit: "Fit | None" = None,
    ) -> None:
        self._fit = fit
        self.estimate, self.names, self.samples = dict(estimate), list(estimate), samples
        self.objective_values, self.converged, self.degrees = objective_values, converged, degrees

    @property
    def params(self) -> dict[str, np.ndarray]:
        """name -> [R]."""
        return dict(zip(self.names, self.samples.T, strict=True))

    def interval(self, quantity: Quantity, level: float = 0.9, method: Method = "t") -> tuple[float, float]:
        """Interval of a parameter, or of a function of the parameters (called with their values, then with samples [R]).

        method: "t", estimate -+ t x standard error, on a logarithmic scale where every sample is positive; the standard
        error is half the central 68.3 % of the samples, t has `degrees` degrees of freedom, and an end is never negative
        where no sample is. It covers about what it says in the simulations of bench/coverage.py, where "percentile" (what
        most published intervals are) covers too much, and "bc", bias-corrected percentiles (Efron 1987), too little with few
        clusters. Prefer "percentile" where samples pile up at a bound: the two methods then differ.
        A parameter's stays within its bounds, and a floor's below the lowest loss; of one that ended at a bound or vanished it
        is one-sided, by its profile (see `profile.one_sided`).
        Raises ValueError for an unknown parameter, level or method.
        """
        check_level(level)
        name = quantity if isinstance(quantity, str) and method == "t" and self._fit is not None else None
        centre, values = self._values(quantity)
        if name is not None and self._fit is not None:
            if name in self._fit.evidence.at_bound and len(self._fit.runs) <= MANY:
                from pyscaling.fitting.profile import one_sided

                return one_sided(self._fit, name, level)
            domain = self._fit.law.parameters[name]
            # A term that vanished in some resamples has a coefficient that a logarithm cannot take: from zero, then.
            gone = domain.logarithmic and np.mean(values < _VANISHED) > (1 - level) / 2
            way: Method = "percentile" if gone else method
            low, high = interval_of(centre, values, level, way, self.degrees, domain.role == "floor")
            return self._fit.within_domain(name, 0.0 if gone else float(low), float(high))
        low, high = interval_of(centre, values, level, method, self.degrees)
        return (float(low), float(high)) if np.ndim(low) == 0 else (low, high)  # type: ignore[return-value]

    def standard_error(self, quantity: Quantity) -> float:
        """Standard deviation of a parameter, or of a function of the parameters as in `interval`, over the samples."""
        error = np.std(self._values(quantity)[1], axis=0, ddof=1)
        return float(error) if np.ndim(error) == 0 else error

    def _values(self, quantity: Quantity) -> tuple[np.ndarray, np.ndarray]:
        """A quantity at the estimate [...] and at the samples [R, ...]."""
        if not (isinstance(quantity, str) or callable(quantity)):
            raise ValueError(f"quantity must be a parameter's name or a function of the parameters, got {quantity!r}.")
        function = itemgetter(quantity) if isinstance(quantity, str) else quantity
        return np.asarray(function(_Parameters(self.estimate))), np.asarray(function(_Parameters(self.params)))

    def to_frame(self) -> Any:
        import pandas as pd

        return pd.DataFrame({**self.params, "objective": self.objective_values})

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        rows = [f"Bootstrap of {len(self)} resamples, 90 % intervals"]
        for name in self.names:
            low, high = self.interval(name)
            rows.append(f"  {name:>8} {low:.5g} .. {high:.5g}")
        return "\n".join(rows)


class _Parameters(dict[str, Any]):
    """name -> value, or samples; what a function of the parameters is called with."""

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{name!r} is not a parameter; those are {', '.join(self)}.")


def bootstrap(fit: "Fit", n: int, cluster: Any, seed: int, starts: int, resample: Resample) -> Bootstrap:
    """See Fit.bootstrap."""
    if n < 2:
        raise ValueError(f"n must be at least 2 resamples, got {n}; 1,000 or more make a steady interval.")
    if starts < 1:
        raise ValueError(f"starts must be at least 1, got {starts}; each resample is refitted from so many points.")
    if resample not in Resample.__args__:  # type: ignore[attr-defined]
        raise ValueError(f"resample={resample!r} is unknown; known are {', '.join(Resample.__args__)}.")  # type: ignore[attr-defined]
    number = cluster_numbers(fit, cluster)
    if resample == "pairs":
        solved = fit.problem.solve(fit.restarts(starts), n_resample=n, cluster=number, seed=seed)
    else:
        if resample == "residuals" and cluster is not None:
            raise ValueError('resample="residuals" takes runs to be independent; with cluster use "pairs" or "wild".')
        generator, restarts = np.random.default_rng(seed), fit.restarts(starts)
        share = max(1, _AT_ONCE // len(number))
        parts = [
            fit.problem.solve(restarts, n_resample=count, responses=_responses(fit, count, number, generator, resample))
            for count in [min(share, n - first) for first in range(0, n, share)]
        ]
        solved = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Bootstrap(
        fit.params,
        fit.problem.to_params(solved["theta"]),
        solved["value"] * fit.problem.objective_scale(),
        solved["status"] == 0,
        max(1, int(number.max()) + 1 - fit.problem.n_free),
        fit,
    )


def cluster_numbers(fit: "Fit", cluster: Any) -> np.ndarray:
    """[n], numbered from 0."""
    count = len(fit.runs)
    if cluster is None:
        return np.arange(count, dtype=np.int64)
    _, number = np.unique(fit.labels(cluster, "cluster"), return_inverse=True)
    if number.max() < 1:
        raise ValueError("cluster puts every run into one cluster; a bootstrap needs at least two.")
    return number.astype(np.int64)


def _responses(
    fit: "Fit", n: int, number: np.ndarray, generator: np.random.Generator, resample: Resample
) -> np.ndarray:
    """Fitted values plus residuals drawn anew, [n, runs]: any run's, or a run's own with one random sign a cluster."""
    if resample == "residuals":
        drawn = generator.choice(inflated_residuals(fit), size=(n, len(fit.runs)))
    else:
        drawn = fit.residuals * _inflation(fit) * generator.choice([-1.0, 1.0], size=(n, number.max() + 1))[:, number]
    return fit.problem.y - fit.residuals + drawn


def inflated_residuals(fit: "Fit") -> np.ndarray:
    """Residuals of the size of the noise."""
    return fit.residuals * _inflation(fit)


def _inflation(fit: "Fit") -> float:
    """A fit of p parameters to n runs leaves sqrt((n - p) / n) of the noise as residuals."""
    count = fit.problem.n_runs
    return float(np.sqrt(count / (count - fit.problem.n_free)))


def interval_of(
    centre: np.ndarray, values: np.ndarray, level: float, method: Method, degrees: int, plain: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Ends [...] of the interval of an estimate [...] with samples [R, ...]; see Bootstrap.interval. plain: no logarithm."""
    tail = (1 - level) / 2
    finite = np.where(np.isfinite(values), values, np.nan)
    if not np.isfinite(finite).any(axis=0).all():
        return np.full(np.shape(centre), np.nan), np.full(np.shape(centre), np.nan)
    if method == "percentile":
        low, high = np.nanquantile(finite, [tail, 1 - tail], axis=0)
        return low, high
    if method == "bc":
        return _bias_corrected(centre, finite, tail)
    if method != "t":
        raise ValueError(f'method={method!r} is unknown; known are "t", "percentile" and "bc".')
    logarithmic = np.logical_and(centre > 0, np.nanmin(finite, axis=0) > 0) & (not plain)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(logarithmic, np.log(finite), finite)
        middle = np.where(logarithmic, np.log(centre), centre)
    reach = student_t(1 - tail, degrees) * central_error(scaled)
    low, high = middle - reach, middle + reach
    if np.all(np.nanmin(finite, axis=0) >= 0):
        low = np.where(logarithmic, low, np.maximum(low, 0.0))  # what is never negative has no negative end
    largest = np.log(np.finfo(np.float64).max)
    return tuple(np.where(logarithmic, np.exp(np.minimum(end, largest)), end) for end in (low, high))  # type: ignore[return-value]


def central_error(values: np.ndarray) -> np.ndarray:
    """Standard error [...] of samples [R, ...]: half of their central 68.3 %, which a few wild refits do not move."""
    low, high = np.nanquantile(values, [0.158655, 0.841345], axis=0)
    return (high - low) / 2


def _bias_corrected(centre: np.ndarray, values: np.ndarray, tail: float) -> tuple[np.ndarray, np.ndarray]:
    normal = NormalDist()
    flat = values.reshape(len(values), -1)
    ends = []
    for column, value in zip(flat.T, np.ravel(centre), strict=True):
        below = np.mean(column < value) + 0.5 * np.mean(column == value)
        shift = 2 * normal.inv_cdf(float(np.clip(below, 0.5 / len(column), 1 - 0.5 / len(column))))
        ends.append(np.nanquantile(column, [normal.cdf(shift + normal.inv_cdf(q)) for q in (tail, 1 - tail)]))
    low, high = np.array(ends).T.reshape(2, *np.shape(centre))
    return low, high


def student_t(probability: float, degrees: float) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit  # a third of a second, which a fit without intervals need not wait

    return float(stdtrit(degrees, probability))


def check_level(level: float) -> None:
    if not (isinstance(level, int | float | np.number) and 0 < level < 1):
        raise ValueError(f"level must lie between 0 and 1, got {level}; 0.9 means a 90 % interval.")
