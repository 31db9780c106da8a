"""Plans under limits and for goals: against closed forms and mpmath to 1e-10, and against brute force over a fine grid."""

from functools import partial
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pyscaling import laws
from pyscaling.laws import Law
from pyscaling.planning import KnownLaw, plan
from pyscaling.planning.frontier import Frontier, Repetition, chinchilla_optimum
from pyscaling.study.spec import StudySpec

from .known import CHINCHILLA, CHINCHILLA_LAW, KAPLAN, KAPLAN_LAW, NUMERICAL, NUMERICAL_LAW, KnownFit, chinchilla

FIT = KnownFit(CHINCHILLA_LAW, CHINCHILLA)
ANONYMOUS = KnownFit(NUMERICAL_LAW, NUMERICAL)
HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}  # 2022, eq. 10


def planned(fit: Any = FIT, **arguments: Any) -> Any:
    return plan(fit, bootstrap=arguments.pop("bootstrap", 20), **arguments)


# ---- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", [FIT, ANONYMOUS], ids=["closed form", "numerical"])
@pytest.mark.parametrize("target", [1.9, 2.2, 3.0])
def test_least_compute_for_a_loss(fit: Any, target: float) -> None:
    """At the optimum the terms of N and D are as beta to alpha, so both are known shares of L - E."""
    p = {name: mpmath.mpf(value) for name, value in CHINCHILLA.items()}
    share = p["beta"] / (p["alpha"] + p["beta"])
    N = (p["A"] / (share * (target - p["E"]))) ** (1 / p["alpha"])
    D = (p["B"] / ((1 - share) * (target - p["E"]))) ** (1 / p["beta"])
    result = planned(fit, target_loss=target)
    assert result.compute == pytest.approx(float(6 * N * D), rel=1e-10)
    assert result.N.value == pytest.approx(float(N), rel=1e-10 if fit is FIT else 1e-8)
    assert result.needed.low < result.compute < result.needed.high
    assert chinchilla(CHINCHILLA, result.N.value, result.D.value) == pytest.approx(target, rel=1e-12)
    back = planned(fit, compute=result.compute)
    assert back.N.value == pytest.approx(result.N.value, rel=1e-9)


@pytest.mark.parametrize(("target", "served"), [(2.0, 1e12), (2.2, 1e13), (2.5, 1e10)])
def test_priced_for_serving(target: float, served: float) -> None:
    """Sardana & Frankle 2024, eq. 2: least 6ND + 2N D_inf for a loss, its stationary point found by mpmath in 30 digits."""
    p = {name: mpmath.mpf(value) for name, value in CHINCHILLA.items()}
    with mpmath.workdps(30):

        def D_of(x: Any) -> Any:
            return (p["B"] / (target - p["E"] - p["A"] * mpmath.exp(-p["alpha"] * x))) ** (1 / p["beta"])

        def slope(x: Any) -> Any:
            return mpmath.diff(lambda y: y + mpmath.log(6 * D_of(y) + 2 * served), x)

        least = mpmath.log(p["A"] / (target - p["E"])) / p["alpha"]
        x = mpmath.findroot(slope, (least + 0.05, least + 6), solver="anderson", tol=1e-35, maxsteps=200)
        cost = float(mpmath.exp(x) * (6 * D_of(x) + 2 * served))
    result = planned(target_loss=target, inference_tokens=served)
    assert result.compute == pytest.approx(cost, rel=1e-10)
    assert result.N.value == pytest.approx(float(mpmath.exp(x)), rel=1e-7)
    free = planned(target_loss=target)
    assert result.N.value < free.N.value and result.D.value > free.D.value
    assert result.training_compute + result.serving_compute == pytest.approx(result.compute, rel=1e-12)


def test_serving_apart_spends_the_budget_on_training() -> None:
    apart = planned(compute=1e21, inference_tokens=1e12, serving_apart=True)
    assert apart.training_compute == pytest.approx(1e21, rel=1e-9)
    loss = chinchilla(CHINCHILLA, apart.N.value, apart.D.value)
    assert planned(target_loss=loss, inference_tokens=1e12).N.value == pytest.approx(apart.N.value, rel=1e-5)
    assert planned(compute=1e21, inference_tokens=1.0, serving_apart=True).N.value == pytest.approx(
        planned(compute=1e21).N.value, rel=1e-8
    )


