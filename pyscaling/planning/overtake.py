"""Where one recipe overtakes another, and how much compute it is worth there.

Two fits, of the loss by compute or by N and D, the latter along their own compute-optimal frontier. Scaling exponents differ
where architectures or data do, so the better one at small compute may be the worse one at large. The multiplier at C is what
`compute_gain` measures, C_A(L_B(C)) / C (Hernandez & Brown 2020, arXiv:2005.04305).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyscaling.accounting import parse_compute
from pyscaling.fitting.bootstrap import check_level
from pyscaling.fitting.gain import compute_needed
from pyscaling.fitting.groups import GroupedLaw
from pyscaling.fitting.result import Result, new_axes
from pyscaling.planning.frontier import Frontier
from pyscaling.units import check_positive

Array = NDArray[np.float64]

_SMALLEST_N = 1.0
_GRID = 161  # places along ln C where samples are compared
_FINE = 2001  # and the fits themselves


@dataclass(frozen=True)
class Crossing:
    """A compute C, in FLOPs, at which the two losses are equal.

    better: which is better above it, "A" or "B". low, high: interval; 0 or infinite where samples cross outside the range.
    missing: share of the samples without such a crossing in the range.
    """

    C: float
    low: float
    high: float
    loss: float
    better: str
    missing: float


@dataclass(frozen=True)
class Multiplier(Result):
    """How many times C FLOPs baseline A needs for B's loss, with an interval; infinite where it never gets there.

    unreachable: share of the samples in which it does not.
    """

    C: float
    value: float
    low: float
    high: float
    loss: float
    unreachable: float
    level: float

    def __str__(self) -> str:
        low, high = ("infinity" if np.isinf(end) else f"{end:.3g}" for end in (self.low, self.high))
        value = "infinitely" if np.isinf(self.value) else f"{self.value:.3g}x"
        return (
            f"at C = {self.C:.3g} FLOPs B is worth {value} the compute of A, {self.level:.0%} interval {low} .. {high}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Overtake(Result):
    """The outcome of `overtake`: crossings in order of C within `range`, and who is better at its ends ("A" or "B")."""

    crossings: tuple[Crossing, ...]
    range: tuple[float, float]
    ends: tuple[str, str]
    level: float
    notes: tuple[str, ...]
    _curves: "_Pair" = field(repr=False, compare=False, kw_only=True)

    @property
    def overtaken(self) -> Crossing | None:
        """The first crossing above which B is better; None if there is none within range."""
        return next((crossing for crossing in self.crossings if crossing.better == "B"), None)

    def multiplier(self, C: float | str) -> Multiplier:
        """What B's recipe is worth at C FLOPs, in A's compute: A needs value x C to reach B's loss.

        Raises ValueError for a compute that is not finite and positive.
        """
        return self._curves.multiplier(parse_compute(C), self.level)

    def __str__(self) -> str:
        low, high = self.range
        reach = f"{low:.3g} to {high:.3g} FLOPs"
        if not self.crossings:
            other = "A" if self.ends[0] == "B" else "B"
            lines = [f"{other} never overtakes {self.ends[0]} within range, {reach}"]
        else:
            lines = [f"within {reach}:"]
            for x in self.crossings:
                lost = f"; {x.missing:.1%} of the samples have none" if x.missing else ""
                ends = [f"{low:.3g} or less" if x.low <= 0 else f"{x.low:.3g}"]
                ends.append(f"beyond {high:.3g}" if np.isinf(x.high) else f"{x.high:.3g}")
                lines.append(
                    f"  {x.better} overtakes {'A' if x.better == 'B' else 'B'} at C = {x.C:.3g} FLOPs, {self.level:.0%} "
                    f"interval {ends[0]} .. {ends[1]}, L = {x.loss:.4g}{lost}"
                )
        return "\n".join([*([self.verdict] if self.verdict else []), *lines, *(f"! {note}" for note in self.notes)])

    @property
    def verdict(self) -> str:
        """What speaks against the fits behind it; empty where nothing does."""
        doubted = [
            f"{name} by {'; '.join(curve.fit.evidence.concerns)}"
            for name, curve in (("A", self._curves.a), ("B", self._curves.b))
            if getattr(curve.fit, "evidence", None) is not None and not curve.fit.evidence.trustworthy
        ]
        return f"NOT TO BE TRUSTED: {'; '.join(doubted)}" if doubted else ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "range": list(self.range),
            "ends": list(self.ends),
            "level": self.level,
            "crossings": [asdict(crossing) for crossing in self.crossings],
            "notes": list(self.notes),
        }

    def plot(self, ax: Any = None) -> Any:
        """Both losses against C with their crossings and intervals; a matplotlib Axes."""
        ax = new_axes() if ax is None else ax
        C = np.geomspace(*self.range, 201)
        for name, curve, style in (("A", self._curves.a, "--"), ("B", self._curves.b, "-")):
            ax.plot(C, curve.loss(C), style, color="black", lw=1.2, label=name)
        for x in self.crossings:
            ax.axvspan(max(x.low, self.range[0]), min(x.high, self.range[1]), color="0.92", lw=0)
            ax.plot(x.C, x.loss, "o", color="black", mfc="w")
        ax.set(xscale="log", xlabel="C (FLOPs)", ylabel="loss (nats per token)", xlim=self.range)
        ax.legend(fontsize=8)
        return ax


def overtake(
    A: Any,
    B: Any,
    *,
    within: tuple[float, float] | None = None,
    level: float = 0.9,
    bootstrap: int | tuple[Any, Any] = 1000,
    seed: int = 0,
) -> Overtake:
    """The compute at which B overtakes A, and back: all C where L_A(C) = L_B(C), with intervals from both bootstraps.

    A, B: fits of a law of C, or of N and D (or kaplan.KnownLaws, or planning.GroupFit(fit, "code"), a group of a fit of
    several, whose resamples are shared with another group's); each of the latter is taken at its best N for C = 6ND. within:
    smallest and largest FLOPs; by default from the least compute of both fits' runs to 1,000 times the largest.
    bootstrap: number of resamples of each, or a Bootstrap of each; samples are paired in order, as those of independent
    fits may be. An interval is of each sample's nearest crossing of the same direction; a sample without one counts as 0 or
    infinite by who is better at the range's ends. See Overtake.multiplier for what B is worth.
    Raises ValueError for other laws, a bad range or level.
    """
    check_level(level)
    for name, given in (("A", A), ("B", B)):
        if not all(hasattr(given, part) for part in ("law", "params", "evaluate", "bootstrap")):
            raise ValueError(f"{name} must be what ps.fit returns, or a planning.KnownLaw, got {given!r}.")
        if isinstance(given.law, GroupedLaw):
            labels = ", ".join(given.law.labels)
            raise ValueError(
                f"{name} is a fit of {labels}; say which, as planning.GroupFit({name}, {given.law.labels[0]!r})."
            )
    range_ = _range(A, B, within)
    if isinstance(bootstrap, tuple):
        boots = bootstrap
    else:
        if bootstrap < 2:
            raise ValueError(f"bootstrap must be at least 2 resamples, got {bootstrap}; 1,000 make a steady interval.")
        # Two groups of one fit move together: the same resamples of both.
        joint = getattr(A, "joint", None)
        shift = 0 if joint is not None and joint is getattr(B, "joint", None) else 1
        boots = (A.bootstrap(bootstrap, seed=seed), B.bootstrap(bootstrap, seed=seed + shift))
    pair = _Pair(_Curve("A", A, boots[0], range_), _Curve("B", B, boots[1], range_))
    C = np.geomspace(*range_, _FINE)
    difference = pair.difference(C)
    signs = np.sign(difference)
    if not signs.any():
        raise ValueError("A and B give the same loss at every C; compare two different fits.")
    roots = [
        (_root(pair, C[i], C[i + 1]) if signs[i + 1] else float(C[i + 1]), "B" if difference[i] < 0 else "A")
        for i in range(_FINE - 1)
        if signs[i] and signs[i] != signs[i + 1]
    ]
    coarse = np.geomspace(*range_, _GRID)
    samples = pair.sampled_difference(coarse) if roots else np.empty((0, _GRID))
    crossings = tuple(_crossing(pair, root, better, coarse, samples, level) for root, better in roots)
    ends = tuple("A" if value < 0 else "B" for value in (difference[0], difference[-1]))
    return Overtake(crossings, range_, ends, level, pair.notes(crossings), _curves=pair)  # type: ignore[arg-type]


def _root(pair: "_Pair", low: float, high: float) -> float:
    from scipy.optimize import brentq

    x = brentq(lambda x: float(pair.difference(np.exp([x]))[0]), np.log(low), np.log(high), xtol=1e-13, rtol=1e-14)
    return float(np.exp(x))


def _crossing(pair: "_Pair", C: float, better: str, grid: Array, samples: Array, level: float) -> Crossing:
    """A crossing with its interval from differences L_A - L_B [R, K] of the samples on the grid [K]."""
    d = -samples if better == "B" else samples  # falls through zero
    x = np.log(grid)
    falls = (d[:, :-1] > 0) & (d[:, 1:] <= 0)
    with np.errstate(all="ignore"):
        at = x[:-1] - d[:, :-1] * np.diff(x) / np.diff(d, axis=1)
    distance = np.where(falls, np.abs(at - np.log(C)), np.inf)
    nearest = distance.argmin(axis=1)
    row = np.arange(len(d))
    found = np.isfinite(distance[row, nearest])
    outside = np.where(d[:, -1] > 0, np.inf, -np.inf)  # not yet, or already at the start
    # The samples' crossings lie between the grid's points, where the curve bends: by as much as the estimate's own does.
    own = -pair.difference(grid) if better == "B" else pair.difference(grid)
    falls_own = np.flatnonzero((own[:-1] > 0) & (own[1:] <= 0))
    straight = x[falls_own] - own[falls_own] * np.diff(x)[falls_own] / (own[falls_own + 1] - own[falls_own])
    bend = np.log(C) - straight[np.abs(straight - np.log(C)).argmin()] if len(straight) else 0.0
    drawn = np.exp(np.where(found, at[row, nearest] + bend, outside))
    valid = np.isfinite(d).all(axis=1)
    low, high = np.quantile(drawn[valid], [0.5 - level / 2, 0.5 + level / 2], method="inverted_cdf")
    loss = float(pair.a.loss(np.array([C]))[0])
    return Crossing(C, float(low), float(high), loss, better, float(np.mean(~found)))


class _Curve:
    """L(C) of a fit: its law of C, or the frontier of its law of N and D."""

    def __init__(self, name: str, fit: Any, boot: Any, range_: tuple[float, float]) -> None:
        variables = tuple(sorted(fit.law.variables))
        if variables not in (("C",), ("D", "N")):
            raise ValueError(
                f"{name} is of law {fit.law.name!r}, a function of {', '.join(fit.law.variables)}; overtake needs laws of C, "
                "or of N and D."
            )
        self.fit = fit
        self.frontier = None if variables == ("C",) else Frontier(fit.law, _SMALLEST_N, 1e6 * range_[1])
        order = [list(boot.names).index(parameter) for parameter in fit.law.names]
        self.samples = np.asarray(boot.samples)[:, order]  # [R, P] in the law's order

    def _params(self, samples: Array | None) -> Mapping[str, Array]:
        rows = np.array([[self.fit.params[name] for name in self.fit.law.names]]) if samples is None else samples
        return dict(zip(self.fit.law.names, rows.T, strict=True))

    def loss(self, C: Array) -> Array:
        """[K] at C [K]."""
        return self._loss({name: np.repeat(value, len(C)) for name, value in self._params(None).items()}, C)

    def sampled(self, C: float, count: int) -> Array:
        """[count] of the first samples at C."""
        return self._loss(self._params(self.samples[:count]), np.full(count, C))

    def _loss(self, params: Mapping[str, Array], C: Array) -> Array:
        if self.frontier is None:
            return np.asarray(self.fit.law.evaluate(params, C=C), dtype=np.float64)
        N = self.frontier.best_N(params, C)
        return self.frontier.loss_at(params, N[:, None], C[:, None])[:, 0]

    def needed(self, loss: Array, C: float, samples: Array | None = None) -> Array:
        """The compute [R] with which losses [R] are reached, infinite where they never are."""
        if self.frontier is None:
            at = np.array([C])
            if samples is None:
                return compute_needed(self.fit, None, loss, at)
            return compute_needed(self.fit, samples, loss[:, None], at)[:, 0]
        near = None
        if samples is not None:
            found = self.frontier.least_compute(self._params(None), float(np.median(loss)))
            near = (float(found[0][0]), float(found[1][0]))
        params = self._params(samples)
        compute, _ = self.frontier.least_compute(params, loss, near if near and np.isfinite(near[0]) else None)
        unreachable = loss <= self.frontier.least_loss(params)
        return np.where(np.isfinite(compute), compute, np.where(unreachable, np.inf, np.nan))


@dataclass(frozen=True)
class _Pair:
    a: _Curve
    b: _Curve

    @property
    def count(self) -> int:
        return min(len(self.a.samples), len(self.b.samples))

    def difference(self, C: Array) -> Array:
        return self.a.loss(C) - self.b.loss(C)

    def sampled_difference(self, C: Array) -> Array:
        """L_A - L_B [R, K]."""
        return np.stack([self.a.sampled(c, self.count) - self.b.sampled(c, self.count) for c in C], axis=1)

    def multiplier(self, C: float, level: float) -> Multiplier:
        loss = self.b.loss(np.array([C]))
        value = float(self.a.needed(loss, C)[0]) / C
        drawn = self.a.needed(self.b.sampled(C, self.count), C, self.a.samples[: self.count]) / C
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2], method="inverted_cdf")
        return Multiplier(C, value, float(low), float(high), float(loss[0]), float(np.mean(np.isinf(drawn))), level)

    def notes(self, crossings: tuple[Crossing, ...]) -> tuple[str, ...]:
        notes = []
        for name, curve in (("A", self.a), ("B", self.b)):
            evidence = getattr(curve.fit, "evidence", None)
            if evidence is not None and not evidence.trustworthy:
                notes.append(f"{name}: {'; '.join(evidence.concerns)}")
            data = _compute_of(curve.fit)
            for crossing in crossings:
                if data is not None and not data[0] / 1.0001 <= crossing.C <= 1.0001 * data[1]:
                    notes.append(
                        f"extrapolates: {name}'s runs have {data[0]:.3g} to {data[1]:.3g} FLOPs, no {crossing.C:.3g}"
                    )
        return tuple(notes)


def _compute_of(fit: Any) -> tuple[float, float] | None:
    runs = getattr(fit, "runs", None)
    if runs is None:
        return None
    C = np.asarray(runs["C"] if "C" in runs.columns else 6.0 * runs["N"] * runs["D"])
    return float(C.min()), float(C.max())


def _range(A: Any, B: Any, within: tuple[float, float] | None) -> tuple[float, float]:
    if within is None:
        known = [data for data in map(_compute_of, (A, B)) if data is not None]
        if not known:
            raise ValueError(
                "within is missing: neither A nor B has runs to say where; give (smallest, largest) FLOPs."
            )
        return min(low for low, _ in known), 1e3 * max(high for _, high in known)
    ends = check_positive("within", within, "it is (smallest, largest) FLOPs")
    if ends.shape != (2,) or ends[0] >= ends[1]:
        raise ValueError(f"within must be (smallest, largest) FLOPs, got {within!r}.")
    return float(ends[0]), float(ends[1])
