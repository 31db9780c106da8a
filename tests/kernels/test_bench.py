"""The benchmarks' own code, as far as it runs without a GPU: tiny shapes in Triton's interpreter, by the wall clock."""

import json
import time

import hardware
import pytest
import torch
from eager_gpt import counted_eager_step, eager_step, vmapped_step
from hardware import OPERATIONS, Row, Table, measured, projected

from pyscaling.accounting import Shape
from pyscaling.kernels import aot
from pyscaling.kernels.launch import INTERPRETED

TINY = aot.Shape(n_member=2, n_sequence=2, context=5, d_model=16, n_head=2, d_ff=16, vocab=20)
interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="pytest bench/test_hardware.py --device cuda does it on a card"
)


def once(run, captured: bool = False) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@interpreted
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # vmap of attention on a CPU
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "step"])
def test_peers_agree_and_are_timed(name: str) -> None:
    """`measured` compares results and gradients with each peer's before it times it."""
    row = measured(name, TINY, torch.float32, "cpu", once)
    assert row.seconds > 0 and row.failed == {}
    assert set(row.peers) == ({"eager", "compile"} if name == "adamw" else set(hardware.PEERS))


@interpreted
def test_a_peer_with_other_numbers_is_no_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "linear", lambda x, weight, bias: torch.baddbmm(bias.unsqueeze(1), x, 1.01 * weight))
    with pytest.raises(AssertionError, match="linear: result 0 differs from eager"):
        measured("linear", TINY, torch.float32, "cpu", once)


@interpreted
def test_a_peer_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function):
        raise RuntimeError("no batching rule\nand more")

    monkeypatch.setattr(torch.func, "vmap", fail)
    row = measured("rms_norm", TINY, torch.float32, "cpu", once)
    assert row.failed == {"vmap": "RuntimeError: no batching rule"} and set(row.peers) == {"eager", "compile"}
    table = Table("measured", "a CPU", "float32", TINY, [row])
    assert "- rms_norm, vmap: RuntimeError: no batching rule" in str(table).splitlines()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATIONS)
def test_projections(name: str, dtype: torch.dtype) -> None:
    row = projected(name, TINY, dtype, "H100")
    assert row.seconds > 0 and row.peers["eager"] > 0
    assert row.launches > 0 and row.failed == {} and "compile" not in row.peers


def test_table() -> None:
    """100 us, 2 GB and 3 TFLOP are 20 TB/s and 30 PFLOP/s; a peer of 250 us has ratio 2.5."""
    row = Row("linear", 2, 2_000_000_000, 3_000_000_000_000, 1e-4, {"eager": 2.5e-4}, {"vmap": "RuntimeError: no"})
    table = Table("projection", "H100", "bfloat16", TINY, [row])
    header, line = table.cells()
    cells = dict(zip(header, line, strict=False))
    assert (cells["projection us"], cells["GB/s"], cells["TFLOP/s"]) == ("100.0", "20000.0", "30000.00")
    assert (cells["eager us"], line[header.index("eager us") + 1], cells["vmap us"]) == ("250.0", "2.50", "-")
    assert str(table).startswith("Projection, not a measurement: H100")
    assert "| linear | 2 | 2,000,000,000 |" in hardware.written([table], as_json=False)
    (loaded,) = json.loads(hardware.written([table], as_json=True))
    assert loaded["kind"] == "projection" and loaded["rows"][0]["peers"] == {"eager": 2.5e-4}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_trains_as_one_after_another() -> None:
    shape = Shape(8, 1, 1, context=4, vocab_size=11)
    tokens = torch.randint(11, (2, 3, 5))
    torch.manual_seed(0)
    step = vmapped_step(shape, 2, "cpu", torch.float32)
    torch.manual_seed(0)
    alone = [eager_step(shape, "cpu", torch.float32) for _ in range(2)]
    for _ in range(3):
        torch.testing.assert_close(step(tokens), torch.stack([s(t) for s, t in zip(alone, tokens, strict=True)]))


def test_eager_step_in_16_bits_is_autocast() -> None:
    """Products are in bfloat16 and read a cast of each weight; norms, loss and AdamW are in float32."""
    shape = Shape(64, 1, 2, context=32, vocab_size=100)
    low, full = (counted_eager_step(shape, 4, dtype, "sm_90").costs for dtype in (torch.bfloat16, torch.float32))
    dtypes = {cost.name: cost.dtype for cost, _ in low}
    assert dtypes["aten.mm"] == dtypes["aten.addmm"] == torch.bfloat16
    assert dtypes["aten.native_layer_norm"] == dtypes["aten._log_softmax"] == torch.float32
    assert dtypes["aten._foreach_addcdiv_"] == torch.float32
    assert "aten._to_copy" in dtypes and sum(n * c.flops for c, n in low) == sum(n * c.flops for c, n in full)
