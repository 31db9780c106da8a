"""One law, one table and one objective, as the arrays that the C++ core takes.

theta is the core's vector: logarithms of positive coefficients, exponents as they are (see laws.Parameter).
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np

from pyscaling._core import fit_batch, jacobian
from pyscaling.cores import available_cores
from pyscaling.fitting.tape import CompiledLaw, compile_law
from pyscaling.laws import POSITIVE_VARIABLES, Law, Parameter
from pyscaling.tables import Runs

Objective = Literal["huber", "lad", "gaussian"]
Residual = Literal["log", "raw"]
# Least absolute deviations are a Huber loss of a delta this share of the data's spread: the published estimates come
# out to six digits, and a smaller one loses digits to rounding.
_LAD_DELTA = 1e-9
# A positive coefficient that runs off is stopped, and reported at a bound, before it leaves the range of a double.
LEAST_LOG, LARGEST_LOG = math.log(sys.float_info.min), math.log(sys.float_info.max)


_cores = cache(available_cores)  # read from files, which a fit of milliseconds need not do again


@dataclass(frozen=True)
class Problem:
    """law, variables (name -> [n]), y [n] in the residual's units, weights [n], bounds [P] in theta, delta."""

    law: Law
    variables: dict[str, np.ndarray]
    y: np.ndarray
    weights: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    objective: Objective
    delta: float
    residual: Residual
    threads: int
    units: tuple[float, ...]  # of theta, [P], powers of two: what is not a logarithm is of order one there
    penalty: float = 1.0  # on the objective of runs that the law lies above
    known_noise: bool = False  # weights are 1 / noise^2, and residuals are not asked how large it is

    def __getstate__(self) -> dict[str, Any]:
        return {
            field.name: getattr(self, field.name) for field in fields(self)
        }  # not the tape, which is compiled again

    @cached_property
    def compiled(self) -> CompiledLaw:
        signed = frozenset(name for name, x in self.variables.items() if x.min() < 0)
        return compile_law(self.law, self.residual == "log", self.units, signed)

    @cached_property
    def columns(self) -> np.ndarray:
        return self.compiled.columns(self.variables)

    @property
    def n_runs(self) -> int:
        """Runs that count: those of a positive weight."""
        return int(np.count_nonzero(self.weights))

    @property
    def n_free(self) -> int:
        return int(np.sum(self.lower < self.upper))

    @cached_property
    def spread(self) -> float:
        """Size of a bad start's residual, where the shrinking of delta begins: 1 in log loss."""
        return 1.0 if self.residual == "log" else float(np.mean(np.abs(self.y)))

    @property
    def core_delta(self) -> float:
        return {"huber": self.delta, "lad": _LAD_DELTA * self.spread, "gaussian": math.inf}[self.objective]

    def objective_scale(self) -> float:
        """What the core's objective is multiplied by to give the one reported (absolute deviations are rho / delta)."""
        return 1 / self.core_delta if self.objective == "lad" else 1.0

    def solve(
        self,
        starts: np.ndarray,
        *,
        n_resample: int = 0,
        cluster: np.ndarray | None = None,
        responses: np.ndarray | None = None,
        seed: int = 0,
        spread: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs the core: theta [R, P], value, gradient, iterations, status [R]; R starts, or resamples if n_resample.

        spread: the delta to begin with, of starts that are better than bad.
        """
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must lie between 0 and 2^64 - 1, got {seed}.")
        return fit_batch(
            self.compiled.tape,
            self.columns,
            self.y if responses is None else responses,
            self.weights,
            np.atleast_2d(starts),
            self.lower,
            self.upper,
            self.core_delta,
            spread or self.spread,
            n_resample=n_resample,
            cluster=cluster,
            seed=seed,
            threads=self.threads,
            over=self.penalty,
        )

    def select(self, rows: np.ndarray) -> "Problem":
        """The same problem of some of the runs."""
        variables = {name: np.ascontiguousarray(column[rows]) for name, column in self.variables.items()}
        return replace(self, variables=variables, y=self.y[rows], weights=self.weights[rows])

    def holding(self, j: int, value: float) -> "Problem":
        """The same problem with theta_j held."""
        lower, upper = self.lower.copy(), self.upper.copy()
        lower[j] = upper[j] = value
        held = replace(self, lower=lower, upper=upper)
        held.__dict__["columns"] = self.columns  # the data are the same
        return held

    def value_and_jacobian(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The law (or its logarithm) [n] and its derivatives by theta [n, P]."""
        value, rows = jacobian(self.compiled.tape, self.columns, theta)
        return value, rows.T

    def to_theta(self, params: Mapping[str, Any]) -> np.ndarray:
        return np.stack(
            [
                np.log(params[name]) if domain.logarithmic else np.asarray(params[name], dtype=float) / unit
                for (name, domain), unit in zip(self.law.parameters.items(), self.units, strict=True)
            ],
            axis=-1,
        )

    def to_params(self, theta: np.ndarray) -> np.ndarray:
        """theta [..., P] -> parameters in their own units [..., P]."""
        logarithmic = [domain.logarithmic for domain in self.law.parameters.values()]
        with np.errstate(over="ignore"):  # a term that vanished may have any coefficient
            return np.where(logarithmic, np.exp(np.where(logarithmic, theta, 0.0)), theta * np.array(self.units))

    def slopes(self, theta: np.ndarray) -> np.ndarray:
        """d params / d theta [P]."""
        logarithmic = [domain.logarithmic for domain in self.law.parameters.values()]
        return np.where(logarithmic, self.to_params(theta), self.units)


def make_problem(
    runs: Runs,
    law: Law,
    *,
    objective: str,
    delta: float,
    residual: str,
    weights: Any,
    noise: Any,
    bounds: Mapping[str, tuple[float, float]] | None,
    fixed: Mapping[str, float] | None,
    penalty: float,
    threads: int | None,
) -> Problem:
    """Checks every argument of a fit. Raises ValueError that names the argument, its value and the remedy."""
    for argument, value, known in (("objective", objective, Objective), ("residual", residual, Residual)):
        if value not in known.__args__:  # type: ignore[attr-defined]
            raise ValueError(f"{argument}={value!r} is unknown; known are {', '.join(known.__args__)}.")  # type: ignore[attr-defined]
    if not (isinstance(delta, int | float | np.number) and 0 < delta <= sys.float_info.max):
        raise ValueError(f"delta must be finite and positive, got {delta!r}; 1e-3 is usual on log loss.")
    if not (isinstance(penalty, int | float | np.number) and 0 < penalty <= 1e6):
        raise ValueError(f"overestimate_penalty must be positive and at most 1e6, got {penalty!r}; 1 is symmetric.")
    variables = {name: np.ascontiguousarray(runs[name], dtype=np.float64) for name in law.variables}
    for name, column in variables.items():
        positive = name in POSITIVE_VARIABLES
        bad = ~np.isfinite(column) | ((column <= 0) if positive else False)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"{name} must be finite{' and positive' if positive else ''}; row {runs.rows[row] + 1} of {runs.source} has "
                f"{name}={column[row]:g}. Drop the row or fix the units."
            )
    response = _response(runs, law.response, residual)
    if residual == "raw" and not (np.abs(response) < 1e100).all():
        raise ValueError(
            f"{runs.renamed.get(law.response, law.response)} of {np.abs(response).max():g} is too large to square; rescale it "
            'or take residual="log".'
        )
    units = _units(law, variables, response)
    lower, upper = _bounds(law, units, dict(bounds or {}), dict(fixed or {}))
    n_free = int(np.sum(lower < upper))
    weight = _weights(weights, runs) if noise is None else _precision(noise, weights, objective, runs)
    if (n_runs := np.count_nonzero(weight)) <= n_free:
        which = "runs" if n_runs == len(runs) else "runs of a positive weight"
        raise ValueError(
            f"{n_runs} {which} cannot determine the {n_free} free parameters of {law.name} ({', '.join(law.names)}); "
            f"at least {n_free + 1} are needed. Add runs, fix parameters (fixed=...) or take a smaller law."
        )
    return Problem(
        law=law,
        variables=variables,
        y=np.log(response) if residual == "log" else response,
        weights=weight,
        lower=lower,
        upper=upper,
        objective=objective,  # type: ignore[arg-type]
        delta=float(delta),
        residual=residual,  # type: ignore[arg-type]
        threads=threads if threads is not None else _cores(),
        units=units,
        penalty=float(penalty),
        known_noise=noise is not None,
    )


