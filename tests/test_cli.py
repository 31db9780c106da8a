"""The command line as a user meets it: results, one clear message on a mistake, quick help."""

import json
import re
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
    assert str(fit) in result.output  # one view of a fit, wherever it is shown


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


def test_a_raw_export_to_a_plan_in_three_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights & Biases, crashed runs, names with slashes, sizes in millions: what is in the way is said with its remedy."""
    generator, lines = (
        np.random.default_rng(0),
        ['"Name","State","model/params_M","throughput/total_tokens","eval/loss","L","d"'],
    )
    for k, (n, d) in enumerate((n, d) for n in np.geomspace(20, 2000, 6) for d in np.geomspace(1, 64, 6)):
        loss = TRUTH["E"] + TRUTH["A"] / (1e6 * n) ** TRUTH["alpha"] + TRUTH["B"] / (1e9 * d) ** TRUTH["beta"]
        crashed = k % 9 == 4
        shown = "" if crashed else f"{loss * np.exp(1e-3 * generator.normal()):.6f}"
        lines.append(f'"run-{k}","{"crashed" if crashed else "finished"}","{n:.6f}","{d:.6f}B","{shown}","12","768"')
    (tmp_path / "wandb.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    first = run(app, ["fit", "wandb.csv"])
    assert first.exit_code == 2 and "4 of 36 rows lack a value: loss in 4" in first.stderr
    assert "--drop-missing" in first.stderr and "--where" in first.stderr
    second = run(app, ["fit", "wandb.csv", "--drop-missing", "--bootstrap", "200"])
    assert second.exit_code == 0 and "N = 'model/params_M', D = 'throughput/total_tokens'" in second.output
    assert "N x 1e6" in second.output and "NOT TO BE TRUSTED" not in second.output
    third = ["plan", "wandb.csv", "--where", 'State == "finished"', "--compute", "1e21", "--json", "plan.json"]
    result = run(app, [*third, "--bootstrap", "200"])
    assert result.exit_code == 0, result.output
    plan = json.loads((tmp_path / "plan.json").read_text())
    # Hoffmann et al. 2022, eq. 4, with the constants that made the runs
    a, b = TRUTH["alpha"], TRUTH["beta"]
    best = (a * TRUTH["A"] / (b * TRUTH["B"])) ** (1 / (a + b)) * (1e21 / 6) ** (b / (a + b))
    assert plan["N"]["low"] < best < plan["N"]["high"] and plan["N"]["value"] == pytest.approx(best, rel=0.1)


def test_predict_next_runs_overtake_and_gain(table: Path, tmp_path: Path) -> None:
    out, arguments = tmp_path / "out.json", ["-c", "N=my size", "--json"]
    result = run(app, ["predict", str(table), "--N", "7B,70B", "--D", "1.4T", *arguments, str(out)])
    assert result.exit_code == 0, result.output
    for row, N in zip(json.loads(out.read_text())["predictions"], (7e9, 7e10), strict=True):
        truth = TRUTH["E"] + TRUTH["A"] / N ** TRUTH["alpha"] + TRUTH["B"] / 1.4e12 ** TRUTH["beta"]
        assert row["low"] < truth < row["high"] and row["value"] == pytest.approx(truth, rel=0.01)
    result = run(app, ["next-runs", str(table), "--spend", "1e20", "--n-runs", "4", *arguments, str(out)])
    assert result.exit_code == 0 and len(json.loads(out.read_text())["runs"]) <= 4, result.output
    rows = [line.rpartition(",") for line in table.read_text().splitlines()[1:]]
    better = tmp_path / "better.csv"  # steeper in N: it wins where models are large
    lines = [f"{head},{float(loss) + 0.2 - 3.5 * float(head.split(',')[0]) ** -0.2}" for head, _, loss in rows]
    better.write_text("\n".join(["my size,tokens,loss", *lines]))
    result = run(app, ["overtake", str(table), str(better), "--compute", "1e22", *arguments, str(out)])
    assert result.exit_code == 0 and "B is worth" in result.output, result.output
    both = tmp_path / "both.csv"
    both.write_text("\n".join(["my size,tokens,loss,recipe", *(f"{h},{x},1" for h, _, x in rows),
                               *(f"{h},{float(x) - 0.05},2" for h, _, x in rows)]))  # fmt: skip
    result = run(app, ["gain", str(both), "--group", "recipe", "--groups", "1,2", *arguments, str(out)])
    assert result.exit_code == 0 and json.loads(out.read_text())["gain"]["value"] > 1, result.output


def test_convert() -> None:
    result = run(app, ["convert", "3 PF-days", "--N", "1B"])
    assert "2.592e+20 FLOPs" in result.output and "4.32e+10" in result.output  # 3 x 8.64e19, / 6e9
    result = run(app, ["convert", "--d-model", "768", "--n-layer", "12", "--n-head", "12"])
    assert "84.9 M" in result.output and "124 M" in result.output  # GPT-2 small: 12 x 12 x 768^2, and what it is called
    assert run(app, ["convert", "--N", "1B"]).exit_code == 2


def test_messages_speak_of_options(table: Path) -> None:
    result = run(app, ["plan", str(table), "-c", "N=my size", "--target-loss", "2", "--target-gain", "0.1"])
    assert "give --target-loss or --target-gain, not both" in result.stderr
    result = run(app, ["plan", str(table), "-c", "N=my size", "--dollars", "100"])
    assert "--dollars 100.0 needs --device, such as" in result.stderr
    for command in ("fit", "plan"):
        assert "<bool>" not in run(app, [command, "--help"]).output


def test_words_of_the_command_line(table: Path) -> None:
    arguments = [str(table), "-c", "N=my size"]
    assert "--group 'nope' is no column" in run(app, ["gain", *arguments, "--group", "nope"]).stderr
    assert "--shared ['alpha'] needs --group" in run(app, ["fit", *arguments, "--shared", "alpha"]).stderr
    assert (
        "--bootstrap 3 makes no interval"
        in run(app, ["plan", *arguments, "--compute", "1e21", "--bootstrap", "3"]).stderr
    )
    assert "backticks" in run(app, ["fit", "--help"]).output
    output = run(app, ["rates", "17B", "1T"]).output
    assert (
        "Kaplan" not in output.partition("batch")[0] and f"{1.79 * 17e9**-0.713 * 1e12**0.307:.2e}" in output
    )  # its line has come to zero; 1.79 N^-.713 D^.307


def test_python_m_and_completion() -> None:
    done = subprocess.run([sys.executable, "-m", "pyscaling", "--help"], capture_output=True, text=True, check=True)
    assert "next-runs" in done.stdout and "--install-completion" in done.stdout


def test_a_fit_is_kept_and_groups_are_named(table: Path, tmp_path: Path) -> None:
    kept, arguments = tmp_path / "fit.json", ["-c", "N=my size"]
    assert run(app, ["fit", str(table), *arguments, "--bootstrap", "0", "--save", str(kept)]).exit_code == 0
    place = ["--N", "7B", "--D", "1.4T"]
    again = run(app, ["predict", str(kept), *place])
    assert again.exit_code == 0 and again.output in run(app, ["predict", str(table), *arguments, *place]).output
    assert "! D lies 14 x above the fitted runs' 1e+11" in again.output  # 1.4T over 100B
    refused = run(app, ["plan", str(kept), "--law", "kaplan_ND", "--drop-missing", "--compute", "1e21"])
    assert refused.exit_code == 2 and "--law, --drop-missing would change nothing" in refused.stderr
    assert "is a fit that was kept" in run(app, ["fit", str(kept)]).stderr
    planned = run(app, ["plan", str(kept), "--compute", "1e21", "--bootstrap", "200"])
    assert planned.exit_code == 0 and "model N" in planned.output
    both = tmp_path / "both.csv"
    rows = [line.rpartition(",") for line in table.read_text().splitlines()[1:]]
    lines = [f"{head},{float(loss) + shift},{kind}" for kind, shift in ((1, 0), (2, 0.1)) for head, _, loss in rows]
    both.write_text("\n".join(["N,tokens,loss,corpus", *lines]))
    groups = ["--group", "corpus=2", "--shared", "A,B,alpha,beta"]
    result = run(app, ["fit", str(both), *groups, "--bootstrap", "0"])
    assert "E of each group its own, A, B, alpha, beta shared" in result.output and "E_2" in result.output
    first, second = (
        run(app, ["predict", str(both), "--group", f"corpus={k}", *groups[2:], *place]).output for k in (1, 2)
    )
    first, second = (float(re.search(r"(\d\.\d+) +\[", text)[1]) for text in (first, second))
    assert second - first == pytest.approx(0.1, abs=5e-3)
    result = run(app, ["plan", str(both), *groups, "--compute", "1e21", "--bootstrap", "200"])
    assert result.exit_code == 0, result.output
    missing = run(app, ["plan", str(both), "--group", "corpus", *groups[2:], "--compute", "1e21", "--bootstrap", "200"])
    assert missing.exit_code == 2 and "--group corpus=LABEL must say which of 1, 2" in missing.stderr
