"""Which runs to train next: the affordable ones that most reduce the variance of what a user wants to know.

Optimal design of experiments (Elfving 1952; Fedorov 1972; Pukelsheim 2006; Atkinson, Donev & Tobias 2007, chapters 10, 18). A
fit to runs with Jacobian J of log loss and noise tau a run knows its parameters theta with the information M = J'J / tau^2, and a
target t(theta) of gradient g with the variance g'M^-1 g. A further run at (N, D) with derivatives j adds jj' / tau^2, whatever
loss it comes to, so what it will tell is known before it is trained. The law is not linear, so that variance depends on the
unknown parameters: the mean of its logarithm over bootstrap samples is minimised (Chaloner & Verdinelli 1995, section 4).
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations, groupby, product
from math import isfinite, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyscaling._core import jacobian
from pyscaling.accounting import parse_compute, training_flops
from pyscaling.fitting.bootstrap import central_error, check_level, student_t
from pyscaling.fitting.covariance import score_moments
from pyscaling.fitting.groups import one_of
from pyscaling.fitting.plots import log_count_axis
from pyscaling.fitting.result import Result, text_table
from pyscaling.planning.batch import critical_batch_of_tokens
from pyscaling.planning.frontier import SMALLEST_N, Frontier
from pyscaling.planning.result import Quantity
from pyscaling.planning.text import verdict_of, warned, wrapped
from pyscaling.tables import Runs
from pyscaling.units import check_positive, format_count, is_number

Array = NDArray[Any]
Places = Mapping[str, Array]  # variable -> [K]
Cost = Callable[..., Any]
Price = Callable[[Places], Array]
Target = str | Callable[[Mapping[str, Any]], Any]

_AT_A_BUDGET = ("N_opt", "D_opt", "loss")
_GRID = 33  # candidates along each of ln N and ln D: the best of them loses less than 1 % of the variance to the best there is
_MOST_CANDIDATES = _GRID**2
_BEYOND = 4.0  # times the largest of the data's own N, D, C and S
_RATIO = 5.0, 500.0  # tokens per parameter of the runs that people make
_LEAST_STEPS = 500.0
_LEVELS = 9  # of a variable that is none of N, D, C, S
_REGION = 5  # places along each variable of a region
_UNKNOWN = 10.0  # standard deviation of what the runs say nothing of, in theta: wide enough to say nothing itself
_MOST_RUNS = 32
_BOOTSTRAP_SAYS = 1.25  # times the model's error: more than 1,000 resamples err by
_OVER_REGION = "loss over the region"
_SHORT = {_OVER_REGION: "loss"}
_HONEST = (  # bench/test_misspecified.py
    "Where losses are off the law by 0.5 %, refits in simulations were as narrow as promised, 1.6 times nearer, and held the "
    "truth in 52 % (docs/planning.md)"
)


@dataclass(frozen=True)
class NextRun:
    """One run to train: at, variable -> value (N parameters, D tokens, ...), its cost, and the target's interval after it."""

    at: dict[str, float]
    cost: float
    after: Quantity

    @property
    def N(self) -> float:
        return self._variable("N")

    @property
    def D(self) -> float:
        return self._variable("D")

    @property
    def C(self) -> float:
        """FLOPs: the law's own variable, or 6ND."""
        return self.at["C"] if "C" in self.at else float(training_flops(self.N, self.D))

    @property
    def steps(self) -> float:
        """At the critical batch of Zhang et al. 2024."""
        return self.D / float(critical_batch_of_tokens(self.D))

    def _variable(self, name: str) -> float:
        if name not in self.at:
            raise AttributeError(f"this run has no {name}; it is of {', '.join(self.at)}.")
        return self.at[name]

    def to_dict(self) -> dict[str, Any]:
        flops = {"C": self.C} if {"N", "D"} <= set(self.at) else {}
        return {**self.at, **flops, "cost": self.cost, "after": asdict(self.after)}


