"""Time against compute: batches far above the critical one buy little time, far below it little compute.

A run to a given loss takes S = S_min (1 + B_crit/B) steps and C = C_min (1 + B/B_crit) FLOPs (McCandlish et al. 2018,
arXiv:1812.06162; Kaplan et al. 2020, section 5.1). With what a step takes on given devices that decides the fastest batch,
what its speed costs, and how the batch should grow while the loss falls.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyscaling.accounting import PF_DAY
from pyscaling.fitting.result import Result, new_axes, text_table
from pyscaling.planning.batch import critical_batch, steps_and_tokens
from pyscaling.planning.device import Device, device
from pyscaling.planning.kaplan import KAPLAN_2020
from pyscaling.units import check_positive, format_count

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Training:
    """A run to the loss with batches of `batch` tokens on `devices`: seconds, steps, tokens, FLOPs, device-hours."""

    batch: float
    devices: float
    seconds: float
    steps: float
    tokens: float
    compute: float
    device_hours: float

    def __str__(self) -> str:
        return (
            f"batch {format_count(self.batch)} tokens: {_duration(self.seconds)}, {self.steps:,.0f} steps, "
            f"{self.compute:.3g} FLOPs, {self.device_hours:.3g} device-hours"
        )


@dataclass(frozen=True)
class TimeCompute(Result):
    """What any batch costs in time and compute, to train N parameters to a loss; made by `time_compute`.

    C_min: FLOPs at B << B_crit. B_crit: tokens. devices: how many share a batch, may be infinite. flops_per_second: of each.
    overhead: seconds of a step whatever its batch. A step takes overhead + 6 N B / (devices flops_per_second).
    """

    N: float
    C_min: float
    B_crit: float
    devices: float
    flops_per_second: float
    overhead: float
    source: str = "as given"

    @property
    def E_min(self) -> float:
        """Tokens at B << B_crit, C_min / 6N."""
        return self.C_min / (6 * self.N)

    @property
    def S_min(self) -> float:
        """Steps at B >> B_crit, E_min / B_crit."""
        return self.E_min / self.B_crit

    @property
    def _per_token(self) -> float:
        return 6 * self.N / (self.devices * self.flops_per_second)

    def at(self, batch: float) -> Training:
        """The run with batches of `batch` tokens. Raises ValueError unless it is positive."""
        steps, tokens = (float(value) for value in steps_and_tokens(batch, self.B_crit, self.S_min))
        seconds = steps * self.overhead
        if math.isfinite(self.devices):
            seconds += self._per_token * tokens
        return Training(
            float(batch), self.devices, seconds, steps, tokens, 6 * self.N * tokens, self.devices * seconds / 3600
        )

    def fastest(self) -> Training:
        """The run of least time: B = sqrt(overhead B_crit / a), a = 6N / (devices flops_per_second) the seconds a token takes.

        It takes S_min (sqrt(overhead) + sqrt(a B_crit))^2 seconds; on rented devices it is the cheapest, too. Raises
        ValueError without overhead, where the smallest batch is the fastest, and on infinitely many devices, where
        time falls to S_min overhead as the batch grows without end.
        """
        if self.overhead == 0:
            raise ValueError(
                "overhead=0: the smaller the batch the faster the run, on devices that never wait. Give time_compute the "
                "overhead= of a step in seconds, whatever its batch: latencies, communication; 0.1 is a start."
            )
        if self._per_token == 0:
            raise ValueError(
                f"devices={self.devices}: the larger the batch the faster, towards {self.S_min * self.overhead:.4g} s. Give a "
                "finite number of devices, or take best_product()."
            )
        return self.at(math.sqrt(self.overhead * self.B_crit / self._per_token))

    def best_product(self) -> Training:
        """The run of least time x compute; its batch tends to B_crit as more devices make a step's time constant.

        With t0 the overhead, a the seconds of a token: B = (sqrt(t0^2 + 8 a t0 B_crit) - t0) / 4a, the root of
        2 a B^2 + t0 (B - B_crit) = 0. Raises ValueError without overhead, as `fastest`.
        """
        if self.overhead == 0:
            raise ValueError(
                "overhead=0: the smaller the batch the faster and cheaper the run. Give time_compute the overhead= of a step in "
                "seconds."
            )
        x = 8 * self._per_token * self.B_crit / self.overhead
        return self.at(2 * self.B_crit / (math.sqrt(1 + x) + 1))

    def over_devices(self, counts: Sequence[float]) -> list[Training]:
        """The fastest run on each number of devices: how much time more of them save, and at what price."""
        given = check_positive("counts", list(counts), "they are numbers of devices")
        return [_replaced(self, float(count)).fastest() for count in given]

    def curve(self, points: int = 101) -> list[Training]:
        """Runs with batches from B_crit/100 to 100 B_crit."""
        return [self.at(self.B_crit * float(x)) for x in np.geomspace(0.01, 100, points)]

    def __str__(self) -> str:
        lines = [
            f"{format_count(self.N)} parameters on {self.devices:g} device(s) of {self.flops_per_second:.3g} FLOP/s, "
            f"{self.overhead:.3g} s of overhead a step",
            f"  C_min = {self.C_min:.3g} FLOPs ({self.C_min / PF_DAY:.3g} PF-days), S_min = {self.S_min:,.0f} steps, "
            f"B_crit = {format_count(self.B_crit)} tokens ({self.source})",
            f"  at B_crit: {self.at(self.B_crit)}",
        ]
        if self.overhead > 0 and self._per_token > 0:
            lines.append(f"  fastest:   {self.fastest()}")
        if self.overhead > 0:
            lines.append(f"  time x compute least: {self.best_product()}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        named = {"at_B_crit": self.at(self.B_crit)}
        if self.overhead > 0:
            named["best_product"] = self.best_product()
            if self._per_token > 0:
                named["fastest"] = self.fastest()
        derived = {"S_min": self.S_min, "E_min": self.E_min}
        return asdict(self) | derived | {name: asdict(run) for name, run in named.items()}

    def plot(self, ax: Any = None) -> Any:
        """Time against compute, one point for each batch; a matplotlib Axes."""
        ax = new_axes() if ax is None else ax
        runs = self.curve()
        ax.plot([run.compute for run in runs], [run.seconds for run in runs], "k-", lw=1.2)
        marked = [("B_crit", self.at(self.B_crit), "o")]
        if self.overhead > 0:
            marked.append(("least time x compute", self.best_product(), "^"))
            if self._per_token > 0:
                marked.append(("fastest", self.fastest(), "s"))
        for label, run, marker in marked:
            ax.plot(
                run.compute,
                run.seconds,
                marker,
                color="black",
                mfc="w",
                label=f"{label}: B = {format_count(run.batch)}",
            )
        ax.set(xscale="log", yscale="log", xlabel="compute (FLOPs)", ylabel="time (s)", title="time against compute")
        ax.legend(fontsize=8)
        return ax


def time_compute(
    N: float,
    loss: float | None = None,
    *,
    C_min: float | None = None,
    noise_scale: float | None = None,
    devices: float = 1,
    on: str | Device | float = "H100",
    utilisation: float = 0.4,
    overhead: float = 0.0,
) -> TimeCompute:
    """Time and compute of training N parameters to `loss`, for any batch.

    loss: nats per token; C_min: FLOPs to reach it at B << B_crit; noise_scale: B_crit measured, in tokens. Each of the last two
    that is missing comes from the loss by Kaplan et al.'s constants: C_min = 6 N B_crit S_min with S_min of L(N, S_min),
    B_crit of L. devices: how many, math.inf for time without limits of devices. on: what they are, a name, a Device, or
    FLOP/s; utilisation: share of it that is reached on large batches. overhead: seconds of a step whatever its batch.
    Raises ValueError for numbers that are not positive, and a loss that N parameters never reach.
    """
    size = float(check_positive("N", N, "it counts parameters"))
    if loss is None and (C_min is None or noise_scale is None):
        raise ValueError("loss is missing; give it, or both C_min and noise_scale.")
    if loss is not None:
        check_positive("loss", loss, "it is in nats per token")
    if noise_scale is None:
        B_crit, source = critical_batch(loss), "Kaplan et al. 2020"
    else:
        B_crit, source = (
            float(check_positive("noise_scale", noise_scale, "it is in tokens")),
            "the measured noise scale",
        )
    if C_min is None:
        p = KAPLAN_2020["kaplan_NS"].params
        converged = (p["N_c"] / size) ** p["alpha_N"]
        if loss is None or loss <= converged:
            raise ValueError(
                f"loss={loss:g} is never reached by N={size:.3g}, which converge to {converged:.4g} by Kaplan et al.'s L(N, S). "
                "Give a larger N or loss, or C_min."
            )
        C_min = 6 * size * B_crit * p["S_c"] / (loss - converged) ** (1 / p["alpha_S"])
    count = float(devices)
    if not count > 0:
        raise ValueError(f"devices must be positive, got {devices!r}; math.inf is as many as help.")
    if not (math.isfinite(overhead) and overhead >= 0):
        raise ValueError(f"overhead must be finite and not negative, got {overhead!r}; it is seconds a step.")
    peak = float(check_positive("on", on)) if isinstance(on, int | float) else device(on).flops
    share = float(check_positive("utilisation", utilisation, "it is a share of the peak"))
    if share > 1:
        raise ValueError(f"utilisation must be at most 1, got {utilisation!r}; it is a share of the peak.")
    flops = float(check_positive("C_min", C_min, "it is a compute in FLOPs"))
    return TimeCompute(size, flops, B_crit, count, share * peak, float(overhead), source)


def _replaced(run: TimeCompute, devices: float) -> TimeCompute:
    return TimeCompute(run.N, run.C_min, run.B_crit, devices, run.flops_per_second, run.overhead, run.source)


# ---- the batch as it should grow -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """From `tokens` read on, batches of `batch` tokens for `steps` steps; the loss is about `loss` there."""

    tokens: float
    batch: int
    steps: float
    loss: float


@dataclass(frozen=True)
class BatchRamp(Result):
    """How the batch should grow while a model of N parameters trains; made by `batch_ramp`.

    stages: in order. tokens, steps: of the whole run. constant_batch: the one that reads as many tokens; constant_steps: what
    it takes. gamma: the least (S/S_min - 1)(E/E_min - 1) that any schedule reaches, 1 for a constant batch.
    """

    N: float
    stages: tuple[Stage, ...]
    tokens: float
    steps: float
    constant_batch: float
    constant_steps: float
    gamma: float
    source: str

    @property
    def saved(self) -> float:
        """The share of steps, and so of time where steps take equally long, that the ramp saves at equal tokens."""
        return 1 - self.steps / self.constant_steps

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def __str__(self) -> str:
        head = ("from token", "batch", "steps", "loss")
        rows = [
            (format_count(stage.tokens), f"{stage.batch:,}", f"{stage.steps:,.0f}", f"{stage.loss:.3f}")
            for stage in self.stages
        ]
        return (
            f"batch ramp for {format_count(self.N)} parameters, {format_count(self.tokens)} tokens ({self.source})\n"
            f"{text_table([head, *rows])}\n"
            f"  {self.steps:,.0f} steps; a constant batch of {format_count(self.constant_batch)} reads as many tokens in "
            f"{self.constant_steps:,.0f}: {self.saved:.1%} saved"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"saved": self.saved}

    def plot(self, ax: Any = None) -> Any:
        """Batch against tokens read, beside the constant batch; a matplotlib Axes."""
        ax = new_axes() if ax is None else ax
        ends = [*(stage.tokens for stage in self.stages[1:]), self.tokens]
        ax.plot(
            [at for stage, end in zip(self.stages, ends, strict=True) for at in (max(stage.tokens, ends[0] / 4), end)],
            [stage.batch for stage in self.stages for _ in range(2)],
            "k-",
            lw=1.2,
            label="ramp",
        )
        ax.axhline(self.constant_batch, color="black", ls="--", lw=1, label="constant, as many tokens")
        ax.set(
            xscale="log", yscale="log", xlabel="tokens read", ylabel="batch (tokens)", title=f"saves {self.saved:.1%}"
        )
        ax.legend(fontsize=8)
        return ax


def batch_ramp(
    fit: Any,
    N: float,
    D: float,
    *,
    batch_tokens: float | None = None,
    noise_scale: float | None = None,
    context: int = 1024,
    vocab_size: int = 50257,
    powers_of_two: bool = False,
    stages: int = 8,
) -> BatchRamp:
    """The batch along a run of N parameters whose loss falls as a law says, in the fewest steps for its tokens.

    fit: of a law of N and D, or of D alone (or a kaplan.KnownLaw); L(N, d) stands for the loss after d tokens at small batches,
    never above ln vocab_size. Tokens of progress d cost 1 + B/B_crit tokens and 1/B + 1/B_crit steps, so that
    B = sqrt(r B_crit(L)) takes the fewest steps for its tokens (McCandlish et al. 2018, appendix D); a batch that follows
    B_crit itself takes exactly as many as a constant one. D: tokens of progress, E_min. batch_tokens: the constant batch
    whose number of tokens the ramp may read, by default B_crit at the end. noise_scale: B_crit measured at the end, in
    tokens, continued by Kaplan et al.'s exponent. Batches are multiples of context, or the nearest powers of two of them.
    stages: how many at most, placed to save the most, unless powers_of_two.
    Raises ValueError for another law and numbers that are not positive.
    """
    size = float(check_positive("N", N, "it counts parameters"))
    end = float(check_positive("D", D, "it counts tokens"))
    for name, value in (("context", context), ("vocab_size", vocab_size), ("stages", stages)):
        if not (isinstance(value, int | np.integer) and value >= 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    if "D" not in fit.law.variables or set(fit.law.variables) - {"N", "D"}:
        raise ValueError(
            f"fit is of law {fit.law.name!r}, a function of {', '.join(fit.law.variables)}; a ramp needs a law of N and D, or D."
        )
    places = {"N": size} if "N" in fit.law.variables else {}

    # Cells of progress d, geometric; the first reaches down to 0.
    edges = np.r_[0.0, np.geomspace(end * 1e-8, end, 8001)]
    width = np.diff(edges)
    middle = np.r_[edges[1] / 2, np.sqrt(edges[1:-1] * edges[2:])]
    loss = np.minimum(np.asarray(fit.law.evaluate(fit.params, D=middle, **places)), math.log(vocab_size))
    final = float(fit.law.evaluate(fit.params, D=end, **places))
    B_crit, source = critical_batch(loss), "B_crit(L) of Kaplan et al. 2020"
    if noise_scale is not None:
        B_crit = B_crit * (float(check_positive("noise_scale", noise_scale, "it is in tokens")) / critical_batch(final))
        source = "the measured noise scale"
    S_min, root = float(np.sum(width / B_crit)), float(np.sum(width / np.sqrt(B_crit)))
    at_end = float(B_crit[-1])
    wanted = at_end if batch_tokens is None else float(check_positive("batch_tokens", batch_tokens, "it is in tokens"))
    extra = wanted * S_min  # tokens beyond D of the constant batch
    batch = extra / root * np.sqrt(B_crit)  # reads as many

    rounded = _rounded(batch, width, B_crit, context, powers_of_two, stages)
    steps, tokens = width * (1 / B_crit + 1 / rounded), width * (1 + rounded / B_crit)
    begins = np.flatnonzero(np.r_[True, np.diff(rounded) != 0])
    read = np.r_[0.0, np.cumsum(tokens)]
    table = tuple(
        Stage(float(read[i]), round(rounded[i]), float(count), float(loss[i]))
        for i, count in zip(begins, np.add.reduceat(steps, begins), strict=True)
    )
    total = float(read[-1])
    constant = (total - end) / S_min
    gamma = root**2 / (end * S_min)
    return BatchRamp(size, table, total, float(np.sum(steps)), constant, S_min + end / constant, gamma, source)


def _rounded(batch: Array, width: Array, B_crit: Array, context: int, powers_of_two: bool, stages: int) -> Array:
    """Batches in whole contexts that take few values."""
    if powers_of_two:
        return np.asarray(context * 2.0 ** np.round(np.log2(np.maximum(batch / context, 1.0))), dtype=np.float64)
    # A step wastes (ln B - ln B_stage)^2, so that stages end evenly in the integral of (dS (d ln B)^2)^(1/3) (Panter & Dite).
    share = np.cumsum(np.cbrt(width / batch * np.diff(np.log(batch), prepend=np.log(batch[0])) ** 2))
    begins = np.unique(np.searchsorted(share, share[-1] * np.arange(stages) / stages, side="right"))
    begins[0] = 0
    progress, least = (np.add.reduceat(part, begins) for part in (width, width / B_crit))
    # The best constant batch of a stage is to sqrt(B_crit) as the ramp's is, B_crit averaged over its least steps.
    best = batch[-1] / np.sqrt(B_crit[-1]) * np.sqrt(progress / least)
    rounded = context * np.maximum(np.round(best / context), 1.0)
    return np.asarray(np.repeat(rounded, np.diff(np.r_[begins, len(batch)])), dtype=np.float64)


def _duration(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
