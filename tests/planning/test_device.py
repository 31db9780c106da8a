"""Devices, memory against published formulas and counts by hand, good shapes, step times and the shapes they allow."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyscaling.accounting import Shape, flops_per_token, parameter_count, shape_near
from pyscaling.planning.device import (
    DEVICES,
    CarriedStepTime,
    Device,
    StepTime,
    best_shape,
    device,
    good_shapes,
    largest_shape,
    memory,
    serving_memory,
)
from pyscaling.planning.kaplan import KAPLAN_2020, KnownLaw

CHINCHILLA = KnownLaw("chinchilla", {"E": 1.8172, "A": 477.8, "B": 2143.4, "alpha": 0.3473, "beta": 0.3672})


def test_devices_by_name() -> None:
    assert device("h100").flops == 989.4e12
    assert device("NVIDIA H200").memory == 141e9
    assert device("rtx4090") is DEVICES["RTX 4090"]
    mine = Device("mine", 1e12, 1e9, 1e10)
    assert device(mine) is mine
    assert "989.4 TFLOP/s" in str(device("H100"))
    # FLOPs a byte at which a kernel turns from memory to arithmetic: accelerators of these years lie within one decade
    assert all(70 < d.flops / d.bandwidth < 500 for d in DEVICES.values())


@pytest.mark.parametrize("seq", [1024, 2048])
def test_activations_are_korthikantis(seq: int) -> None:
    """s b h (34 + 5 a s / h) a layer, 34 s b h and 2 s b h (arXiv:2205.05198, table 2), b = 4."""
    h, a, b = 1024, 16, 4

    def activations(n_layer: int, recompute: Any) -> float:
        return memory(Shape(h, n_layer, a, context=seq), b * seq, recompute=recompute, dropout=True).activations

    expected = {
        "none": seq * b * h * (34 + 5 * a * seq / h),
        "attention": 34.0 * seq * b * h,
        "full": 2.0 * seq * b * h,
    }
    for recompute, layer in expected.items():
        assert activations(13, recompute) - activations(12, recompute) == pytest.approx(layer, rel=1e-12)
    assert (
        activations(1, "attention") - expected["attention"] == 5 * seq * b * h
    )  # embedding's dropout, last norm, head
    assert memory(Shape(h, 1, a, context=seq), b * seq).logits == 4 * b * seq * 50257


def test_states_are_those_of_zero() -> None:
    """2 + 2 + 12 bytes a parameter with AdamW in mixed precision (Rajbhandari et al. 2020, section 3.1)."""
    shape = Shape(768, 12, 12)
    count = parameter_count(shape, "total")
    m = memory(shape, 1024)
    assert (m.weights, m.gradients, m.optimizer) == (2 * count, 2 * count, 12 * count)
    f = memory(shape, 1024, dtype="fp32")
    assert f.weights + f.gradients + f.optimizer == 16 * count
    assert f.activations == 2 * m.activations
    assert memory(shape, 1024, optimizer="sgd").optimizer == 4 * count
    assert memory(shape, 1024, shards=8).weights == m.weights / 8
    assert m.total == sum((m.weights, m.gradients, m.optimizer, m.activations, m.logits))


def test_gpt3_by_the_papers() -> None:
    """175 B parameters in 16 bytes do not fit 8 x 80 GB; its cache takes 4.7 MB a token in 2 bytes (2 x 96 x 12288 x 2)."""
    gpt3 = Shape(12288, 96, 96, context=2048)
    assert not memory(gpt3, 2048, shards=8).fits("H100")
    assert memory(gpt3, 2048, shards=64, recompute="full").fits("H100")
    served = serving_memory(gpt3, 10_000)
    assert served.cache == pytest.approx(4.718592e6 * 10_000)
    assert served.weights == 2 * parameter_count(gpt3, "total")
    assert serving_memory(gpt3, weight_bytes=0.5).total == served.weights / 4


@settings(max_examples=8, deadline=None)
@given(st.floats(1e10, 2e11), st.sampled_from([1024, 8192, 32768]), st.sampled_from(["attention", "full"]))
@example(7e10, 32768, "attention")  # no neighbour of the largest fits
def test_largest_shape_fits_and_a_larger_one_does_not(size: float, batch: int, recompute: Any) -> None:
    shape = largest_shape(size, batch, recompute=recompute)
    assert memory(shape, batch, recompute=recompute).total <= 0.9 * size
    beyond = shape_near(1.15 * shape.N)  # shapes of nearly one N differ by some per cent in activations
    assert memory(beyond, batch, recompute=recompute).total > 0.9 * size


@pytest.mark.parametrize("N", [4e5, 8.5e7, 1.3e9, 7e10])
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_good_shapes(N: float, mlp: Any) -> None:
    shapes = good_shapes(N, mlp=mlp, context=2048)
    assert shapes
    for shape in shapes:
        assert abs(shape.N / N - 1) <= 0.1
        assert shape.d_model % (128 if shape.d_model >= 1024 else 64) == 0
        assert shape.head_dim in (64, 128)
        assert shape.d_ff % 128 == 0
        assert shape.vocab_size == 50304  # 393 x 128
        assert 12 <= shape.d_model / shape.n_layer <= 192
        assert shape.context == 2048
    misses = [abs(math.log(shape.N / N)) for shape in shapes]
    assert misses == sorted(misses)


def timed(seed: int = 0, noise: float = 0.0, count: int = 24) -> list[tuple[Shape, float, float]]:
    """Timings of a device whose costs are known: 2 ms + 0.1 ms a layer + FLOPs at 1e14/s + bytes at 1e12/s."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        d_model, n_layer = 64 * int(rng.integers(1, 33)), int(rng.integers(1, 40))
        shape = Shape(d_model, n_layer, d_model // 64, context=512)
        tokens = float(512 * 2 ** rng.integers(0, 8))
        flops, moved = tokens * flops_per_token(shape, "causal_full"), 2 * memory(shape, tokens).total
        seconds = 2e-3 + 1e-4 * n_layer + flops / 1e14 + moved / 1e12
        rows.append((shape, tokens, seconds * float(np.exp(noise * rng.normal()))))
    return rows


def test_step_time_recovers_known_costs() -> None:
    fitted = StepTime.fit(timed())
    assert (fitted.launch, fitted.per_layer, fitted.per_flop, fitted.per_byte) == pytest.approx(
        (2e-3, 1e-4, 1e-14, 1e-12), rel=1e-8
    )
    assert fitted.worst < 1e-8
    for shape, tokens, seconds in timed(seed=1):
        assert fitted.predict(shape, tokens) == pytest.approx(seconds, rel=1e-8)


def test_step_time_knows_its_error() -> None:
    fitted = StepTime.fit(timed(noise=0.05, count=40))
    fresh = [math.log(fitted.predict(shape, tokens) / seconds) for shape, tokens, seconds in timed(1, 0.05, 400)]
    assert fitted.error == pytest.approx(math.sqrt(np.mean(np.square(fresh))), rel=0.35)
    assert min(fitted.launch, fitted.per_layer, fitted.per_flop, fitted.per_byte) >= 0
    assert fitted.worst >= fitted.error


def test_step_time_from_a_table_and_from_json(tmp_path: Path) -> None:
    import pandas as pd

    rows = timed(noise=0.02)
    table = pd.DataFrame([shape.to_dict() | {"batch_tokens": t, "seconds": s} for shape, t, s in rows])
    fitted = StepTime.fit(rows)
    assert StepTime.fit(table) == fitted
    assert StepTime.from_json(fitted.to_json(tmp_path / "time.json")) == fitted
    assert StepTime.from_json(tmp_path / "time.json") == fitted
    carried = fitted.carry_over([(shape, t, 3 * s) for shape, t, s in rows[:6]])
    assert CarriedStepTime.from_json(carried.to_json()) == carried


def test_carry_over_of_a_monotone_relation() -> None:
    """A device that takes 3 s^0.8: known at knots exactly, between them nearly, beyond them with slope 1."""
    proxy = StepTime.fit(timed())
    rows = [(shape, t, 3 * s**0.8) for shape, t, s in timed(seed=2, count=12)]
    carried = proxy.carry_over(rows)
    for shape, t, seconds in rows:
        assert carried.predict(shape, t) == pytest.approx(seconds, rel=1e-8)
    inside = [(shape, t, 3 * s**0.8) for shape, t, s in timed(seed=3, count=40)]
    known = [s for *_, s in rows]
    errors = [math.log(carried.predict(shape, t) / s) for shape, t, s in inside if min(known) <= s <= max(known)]
    assert max(map(abs, errors)) < 0.02
    # one factor throughout needs three timings only, and holds everywhere
    factor = proxy.carry_over([(shape, t, 5 * s) for shape, t, s in timed(seed=2, count=3)])
    for shape, t, _s in inside:
        assert factor.predict(shape, t) == pytest.approx(5 * proxy.predict(shape, t), rel=1e-8)
    assert factor.worst < 1e-8


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_carried_time_never_falls(seed: int) -> None:
    """Whatever the noise, a longer step on the first device is no shorter on the other."""
    rng = np.random.default_rng(seed)
    proxy = StepTime(1e-3, 1e-4, 1e-14, 1e-12, 0.0, 0.0, 9)
    carried = proxy.carry_over([(shape, t, s * float(np.exp(rng.normal()))) for shape, t, s in timed(seed, count=7)])
    fresh = sorted((proxy.predict(shape, t), carried.predict(shape, t)) for shape, t, _ in timed(seed + 1))
    assert np.all(np.diff([target for _, target in fresh]) >= -1e-12)


def test_best_shape_is_the_best_of_all() -> None:
    step = StepTime(2e-3, 1e-4, 1e-14, 1e-12, 0.0, 0.0, 9)
    options = {"context": 1024, "vocab_size": 32000}
    found = best_shape(CHINCHILLA, step, 16384, 3600.0, architecture=options)
    assert found.at_edge == ""
    best = found.best
    assert best.steps == pytest.approx(3600 / step.predict(best.shape, 16384))
    assert pytest.approx(best.steps * 16384) == best.D
    assert best.loss == pytest.approx(CHINCHILLA.evaluate(N=best.N, D=best.D))
    for N in np.geomspace(best.N / 30, best.N * 30, 60):
        for shape in good_shapes(N, within=0.3, **options):
            D = 3600 / step.predict(shape, 16384) * 16384
            assert CHINCHILLA.evaluate(N=shape.N, D=D) >= best.loss * (1 - 1e-4)  # depths are 5 % apart
    assert all(row.loss <= 1.01 * best.loss for row in found.table)
    assert [row.loss for row in found.table] == sorted(row.loss for row in found.table)


def test_best_shape_with_time_in_FLOPs_alone_is_the_frontier() -> None:
    """Where a step takes its FLOPs and nothing else, the best N is near the compute-optimal one."""
    from pyscaling.planning.frontier import chinchilla_optimum

    step = StepTime(0.0, 0.0, 1e-14, 0.0, 0.0, 0.0, 9)
    found = best_shape(CHINCHILLA, step, 8192, 1e5, architecture={"context": 64, "vocab_size": 128})
    optimum = float(chinchilla_optimum(CHINCHILLA.params, 1e19))
    assert pytest.approx(optimum, rel=0.15) == found.best.N


def test_more_devices_and_less_memory() -> None:
    step = StepTime(2e-3, 1e-4, 1e-14, 1e-12, 0.0, 0.0, 9)
    range_ = (1e7, 3e9)
    one, eight = (best_shape(CHINCHILLA, step, 16384, 36000.0, n_devices=n, N_range=range_) for n in (1, 8))
    assert eight.best.N > one.best.N
    assert eight.best.loss < one.best.loss
    small = best_shape(CHINCHILLA, step, 16384, 36000.0, n_devices=8, N_range=range_, memory_limit=8e9)
    assert small.best.N < eight.best.N
    assert memory(small.best.shape, 16384).total <= 8e9
    narrow = best_shape(CHINCHILLA, step, 16384, 36000.0, N_range=(1e6, 1e7))
    assert narrow.at_edge == "largest"
    assert "widen N_range" in str(narrow)


def test_prints_and_exports() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    found = best_shape(CHINCHILLA, StepTime.fit(timed()), 16384, 3600.0)
    assert json.loads(found.to_json())["best"]["N"] == found.best.N
    assert "n_layer x d_model" in str(found)
    assert {"d_model", "N", "loss"} <= set(found.to_frame().columns)
    found.plot()
    assert "total" in str(memory(Shape(768, 12, 12), 1024))
    assert "TFLOP/s" in str(StepTime.fit(timed()))
    assert "carried over" in str(StepTime.fit(timed()).carry_over(timed(1, count=3)))


SHAPE = Shape(64, 2, 1)
STEP = StepTime(1e-3, 0.0, 1e-14, 0.0, 0.0, 0.0, 9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: device("abacus"), "device='abacus' is unknown; known are A100"),
        (lambda: Device("x", -1.0, 1.0, 1.0), "flops must be finite and positive, got -1.0"),
        (lambda: memory(SHAPE, 0), "batch_tokens must be finite and positive"),
        (lambda: memory(SHAPE, 1, optimizer="sophia"), "optimizer='sophia' is unknown"),  # type: ignore[arg-type]
        (lambda: memory(SHAPE, 1, dtype="fp8"), "dtype='fp8' is unknown"),  # type: ignore[arg-type]
        (lambda: memory(SHAPE, 1, recompute="some"), "recompute='some' is unknown"),  # type: ignore[arg-type]
        (lambda: memory(SHAPE, 1, shards=0), "shards must be a whole number of at least 1, got 0"),
        (lambda: serving_memory(SHAPE, -1), "cached_tokens must be finite and not negative, got -1"),
        (lambda: largest_shape(1e3, 1e6), "no model fits 900 bytes"),
        (lambda: good_shapes(1e3), "no good shape has N=1e\\+03 within 10%; the smallest has 49,152"),
        (lambda: good_shapes(math.inf), "N must be finite and positive"),
        (lambda: StepTime.fit(timed(count=4)), "timings must be at least 5"),
        (lambda: StepTime.fit([(SHAPE, 1, -1.0)]), r"seconds of timings\[0\] must be finite and positive, got -1.0"),
        (lambda: StepTime.fit([(1, 2)]), r"timings\[0\] must be \(Shape, batch_tokens, seconds\)"),
        (lambda: StepTime.fit({"d_model": [64]}), "timings need the column 'n_layer'"),
        (lambda: STEP.carry_over(timed(count=2)), "at least 3 to carry"),
        (lambda: StepTime.from_json("{}"), "text is no StepTime"),
        (lambda: best_shape(KAPLAN_2020["kaplan_N"], STEP, 1024, 1.0), "best_shape needs one of N and D"),
        (lambda: best_shape(CHINCHILLA, STEP, 1024, 1e-9), "leave no shape that makes a step"),
        (lambda: best_shape(CHINCHILLA, STEP, 1024, -1), "seconds must be finite and positive"),
        (lambda: best_shape(CHINCHILLA, STEP, 1024, 1.0, n_devices=0), "n_devices must be a whole number"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
