"""Time against compute: the paper's identities to rounding, best batches against closed forms and brute force."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from pyscaling.planning.batch import critical_batch, steps_and_tokens
from pyscaling.planning.kaplan import KAPLAN_2020, KnownLaw, derived_frontier
from pyscaling.planning.time import TimeCompute, batch_ramp, time_compute

CHINCHILLA = KnownLaw("chinchilla", {"E": 1.8172, "A": 477.8, "B": 2143.4, "alpha": 0.3473, "beta": 0.3672})
positive = st.floats(1e-3, 1e6)


@given(positive, positive, positive)
def test_steps_against_tokens(batch: float, B_crit: float, S_min: float) -> None:
    S, E = steps_and_tokens(batch, B_crit, S_min)
    excess_S, excess_E = B_crit / batch, batch / B_crit  # of 1 + x, whose rounding is 1e-16 / x
    assert (S / S_min - 1) * (E / (B_crit * S_min) - 1) == pytest.approx(
        1, rel=1e-15 * (1 + 1 / excess_S) * 4 + 1e-15 * (1 + 1 / excess_E) * 4
    )
    assert pytest.approx(E, rel=1e-12) == batch * S


def test_steps_against_tokens_to_1e_12() -> None:
    S, E = steps_and_tokens(np.geomspace(0.1, 10, 21) * 3e5, 3e5, 7e3)
    np.testing.assert_allclose((S / 7e3 - 1) * (E / (3e5 * 7e3) - 1), 1, rtol=1e-12)
    assert steps_and_tokens(3e5, 3e5, 7e3) == (1.4e4, 2 * 3e5 * 7e3)
    assert steps_and_tokens(math.inf, 3e5, 7e3)[0] == 7e3


def test_time_compute_from_kaplans_constants() -> None:
    """On the derived frontier C_min is the budget."""
    f = derived_frontier(2.0)
    t = time_compute(float(f.N), float(f.loss))
    assert t.C_min == pytest.approx(2 * 8.64e19, rel=1e-10)
    assert t.S_min == pytest.approx(float(f.S_min), rel=1e-10)
    assert t.B_crit == pytest.approx(float(f.B), rel=1e-12)
    run = t.at(t.B_crit)
    assert run.compute == pytest.approx(2 * t.C_min, rel=1e-12)
    assert run.steps == pytest.approx(2 * t.S_min, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.floats(1e4, 1e7), st.floats(1e-4, 10), st.floats(1, 1e4))
def test_best_batches(B_crit: float, overhead: float, devices: float) -> None:
    t = TimeCompute(1e9, 1e20, B_crit, devices, 4e14, overhead)
    a = 6e9 / (devices * 4e14)
    fastest = t.fastest()
    assert fastest.batch == pytest.approx(math.sqrt(overhead * B_crit / a), rel=1e-10)
    assert fastest.seconds == pytest.approx(t.S_min * (math.sqrt(overhead) + math.sqrt(a * B_crit)) ** 2, rel=1e-10)
    B = t.best_product().batch
    assert 2 * a * B * B + overhead * B == pytest.approx(overhead * B_crit, rel=1e-10)
    runs = [t.at(x) for x in np.geomspace(fastest.batch / 100, fastest.batch * 100, 300)]
    assert min(run.seconds for run in runs) >= fastest.seconds
    least = t.best_product()
    assert min(run.seconds * run.compute for run in runs) >= least.seconds * least.compute * (1 - 1e-12)
    assert fastest.device_hours == pytest.approx(devices * fastest.seconds / 3600)


def test_without_limits_of_devices_or_overhead() -> None:
    unlimited = TimeCompute(1e9, 1e20, 1e6, math.inf, 4e14, 0.5)
    assert unlimited.best_product().batch == pytest.approx(1e6, rel=1e-12)  # (1 + x)(1 + 1/x) is least at x = 1
    assert unlimited.at(1e6).seconds == pytest.approx(2 * unlimited.S_min * 0.5, rel=1e-12)
    with pytest.raises(ValueError, match="devices=inf: the larger the batch the faster"):
        unlimited.fastest()
    free = TimeCompute(1e9, 1e20, 1e6, 8, 4e14, 0.0)
    assert free.at(1e6).seconds == pytest.approx(2e20 / (8 * 4e14), rel=1e-12)  # FLOPs alone
    for best in (free.fastest, free.best_product):
        with pytest.raises(ValueError, match="overhead=0"):
            best()


def test_more_devices_are_faster_and_dearer() -> None:
    runs = time_compute(1.3e9, 2.7, overhead=0.02).over_devices([1, 8, 64, 512])
    assert all(np.diff([run.seconds for run in runs]) < 0)
    assert all(np.diff([run.compute for run in runs]) > 0)
    assert all(np.diff([run.device_hours for run in runs]) > 0)


def unrounded(law: Any, D: float, **options: Any) -> Any:
    return batch_ramp(law, 1e9, D, context=1, stages=3000, **options)


def test_ramp_of_a_power_law() -> None:
    """B_crit ~ d^p saves as gamma = (1 - p) / (1 - p/2)^2 says, p = alpha_D / alpha_B."""
    p = 0.095 / 0.21
    ramp = unrounded(KAPLAN_2020["kaplan_D"], 1e11, vocab_size=10**40)
    gamma = (1 - p) / (1 - p / 2) ** 2
    assert ramp.gamma == pytest.approx(gamma, rel=1e-4)
    S_min = 1e11 / (critical_batch(float(KAPLAN_2020["kaplan_D"].evaluate(D=1e11))) * (1 - p))
    excess = (ramp.steps / S_min - 1) * (ramp.tokens / 1e11 - 1)
    assert excess == pytest.approx(gamma, rel=1e-3)
    constant = (ramp.constant_steps / S_min - 1) * (ramp.tokens / 1e11 - 1)
    assert constant == pytest.approx(1, rel=1e-4)


def test_no_other_ramp_is_better() -> None:
    """S and E of B = c B_crit^q by quadrature over d: q = 1/2 has the least S at the same E, q = 1 no less than q = 0."""

    def B_crit(d: float) -> float:
        return critical_batch(min(float(CHINCHILLA.evaluate(N=1e9, D=d)), math.log(50257)))

    def integral(power: float) -> float:
        return sum(
            quad(lambda x: math.exp(x) * B_crit(math.exp(x)) ** power, *ends, epsabs=0, limit=200)[0]
            for ends in ((0.0, math.log(1e8)), (math.log(1e8), math.log(1e9)), (math.log(1e9), math.log(2e10)))
        )

    ramp = unrounded(CHINCHILLA, 2e10)
    S_min, extra = integral(-1.0), ramp.tokens - 2e10
    steps = {q: S_min + integral(q - 1) * integral(-q) / extra for q in (0.0, 0.25, 0.5, 0.75, 1.0)}
    assert ramp.steps == pytest.approx(steps[0.5], rel=1e-3)
    assert ramp.constant_steps == pytest.approx(steps[0.0], rel=1e-3)
    assert min(steps, key=lambda q: steps[q]) == 0.5
    assert steps[1.0] == pytest.approx(steps[0.0], rel=1e-6)


def test_ramp_in_stages() -> None:
    for options in ({}, {"powers_of_two": True}, {"stages": 4}, {"noise_scale": 5e5, "context": 512}):
        ramp = batch_ramp(CHINCHILLA, 1e9, 2e10, **options)  # type: ignore[arg-type]
        context = options.get("context", 1024)
        batches = [stage.batch for stage in ramp]
        assert batches == sorted(batches)
        assert all(batch % context == 0 for batch in batches)
        assert sum(stage.steps for stage in ramp) == pytest.approx(ramp.steps)
        ends = [*(stage.tokens for stage in ramp.stages[1:]), ramp.tokens]
        for stage, end in zip(ramp, ends, strict=True):
            assert stage.batch * stage.steps == pytest.approx(end - stage.tokens, rel=1e-6)
        assert 0 < ramp.saved < 1 - ramp.gamma
    assert all(
        math.log2(stage.batch / 1024).is_integer() for stage in batch_ramp(CHINCHILLA, 1e9, 2e10, powers_of_two=True)
    )
    assert len(batch_ramp(CHINCHILLA, 1e9, 2e10, stages=4).stages) <= 4


def test_ramp_reads_what_a_constant_batch_would() -> None:
    ramp = unrounded(CHINCHILLA, 2e10, batch_tokens=1e6)
    assert ramp.constant_batch == pytest.approx(1e6, rel=1e-3)
    half = unrounded(CHINCHILLA, 2e10, batch_tokens=1e6, noise_scale=5e5)
    whole = unrounded(CHINCHILLA, 2e10, batch_tokens=2e6, noise_scale=1e6)
    assert half.saved == pytest.approx(whole.saved, rel=1e-3)  # only B / B_crit matters


def test_prints_and_exports() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    t = time_compute(1e9, 2.8, devices=64, on="h100", overhead=0.01)
    for result in (t, batch_ramp(CHINCHILLA, 1e9, 2e10)):
        assert json.loads(result.to_json())
        result.plot()
    assert "fastest" in str(t)
    assert "device-hours" in str(t.fastest())
    assert "saved" in str(batch_ramp(CHINCHILLA, 1e9, 2e10))
    assert json.loads(t.to_json())["fastest"]["seconds"] == pytest.approx(t.fastest().seconds)
    assert "saves" not in str(time_compute(1e9, 2.8))  # without overhead nothing is fastest


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: steps_and_tokens(0.0, 1.0, 1.0), "batch must be positive"),
        (lambda: steps_and_tokens(1.0, -1.0, 1.0), "B_crit must be finite and positive"),
        (lambda: time_compute(1e9), "loss is missing"),
        (lambda: time_compute(1e6, 2.0), "loss=2 is never reached by N=1e\\+06, which converge to 3.99"),
        (lambda: time_compute(1e9, 2.8, devices=0), "devices must be positive, got 0"),
        (lambda: time_compute(1e9, 2.8, overhead=-1), "overhead must be finite and not negative, got -1"),
        (lambda: time_compute(1e9, 2.8, utilisation=40), "utilisation must be at most 1, got 40"),
        (lambda: time_compute(1e9, 2.8, on="abacus"), "device='abacus' is unknown"),
        (lambda: time_compute(1e9, 2.8, on=-5), "on must be finite and positive"),
        (lambda: time_compute(1e9, 2.8, overhead=1).over_devices([0]), "counts must be finite and positive"),
        (lambda: batch_ramp(KAPLAN_2020["kaplan_NS"], 1e9, 1e10), "a ramp needs a law of N and D, or D"),
        (lambda: batch_ramp(CHINCHILLA, 1e9, -1), "D must be finite and positive"),
        (lambda: batch_ramp(CHINCHILLA, 1e9, 1e10, context=0), "context must be a whole number"),
        (lambda: batch_ramp(CHINCHILLA, 1e9, 1e10, noise_scale=math.nan), "noise_scale must be finite and positive"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
