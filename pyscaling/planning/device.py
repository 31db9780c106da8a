"""What a device allows: its peak, what fits its memory, shapes that suit it, and how long a step takes on it.

A step's time is a sum of what launches, FLOPs and bytes cost, fitted to a handful of timed steps with no cost below zero; on
another device it is a rising function of the first one's (Lu et al. 2021), so that three timings carry the rest over.
With it the best model for a time limit is found among real shapes, not along N.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyscaling.accounting import Shape, flops_per_token, parameter_count, shape_near
from pyscaling.fitting.result import Result, new_axes, text_table
from pyscaling.units import check_positive, format_count

Array = NDArray[np.float64]
Optimizer = Literal["adamw", "adamw_8bit", "momentum", "sgd"]
Precision = Literal["bf16", "fp32"]
Recompute = Literal["none", "attention", "full"]

_NARROWEST, _DEEPEST = (
    192.0,
    12.0,
)  # d_model / n_layer of shapes whose loss hardly depends on it (Kaplan et al. 2020, fig. 5)
USABLE_MEMORY = 0.9  # the rest is the driver's, the libraries' and the allocator's


# ---- devices ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """An accelerator: peak FLOP/s of dense bf16 matrix products, memory in bytes, its bandwidth in bytes/s, and the source.

    price_per_hour: what a cloud asks for one in an hour, in US dollars, price_source: which cloud and when; None where not known.
    Raises ValueError for numbers that are not finite and positive.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    source: str = "user"
    price_per_hour: float | None = None
    price_source: str = "user"

    def __post_init__(self) -> None:
        for field in ("flops", "memory", "bandwidth", "price_per_hour"):
            if (value := getattr(self, field)) is not None:
                check_positive(field, value, f"it belongs to the device {self.name!r}")

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.flops / 1e12:.4g} TFLOP/s in bf16, {self.memory / 1e9:.3g} GB, "
            f"{self.bandwidth / 1e12:.3g} TB/s ({self.source})"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# Vendors' data sheets: bf16 without sparsity and with sums in fp32; memory and bandwidth as sold, 1 GB = 1e9 bytes. Prices
# are list prices for one device on demand: they move by the month, and differ by three times between clouds. Change them.
_RUNPOD, _LAMBDA, _GOOGLE = "RunPod, March 2026", "Lambda, 2025", "Google Cloud, 2024"
DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in [
        Device("A100", 312e12, 80e9, 2.039e12, "NVIDIA A100 80GB SXM data sheet", 1.39, _RUNPOD),
        Device("A100-40GB", 312e12, 40e9, 1.555e12, "NVIDIA A100 40GB data sheet", 1.29, _LAMBDA),
        Device("H100", 989.4e12, 80e9, 3.35e12, "NVIDIA H100 SXM data sheet", 2.69, _RUNPOD),
        Device("H100-PCIe", 756e12, 80e9, 2.0e12, "NVIDIA H100 PCIe data sheet", 1.99, _RUNPOD),
        Device("H200", 989.4e12, 141e9, 4.8e12, "NVIDIA H200 SXM data sheet", 3.59, _RUNPOD),
        Device("B200", 2250e12, 180e9, 8.0e12, "NVIDIA HGX B200 data sheet, an eighth of it", 5.98, _RUNPOD),
        Device("MI250X", 383e12, 128e9, 3.277e12, "AMD Instinct MI250X data sheet, both dies"),
        Device("MI300X", 1307.4e12, 192e9, 5.3e12, "AMD Instinct MI300X data sheet"),
        Device("L4", 121e12, 24e9, 0.3e12, "NVIDIA L4 data sheet", 0.44, _RUNPOD),
        Device("L40S", 362.05e12, 48e9, 0.864e12, "NVIDIA L40S data sheet", 0.79, _RUNPOD),
        Device("A10", 125e12, 24e9, 0.6e12, "NVIDIA A10 data sheet", 0.75, _LAMBDA),
        Device("RTX 3090", 71e12, 24e9, 0.936e12, "NVIDIA GA102 white paper", 0.22, _RUNPOD),
        Device("RTX 4090", 165.2e12, 24e9, 1.008e12, "NVIDIA Ada white paper", 0.34, _RUNPOD),
        Device("TPU v4", 275e12, 32e9, 1.2e12, "Google Cloud TPU v4 documentation", 3.22, _GOOGLE),
        Device("TPU v5e", 197e12, 16e9, 0.819e12, "Google Cloud TPU v5e documentation", 1.20, _GOOGLE),
        Device("TPU v5p", 459e12, 95e9, 2.765e12, "Google Cloud TPU v5p documentation", 4.20, _GOOGLE),
    ]
}


