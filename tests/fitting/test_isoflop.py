"""isoFLOP optima and envelopes of data from a known law, whose exponents have a closed form."""

import json
import warnings

import numpy as np
import pytest
from typer.testing import CliRunner

import pyscaling as ps
from pyscaling.cli import app

E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28
# Hoffmann et al. 2022, eq. 4: N_opt = G (C / 6)^a, a = beta / (alpha + beta)
G = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
EXPONENT = BETA / (ALPHA + BETA)
BUDGETS = np.geomspace(1e18, 1e21, 7)


def loss_of(N: np.ndarray, D: np.ndarray) -> np.ndarray:
    return E + A / N**ALPHA + B / D**BETA


def best_N(C: np.ndarray) -> np.ndarray:
    return G * (C / 6) ** EXPONENT


def isoflop_runs(width: float, size: int, noise: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    """`size` runs a budget, N within a factor `width` of the optimum and off its centre by a share that varies."""
    off = np.linspace(-0.4, 0.4, len(BUDGETS)) * np.log(width)
    N = np.concatenate(
        [best_N(C) * np.exp(o) * np.geomspace(1 / width, width, size) for C, o in zip(BUDGETS, off, strict=True)]
    )
    C = np.repeat(BUDGETS, size)
    loss = loss_of(N, C / (6 * N)) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))
    return {"N": N, "C": C, "loss": loss}


@pytest.mark.parametrize(
    ("method", "width", "size", "error"),
    [("parabola", 1.2, 15, 1e-3), ("akima", 1.2, 15, 1e-3), ("akima", 4, 41, 1e-3)],
)
def test_exponents_of_a_known_law(method: str, width: float, size: int, error: float) -> None:
    result = ps.isoflop(isoflop_runs(width, size), method=method, n=50)
    assert result.exponent_N == pytest.approx(EXPONENT, abs=error)
    assert result.exponent_D == pytest.approx(1 - EXPONENT, abs=error)
    assert pytest.approx(best_N(BUDGETS), rel=5e-3) == result.optima.N
    assert pytest.approx(BUDGETS, rel=1e-9) == 6 * result.optima.N * result.optima.D
    assert result.optima.loss == pytest.approx(loss_of(result.optima.N, result.optima.D), rel=1e-4)
    assert result.N(1e23).value == pytest.approx(best_N(1e23), rel=0.02)


def test_parabola_is_biased_on_a_wide_grid_and_akima_is_not() -> None:
    wide = isoflop_runs(4, 41)
    assert abs(ps.isoflop(wide, n=2).exponent_N - EXPONENT) > 5e-4
    assert abs(ps.isoflop(wide, method="akima", n=2).exponent_N - EXPONENT) < 1e-4


def test_akima_against_scipy() -> None:
    from scipy.interpolate import Akima1DInterpolator

    runs = ps.Runs(isoflop_runs(5, 9, noise=0.004))
    result = ps.isoflop(runs, method="akima", n=2)
    for C, N, loss in zip(result.optima.C, result.optima.N, result.optima.loss, strict=True):
        one = runs.select(np.isclose(runs.C, C))
        peer = Akima1DInterpolator(np.log(one.N), one.loss)
        grid = np.linspace(np.log(one.N[0]), np.log(one.N[-1]), 100_001)
        assert np.log(N) == pytest.approx(grid[np.argmin(peer(grid))], abs=2 * (grid[1] - grid[0]))
        assert loss == pytest.approx(peer(grid).min(), rel=1e-9)


def test_standard_error_is_the_delta_method() -> None:
    """Against the scatter of the optimum over simulated studies of the same design."""
    N, errors = [], []
    for seed in range(150):
        optima = ps.isoflop(isoflop_runs(2.5, 9, 0.001, seed), n=2).optima
        N.append(np.log(optima.N))
        errors.append(optima["N_se"] / optima.N)
    # the standard deviation of 7 x 150 draws is known to 2 %
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.sqrt(np.var(N, axis=0, ddof=1).mean()), rel=0.1)


@pytest.mark.parametrize("method", ["parabola", "akima"])
def test_intervals_cover(method: str) -> None:
    hits, count = np.zeros(2), 120
    for seed in range(count):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="isoflop dropped", category=UserWarning)
            result = ps.isoflop(isoflop_runs(2, 7, 0.001, seed), method=method, n=300)
        low, high = result.interval("exponent_N", 0.9)
        at = result.N(1e22, level=0.9)
        hits += [low <= EXPONENT <= high, at.low <= best_N(1e22) <= at.high]
    # three standard errors of a binomial of 120 at 0.9
    assert np.all(np.abs(hits / count - 0.9) < 3 * np.sqrt(0.9 * 0.1 / count)), hits / count


