"""Constants of any size beside parameters, and data whose parameters are of any size: automatic starts find the minimum."""

import numpy as np
import pytest
from scipy.optimize import least_squares

import pyscaling as ps

pytestmark = pytest.mark.filterwarnings("ignore:fit of:UserWarning")


def column(text: str) -> np.ndarray:
    return np.array(text.split(), dtype=float)


FADING = {
    "x": column("0 .131 .261 .377 .503 .653 .784 .88"),
    "y": column("7349.91 6889.77 6354.54 5952.89 5709.72 5599.58 5618.98 5405.07"),
}


def fitted(law: str, x: np.ndarray, y: np.ndarray, signed: bool = False) -> ps.Fit:
    own = ps.Law(law, [] if signed else None, variables=["x"], response="y")
    return ps.fit({"x": x, "y": y}, own, objective="gaussian", residual="raw")


@pytest.mark.parametrize(
    ("law", "truth"),
    [
        ("o + a*exp(-x*s/1.6e-16)", {"s": 4.225e-16, "a": 2185.2, "o": 5223.3}),
        ("o + a*exp(-(1.25e17*s)*x)", {"s": 4.225e-17 / 2, "a": 2185.2, "o": 5223.3}),
        ("o*1e-20 + 1e20*a*exp(-x*s/1e20)", {"s": 4.225e20 / 1.6, "a": 2185.2e-20, "o": 5223.3e20}),
        ("o + a*exp(-1e-20*x/s)", {"s": 1.6e-20 / 4.225, "a": 2185.2, "o": 5223.3}),
        ("o + a*2**(-x*1e9/half)", {"half": 1.6e9 / 4.225 * np.log(2), "a": 2185.2, "o": 5223.3}),
    ],
)
def test_a_constant_of_nature(law: str, truth: dict[str, float]) -> None:
    assert fitted(law, **FADING).params == pytest.approx(truth, rel=1e-4)


MISRA_X = column("77.6 114.9 141.1 190.8 239.9 289.0 332.8 378.4 434.8 477.3 536.8 593.1 689.1 760.0")
MISRA_Y = column("10.07 14.73 17.94 23.93 29.61 35.18 40.02 44.82 50.76 55.05 61.01 66.40 75.47 81.78")
THURBER_X = column(
    "-3.067 -2.981 -2.921 -2.912 -2.840 -2.797 -2.702 -2.699 -2.633 -2.481 -2.363 -2.322 -1.501 -1.460 -1.274 -1.212 "
    "-1.100 -1.046 -0.915 -0.714 -0.566 -0.545 -0.400 -0.309 -0.109 -0.103 0.010 0.119 0.377 0.790 0.963 1.006 1.115 "
    "1.572 1.841 2.047 2.200"
)
THURBER_Y = column(
    "80.574 84.248 87.264 87.195 89.076 89.608 89.868 90.101 92.405 95.854 100.696 101.060 401.672 390.724 567.534 "
    "635.316 733.054 759.087 894.206 990.785 1090.109 1080.914 1122.643 1178.351 1260.531 1273.514 1288.339 1327.543 "
    "1353.863 1414.509 1425.208 1421.384 1442.962 1464.350 1468.705 1447.894 1457.628"
)
MGH10_Y = column("34780 28610 23650 19630 16370 13720 11540 9744 8261 7030 6005 5147 4427 3820 3307 2872")


