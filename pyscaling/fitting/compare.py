"""`ps.compare`: which law to believe, judged by runs that it has not seen.

Laws that fit equally well part ways beyond the data, so they are ranked by how well they extrapolate: each is fitted to
the smaller runs and predicts the larger. Information criteria on the whole table stand beside.
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
from pyscaling.fitting.result import Result, groups_of_close, new_axes, text_table
from pyscaling.laws import Law
from pyscaling.tables import Runs

_SAME_SIZE = 0.02  # the largest N: sizes that follow it this closely are one model


@dataclass(frozen=True)
class Score:
    """How a law does.

    n_parameter: free parameters. rms, mean, inside: of the held-out runs, ln(predicted / observed loss), and the share
    inside the prediction interval. aicc, bic: of the whole table, see `compare`. concerns: what the evidence of the fit
    that predicts holds against it. fit: that fit, to the runs not held out. reason: why the law could not be fitted;
    the rest is then NaN or None.
    """

    law: str
    n_parameter: int
    rms: float = float("nan")
    mean: float = float("nan")
    inside: float = float("nan")
    aicc: float = float("nan")
    bic: float = float("nan")
    concerns: tuple[str, ...] = ()
    reason: str = ""
    fit: Fit | None = field(default=None, repr=False, compare=False)
    errors: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    @property
    def fitted(self) -> bool:
        return not self.reason


class Comparison(Result):
    """Laws ranked by held-out error, best first.

    scores: tuple of Score, laws that could not be fitted last. held_out: [n] mask of the runs that were. best: a law's name.
    """

    def __init__(self, runs: Runs, held_out: np.ndarray, level: float, scores: tuple[Score, ...]) -> None:
        self.runs, self.held_out, self.level, self.scores = runs, held_out, level, scores

    @property
    def best(self) -> str:
        return self.scores[0].law

    def __getitem__(self, law: str) -> Score:
        for score in self.scores:
            if score.law == law:
                return score
        raise ValueError(f"law {law!r} was not compared; those are {', '.join(score.law for score in self.scores)}.")

    def __str__(self) -> str:
        test = int(self.held_out.sum())
        title = f"{len(self.runs) - test} runs fitted, {test} held out"
        if "C" in self.runs:
            C = self.runs.C
            title += f" (C up to {C[self.held_out].max() / C[~self.held_out].max():.3g} times the largest fitted)"
        fitted = [score for score in self.scores if score.fitted]
        aicc, bic = min(score.aicc for score in fitted), min(score.bic for score in fitted)
        inside = f"in {100 * self.level:g}% interval"
        rows = [["law", "parameters", "rms error", "mean error", inside, "AICc", "BIC", "evidence"]]
        rows += [
            [
                *(s.law, f"{s.n_parameter}", f"{s.rms:.3%}", f"{s.mean:+.3%}", f"{s.inside:.0%}"),
                *(
                    f"+{s.aicc - aicc:.1f}",
                    f"+{s.bic - bic:.1f}",
                    f"{len(s.concerns)} concerns" if s.concerns else "ok",
                ),
            ]
            for s in fitted
        ]
        notes = [f"! {s.law}: {'; '.join(s.concerns) or s.reason}" for s in self.scores if s.concerns or s.reason]
        return "\n".join([title, text_table(rows), "  AICc and BIC: above the least", *notes])

    def to_dict(self) -> dict[str, Any]:
        keys = ("law", "n_parameter", "rms", "mean", "inside", "aicc", "bic", "reason")
        scores = [{key: getattr(s, key) for key in keys} | {"concerns": list(s.concerns)} for s in self.scores]
        return {
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
        """Error of each held-out prediction in per cent, against C (or a law's first variable); returns the Axes."""
        ax = new_axes() if ax is None else ax
        fitted = [score for score in self.scores if score.fit is not None]
        name = "C" if "C" in self.runs else fitted[0].fit.law.variables[0]  # type: ignore[union-attr]
        x = self.runs[name][self.held_out]
        for i, score in enumerate(fitted):
            shade = f"{0.7 * i / max(1, len(fitted) - 1):.2f}"
            ax.plot(
                x, 100 * score.errors, "os^Dv<>Pp*"[i % 10], color=shade, ms=5, label=f"{score.law}, {score.rms:.2%}"
            )
        ax.axhline(0, color="black", lw=0.8)
        ax.set(xscale="log", xlabel=name, ylabel="ln(predicted / observed), %", title="held-out runs")
        ax.legend(fontsize=8)
        return ax


def compare(
    runs: Any,
    laws: Iterable[str | Law] | None = None,
    holdout: Any = "largest",
    threshold: float | None = None,
    *,
    level: float = 0.9,
    **options: Any,
) -> Comparison:
    """Ranks laws by the error with which they extrapolate.

    laws: as `law` of `fit`; by default every built-in law of N and D. holdout, the runs to be predicted from the
    others: "largest", those of the largest N; "compute", those of C in the upper fifth of the table's log range; with
    `threshold`, those of N (or C) above it; a fraction, that share of the runs with the most C; or a boolean mask [n].
    level: of the prediction intervals, for one run. options: of `fit`, for every law.
    AICc and BIC: each law by least squares on the whole table, one Gaussian noise for all runs (a run of weight w has
    variance s^2 / w), k = free parameters + 1 for s, -2 ln l = n ln(2 pi e SS / n) - sum ln w with SS = sum w r^2,
    AICc = -2 ln l + 2k + 2k(k + 1) / (n - k - 1) (Hurvich & Tsai 1989), BIC = -2 ln l + k ln n (Schwarz 1978).
    A law that cannot be fitted is listed with its reason. Raises ValueError for bad arguments, or if no law can be fitted.
    """
    check_level(level)
    table = runs if isinstance(runs, Runs) else Runs(runs)
    if isinstance(laws, str | Law):
        laws = [laws]
    if laws is None:
        laws = [law for law in law_table.LAWS.values() if set(law.variables) == {"N", "D"} and law.response == "loss"]
    chosen = [law_over(law, table) for law in laws]
    if not chosen:
        raise ValueError("laws is empty; name at least one, e.g. laws=['chinchilla', 'kaplan_ND'].")
    weights = options.get("weights")
    if weights is not None and not isinstance(weights, str):
        # As a column, weights follow their runs into the two parts.
        columns = {**table.to_dict(), "weights of the fit": _weights(weights, table)}
        table = Runs(columns, source=table.source, renamed=table.renamed)
        options["weights"] = "weights of the fit"
    held_out = _held_out(table, holdout, threshold)
    scores = [_score(table, held_out, law, level, options) for law in chosen]
    if not any(score.fitted for score in scores):
        raise ValueError(f"no law could be fitted; {scores[0].law}: {scores[0].reason}")
    order = np.argsort([score.rms if score.fitted else np.inf for score in scores], kind="stable")
    return Comparison(table, held_out, level, tuple(scores[i] for i in order))


def _held_out(runs: Runs, holdout: Any, threshold: float | None) -> np.ndarray:
    if isinstance(holdout, str):
        if holdout not in ("largest", "compute"):
            raise ValueError(
                f'holdout={holdout!r} is unknown; give "largest", "compute", a fraction or a boolean mask.'
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


def _score(runs: Runs, held_out: np.ndarray, law: Law, level: float, options: dict[str, Any]) -> Score:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fit of ", category=UserWarning)  # its concerns are in the score
            trained = fit(runs.select(~held_out), law, **options)
            whole = fit(runs, law, **(options | {"objective": "gaussian"}))
    except ValueError as error:
        return Score(law.name, len(law.names), reason=str(error))
    test = runs.select(held_out)
    at: dict[str, Any] = {name: test[name] for name in trained.law.variables}
    with np.errstate(over="ignore", invalid="ignore"):  # a resample of a law too rich for its runs may run off
        predicted = trained.predict(level=level, n=1000, **at)
    observed = test[trained.law.response]
    errors = np.log(predicted.value / observed)
    aicc, bic = information_criteria(whole)
    return Score(
        law=trained.law.name,
        n_parameter=trained.problem.n_free,
        rms=float(np.sqrt(np.mean(errors**2))),
        mean=float(np.mean(errors)),
        inside=float(np.mean((predicted.low <= observed) & (observed <= predicted.high))),
        aicc=aicc,
        bic=bic,
        concerns=tuple(trained.evidence.concerns),
        fit=trained,
        errors=errors,
    )


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