@pytest.mark.parametrize("fit", [FIT, ANONYMOUS, KnownFit(KAPLAN_LAW, KAPLAN)])
def test_limits_that_do_not_bind_change_nothing(fit: Any) -> None:
    free = planned(fit, compute=1e21)
    limited = planned(
        fit, compute=1e21, unique_tokens=2 * free.D.value, max_tokens=2 * free.D.value, max_parameters=2 * free.N.value
    )
    assert limited.N.value == pytest.approx(free.N.value, rel=1e-10)
    assert (limited.D.low, limited.D.high) == pytest.approx((free.D.low, free.D.high), rel=1e-6)
    assert limited.loss.value == pytest.approx(free.loss.value, rel=1e-12)
    assert limited.epochs == pytest.approx(0.5, rel=1e-10)
    assert limited.with_more_data(1e9) == (0.0, 1.0)


def test_data_constrained_law_without_a_cap_is_chinchilla() -> None:
    params = CHINCHILLA | {"R_N_star": 5.3, "R_D_star": 15.4}
    fit = KnownFit(laws.get("data_constrained"), params)
    for arguments in ({}, {"unique_tokens": 1e15}):
        result = planned(fit, compute=1e22, **arguments)
        assert result.N.value == pytest.approx(chinchilla_optimum(CHINCHILLA, 1e22), rel=1e-10)
        assert result.loss.value == pytest.approx(planned(compute=1e22).loss.value, rel=1e-10)


def test_repetition_is_the_data_constrained_law() -> None:
    """With Muennighoff et al.'s constants: their worked example, and the same plan as by their law."""
    published = {
        "E": np.exp(0.6254804),
        "A": np.exp(6.255414),
        "B": np.exp(7.3049974),
        "alpha": 0.3526596,
        "beta": 0.3526596,
    }
    frontier = Frontier(CHINCHILLA_LAW, 1e3, 1e12, repetition=Repetition(25e9))
    point = {name: np.array([value]) for name, value in published.items()}
    for N, D, loss in ((6.34e9, 242e9, 2.2256440889984477), (8.67e9, 178e9, 2.2269634075087867)):
        assert frontier.loss(point, np.array([[N]]), np.array([[D]]))[0, 0] == pytest.approx(loss, rel=1e-9)
    ours = planned(KnownFit(CHINCHILLA_LAW, published), compute=9.3e21, unique_tokens="25B")
    law = KnownFit(laws.get("data_constrained"), published | {"R_D_star": 15.387756, "R_N_star": 5.309743})
    theirs = planned(law, compute=9.3e21, unique_tokens="25B")
    assert ours.N.value == pytest.approx(theirs.N.value, rel=1e-6)
    assert ours.epochs > 4 and any("epochs" in warning for warning in ours.warnings)
    gain, worth = ours.with_more_data(1e9)
    more = planned(KnownFit(CHINCHILLA_LAW, published), compute=9.3e21, unique_tokens=26e9)
    assert gain == pytest.approx(ours.loss.value - more.loss.value, rel=1e-6) and worth > 1


def test_hoffmanns_three_approaches_at_gophers_budget() -> None:
    """At 5.76e23 FLOPs: 67 B parameters by approach 1, 63 B by 2, 40 B by 3 (Hoffmann et al. 2022, table 3)."""
    parametric = planned(KnownFit(CHINCHILLA_LAW, HOFFMANN), compute=5.76e23)
    # the printed constants give 32 B; those of the source, E 1.6934, A 406.4, B 410.7, alpha .3392, beta .2849, 40 B
    unrounded = HOFFMANN | {"E": 1.6934, "alpha": 0.3392, "beta": 0.2849}
    assert parametric.N.value == pytest.approx(32.8e9, rel=0.03)
    assert planned(KnownFit(CHINCHILLA_LAW, unrounded), compute=5.76e23).N.value == pytest.approx(40e9, rel=0.03)
    # 1 and 2 are power laws N ~ C^a with a = 0.50 and 0.49: as laws that have that frontier
    for exponent, N in ((0.50, 67e9), (0.49, 63e9)):
        alpha, beta = 0.7 * (1 - exponent), 0.7 * exponent
        G = N / (5.76e23 / 6) ** exponent
        law = {"E": 1.7, "A": beta * 1e3 * G**0.7 / alpha, "B": 1e3, "alpha": alpha, "beta": beta}
        assert planned(KnownFit(CHINCHILLA_LAW, law), compute=5.76e23).N.value == pytest.approx(N, rel=1e-10)


