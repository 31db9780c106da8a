"""The report's figures. Each function draws one on a new matplotlib Figure and returns it.

Series differ by line style and marker as well as by grey-safe colour, so that a black and white print can be read.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from pyscaling.fitting import Fit
from pyscaling.fitting.plots import log_count_axis
from pyscaling.planning.frontier import FLOPS_PER_PARAMETER_TOKEN, best_N
from pyscaling.report.analysis import Analysis, Array, FittedLaw, HeldOutTest, efficient_mask, seed_means
from pyscaling.tables import Runs
from pyscaling.units import format_count

STYLE: dict[str, Any] = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
}
_MARKERS = "os^Dv<>Pph*X"
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)))
_BAND: dict[str, Any] = {"color": "0.85", "lw": 0, "zorder": 0}


def series(keys: Iterable[float]) -> Iterator[tuple[float, dict[str, Any]]]:
    """Each key with its own colour (dark to light), marker and line style."""
    ordered = sorted(keys)
    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.82, max(2, len(ordered))))
    for i, key in enumerate(ordered):
        yield key, {"color": colours[i], "marker": _MARKERS[i % len(_MARKERS)], "linestyle": _LINES[i % len(_LINES)]}


def held_out(test: HeldOutTest) -> Figure:
    """Achieved losses of the largest model and what smaller models predict; below, the difference in per cent."""
    figure = Figure(figsize=(6.6, 5.0), layout="constrained", dpi=STYLE["figure.dpi"])
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    D = np.array([run.D for run in test.runs])
    achieved = np.array([run.achieved for run in test.runs])
    at = np.geomspace(D.min() / 1.15, D.max() * 1.15, 80)
    curve = test.fit.predict(N=np.full_like(at, test.largest_N), D=at, level=test.level, kind="run")
    rest = test.fit.runs
    above.plot(rest.D, rest.loss, "x", color="0.6", ms=3, label="smaller models (fitted)")
    above.plot(at, curve.value, "k--", label=f"predicted by {test.law}")
    below.axhline(0, color="k", ls="--", lw=1.4)
    band = [100 * (np.asarray(edge) / curve.value - 1) for edge in (curve.low, curve.high)]
    below.fill_between(at, *band, label=f"{test.level:.0%} prediction interval", **_BAND)
    for ax, y in ((above, achieved), (below, 100 * np.array([run.achieved / run.predicted - 1 for run in test.runs]))):
        ax.plot(D, y, "ko", mfc="w", label=f"largest model, N = {format_count(test.largest_N)}")
        ax.plot(D[-1], y[-1], "ko", ms=7, label="the test: its largest D")
    above.set_ylabel("L, nats per token")
    below.set_ylabel("achieved − predicted, %")
    below.set_xlim(at[0], at[-1])
    log_count_axis(below)
    below.set_xlabel("D, training tokens")
    handles = dict(zip(*reversed(above.get_legend_handles_labels()), strict=True))
    handles |= dict(zip(*reversed(below.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3)
    return figure


def loss_against_N(runs: Runs, fitted: Fit | None, level: float) -> Figure:
    """Loss against N, a curve for each D (at most six, spread evenly)."""
    return _loss_against(runs, fitted, level, "N", "D", "N, non-embedding parameters")


def loss_against_D(runs: Runs, fitted: Fit | None, level: float) -> Figure:
    """Loss against D, a curve for each N (at most six, spread evenly)."""
    return _loss_against(runs, fitted, level, "D", "N", "D, training tokens")


def _loss_against(runs: Runs, fitted: Fit | None, level: float, x: str, key: str, label: str) -> Figure:
    figure, ax = new_figure(6.6, 4.0)
    keys = np.unique(runs[key])
    if len(keys) > 6:
        keys = keys[np.unique(np.linspace(0, len(keys) - 1, 6).round().astype(int))]
    span = np.geomspace(runs[x].min() / 1.25, runs[x].max() * 1.25, 80)
    grid = {x: np.tile(span, (len(keys), 1)), key: np.tile(keys[:, None], (1, len(span)))}  # [key, x]
    curve = fitted.predict(level=level, kind="mean", N=grid["N"], D=grid["D"]) if fitted is not None else None
    for i, (value, style) in enumerate(series(keys)):
        points = runs.select(runs[key] == value)
        if curve is not None:
            ax.fill_between(span, curve.low[i], curve.high[i], alpha=0.25, color=style["color"], lw=0)
            ax.plot(span, curve.value[i], color=style["color"], ls=style["linestyle"])
        ax.plot(points[x], points.loss, color=style["color"], marker=style["marker"], ls="none", mec="k", mew=0.4)
        ax.plot([], [], **style, mec="k", mew=0.4, label=f"{key} = {format_count(value)}")
    log_count_axis(ax)
    ax.set_xlabel(label)
    _log_loss(ax)
    figure.legend(loc="outside right upper")
    return figure


def loss_against_C(runs: Runs, fitted: Fit | None, frontier: FittedLaw | None, level: float) -> Figure:
    """Loss against compute: every run, the efficient ones, and the frontier min over N of L(N, C/6N)."""
    figure, ax = new_figure(6.6, 4.2)
    for size, style in series(np.unique(runs.N)):
        points = runs.select(size == runs.N)
        order = np.lexsort((points.loss, points.C))
        ax.plot(points.C[order], points.loss[order], lw=0.6, alpha=0.9, mec="k", mew=0.4,
                **{**style, "linestyle": "-"}, label=f"N = {format_count(size)}")  # fmt: skip
    C = np.geomspace(runs.C.min(), runs.C.max() * 10, 60)
    if fitted is not None:
        _, curve, low, high = efficient_frontier(fitted, C, level)
        ax.fill_between(C, low, high, **_BAND)
        ax.plot(C, curve, "k--", lw=1.8, label="min over N of L(N, C/6N)")
    if frontier is not None:
        ax.plot(C, frontier.fit.predict(C=C, level=level, kind="mean").value, "k:", lw=1.3, label="E + A/C^alpha")
    means = seed_means(runs)
    efficient = means.select(efficient_mask(means))
    ax.plot(efficient.C, efficient.loss, "o", ms=9, mfc="none", mec="k", mew=0.8, label="efficient runs")
    ax.axvline(runs.C.max(), color="0.4", lw=0.8, ls=(0, (1, 2)))
    ax.text(
        runs.C.max() * 1.08, 0.985, "10 x beyond", transform=ax.get_xaxis_transform(), va="top", fontsize=8, color="0.3"
    )
    _log_x(ax, "C = 6ND, training FLOPs")
    _log_loss(ax)
    figure.legend(loc="outside right upper")
    return figure


def efficient_frontier(fitted: Fit, C: Array, level: float) -> tuple[Array, Array, Array, Array]:
    """(N, loss, low, high) of the best model at each compute, the band being that of the curve."""
    point = {name: np.array([value]) for name, value in fitted.params.items()}
    N = np.array([best_N(fitted.law, point, float(c), 1.0, float(c))[0] for c in C])
    curve = fitted.predict(N=N, D=C / (FLOPS_PER_PARAMETER_TOKEN * N), level=level, kind="mean")
    return N, np.asarray(curve.value), np.asarray(curve.low), np.asarray(curve.high)


def frontier(runs: Runs, fitted: Fit) -> Figure:
    """The best N and D for each compute, over the runs that were made."""
    figure, ax = new_figure(6.6, 3.8)
    C = np.geomspace(runs.C.min(), runs.C.max() * 10, 60)
    N, *_ = efficient_frontier(fitted, C, 0.9)
    ax.plot(runs.C, runs.N, "o", color="0.65", mfc="none", ms=4, label="runs")
    means = seed_means(runs)
    efficient = means.select(efficient_mask(means))
    ax.plot(efficient.C, efficient.N, "ko", ms=5, label="efficient runs")
    ax.plot(C, N, "k-", label="best N")
    ax.plot(C, C / (FLOPS_PER_PARAMETER_TOKEN * N), "k--", label="best D = C/6N")
    _log_x(ax, "C = 6ND, training FLOPs")
    log_count_axis(ax, "y")
    ax.set_ylabel("N (parameters), D (tokens)")
    figure.legend(loc="outside right upper")
    return figure


def learning_curves(analysis: Analysis) -> Figure:
    """Training loss of each size against tokens, one trunk (seed) each; the circles end its decayed branches."""
    figure, ax = new_figure(6.6, 4.2)
    sizes = dict(zip(analysis.run_table["trunk_id"], analysis.run_table["N"], strict=True))
    trunks: dict[float, str] = {}
    for trunk in analysis.metrics["trunk_id"]:
        if trunk in sizes:
            trunks.setdefault(sizes[trunk], trunk)
    curve_of = np.array(analysis.metrics["trunk_id"])
    tokens, loss = (_numbers(analysis.metrics[name]) for name in ("tokens", "train_loss"))
    for N, style in series(trunks):
        rows = (curve_of == trunks[N]) & np.isfinite(loss) & (tokens > 0)
        ax.plot(tokens[rows], loss[rows], color=style["color"], ls=style["linestyle"], lw=1.1)
        ends = analysis.runs.select(analysis.runs.N == N)
        ax.plot(ends.D, ends.loss, color=style["color"], marker=style["marker"], ls="none", mec="k", mew=0.4)
        ax.plot([], [], **style, mec="k", mew=0.4, label=f"N = {format_count(N)}")
    log_count_axis(ax)
    ax.set_xlabel("tokens")
    _log_loss(ax, "L, nats per token")
    ax.yaxis.label.set_fontsize(8)
    figure.legend(loc="outside right upper")
    return figure


def residuals(fitted: Fit, runs: Runs, noise: float | None) -> Figure:
    """Residuals in per cent of the loss against N and against D, with twice the seed noise where it is known."""
    figure = Figure(figsize=(6.6, 3.2), layout="constrained", dpi=STYLE["figure.dpi"])
    axes = figure.subplots(1, 2, sharey=True)
    percent = 100 * (np.log(runs.loss) - np.log(fitted.predict(N=runs.N, D=runs.D, level=0.9, kind="mean").value))
    for ax, x, label in zip(axes, ("N", "D"), ("N, non-embedding parameters", "D, training tokens"), strict=True):
        if noise is not None:
            ax.axhspan(-200 * noise, 200 * noise, label="± 2 seed noise", **_BAND)
        ax.axhline(0, color="k", lw=0.8)
        ax.plot(runs[x], percent, "ko", mfc="none", ms=4)
        log_count_axis(ax)
        ax.set_xlabel(label)
    axes[0].set_ylabel("ln L − ln prediction, %")
    if noise is not None:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right")
    return figure


def noise_scale(analysis: Analysis) -> Figure | None:
    """Gradient noise scale against loss, by size, and the batch that was trained with. None if it was not measured."""
    table = analysis.noise_scale
    sizes = dict(zip(analysis.run_table["trunk_id"], analysis.run_table["N"], strict=True))
    loss, scale = _numbers(table["loss"]), _numbers(table["noise_scale"])
    N = np.array([sizes.get(trunk, np.nan) for trunk in table["trunk_id"]], dtype=np.float64)
    usable = np.isfinite(loss) & np.isfinite(scale) & (scale > 0) & np.isfinite(N)
    if not usable.any():
        return None
    figure, ax = new_figure(6.6, 3.8)
    for size, style in series(np.unique(N[usable])):
        rows = usable & (size == N)
        ax.plot(loss[rows], scale[rows], color=style["color"], marker=style["marker"], ls="none", mec="k", mew=0.4,
                label=f"N = {format_count(size)}")  # fmt: skip
    batch = analysis.run_table["batch_tokens"][0]
    if batch:
        ax.axhline(batch, color="k", lw=1, ls="--", label=f"batch trained with, {batch:,}")
    ax.set_xscale("log")
    ax.invert_xaxis()
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.set_xlabel("L, nats per token (falling to the right)")
    log_count_axis(ax, "y")
    ax.set_ylabel("noise scale, tokens")
    figure.legend(loc="outside right upper")
    return figure


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=STYLE["figure.dpi"])
    return figure, figure.subplots()


def _log_x(ax: Axes, label: str) -> None:
    ax.set_xscale("log")
    ax.set_xlabel(label)
    ax.xaxis.set_major_locator(LogLocator(numticks=8))


def _log_loss(ax: Axes, label: str = "L, nats per token") -> None:
    """A logarithmic loss axis with plain numbers: its range is often less than a decade."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_minor_locator(MaxNLocator(nbins=1))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel(label)


def _numbers(column: list[Any]) -> Array:
    return np.array([np.nan if value is None else value for value in column], dtype=np.float64)
