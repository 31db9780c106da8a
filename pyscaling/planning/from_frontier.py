"""A plan from N_opt(C) and D_opt(C) alone: what an isoFLOP or an envelope says of a budget, without a law of N and D.

It knows the best model and its tokens. It does not know the loss off the optimum, so goals, limits and serving, which move
a run away from there, are refused. The loss at the optimum follows L(C) = E + K C^-a through the optima, where they tell it.
"""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import exp, hypot, isfinite, log, nan
from statistics import NormalDist
from typing import Any

import numpy as np

from pyscaling.accounting import PF_DAY, parameter_count, shape_near
from pyscaling.fitting.bootstrap import check_level
from pyscaling.fitting.envelope import Envelope
from pyscaling.fitting.fit import Prediction
from pyscaling.fitting.fit import fit as fit_law
from pyscaling.fitting.isoflop import ComputeOptimal
from pyscaling.fitting.plots import log_count_axis
from pyscaling.planning.batch import choose_batch
from pyscaling.planning.budget import budget_of
from pyscaling.planning.frontier import FLOPS_PER_PARAMETER_TOKEN
from pyscaling.planning.result import Plan, Quantity
from pyscaling.tables import Runs
from pyscaling.units import format_count

_FEWEST_OPTIMA = 5  # for the three parameters of L(C)
_ENVELOPE_POINTS = 200
_REMEDY = "Fit a law of N and D to the same runs and plan by that: ps.plan(ps.fit(runs), ...)."


@dataclass(frozen=True)
class FrontierPlan(Plan):
    """What to train for `compute` FLOPs by an isoFLOP or an envelope; attributes as of `Plan`.

    N, D: of the power laws, about which single budgets scatter; their ends are NaN where the optima do not tell them.
    loss: of the run, NaN where the optima do not tell it (`warnings` says so). floor is NaN, and there is no region.
    """

    optimal: ComputeOptimal = field(repr=False, compare=False, kw_only=True)

    def region(self, epsilon: float = 0.01) -> Any:
        """Raises ValueError: the loss of other models is not known."""
        raise ValueError(f"a plan by {self.law} has no region: it knows optima, not the loss around them. {_REMEDY}")

    def with_more_data(self, tokens: Any = 1e9) -> Any:
        """Raises ValueError: what repeated tokens cost is not known."""
        raise ValueError(f"a plan by {self.law} cannot say what {tokens} more unique tokens are worth. {_REMEDY}")

    def to_dict(self) -> dict[str, Any]:
        budget, shape = self.budget, self.shape
        return {
            "compute": self.compute,
            "training_compute": self.training_compute,
            "limits": budget.limits,
            "binding": list(self.binding),
            "law": self.law,
            "level": self.level,
            **{
                name: {key: value if isfinite(value) else None for key, value in asdict(getattr(self, name)).items()}
                for name in ("N", "D", "loss")
            },
            "device": None if budget.device is None else budget.device.name,
            "devices": budget.devices,
            "utilisation": budget.utilisation,
            "gpu_hours": self.gpu_hours,
            "training_seconds": self.training_seconds,
            "price": self.price,
            "tokens_per_parameter": self.tokens_per_parameter,
            "batch_tokens": self.batch_tokens,
            "batch_source": self.batch.source,
            "steps": self.steps,
            "shape": {**shape.to_dict(), "N": shape.N, "N_total": parameter_count(shape, "total")},
            "extrapolation": self.extrapolation,
            "verdict": self.verdict,
            "warnings": list(self.warnings),
        }

    def to_toml(self, corpus: str = "sotu", name: str = "planned") -> str:
        """The run as a study; see Plan.to_toml."""
        return Plan.to_toml(replace(self, law="auto"), corpus, name)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row per quantity: value, low, high (the same where nothing is estimated)."""
        return super().to_frame().drop(index="floor")

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The plan as printed: (name, value, interval, note)."""
        shape, ratio = self.shape, f"{self.tokens_per_parameter:.3g}"
        exponents = self.optimal.exponent_N, self.optimal.exponent_D
        heads = f"{shape.n_head} heads of {shape.head_dim}"
        loss = ("unknown", "", "see below")
        if isfinite(self.loss.value):
            loss = (f"{self.loss.value:.4f}", _interval(self.loss, "{:.4f}".format), "nats per token, of a run")
        return [
            ("compute C", f"{self.compute:.4g} FLOPs", "", f"{self.compute / PF_DAY:.3g} PF-days"),
            *self._spent(),
            ("model N", format_count(self.N.value), _interval(self.N, format_count), f"N_opt ~ C^{exponents[0]:.3f}"),
            (
                "data D",
                format_count(self.D.value),
                _interval(self.D, format_count),
                f"tokens, {ratio} per parameter; D_opt ~ C^{exponents[1]:.3f}",
            ),
            ("loss L", *loss),
            ("batch B", format_count(self.batch.tokens), "", f"tokens; {self.batch.source}"),
            ("steps S", f"{self.steps:,}", "", "D / B"),
            (
                "shape",
                f"{shape.n_layer} x {shape.d_model}",
                "",
                f"n_layer x d_model, {heads}; N = {format_count(shape.N)}",
            ),
        ]

    def plot(self, ax: Any = None) -> Any:
        """N_opt and D_opt against C up to the plan, whose N and D have their intervals; a matplotlib Axes."""
        ax = self.optimal.plot(ax, kind="law", level=self.level)
        C = np.geomspace(min(self.compute, self.optimal.optima.C.min()), max(self.compute, self.optimal.optima.C.max()))
        for quantity, law, style in ((self.N, self.optimal.N, "-"), (self.D, self.optimal.D, "--")):
            along = law(C, level=self.level)
            ax.plot(C, along.value, style, color="0.5", lw=0.8)
            ax.fill_between(C, along.low, along.high, color="0.5", alpha=0.15, lw=0)
            error = [[quantity.value - quantity.low], [quantity.high - quantity.value]]
            ax.errorbar(self.compute, quantity.value, yerr=error, fmt="*k", ms=9, capsize=4)
        log_count_axis(ax, "y")
        return ax


