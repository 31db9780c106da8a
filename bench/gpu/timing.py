"""How long each operation takes, forward and backward, beside its peers, and what the card itself reaches.

    python -P -m gpu.timing ceilings      # or d256, a width; or fleet bfloat16: bench/hardware.py's table

A time is the median of many replays of a CUDA graph with a cold L2 cache. Ours are the launchers that a step calls. A peer is a
function with gradients: its forward is timed without, then forward and backward in one graph, and backward is the difference,
which spares it reading what its forward has just left in the cache. It must agree with ours within bench/hardware.py's
TOLERANCE before it is timed. `bmm` is the products alone, batched by cuBLAS; `cublas` the same with what belongs to the
operation, bias, activation, residual, norm, each as a launch of its own. flops and bytes are the least: attention's
backward forms its scores again (Dao 2023 counts so), and a tensor that goes in or comes out moves once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from hardware import OPERATIONS, TARGETS, TOLERANCE, graph_seconds, measured, projected, wall_seconds
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu.child import (
    DEVICE,
    ON_CARD,
    WARM,
    Random,
    finish,
    free,
    gradients,
    named,
    names,
    peak_bytes,
    seconds_of,
    why,
    write,
)
from pyscaling.kernels import aot, reference
from pyscaling.kernels.attention import attention_backward, attention_forward
from pyscaling.kernels.embedding import embedding_backward, embedding_forward
from pyscaling.kernels.launch import cdiv, target_of
from pyscaling.kernels.layer_norm import (
    WIDEST_TILE,
    Norm,
    NormGradient,
    layer_norm_backward,
    layer_norm_forward,
    norm_tile_rows,
    sum_all_parts,
)
from pyscaling.kernels.linear import linear_backward, linear_forward
from pyscaling.kernels.linear_cross_entropy import linear_cross_entropy_backward, linear_cross_entropy_forward
from pyscaling.kernels.mlp import mlp_backward, mlp_forward

Peer = Callable[..., Any]


@dataclass
class Timed:
    """forward() -> outputs; backward() -> gradients of the leaves; None where it is not timed.

    unlike: peers that do less.
    """

    name: str
    leaves: list[Tensor]
    given: list[Tensor]
    forward: Callable[[], list[Tensor]] | None
    backward: Callable[[], list[Tensor]] | None
    flops: tuple[int, int]
    peers: dict[str, Peer]
    unlike: frozenset[str] = frozenset()
    waiting: frozenset[str] = frozenset()  # peers that wait for the device, so that no graph holds them
    note: dict[str, Any] = field(default_factory=dict)


@dataclass
class Sizes:
    n_member: int
    n_row: int
    length: int
    vocab: int
    d: int
    head_dim: int
    dtype: torch.dtype = torch.bfloat16


def sizes(name: str) -> Sizes:
    return Sizes(2, 24, 12, 37, 16, 8) if name == "tiny" else Sizes(16, 8192, 512, 8192, int(name[1:]), 64)


# ---- operations -----------------------------------------------------------------------------------------------------


def linears(s: Sizes, random: Random) -> Iterator[Timed]:
    M, R, d = s.n_member, s.n_row, s.d
    make = partial(random.normal, M, dtype=s.dtype)
    x, w, b, g = make(R, d), make(d, 3 * d, std=d**-0.5), make(3 * d), make(R, 3 * d)
    flops = 6 * M * R * d * d
    yield Timed(
        "linear d to 3d, bias", [x, w, b], [g], lambda: [linear_forward(x, w, b)], lambda: list(linear_backward(g, x, w)),
        (flops, 2 * flops), {"cublas": reference.linear, "bmm": lambda x, w, b: torch.bmm(x, w)}, frozenset({"bmm"}),
    )  # fmt: skip
    w2, residual, gain, g2 = make(d, d, std=d**-0.5), make(R, d), make(d), make(R, d)
    if d > WIDEST_TILE:
        yield Timed(
            "linear d to d, residual", [x, w2, residual], [g2], lambda: [linear_forward(x, w2, None, residual)],
            lambda: [*linear_backward(g2, x, w2, has_bias=False)[:2], g2], (flops // 3, 2 * flops // 3),
            {"cublas": lambda x, w, r: torch.baddbmm(r, x, w), "bmm": lambda x, w, r: torch.bmm(x, w)}, frozenset({"bmm"}),
        )  # fmt: skip
        return

    def forward() -> list[Tensor]:
        norm = Norm(gain, None, torch.empty_like(x), torch.empty(1, M, R, device=DEVICE))
        return [linear_forward(x, w2, None, residual, norm), norm.normed]

    def plain(x: Tensor, w: Tensor, residual: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.baddbmm(residual, x, w)
        return z, reference.rms_norm(z, gain)

    yield Timed(
        "linear d to d, residual, rms_norm after", [x, w2, residual, gain], [g2, g2], forward, None, (flops // 3, 0),
        {"cublas": plain},
    )  # fmt: skip
    normed, _, stats = layer_norm_forward(x, gain, rms=True)
    places = torch.zeros(1, dtype=torch.int64, device=DEVICE)

    def backward() -> list[Tensor]:
        n_part = cdiv(R, norm_tile_rows(R, d, s.dtype, target_of(x.device)))
        parts = torch.empty(1, M, n_part, d, device=DEVICE)
        through = NormGradient(x, gain, stats, g2, parts)
        grad, grad_w, _ = linear_backward(g, normed, w, norm=through, has_bias=False)
        grad_gain = torch.empty(M, d, device=DEVICE)
        sum_all_parts(parts, grad_gain, places)
        return [grad, grad_gain, grad_w]

    yield Timed(
        "linear d to 3d, rms_norm before, residual", [x, gain, w], [g2, g], None, backward, (0, 2 * flops),
        {"cublas": lambda z, gain, w: (z.clone(), torch.bmm(reference.rms_norm(z, gain), w))},
    )  # fmt: skip


def mlps(s: Sizes, random: Random) -> Iterator[Timed]:
    M, R, d, wide = s.n_member, s.n_row, s.d, 4 * s.d
    make = partial(random.normal, M, dtype=s.dtype)
    x, g = make(R, d), make(R, d)
    products = lambda x, up, *rest: torch.bmm(torch.bmm(x, up)[..., :wide], rest[-1] if len(rest) == 1 else rest[1])  # noqa: E731
    for activation in ("gelu", "swiglu"):
        gated = activation == "swiglu"
        up, down = make(d, wide * (1 + gated), std=d**-0.5), make(wide, d, std=wide**-0.5)
        up_bias, down_bias = (None, None) if gated else (make(wide), make(d))
        _, u, hidden = mlp_forward(x, up, up_bias, down, down_bias, None, activation)
        leaves = [x, up, down] if gated else [x, up, up_bias, down, down_bias]

        def plain(x: Tensor, up: Tensor, *rest: Tensor, gated: bool = gated, activation: str = activation) -> Tensor:
            up_bias, down, down_bias = (None, rest[0], None) if gated else rest
            return reference.mlp(x, up, up_bias, down, down_bias, activation)

        def forward(of: Any = (x, up, up_bias, down, down_bias, None, activation)) -> list[Tensor]:
            return [mlp_forward(*of)[0]]

        def backward(
            of: Any = (g, x, up, down, u, activation), hidden: Tensor | None = hidden, bias: bool = not gated
        ) -> list[Tensor]:
            return [grad for grad in mlp_backward(*of, has_bias=bias, hidden=hidden) if grad is not None]

        flops = 2 * M * R * d * wide * (3 if gated else 2)
        peers = {"cublas": plain, "bmm": products} | ({"liger": _liger_swiglu} if gated else {})
        name = f"mlp {activation}" + ("" if gated else ", biases")
        yield Timed(name, leaves, [g], forward, backward, (flops, 2 * flops), peers, frozenset({"bmm"}))
        if d > WIDEST_TILE:
            continue
        residual, gain = make(R, d), make(d)

        def with_norm(
            of: Any = (x, up, up_bias, down, down_bias, residual, activation), gain: Tensor = gain
        ) -> list[Tensor]:
            norm = Norm(gain, None, torch.empty_like(x), torch.empty(1, M, R, device=DEVICE))
            return [mlp_forward(*of, norm)[0], norm.normed]

        def apart(*leaves: Tensor, plain: Peer = plain) -> tuple[Tensor, Tensor]:
            *of, residual, gain = leaves
            z = plain(*of) + residual
            return z, reference.rms_norm(z, gain)

        leaves, given = [*leaves, residual, gain], [g, g]
        yield Timed(f"{name}, residual, rms_norm after", leaves, given, with_norm, None, (flops, 0), {"cublas": apart})


def _liger_swiglu(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction

    hidden = LigerFusedGateUpSiLUMulFunction.apply(torch.bmm(x, up).flatten(0, 1), True)
    return torch.bmm(hidden.view(*x.shape[:2], -1), down)


def attentions(s: Sizes, random: Random) -> Iterator[Timed]:
    kinds = (
        {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
        if ON_CARD
        else {"math": SDPBackend.MATH}
    )
    for length in (s.length, 4 * s.length) if ON_CARD else (s.length,):
        n, n_head = s.n_member * s.n_row // length, s.d // s.head_dim
        packed, g = random.normal(n, length, 4, n_head, s.head_dim, dtype=s.dtype).permute(2, 0, 3, 1, 4).split([3, 1])
        (q, k, v), (given,) = packed, g
        out, lse = attention_forward(q, k, v, causal=True)
        one = (
            2 * n * n_head * s.head_dim * length * (length + 1) // 2
        )  # FLOPs of one product over the pairs that are seen

        def sdpa(q: Tensor, k: Tensor, v: Tensor, kind: SDPBackend = SDPBackend.MATH) -> Tensor:
            with sdpa_kernel(kind):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        def forward(of: Any = (q, k, v)) -> list[Tensor]:
            return [attention_forward(*of, causal=True)[0]]

        def backward(of: Any = (given, q, k, v, out, lse)) -> list[Tensor]:
            return list(attention_backward(*of, causal=True))

        peers = {name: partial(sdpa, kind=kind) for name, kind in kinds.items()}
        note = {"T": length, "head_dim": s.head_dim}
        yield Timed(
            f"attention, causal, T {length}",
            [q, k, v],
            [given],
            forward,
            backward,
            (2 * one, 5 * one),
            peers,
            note=note,
        )


def heads(s: Sizes, random: Random) -> Iterator[Timed]:
    M, R, d, V = s.n_member, s.n_row, s.d, s.vocab
    x, w = random.normal(M, R, d, dtype=s.dtype), random.normal(M, d, V, dtype=s.dtype, std=d**-0.5)
    targets, given = random.integers(V, M, R), torch.ones(M, device=DEVICE)
    scale = torch.full((M, R), 1.0 / R, device=DEVICE)
    _, lse = linear_cross_entropy_forward(x, w, targets)

    def eager(x: Tensor, w: Tensor, first: int = 0, last: int = M) -> Tensor:
        return torch.stack(
            [F.cross_entropy(x[i - first] @ w[i - first], targets[i]).float() for i in range(first, last)]
        )

    def liger(x: Tensor, w: Tensor) -> Tensor:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Function

        return torch.stack([Function.apply(x[i], w[i].T.contiguous(), targets[i])[0].float() for i in range(M)])

    def forward() -> list[Tensor]:
        return [linear_cross_entropy_forward(x, w, targets)[0].mean(1)]

    def backward() -> list[Tensor]:
        return list(linear_cross_entropy_backward(scale, x, w, targets, lse))

    note: dict[str, Any] = {"vocab": V}
    if ON_CARD and not WARM:
        results = lambda *t: sum(part.nbytes for part in t)  # noqa: E731
        both = lambda: (*forward(), *backward())  # noqa: E731
        one = lambda: gradients(partial(eager, first=0, last=1), [x[:1], w[:1]], [given[:1]])  # noqa: E731
        # of the whole fleet at once, beside what one member alone needs in eager PyTorch
        note["temporary_bytes"] = peak_bytes(both) - results(*both())
        note["temporary_bytes_eager_one_member"] = peak_bytes(one) - results(*one())
    flops = 2 * M * R * d * V
    yield Timed(
        "linear_cross_entropy", [x, w], [given], forward, backward, (flops, 2 * flops), {"eager": eager, "liger": liger},
        waiting=frozenset({"liger"}), note=note,
    )  # fmt: skip


def rows(s: Sizes, random: Random) -> Iterator[Timed]:
    """What is bound by memory: norms and embedding."""
    M, R, d = s.n_member, s.n_row, s.d
    make = partial(random.normal, M, dtype=s.dtype)
    x, gain, bias, g = make(R, d), make(d), make(d), make(R, d)
    for name, rms, leaves in (("rms_norm", True, [x, gain]), ("layer_norm", False, [x, gain, bias])):
        stats = layer_norm_forward(*leaves, rms=rms)[2]

        def forward(leaves: Any = leaves, rms: bool = rms) -> list[Tensor]:
            return [layer_norm_forward(*leaves, rms=rms)[0]]

        def backward(of: Any = (g, x, gain, stats), rms: bool = rms) -> list[Tensor]:
            return [grad for grad in layer_norm_backward(*of, has_bias=not rms) if grad is not None]

        peers: dict[str, Peer] = {"torch": getattr(reference, name), "liger": partial(_liger_norm, name)}
        yield Timed(name, leaves, [g], forward, backward, (0, 0), peers)
    tokens = random.integers(s.vocab, M, R // s.length, s.length)
    table, position = make(s.vocab, d), make(s.length, d)

    def of_embedding() -> list[Tensor]:
        grad_position = torch.empty_like(position)
        return [embedding_backward(g, tokens, s.vocab, torch.empty_like(table), grad_position), grad_position]

    yield Timed(
        "embedding, position", [table, position], [g], lambda: [embedding_forward(tokens, table, position)], of_embedding,
        (0, 0), {"torch": lambda table, position: reference.embedding(tokens, table, position).flatten(1, 2)},
    )  # fmt: skip


def _liger_norm(name: str, x: Tensor, gain: Tensor, *bias: Tensor) -> Tensor:
    if name == "rms_norm":
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction as Function
    else:
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction as Function
    return torch.stack([Function.apply(*member, 1e-5) for member in zip(x, gain, *bias, strict=True)])


# ---- timing ---------------------------------------------------------------------------------------------------------


def timed(case: Timed, s: Sizes) -> None:
    """Writes a row for each direction."""
    outs = case.forward() if case.forward else None
    grads = case.backward() if case.backward else None
    moved = sum(t.nbytes for t in case.leaves)
    # an output that goes unread on the way to another, as z beside normed, is written all the same
    sides = {
        "forward": (case.forward, case.flops[0], moved + sum(t.nbytes for t in outs or ())),
        "backward": (case.backward, case.flops[1], moved + sum(t.nbytes for t in (*case.given, *(grads or ())))),
    }
    ours = {side: seconds_of(run) for side, (run, _, _) in sides.items() if run is not None}
    peers: dict[str, dict[str, float]] = {"forward": {}, "backward": {}}
    failed: dict[str, str] = {}
    for name, peer in case.peers.items():
        try:
            both_ways = partial(gradients, peer, case.leaves, case.given, unused=name in case.unlike)
            theirs = both_ways()
            if name not in case.unlike:
                agree(case.name, outs, grads, theirs, s.dtype)
            del theirs
            with torch.no_grad():
                alone = seconds_of(partial(peer, *case.leaves), captured=name in case.waiting)
            both = seconds_of(both_ways, captured=name in case.waiting) if case.backward else alone
        except Exception as error:
            failed[name] = why(error)
            continue
        finally:
            free()
        peers["forward"][name], peers["backward"][name] = alone, max(both - alone, 0.0)
    size = {"members": s.n_member, "rows": s.n_row, "d": s.d, "dtype": named(s.dtype)}
    for side, seconds in ours.items():
        _, flops, n_byte = sides[side]
        write(
            operation=case.name, direction=side, **size, **case.note, seconds=seconds, flops=flops, bytes=n_byte,
            peers=peers[side], failed=failed,
        )  # fmt: skip


def agree(
    name: str, outs: Sequence[Tensor] | None, grads: Sequence[Tensor] | None, theirs: list[Tensor], dtype: torch.dtype
) -> None:
    """Raises AssertionError where a peer's numbers are others."""
    n_out = len(theirs) - len(grads) if grads is not None else len(outs or ())
    pairs = [*zip(outs or (), theirs[:n_out], strict=False), *zip(grads or (), theirs[n_out:], strict=False)]
    assert pairs, f"{name}: nothing to compare"
    for i, (a, b) in enumerate(pairs):
        apart = float((a.float() - b.float()).abs().max() / b.float().abs().max())
        assert apart <= TOLERANCE[dtype], f"result {i} of {name} differs by {apart:.1e} of its largest number"