def device(name: "str | Device") -> Device:
    """A device by name, whatever its case, spaces and hyphens: "h100", "rtx4090"; a Device of one's own is itself.

    Raises ValueError for an unknown name.
    """
    if isinstance(name, Device):
        return name
    plain = {_plain_name(known): entry for known, entry in DEVICES.items()}
    wanted = _plain_name(str(name))
    for prefix in ("nvidia", "amd", "google"):
        wanted = wanted.removeprefix(prefix)
    if wanted not in plain:
        raise ValueError(
            f"device={name!r} is unknown; known are {', '.join(DEVICES)}. Give another as "
            "Device(name, flops=, memory=, bandwidth=)."
        )
    return plain[wanted]


def _plain_name(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


# ---- memory ----------------------------------------------------------------------------------------------------------

_OPTIMIZER_BYTES: Mapping[str, float] = {"adamw": 8.0, "adamw_8bit": 2.0, "momentum": 4.0, "sgd": 0.0}
_PRECISION_BYTES: Mapping[str, tuple[int, int, int]] = {  # of an element, of a gradient, of a master copy
    "bf16": (2, 2, 4),
    "fp32": (4, 4, 0),
}


@dataclass(frozen=True)
class Memory(Result):
    """Bytes on each device: in training, of weights, gradients, optimiser states with master weights, activations and logits;
    in serving, of weights and cache."""

    weights: float
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    cache: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    def fits(self, device_: "str | Device", usable: float = USABLE_MEMORY) -> bool:
        """Whether the total is within the usable share of a device's memory."""
        return self.total <= usable * device(device_).memory

    def __str__(self) -> str:
        parts = {field.name: getattr(self, field.name) for field in fields(self)} | {"total": self.total}
        return text_table([(name, f"{value / 1e9:.3g} GB") for name, value in parts.items() if value])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"total": self.total}


def memory(
    shape: Shape,
    batch_tokens: float,
    *,
    optimizer: Optimizer = "adamw",
    dtype: Precision = "bf16",
    recompute: Recompute = "attention",
    dropout: bool = False,
    shards: int = 1,
) -> Memory:
    """Memory of a training step, in bytes on each device.

    batch_tokens: of one device's micro batch, in sequences of shape.context (or one shorter). optimizer: "adamw", two fp32
    moments; "adamw_8bit"; "momentum", one; "sgd", none. dtype: "bf16" holds weights and gradients in 2 bytes and an fp32 master
    copy, 16 bytes a parameter with AdamW (Rajbhandari et al. 2020); "fp32" all in 4, also 16. recompute: "attention", scores
    are computed again, as flash attention does; "none", they are stored; "full", only each layer's input is stored.
    dropout: its masks are stored, too. shards: devices that share weights, gradients and states (ZeRO-3, FSDP).
    Activations are those of Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1): in bf16, with MLPs four times as
    wide and dropout, s b h (34 + 5 a s / h) a layer, 34 s b h and 2 s b h for the three kinds of recompute ("full"
    also holds the layer at work); fp32 logits 4 s b v.
    Raises ValueError for unknown kinds and numbers that are not positive.
    """
    tokens = float(check_positive("batch_tokens", batch_tokens, "it is the micro batch of a device, in tokens"))
    _check_whole("shards", shards)
    _check_known("optimizer", optimizer, _OPTIMIZER_BYTES)
    _check_known("dtype", dtype, _PRECISION_BYTES)
    _check_known("recompute", recompute, ("none", "attention", "full"))
    element, gradient, master = _PRECISION_BYTES[dtype]
    d, mask = shape.d_model, 1 if dropout else 0

    scores = shape.n_head * min(shape.context, tokens) * (2 * element + 1 if dropout else element)
    attention = d * (5 * element + mask)  # inputs of the projections; Q, K and V
    if shape.qk_norm:
        attention += 2 * d * element
    wide = 2 if shape.mlp == "gelu" else 4  # swiglu: gate, its silu, the other half, their product
    mlp = element * (d + wide * shape.d_ff) + mask * d
    layer = attention + mlp + 2 * d * element + (scores if recompute == "none" else 0)
    kept = shape.n_layer * layer if recompute != "full" else shape.n_layer * d * element + layer
    outside = d * (2 * element + mask)  # the last norm, the head's input, the embedding's dropout

    count = parameter_count(shape, "total") / shards
    return Memory(
        weights=element * count,
        gradients=gradient * count,
        optimizer=(master + _OPTIMIZER_BYTES[optimizer]) * count,
        activations=tokens * (kept + outside),
        logits=4.0 * tokens * shape.vocab_size,
    )


