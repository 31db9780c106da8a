"""Every law: its value, derivatives and automatic starts, against mpmath and data made from known constants."""

import math
from pathlib import Path

import mpmath
import numpy as np
import pytest

import pyscaling as ps
from pyscaling import laws
from pyscaling._core import evaluate
from pyscaling._core import jacobian as law_jacobian
from pyscaling.fitting.tape import compile_law

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SIZES = np.geomspace(1e6, 1e10, 8)
TOKENS = np.geomspace(1e8, 1e12, 8)
# Published constants where there are any (Kaplan et al. 2020; Besiroglu et al. 2024; Muennighoff et al. 2023; Gadre et
# al. 2024; Clark et al. 2022, S-BASE; Li et al. 2025), plausible ones else.
PUBLISHED = {
    "kaplan_N": {"N_c": 8.8e13, "alpha_N": 0.076},
    "power_constant_N": {"E": 1.7, "A": 400.0, "alpha": 0.34},
    "kaplan_D": {"D_c": 5.4e13, "alpha_D": 0.095},
    "power_constant_D": {"E": 1.7, "A": 2000.0, "alpha": 0.37},
    "kaplan_C": {"C_c": 3.1e8 * 8.64e19, "alpha_C": 0.05},
    "power_constant_C": {"E": 1.7, "A": 1000.0, "alpha": 0.16},
    "chinchilla": {"E": 1.8172, "A": 477.8, "B": 2143.0, "alpha": 0.3473, "beta": 0.3672},
    "kaplan_ND": {"N_c": 6.4e13, "alpha_N": 0.076, "D_c": 1.8e13, "alpha_D": 0.103},
    "kaplan_NS": {"N_c": 6.5e13, "alpha_N": 0.077, "S_c": 2.1e3, "alpha_S": 0.76},
    "kaplan_ND_constant": {"E": 0.5, "N_c": 6.4e13, "alpha_N": 0.076, "D_c": 1.8e13, "alpha_D": 0.103},
    "chinchilla_tied": {"E": 1.8172, "A": 477.8, "B": 700.0, "alpha": 0.35},
    "data_constrained": {
        "E": math.exp(0.6254804),
        "A": math.exp(6.255414),
        "B": math.exp(7.3049974),
        "alpha": 0.3526596,
        "beta": 0.3526596,
        "R_D_star": 15.387756,
        "R_N_star": 5.309743,
    },
    "gadre": {"alpha": 113.6926, "beta": 189.5155, "b": -0.2424722, "E": 1.508261},
    "encoder_decoder": {"L_inf": 1.2, "A": 60.0, "p_e": 0.15, "p_d": 0.22},
    "acoustic": {"L_inf": 0.4, "alpha": 0.5, "N_C": 1e8, "alpha_N": 0.25, "D_C": 1e10, "alpha_D": 0.3},
    "M3": {"beta": 300.0, "gamma": 1e-11, "c": 0.2},
    "M4": {"eps_inf": 1.5, "eps_0": 9.0, "beta": 3e4, "c": 0.5, "alpha": 1.7},
    "bnsl1": {"a": 1.5, "b": 40.0, "c_0": 0.15, "c_1": 0.3, "d_1": 1e10, "f_1": 0.3},
    "bnsl2": {
        "a": 1.5, "b": 40.0, "c_0": 0.15, "c_1": 0.3, "d_1": 3e9, "f_1": 0.2, "c_2": -0.25, "d_2": 1e11, "f_2": 0.2
    },
    "routed": {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "E_start": 1.847, "E_max": 314.478},
    "step_law_learning_rate": {"c": 1.79, "alpha": -0.713, "beta": 0.307},
    "step_law_batch": {"d": 0.58, "gamma": 0.571},
    "information": {"lambda_": 0.1, "N_c": 3e4},
    "kaplan_B_crit": {"B_star": 2.1e8, "alpha_B": 0.21},
}  # fmt: skip
GRIDS = {
    "N": SIZES,
    "D": TOKENS,
    "C": np.geomspace(1e17, 1e23, 8),
    "S": np.geomspace(1e3, 1e6, 8),
    "U": np.array([1e9, 3e10]),
    "N_e": SIZES,
    "N_d": 2 * SIZES,
    "experts": 2.0 ** np.arange(10),
    "loss": np.linspace(2, 6, 8),
}


