"""`ps.compare`: which law to believe, judged by runs that it has not seen.

Laws that fit equally well part ways beyond the data, so they are ranked by how well they extrapolate: each is fitted to
the runs of less compute and predicts those of more, at several cuts. Information criteria on the whole table stand beside.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyscaling import laws as law_table
from pyscaling.fitting.bootstrap import check_level
from pyscaling.fitting.fit import Fit, fit, law_over
from pyscaling.fitting.problem import _weights
from pyscaling.fitting.result import TableResult, groups_of_close, new_axes
from pyscaling.laws import Law
from pyscaling.tables import Runs, as_runs

_SAME_SIZE = 0.02  # the largest N: sizes that follow it this closely are one model
_SHARES = (0.2, 0.35, 0.5)  # of the runs, held out by the cuts: with more of them the rest lies further below
_WIDTH = 80


@dataclass(frozen=True)
class Score:
    """How a law does.

    n_parameter: free parameters. rms, mean, inside: of the held-out runs of all cuts together, ln(predicted / observed
    loss), and the share inside the prediction interval. rms_of_cuts: of each. aicc, bic: of the whole table, see `compare`.
    concerns: what the evidence of the fit to the most runs holds against it. fit: that fit. errors: of the held-out runs,
    cut after cut. reason: why the law could not be fitted; the rest is then NaN or None.
    """

    law: str
    n_parameter: int
    rms: float = float("nan")
    mean: float = float("nan")
    inside: float = float("nan")
    aicc: float = float("nan")
    bic: float = float("nan")
    rms_of_cuts: tuple[float, ...] = ()
    concerns: tuple[str, ...] = ()
    reason: str = ""
    fit: Fit | None = field(default=None, repr=False, compare=False)
    errors: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    @property
    def fitted(self) -> bool:
        return not self.reason


class Comparison(TableResult):
    """Laws ranked by held-out error, best first.

    scores: tuple of Score, laws that could not be fitted last. cuts: [n] masks of the runs held out by each, the fewest
    first. held_out: the mask of those held out by any. reach: for each cut the largest value of `variable` (C, unless the
    table has none) held out, over the largest fitted. best: a law's name.
    """

    def __init__(
        self, runs: Runs, cuts: list[np.ndarray], variable: str, level: float, scores: tuple[Score, ...]
    ) -> None:
        self.runs, self.cuts, self.variable, self.level, self.scores = runs, tuple(cuts), variable, level, scores
        self.held_out = np.any(cuts, axis=0)
        x = runs.numbers(variable)
        self.reach = tuple(float(x[cut].max() / x[~cut].max()) for cut in cuts) if np.all(x > 0) else ()

    @property
    def best(self) -> str:
        return self.scores[0].law

    def __getitem__(self, law: str) -> Score:
        for score in self.scores:
            if score.law == law:
                return score
        raise ValueError(f"law {law!r} was not compared; those are {', '.join(score.law for score in self.scores)}.")

    def _parts(self) -> tuple[str, list[Any], list[str]]:
        fitted = [score for score in self.scores if score.fitted]
        aicc, bic = min(score.aicc for score in fitted), min(score.bic for score in fitted)
        rows = [["law", "k", "rms", "mean", f"in {100 * self.level:g}%", "AICc", "BIC", "evidence"]]
        for s in fitted:
            errors = f"{s.rms:.3%}", f"{s.mean:+.3%}", f"{s.inside:.0%}"
            doubts = f"{len(s.concerns)} doubt{'s'[: len(s.concerns) - 1]}" if s.concerns else "ok"
            rows.append([s.law, f"{s.n_parameter}", *errors, f"+{s.aicc - aicc:.1f}", f"+{s.bic - bic:.1f}", doubts])
        room = _WIDTH - 2 - sum(2 + max(map(len, column)) for column in list(zip(*rows, strict=True))[1:])
        for row in rows:
            row[0] = row[0] if len(row[0]) <= max(room, 8) else f"{row[0][: max(room, 8) - 2]}.."
        notes = [f"! {s.law}: {'; '.join(s.concerns) or s.reason}" for s in self.scores if s.concerns or s.reason]
        key = "  k: parameters; rms, mean: error of held-out runs; AICc, BIC: above the least"
        return self._title(), [rows], [key, *notes]

    def _title(self) -> str:
        runs, held = len(self.runs), [int(cut.sum()) for cut in self.cuts]
        if len(held) == 1:
            reach = f" ({self.variable} up to {self.reach[0]:.3g} times the largest fitted)" if self.reach else ""
            title = f"{runs - held[0]} runs fitted, {held[0]} held out{reach}"
        else:
            title = f"cuts hold out {', '.join(map(str, held))} of {runs} runs"
            if self.reach:
                title += f", up to {', '.join(f'{x:.3g}x' for x in self.reach)} the {self.variable} of the fitted"
        return title if self.variable == "C" else f"{title}; no C"

    def to_dict(self) -> dict[str, Any]:
        keys = ("law", "n_parameter", "rms", "mean", "inside", "aicc", "bic", "reason")
        scores = [
            {key: getattr(s, key) for key in keys} | {"rms_of_cuts": list(s.rms_of_cuts), "concerns": list(s.concerns)}
            for s in self.scores
        ]
        return {
            "cuts": [int(cut.sum()) for cut in self.cuts],
            "variable": self.variable,
            "reach": list(self.reach),
            "n_fitted": int((~self.held_out).sum()),
            "n_held_out": int(self.held_out.sum()),
            "level": self.level,
            "laws": scores,
        }

    def to_frame(self) -> Any:
        """One row a law, best first."""
        import pandas as pd

        return pd.DataFrame(self.to_dict()["laws"]).set_index("law")

    def plot(self, ax: Any = None) -> Any:
        """Error of each held-out prediction in per cent, against C (or what stands for it); returns the Axes."""
        ax = new_axes() if ax is None else ax
        fitted = [score for score in self.scores if score.fit is not None]
        x = np.concatenate([self.runs.numbers(self.variable)[cut] for cut in self.cuts])
        for i, score in enumerate(fitted):
            shade = f"{0.7 * i / max(1, len(fitted) - 1):.2f}"
            ax.plot(
                x, 100 * score.errors, "os^Dv<>Pp*"[i % 10], color=shade, ms=5, label=f"{score.law}, {score.rms:.2%}"
            )
        ax.axhline(0, color="black", lw=0.8)
        ax.set(
            xscale="log" if self.reach else "linear",
            xlabel=self.variable,
            ylabel="ln(predicted / observed), %",
            title="held-out runs",
        )
        ax.legend(fontsize=8)
        return ax


def compare(
    runs: Any,
    laws: Iterable[str | Law] | None = None,
    holdout: Any = "cuts",
    threshold: float | None = None,
    *,
    level: float = 0.9,
    **options: Any,
) -> Comparison:
    """Ranks laws by the error with which they extrapolate.

    laws: as `law` of `fit`; by default every built-in law of N and D, or of the one of them that the table has, or of C.
    holdout, the runs to be predicted from the others: "cuts", the 20 %, the 35 % and the 50 % with the most compute, one after
    the other, errors pooled; runs of equal C stay together, a law's parameters and two more are left to fit where the table has
    them, and of `group`s each is cut at its own shares. A table without C is cut in what all laws have in common, N first.
    "largest", the runs of the largest N; "compute", those of C in the upper fifth of the table's log range; with `threshold`,
    those of N (or C) above it; a fraction, that share of the runs with the most C; or a boolean mask [n].
    level: of the prediction intervals, for one run. options: of `fit`, for every law.
    AICc and BIC: each law by least squares on the whole table, one Gaussian noise for all runs (a run of weight w has
    variance s^2 / w), k = free parameters + 1 for s, -2 ln l = n ln(2 pi e SS / n) - sum ln w with SS = sum w r^2,
    AICc = -2 ln l + 2k + 2k(k + 1) / (n - k - 1) (Hurvich & Tsai 1989), BIC = -2 ln l + k ln n (Schwarz 1978).
    A law that cannot be fitted is listed with its reason. Raises ValueError for bad arguments, or if no law can be fitted.
    """
    check_level(level)
    table = as_runs(runs)
    if isinstance(laws, str | Law):
        laws = [laws]
    if laws is None:
        held = {name for name in ("N", "D") if name in table} or {"C"}
        laws = [law for law in law_table.LAWS.values() if set(law.variables) == held and law.response == "loss"]
    chosen = [law_over(law, table) for law in laws]
    if not chosen:
        raise ValueError("laws is empty; name at least one, e.g. laws=['chinchilla', 'kaplan_ND'].")
    columns = {}
    if options.get("weights") is not None:
        columns["weights of the fit"] = _weights(options["weights"], table)
    if options.get("noise") is not None and np.ndim(options["noise"]) > 0:
        columns["noise of the fit"] = np.asarray(options["noise"])
    if options.get("group") is not None:
        columns["group of the fit"] = table.labels(options["group"], "group").astype(str)
    # As columns they follow their runs into the two parts.
    table = table.with_columns(columns)
    options |= {column.split()[0]: column for column in columns}
    variable = _variable(table, chosen)
    if isinstance(holdout, str) and holdout == "cuts" and threshold is None:
        cuts = _cuts(table, variable, chosen, options)
    else:
        cuts = [_held_out(table, holdout, threshold)]
    scores = [_score(table, cuts, law, level, options) for law in chosen]
    if not any(score.fitted for score in scores):
        raise ValueError(f"no law could be fitted; {scores[0].law}: {scores[0].reason}")
    order = np.argsort([score.rms if score.fitted else np.inf for score in scores], kind="stable")
    return Comparison(table, cuts, variable, level, tuple(scores[i] for i in order))


def _variable(runs: Runs, laws: list[Law]) -> str:
    """What runs are extrapolated in: compute, or else what the laws have in common."""
    if "C" in runs:
        return "C"
    common = [name for name in laws[0].variables if all(name in law.variables for law in laws)]
    return (common or laws[0].variables)[0]


def _cuts(runs: Runs, variable: str, laws: list[Law], options: dict[str, Any]) -> list[np.ndarray]:
    """Masks [n] of the runs held out, the fewest first; see `compare`."""
    x, count = runs.numbers(variable), len(runs)
    labels = runs[options["group"]] if "group" in options else np.zeros(count)
    counts = runs.numbers(options["weights"]) > 0 if "weights" in options else np.ones(count, dtype=bool)
    shared = options.get("shared") or ()
    own = max(len(law.names) for law in laws) - len([shared] if isinstance(shared, str) else shared)
    cuts: list[np.ndarray] = []
    for share in _SHARES:
        mask = np.zeros(count, dtype=bool)
        for label in np.unique(labels):
            mine = np.flatnonzero((labels == label) & counts)
            mask[mine[_above(x[mine], share, own + 2)]] = True
        if mask.any() and not any(np.array_equal(mask, cut) for cut in cuts):
            cuts.append(mask)
    if not cuts:
        raise ValueError(
            f"all {count} runs of {runs.source} have the same {variable}, so that none lies beyond the others; say which to "
            "predict from the rest: holdout=, a boolean mask."
        )
    return cuts


def _above(x: np.ndarray, share: float, keep: int) -> np.ndarray:
    """Mask of the largest of x [n], about a share of them, that leaves `keep` if it can; equal values stay together."""
    n = len(x)
    fewest = int(np.ceil(_SHARES[0] * n))
    held = min(int(np.ceil(share * n)), max(n - keep, fewest))
    distinct = np.sort(x)
    edges = np.flatnonzero(np.diff(distinct) > 0.01 * np.abs(distinct[1:])) + 1  # a cut may lie before these
    if not len(edges):
        return np.zeros(n, dtype=bool)
    enough = edges[(edges <= n - fewest) & (edges >= min(keep, n - held))]
    candidates = enough if len(enough) else edges
    edge = candidates[np.argmin(np.abs(candidates - (n - held)))]
    return np.asarray(x >= distinct[edge])


def _held_out(runs: Runs, holdout: Any, threshold: float | None) -> np.ndarray:
    if isinstance(holdout, str):
        if holdout == "cuts":
            raise ValueError(f'threshold={threshold:g} is for holdout="largest" (N) or "compute" (C), not "cuts".')
        if holdout not in ("largest", "compute"):
            raise ValueError(
                f'holdout={holdout!r} is unknown; give "cuts", "largest", "compute", a fraction or a boolean mask.'
            )
        column = runs.N if holdout == "largest" else runs.C
        if threshold is not None:
            mask = column > threshold
        elif holdout == "largest":
            mask = np.zeros(len(runs), dtype=bool)
            for group in groups_of_close(column, _SAME_SIZE)[-1:]:
                mask[group] = True
        else:
            mask = np.log(column) > np.log(column.max()) - 0.2 * np.log(column.max() / column.min())
    elif threshold is not None:
        raise ValueError(f'threshold={threshold:g} is for holdout="largest" (N) or "compute" (C), not {holdout!r}.')
    elif np.ndim(holdout) == 0:
        if not 0 < holdout < 1:
            raise ValueError(f"holdout must lie between 0 and 1, got {holdout}; 0.2 holds out a fifth of the runs.")
        mask = np.zeros(len(runs), dtype=bool)
        mask[np.argsort(runs.C, kind="stable")[len(runs) - max(1, round(holdout * len(runs))) :]] = True
    else:
        mask = np.asarray(holdout)
        if mask.dtype != bool or mask.shape != (len(runs),):
            raise ValueError(
                f"holdout as a mask must be boolean with one entry per run ({len(runs)}), got {mask.dtype} {mask.shape}."
            )
    if mask.all() or not mask.any():
        name = "C" if isinstance(holdout, str) and holdout == "compute" else "N"
        what = f"holdout={holdout!r}" if np.ndim(holdout) == 0 else "the mask of holdout"
        if threshold is not None:
            what += f" with threshold={threshold:g}"
        why = (
            f", whose {name} spans {runs[name].min():.4g} to {runs[name].max():.4g}" if isinstance(holdout, str) else ""
        )
        raise ValueError(
            f"{what} holds out {int(mask.sum())} of {len(runs)} runs{why}; both parts need some. Choose another "
            f"{'threshold' if threshold is not None else 'holdout, a fraction such as 0.2 or a mask'}."
        )
    return mask


def _score(runs: Runs, cuts: list[np.ndarray], law: Law, level: float, options: dict[str, Any]) -> Score:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fit of ", category=UserWarning)  # its concerns are in the score
            fits = [fit(runs.select(~cut), law, **options) for cut in cuts]
            whole = fit(runs, law, **(options | {"objective": "gaussian"}))
            predicted = [
                _predicted(trained, runs.select(cut), level, options) for trained, cut in zip(fits, cuts, strict=True)
            ]
    except ValueError as error:
        return Score(law.name, len(law.names), reason=str(error))
    value, low, high = np.concatenate(predicted, axis=1)
    observed = np.concatenate([runs[law.response][cut] for cut in cuts])
    errors = np.log(value / observed)
    aicc, bic = information_criteria(whole)
    ends = np.cumsum([cut.sum() for cut in cuts])[:-1]
    return Score(
        law=law.name,
        n_parameter=fits[0].problem.n_free,
        rms=float(np.sqrt(np.mean(errors**2))),
        mean=float(np.mean(errors)),
        inside=float(np.mean((low <= observed) & (observed <= high))),
        aicc=aicc,
        bic=bic,
        rms_of_cuts=tuple(float(np.sqrt(np.mean(part**2))) for part in np.split(errors, ends)),
        concerns=tuple(fits[0].evidence.concerns),
        fit=fits[0],
        errors=errors,
    )


def _predicted(trained: Fit, test: Runs, level: float, options: dict[str, Any]) -> np.ndarray:
    """Value, low and high [3, n] for the runs of `test`."""
    if "group" not in options:
        places: list[tuple[Any, dict[str, Any]]] = [(slice(None), {})]
        variables = trained.law.variables
    else:
        labels = test[options["group"]]
        places = [(labels == label, {"group": label}) for label in np.unique(labels)]
        variables = trained.law.base.variables  # type: ignore[attr-defined]
    found = np.empty((3, len(test)))
    for where, group in places:
        at = group | {name: test[name][where] for name in variables}
        with np.errstate(over="ignore", invalid="ignore"):  # a resample of a law too rich for its runs may run off
            found[:, where] = tuple(trained.predict(level=level, n=1000, **at))
    return found


def information_criteria(fitted: Fit) -> tuple[float, float]:
    """AICc and BIC of a least-squares fit, see `compare`; AICc is infinite without a degree of freedom to spare."""
    weights, residuals = fitted.problem.weights, fitted.residuals
    used = weights > 0
    n, k = int(used.sum()), fitted.problem.n_free + 1
    # An exact fit has rounding for residuals; below that the likelihood says nothing.
    variance = max(float(np.sum(weights * residuals**2)) / n, 1e-30)
    minus_2_log_likelihood = n * np.log(2 * np.pi * np.e * variance) - float(np.sum(np.log(weights[used])))
    penalty = 2 * k + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.inf
    return float(minus_2_log_likelihood + penalty), float(minus_2_log_likelihood + k * np.log(n))