@dataclass(frozen=True)
class NextRuns(Result):
    """Runs to train, in the order of what they tell for their cost; made by `next_runs`.

    target: as asked for, compute: the budget it is meant at, or None. before, after: the target's value with the interval of
    `level` that it has now, and that it is expected to have when all runs are trained. spend: what was to be spent; used:
    the share that is. efficiency: the least variance that any division of the spend over these candidates could reach, in
    fractions of runs, over the variance of these (1 is the best); a lower bound. key: of the runs that were fitted and
    the ones chosen, by which a study knows whether it has added them. variables: of the law. verdict: whether to believe the
    fit that they are chosen by.
    """

    runs: tuple[NextRun, ...]
    target: str
    compute: float | None
    before: Quantity
    after: Quantity
    spend: float
    level: float
    law: str
    efficiency: float
    key: str
    warnings: tuple[str, ...] = ()
    variables: tuple[str, ...] = ("N", "D")
    verdict: str = ""
    _candidates: Array = field(repr=False, compare=False, kw_only=True)  # [K, V]
    _data: Array = field(repr=False, compare=False, kw_only=True)  # [n, V]

    @property
    def N(self) -> Array:
        """[n]."""
        return np.array([run.N for run in self.runs])

    @property
    def D(self) -> Array:
        """[n]."""
        return np.array([run.D for run in self.runs])

    @property
    def used(self) -> float:
        """The share of spend that the runs cost."""
        return float(sum(run.cost for run in self.runs) / self.spend)

    @property
    def gain(self) -> float:
        """How many times narrower the interval is expected to be, if the law holds."""
        return _width(self.before) / _width(self.after)

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[NextRun]:
        return iter(self.runs)

    def _rows(self) -> list[tuple[str, ...]]:
        both = {"N", "D"} <= set(self.variables)
        extra = (("D/N",) if both else ()) + (("steps",) if "D" in self.variables else ())
        rows = [
            ("runs", *self.variables, *extra, "cost", f"{_SHORT.get(self.target, self.target)} then, {self.level:.0%}")
        ]
        rows.append(("now", *[""] * (len(rows[0]) - 2), self._said(self.before)))
        for _, group in groupby(self.runs, key=lambda run: tuple(run.at.values())):
            same = list(group)
            run = same[-1]
            more = ((f"{run.D / run.N:.3g}",) if both else ()) + (
                (f"{run.steps:,.0f}",) if "D" in self.variables else ()
            )
            counts = [format_count(value) for value in run.at.values()]
            rows.append((f"{len(same)} x", *counts, *more, f"{run.cost:.3g}", self._said(run.after)))
        return rows

    def _said(self, quantity: Quantity) -> str:
        write = format_count if self.target in ("N_opt", "D_opt") else "{:.4g}".format
        return f"{write(quantity.value)} [{write(quantity.low)}, {write(quantity.high)}]"

    def _title(self) -> tuple[str, str]:
        """What it is, and whether to believe it: the latter first where it is not to be believed."""
        at = "" if self.compute is None else f" at {self.compute:.3g} FLOPs"
        title = f"{len(self)} runs that tell most of {self.target}{at} by {self.law}, for {self.spend:.4g}"
        return (self.verdict, title) if self.verdict.startswith("NOT") else (title, self.verdict)

    def _summary(self) -> str:
        return (
            f"{self.used:.1%} of the spend; the interval gets {self.gain:.3g} times narrower if the law holds; at least "
            f"{self.efficiency:.0%} of what any runs for it could tell. {_HONEST}"
        )

    def __str__(self) -> str:
        table = text_table(self._rows())
        title = [line for part in self._title() for line in wrapped(part, 0)]
        return "\n".join([*title, table, *wrapped(self._summary(), 2), *warned(self.warnings)])

    def _repr_html_(self) -> str:
        from html import escape

        head, *rows = self._rows()
        cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        table = f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr></thead><tbody>{cells}</tbody>"
        caption = f'<caption style="text-align:left">{"<br>".join(map(escape, self._title()))}</caption>'
        notes = "".join(f"<p>&#9888; {escape(warning)}</p>" for warning in self.warnings)
        return f"<table>{caption}{table}</table><p>{escape(self._summary())}</p>{notes}"

    def to_dict(self) -> dict[str, Any]:
        names = ("verdict", "target", "compute", "spend", "used", "level", "law", "efficiency", "gain", "key")
        return {
            **{name: getattr(self, name) for name in names},
            "before": asdict(self.before),
            "after": asdict(self.after),
            "runs": [run.to_dict() for run in self.runs],
            "warnings": list(self.warnings),
        }

    def to_frame(self) -> Any:
        """One row a run: its variables, C = 6ND where there are N and D, cost, and low and high of the target's interval then."""
        import pandas as pd

        rows = [run.to_dict() for run in self.runs]
        return pd.DataFrame([row | {"low": row["after"]["low"], "high": row["after"]["high"]} for row in rows]).drop(
            columns="after"
        )

    def plot(self, ax: Any = None) -> Any:
        """Runs fitted, candidates and the runs chosen, over N and D with lines of equal C where the law is of both, else over
        the law's first two variables (of one alone, over it and the cost); a matplotlib Axes."""
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.figure(figsize=(6.4, 4.6), dpi=150, layout="constrained").add_subplot()
        both = {"N", "D"} <= set(self.variables)
        names = ("N", "D") if both else self.variables[:2]
        columns = [self.variables.index(name) for name in names]
        alone = len(columns) == 1
        chosen = [tuple(run.at[name] for name in names) + ((run.cost,) if alone else ()) for run in self.runs]
        if not alone:
            ax.plot(*self._candidates[:, columns].T, ".", color="0.8", ms=1.5, label="candidates", zorder=1)
            ax.plot(*self._data[:, columns].T, "+k", ms=5, mew=0.8, label="fitted runs", zorder=3)
        counts = {place: chosen.count(place) for place in chosen}
        ax.plot(*zip(*counts, strict=True), "ok", mfc="w", mew=1.4, ms=7, label=f"to train ({len(self)})", zorder=4)
        for place, count in counts.items():
            if count > 1:
                ax.annotate(f"x {count}", place, xytext=(7, 3), textcoords="offset points", fontsize=8, zorder=5)
        ax.margins(0.06)
        for which in ("x", "y"):
            log_count_axis(ax, which)
        labels = {"N": "N, non-embedding parameters", "D": "D, tokens"}
        axes_names = [labels.get(name, name) for name in (*names, *(("cost",) if alone else ()))]
        ax.set(xlabel=axes_names[0], ylabel=axes_names[1])
        if both:
            self._equal_compute(ax)
        ax.legend(fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), columnspacing=1.2,
                  handletextpad=0.4)  # fmt: skip
        return ax

    @staticmethod
    def _equal_compute(ax: Any) -> None:
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        least, most = np.log10(6 * left * bottom), np.log10(6 * right * top)
        step = max(1, round((most - least) / 7))
        for exponent in range(int(np.ceil(least)), int(np.floor(most)) + 1, step):
            N = np.geomspace(left, right, 2)
            ax.plot(N, 10.0**exponent / (6 * N), ":", color="0.45", lw=0.8, zorder=2)
            x = min(right, 10.0**exponent / (6 * bottom)) / 1.05
            ax.text(
                x, max(bottom, 10.0**exponent / (6 * x)) * 1.05, f"1e{exponent}", fontsize=7, color="0.35", ha="right",
                bbox={"facecolor": "w", "edgecolor": "none", "pad": 0.5}, zorder=2.5,
            )  # fmt: skip
        ax.set(xlim=(left, right), ylim=(bottom, top))
        ax.plot([], [], ":", color="0.45", lw=0.8, label="equal C, FLOPs")