def test_gain_over_a_run() -> None:
    run = {"N": 1e9, "D": 2e10}
    loss = chinchilla(CHINCHILLA, **run)
    result = planned(target_gain=0.1, over=run)
    assert result.compute == pytest.approx(planned(target_loss=loss - 0.1).compute, rel=1e-10)
    # the run's own uncertainty cancels: only the difference is unsure
    assert np.log(result.needed.high / result.needed.low) < np.log(
        planned(target_loss=loss - 0.1).needed.high / planned(target_loss=loss - 0.1).needed.low
    )


# ---- units -----------------------------------------------------------------------------------------------------------


def test_every_unit_is_the_same_budget() -> None:
    hours = 8 * 72
    compute = hours * 3600 * 0.4 * 989.4e12
    budgets = [
        {"compute": compute}, {"compute": f"{compute / 8.64e19} PF-days"}, {"gpu_hours": hours, "device": "H100"},
        {"time": "3 days", "devices": 8, "device": "H100"}, {"time": "72 h", "devices": 8, "device": "H100"},
        {"dollars": 2.5 * hours, "price_per_gpu_hour": 2.5, "device": "H100"},
        {"gpu_hours": hours / 2, "device": "H100", "utilisation": 0.8},
    ]  # fmt: skip
    plans = [planned(**budget) for budget in budgets]
    assert [p.compute for p in plans] == pytest.approx([compute] * len(plans), rel=1e-12)
    timed = plans[3]
    assert timed.gpu_hours == pytest.approx(hours) and timed.training_seconds == pytest.approx(3 * 86400)
    assert plans[5].price == pytest.approx(2.5 * hours)
    assert plans[0].gpu_hours is None and plans[0].price is None


def test_the_tightest_limit_binds() -> None:
    result = planned(compute=1e21, gpu_hours=100, device="H100")
    assert result.binding == ("gpu_hours",) and result.compute == pytest.approx(100 * 3600 * 0.4 * 989.4e12)
    assert "limited by" in str(result) and "compute allows 7.02 x as much" in str(result)
    small = planned(compute=1e22, max_parameters="1B")
    assert small.N.value == 1e9 and small.binding == ("compute", "max_parameters")
    served = planned(compute=1e22, serving_memory="2 GB")
    assert served.N.value == 1e9 and served.binding == ("compute", "serving_memory")
    short = planned(compute=1e22, max_tokens="10B")
    assert short.D.value == 1e10 and short.binding == ("compute", "max_tokens")


@pytest.mark.parametrize("most_N", [None, 9.3e7, 9.741e7, 9.97e7, 1.2e8])
def test_serving_apart_keeps_the_budget_beside_a_cap_that_hardly_binds(most_N: float | None) -> None:
    result = planned(compute=4.5e19, inference_tokens=4.2e11, serving_apart=True, max_parameters=most_N)
    assert result.training_compute == pytest.approx(4.5e19, rel=1e-10)


def test_caps_that_leave_a_training_budget_unspent() -> None:
    caps = {"max_parameters": 1e9, "max_tokens": 1e10, "inference_tokens": 1e11}
    apart, alone = (planned(compute=1e24, serving_apart=apart, **caps) for apart in (True, False))
    assert (apart.N.value, apart.D.value) == pytest.approx((1e9, 1e10))
    assert apart.binding == ("max_parameters", "max_tokens") == alone.binding


def test_compute_without_use_is_told() -> None:
    saturated = planned(compute=1e24, unique_tokens=1e10, max_tokens=1e11)
    (warning,) = (text for text in saturated.warnings if "without use" in text)
    enough = float(warning.split(":")[1].split()[0])
    assert planned(compute=enough, unique_tokens=1e10, max_tokens=1e11).loss.value == pytest.approx(
        saturated.loss.value * (1 + 1e-4), rel=1e-6
    )
    assert not any("without use" in text for text in planned(compute=1e21, unique_tokens=1e10).warnings)


