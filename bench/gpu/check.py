"""Every operation forward and backward, and the model's step, against float64 on the same device.

    python -P -m gpu.check d256 bfloat16 products      # a shape of parts.CHECK_SHAPES, a dtype, a half of the operations

Each result is held against the same computed in float64 from the same numbers: error = |ours - exact| / |exact| (Frobenius).
Its limit is derived from what plain PyTorch makes of it in the same dtype:

    limit = 3 max(error of PyTorch, u) + t,    u = eps / 2, the rounding of the result itself

A kernel rounds other numbers on the way than PyTorch does; roundings are independent and add in squares, and none of these
operations rounds more than nine times where PyTorch rounds once: attention's dq, the longest, rounds q, k, lse, p, out, dout v,
ds, its sum and itself. Hence 3 = sqrt(9). t is for float32 on tensor cores alone: they add eight products at a time to a
sum that they truncate, not round (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores"), half a unit lost on average,
all toward zero, so a sum of L products may lack L / 8 u; and tf32x3 leaves out 2^-22 of each product.

New tensors hold NaN, so that what is not written shows. Each case runs twice and must give the same bits; a member alone,
and one between members whose every number is NaN, must give its bits, too.
"""

import importlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu.child import DEVICE, ON_CARD, Random, default_dtype, finish, gradients, names, why, write
from gpu.parts import CHECK_SHAPES
from pyscaling.accounting import Shape
from pyscaling.kernels import (
    adamw_step,
    attention,
    embedding,
    layer_norm,
    linear,
    linear_cross_entropy,
    mlp,
    reference,
    rms_norm,
)
from pyscaling.kernels.launch import cdiv, replaced, target_of
from pyscaling.kernels.layer_norm import WIDEST_TILE, Norm, NormGradient, norm_tile_rows, sum_all_parts
from pyscaling.kernels.linear import linear_backward, linear_forward
from pyscaling.kernels.mlp import mlp_backward, mlp_forward
from pyscaling.models.fused import FusedTransformer
from pyscaling.models.transformer import FleetTransformer

Run = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass
class Case:
    """ours and plain: from tensors [M, ...] to results [M, ...], whose names are `results`.

    longest: its longest sum of products, 0 if it has none.
    """

    name: str
    results: str
    tensors: list[Tensor]
    ours: Run
    plain: Run
    longest: int


def of_function(
    name: str, results: str, leaves: list[Tensor], given: list[Tensor], ours: Callable[..., Any], plain: Callable[..., Any],
    longest: int, integers: Sequence[Tensor] = (),
) -> Case:  # fmt: skip
    """function(*integers, *leaves) and its gradients."""
    n_integer, n_leaf = len(integers), len(leaves)

    def run(function: Callable[..., Any], tensors: Sequence[Tensor]) -> list[Tensor]:
        whole = tensors[:n_integer]
        return gradients(
            partial(function, *whole), tensors[n_integer : n_integer + n_leaf], tensors[n_integer + n_leaf :]
        )

    return Case(name, results, [*integers, *leaves, *given], partial(run, ours), partial(run, plain), longest)


@contextmanager
def exactly() -> Iterator[None]:
    """Within it plain PyTorch in float64 is exact: angles of the rotation, too, and rms_norm's eps float32's, as in kernels."""
    rms, eps = F.rms_norm, 2.0**-23

    def rotary(x: Tensor, base: float, back: bool = False, first: int = 0) -> Tensor:
        half = x.shape[-1] // 2
        frequency = base ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
        position = torch.arange(first, first + x.shape[-2], device=x.device, dtype=torch.float64)
        angle = position[:, None] * frequency
        a, b = x[..., :half], x[..., half : 2 * half]
        turned = a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()
        return torch.cat((*turned, x[..., 2 * half :]), -1)

    def rms_norm(x: Tensor, size: Any, weight: Tensor | None = None, eps: float | None = eps) -> Tensor:
        return rms(x, size, weight, eps)

    with replaced(reference, rotary=rotary), replaced(F, rms_norm=rms_norm):
        yield


# ---- the cases ------------------------------------------------------------------------------------------------------


@dataclass
class Sizes:
    d: int
    head_dim: int
    n_member: int
    n_sequence: int
    length: int
    vocab: int
    dtype: torch.dtype

    @property
    def n_row(self) -> int:
        return self.n_sequence * self.length