def next_runs(
    fit: Any,
    spend: float | str,
    *,
    target: Target = "N_opt",
    compute: float | str | None = None,
    region: Mapping[str, Any] | None = None,
    cost: Cost | None = None,
    fixed_cost: float = 0.0,
    N_range: tuple[float, float] | None = None,
    D_range: tuple[float, float] | None = None,
    tokens_per_parameter: tuple[float, float] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    candidates: Any = None,
    max_run: float | str | None = None,
    n_runs: int | None = None,
    noise: float | None = None,
    group: Any = None,
    average: int = 32,
    level: float = 0.9,
    seed: int = 0,
) -> NextRuns:
    """The affordable runs that most reduce the variance of a target, by optimal design over a fit.

    fit: of any law whose runs have a cost. spend: what all runs may cost together, FLOPs or a text with a unit ("3 PF-days").
    target: "N_opt", "D_opt" or "loss", the best model, its tokens or its loss at `compute` FLOPs (default: ten times the largest
    compute among the fitted runs), of a law of N and D; "loss" over a region, such as {"N": (1e9, 1e10), "D": (2e10, 2e11)}
    with a range or a value for each variable: the mean variance of ln L over a grid there; a parameter's name; or a function
    of the parameters, called with name -> [R], giving [R].

    **What a run costs**: cost, called with arrays [K] of the law's variables, by name where it takes them so, as in cost(N=...,
    experts=...), else in order, N and D first; in the unit of spend. Unless given 6ND FLOPs, or C of a law of C; other laws
    need it.
    fixed_cost: of each run besides. max_run: the most that one may cost; n_runs: how many at most (32 unless given). The
    same run may be chosen several times, to be trained with other seeds.

    **Which runs**: N and D in N_range and D_range and with D/N in tokens_per_parameter, each (low, high), and any variable
    in ranges={"experts": (1, 64)}. By default what people run: from the least N and D of the fitted runs to four times the
    largest, for a law is not known far from its runs; 5 to 500 tokens per parameter, or where a quarter of the fitted
    runs lies beyond these, as far as that quarter does; any other variable at values that the fitted runs have. Or
    candidates: a table of columns named as the variables that lists them, such as the shapes that exist.

    noise: standard deviation of a run about the law, in the units of the fit's residual (by default as the fit has it under
    its own objective). group: of a fit of several, whose runs are to be chosen. average: bootstrap samples over which the mean
    of the log variance is minimised, so that runs are good for all parameters that the fit deems likely; 0 for those at its
    estimate alone (local design). seed: theirs. Intervals before and after are of `level`, at the estimate, model-based
    (runs of equal and independent noise), with Student's t; they hold if the law does, see docs/planning.md for what a refit
    comes to where it does not.

    The runs are found greedily, and from the rounded optimum of the continuous relaxation, then exchanged one by one
    and in pairs (Fedorov 1972); `efficiency` compares them with a bound from that relaxation.
    Raises ValueError that names the argument for what is negative, not finite or unknown, a law without a known cost, ranges that
    are reversed or leave no run, a spend below the cheapest run, and a cost that is not positive.
    """
    check_level(level)
    fit = one_of(fit, group)
    joint = getattr(fit, "joint", fit)
    _check_fit(joint)
    total = _amount("spend", spend)
    if total > 1e100:
        raise ValueError(f"spend={spend!r} is beyond any compute there is; give what can be spent.")
    if not (is_number(fixed_cost) and isfinite(fixed_cost) and fixed_cost >= 0):
        raise ValueError(f"fixed_cost must be finite and not negative, got {fixed_cost!r}.")
    if noise is not None:
        check_positive("noise", noise)
    most_runs = _whole("n_runs", _MOST_RUNS if n_runs is None else n_runs, 1)
    _whole("average", average, 0)
    most = total if max_run is None else min(total, _amount("max_run", max_run))
    names = tuple(sorted(fit.law.variables, key=lambda name: {"N": 0, "D": 1}.get(name, 2)))
    paid = _cost_of(fit.law.name, names, cost)

    def price(places: Places) -> Array:
        return paid(places) + fixed_cost

    given = _given_ranges(names, N_range, D_range, ranges)
    places, charge = _candidates(fit.runs, names, price, total, most, given, tokens_per_parameter, candidates)
    budget = _budget(fit, target, compute, region)
    function, name = _target(fit, target, budget, region)
    information = _Information.of(joint, fit, function, name, places, noise)
    here = information.whitened(joint.theta)
    if here is None:
        raise ValueError(
            f"{name} of {fit.law.name} does not change with its parameters, or not finitely, at the estimate "
            f"({_at(fit.params, function):.4g}); no run can tell more of it."
        )
    drawn = [information.whitened(theta) for theta in _samples(joint, average, seed)]
    states = [here, *(state for state in drawn if state is not None)]
    spendable = min(total, most_runs * float(charge.max()))
    search = _Search(np.stack([J for J, _ in states]), np.stack([g for _, g in states]), charge, spendable, most_runs)
    chosen = search.best()

    at_estimate = _Search(here[0][None], here[1][None], charge, spendable, most_runs)
    order = at_estimate.ordered(chosen)
    value = _at(fit.params, function)
    points = joint.problem.n_runs - joint.problem.n_free
    widened = _widened(fit, function, value, float(np.exp(at_estimate.criterion([]) / 2)), seed)

    def interval(indices: list[int]) -> Quantity:
        error = widened * float(np.exp(at_estimate.criterion(indices) / 2))
        reach = student_t(0.5 + level / 2, max(1, points + len(indices))) * error
        if region is not None:  # the root mean square error of ln L
            return Quantity(float(np.exp(value)), float(np.exp(value - reach)), float(np.exp(value + reach)))
        if value > 0:  # relative, as Bootstrap.interval has it
            reach = min(reach / value, 700.0)
            return Quantity(value, value * float(np.exp(-reach)), value * float(np.exp(reach)))
        return Quantity(value, value - reach, value + reach)

    runs = tuple(
        NextRun({key: float(places[key][k]) for key in names}, float(charge[k]), interval(order[: i + 1]))
        for i, k in enumerate(order)
    )
    before, after = interval([]), interval(order)
    warnings = tuple(_warnings(fit, names, name, budget, before, runs, most_runs, total))
    return NextRuns(
        runs,
        name,
        budget,
        before,
        after,
        total,
        level,
        fit.law.name,
        search.efficiency(chosen),
        _key(joint, names, runs),
        warnings,
        names,
        verdict_of(fit, warnings),
        _candidates=np.stack([places[key] for key in names], axis=1),
        _data=np.stack([np.asarray(fit.runs[key]) for key in names], axis=1),
    )


