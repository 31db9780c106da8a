"""Graphed steps without a GPU: a stand-in for torch.cuda records what is enqueued, kernels of the interpreter as well.

What it replays is what was recorded, on the memory that was recorded: a number that the host knew at the capture stays as it
was then, and whatever is not rewritten keeps its old value, as on a card.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime import interpreter

from pyscaling.accounting import Shape
from pyscaling.data import FleetBatches
from pyscaling.kernels.launch import INTERPRETED
from pyscaling.models.fused import FusedTransformer
from pyscaling.training import Evaluation, FleetJob, loop
from pyscaling.training import graph as graph_module
from pyscaling.training.feed import Feed
from pyscaling.training.graph import GraphedStep
from pyscaling.training.noise_scale import measure_noise_scale
from pyscaling.training.optimizer import FusedAdamW

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="a GPU has torch.cuda itself")
SHAPE = Shape(8, 1, 1, context=8, vocab_size=20, position="rope", tied=False, bias=False, qk_norm=True)
TOKENS = np.random.default_rng(0).integers(20, size=400).astype(np.uint16)
CPU = torch.device("cpu")


class Recording(TorchDispatchMode):
    """Runs what is called within it and keeps it, to be run again on the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        outs = [out] if isinstance(out, torch.Tensor) else [o for o in out or () if isinstance(o, torch.Tensor)]
        known = {a.untyped_storage().data_ptr() for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)}
        new = [o.untyped_storage().data_ptr() not in known for o in outs]
        if "empty" in func._schema.name:
            return out

        def again() -> None:
            result = func(*args, **kwargs)
            results = [result] if isinstance(result, torch.Tensor) else list(result or ())
            for place, value, is_new in zip(outs, results, new, strict=True):
                if is_new:
                    place.copy_(value)

        self.calls.append(again)
        return out


class Graph:
    def __init__(self) -> None:
        self.recording = Recording()
        self.beside: Graph | None = None

    def pool(self) -> "Graph":
        return self

    def replay(self) -> None:
        for call in self.recording.calls:
            call()


