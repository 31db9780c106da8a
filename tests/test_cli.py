"""The command line as a user meets it: results, one clear message on a mistake, quick help."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pyscaling import __version__
from pyscaling.cli import app
from pyscaling.study.spec import StudySpec

run = CliRunner().invoke
TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e11, 6)))
    noise = np.random.default_rng(0).normal(size=N.size) * 1e-3
    loss = (TRUTH["E"] + TRUTH["A"] / N ** TRUTH["alpha"] + TRUTH["B"] / D ** TRUTH["beta"]) * np.exp(noise)
    path = tmp_path / "runs.csv"
    rows = [f"{n},{d},{value}" for n, d, value in zip(N, D, loss, strict=True)]
    path.write_text("\n".join(["my size,tokens,loss", *rows]))
    return path


def test_fit(table: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "fit.json", tmp_path / "fit.png"
    result = run(
        app, ["fit", str(table), "-c", "N=my size", "--bootstrap", "200", "--json", str(out), "--plot", str(plot)]
    )
    assert result.exit_code == 0, result.output
    assert "no concerns" in result.output
    assert "N = 'my size'" in result.output
    fitted = json.loads(out.read_text())
    for name, value in TRUTH.items():
        low, high = fitted["intervals"][name]
        assert low < fitted["params"][name] < high
        assert fitted["params"][name] == pytest.approx(value, rel=0.25)
    assert plot.stat().st_size > 5000


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """accuracy = 0.3 + 0.5 x^-0.7, no N, D or loss."""
    rows = [f"{x},{0.3 + 0.5 * x**-0.7},1,{0.01 if x < 50 else 0.02},{'ab'[k % 2]}" for k, x in enumerate(range(1, 41))]
    path = tmp_path / "own.csv"
    path.write_text("\n".join(["x,acc,w,sigma,kind", *rows]))
    return path


def test_columns_of_an_expression_are_variables(own: Path, tmp_path: Path) -> None:
    out = tmp_path / "fit.json"
    arguments = ["fit", str(own), "--law", "E + K*x**-p", "--response", "acc", "--bootstrap", "50", "--json", str(out)]
    result = run(app, arguments)
    assert result.exit_code == 0, result.output
    assert "acc = E + K*x**-p, over the columns x" in result.output
    assert json.loads(out.read_text())["params"] == pytest.approx({"E": 0.3, "K": 0.5, "p": 0.7}, rel=1e-5)


def test_every_option_of_a_fit(own: Path, tmp_path: Path) -> None:
    starts, out = tmp_path / "starts.csv", tmp_path / "fit.json"
    starts.write_text("E,K,p,q\n0.1,1,0.5,0.5\n0.2,1,1,1\n")
    arguments = ["fit", str(own), "--law", "E + K*x**-p + 0*q", "--response", "acc", "--variable", "x"]
    arguments += [
        "--positive",
        "E",
        "--positive",
        "K",
        "--positive",
        "p",
        "--objective",
        "gaussian",
        "--noise",
        "sigma",
    ]
    arguments += [
        "--bounds",
        "p=0.1:0.5",
        "--bounds",
        "K=:",
        "--tied",
        "p,q",
        "--starts",
        str(starts),
        "--json",
        str(out),
    ]
    result = run(app, [*arguments, "--bootstrap", "0"])
    assert result.exit_code == 0, result.output
    fitted = json.loads(out.read_text())
    assert fitted["params"]["p"] == 0.5 and fitted["evidence"]["at_bound"] == ["p"]
    assert list(fitted["params"]) == ["E", "K", "p"] and fitted["evidence"]["n_starts"] == 2
    counted = ["fit", str(own), "--law", "E + K*x**-p", "--response", "acc", "--weights", "w", "--starts", "7"]
    assert "of 7 starts agree" in run(app, [*counted, "--bootstrap", "0"]).output


def test_profile_has_the_level_that_was_asked_for(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "fit.json"
    arguments = ["fit", str(table), "-c", "N=my size", "--profile", "alpha", "--json", str(out), "--bootstrap", "50"]
    widths = []
    for level in (0.5, 0.995):
        result = run(app, [*arguments, "--level", str(level)])
        assert f"({100 * level:g} %)" in result.output and f"{100 * level:g}% interval" in result.output
        low, high = json.loads(out.read_text())["profile_intervals"]["alpha"]
        widths.append(high - low)
    assert widths[0] < 0.5 * widths[1]  # 0.67 and 2.8 standard errors
    result = run(app, [*arguments[:4], "--profile", "Z"])
    assert result.exit_code == 2 and "'Z' is not a parameter" in result.stderr and "interval" not in result.output


def test_print_and_command_line_agree(table: Path) -> None:
    import pyscaling as ps

    fit = ps.fit(ps.read_runs(table, columns={"N": "my size"}))
    low, high = fit.bootstrap(1000).interval("alpha", level=0.9)
    assert f"{low:.5g} .. {high:.5g}" in str(fit) and "90% interval" in str(fit)
    result = run(app, ["fit", str(table), "-c", "N=my size", "--bootstrap", "1000"])
    assert f"[{low:.4g}, {high:.4g}]" in result.output and "90% interval" in result.output


def test_plan(table: Path, tmp_path: Path) -> None:
    out, study = tmp_path / "plan.json", tmp_path / "plan.toml"
    arguments = ["plan", str(table), "-c", "N=my size", "--compute", "2 PF-days", "--bootstrap", "200"]
    arguments += ["--toml", str(study), "--corpus", "books/*.txt"]
    result = run(app, [*arguments, "--json", str(out)])
    assert result.exit_code == 0, result.output
    plan = json.loads(out.read_text())
    assert plan["compute"] == pytest.approx(1.728e20)
    assert StudySpec.from_toml(study.read_text()).corpus.source == "books/*.txt"
    assert 6 * plan["N"]["value"] * plan["D"]["value"] == pytest.approx(1.728e20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "absent.csv"], "'absent.csv' is not found"),
        (["fit", "TABLE", "--law", "nonsense"], "'nonsense' is unknown; known are"),
        (["fit", "TABLE", "--column", "N"], "must be written as in --column N=params"),
        (["fit", "TABLE", "--level", "90"], "--level must lie between 0 and 1, got 90"),
        (["fit", "TABLE", "--plot", "fit.doc"], "unknown ending '.doc'"),
        (["fit", "TABLE"], "'N' is missing"),
        (["fit", "TABLE", "--fixed", "E=abc"], "--fixed 'E=abc': 'abc' is not a number"),
        (["fit", "TABLE", "--bounds", "E=1"], "--bounds E='1' must be written as in --bounds E=1:2"),
        (["fit", "TABLE", "--bounds", "E=1:b"], "--bounds 'E=1:b': 'b' is not a number"),
        (["fit", "TABLE", "--tied", "alpha"], "--tied 'alpha' must name parameters that share one value"),
        (["fit", "TABLE", "-c", "N=my size", "--starts", "many"], "--starts 'many' is neither a count nor a .csv file"),
        (["fit", "TABLE", "--weights", "w"], "--weights 'w' is no column of runs.csv, which holds my size, D, loss"),
        (["fit", "TABLE", "--noise", "sigma"], "--noise 'sigma' is no column of runs.csv"),
        (["fit", "TABLE", "--variable", "x", "--law", "E + K*x"], "--variable 'x' is no column of runs.csv"),
        (["fit", "TABLE", "--positive", "E"], "positive E is for an expression; chinchilla says"),
        (["isoflop", "TABLE", "--budgets", "1e18,abc"], "--budgets '1e18,abc': 'abc' is not a number"),
        (["plan", "TABLE", "--compute", "3 parsecs"], "unknown unit 'parsecs'"),
        (["plan", "TABLE", "-c", "N=my size", "--compute", "1e5"], "too small for any model"),
        (["plan", "TABLE", "-c", "N=my size", "--compute", "1e21", "--law", "kaplan_N"], "has no D"),
        (["study", "--preset", "huge"], "'huge' is unknown; known are"),
        (["study", "absent.toml"], "absent.toml"),
        (["report", "absent"], "no study folder"),
    ],
)
def test_a_mistake_is_one_message(
    arguments: list[str], message: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(app, [str(table) if word == "TABLE" else word for word in arguments])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_version_laws_and_help() -> None:
    assert run(app, ["--version"]).output.strip() == f"pyscaling {__version__}"
    assert "chinchilla" in run(app, ["laws"]).output
    for command in ("fit", "plan", "study", "report"):
        assert run(app, [command, "--help"]).exit_code == 0


def test_start_up_imports_nothing_heavy() -> None:
    heavy = ("torch", "pandas", "sympy", "matplotlib", "scipy", "numpy")
    code = f"import sys, pyscaling.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