def test_three_runs_a_budget_leave_the_scatter_of_the_optima() -> None:
    with pytest.warns(UserWarning, match="isoflop: every curve goes through all of its runs"):
        result = ps.isoflop(isoflop_runs(1.5, 3, 0.001))
    assert result.exponent_N == pytest.approx(EXPONENT, abs=0.05)
    assert np.isnan(result.noise) and np.isnan(result.misfit)
    assert result.interval("exponent_N") == pytest.approx(ordinary_interval(result.optima.C, result.optima.N))
    with pytest.raises(ValueError, match="two budgets at least, the table gives 0"):
        ps.isoflop({"N": [], "C": [], "loss": []})


def scattered_runs(
    budgets: int, tau: float, seed: int, sizes: int | list[int] = 9, noise: float = 0.002
) -> dict[str, np.ndarray]:
    """Optima that scatter by tau about ln N = 0.5 ln(C / 120), and valleys that are parabolas in ln N."""
    generator = np.random.default_rng(seed)
    N, C, loss = [], [], []
    for budget, size in zip(np.geomspace(6e18, 1e22, budgets), np.broadcast_to(sizes, budgets), strict=True):
        x = np.linspace(-1.2, 1.2, size)
        N.append(np.exp(0.5 * np.log(budget / 120) + tau * generator.standard_normal() + x))
        C.append(np.full(size, budget))
        loss.append((2 + 0.08 * x**2) * np.exp(noise * generator.standard_normal(size)))
    return {"N": np.concatenate(N), "C": np.concatenate(C), "loss": np.concatenate(loss)}


def ordinary_interval(C: np.ndarray, N: np.ndarray, level: float = 0.9) -> tuple[float, float]:
    """Of the slope of ln N on ln C, by the textbook's formula for least squares."""
    from scipy.stats import linregress, t

    slope, _, _, _, error = linregress(np.log(C), np.log(N))
    reach = t.ppf((1 + level) / 2, len(C) - 2) * error
    return slope - reach, slope + reach


@pytest.mark.filterwarnings("ignore:isoflop:UserWarning")
@pytest.mark.parametrize(("budgets", "tau"), [(4, 0.0), (4, 0.1), (8, 0.15)])
def test_intervals_cover_where_optima_scatter(budgets: int, tau: float) -> None:
    """Of the exponents and of N and D a hundred times beyond the data; 1,000 tables a case are in docs/isoflop.md."""
    hits, count = np.zeros(4), 150
    for seed in range(count):
        result = ps.isoflop(scattered_runs(budgets, tau, seed), n=2)
        N, D = result.N(1e24), result.D(1e24)
        hits += [
            result.interval("exponent_N")[0] <= 0.5 <= result.interval("exponent_N")[1],
            result.interval("exponent_D")[0] <= 0.5 <= result.interval("exponent_D")[1],
            N.low <= np.sqrt(1e24 / 120) <= N.high,
            D.low <= np.sqrt(1e24 * 120) / 6 <= D.high,
        ]
    # three standard errors of a binomial of 150 at 0.9
    assert np.all(np.abs(hits / count - 0.9) < 3 * np.sqrt(0.9 * 0.1 / count)), hits / count


@pytest.mark.filterwarnings("ignore:isoflop:UserWarning")
def test_interval_of_equal_budgets_is_that_of_ordinary_least_squares() -> None:
    """Where scatter outweighs the runs' noise all weights are equal, and the line at C has its textbook interval."""
    from scipy.stats import t

    result = ps.isoflop(scattered_runs(6, 20.0, 3))
    C, N = result.optima.C, result.optima.N
    assert result.interval("exponent_N") == pytest.approx(ordinary_interval(C, N), rel=1e-4)
    assert result.interval("exponent_N", 0.5) == pytest.approx(ordinary_interval(C, N, 0.5), rel=1e-4)
    x = np.log(C)
    rest = np.log(N) - np.polyval(np.polyfit(x, np.log(N), 1), x)
    error = np.sqrt(np.sum(rest**2) / 4 * (1 / 6 + (np.log(1e23) - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2)))
    assert np.log(result.N(1e23).high / result.N(1e23).value) == pytest.approx(t.ppf(0.95, 4) * error, rel=1e-4)
    assert result.scatter == pytest.approx(np.sqrt(np.sum(rest**2) / 4), rel=1e-4)


