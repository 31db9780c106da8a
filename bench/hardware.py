"""How long each operation and a whole step take, forward and backward, beside PyTorch's ways to run a fleet.

    pytest bench/test_hardware.py --device cuda [--table FILE]      # measured
    pytest bench/test_hardware.py [--table FILE]                    # projected, no GPU needed

A time is the median of many replays of a CUDA graph, the L2 cache flushed before each (triton.testing.do_bench). The peers do
the same work on the same numbers: `eager` one member after another, `compile` the same through torch.compile, `vmap` one
call of torch.func.vmap; each is captured in a graph, too, which spares them the host's time. Before it is timed a peer must
agree with ours; one that fails is named below the table. Launches, bytes and FLOPs are the meter's, so GB/s and TFLOP/s are
of the least that must move. A projection leaves out what the meter cannot count.

**Nothing here has run on hardware yet.** tests/kernels/test_bench.py and --device cpu run all of it on a CPU but
`graph_seconds` and GraphedStep.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import triton.testing
from eager_gpt import eager_step, vmapped_step
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pyscaling import accounting
from pyscaling.kernels import (
    adamw_step,
    aot,
    attention,
    embedding,
    layer_norm,
    linear,
    linear_cross_entropy,
    mlp,
    reference,
    rms_norm,
)
from pyscaling.kernels.launch import target_of
from pyscaling.kernels.meter import Meter, roofline
from pyscaling.models.fused import FusedTransformer
from pyscaling.training.graph import GraphedStep
from pyscaling.training.optimizer import FusedAdamW

PEERS = ("eager", "compile", "vmap")
TARGETS = {"A100": "sm_80", "H100": "sm_90", "B200": "sm_100", "MI300X": "gfx942"}
# Largest difference from the peer beside the largest number: sums of thousands of products in another order, and for 16
# bits the rounding of results and of what lies between two operations of the peer (2^-8 each in bfloat16).
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}

Run = Callable[[], Any]
Timer = Callable[[Run, bool], float]


# ---- timers ---------------------------------------------------------------------------------------------------------


def graph_seconds(run: Run, captured: bool = False) -> float:
    """Median time of a replay with a cold L2 cache. captured: `run` itself replays a graph."""
    if captured:
        return 1e-3 * triton.testing.do_bench(run, return_mode="median")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, and fills the allocator
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()  # what a graph writes must outlive it
    seconds = 1e-3 * triton.testing.do_bench(graph.replay, return_mode="median")
    del kept
    return seconds


def wall_seconds(run: Run, captured: bool = False) -> float:
    """Median of three runs; the stand-in of `graph_seconds` on a CPU."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


# ---- operations -----------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """ours and peers run forward and backward once; results are lists of tensors [M, ...], or such lists by member."""

    ours: Run
    peers: dict[str, Callable[[], Run]]  # name -> makes the function that runs; missing: there is none
    comparable: bool = True
    captured: bool = False  # ours replays a graph


def _compiled(function: Any, device: str) -> Any:
    return torch.compile(function, dynamic=False, backend="inductor" if device == "cuda" else "aot_eager")


def _operation(tensors: Sequence[Tensor], fleet: Callable[..., Tensor], single: Callable[..., Tensor]) -> Work:
    """fleet: ours, on tensors [M, ...]; single: plain PyTorch on those of one member."""
    device = tensors[0].device.type
    leaves = [t.requires_grad_(t.is_floating_point()) for t in tensors]
    with torch.no_grad():
        given = torch.randn_like(fleet(*leaves))
    parts = [
        [t.detach().clone().requires_grad_(t.requires_grad) for t in member] for member in zip(*leaves, strict=True)
    ]

    def of_fleet(function: Callable[..., Tensor]) -> list[Tensor]:
        out = function(*leaves)
        return [out, *torch.autograd.grad(out, [t for t in leaves if t.requires_grad], given)]

    def of_members(function: Callable[..., Tensor]) -> list[list[Tensor]]:
        results = []
        for part, grad in zip(parts, given, strict=True):
            out = function(*part)
            results.append([out, *torch.autograd.grad(out, [t for t in part if t.requires_grad], grad)])
        return results

    def compiled() -> Run:
        function = _compiled(single, device)
        return lambda: of_members(function)

    peers = {
        "eager": lambda: lambda: of_members(single),
        "compile": compiled,
        "vmap": lambda: lambda: of_fleet(torch.func.vmap(single)),
    }
    return Work(lambda: of_fleet(fleet), peers)