def serving_memory(
    shape: Shape, cached_tokens: float = 0.0, *, weight_bytes: float = 2.0, cache_bytes: float = 2.0
) -> Memory:
    """Memory to serve a model: all weights, and keys and values of `cached_tokens` tokens of all requests at once.

    weight_bytes: a parameter, 0.5 for 4 bits; cache_bytes: a cached number. A token caches 2 n_layer d_model numbers.
    Raises ValueError for numbers that are not positive (cached_tokens may be 0).
    """
    check_positive("weight_bytes", weight_bytes, "it is bytes for each parameter")
    check_positive("cache_bytes", cache_bytes, "it is bytes for each cached number")
    if not (math.isfinite(cached_tokens) and cached_tokens >= 0):
        raise ValueError(f"cached_tokens must be finite and not negative, got {cached_tokens!r}.")
    cached = 2.0 * shape.n_layer * shape.d_model * cached_tokens
    return Memory(weights=weight_bytes * parameter_count(shape, "total"), cache=cache_bytes * cached)


def largest_shape(
    device_: "str | Device | float",
    batch_tokens: float,
    *,
    usable: float = USABLE_MEMORY,
    architecture: Mapping[str, Any] | None = None,
    **options: Any,
) -> Shape:
    """The shape with the most parameters that trains in a device's memory, among those of `accounting.shape_near`.

    device_: a name, a Device, or a number of bytes. usable: share of it that may be filled. architecture: options of
    `shape_near`; options: of `memory`. Raises ValueError if not even the smallest model fits.
    """
    total = float(check_positive("device_", device_)) if isinstance(device_, int | float) else device(device_).memory
    limit = float(check_positive("usable", usable, "it is a share of the memory")) * total
    if usable > 1:
        raise ValueError(f"usable must be at most 1, got {usable!r}; it is a share of the memory.")
    kind = dict(architecture or {})

    def fitting(log_N: float) -> Shape | None:
        shape = shape_near(math.exp(log_N), **kind)
        return shape if memory(shape, batch_tokens, **options).total <= limit else None

    low, high = math.log(768.0), math.log(max(limit, 1e4))  # a byte a parameter at the very least
    best = fitting(low)
    if best is None:
        raise ValueError(
            f"no model fits {limit:.3g} bytes with batch_tokens={batch_tokens:g}; give a smaller batch, more shards, or "
            'recompute="full".'
        )
    while high - low > 0.05:
        middle = 0.5 * (low + high)
        if (shape := fitting(middle)) is not None:
            low, best = middle, shape
        else:
            high = middle
    # Neighbours in N differ in depth, so that a somewhat larger one may fit where a smaller one does not.
    found = (fitting(log_N) for log_N in np.arange(high + 0.3, low - 0.02, -0.01))
    return next((shape for shape in found if shape is not None), best)


# ---- shapes ----------------------------------------------------------------------------------------------------------


