"""What N, D and C mean: parameter and FLOP conventions as data, and the units of compute.

A published exponent moved from 0.84 to 0.71 by counting differently alone, so every count names its convention.
"Kaplan et al. 2020" is arXiv:2001.08361; its table 1 gives the counts per layer.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

PF_DAY = 8.64e19  # FLOPs of 1e15 FLOP/s held for a day

ParameterConvention = Literal["non_embedding", "exact_non_embedding", "with_head", "with_embeddings", "total"]
FlopConvention = Literal["6ND", "causal_attention", "attention", "head", "causal_full", "full", "chinchilla"]
Passes = Literal["forward", "backward", "training"]

# What each convention counts: the parts of `parameter_parts` that are summed, and why one meets it.
PARAMETER_CONVENTIONS: dict[str, tuple[frozenset[str], str]] = {
    "non_embedding": (
        frozenset({"attention", "mlp"}),
        "weight matrices of the layers: 12 n_layer d_model^2 for GPT-2 (Kaplan et al. 2020, eq. 2.1)",
    ),
    "exact_non_embedding": (
        frozenset({"attention", "mlp", "biases", "norms"}),
        "the same with biases and norm gains, without any embedding",
    ),
    "with_head": (
        frozenset({"attention", "mlp", "head"}),
        "non_embedding plus the output matrix d_model x vocab_size, tied or not",
    ),
    "with_embeddings": (
        frozenset({"attention", "mlp", "biases", "norms", "token_embedding", "position_embedding"}),
        "exact_non_embedding plus token and position embeddings, without an untied head",
    ),
    "total": (
        frozenset({"attention", "mlp", "biases", "norms", "token_embedding", "position_embedding", "untied_head"}),
        "every parameter that is stored; a tied head counts once (Hoffmann et al. 2022)",
    ),
}
# (attended tokens as a share of the context, the head counts, description)
FLOP_CONVENTIONS: dict[str, tuple[float, bool, str]] = {
    "6ND": (0.0, False, "forward 2N and backward 4N a token, N non-embedding"),
    "causal_attention": (0.5, False, "6ND plus the half of attention that a causal mask leaves (Kaplan et al. 2020)"),
    "attention": (1.0, False, "6ND plus the scores and mixing of attention over the whole context"),
    "head": (0.0, True, "6ND plus the output matrix"),
    "causal_full": (0.5, True, "6ND plus causal attention plus the output matrix"),
    "full": (1.0, True, "6ND plus attention plus the output matrix, as torch.utils.flop_counter counts"),
    "chinchilla": (
        1.0,
        True,
        "full plus the embedding as a product with one-hot tokens and 3 FLOPs a score for the softmax "
        "(Hoffmann et al. 2022, appendix F)",
    ),
}
_PASSES: dict[str, int] = {"forward": 1, "backward": 2, "training": 3}
_SI = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21, "y": 1e24}
_UNITS = "FLOPs (with a prefix too, as 3 EFLOPs) and PF-days"
_SMALLEST_WIDTH = 8


@dataclass(frozen=True)
class Shape:
    """Architecture of a decoder-only transformer; the defaults are GPT-2's.

    d_ff: width of the MLP; 0 means 4 d_model, or 8/3 d_model for "swiglu", whose three matrices then count as much.
    context: longest sequence in tokens. mlp: "gelu" | "swiglu".
    norm: "layernorm" | "rmsnorm". position: "learned" | "rope", of wavelengths
    up to 2 pi rope_base. tied: head shares the embedding's weights.
    bias: biases in linear layers and norms. qk_norm: queries and keys are RMS-normalised (Henry et al. 2020).
    Raises ValueError for sizes that do not fit together.
    """

    d_model: int
    n_layer: int
    n_head: int
    d_ff: int = 0
    context: int = 1024
    vocab_size: int = 50257
    mlp: Literal["gelu", "swiglu"] = "gelu"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    position: Literal["learned", "rope"] = "learned"
    tied: bool = True
    bias: bool = True
    qk_norm: bool = False
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        if self.d_ff == 0:
            width = 4 * self.d_model if self.mlp == "gelu" else _nearest_multiple(8 * self.d_model / 3, 8)
            object.__setattr__(self, "d_ff", width)
        for name in ("d_model", "n_layer", "n_head", "d_ff", "context", "vocab_size"):
            value = getattr(self, name)
            if value != int(value) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value}.")
        if self.d_model % self.n_head:
            divisors = [h for h in range(1, self.d_model + 1) if self.d_model % h == 0]
            near = min(divisors, key=lambda h: abs(h - self.n_head))
            raise ValueError(f"d_model={self.d_model} is not divisible by n_head={self.n_head}; n_head={near} is.")
        for name, kinds in (
            ("mlp", ("gelu", "swiglu")),
            ("norm", ("layernorm", "rmsnorm")),
            ("position", ("learned", "rope")),
        ):
            if getattr(self, name) not in kinds:
                raise ValueError(f"{name} must be one of {', '.join(kinds)}, got {getattr(self, name)!r}.")
        if self.position == "rope" and (self.d_model // self.n_head) % 2:
            raise ValueError(
                f"position='rope' needs an even head_dim, got d_model / n_head = {self.d_model // self.n_head}."
            )

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_head

    @property
    def N(self) -> int:
        """Non-embedding parameters as Kaplan et al. count them."""
        return parameter_count(self, "non_embedding")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def parameter_parts(shape: Shape) -> dict[str, int]:
    """Exact parameter counts of the parts of a shape.

    attention, mlp: weight matrices; biases: of these matrices; norms: gains and biases; token_embedding,
    position_embedding; head: the output matrix, tied or not; untied_head: the same where it is stored apart.
    """
    d, d_ff, layers = shape.d_model, shape.d_ff, shape.n_layer
    up = 2 * d_ff if shape.mlp == "swiglu" else d_ff
    per_norm = 2 * d if shape.norm == "layernorm" and shape.bias else d
    head = d * shape.vocab_size
    return {
        "attention": layers * 4 * d * d,
        "mlp": layers * (d * up + d_ff * d),
        "biases": layers * (4 * d + up + d) if shape.bias else 0,
        "norms": (2 * layers + 1) * per_norm,
        "token_embedding": head,
        "position_embedding": shape.context * d if shape.position == "learned" else 0,
        "head": head,
        "untied_head": 0 if shape.tied else head,
    }


def parameter_count(shape: Shape, convention: ParameterConvention = "non_embedding") -> int:
    """Parameters of a shape by the named convention (see PARAMETER_CONVENTIONS)."""
    _check_convention("convention", convention, PARAMETER_CONVENTIONS)
    counted, _ = PARAMETER_CONVENTIONS[convention]
    return sum(count for part, count in parameter_parts(shape).items() if part in counted)


def flops_per_token(shape: Shape, convention: FlopConvention = "6ND", *, passes: Passes = "training") -> float:
    """FLOPs a token by the named convention (see FLOP_CONVENTIONS); a multiply-add is two.

    Forward: 2N, attention 4 n_layer n_ctx d_model for scores and mixing over the whole context (Hoffmann et al. 2022,
    appendix F) and half of that under a causal mask (Kaplan et al. 2020, table 1), head 2 d_model vocab_size. Hoffmann et
    al.'s own count adds 2 vocab_size d_model for the embedding and 3 n_layer n_head n_ctx for the softmax.
    passes: "forward", "backward" (twice the forward pass) or "training" (both).
    """
    _check_convention("convention", convention, FLOP_CONVENTIONS)
    _check_convention("passes", passes, _PASSES)
    attended, head, _ = FLOP_CONVENTIONS[convention]
    forward = 2.0 * shape.N
    forward += 4.0 * attended * shape.n_layer * shape.context * shape.d_model
    forward += 2.0 * shape.d_model * shape.vocab_size if head else 0.0
    if convention == "chinchilla":
        forward += 2.0 * shape.vocab_size * shape.d_model + 3.0 * shape.n_layer * shape.n_head * shape.context
    return _PASSES[passes] * forward


def training_flops(N: Any, D: Any) -> Any:
    """C = 6ND in FLOPs (Kaplan et al. 2020, section 2.1); N non-embedding parameters, D tokens; scalars or arrays."""
    return 6.0 * N * D


def convert_parameters(N: float, shape: Shape, source: ParameterConvention, target: ParameterConvention) -> float:
    """N of a model of this shape counted under `source`, as `target` counts it.

    Adds what the two disagree on, so parameters that `shape` does not know of stay counted. ValueError if nothing is
    left, which means that N was not counted under `source`.
    """
    difference = parameter_count(shape, target) - parameter_count(shape, source)
    if N + difference <= 0:
        raise ValueError(
            f"N={N:g} cannot be a count under {source!r}: {target!r} leaves out {-difference:,} of it for this shape. "
            "Check the convention of N or the shape."
        )
    return N + difference


def convert_flops(C: float, D: float, shape: Shape, source: FlopConvention, target: FlopConvention) -> float:
    """C of a run of this shape on D tokens counted under `source`, as `target` counts it."""
    return C + D * (flops_per_token(shape, target) - flops_per_token(shape, source))


def parse_compute(compute: float | str) -> float:
    """Compute in FLOPs from a number or a text with a unit: 1e21, "1e21 FLOPs", "3 ZFLOPs", "3 PF-days", "3 pfdays".

    Raises ValueError for an unknown unit, a rate, or a value that is not finite and positive.
    """
    if isinstance(compute, str):
        match = re.fullmatch(r"\s*([-+]?(?:\d[\d_,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(.*?)\s*", compute, re.IGNORECASE)
        if match is None:
            raise ValueError(
                f'compute={compute!r} is not a number with a unit; write for example "1e21" or "3 PF-days".'
            )
        flops = float(re.sub("[_,]", "", match[1])) * _flops_per_unit(match[2], compute)
    else:
        try:
            flops = math.nan if isinstance(compute, bool) else float(compute)
        except (TypeError, ValueError, OverflowError):
            flops = math.nan
        if math.isnan(flops) and not isinstance(compute, float):
            raise ValueError(f'compute={compute!r} is not a number of FLOPs, nor a text such as "3 PF-days".')
    if not math.isfinite(flops) or flops <= 0:
        raise ValueError(f"compute must be finite and positive, got {compute!r}.")
    return flops


def _flops_per_unit(unit: str, compute: str) -> float:
    plain = re.sub(r"[\s*·_-]", "", unit.lower())
    if not plain:
        return 1.0
    if re.fullmatch(r"(pf|pflops?|pflops?/s|petaflops?|petaflops?/s)days?", plain):
        return PF_DAY
    if re.fullmatch(r"[kmgtpezy]?flops?(/s|ps)", plain):
        raise ValueError(f"compute={compute!r}: {unit!r} is a rate; give FLOPs in all, or PF-days.")
    if match := re.fullmatch(r"([kmgtpezy]?)flops?", plain):
        return _SI[match[1]]
    raise ValueError(f"compute={compute!r} has the unknown unit {unit!r}; known are {_UNITS}.")


def shape_near(N: float, *, convention: ParameterConvention = "non_embedding", **options: Any) -> Shape:
    """A concrete shape whose count under `convention` is near N, and whose proportions are customary.

    options: context, vocab_size, mlp, norm, position, tied, bias, qk_norm of `Shape`. Heads are 128 wide from d_model
    2048 on, 64 from 512 on and narrower below; d_model is a multiple of that, so that large matrices suit tensor
    cores. d_model / n_layer follows GPT-3's sizes (Brown et al. 2020, table 2.1): 64 at 85 M, 128 from 22 B on; the
    loss hardly depends on it (Kaplan et al. 2020, figure 5). The count is within 4 % of N from 1e6 on.
    Raises ValueError if N is less than half of the smallest shape, one layer of width 8.
    """
    if not (math.isfinite(N) and N > 0):
        raise ValueError(f"N must be finite and positive, got {N!r}.")

    def build(d_model: int, n_layer: int) -> Shape:
        d_ff = _nearest_multiple(8 * d_model / 3, 128) if options.get("mlp") == "swiglu" and d_model >= 512 else 0
        return Shape(d_model, n_layer, d_model // _head_dim(d_model), d_ff, **options)

    best = build(_SMALLEST_WIDTH, 1)
    if (floor := parameter_count(best, convention)) / 2 > N:
        raise ValueError(
            f"N={N:.3g} is smaller than any transformer: one layer of width {best.d_model} has {floor:,} parameters "
            f"({convention}). Give a larger N or budget."
        )
    least, d_model = math.inf, _SMALLEST_WIDTH
    widest = 2 * (N * _aspect_ratio(N) / 12) ** (1 / 3)  # N = 12 d_model^3 / aspect ratio, and room around it
    while d_model <= max(widest, _SMALLEST_WIDTH):
        one, two = (parameter_count(build(d_model, n_layer), convention) for n_layer in (1, 2))
        depth = 1 + (N - one) / (two - one)  # every count is affine in the depth
        for n_layer in {max(1, math.floor(depth)), max(1, math.ceil(depth))}:
            shape = build(d_model, n_layer)
            # A mismatch of 2 % in N weighs as much as an aspect ratio wrong by 50 %.
            miss = math.log(parameter_count(shape, convention) / N) / 0.02
            skew = math.log(d_model / n_layer / _aspect_ratio(N)) / 0.4
            if (cost := miss * miss + skew * skew) < least:
                best, least = shape, cost
        # Heads in fours can be spread over devices; beyond any machine of today the grid is coarser, to stay quick.
        d_model += 512 * max(1, d_model // 2**15) if d_model >= 4096 else _head_dim(d_model)
    return best


def _head_dim(d_model: int) -> int:
    """Customary width of a head: 128 in large models, 64 in GPT-2, narrower where d_model leaves no choice."""
    for width, head_dim in ((2048, 128), (512, 64), (256, 32), (64, 16)):
        if d_model >= width:
            return head_dim
    return 8


def _aspect_ratio(N: float) -> float:
    """Customary d_model / n_layer: 64 at GPT-3 small's 85 M, growing slowly to 128."""
    return min(128.0, max(12.0, 64 * (N / 8.5e7) ** 0.125))


def _nearest_multiple(value: float, step: int) -> int:
    return max(step, step * round(value / step))


def _check_convention(argument: str, value: str, known: Mapping[str, object]) -> None:
    if value not in known:
        raise ValueError(f"{argument}={value!r} is unknown; known are {', '.join(known)}.")