def _widened(fit: Any, function: Any, value: float, error: float, seed: int) -> float:
    """By how much the bootstrap's standard error of the target exceeds the model's, where that is more than its own noise.

    A robust fit to a few runs passes through some of them; the curvature there knows nothing of the rest.
    """
    boot = fit.bootstrap(1000, seed=seed, resample=None)
    with np.errstate(all="ignore"):
        drawn = np.asarray(function(dict(zip(boot.names, boot.samples.T, strict=True))))
        if drawn.ndim == 1 and value > 0 and np.all(drawn[np.isfinite(drawn)] > 0):
            drawn = value * np.log(drawn)
        drawn = drawn[np.isfinite(drawn.reshape(len(drawn), -1)).all(axis=1)]
    if len(drawn) < 100:
        return 1.0
    ratio = float(np.sqrt(np.mean(central_error(drawn) ** 2))) / error
    return ratio if ratio > _BOOTSTRAP_SAYS else 1.0


@dataclass(frozen=True)
class _Information:
    """What the fitted runs tell of the free parameters, and what each candidate would add."""

    problem: Any
    function: Callable[[Mapping[str, Array]], Array]  # of the problem's parameters
    columns: Any  # of the candidates
    free: NDArray[np.intp]
    tau: float  # noise of a run to come, in the units of the fit's residual
    known: float  # of a fitted run, as the objective sees it

    @classmethod
    def of(cls, joint: Any, fit: Any, function: Any, name: str, places: Places, noise: float | None) -> "_Information":
        problem = joint.problem
        free = np.flatnonzero(problem.lower < problem.upper)
        if not free.size:
            raise ValueError(f"every parameter of {fit.law.name} is fixed; no run can tell more of {name}.")
        slope, variance = score_moments(joint)
        known = float(np.sqrt(variance) / slope)
        count = len(next(iter(places.values())))
        member = {flag: np.full(count, value) for flag, value in getattr(fit, "membership", {}).items()}
        columns = problem.compiled.columns({**places, **member})
        own = getattr(fit, "names", {key: key for key in fit.params})
        tau = known if noise is None else float(noise)

        def of_problem(params: Mapping[str, Array]) -> Array:
            return np.asarray(function({key: params[joint_name] for key, joint_name in own.items()}))

        return cls(problem, of_problem, columns, free, max(tau, 1e-9), max(known, 1e-9))

    def whitened(self, theta: Array) -> tuple[Array, Array] | None:
        """Derivatives [K, P] of candidates over their noise, and the target's [P, Q], where the fit's own information is 1."""
        weights = self.problem.weights / self.problem.weights.mean()
        _, before = self.problem.value_and_jacobian(theta)
        _, derivatives = jacobian(self.problem.compiled.tape, self.columns, theta)
        gradient = _gradient(self.problem, self.function, theta)[self.free]
        J = derivatives.T[:, self.free] / self.tau
        X = before[:, self.free] * (np.sqrt(weights) / self.known)[:, None]
        if not (np.isfinite(J).all() and np.isfinite(X).all() and np.isfinite(gradient).all() and gradient.any()):
            return None
        if gradient.shape[1] > 1:  # G G' is all that counts: at most P columns
            size, axes = np.linalg.eigh(gradient @ gradient.T)
            gradient = axes * np.sqrt(np.maximum(size, 0.0))
        _, root = np.linalg.qr(np.concatenate([X, np.eye(len(self.free)) / _UNKNOWN]))  # R'R = information
        return np.linalg.solve(root.T, J.T).T, np.linalg.solve(root.T, gradient)


# ---- what is asked ---------------------------------------------------------------------------------------------------


def _check_fit(fit: Any) -> None:
    if not hasattr(fit, "problem"):
        raise ValueError(f"fit must come from ps.fit, got {type(fit).__name__}.")


def _cost_of(law: str, names: tuple[str, ...], cost: Cost | None) -> Price:
    """The cost of runs by their variables."""
    both = {"N", "D"} <= set(names)
    if cost is None:
        if both:
            return lambda places: np.asarray(training_flops(places["N"], places["D"]))
        if "C" in names:
            return lambda places: np.asarray(places["C"])
        listed = ", ".join(names)
        raise ValueError(
            f"cost is missing: what a run of {law} costs does not follow from {listed}; give cost=, a function of "
            f"{listed} as arrays, such as lambda {listed}: 6 * {names[0]} * 2e10."
        )
    if not callable(cost):
        raise ValueError(f"cost must be a function of {' and '.join(names)}, got {cost!r}.")

    named = _takes(cost, names)

    def priced(places: Places) -> Array:
        count = len(next(iter(places.values())))
        try:
            by_name = {name: places[name] for name in names}
            values = cost(**by_name) if named else cost(*by_name.values())
            found = np.broadcast_to(np.asarray(values, dtype=np.float64), (count,))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"cost must take arrays of {' and '.join(names)} and give as many numbers: {error}."
            ) from None
        bad = np.flatnonzero(~(np.isfinite(found) & (found > 0)))
        if bad.size:
            k = int(bad[0])
            where = ", ".join(f"{name}={places[name][k]:.3g}" for name in names)
            raise ValueError(f"cost must be finite and positive; of {where} it is {found[k]:g}.")
        return found

    return priced


