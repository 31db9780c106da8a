"""Whatever law, table and options are given: an error that helps, or a result that hides nothing.

PYSCALING_FUZZ=10000 runs as many examples; PYSCALING_FUZZ_LIMIT is what one may take, in seconds.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import pyscaling as ps
from pyscaling import _core
from pyscaling.expression import parse_expression
from pyscaling.fitting.tape import compile_law

LIMIT = float(os.environ.get("PYSCALING_FUZZ_LIMIT", "5"))
EXAMPLES = int(os.environ.get("PYSCALING_FUZZ", "200"))
NAMES = ("E", "A", "alpha", "B", "beta", "p", "q", "r")


def fuzz(share: float = 1.0) -> Any:
    return settings(
        max_examples=max(1, round(EXAMPLES * share)),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError; the core listens to signals while it works."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Laws, tables and options


@st.composite
def wild_expressions(draw: st.DrawFn) -> str:
    names = NAMES[: draw(st.integers(1, 8))]
    numbers = ("0", "1", "-1", "2", "0.5", "3", "1e-3", "1e30", "1e-30", "700", "1e308")
    leaves = st.sampled_from([*names, "N", "D"] * 3 + list(numbers))
    text = draw(
        st.recursive(
            leaves,
            lambda inner: st.one_of(
                st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "**"]), inner),
                st.builds("{}({})".format, st.sampled_from(["exp", "log", "sqrt", "-"]), inner),
            ),
            max_leaves=12,
        )
    )
    if draw(st.integers(0, 9)) == 0:
        return text  # perhaps no law at all
    text = text if re.search("[ND]", text) else f"{text} / N**0.3"
    return text if re.search("[a-zABE]", re.sub("exp|log|sqrt|e", "", text)) else f"E + {text}"


@st.composite
def usual_expressions(draw: st.DrawFn) -> str:
    """Sums of floors, power terms and powers of sums, as laws are."""
    terms = (
        "E",
        "A/N**alpha",
        "B/D**beta",
        "(p/N)**q",
        "A*D**-r",
        "exp(-p*log(N))",
        "(A/N**alpha + p/D)**q",
        "sqrt(r/N)",
    )
    return " + ".join(draw(st.lists(st.sampled_from(terms), min_size=1, max_size=4, unique=True)))


def columns(kind: str, n: int, generator: np.random.Generator) -> np.ndarray:
    if kind == "equal":
        return np.full(n, np.exp(generator.uniform(-5, 25)))
    if kind == "few":
        return generator.choice([1e6, 3e7, 1e9], n)
    middle = {"usual": 18.0, "unit": 0.0, "huge": math.log(1e30), "tiny": math.log(1e-30), "wide": 0.0}[kind]
    return np.exp(middle + generator.uniform(-1, 1, n) * (70 if kind == "wide" else 4))


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, list[str] | None, dict[str, np.ndarray], dict[str, Any]]:
    expression = draw(st.one_of(wild_expressions(), usual_expressions()))
    names = [name for name in NAMES if re.search(rf"\b{name}\b", expression)]
    some = st.lists(st.sampled_from(names), unique=True) if names else st.just([])
    positive = draw(st.none() | some)
    n = draw(st.integers(1, 60))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = ("usual", "unit", "huge", "tiny", "wide", "equal", "few")
    table = {name: columns(draw(st.sampled_from(kinds)), n, generator) for name in ("N", "D")}
    kind = draw(st.sampled_from(("law", *kinds)))
    if kind == "law":
        table["loss"] = 1.7 + 400 / table["N"] ** 0.34 + 0.01 * generator.random(n)
    else:
        table["loss"] = columns(kind, n, generator)
    number = st.sampled_from([0.1, 0.3, 1.0, 2.5, 400.0] * 3 + [-3.0, 0.0, 1e-30, 1e30]) | st.floats(-1e2, 1e3)
    options: dict[str, Any] = {
        "objective": draw(st.sampled_from(["huber", "lad", "gaussian"])),
        "delta": 10 ** draw(st.floats(-9, 3)),
        "residual": draw(st.sampled_from(["log", "raw"])),
        "threads": draw(st.integers(1, 4)),
        "starts": draw(st.integers(1, 9) | st.just("auto")),
    }
    if draw(st.integers(0, 3)) == 0:
        options["starts"] = np.exp(generator.normal(0, draw(st.sampled_from([0.3, 3, 30])), (3, max(1, len(names)))))
    if draw(st.booleans()):
        options["weights"] = generator.choice([0.0, 1.0, 0.5, 1e-12, 1e12], n, p=[0.3, 0.4, 0.2, 0.05, 0.05])
    if names and draw(st.integers(0, 2)) == 0:
        options["fixed"] = {name: draw(number) for name in draw(some)}
    if names and draw(st.integers(0, 2)) == 0:
        options["bounds"] = {name: tuple(sorted((draw(number), draw(number)))) for name in draw(some)}
    if len(names) > 1 and draw(st.integers(0, 3)) == 0:
        options["tied"] = [
            draw(st.lists(st.sampled_from(names), min_size=2, max_size=3)) for _ in range(draw(st.integers(1, 2)))
        ]
    return expression, positive, table, options


def is_helpful(error: ValueError) -> bool:
    """Raised by the library in so many words, not by what it calls."""
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    return (
        type(error) is ValueError
        and Path(innermost).parent.parts[-1] in ("pyscaling", "fitting", "tables")
        and (len(str(error)) > 20 and str(error).endswith("."))
    )


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, dict | list | tuple):
            yield from numbers_in(item)
        elif isinstance(item, np.ndarray | float):
            yield from np.ravel(item).tolist()


@fuzz()
@given(cases())
def test_any_fit(case: tuple[str, list[str] | None, dict[str, np.ndarray], dict[str, Any]]) -> None:
    expression, positive, table, options = case
    with time_limit(LIMIT), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("error", RuntimeWarning)
        try:
            law = ps.Law(expression, positive, variables=[v for v in "ND" if re.search(rf"\b{v}\b", expression)])
            fit = ps.fit(table, law, **options)
            boot = fit.bootstrap(20)
            fit._bootstrap_for_prediction = lambda *_: boot
            at = {name: np.quantile(table[name], [0.1, 0.9]) for name in law.variables}
            prediction = fit.predict(**at, n=20)
            text, exported = str(fit), json.loads(fit.to_json())
        except ValueError as error:
            assert is_helpful(error), f"{type(error).__name__}: {error}"
            return
    shown = [fit.params, fit.objective_value, boot.samples, boot.objective_values, list(prediction), fit.residuals]
    hidden = [x for x in numbers_in(shown) if not math.isfinite(x)]
    if fit.problem.n_free == 0:  # no matrix, whose condition number is printed as infinite
        text = re.sub("condition number inf", "", text)
    if hidden or re.search(r"\b(nan|inf)\b", text) or None in exported["params"].values():
        assert caught or fit.evidence.concerns, text
    assert bool(fit.evidence.concerns) == ("NOT TO BE TRUSTED" in text)


# Derivatives, threads, order


SMOOTH = (
    ("E + A/N**alpha + B/D**beta", ["E", "A", "B", "alpha", "beta"]),
    ("((p/N)**(q/r) + A/D)**r", None),
    ("E + A*exp(-p*log(N)) + sqrt(B/D) + q*log(N/D)**2", []),
    ("(E + A/N**alpha) * (1 + B/(D + p)**beta) - q/(1 + r*N)", []),
    ("exp(p/N) + A/(q + log(D + 3))**5 + alpha**beta", ["A", "q", "alpha"]),
)


def mp_objective(
    expression: str, table: dict[str, list[float]], logarithmic: list[bool], names: list[str], log: bool
) -> Any:
    """sum_i w_i rho(r_i) at delta = 0.3 as a function of theta, in mpmath."""
    code = compile(parse_expression(expression), "<law>", "eval")
    functions = {"exp": mpmath.exp, "log": mpmath.log, "sqrt": mpmath.sqrt}
    delta = mpmath.mpf(0.3)

    def objective(*theta: mpmath.mpf) -> mpmath.mpf:
        scope = {n: mpmath.exp(t) if positive else t for n, t, positive in zip(names, theta, logarithmic, strict=True)}
        total = mpmath.mpf(0)
        for N, D, y, w in zip(*(table[name] for name in ("N", "D", "y", "w")), strict=True):
            law = eval(code, functions, {**scope, "N": mpmath.mpf(N), "D": mpmath.mpf(D)})
            size = abs((mpmath.log(law) if log else law) - mpmath.mpf(y))
            total += w * (size**2 / 2 if size <= delta else delta * (size - delta / 2))
        return total

    return objective


@pytest.mark.parametrize("residual", ["log", "raw"])
@pytest.mark.parametrize(("expression", "positive"), SMOOTH)
@fuzz(0.015)
@given(seed=st.integers(0, 2**32 - 1))
def test_derivatives(expression: str, positive: list[str] | None, residual: str, seed: int) -> None:
    """Value, gradient and Hessian against central differences in 50 digits, far from the kinks of the Huber loss."""
    generator = np.random.default_rng(seed)
    law = ps.Law(expression, positive)
    n, count, log = 5, len(law.names), residual == "log"
    theta = generator.uniform(0.3, 1.2, count)
    logarithmic = [parameter.logarithmic for parameter in law.parameters.values()]
    table = {"N": generator.uniform(1, 9, n), "D": generator.uniform(1, 9, n), "w": generator.uniform(0.5, 2, n)}
    params = dict(zip(law.names, np.where(logarithmic, np.exp(theta), theta), strict=True))
    value = law.evaluate(params, N=table["N"], D=table["D"])
    offset = generator.choice([-0.7, -0.1, 0.2, 0.8], n)
    assume(not log or np.all(value > 0))
    table["y"] = (np.log(value) if log else value) + offset
    compiled = compile_law(law, log)
    out, gradient, curvature = _core.evaluate(
        compiled.tape, compiled.columns(table), table["y"], table["w"], theta, 0.3, level=2
    )
    with mpmath.workdps(50):
        objective = mp_objective(expression, {k: v.tolist() for k, v in table.items()}, logarithmic, law.names, log)
        at, step = [mpmath.mpf(t) for t in theta], mpmath.mpf("1e-12")

        def moved(*moves: tuple[int, int]) -> mpmath.mpf:
            where = list(at)
            for j, sign in moves:
                where[j] += sign * step
            return objective(*where)

        true_value = objective(*at)
        true_gradient = [float((moved((j, 1)) - moved((j, -1))) / (2 * step)) for j in range(count)]
        true_curvature = [
            float(sum(a * b * moved((i, a), (j, b)) for a in (1, -1) for b in (1, -1)) / (4 * step**2))
            for i in range(count)
            for j in range(i + 1)
        ]
    assert out == pytest.approx(float(true_value), rel=1e-11)
    # A few thousand roundings of the largest term, in sums whose terms may cancel.
    assert gradient == pytest.approx(true_gradient, rel=1e-9, abs=1e-11 * np.abs(true_gradient).max())
    assert curvature == pytest.approx(true_curvature, rel=1e-9, abs=1e-11 * np.abs(true_curvature).max())


def table_of_runs(seed: int, n: int = 40) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    N, D = np.exp(generator.uniform(14, 20, n)), np.exp(generator.uniform(18, 25, n))
    loss = (1.7 + 400 / N**0.34 + 1500 / D**0.36) * np.exp(0.01 * generator.standard_t(3, n))
    return {"N": N, "D": D, "loss": loss}


@fuzz(0.05)
@given(
    seed=st.integers(0, 2**32 - 1),
    objective=st.sampled_from(["huber", "lad", "gaussian"]),
    residual=st.sampled_from(["log", "raw"]),
)
def test_threads_and_order(seed: int, objective: str, residual: str) -> None:
    """Threads change no bit; another order of the runs changes rounding alone."""
    table = table_of_runs(seed)
    order = np.random.default_rng(seed).permutation(40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        one, four = (ps.fit(table, objective=objective, residual=residual, threads=k) for k in (1, 4))
        permuted = ps.fit({k: v[order] for k, v in table.items()}, objective=objective, residual=residual)
    assert np.array_equal(one.theta, four.theta) and one.objective_value == four.objective_value
    assert one.evidence == four.evidence
    assert np.array_equal(one.bootstrap(30).samples, four.bootstrap(30).samples)
    assert one.evidence.converged and permuted.evidence.converged
    assert permuted.objective_value == pytest.approx(one.objective_value, rel=1e-9)


# Malformed input straight into the core


TAPE: dict[str, Any] = {  # a / x, with x the one column
    "n_parameter": 1,
    "scalars": [0.0],
    "n_column": 1,
    "n_register": 2,
    "scalar_code": np.zeros((0, 5), np.int64),
    "vector_code": np.array([[5, 2, 1, 1, 1], [2, 3, 2, 0, 0]]),
    "level_end": [2, 2, 2],
    "value": 3,
    "gradient": [2],
    "dependence": [1],
    "log_link": False,
}
X, ONE = np.array([[1.0, 2.0, 4.0]]), np.ones(3)
FIT: dict[str, Any] = {
    "columns": X,
    "y": 3 / X[0],
    "weights": ONE,
    "starts": np.array([[1.0]]),
    "lower": np.array([-math.inf]),
    "upper": np.array([math.inf]),
    "delta": math.inf,
    "spread": 1.0,
}


def test_well_formed_input() -> None:
    """What the cases below spoil is sound to begin with."""
    solved = _core.fit_batch(_core.Tape(**TAPE), **FIT)
    assert solved["theta"] == pytest.approx(3) and solved["status"].tolist() == [0]
    assert _core.evaluate(_core.Tape(**TAPE), X, ONE, ONE, ONE[:1], 1.0)[0] == pytest.approx(0.125 + 0.28125)


@pytest.mark.parametrize(
    "change",
    [
        {"n_parameter": 0},
        {"n_parameter": -1},
        {"n_parameter": 2},
        {"n_parameter": 10**6, "gradient": [2] * 10**6, "dependence": [0] * 10**6, "scalars": [0.0] * 10**6},
        {"scalars": []},
        {"n_column": -1},
        {"n_column": 2**31 - 1},
        {"n_register": -1},
        {"n_register": 2**31 - 1},
        {"n_register": 0},
        {"vector_code": np.zeros((2, 4), np.int64)},
        {"vector_code": np.zeros(5, np.int64)},
        {"vector_code": np.array([[99, 2, 1, 1, 1]]), "level_end": [1, 1, 1]},
        {"vector_code": np.array([[-1, 2, 1, 1, 1]]), "level_end": [1, 1, 1]},
        {"vector_code": np.array([[5, 2**32 + 2, 1, 1, 1]]), "level_end": [1, 1, 1]},
        {"vector_code": np.array([[5, 2, 2**63 - 1, 1, 1]]), "level_end": [1, 1, 1]},
        {"vector_code": np.array([[5, 0, 1, 1, 1]]), "level_end": [1, 1, 1]},  # writes to a parameter
        {"vector_code": np.array([[5, 1, 1, 1, 1]]), "level_end": [1, 1, 1]},  # writes to the data
        {"vector_code": np.array([[5, 2, 0, 0, 0]]), "level_end": [1, 1, 1]},  # a vector operation of scalars
        {"vector_code": np.array([[10, 0, 2, 2, 2]]), "level_end": [1, 1, 1]},  # emits before there are weights
        {"vector_code": np.array([[10, 1, 2, 2, 2]]), "level_end": [0, 0, 1]},  # emits beyond the Hessian
        {"scalar_code": np.array([[3, 1, 0, 0, 0]])},
        {"scalar_code": np.array([[10, 0, 0, 0, 0]])},
        {"level_end": [2, 1, 2]},
        {"level_end": [-1, 2, 2]},
        {"level_end": [2, 2, 3]},
        {"value": 0},
        {"value": 4},
        {"value": -1},
        {"gradient": []},
        {"gradient": [0]},
        {"gradient": [4]},
        {"dependence": []},
        {"dependence": [3]},
        {"dependence": [-1]},
    ],
)
def test_malformed_tape(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        _core.Tape(**{**TAPE, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"columns": X[0]},
        {"columns": np.ones((2, 3))},
        {"columns": np.ones((1, 0)), "y": ONE[:0], "weights": ONE[:0]},
        {"y": ONE[:2]},
        {"y": ONE[:0]},
        {"y": np.ones((2, 3))},
        {"y": np.ones((0, 3))},
        {"y": np.ones((2, 3)), "n_resample": 3},
        {"y": np.float64(1)},
        {"weights": ONE[:2]},
        {"weights": ONE[:, None]},
        {"starts": ONE[:1]},
        {"starts": np.ones((0, 1))},
        {"starts": np.ones((1, 2))},
        {"lower": ONE},
        {"lower": np.array([math.nan])},
        {"lower": np.array([math.inf])},
        {"upper": np.array([-math.inf])},
        {"lower": np.array([1.0]), "upper": np.array([0.0])},
        {"delta": 0.0},
        {"delta": math.nan},
        {"spread": 0.0},
        {"spread": math.nan},
        {"spread": math.inf},
        {"n_resample": -1},
        {"n_resample": 2, "cluster": np.array([0, 1])},
        {"n_resample": 2, "cluster": np.array([0, 1, 3])},
        {"n_resample": 2, "cluster": np.array([0, 1, -1])},
        {"n_resample": 2, "cluster": np.array([0, 1, 2**32])},
    ],
)
def test_malformed_table(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        _core.fit_batch(_core.Tape(**TAPE), **{**FIT, **change})


@pytest.mark.parametrize("argument", ["columns", "y", "weights", "starts"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, 0.0])
def test_bad_numbers_in_the_core(argument: str, value: float) -> None:
    """Numbers that no law can be fitted to end as such, and in time."""
    spoiled = np.full_like(FIT[argument], value)
    with time_limit(LIMIT):
        solved = _core.fit_batch(_core.Tape(**TAPE), **{**FIT, argument: spoiled})
        again = _core.fit_batch(_core.Tape(**TAPE), **{**FIT, argument: spoiled}, n_resample=3, cluster=np.arange(3))
    for out in (solved, again):
        assert np.all(np.isfinite(out["value"]) | (out["status"] == 3))


def test_malformed_calls() -> None:
    tape = _core.Tape(**TAPE)
    for arguments in ((X, ONE[:2], ONE, ONE[:1], 1.0), (X, ONE, ONE, ONE, 1.0), (X, ONE, ONE, ONE[:1], math.nan)):
        with pytest.raises(ValueError):
            _core.evaluate(tape, *arguments)
    for level in (-1, 3):
        with pytest.raises(ValueError, match="level"):
            _core.evaluate(tape, X, ONE, ONE, ONE[:1], 1.0, level=level)
    for columns, theta in ((X, ONE), (X[0], ONE[:1]), (np.ones((0, 3)), ONE[:1])):
        with pytest.raises(ValueError):
            _core.jacobian(tape, columns, theta)
    for counts in ((0, 1), (-1, 1), (1, -1)):
        with pytest.raises(ValueError):
            _core.resample_counts(*counts)
    with pytest.raises(TypeError):  # no 32-bit number
        _core.fit_batch(tape, **FIT, n_resample=2**31)


MANY_THREADS = """
import resource, warnings
import numpy as np
import pyscaling as ps
x = np.geomspace(1, 9, 9)
fit = ps.fit({"N": x, "loss": 2 + 1 / x + 0.01 * np.sin(9 * x)}, ps.Law("E + A/N"), threads=2**31 - 1, starts=1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))  # room for a few dozen stacks
print(fit.bootstrap(5000).samples.sum())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is set from Linux's account of memory")
def test_more_threads_than_the_system_grants() -> None:
    command = [sys.executable, "-W", "ignore", "-c", MANY_THREADS]
    package = str(Path(ps.__file__).parents[1])
    child = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": package})
    assert child.returncode == 0, child.stderr
    assert math.isfinite(float(child.stdout))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed": {"E": math.inf}}, "fixed value of E must be finite, got inf"),
        ({"bounds": {"E": (math.inf, math.inf)}}, r"bounds of E must be .* got \(inf, inf\)"),
        ({"tied": ["alpha"]}, r"tied must be groups of parameters, .*got 'alpha'"),
        ({"tied": [()]}, "tied must be groups of parameters"),
        ({"delta": 10**400}, "delta must be finite and positive"),
        ({"starts": [[1.0], [1.0, 2.0]]}, "starts must be numbers"),
        ({"weights": ["heavy"] * 40}, "weights must be numbers"),
        ({"weights": np.full(40, 1e300)}, "at most 1e100"),
    ],
)
def test_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ps.fit(table_of_runs(0), **options)