def products(s: Sizes, random: Random) -> Iterator[Case]:
    M, R, d, wide = s.n_member, s.n_row, s.d, 4 * s.d
    make = partial(random.normal, M, dtype=s.dtype)
    weight = lambda n, m: make(n, m, std=n**-0.5)  # noqa: E731
    leaves = [make(R, d), weight(d, 3 * d), make(3 * d)]
    yield of_function(
        "linear", "out dx dweight dbias", leaves, [make(R, 3 * d)], linear, reference.linear, max(R, 3 * d)
    )
    leaves = [make(R, d), weight(d, d), make(R, d)]
    added = lambda function: lambda x, w, residual: function(x, w, None, residual)  # noqa: E731
    plain = lambda x, w, residual: reference.linear(x, w) + residual  # noqa: E731
    yield of_function(
        "linear, residual", "out dx dweight dresidual", leaves, [make(R, d)], added(linear), plain, max(R, d)
    )
    for activation in ("gelu", "swiglu", "gelu_exact", "geglu"):
        up = wide * (2 if activation.endswith("glu") and activation != "gelu" else 1)
        leaves = [make(R, d), weight(d, up), make(up), weight(wide, d), make(d)]
        yield of_function(
            f"mlp {activation}", "out dx dup dup_bias ddown ddown_bias", leaves, [make(R, d)],
            partial(_last, mlp, activation), partial(_last, reference.mlp, activation), max(R, up),
        )  # fmt: skip
    if d <= WIDEST_TILE:
        yield linear_and_norm(s, make, weight)
        yield mlp_and_norm(s, make, weight)
    for name, shape in recipes(s).items():
        yield model(name, shape, s, random)


def _last(function: Callable[..., Any], last: str, *tensors: Tensor) -> Any:
    return function(*tensors, last)


def _parts(z: Tensor, n_array: int) -> Tensor:
    n_member, n_row, d = z.shape
    n_part = cdiv(n_row, norm_tile_rows(n_row, d, z.dtype, target_of(z.device)))
    return torch.empty(n_array, n_member, n_part, d, device=z.device)


def _summed(parts: Tensor) -> list[Tensor]:
    n_array, n_member, _, d = parts.shape
    gradient = torch.empty(n_member, n_array * d, device=parts.device)
    sum_all_parts(parts, gradient, d * torch.arange(n_array, device=parts.device))
    return list(gradient.split(d, 1))


def linear_and_norm(s: Sizes, make: Any, weight: Any) -> Case:
    """z = x W + b + residual and its layer norm in one launch, a product of that; backward through the norm within a product."""
    R, d = s.n_row, s.d
    leaves = [make(R, d), weight(d, d), make(d), make(R, d), make(d), make(d), weight(d, 3 * d), make(3 * d)]

    def ours(tensors: Sequence[Tensor]) -> list[Tensor]:
        x, w, b, residual, gain, shift, w2, b2, grad_z, grad_y = tensors
        norm = Norm(gain, shift, torch.empty_like(x), torch.empty(2, *x.shape[:2], device=x.device))
        z = linear_forward(x, w, b, residual, norm)
        y = linear_forward(norm.normed, w2, b2)
        parts = _parts(z, 2)
        grad, dw2, db2 = linear_backward(grad_y, norm.normed, w2, norm=NormGradient(z, gain, norm.stats, grad_z, parts))
        dx, dw, db = linear_backward(grad, x, w)
        return [z, y, dx, dw, db, grad, *_summed(parts), dw2, db2]  # type: ignore[list-item]

    def plain(
        x: Tensor, w: Tensor, b: Tensor, residual: Tensor, gain: Tensor, shift: Tensor, w2: Tensor, b2: Tensor
    ) -> Any:
        z = reference.linear(x, w, b) + residual
        return z, reference.linear(reference.layer_norm(z, gain, shift), w2, b2)

    return Case(
        "linear and layer_norm in one", "z y dx dweight dbias dresidual dgain dshift dweight2 dbias2",
        [*leaves, make(R, d), make(R, 3 * d)], ours, lambda t: gradients(plain, t[:8], t[8:]), max(R, 3 * d),
    )  # fmt: skip


