"""`ps.fit`: a law and a table of runs in, parameters with their uncertainty and evidence out."""

import ast
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyscaling import laws
from pyscaling.expression import names_of, parse_expression
from pyscaling.fitting.bootstrap import (
    MANY,
    Bootstrap,
    Resample,
    bootstrap,
    central_error,
    check_level,
    inflated_residuals,
    student_t,
)
from pyscaling.fitting.covariance import covariance
from pyscaling.fitting.domain import check_domain
from pyscaling.fitting.evidence import Evidence, gather, replicate_noise
from pyscaling.fitting.groups import GroupedLaw, group_runs, label_of
from pyscaling.fitting.problem import LARGEST_LOG, LEAST_LOG, Problem, automatic_starts, given_starts, make_problem
from pyscaling.fitting.result import Result, html_table, text_table
from pyscaling.fitting.sample import LONG, solve_from_parts, solve_from_sample
from pyscaling.laws import POSITIVE_VARIABLES, USUAL_VARIABLES, Law
from pyscaling.tables import Runs, as_runs
from pyscaling.units import parse_count

if TYPE_CHECKING:
    from pyscaling.fitting.profile import Profile

_AUTO_STARTS = 64
_FAR = 10.0  # times beyond the runs
_STEEPEST = 1e150  # a residual or a derivative that can still be squared