def plan_along_frontier(
    fit: ComputeOptimal,
    compute: float | str | None,
    *,
    level: float,
    batch_tokens: float | None,
    noise_scale: Any,
    architecture: Mapping[str, Any] | None,
    seed: int,
    **other: Any,
) -> FrontierPlan:
    """See `plan`, whose arguments these are; those that an isoFLOP or an envelope cannot answer are refused by name."""
    check_level(level)
    spent = ("gpu_hours", "dollars", "time", "device", "devices", "utilisation", "price_per_gpu_hour")
    budget = budget_of(compute, **{name: other.pop(name) for name in spent})
    what = "an envelope" if isinstance(fit, Envelope) else "an isoFLOP"
    for name in ("bootstrap", "bytes_per_parameter"):  # they have defaults, and say nothing alone
        other.pop(name, None)
    refused = [name for name, value in other.items() if value is not None and value is not False]
    if refused:
        raise ValueError(
            f"{refused[0]}={other[refused[0]]!r} cannot be answered by {what}, which tells the best N and D of a budget and "
            f"not the loss of other runs. {_REMEDY}"
        )
    if not budget.limits:
        raise ValueError(f"a plan by {what} needs a budget: compute, gpu_hours, dollars, or time and devices.")
    C = budget.compute
    N, D = (Quantity(*(float(end) for end in law(C, level=level))) for law in (fit.N, fit.D))
    loss, doubt = _loss(fit, C, level, seed)
    known = isfinite(loss.value)
    # Of the batch the loss decides only in order of magnitude.
    batch_loss = loss.value if known else float(fit.optima.loss[np.argmin(np.abs(np.log(fit.optima.C / C)))])
    try:
        shape = shape_near(N.value, **(architecture or {}))
    except TypeError:
        raise ValueError(
            f"architecture={architecture!r} must map options to values; known are context, vocab_size, mlp, norm, position, "
            "tied, bias, qk_norm."
        ) from None
    extrapolation = C / float(fit.optima.C.max())
    doubts = getattr(fit, "doubts", ())
    warned = (*fit.warnings, *_warnings(fit, C, N.value, D.value, extrapolation), *doubt)
    verdict = f"to be trusted {'with care, see the warnings' if warned else 'as far as its intervals go'}"
    return FrontierPlan(
        compute=C,
        N=N,
        D=D,
        loss=loss,
        batch=choose_batch(batch_loss, D.value, batch_tokens, noise_scale, shape.context),
        shape=shape,
        level=level,
        law=fit.headline.partition("; ")[0] if doubts else fit.headline,
        extrapolation=extrapolation,
        warnings=warned,
        floor=Quantity(nan, nan, nan),
        budget=budget,
        binding=(budget.binding,),
        _around=None,
        optimal=fit,
        verdict=f"NOT TO BE TRUSTED, {doubts[0]}" if doubts else verdict,
        trustworthy=not doubts,
    )