def test_a_law_that_few_tokens_leave_undefined_has_goals() -> None:
    params = {"E": 1.5, "A": 400.0, "alpha": 0.34, "B": 60.0, "beta": 1.5}
    fit = KnownFit(Law("E + A/N**alpha + B/log(D)**beta", name="mine"), params)
    loss = planned(fit, compute=1e22, inference_tokens=1e12).loss.value
    assert planned(fit, target_loss=loss, inference_tokens=1e12).needed.value == pytest.approx(1e22, rel=1e-8)


def test_with_serving_apart_the_region_keeps_to_the_training_budget() -> None:
    result = planned(compute=1e21, inference_tokens="1T", serving_apart=True)
    region = result.region(0.01)
    for N, D in ((region.N_low, region.D_high), (region.N_high, region.D_low)):
        assert pytest.approx(1e21, rel=1e-9) == 6 * N * D
        assert chinchilla(CHINCHILLA, N, D) == pytest.approx(
            1.01 * chinchilla(CHINCHILLA, result.N.value, result.D.value)
        )


@pytest.mark.parametrize("limits", [{}, {"inference_tokens": "1T"}, {"inference_tokens": "1T", "serving_apart": True}])
def test_no_compute_leads_below_the_floor(limits: dict[str, Any]) -> None:
    assert planned(compute=1e21, **limits).floor.value == pytest.approx(CHINCHILLA["E"], rel=1e-9)


def test_compute_that_no_limit_lets_be_spent_is_not_binding() -> None:
    result = planned(compute=1e21, max_tokens="1B", max_parameters="1B")
    assert result.binding == ("max_parameters", "max_tokens")
    assert result.compute == result.training_compute == pytest.approx(6e18)


def test_the_constants_of_a_paper_are_planned_by() -> None:
    result = plan(KnownLaw("chinchilla", HOFFMANN), 5.76e23)
    assert result.N.value == pytest.approx(chinchilla_optimum(HOFFMANN, 5.76e23), rel=1e-12)
    assert result.N.low == pytest.approx(result.N.high)


def test_a_plan_is_a_study() -> None:
    result = planned(
        compute=1e17, architecture={"context": 256, "vocab_size": 1000, "mlp": "swiglu", "norm": "rmsnorm"}
    )
    spec = StudySpec.from_toml(result.to_toml(corpus="books/*.txt"))
    (size,) = spec.sizes
    assert spec.shape(size, spec.corpus.vocab_size) == result.shape
    assert spec.training.batch_tokens == result.batch_tokens
    assert spec.budgets(size)[0] == pytest.approx(result.D.value, abs=result.batch_tokens)


# ---- brute force -----------------------------------------------------------------------------------------------------

laws_of_two = st.one_of(
    st.tuples(
        st.just("chinchilla"),
        st.fixed_dictionaries(
            {
                "E": st.floats(0.1, 3), "A": st.floats(10, 3e3), "B": st.floats(10, 3e3), "alpha": st.floats(0.15, 0.6),
                "beta": st.floats(0.15, 0.6),
            }
        ),
    ),
    st.tuples(
        st.just("kaplan_ND"),
        st.fixed_dictionaries(
            {
                "N_c": st.floats(1e12, 1e15), "D_c": st.floats(1e12, 1e15), "alpha_N": st.floats(0.04, 0.2),
                "alpha_D": st.floats(0.04, 0.2),
            }
        ),
    ),
)  # fmt: skip


limits_of_each = [st.one_of(st.none(), st.floats(*exponents)) for exponents in ((8, 13), (8, 13), (8, 13), (6, 12))]
LIMITS = "inference_tokens", "unique_tokens", "max_tokens", "max_parameters"