@dataclass(frozen=True)
class Prediction:
    """A loss in nats per token with its interval; floats, or arrays of one shape. notes: what to know before trusting it."""

    value: Any
    low: Any
    high: Any
    level: float
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Any:
        return iter((self.value, self.low, self.high))

    def _rows(self) -> list[list[str]]:
        cells = zip(*(np.ravel(part).tolist() for part in self), strict=True)
        return [
            ["value", f"{100 * self.level:g}% interval"],
            *([f"{v:.5g}", f"{a:.5g} .. {b:.5g}"] for v, a, b in cells),
        ]

    def __str__(self) -> str:
        one = f"{self.value:.5g} [{self.low:.5g}, {self.high:.5g}]" if np.ndim(self.value) == 0 else ""
        return "\n".join([one or text_table(self._rows()), *(f"! {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        return html_table(self._rows(), notes=[f"! {note}" for note in self.notes])


def fit(
    runs: Any,
    law: str | Law = "chinchilla",
    objective: str = "huber",
    *,
    delta: float = 1e-3,
    residual: str = "log",
    starts: Any = "auto",
    weights: Any = None,
    noise: Any = None,
    bounds: Mapping[str, tuple[float | None, float | None]] | None = None,
    fixed: Mapping[str, float] | None = None,
    tied: Sequence[Sequence[str]] | None = None,
    group: Any = None,
    shared: str | Sequence[str] | None = None,
    response: str | None = None,
    overestimate_penalty: float = 1.0,
    threads: int | None = None,
) -> "Fit":
    """Fits a scaling law to runs.

    runs: Runs, anything Runs takes, or the path of a table. law: a name (see `pyscaling laws`), an expression, or a Law. Of
    an expression's names, those that are columns of the runs are variables, the others positive parameters; a Law says so
    itself.
    objective: "huber" with `delta`, "lad" (least absolute deviations) or "gaussian" (least squares); a sum over runs.
    residual: differences of "log" loss (Hoffmann et al. 2022, eq. 3) or of "raw" loss. starts: "auto", how many automatic
    ones, or starts of your own: [count, P] or mappings of parameters. weights: a column or [n].
    noise: known standard deviation of the residuals (a number, a column or [n]), with "gaussian". bounds: parameter ->
    (low, high), None for an open end. fixed: parameter -> value. tied: groups of parameters that share one value, e.g.
    [("alpha", "beta")].
    group: a column (or labels [n]) of data sets or architectures that each have parameters of their own, named p_<group>,
    but for those named in shared: `fit.predict(..., group=...)`, `fit.params_of(group)`.
    response: the column that the law gives, if not the loss (or the law's own).
    overestimate_penalty: factor on the objective of runs that the law lies above, whose loss it overestimates. A run that was
    not tuned lies above what its N and D allow and never below: a penalty above 1 makes the law follow the lower edge of the
    runs. Of "lad" it is their quantile 1 / (1 + penalty) (Koenker & Bassett 1978), of "gaussian" an expectile (Newey &
    Powell 1987).
    threads: default all cores; results do not depend on it.
    Raises ValueError for bad arguments, naming them. Warns if the result should not be trusted; `evidence` says why.
    """
    table = as_runs(runs)
    chosen = _tie(law_over(law, table, response=response), tied)
    for column in (*chosen.variables, chosen.response, weights, noise):
        if isinstance(column, str) and column not in table:
            raise ValueError(table.missing(column) + _laws_for(table, chosen))
        if isinstance(column, str):
            table.numbers(column)
    doubts = table.doubts_about([*chosen.variables, chosen.response])
    bounds, fixed = _checked_bounds(bounds), _checked_fixed(fixed)
    if threads is not None and not (isinstance(threads, Integral) and threads > 0):
        raise ValueError(f"threads must be a number of cores, 1 or more, got {threads!r}; None takes all of them.")
    shared = [shared] if isinstance(shared, str) else list(shared or ())
    if group is not None:
        table, chosen = group_runs(table, group, chosen, shared)
        bounds, fixed = chosen.expanded(bounds), chosen.expanded(fixed)
    elif shared:
        raise ValueError(f"shared={shared} needs group=, the column that says which run belongs where.")
    problem = make_problem(
        table,
        chosen,
        objective=objective,
        delta=delta,
        residual=residual,
        weights=weights,
        noise=noise,
        bounds=bounds,
        fixed=fixed,
        penalty=overestimate_penalty,
        threads=threads,
    )
    rows = None
    if not problem.weights.all():  # what does not count is no run of this fit
        rows = np.flatnonzero(problem.weights)
        table, problem = table.select(rows), problem.select(rows)
    if isinstance(starts, str) and starts != "auto":
        raise ValueError(
            f'starts={starts!r} is unknown; give "auto", a number, or an array [count, {len(chosen.names)}].'
        )
    if isinstance(starts, str | int | np.integer):
        count = _AUTO_STARTS if isinstance(starts, str) else int(starts)
        if count < 1:
            raise ValueError(f"starts must be at least 1, got {count}.")
        theta = automatic_starts(problem, count)
    else:
        theta = given_starts(problem, starts)
    check_domain(problem, theta, table)
    solve = solve_from_sample if len(problem.y) > LONG and len(theta) > 4 else Problem.solve
    solved = solve(problem, theta)
    value = np.where(np.isfinite(solved["value"]) & (solved["status"] != 3), solved["value"], np.inf)
    best = int(np.argmin(value))
    if not np.isfinite(value[best]):
        check_domain(problem, theta, table, always=True)
        raise ValueError(
            f"no start of {len(theta)} gave a finite {_own_name(chosen, table)} for {chosen.name}; check the units of "
            f"{_columns_of(chosen, table)}, or give `starts`."
        )
    # Of the starts that share the minimum, the one that solved it most exactly.
    tied_best = np.flatnonzero(value <= value[best] * (1 + 1e-12))
    best = int(tied_best[np.argmin(solved["gradient"][tied_best])])
    losses, derivatives = problem.value_and_jacobian(solved["theta"][best])
    if not (np.abs(losses - problem.y).max() < _STEEPEST and np.abs(derivatives).max() < _STEEPEST):
        raise ValueError(
            f"{chosen.name} or its derivatives overflow at the best point found, "
            f"{_listed(problem, solved['theta'][best])}; check the units of {_columns_of(chosen, table)}, or "
            "give `bounds`."
        )
    with np.errstate(all="ignore"):
        evidence = gather(problem, theta, solved, best, table, doubts)
        if (evidence.unidentified or evidence.at_bound) and objective != "gaussian" and len(problem.y) <= LONG:
            points, others = solve_from_parts(problem, theta)
            better = np.where(np.isfinite(others["value"]) & (others["status"] == 0), others["value"], np.inf)
            if better.min() < value[best] * (1 - 1e-9):
                theta, value = np.concatenate([theta, points]), np.concatenate([value, better])
                solved = {key: np.concatenate([column, others[key]]) for key, column in solved.items()}
                best = int(np.argmin(value))
                evidence = gather(problem, theta, solved, best, table, doubts)
    result = Fit(
        table, problem, solved["theta"][best], float(value[best]), evidence, _distinct_minima(solved, value), rows
    )
    if not evidence.trustworthy:
        warnings.warn(f"fit of {chosen.name}: {'; '.join(evidence.concerns)}.", stacklevel=2)
    if not np.isfinite(result.r2):
        warnings.warn(
            f"R^2 of {chosen.name} is not defined: {_own_name(chosen, table)} does not vary, or the fit misses it by far.",
            stacklevel=2,
        )
    return result


class Fit(Result):
    """A fitted law.

    params: name -> value. objective_value: the sum over runs of the objective. evidence: see Evidence. runs: the table,
    without the runs of weight zero.
    """

    def __init__(
        self,
        runs: Runs,
        problem: Problem,
        theta: np.ndarray,
        core_value: float,
        evidence: Evidence,
        minima: np.ndarray,
        rows: np.ndarray | None = None,
    ) -> None:
        self._rows = rows
        self.runs, self.problem, self.law, self.evidence = runs, problem, problem.law, evidence
        self.theta, self._minima = theta, minima
        self.params = dict(zip(self.law.names, problem.to_params(theta).tolist(), strict=True))
        self.objective_value = core_value * problem.objective_scale()
        self._kept_bootstrap: tuple[Any, Bootstrap] | None = None

    @cached_property
    def residuals(self) -> np.ndarray:
        """Observed minus fitted, [n], in log loss or loss."""
        value, _ = self.problem.value_and_jacobian(self.theta)
        return self.problem.y - value

    @property
    def r2(self) -> float:
        """1 - SS_residual / SS_total over the (weighted) runs, in the units of the residual; nan if losses do not vary."""
        w, y = self.problem.weights, self.problem.y
        with np.errstate(over="ignore"):
            total = np.sum(w * (y - np.average(y, weights=w)) ** 2)
            if total <= np.sum(w * (1e-12 * y) ** 2):  # rounding
                return float("nan")
            return float(1 - np.sum(w * self.residuals**2) / total)

    @property
    def adjusted_r2(self) -> float:
        """R^2 corrected for the number of parameters: 1 - (1 - R^2)(n - 1) / (n - p), p counting every free parameter."""
        n = self.problem.n_runs
        return 1 - (1 - self.r2) * (n - 1) / (n - self.problem.n_free)

    @property
    def noise(self) -> float:
        """Standard deviation of a run about the law, with n - p degrees of freedom."""
        w = self.problem.weights
        share = np.sum(w * self.residuals**2) / np.sum(w)
        return float(np.sqrt(share * self.problem.n_runs / (self.problem.n_runs - self.problem.n_free)))

    @property
    def replicates(self) -> tuple[float, int] | None:
        """Standard deviation of runs that differ in nothing the law knows (seeds), and its degrees of freedom; None without any.

        Noise without lack of fit: where `noise` is much larger, the law is wrong, not the runs.
        """
        return replicate_noise(self.problem)

    @property
    def outliers(self) -> dict[int, float]:
        """Row of the table (from 0) -> how many times the noise of most runs it lies above the law (below, if negative).

        Those beyond 6, the farthest first; noise is 1.4826 times the median size of the residuals.
        """
        return dict(self.evidence.outliers)

    def labels(self, given: Any, argument: str) -> np.ndarray:
        """Labels [n] of the fitted runs: a column's, or one per run, those of weight zero counted or not."""
        if self._rows is not None and not isinstance(given, str) and len(given) > len(self.runs):
            given = np.asarray(given)[self._rows]
        return self.runs.labels(given, argument)

    @property
    def chi2(self) -> float:
        """Sum of squared residuals over known noise, per degree of freedom; NaN where the noise is not known."""
        if not self.problem.known_noise:
            return float("nan")
        return float(np.sum(self.problem.weights * self.residuals**2) / (len(self.runs) - self.problem.n_free))

    def restarts(self, count: int) -> np.ndarray:
        """`count` starts for refits as theta [count, P]: the minimum, the next best ones that the fit met, then points three
        standard errors from the minimum along the axes of the errors' ellipsoid, the longest first."""
        _value, jacobian = self.problem.value_and_jacobian(self.theta)
        free = self.problem.lower < self.problem.upper
        if not free.any():
            return self._minima[:1]
        _, size, axes = np.linalg.svd(jacobian[:, free] * np.sqrt(self.problem.weights)[:, None], full_matrices=False)
        noise = self.noise
        # Never farther than 1,000, where the data say nothing of a direction.
        reach = 3 * noise / np.maximum(size, max(1e-3 * size[0], 3e-3 * noise, 1e-300))
        displaced = np.repeat(self.theta[None], 2 * len(size), axis=0)
        displaced[:, free] += np.concatenate(
            [[+r * axis, -r * axis] for r, axis in zip(reach, axes, strict=True)][::-1]
        )
        displaced = np.clip(displaced, self.problem.lower, self.problem.upper)
        return np.concatenate([self._minima, displaced])[: max(1, count)]

    def evaluate(self, params: Mapping[str, Any] | np.ndarray | None = None, **variables: Any) -> np.ndarray:
        """The law at the fitted parameters, or at others: a mapping, or samples [R, P], which give [R, ...]."""
        if isinstance(self.law, GroupedLaw):
            if "group" not in variables:
                raise ValueError(f"group is missing: this fit is of {', '.join(self.law.labels)}; say which.")
            variables = variables | self.law.membership(variables.pop("group"))
        if params is None:
            params = self.params
        if not isinstance(params, Mapping):
            samples = np.asarray(params, dtype=np.float64)
            extra = max((np.ndim(v) for v in variables.values()), default=0)
            params = {
                name: samples[..., k].reshape(*samples.shape[:-1], *[1] * extra)
                for k, name in enumerate(self.law.names)
            }
        return self.law.evaluate(params, **variables)

    def params_of(self, group: Any) -> dict[str, float]:
        """Parameters of the law for one of the groups that were fitted together."""
        if not isinstance(self.law, GroupedLaw):
            raise ValueError("this fit has no groups; params has its parameters.")
        self.law.membership(group)
        return {name: self.params[self.law.own_name(name, label_of(group))] for name in self.law.base.names}

    def bootstrap(
        self, n: int = 4000, cluster: Any = None, seed: int = 0, starts: int = 8, resample: Resample | None = "pairs"
    ) -> Bootstrap:
        """n refits to resampled runs.

        cluster: a column (or labels [n]) whose runs share their noise, e.g. checkpoints of one training.
        resample: "pairs", runs (or whole clusters) drawn with replacement; "residuals", fitted values plus any runs'
        residuals; "wild", plus a run's own with a random sign, one a cluster (Cameron et al. 2008), for few clusters;
        None, "residuals" with fewer than five runs a parameter and no cluster, else "pairs".
        starts: each is refitted from so many points (see `restarts`), the best is kept.
        Results depend on seed alone, not on the number of threads. Raises ValueError for bad arguments.
        """
        if resample is None:
            few = len(self.runs) < 5 * self.problem.n_free and cluster is None
            resample = "residuals" if few else "pairs"
        return bootstrap(self, n, cluster, seed, starts, resample)

    def profile(self, name: str, cluster: Any = None, robust: bool | None = None) -> "Profile":
        """The profile of a parameter: the least objective with it held at other values; see Profile.

        Its interval may be open, where the runs cannot tell. robust: of runs of unequal noise (default: unless the
        objective is "gaussian"); cluster: as in `covariance`. Raises ValueError for an unknown or fixed parameter.
        """
        from pyscaling.fitting.profile import profile

        return profile(self, name, cluster, robust)

    def covariance(self, cluster: Any = None, robust: bool = True, units: str = "params") -> np.ndarray:
        """Covariance [P, P] of the parameters, without resampling.

        robust: sandwich, of runs (or clusters) of unequal noise; False: of equal noise. units: "params", or "theta", where
        positive coefficients are logarithms. See fitting/covariance.py; NaN where the data determine nothing.
        """
        matrix = covariance(self, cluster, robust)
        if units == "theta":
            return matrix
        slope = self.problem.slopes(self.theta)
        return matrix * np.outer(slope, slope)

    def standard_errors(self, cluster: Any = None, robust: bool = True) -> dict[str, float]:
        """name -> standard error in the parameter's own units; see `covariance`.

        Of fewer than five runs a parameter too small: a robust fit passes through some of them. Use `bootstrap` there.
        """
        return dict(zip(self.law.names, np.sqrt(np.diag(self.covariance(cluster, robust))).tolist(), strict=True))

    def predict(
        self,
        *,
        level: float = 0.9,
        kind: str = "run",
        cluster: Any = None,
        n: int = 1000,
        seed: int = 0,
        resample: Resample | None = None,
        **variables: Any,
    ) -> Prediction:
        """The loss at N=..., D=... (scalars or arrays), with an interval.

        kind: "run", the loss of a run not yet made: uncertainty of the curve plus a run's own noise; "mean", of the
        curve alone. Both from a bootstrap of n refits, the curve's as in Bootstrap.interval; cluster, seed and resample
        are the bootstrap's. Of more than 20,000 runs, unless cluster or resample asks for refits, from n draws of the normal
        law that the sandwich gives.
        The one of N, D and C that is missing follows from the other two by C = 6ND.
        Raises ValueError for a missing or an unknown variable.
        """
        check_level(level)
        if kind not in ("run", "mean"):
            raise ValueError(f'kind={kind!r} is unknown; "run" is a run not yet made, "mean" the curve.')
        variables = self._places(variables)
        if n < 2:
            raise ValueError(f"n must be at least 2 refits, got {n}; 1,000 or more make a steady interval.")
        value = np.asarray(self.evaluate(**variables))
        boot = self._bootstrap_for_prediction(n, cluster, seed, resample)
        log = self.problem.residual == "log"
        at_samples = np.asarray(self.evaluate(boot.samples, **variables))
        tail = (1 - level) / 2
        with np.errstate(all="ignore"):
            drawn = np.log(at_samples) - np.log(value) if log else at_samples - value
            drawn = np.where(np.isnan(drawn).all(axis=0), np.inf, drawn)
            if kind == "mean":
                high = student_t(1 - tail, boot.degrees) * central_error(drawn)
                low = -high
            else:
                # The curve's samples, centred and widened as its own interval is, plus residuals of either sign.
                generator = np.random.default_rng(seed)
                residuals = generator.choice(inflated_residuals(self), size=n)
                if self.problem.penalty == 1:
                    residuals = residuals * generator.choice([-1.0, 1.0], size=n)
                widen = student_t(1 - tail, boot.degrees) / student_t(1 - tail, 10**9)
                error = widen * (drawn - np.nanmedian(drawn, axis=0)) + residuals.reshape(-1, *[1] * value.ndim)
                error = np.where(np.isnan(error).all(axis=0), np.inf, error)
                low, high = np.nanquantile(error, [tail, 1 - tail], axis=0)
            low, high = (value * np.exp(low), value * np.exp(high)) if log else (value + low, value + high)
        if not np.all(np.isfinite([value, low, high])):
            warnings.warn(f"{self.law.name} or its interval is not finite where it is to predict.", stacklevel=2)
        notes = self._off_ground(variables)
        if value.ndim == 0:
            return Prediction(float(value), float(low), float(high), level, notes)
        return Prediction(value, low, high, level, notes)

    def _off_ground(self, places: Mapping[str, Any]) -> tuple[str, ...]:
        """What speaks against predictions there: the fit's concerns, and places far from all runs."""
        notes = [] if self.evidence.trustworthy else [self.verdict]
        for name, at in places.items():
            held = self.problem.variables.get(name)
            if held is None or not (np.all(held > 0) and np.all(np.asarray(at) > 0)):
                continue
            for beyond, side, end in (
                (np.max(at) / held.max(), "above", held.max()),
                (held.min() / np.min(at), "below", held.min()),
            ):
                if beyond > _FAR:
                    notes.append(
                        f"{name} lies {beyond:.3g} x {side} the fitted runs' {end:.3g}; the interval holds if the law does"
                    )
        return tuple(notes)

    def _places(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The law's variables (and the group) to predict at, as arrays that broadcast."""
        base = self.law.base if isinstance(self.law, GroupedLaw) else self.law
        places = {}
        for name, value in given.items():
            if name == "group" and base is not self.law:
                continue
            try:
                value = parse_count(name, value) if isinstance(value, str) else value
                places[name] = np.asarray(value, dtype=np.float64)
            except (TypeError, ValueError):
                raise ValueError(f"{name} must be a number or an array of numbers, got {value!r}.") from None
            positive = name in POSITIVE_VARIABLES
            if not np.all(np.isfinite(places[name]) & ((places[name] > 0) | (not positive))):
                raise ValueError(
                    f"{name} must be finite{' and positive' if positive else ''} to predict at, got {value!r}."
                )
        try:
            np.broadcast_shapes(*(array.shape for array in places.values()))
        except ValueError:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in places.items())
            raise ValueError(f"the shapes of {shapes} differ; give arrays of one shape, or single numbers.") from None
        unknown = [name for name in places if name not in base.variables]
        have = {"N", "D", "C"} & set(places)
        third = ({"N", "D", "C"} - have).pop() if len(have) == 2 else ""
        if third in base.variables:
            N, D, C = (places.get(name, np.ones(())) for name in "NDC")
            places[third] = 6 * N * D if third == "C" else C / (6 * (D if third == "N" else N))
            unknown = [name for name in unknown if name not in have]
        if unknown:
            raise ValueError(
                f"{unknown[0]}={given[unknown[0]]!r} is not a variable of {base.name}; those are "
                f"{', '.join(base.variables)}."
            )
        group = {"group": given["group"]} if base is not self.law and "group" in given else {}
        return group | {name: array for name, array in places.items() if name in base.variables}

    def _bootstrap_for_prediction(self, n: int, cluster: Any, seed: int, resample: Resample | None) -> Bootstrap:
        """A plot asks for many predictions in a row: the last bootstrap is kept."""
        key = (n, seed, resample, cluster if cluster is None or isinstance(cluster, str) else tuple(cluster))
        if self._kept_bootstrap is None or self._kept_bootstrap[0] != key:
            long = len(self.runs) > MANY and cluster is None and resample is None
            boot = self._normal(n, seed) if long else self.bootstrap(n, cluster, seed, resample=resample)
            self._kept_bootstrap = key, boot
        return self._kept_bootstrap[1]

    def _normal(self, n: int, seed: int) -> Bootstrap:
        """What n refits of a long table would come to: theta drawn about the minimum by the sandwich's covariance."""
        free = self.problem.lower < self.problem.upper
        theta = np.repeat(self.theta[None], n, axis=0)
        inside = self.covariance(units="theta")[np.ix_(free, free)]
        theta[:, free] += np.random.default_rng(seed).multivariate_normal(
            np.zeros(free.sum()), inside, n, method="eigh"
        )
        theta = np.clip(theta, self.problem.lower, self.problem.upper)
        params = self.problem.to_params(theta)
        degrees = len(self.runs) - self.problem.n_free
        return Bootstrap(self.params, params, np.full(n, self.objective_value), np.ones(n, dtype=bool), degrees, self)

    @property
    def verdict(self) -> str:
        """Whether to believe the fit, and the worst that is known of it; `evidence` has the rest."""
        if not self.evidence.trustworthy:
            return f"NOT TO BE TRUSTED: {self.evidence.concerns[0]}"
        if self.evidence.cautions:
            return f"to be trusted with care, {self.evidence.cautions[0]}"
        return "to be trusted as far as its intervals go"

    @property
    def formula(self) -> str:
        """The law as an equation, with the columns it takes where they are not all of N, D, C and S."""
        law = self.law.base if isinstance(self.law, GroupedLaw) else self.law
        columns = law.variables
        text = f"{law.response} = {law.expression}"
        if isinstance(self.law, GroupedLaw):
            own = [name for name in law.names if name not in self.law.shared]
            text += f", {', '.join(own)} of each group its own"
            text += f", {', '.join(self.law.shared)} shared" if self.law.shared else ""
        return text if set(columns) <= set(USUAL_VARIABLES) else f"{text}, over the columns {', '.join(columns)}"

    def bounds(self, name: str) -> tuple[float, float]:
        """Between what a parameter was sought, in its own units; 0 and infinity where only its sign is known."""
        j = self.law.names.index(name)
        low, high = self.problem.lower[j], self.problem.upper[j]
        if not self.law.parameters[name].logarithmic:
            return float(low * self.problem.units[j]), float(high * self.problem.units[j])
        return math.exp(low) if low > LEAST_LOG else 0.0, math.exp(high) if high < LARGEST_LOG else math.inf

    def within_domain(self, name: str, low: float, high: float) -> tuple[float, float]:
        """An interval of a parameter cut to where it can lie: within its bounds, and a floor of the law below all losses.

        The lowest loss is the fitted one, and twice the noise of most runs is left to it.
        """
        bounds = self.bounds(name)
        domain, top = self.law.parameters[name], bounds[1]
        if domain.role == "floor" and domain.positive:
            log = self.problem.residual == "log"
            fitted = np.exp(self.problem.y - self.residuals) if log else self.problem.y - self.residuals
            if fitted.min() >= self.params[name]:
                noise = 2 * 1.4826 * float(np.median(np.abs(self.residuals)))
                top = min(top, float(fitted.min() * np.exp(noise) if log else fitted.min() + noise))
        return max(float(low), bounds[0]), min(float(high), top)

    def intervals(
        self, level: float = 0.9, n: int | None = None, cluster: Any = None
    ) -> dict[str, tuple[float, float]]:
        """name -> interval, of a bootstrap of n resamples, 1,000 unless given (see Bootstrap.interval).

        From the sandwich's standard errors with n = 0, and of more than 20,000 runs: there its normal law holds, and refits
        take minutes (`bootstrap` makes them all the same).
        """
        check_level(level)
        if n := self._resamples(n):
            boot = self._bootstrap_for_prediction(n, cluster, 0, None)
            return {name: boot.interval(name, level) for name in self.params}
        reach = student_t(0.5 + level / 2, len(self.runs) - self.problem.n_free)
        errors = reach * np.sqrt(np.diag(self.covariance(cluster, units="theta")))
        low, high = (self.problem.to_params(self.theta + sign * errors) for sign in (-1, 1))
        return {
            name: self.within_domain(name, a, b)
            for name, a, b in zip(self.params, low.tolist(), high.tolist(), strict=True)
        }

    def _resamples(self, n: int | None) -> int:
        return 0 if len(self.runs) > MANY else 1000 if n is None else n

    def summary(self, level: float = 0.9, n: int | None = None, cluster: Any = None) -> str:
        """A table of the fit; its first line says whether to believe it. n, cluster: as of `intervals`."""
        title, facts, rows, notes = self._parts(level, n, cluster)
        return "\n".join([title, *(f"  {line}" for line in facts), text_table(rows), *(f"  {note}" for note in notes)])

    def _parts(
        self, level: float, n: int | None = None, cluster: Any = None
    ) -> tuple[str, list[str], list[list[str]], list[str]]:
        way = f"{count:,} resamples" if (count := self._resamples(n)) else "standard errors"
        facts = [
            self.formula,
            f"{len(self.runs)} runs, {self.problem.objective} on {self.problem.residual} "
            f"{_own_name(self.law, self.runs)}, objective {self.objective_value:.8g}",
            f"adjusted R^2 {self.adjusted_r2:.5f}, noise {self.noise:.3g}{self._noise_beside()}",
        ]
        rows = [["parameter", "value", f"{100 * level:g}% interval ({way})"]]
        for name, (low, high) in self.intervals(level, n, cluster).items():
            at_bound = ", at its bound" if name in self.evidence.at_bound else ""
            ends = "fixed" if self.bounds(name)[0] == self.bounds(name)[1] else f"{low:.5g} .. {high:.5g}{at_bound}"
            rows.append([name, f"{self.params[name]:.6g}", ends])
        return f"{self.law.name}: {self.verdict}", facts, rows, [f"evidence: {self.evidence}"]

    def _repr_html_(self) -> str:
        title, facts, rows, _ = self._parts(0.9)
        return html_table(rows, title, facts) + self.evidence._repr_html_()

    def _noise_beside(self) -> str:
        beside = "" if np.isnan(self.chi2) else f", chi^2 per degree of freedom {self.chi2:.3g}"
        if self.replicates is not None:
            beside += f" (replicates alone: {self.replicates[0]:.3g})"
        return beside

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return f"Fit({self.law.name}, {', '.join(f'{k}={v:.5g}' for k, v in self.params.items())})"

    def to_frame(self, level: float = 0.9) -> Any:
        """One row a parameter: value, low, high."""
        import pandas as pd

        rows = {name: (self.params[name], *ends) for name, ends in self.intervals(level).items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])

    def to_dict(self, level: float = 0.9) -> dict[str, Any]:
        """Law, parameters, intervals, verdict and evidence."""
        return {
            "law": self.law.name,
            "expression": self.law.expression,
            "n_runs": len(self.runs),
            "objective": self.problem.objective,
            "residual": self.problem.residual,
            "objective_value": self.objective_value,
            "params": self.params,
            "level": level,
            "intervals": self.intervals(level),
            "verdict": self.verdict,
            "r2": self.r2,
            "adjusted_r2": self.adjusted_r2,
            "evidence": {**asdict(self.evidence), "concerns": self.evidence.concerns},
        }

    def save(self, path: str | Path) -> None:
        """Writes the fit as JSON, from which ps.load makes it again: law, runs, options, result and evidence."""
        from pyscaling.fitting.save import save

        save(self, path)

    def plot(self, ax: Any = None, group: Any = None, level: float = 0.9) -> Any:
        """Runs and fitted curves with their bands against the law's first variable, told apart by the second; returns the Axes.

        Without `ax` the residuals stand below, on the figure's second Axes. group: of a fit of groups the one to show, by
        default each. level: of the curves' bands.
        """
        from pyscaling.fitting.plots import plot_fit

        return plot_fit(self, ax, group, level)

    def plot_contours(
        self,
        a: str,
        b: str,
        ax: Any = None,
        *,
        levels: tuple[float, ...] = (0.68, 0.9, 0.95),
        points: int = 31,
        robust: bool = True,
    ) -> Any:
        """Joint regions of two parameters, the others refitted on a grid of points^2; returns the Axes.

        By the likelihood ratio as in `profile`, chi-square with two degrees of freedom, corrected for runs of unequal noise
        unless robust is False. Raises ValueError for a parameter that is unknown, fixed or not determined.
        """
        from pyscaling.fitting.plots import plot_contours

        return plot_contours(self, a, b, ax, levels, points, robust)

    def plot_leverage(self, ax: Any = None) -> Any:
        """Residual over noise against leverage, the rows of what stands out beside it; returns the Axes."""
        from pyscaling.fitting.plots import plot_leverage

        return plot_leverage(self, ax)

    def leverage(self) -> np.ndarray:
        """How far each run decides its own fitted value, [n], 0 to 1: the hat matrix's diagonal (Cook & Weisberg 1982)."""
        from pyscaling.fitting.plots import leverage

        return leverage(self)

    def correlation(self, robust: bool = True) -> np.ndarray:
        """Correlation [P, P] of the parameters (of their logarithms where they are fitted so), by `covariance`."""
        matrix = self.covariance(robust=robust, units="theta")
        error = np.sqrt(np.diag(matrix))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(matrix / np.outer(error, error))

    def to_latex(self, level: float = 0.9) -> str:
        """The parameters and their intervals as a LaTeX table (booktabs)."""
        from pyscaling.fitting.plots import latex_table

        return latex_table(self, self.intervals(level), level)


def _laws_for(table: Runs, chosen: Law) -> str:
    """Built-in laws that a table without a column of the chosen one could take."""
    if chosen.name not in laws.LAWS or chosen.response not in table:
        return ""
    able = [
        law.name
        for law in laws.LAWS.values()
        if law.response == chosen.response and set(law.variables) <= set(table.columns)
    ]
    return f" Laws of what it holds: {', '.join(able)}." if able else ""


def _distinct_minima(solved: Mapping[str, np.ndarray], value: np.ndarray) -> np.ndarray:
    """theta of the distinct minima that a resample may make the best, best first.

    One that is half as high again as the best is out of a resample's reach, and refitting from it would cost the most.
    """
    order = np.lexsort((solved["gradient"], value))
    chosen = [int(order[0])]
    for k in order[1:]:
        if value[k] > 1.5 * value[order[0]] or len(chosen) == 16:
            break
        if solved["status"][k] == 0 and value[k] > value[chosen[-1]] * (1 + 1e-6):
            chosen.append(int(k))
    return solved["theta"][chosen]


def law_over(
    law: Any,
    runs: Runs,
    *,
    variables: Sequence[str] = (),
    positive: Sequence[str] = (),
    response: str | None = None,
) -> Law:
    """The law to be fitted to runs: in an expression, names that are columns of theirs are variables.

    variables, positive: as in Law, of an expression. response: another column than the loss (or the law's own).
    Raises ValueError for what is no law, or a law without a variable.
    """
    if not isinstance(law, str | Law):
        raise ValueError(
            f"law must be a name, an expression or a ps.Law, got {law!r}; `pyscaling laws` lists the names."
        )
    if law == "step_law":  # of the two, the one that the table is a sweep of
        law = "step_law_batch" if "batch" in runs and "learning_rate" not in runs else "step_law_learning_rate"
    if isinstance(law, Law) or not any(sign in law for sign in "+*/("):
        chosen = laws.get(law)
        if variables or positive:
            option, given = ("variable", variables) if variables else ("positive", positive)
            raise ValueError(
                f"{option} {', '.join(given)} is for an expression; {chosen.name} says what its variables and "
                "parameters are."
            )
        if response in (None, chosen.response):
            return chosen
        return Law(
            chosen.expression,
            variables=chosen.variables,
            name=chosen.name,
            source=chosen.source,
            parameters=chosen.parameters,
            response=response or chosen.response,
        )
    names, response = names_of(law), response or "loss"
    if own := {response, runs.renamed.get(response, response)} & set(names):
        raise ValueError(f"law {law!r} holds {own.pop()!r}, the column that it is to give; rename one of them.")
    found = list(variables) or [n for n in names if (n in USUAL_VARIABLES or n in runs) and n not in positive]
    if not found:
        raise ValueError(
            f"law {law!r} has no variable: of its names ({', '.join(names)}) none is N, D, C, S or another column of "
            f"{runs.source}, which holds {', '.join(runs.columns)}."
        )
    return Law(law, list(positive) or None, variables=found, response=response)


def _checked_fixed(fixed: Any) -> dict[str, float]:
    for name, value in _mapping("fixed", fixed, '{"E": 1.7}').items():
        if not isinstance(value, Real):
            raise ValueError(f"fixed value of {name} must be a number, got {value!r}.")
    return dict(fixed or {})


def _checked_bounds(bounds: Any) -> dict[str, tuple[float, float]]:
    checked = {}
    for name, ends in _mapping("bounds", bounds, '{"alpha": (0, 0.5)}').items():
        pair = list(ends) if isinstance(ends, Sequence | np.ndarray) else []
        if len(pair) != 2 or not all(end is None or isinstance(end, Real) for end in pair):
            raise ValueError(f"bounds of {name} must be (low, high), numbers or None for an open end, got {ends!r}.")
        checked[name] = (-np.inf if pair[0] is None else pair[0], np.inf if pair[1] is None else pair[1])
    return checked


def _mapping(argument: str, given: Any, example: str) -> Mapping[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"{argument} must map parameters, as in {argument}={example}, got {given!r}.")
    return given or {}


def _tie(law: Law, tied: Sequence[Sequence[str]] | None) -> Law:
    """The law with each group of tied parameters replaced by its first one."""
    if not tied:
        return law
    shared = {name: name for name in law.parameters}
    for group in [tied] if isinstance(tied, str) else tied:
        if isinstance(group, str) or len(group) < 2:
            raise ValueError(f'tied must be groups of parameters, e.g. [("alpha", "beta")], got {group!r} as one.')
        for name in group:
            if name not in law.parameters:
                raise ValueError(
                    f"tied names {name!r}, not a parameter of {law.name}; those are {', '.join(law.names)}."
                )
        merged = {shared[name] for name in group}
        shared |= {name: shared[group[0]] for name, first in shared.items() if first in merged}
    tree = parse_expression(law.expression)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = shared.get(node.id, node.id)
    kept = {name: domain for name, domain in law.parameters.items() if shared[name] == name}
    groups = ", ".join(" = ".join(group) for group in tied)
    return Law(
        ast.unparse(tree),
        variables=law.variables,
        name=f"{law.name} ({groups})",
        source=law.source,
        parameters=kept,
        response=law.response,
    )


def _own_name(law: Law, runs: Runs) -> str:
    """What the response is called in the table that was read."""
    return runs.renamed.get(law.response, law.response)


def _columns_of(law: Law, runs: Runs) -> str:
    """The law's variables and its response, as words."""
    names = [runs.renamed.get(name, name) for name in law.variables if name not in law.indicators.values()]
    return f"{', '.join(names)} and {_own_name(law, runs)}"


def _listed(problem: Problem, theta: np.ndarray) -> str:
    return ", ".join(f"{k}={v:.4g}" for k, v in zip(problem.law.names, problem.to_params(theta), strict=True))