@pytest.mark.parametrize(
    ("law", "x", "y", "certified"),
    [
        ("b1*(1 - exp(-b2*x))", MISRA_X, MISRA_Y, (2.3894212918e2, 5.5015643181e-4)),
        ("b1*(1 - (1 + b2*x/2)**-2)", MISRA_X, MISRA_Y, (3.3799746163e2, 3.9039091287e-4)),
        ("b1*(1 - (1 + 2*b2*x)**-0.5)", MISRA_X, MISRA_Y, (6.3642725809e2, 2.0813627256e-4)),
        ("b1*b2*x*(1 + b2*x)**-1", MISRA_X, MISRA_Y, (4.3736970754e2, 3.0227324449e-4)),
        (
            "b1*x**b2",
            column("1.309 1.471 1.490 1.565 1.611 1.680"),
            column("2.138 3.421 3.597 4.340 4.882 5.660"),
            (7.6886226176e-1, 3.8604055871),
        ),
        (
            "b1*(1 - exp(-b2*x))",
            column("1 2 3 5 7 10"),
            column("109 149 149 191 213 224"),
            (2.1380940889e2, 5.4723748542e-1),
        ),
        (
            "b1/(1 + exp(b2 - b3*x))",
            column("9 14 21 28 42 57 63 70 79"),
            column("8.930 10.800 18.590 22.330 39.350 56.110 61.730 64.620 67.080"),
            (7.2462237576e1, 2.6180768402, 6.7359200066e-2),
        ),
        ("b1*exp(b2/(x + b3))", np.arange(50, 126, 5.0), MGH10_Y, (5.6096364710e-3, 6.1813463463e3, 3.4522363462e2)),
        (
            "b1*(x**2 + x*b2)/(x**2 + x*b3 + b4)",
            column("4 2 1 .5 .25 .167 .125 .1 .0833 .0714 .0625"),
            column(".1957 .1947 .1735 .1600 .0844 .0627 .0456 .0342 .0323 .0235 .0246"),
            (1.9280693458e-1, 1.9128232873e-1, 1.2305650693e-1, 1.3606233068e-1),
        ),
        (
            "(b1 + b2*x + b3*x**2 + b4*x**3)/(1 + b5*x + b6*x**2 + b7*x**3)",
            THURBER_X,
            THURBER_Y,
            (1288.1396800, 1491.0792535, 583.23836877, 75.416644291, 0.96629502864, 0.39797285797, 4.9727297349e-2),
        ),
    ],
)
def test_certified_values(law: str, x: np.ndarray, y: np.ndarray, certified: tuple[float, ...]) -> None:
    """NIST StRD: Misra1a-d, DanWood, BoxBOD, Rat42, MGH10, MGH09, Thurber, without the starts that come with them."""
    params = fitted(law, x, y).params
    assert [params[f"b{k}"] for k in range(1, len(certified) + 1)] == pytest.approx(certified, rel=1e-6)


T = np.linspace(280, 400, 20)
X = np.linspace(0.1, 5, 30)
N = np.geomspace(1e7, 1e10, 30)


