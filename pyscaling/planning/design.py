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
from itertools import combinations, groupby
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyscaling._core import jacobian
from pyscaling.accounting import parse_compute, training_flops
from pyscaling.fitting.bootstrap import check_level, student_t
from pyscaling.fitting.covariance import score_moments
from pyscaling.fitting.groups import GroupedLaw
from pyscaling.fitting.result import Result, text_table
from pyscaling.planning.frontier import FLOPS_PER_PARAMETER_TOKEN, SMALLEST_N, Frontier
from pyscaling.planning.result import Quantity, log_count_axis
from pyscaling.tables import Runs
from pyscaling.units import check_positive, format_count, is_number

Array = NDArray[Any]
Cost = Callable[[Any, Any], Any]
Target = str | Callable[[Mapping[str, Any]], Any]

_AT_A_BUDGET = ("N_opt", "D_opt", "loss")
_GRID = 33  # candidates along each of ln N and ln D: the best of them loses less than 1 % of the variance to the best there is
_WIDEN = 4.0  # beyond the data's own range, each way
_UNKNOWN = 10.0  # standard deviation of what the runs say nothing of, in theta: wide enough to say nothing itself
_MOST_RUNS = 32


@dataclass(frozen=True)
class NextRun:
    """One run to train: N parameters, D tokens, C = 6ND FLOPs, its cost, and the target's interval once it is trained."""

    N: float
    D: float
    C: float
    cost: float
    after: Quantity


@dataclass(frozen=True)
class NextRuns(Result):
    """Runs to train, in the order of what they tell for their cost; made by `next_runs`.

    target: as asked for, compute: the budget it is meant at, or None. before, after: the target's value with the interval of
    `level` that it has now, and that it is expected to have when all runs are trained. spend: what was to be spent; used:
    the share that is. efficiency: the least variance that any division of the spend over these candidates could reach, in
    fractions of runs, over the variance of these (1 is the best); a lower bound. key: of the runs that were fitted and
    the ones chosen, by which a study knows whether it has added them.
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
    _candidates: Array = field(repr=False, compare=False, kw_only=True)  # [K, 2]: N, D
    _data: Array = field(repr=False, compare=False, kw_only=True)  # [n, 2]

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
        """How many times narrower the interval is expected to be."""
        return _width(self.before) / _width(self.after)

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[NextRun]:
        return iter(self.runs)

    def __str__(self) -> str:
        at = "" if self.compute is None else f" at {self.compute:.3g} FLOPs"
        title = f"{len(self)} runs that tell most of {self.target}{at} by {self.law}, for {self.spend:.4g}"
        head = ("runs", "N", "D", "tokens/N", "C", "cost of one", f"{self.target} then, {self.level:.0%}")
        rows = []
        for (N, D), group in groupby(self.runs, key=lambda run: (run.N, run.D)):
            same = list(group)
            run = same[-1]
            count, ratio = f"{len(same)} x", f"{D / N:.3g}"
            rows.append(
                (count, format_count(N), format_count(D), ratio, f"{run.C:.3g}", f"{run.cost:.3g}", _written(run.after))
            )
        now = ("now", "", "", "", "", "", _written(self.before))
        return "\n".join(
            [
                title,
                text_table([head, now, *rows]),
                f"  {self.used:.1%} of the spend; the interval gets {self.gain:.3g} times narrower; at least "
                f"{self.efficiency:.0%} of what any runs for it could tell",
                "  intervals here take runs for equally and independently noisy about the law; a bootstrap's may be wider",
                *(f"! {warning}" for warning in self.warnings),
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        names = ("target", "compute", "spend", "used", "level", "law", "efficiency", "gain", "key")
        return {
            **{name: getattr(self, name) for name in names},
            "before": asdict(self.before),
            "after": asdict(self.after),
            "runs": [asdict(run) for run in self.runs],
            "warnings": list(self.warnings),
        }

    def to_frame(self) -> Any:
        """One row a run: N, D, C, cost, and low and high of the target's interval once it is trained."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"N": r.N, "D": r.D, "C": r.C, "cost": r.cost, "low": r.after.low, "high": r.after.high}
                for r in self.runs
            ],
            columns=["N", "D", "C", "cost", "low", "high"],
        )

    def plot(self, ax: Any = None) -> Any:
        """Runs fitted, candidates and the runs chosen over ln N and ln D, with lines of equal C; a matplotlib Axes."""
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.figure(figsize=(6.4, 4.6), dpi=150, layout="constrained").add_subplot()
        ax.plot(*self._candidates.T, ".", color="0.8", ms=1.5, label="candidates", zorder=1)
        ax.plot(*self._data.T, "+k", ms=5, mew=0.8, label="fitted runs", zorder=3)
        counts: dict[tuple[float, float], int] = {}
        for run in self.runs:
            counts[run.N, run.D] = counts.get((run.N, run.D), 0) + 1
        ax.plot(*zip(*counts, strict=True), "ok", mfc="w", mew=1.4, ms=7, label=f"to train ({len(self)})", zorder=4)
        for place, count in counts.items():
            if count > 1:
                ax.annotate(f"x {count}", place, xytext=(7, 3), textcoords="offset points", fontsize=8, zorder=5)
        ax.margins(0.06)
        for which in ("x", "y"):
            log_count_axis(ax, which)
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
        ax.set(xlim=(left, right), ylim=(bottom, top), xlabel="N, non-embedding parameters", ylabel="D, tokens")
        handles, labels = ax.get_legend_handles_labels()
        line = ax.plot([], [], ":", color="0.45", lw=0.8)[0]
        ax.legend([*handles, line], [*labels, "equal C, FLOPs"], fontsize=8, frameon=False, ncols=4,
                  loc="lower left", bbox_to_anchor=(0, 1), columnspacing=1.2, handletextpad=0.4)  # fmt: skip
        return ax