def mlp_and_norm(s: Sizes, make: Any, weight: Any) -> Case:
    """An MLP, its residual and RMSNorm in one launch, and another MLP of that."""
    R, d, wide = s.n_row, s.d, 2 * s.d
    leaves = [
        make(R, d),
        weight(d, 2 * wide),
        weight(wide, d),
        make(R, d),
        make(d),
        weight(d, 2 * wide),
        weight(wide, d),
    ]

    def ours(tensors: Sequence[Tensor]) -> list[Tensor]:
        x, up, down, residual, gain, up2, down2, grad_z, grad_y = tensors
        norm = Norm(gain, None, torch.empty_like(x), torch.empty(1, *x.shape[:2], device=x.device))
        z, u, hidden = mlp_forward(x, up, None, down, None, residual, "swiglu", norm)
        y, u2, hidden2 = mlp_forward(norm.normed, up2, None, down2, None, None, "swiglu")
        parts = _parts(z, 1)
        through = NormGradient(z, gain, norm.stats, grad_z, parts)
        grad, dup2, _, ddown2, _ = mlp_backward(
            grad_y, norm.normed, up2, down2, u2, "swiglu", norm=through, has_bias=False, hidden=hidden2
        )
        dx, dup, _, ddown, _ = mlp_backward(grad, x, up, down, u, "swiglu", has_bias=False, hidden=hidden)
        return [z, y, dx, dup, ddown, grad, *_summed(parts), dup2, ddown2]

    def plain(x: Tensor, up: Tensor, down: Tensor, residual: Tensor, gain: Tensor, up2: Tensor, down2: Tensor) -> Any:
        z = reference.mlp(x, up, None, down, None, "swiglu") + residual
        return z, reference.mlp(reference.rms_norm(z, gain), up2, None, down2, None, "swiglu")

    return Case(
        "mlp and rms_norm in one", "z y dx dup ddown dresidual dgain dup2 ddown2",
        [*leaves, make(R, d), make(R, d)], ours, lambda t: gradients(plain, t[:7], t[7:]), max(R, 2 * wide),
    )  # fmt: skip


def recipes(s: Sizes) -> dict[str, Shape]:
    n_head = s.d // s.head_dim
    n_layer = 2 if ON_CARD else 1
    old = Shape(s.d, n_layer, n_head, context=s.length + 1, vocab_size=s.vocab)
    new = Shape(
        s.d, n_layer, n_head, context=s.length + 1, vocab_size=s.vocab, mlp="swiglu", norm="rmsnorm", position="rope", tied=False,
        bias=False, qk_norm=True,
    )  # fmt: skip
    return {"model, GPT-2's": old, "model, RoPE, RMSNorm, SwiGLU, QK-norm": new}


def model(name: str, shape: Shape, s: Sizes, random: Random) -> Case:
    """A step's loss and the gradient of every parameter, by the launches that training makes."""
    n_parameter = FleetTransformer(shape, [0], "meta").flat.shape[1]
    tokens = random.integers(s.vocab, s.n_member, s.n_sequence, s.length + 1)
    start = FleetTransformer(shape, range(s.n_member), DEVICE).flat
    flat = (start.detach() + random.normal(s.n_member, n_parameter, std=0.05)).to(s.dtype)  # what begins at zero, too

    def ours(tensors: Sequence[Tensor]) -> list[Tensor]:
        fleet = FusedTransformer(shape, range(len(tensors[1])), DEVICE, s.dtype)
        with torch.no_grad():
            fleet.flat.copy_(tensors[0])
        fleet.refresh()
        fleet.gradient.fill_(math.nan)
        return [fleet.loss_and_gradient(tensors[1]), *fleet._gradients]

    def plain(tensors: Sequence[Tensor]) -> list[Tensor]:
        with default_dtype(tensors[0].dtype):
            fleet = FleetTransformer(shape, range(len(tensors[1])), DEVICE)
        with torch.no_grad():
            fleet.flat.copy_(tensors[0])
        return [fleet.loss_and_gradient(tensors[1]), *fleet._gradients]

    named = " ".join(f"d{parameter}" for parameter in FleetTransformer(shape, [0], "meta").parameters)
    return Case(name, f"loss {named}", [flat, tokens], ours, plain, max(s.n_row, s.vocab, 8 * s.d))