def test_between_variance_is_the_maximum_of_the_restricted_likelihood() -> None:
    from scipy.linalg import null_space
    from scipy.optimize import minimize_scalar
    from scipy.stats import multivariate_normal

    from pyscaling.fitting.isoflop import between_variance

    found = []
    for seed in range(8):
        generator = np.random.default_rng(seed)
        X = np.stack([np.ones(7), np.linspace(-3, 3, 7)], axis=-1)
        variance = 0.01 * np.exp(generator.standard_normal(7))
        y = X @ [20.0, 0.5] + 0.15 * generator.standard_normal(7) + np.sqrt(variance) * generator.standard_normal(7)
        contrasts = null_space(X.T).T  # the likelihood of what no line can explain

        def minus(ln_tau2: float, y: np.ndarray = y, v: np.ndarray = variance, K: np.ndarray = contrasts) -> float:
            return -multivariate_normal(None, K @ np.diag(v + np.exp(ln_tau2)) @ K.T).logpdf(K @ y)

        peer = minimize_scalar(minus, bounds=(-16, 3), method="bounded", options={"xatol": 1e-9})
        at_zero = minus(-40.0) <= peer.fun
        found.append(between_variance(X, y, variance))
        assert found[-1] == pytest.approx(0 if at_zero else np.exp(peer.x), rel=1e-5, abs=1e-6)  # the root of rounding
    assert min(found) == 0 < max(found)  # both kinds were met
    # equal variances: what residuals show beyond them, in closed form
    rest = y - np.polyval(np.polyfit(X[:, 1], y, 1), X[:, 1])
    assert between_variance(X, y, np.full(7, 1e-3)) == pytest.approx(np.sum(rest**2) / 5 - 1e-3)


@pytest.mark.filterwarnings("ignore:isoflop:UserWarning")
def test_samples_are_the_intervals() -> None:
    result = ps.isoflop(scattered_runs(5, 0.1, 0), n=40_000)
    for which, name in enumerate(("exponent_N", "exponent_D")):
        low, high = result.interval(name)
        ends = np.quantile(result.samples[:, which, 1], [0.05, 0.95])
        assert ends == pytest.approx([low, high], abs=0.03 * (high - low))  # 3 standard errors of a quantile of so many
    # ln N and ln D at one C add up to ln(C / 6) in each sample, too
    assert result.samples[:, :, 1].sum(axis=1) == pytest.approx(1, abs=1e-6)  # the root of rounding


def test_two_precise_budgets_do_not_decide() -> None:
    """Optima that scatter by 0.02, whose own errors are 0.02, but for two of 0.001: by these alone, 68 % are covered."""
    from pyscaling.fitting.isoflop import _power_laws

    u, se, hits, count = np.linspace(-3, 3, 4), np.array([0.02, 0.001, 0.02, 0.001]), 0, 600
    for seed in range(count):
        generator = np.random.default_rng(seed)
        y = 0.5 * u + generator.normal(0, 0.02, 4) + se * generator.standard_normal(4)
        laws = _power_laws(u, np.stack([y, -y]), se)
        hits += abs(laws.line[0, 1] - 0.5) <= 2.920 * np.sqrt(laws.covariance[0, 1, 1])  # t of 2 degrees, 95 %
    # three standard errors of a binomial of 600 at 0.9
    assert abs(hits / count - 0.9) < 3 * np.sqrt(0.9 * 0.1 / count), hits / count
    weights = np.linalg.inv(laws.unscaled)[0, 0]
    assert weights <= 4 / 0.0105**2  # none counts as more than one with the median's error


def test_large_misfit_is_said() -> None:
    with pytest.warns(UserWarning, match="isoflop: the optima scatter .* times as much"):
        result = ps.isoflop(scattered_runs(8, 0.15, 0))
    assert result.misfit > 8 and result.scatter == pytest.approx(0.15, rel=0.5)
    assert f"N_opt scatters {result.misfit:.2g}x its noise" in str(result).splitlines()[0]
    assert json.loads(result.to_json())["warnings"] == list(result.warnings) and len(result.warnings) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calm = ps.isoflop(scattered_runs(8, 0.0, 0))
    assert calm.warnings == () and "scatters" not in str(calm).splitlines()[0]
    assert max(map(len, str(result).split("\n!")[0].splitlines())) <= 80


