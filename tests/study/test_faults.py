"""A study survives what happens to long work: kill -9, a full disk, a damaged checkpoint, a second process."""

import errno
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pyscaling.study import Study
from pyscaling.study.fleets import plan_fleets
from pyscaling.study.store import Store, StudyError
from pyscaling.training import loop

SPEC = """
name = "tiny"
[corpus]
source = "{corpus}"
tokenizer = "bytes"
evaluate_on = []
[model]
context = 16
[training]
budgets = [2048, 4096, 8192]
batch_tokens = 64
learning_rate = 0.01
[evaluation]
tokens = 512
curve_tokens = 128
noise_batches = 2
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


def table(folder: Path) -> dict[str, list[tuple]]:
    """Everything in a store but wall clocks."""
    db = sqlite3.connect(folder / "study.db")
    columns = [c[1] for c in db.execute("PRAGMA table_info(runs)") if c[1] != "wall_s"]
    out = {"runs": db.execute(f"SELECT {', '.join(columns)} FROM runs ORDER BY run_id").fetchall()}
    for name in ("metrics", "evaluations", "noise_scale"):
        out[name] = sorted(db.execute(f"SELECT * FROM {name}").fetchall())
    db.close()
    return out


@pytest.fixture(scope="module")
def uninterrupted(spec_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple]]:
    folder = tmp_path_factory.mktemp("whole") / "study"
    study = Study.from_toml(spec_file, folder)
    assert not study.finished
    runs = study.run(workers=2, progress=False)
    assert study.finished
    assert len(runs) == 9
    return table(folder)


def start(spec_file: Path, folder: Path) -> subprocess.Popen:
    code = (
        "import sys\n"
        "from pyscaling.study import Study\n"
        "if __name__ == '__main__':\n"
        "    Study.from_toml(sys.argv[1], sys.argv[2]).run(workers=2, progress=False)\n"
    )
    script = folder.parent / "run.py"
    script.write_text(code)
    return subprocess.Popen([sys.executable, str(script), str(spec_file), str(folder)], start_new_session=True)


def finished_runs(folder: Path) -> dict[str, float]:
    if not (folder / "study.db").exists():
        return {}
    db = sqlite3.connect(folder / "study.db")
    try:
        return dict(db.execute("SELECT run_id, loss FROM runs WHERE status = 'finished'"))
    except sqlite3.OperationalError:  # its tables are not made yet
        return {}
    finally:
        db.close()


def test_kill_at_random_moments(spec_file: Path, tmp_path: Path, uninterrupted) -> None:
    """Soon after so many of the nine runs were finished, and once before any was; each kill must strike a study at work."""
    generator = np.random.default_rng(1)
    folder = tmp_path / "study"
    finished: dict[str, float] = {}
    struck = []
    for count in (0, 1, 4):
        process = start(spec_file, folder)
        deadline = time.time() + 60
        while (len(finished_runs(folder)) < count or not (folder / "study.toml").exists()) and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it had not ended by itself
        now = finished_runs(folder)
        assert finished.items() <= now.items()
        finished = now
        struck.append(len(now))
    assert struck[0] == 0 and 1 <= struck[1] <= struck[2] < 9, struck
    assert start(spec_file, folder).wait() == 0
    assert table(folder) == uninterrupted


def test_workers_die_with_their_parent(spec_file: Path, tmp_path: Path) -> None:
    process = start(spec_file, tmp_path / "study")
    children: list[str] = []
    deadline = time.time() + 60
    listing = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    # two workers, which watch their parent from then on that they train, and the resource tracker
    while (len(children) < 3 or not finished_runs(tmp_path / "study")) and time.time() < deadline:
        assert process.poll() is None
        children = listing.read_text().split()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(children) >= 3
    deadline = time.time() + 10
    while any(Path(f"/proc/{child}").exists() for child in children) and time.time() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def test_second_call_trains_nothing(spec_file: Path, tmp_path: Path, uninterrupted) -> None:
    study = Study.from_toml(spec_file, tmp_path / "study")
    study.run(workers=1, progress=False)
    before = (tmp_path / "study" / "study.db").stat().st_mtime_ns, table(tmp_path / "study")
    study.run(workers=1, progress=False)
    assert table(tmp_path / "study") == before[1] == uninterrupted  # one worker or two: the same bits


def test_damaged_checkpoint(spec_file: Path, tmp_path: Path, uninterrupted) -> None:
    folder = tmp_path / "study"
    process = start(spec_file, folder)
    deadline = time.time() + 30
    while not list(folder.glob("checkpoints/*.safetensors")) and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for checkpoint in folder.glob("checkpoints/*.safetensors"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    Study.from_toml(spec_file, folder).run(workers=2, progress=False)
    assert list(folder.glob("checkpoints/*.damaged"))
    assert table(folder) == uninterrupted


def test_checkpoints_ahead_of_the_store(spec_file: Path, tmp_path: Path, uninterrupted) -> None:
    """With study.db lost, checkpoints that say "all done" must not leave the runs pending for ever."""
    study = Study.from_toml(spec_file, tmp_path)
    study.run(workers=1, progress=False)
    for file in tmp_path.glob("study.db*"):
        file.unlink()
    assert not study.finished
    study.run(workers=1, progress=False)
    assert table(tmp_path) == uninterrupted


def test_a_checkpoint_waits_for_the_store(spec_file: Path, tmp_path: Path) -> None:
    """Whatever a checkpoint is beyond was announced before it was written."""
    items, _, _ = plan_fleets(Study.from_toml(spec_file).spec, tmp_path)
    path = tmp_path / "f.safetensors"
    stamps, kinds = [], []

    def emit(kind: str, row: dict) -> None:
        stamps.append(path.stat().st_mtime_ns if path.exists() else 0)
        kinds.append(kind)

    loop.train_fleet(
        items[0].job,
        np.load(items[0].train_file),
        [loop.Evaluation("x", np.zeros((2, 17), dtype=np.int64))],
        emit=emit,
        checkpoint=path,
        checkpoint_seconds=0.01,
    )
    changes = [i for i in range(1, len(stamps)) if stamps[i] != stamps[i - 1]]
    assert changes
    assert all(kinds[i - 1] == "checkpoint" for i in changes)


def test_damaged_store(spec_file: Path, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(StudyError, match=r"study.db cannot be used .*mend the cause"):
        Study.from_toml(spec_file, tmp_path).run(progress=False)


def test_full_disk(spec_file: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    items, _, _ = plan_fleets(Study.from_toml(spec_file).spec, tmp_path)
    monkeypatch.setattr(loop.os, "fsync", full)
    (tmp_path / "checkpoints").mkdir()
    windows = np.zeros((2, 17), dtype=np.int64)
    with pytest.raises(
        loop.CheckpointError, match=r"could not be written \(No space left on device\).*run the study again"
    ):
        loop.train_fleet(
            items[0].job,
            np.load(items[0].train_file),
            [loop.Evaluation("x", windows)],
            emit=lambda kind, row: None,
            checkpoint=items[0].checkpoint,
        )
    assert not list((tmp_path / "checkpoints").iterdir())


def test_two_processes_on_one_folder(spec_file: Path, tmp_path: Path) -> None:
    study = Study.from_toml(spec_file, tmp_path)
    with (
        Store(tmp_path, "name = 'x'", "key"),
        pytest.raises(StudyError, match=f"in use by another process .pid {os.getpid()}"),
    ):
        study.run(progress=False)


def test_folder_of_another_spec(spec_file: Path, tmp_path: Path) -> None:
    with Store(tmp_path, "name = 'x'", "key"):
        pass
    with pytest.raises(StudyError, match="belongs to another spec"):
        Study.from_toml(spec_file, tmp_path).run(progress=False)


def test_folder_of_another_spec_says_what_differs(spec_file: Path, tmp_path: Path) -> None:
    def begun(text: str) -> Study:
        path = tmp_path / "spec.toml"
        path.write_text(text)
        return Study.from_toml(path, tmp_path / "study")

    text = spec_file.read_text()
    with begun(text)._store():
        pass
    other = text.replace("batch_tokens = 64", 'batch_tokens = 32\nprecision = "ieee"', 1)
    said = "training.batch_tokens = 64, not 32, training.precision = 'auto', not 'ieee'); choose another"
    with pytest.raises(StudyError, match=re.escape(said)):
        begun(other).run(progress=False)
    with begun(text.replace("[training]", '[training]\nbackend = "torch"', 1))._store():  # not of the runs
        pass


def test_diverging_rate_fails_alone(spec_file: Path, tmp_path: Path, uninterrupted) -> None:
    text = spec_file.read_text().replace("seeds = 2", "seeds = 1\nrate_factors = [1.0, 1e30]", 1)
    path = tmp_path / "diverging.toml"
    path.write_text(text)
    study = Study.from_toml(path, tmp_path / "study")
    study.run(workers=1, progress=False)
    rows = table(tmp_path / "study")["runs"]
    failed = [row for row in rows if "failed" in row]
    assert len(failed) == 3
    assert all("not finite" in str(row) and "learning rate 1e+28" in str(row) for row in failed)
    good = {row[0]: row for row in rows if "finished" in row}
    reference = {row[0]: row for row in uninterrupted["runs"]}
    assert len(good) == 6
    loss = 9
    assert all(good[run_id][loss] == reference[run_id][loss] for run_id in good)