def ceilings() -> None:
    """What this card reaches: bytes copied a second, read and written both counted, and FLOP/s of a large product."""
    n = 2**30 if ON_CARD else 2**20
    source, target = torch.ones(n, dtype=torch.uint8, device=DEVICE), torch.empty(n, dtype=torch.uint8, device=DEVICE)
    seconds = seconds_of(lambda: target.copy_(source))
    write(what="copy", seconds=seconds, bytes_per_s=2 * n / seconds)
    free()
    side = 8192 if ON_CARD else 128
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (Random(0).normal(side, side, dtype=dtype) for _ in range(2))
        seconds = seconds_of(lambda a=a, b=b: a @ b)
        write(what="matmul", dtype=named(dtype), side=side, seconds=seconds, flops_per_s=2 * side**3 / seconds)


def fleet(dtype: torch.dtype) -> None:
    """bench/hardware.py's operations, forward and backward together, beside eager, torch.compile and vmap, and as projected."""
    shape = aot.TYPICAL if ON_CARD else aot.Shape(2, 2, 5, 16, 2, 16, 20)
    clock = (
        graph_seconds
        if ON_CARD and not WARM
        else lambda run, captured=False: (run(), 1.0)[1] if ON_CARD else wall_seconds(run)
    )
    card = next((card for card in TARGETS if ON_CARD and card in torch.cuda.get_device_name()), None)
    for name in OPERATIONS if ON_CARD else ("linear",):
        if name == "step":  # of which gpu.step tells more
            continue
        try:
            row = measured(name, shape, dtype, DEVICE, clock)
        except Exception as error:
            write(operation=name, dtype=named(dtype), shape=str(shape), ok=False, why=why(error))
            continue
        finally:
            free()
        projection = projected(name, shape, dtype, card).seconds if card and not WARM else None
        write(
            operation=name, direction="both", dtype=named(dtype), shape=str(shape), d=shape.d_model, seconds=row.seconds,
            projected=projection, flops=row.flops, bytes=row.bytes, peers=row.peers, failed=row.failed,
        )  # fmt: skip


def main() -> None:
    name, *dtype = names()
    if name == "ceilings":
        return ceilings()
    if name == "fleet":
        return fleet(getattr(torch, *dtype))
    s, random = sizes(name), Random(3)
    for make in (linears, mlps, attentions, heads, rows):
        cases = make(s, random)
        while True:
            try:
                case = next(cases, None)
                if case is None:
                    break
                timed(case, s)
            except Exception as error:
                write(operation=make.__name__, d=s.d, ok=False, why=why(error))
                break
        free()
    return fleet(torch.float32) if name == "tiny" else None


if __name__ == "__main__":
    main()
    finish()