def _takes(cost: Cost, names: tuple[str, ...]) -> bool:
    """Whether a function takes the variables by name."""
    try:
        inspect.signature(cost).bind(**dict.fromkeys(names))
    except (TypeError, ValueError):
        return False
    return True


def _given_ranges(names: tuple[str, ...], N_range: Any, D_range: Any, ranges: Any) -> dict[str, tuple[float, float]]:
    if not isinstance(ranges, Mapping | None):
        raise ValueError(f'ranges must map variables to (low, high), as in {{"experts": (1, 64)}}, got {ranges!r}.')
    given = {}
    every = [("N_range", "N", N_range), ("D_range", "D", D_range)]
    every += [(f"ranges[{name!r}]", name, value) for name, value in (ranges or {}).items()]
    for argument, name, value in every:
        if value is None:
            continue
        if name not in names:
            raise ValueError(f"{argument} is of no variable of the law; those are {', '.join(names)}.")
        if name in given:
            raise ValueError(f"{name} has two ranges, {name}_range and ranges[{name!r}]; leave one out.")
        given[name] = _range(argument, value)
    return given


def _amount(name: str, value: float | str) -> float:
    """In the unit of the cost, or FLOPs from a text."""
    if isinstance(value, str):
        try:
            return parse_compute(value)
        except ValueError as error:
            raise ValueError(re.sub(r"^compute\b", name, str(error))) from None
    check_positive(name, value)
    return float(value)


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    return int(value)


def _range(name: str, given: Any) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in given)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be (low, high), two numbers, got {given!r}.") from None
    for end in (low, high):
        check_positive(f"an end of {name}", end)
    if low > high:
        raise ValueError(f"{name}=({low:g}, {high:g}) is reversed; give (low, high).")
    return low, high