def good_shapes(N: float, *, within: float = 0.1, **options: Any) -> list[Shape]:
    """Shapes with about N non-embedding parameters whose dimensions suit tensor cores, the nearest in N first.

    d_model is a multiple of 64, from 1024 on of 128; heads are 128 wide where that divides it from 2048 on, else 64; d_ff is a
    multiple of 128; the vocabulary is padded to one; d_model / n_layer lies between 12 and 192, where the loss hardly
    depends on it (Kaplan et al. 2020, fig. 5). within: largest relative distance from N. options: of `Shape`.
    Raises ValueError if there is none.
    """
    size = float(check_positive("N", N, "it counts parameters"))
    check_positive("within", within, "it is a relative distance from N")
    found = []
    for d_model in _widths(size * (1 + within)):
        one, two = (_build(d_model, n_layer, options).N for n_layer in (1, 2))
        depth = 1 + (size - one) / (two - one)
        for n_layer in {max(1, math.floor(depth)), max(1, math.ceil(depth))}:
            shape = _build(d_model, n_layer, options)
            if abs(shape.N / size - 1) <= within and _DEEPEST <= d_model / n_layer <= _NARROWEST:
                found.append(shape)
    if not found:
        raise ValueError(
            f"no good shape has N={size:.3g} within {within:.0%}; the smallest has {_build(64, 1, options).N:,}. "
            "Give a larger N or `within`, or take accounting.shape_near."
        )
    return sorted(found, key=lambda shape: (abs(math.log(shape.N / size)), shape.d_model))


def _widths(N: float) -> Iterator[int]:
    """Good widths of models of at most N parameters."""
    d_model = 64
    while 8 * d_model**2 * max(1.0, d_model / _NARROWEST) <= N:
        yield d_model
        d_model += 64 if d_model < 1024 else 128 if d_model < 16384 else 1024


