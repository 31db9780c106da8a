"""Published rules against values worked out by hand, and what a plan says of rates, batches, prices and devices."""

import numpy as np
import pytest

import pyscaling as ps
from pyscaling.planning import DEVICES, Device, critical_batch_of_tokens, learning_rate_and_batch, plan

from .known import CHINCHILLA, CHINCHILLA_LAW, KnownFit

FIT = KnownFit(CHINCHILLA_LAW, CHINCHILLA)


def test_rules_at_7B() -> None:
    """exp of sums of logarithms, by hand: ln 7e9 = 22.66919, ln 140e9 = 25.66492, ln (6 x 7e9 x 140e9) = 50.12587."""
    found = learning_rate_and_batch("7B", 140e9)
    values = {(rule.quantity, rule.source[:12]): rule.value for rule in found}
    assert values == {
        ("learning rate", "Li et al. 20"): pytest.approx(1.79 * np.exp(-0.713 * 22.66919 + 0.307 * 25.66492), rel=1e-4),
        ("learning rate", "Bi et al. 20"): pytest.approx(0.3118 * np.exp(-0.125 * 50.12587), rel=1e-4),
        ("learning rate", "Kaplan et al"): pytest.approx(0.003239 - 0.0001395 * 22.66919, rel=1e-4),
        ("batch", "Zhang et al."): pytest.approx(22.91 * 512 * np.exp(0.47 * (25.66492 - 13.81551)), rel=1e-4),
        ("batch", "Li et al. 20"): pytest.approx(0.58 * np.exp(0.571 * 25.66492), rel=1e-4),
        ("batch", "Bi et al. 20"): pytest.approx(0.2920 * np.exp(0.3271 * 50.12587), rel=1e-4),
    }
    assert found.learning_rate == pytest.approx(4.52e-4, rel=2e-3)
    assert next(iter(found)).beyond == "N 6.4 x up, D 1.4 x up"
    assert next(iter(found)).factor == pytest.approx(7e9 / 1.1e9)
    assert "beyond" not in str(learning_rate_and_batch(5e8, 2e10)).split("Bi et al.")[0]  # within Step law's runs
    assert max(map(len, str(found).splitlines())) <= 80
    assert found._repr_html_().count("<tr>") == 7


def test_a_tiny_run_is_told_by_the_rule_whose_runs_are_near() -> None:
    """At N = 1e4 and D = 1e6 the Step law would say 0.18."""
    found = learning_rate_and_batch(1e4, 1e6)
    assert found.learning_rate == pytest.approx(0.003239 - 0.0001395 * np.log(1e4), rel=1e-12)
    assert found.nearest("learning rate").source.startswith("Kaplan")


def test_deepseeks_compute_counts_attention() -> None:
    """M = 72 n_layer d^2 + 12 n_layer d n_ctx (Bi et al. 2024, eq. 2)."""
    shape = ps.accounting.Shape(4096, 30, 32, 4 * 4096, context=4096, vocab_size=102400)
    M = 72 * 30 * 4096**2 + 12 * 30 * 4096 * 4096
    assert pytest.approx(M * 2e12, rel=1e-12) == learning_rate_and_batch(shape.N, 2e12, shape=shape).C


def test_critical_batch_is_what_their_own_runs_took() -> None:
    """Steps to the goal of Zhang et al.'s notebook, 302 M parameters on 6.1 B tokens, by batches of 2^6 to 2^14 sequences.

    At the rule's batch, on the curve through these, the run takes 10 to 30 % more tokens than at 256 sequences.
    """
    batch = 2.0 ** np.arange(6, 15)
    steps = np.array([196000, 90000, 46000, 23400, 13300, 7224, 4980, 3400, 2879])
    tokens = batch * steps
    at = critical_batch_of_tokens(46875 * 256 * 512) / 512
    excess = np.exp(np.interp(np.log(at), np.log(batch), np.log(tokens))) / tokens[2] - 1
    assert 0.1 < excess < 0.3


def test_dollars_at_list_price() -> None:
    result = plan(FIT, dollars=50_000, device="H100", bootstrap=20)
    hours = 50_000 / DEVICES["H100"].price_per_hour
    assert result.gpu_hours == pytest.approx(hours, rel=1e-12)
    assert result.compute == pytest.approx(hours * 3600 * 0.4 * 989.4e12, rel=1e-12)
    text = " ".join(str(result).split())
    assert "list price of RunPod, March 2026; change it" in text
    # neither time nor devices are given: so many of them, for how long
    month, week = np.ceil(hours / 730.5), np.ceil(hours / 168)
    assert f"a month on {month:.0f}" in text and f"a week on {week:.0f}" in text and "years" not in text
    assert plan(FIT, dollars=50_000, device="H100", price_per_gpu_hour=5, bootstrap=20).gpu_hours == pytest.approx(1e4)
    assert "years" in str(plan(FIT, dollars=50_000, device="H100", devices=1, bootstrap=20))
    mine = Device("mine", 1e15, 8e10, 3e12, price_per_hour=2.0)
    assert plan(FIT, dollars=2_000, device=mine, bootstrap=20).gpu_hours == pytest.approx(1e3)
    with pytest.raises(ValueError, match="price_per_hour must be finite and positive"):
        Device("mine", 1e15, 8e10, 3e12, price_per_hour=-2.0)