def _random(shape: aot.Shape, dtype: torch.dtype, device: str) -> Callable[..., Tensor]:
    return lambda *size: torch.randn(shape.n_member, *size, device=device).to(dtype)


def _attention(shape: aot.Shape, dtype: torch.dtype, device: str) -> Work:
    size = (shape.n_sequence, shape.n_head, shape.context, shape.d_model // shape.n_head)
    make = _random(shape, dtype, device)
    return _operation(
        [make(*size) for _ in range(3)],
        lambda q, k, v: attention(q, k, v, causal=True),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    )


def _mlp(shape: aot.Shape, dtype: torch.dtype, device: str) -> Work:
    make, d, d_ff = _random(shape, dtype, device), shape.d_model, shape.d_ff

    def single(x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor) -> Tensor:
        return torch.addmm(down_bias, F.gelu(torch.addmm(up_bias, x, up), approximate="tanh"), down)

    x = make(shape.n_sequence * shape.context, d)
    return _operation([x, make(d, d_ff) * d**-0.5, make(d_ff), make(d_ff, d) * d_ff**-0.5, make(d)], mlp, single)


def _linear(shape: aot.Shape, dtype: torch.dtype, device: str) -> Work:
    make, d = _random(shape, dtype, device), shape.d_model
    x = make(shape.n_sequence * shape.context, d)
    return _operation(
        [x, make(d, 3 * d) * d**-0.5, make(3 * d)], linear, lambda x, weight, bias: torch.addmm(bias, x, weight)
    )


def _layer_norm(shape: aot.Shape, dtype: torch.dtype, device: str) -> Work:
    make, d = _random(shape, dtype, device), shape.d_model
    tensors = [make(shape.n_sequence * shape.context, d), make(d), make(d)]
    return _operation(tensors, layer_norm, lambda x, gain, bias: F.layer_norm(x, (d,), gain, bias))


def _rms_norm(shape: aot.Shape, dtype: torch.dtype, device: str) -> Work:
    make, d = _random(shape, dtype, device), shape.d_model
    tensors = [make(shape.n_sequence * shape.context, d), make(d)]
    return _operation(tensors, rms_norm, lambda x, gain: F.rms_norm(x, (d,), gain, 1e-5))


def _embedding(shape: aot.Shape, dtype: torch.dtype, device: str) -> Work:
    make, d = _random(shape, dtype, device), shape.d_model
    tokens = torch.randint(shape.vocab, (shape.n_member, shape.n_sequence, shape.context), device=device)
    tensors = [tokens, make(shape.vocab, d), make(shape.context, d)]
    return _operation(tensors, embedding, lambda *of: (F.embedding(of[0], of[1]) + of[2]).flatten(0, 1))


def _linear_cross_entropy(shape: aot.Shape, dtype: torch.dtype, device: str) -> Work:
    make, d, n_row = _random(shape, dtype, device), shape.d_model, shape.n_sequence * shape.context
    targets = torch.randint(shape.vocab, (shape.n_member, n_row), device=device)
    return _operation(
        [make(n_row, d), make(d, shape.vocab) * d**-0.5, targets],
        linear_cross_entropy,
        lambda x, weight, targets: F.cross_entropy(x @ weight, targets).float(),
    )


def _adamw(shape: aot.Shape, dtype: torch.dtype, device: str) -> Work:
    """Weights and moments in float32; in 16 bits a copy of the weights is written, too."""
    n_member, d = shape.n_member, shape.d_model
    size, n_decayed = (n_member, d * (12 * d + shape.vocab)), 12 * d * d
    flat, gradient = torch.randn(size, device=device), torch.randn(size, device=device)
    rows = [[1e-3], [0.9], [0.95], [1e-8], [0.1], [1.0]]  # rate, betas, eps, decay, clip
    settings = torch.tensor(rows, dtype=torch.float64, device=device).expand(-1, n_member).contiguous()
    clock = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)

    def state() -> list[Tensor]:
        return [flat.clone(), gradient.clone(), torch.zeros_like(flat), torch.zeros_like(flat), settings, clock]

    def of_fleet(function: Callable[..., Tensor]) -> Run:
        tensors, cast = state(), torch.empty_like(flat, dtype=dtype) if dtype != torch.float32 else None
        loss, alive = torch.ones(n_member, device=device), torch.ones(n_member, dtype=torch.bool, device=device)
        failed_step = torch.full((n_member,), -1, dtype=torch.int64, device=device)

        def run() -> list[Tensor]:
            function(*tensors, loss, alive, failed_step, n_decayed, cast=cast)
            return [tensors[0]]

        return run

    def eager() -> Run:
        """Matrices and the rest of a member as one parameter each, by torch's fused kernel."""
        members = [
            [part.clone().requires_grad_() for part in row.split([n_decayed, size[1] - n_decayed])] for row in flat
        ]
        low = [[torch.empty_like(part, dtype=dtype) for part in parts] for parts in members]
        gradients = [row.split([n_decayed, size[1] - n_decayed]) for row in gradient]
        options: dict[str, Any] = {"fused": device == "cuda", "capturable": device == "cuda", "betas": (0.9, 0.95)}
        optimizers = [
            torch.optim.AdamW([{"params": [a], "weight_decay": 0.1}, {"params": [b], "weight_decay": 0.0}], **options)
            for a, b in members
        ]

        @torch.no_grad()
        def run() -> list[list[Tensor]]:
            for parts, grads, optimizer, copies in zip(members, gradients, optimizers, low, strict=True):
                for part, grad in zip(parts, grads, strict=True):
                    part.grad = grad.clone()  # clipping writes over it
                torch.nn.utils.clip_grad_norm_(parts, 1.0, foreach=True)
                optimizer.step()
                if dtype != torch.float32:
                    torch._foreach_copy_(copies, parts)
            return [[torch.cat(parts) if not _capturing() else parts[0]] for parts in members]

        return run

    return Work(
        of_fleet(adamw_step),
        {"eager": eager, "compile": lambda: of_fleet(_compiled(reference.adamw_step, device))},
    )


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _step(shape: aot.Shape, dtype: torch.dtype, device: str) -> Work:
    """GPT-2's step with AdamW. The peers start from other weights, so only times are compared."""
    gpt = accounting.Shape(
        shape.d_model, 4, shape.n_head, d_ff=shape.d_ff, context=shape.context, vocab_size=shape.vocab
    )
    tokens = torch.randint(shape.vocab, (shape.n_member, shape.n_sequence, shape.context + 1), device=device)
    model = FusedTransformer(gpt, range(shape.n_member), device, dtype)
    optimizer = FusedAdamW(model, torch.full((shape.n_member,), 1e-3))
    if device == "cuda":
        graphed = GraphedStep(model, optimizer, tokens)
        ours = lambda: graphed.replay()  # noqa: E731  # holds all that the graph reads
    else:
        ours = lambda: optimizer.update(model.loss_and_gradient(tokens))  # noqa: E731

    # torch has no autocast for meta tensors, so there the peers are counted on fake CPU tensors
    fake = FakeTensorMode() if device == "meta" else nullcontext()
    place = "cpu" if device == "meta" else device

    def in_place(make: Callable[[Tensor], Run]) -> Callable[[], Run]:
        def made() -> Run:
            with fake:
                run = make(torch.zeros(tokens.shape, dtype=tokens.dtype) if device == "meta" else tokens)

            def within() -> Any:
                with fake:
                    return run()

            return within

        return made

    def of_members(compile: Any, tokens: Tensor) -> Run:
        steps = [eager_step(gpt, place, dtype, compile) for _ in range(shape.n_member)]
        return lambda: [[step(batch)] for step, batch in zip(steps, tokens, strict=True)]

    def vmap(tokens: Tensor) -> Run:
        step = vmapped_step(gpt, shape.n_member, place, dtype)
        return lambda: [step(tokens)]

    peers = {
        "eager": in_place(partial(of_members, None)),
        "compile": in_place(partial(of_members, lambda model: _compiled(model, device))),
        "vmap": in_place(vmap),
    }
    return Work(ours, peers, comparable=False, captured=device == "cuda")