def next_runs(
    fit: Any,
    spend: float | str,
    *,
    target: Target = "N_opt",
    compute: float | str | None = None,
    cost: Cost | None = None,
    fixed_cost: float = 0.0,
    N_range: tuple[float, float] | None = None,
    D_range: tuple[float, float] | None = None,
    tokens_per_parameter: tuple[float, float] | None = None,
    candidates: Any = None,
    max_run: float | str | None = None,
    n_runs: int | None = None,
    noise: float | None = None,
    average: int = 32,
    level: float = 0.9,
    seed: int = 0,
) -> NextRuns:
    """The affordable runs that most reduce the variance of a target, by optimal design over a fit.

    fit: of a law of N and D. spend: what all runs may cost together, FLOPs or a text with a unit ("3 PF-days").
    target: "N_opt", "D_opt" or "loss", the best model, its tokens or its loss at `compute` FLOPs (default: ten times the largest
    compute among the fitted runs); a parameter's name; or a function of the parameters, called with name -> [R], giving [R].

    **What a run costs**: cost(N, D), called with arrays [K], in the unit of spend; 6ND FLOPs unless given. fixed_cost: of each
    run besides. max_run: the most that one may cost; n_runs: how many at most (32 unless given). The same run may be
    chosen several times, to be trained with other seeds.

    **Which runs**: N and D in N_range and D_range and with D/N in tokens_per_parameter, each (low, high); by default the fitted
    runs' own ranges, four times wider at either end, for a law is not known far from its runs. Or candidates: a table of
    columns N and D that lists them, such as the shapes that exist.

    noise: standard deviation of a run about the law, in the units of the fit's residual (by default as the fit has it under
    its own objective). average: bootstrap samples over which the mean of the log variance is minimised, so that runs are
    good for all parameters that the fit deems likely; 0 for those at its estimate alone (local design). seed: theirs.
    Intervals before and after are of `level`, at the estimate, model-based (runs of equal and independent noise), with
    Student's t; they hold if the law does.

    The runs are found greedily, and from the rounded optimum of the continuous relaxation, then exchanged one by one
    and in pairs (Fedorov 1972); `efficiency` compares them with a bound from that relaxation.
    Raises ValueError that names the argument for what is negative, not finite or unknown, a law without N or D, ranges that
    are reversed or leave no run, a spend below the cheapest run, and a cost that is not positive.
    """
    check_level(level)
    _check_fit(fit)
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

    def price(N: Array, D: Array) -> Array:
        return _priced(cost, N, D) + fixed_cost

    place, charge = _candidates(fit.runs, price, total, most, N_range, D_range, tokens_per_parameter, candidates)
    budget = _budget(fit, target, compute)
    function, name = _target(fit, target, budget)
    information = _Information.of(fit, function, name, place, noise)
    here = information.whitened(fit.theta)
    if here is None:
        raise ValueError(
            f"{name} of {fit.law.name} does not change with its parameters, or not finitely, at the estimate "
            f"({_at(fit.params, function)}); no run can tell more of it."
        )
    drawn = [information.whitened(theta) for theta in _samples(fit, average, seed)]
    states = [here, *(state for state in drawn if state is not None)]
    spendable = min(total, most_runs * float(charge.max()))
    search = _Search(np.stack([J for J, _ in states]), np.stack([g for _, g in states]), charge, spendable, most_runs)
    chosen = search.best()

    at_estimate = _Search(here[0][None], here[1][None], charge, spendable, most_runs)
    order = at_estimate.ordered(chosen)
    value = float(function({key: np.array([v]) for key, v in fit.params.items()})[0])
    points = fit.problem.n_runs - fit.problem.n_free

    def interval(indices: list[int]) -> Quantity:
        error = float(np.exp(at_estimate.criterion(indices) / 2))
        reach = student_t(0.5 + level / 2, max(1, points + len(indices))) * error
        if value > 0:  # relative, as Bootstrap.interval has it
            reach = min(reach / value, 700.0)
            return Quantity(value, value * float(np.exp(-reach)), value * float(np.exp(reach)))
        return Quantity(value, value - reach, value + reach)

    runs = tuple(
        NextRun(N, D, training_flops(N, D), float(charge[k]), interval(order[: i + 1]))
        for i, k in enumerate(order)
        for N, D in [place[k].tolist()]
    )
    before, after = interval([]), interval(order)
    N, D = fit.runs["N"], fit.runs["D"]
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
        _key(fit, runs),
        tuple(_warnings(fit, name, budget, before, after, runs, most_runs, total)),
        _candidates=place,
        _data=np.stack([N, D], axis=1),
    )


