"""A law is what it says, not what it is called: every closed form and every branch hangs on that."""

from typing import Any

import numpy as np
import pytest

from pyscaling import laws
from pyscaling.laws import Law
from pyscaling.planning import (
    KnownLaw,
    early_stopping,
    encoder_decoder_split,
    overtake,
    plan,
    tokens_against_overfitting,
)
from pyscaling.planning.identity import parameters_as

from .known import CHINCHILLA, CHINCHILLA_LAW, NUMERICAL, NUMERICAL_LAW, KnownFit

SPELT = Law("q*D**-g + F + p/N**a", name="mine")
RENAMED = {"E": "F", "A": "p", "alpha": "a", "B": "q", "beta": "g"}


def renamed(params: dict[str, float], names: dict[str, str]) -> dict[str, float]:
    return {own: params[name] for name, own in names.items()}


def test_laws_are_told_by_what_they_say() -> None:
    assert parameters_as(CHINCHILLA_LAW, "chinchilla") == {name: name for name in CHINCHILLA}
    assert parameters_as(SPELT, "chinchilla") == RENAMED
    assert parameters_as(laws.get("chinchilla_tied"), "chinchilla") == {
        "E": "E", "A": "A", "alpha": "alpha", "B": "B", "beta": "alpha",
    }  # fmt: skip
    for other in (
        "E + A/N**alpha",
        "E + A/N**alpha + B/D**beta + F",
        "E + A/N**alpha + B/N**beta/D**beta",
        "A*B/(N*D)**E",
    ):
        assert parameters_as(Law(other, name="chinchilla"), "chinchilla") is None
    for name in ("gadre", "kaplan_ND", "kaplan_ND_constant", "acoustic", "data_constrained"):
        assert parameters_as(laws.get(name), "chinchilla") is None
    for name in ("kaplan_ND", "kaplan_NS", "encoder_decoder", "data_constrained"):
        own = laws.get(name)
        assert parameters_as(Law(own.expression, variables=own.variables, name="mine"), name) == {
            n: n for n in own.names
        }


@pytest.mark.parametrize("limits", [{}, {"unique_tokens": 2e9}, {"inference_tokens": 1e12}, {"max_tokens": 1e9}])
def test_a_name_changes_no_plan(limits: dict[str, Any]) -> None:
    built_in = plan(KnownLaw(CHINCHILLA_LAW, CHINCHILLA), 1e21, **limits)
    for law, params in (
        (Law(CHINCHILLA_LAW.expression, name="mine"), CHINCHILLA),
        (SPELT, renamed(CHINCHILLA, RENAMED)),
    ):
        own = plan(KnownLaw(law, params), 1e21, **limits)
        assert tuple(own.N) == pytest.approx(tuple(built_in.N), rel=1e-9)
        assert own.loss.value == pytest.approx(built_in.loss.value, rel=1e-12)
    # in other parameters no closed form is known, and the optimum is the same to rounding
    if "unique_tokens" not in limits:
        assert plan(KnownLaw(NUMERICAL_LAW, NUMERICAL), 1e21, **limits).N.value == pytest.approx(
            built_in.N.value, rel=1e-8
        )


def test_a_law_that_bears_anothers_name() -> None:
    """`chinchilla` of other parameters was a KeyError."""
    impostor = Law("c + (s/N)**x + (t/D)**x", name="chinchilla")
    params = {"c": 1.5, "s": 1e8, "t": 1e9, "x": 0.5}
    result = plan(KnownFit(impostor, params), 1e21, bootstrap=20, unique_tokens=1e9)
    N = np.geomspace(1e6, 1e12, 400_001)
    D = 1e21 / 6 / N
    worth = np.where(D > 1e9, 1e9 * (1 + 15.387756 * (1 - np.exp(-(D / 1e9 - 1) / 15.387756))), D)
    assert result.N.value == pytest.approx(N[np.argmin(impostor.evaluate(params, N=N, D=worth))], rel=1e-4)
    loss = KnownLaw(
        Law("a/N**b + c/S**d", variables=["N", "S"], name="kaplan_NS"), {"a": 20, "b": 0.1, "c": 30, "d": 0.5}
    )
    assert early_stopping(1e8, loss).excess.value > 0
    with pytest.raises(ValueError, match="needs a fit of 'encoder_decoder'"):
        wrong = Law("a/N_e + b/N_d", variables=["N_e", "N_d"], name="encoder_decoder")
        encoder_decoder_split(KnownLaw(wrong, {"a": 1, "b": 1}), 1e8)


def test_other_questions_hang_on_the_law_too() -> None:
    for name, ask in (
        ("kaplan_NS", lambda known: early_stopping(1e8, known).amount.value),
        ("kaplan_ND", lambda known: tokens_against_overfitting(1e8, known).D.value),
        ("encoder_decoder", lambda known: encoder_decoder_split(known, 1e8).share.value),
    ):
        law = laws.get(name)
        values = {
            "kaplan_NS": {"alpha_N": 0.077, "alpha_S": 0.76, "N_c": 6.5e13, "S_c": 2.1e3},
            "kaplan_ND": {"alpha_N": 0.076, "alpha_D": 0.103, "N_c": 6.4e13, "D_c": 1.8e13},
            "encoder_decoder": {"L_inf": 1.2, "A": 4e3, "p_e": 0.3, "p_d": 0.2},
        }[name]
        expression = law.expression
        for parameter in sorted(law.names, key=len, reverse=True):
            expression = expression.replace(parameter, f"z{law.names.index(parameter)}")
        own = Law(expression, variables=law.variables, name="mine")
        mine = {f"z{law.names.index(parameter)}": value for parameter, value in values.items()}
        assert ask(KnownLaw(own, mine)) == pytest.approx(ask(KnownLaw(law, values)), rel=1e-12)
    better = CHINCHILLA | {"E": CHINCHILLA["E"] - 0.1, "A": 2 * CHINCHILLA["A"], "B": 2 * CHINCHILLA["B"]}
    A, B = (KnownLaw(SPELT, renamed(params, RENAMED)) for params in (CHINCHILLA, better))
    built_in = overtake(
        KnownLaw("chinchilla", CHINCHILLA), KnownLaw("chinchilla", better), within=(1e15, 1e30), bootstrap=2
    )
    assert (
        pytest.approx(built_in.crossings[0].C, rel=1e-12)
        == overtake(A, B, within=(1e15, 1e30), bootstrap=2).crossings[0].C
    )
