"""Against Liger-Kernel, compiled and counted alike; the table itself is printed by liger.py.

    pytest bench/test_liger.py -s

Compiling takes six minutes on two cores for the first time. What each of Liger's kernels is said to read and write is
observed in Triton's interpreter: TRITON_INTERPRET=1 pytest bench/test_liger.py
"""

import pytest

pytest.importorskip("liger_kernel", reason="needs Liger-Kernel: pip install --no-deps liger-kernel==0.8.5")

from importlib import import_module
from importlib.metadata import version
from unittest.mock import patch

import liger
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from pyscaling.kernels.launch import INTERPRETED, MULTIPROCESSORS
from pyscaling.kernels.meter import observed_bytes

compiled = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set, so kernels cannot be compiled")
interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="bytes are observed in Triton's interpreter: TRITON_INTERPRET=1"
)


def test_version() -> None:
    assert version("liger-kernel") == liger.VERSION


# ---- the peer's bytes -----------------------------------------------------------------------------------------------


@triton.jit
def rsqrt(x):
    return tl.rsqrt(x)


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


class Float(float):
    def to(self, dtype):
        return self


@pytest.fixture
def made_interpretable():
    """The interpreter has no libdevice, and gives Python's floats where a GPU gives scalars."""

    norms = ("layer_norm", "rms_norm", "fused_add_rms_norm")
    patches = [patch.object(import_module(f"liger_kernel.ops.{norm}"), "rsqrt", rsqrt) for norm in norms]
    patches.append(patch.object(import_module("liger_kernel.ops.geglu"), "tanh", tanh))
    convert = interpreter._implicit_cvt
    patches.append(
        patch.object(interpreter, "_implicit_cvt", lambda a: Float(a) if isinstance(a, float) else convert(a))
    )
    for each in patches:
        each.start()
    yield
    for each in patches:
        each.stop()


# operation -> Liger's kernels in it, as they were seen to start
KERNELS = {
    "layer_norm": {"layer_norm._layer_norm_forward_kernel", "layer_norm._layer_norm_backward_kernel"},
    "rms_norm": {"rms_norm._rms_norm_forward_kernel", "rms_norm._rms_norm_backward_kernel"},
    "rms_norm of a sum": {
        "fused_add_rms_norm._fused_add_rms_norm_forward_kernel",
        "fused_add_rms_norm._fused_add_rms_norm_backward_kernel",
    },
    "mlp swiglu": {"swiglu._swiglu_fused_gate_up_forward_kernel", "swiglu._swiglu_fused_gate_up_backward_kernel"},
    "mlp geglu": {"geglu._geglu_tanh_forward_kernel", "geglu._geglu_tanh_backward_kernel"},
    "head and loss, fused": {"cross_entropy.liger_cross_entropy_kernel"},
    "head and loss, apart": {"cross_entropy.liger_cross_entropy_kernel"},
    "rope and attention": {"rope._triton_rope"},
}


@interpreted
@pytest.mark.parametrize("name", liger.OPERATIONS)
def test_peers_kernels_touch_the_bytes_that_are_counted(name: str, made_interpretable) -> None:
    size = liger.Size(24, 50, torch.float32, 0, n_row=6, context=3, head_dim=8, device="cpu")

    def run() -> None:
        with liger.announced():
            for part in liger.parts_of(liger.OPERATIONS[name].liger, size).values():
                part()

    seen = observed_bytes(run)
    assert {launched.name for launched in seen} == KERNELS[name]
    for launched in seen:
        assert launched.read_bytes == launched.declared_read_bytes > 0, launched.name
        assert launched.write_bytes == launched.declared_write_bytes > 0, launched.name


# ---- both sides, compiled and counted -------------------------------------------------------------------------------

