"""A training step as a CUDA graph: its launches are recorded once and replayed as one.

The graph reads the batch, the step's number and the schedule's factor from places that stay, so replays do not wait for
the host. Not run on hardware yet.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyscaling.models.fused import FusedTransformer
    from pyscaling.training.optimizer import FusedAdamW

_WARM_UP = 3  # steps before the capture, in which kernels are compiled and the allocator learns their sizes


class GraphedStep:
    """Calls replay `model.loss_and_gradient` and `optimizer.update`; making one leaves weights and moments as they were."""

    def __init__(self, model: "FusedTransformer", optimizer: "FusedAdamW", batch: Tensor) -> None:
        self.optimizer = optimizer
        self.batch = batch.clone()
        before = {name: tensor.detach().clone() for name, tensor in optimizer.state().items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                optimizer.update(model.loss_and_gradient(self.batch))
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = model.loss_and_gradient(self.batch)
            self.norm = optimizer.update(self.loss)
        optimizer.load(before)

    def __call__(self, batch: Tensor, step: int, factor: float) -> tuple[Tensor, Tensor]:
        """Loss and gradient norm of each member, [M]; the next call overwrites them."""
        self.batch.copy_(batch, non_blocking=True)
        self.optimizer.set_clock(step, factor)
        self.graph.replay()
        return self.loss, self.norm