class Event:
    """Knows what its message's memory held when it was enqueued."""

    waited = 0

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        Event.waited += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Addresses of page-locked memory."""
    page_locked: set[int] = set()

    class Stream:
        def wait_stream(self, other: "Stream") -> None:
            assert isinstance(other, Stream)

    @contextmanager
    def capture(graph: Graph, pool: Graph | None = None) -> Iterator[None]:
        graph.beside = pool
        with graph.recording:
            yield

    launched = interpreter.GridExecutor.__call__

    def launching(self: Any, *args: Any, **kwargs: Any) -> None:
        modes = [m for m in torch.utils._python_dispatch._get_current_dispatch_mode_stack() if isinstance(m, Recording)]
        with _disable_current_modes():
            launched(self, *args, **kwargs)
        for mode in modes:
            mode.calls.append(lambda: launched(self, *args, **kwargs))

    zeros = torch.zeros
    monkeypatch.setattr(graph_module, "_WARM_UP", 1)  # of the interpreter's seconds

    def zeros_anywhere(*size: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        tensor = zeros(*size, **options)
        if pin_memory:
            page_locked.add(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launching)
    monkeypatch.setattr(torch, "zeros", zeros_anywhere)
    for name, value in {
        "Stream": Stream, "current_stream": Stream, "stream": lambda stream: nullcontext(), "CUDAGraph": Graph,
        "graph": capture, "Event": Event,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    return page_locked


def made(**options: Any) -> tuple[FusedTransformer, FusedAdamW]:
    model = FusedTransformer(SHAPE, [0, 1], **options)
    return model, FusedAdamW(model, torch.tensor([0.01, 0.02]), embedding_rate=3.0)


def batches(tokens: np.ndarray = TOKENS) -> FleetBatches:
    return FleetBatches(tokens, context=8, batch_tokens=32, seeds=(0, 1))


@pytest.mark.parametrize(
    ("resident", "dtype"),
    [(True, torch.bfloat16), (False, torch.float32)],
    ids=["tokens on the card, bf16", "batches sent, fp32"],
)
def test_steps_are_those_of_the_host(cuda: set[int], resident: bool, dtype: torch.dtype) -> None:
    """To the bit, and in the order that branches take: on, back, and on again."""
    model, optimizer = made(dtype=dtype)
    plain, plain_optimizer = made(dtype=dtype)
    feed = Feed(batches(), CPU, resident_bytes=2**30 if resident else 0)
    assert feed.resident is resident
    before = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    graph = GraphedStep(model, optimizer, feed)
    for name, tensor in optimizer.state().items():
        assert torch.equal(tensor, before[name]), name
    if model.low is not None:
        assert torch.equal(model.low, model.flat.bfloat16())
    assert graph._update.beside is graph._gradient
    for step, factor in ((0, 0.5), (9, 0.4), (1, 1.0)):
        loss, norm = graph(step, factor)
        plain_loss = plain.loss_and_gradient(torch.from_numpy(batches().batch(step)))
        plain_norm = plain_optimizer.step(plain_loss, step, factor)
        assert torch.equal(loss, plain_loss) and torch.equal(norm, plain_norm)
        assert torch.equal(model.flat, plain.flat)
    loss = graph.gradient(5)
    assert torch.equal(loss, plain.loss_and_gradient(torch.from_numpy(batches().batch(5))))
    assert torch.equal(model.gradient, plain.gradient) and torch.equal(model.flat, plain.flat)


def test_a_member_that_fails_stops_in_replays_too(cuda: set[int]) -> None:
    model, optimizer = made()
    graph = GraphedStep(model, optimizer, Feed(batches(), CPU))
    graph(0, 1.0)
    with torch.no_grad():
        model.flat[1, 0] = torch.nan
    for step in (1, 2):
        graph(step, 1.0)
    assert optimizer.alive.tolist() == [True, False] and optimizer.failed_step.tolist() == [-1, 1]


def test_noise_scale_by_replays(cuda: set[int]) -> None:
    model, optimizer = made()
    graph = GraphedStep(model, optimizer, Feed(batches(), CPU))
    graph(0, 1.0)
    flat = model.flat.clone()
    ours = measure_noise_scale(model, lambda i: graph.gradient(3 + i), 2, 32)
    assert torch.equal(model.flat, flat)
    gradients = []
    for i in range(2):
        model.loss_and_gradient(torch.from_numpy(batches().batch(3 + i)))
        gradients.append(model.gradient.double().numpy().copy())
    small, big = (np.square(gradients).sum(2)).mean(0), np.square(np.mean(gradients, 0)).sum(1)
    # McCandlish et al. 2018, eq. A.1; `total` is a float32 sum of two gradients
    np.testing.assert_allclose(ours.grad_sq, (64 * big - 32 * small) / 32, rtol=1e-5)
    np.testing.assert_allclose(ours.trace, (small - big) / (1 / 32 - 1 / 64), rtol=1e-5)


def test_other_rows_leave_the_graphs_memory_alone(cuda: set[int]) -> None:
    """A graph read 1 / R where another R's had replaced it, and the memory was free for anything."""
    model, optimizer = made()
    graph = GraphedStep(model, optimizer, Feed(batches(), CPU))
    (mean,) = model._means.values()
    model.loss_and_gradient(torch.from_numpy(batches().batch(0)[:, :1]))
    assert len(model._means) == 2 and model._means[mean.shape] is mean
    assert mean.unique().tolist() == [1 / 32]
    assert graph(0, 1.0)[0].isfinite().all()


def test_a_batch_that_stays(cuda: set[int]) -> None:
    """As benchmarks have it: the caller's batch is copied, each call trains on it again."""
    model, optimizer = made()
    plain, plain_optimizer = made()
    batch = torch.from_numpy(batches().batch(0))
    graph = GraphedStep(model, optimizer, batch.clone())
    for step in range(2):
        loss, _ = graph(step, 1.0)
        expected = plain.loss_and_gradient(batch)
        plain_optimizer.step(expected, step, 1.0)
        assert torch.equal(loss, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.int64])
