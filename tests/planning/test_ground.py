"""What a plan says of the ground it stands on: first the fit, then how far from any run it lies."""

import json
from typing import Any

import numpy as np
import pytest

from pyscaling.accounting import Shape, flops_per_token, parameter_count
from pyscaling.planning import plan
from pyscaling.planning.result import Quantity
from pyscaling.tables import Runs

from .known import CHINCHILLA, CHINCHILLA_LAW, KnownFit


def fit_of(N: Any, D: Any, params: dict[str, float] = CHINCHILLA, trusted: bool = True) -> KnownFit:
    fit = KnownFit(CHINCHILLA_LAW, params, trusted=trusted)
    fit.runs = Runs({"N": np.asarray(N, dtype=float), "D": np.asarray(D, dtype=float)})
    return fit


def test_an_untrusted_fit_is_the_first_line() -> None:
    fit = KnownFit(CHINCHILLA_LAW, CHINCHILLA, trusted=False)
    result = plan(fit, 1e21, bootstrap=20)
    assert str(result).splitlines()[0] == "NOT TO BE TRUSTED, it is made up"
    assert not result.trustworthy and result.verdict == "NOT TO BE TRUSTED, it is made up"
    table = json.loads(result.to_json())
    assert table["verdict"] == result.verdict and table["trustworthy"] is False
    assert "<strong>NOT TO BE TRUSTED, it is made up</strong>" in result._repr_html_()
    sound = plan(KnownFit(CHINCHILLA_LAW, CHINCHILLA), 1e21, bootstrap=20)
    assert sound.trustworthy and "NOT" not in str(sound) and "<strong>" not in sound._repr_html_()
    assert "with care" in plan(KnownFit(CHINCHILLA_LAW, CHINCHILLA), 1e24, bootstrap=20).verdict  # far beyond the runs


def test_a_fit_that_has_no_runs_to_speak_of_is_still_doubted() -> None:
    fit = KnownFit(CHINCHILLA_LAW, CHINCHILLA, trusted=False)
    del fit.runs
    assert "not to be trusted" in " ".join(plan(fit, 1e21, bootstrap=20).warnings)


def test_a_small_corpus_and_a_small_model() -> None:
    """A corpus of 1.9 M tokens, a plan for D = 41 M, with N ten times below the largest trained: both are said."""
    N, D = (grid.ravel() for grid in np.meshgrid([1.5e3, 1e4, 5e4, 154e3], [3e5, 1e6, 4e6]))
    C = 10 * 6 * N.max() * D.max()
    params = CHINCHILLA | {"A": 3.0, "B": 4e4, "alpha": 0.45, "beta": 0.75}
    free = plan(fit_of(N, D, params), C, bootstrap=20)
    assert free.N.value < N.max() / 4 and free.D.value > 4 * D.max()  # the case
    said = " ".join(plan(fit_of(N, D, params), C, bootstrap=20, unique_tokens=1.9e6).warnings)
    assert "epochs of 1.9 M unique tokens" in said
    assert f"is {N.max() / free.N.value:.3g} x smaller than the largest trained" in " ".join(free.warnings)
    assert f"the best D lies {free.D.value / D.max():.3g} x above the data's range, 300 k to 4 M" in " ".join(
        free.warnings
    )
    few = plan(fit_of(N, D, params), C, bootstrap=20, unique_tokens=free.D.value / 2)
    assert any("up to 4 a repeated token is nearly as good" in warning for warning in few.warnings)
    once = plan(fit_of(N, D, params), C, bootstrap=20, unique_tokens=free.D.value * 2)
    assert not any("epochs" in warning for warning in once.warnings)


def test_far_below_the_runs() -> None:
    N, D = (grid.ravel() for grid in np.meshgrid([1e9, 1e10], [1e10, 1e11]))
    said = plan(fit_of(N, D), 1e18, bootstrap=20).warnings
    assert any("best N lies" in warning and "below the data's range, 1 B to 10 B" in warning for warning in said)


def test_json_has_null_and_never_nan() -> None:
    fit = KnownFit(CHINCHILLA_LAW, CHINCHILLA)
    del fit.runs
    result = plan(fit, 1e21, bootstrap=20)

    def refuse(name: str) -> float:
        raise AssertionError(name)

    object.__setattr__(result, "floor", Quantity(1.8, float("nan"), float("inf")))
    table = json.loads(result.to_json(), parse_constant=refuse)
    assert table["floor"] == {"value": 1.8, "low": None, "high": None}


def test_all_parameters_are_said() -> None:
    result = plan(KnownFit(CHINCHILLA_LAW, CHINCHILLA), 1e21, bootstrap=20, architecture={"vocab_size": 32000})
    shape = result.shape
    assert result.N_total == parameter_count(shape, "total")
    assert result.N_total - shape.N > 32000 * shape.d_model
    assert json.loads(result.to_json())["N_total"] == result.N_total
    assert result.to_frame().loc["N_total", "value"] == result.N_total
    assert any(row[0] == "in all" for row in result.rows())


def test_chinchillas_own_flops() -> None:
    """Hoffmann et al. 2022, appendix F, line by line; their 10 x 640 model of table A4: 6.998e8 a token."""
    d, heads, key, ffw, layers, vocabulary, seq = 640, 10, 64, 2560, 10, 32000, 2048
    embeddings = 2 * seq * vocabulary * d
    attention = 2 * 3 * seq * d * (key * heads) + 2 * seq * seq * (key * heads) + 3 * heads * seq * seq
    attention += 2 * seq * seq * (key * heads) + 2 * seq * (key * heads) * d
    dense = 2 * seq * (d * ffw + d * ffw)
    forward = embeddings + layers * (attention + dense) + 2 * seq * d * vocabulary
    shape = Shape(d, layers, heads, ffw, context=seq, vocab_size=vocabulary)
    for passes, times in (("forward", 1), ("backward", 2), ("training", 3)):
        assert flops_per_token(shape, "chinchilla", passes=passes) == pytest.approx(times * forward / seq, rel=1e-14)
    assert flops_per_token(shape, "chinchilla") == pytest.approx(6.998e8, rel=1e-4)


def test_prints_within_80_columns() -> None:
    for arguments in (
        {"compute": 1e21}, {"dollars": 5e4, "device": "H100"}, {"target_loss": 2.1, "inference_tokens": 1e13},
        {"time": "3 days", "devices": 8, "device": "H100", "unique_tokens": "2B", "inference_tokens": "1T"},
    ):  # fmt: skip
        text = str(plan(KnownFit(CHINCHILLA_LAW, CHINCHILLA, trusted=False), bootstrap=20, **arguments))
        assert max(map(len, text.splitlines())) <= 80
