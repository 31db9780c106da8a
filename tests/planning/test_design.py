"""Designs against what is known of them: Elfving's weights, brute force over small sets, and refits to runs that are made."""

import json
import warnings
from itertools import combinations_with_replacement
from typing import Any

import matplotlib
import numpy as np
import pytest
from scipy.stats import t as student

import pyscaling as ps
from pyscaling.planning.design import NextRuns, next_runs

matplotlib.use("Agg")

TRUTH = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}  # in the order of the fit's parameters
N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(2e6, 2e7, 4), np.geomspace(4e7, 4e8, 4)))
LARGEST = 6 * 2e7 * 4e8


def chinchilla(p: Any, N: Any, D: Any) -> Any:
    return p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"]


def runs_at(N: np.ndarray, D: np.ndarray, noise: float, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {"N": N, "D": D, "loss": chinchilla(TRUTH, N, D) * np.exp(noise * generator.standard_normal(len(N)))}


@pytest.fixture(scope="module")
def fit() -> ps.Fit:
    return ps.fit(runs_at(N, D, 0.005, 0), objective="gaussian", threads=1)


def derivatives(p: Any, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Of ln L by (E, A, alpha, B, beta), by hand."""
    x, y = N ** -p["alpha"], D ** -p["beta"]
    rows = [np.ones_like(x), x, -p["A"] * x * np.log(N), y, -p["B"] * y * np.log(D)]
    return np.stack(rows, axis=1) / chinchilla(p, N, D)[:, None]


def log_n_opt(p: Any, C: float) -> float:
    return (np.log(p["alpha"] * p["A"] / (p["beta"] * p["B"])) + p["beta"] * np.log(C / 6)) / (p["alpha"] + p["beta"])


def gradient(function: Any, p: dict[str, float]) -> np.ndarray:
    return np.array(
        [
            (function(p | {name: value * 1.00001}) - function(p | {name: value * 0.99999})) / (2e-5 * value)
            for name, value in p.items()
        ]
    )


def error_of(fit: ps.Fit, g: np.ndarray, N_new: Any = (), D_new: Any = ()) -> float:
    """Standard error of a target of gradient g after further runs, from the normal equations."""
    J = derivatives(fit.params, np.r_[N, N_new], np.r_[D, D_new]) / fit.noise
    scale = np.linalg.norm(J, axis=0)
    inverse = np.linalg.inv(J.T @ J / np.outer(scale, scale)) / np.outer(scale, scale)
    return float(np.sqrt(g @ inverse @ g))


def half_width(quantity: Any) -> float:
    return float(np.log(quantity.high / quantity.low) / 2)


def test_elfving_extrapolation_of_a_line() -> None:
    """L = E + x with x = A / N^alpha, alpha known: E is the line's value at x = 0, outside of x in [x_1, x_2].

    Elfving 1952: all runs at the two ends, in the ratio x_2 : x_1 of numbers at x_1 and x_2, and the variance is
    ((x_1 + x_2) / (x_2 - x_1))^2 tau^2 / n. With x_2 = 3 x_1 and n = 8: six and two, and tau^2 / 2.
    """
    alpha, beta = 0.5, 0.3
    generator = np.random.default_rng(1)
    loss = 2 + 300 / N**alpha + 100 / D**beta + 0.01 * generator.standard_normal(len(N))
    line = ps.fit(
        {"N": N, "D": D, "loss": loss},
        objective="gaussian",
        residual="raw",
        fixed={"alpha": alpha, "beta": beta, "B": 100.0},
        threads=1,
    )
    sizes = (np.linspace(1, 3, 21) * 1e7**-alpha) ** (-1 / alpha)  # x in equal steps
    tau = 1e-7  # beside which the runs that are fitted say nothing
    plan = next_runs(
        line,
        8.0,
        target="E",
        cost=lambda N, D: np.ones_like(N),
        candidates={"N": sizes, "D": np.full(21, 1e8)},
        noise=tau,
    )
    assert sorted(plan.N) == pytest.approx(sorted([sizes[0]] * 6 + [sizes[-1]] * 2))
    error = tau * np.sqrt(1 / 2) * student.ppf(0.95, len(N) + 8 - 2)
    assert half_width(plan.after) * line.params["E"] == pytest.approx(error, rel=1e-3)
    assert plan.efficiency == pytest.approx(1, abs=1e-3)  # the weights 3/4 and 1/4 of eight runs are whole


def test_elfving_slope_of_a_line() -> None:
    """Of the slope: half of the runs at either end, whatever the target's scale (ln A here)."""
    generator = np.random.default_rng(1)
    loss = 2 + 300 / N**0.5 + 100 / D**0.3 + 0.01 * generator.standard_normal(len(N))
    line = ps.fit(
        {"N": N, "D": D, "loss": loss}, objective="gaussian", residual="raw",
        fixed={"alpha": 0.5, "beta": 0.3, "B": 100.0}, threads=1,
    )  # fmt: skip
    sizes = np.geomspace(1e6, 1e8, 15)
    plan = next_runs(
        line, 10, target="A", cost=lambda N, D: 1 + 0 * N, candidates={"N": sizes, "D": 0 * sizes + 1e8}, noise=1e-7
    )
    assert sorted(plan.N) == pytest.approx([1e6] * 5 + [1e8] * 5)


TARGETS = {
    "N_opt": lambda p: log_n_opt(p, 100 * LARGEST),
    "loss": lambda p: chinchilla(
        p, np.exp(log_n_opt(p, 100 * LARGEST)), 100 * LARGEST / 6 / np.exp(log_n_opt(p, 100 * LARGEST))
    ),
    "alpha": lambda p: p["alpha"],
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(3))
def test_brute_force(fit: ps.Fit, target: str, seed: int) -> None:
    """All sets of up to four runs of twelve candidates, repeats and all, that the spend pays for: within 2 % of the best."""
    generator = np.random.default_rng(seed)
    some_N, some_D = np.exp(generator.uniform(np.log(1e6), np.log(1e8), 12)), np.exp(generator.uniform(17, 21, 12))
    cost = 6 * some_N * some_D
    spend = float(np.sort(cost)[6] * 3)
    g = gradient(TARGETS[target], fit.params)
    best = min(
        error_of(fit, g, some_N[list(chosen)], some_D[list(chosen)])
        for size in (1, 2, 3, 4)
        for chosen in combinations_with_replacement(range(12), size)
        if cost[list(chosen)].sum() <= spend
    )
    plan = next_runs(
        fit, spend, target=target, compute=None if target == "alpha" else 100 * LARGEST,
        candidates={"N": some_N, "D": some_D}, n_runs=4, average=0,
    )  # fmt: skip
    found = error_of(fit, g, plan.N, plan.D)
    assert found <= 1.02 * best
    assert plan.efficiency * found**2 <= best**2 * (1 + 1e-6)  # the bound is one
    value = 1.0 if target == "N_opt" else TARGETS[target](fit.params)
    reach = student.ppf(0.95, len(N) + len(plan) - 5) * found / value
    assert half_width(plan.after) == pytest.approx(reach, rel=2e-3)


def test_interval_before_is_the_fits_own(fit: ps.Fit) -> None:
    g = gradient(lambda p: log_n_opt(p, 10 * LARGEST), fit.params)
    plan = next_runs(fit, LARGEST)
    assert plan.compute == pytest.approx(10 * LARGEST)  # by default
    error = np.sqrt(g @ fit.covariance(robust=False) @ g)
    assert half_width(plan.before) == pytest.approx(error * student.ppf(0.95, 11), rel=2e-3)
    assert plan.before.value == pytest.approx(np.exp(log_n_opt(fit.params, 10 * LARGEST)), rel=1e-9)


def test_interval_after_is_what_refits_come_to(fit: ps.Fit) -> None:
    """Noise of 0.5 % is added to the runs that were chosen, and the spread of refitted N_opt is the one foretold."""
    truth = ps.fit(
        runs_at(N, D, 0.0, 0) | {"noise": np.full(16, 0.005)}, objective="gaussian", noise="noise", threads=1
    )
    plan = next_runs(truth, 3 * LARGEST, compute=100 * LARGEST, n_runs=12, average=8)
    errors = []
    for seed in range(300):
        table = runs_at(np.r_[N, plan.N], np.r_[D, plan.D], 0.005, seed)
        refit = ps.fit(table, objective="gaussian", starts=[TRUTH], threads=1)
        errors.append(log_n_opt(refit.params, 100 * LARGEST))
    foretold = half_width(plan.after) / student.ppf(0.95, 16 + len(plan) - 5)
    assert np.std(errors) == pytest.approx(foretold, rel=0.15)  # 4 % by chance, and the law is not linear


def test_a_tokens_optimum_asks_for_the_same_runs(fit: ps.Fit) -> None:
    """ln D_opt = ln C/6 - ln N_opt; and a function is as good as a name."""
    plans = [next_runs(fit, LARGEST, target=target, compute=1e20, n_runs=6, average=4) for target in ("N_opt", "D_opt")]
    assert [run.N for run in plans[0]] == [run.N for run in plans[1]]
    named, called = (next_runs(fit, LARGEST, target=t, n_runs=6, average=4) for t in ("beta", lambda p: p["beta"]))
    assert (named.N.tolist(), named.D.tolist()) == (called.N.tolist(), called.D.tolist())
    assert half_width(named.after) == pytest.approx(half_width(called.after), rel=1e-9)


def test_limits_hold(fit: ps.Fit) -> None:
    plan = next_runs(
        fit, "1e17 FLOPs", compute="1 PF-day", N_range=(1e6, 3e7), D_range=(2e7, 1e9), tokens_per_parameter=(5, 100),
        max_run=2e16, n_runs=9, fixed_cost=1e15, cost=lambda N, D: 7 * N * D,
    )  # fmt: skip
    cost = 7 * plan.N * plan.D + 1e15
    assert 0 < len(plan) <= 9
    assert cost.sum() <= 1e17 * (1 + 1e-8)
    assert cost.sum() / 1e17 == pytest.approx(plan.used)
    assert cost.max() <= 2e16 * (1 + 1e-8)
    assert [run.cost for run in plan] == pytest.approx(cost)
    assert np.all(
        (plan.N >= 1e6 * 0.999999) & (plan.N <= 3e7 * 1.000001) & (plan.D >= 2e7 * 0.999999) & (plan.D <= 1.000001e9)
    )
    assert np.all((plan.D / plan.N >= 4.99999) & (plan.D / plan.N <= 100.00001))
    widths = [half_width(plan.before), *(half_width(run.after) for run in plan)]
    assert np.all(np.diff(widths) < 0)
    assert half_width(plan.after) == widths[-1]


def test_only_models_that_exist_are_proposed() -> None:
    N, D = (values.ravel() for values in np.meshgrid([768, 3e3, 1e4, 4e4], [2e5, 1e6, 5e6]))
    small = ps.fit(runs_at(N, D, 0.002, 1), objective="gaussian", threads=1)
    assert min(run.N for run in next_runs(small, spend=1e12, target="loss").runs) >= 768


def test_more_money_than_runs_can_take(fit: ps.Fit) -> None:
    for target in ("alpha", "E", "N_opt"):
        assert len(next_runs(fit, spend="1e60", target=target).runs) == 32


def test_more_money_tells_more(fit: ps.Fit) -> None:
    widths = [half_width(next_runs(fit, LARGEST * k, compute=1e20, average=0).after) for k in (0.1, 1, 10)]
    assert widths[0] > widths[1] > widths[2]


def test_averaging_guards_against_a_wrong_estimate() -> None:
    """Over pilots of large noise, designs for all likely parameters leave less variance at the truth than those for the
    estimate."""
    g = gradient(lambda p: log_n_opt(p, 100 * LARGEST), TRUTH)
    errors: dict[int, list[float]] = {0: [], 32: []}
    for seed in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such a pilot determines little
            poor = ps.fit(runs_at(N, D, 0.02, seed), objective="gaussian", starts=[TRUTH], threads=1)
        for average, found in errors.items():
            plan = next_runs(poor, LARGEST, compute=100 * LARGEST, n_runs=16, average=average)
            J = derivatives(TRUTH, np.r_[N, plan.N], np.r_[D, plan.D]) / 0.02
            found.append(float(g @ np.linalg.solve(J.T @ J, g)))
    assert np.mean(np.log(errors[32])) < np.mean(np.log(errors[0]))


def test_it_prints_plots_and_exports(fit: ps.Fit) -> None:
    plan = next_runs(fit, LARGEST, compute=1e20, n_runs=8, average=4)
    assert isinstance(plan, NextRuns)
    text = str(plan)
    assert text.startswith(f"{len(plan)} runs that tell most of N_opt at 1e+20 FLOPs by chinchilla")
    assert "now" in text
    table = json.loads(plan.to_json())
    assert [run["N"] for run in table["runs"]] == plan.N.tolist()
    assert table["after"]["low"] < table["after"]["value"] < table["after"]["high"]
    frame = plan.to_frame()
    assert list(frame.columns) == ["N", "D", "C", "cost", "low", "high"]
    assert frame["C"].to_numpy() == pytest.approx(6 * plan.N * plan.D)
    assert ps.Runs(frame).N.tolist() == plan.N.tolist()  # a table of runs, such as Study.extend takes
    axes = plan.plot()
    assert axes.get_xlabel().startswith("N")
    assert plan.key == next_runs(fit, LARGEST, compute=1e20, n_runs=8, average=4).key
    assert plan.key != next_runs(fit, 2 * LARGEST, compute=1e20, n_runs=8, average=4).key


def test_warnings(fit: ps.Fit) -> None:
    plan = next_runs(fit, LARGEST, compute=1e5 * LARGEST, n_runs=4, average=0)
    assert any("1e+05 times the largest run's" in warning for warning in plan.warnings)
    assert any("outside the fitted runs' N, D or D/N" in warning for warning in plan.warnings)
    inside = next_runs(
        fit, LARGEST / 3, N_range=(2e6, 2e7), D_range=(4e7, 4e8), tokens_per_parameter=(2, 200), n_runs=3
    )
    assert not any("outside" in warning for warning in inside.warnings)
    with pytest.warns(UserWarning, match="do not determine"):
        noisy = ps.fit(runs_at(N, D, 0.1, 3), objective="gaussian", starts=[TRUTH], threads=1)
    assert any("not to be trusted" in warning for warning in next_runs(noisy, LARGEST, n_runs=4, average=0).warnings)
    assert any(
        "uncertain" in w or "not determine" in w for w in next_runs(noisy, LARGEST, n_runs=4, average=0).warnings
    )


def test_a_hubers_noise_is_what_its_covariance_has(fit: ps.Fit) -> None:
    huber = ps.fit(runs_at(N, D, 0.005, 4), threads=1)
    plan = next_runs(huber, LARGEST, target="alpha", n_runs=4)
    error = huber.standard_errors(robust=False)["alpha"]
    assert half_width(plan.before) * huber.params["alpha"] == pytest.approx(error * student.ppf(0.95, 11), rel=2e-3)


def test_a_law_of_ones_own() -> None:
    """Without a closed form for N_opt."""
    law = ps.Law("((a/N)**(p/q) + b/D)**q")
    truth = {"a": 6.4e13, "b": 1.8e13, "p": 0.076, "q": 0.103}
    loss = law.evaluate(truth, N=N, D=D) * np.exp(0.003 * np.random.default_rng(0).standard_normal(len(N)))
    own = ps.fit({"N": N, "D": D, "loss": loss}, law=law, objective="gaussian", starts=[truth], threads=1)
    plan = next_runs(own, LARGEST, n_runs=5)
    assert len(plan) == 5
    assert half_width(plan.after) < 0.8 * half_width(plan.before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spend": -1}, "spend must be finite and positive, got -1"),
        ({"spend": 0}, "spend must be finite and positive, got 0"),
        ({"spend": float("nan")}, "spend must be finite and positive, got nan"),
        ({"spend": "3 bananas"}, "spend='3 bananas' has the unknown unit 'bananas'"),
        ({"spend": "-3"}, "spend must be finite and positive, got '-3'"),
        ({"spend": 1e12}, r"spend=1e\+12 pays for no run: the cheapest, N=2e\+06 and D=4e\+07, costs 4.8e\+14"),
        ({"max_run": 1e12}, r"max_run=1e\+12 pays for no run: the cheapest"),
        (
            {"target": "gamma"},
            "target='gamma' is unknown; known are N_opt, D_opt, loss, the parameters E, A, alpha, B, beta",
        ),
        ({"target": lambda p: p["gamma"]}, r"target must take parameters \(E, A, alpha, B, beta\)"),
        ({"target": lambda p: 3.0}, "does not change with its parameters"),
        ({"target": "alpha", "compute": 1e20}, r"compute=1e\+20 says nothing of target='alpha'"),
        ({"compute": "3 apples"}, "compute='3 apples' has the unknown unit"),
        ({"N_range": (1e8, 1e6)}, r"N_range=\(1e\+08, 1e\+06\) is reversed"),
        ({"D_range": (1e8,)}, r"D_range must be \(low, high\), two numbers"),
        ({"D_range": (-1, 5)}, "an end of D_range must be finite and positive, got -1"),
        ({"tokens_per_parameter": (1e6, 1e7)}, "leave no run; widen one"),
        ({"cost": lambda N, D: -N}, "cost must be finite and positive; of N="),
        ({"cost": lambda N, D: np.ones(3)}, "cost must take arrays of N and D"),
        ({"cost": 5}, "cost must be a function of N and D, got 5"),
        ({"fixed_cost": -1}, "fixed_cost must be finite and not negative, got -1"),
        ({"n_runs": 0}, "n_runs must be a whole number of at least 1, got 0"),
        ({"average": 1.5}, "average must be a whole number of at least 0, got 1.5"),
        ({"noise": 0}, "noise must be finite and positive, got 0"),
        ({"level": 1.2}, "level must lie between 0 and 1"),
        ({"candidates": {"N": [1e6]}}, "column 'D' is missing from candidates"),
        ({"candidates": {"N": [1e6], "D": [1e8]}, "N_range": (1, 2)}, "candidates list the runs; N_range"),
    ],
)
def test_mistakes(fit: ps.Fit, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next_runs(fit, **{"spend": LARGEST, **options})


def test_other_fits(grouped: ps.Fit) -> None:
    alone = ps.fit(runs_at(N, D, 0.005, 0), law="E + A/N**alpha", fixed={"A": 400.0}, threads=1)
    with pytest.raises(ValueError, match=r"cost is missing: what a run of .* does not follow from N; give cost="):
        next_runs(alone, LARGEST, target="alpha")
    with pytest.raises(ValueError, match="target='N_opt' at a budget needs a law of N and D"):
        next_runs(alone, LARGEST, cost=lambda N: N)
    with pytest.raises(ValueError, match="fit must come from ps.fit, got dict"):
        next_runs({}, LARGEST)
    with pytest.raises(ValueError, match="group is missing: this fit is of a, b; say which"):
        next_runs(grouped, LARGEST)
    with pytest.raises(ValueError, match="group='c' is unknown; the groups are a, b"):
        next_runs(grouped, LARGEST, group="c")


# ---- default ranges, other laws, regions, groups -----------------------------------------------------------------------


def test_runs_that_people_make() -> None:
    """The design of Hoffmann et al.'s points, N 57 M to 16 B at 0.5 to 340 tokens each: 54 M tokens for 96 M were proposed."""
    generator = np.random.default_rng(0)
    C = np.repeat([6e18, 6e19, 6e20, 6e21], 12)
    sizes = np.sqrt(C / 120) * np.exp(generator.uniform(-1.6, 1.6, len(C)))
    table = runs_at(sizes, C / 6 / sizes, 0.005, 0)
    ratio = table["D"] / table["N"]
    assert ratio.min() < 2  # beside what people run
    design = next_runs(ps.fit(table, objective="gaussian", threads=1), spend="1e20", target="N_opt", compute=1e23)
    assert np.all((design.D / design.N > 4.99) & (design.D / design.N < 501))
    assert np.all((0.999 * sizes.min() <= design.N) & (4.001 * sizes.max() >= design.N))
    assert np.all((0.999 * table["D"].min() <= design.D) & (4.001 * table["D"].max() >= design.D))
    steps = design.D / (22.91 * 512 * (design.D / 1e6) ** 0.47)  # at the critical batch of Zhang et al. 2024
    assert steps.min() > 500 and steps == pytest.approx([run.steps for run in design])
    assert max(map(len, str(design).splitlines())) <= 80
    assert "if the law holds" in " ".join(str(design).split())


def test_a_table_beside_what_people_run_keeps_its_own_ratios() -> None:
    for scale in (1e-3, 1e3):  # tokens per parameter of a thousandth, and a thousand times
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such runs determine little
            fit = ps.fit(runs_at(N, scale * D, 0.005, 0), objective="gaussian", threads=1)
        design = next_runs(fit, LARGEST * scale, n_runs=4, average=0)
        ratio = scale * np.quantile(D / N, [0.25, 0.75])
        assert np.all(
            (0.999 * min(5, ratio[0]) <= design.D / design.N) & (1.001 * max(500, ratio[1]) >= design.D / design.N)
        )


def test_few_steps_are_said(fit: ps.Fit) -> None:
    design = next_runs(fit, LARGEST, D_range=(1e6, 2e6), N_range=(1e5, 1e6), tokens_per_parameter=(1, 100), n_runs=2)
    assert any("fewer than 500 steps" in warning for warning in design.warnings)


def test_an_untrusted_fit_is_said_first(fit: ps.Fit) -> None:
    assert "NOT" not in next_runs(fit, LARGEST, n_runs=2, average=0).verdict
    with pytest.warns(UserWarning, match="do not determine"):
        noisy = ps.fit(runs_at(N, D, 0.1, 3), objective="gaussian", starts=[TRUTH], threads=1)
    design = next_runs(noisy, LARGEST, n_runs=2, average=0)
    assert str(design).startswith("NOT TO BE TRUSTED, ") and design._repr_html_().index("NOT TO") < 100
    assert json.loads(design.to_json())["verdict"] == design.verdict


def test_a_cost_takes_variables_by_name_or_in_order(fit: ps.Fit) -> None:
    designs = [
        next_runs(fit, LARGEST, cost=cost, n_runs=3, average=0)
        for cost in (
            lambda N, D: 7 * N * D,
            lambda D, N: 7 * N * D,
            lambda n, d: 7 * n * d,
            lambda **v: 7 * v["N"] * v["D"],
        )
    ]
    assert all([run.at for run in design] == [run.at for run in designs[0]] for design in designs)
    skewed = next_runs(fit, LARGEST, cost=lambda n, d: 7 * n**0.5 * d, n_runs=3, average=0)
    assert [run.cost for run in skewed] == pytest.approx([7 * run.N**0.5 * run.D for run in skewed])


def test_a_law_of_N_alone() -> None:
    """Slope of a line again, by a law of one variable whose runs cost what they are said to: at both ends, as many."""
    sizes = np.geomspace(1e6, 1e8, 12)
    loss = 2 + 300 / sizes**0.5 + 0.01 * np.random.default_rng(1).standard_normal(12)
    line = ps.fit({"N": sizes, "loss": loss}, law="power_constant_N", objective="gaussian", residual="raw",
                  fixed={"alpha": 0.5}, threads=1)  # fmt: skip
    design = next_runs(line, 8, target="A", cost=lambda N: 1 + 0 * N, noise=1e-7, ranges={"N": (1e6, 1e8)}, n_runs=8)
    assert sorted(design.N) == pytest.approx([1e6] * 4 + [1e8] * 4)
    assert list(design.to_frame().columns) == ["N", "cost", "low", "high"]
    assert design.plot().get_ylabel() == "cost"
    with pytest.raises(AttributeError, match="this run has no D"):
        design.runs[0].C
    of_compute = ps.fit({"C": 6e12 * sizes, "loss": loss}, law="power_constant_C", fixed={"alpha": 0.5}, threads=1)
    costs = next_runs(of_compute, 1e21, target="A", n_runs=4)  # C costs C
    assert [run.cost for run in costs] == pytest.approx([run.at["C"] for run in costs])


@pytest.fixture(scope="module")
def routed() -> ps.Fit:
    truth = {"a": -0.08, "b": -0.11, "c": 0.005, "d": 1.2, "E_start": 1.8, "E_max": 300.0}
    sizes, experts = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, 5), [1.0, 2, 4, 8, 32, 128, 512]))
    loss = ps.laws.get("routed").evaluate(truth, N=sizes, experts=experts)
    loss = loss * np.exp(0.002 * np.random.default_rng(0).standard_normal(len(loss)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ps.fit({"N": sizes, "experts": experts, "loss": loss}, law="routed", starts=[truth], threads=1)


def test_a_routed_law(routed: ps.Fit) -> None:
    def cost(N: Any, experts: Any) -> Any:
        return 6 * N * 2e10 * (1 + 0.01 * experts)

    design = next_runs(routed, "1e21", target="b", cost=cost, n_runs=6, average=2)
    assert {run.at["experts"] for run in design} <= {1.0, 2, 4, 8, 32, 128, 512}  # values that the runs have
    assert [run.cost for run in design] == pytest.approx([cost(**run.at) for run in design])
    assert sum(run.cost for run in design) <= 1e21 * (1 + 1e-8)
    narrow = next_runs(routed, "1e21", target="b", cost=cost, n_runs=6, ranges={"experts": (1, 64)}, average=2)
    assert all(1 <= run.at["experts"] <= 64 and run.at["experts"] % 1 == 0 for run in narrow)
    at = {"N": 1e10, "experts": (64, 1024)}
    region = next_runs(routed, "1e21", target="loss", region=at, cost=cost, n_runs=6, average=2)
    assert half_width(region.after) < half_width(region.before)
    assert set(json.loads(region.to_json())["runs"][0]) == {"N", "experts", "cost", "after"}
    assert region.plot().get_ylabel() == "experts"
    assert max(map(len, str(region).splitlines())) <= 80
    for options, message in (
        ({}, "cost is missing: what a run of routed costs does not follow from N, experts"),
        ({"cost": lambda N: N}, "cost must take arrays of N and experts"),
        ({"cost": cost, "ranges": {"D": (1, 2)}}, r"ranges\['D'\] is of no variable of the law; those are N, experts"),
        ({"cost": cost, "ranges": {"experts": (64, 1)}}, r"ranges\['experts'\]=\(64, 1\) is reversed"),
        ({"cost": cost, "D_range": (1, 2)}, "D_range is of no variable"),
        ({"cost": cost, "tokens_per_parameter": (1, 2)}, "is for a law of N and D"),
        ({"cost": cost, "target": "loss"}, "target='loss' at a budget needs a law of N and D"),
        (
            {"cost": cost, "target": "loss", "region": {"N": 1e9}},
            "region must give a value or .* for each of N, experts",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            next_runs(routed, "1e21", **{"target": "b", **options})


def test_a_region_is_the_mean_variance_over_it(fit: ps.Fit) -> None:
    """Root mean square error of ln L over five by five places, from the normal equations; and a brute force over pairs."""
    region = {"N": (1e8, 1e9), "D": (2e9, 2e10)}
    places = np.meshgrid(np.geomspace(1e8, 1e9, 5), np.geomspace(2e9, 2e10, 5), indexing="ij")
    G = derivatives(fit.params, *(axis.ravel() for axis in places))

    def error(N_new: Any = (), D_new: Any = ()) -> float:
        J = derivatives(fit.params, np.r_[N, N_new], np.r_[D, D_new]) / fit.noise
        scale = np.linalg.norm(J, axis=0)
        inverse = np.linalg.inv(J.T @ J / np.outer(scale, scale)) / np.outer(scale, scale)
        return float(np.sqrt(np.mean(np.einsum("jp,pq,jq->j", G, inverse, G))))

    generator = np.random.default_rng(2)
    some_N, some_D = np.exp(generator.uniform(np.log(1e6), np.log(1e8), 9)), np.exp(generator.uniform(17, 21, 9))
    design = next_runs(
        fit, 4.0, target="loss", region=region, cost=lambda N, D: 1 + 0 * N, candidates={"N": some_N, "D": some_D}, n_runs=4,
        average=0,
    )  # fmt: skip
    assert half_width(design.before) == pytest.approx(student.ppf(0.95, 11) * error(), rel=2e-3)
    assert half_width(design.after) == pytest.approx(student.ppf(0.95, 15) * error(design.N, design.D), rel=2e-3)
    best = min(error(some_N[list(k)], some_D[list(k)]) for k in combinations_with_replacement(range(9), 4))
    assert error(design.N, design.D) <= 1.02 * best
    assert design.efficiency * error(design.N, design.D) ** 2 <= best**2 * (1 + 1e-6)
    value = np.exp(np.mean(np.log(chinchilla(fit.params, *places))))
    assert design.before.value == pytest.approx(value, rel=1e-12)
    with pytest.raises(ValueError, match="region and compute=1e\\+20 both say"):
        next_runs(fit, LARGEST, target="loss", region=region, compute=1e20)
    with pytest.raises(ValueError, match='give target="loss", or leave region out'):
        next_runs(fit, LARGEST, region=region)


@pytest.fixture(scope="module")
def grouped() -> ps.Fit:
    tables = [runs_at(N, D, 0.005, seed) for seed in (0, 1)]
    tables[1]["loss"] = tables[1]["loss"] * 1.1
    both = {key: np.r_[tables[0][key], tables[1][key]] for key in ("N", "D", "loss")} | {"set": ["a"] * 16 + ["b"] * 16}
    return ps.fit(both, objective="gaussian", group="set", shared=["alpha", "beta"], starts=16, threads=1)


def test_a_groups_next_runs(grouped: ps.Fit) -> None:
    """Before: the joint covariance by the gradient of a group's own ln N_opt, as the grouped law's parameters have it."""
    design = next_runs(grouped, LARGEST, group="b", compute=100 * LARGEST, n_runs=4, average=2)
    own = grouped.params_of("b")
    g = np.zeros(len(grouped.law.names))
    for name, slope in zip(TRUTH, gradient(lambda p: log_n_opt(p, 100 * LARGEST), own), strict=True):
        g[grouped.law.names.index(grouped.law.own_name(name, "b"))] = slope if name in own else 0.0
    error = np.sqrt(g @ grouped.covariance(robust=False) @ g)
    assert half_width(design.before) == pytest.approx(error * student.ppf(0.95, 32 - 8), rel=2e-3)
    assert design.before.value == pytest.approx(np.exp(log_n_opt(own, 100 * LARGEST)), rel=1e-9)
    assert half_width(design.after) < half_width(design.before)


def test_a_groups_plan(grouped: ps.Fit) -> None:
    from pyscaling.planning import GroupFit, overtake, plan

    boot = grouped.bootstrap(200)
    for group in ("a", "b"):
        result = plan(grouped, 1e20, group=group, bootstrap=200)
        own = grouped.params_of(group)
        assert result.N.value == pytest.approx(np.exp(log_n_opt(own, 1e20)), rel=1e-10)
        names = [grouped.law.own_name(name, group) for name in own]
        low, high = boot.interval(
            lambda p, k=names, o=own: np.exp(log_n_opt({n: p[j] for n, j in zip(o, k, strict=True)}, 1e20)), 0.9
        )
        again = plan(grouped, 1e20, group=group, bootstrap=boot)
        assert (again.N.low, again.N.high) == pytest.approx((low, high), rel=1e-9)
        predicted = grouped.predict(N=result.N.value, D=result.D.value, group=group, n=200, level=0.9)
        assert result.loss.value == pytest.approx(predicted.value, rel=1e-12)
        assert result.law == "chinchilla"
    with pytest.raises(ValueError, match="group is missing: this fit is of a, b; say which, as in group='a'"):
        plan(grouped, 1e20)
    with pytest.raises(ValueError, match="group='c' is unknown; the groups are a, b"):
        plan(grouped, 1e20, group="c")
    with pytest.raises(ValueError, match="A is a fit of a, b; say which, as planning.GroupFit"):
        overtake(grouped, GroupFit(grouped, "b"))
    found = overtake(GroupFit(grouped, "b"), GroupFit(grouped, "a"), bootstrap=50)
    assert not found.crossings and found.ends == ("B", "B")  # b is 10 % worse everywhere


def test_a_fit_without_groups_has_none(fit: ps.Fit) -> None:
    with pytest.raises(ValueError, match="this fit of chinchilla has no groups; leave group out"):
        next_runs(fit, LARGEST, group="a")