OPERATIONS: dict[str, Callable[[aot.Shape, torch.dtype, str], Work]] = {
    "attention": _attention,
    "mlp": _mlp,
    "linear": _linear,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "embedding": _embedding,
    "linear_cross_entropy": _linear_cross_entropy,
    "adamw": _adamw,
    "step": _step,
}


# ---- rows -----------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One operation of the whole fleet, forward and backward. seconds: measured, or projected as the table says."""

    operation: str
    launches: int
    bytes: int
    flops: int
    seconds: float
    peers: dict[str, float] = field(default_factory=dict)  # name -> seconds
    failed: dict[str, str] = field(default_factory=dict)  # name -> why it has none


def measured(name: str, shape: aot.Shape, dtype: torch.dtype, device: str, timer: Timer) -> Row:
    """Times of ours and of the peers on `device`; raises AssertionError where a peer's numbers differ from ours."""
    meter = _counted(OPERATIONS[name](shape, dtype, "meta").ours, target_of(torch.device(device)))
    torch.manual_seed(0)
    work = OPERATIONS[name](shape, dtype, device)
    truth = _numbers(work.ours()) if work.comparable else []
    seconds = timer(work.ours, work.captured)
    row = Row(name, meter.launches, meter.bytes, meter.flops, seconds)
    for peer, make in work.peers.items():
        try:
            run = make()
            numbers = _numbers(run()) if work.comparable else []
            row.peers[peer] = timer(run, False)
        except Exception as error:  # a peer that cannot run is a line below the table, not the end of the benchmark
            row.failed[peer] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            continue
        for i, (ours, theirs) in enumerate(zip(truth, numbers, strict=True)):
            apart = (ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()
            assert apart <= TOLERANCE[dtype], (
                f"{name}: result {i} differs from {peer} by {apart:.1e} of its largest number"
            )
    return row


def _numbers(result: Any) -> list[Tensor]:
    """Copies of the results, members stacked."""
    if isinstance(result[0], Tensor):
        return [t.detach().clone() for t in result]
    return [torch.stack(tensors).detach() for tensors in zip(*result, strict=True)]


# What torch fuses on a GPU, the meter does not see as one under vmap; what Inductor launches, not at all.
_UNCOUNTED = {
    ("attention", "vmap"),
    ("rms_norm", "vmap"),
    ("step", "vmap"),
    *((name, "compile") for name in OPERATIONS),
}


def projected(name: str, shape: aot.Shape, dtype: torch.dtype, device: str) -> Row:
    """The same row by the meter's roofline of `device`, "H100" say, within a CUDA graph."""
    work = OPERATIONS[name](shape, dtype, "meta")

    def count(run: Run) -> tuple[Meter, float]:
        meter = _counted(run, TARGETS[device])
        return meter, roofline(meter, device, cuda_graph=True).seconds

    meter, seconds = count(work.ours)
    row = Row(name, meter.launches, meter.bytes, meter.flops, seconds)
    for peer in work.peers:
        if (name, peer) not in _UNCOUNTED:
            run = work.peers[peer]()
            run()  # an optimiser makes its state
            row.peers[peer] = count(run)[1]
    return row


def _counted(run: Run, target: str) -> Meter:
    with Meter(None if target == "interpreter" else target) as meter:
        run()
    return meter


# ---- the table ------------------------------------------------------------------------------------------------------


@dataclass
class Table:
    """kind: "measured" or "projection"; device: its name."""

    kind: str
    device: str
    dtype: str
    shape: aot.Shape
    rows: list[Row] = field(default_factory=list)

    def cells(self) -> list[list[str]]:
        header = ["operation", "launches", "bytes", "flops", f"{self.kind} us", "GB/s", "TFLOP/s"]
        for peer in PEERS:
            header += [f"{peer} us", "ratio"]
        lines = [header]
        for row in self.rows:
            line = [row.operation, f"{row.launches:,}", f"{row.bytes:,}", f"{row.flops:,}", f"{1e6 * row.seconds:.1f}"]
            line += [f"{row.bytes / row.seconds / 1e9:.1f}", f"{row.flops / row.seconds / 1e12:.2f}"]
            for peer in PEERS:
                theirs = row.peers.get(peer)
                line += ["-", "-"] if theirs is None else [f"{1e6 * theirs:.1f}", f"{theirs / row.seconds:.2f}"]
            lines.append(line)
        return lines

    @property
    def title(self) -> str:
        what = "Measured" if self.kind == "measured" else "Projection, not a measurement"
        return f"{what}: {self.device}, {self.dtype}, forward and backward of {self.shape}; ratio = peer / ours"

    @property
    def notes(self) -> list[str]:
        return [f"{row.operation}, {peer}: {why}" for row in self.rows for peer, why in row.failed.items()]

    def __str__(self) -> str:
        cells = self.cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in cells
        ]
        return "\n".join([self.title, *lines, *(f"- {note}" for note in self.notes)])

    def to_markdown(self) -> str:
        header, *lines = ("| " + " | ".join(line) + " |" for line in self.cells())
        rule = "|" + "---|" * len(self.cells()[0])
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"{self.title}\n", header, rule, *lines, *([""] if notes else []), *notes]) + "\n"


def written(tables: Sequence[Table], as_json: bool) -> str:
    if as_json:
        return json.dumps([asdict(table) for table in tables], indent=1)
    return "\n".join(table.to_markdown() for table in tables)
