"""A training step over fused kernels against the same step in eager PyTorch, counted by one meter; no GPU needed.

    pytest bench/test_kernels.py -s

Eager PyTorch trains one model at a time, the fleet sixteen at once; what is compared is launches and bytes a member and step.
"""

import pytest
import torch
from eager_gpt import eager_step

from pyscaling.accounting import Shape
from pyscaling.kernels.meter import Meter, roofline
from pyscaling.models.fused import FusedTransformer
from pyscaling.training.optimizer import FusedAdamW

MEMBERS, SEQUENCES, CONTEXT = 16, 32, 512
SHAPES = {
    "GPT-2": Shape(256, 8, 4, context=CONTEXT),
    "RoPE, RMSNorm, QK-norm": Shape(
        256, 8, 4, context=CONTEXT, position="rope", norm="rmsnorm", tied=False, bias=False, qk_norm=True
    ),
}
LEAST_LAUNCHES = {"GPT-2": 30, "RoPE, RMSNorm, QK-norm": 50}  # GPT-2's eager step has few operations to save


def counted(shape: Shape) -> tuple[Meter, Meter]:
    """Eager PyTorch's step of one model, and the fleet's of all members, on meta tensors, for an H100."""
    tokens = torch.empty(SEQUENCES, CONTEXT + 1, dtype=torch.int64, device="meta")
    step = eager_step(shape, "meta", torch.float32)
    step(tokens)  # makes the optimiser's state
    with Meter(target="sm_90") as eager:
        step(tokens)
    model = FusedTransformer(shape, range(MEMBERS), "meta")
    optimizer = FusedAdamW(model, torch.full((MEMBERS,), 1e-3))
    with Meter(target="sm_90") as fused:
        optimizer.update(model.loss_and_gradient(tokens.expand(MEMBERS, -1, -1).contiguous()))
    return eager, fused


@pytest.mark.parametrize("name", SHAPES)
def test_step(name: str) -> None:
    eager, fused = counted(SHAPES[name])
    launches, moved = fused.launches / MEMBERS, fused.bytes / MEMBERS
    print(
        f"\n{name}, a member and step: launches {eager.launches} eager, {launches:.1f} fused, ratio "
        f"{eager.launches / launches:.0f}; {eager.bytes / 1e9:.1f} GB eager, {moved / 1e9:.1f} GB fused, ratio "
        f"{eager.bytes / moved:.1f}; "
        f"{eager.flops / 1e12:.2f} TFLOP eager, {fused.flops / MEMBERS / 1e12:.2f} fused"
    )
    print(roofline(fused, "H100", cuda_graph=True))
    assert eager.launches > LEAST_LAUNCHES[name] * launches
    assert eager.bytes > 3 * moved