@dataclass(frozen=True)
class _Information:
    """What the fitted runs tell of the free parameters, and what each candidate would add."""

    problem: Any
    function: Callable[[Mapping[str, Array]], Array]
    columns: Any  # of the candidates
    free: NDArray[np.intp]
    tau: float  # noise of a run to come, in the units of the fit's residual
    known: float  # of a fitted run, as the objective sees it

    @classmethod
    def of(cls, fit: Any, function: Any, name: str, place: Array, noise: float | None) -> "_Information":
        problem = fit.problem
        free = np.flatnonzero(problem.lower < problem.upper)
        if not free.size:
            raise ValueError(f"every parameter of {fit.law.name} is fixed; no run can tell more of {name}.")
        slope, variance = score_moments(fit)
        known = float(np.sqrt(variance) / slope)
        columns = problem.compiled.columns({"N": place[:, 0], "D": place[:, 1]})
        tau = known if noise is None else float(noise)
        return cls(problem, function, columns, free, max(tau, 1e-9), max(known, 1e-9))

    def whitened(self, theta: Array) -> tuple[Array, Array] | None:
        """Derivatives [K, P] of candidates over their noise, and the target's [P], where the fit's own information is 1."""
        weights = self.problem.weights / self.problem.weights.mean()
        _, before = self.problem.value_and_jacobian(theta)
        _, derivatives = jacobian(self.problem.compiled.tape, self.columns, theta)
        gradient = _gradient(self.problem, self.function, theta)[self.free]
        J = derivatives.T[:, self.free] / self.tau
        X = before[:, self.free] * (np.sqrt(weights) / self.known)[:, None]
        if not (np.isfinite(J).all() and np.isfinite(X).all() and np.isfinite(gradient).all() and gradient.any()):
            return None
        _, root = np.linalg.qr(np.concatenate([X, np.eye(len(self.free)) / _UNKNOWN]))  # R'R = information
        return np.linalg.solve(root.T, J.T).T, np.linalg.solve(root.T, gradient)


# ---- what is asked ---------------------------------------------------------------------------------------------------


def _check_fit(fit: Any) -> None:
    if not hasattr(fit, "problem"):
        raise ValueError(f"fit must come from ps.fit, got {type(fit).__name__}.")
    if isinstance(fit.law, GroupedLaw):
        raise ValueError(f"fit has groups ({', '.join(fit.law.labels)}); fit one of them alone to plan its next runs.")
    missing = [name for name in ("N", "D") if name not in fit.law.variables]
    if missing:
        raise ValueError(
            f"law={fit.law.name!r} has no {' and no '.join(missing)}; runs are planned by a law of both N and D, such as "
            "'chinchilla'."
        )
    extra = [name for name in fit.law.variables if name not in ("N", "D")]
    if extra:
        raise ValueError(f"law={fit.law.name!r} also depends on {', '.join(extra)}; next_runs needs a law of N and D.")


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


def _around(values: Array, name: str, given: Any) -> tuple[float, float]:
    if given is not None:
        return _range(name, given)
    return float(values.min()) / _WIDEN, float(values.max()) * _WIDEN