def loss_with_repetition(fit: KnownFit, U: float, N: Any, D: Any) -> Any:
    """Muennighoff et al. 2023, eqs. 5-7, written out again."""

    def worth(x: Any, unique: Any, R: float) -> Any:
        return np.where(x > unique, unique * (1 + R * (1 - np.exp(-np.maximum(x / unique - 1, 0) / R))), x)

    D_worth, p = worth(D, U, 15.387756), fit.params
    if fit.law.name == "kaplan_ND":
        return fit.evaluate(N=N, D=D_worth)
    fitting = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / p["alpha"]) * U ** (p["beta"] / p["alpha"])
    return fit.evaluate(N=worth(N, fitting, 5.309743), D=D_worth)


@settings(max_examples=60, deadline=None)
@given(laws_of_two, st.floats(18, 25), *limits_of_each)
@example(  # the best model is 0.999992 of the one that serving leaves no token
    ("kaplan_ND", {"N_c": 7.54e13, "D_c": 1e12, "alpha_N": 0.09375, "alpha_D": 0.046875}), 18.0, 10.0, None, None, None
)
def test_no_point_of_a_fine_grid_beats_the_plan(
    law: Any, log_C: float, served: float | None, unique: float | None, most_D: float | None, most_N: float | None
) -> None:
    name, params = law
    C = 10**log_C
    fit = KnownFit(laws.get(name), params)
    given_limits = zip(LIMITS, (served, unique, most_D, most_N), strict=True)
    limits = {name: 10**value for name, value in given_limits if value is not None}
    try:
        result = planned(fit, compute=C, bootstrap=2, **limits)
    except ValueError as error:
        assume("too small" not in str(error))  # an optimum that no run of a whole sequence reaches
        raise
    D_inf, U = limits.get("inference_tokens", 0.0), limits.get("unique_tokens", np.inf)
    assert 6 * result.N.value * result.D.value + 2 * result.N.value * D_inf <= C * (1 + 1e-9)
    assert result.D.value <= limits.get("max_tokens", np.inf) and result.N.value <= limits.get("max_parameters", np.inf)
    # every D up to what is left, for with repetition more is not better by itself
    N = np.geomspace(800, min(limits.get("max_parameters", np.inf), C / (6e3 + 2 * D_inf)), 20_001)
    D = np.minimum((C / N - 2 * D_inf) / 6, limits.get("max_tokens", np.inf))
    loss = partial(loss_with_repetition, fit, U)
    once = N[N * (6 * U + 2 * D_inf) <= C]  # models that see each token once
    seen = np.full(len(once), min(U, limits.get("max_tokens", np.inf), 1e300))
    grid = np.concatenate([loss(N, D), loss(N, D / 1.5), loss(once, seen)])
    reached = float(loss(np.array(result.N.value), np.array(result.D.value)))
    assert reached <= np.nanmin(grid) * (1 + 1e-6)


@settings(max_examples=60, deadline=None)
@given(laws_of_two, st.floats(6, 12), st.floats(0, 4), *limits_of_each)
def test_no_point_of_a_fine_grid_reaches_a_goal_for_less(
    law: Any, log_N: float, log_ratio: float, served: float | None, unique: float | None, most_D: float | None,
    most_N: float | None,
) -> None:  # fmt: skip
    fit = KnownFit(laws.get(law[0]), law[1])
    given_limits = zip(LIMITS, (served, unique, most_D, most_N), strict=True)
    limits = {name: 10**value for name, value in given_limits if value is not None}
    D_inf, U = limits.get("inference_tokens", 0.0), limits.get("unique_tokens", np.inf)
    most_tokens, most_parameters = limits.get("max_tokens", np.inf), limits.get("max_parameters", np.inf)
    loss = partial(loss_with_repetition, fit, U)
    N = min(10**log_N, most_parameters)
    target = 1.001 * float(loss(N, min(N * 10**log_ratio, most_tokens)))  # a model within the limits gets below it
    try:
        result = planned(fit, target_loss=target, bootstrap=2, **limits)
    except ValueError as error:
        assume("too small" not in str(error))
        raise
    paid = 6 * result.N.value * result.D.value + 2 * result.N.value * D_inf
    assert result.D.value <= most_tokens and result.N.value <= most_parameters
    assert float(loss(result.N.value, result.D.value)) == pytest.approx(target, rel=1e-9)
    N = np.geomspace(800, min(most_parameters, 1e16), 5_001)
    low, high = np.full(len(N), 1e-3), np.full(len(N), min(most_tokens, 1e40))  # of which the least D that reaches it
    reached = loss(N, high) <= target
    for _ in range(200):
        middle = np.sqrt(low * high)
        enough = loss(N, middle) <= target
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    cost = np.where(reached & (high >= 1024), 6 * N * high + 2 * N * D_inf, np.inf)  # of a whole sequence
    assert paid <= cost.min() * (1 + 1e-6)


