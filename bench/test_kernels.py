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


def least_bytes(shape: Shape, s: int) -> float:
    """A member's step, from the formulas in the kernels' docstrings; s: an activation's item size."""
    R, d, F, V, T = SEQUENCES * CONTEXT, shape.d_model, shape.d_ff, shape.vocab_size, CONTEXT
    U, biased = F * (2 if shape.mlp == "swiglu" else 1), shape.bias
    stats = (8 if shape.norm == "layernorm" else 4) * R
    qkv, out = 3 * d * d + 3 * d * biased, d * d + d * biased
    mlp = d * U + F * d + (U + d) * biased
    block = {
        "qkv": s * (R * d + 3 * R * d + qkv),
        "attention": s * R * (4 * d) + 4 * R * shape.n_head,
        "out and norm": s * (R * d + 2 * R * d + R * d + out) + stats,
        "mlp and norm": s * (R * U + 3 * R * d + R * d + mlp) + stats,
        "mlp backward, du": s * (R * d + 2 * R * U + F * d) + 4 * (F * d + d * biased),
        "mlp backward, dx and norm": s * (R * U + R * d + R * d + 2 * R * d + d * U) + stats + 4 * (d * U + U * biased),
        "out backward and delta": s * (3 * R * d + d * d) + 4 * out + 4 * R * shape.n_head,
        "attention backward": s * R * (7 * d) + 8 * R * shape.n_head,
        "qkv backward and norm": s * (3 * R * d + R * d + R * d + 2 * R * d + 3 * d * d) + stats + 4 * qkv,
    }
    learned, tied = shape.position == "learned", shape.tied
    ends = {
        "embedding": s * (2 * R * d + T * d * learned) + 8 * R,
        "first norm": s * 2 * R * d + stats,
        "loss": s * (R * d + V * d) + 16 * R,
        "loss backward": s * (2 * R * d + V * d) + 4 * V * d + 20 * R,
        "last norm backward": s * 3 * R * d + stats,
        "embedding backward": s * R * d * (1 + learned)
        + (2 * s * R * d if tied else 4 * V * d)
        + 24 * R
        + 4 * T * d * learned,
    }
    P = shape.n_layer * (qkv + out + mlp) + V * d * (1 if tied else 2) + T * d * learned
    return shape.n_layer * sum(block.values()) + sum(ends.values()) + (32 if s == 4 else 34) * P


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
    least = least_bytes(SHAPES[name], dtype.itemsize)
    print(f"{moved / least:.3f} times the least that the kernels' docstrings state, {least / 1e9:.2f} GB")
    print(roofline(fused, "H100", cuda_graph=True))
    assert eager.launches >= 50 * launches
    assert eager.bytes > 3 * moved
    assert least <= 1.01 * moved and moved < 1.3 * least
