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


def test_plan(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    arguments = ["plan", str(table), "-c", "N=my size", "--compute", "2 PF-days", "--bootstrap", "200"]
    result = run(app, [*arguments, "--json", str(out)])
    assert result.exit_code == 0, result.output
    plan = json.loads(out.read_text())
    assert plan["compute"] == pytest.approx(1.728e20)
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