def _bounds(name: str, values: Array, given: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """Where candidates of N, D, C or S lie: from the least of the runs, to a few times the largest."""
    return given.get(name, (float(values.min()), _BEYOND * float(values.max())))


def _usual_ratio(ratio: Array, given: Any) -> tuple[float, float]:
    """Tokens per parameter: what people run, or as far as a quarter of the fitted runs goes beyond."""
    if given is not None:
        return _range("tokens_per_parameter", given)
    low, high = np.quantile(ratio, [0.25, 0.75])
    return min(_RATIO[0], float(low)), max(_RATIO[1], float(high))


def _levels(name: str, values: Array, given: Mapping[str, tuple[float, float]], count: int) -> Array:
    """Values of a variable to choose among: of N, D, C and S between their ends, else those that the runs have."""
    if name in ("N", "D", "C", "S"):
        return np.unique(np.geomspace(*_bounds(name, values, given), count))
    if name not in given:
        known = np.unique(values)
        return (
            known if len(known) <= count else np.unique(np.quantile(known, np.linspace(0, 1, count), method="nearest"))
        )
    found = np.unique(np.geomspace(*given[name], count))
    return np.unique(np.round(found)) if np.all(values == np.round(values)) and given[name][0] >= 1 else found


def _candidates(
    runs: Runs, names: tuple[str, ...], price: Price, spend: float, most: float, given: Mapping[str, tuple[float, float]],
    ratio: Any, candidates: Any,
) -> tuple[dict[str, Array], Array]:  # fmt: skip
    """Variables [K] of the runs to choose from, and their cost [K]: none above `most`."""
    both = {"N", "D"} <= set(names)
    if candidates is not None:
        if given or ratio is not None:
            raise ValueError(
                "candidates list the runs; N_range, D_range, ranges and tokens_per_parameter say nothing beside."
            )
        table = candidates if isinstance(candidates, Runs) else Runs(candidates, source="candidates")
        places = {name: np.asarray(table[name], dtype=np.float64) for name in names}
        if not len(places[names[0]]):
            raise ValueError("candidates hold no run.")
    else:
        if ratio is not None and not both:
            raise ValueError(
                f"tokens_per_parameter={ratio!r} is for a law of N and D; this one is of {', '.join(names)}."
            )
        data = {name: np.asarray(runs[name], dtype=np.float64) for name in names}
        others = [name for name in names if not (both and name in ("N", "D"))]
        axes = [_levels(name, data[name], given, _LEVELS if len(names) > 1 else 4 * _GRID) for name in others]
        rest = [np.array([values[i] for values in product(*axes)]) for i in range(len(others))]
        if both:
            count = len(rest[0]) if rest else 1
            side = min(_GRID, max(7, int(sqrt(_MOST_CANDIDATES / count))))
            places = _of_N_and_D(data, dict(zip(others, rest, strict=True)), price, most, given, ratio, side)
        else:
            places = dict(zip(others, rest, strict=True))
    charge = price(places)
    affordable = charge <= most * (1 + 1e-9)
    if not affordable.any():
        k = int(np.argmin(charge))
        limit = f"spend={spend:.4g}" if most == spend else f"max_run={most:.4g}"
        where = " and ".join(f"{name}={places[name][k]:.3g}" for name in names)
        raise ValueError(
            f"{limit} pays for no run: the cheapest, {where}, costs {charge[k]:.4g}; raise it, or allow smaller runs."
        )
    return {name: values[affordable] for name, values in places.items()}, charge[affordable]


def _of_N_and_D(
    data: Places,
    others: Places,
    price: Price,
    most: float,
    given: Mapping[str, tuple[float, float]],
    ratio: Any,
    side: int,
) -> dict[str, Array]:
    """A grid of ln N, and of ln D between ends that depend on N, at each level of the other variables."""
    N_low, N_high = _bounds("N", data["N"], given)
    N_low = N_low if "N" in given else min(max(N_low, SMALLEST_N), float(data["N"].min()))  # models that exist
    D_low, D_high = _bounds("D", data["D"], given)
    least, largest = _usual_ratio(data["D"] / data["N"], ratio)
    grid_N = np.unique(np.geomspace(N_low, N_high, side))
    low, high = np.maximum(D_low, least * grid_N), np.minimum(D_high, largest * grid_N)
    kept = low <= high * (1 + 1e-12)
    if not kept.any():
        raise ValueError(
            f"N_range=({N_low:.3g}, {N_high:.3g}), D_range=({D_low:.3g}, {D_high:.3g}) and tokens_per_parameter="
            f"({least:.3g}, {largest:.3g}) leave no run; widen one."
        )
    grid_N, low, high = grid_N[kept], low[kept], np.maximum(low, high)[kept]
    levels = len(next(iter(others.values()))) if others else 1
    wide = {name: np.repeat(values, len(grid_N)) for name, values in others.items()}
    N, first, last = (np.tile(values, levels) for values in (grid_N, low, high))

    def of_tokens(D: Array) -> Array:
        return price({"N": N, "D": D, **wide})

    # a run may spend all that one may cost: where it can, D ends there, and not at a step of the grid below
    end = _affordable(of_tokens, first, last, most)
    D = first[:, None] * (end / first)[:, None] ** np.linspace(0, 1, side)
    columns = [np.broadcast_to(values[:, None], D.shape).ravel() for values in (N, *wide.values())]
    points = np.unique(np.stack([columns[0], D.ravel(), *columns[1:]], axis=1), axis=0)
    return dict(zip(("N", "D", *others), points.T, strict=True))


def _affordable(price: Callable[[Array], Array], low: Array, high: Array, most: float) -> Array:
    """The largest D [k] up to high whose run costs `most` or less; low where none does."""
    a, b = np.log(low), np.log(high)
    whole = price(high) <= most
    for _ in range(50):
        middle = (a + b) / 2
        below = price(np.exp(middle)) <= most
        a, b = np.where(below, middle, a), np.where(below, b, middle)
    return np.where(whole, high, np.exp(a))


def _budget(fit: Any, target: Target, compute: float | str | None, region: Any) -> float | None:
    if region is not None:
        if target != "loss":
            raise ValueError(f'region={region!r} is of the loss; give target="loss", or leave region out.')
        if compute is not None:
            raise ValueError(f"region and compute={compute!r} both say where the loss is meant; give one of them.")
        return None
    if not (isinstance(target, str) and target in _AT_A_BUDGET):
        if compute is not None:
            raise ValueError(f"compute={compute!r} says nothing of target={target!r}, which is no value at a budget.")
        return None
    if set(fit.law.variables) != {"N", "D"}:
        raise ValueError(
            f"target={target!r} at a budget needs a law of N and D, and {fit.law.name} is of {', '.join(fit.law.variables)}; "
            f'give target="loss" with region={{variable: (low, high)}}, one of the parameters {", ".join(fit.law.names)}, or a '
            "function of them."
        )
    if compute is not None:
        return parse_compute(compute)
    return 10 * _largest_compute(fit)


def _largest_compute(fit: Any) -> float:
    runs = fit.runs
    return float(np.max(runs["C"] if "C" in runs.columns else training_flops(runs["N"], runs["D"])))


def _over_region(fit: Any, region: Any) -> Callable[[Mapping[str, Any]], Array]:
    """ln L at a grid over the region, [R, J]."""
    names = fit.law.variables
    if not isinstance(region, Mapping) or set(region) != set(names):
        raise ValueError(
            f"region must give a value or (low, high) for each of {', '.join(names)}, got {region!r}; for example "
            f"region={{{', '.join(f'{name!r}: (low, high)' for name in names)}}}."
        )
    axes = []
    for name in names:
        low, high = (region[name],) * 2 if is_number(region[name]) else region[name]
        axes.append(np.unique(np.geomspace(*_range(f"region[{name!r}]", (low, high)), _REGION)))
    grid = dict(zip(names, (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")), strict=True))

    def log_loss(params: Mapping[str, Any]) -> Array:
        columns = {name: np.asarray(value, dtype=np.float64)[:, None] for name, value in params.items()}
        with np.errstate(all="ignore"):
            return np.asarray(np.log(fit.law.evaluate(columns, **grid)))

    return log_loss


def _target(
    fit: Any, target: Target, compute: float | None, region: Any = None
) -> tuple[Callable[[Mapping[str, Any]], Array], str]:
    """The target as a function of parameters name -> [R], giving [R] (of a region [R, J]), and its name."""
    if region is not None:
        return _over_region(fit, region), _OVER_REGION
    if callable(target):

        def called(params: Mapping[str, Any]) -> Array:
            values = np.asarray(target(params), dtype=np.float64)
            return np.broadcast_to(values, np.shape(next(iter(params.values()))))

        try:
            called({name: np.array([value, value]) for name, value in fit.params.items()})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"target must take parameters ({', '.join(fit.law.names)}) of shape [R] and give [R]: {error!r}."
            ) from None
        name = getattr(target, "__name__", "the target")
        return called, "the target" if name == "<lambda>" or not inspect.isfunction(target) else name
    if target in fit.law.names:
        return (lambda params: np.asarray(params[target])), target
    if target not in _AT_A_BUDGET or compute is None:
        raise ValueError(
            f"target={target!r} is unknown; known are {', '.join(_AT_A_BUDGET)}, the parameters {', '.join(fit.law.names)}, "
            "and functions of them."
        )
    frontier = Frontier(fit.law, 1.0, compute / 6)

    def at_budget(params: Mapping[str, Any]) -> Array:
        N = frontier.best_N(params, compute)
        if target == "N_opt":
            return N
        if target == "D_opt":
            return frontier.tokens(N, compute)
        return frontier.loss_at(params, N[:, None], compute)[:, 0]

    return at_budget, target


def _gradient(problem: Any, function: Callable[[Mapping[str, Any]], Array], theta: Array) -> Array:
    """Of the target by theta [P, Q], by fourth-order central differences; of Q values their mean square is the target's."""
    step = 1e-3 * np.maximum(1.0, np.abs(theta)) * np.where(np.abs(theta) < 1, 0.3, 1.0)
    offsets = np.array([1.0, -1.0, 2.0, -2.0])
    points = theta + offsets[:, None, None] * np.diag(step)  # [4, P, P]
    params = dict(zip(problem.law.names, problem.to_params(points.reshape(-1, len(theta))).T, strict=True))
    with np.errstate(all="ignore"):
        up, down, far_up, far_down = np.asarray(function(params)).reshape(4, len(theta), -1)
        slope = (8 * (up - down) - (far_up - far_down)) / (12 * step[:, None])
    return slope / sqrt(slope.shape[1])


def _samples(fit: Any, count: int, seed: int) -> list[Array]:
    if count < 2:
        return []
    boot = fit.bootstrap(count, seed=seed, resample=None)
    with np.errstate(all="ignore"):
        theta = fit.problem.to_theta(dict(zip(boot.names, boot.samples.T, strict=True)))
    return [row for row in theta if np.isfinite(row).all()]


# ---- the search ------------------------------------------------------------------------------------------------------


class _Search:
    """Indices of candidates, with repetition, of the least mean log variance for a spend and a number of runs.

    J [S, K, P]: a candidate's derivatives over its noise for each of S parameter samples; g [S, P, Q]: the target's, whose
    variance is the sum over Q, both in coordinates where what is known already is 1. cost [K].
    """

    def __init__(self, J: Array, g: Array, cost: Array, spend: float, n_runs: int) -> None:
        self.J = np.ascontiguousarray(J.transpose(0, 2, 1))  # [S, P, K]
        self.g, self.cost, self.spend, self.n_runs = g, cost, spend * (1 + 1e-9), n_runs
        self._bound: float | None = None

    def best(self) -> list[int]:
        starts = [self.filled([], power) for power in (0.0, 0.5, 1.0)]
        starts.append(self._rounded())
        starts.sort(key=self.criterion)
        found = [self._exchanged(start) for start in starts[:2]]
        return min(found, key=self.criterion)

    def criterion(self, chosen: list[int], inverse: Array | None = None) -> float:
        """Mean log variance of the target."""
        inverse = self._inverse(chosen) if inverse is None else inverse
        return float(np.mean(np.log(np.einsum("spq,spr,srq->s", self.g, inverse, self.g))))

    def ordered(self, chosen: list[int]) -> list[int]:
        """By what each tells for its cost, given those before; equal ones together."""
        rest, order = set(chosen), list[int]()
        while rest:
            gain = self._gains(self._inverse(order))
            best = min(rest, key=lambda k: float(gain[k] / self.cost[k]))
            order += [best] * chosen.count(best)
            rest.remove(best)
        return order

    def efficiency(self, chosen: list[int]) -> float:
        if self._bound is None:
            self._relaxed()
        assert self._bound is not None
        return float(min(1.0, np.exp(self._bound - self.criterion(chosen))))

    def filled(self, chosen: list[int], power: float) -> list[int]:
        """With what most reduces the criterion for each unit of cost^power, while there is money left."""
        chosen, inverse = list(chosen), self._inverse(chosen)
        left = self.spend - self.cost[chosen].sum()
        while len(chosen) < self.n_runs:
            affordable = np.flatnonzero(self.cost <= left)
            if not affordable.size:
                break
            gain = self._gains(inverse)[affordable]
            best = int(np.argmin(gain / self.cost[affordable] ** power))
            if gain[best] > -1e-9:
                break
            chosen.append(int(affordable[best]))
            left -= self.cost[chosen[-1]]
            inverse = self._inverse(chosen)
        return chosen

    def _inverse(self, chosen: list[int]) -> Array:
        """[S, P, P]."""
        picked = self.J[:, :, chosen]
        return np.linalg.inv(np.eye(self.J.shape[1]) + picked @ picked.transpose(0, 2, 1))

    def _gains(self, inverse: Array) -> Array:
        """Change of the criterion by one run at each candidate [K], negative; by Sherman & Morrison."""
        share = self._along(inverse, self.J)
        spread = np.sum((inverse @ self.J) * self.J, axis=1)
        return np.mean(np.log1p(-np.minimum(share / (1 + spread), 1 - 1e-15)), axis=0)

    def _along(self, inverse: Array, J: Array) -> Array:
        """What a candidate of J [S, P, k] says in the target's direction, over the target's variance: [S, k]."""
        b = inverse @ self.g  # [S, P, Q]
        variance = np.sum(self.g * b, axis=(1, 2))[:, None]
        return np.sum((b.transpose(0, 2, 1) @ J) ** 2, axis=1) / variance

    def _exchanged(self, chosen: list[int]) -> list[int]:
        """By exchanging one run for another, then one or two for whatever fills their place, until nothing helps."""
        value = self.criterion(chosen)
        for _ in range(100):
            better = self._one_for_one(chosen, value) or self._some_for_any(chosen, value)
            if better is None:
                break
            chosen = better
            value = self.criterion(chosen)
        return chosen

    def _one_for_one(self, chosen: list[int], value: float) -> list[int] | None:
        left = self.spend - self.cost[chosen].sum()
        best: tuple[float, list[int]] = (value - 1e-6, [])
        for k in set(chosen):
            rest = list(chosen)
            rest.remove(k)
            inverse = self._inverse(rest)
            gain = np.where(self.cost <= left + self.cost[k], self._gains(inverse), np.inf)
            new = int(np.argmin(gain))
            reached = self.criterion(rest, inverse) + gain[new]
            if reached < best[0]:
                best = (reached, [*rest, new])
        return self.filled(best[1], 0.5) if best[1] else None

    def _some_for_any(self, chosen: list[int], value: float) -> list[int] | None:
        distinct = sorted(set(chosen))
        groups = [(k,) for k in distinct]
        if len(distinct) <= 8:
            groups += [*combinations(distinct, 2), *((k, k) for k in distinct if chosen.count(k) > 1)]  # type: ignore[list-item]
        for group in groups:
            rest = list(chosen)
            for k in group:
                rest.remove(k)
            for power in (0.0, 0.5, 1.0):
                new = self.filled(rest, power)
                if self.criterion(new) < value - 1e-6:
                    return new
        return None

    def _relaxed(self) -> Array:
        """Numbers of runs [K], not whole, of the least criterion under both limits, and the bound on what any may reach.

        Money and number are one price, mu cost / spend + (1 - mu) / n_runs, of 1 in all; every mu gives a bound, and the best is
        where both limits are met (Lagrange).
        """
        count, self._bound = self._relaxed_at(1.0)
        low, high = 0.0, 1.0
        for _ in range(6):
            if high == 1.0 and low == 0.0 and count.sum() <= self.n_runs:
                break
            mu = (low + high) / 2
            count, bound = self._relaxed_at(mu)
            self._bound = max(self._bound, bound)
            low, high = (mu, high) if count @ self.cost > self.spend else (low, mu)
        return count

    def _relaxed_at(self, mu: float) -> tuple[Array, float]:
        """By the multiplicative algorithm (Silvey, Titterington & Torsney 1978; square roots as in Fellman 1974). The criterion
        is convex in the numbers, so its slopes bound it from below."""
        price = mu * self.cost / self.spend + (1 - mu) / self.n_runs
        kept = np.arange(len(price))
        weight = np.full(len(price), 1.0 / len(price))
        eye = np.eye(self.J.shape[1])
        J = self.J
        for step in range(160):
            if len(kept) < J.shape[2]:
                J = self.J[:, :, kept]
            inverse = np.linalg.inv(eye + (J * (weight / price[kept])) @ J.transpose(0, 2, 1))
            weight = weight * np.sqrt(self._slope(inverse, J) / price[kept])
            weight /= weight.sum()
            if step % 10 == 9:
                keep = weight > 1e-3 * weight.max()
                kept, weight = kept[keep], weight[keep] / weight[keep].sum()
        count = np.zeros(len(price))
        count[kept] = weight / price[kept]
        inverse = np.linalg.inv(eye + (self.J * count) @ self.J.transpose(0, 2, 1))
        slope = self._slope(inverse, self.J)
        return count, self.criterion([], inverse) - (float(np.max(slope / price)) - float(count @ slope))

    def _slope(self, inverse: Array, J: Array) -> Array:
        """How fast the criterion falls with the number of runs at each candidate [k] of J [S, P, k]."""
        return np.mean(self._along(inverse, J), axis=0)

    def _rounded(self) -> list[int]:
        """The relaxation's optimum in whole runs, the rest filled up."""
        count = self._relaxed()
        count *= min(1.0, self.n_runs / count.sum(), self.spend / (count @ self.cost))
        whole = np.floor(count + 1e-9).astype(int)
        return self.filled([k for k in np.flatnonzero(whole).tolist() for _ in range(whole[k])], 0.5)


# ---- what is said of it ----------------------------------------------------------------------------------------------


def _width(quantity: Quantity) -> float:
    if quantity.value > 0 and quantity.low > 0:
        return float(np.log(quantity.high / quantity.low))
    return quantity.high - quantity.low


def _at(params: Mapping[str, float], function: Callable[[Mapping[str, Any]], Array]) -> float:
    """The target at a fit's parameters; of a region the mean."""
    return float(np.mean(function({name: np.array([value]) for name, value in params.items()})))


def _key(joint: Any, names: tuple[str, ...], runs: tuple[NextRun, ...]) -> str:
    import hashlib

    table = np.stack([*(np.asarray(joint.runs[name]) for name in names), joint.problem.y]).tobytes()
    chosen = np.array(sorted(tuple(run.at.values()) for run in runs)).tobytes()
    return hashlib.sha256(table + chosen).hexdigest()[:8]


def _warnings(
    fit: Any, names: tuple[str, ...], name: str, compute: float | None, before: Quantity, runs: tuple[NextRun, ...],
    most: int, spend: float,
) -> Iterator[str]:  # fmt: skip
    if not fit.evidence.trustworthy:
        yield f"the fit is not to be trusted: {'; '.join(fit.evidence.concerns)}"
    if before.value > 0 and _width(before) > 2 * np.log(100):
        yield f"the fit does not determine {name} yet; plan again when the first of these runs are trained"
    elif before.value > 0 and _width(before) > 2 * np.log(3):
        yield f"{name} is uncertain by more than a factor of 3: train some of the runs, fit, and plan again"
    if compute is not None and (beyond := compute / _largest_compute(fit)) > 1e3:
        yield f"{compute:.3g} FLOPs are {beyond:.3g} times the largest run's; the interval holds if the law holds there"
    seen = {key: np.asarray(fit.runs[key]) for key in names}
    both = {"N", "D"} <= set(names)
    if both:
        seen["D/N"] = seen["D"] / seen["N"]

    def inside(run: NextRun) -> bool:
        at = run.at | ({"D/N": run.D / run.N} if both else {})
        return all(0.99 * values.min() <= at[key] <= 1.01 * values.max() for key, values in seen.items())

    outside = sum(not inside(run) for run in runs)
    if outside:
        where = "N, D or D/N" if set(names) == {"N", "D"} else ", ".join(seen)
        yield f"{outside} of {len(runs)} runs lie outside the fitted runs' {where}, where the law is a guess until they are"
    few = sum(run.steps < _LEAST_STEPS and 0.99 * seen["D"].min() > run.D for run in runs) if "D" in names else 0
    if few:
        yield (
            f"{few} of {len(runs)} runs see fewer tokens than any fitted run, and make fewer than {_LEAST_STEPS:.0f} steps at "
            "the critical batch: raise D_range, or train them at a smaller batch"
        )
    used = sum(run.cost for run in runs)
    if len(runs) == most and used < 0.9 * spend:
        yield f"n_runs={most} leaves {1 - used / spend:.0%} of the spend; allow more runs, or dearer ones"
