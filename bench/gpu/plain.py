"""The peer of a fleet: one model in plain PyTorch as it is written today, trained one after another.

bench/eager_gpt.py's transformer under bfloat16 autocast, scaled_dot_product_attention, AdamW's fused kernel, clipping, and
torch.compile where `compiled`.
"""

from collections.abc import Callable

import torch
from eager_gpt import EagerGPT
from torch import Tensor, nn

from gpu.child import DEVICE, ON_CARD
from pyscaling.accounting import Shape


def plain_step(shape: Shape, dtype: torch.dtype, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    """A training step of one model on tokens [B, T + 1]; returns its loss."""
    with torch.device(DEVICE):
        model = EagerGPT(shape)
    run = torch.compile(model, dynamic=False, backend="inductor" if ON_CARD else "eager") if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(tokens: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            loss = run(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        return loss.detach()

    return step