# (operation, side, direction, d_model, dtype, target): bytes spilled there: one register, stored and loaded
KNOWN_SPILLS = {
    # by ptxas' choice, at 40 registers
    **{("rms_norm", side, "forward", 4096, torch.float32, "sm_90"): 8 for side in ("1 member", "16 members")},
    # at all of 255 registers, where M is divisible by 16 and so specialised; M = 1 takes 245
    **{
        (head, "16 members", "backward", d_model, torch.bfloat16, "sm_90"): 8
        for head in ("head and loss, fused", "head and loss, apart")
        for d_model in (1024, 4096)
    },
}


def more_parts(row: liger.Row) -> int:
    """Bytes of our norms' backward beyond Liger's: gains are summed over two programs a multiprocessor, not one, so that the
    loads of one hide behind the other; the sums of the second are written, and read by the launch that adds them up."""
    arrays = {"layer_norm": 2, "rms_norm": 1, "rms_norm of a sum": 1}.get(row.operation, 0)
    return arrays * 2 * MULTIPROCESSORS[row.target] * row.d_model * 4


def known_slower(row: liger.Row) -> bool:
    """Where the roofline gives Liger, or torch beside it, the shorter time of both directions together, and why.

    The head: our backward forms the logits again, for each gradient or, of a wide d, once: 5 or 4 products in all; Liger keeps
    the logits, or chunks of them, and needs 3. At width 256 its bytes cost more than our products, except in float32, where
    products outweigh bytes. Attention in float32: each of two jobs without atomics forms the scores again, 7 products
    against 5.
    """
    if row.operation.startswith("head"):
        return row.d_model > 256 or row.dtype == torch.float32
    return row.operation.startswith("rope") and row.dtype == torch.float32


@pytest.fixture(scope="module")
def rows() -> list[liger.Row]:
    made = liger.compare(progress=True)
    print(f"\n{liger.to_markdown(made)}")
    return made


def both_directions(rows: list[liger.Row], name: str, column: str) -> list[tuple[liger.Row, float, float, float]]:
    """(the row of the backward, Liger's total, ours for one member, ours a member of 16)"""
    pairs = [pair for pair in zip(rows[::2], rows[1::2], strict=True) if pair[0].operation == name]
    assert pairs and all((f.direction, b.direction) == ("forward", "backward") for f, b in pairs)
    return [
        (b, *(getattr(f.sides[side], column) + getattr(b.sides[side], column) for side in liger.SIDES))
        for f, b in pairs
    ]


@compiled
@pytest.mark.parametrize("name", liger.OPERATIONS)
def test_ours_do_not_spill(name: str, rows: list[liger.Row]) -> None:
    for row in (row for row in rows if row.operation == name):
        for side in ("1 member", "16 members"):
            place = (row.operation, side, row.direction, row.d_model, row.dtype, row.target)
            assert row.sides[side].errors == [], place
            assert row.sides[side].spilled <= KNOWN_SPILLS.get(place, 0), place


@compiled
@pytest.mark.parametrize("name", liger.OPERATIONS)
def test_launches_of_both_directions(name: str, rows: list[liger.Row]) -> None:
    """Together, because Liger's head has its backward in its forward."""
    for row, theirs, ours, of_16 in both_directions(rows, name, "launches"):
        assert 16 * of_16 <= ours <= theirs, (row.d_model, row.dtype, row.target)


@compiled
@pytest.mark.parametrize("name", liger.OPERATIONS)
def test_bytes_of_both_directions(name: str, rows: list[liger.Row]) -> None:
    for row, theirs, ours, of_16 in both_directions(rows, name, "bytes"):
        assert ours <= theirs + more_parts(row), (row.d_model, row.dtype, row.target)
        assert of_16 <= ours * (1 + 1e-3)


@compiled
@pytest.mark.parametrize("name", liger.OPERATIONS)
def test_projected_times_of_both_directions(name: str, rows: list[liger.Row]) -> None:
    for row, theirs, ours, _ in both_directions(rows, name, "seconds"):
        assert ours <= 1.05 * theirs or known_slower(row), (row.d_model, row.dtype, row.target, ours / theirs)
