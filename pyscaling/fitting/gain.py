"""`ps.compute_gain`: how much compute a better recipe is worth.

B is worth g times the compute of A if A needs g C to reach the loss that B reaches with C: g(C) = C_A(L_B(C)) / C
(the effective compute of Hernandez & Brown 2020, arXiv:2005.04305), with L(C) fitted to each one's frontier.
"""

import warnings
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from pyscaling import laws
from pyscaling.fitting.bootstrap import check_level, student_t
from pyscaling.fitting.fit import Fit, Prediction, fit
from pyscaling.fitting.result import Result, html_table, new_axes
from pyscaling.laws import Law
from pyscaling.tables import Runs, as_runs

_REACH = 30 * np.log(10)  # how far in ln C the baseline's compute is looked for, on both sides


class ComputeGain(Result):
    """The outcome of `ps.compute_gain`.

    value, low, high: the gain at `at` FLOPs with its interval of `level`; infinite where the baseline never gets there.
    unreachable: share of resamples in which it does not. fits: group -> Fit of L(C). notes: what to know before trusting it.
    """

    def __init__(
        self, groups: tuple[Any, Any], fits: tuple[Fit, Fit], at: float, level: float, n: int, seed: int
    ) -> None:
        self.baseline, self.other = (str(group) for group in groups)
        self.fits = dict(zip((self.baseline, self.other), fits, strict=True))
        self.at, self.level = at, level
        self._degrees = sum(fitted.problem.n_runs - fitted.problem.n_free for fitted in fits)
        self._samples = tuple(
            fitted.bootstrap(n, seed=seed + i, resample="residuals").samples for i, fitted in enumerate(fits)
        )
        self.value, self.low, self.high = self.gain(at)
        self.unreachable = float(np.mean(np.isinf(self._drawn(np.array([at])))))
        self.notes = self._notes()

    def gain(self, C: Any) -> Prediction:
        """The gain at C FLOPs (a number or an array), with its interval."""
        C = np.asarray(C, dtype=np.float64)
        if not np.all(np.isfinite(C) & (C > 0)):
            raise ValueError(f"C must be finite and positive, got {C}; it is a compute in FLOPs.")
        a, b = self.fits.values()
        value = compute_needed(a, None, np.asarray(b.evaluate(C=C.ravel())), C.ravel()).reshape(C.shape) / C
        # Quantiles of the reciprocal, which an unreachable loss makes zero.
        ends = np.quantile(1 / self._drawn(C.ravel()), [(1 + self.level) / 2, (1 - self.level) / 2], axis=0)
        with np.errstate(divide="ignore"):
            low, high = (1 / end.reshape(C.shape) for end in ends)
        # Few runs say little of their own scatter: as far from the estimate as t is beyond the normal distribution.
        widen = student_t((1 + self.level) / 2, self._degrees) / NormalDist().inv_cdf((1 + self.level) / 2)
        known = np.isfinite(value)
        base = np.where(known, value, 1.0)
        low, high = (np.where(known, base * (end / base) ** widen, end) for end in (low, high))
        if C.ndim == 0:
            return Prediction(float(value), float(low), float(high), self.level)
        return Prediction(value, low, high, self.level)

    def _drawn(self, C: np.ndarray) -> np.ndarray:
        """Gains [R, n] of the resamples at C [n]."""
        a, b = self.fits.values()
        loss = np.asarray(b.evaluate(self._samples[1], C=C))
        return compute_needed(a, self._samples[0], loss, C) / C

    def _notes(self) -> tuple[str, ...]:
        notes = [f"{name}: {'; '.join(f.evidence.concerns)}" for name, f in self.fits.items() if f.evidence.concerns]
        needed = {self.other: self.at, self.baseline: self.value * self.at}
        for name, compute in needed.items():
            C = self.fits[name].runs.C
            if np.isinf(compute):
                notes.append(f"{name} cannot reach this loss with any compute: it lies below its irreducible loss")
            elif not C.min() / 1.0001 <= compute <= 1.0001 * C.max():
                notes.append(
                    f"extrapolates: {name} at C = {compute:.3g}, its runs have {C.min():.3g} to {C.max():.3g} FLOPs"
                )
        return tuple(notes)

    def __str__(self) -> str:
        def times(gain: float) -> str:
            return "infinitely" if np.isinf(gain) else f"{gain:.3g}x"

        high = "infinity" if np.isinf(self.high) else f"{self.high:.3g}"
        lines = [
            f"{self.other} is worth {times(self.value)} the compute of {self.baseline} at C = {self.at:.3g} FLOPs, "
            f"{self.level:.0%} interval {self.low:.3g} .. {high}"
        ]
        law = next(iter(self.fits.values())).law
        lines.append(
            f"  L(C) = {law.expression}, " + ", ".join(f"{k}: {len(f.runs)} runs" for k, f in self.fits.items())
        )
        if self.unreachable:
            lines.append(f"  {self.baseline} never reaches this loss in {self.unreachable:.0%} of the resamples")
        return "\n".join([*lines, *(f"! {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        interval = f"{self.low:.3g} .. {self.high:.3g}"
        head = ("", "gain in compute", f"{self.level:.0%} interval", "at C, FLOPs", "runs")
        runs = " + ".join(f"{len(fitted.runs)}" for fitted in self.fits.values())
        row = (f"{self.other} over {self.baseline}", f"{self.value:.3g}", interval, f"{self.at:.3g}", runs)
        return html_table([head, row], notes=[f"! {note}" for note in self.notes])

    def to_dict(self) -> dict[str, Any]:
        return {
            "baseline": self.baseline,
            "other": self.other,
            "at": self.at,
            "level": self.level,
            "gain": {"value": self.value, "low": self.low, "high": self.high},
            "unreachable": self.unreachable,
            "fits": {name: fitted.params for name, fitted in self.fits.items()},
            "notes": list(self.notes),
        }

    def to_frame(self, points: int = 50) -> Any:
        """The gain over the range of both groups: columns C, gain, low, high."""
        import pandas as pd

        C = np.concatenate([fitted.runs.C for fitted in self.fits.values()])
        grid = np.geomspace(C.min(), C.max(), points)
        value, low, high = self.gain(grid)
        return pd.DataFrame({"C": grid, "gain": value, "low": low, "high": high})

    def plot(self, ax: Any = None) -> Any:
        """Loss against C for both groups, with the gain as an arrow; returns the Axes."""
        ax = new_axes() if ax is None else ax
        C = np.concatenate([fitted.runs.C for fitted in self.fits.values()])
        grid = np.geomspace(C.min(), C.max(), 100)
        for (name, fitted), style, marker in zip(self.fits.items(), ("--", "-"), "so", strict=True):
            ax.plot(fitted.runs.C, fitted.runs.loss, marker, color="black", mfc="w" if marker == "s" else "k", ms=4)
            ax.plot(grid, fitted.evaluate(C=grid), style, color="black", lw=1, label=name)
        loss = float(self.fits[self.other].evaluate(C=self.at))
        if np.isfinite(self.value):
            ax.annotate("", (self.at * self.value, loss), (self.at, loss), arrowprops={"arrowstyle": "<->"})
            ax.text(self.at * np.sqrt(self.value), loss, f"{self.value:.3g}x", ha="center", va="bottom")
        ax.set(xscale="log", xlabel="C (FLOPs)", ylabel="loss (nats per token)", title="effective compute")
        ax.legend(fontsize=8)
        return ax


def compute_gain(
    runs: Any,
    group: str,
    groups: Sequence[Any] | None = None,
    law: str | Law = "power_constant_C",
    at: float | None = None,
    *,
    frontier: bool = True,
    level: float = 0.9,
    n: int = 2000,
    seed: int = 0,
    **options: Any,
) -> ComputeGain:
    """How many times its compute the baseline needs to reach the loss of the other group.

    runs: columns C (or N and D, C = 6ND), loss and `group`. groups: (baseline, other), values of that column; by default its
    two values in order. law: of C alone, fitted to each group with `options` of `fit`. at: FLOPs of the other group; by
    default the geometric mean of the ends of the range that both cover. frontier: keep only runs that no run of the same
    group beats with the same compute or less; False if all are compute-optimal. level: of the interval, from n
    residual-bootstrap refits of both groups, widened as Student's t is beyond the normal distribution. It takes the scatter of
    runs about L(C) for independent: checkpoints of one run, or seeds that share a tuning, are not, and it is then too narrow.
    Warns where the gain extrapolates or a fit is not to be trusted. Raises ValueError for bad arguments.
    """
    check_level(level)
    if n < 2:
        raise ValueError(f"n must be at least 2 resamples, got {n}; 1,000 or more make a steady interval.")
    table = as_runs(runs)
    chosen = laws.get(law)
    if chosen.variables != ("C",):
        raise ValueError(
            f"law must be of C alone, {chosen.name} is of {', '.join(chosen.variables)}; take power_constant_C or kaplan_C."
        )
    labels = table[group]
    found = sorted(dict.fromkeys(labels.tolist()), key=str)
    pair = list(found if groups is None else groups)
    if len(pair) != 2 or any(value not in found for value in pair) or pair[0] == pair[1]:
        raise ValueError(
            f"groups must be two values of {group}, (baseline, other), got {pair}; {group} has {', '.join(map(str, found))}."
        )
    parts = [table.select(labels == value) for value in pair]
    if frontier:
        parts = [part.select(_frontier(part)) for part in parts]
    ends = max(part.C.min() for part in parts), min(part.C.max() for part in parts)
    at = float(np.sqrt(ends[0] * ends[1])) if at is None else float(at)
    if not (np.isfinite(at) and at > 0):
        raise ValueError(f"at must be finite and positive, got {at:g}; it is a compute in FLOPs.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fit of ", category=UserWarning)  # its concerns are in the notes
        fits = []
        for value, part in zip(pair, parts, strict=True):
            try:
                fits.append(fit(part, chosen, **options))
            except ValueError as error:
                kept = (
                    f" ({len(part)} of its {int(np.sum(labels == value))} runs are on its frontier)" if frontier else ""
                )
                raise ValueError(f"{group} = {value}{kept}: {error}") from None
    result = ComputeGain((pair[0], pair[1]), (fits[0], fits[1]), at, level, n, seed)
    if result.notes:
        warnings.warn(f"compute_gain: {'; '.join(result.notes)}.", stacklevel=2)
    return result


def _frontier(runs: Runs) -> np.ndarray:
    order = np.lexsort((runs.loss, runs.C))
    loss = runs.loss[order]
    return np.sort(order[loss < np.r_[np.inf, np.minimum.accumulate(loss)[:-1]]])


def compute_needed(fitted: Fit, samples: np.ndarray | None, loss: np.ndarray, C: np.ndarray) -> np.ndarray:
    """The compute [..., n] with which a falling law reaches losses [..., n]; infinite where it never does."""
    low = np.broadcast_to(np.log(C) - _REACH, loss.shape)
    high = np.broadcast_to(np.log(C) + _REACH, loss.shape)

    def above(x: np.ndarray) -> np.ndarray:
        scope = fitted.params if samples is None else dict(zip(fitted.law.names, samples.T[:, :, None], strict=True))
        return np.asarray(fitted.law.evaluate(scope, C=np.exp(x))) > loss

    reachable = ~above(high)
    for _ in range(60):
        middle = 0.5 * (low + high)
        higher = above(middle)
        low, high = np.where(higher, middle, low), np.where(higher, high, middle)
    return np.where(reachable, np.exp(high), np.inf)
