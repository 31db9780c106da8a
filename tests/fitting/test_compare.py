"""Laws are ranked by runs they have not seen; a gain in compute is what it was made to be."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import pyscaling as ps
from pyscaling.cli import app

N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, 7), np.geomspace(1e9, 1e11, 6)))
NOISE = 0.002
LAWS = ("chinchilla", "kaplan_ND", "kaplan_ND_constant")


def runs(law: str, params: dict[str, float], seed: int = 0) -> ps.Runs:
    loss = ps.laws.get(law).evaluate(params, N=N, D=D)
    return ps.Runs({"N": N, "D": D, "loss": loss * np.exp(NOISE * np.random.default_rng(seed).standard_normal(len(N)))})


TRUTH = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
CHINCHILLA = runs("chinchilla", TRUTH)
KAPLAN = runs("kaplan_ND", {"N_c": 6.4e13, "alpha_N": 0.076, "alpha_D": 0.103, "D_c": 1.8e13})


@pytest.mark.parametrize(("table", "law"), [(CHINCHILLA, "chinchilla"), (KAPLAN, "kaplan_ND")])
@pytest.mark.parametrize("holdout", ["largest", "compute", 0.2])
def test_the_true_law_wins(table: ps.Runs, law: str, holdout: object) -> None:
    result = ps.compare(table, LAWS, holdout)
    # the other Kaplan law holds the true one, so that noise decides between the two
    assert law == result.best or (law == "kaplan_ND" and result.best == "kaplan_ND_constant")
    assert result[law].rms < 3 * NOISE
    assert result[law].aicc == min(score.aicc for score in result.scores)


def test_prediction_intervals_hold_their_level() -> None:
    """The share of held-out runs inside 90 % intervals, over 40 tables of 6 held-out runs by the true law."""
    inside = [
        ps.compare(runs("chinchilla", TRUTH, s), ["chinchilla"], "largest", starts=8)["chinchilla"].inside
        for s in range(40)
    ]
    # runs of one table share their law's error, so that tables, not runs, are independent
    assert np.mean(inside) == pytest.approx(0.9, abs=3 * np.std(inside) / np.sqrt(len(inside)))


def test_scores_are_what_they_say() -> None:
    """Errors against a fit made by hand, criteria against scipy's normal likelihood at its maximum."""
    from scipy.stats import norm

    mask = N.max() == CHINCHILLA.N
    score = ps.compare(CHINCHILLA, ["chinchilla"], mask)["chinchilla"]
    fit = ps.fit(CHINCHILLA.select(~mask))
    error = np.log(fit.evaluate(N=N[mask], D=D[mask]) / CHINCHILLA.loss[mask])
    assert score.rms == pytest.approx(np.sqrt(np.mean(error**2)))
    assert score.mean == pytest.approx(np.mean(error))
    assert score.n_parameter == 5
    r = ps.fit(CHINCHILLA, objective="gaussian").residuals
    minus_2_log_likelihood = -2 * norm.logpdf(r, scale=np.sqrt(np.mean(r**2))).sum()
    n, k = len(r), 6
    assert score.bic == pytest.approx(minus_2_log_likelihood + k * np.log(n))
    assert score.aicc == pytest.approx(minus_2_log_likelihood + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def test_weights_follow_their_runs() -> None:
    """Runs of weight zero may be anything."""
    dead = np.arange(len(N)) % 5 == 1
    spoiled = ps.Runs({**CHINCHILLA.to_dict(), "loss": np.where(dead, 50.0, CHINCHILLA.loss)})
    mask = (np.max(N) == N) & ~dead
    weighted = ps.compare(spoiled, ["chinchilla"], mask, weights=(~dead).astype(float))["chinchilla"]
    kept = ps.compare(CHINCHILLA.select(~dead), ["chinchilla"], mask[~dead])["chinchilla"]
    assert weighted.rms == pytest.approx(kept.rms, rel=1e-4)
    assert (weighted.aicc, weighted.bic) == pytest.approx((kept.aicc, kept.bic), rel=1e-6)


def test_cuts_extrapolate_in_compute_and_are_pooled() -> None:
    result = ps.compare(CHINCHILLA, ["kaplan_ND", "chinchilla"])
    held = [int(cut.sum()) for cut in result.cuts]
    assert (
        held == sorted(held)
        and len(held) == 3
        and all(h >= share * 42 for h, share in zip(held, (0.2, 0.35, 0.5), strict=True))
    )
    assert held[-1] < 0.6 * 42
    assert result.best == "chinchilla" and np.array_equal(result.held_out, result.cuts[-1])
    C, squares = CHINCHILLA.C, 0.0
    for cut, reach in zip(result.cuts, result.reach, strict=True):
        assert C[cut].min() > 1.01 * C[~cut].max()
        assert reach == C[cut].max() / C[~cut].max()
        fit = ps.fit(CHINCHILLA.select(~cut))
        squares += np.sum(np.log(fit.evaluate(N=N[cut], D=D[cut]) / CHINCHILLA.loss[cut]) ** 2)
    assert result["chinchilla"].rms == pytest.approx(np.sqrt(squares / sum(held)))
    assert len(result["chinchilla"].errors) == sum(held) == sum(result.plot().lines[0].get_xdata() > 0)
    reaches = ", ".join(f"{reach:.3g}x" for reach in result.reach)
    assert str(result).splitlines()[0] == (
        f"cuts hold out {held[0]}, {held[1]}, {held[2]} of 42 runs, up to {reaches} the C of the fitted"
    )
    assert max(map(len, str(result).split("\n!")[0].splitlines())) <= 80
    assert json.loads(result.to_json())["reach"] == list(result.reach)


@pytest.mark.parametrize("n", [7, 8, 10, 13, 20])
def test_cuts_of_small_tables_leave_enough_to_fit(n: int) -> None:
    few = CHINCHILLA.select(np.argsort(CHINCHILLA.C, kind="stable")[np.linspace(0, 41, n).astype(int)])
    result = ps.compare(few, ["kaplan_D", "kaplan_N"])
    for cut in result.cuts:
        assert (~cut).sum() >= 4 and few.C[cut].min() > few.C[~cut].max()
    assert result.held_out.sum() >= n / 5


def test_runs_of_one_budget_stay_together() -> None:
    C = np.repeat(np.geomspace(1e19, 1e21, 4), 9)
    C = C * (1 + 0.003 * np.random.default_rng(0).uniform(-1, 1, 36))
    size = np.sqrt(C / 120) * np.tile(np.geomspace(0.5, 2, 9), 4)
    table = {"N": size, "C": C, "loss": ps.laws.get("chinchilla").evaluate(TRUTH, N=size, D=C / (6 * size))}
    assert [int(cut.sum()) for cut in ps.compare(table, ["kaplan_ND"]).cuts] == [9, 18]


def test_without_compute_cuts_are_in_what_the_laws_share() -> None:
    size = np.geomspace(1e7, 1e9, 10)
    result = ps.compare({"N": size, "loss": 2 + 400 * size**-0.3}, ["kaplan_N", "E + A/N**a"])
    assert (result.variable, result.best) == ("N", "E + A/N**a")
    assert str(result).splitlines()[0].endswith("the N of the fitted; no C")
    assert all(size[cut].min() > size[~cut].max() for cut in result.cuts)


def test_groups_are_cut_each_at_its_own() -> None:
    """b has a tenth of a's compute: cut together, none of b would be held out, and none of a fitted with it."""
    table = {
        "N": np.concatenate([N, N]),
        "D": np.concatenate([D, D / 10]),
        "loss": np.concatenate(
            [ps.laws.get("chinchilla").evaluate(TRUTH, N=N, D=d) + e for d, e in ((D, 0), (D / 10, 0.2))]
        ),
        "corpus": np.repeat(["a", "b"], 42),
    }
    table["loss"] *= np.exp(NOISE * np.random.default_rng(0).standard_normal(84))
    result = ps.compare(table, ["chinchilla"], group="corpus", shared=["A", "alpha", "beta"], starts=16)
    for cut in result.cuts:
        assert cut[:42].sum() == cut[42:].sum() > 0
    assert result["chinchilla"].n_parameter == 7
    assert result["chinchilla"].rms < 3 * NOISE
    given = ps.compare(table, ["chinchilla"], group=table["corpus"], shared=["A", "alpha", "beta"], starts=16)
    assert given["chinchilla"].rms == result["chinchilla"].rms


def test_runs_of_no_weight_are_not_predicted() -> None:
    dead = np.arange(42) % 5 == 1
    spoiled = ps.Runs({**CHINCHILLA.to_dict(), "loss": np.where(dead, 50.0, CHINCHILLA.loss)})
    result = ps.compare(spoiled, ["chinchilla"], weights=(~dead).astype(float))
    assert not np.any(result.held_out & dead)
    assert result["chinchilla"].rms < 3 * NOISE


@pytest.mark.parametrize(
    ("holdout", "threshold", "count"),
    [("largest", None, 6), ("largest", 3e8, 12), (0.25, None, 10), ("compute", 1e20, 5)],
)
def test_what_is_held_out(holdout: object, threshold: float | None, count: int) -> None:
    held_out = ps.compare(CHINCHILLA, ["chinchilla"], holdout, threshold).held_out
    assert held_out.sum() == count
    column = CHINCHILLA.N if holdout == "largest" else CHINCHILLA.C
    assert column[held_out].min() >= column[~held_out].max()


def test_a_law_that_cannot_be_fitted_is_listed() -> None:
    few = CHINCHILLA.select(np.arange(0, 42, 6))  # 7 runs: one of N = 1e9, 6 to fit
    result = ps.compare(few, ["chinchilla", "kaplan_D", "E + A/N**a + B/D**b + F*N**-c*D**-d"], holdout=0.2)
    assert [score.fitted for score in result.scores] == [True, True, False] or not result["chinchilla"].fitted
    assert "cannot determine the 8 free parameters" in result.scores[-1].reason
    assert "cannot determine the 8 free parameters" in str(result)
    assert json.loads(result.to_json())["laws"][-1]["rms"] is None


def test_default_laws_and_export() -> None:
    result = ps.compare(CHINCHILLA, starts=16)
    assert {"chinchilla", "kaplan_ND"} <= {score.law for score in result.scores}
    assert list(result.to_frame().index) == [score.law for score in result.scores]
    assert str(result).splitlines()[2].split()[0] == result.best
    assert len(result.plot().lines) == len(result.scores) + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"laws": ["chinchila"]}, "law 'chinchila' is unknown"),
        ({"laws": []}, "laws is empty"),
        ({"weights": [1, 2]}, r"weights must have one entry per run \(42\)"),
        ({"holdout": "smallest"}, "holdout='smallest' is unknown"),
        (
            {"holdout": N > 0},
            "the mask of holdout holds out 42 of 42 runs; both parts need some. Choose another holdout",
        ),
        ({"holdout": 2}, "holdout must lie between 0 and 1, got 2"),
        ({"holdout": np.ones(3, dtype=bool)}, r"boolean with one entry per run \(42\)"),
        ({"holdout": "largest", "threshold": 1e12}, "holds out 0 of 42 runs"),
        ({"threshold": 1e9}, 'threshold=1e.09 is for holdout="largest"'),
        ({"holdout": 0.5, "threshold": 1e9}, "threshold=1e.09 is for holdout"),
        ({"objective": "l2"}, "no law could be fitted; chinchilla: objective='l2' is unknown"),
        ({"level": 90}, "level must lie between 0 and 1, got 90"),
    ],
)
def test_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ps.compare(CHINCHILLA, **arguments)


