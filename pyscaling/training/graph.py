"""A training step as CUDA graphs: its launches are recorded once and replayed as one.

Two graphs share one memory: the loss and its gradient, and AdamW's update. So a gradient without an update, as the noise
scale wants, needs no activations of its own. Both read the batch, the step's number and the schedule's factor from places
that stay, so replays do not wait for the host. Not run on hardware yet.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyscaling.training.feed import Feed

if TYPE_CHECKING:
    from pyscaling.models.fused import FusedTransformer
    from pyscaling.training.optimizer import FusedAdamW

_WARM_UP = 3  # steps before the capture, in which kernels are compiled and the allocator learns their sizes


class GraphedStep:
    """Steps of a fused fleet by replay; making one leaves weights, moments and who lives as they were.

    batch: a feed, or a batch [M, B, T + 1] int64 on the device, which is copied: for steps that all train on it.
    loss, norm: [M] of the last replay, overwritten by the next one. Shapes stay as they were captured.
    """

    def __init__(self, model: "FusedTransformer", optimizer: "FusedAdamW", batch: Feed | Tensor) -> None:
        self.optimizer = optimizer
        self.feed = batch if isinstance(batch, Feed) else None
        self.batch = batch.clone() if isinstance(batch, Tensor) else None
        before = {name: tensor.detach().clone() for name, tensor in optimizer.state().items()}

        def differentiate() -> Tensor:
            if self.feed is None:
                assert self.batch is not None
                return model.loss_and_gradient(self.batch)
            optimizer.clock.copy_(self.feed.clock)
            return model.loss_and_gradient(self.feed.batch())

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                optimizer.update(differentiate())
        torch.cuda.current_stream().wait_stream(side)
        self._gradient, self.loss = _captured(differentiate)
        self._update, self.norm = _captured(lambda: optimizer.update(self.loss), self._gradient)
        optimizer.load(before)

    def __call__(self, step: int, factor: float) -> tuple[Tensor, Tensor]:
        """Loss and gradient norm of each member, [M]; the next call overwrites them."""
        self._send(step, factor)
        self.replay()
        return self.loss, self.norm

    def gradient(self, step: int) -> Tensor:
        """The loss [M] on the batch of a step, whose gradient is then the model's; no weight changes."""
        self._send(step, 0.0)
        self._gradient.replay()
        return self.loss

    def replay(self) -> None:
        """The step again, on what was sent last."""
        self._gradient.replay()
        self._update.replay()

    def _send(self, step: int, factor: float) -> None:
        if self.feed is not None:
            self.feed.send(step, factor)
        else:
            self.optimizer.set_clock(step, factor)


def _captured(
    run: Callable[[], Tensor], beside: torch.cuda.CUDAGraph | None = None
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of what `run` enqueues, and its result; `beside` lends its memory, and must have been replayed before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=beside.pool() if beside is not None else None):
        result = run()
    return graph, result