@pytest.mark.parametrize("resident", [True, False])
def test_feed_brings_every_batch(cuda: set[int], dtype: Any, resident: bool) -> None:
    """The largest id of each dtype too; messages are written only into memory that has been waited for."""
    tokens = np.random.default_rng(0).integers(np.iinfo(dtype).max, size=500, dtype=dtype, endpoint=True)
    feed = Feed(batches(tokens), CPU, resident_bytes=2**30 if resident else 0)
    for step in (0, 1, 2, 3, 4, 5, 90, 91, 6, 6, 0):
        waited = Event.waited
        feed.send(step, step / 7)
        assert Event.waited > waited
        assert np.array_equal(feed.batch().numpy(), batches(tokens).batch(step))
        assert feed.clock.tolist() == [step, step / 7]


def test_a_whole_job_by_graphs(cuda: set[int]) -> None:
    """Trunk, branches and noise scale, beside the same job without graphs."""
    job = FleetJob("f", SHAPE, ("a",), (0.01,), (0,), (64, 128), 32, warmup_steps=2, noise_batches=2, backend="triton")
    evaluation = Evaluation("main", np.random.default_rng(1).integers(20, size=(3, 9)))
    seen: list[list[Any]] = []
    for graphed in (False, True):
        rows: list[Any] = []
        trainer = loop._Trainer(
            job, TOKENS, [evaluation], lambda kind, row, rows=rows: rows.append((kind, row)), None, 1e9, CPU
        )
        if graphed:
            trainer.feed = Feed(trainer.batches, CPU)
        trainer.run()
        assert (trainer.graph is not None) == graphed
        seen.append(
            [(kind, {k: v for k, v in row.items() if k != "wall_s"}) for kind, row in rows if kind != "progress"]
        )
    assert seen[0] == seen[1]
    assert {kind for kind, _ in seen[0]} == {"evaluation", "noise_scale", "finished"}


class Watching(TorchDispatchMode):
    """Raises where the host would wait for a device: a number fetched, a copy from or to memory that is not page-locked."""

    def __init__(self, page_locked: set[int]) -> None:
        super().__init__()
        self.page_locked, self.copies = page_locked, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        assert name not in ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select"), name
        out = func(*args, **kwargs)
        if len({t.device for t in (*args, out) if isinstance(t, torch.Tensor)}) > 1 and name != "empty_like":
            source = args[1] if name == "copy_" else args[0]
            no_wait = kwargs.get("non_blocking", name == "copy_" and len(args) > 2 and args[2])
            fixed = source.device == CPU and source.data_ptr() in self.page_locked
            assert no_wait and fixed, f"{name} from {source.device} waits"
            self.copies += 1
        return out


@pytest.mark.parametrize("resident", [True, False], ids=["tokens on the card", "batches sent"])
def test_a_step_waits_for_nothing(resident: bool, cuda: set[int]) -> None:
    """The meta device stands for the card: its tensors cannot be fetched, and launches on them are not made."""
    job = FleetJob("f", SHAPE, ("a", "b"), (0.01, 0.02), (0, 1), (1024,), 32, warmup_steps=2, backend="triton")
    meta = torch.device("meta")
    trainer = loop._Trainer(job, TOKENS, [], lambda kind, row: None, None, 1e9, meta)
    trainer.feed = Feed(trainer.batches, meta, resident_bytes=2**30 if resident else 0)
    trainer._step(0, 1.0)  # the capture
    assert trainer.graph is not None and len(trainer.graph._gradient.recording.calls) > 10
    with Watching(cuda) as watching:
        for step in range(1, 6):
            trainer._trunk_step(step, 32)
    assert watching.copies == 5
    with pytest.raises(AssertionError, match="copy_ from cpu waits"), Watching(cuda):
        trainer.optimizer.set_clock(1, 1.0)  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Watching(cuda):
        torch.ones(()).item()
