"""What a plan holds, and how it prints, plots and exports."""

import html
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pyscaling.accounting import PF_DAY, Shape, parameter_count
from pyscaling.fitting.plots import log_count_axis
from pyscaling.fitting.result import Result
from pyscaling.planning.batch import BatchSize
from pyscaling.planning.budget import Budget
from pyscaling.planning.frontier import FLOPS_PER_PARAMETER_TOKEN, SERVING_FLOPS
from pyscaling.planning.rates import LearningRateAndBatch, learning_rate_and_batch
from pyscaling.planning.text import noted_table, warned, wrapped
from pyscaling.units import format_count, format_time, parse_count


@dataclass(frozen=True)
class Quantity:
    """A number with its interval."""

    value: float
    low: float
    high: float

    def __float__(self) -> float:
        return self.value

    def __iter__(self) -> Iterator[float]:
        return iter((self.value, self.low, self.high))

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


class Worth(NamedTuple):
    """What something is worth: loss, saved in nats per token; compute, that would have to be spent instead, as a factor."""

    loss: float
    compute: float


_TIMES = (("a month", 2629800.0), ("a week", 604800.0), ("a day", 86400.0))


@dataclass(frozen=True)
class Region:
    """The models whose loss at the plan's compute is within a fraction epsilon of the plan's.

    N and D run against each other: the largest model sees the fewest tokens. open_low, open_high: the search ended
    before the loss rose by epsilon.
    """

    epsilon: float
    N_low: float
    N_high: float
    D_low: float
    D_high: float
    open_low: bool = False
    open_high: bool = False

    def __str__(self) -> str:
        open_end = {
            (True, True): " (open at both ends)",
            (True, False): " (open below)",
            (False, True): " (open above)",
        }
        return (
            f"within {self.epsilon:.2g} of the plan's loss: N {self.N_low:.3g} to {self.N_high:.3g}, "
            f"D {self.D_high:.3g} to {self.D_low:.3g}{open_end.get((self.open_low, self.open_high), '')}"
        )