def others(s: Sizes, random: Random) -> Iterator[Case]:
    M, R, d, T = s.n_member, s.n_row, s.d, s.length
    make = partial(random.normal, M, dtype=s.dtype)
    inside = {"rope_base": 10_000.0, "qk_norm": True}
    attentions: list[tuple[str, int, dict[str, Any]]] = [
        ("attention, causal", T, {"causal": True}),
        ("attention, causal, rotary, qk_norm", T, {"causal": True, **inside}),
        ("attention", T, {"causal": False}),
        ("attention after a cache, rotary, qk_norm", T // 3 + 1, {"causal": "bottom_right", **inside}),
    ]
    for name, n_query, options in attentions:
        sizes = [(s.n_sequence * d // s.head_dim, length, s.head_dim) for length in (n_query, T, T)]
        yield of_function(
            name, "out dq dk dv", [make(*size) for size in sizes], [make(*sizes[0])], partial(attention, **options),
            partial(reference.attention, **options), max(T, s.head_dim),
        )  # fmt: skip
    leaves = [make(R, d), make(d), make(d)]
    yield of_function("layer_norm", "out dx dgain dbias", leaves, [make(R, d)], layer_norm, reference.layer_norm, 0)
    leaves, given = [make(R, d), make(d), make(R, d)], [make(R, d), make(R, d)]
    yield of_function(
        "rms_norm, residual", "out sum dx dgain dresidual", leaves, given, rms_norm, reference.rms_norm, 0
    )
    leaves = [make(R, d), make(d)]
    yield of_function("rms_norm", "out dx dgain", leaves, [make(R, d)], rms_norm, reference.rms_norm, 0)
    tokens = random.integers(s.vocab, M, s.n_sequence, T)
    flattened = lambda *of: reference.embedding(*of).flatten(1, 2)  # noqa: E731
    leaves = [make(s.vocab, d), make(T + 3, d)]
    yield of_function(
        "embedding, position", "out dweight dposition", leaves, [make(R, d)], embedding, flattened, R, [tokens]
    )
    targets = random.integers(s.vocab, M, R)
    head = lambda function: lambda t, x, w: function(x, w, t)  # noqa: E731
    loss = lambda x, w, t, z=0.0: reference.linear_cross_entropy_tokens(x, w, t, z).mean(1)  # noqa: E731
    leaves = [make(R, d), make(d, s.vocab, std=d**-0.5)]
    longest = max(R, d, s.vocab)
    yield of_function(
        "linear_cross_entropy", "loss dx dweight", leaves, [random.normal(M)], head(linear_cross_entropy), head(loss), longest,
        [targets],
    )  # fmt: skip
    leaves = [make(R, d), make(s.vocab, d, std=d**-0.5)]
    tied = lambda function: lambda t, x, w: function(x, w.mT, t, 1e-3)  # noqa: E731
    yield of_function(
        "linear_cross_entropy, tied, z_loss", "loss dx dweight", leaves, [random.normal(M)], tied(linear_cross_entropy),
        tied(loss), longest, [targets],
    )  # fmt: skip
    yield adamw(s, random)


def adamw(s: Sizes, random: Random) -> Case:
    """One step of weights and moments in float32; in 16 bits a copy of the weights is written, too."""
    M, P, n_decayed = s.n_member, 12 * s.d * s.d + 5, 9 * s.d
    setting = torch.tensor([1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0], dtype=torch.float64, device=DEVICE).repeat(M, 1)  # [M, 6]
    state = [
        random.normal(M, P),
        random.normal(M, P),
        random.normal(M, P, std=0.1),
        random.normal(M, P, std=0.1).square(),
    ]

    def run(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        flat, gradient, first, second = (t.clone() for t in tensors[:4])
        settings, loss = tensors[4].T.contiguous().double(), tensors[5]
        clock = torch.tensor([3.0, 0.5], dtype=torch.float64, device=flat.device)
        alive = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
        failed = torch.full((len(flat),), -1, dtype=torch.int64, device=flat.device)
        low = flat.dtype if flat.dtype == torch.float64 else s.dtype
        cast = torch.empty_like(flat, dtype=low) if s.dtype != torch.float32 else None
        norm = function(flat, gradient, first, second, settings, clock, loss, alive, failed, n_decayed, 3.0, cast)
        return [norm, flat, first, second, *([cast] if cast is not None else [])]

    results = "norm weights exp_avg exp_avg_sq" + (" copy" if s.dtype != torch.float32 else "")
    tensors = [*state, setting, random.normal(M)]
    return Case("adamw_step", results, tensors, partial(run, adamw_step), partial(run, reference.adamw_step), 0)


# ---- judging --------------------------------------------------------------------------------------------------------


def relative(a: Tensor, exact: Tensor) -> float:
    norm = float(torch.linalg.vector_norm(exact))
    error = float(torch.linalg.vector_norm(a.double() - exact)) / (norm or 1.0)
    return error if math.isfinite(error) else math.inf


def limit(theirs: float, dtype: torch.dtype, longest: int) -> float:
    u = torch.finfo(dtype).eps / 2
    return 3 * max(theirs, u) + truncated(dtype, longest)


def truncated(dtype: torch.dtype, longest: int) -> float:
    """t: what tensor cores may lose of a float32 sum of so many products; 0 of what has none."""
    on_tensor_cores = longest > 0 and dtype == torch.float32 and ON_CARD and torch.version.hip is None
    return longest / 8 * torch.finfo(dtype).eps / 2 + 2.0**-22 if on_tensor_cores else 0.0


def judged(case: Case, s: Sizes) -> dict[str, Any]:
    """The row of a case: for each result (error, PyTorch's, limit), and what else is wrong."""
    ours = [t.clone() for t in case.ours(case.tensors)]
    wrong = []
    if not all(same_bits(a, b) for a, b in zip(ours, case.ours(case.tensors), strict=True)):
        wrong.append("other bits the second time")
    if s.n_member > 1:
        i = 1
        alone = [t[i : i + 1] for t in case.tensors]
        spoilt = [_spoilt(t, i) for t in case.tensors]
        for how, results in (("alone", case.ours(alone)), ("beside NaN", [t[i : i + 1] for t in case.ours(spoilt)])):
            if not all(same_bits(a[i : i + 1], b) for a, b in zip(ours, results, strict=True)):
                wrong.append(f"a member {how} has other bits")
    with exactly():
        exact = case.plain([t.double() if t.is_floating_point() else t for t in case.tensors])
    theirs = case.plain(case.tensors)
    errors = {}
    for name, a, b, e in zip(case.results.split(), ours, theirs, exact, strict=True):
        error, peer = relative(a, e), relative(b, e)
        errors[name] = [error, peer, limit(peer, _dtype_of(case, s, name), case.longest)]
        if not error <= errors[name][2]:
            wrong.append(f"{name} is {error / errors[name][2]:.2g} times over its limit")
    return {"worst": max(e / most for e, _, most in errors.values()), "ok": not wrong, "wrong": wrong, "errors": errors}


def _dtype_of(case: Case, s: Sizes, result: str) -> torch.dtype:
    """In which a result's numbers are rounded: AdamW's state is float32 whatever the copy's."""
    return torch.float32 if case.name == "adamw_step" and result != "copy" else s.dtype


def same_bits(a: Tensor, b: Tensor) -> bool:
    """NaN where NaN is, equal elsewhere."""
    return (
        a.shape == b.shape
        and torch.equal(a.nan_to_num(12345.0), b.nan_to_num(12345.0))
        and torch.equal(a.isnan(), b.isnan())
    )


def _spoilt(tensor: Tensor, kept: int) -> Tensor:
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:  # tokens; settings, which are the schedule's
        return tensor
    spoilt = torch.full_like(tensor, math.nan)
    spoilt[kept] = tensor[kept]
    return spoilt


def main() -> None:
    shape, dtype, family = names()
    s = Sizes(*CHECK_SHAPES[shape], dtype=getattr(torch, dtype))
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # which deterministic products of torch's ask for
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(7, device=DEVICE).isnan().all(), "new tensors do not hold NaN, so that nothing would show"
    # Several chunks of logits where the head is wider than 512.
    importlib.import_module("pyscaling.kernels.linear_cross_entropy").CHUNK = 2**19
    cases = {"products": products, "others": others}[family](s, Random(s.d))
    for case in cases:
        start = time.perf_counter()
        try:
            judgement = judged(case, s)
        except Exception as error:
            judgement = {"worst": math.inf, "ok": False, "wrong": [why(error)], "errors": {}}
        size = {"d": s.d, "head_dim": s.head_dim, "members": s.n_member, "rows": s.n_row}
        write(case=case.name, dtype=dtype, **judgement, **size, seconds=round(time.perf_counter() - start, 1))
    finish()


if __name__ == "__main__":
    main()