def test_arguments_of_refits() -> None:
    fit = ps.fit(table_of_runs(0), starts=np.int64(16))
    assert fit.evidence.n_starts == 16
    with pytest.raises(ValueError, match="seed must lie between 0 and .*, got -1"):
        fit.bootstrap(10, seed=-1)
    with pytest.raises(ValueError, match="n must be at least 2 refits, got 0"):
        fit.predict(N=1e9, D=1e10, n=0)
    with pytest.raises(ValueError, match=r"one label per run \(40\), got shape \(3,\)"):
        fit.predict(N=1e9, D=1e10, cluster=[1, 2, 3])
    fixed = ps.fit(table_of_runs(0), fixed=fit.params)
    assert len(fixed.bootstrap(10)) == 10
    assert json.loads(fixed.to_json())["params"] == fixed.params


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ("E + A/N" + "+ 1" * 500, "nested more than 100 deep"),
        ("(" * 5000 + "E/N" + ")" * 5000, "not an expression"),
        ("E + A/N" + "/log(E + N" * 40 + ")" * 40, None),
        ("E + A/N**1" + "0" * 400, "beyond the range of a double"),
        ("E + A/N + exp(1e9)", "beyond the range of a double"),
        ("E + A/N**1e999", "beyond the range of a double"),
        ("E + A/(N*1e-320*0)", "divides by zero"),
        ("E + A/N + 0/0", "divides by zero"),
        ("E + A/N + log(0)", "logarithm of 0"),
    ],
)
def test_expressions_out_of_reach(law: str, message: str | None) -> None:
    with time_limit(LIMIT), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            ps.fit(table_of_runs(0), law, starts=2, fixed={"E": 1.0})
        except ValueError as error:
            assert message is None or re.search(message, str(error))
        else:
            assert message is None