CROWDED = [  # limits that bind for some samples and not for others
    {"max_tokens": 6e10},
    {"max_parameters": 3e9},
    {"unique_tokens": 5e10},
    {"unique_tokens": 1e10, "max_tokens": 7e10, "inference_tokens": 1e11},
]


@pytest.mark.parametrize("limits", CROWDED)
@pytest.mark.parametrize("fit", [FIT, KnownFit(KAPLAN_LAW, KAPLAN)])
def test_many_samples_are_solved_as_each_alone(fit: KnownFit, limits: dict[str, float]) -> None:
    generator = np.random.default_rng(3)
    samples = {name: value * np.exp(0.01 * generator.standard_normal(60)) for name, value in fit.params.items()}
    point = {name: np.array([value]) for name, value in fit.params.items()}
    repetition = Repetition(limits["unique_tokens"]) if "unique_tokens" in limits else None
    frontier = Frontier(
        fit.law, 768.0, limits.get("max_parameters", 1e60), limits.get("inference_tokens", 0.0),
        limits.get("max_tokens", np.inf), repetition,
    )  # fmt: skip
    target = float(fit.evaluate(N=2.5e9, D=5e10))
    solved = [frontier.least_compute({n: v[i : i + 1] for n, v in samples.items()}, target) for i in range(60)]
    C_alone, N_alone = np.array(solved)[:, :, 0].T
    C_point, N_point = (float(value[0]) for value in frontier.least_compute(point, target))
    C, N = frontier.least_compute(samples, target, near=(C_point, N_point))
    assert np.isfinite(C_alone).sum() > 30
    assert pytest.approx(C_alone, rel=1e-5, nan_ok=True) == C
    assert pytest.approx(N_alone, rel=1e-3, nan_ok=True) == N


@pytest.mark.parametrize("limits", [*CROWDED, {"inference_tokens": 1e11}, {}])
@pytest.mark.parametrize("fit", [FIT, KnownFit(KAPLAN_LAW, KAPLAN)])
def test_many_samples_of_a_budget_are_solved_as_each_alone(fit: KnownFit, limits: dict[str, float]) -> None:
    generator = np.random.default_rng(4)
    samples = {name: value * np.exp(0.03 * generator.standard_normal(200)) for name, value in fit.params.items()}
    repetition = Repetition(limits["unique_tokens"]) if "unique_tokens" in limits else None
    frontier = Frontier(
        fit.law, 768.0, limits.get("max_parameters", 1e60), limits.get("inference_tokens", 0.0),
        limits.get("max_tokens", np.inf), repetition,
    )  # fmt: skip
    near = float(frontier.best_N({name: np.array([value]) for name, value in fit.params.items()}, 1e21)[0])
    alone = [frontier.best_N({n: v[i : i + 1] for n, v in samples.items()}, 1e21)[0] for i in range(200)]
    assert frontier.best_N(samples, 1e21, near=near) == pytest.approx(np.array(alone), rel=2e-5)


