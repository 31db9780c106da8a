"""A training step over fused kernels against the same step in eager PyTorch, counted by one meter; no GPU needed.

    pytest bench/test_kernels.py -s

Eager PyTorch trains one model at a time, the fleet sixteen at once; what is compared is launches and bytes a member and step.
In bfloat16 eager PyTorch runs under autocast; weights, their gradients and moments are float32 on both sides.
"""

import pytest
import torch
from eager_gpt import counted_eager_step

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


def counted(shape: Shape, dtype: torch.dtype) -> tuple[Meter, Meter]:
    """Eager PyTorch's step of one model, and the fleet's of all members, on tensors without storage, for an H100."""
    eager = counted_eager_step(shape, SEQUENCES, dtype, "sm_90")
    tokens = torch.empty(MEMBERS, SEQUENCES, CONTEXT + 1, dtype=torch.int64, device="meta")
    model = FusedTransformer(shape, range(MEMBERS), "meta", dtype)
    optimizer = FusedAdamW(model, torch.full((MEMBERS,), 1e-3))
    with Meter(target="sm_90") as fused:
        optimizer.update(model.loss_and_gradient(tokens))
    return eager, fused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SHAPES)
def test_step(name: str, dtype: torch.dtype) -> None:
    eager, fused = counted(SHAPES[name], dtype)
    launches, moved = fused.launches / MEMBERS, fused.bytes / MEMBERS
    print(
        f"\n{name}, {str(dtype).removeprefix('torch.')}, a member and step: launches {eager.launches} eager, "
        f"{launches:.1f} fused, ratio {eager.launches / launches:.0f}; {eager.bytes / 1e9:.1f} GB eager, "
        f"{moved / 1e9:.1f} GB fused, ratio {eager.bytes / moved:.1f}; "
        f"{eager.flops / 1e12:.2f} TFLOP eager, {fused.flops / MEMBERS / 1e12:.2f} fused"
    )
    print(roofline(fused, "H100", cuda_graph=True))
    assert eager.launches > LEAST_LAUNCHES[name] * launches
    assert eager.bytes > 3 * moved
