"""`ps.isoflop`: the best model size at each of several compute budgets, and the power laws through them.

Approach 2 of Hoffmann et al. 2022 (arXiv:2203.15556, section 3.2): at each budget the loss is a valley over log N; its
floor gives N_opt and D_opt, and these follow N_opt ~ C^a, D_opt ~ C^b. A parabola is biased where the valley is not
symmetric or the grid not centred on its floor; Akima's interpolation (Porian et al. 2024, arXiv:2406.19146) is not, but
follows the noise of single runs: with 0.2 % of it and 5 to 11 runs a budget, its intervals are 4 to 7 times as wide.

Optima scatter about the power law by more than the noise of their runs: tuning and shape differ from budget to budget. That
scatter is a variance of its own here, and what the optima do about the line decides how wide intervals are (docs/isoflop.md).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyscaling.fitting.bootstrap import check_level
from pyscaling.fitting.fit import Prediction
from pyscaling.fitting.problem import _weights
from pyscaling.fitting.result import TableResult, groups_of_close, new_axes
from pyscaling.tables import Runs, as_runs

_METHODS = ("parabola", "akima")
_LARGE_MISFIT = 2.0  # chance alone exceeds it in 2 tables of 100 with four budgets, in none with ten
_SMALL_SCATTER = 0.01  # of ln N: of no consequence, whatever explains it


class ComputeOptimal(TableResult):
    """Power laws N_opt = G C^a and D_opt = H C^b.

    samples: [R, 2, 2] of the power laws, as (N or D) x (its logarithm at the middle compute, exponent); their quantiles are
    the intervals. warnings: what to know before trusting them.
    """

    warnings: tuple[str, ...] = ()
    headline: str  # what this is, and the worst that is known of it

    def __init__(self, optima: Runs, line: np.ndarray, samples: np.ndarray, centre: float) -> None:
        self.optima, self.samples, self._line, self._centre = optima, samples, line, centre

    @property
    def exponent_N(self) -> float:
        """a in N_opt ~ C^a."""
        return float(self._line[0, 1])

    @property
    def exponent_D(self) -> float:
        """b in D_opt ~ C^b."""
        return float(self._line[1, 1])

    def interval(self, quantity: str, level: float = 0.9) -> tuple[float, float]:
        """Interval of "exponent_N" or "exponent_D"; NaN where the data do not say how much the optima scatter."""
        check_level(level)
        if quantity not in ("exponent_N", "exponent_D"):
            raise ValueError(f'quantity={quantity!r} is unknown; known are "exponent_N" and "exponent_D".')
        low, high = self._ends(int(quantity == "exponent_D"), np.array([0.0, 1.0]), level)
        return float(low), float(high)

    def _ends(self, which: int, at: np.ndarray, level: float) -> np.ndarray:
        """Ends [2, ...] of the interval of at [..., 2] times (logarithm at the middle compute, exponent)."""
        return _quantiles(np.moveaxis(at @ self.samples[:, which].T, -1, 0), level)

    def N(self, C: Any, level: float = 0.9) -> Prediction:
        """N_opt at C FLOPs (a number or an array), with its interval: of the power law, about which single budgets scatter."""
        return self._at(0, C, level)

    def D(self, C: Any, level: float = 0.9) -> Prediction:
        """D_opt in tokens at C FLOPs (a number or an array), with its interval."""
        return self._at(1, C, level)

    def _at(self, which: int, C: Any, level: float) -> Prediction:
        check_level(level)
        C = np.asarray(C, dtype=np.float64)
        if not np.all(np.isfinite(C) & (C > 0)):
            raise ValueError(f"C must be finite and positive, got {C}; it is a compute in FLOPs.")
        x = np.log(C) - self._centre
        low, high = np.exp(self._ends(which, np.stack([np.ones_like(x), x], axis=-1), level))
        value = np.exp(self._line[which, 0] + self._line[which, 1] * x)
        if x.ndim == 0:
            return Prediction(float(value), float(low), float(high), level)
        return Prediction(value, low, high, level)

    def _exponents(self, level: float = 0.9) -> list[list[str]]:
        rows = [["", "exponent", f"{100 * level:g}% interval"]]
        for name, symbol in (("exponent_N", "N_opt ~ C^a"), ("exponent_D", "D_opt ~ C^b")):
            low, high = self.interval(name, level)
            between = f"{low:.4f} .. {high:.4f}" if np.isfinite(low) else "unknown"
            rows.append([symbol, f"{getattr(self, name):.4f}", between])
        return rows

    def to_dict(self, level: float = 0.9) -> dict[str, Any]:
        return {
            "exponent_N": self.exponent_N,
            "exponent_D": self.exponent_D,
            "level": level,
            "intervals": {name: list(self.interval(name, level)) for name in ("exponent_N", "exponent_D")},
            "optima": {name: column.tolist() for name, column in self.optima.to_dict().items()},
            "warnings": list(self.warnings),
        }

    def to_frame(self) -> Any:
        """The optima as a pandas DataFrame."""
        return self.optima.to_frame()

    def plot(self, ax: Any = None, kind: str = "curves", level: float = 0.9) -> Any:
        raise NotImplementedError

    def _plot_law(self, ax: Any, level: float, markers: str) -> Any:
        C = self.optima.C
        grid = np.geomspace(C.min(), C.max(), 50)
        for which, name, shade in ((0, "N", "black"), (1, "D", "0.5")):
            law = self._at(which, grid, level)
            exponent = (self.exponent_N, self.exponent_D)[which]
            ax.plot(C, self.optima[name], markers, color=shade, ms=4, mfc=shade if which == 0 else "w")
            ax.plot(grid, law.value, "-" if which == 0 else "--", color=shade, label=f"{name}_opt ~ C^{exponent:.3f}")
            ax.fill_between(grid, law.low, law.high, color=shade, alpha=0.15, lw=0)
        ax.set(xscale="log", yscale="log", xlabel="C (FLOPs)", ylabel="N (parameters), D (tokens)")
        ax.legend(fontsize=8)
        return ax


class IsoFlop(ComputeOptimal):
    """The outcome of `ps.isoflop`.

    optima: Runs with columns C (FLOPs, the budget), N, N_se (standard error by the noise of its runs), D (tokens), loss (nats
    per token), n_runs. dropped: budget -> why it gave no optimum. noise: standard deviation of a run about its curve, relative
    to the loss. misfit: root of chi^2 per degree of freedom of the optima about the power law of N; well above 1, they scatter
    more than noise explains. scatter: standard deviation of ln N_opt from budget to budget beyond that noise, by restricted
    maximum likelihood; intervals include it. degrees: of freedom of the t intervals, budgets - 2. n_runs: of the table;
    those at no budget play no part. doubts: about the table's units.
    """

    def __init__(
        self,
        optima: Runs,
        laws: "_PowerLaws",
        samples: np.ndarray,
        centre: float,
        curves: "list[Curve]",
        method: str,
        dropped: dict[float, str],
        noise: float,
        n_runs: int,
        doubts: tuple[str, ...],
    ) -> None:
        super().__init__(optima, laws.line, samples, centre)
        self.doubts = doubts
        self.method, self.dropped, self.noise, self._curves = method, dropped, noise, curves
        self.misfit, self.scatter, self.degrees, self.n_runs = laws.misfit, laws.scatter, laws.degrees, n_runs
        self._covariance = laws.covariance
        self.warnings = self._warnings()

    def _ends(self, which: int, at: np.ndarray, level: float) -> np.ndarray:
        from scipy.special import stdtrit

        value = at @ self._line[which]
        if not self.degrees:
            return np.full((2, *value.shape), np.nan)
        error = np.sqrt(np.sum((at @ self._covariance[which]) * at, axis=-1))
        reach = stdtrit(self.degrees, (1 + level) / 2) * error
        return np.stack([value - reach, value + reach])

    @property
    def _misses(self) -> bool:
        return self.misfit > _LARGE_MISFIT and self.scatter > _SMALL_SCATTER

    @property
    def headline(self) -> str:  # type: ignore[override]
        title = f"isoFLOP by {self.method}"
        if self.doubts:
            return f"{title}; NOT TO BE TRUSTED, {self.doubts[0]}"
        if not self.degrees:
            return f"{title}; no interval"
        if self._misses:
            return f"{title}; N_opt scatters {self.misfit:.2g}x its noise"
        return f"{title}; {len(self.dropped)} dropped" if self.dropped else title

    def _warnings(self) -> tuple[str, ...]:
        found = list(self.doubts)
        if not self.degrees:
            found.append(
                "no interval: two budgets fix a line and say nothing of its error; add a third, better a fifth"
            )
        if self._misses:
            found.append(
                f"the optima scatter {self.misfit:.2g} times as much about the power law as the noise of their runs explains "
                f"(a budget's N_opt by a factor of {np.exp(self.scatter):.3g}): tuning or the shape of the curves differs from "
                "budget to budget, or no one power law holds. The intervals include this scatter as far as it is random"
            )
        if self.degrees and not np.isfinite(self.noise):
            found.append(
                "every curve goes through all of its runs, so that their noise is unknown: the intervals rest on the scatter "
                "of the optima alone; with more runs a budget they would be checked against it"
            )
        return tuple(found)

    def _parts(self) -> tuple[str, list[Any], list[str]]:
        rows = [["C", "N_opt", "+-", "D_opt", "loss", "runs"]]
        columns = [self.optima[name].tolist() for name in ("C", "N", "N_se", "D", "loss", "n_runs")]
        rows += [
            [f"{C:.4g}", f"{N:.4g}", f"{se:.2g}", f"{D:.4g}", f"{loss:.5g}", f"{n}"]
            for C, N, se, D, loss, n in zip(*columns, strict=True)
        ]
        used = int(self.optima["n_runs"].sum())
        title, sign, doubt = self.headline.partition("; ")
        title += f": {len(self.optima)} budgets, {used} of {self.n_runs} runs"
        notes = []
        if np.isfinite(self.noise):
            scatter = f"; scatter of N_opt {self.misfit:.2g} times its error" if np.isfinite(self.misfit) else ""
            notes.append(f"  noise {self.noise:.2%} of the loss{scatter}")
        notes += [f"! {warning}" for warning in self.warnings[len(self.doubts[:1]) :]]
        notes += [f"! C = {C:.4g} dropped: {reason}" for C, reason in self.dropped.items()]
        return f"{title}{sign}{doubt}", [rows, self._exponents()], notes

    def to_dict(self, level: float = 0.9) -> dict[str, Any]:
        dropped = [{"C": C, "reason": reason} for C, reason in self.dropped.items()]
        return {
            "method": self.method,
            **super().to_dict(level),
            "degrees": self.degrees,
            "noise": self.noise,
            "misfit": self.misfit,
            "scatter": self.scatter,
            "dropped": dropped,
        }

    def plot(self, ax: Any = None, kind: str = "curves", level: float = 0.9) -> Any:
        """kind "curves": loss against N, a curve for each budget, a star at its floor; "law": N_opt and D_opt against C."""
        if kind not in ("curves", "law"):
            raise ValueError(f'kind={kind!r} is unknown; known are "curves" and "law".')
        ax = new_axes() if ax is None else ax
        if kind == "law":
            return self._plot_law(ax, level, "o")
        for i, (curve, N, loss) in enumerate(zip(self._curves, self.optima.N, self.optima.loss, strict=True)):
            shade = f"{0.7 * i / max(1, len(self._curves) - 1):.2f}"
            grid = np.linspace(curve.x[0], curve.x[-1], 200)
            value = curve.draw(grid, self.method)
            ax.plot(np.exp(curve.x), curve.loss, "o", color=shade, ms=3)
            ax.plot(np.exp(grid), value, "-", color=shade, lw=1, label=f"C = {curve.C:.3g}")
            ax.plot(N, loss, "*", color=shade, ms=9)
        ax.set(xscale="log", xlabel="N (parameters)", ylabel="loss (nats per token)", title="isoFLOP curves")
        ax.legend(fontsize=7)
        return ax


@dataclass(frozen=True)
class Curve:
    """Runs of one budget C in order of N: x = ln N, loss, weight, ln_D, each [n]."""

    C: float
    x: np.ndarray
    loss: np.ndarray
    weight: np.ndarray
    ln_D: np.ndarray

    def powers(self, degree: int, x: np.ndarray | None = None) -> np.ndarray:
        """Powers of the centred log N, [n, degree + 1]."""
        return np.vander((self.x if x is None else x) - self.x.mean(), degree + 1, increasing=True)

    def least_squares(self, loss: np.ndarray, degree: int) -> np.ndarray:
        """Coefficients [..., degree + 1] of polynomials fitted to losses [..., n]."""
        root = np.sqrt(self.weight)
        return (loss * root) @ np.linalg.pinv(self.powers(degree) * root[:, None]).T

    def fitted(self, degree: int) -> np.ndarray:
        return self.powers(degree) @ self.least_squares(self.loss, degree)

    def draw(self, x: np.ndarray, method: str) -> np.ndarray:
        if method == "parabola":
            return self.powers(2, x) @ self.least_squares(self.loss, 2)
        knots, merge = _merged(self)
        y = merge @ self.loss
        i = np.clip(np.searchsorted(knots, x, side="right") - 1, 0, len(knots) - 2)
        t, c2, c3 = _cubics(knots, y)
        s = x - knots[i]
        return y[i] + s * (t[i] + s * (c2[i] + s * c3[i]))

    def D(self, x: np.ndarray) -> np.ndarray:
        """ln D at log N = x: a line through the runs, exact where C = 6ND."""
        return np.polyval(np.polyfit(self.x - self.x.mean(), self.ln_D, 1), x - self.x.mean())


def isoflop(
    runs: Any,
    budgets: str | Sequence[float] | None = None,
    method: str = "parabola",
    *,
    tolerance: float = 0.1,
    weights: Any = None,
    n: int = 1000,
    seed: int = 0,
) -> IsoFlop:
    """Compute-optimal N and D at each compute budget, and their exponents (Hoffmann et al. 2022, approach 2).

    runs: columns N, loss and C in FLOPs (or D, with C = 6ND). budgets: a column that labels them, the budgets themselves
    in FLOPs (each run goes to the nearest, if within the fraction `tolerance`), or None: runs whose C follow each other
    within `tolerance` are one budget. method: "parabola", least squares in ln N, weighted by `weights` (a column or [n]),
    with the optimum's standard error by the delta method; or "akima", a cubic with the slopes of Akima 1970
    (doi:10.1145/321607.321609) through the runs, with standard errors from n resamples of the residuals about a cubic, pooled
    over budgets. Exponents: least squares of ln N_opt and ln D_opt on ln C, weighted by 1 / (s^2 + tau^2), where s is an
    optimum's error (none counts as less than the median's) and tau the scatter between budgets, by restricted maximum likelihood.
    Intervals: Student's t with budgets - 2 degrees of freedom, the variance scaled to the scatter that is seen (Knapp & Hartung
    2003, doi:10.1002/sim.1482); n samples of the same distribution.
    Warns of budgets that give no optimum (`dropped` has them), and of optima that scatter more than their noise explains.
    Raises ValueError for bad arguments, or fewer than two optima.
    """
    table = as_runs(runs)
    if method not in _METHODS:
        raise ValueError(f"method={method!r} is unknown; known are {', '.join(_METHODS)}.")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, got {tolerance}; 0.1 means 10 % of C.")
    if n < 2:
        raise ValueError(f"n must be at least 2 resamples, got {n}; 1,000 make a steady interval.")
    minimum, degree = (_parabola, 2) if method == "parabola" else (_akima, 3)
    dropped: dict[float, str] = {}
    curves = []
    for curve in _curves(table, budgets, tolerance, _weights(weights, table), dropped):
        reason = _unusable(curve, method)
        if reason:
            dropped[curve.C] = reason
        else:
            curves.append(curve)
    listed = "; ".join(f"C = {C:.4g}: {reason}" for C, reason in dropped.items())
    if len(curves) < 2:
        raise ValueError(
            f"isoflop needs optima at two budgets at least, {table.source} gives {len(curves)} ({listed or 'no more budgets'}). "
            "Name the budgets (budgets=...), change tolerance or add runs on both sides of the optimum."
        )
    if dropped:
        count = len(dropped) + len(curves)
        warnings.warn(f"isoflop dropped {len(dropped)} of {count} budgets: {listed}.", stacklevel=2)
    noise, residuals = _pooled_residuals(curves, degree)
    at, errors = [], []
    generator = np.random.default_rng(seed)
    for curve in curves:
        x, loss, variance = minimum(curve, curve.loss)
        if method == "akima":
            # Not the runs but their residuals: a resample of five runs is seldom a valley (intervals 2.6 times as wide).
            noisy = generator.choice(residuals, size=(n, len(curve.x))) * curve.loss.mean() / np.sqrt(curve.weight)
            errors.append(np.sqrt(_variance(minimum(curve, curve.loss + noisy)[0])))
        else:
            errors.append(noise * np.sqrt(variance))
        at.append([x, curve.D(x), loss])
    optimum, se = np.array(at).T, np.array(errors)
    C = np.array([curve.C for curve in curves])
    centre = float(np.log(C).mean())
    laws = _power_laws(np.log(C) - centre, optimum[:2], se)
    optima = Runs(
        {
            "C": C,
            "N": np.exp(optimum[0]),
            "N_se": np.exp(optimum[0]) * se,
            "D": np.exp(optimum[1]),
            "loss": optimum[2],
            "n_runs": np.array([len(curve.x) for curve in curves]),
        },
        source="the optima",
    )
    result = IsoFlop(
        optima, laws, laws.draw(n, generator), centre, curves, method, dropped, noise, len(table), table.doubts
    )
    if result.warnings:
        warnings.warn(f"isoflop: {'; '.join(result.warnings)}.", stacklevel=2)
    return result


@dataclass(frozen=True)
class _PowerLaws:
    """Lines through optima: line [2, 2] as (N or D) x (value at u = 0, slope); its covariance is scale[i, j] x unscaled."""

    line: np.ndarray
    unscaled: np.ndarray  # (X'WX)^-1, [2, 2]
    scale: np.ndarray  # of the residuals of N and D, [2, 2]; NaN without a degree of freedom
    degrees: int
    scatter: float
    misfit: float

    @property
    def covariance(self) -> np.ndarray:
        """Of each line's (value, slope), [2, 2, 2]."""
        return np.diag(self.scale)[:, None, None] * self.unscaled

    def draw(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """Lines [n, 2, 2] from their joint t distribution; where C = 6ND, so are the N and D of each."""
        if not self.degrees:
            return np.full((n, 2, 2), np.nan)
        values, vectors = np.linalg.eigh(self.scale)  # singular where C = 6ND
        of_laws, of_line = vectors * np.sqrt(np.maximum(values, 0)), np.linalg.cholesky(self.unscaled)
        t = generator.standard_normal((n, 2, 2)) / np.sqrt(generator.chisquare(self.degrees, (n, 1, 1)) / self.degrees)
        return self.line + of_laws @ t @ of_line.T


def _power_laws(u: np.ndarray, y: np.ndarray, se: np.ndarray) -> _PowerLaws:
    """Lines through y [2, k] on u [k], whose errors se [k] explain a part of their scatter; NaN where unknown.

    The scatter between budgets is y[0]'s, and so are the weights. Of errors below the median's some are small by luck, and
    the few that have them would decide: with two of a twentieth of the others', 90 % intervals cover 77 %.
    """
    X, degrees = np.stack([np.ones_like(u), u], axis=-1), len(u) - 2
    variance = np.maximum(se, np.median(se)) ** 2
    known = bool(np.all(variance > 0))
    tau2 = between_variance(X, y[0], variance) if known and degrees else 0.0
    weight = 1 / (variance + tau2) if known else np.ones_like(u)
    line, unscaled, residual = _least_squares(X, y, weight)
    scale = (residual * weight) @ residual.T / degrees if degrees else np.full((2, 2), np.nan)
    misfit = scatter = float("nan")
    if degrees and np.all(se > 0):
        misfit = float(np.sqrt(np.sum((_least_squares(X, y[:1], se**-2.0)[2] / se) ** 2) / degrees))
    if degrees:
        scatter = float(np.sqrt(tau2 if known else scale[0, 0]))
    return _PowerLaws(line, unscaled, scale, degrees, scatter, misfit)


def _least_squares(X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients [m, p] of y [m, k] on X [k, p], (X'WX)^-1 and residuals [m, k]."""
    unscaled = np.linalg.inv((X.T * weight) @ X)
    beta = (y * weight) @ X @ unscaled
    return beta, unscaled, y - beta @ X.T


def between_variance(X: np.ndarray, y: np.ndarray, variance: np.ndarray) -> float:
    """tau^2 >= 0 of y [k] ~ normal(X beta, tau^2 + variance) by restricted maximum likelihood, in steps of Fisher scoring.

    Viechtbauer 2005 (doi:10.3102/10769986030003261), eq. 11, for a regression.
    """
    tau2 = 0.0
    for _ in range(200):
        weight = 1 / (variance + tau2)
        _, unscaled, residual = _least_squares(X, y[None], weight)
        P = np.diag(weight) - (weight[:, None] * X) @ unscaled @ (X.T * weight)
        Py = weight * residual[0]
        before, tau2 = tau2, max(0.0, tau2 + float((Py @ Py - np.trace(P)) / np.sum(P * P)))
        if abs(tau2 - before) <= 1e-10 * (tau2 + np.mean(variance)):
            break
    return tau2


def _curves(
    runs: Runs, budgets: str | Sequence[float] | None, tolerance: float, weights: np.ndarray, dropped: dict[float, str]
) -> list[Curve]:
    C = runs.C
    if budgets is None:
        members = groups_of_close(C, tolerance)
        centres = [float(np.exp(np.log(C[group]).mean())) for group in members]
    elif isinstance(budgets, str):
        labels = runs[budgets]
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        centres = [float(np.exp(np.log(C[group]).mean())) for group in members]
    else:
        try:
            wanted = np.unique(np.asarray(budgets, dtype=np.float64))
        except (TypeError, ValueError):
            raise ValueError(f"budgets must be a column or numbers of FLOPs, got {budgets!r}.") from None
        if wanted.size == 0 or not np.all(np.isfinite(wanted) & (wanted > 0)):
            raise ValueError(f"budgets must be finite and positive FLOPs, got {list(budgets)}.")
        distance = np.abs(np.log(C[:, None] / wanted))
        near, home = distance.min(axis=1) <= np.log1p(tolerance), distance.argmin(axis=1)
        members = [np.flatnonzero(near & (home == k)) for k in range(len(wanted))]
        centres = wanted.tolist()
    curves = []
    for centre, group in sorted(zip(centres, members, strict=True), key=lambda pair: pair[0]):
        group = group[weights[group] > 0]
        if not len(group):
            dropped[centre] = "no run has this compute"
            continue
        spread = C[group].max() / C[group].min()
        if spread > (1 + tolerance) ** 5:
            dropped[centre] = f"the C of its runs differ by a factor of {spread:.3g}: not one budget"
            continue
        group = group[np.argsort(runs.N[group], kind="stable")]
        columns = np.log(runs.N[group]), runs.loss[group], weights[group], np.log(runs.D[group])
        curves.append(Curve(centre, *columns))
    return curves


def _unusable(curve: Curve, method: str) -> str:
    """Why a budget's curve has no optimum; empty if it has one."""
    distinct, needed = (len(np.unique(curve.x)), 3) if method == "parabola" else (len(_merged(curve)[0]), 5)
    if distinct < needed:
        return f"{distinct} sizes, {needed} are needed"
    if method == "parabola" and curve.least_squares(curve.loss, 2)[2] <= 0:
        return "the parabola opens downwards"
    x, *_ = (_parabola if method == "parabola" else _akima)(curve, curve.loss)
    if not np.isfinite(x):
        end = "smallest" if curve.least_squares(curve.loss, 1)[1] > 0 else "largest"
        return (
            f"the optimum lies beyond the {end} N of its runs ({np.exp(curve.x[0]):.3g} to {np.exp(curve.x[-1]):.3g})"
        )
    return ""


def _parabola(curve: Curve, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ln N and loss [...] at the vertex for losses [..., n], and the variance of ln N for a unit of relative noise.

    NaN where the curvature is wrong or the vertex off the grid. Delta method on x = -b / 2c.
    """
    a, b, c = np.moveaxis(curve.least_squares(loss, 2), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        s = -b / (2 * c)
        x = s + curve.x.mean()
        x = np.where((c > 0) & (x >= curve.x[0]) & (x <= curve.x[-1]), x, np.nan)
        root = np.sqrt(curve.weight)[:, None]
        covariance = np.linalg.inv((curve.powers(2) * root).T @ (curve.powers(2) * root))
        gradient = np.stack([np.zeros_like(s), -1 / (2 * c), -s / c], axis=-1)
        variance = curve.loss.mean() ** 2 * np.sum((gradient @ covariance) * gradient, axis=-1)
    return x, a + b * s / 2, variance


def _merged(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """ln N of the sizes [k], and the matrix [k, n] that averages the runs of each.

    Sizes closer than 1 % are one: a curve through both would turn the noise of two runs into a cliff.
    """
    groups = groups_of_close(np.exp(curve.x), 0.01)
    merge = np.zeros((len(groups), len(curve.x)))
    for row, group in zip(merge, groups, strict=True):
        row[group] = curve.weight[group] / curve.weight[group].sum()
    return merge @ curve.x, merge


def _cubics(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients of s, s^2, s^3 [..., k - 1] of the cubics between knots x [k], with Akima's slopes at the knots."""
    h = np.diff(x)
    m = np.diff(y) / h
    before, after = 2 * m[..., :1] - m[..., 1:2], 2 * m[..., -1:] - m[..., -2:-1]
    outer = [2 * before - m[..., :1], before, m, after, 2 * after - m[..., -1:]]
    m2 = np.concatenate(outer, axis=-1)
    left, right = np.abs(np.diff(m2))[..., 2:], np.abs(np.diff(m2))[..., :-2]
    total = left + right
    share = np.where(total > 0, left / np.where(total > 0, total, 1.0), 0.5)
    t = share * m2[..., 1:-2] + (1 - share) * m2[..., 2:-1]
    return t[..., :-1], (3 * m - 2 * t[..., :-1] - t[..., 1:]) / h, (t[..., :-1] + t[..., 1:] - 2 * m) / h**2


def _akima(curve: Curve, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ln N and loss [...] at the lowest point of Akima's curve; NaN where that is an end. No variance."""
    knots, merge = _merged(curve)
    y = loss @ merge.T
    t, c2, c3 = _cubics(knots, y)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.sqrt(c2**2 - 3 * c3 * t)
        s = np.where(c2 >= 0, -t / (c2 + q), (q - c2) / (3 * c3))  # the root where the slope turns positive
        inside = (s >= 0) & (s <= np.diff(knots))
        value = np.where(inside, y[..., :-1] + s * (t + s * (c2 + s * c3)), np.inf)
    x_all = np.concatenate([knots[:-1] + np.where(inside, s, 0.0), np.broadcast_to(knots, y.shape)], axis=-1)
    value_all = np.concatenate([value, y], axis=-1)
    best = np.argmin(value_all, axis=-1)[..., None]
    x, lowest = (np.take_along_axis(array, best, axis=-1)[..., 0] for array in (x_all, value_all))
    x = np.where((x > knots[0]) & (x < knots[-1]), x, np.nan)
    return x, lowest, np.full_like(x, np.nan)


def _pooled_residuals(curves: list[Curve], degree: int) -> tuple[float, np.ndarray]:
    """Noise of a run of weight one relative to its curve's mean loss, and residuals scaled to that noise; NaN if none.

    One noise for all budgets: a budget's own few residuals say little.
    """
    found, freedom = [], 0
    for curve in curves:
        if len(np.unique(curve.x)) > degree:
            found.append((curve.loss - curve.fitted(degree)) * np.sqrt(curve.weight) / curve.loss.mean())
            freedom += len(curve.x) - degree - 1
    if not freedom:
        return float("nan"), np.array([np.nan])
    residuals = np.concatenate(found)
    residuals = residuals * np.sqrt(len(residuals) / freedom)
    return float(np.sqrt(np.mean(residuals**2))), residuals


def _variance(x: np.ndarray) -> float:
    kept = x[np.isfinite(x)]
    return float(np.var(kept, ddof=1)) if len(kept) > 1 else float("nan")


def _quantiles(values: np.ndarray, level: float) -> np.ndarray:
    """Ends [2, ...] of the central interval over the first axis, without NaN where some are left."""
    if not np.isfinite(values).any():
        return np.full((2, *values.shape[1:]), np.nan)
    return np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