# ---- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compute": [1e21]}, "is not a number of FLOPs"),
        ({"compute": np.array([1e21, 1e22])}, "is not a number of FLOPs"),
        ({"compute": 10**400}, "is not a number of FLOPs"),
        ({"compute": 1e21, "max_parameters": [1e9]}, "max_parameters must be one number"),
        ({"compute": 1e21, "architecture": 3}, "architecture must map options"),
        ({"compute": 1e21, "bootstrap": KnownFit(KAPLAN_LAW, KAPLAN).bootstrap(5)}, "bootstrap is of another law"),
        ({"compute": 1e21, "inference_tokens": 1e12, "serving_apart": "no"}, "serving_apart must be True or False"),
        ({"target_loss": 2.4, "inference_tokens": 1e12, "serving_apart": True}, "a goal counts both kinds"),
        ({"compute": 1e21, "serving_apart": True}, "says nothing without inference_tokens"),
        ({"target_gain": 50.0, "over": {"N": 1e9, "D": 1e10}}, "target_gain=50 exceeds the whole loss of over"),
        ({"time": "3 days", "devices": "8", "device": "H100"}, "devices must be a number, got the text '8'"),
        ({"compute": 1e21, "bootstrap": "x"}, "bootstrap must be a number of resamples"),
        ({"compute": 1e21, "architecture": {"foo": 1}}, "has an option that is unknown"),
        ({"compute": 1e21, "bytes_per_parameter": -1}, "bytes_per_parameter must be finite and positive"),
        ({}, "a plan needs a budget .* or a goal"),
        ({"target_loss": 9e3}, r"this loss takes 94 FLOPs by the fit, which is too small for any model: .* Aim at a lower loss"),
        ({"target_loss": 1.7}, r"1.7000 is not reachable: by this fit no compute leads below 1.8172"),
        ({"target_loss": 2.0, "unique_tokens": "1B"}, "without the limits on data and parameters not below 1.8172"),
        ({"target_loss": 2.0, "compute": 1e20}, r"needs 2.426e\+23 FLOPs by this fit, 2.43e\+03 times what compute allows"),
        ({"target_loss": 2.0, "target_gain": 0.1}, "target_loss or target_gain, not both"),
        ({"target_gain": 0.1}, "target_gain needs over="),
        ({"target_gain": 0.1, "over": {"N": 1e9}}, "target_gain needs over="),
        ({"target_gain": 0.1, "over": {"N": -1e9, "D": 1}}, "over's N must be finite and positive"),
        ({"compute": 1e21, "over": {"N": 1, "D": 1}}, "says nothing without target_gain"),
        ({"target_loss": -2.0}, "target_loss must be finite and positive, got -2.0"),
        ({"time": 3, "devices": 8, "device": "H100"}, "time=3 has no unit"),
        ({"time": "3 fortnights", "devices": 8, "device": "H100"}, "is not a time"),
        ({"time": "-3 days", "devices": 8, "device": "H100"}, "time must be finite and positive"),
        ({"time": "3 days", "device": "H100"}, "needs devices="),
        ({"time": "3 days", "devices": 8}, "needs device="),
        ({"gpu_hours": 100}, "gpu_hours=100 needs device="),
        ({"gpu_hours": 100, "device": "H1000"}, "H1000"),
        ({"dollars": 100, "device": "MI250X"}, "needs price_per_gpu_hour=.* no list price of MI250X"),
        ({"dollars": 100, "device": "H100", "price_per_gpu_hour": -2}, "price_per_gpu_hour must be finite and positive"),
        ({"compute": 1e21, "utilisation": 0.4}, "says nothing without device="),
        ({"compute": 1e21, "device": "H100", "utilisation": 40}, "utilisation must lie between 0 and 1, got 40"),
        ({"compute": 1e21, "inference_tokens": -1}, "inference_tokens must be finite and positive"),
        ({"compute": 1e21, "inference_tokens": "many"}, "inference_tokens='many' is not a count"),
        ({"compute": 1e15, "inference_tokens": 1e12}, "serving 1e\\+12 tokens, needs 1.54e\\+15 FLOPs, 1.54 times"),
        ({"compute": 1e21, "max_parameters": 100}, "max_parameters allows 100 parameters"),
        ({"compute": 1e21, "serving_memory": "80"}, "serving_memory='80' is not a size with a unit"),
        ({"compute": 1e21, "serving_memory": "1 kB"}, "serving_memory allows 500 parameters"),
        ({"compute": 1e21, "max_tokens": 10}, "less than one sequence of context=1024"),
        ({"compute": 1e21, "repetition": (15, 5)}, "says nothing without unique_tokens"),
        ({"compute": 1e21, "unique_tokens": 1e9, "repetition": 15}, "repetition must be two numbers"),
    ],
)  # fmt: skip
def test_bad_input_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned(**arguments)