def test_one_size_leaves_nothing_to_extrapolate() -> None:
    with pytest.raises(ValueError, match=r"holdout='largest' holds out 6 of 6 runs, whose N spans 1e\+07 to 1e\+07"):
        ps.compare(CHINCHILLA.select(N.min() == CHINCHILLA.N), ["chinchilla"], "largest")
    with pytest.raises(
        ValueError, match="all 6 runs of the table have the same C, so that none lies beyond the others"
    ):
        ps.compare({"C": np.full(6, 1e20), "loss": np.linspace(2, 3, 6)}, ["kaplan_C"])


def test_command(tmp_path) -> None:
    CHINCHILLA.to_csv(tmp_path / "runs.csv")
    arguments = ["compare", str(tmp_path / "runs.csv"), "--law", "chinchilla", "--law", "kaplan_N", "--holdout", "0.2"]
    done = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")])
    assert done.exit_code == 0, done.output
    assert "34 runs fitted, 8 held out" in done.output
    assert [law["law"] for law in json.loads((tmp_path / "a.json").read_text())["laws"]] == ["chinchilla", "kaplan_N"]
    assert (tmp_path / "a.png").stat().st_size > 5000
    done = CliRunner().invoke(app, [*arguments, "--holdout", "all"])
    assert done.exit_code == 2 and "--holdout 'all' is unknown" in done.stderr