@pytest.mark.parametrize("power", [2, 3, 5, 6])
def test_integer_powers_of_negative_numbers(power: int) -> None:
    """A logarithm would know none of them: a parabola of this order about N = 30 is fitted from both sides."""
    table = {"N": np.linspace(10, 50, 30)}
    table["loss"] = 2 + 0.5 * ((table["N"] - 30) / 20) ** power
    law = ps.Law(f"E + A*((N - p)/20)**{power}", [], variables=["N"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fit = ps.fit(table, law, "gaussian", residual="raw", starts=[[1.0, 1.0, 25.0], [1.0, 1.0, 33.0]])
    assert fit.params == pytest.approx({"E": 2, "A": 0.5, "p": 30}, rel=1e-3)


def test_chains_of_ties_share_one_value() -> None:
    law = ps.Law("E + A/N**alpha + B/D**beta + p/(N*D)**q")
    with pytest.warns(UserWarning, match="p ended at a bound or vanished"):  # a third term is not in the data
        fit = ps.fit(table_of_runs(0), law, tied=[("alpha", "beta"), ("beta", "q")], starts=4)
    assert list(fit.params) == ["E", "A", "alpha", "B", "p"]


def test_runs_without_weight_lend_no_noise() -> None:
    """A run ten times too high that is given no weight widens no interval."""
    table = table_of_runs(0)
    spoiled = {k: np.append(v, v[:4] * (10 if k == "loss" else 1)) for k, v in table.items()}
    clean, weighted = ps.fit(table), ps.fit(spoiled, weights=np.repeat([1.0, 0.0], [40, 4]))
    assert weighted.noise == pytest.approx(clean.noise, rel=1e-6)
    low, high = ((p.high - p.low) / p.value for p in (f.predict(N=1e9, D=1e11) for f in (clean, weighted)))
    assert high == pytest.approx(low, rel=0.2)
    with pytest.raises(ValueError, match="5 runs of a positive weight cannot determine the 5 free parameters"):
        ps.fit(table, weights=np.repeat([1.0, 0.0], [5, 35]))


# Ctrl-C and other threads


LONG_WORK = """
import signal, sys, time, warnings
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
import numpy as np
import pyscaling as ps
warnings.simplefilter("ignore")
generator = np.random.default_rng(0)
n = 240 if sys.argv[1] == "bootstrap" else 1_000_000
N, D = np.exp(generator.uniform(14, 20, n)), np.exp(generator.uniform(18, 25, n))
table = {"N": N, "D": D, "loss": (1.7 + 400 / N**0.34 + 1500 / D**0.36) * np.exp(0.01 * generator.standard_normal(n))}
fit = ps.fit(table) if sys.argv[1] == "bootstrap" else None
print("begins", flush=True)
try:
    fit.bootstrap(2_000_000) if fit else ps.fit(table)
except KeyboardInterrupt:
    print(f"{time.time():.6f}", flush=True)
"""


@pytest.mark.parametrize("work", ["bootstrap", "fit"])
def test_interrupt(work: str) -> None:
    package = str(Path(ps.__file__).parents[1])
    command = [sys.executable, "-c", LONG_WORK, work]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": package}
    ) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "begins\n"
            time.sleep(1.0)
            sent = time.time()
            child.send_signal(signal.SIGINT)
            answer = child.stdout.readline()
        finally:
            child.kill()
    assert answer, "the work was over, or died, before the interrupt"
    took = float(answer) - sent
    print(f"\n{work}: KeyboardInterrupt {took * 1e3:.0f} ms after the signal")
    assert took < LIMIT / 10


def test_other_threads_run_meanwhile() -> None:
    """The core holds no lock on the interpreter: a counter of 1 ms naps goes on while it works."""
    fit = ps.fit(table_of_runs(0), threads=1)
    naps, over = [], threading.Event()

    def count() -> None:
        while not over.wait(0.001):
            naps.append(time.perf_counter())

    counter = threading.Thread(target=count)
    counter.start()
    began = time.perf_counter()
    fit.bootstrap(5000)
    ended = time.perf_counter()
    over.set()
    counter.join()
    during = [nap for nap in naps if began < nap < ended]
    assert len(during) > (ended - began) / 0.02