def _loss(optimal: ComputeOptimal, C: float, level: float, seed: int) -> tuple[Quantity, list[str]]:
    """The loss of the best run of C FLOPs, by a power law with a floor through the optima; why not, if it is not known."""
    unknown = Quantity(nan, nan, nan)
    optima, cluster = _thinned(optimal)
    count = len(optima) if cluster is None else len(np.unique(optima[cluster]))
    if count < _FEWEST_OPTIMA:
        return unknown, [
            f"the loss is unknown: L(C) has three parameters and needs {_FEWEST_OPTIMA} optima, not {count}"
        ]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fit of ", category=UserWarning)  # said here
            law = fit_law(optima, "power_constant_C", objective="gaussian")
            predicted: Prediction = law.predict(
                C=C, level=level, cluster=cluster, resample="residuals" if cluster is None else "wild", seed=seed
            )
    except ValueError as error:
        return unknown, [f"the loss is unknown: {error}"]
    beyond = not optima.C.min() <= C <= optima.C.max() * (1 + 1e-9)
    if beyond and not law.evidence.trustworthy:
        return unknown, [
            f"the loss beyond the data is unknown: of L(C) through the optima, {'; '.join(law.evidence.concerns)}. A law of N "
            "and D fitted to all runs tells more"
        ]
    value, low, high = (float(number) for number in predicted)
    noise = getattr(optimal, "noise", 0.0)  # of one run, which an optimum is the mean of several of
    own = NormalDist().inv_cdf((1 + level) / 2) * noise if isfinite(noise) else 0.0
    return Quantity(value, value / exp(hypot(log(value / low), own)), value * exp(hypot(log(high / value), own))), []


def _thinned(optimal: ComputeOptimal) -> tuple[Runs, str | None]:
    """The optima, and the column that says which share their noise: an envelope's points are of few runs."""
    if not isinstance(optimal, Envelope):
        return optimal.optima, None
    step = max(1, len(optimal.optima) // _ENVELOPE_POINTS)
    return optimal.optima.select(np.arange(0, len(optimal.optima), step)), "run"


def _warnings(optimal: ComputeOptimal, C: float, N: float, D: float, extrapolation: float) -> list[str]:
    found = []
    beyond = max(extrapolation, float(optimal.optima.C.min()) / C)
    if beyond > 10.001:
        side = "above" if extrapolation > 1 else "below"
        found.append(
            f"the budget lies {beyond:.3g} x {side} the optima's range, more than {100 if beyond > 100 else 10} x: intervals "
            "hold only if the power laws do"
        )
    ratio = C / (FLOPS_PER_PARAMETER_TOKEN * N * D)
    if abs(np.log(ratio)) > 0.02:
        found.append(
            f"the table's C is {ratio:.3g} x 6ND at this optimum; the budget is taken as the table counts, and time and money "
            "are of 6ND"
        )
    return found


def _interval(quantity: Quantity, write: Any) -> str:
    return f"[{write(quantity.low)}, {write(quantity.high)}]" if isfinite(quantity.low) else "[unknown]"
