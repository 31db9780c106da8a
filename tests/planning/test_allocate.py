"""Plans against closed forms (to 1e-10), mpmath, and brute force over a fine grid; and what a plan says of itself."""

import json
from typing import Any

import mpmath
import numpy as np
import pytest

from pyscaling import laws
from pyscaling.laws import Law
from pyscaling.planning import plan
from pyscaling.planning.frontier import best_N, chinchilla_optimum

from .known import CHINCHILLA, CHINCHILLA_LAW, KAPLAN, KAPLAN_LAW, NUMERICAL, NUMERICAL_LAW, KnownFit, chinchilla


@pytest.mark.parametrize("compute", [1e17, 1e21, 5.76e23])
def test_chinchilla_optimum_by_hand(compute: float) -> None:
    """Where alpha A / N^alpha = beta B / D^beta, with N D = C/6: solved by mpmath in 30 digits."""
    p = {name: mpmath.mpf(value) for name, value in CHINCHILLA.items()}
    with mpmath.workdps(30):

        def balance(x: Any) -> Any:
            return p["alpha"] * p["A"] * mpmath.exp(-p["alpha"] * x) - p["beta"] * p["B"] * (
                compute / 6 * mpmath.exp(-x)
            ) ** (-p["beta"])

        N = float(mpmath.exp(mpmath.findroot(balance, (5, 40), solver="anderson", tol=1e-40)))
    result = plan(KnownFit(CHINCHILLA_LAW, CHINCHILLA), compute, bootstrap=200)
    assert result.N.value == pytest.approx(N, rel=1e-10)
    assert result.D.value == pytest.approx(compute / 6 / N, rel=1e-10)
    assert result.loss.value == pytest.approx(chinchilla(CHINCHILLA, N, compute / 6 / N), rel=1e-12)


def test_tied_exponents() -> None:
    """With alpha = beta the optimum is N = sqrt(C/6) (A/B)^(1/(2 alpha))."""
    tied = CHINCHILLA | {"beta": CHINCHILLA["alpha"]}
    result = plan(KnownFit(CHINCHILLA_LAW, tied), 1e21, bootstrap=50)
    expected = np.sqrt(1e21 / 6) * (tied["A"] / tied["B"]) ** (0.5 / tied["alpha"])
    assert result.N.value == pytest.approx(expected, rel=1e-10)


def test_numerical_optimum_agrees_with_closed_form() -> None:
    """The same law in other parameters is minimised numerically, for many samples at once."""
    samples = {
        name: value * np.exp(0.2 * np.random.default_rng(1).normal(size=500)) for name, value in CHINCHILLA.items()
    }
    other = {name: value for name, value in samples.items() if name != "B"} | {"b": np.sqrt(samples["B"])}
    point = {name: np.array([value]) for name, value in NUMERICAL.items()}
    for compute in (1e18, 1e24):
        closed = chinchilla_optimum(samples, compute)
        inside = (closed > 1e3) & (closed < compute / 1e4)
        assert inside.mean() > 0.95
        numerical = best_N(NUMERICAL_LAW, other, compute, 768.0, compute / 6e3)
        np.testing.assert_allclose(numerical[inside], closed[inside], rtol=1e-9)
        one = best_N(NUMERICAL_LAW, point, compute, 1e-6, compute)
        assert one[0] == pytest.approx(chinchilla_optimum(CHINCHILLA, compute), rel=1e-10)


def test_kaplan_optimum() -> None:
    """dL/dN = 0 gives a (N_c/N)^a = D_c/D with a = alpha_N/alpha_D: a power law, N^(1 + a) ~ C."""
    a = KAPLAN["alpha_N"] / KAPLAN["alpha_D"]
    compute = 1e22
    expected = (a * KAPLAN["N_c"] ** a * compute / 6 / KAPLAN["D_c"]) ** (1 / (1 + a))
    result = plan(KnownFit(KAPLAN_LAW, KAPLAN), compute, bootstrap=50)
    assert result.N.value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("law", [(CHINCHILLA_LAW, CHINCHILLA), (KAPLAN_LAW, KAPLAN)])
