"""Dividing parameters: the closed form, brute force along the share, and intervals that hold the truth."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyscaling as ps
from pyscaling.planning.encoder_decoder import encoder_decoder_split
from pyscaling.planning.kaplan import KAPLAN_2020, KnownLaw


def law(p_e: float = 0.3, p_d: float = 0.2, L_inf: float = 1.2, A: float = 4e3) -> KnownLaw:
    return KnownLaw("encoder_decoder", {"L_inf": L_inf, "A": A, "p_e": p_e, "p_d": p_d})


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 0.8), st.floats(0.05, 0.8), st.floats(1e6, 1e10))
def test_closed_form_is_the_minimum(p_e: float, p_d: float, N: float) -> None:
    known = law(p_e, p_d)
    split = encoder_decoder_split(known, N)
    assert split.share.value == pytest.approx(p_e / (p_e + p_d), rel=1e-10)
    assert split.N_e.value + split.N_d.value == pytest.approx(N, rel=1e-12)
    share = np.linspace(0.001, 0.999, 999)
    loss = known.evaluate(N_e=share * N, N_d=(1 - share) * N)
    assert loss.min() >= split.loss.value * (1 - 1e-14)
    np.testing.assert_allclose(split.penalty(share), loss / split.loss.value - 1, rtol=1e-6, atol=1e-13)


def test_region_ends_where_the_loss_has_risen_by_epsilon() -> None:
    known, N = law(), 1e8
    split = encoder_decoder_split(known, N)
    for epsilon in (1e-4, 0.01, 0.1):
        low, high = split.region(epsilon)
        assert low < split.share.value < high
        for share in (low, high):
            loss = known.evaluate(N_e=share * N, N_d=(1 - share) * N)
            assert loss == pytest.approx((1 + epsilon) * split.loss.value, rel=1e-10)
    assert encoder_decoder_split(law(0.3, 0.3), N).region(0.01)[0] == pytest.approx(
        1 - encoder_decoder_split(law(0.3, 0.3), N).region(0.01)[1], rel=1e-8
    )


def test_intervals_of_a_fit() -> None:
    N_e, N_d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e7, 1e9, 6)))
    noise = np.exp(0.005 * np.random.default_rng(0).normal(size=36))
    fit = ps.fit({"N_e": N_e, "N_d": N_d, "loss": law().evaluate(N_e=N_e, N_d=N_d) * noise}, law="encoder_decoder")
    boot = fit.bootstrap(500)
    split = encoder_decoder_split(fit, 1e9, bootstrap=boot)
    assert split.share.low < 0.6 < split.share.high
    assert split.share.high - split.share.low < 0.1
    assert split.N_d.low == pytest.approx(1e9 * (1 - split.share.high))
    assert (split.share.low, split.share.high) == boot.interval(lambda p: p["p_e"] / (p["p_e"] + p["p_d"]), 0.9)
    assert split.loss.low < split.loss.value < split.loss.high


def test_prints_and_exports() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    split = encoder_decoder_split(law(), 1e9)
    assert "encoder share 0.600" in str(split)
    table = json.loads(split.to_json())
    assert table["share"]["value"] == pytest.approx(0.6)
    assert table["region"]["low"] < 0.6
    split.plot()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encoder_decoder_split(KAPLAN_2020["kaplan_ND"], 1e9), "needs a fit of 'encoder_decoder'"),
        (lambda: encoder_decoder_split(law(), -1e9), "N must be finite and positive, got -1"),
        (lambda: encoder_decoder_split(law(), 1e9, level=0), "level must lie between 0 and 1"),
        (lambda: encoder_decoder_split(law(p_e=0.0), 1e9), "p_e=0 of the fit is not positive"),
        (lambda: encoder_decoder_split(law(), 1e9).penalty(1.0), "share must lie between 0 and 1, got 1.0"),
        (lambda: encoder_decoder_split(law(), 1e9).region(0.0), "epsilon must be finite and positive"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
