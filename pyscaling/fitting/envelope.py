"""`ps.envelope`: the lowest loss that any of many training curves reaches with a given compute.

Approach 1 of Hoffmann et al. 2022 (arXiv:2203.15556, section 3.1). A curve's loss counts as what its N achieves with the D
seen so far, so the learning rate must not have long to decay yet: constant schedules, or cosines ended at each D.
"""

import warnings
from typing import Any

import numpy as np

from pyscaling.fitting.fit import Fit, fit
from pyscaling.fitting.isoflop import ComputeOptimal
from pyscaling.fitting.result import new_axes
from pyscaling.tables import Runs, as_runs


class Envelope(ComputeOptimal):
    """The outcome of `ps.envelope`.

    optima: Runs with columns C (FLOPs), N, D (tokens), loss (nats per token) and the label of the run that reaches it.
    dropped: how many grid points were left out, by reason.
    """

    def __init__(
        self,
        optima: Runs,
        line: np.ndarray,
        samples: np.ndarray,
        centre: float,
        curves: list[tuple[np.ndarray, np.ndarray]],
        dropped: dict[str, int],
    ) -> None:
        super().__init__(optima, line, samples, centre)
        self.dropped, self._curves = dropped, curves

    headline = "envelope"

    def fit(self, law: Any = "power_constant_C", **options: Any) -> Fit:
        """L(C) along the envelope; options as of `ps.fit`. Its points share runs: take no interval from its bootstrap."""
        return fit(self.optima, law, **options)

    def _parts(self) -> tuple[str, list[Any], list[str]]:
        C = self.optima.C
        title = (
            f"envelope of {len(self._curves)} training curves: {len(self.optima)} points, C {C[0]:.4g} to {C[-1]:.4g}"
        )
        notes = [f"! {count} points dropped: {reason}" for reason, count in self.dropped.items()]
        return title, [self._exponents()], notes

    def to_dict(self, level: float = 0.9) -> dict[str, Any]:
        return {**super().to_dict(level), "dropped": self.dropped}

    def plot(self, ax: Any = None, kind: str = "curves", level: float = 0.9) -> Any:
        """kind "curves": loss against C with the envelope; "law": N_opt and D_opt against C; returns the Axes."""
        if kind not in ("curves", "law"):
            raise ValueError(f'kind={kind!r} is unknown; known are "curves" and "law".')
        ax = new_axes() if ax is None else ax
        if kind == "law":
            return self._plot_law(ax, level, ",")
        for C, loss in self._curves:
            ax.plot(C, loss, "-", color="0.75", lw=0.8)
        ax.plot(self.optima.C, self.optima.loss, "k-", lw=2, label="envelope")
        ax.set(xscale="log", yscale="log", xlabel="C (FLOPs)", ylabel="loss (nats per token)", title="training curves")
        ax.legend(fontsize=8)
        return ax