def test_no_point_of_a_fine_grid_is_better(law: tuple[Law, dict[str, float]]) -> None:
    fit = KnownFit(*law)
    for compute in (1e18, 1e21, 1e25):
        N = np.geomspace(768, compute / 6e3, 200_001)
        least = fit.evaluate(N=N, D=compute / 6 / N).min()
        result = plan(fit, compute, bootstrap=20)
        assert result.loss.value <= least * (1 + 1e-13)


def test_intervals_are_the_bootstraps() -> None:
    fit = KnownFit(CHINCHILLA_LAW, CHINCHILLA)
    result = plan(fit, 1e22, level=0.8, bootstrap=1000, seed=3)
    boot = fit.bootstrap(1000, seed=3)
    expected = boot.interval(lambda p: chinchilla_optimum(p, 1e22), level=0.8)
    assert (result.N.low, result.N.high) == pytest.approx(expected)
    assert result.D.low == pytest.approx(1e22 / 6 / result.N.high)
    again = plan(fit, 1e22, level=0.8, bootstrap=boot)
    assert again.N == result.N


def test_region_ends_where_the_loss_has_risen_by_epsilon() -> None:
    fit = KnownFit(CHINCHILLA_LAW, CHINCHILLA)
    result = plan(fit, 1e22, bootstrap=20)
    best = fit.evaluate(N=result.N.value, D=result.D.value)
    region = result.region(0.01)
    for N, D in ((region.N_low, region.D_high), (region.N_high, region.D_low)):
        assert fit.evaluate(N=N, D=D) == pytest.approx(1.01 * best, rel=1e-10)
        assert pytest.approx(1e22) == 6 * N * D
    assert region.N_low < result.N.value < region.N_high
    assert not (region.open_low or region.open_high)
    assert result.region(1e-3).N_high < region.N_high
    wide = result.region(1e3)
    assert wide.open_low
    assert wide.open_high


def test_units_steps_and_shape() -> None:
    fit = KnownFit(CHINCHILLA_LAW, CHINCHILLA)
    result = plan(
        fit, "10 PF-days", bootstrap=20, batch_tokens=2**19, architecture={"context": 2048, "vocab_size": 32000}
    )
    assert result.compute == pytest.approx(8.64e20)
    assert result.batch_tokens == 2**19
    assert result.steps == int(np.ceil(result.D.value / 2**19))
    assert pytest.approx(result.N.value, rel=0.04) == result.shape.N
    assert (result.shape.context, result.shape.vocab_size) == (2048, 32000)


def test_batch_says_where_it_comes_from() -> None:
    fit = KnownFit(CHINCHILLA_LAW, CHINCHILLA)
    by_rule = plan(fit, 1e22, bootstrap=20)
    expected = 22.91 * (by_rule.D.value / 1e6) ** 0.47 * 512  # Zhang et al. 2024, sequences of 512 tokens
    assert by_rule.batch_tokens == pytest.approx(expected, abs=512)
    assert "Zhang" in by_rule.batch.source
    kaplan = 2.1e8 / by_rule.loss.value ** (1 / 0.21)  # Kaplan et al. 2020, eq. 1.4
    assert by_rule.batch.other == ("B_crit(L) of Kaplan et al. 2020", pytest.approx(kaplan, rel=1e-12))
    assert "Kaplan et al. 2020 gives 5.61 M" in " ".join(str(by_rule).split())
    measured = plan(fit, 1e22, bootstrap=20, noise_scale=3e5)
    assert measured.batch_tokens == pytest.approx(3e5, abs=512)
    assert "measured noise scale" in measured.batch.source
    loss = np.linspace(3, 6, 40)
    trend = plan(fit, 1e19, bootstrap=20, noise_scale={"loss": loss, "noise_scale": 2e7 * loss**-5.0})
    assert trend.batch_tokens == pytest.approx(2e7 * trend.loss.value**-5.0, abs=512)