def _response(runs: Runs, name: str, residual: str) -> np.ndarray:
    column = np.array(runs[name], dtype=np.float64)
    bad = ~np.isfinite(column) | ((column <= 0) if residual == "log" else False)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        name = runs.renamed.get(name, name)
        remedy = "drop the row (drop_missing=, --drop-missing)"
        if np.isfinite(column[row]):
            remedy = 'residual="raw" takes any sign'
        raise ValueError(
            f"{name} must be finite{' and positive' if residual == 'log' else ''}; row {runs.rows[row] + 1} of {runs.source} has "
            f"{name}={column[row]:g}; {remedy}."
        )
    return column


def _units(law: Law, variables: Mapping[str, np.ndarray], response: np.ndarray) -> tuple[float, ...]:
    """Of what is not a logarithm: the power of two nearest its starts, unless those are of order one as they are."""
    domains = law.parameters.values()
    plain = [domain.logarithmic or (domain.role == "exponent" and domain.unit == 1) for domain in domains]
    some = _some(len(response))
    sizes = np.full(len(plain), float(np.median(np.abs(response[some]))) or 1.0)  # a floor's
    if not all(p or domain.role == "floor" for p, domain in zip(plain, domains, strict=True)):
        starts = starts_of(law, {name: x[some] for name, x in variables.items()}, response[some], 32)
        sizes = np.exp(np.median(np.log(np.maximum(np.abs(starts), 1e-300)), axis=0))
    return tuple(
        1.0 if p or 1e-3 < s < 1e3 else 2.0 ** round(math.log2(s)) for p, s in zip(plain, sizes.tolist(), strict=True)
    )