def envelope(
    curves: Any, run: str | None = None, *, points: int = 1500, smoothing: float = 0.0, n: int = 1000, seed: int = 0
) -> Envelope:
    """N and D of the training curve that is lowest at each compute, and their power laws in C.

    curves: a table with a row for each evaluation or logged step: N, loss, and D or C (the tokens or FLOPs spent so far).
    One with a column a run is to be melted into this form. run: the column that tells the curves apart; by default
    "run" if it is there, else N. points: computes, evenly
    spaced in log C. smoothing: standard deviation in rows of a Gaussian over log loss, for noisy training losses.
    Where the lowest curve belongs to the smallest or the largest N that spent that compute, the best N may lie
    beyond: such points are dropped, with a warning, and counted in `dropped`. Exponents: least squares of ln N and
    ln D on ln C; intervals: n resamples of the runs, which hold the noise that runs differ by and are too wide with few
    curves (docs/isoflop.md): a resample of 12 sizes is a grid of 8.
    Raises ValueError for bad arguments, fewer than three sizes, or if fewer than two points are left.
    """
    table = as_runs(curves)
    if points < 2 or n < 2:
        raise ValueError(f"points and n must be at least 2, got {points} and {n}.")
    if not (np.isfinite(smoothing) and smoothing >= 0):
        raise ValueError(f"smoothing must be finite and not negative, got {smoothing}; it counts rows of the table.")
    label = run or ("run" if "run" in table else "N")
    labels, number = np.unique(table[label], return_inverse=True)
    C, D, sizes = table.C, table.D, np.empty(len(labels))
    lines = []
    for k in range(len(labels)):
        rows = np.flatnonzero(number == k)
        rows = rows[np.argsort(C[rows], kind="stable")]
        if np.ptp(table.N[rows]) > 0:
            raise ValueError(f"run {labels[k]} has several N; name the column that tells runs apart (run=...).")
        sizes[k] = table.N[rows[0]]
        lines.append((np.log(C[rows]), _smooth(np.log(table.loss[rows]), smoothing), np.log(D[rows])))
    if len(np.unique(sizes)) < 3:
        raise ValueError(f"{table.source} has curves of {len(np.unique(sizes))} N; an optimum needs three at least.")
    grid = np.linspace(np.log(C.min()), np.log(C.max()), points)
    loss = np.stack([np.interp(grid, x, y, left=np.inf, right=np.inf) for x, y, _ in lines])
    tokens = np.stack([np.interp(grid, x, z) for x, _, z in lines])
    best, inner = _lowest(loss, sizes)
    empty = ~np.isfinite(loss).any(axis=0)
    at_edge = int(np.sum(~inner & ~empty))
    dropped = {"no curve spans this compute": int(empty.sum())} if empty.any() else {}
    if at_edge:
        reason = "the lowest curve is of the smallest or largest N there"
        dropped[reason] = at_edge
        warnings.warn(f"envelope dropped {at_edge} of {points} points: {reason}.", stacklevel=2)
    if inner.sum() < 2:
        raise ValueError(
            f"the envelope of {table.source} has {int(inner.sum())} points between its smallest and largest N; "
            "add sizes, or train the present ones for longer."
        )
    k, centre = best[inner], float(grid[inner].mean())
    optima = Runs(
        {
            "C": np.exp(grid[inner]),
            "N": sizes[k],
            "D": np.exp(tokens[k, inner]),
            "loss": np.exp(loss[k, inner]),
            "run": labels[k],
        },
        source="the envelope",
    )

    def laws(best: np.ndarray, inner: np.ndarray) -> np.ndarray:
        y = np.stack([np.log(sizes[best]), tokens[best, np.arange(points)]])
        return _power_law(grid - centre, y, inner.astype(float))

    generator = np.random.default_rng(seed)
    samples = np.empty((n, 2, 2))
    for i in range(n):
        drawn = np.unique(generator.integers(len(labels), size=len(labels)))
        among, inner_i = _lowest(loss[drawn], sizes[drawn])
        samples[i] = laws(drawn[among], inner_i)
    paths = [(np.exp(x), np.exp(y)) for x, y, _ in lines]
    return Envelope(optima, laws(best, inner), samples, centre, paths, dropped)


def _lowest(loss: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of losses [runs, points] (infinite where a curve does not reach): the lowest run, and where sizes lie on both sides."""
    best = np.argmin(loss, axis=0)
    there = np.isfinite(loss)
    N = np.where(there, sizes[:, None], np.nan)
    low, high = np.fmin.reduce(N, axis=0), np.fmax.reduce(N, axis=0)
    return best, (sizes[best] > low) & (sizes[best] < high)


def _power_law(u: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted least squares of y [..., n] on u [n]: (value at u = 0, slope), [..., 2]. NaN in y are left out."""
    w = np.where(np.isfinite(y), weight, 0.0)
    y = np.where(np.isfinite(y), y, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):  # fewer than two points: NaN
        total = w.sum(-1)
        mean_u, mean_y = (w * u).sum(-1) / total, (w * y).sum(-1) / total
        du = u - mean_u[..., None]
        slope = (w * du * y).sum(-1) / (w * du**2).sum(-1)
        slope = np.where((w > 0).sum(-1) > 1, slope, np.nan)
    return np.stack([mean_y - slope * mean_u, slope], axis=-1)


def _smooth(values: np.ndarray, width: float) -> np.ndarray:
    if width == 0:
        return values
    reach = int(np.ceil(4 * width))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    total = np.convolve(np.ones_like(values), kernel)[reach : reach + len(values)]
    return np.convolve(values, kernel)[reach : reach + len(values)] / total