def test_warnings_name_what_is_doubtful() -> None:
    fit = KnownFit(CHINCHILLA_LAW, CHINCHILLA)  # largest compute 6e22
    assert plan(fit, 1e21, bootstrap=20).warnings == ()
    assert any("more than 10 x" in warning for warning in plan(fit, 1e24, bootstrap=20).warnings)
    far = plan(fit, 1e26, bootstrap=20)
    assert any("more than 100 x" in warning for warning in far.warnings)
    assert far.extrapolation == pytest.approx(1e26 / 6e22)
    assert "more than 100 x" in str(far)
    doubtful = KnownFit(CHINCHILLA_LAW, CHINCHILLA, trusted=False)
    assert any("not to be trusted" in warning for warning in plan(doubtful, 1e21, bootstrap=20).warnings)


def test_prints_and_exports(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    result = plan(KnownFit(CHINCHILLA_LAW, CHINCHILLA), 1e22, bootstrap=100)
    text = str(result)
    for word in ("compute C", "model N", "data D", "loss L", "batch B", "steps S", "shape", "region", "90%"):
        assert word in text
    table = json.loads(result.to_json(tmp_path / "plan.json"))
    assert json.loads((tmp_path / "plan.json").read_text()) == table
    assert table["N"]["low"] < table["N"]["value"] < table["N"]["high"]
    assert table["shape"]["d_model"] % table["shape"]["n_head"] == 0
    frame = result.to_frame()
    assert frame.loc["N", "value"] == result.N.value
    assert list(frame.columns) == ["value", "low", "high"]
    assert "<table>" in result._repr_html_()
    ax = result.plot()
    assert "N" in ax.get_xlabel()
    ax.figure.savefig(tmp_path / "plan.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compute": 1e5}, r"compute=1e\+05 FLOPs is too small for any model"),
        ({"compute": "1e3 FLOPs"}, "too small for any model"),
        ({"compute": "3 parsecs"}, "unknown unit 'parsecs'"),
        ({"compute": -1.0}, "finite and positive"),
        ({"compute": 1e21, "level": 1.5}, "level must lie between 0 and 1, got 1.5"),
        ({"compute": 1e21, "batch_tokens": -4}, "batch_tokens must be finite and positive, got -4"),
        ({"compute": 1e21, "batch_tokens": 1e30}, "batch_tokens=1e\\+30 is more than the run's D"),
        ({"compute": 1e21, "noise_scale": float("nan")}, "noise_scale must be finite and positive"),
        ({"compute": 1e21, "noise_scale": {"loss": [1.0]}}, "noise_scale needs the column 'noise_scale'"),
        ({"compute": 1e21, "architecture": {"norm": "batch"}}, "norm must be one of"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(KnownFit(CHINCHILLA_LAW, CHINCHILLA), bootstrap=20, **arguments)


def test_law_must_have_N_and_D() -> None:
    for name, lacking in (
        ("kaplan_N", "no D"),
        ("kaplan_D", "no N"),
        ("kaplan_NS", "no D"),
        ("kaplan_C", "no N and no D"),
    ):
        with pytest.raises(ValueError, match=f"law='{name}' has {lacking}"):
            plan(KnownFit(laws.get(name), CHINCHILLA), 1e21)
    repeated = Law("E + A/N**alpha + B/D**beta + R/U", variables=["N", "D", "U"])
    with pytest.raises(ValueError, match="depends on the unique tokens U; give unique_tokens"):
        plan(KnownFit(repeated, CHINCHILLA), 1e21)
    with pytest.raises(ValueError, match="also depends on V"):
        plan(KnownFit(Law("A/N + B/D + R/V", variables=["N", "D", "V"]), CHINCHILLA), 1e21)
    fit = KnownFit(CHINCHILLA_LAW, CHINCHILLA)
    with pytest.raises(ValueError, match="epsilon must be finite and positive, got 0"):
        plan(fit, 1e21, bootstrap=20).region(0)