def two_groups(gain: float, noise: float = 0.0, seed: int = 0, floor: float = 1.7) -> ps.Runs:
    """A's L(C) = 1.7 + 1.2 (C / 1e19)^-0.16; B gets the same from C / gain, over a floor of its own."""
    C = np.geomspace(1e18, 1e21, 9)
    loss = [1.7 + 1.2 * (C / 1e19) ** -0.16, floor + 1.2 * (gain * C / 1e19) ** -0.16]
    noisy = np.concatenate(loss) * np.exp(noise * np.random.default_rng(seed).standard_normal(18))
    return ps.Runs({"C": np.tile(C, 2), "loss": noisy, "architecture": np.repeat(["LSTM", "transformer"], 9)})


def test_gain_is_what_it_was_made() -> None:
    result = ps.compute_gain(two_groups(1.7), "architecture")
    assert (result.baseline, result.other) == ("LSTM", "transformer")
    assert result.at == pytest.approx(np.sqrt(1e18 * 1e21))
    assert (result.value, result.low, result.high) == pytest.approx((1.7, 1.7, 1.7), rel=1e-5)
    assert str(result).startswith(
        "transformer is worth 1.7x the compute of LSTM at C = 3.16e+19 FLOPs, 90% interval 1.7"
    )
    back = ps.compute_gain(two_groups(1.7), "architecture", groups=("transformer", "LSTM"))
    assert back.value == pytest.approx(1 / 1.7, rel=1e-5)


