"""What N, D and C mean: parameter and FLOP conventions as data, and the units of compute.

A published exponent moved from 0.84 to 0.71 by counting differently alone, so every count names its convention.
"Kaplan et al. 2020" is arXiv:2001.08361; its table 1 gives the counts per layer.
"""

import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

PF_DAY = 8.64e19  # FLOPs of 1e15 FLOP/s held for a day

ParameterConvention = Literal["non_embedding", "exact_non_embedding", "with_head", "total"]
FlopConvention = Literal["6ND", "attention", "head", "full"]

PARAMETER_CONVENTIONS: dict[str, str] = {
    "non_embedding": "weight matrices of the layers: 12 n_layer d_model^2 for GPT-2 (Kaplan et al. 2020, table 1)",
    "exact_non_embedding": "the same with biases and norm gains, without any embedding",
    "with_head": "non_embedding plus the output matrix d_model x vocab_size",
    "total": "every parameter that is stored; a tied head counts once",
}
FLOP_CONVENTIONS: dict[str, str] = {
    "6ND": "forward 2N and backward 4N a token, N non-embedding",
    "attention": "6ND plus the scores and mixing of attention over the whole context",
    "head": "6ND plus the output matrix",
    "full": "6ND plus attention plus the output matrix",
}
_UNITS = {"": 1.0, "flop": 1.0, "flops": 1.0, "pf-day": PF_DAY, "pf-days": PF_DAY, "pfday": PF_DAY, "pfdays": PF_DAY}


@dataclass(frozen=True)
class Shape:
    """Architecture of a decoder-only transformer; the defaults are GPT-2's.

    d_ff: width of the MLP, 4 d_model by default. context: longest sequence in tokens. mlp: "gelu" | "swiglu".
    norm: "layernorm" | "rmsnorm". position: "learned" | "rope". tied: head shares the embedding's weights.
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

    def __post_init__(self) -> None:
        if self.d_ff == 0:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        for name in ("d_model", "n_layer", "n_head", "d_ff", "context", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
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


def parameter_count(shape: Shape, convention: ParameterConvention = "non_embedding") -> int:
    """Parameters of a shape by the named convention (see PARAMETER_CONVENTIONS)."""
    _check_convention("convention", convention, PARAMETER_CONVENTIONS)
    d, d_ff, layers = shape.d_model, shape.d_ff, shape.n_layer
    up = 2 * d_ff if shape.mlp == "swiglu" else d_ff
    matrices = layers * (4 * d * d + d * up + d_ff * d)
    if convention == "non_embedding":
        return matrices
    if convention == "with_head":
        return matrices + d * shape.vocab_size
    per_norm = 2 * d if shape.norm == "layernorm" and shape.bias else d
    biases = layers * (4 * d + up + d) if shape.bias else 0
    exact = matrices + biases + (2 * layers + 1) * per_norm
    if convention == "exact_non_embedding":
        return exact
    positions = shape.context * d if shape.position == "learned" else 0
    return exact + positions + shape.vocab_size * d * (1 if shape.tied else 2)


def flops_per_token(shape: Shape, convention: FlopConvention = "6ND", *, backward: bool = True) -> float:
    """FLOPs a token by the named convention (see FLOP_CONVENTIONS); a multiply-add is two.

    Attention costs 2 n_layer n_ctx d_model a token forward (Kaplan et al. 2020, table 1); they count scores alone,
    we count scores and mixing, 4 n_layer n_ctx d_model, and no saving from the causal mask, as
    torch.utils.flop_counter does.
    """
    _check_convention("convention", convention, FLOP_CONVENTIONS)
    forward = 2.0 * shape.N
    if convention in ("attention", "full"):
        forward += 4.0 * shape.n_layer * shape.context * shape.d_model
    if convention in ("head", "full"):
        forward += 2.0 * shape.d_model * shape.vocab_size
    return 3 * forward if backward else forward


def training_flops(N: Any, D: Any) -> Any:
    """C = 6ND in FLOPs (Kaplan et al. 2020, section 2.1); N non-embedding parameters, D tokens; scalars or arrays."""
    return 6.0 * N * D


def convert_parameters(count: float, shape: Shape, source: ParameterConvention, target: ParameterConvention) -> float:
    """A parameter count of this shape, re-expressed in another convention."""
    return count - parameter_count(shape, source) + parameter_count(shape, target)


def parse_compute(value: float | str) -> float:
    """Compute in FLOPs from a number or a text with a unit: 1e21, "1e21 FLOPs", "3 PF-days".

    Raises ValueError for an unknown unit or a value that is not finite and positive.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([-+0-9.eE]+)\s*([A-Za-z-]*)\s*", value)
        if match is None:
            raise ValueError(f'compute={value!r} is not a number with a unit; write for example "1e21" or "3 PF-days".')
        if match[2].lower() not in _UNITS:
            raise ValueError(f"compute={value!r} has the unknown unit {match[2]!r}; known are FLOPs and PF-days.")
        try:
            flops = float(match[1]) * _UNITS[match[2].lower()]
        except ValueError:
            raise ValueError(f"compute={value!r}: {match[1]!r} is not a number.") from None
    else:
        flops = float(value)
    if not math.isfinite(flops) or flops <= 0:
        raise ValueError(f"compute must be finite and positive, got {value!r}.")
    return flops


SMALLEST_N = 12 * 4 * 4  # one layer of width 4


def shape_near(N: float, *, context: int = 1024, vocab_size: int = 50257) -> Shape:
    """A concrete GPT-2 style shape whose non-embedding N is as near to `N` as hardware-friendly sizes allow.

    Depth follows width as in published models (aspect ratio d_model / n_layer rising from 16 for tiny models through
    64 for GPT-2 to 128 for GPT-3 175B); d_model is a multiple of head_dim, and head_dim 128, 64, 32, 16 or less.
    Raises ValueError if N is smaller than the smallest transformer, one layer of width 4.
    """
    if not N >= SMALLEST_N:
        raise ValueError(f"N={N:.3g} is smaller than any transformer (at least {SMALLEST_N}); give a larger budget.")
    aspect = 2.0 ** min(7.0, max(4.0, 4.0 + 0.55 * math.log10(N / 1e5)))
    ideal_width = (N * aspect / 12) ** (1 / 3)
    head_dim = next((h for h in (128, 64, 32, 16, 8, 4) if ideal_width >= 4 * h), 4)
    if ideal_width >= 1024:
        head_dim = 128
    best: tuple[float, Shape] | None = None
    for n_layer in range(1, max(2, math.ceil(3 * ideal_width / aspect)) + 1):
        width = math.sqrt(N / (12 * n_layer))
        d_model = max(head_dim, head_dim * round(width / head_dim))
        shape = Shape(d_model, n_layer, d_model // head_dim, context=context, vocab_size=vocab_size)
        # A mismatch of 1 % in N weighs as much as an aspect ratio wrong by 10 %.
        score = abs(math.log(shape.N / N)) + 0.1 * abs(math.log(d_model / n_layer / aspect))
        if best is None or score < best[0]:
            best = (score, shape)
    assert best is not None
    return best[1]


def _check_convention(argument: str, value: str, known: dict[str, str]) -> None:
    if value not in known:
        raise ValueError(f"{argument}={value!r} is unknown; known are {', '.join(known)}.")


assert set(get_args(ParameterConvention)) == set(PARAMETER_CONVENTIONS)
