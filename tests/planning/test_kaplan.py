"""Kaplan et al.'s numbers against their paper, against closed forms, and against brute force."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import pyscaling as ps
from pyscaling.accounting import PF_DAY
from pyscaling.planning.kaplan import (
    KAPLAN_2020,
    KnownLaw,
    contradiction,
    derived_frontier,
    early_stopping,
    kaplan_frontier,
    stopping_step,
    tokens_against_overfitting,
)

CHINCHILLA = KnownLaw("chinchilla", {"E": 1.8172, "A": 477.8, "B": 2143.4, "alpha": 0.3473, "beta": 0.3672})
BUDGETS = np.geomspace(1e-3, 1e4, 8)


def test_published_frontier() -> None:
    """Table 6 of the paper, by hand at one PF-day and a factor away from it."""
    at = kaplan_frontier(1.0)
    assert (at.N, at.B, at.S_min, at.D) == (1.3e9, 2.0e6, 5.4e3, 2e10)
    assert at.loss == pytest.approx(3.1e8**0.05)
    f = kaplan_frontier(BUDGETS)
    np.testing.assert_allclose(f.N, 1.3e9 * BUDGETS**0.73, rtol=1e-12)
    np.testing.assert_allclose(f.D, 2e10 * BUDGETS**0.27, rtol=1e-12)
    np.testing.assert_allclose(f.loss, (3.1e8 / BUDGETS) ** 0.05, rtol=1e-12)
    # rounding of the constants: C = 6 N B S_min and D = 2 B S_min, at B = B_crit twice the least tokens
    np.testing.assert_allclose(6 * f.N * f.B * f.S_min / PF_DAY, BUDGETS, rtol=0.05)
    np.testing.assert_allclose(2 * f.B * f.S_min, f.D, rtol=0.1)
    np.testing.assert_allclose(2.1e8 / f.loss ** (1 / 0.21), f.B, rtol=0.1)


def test_published_exponents_follow_from_the_laws() -> None:
    """alpha_C / alpha_N and so on, section 6.1: 0.73, 0.24 and 0.03 were measured."""
    alpha_C = 1 / (1 / 0.76 + 1 / 0.21 + 1 / 0.077)
    assert alpha_C == pytest.approx(0.050, abs=0.005)
    f = derived_frontier([1.0, np.e])
    growth = {
        name: float(np.log(getattr(f, name)[1] / getattr(f, name)[0])) for name in ("N", "B", "S_min", "D", "loss")
    }
    expected = {
        "N": alpha_C / 0.077,
        "B": alpha_C / 0.21,
        "S_min": alpha_C / 0.76,
        "D": alpha_C / 0.21 + alpha_C / 0.76,
        "loss": -alpha_C,
    }
    assert growth == pytest.approx(expected, rel=1e-10)
    assert growth["N"] == pytest.approx(0.73, abs=0.06)
    assert growth["B"] == pytest.approx(0.24, abs=0.02)
    assert growth["S_min"] == pytest.approx(0.03, abs=0.05)
    assert pytest.approx(growth["N"] + growth["B"] + growth["S_min"], rel=1e-10) == 1


@pytest.mark.parametrize("C", [1e-3, 1.0, 1e4])
def test_derived_frontier_is_the_minimum(C: float) -> None:
    """No N at the same C_min = 6 N B_crit(L) S_min has a lower loss, L(N) solved by fixed-point iteration."""
    p = KAPLAN_2020["kaplan_NS"].params

    def loss(log_N: float) -> float:
        N, L = np.exp(log_N), 3.0
        for _ in range(200):
            S = C * PF_DAY / (6 * N * 2.1e8 / L ** (1 / 0.21))
            L = 0.5 * (L + (p["N_c"] / N) ** p["alpha_N"] + (p["S_c"] / S) ** p["alpha_S"])
        return float(L)

    f = derived_frontier(C)
    best = minimize_scalar(loss, bracket=(np.log(f.N) - 1, np.log(f.N) + 0.5), tol=1e-10)
    assert best.fun == pytest.approx(float(f.loss), rel=1e-10)
    assert best.x == pytest.approx(np.log(f.N), abs=1e-4)
    assert 6 * f.N * f.B * f.S_min == pytest.approx(C * PF_DAY, rel=1e-10)
    assert f.loss == pytest.approx((1 + 0.077 / 0.76) * (6.5e13 / f.N) ** 0.077, rel=1e-10)


@settings(max_examples=10, deadline=None)
@given(st.floats(1e6, 1e12), st.floats(0.03, 0.1), st.floats(0.3, 1.2))
def test_early_stopping_at_any_constants(N: float, alpha_N: float, alpha_S: float) -> None:
    """L = (1 + alpha_N/alpha_S) L(N, inf), the closed form beside the general solver on the same law by another name."""
    params = {"N_c": 6.5e13, "alpha_N": alpha_N, "S_c": 2.1e3, "alpha_S": alpha_S}
    stop = early_stopping(N, KnownLaw("kaplan_NS", params))
    assert stop.excess.value == pytest.approx(alpha_N / alpha_S, rel=1e-12)
    assert stop.loss.value == pytest.approx((1 + alpha_N / alpha_S) * (6.5e13 / N) ** alpha_N, rel=1e-12)
    unnamed = ps.Law("(N_c/N)**alpha_N + (S_c/S)**alpha_S", variables=["N", "S"])
    general = early_stopping(N, KnownLaw(unnamed, params))
    assert general.amount.value == pytest.approx(stop.amount.value, rel=1e-6)
    assert general.excess.value == pytest.approx(alpha_N / alpha_S, rel=1e-6)


def test_early_stopping_of_kaplans_model() -> None:
    stop = early_stopping(1e9)
    assert stop.excess.value == pytest.approx(0.10, abs=0.005)  # "roughly 10 %", section 6.1
    assert stop.excess.low == pytest.approx(stop.excess.high)
    assert "10.1% above the converged loss" in str(stop)


def test_early_stopping_of_chinchilla_is_its_frontier() -> None:
    """alpha A / N^alpha = beta B / D^beta (Hoffmann et al. 2022, eq. 4)."""
    p = CHINCHILLA.params
    D = (p["beta"] * p["B"] / (p["alpha"] * p["A"])) ** (1 / p["beta"]) * 1e9 ** (p["alpha"] / p["beta"])
    stop = early_stopping(1e9, CHINCHILLA)
    assert stop.amount.value == pytest.approx(D, rel=1e-6)
    assert stop.variable == "D"
    assert stop.converged.value == pytest.approx(p["E"] + p["A"] / 1e9 ** p["alpha"], rel=1e-12)


def test_early_stopping_of_a_fit_has_an_interval() -> None:
    N, S = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e3, 1e5, 6)))
    noise = np.exp(0.003 * np.random.default_rng(0).normal(size=36))
    runs = {"N": N, "S": S, "loss": KAPLAN_2020["kaplan_NS"].evaluate(N=N, S=S) * noise}
    stop = early_stopping(1e8, ps.fit(runs, law="kaplan_NS"), bootstrap=200)
    assert stop.excess.low < 0.077 / 0.76 < stop.excess.high
    assert stop.excess.high / stop.excess.low < 1.5


def test_stopping_step() -> None:
    """Equation 5.7 by hand."""
    excess = ((6.4e13 / 1e9) ** (0.076 / 0.103) + 1.8e13 / 1e9) ** 0.103 - (6.4e13 / 1e9) ** 0.076
    assert stopping_step(1e9, 1e9) == pytest.approx(2.1e3 / excess ** (1 / 0.76), rel=1e-10)
    assert np.all(np.diff(stopping_step(1e9, np.geomspace(1e8, 1e12, 5))) > 0)


@pytest.mark.parametrize("N", [1e6, 1e9, 1e12])
def test_tokens_against_overfitting(N: float) -> None:
    need = tokens_against_overfitting(N)
    assert need.D.value == pytest.approx(5e3 * N**0.74, rel=0.2)  # eq. 4.4, constants rounded
    K = KAPLAN_2020["kaplan_ND"]
    assert K.evaluate(N=N, D=need.D.value) == pytest.approx(1.02 * K.evaluate(N=N, D=np.inf), rel=1e-12)
    unnamed = KnownLaw(ps.Law(K.law.expression, variables=["N", "D"]), K.params)
    assert tokens_against_overfitting(N, unnamed).D.value == pytest.approx(need.D.value, rel=1e-10)
    p = CHINCHILLA.params
    by_hand = (p["B"] / (0.05 * (p["E"] + p["A"] / N ** p["alpha"]))) ** (1 / p["beta"])
    assert tokens_against_overfitting(N, CHINCHILLA, epsilon=0.05).D.value == pytest.approx(by_hand, rel=1e-10)


def test_contradiction() -> None:
    """Section 6.3: C* ~ 1e4 PF-days, N* ~ 1e12, D* ~ 1e12, L* ~ 1.7."""
    x = contradiction()
    assert np.log10(x.C) == pytest.approx(4, abs=0.1)
    assert np.log10(x.N) == pytest.approx(12, abs=0.1)
    assert np.log10(x.D) == pytest.approx(12, abs=0.7)
    assert x.loss == pytest.approx(1.7, abs=0.05)
    assert x.loss == pytest.approx((5.4e13 / (2e10 * x.C**0.27)) ** 0.095, rel=1e-10)
    steps = {
        "alpha_C": {"L_C": (3.1e8, 0.05 * 1.0001)},
        "alpha_D": {"L_D": (5.4e13, 0.095 * 1.0001)},
        "exponent of D": {"D": (2e10, 0.27 * 1.0001)},
        "C_c": {"L_C": (3.1e8 * 1.0001, 0.05)},
        "D_c": {"L_D": (5.4e13 * 1.0001, 0.095)},
        "coefficient of D": {"D": (2e10 * 1.0001, 0.27)},
    }
    for name, changed in steps.items():
        moved: Any = np.log(contradiction(**changed).C / x.C) / 1e-4  # type: ignore[arg-type]
        assert x.sensitivity[name] == pytest.approx(moved, rel=0.01), name
    assert pytest.approx(1.1e5, rel=0.05) == contradiction(D=(4e10, 0.26)).C  # eq. 6.7 instead of table 6


def test_prints_and_exports() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    f = kaplan_frontier(BUDGETS)
    assert len(str(f).splitlines()) == 2 + len(BUDGETS)
    assert json.loads(f.to_json())["N"][0] == pytest.approx(float(f.N[0]))
    assert list(f.to_frame().columns) == ["C_min", "N", "B", "S_min", "D", "loss"]
    f.plot()
    for result in (early_stopping(1e9), tokens_against_overfitting(1e9), contradiction()):
        assert json.loads(result.to_json())
    assert "tokens" in str(tokens_against_overfitting(1e9))
    assert "PF-days" in str(contradiction())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kaplan_frontier([1.0, -1.0]), "C_min must be finite and positive"),
        (lambda: derived_frontier("much"), "C_min must be a number, got the text 'much'"),
        (lambda: derived_frontier(1.0, {"alpha_N": 0.1}), "params lack 'N_c'"),
        (lambda: KnownLaw("kaplan_N", {"N_c": 1.0, "alpha_N": 1.0, "beta": 2.0}), "unknown name 'beta'"),
        (lambda: KnownLaw("kaplan_N", {"N_c": 1.0, "alpha_N": np.nan}), "must be finite, got nan"),
        (lambda: early_stopping(0.0), "N must be finite and positive, got 0.0"),
        (lambda: early_stopping(1e9, KAPLAN_2020["kaplan_N"]), "this needs one of N and S or D"),
        (lambda: early_stopping(1e9, level=2), "level must lie between 0 and 1"),
        (lambda: stopping_step(1e9, -1), "D must be finite and positive"),
        (lambda: tokens_against_overfitting(1e9, epsilon=-0.1), "epsilon must be finite and positive, got -0.1"),
        (lambda: tokens_against_overfitting(1e9, CHINCHILLA, epsilon=1e9), "at no D between 1 and 1e40"),
        (lambda: tokens_against_overfitting(1e9, KAPLAN_2020["kaplan_NS"]), "this needs one of N and D"),
        (lambda: contradiction(L_C=(3.1e8, 0.02)), "never contradict each other"),
        (lambda: contradiction(N=(0.0, 0.7)), "N must be finite and positive"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