def _build(d_model: int, n_layer: int, options: Mapping[str, Any]) -> Shape:
    kind = dict(options)
    kind["vocab_size"] = 128 * math.ceil(kind.get("vocab_size", Shape.vocab_size) / 128)
    ratio = 8 / 3 if kind.get("mlp") == "swiglu" else 4.0
    head_dim = 128 if d_model >= 2048 and d_model % 128 == 0 else 64
    return Shape(d_model, n_layer, d_model // head_dim, 128 * max(1, round(ratio * d_model / 128)), **kind)


# ---- time ------------------------------------------------------------------------------------------------------------

_TERMS = ("launch", "per_layer", "per_flop", "per_byte")


@dataclass(frozen=True)
class StepTime(Result):
    """Seconds of a training step: launch + per_layer n_layer + per_flop FLOPs + per_byte bytes.

    error: root mean square of ln(predicted / measured) with each timing left out in turn; worst: the largest of them.
    count: timings it was fitted to.
    """

    launch: float
    per_layer: float
    per_flop: float
    per_byte: float
    error: float
    worst: float
    count: int

    @classmethod
    def fit(cls, timings: Any) -> "StepTime":
        """From timed steps: rows (Shape, batch_tokens, seconds), or a table with columns batch_tokens, seconds and of Shape.

        Least squares of relative errors, no term below zero. Raises ValueError for fewer than five timings or bad rows.
        """
        rows = _timings(timings)
        if len(rows) < 5:
            raise ValueError(
                f"timings must be at least 5 to fit {len(_TERMS)} terms, got {len(rows)}; time more shapes."
            )
        work = np.array([_work(shape, tokens) for shape, tokens, _ in rows])
        if len(np.unique(work, axis=0)) < len(_TERMS):
            raise ValueError(
                f"timings are of {len(np.unique(work, axis=0))} different steps, too few for {len(_TERMS)} terms; time other "
                "shapes and batches."
            )
        seconds = np.array([row[2] for row in rows])
        misses = np.array(
            [
                np.log(_relative_nnls(np.delete(work, i, 0), np.delete(seconds, i)) @ work[i] / seconds[i])
                for i in range(len(rows))
            ]
        )
        error, worst = float(np.sqrt(np.mean(misses**2))), float(np.max(np.abs(misses)))
        terms = dict(zip(_TERMS, _relative_nnls(work, seconds).tolist(), strict=True))
        return cls(**terms, error=error, worst=worst, count=len(rows))

    def predict(self, shape: Shape, batch_tokens: float) -> float:
        """Seconds of a step of `batch_tokens` tokens."""
        check_positive("batch_tokens", batch_tokens, "it is the batch of a device, in tokens")
        return float(np.dot([self.launch, self.per_layer, self.per_flop, self.per_byte], _work(shape, batch_tokens)))

    def carry_over(self, timings: Any) -> "CarriedStepTime":
        """The step time of another device, from a few timings there; see CarriedStepTime.

        timings: as for `fit`, at least three. Raises ValueError for fewer or bad rows.
        """
        rows = _timings(timings)
        if len(rows) < 3:
            raise ValueError(
                f"timings must be at least 3 to carry a step time over, got {len(rows)}; time more shapes."
            )
        x = np.log([self.predict(shape, tokens) for shape, tokens, _ in rows])
        y = np.log([seconds for *_, seconds in rows])
        misses = np.array([_monotone(*_knots(np.delete(x, i), np.delete(y, i)), x[i]) - y[i] for i in range(len(rows))])
        log_proxy, log_target = (tuple(knots.tolist()) for knots in _knots(x, y))
        error, worst = float(np.sqrt(np.mean(misses**2))), float(np.max(np.abs(misses)))
        return CarriedStepTime(self, log_proxy, log_target, error, worst, len(rows))

    def __str__(self) -> str:
        rate = f"{1e-12 / self.per_flop:.4g} TFLOP/s" if self.per_flop else "FLOPs free"
        bandwidth = f"{1e-9 / self.per_byte:.4g} GB/s" if self.per_byte else "bytes free"
        return (
            f"step time: {self.launch:.3g} s + {self.per_layer:.3g} s a layer + FLOPs at {rate} + bytes at {bandwidth}; "
            f"{_error_text(self)}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, text: str | Path) -> "StepTime":
        """From `to_json`'s text, or a Path to it. Raises ValueError if it is not one."""
        return cls(**_loaded(text, cls))


@dataclass(frozen=True)
class CarriedStepTime(Result):
    """A step time on another device: a rising function of the first one's, as latencies of networks rank alike on all devices.

    In logarithms: knots by isotonic regression, between them Fritsch-Carlson's monotone cubic, slope 1 beyond the ends (Lu
    et al. 2021, arXiv:2111.01203). error, worst, count: as of StepTime, of the timings on the target.
    """

    proxy: StepTime
    log_proxy: tuple[float, ...]
    log_target: tuple[float, ...]
    error: float
    worst: float
    count: int

    def predict(self, shape: Shape, batch_tokens: float) -> float:
        """Seconds of a step of `batch_tokens` tokens on the target."""
        x = math.log(self.proxy.predict(shape, batch_tokens))
        return math.exp(_monotone(np.array(self.log_proxy), np.array(self.log_target), x))

    def __str__(self) -> str:
        ratios = np.exp(np.array(self.log_target) - np.array(self.log_proxy))
        return f"step time carried over: {ratios.min():.3g} to {ratios.max():.3g} x the first device's; {_error_text(self)}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, text: str | Path) -> "CarriedStepTime":
        """From `to_json`'s text, or a Path to it. Raises ValueError if it is not one."""
        values = _loaded(text, cls)
        knots = {name: tuple(values[name]) for name in ("log_proxy", "log_target")}
        return cls(**values | knots | {"proxy": StepTime(**values["proxy"])})


def _work(shape: Shape, tokens: float) -> list[float]:
    """What a step does, in the order of _TERMS: once, layers, FLOPs, bytes written and read again."""
    flops = tokens * flops_per_token(shape, "causal_full")
    return [1.0, float(shape.n_layer), flops, 2 * memory(shape, tokens).total]


def _relative_nnls(work: Array, seconds: Array) -> Array:
    from scipy.optimize import nnls

    rows = work / seconds[:, None]
    scale = np.linalg.norm(rows, axis=0)
    return nnls(rows / scale, np.ones(len(rows)))[0] / scale


def _knots(x: Array, y: Array) -> tuple[Array, Array]:
    """Rising knots through scattered points: means of the blocks that isotonic regression pools."""
    from scipy.optimize import isotonic_regression

    at, which = np.unique(x, return_inverse=True)
    count = np.bincount(which).astype(np.float64)
    mean = np.bincount(which, y) / count
    blocks = isotonic_regression(mean, weights=count).blocks
    weight = np.add.reduceat(count, blocks[:-1])
    return tuple(np.add.reduceat(values * count, blocks[:-1]) / weight for values in (at, mean))  # type: ignore[return-value]


def _monotone(knots_x: Array, knots_y: Array, x: float) -> float:
    from scipy.interpolate import PchipInterpolator

    inside = float(np.clip(x, knots_x[0], knots_x[-1]))
    value = knots_y[0] if len(knots_x) == 1 else PchipInterpolator(knots_x, knots_y)(inside)
    return float(value + x - inside)


def _timings(table: Any) -> list[tuple[Shape, float, float]]:
    if hasattr(table, "to_dict"):
        table = table.to_dict("list")
    if isinstance(table, Mapping):
        columns = [field.name for field in fields(Shape) if field.name in table]
        for name in ("d_model", "n_layer", "n_head", "batch_tokens", "seconds"):
            if name not in table:
                raise ValueError(f"timings need the column {name!r}; they have {', '.join(map(str, table))}.")
        count = len(table["seconds"])
        rows = [
            (Shape(**{name: table[name][i] for name in columns}), table["batch_tokens"][i], table["seconds"][i])
            for i in range(count)
        ]
    else:
        rows = list(table)
    for i, row in enumerate(rows):
        if not (isinstance(row, Sequence) and len(row) == 3 and isinstance(row[0], Shape)):
            raise ValueError(f"timings[{i}] must be (Shape, batch_tokens, seconds), got {row!r}.")
        check_positive(f"batch_tokens of timings[{i}]", row[1])
        check_positive(f"seconds of timings[{i}]", row[2], "drop it or measure it again")
    return [(shape, float(tokens), float(seconds)) for shape, tokens, seconds in rows]


def _loaded(text: str | Path, cls: Any) -> dict[str, Any]:
    values = json.loads(text.read_text() if isinstance(text, Path) else text)
    names = {field.name for field in fields(cls)}
    if not isinstance(values, dict) or set(values) != names:
        raise ValueError(f"text is no {cls.__name__}, which has {', '.join(sorted(names))}; write it with to_json().")
    return values


def _error_text(time: StepTime | CarriedStepTime) -> str:
    return f"left out, {time.count} timings are missed by {time.error:.1%}, {time.worst:.1%} at worst"


# ---- the best shape for a time limit ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimedShape:
    """A shape, what it can read in the time, and the loss it should reach."""

    shape: Shape
    N: int
    D: float
    loss: float
    steps: float
    step_seconds: float


@dataclass(frozen=True)
class BestShape(Result):
    """The shape of least predicted loss within `seconds`, and the others near it (`table`, best first).

    at_edge: "smallest" or "largest" if the best is at that end of the shapes looked at, else "".
    """

    best: TimedShape
    table: tuple[TimedShape, ...]
    seconds: float
    n_devices: int
    looked_at: int
    at_edge: str

    def __str__(self) -> str:
        head = ("n_layer x d_model", "N", "D", "steps", "s a step", "loss")
        rows = [
            (
                f"{row.shape.n_layer} x {row.shape.d_model}",
                format_count(row.N),
                format_count(row.D),
                f"{row.steps:,.0f}",
                f"{row.step_seconds:.3g}",
                f"{row.loss:.4f}",
            )
            for row in self.table[:10]
        ]
        title = f"best of {self.looked_at} shapes in {self.seconds:.4g} s on {self.n_devices} device(s)"
        notes = [f"! the best is the {self.at_edge} shape looked at; widen N_range"] if self.at_edge else []
        return "\n".join([title, text_table([head, *rows]), *notes])

    def to_dict(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "n_devices": self.n_devices,
            "looked_at": self.looked_at,
            "at_edge": self.at_edge,
            "best": asdict(self.best),
            "table": [asdict(row) for row in self.table],
        }

    def to_frame(self) -> Any:
        """A pandas DataFrame of the table."""
        import pandas as pd

        return pd.DataFrame([asdict(row.shape) | asdict(row) | {"shape": None} for row in self.table]).drop(
            columns="shape"
        )

    def plot(self, ax: Any = None) -> Any:
        """Loss against N of the table; a matplotlib Axes."""
        ax = new_axes() if ax is None else ax
        ax.plot([row.N for row in self.table], [row.loss for row in self.table], "o", color="black", mfc="w", ms=4)
        ax.plot(self.best.N, self.best.loss, "o", color="black", ms=6)
        ax.set(xscale="log", xlabel="N, non-embedding parameters", ylabel="loss (nats per token)")
        ax.set_title(f"shapes within 1 % of the best in {self.seconds:.3g} s")
        return ax


def best_shape(
    fit: Any,
    step_time: "StepTime | CarriedStepTime",
    batch_tokens: float,
    seconds: float,
    *,
    n_devices: int = 1,
    N_range: tuple[float, float] | None = None,
    memory_limit: "str | Device | float | None" = None,
    architecture: Mapping[str, Any] | None = None,
) -> BestShape:
    """The shape to train when time is what is short: the least L(N, D) with the D that `seconds` allow.

    fit: of a law of N and D (or a kaplan.KnownLaw). step_time: predict(shape, batch_tokens) -> seconds. batch_tokens: of each
    device; n_devices read as many batches at once, at no cost of communication. N_range: default from the smallest good
    shape up to one that makes 100 steps. memory_limit: a device or bytes that a training step must fit. architecture:
    options of `good_shapes`. The law knows of N alone, so shapes differ by speed; their d_model / n_layer stay where
    the loss hardly depends on it. table: shapes within 1 % of the least loss.
    Raises ValueError for another law, bad numbers, and a time in which no shape makes a step.
    """
    if tuple(sorted(fit.law.variables)) != ("D", "N"):
        raise ValueError(
            f"fit is of law {fit.law.name!r}, a function of {', '.join(fit.law.variables)}; best_shape needs one of N and D."
        )
    tokens = float(check_positive("batch_tokens", batch_tokens, "it is the batch of a device, in tokens"))
    limit = float(check_positive("seconds", seconds, "it is the time to train"))
    _check_whole("n_devices", n_devices)
    if N_range is not None:
        low, high = (float(end) for end in check_positive("N_range", N_range, "it is (smallest, largest) N"))
    else:
        low, high = 0.0, math.inf
    bytes_ = math.inf
    if memory_limit is not None:
        whole = memory_limit if isinstance(memory_limit, int | float) else USABLE_MEMORY * device(memory_limit).memory
        bytes_ = float(check_positive("memory_limit", whole))
    rows = []
    for shape in _catalogue(dict(architecture or {}), low, high):
        step = step_time.predict(shape, tokens)
        steps = limit / step
        if steps < 100 and N_range is None and shape.n_layer <= shape.d_model / _NARROWEST + 1:
            break  # wider ones are slower still
        if steps < 1 or memory(shape, tokens).total > bytes_:
            continue
        D = steps * tokens * n_devices
        loss = float(fit.law.evaluate(fit.params, N=shape.N, D=D))
        rows.append(TimedShape(shape, shape.N, D, loss, steps, step))
    if not rows:
        raise ValueError(
            f"seconds={limit:.3g} with batch_tokens={tokens:g} leave no shape that makes a step and fits; give more time, a "
            "smaller batch or a wider N_range."
        )
    rows.sort(key=lambda row: row.loss)
    best, sizes = rows[0], [row.N for row in rows]
    edge = "smallest" if min(sizes) == best.N else "largest" if max(sizes) == best.N else ""
    table = tuple(row for row in rows if row.loss <= 1.01 * best.loss)
    return BestShape(best, table, limit, n_devices, len(rows), edge)


def _catalogue(options: Mapping[str, Any], low: float, high: float) -> Iterator[Shape]:
    """Good shapes of low <= N <= high, width by width from the narrowest, depths 5 % apart."""
    for d_model in _widths(min(high, 1e15)):
        shallow, deep = max(1, math.ceil(d_model / _NARROWEST)), max(1, math.floor(d_model / _DEEPEST))
        n_layer = shallow
        while n_layer <= deep:
            shape = _build(d_model, n_layer, options)
            if low <= shape.N <= high:
                yield shape
            n_layer = max(n_layer + 1, round(1.05 * n_layer))


def _check_whole(name: str, value: Any) -> None:
    if not (isinstance(value, int | np.integer) and value >= 1):
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")


def _check_known(argument: str, value: Any, known: Any) -> None:
    if value not in known:
        raise ValueError(f"{argument}={value!r} is unknown; known are {', '.join(known)}.")