def test_gain_that_grows_with_compute() -> None:
    """Equal floors, exponents of 0.16 and 0.2: C_A = C^(0.2 / 0.16) in units of 1e19, so g = C^0.25."""
    C = np.geomspace(1e18, 1e21, 9)
    loss = np.concatenate([1.7 + 1.2 * (C / 1e19) ** -p for p in (0.16, 0.2)])
    result = ps.compute_gain({"C": np.tile(C, 2), "loss": loss, "v": np.repeat([1, 2], 9)}, "v", n=50)
    at = np.array([1e19, 1e20])
    assert result.gain(at).value == pytest.approx((at / 1e19) ** 0.25, rel=1e-4)


def test_frontier_leaves_beaten_runs_out() -> None:
    runs = two_groups(1.7)
    worse = ps.Runs({name: np.concatenate([column, column]) for name, column in runs.to_dict().items()})
    worse = ps.Runs({**worse.to_dict(), "loss": worse.loss * np.repeat([1.0, 1.1], 18)})
    assert ps.compute_gain(worse, "architecture", n=50).value == pytest.approx(1.7, rel=1e-5)


def test_gain_covers() -> None:
    hits, count = 0, 100
    for seed in range(count):
        result = ps.compute_gain(two_groups(1.7, 0.002, seed), "architecture", n=300, starts=16)
        hits += result.low <= 1.7 <= result.high
    # three standard errors of a binomial of 100 at 0.9
    assert abs(hits / count - 0.9) <= 3 * np.sqrt(0.9 * 0.1 / count)


def test_a_loss_below_the_floor_is_out_of_reach() -> None:
    with pytest.warns(UserWarning, match="LSTM cannot reach this loss with any compute"):
        result = ps.compute_gain(two_groups(1.0, 0.001, floor=1.0), "architecture", at=1e21)
    assert np.isinf(result.value) and np.isinf(result.high)
    assert result.unreachable > 0.5
    assert "infinitely" in str(result)
    assert json.loads(result.to_json())["gain"]["value"] is None


def test_gain_warns_of_extrapolation_and_exports() -> None:
    with pytest.warns(UserWarning, match=r"extrapolates: transformer at C = 1e\+23.*extrapolates: LSTM"):
        ps.compute_gain(two_groups(1.7), "architecture", at=1e23, n=50)
    result = ps.compute_gain(two_groups(1.7, 0.002), "architecture", n=50)
    frame = result.to_frame(points=5)
    assert np.all((frame.low <= frame.gain) & (frame.gain <= frame.high))
    assert [text.get_text() for text in result.plot().texts][-1] == f"{result.value:.3g}x"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": "arch"}, "column 'arch' is missing"),
        (
            {"group": "architecture", "groups": ("LSTM", "RNN")},
            "groups must be two values of architecture.*LSTM, transformer",
        ),
        ({"group": "architecture", "law": "chinchilla"}, "law must be of C alone, chinchilla is of N, D"),
        ({"group": "architecture", "at": -1.0}, "at must be finite and positive, got -1"),
        ({"group": "architecture", "n": 1}, "n must be at least 2 resamples, got 1"),
        (
            {"group": "architecture", "weights": "w"},
            r"architecture = LSTM \(9 of its 9 runs are on its frontier\): column 'w'",
        ),
    ],
)
def test_gain_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ps.compute_gain(two_groups(1.7), **arguments)