@pytest.mark.parametrize("constant", [1e-20, 1e-9, 1e9, 1e20])
@pytest.mark.parametrize(
    ("law", "x", "truth", "signed"),
    [
        ("E + a*(x/{c})**-p", N, lambda c: {"E": 1.7, "a": 400 * c**-0.34, "p": 0.34}, False),
        ("E + ({c}*s/x)**p", N, lambda c: {"E": 1.7, "s": 400 ** (1 / 0.34) / c, "p": 0.34}, False),
        ("E + a*x**(-p*{c})", N, lambda c: {"E": 1.7, "a": 400.0, "p": 0.34 / c}, False),
        ("V*x/(K*{c} + x)", X, lambda c: {"V": 3.0, "K": 2 / c}, False),
        ("a + b*log(1 + x*s/{c})", X, lambda c: {"a": 2.0, "b": 3.0, "s": 7 * c}, False),
        ("o + a*exp(-(x*s/{c})**b)", X, lambda c: {"o": 2.0, "a": 3.0, "s": 0.7 * c, "b": 1.6}, False),
        ("a*exp(-{c}*s*(x - m)**2)", X, lambda c: {"a": 5.0, "s": 0.4 / c, "m": 3.0}, False),
        ("a - b*min(x/{c}, k)", X, lambda c: {"a": 9.0, "b": 2 * c, "k": 2.2 / c}, False),
        ("a*exp(-e/({c}*x))", T, lambda c: {"a": 3e12, "e": 9e3 * c}, False),
        ("{c}/(a + b*x)", X, lambda c: {"a": 2.0, "b": 3.0}, False),
        ("{c}*(o + a*exp(-b*x))", X, lambda c: {"o": 2.0, "a": 3.0, "b": 1.0}, False),
        ("o + a*exp(b*x/{c})", X, lambda c: {"o": 2.0, "a": -3.0, "b": -c}, True),
    ],
)
def test_constants_of_any_size(law: str, x: np.ndarray, truth, signed: bool, constant: float) -> None:
    """Against SciPy from the truth, in multiples of the truth."""
    law, truth = law.format(c=constant), truth(constant)
    own = ps.Law(law, variables=["x"])
    exact = own.evaluate(truth, x=x)
    y = exact + 0.003 * np.mean(np.abs(exact)) * np.random.default_rng(1).standard_normal(len(x))

    def residuals(multiple: np.ndarray) -> np.ndarray:
        params = dict(zip(own.names, multiple * np.array([truth[name] for name in own.names]), strict=True))
        return (own.evaluate(params, x=x) - y) / np.mean(np.abs(y))

    peer = least_squares(residuals, np.ones(len(truth)), xtol=1e-15, ftol=1e-15, gtol=1e-15, x_scale="jac")
    fit = fitted(law, x, y, signed)
    assert fit.objective_value / np.mean(np.abs(y)) ** 2 == pytest.approx(peer.cost, rel=1e-7)
    assert [fit.params[n] / truth[n] for n in own.names] == pytest.approx(peer.x, rel=1e-4)
    assert not fit.evidence.unmoved and not fit.evidence.at_bound


@pytest.mark.parametrize("size", [1e-20, 1e-6, 1e8, 1e20])
def test_a_response_of_any_size(size: float) -> None:
    """Floors and coefficients of either sign follow the response, and the denominator's its reciprocal."""
    noise = 1 + 0.003 * np.random.default_rng(2).standard_normal(len(X))
    fit = fitted("o + a*exp(-b*x)", X, size * (2 - 1.5 * np.exp(-X)) * noise, signed=True)
    assert [fit.params["o"] / size, fit.params["a"] / size, fit.params["b"]] == pytest.approx([2, -1.5, 1], rel=0.02)
    assert not fit.evidence.unmoved
    fit = fitted("1/(a + b*x)", X, size / (2 + 3 * X) * noise)
    assert [fit.params["a"] * size, fit.params["b"] * size] == pytest.approx([2, 3], rel=0.02)


def test_errors_are_in_the_parameters_own_units() -> None:
    """A line whose slope is 1e-9: least squares in closed form."""
    x = np.linspace(1, 9, 20) * 1e9
    y = 3 - 2e-9 * x + 0.1 * np.random.default_rng(3).standard_normal(20)
    fit = fitted("a + b*x", x, y, signed=True)
    matrix = np.stack([np.ones(20), x], axis=1)
    coefficients, squares, *_ = np.linalg.lstsq(matrix, y, rcond=None)
    covariance = squares[0] / 18 * np.linalg.inv(matrix.T @ matrix)
    assert [fit.params["a"], fit.params["b"]] == pytest.approx(coefficients, rel=1e-8)
    assert fit.covariance(robust=False) == pytest.approx(covariance, rel=1e-6)
    low, high = fit.profile("b", robust=False).interval(0.9)
    reach = 1.734063606617536 * np.sqrt(covariance[1, 1])  # t of 18 degrees
    assert [low, high] == pytest.approx([coefficients[1] - reach, coefficients[1] + reach], rel=1e-4)
    held = ps.fit({"x": x, "y": y}, fit.law, objective="gaussian", residual="raw", bounds={"b": (-1e-9, 1e-9)})
    assert held.params["b"] == pytest.approx(-1e-9)