def runs_of(law: ps.Law) -> dict[str, np.ndarray]:
    """A full grid of the law's variables with its response, without noise."""
    # Breaks and saturation need a dense curve, a law of two variables does not.
    grids = [np.geomspace(1e7, 1e14, 60) if law.variables == ("D",) else GRIDS[name] for name in law.variables]
    columns = dict(zip(law.variables, (axis.ravel() for axis in np.meshgrid(*grids)), strict=True))
    return columns | {law.response: law.evaluate(PUBLISHED[law.name], **columns)}


def residual_of(name: str) -> str:
    return "raw" if name == "information" else "log"


def test_every_law_is_tested_here() -> None:
    assert set(PUBLISHED) == set(laws.names())


@pytest.mark.parametrize("name", PUBLISHED)
def test_automatic_starts_recover_the_law(name: str) -> None:
    fit = ps.fit(runs_of(laws.get(name)), law=name, residual=residual_of(name))
    found = fit.params
    if name == "bnsl2" and found["d_1"] > found["d_2"]:
        other = {"1": "2", "2": "1"}
        found = {key[:-1] + other.get(key[-1], key[-1]): value for key, value in found.items()}
    assert found == pytest.approx(PUBLISHED[name], rel=1e-5)


def precisely(law: ps.Law, theta: list[mpmath.mpf], at: dict[str, float], residual: str) -> mpmath.mpf:
    """The law, or its logarithm, by mpmath; theta as the core has it."""

    def saturate(k: mpmath.mpf, alpha: mpmath.mpf) -> mpmath.mpf:
        low, high = mpmath.mpf("1e-30"), 1 - mpmath.mpf("1e-30")
        return mpmath.findroot(
            lambda v: mpmath.log(v / k) - alpha * mpmath.log(1 - v), (low, high), solver="anderson", maxsteps=500
        )

    scope = {"exp": mpmath.exp, "log": mpmath.log, "sqrt": mpmath.sqrt, "max": max, "min": min, "saturate": saturate}
    params = {
        name: mpmath.exp(value) if domain.logarithmic else value
        for (name, domain), value in zip(law.parameters.items(), theta, strict=True)
    }
    value = eval(law.expression, scope, params | {name: mpmath.mpf(float(v)) for name, v in at.items()})
    return mpmath.log(value) if residual == "log" else value


@pytest.mark.parametrize("name", PUBLISHED)
def test_value_gradient_and_hessian(name: str) -> None:
    """The tape's sums over points against mpmath's derivatives of the law at each."""
    law, residual = laws.get(name), residual_of(name)
    runs = runs_of(law)
    chosen = np.linspace(3, len(runs[law.response]) - 3, 4).astype(int)
    variables = {key: runs[key][chosen] for key in law.variables}
    y = runs[law.response][chosen] * (1 + 0.1 * np.cos(np.arange(4)))  # residuals, for they weigh the Hessian
    y = np.log(y) if residual == "log" else y
    published = [(PUBLISHED[name][key], domain.logarithmic) for key, domain in law.parameters.items()]
    theta = 1.01 * np.array([math.log(value) if logarithmic else value for value, logarithmic in published])
    compiled = compile_law(law, residual == "log")
    value, gradient, hessian = evaluate(
        compiled.tape, compiled.columns(variables), y, np.ones(4), theta, math.inf, level=2
    )

    points = [dict(zip(variables, row, strict=True)) for row in zip(*variables.values(), strict=True)]
    count = len(theta)
    unit = np.eye(count, dtype=int)
    with mpmath.workdps(40):

        def objective(*at: mpmath.mpf) -> mpmath.mpf:
            return sum((precisely(law, at, row, residual) - t) ** 2 for row, t in zip(points, y, strict=True)) / 2

        at = [mpmath.mpf(t) for t in theta]
        expected = float(objective(*at))
        slopes = [float(mpmath.diff(objective, at, tuple(row))) for row in unit]
        exact = [
            float(mpmath.diff(objective, at, tuple(unit[i] + unit[j]))) for i in range(count) for j in range(i + 1)
        ]
    # Sums over points cancel, so errors are relative to the size of what is summed.
    _, jacobian = law_jacobian(compiled.tape, compiled.columns(variables), theta)
    size = np.linalg.norm(jacobian, axis=1)
    assert value == pytest.approx(expected, rel=1e-10)
    assert np.all(np.abs(gradient - slopes) <= 1e-10 * math.sqrt(2 * value) * size)
    allowed = 1e-9 * (np.outer(size, size)[np.tril_indices(count)] + np.abs(exact))
    assert np.all(np.abs(hessian - exact) <= allowed)
