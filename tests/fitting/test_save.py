"""A fit that is kept: pickled, copied, or written as JSON, it answers with the same bits."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

import pyscaling as ps

pytestmark = pytest.mark.filterwarnings("ignore:fit of:UserWarning", "ignore:R.2 of:UserWarning")


def table() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    N, D = np.exp(generator.uniform(np.log([1e7, 1e9]), np.log([1e10, 1e11]), (60, 2))).T
    loss = (1.8 + 480 / N**0.35 + 2100 / D**0.37) * np.exp(0.005 * generator.standard_normal(60))
    name = np.array([f"run {k}" for k in range(60)], dtype=object)
    return {"N": N, "D": D, "loss": loss, "corpus": np.tile([1.0, 2.0, 2.0], 20), "name": name}


def fits() -> dict[str, ps.Fit]:
    runs, weights = table(), np.ones(60)
    weights[[3, 9]] = 0, 2.5
    x = np.linspace(0, 5, 20)
    far = {**runs, "loss": np.where(np.arange(60) == 7, 3 * runs["loss"], runs["loss"])}
    return {
        "plain": ps.fit(runs, threads=2),
        "weights": ps.fit(runs, objective="lad", weights=weights, bounds={"alpha": (None, 0.3)}, fixed={"E": 1.8}),
        "groups": ps.fit(runs, group="corpus", shared=["alpha", "beta", "A"]),
        "tied": ps.fit(runs, tied=[("alpha", "beta")], overestimate_penalty=2.0),
        "noise": ps.fit(runs, objective="gaussian", noise=0.005),
        "outlier": ps.fit(far),
        "floor alone": ps.fit({"N": runs["N"], "loss": np.full(60, 2.0)}, "power_constant_N"),
        "units": ps.fit(
            {"x": x, "y": (3 + 2 * np.exp(-x)) * 1e-20 * (1 + 0.01 * np.sin(40 * x))},
            ps.Law("o + a*exp(-b*x)", [], variables=["x"], response="y"),
            objective="gaussian",
            residual="raw",
        ),
    }


FITS = fits()


@pytest.mark.parametrize("way", ["pickle", "copy", "json"])
@pytest.mark.parametrize("name", FITS)
def test_it_answers_the_same(name: str, way: str, tmp_path: Path) -> None:
    fit = FITS[name]
    if way == "json":
        fit.save(tmp_path / "fit.json")
        again = ps.load(tmp_path / "fit.json")
        assert [path.name for path in tmp_path.iterdir()] == ["fit.json"]
    else:
        again = copy.deepcopy(fit) if way == "copy" else pickle.loads(pickle.dumps(fit))
    assert again.params == fit.params and again.objective_value == fit.objective_value
    assert again.law == fit.law and again.law.name == fit.law.name and again.evidence == fit.evidence
    assert again.verdict == fit.verdict and again.formula == fit.formula
    assert np.array_equal(again.residuals, fit.residuals) and np.array_equal(again.theta, fit.theta)
    assert np.array_equal(again.covariance(), fit.covariance(), equal_nan=True)
    for resample in ("pairs", "wild"):
        ours, theirs = (f.bootstrap(20, resample=resample, seed=4) for f in (fit, again))
        assert np.array_equal(ours.samples, theirs.samples, equal_nan=True)
    at = {"x": 1.0} if name == "units" else {"N": 1e11, "D": 1e12} if "D" in fit.law.variables else {"N": 1e11}
    at |= {"group": 2} if name == "groups" else {}
    assert again.predict(n=20, **at) == fit.predict(n=20, **at)
    for column in fit.runs.columns:
        assert (
            np.array_equal(again.runs[column], fit.runs[column]) and again.runs[column].dtype == fit.runs[column].dtype
        )
    if name == "plain":
        assert again.profile("alpha").interval() == fit.profile("alpha").interval()
        assert str(again) == str(fit) and again.restarts(9).tolist() == fit.restarts(9).tolist()
        assert pickle.loads(pickle.dumps(fit.bootstrap(10))).interval("E") == fit.bootstrap(10).interval("E")


def test_what_is_no_fit(tmp_path: Path) -> None:
    path = tmp_path / "fit.json"
    path.write_text("N,D,loss\n1,2,3\n")
    with pytest.raises(ValueError, match=r"fit.json is no fit: .*Write one with fit.save"):
        ps.load(path)
    path.write_text('{"N": [1]}')
    with pytest.raises(ValueError, match="fit.json is JSON but no fit that fit.save wrote"):
        ps.load(path)
    FITS["plain"].save(path)
    document = json.loads(path.read_text())
    assert document["version"] == 1 and document["params"] == FITS["plain"].params
    path.write_text(json.dumps({**document, "version": 2}))
    with pytest.raises(ValueError, match="is of version 2, this pyscaling reads up to 1"):
        ps.load(path)


def test_a_path_is_read(tmp_path: Path) -> None:
    runs = {name: column for name, column in table().items() if name != "name"}
    ps.Runs(runs).to_csv(tmp_path / "runs.csv")
    for path in (tmp_path / "runs.csv", str(tmp_path / "runs.csv")):
        fit = ps.fit(path)
        assert fit.params == ps.fit(runs).params and fit.runs.source.endswith("runs.csv")
    grouped = ps.fit(tmp_path / "runs.csv", group="corpus")  # written as 1.0, which is 1
    assert grouped.law.labels == ("1", "2")
