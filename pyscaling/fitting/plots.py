"""How a fit looks: runs and curves with their residuals, contours of two parameters, leverage and outliers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pyscaling.fitting.bootstrap import check_level
from pyscaling.fitting.covariance import score_moments
from pyscaling.fitting.groups import GroupedLaw
from pyscaling.fitting.result import new_axes
from pyscaling.units import format_count

if TYPE_CHECKING:
    from pyscaling.fitting.fit import Fit

AXES = {
    "N": "N, non-embedding parameters", "D": "D, training tokens", "C": "C, training FLOPs", "S": "S, optimiser steps",
    "U": "U, unique tokens", "loss": "loss, nats per token",
}  # fmt: skip
_CURVES = 6  # of different D that can be told apart
_MARKERS = "osD^v<>P"
_LEVERED = 2.0  # times the mean leverage: the usual mark


def plot_fit(fit: "Fit", ax: Any, group: Any, level: float) -> Any:
    """See Fit.plot."""
    check_level(level)
    base, labels = fit.law, list[Any]([None])
    if isinstance(fit.law, GroupedLaw):
        base, labels = fit.law.base, list(fit.law.labels) if group is None else [str(group)]
        fit.law.membership(labels[0])
    elif group is not None:
        raise ValueError(f"group={group!r} says nothing: this fit has no groups.")
    below = None
    if ax is None:
        import matplotlib.pyplot as plt

        _, (ax, below) = plt.subplots(2, 1, figsize=(6.4, 5.6), height_ratios=(3, 1), sharex=True, layout="constrained")
    first, *rest = base.variables
    columns = fit.problem.variables
    positive = bool(np.all(columns[first] > 0))
    values = np.unique(columns[rest[0]]) if rest else np.array([np.nan])
    most = _CURVES if len(labels) == 1 else 3
    shown = values if len(values) <= most else np.quantile(values, np.linspace(0, 1, most), method="nearest")
    by_value, by_group = _shades(len(shown)), _shades(len(labels))
    for g, label in enumerate(labels):
        rows = np.ones(len(fit.runs), dtype=bool) if label is None else columns[fit.law.indicators[label]] > 0
        x, observed = columns[first][rows], fit.runs[fit.law.response][rows]
        residuals = fit.residuals[rows] * (100 if fit.problem.residual == "log" else 1)
        space = np.geomspace if positive else np.linspace
        grid = space(x.min(), x.max(), 100) if np.ptp(x) > 0 else np.unique(x)
        nearest = _nearest(columns[rest[0]][rows], shown) if rest else np.zeros(len(x), dtype=int)
        for k, value in enumerate(shown):
            colour, style = (by_value[k], "-") if len(labels) == 1 else (by_group[g], ("-", "--", ":")[k])
            at: dict[str, Any] = {first: grid, **{name: np.median(columns[name][rows]) for name in rest[1:]}}
            at |= {rest[0]: value} if rest else {}
            at |= {"group": label} if label is not None else {}
            curve = fit.predict(level=level, kind="mean", **at)
            named = ", ".join(
                [*([label] if label else []), *([f"{rest[0]} = {_written(rest[0], value)}"] if rest else [])]
            )
            ax.plot(grid, curve.value, style, color=colour, lw=1.2, label=named or "law")
            ax.fill_between(grid, curve.low, curve.high, color=colour, alpha=0.2, lw=0)
            of = nearest == k
            ax.plot(x[of], observed[of], _MARKERS[g % 8], color=colour, ms=4, mec="black", mew=0.4)
            if below is not None:
                below.plot(x[of], residuals[of], _MARKERS[g % 8], color=colour, ms=3, mec="black", mew=0.3)
    ax.set(
        ylabel=AXES.get(fit.law.response, fit.law.response), title=f"{fit.law.name}, {level:.0%} bands of the curves"
    )
    bottom = ax if below is None else below
    bottom.set_xlabel(AXES.get(first, first))
    if positive:
        if first in ("N", "D", "S", "U"):
            log_count_axis(bottom)
        else:
            bottom.set_xscale("log")
            bottom.xaxis.set_major_formatter("{x:g}")
    if np.all(fit.runs[fit.law.response] > 0):
        plain_log_axis(ax)
    if below is not None:
        below.axhline(0, color="black", lw=0.8)
        below.set_ylabel("ln(run / law), %" if fit.problem.residual == "log" else "run - law")
    ax.legend(fontsize=8, frameon=False)
    return ax


def plot_contours(fit: "Fit", a: str, b: str, ax: Any, levels: tuple[float, ...], points: int, robust: bool) -> Any:
    """See Fit.plot_contours."""
    problem, names = fit.problem, fit.law.names
    for name in (a, b):
        if name not in names:
            raise ValueError(f"{name!r} is not a parameter of {fit.law.name}; those are {', '.join(names)}.")
    if a == b:
        raise ValueError(f"a contour needs two parameters, got {a!r} twice.")
    for level in levels:
        check_level(level)
    i, j = names.index(a), names.index(b)
    covariance = fit.covariance(robust=robust, units="theta")
    error = np.sqrt(np.diag(covariance))
    if not np.all(np.isfinite(error[[i, j]]) & (error[[i, j]] > 0)):
        raise ValueError(f"{a} or {b} is fixed or not determined by these runs; a contour needs two that are free.")
    reach = 1.5 * np.sqrt(-2 * np.log(1 - max(levels)))
    grids = [
        np.clip(fit.theta[k] + np.linspace(-reach, reach, points) * error[k], problem.lower[k], problem.upper[k])
        for k in (i, j)
    ]
    s, v = score_moments(fit)
    lowest = fit.objective_value / problem.objective_scale()
    ratio = np.empty((points, points))
    # where the errors' ellipse says that the other parameters go, so that each start is near its minimum
    follow = covariance[:, [i, j]] @ np.linalg.inv(covariance[np.ix_([i, j], [i, j])])
    for k, at_i in enumerate(grids[0]):
        held = problem.holding(i, float(at_i))
        for m, at_j in enumerate(grids[1]):
            start = fit.theta + follow @ (np.array([at_i, at_j]) - fit.theta[[i, j]])
            start[i], start[j] = at_i, at_j
            start = np.clip(start, problem.lower, problem.upper)
            ratio[m, k] = held.holding(j, float(at_j)).solve(start)["value"][0] - lowest
    ratio *= 2 * s / v / problem.weights.mean()
    # of runs of unequal noise a likelihood ratio is too large by the ratio of the variances (Kent 1982), here of the ellipse
    plain = fit.covariance(robust=False, units="theta")[np.ix_([i, j], [i, j])]
    ratio *= np.sqrt(np.linalg.det(plain) / np.linalg.det(covariance[np.ix_([i, j], [i, j])]))
    ax = new_axes() if ax is None else ax
    shown = [
        np.exp(grid) if fit.law.parameters[name].logarithmic else grid for grid, name in zip(grids, (a, b), strict=True)
    ]
    ordered = sorted(levels)
    lines = ax.contour(*shown, ratio, levels=[-2 * np.log(1 - level) for level in ordered], colors="black",
                       linestyles=["-", "--", ":"][: len(ordered)], linewidths=1)  # fmt: skip
    ax.clabel(
        lines, fmt={line: f"{100 * level:g} %" for line, level in zip(lines.levels, ordered, strict=True)}, fontsize=8
    )
    ax.plot(fit.params[a], fit.params[b], "k+", ms=9)
    ax.set(xlabel=a, ylabel=b, title=f"{fit.law.name}: joint regions, the other parameters refitted")
    return ax


def plot_leverage(fit: "Fit", ax: Any) -> Any:
    """See Fit.plot_leverage."""
    ax = new_axes() if ax is None else ax
    # as in the verdict: 1.4826 medians, which what lies far off does not move
    pull, noise = leverage(fit), 1.4826 * float(np.median(np.abs(fit.residuals)))
    residual = fit.residuals / (noise or 1.0)
    ax.plot(pull, residual, "o", color="black", mfc="w", ms=4)
    mean = pull[fit.problem.weights > 0].mean()
    marked = np.flatnonzero((np.abs(residual) > 3) | (pull > max(_LEVERED * mean, np.quantile(pull, 0.97))))
    for row in marked[np.argsort(-np.abs(residual[marked]))][:12]:
        ax.annotate(
            f"{fit.runs.rows[row] + 1}",
            (pull[row], residual[row]),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=8,
        )
    ax.axhline(0, color="black", lw=0.8)
    ax.axvline(_LEVERED * mean, color="0.5", ls="--", lw=0.8, label="twice the mean leverage")
    if np.abs(residual).max() > 30:
        ax.set_yscale("symlog", linthresh=10)
    ax.set(
        xlabel="leverage, how far a run decides its own fitted value",
        ylabel="residual / noise of most runs",
        title=fit.law.name,
    )
    ax.legend(fontsize=8, frameon=False)
    return ax


def leverage(fit: "Fit") -> np.ndarray:
    """Leverage [n], the diagonal of the hat matrix of the linearised fit (Cook & Weisberg 1982): 0 to 1, p / n in the mean."""
    _, jacobian = fit.problem.value_and_jacobian(fit.theta)
    free = fit.problem.lower < fit.problem.upper
    weighted = jacobian[:, free] * np.sqrt(fit.problem.weights)[:, None]
    size = np.linalg.norm(weighted, axis=0)
    Q, _ = np.linalg.qr(weighted / np.where(size > 0, size, 1.0))
    return np.asarray(np.sum(Q**2, axis=1))


def latex_table(fit: "Fit", intervals: Mapping[str, tuple[float, float]], level: float) -> str:
    """A booktabs table of the parameters and their intervals."""
    rows = []
    for name, value in fit.params.items():
        low, high = intervals[name]
        rows.append(f"  ${_symbol(name)}$ & {_number(value)} & {_number(low)} & {_number(high)} \\\\")
    head = f"  parameter & value & \\multicolumn{{2}}{{c}}{{{100 * level:g}\\,\\% interval}} \\\\"
    return "\n".join(
        ["\\begin{tabular}{lrrr}", "  \\toprule", head, "  \\midrule", *rows, "  \\bottomrule", "\\end{tabular}"]
    )


_GREEK = ("alpha", "beta", "gamma", "delta", "epsilon", "eps", "lambda", "eta", "nu", "kappa", "sigma", "tau", "theta")


def _symbol(name: str) -> str:
    head, _, index = name.partition("_")
    head = {"eps": "\\epsilon"}.get(
        head, f"\\{head}" if head in _GREEK else head if len(head) == 1 else f"\\mathrm{{{head}}}"
    )
    return f"{head}_{{{index.replace('_', ',')}}}" if index else head


def _number(value: float) -> str:
    text = f"{value:.4g}"
    if "inf" in text:
        return "$-\\infty$" if value < 0 else "$\\infty$"
    digits, sign, exponent = text.partition("e")
    return f"${digits} \\times 10^{{{int(exponent)}}}$" if sign else f"${digits}$"


def log_count_axis(ax: Any, which: Literal["x", "y"] = "x") -> None:
    """A logarithmic axis of counts, its ticks written as people say them: 200 k, 500 k, 1 M."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = ax.xaxis if which == "x" else ax.yaxis
    ax.set(**{f"{which}scale": "log"})
    low, high = sorted(axis.get_view_interval())
    decades = np.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 2.3 else (1.0, 3.0) if decades < 4.2 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=99 if decades < 7 else 8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    axis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=99))
    axis.set_minor_formatter(NullFormatter())


def plain_log_axis(ax: Any) -> None:
    """A logarithmic y axis of losses: ticks at round numbers, written plainly."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

    ax.set_yscale("log")
    low, high = sorted(ax.get_ylim())
    if high < 20 * low:
        ticks = MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    else:
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        ticks = [step * 10.0**k for k in decades for step in (1, 2, 5)]
    ax.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())


def _shades(count: int) -> list[Any]:
    from matplotlib import colormaps

    return ["black"] if count == 1 else [colormaps["viridis"](x) for x in np.linspace(0, 0.88, count)]


def _nearest(values: np.ndarray, shown: np.ndarray) -> np.ndarray:
    scale = np.log if np.all(values > 0) else np.asarray
    return np.abs(scale(values)[:, None] - scale(shown)[None, :]).argmin(axis=1)


def _written(name: str, value: float) -> str:
    return format_count(value) if name in ("N", "D", "S", "U") else f"{value:.3g}"