def test_tables_in_a_notebook() -> None:
    """Read back by an HTML parser: as many tables, headers and cells as the text has, numbers to the right, text escaped."""
    from html.parser import HTMLParser

    class Cells(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[list[str]] = []
            self.sides: set[tuple[bool, str]] = set()
            self.tag = ""

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            if tag == "tr":
                self.rows.append([])
            if tag in ("td", "th"):
                self.sides.add((not self.rows[-1], dict(attributes)["style"] or ""))
                self.rows[-1].append("")
            self.tag = tag

        def handle_data(self, data: str) -> None:
            if self.tag in ("td", "th"):
                self.rows[-1][-1] += data

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = ps.isoflop(scattered_runs(8, 0.15, 0))
    parser = Cells()
    parser.feed(result._repr_html_())
    text = str(result).splitlines()
    assert [" ".join(row).split() for row in parser.rows] == [line.split() for line in text[1:13]]
    assert parser.sides == {(True, "text-align: left"), (False, "text-align: right")}
    assert text[0] in result._repr_html_() and "&#9888; the optima scatter" in result._repr_html_()
    assert "N_opt scatters" in text[0] and "budget&#x27;s" in result._repr_html_()


def test_two_budgets_have_no_interval() -> None:
    with pytest.warns(UserWarning, match="isoflop: no interval: two budgets fix a line"):
        result = ps.isoflop(scattered_runs(2, 0.0, 0))
    assert result.exponent_N == pytest.approx(0.5, abs=0.02)
    assert np.isnan(result.interval("exponent_N")).all() and np.isnan(result.N([1e20, 1e24]).low).all()
    assert np.isnan(result.samples).all()
    assert str(result).splitlines()[0].endswith("; no interval") and "nan" not in str(result)
    assert json.loads(result.to_json())["intervals"]["exponent_N"] == [None, None]


def test_weights_silence_a_run() -> None:
    runs = isoflop_runs(1.5, 9)
    spoiled = {**runs, "loss": np.where(np.arange(63) % 9 == 2, 9.0, runs["loss"])}
    weights = (np.arange(63) % 9 != 2).astype(float)
    kept = {name: column[weights > 0] for name, column in runs.items()}
    assert ps.isoflop(spoiled, weights=weights, n=2).exponent_N == pytest.approx(ps.isoflop(kept, n=2).exponent_N)


def test_budgets_without_an_optimum_are_dropped_and_named() -> None:
    runs = ps.Runs(isoflop_runs(2, 9))
    runs = runs.select(~np.isclose(runs.C, BUDGETS[0]) | (best_N(runs.C) < runs.N / 1.01))
    mirrored = np.where(np.isclose(runs.C, BUDGETS[6]), 6 - runs.loss, runs.loss)
    runs = ps.Runs({**runs.to_dict(), "loss": mirrored})
    with pytest.warns(UserWarning, match="isoflop dropped 2 of 7 budgets: C = 1e.18.*smallest N.*opens downwards"):
        result = ps.isoflop(runs, n=50)
    assert list(result.dropped) == pytest.approx([BUDGETS[0], BUDGETS[6]])
    assert len(result.optima) == 5
    assert "! C = 1e+18 dropped" in str(result)
    assert result.exponent_N == pytest.approx(EXPONENT, abs=0.02)


def test_budgets_are_told_apart() -> None:
    runs = ps.Runs(isoflop_runs(1.2, 15))
    scattered = ps.Runs({**runs.to_dict(), "C": runs.C * np.tile(np.geomspace(0.97, 1.03, 15), 7), "b": runs.C})
    for budgets in (None, "b", BUDGETS):
        assert pytest.approx(BUDGETS, rel=0.01) == ps.isoflop(scattered, budgets, n=2).optima.C
    with pytest.raises(
        ValueError, match=r"two budgets at least.*differ by a factor of 1e\+03: not one budget.*tolerance"
    ):
        ps.isoflop({"N": np.geomspace(1e7, 1e9, 200), "C": np.geomspace(1e18, 1e21, 200), "loss": np.full(200, 3.0)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "spline"}, "method='spline' is unknown; known are parabola, akima"),
        ({"tolerance": 10}, "tolerance must lie between 0 and 1, got 10"),
        ({"budgets": [-1.0]}, "budgets must be finite and positive"),
        ({"budgets": ["1e18", "abc"]}, r"budgets must be a column or numbers of FLOPs, got \['1e18', 'abc'\]"),
        ({"budgets": "budget"}, "column 'budget' is missing"),
        ({"n": 1}, "n must be at least 2"),
    ],
)
def test_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ps.isoflop(isoflop_runs(2, 7), **arguments)


def test_published_exponent(chinchilla_runs) -> None:
    """Hoffmann et al. 2022, table 2: a = 0.49 (0.462 to 0.534) by approach 2; here from points read off a figure."""
    budgets = [6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21]
    result = ps.isoflop(chinchilla_runs, budgets, tolerance=0.15)
    low, high = result.interval("exponent_N")
    assert low < 0.534 and high > 0.462


