"""A study takes further runs: what is finished stays, bit for bit, and the same runs are added once."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import pyscaling as ps
from pyscaling.accounting import Shape, shape_near
from pyscaling.planning.design import next_runs
from pyscaling.study import Study, StudySpec
from pyscaling.study.store import StudyError

SPEC = """# kept as it is written
name = "tiny"
[corpus]
source = "{corpus}"
tokenizer = "bytes"
evaluate_on = []
[model]
context = 16
[training]
budgets = [1024, "2k"]
batch_tokens = 64
learning_rate = 0.01
[evaluation]
tokens = 512
curve_tokens = 128
noise_batches = 0
[[sizes]]
d_model = 8
n_layer = 1
n_head = 1
seeds = 2
[[sizes]]
d_model = 16
n_layer = 1
n_head = 2
"""


@pytest.fixture(scope="module")
def spec_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    words = ["law", "scale", "loss", "power", "data", "model", "grows", "falls", "with", "the"]
    for i in range(12):
        (folder / f"{i}.txt").write_text(" ".join(generator.choice(words, 400)))
    path = folder / "tiny.toml"
    path.write_text(SPEC.format(corpus=folder / "*.txt"))
    return path


@pytest.fixture(scope="module")
def trained(spec_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "study"
    Study.from_toml(spec_file, folder).run(workers=1, progress=False)
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "study"))


def rows(folder: Path) -> dict[str, tuple]:
    """run_id -> the whole row as stored, its wall clock, too."""
    db = sqlite3.connect(folder / "study.db")
    out = {row[0]: row for row in db.execute("SELECT * FROM runs")}
    db.close()
    return out


def lasting(folder: Path) -> dict[str, tuple]:
    """Without the wall clock, which comes last."""
    return {name: row[:-1] for name, row in rows(folder).items()}


WANTED = [(768, 4096), (3100, 2048), (3100, 2048), (9000.0, 1000), (Shape(24, 1, 3), 1024)]


@pytest.fixture(scope="module")
def extended(spec_file: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("extended") / "study"))
    Study.from_toml(spec_file, folder).extend(WANTED, workers=1, progress=False)
    return folder


def test_extend(spec_file: Path, trained: Path, extended: Path, tmp_path: Path) -> None:
    before = rows(trained)
    assert len(before) == 6
    folder = Path(shutil.copytree(extended, tmp_path / "study"))
    study = Study.open(folder)
    runs = study.runs
    after = rows(folder)
    assert {name: after[name] for name in before} == before
    new = {name: row for name, row in after.items() if name not in before}
    assert len(new) == 5
    assert len(runs) == 11
    usual = shape_near(9000.0, context=16)
    assert usual.N != 3072
    # By hand: 12 d^2 of one layer; 1000 tokens are 15.6 steps of 64.
    made = sorted(
        (int(N), int(D)) for N, D, name in zip(runs.N, runs.D, study.all_runs["run_id"], strict=True) if name in new
    )
    assert made == sorted([(768, 4096), (3072, 2048), (3072, 2048), (usual.N, 1024), (12 * 24**2, 1024)])
    seeds = [(int(N), int(s)) for N, s in zip(study.all_runs.N, study.all_runs["seed"], strict=True)]
    assert {s for N, s in seeds if N == 768} == {0, 1, 2}  # a seed of its own, not one of the two that there were
    assert {s for N, s in seeds if N == 3072} == {0, 1, 2}
    assert np.all(np.isfinite(runs.loss))
    assert study.finished

    text = (folder / "study.toml").read_text()
    assert text.startswith(spec_file.read_text().rstrip())  # comments and all
    assert text.count("[[added]]") == 4
    for again in (study, Study.from_toml(spec_file, folder), Study.open(folder)):
        again.extend(WANTED, workers=1, progress=False)
        assert rows(folder) == after
        assert (folder / "study.toml").read_text() == text
        assert again.finished
    # The spec as it first was still opens the folder, and trains nothing.
    assert len(Study.from_toml(spec_file, folder).run(workers=1, progress=False)) == 11
    assert rows(folder) == after


def test_next_runs_are_known_by_what_they_were_planned_from(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study.open(copy)
    monkeypatch.setattr(study, "run", lambda **options: study.runs)  # trains nothing
    N, D = (grid.ravel() for grid in np.meshgrid([768.0, 3072.0, 12288.0], [1024.0, 2048.0, 8192.0]))
    loss = (1 + 20 / N**0.3 + 30 / D**0.3) * (1 + 0.01 * np.random.default_rng(0).standard_normal((2, 9)))
    fits = [ps.fit({"N": N, "D": D, "loss": row}, objective="gaussian", threads=1) for row in loss]
    first, again, second = (
        next_runs(fit, 3e8, target="alpha", candidates={"N": N, "D": D}, n_runs=5, average=0)
        for fit in (fits[0], fits[0], fits[1])
    )
    study.extend(first)
    count = len(study.spec.added)
    assert sum(added.seeds for added in study.spec.added) == len(first)
    wanted = {(n, d) for n, d in zip(first.N, first.D, strict=True)}
    assert {(12 * a.n_layer * a.d_model**2, a.D) for a in study.spec.added if a.d_model < 32} == {
        place for place in wanted if place[0] < 12288
    }
    study.extend(again)
    assert len(study.spec.added) == count
    study.extend(second)
    study.extend({"N": first.N, "D": first.D})  # a table is another batch
    seeds = [
        (a.d_model, a.n_layer, seed) for a in study.spec.added for seed in range(a.first_seed, a.first_seed + a.seeds)
    ]
    assert len(set(seeds)) == len(seeds) == 2 * len(first) + len(second)
    assert min(seed for d_model, _, seed in seeds if d_model == 8) >= 2  # two seeds of it were there
    assert not study.finished


def test_killed_extension_goes_on(copy: Path, extended: Path, tmp_path: Path) -> None:
    script = tmp_path / "extend.py"
    script.write_text(
        "import sys\nfrom pyscaling.accounting import Shape\nfrom pyscaling.study import Study\n"
        "if __name__ == '__main__':\n"
        f"    Study.open(sys.argv[1]).extend({WANTED!r}, workers=1, progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, str(script), str(copy)], start_new_session=True)
    deadline = time.time() + 30
    while "[[added]]" not in (copy / "study.toml").read_text() and time.time() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    study = Study.open(copy)
    assert not study.finished  # though no row of an added run may be there yet
    study.run(workers=2, progress=False)
    assert study.finished
    assert lasting(copy) == lasting(extended)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "no run to add"),
        ([(768, -5)], "D of a run to add must be finite and positive, got -5"),
        ([(float("nan"), 5)], "N of a run to add must be finite and positive, got nan"),
        ({"N": [768]}, "column 'D' is missing"),
        ([3, 4], r"runs must be NextRuns, a table with columns N and D, or pairs \(N, D\)"),
    ],
)
def test_mistakes(spec_file: Path, tmp_path: Path, runs: object, message: str) -> None:
    (tmp_path / "study.db").touch()
    with pytest.raises(ValueError, match=message):
        Study.from_toml(spec_file, tmp_path).extend(runs)


def test_nothing_to_extend(spec_file: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no study folder yet.*call run\(\) first"):
        Study.from_toml(spec_file, tmp_path / "none").extend([(768, 1024)])


def test_a_spec_made_in_python(spec_file: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """study.toml of such a study once held JSON, which `open` did not read; `extend` mends it."""
    spec = StudySpec.from_toml(spec_file.read_text())
    assert StudySpec.from_toml(spec.to_toml()) == spec
    (copy / "study.toml").write_text(spec.model_dump_json(indent=1))
    study = Study(spec, copy)
    monkeypatch.setattr(study, "run", lambda **options: study.runs)
    study.extend([(768, 1024)])
    assert Study.open(copy).spec == study.spec
    assert len(study.spec.added) == 1