@dataclass(frozen=True)
class Plan(Result):
    """What to train for `compute` FLOPs, or what is needed for a goal.

    verdict: whether to believe it, the first line of its print; trustworthy: whether the fit behind it is.

    N: non-embedding parameters, D: tokens, loss: in nats per token, each a Quantity with an interval of `level`
    (N and D: of the optimum; loss: of the run to be made). batch: tokens per step and where that number comes from.
    shape: a concrete architecture near N. floor: the loss that no compute gets below, within the limits. needed: the least
    compute for the goal, if one was set. binding: the limits that the plan runs into. dominant: the parameter with which
    ln N varies most over the bootstrap, and the share of its variance that goes along with it. compute pays for training and
    for serving inference_tokens. rates: learning rate and batch by published rules. warnings: what to know before trusting
    the plan.
    """

    compute: float
    N: Quantity
    D: Quantity
    loss: Quantity
    batch: BatchSize
    shape: Shape
    level: float
    law: str
    extrapolation: float  # compute over the largest compute in the data
    warnings: tuple[str, ...] = ()
    floor: Quantity = field(kw_only=True)
    budget: Budget = field(kw_only=True)
    needed: Quantity | None = field(default=None, kw_only=True)
    inference_tokens: float = field(default=0.0, kw_only=True)
    trained_alone: tuple[float, float] | None = field(default=None, kw_only=True)  # (N, loss) if nothing were served
    unique_tokens: float | None = field(default=None, kw_only=True)
    serving_apart: bool = field(default=False, kw_only=True)  # the budget is training's alone
    binding: tuple[str, ...] = field(default=(), kw_only=True)
    dominant: tuple[str, float] | None = field(default=None, kw_only=True)
    verdict: str = field(default="", kw_only=True)
    trustworthy: bool = field(default=True, kw_only=True)
    _around: Any = field(repr=False, compare=False, kw_only=True)  # planning.around.Around

    @property
    def training_compute(self) -> float:
        """6ND, in FLOPs."""
        return FLOPS_PER_PARAMETER_TOKEN * self.N.value * self.D.value

    @property
    def serving_compute(self) -> float:
        """2N for each token to be served, in FLOPs."""
        return SERVING_FLOPS * self.N.value * self.inference_tokens

    @property
    def epochs(self) -> float | None:
        """How often each unique token is seen; None without a limit on them."""
        return None if self.unique_tokens is None else self.D.value / self.unique_tokens

    @property
    def gpu_hours(self) -> float | None:
        """Of training, on the budget's device at its utilisation; None without a device."""
        return self.budget.gpu_hours(self.training_compute)

    @property
    def training_seconds(self) -> float | None:
        """Of training on all the budget's devices; None without a device."""
        return self.budget.seconds(self.training_compute)

    @property
    def price(self) -> float | None:
        """Of training, in the money of price_per_gpu_hour; None without one."""
        return self.budget.price(self.training_compute)

    def with_more_data(self, tokens: Any = 1e9) -> Worth:
        """What so many more unique tokens (a number, or "1B") are worth at the same compute.

        Worth.compute is the compute that the present data would need for the lower loss, over the plan's; infinite where it
        cannot get there. (0, 1) where tokens do not repeat.
        """
        return self._around.with_more_data(parse_count("tokens", tokens))

    @property
    def N_total(self) -> int:
        """Parameters of the shape with embeddings, head, biases and norms: all that is stored."""
        return parameter_count(self.shape, "total")

    @property
    def rates(self) -> LearningRateAndBatch:
        """Learning rate and batch by the published rules."""
        return learning_rate_and_batch(self.N.value, self.D.value, shape=self.shape)

    @property
    def learning_rate(self) -> float:
        """The peak rate by the Step law (Li et al. 2025), or a rule whose runs are nearer; `rates` has what others say."""
        return self.rates.learning_rate

    @property
    def batch_tokens(self) -> int:
        return round(self.batch.tokens)

    @property
    def steps(self) -> int:
        """Optimiser steps, D / batch_tokens rounded up."""
        return int(np.ceil(self.D.value / self.batch.tokens))

    @property
    def tokens_per_parameter(self) -> float:
        return self.D.value / self.N.value

    def region(self, epsilon: float = 0.01) -> Region:
        """Range of N, and of D against it, whose loss is within a fraction `epsilon` of the plan's at this compute.

        With serving_apart at this training compute, where larger models than the plan's have a lower loss and cost more to serve.
        """
        return self._around.region(epsilon)

    def to_dict(self) -> dict[str, Any]:
        region = self.region(0.01)
        return {
            "verdict": self.verdict,
            "trustworthy": self.trustworthy,
            "compute": self.compute,
            "training_compute": self.training_compute,
            "serving_compute": self.serving_compute,
            "limits": self.budget.limits,
            "binding": list(self.binding),
            "compute_needed": None if self.needed is None else asdict(self.needed),
            "law": self.law,
            "level": self.level,
            "N": asdict(self.N),
            "D": asdict(self.D),
            "loss": asdict(self.loss),
            "floor": asdict(self.floor),
            "unique_tokens": self.unique_tokens,
            "epochs": self.epochs,
            "inference_tokens": self.inference_tokens,
            "device": None if self.budget.device is None else self.budget.device.name,
            "devices": self.budget.devices,
            "utilisation": self.budget.utilisation,
            "gpu_hours": self.gpu_hours,
            "training_seconds": self.training_seconds,
            "price": self.price,
            "price_source": None if self.price is None else self.budget.price_source,
            "dominant": None if self.dominant is None else list(self.dominant),
            "tokens_per_parameter": self.tokens_per_parameter,
            "batch_tokens": self.batch_tokens,
            "batch_source": self.batch.source,
            "learning_rate": self.learning_rate,
            "rates": [asdict(rule) for rule in self.rates],
            "steps": self.steps,
            "N_total": self.N_total,
            "shape": {**self.shape.to_dict(), "N": self.shape.N, "N_total": self.N_total},
            "region": asdict(region),
            "extrapolation": self.extrapolation,
            "warnings": list(self.warnings),
        }

    def to_toml(self, corpus: str = "sotu", name: str = "planned") -> str:
        """The run as a study that `pyscaling study` accepts: its shape, batch and tokens, on a corpus of yours.

        corpus: a file, folder or glob of text. Tokens are whole steps; rates and schedule are the study's defaults.
        """
        import tomli_w

        shape = self.shape
        batch = max(1, round(self.batch_tokens / shape.context)) * shape.context
        model = {
            "context": shape.context, "mlp": shape.mlp, "norm": shape.norm, "position": shape.position, "tied": shape.tied,
            "bias": shape.bias, "qk_norm": shape.qk_norm, "rope_base": float(shape.rope_base),
        }  # fmt: skip
        size = {"d_model": shape.d_model, "n_layer": shape.n_layer, "n_head": shape.n_head, "d_ff": shape.d_ff}
        tables: dict[str, dict[str, Any]] = {
            "[corpus]": {"source": corpus, "vocab_size": shape.vocab_size},
            "[model]": model,
            "[training]": {"budgets": [max(2, round(self.D.value / batch)) * batch], "batch_tokens": batch},
            "[[sizes]]": size,
        }
        parts = [tomli_w.dumps({"name": name, "law": self.law})]
        return "\n".join([*parts, *(f"{header}\n{tomli_w.dumps(table)}" for header, table in tables.items())])

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row per quantity: value, low, high (the same where nothing is estimated)."""
        import pandas as pd

        rows = {"N": self.N, "D": self.D, "loss": self.loss, "floor": self.floor}
        if self.needed is not None:
            rows["compute_needed"] = self.needed
        known = {"gpu_hours": self.gpu_hours, "training_seconds": self.training_seconds, "price": self.price}
        fixed = {
            "compute": self.compute,
            **{name: value for name, value in known.items() if value is not None},
            "batch_tokens": self.batch_tokens,
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "N_shape": self.shape.N,
            "N_total": self.N_total,
        }
        table = {name: tuple(quantity) for name, quantity in rows.items()}
        table |= {name: (value, value, value) for name, value in fixed.items()}
        return pd.DataFrame.from_dict(table, orient="index", columns=["value", "low", "high"])

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The plan as printed: (name, value, interval, note)."""
        shape, region, batch = self.shape, self.region(0.01), self.batch
        epochs = "" if self.epochs is None else f", {self.epochs:.3g} epochs" if self.epochs > 1 else ", none repeated"
        ratio, near = (
            f"{self.tokens_per_parameter:.3g}",
            f"{format_count(region.N_low)} to {format_count(region.N_high)}",
        )
        heads = f"{shape.n_head} heads of {shape.head_dim}"
        pays = "C = 6ND" if not self.inference_tokens else "C = 6ND + 2N x tokens served"
        needed = "" if self.needed is None else _interval(self.needed, "{:.3g}".format)
        return [
            ("compute C", f"{self.compute:.4g} FLOPs", needed, f"{self.compute / PF_DAY:.3g} PF-days; {pays}"),
            *self._spent(),
            ("model N", format_count(self.N.value), _interval(self.N, format_count), "non-embedding parameters"),
            (
                "data D",
                format_count(self.D.value),
                _interval(self.D, format_count),
                f"tokens, {ratio} per parameter{epochs}",
            ),
            ("loss L", f"{self.loss.value:.4f}", _interval(self.loss, "{:.4f}".format), "nats per token, of a run"),
            (
                "floor",
                f"{self.floor.value:.4f}",
                _interval(self.floor, "{:.4f}".format),
                f"no compute leads below; the plan lies {self.loss.value - self.floor.value:.3g} above",
            ),
            ("batch B", format_count(batch.tokens), "", f"tokens; {batch.said}"),
            ("steps S", f"{self.steps:,}", "", "D / B"),
            ("rate", f"{self.learning_rate:.2e}", "", self._rate_said()),
            (
                "shape",
                f"{shape.n_layer} x {shape.d_model}",
                "",
                f"n_layer x d_model, {heads}; N = {format_count(shape.N)}",
            ),
            ("in all", format_count(self.N_total), "", "parameters of that shape, embeddings and head with them"),
            ("region", near, "", f"N whose loss is within 1 % of {self._reference}"),
            *([] if self.dominant is None else [("unsure of", self.dominant[0], "", self._unsure())]),
        ]

    def _spent(self) -> list[tuple[str, str, str, str]]:
        """What the compute goes to, in FLOPs, time and money."""
        rows = []
        if self.inference_tokens:
            share = f"{self.training_compute / self.compute:.0%} of it; the rest serves {format_count(self.inference_tokens)}"
            rows.append(("training", f"{self.training_compute:.4g} FLOPs", "", f"{share} tokens"))
        if self.trained_alone is not None:
            N, loss = self.trained_alone
            served = f"a loss of {loss:.4f}, but {SERVING_FLOPS * N * self.inference_tokens:.3g} FLOPs more to serve"
            rows.append(("all trained", format_count(N), "", f"the N if training took all of C: {served}"))
        b = self.budget
        if self.gpu_hours is not None and self.training_seconds is not None and b.device is not None:
            hours = f"{self.gpu_hours:.4g} GPU-hours at {b.utilisation:.0%} of the peak"
            if b.devices_given:
                rows.append(
                    ("time", format_time(self.training_seconds), "", f"on {b.devices:g} {b.device.name}, {hours}")
                )
            else:
                rows.append(self._times(hours))
        if self.price is not None:
            source = "" if b.price_source == "as given" else f", {b.price_source}"
            rows.append(
                ("price", f"{self.price:,.4g}", "", f"at {b.price_per_gpu_hour:g} a GPU-hour{source}; of training")
            )
        paid = self.training_compute if self.serving_apart else self.compute
        others = {name: flops for name, flops in self.budget.limits.items() if flops > 1.0001 * paid}
        if self.binding or others:
            slack = "; ".join(f"{name} allows {flops / paid:.3g} x as much" for name, flops in others.items())
            rows.append(("limited by", ", ".join(self.binding) or "the goal", "", slack))
        return rows

    def _times(self, hours: str) -> tuple[str, str, str, str]:
        """Devices by the time that they take, where neither is given: the years of a single one help nobody."""
        assert self.training_seconds is not None and self.budget.device is not None
        devices = {name: np.ceil(self.training_seconds / seconds) for name, seconds in _TIMES}
        sweep = [f"{name} on {count:,.0f}" for name, count in devices.items() if count > 1]
        if not sweep:
            return ("time", format_time(self.training_seconds), "", f"on 1 {self.budget.device.name}, {hours}")
        return ("time", sweep[0], "", f"{self.budget.device.name}s; {', '.join([*sweep[1:], hours])}")

    def _rate_said(self) -> str:
        first = self.rates.nearest("learning rate")
        other = next(rule for rule in self.rates if rule.quantity == first.quantity and rule != first)
        beyond = f", beyond its runs by {first.beyond}" if first.beyond else ""
        return f"AdamW's peak by {first.source}{beyond}; {other.value:.1e} by {other.source}; all in plan.rates"

    @property
    def _reference(self) -> str:
        return "this plan's, or below" if self.serving_apart else "the best"

    def _unsure(self) -> str:
        assert self.dominant is not None
        return f"{self.dominant[1]:.0%} of the variance of ln N goes along with it"

    def _title(self) -> tuple[str, str]:
        """What it is, and whether to believe it: the latter first where it is not to be believed."""
        beyond = f", {self.extrapolation:.3g} x the data's largest compute" if 1 < self.extrapolation < np.inf else ""
        title = f"plan by {self.law}, {self.level:.0%} intervals{beyond}"
        return (title, self.verdict) if self.trustworthy else (self.verdict, title)

    def __str__(self) -> str:
        title = [line for part in self._title() for line in wrapped(part, 0)]
        return "\n".join([*title, *noted_table(self.rows()), *warned(self.warnings)])

    def _repr_html_(self) -> str:
        first, second = (html.escape(line) for line in self._title())
        head = "".join(f"<th>{name}</th>" for name in ("", "value", f"{self.level:.0%} interval", ""))
        cells = "".join(
            "<tr>" + "".join(f'<td style="text-align:left">{html.escape(cell)}</td>' for cell in row) + "</tr>"
            for row in self.rows()
        )
        notes = "".join(f"<p>&#9888; {html.escape(warning)}</p>" for warning in self.warnings)
        strong = first if self.trustworthy else f"<strong>{first}</strong>"
        caption = f'<caption style="text-align:left">{strong}<br>{second}</caption>'
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>{notes}"

    def plot(self, ax: Any = None) -> Any:
        """Loss against N at the plan's compute, with band, optimum and the region within 1 %; a matplotlib Axes."""
        if ax is not None and not hasattr(ax, "fill_between"):
            raise ValueError(
                f"ax must be a matplotlib Axes, got {ax!r}; to write a file: plan.plot().figure.savefig(...)."
            )
        serving = f",\nwith {format_count(self.inference_tokens)} tokens to be served" if self.serving_apart else ""
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.figure(figsize=(6.4, 4.4), dpi=150, layout="constrained").add_subplot()
        region, best = self.region(0.01), self.N.value
        half = np.log(max(region.N_high / best, best / region.N_low, self.N.high / best, best / self.N.low, 2.0))
        N = best * np.exp(np.linspace(-1.5, 1.5, 401) * min(half, 8.0))
        value, low, high = self._around.isoflop(N)
        paid, pays = (self.training_compute, "train") if self.serving_apart else (self.compute, "pay for")
        shown = value < 1.2 * np.nanmin(value)  # where serving leaves little to train on, the loss knows no bound
        N, value, low, high = (array[shown] for array in (N, value, low, high))
        within = (region.N_low <= N) & (region.N_high >= N)
        ax.fill_between(N, low, high, color="0.88", lw=0, label=f"{self.level:.0%} band of the curve")
        ax.plot(N, value, "k--", lw=1.1, label=f"L(N, D) of what {paid:.3g} FLOPs {pays}")
        ax.plot(
            N[within], value[within], "k-", lw=2.6, solid_capstyle="butt", label=f"loss within 1 % of {self._reference}"
        )
        at_best = float(self._around.isoflop(np.array([best]))[0][0])
        error = [[max(best - self.N.low, 0.0)], [max(self.N.high - best, 0.0)]]
        ax.errorbar(best, at_best, xerr=error, fmt="ok", mfc="w", capsize=4, ms=6, zorder=5,
                    label=f"best N = {format_count(best)}, {self.level:.0%} interval{serving}")  # fmt: skip
        ax.set_xscale("log")
        ax.set_xlim(N[0], N[-1])
        ax.set_ylim(min(value.min() - 0.2 * np.ptp(value), low.min()), value.max() + 0.05 * np.ptp(value))
        log_count_axis(ax)
        ax.set_xlabel("N, non-embedding parameters")
        ax.set_ylabel("L, nats per token")
        ax.legend(fontsize=8, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
        return ax


def _interval(quantity: Quantity, write: Callable[[float], str]) -> str:
    return f"[{write(quantity.low)}, {write(quantity.high)}]"