def test_results_export(tmp_path) -> None:
    result = ps.isoflop(isoflop_runs(2, 7, 0.001))
    stored = json.loads(result.to_json(tmp_path / "isoflop.json"))
    assert json.loads((tmp_path / "isoflop.json").read_text()) == stored
    assert stored["exponent_N"] == result.exponent_N
    assert result.to_frame()["N"].tolist() == stored["optima"]["N"]
    assert len(result.plot().lines) == 3 * len(BUDGETS)
    assert result.plot(kind="law").get_xlabel() == "C (FLOPs)"
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 90"):
        result.N(1e20, level=90)
    with pytest.raises(ValueError, match="quantity='alpha' is unknown"):
        result.interval("alpha")


def test_command(tmp_path) -> None:
    ps.Runs(isoflop_runs(1.5, 7)).to_csv(tmp_path / "runs.csv")
    arguments = ["isoflop", str(tmp_path / "runs.csv"), "--json", str(tmp_path / "a.json")]
    done = CliRunner().invoke(app, [*arguments, "--budgets", "1e18,1e19,1e20", "--plot", str(tmp_path / "a.png")])
    assert done.exit_code == 0, done.output
    assert "3 budgets, 21 of 49 runs" in done.output
    assert json.loads((tmp_path / "a.json").read_text())["exponent_N"] == pytest.approx(EXPONENT, abs=2e-3)
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert CliRunner().invoke(app, [*arguments, "--method", "akima"]).exit_code == 0
    done = CliRunner().invoke(app, [*arguments, "--budgets", "budget"])
    assert done.exit_code == 2 and "column 'budget' is missing" in done.stderr


def training_curves(n_size: int, **changed: object) -> dict[str, object]:
    N = np.repeat(np.geomspace(1e7, 1e10, n_size), 120)
    D = np.tile(np.geomspace(1e8, 5e11, 120), n_size)
    return {"N": N, "D": D, "loss": loss_of(N, D), "run": np.repeat(np.arange(n_size), 120), **changed}


def test_envelope_of_a_known_law() -> None:
    with pytest.warns(UserWarning, match=r"envelope dropped \d+ of 1500 points: .*smallest or largest N"):
        result = ps.envelope(training_curves(80), n=100)
    # A staircase of steps log(1000) / 79 in ln N over 9 units of ln C errs by no more than a step from end to end.
    assert result.exponent_N == pytest.approx(EXPONENT, abs=0.01)
    assert result.exponent_D == pytest.approx(1 - EXPONENT, abs=0.01)
    low, high = result.interval("exponent_N")
    assert low <= EXPONENT <= high and high - low < 0.05
    C = result.optima.C
    assert result.optima.loss == pytest.approx(loss_of(best_N(C), C / (6 * best_N(C))), rel=1e-3)
    assert result.optima.N.min() > 1e7 and result.optima.N.max() < 1e10
    # On the frontier L - E ~ C^(-alpha beta / (alpha + beta)).
    assert result.fit().params["alpha"] == pytest.approx(ALPHA * EXPONENT, rel=0.01)
    assert result.fit().params["E"] == pytest.approx(E, rel=0.01)


def test_smoothing_takes_the_noise_off() -> None:
    clean = training_curves(40)
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(len(clean["loss"])))
    noisy = {**clean, "loss": clean["loss"] * noise}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="envelope dropped", category=UserWarning)
        raw, smooth = (ps.envelope(noisy, smoothing=width, n=2).optima for width in (0, 4))

    def bias(optima: ps.Runs) -> float:
        return float(np.mean(np.log(optima.loss / loss_of(best_N(optima.C), optima.C / (6 * best_N(optima.C))))))

    assert bias(raw) < -0.005  # a minimum over noisy curves lies below them all
    assert abs(bias(smooth)) < 0.4 * abs(bias(raw))


def test_envelope_exports_and_errors() -> None:
    with pytest.warns(UserWarning, match="envelope dropped"):
        result = ps.envelope(training_curves(20), n=50, points=200)
    assert json.loads(result.to_json())["exponent_N"] == result.exponent_N
    assert "points dropped" in str(result)
    assert result.plot().get_title() == "training curves"
    assert len(result.to_frame()) == len(result.optima)
    with pytest.raises(ValueError, match="run 0.0 has several N"):
        ps.envelope(training_curves(20, run=np.zeros(2400)))
    with pytest.raises(ValueError, match="curves of 2 N; an optimum needs three"):
        ps.envelope(training_curves(2))
    with pytest.raises(ValueError, match="smoothing must be finite and not negative, got -1"):
        ps.envelope(training_curves(20), smoothing=-1)