def _bounds(
    law: Law, units: Sequence[float], bounds: Mapping[str, tuple[float, float]], fixed: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    for argument, given in (("bounds", bounds), ("fixed", fixed)):
        for name in given:
            if name not in law.parameters:
                raise ValueError(
                    f"{argument} names {name!r}, not a parameter of {law.name}; those are {', '.join(law.names)}."
                )
    lower, upper = [], []
    for (name, domain), unit in zip(law.parameters.items(), units, strict=True):
        low, high = (fixed[name], fixed[name]) if name in fixed else bounds.get(name, (-math.inf, math.inf))
        if name in fixed and not math.isfinite(low):
            raise ValueError(f"fixed value of {name} must be finite, got {low:g}.")
        if not (low <= high and low < math.inf and high > -math.inf):
            raise ValueError(f"bounds of {name} must be (low, high) with low <= high, got ({low:g}, {high:g}).")
        if domain.positive:
            if high <= 0:
                raise ValueError(
                    f"{name} is positive in {law.name}; a bound or fixed value of {high:g} leaves nothing; "
                    "take a law without it."
                )
            low = max(low, 0.0)
        if domain.logarithmic:
            high = math.log(high) if high < math.inf else LARGEST_LOG
            low = math.log(low) if low > 0 else min(LEAST_LOG, high)
        else:
            low, high = low / unit, high / unit
        lower.append(low)
        upper.append(high)
    return np.array(lower), np.array(upper)


def _weights(weights: Any, runs: Runs) -> np.ndarray:
    if weights is None:
        return np.ones(len(runs))
    if isinstance(weights, str):
        weights = runs[weights]
    try:
        array = np.array(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"weights must be numbers: {error}.") from None
    if array.shape != (len(runs),):
        raise ValueError(f"weights must have one entry per run ({len(runs)}), got shape {array.shape}.")
    if not np.all((array <= 1e100) & (array >= 0)) or not array.any():
        raise ValueError("weights must be finite and at most 1e100, none negative and not all zero.")
    return array


def _precision(noise: Any, weights: Any, objective: str, runs: Runs) -> np.ndarray:
    """Weights [n] of least squares with known standard deviations."""
    if objective != "gaussian":
        raise ValueError(
            f"noise= is the standard deviation of a Gaussian; objective={objective!r} takes weights= instead."
        )
    if weights is not None:
        raise ValueError("noise and weights both say how much a run counts; give one of them.")
    array = np.array(runs[noise] if isinstance(noise, str) else np.broadcast_to(noise, len(runs)), dtype=np.float64)
    if not np.all(np.isfinite(array) & (array > 0)):
        raise ValueError(
            f"noise must be finite and positive, one number, a column or one per run; its least is {array.min():g}."
        )
    return 1 / array**2


def automatic_starts(problem: Problem, count: int) -> np.ndarray:
    """Space-filling starts [count, P] in the law's box, as theta."""
    some = _some(len(problem.y))
    response = np.exp(problem.y[some]) if problem.residual == "log" else problem.y[some]
    starts = starts_of(problem.law, {name: x[some] for name, x in problem.variables.items()}, response, count)
    with np.errstate(divide="ignore"):
        theta = problem.to_theta(dict(zip(problem.law.names, starts.T, strict=True)))
    return np.clip(theta, problem.lower, problem.upper)


def _some(n: int) -> slice:
    """Enough of n runs to place starts by."""
    return slice(None, None, max(1, n // 20_000))


def starts_of(law: Law, variables: Mapping[str, np.ndarray], response: np.ndarray, count: int) -> np.ndarray:
    """Starts [count, P] in the parameters' own units, by their roles (see laws.Parameter).

    Exponents and amounts fill their box; a floor is a share of the lowest response, a ceiling up to thrice the highest; a
    coefficient is what gives its term a share of the response at the middle of the data; a scale lies anywhere from the data
    to a dozen decades beyond, a break among the data, a rate among their reciprocals, an argument about what is of its size.
    """
    size = np.abs(response)
    size = np.maximum(size, 1e-12 * size.max() or 1.0)  # a response of either sign, or zero
    signed = [
        k for k, d in enumerate(law.parameters.values()) if not d.positive and d.role not in ("exponent", "amount")
    ]
    unit = _low_discrepancy(count, len(law.parameters))
    flags = law.indicators.values()
    data = {name: x[x > 0] if (x > 0).any() else np.ones(1) for name, x in variables.items() if name not in flags}
    middle = {name: float(np.mean(np.log(x))) for name, x in data.items()}
    exponents = {
        name: (domain.low + (domain.high - domain.low) * unit[:, j] ** 2) * domain.unit
        for j, (name, domain) in enumerate(law.parameters.items())
        if domain.role == "exponent"
    }
    log_starts = np.empty((count, len(law.parameters)))
    coefficients = []
    for j, domain in enumerate(law.parameters.values()):
        u = unit[:, j]
        kind, *where = domain.role.split(":")
        share = np.log(np.median(size)) + np.log(0.02) * (1 - u)
        if kind == "exponent":
            continue
        if kind == "floor":
            log_value = np.log(size.min()) + np.log(0.02) * (1 - u) ** 2 - 0.02
        elif kind == "ceiling":
            log_value = np.log(size.max()) + 0.02 + np.log(3) * u**2
        elif kind == "term":
            log_value = share
            for variable, power in zip(where[::2], where[1::2], strict=True):
                exponent = exponents.get(power.lstrip("-"), np.full(count, 0.3))
                log_value = log_value + (-1 if power.startswith("-") else 1) * exponent * middle[variable]
            if not where:
                coefficients.append(j)
        else:
            log_value = np.log(domain.unit) + _log_value(kind, where, domain, data, middle, u)
        log_starts[:, j] = log_value
    starts = np.exp(np.clip(log_starts, -LARGEST_LOG, LARGEST_LOG))
    for j, name in enumerate(law.names):
        if name in exponents:
            starts[:, j] = exponents[name]
    signs = np.where(_low_discrepancy(count, len(signed) or 1)[:, : len(signed)] < 0.5, 1.0, -1.0)
    starts[:, signed] *= signs
    if coefficients:
        _set_coefficients(law, variables, starts, coefficients)
    return starts


def _log_value(
    kind: str,
    where: Sequence[str],
    domain: Parameter,
    data: Mapping[str, np.ndarray],
    middle: Mapping[str, float],
    u: Any,
) -> Any:
    """The logarithm of starts in the unit of the parameter, u in [0, 1)."""
    if kind == "amount":
        return np.log(domain.low) + np.log(domain.high / domain.low) * u
    if kind in ("break", "rate"):
        edge = np.log([data[where[0]].min(), data[where[0]].max()])
        return (edge[0] + (edge[1] - edge[0]) * u) * (-1 if kind == "rate" else 1)
    if kind == "argument":
        centre = sum(float(power) * middle[name] for name, power in zip(where[::2], where[1::2], strict=True))
        return centre + np.log(10) * (3.5 * u - 1.5)
    return middle[where[0]] + 12 * np.log(10) * u


def _set_coefficients(
    law: Law, variables: Mapping[str, np.ndarray], starts: np.ndarray, coefficients: Sequence[int]
) -> None:
    """Divides coefficients, given as the size of their terms, by what they are coefficients of."""
    compiled = compile_law(law, False)
    some = np.linspace(0, len(next(iter(variables.values()))) - 1, 64).astype(int)
    columns = compiled.columns({name: x[some] for name, x in variables.items()})
    domains = list(law.parameters.values())
    logarithmic = np.array([domain.logarithmic for domain in domains])
    with np.errstate(all="ignore"):
        for start in starts:
            theta = np.where(logarithmic, np.log(np.abs(start)), start)
            theta[coefficients] = np.where(logarithmic[coefficients], 0.0, 1.0)
            for j in coefficients:
                slope = np.abs(jacobian(compiled.tape, columns, theta)[1][j])
                slope = slope[np.isfinite(slope) & (slope > 0)]
                if len(slope):
                    start[j] /= np.exp(np.mean(np.log(slope)))
                start[j] = np.sign(start[j]) * np.clip(np.abs(start[j]), 1e-300, 1e300)


def given_starts(problem: Problem, starts: Any) -> np.ndarray:
    """A user's starts in their own units, [count, P] or a sequence of mappings, as theta."""
    names = problem.law.names
    if isinstance(starts, Mapping):
        starts = [starts]
    if isinstance(starts, Sequence) and all(isinstance(start, Mapping) for start in starts):
        missing = [name for start in starts for name in names if name not in start]
        if missing:
            raise ValueError(f"starts lack the parameter {missing[0]!r}; each needs {', '.join(names)}.")
        starts = [[start[name] for name in names] for start in starts]
    try:
        array = np.atleast_2d(np.asarray(starts, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"starts must be numbers [count, {len(names)}] or mappings: {error}.") from None
    if array.ndim != 2 or array.shape[1] != len(names) or not len(array):
        raise ValueError(
            f"starts must be [count, {len(names)}] in the order {', '.join(names)}, got shape {array.shape}."
        )
    for name, column in zip(names, array.T, strict=True):
        if not np.all(np.isfinite(column)) or (problem.law.parameters[name].logarithmic and np.any(column <= 0)):
            raise ValueError(
                f"starts of {name} must be finite{' and positive' if problem.law.parameters[name].positive else ''}."
            )
    return np.clip(problem.to_theta(dict(zip(names, array.T, strict=True))), problem.lower, problem.upper)


def _low_discrepancy(count: int, dimension: int) -> np.ndarray:
    """Roberts' R sequence in [0, 1)^dimension: multiples of powers of the generalised golden ratio."""
    ratio = 2.0
    for _ in range(60):
        ratio = (1 + ratio) ** (1 / (dimension + 1))
    steps = ratio ** -np.arange(1, dimension + 1)
    return (0.5 + np.outer(np.arange(1, count + 1), steps)) % 1.0