def _priced(cost: Cost | None, N: Array, D: Array) -> Array:
    if cost is None:
        return np.asarray(FLOPS_PER_PARAMETER_TOKEN * N * D)
    if not callable(cost):
        raise ValueError(f"cost must be a function of N and D, got {cost!r}.")
    try:
        priced = np.broadcast_to(np.asarray(cost(N, D), dtype=np.float64), N.shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cost must take arrays of N and D and give as many numbers: {error}.") from None
    bad = np.flatnonzero(~(np.isfinite(priced) & (priced > 0)))
    if bad.size:
        k = int(bad[0])
        raise ValueError(f"cost must be finite and positive; of N={N[k]:.3g}, D={D[k]:.3g} it is {priced[k]:g}.")
    return priced


def _candidates(
    runs: Runs, price: Callable[[Array, Array], Array], spend: float, most: float, N_range: Any, D_range: Any, ratio: Any,
    candidates: Any,
) -> tuple[Array, Array]:  # fmt: skip
    """(N, D) [K, 2] of the runs to choose from, and their cost [K]: none above `most`."""
    if candidates is not None:
        if any(given is not None for given in (N_range, D_range, ratio)):
            raise ValueError("candidates list the runs; N_range, D_range and tokens_per_parameter say nothing beside.")
        table = candidates if isinstance(candidates, Runs) else Runs(candidates, source="candidates")
        N, D = (np.asarray(table[name], dtype=np.float64) for name in ("N", "D"))
        if not len(N):
            raise ValueError("candidates hold no run.")
    else:
        N_low, N_high = _around(runs["N"], "N_range", N_range)
        if N_range is None:  # models that exist
            N_low = min(max(N_low, SMALLEST_N), float(runs["N"].min()))
        D_low, D_high = _around(runs["D"], "D_range", D_range)
        least, largest = _around(runs["D"] / runs["N"], "tokens_per_parameter", ratio)
        grid_N = np.unique(np.geomspace(N_low, N_high, _GRID))
        low, high = np.maximum(D_low, least * grid_N), np.minimum(D_high, largest * grid_N)
        kept = low <= high * (1 + 1e-12)
        if not kept.any():
            raise ValueError(
                f"N_range=({N_low:.3g}, {N_high:.3g}), D_range=({D_low:.3g}, {D_high:.3g}) and tokens_per_parameter="
                f"({least:.3g}, {largest:.3g}) leave no run; widen one."
            )
        grid_N, low, high = grid_N[kept], low[kept], np.maximum(low, high)[kept]
        # a run may spend all that one may cost: where it can, D ends there, and not at a step of the grid below
        N, D = _grid(grid_N, low, _affordable(price, grid_N, low, high, most))
    charge = price(N, D)
    affordable = charge <= most * (1 + 1e-9)
    if not affordable.any():
        k = int(np.argmin(charge))
        limit = f"spend={spend:.4g}" if most == spend else f"max_run={most:.4g}"
        raise ValueError(
            f"{limit} pays for no run: the cheapest, N={N[k]:.3g} and D={D[k]:.3g}, costs {charge[k]:.4g}; raise it, or "
            "allow smaller runs."
        )
    place = np.stack([N, D], axis=1)[affordable]
    return place, charge[affordable]


def _grid(N: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Points [K] at the grid's N and at equal steps of ln D from low to high, which depend on N."""
    share = np.linspace(0, 1, _GRID)
    D = low[:, None] * (high / low)[:, None] ** share
    points = np.unique(np.stack([np.broadcast_to(N[:, None], D.shape).ravel(), D.ravel()], axis=1), axis=0)
    return points[:, 0], points[:, 1]


def _affordable(price: Callable[[Array, Array], Array], N: Array, low: Array, high: Array, most: float) -> Array:
    """The largest D [k] up to high whose run costs `most` or less; low where none does."""
    a, b = np.log(low), np.log(high)
    whole = price(N, high) <= most
    for _ in range(50):
        middle = (a + b) / 2
        below = price(N, np.exp(middle)) <= most
        a, b = np.where(below, middle, a), np.where(below, b, middle)
    return np.where(whole, high, np.exp(a))


def _budget(fit: Any, target: Target, compute: float | str | None) -> float | None:
    if not (isinstance(target, str) and target in _AT_A_BUDGET):
        if compute is not None:
            raise ValueError(f"compute={compute!r} says nothing of target={target!r}, which is no value at a budget.")
        return None
    if compute is not None:
        return parse_compute(compute)
    return 10 * _largest_compute(fit)


def _largest_compute(fit: Any) -> float:
    runs = fit.runs
    return float(np.max(runs["C"] if "C" in runs.columns else training_flops(runs["N"], runs["D"])))


def _target(fit: Any, target: Target, compute: float | None) -> tuple[Callable[[Mapping[str, Any]], Array], str]:
    """The target as a function of parameters name -> [R], giving [R], and its name."""
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
    frontier = Frontier(fit.law, 1.0, compute / FLOPS_PER_PARAMETER_TOKEN)

    def at_budget(params: Mapping[str, Any]) -> Array:
        N = frontier.best_N(params, compute)
        if target == "N_opt":
            return N
        if target == "D_opt":
            return frontier.tokens(N, compute)
        return frontier.loss_at(params, N[:, None], compute)[:, 0]

    return at_budget, target


def _gradient(problem: Any, function: Callable[[Mapping[str, Any]], Array], theta: Array) -> Array:
    """Of the target by theta [P], by fourth-order central differences."""
    step = 1e-3 * np.maximum(1.0, np.abs(theta)) * np.where(np.abs(theta) < 1, 0.3, 1.0)
    offsets = np.array([1.0, -1.0, 2.0, -2.0])
    points = theta + offsets[:, None, None] * np.diag(step)  # [4, P, P]
    params = dict(zip(problem.law.names, problem.to_params(points.reshape(-1, len(theta))).T, strict=True))
    with np.errstate(all="ignore"):
        up, down, far_up, far_down = np.asarray(function(params)).reshape(4, len(theta))
        return (8 * (up - down) - (far_up - far_down)) / (12 * step)


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

    J [S, K, P]: a candidate's derivatives over its noise for each of S parameter samples; g [S, P]: the target's, both in
    coordinates where what is known already is 1. cost [K].
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
        return float(np.mean(np.log(np.einsum("sp,spq,sq->s", self.g, inverse, self.g))))

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
        b = (inverse @ self.g[:, :, None])[:, :, 0]
        variance = np.sum(self.g * b, axis=1, keepdims=True)
        along = (b[:, None, :] @ self.J)[:, 0]  # [S, K]
        spread = np.sum((inverse @ self.J) * self.J, axis=1)
        return np.mean(np.log1p(-np.minimum(along**2 / ((1 + spread) * variance), 1 - 1e-15)), axis=0)

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
        b = (inverse @ self.g[:, :, None])[:, :, 0]
        variance = np.sum(self.g * b, axis=1, keepdims=True)
        return np.mean((b[:, None, :] @ J)[:, 0] ** 2 / variance, axis=0)

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


def _written(quantity: Quantity) -> str:
    return f"{quantity.value:.3g} [{quantity.low:.3g}, {quantity.high:.3g}]"


def _at(params: Mapping[str, float], function: Callable[[Mapping[str, Any]], Array]) -> str:
    return f"{float(function({name: np.array([value]) for name, value in params.items()})[0]):.4g}"


def _key(fit: Any, runs: tuple[NextRun, ...]) -> str:
    import hashlib

    table = np.stack([fit.runs["N"], fit.runs["D"], fit.problem.y]).tobytes()
    chosen = np.array(sorted((run.N, run.D) for run in runs)).tobytes()
    return hashlib.sha256(table + chosen).hexdigest()[:8]


def _warnings(
    fit: Any, name: str, compute: float | None, before: Quantity, after: Quantity, runs: tuple[NextRun, ...], most: int,
    spend: float,
) -> Iterator[str]:  # fmt: skip
    if not fit.evidence.trustworthy:
        yield f"the fit is not to be trusted: {'; '.join(fit.evidence.concerns)}"
    if before.value > 0 and _width(before) > 2 * np.log(100):
        yield f"the fit does not determine {name} yet; plan again when the first of these runs are trained"
    elif before.value > 0 and _width(before) > 2 * np.log(3):
        yield f"{name} is uncertain by more than a factor of 3: train some of the runs, fit, and plan again"
    if compute is not None and (beyond := compute / _largest_compute(fit)) > 1e3:
        yield f"{compute:.3g} FLOPs are {beyond:.3g} times the largest run's; the interval holds if the law holds there"
    N, D = fit.runs["N"], fit.runs["D"]
    outside = sum(
        not (
            0.99 * N.min() <= run.N <= 1.01 * N.max()
            and 0.99 * D.min() <= run.D <= 1.01 * D.max()
            and 0.99 * (D / N).min() <= run.D / run.N <= 1.01 * (D / N).max()
        )
        for run in runs
    )
    if outside:
        yield f"{outside} of {len(runs)} runs lie outside the fitted runs' N, D or D/N, where the law is a guess until they are"
    used = sum(run.cost for run in runs)
    if len(runs) == most and used < 0.9 * spend:
        yield f"n_runs={most} leaves {1 - used / spend:.0%} of the spend; allow more runs, or dearer ones"
