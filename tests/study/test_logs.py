"""What is seen of a study while it trains: bars with the latest loss, and logs that never cost a run."""

import io
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pyscaling.accounting import Shape
from pyscaling.study import Study, StudySpec
from pyscaling.study.executor import WorkItem
from pyscaling.study.logs import open_log
from pyscaling.study.progress import StudyProgress
from pyscaling.study.store import StudyError
from pyscaling.training.loop import FleetJob

JOB = FleetJob("d8-l1", Shape(8, 1, 1), ("d8-l1-r1-s0", "d8-l1-r1-s1"), (0.01, 0.01), (0, 1), (640, 1280), 64)
ITEM = WorkItem(JOB, Path("train.npy"), (), Path("d8-l1.safetensors"), 1.0)
METRIC = {
    "trunk_id": "d8-l1-r1-s0",
    "step": 4,
    "tokens": 256,
    "train_loss": 5.0,
    "learning_rate": 0.01,
    "grad_norm": 2.0,
}
EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("progress", {"steps": 4}),
    ("metric", METRIC),
    ("metric", METRIC | {"trunk_id": "d8-l1-r1-s1", "train_loss": 4.5}),
    ("evaluation", {"run_id": "d8-l1-r1-s0", "tokens": 256, "distribution": "sotu", "loss": 5.25, "n_tokens": 9}),
    ("noise_scale", {"trunk_id": "d8-l1-r1-s0", "tokens": 640, "loss": 4.0, "noise_scale": 77.0, "grad_sq": 1.0, "trace": 1.0}),
    ("noise_scale", {"trunk_id": "d8-l1-r1-s1", "tokens": 640, "loss": 4.0, "noise_scale": None, "grad_sq": 1.0, "trace": 1.0}),
    ("evaluation", {"run_id": "d8-l1-r1-s0-D640", "tokens": 640, "distribution": "sotu", "loss": 4.125, "n_tokens": 9}),
    ("finished", {"run_id": "d8-l1-r1-s0-D640", "D": 640, "steps": 10, "loss": 4.125, "wall_s": 1.0}),
]  # fmt: skip
# trunk -> name -> (tokens, value), by hand
EXPECTED = {
    "d8-l1-r1-s0": {
        "train_loss": (256, 5.0), "learning_rate": (256, 0.01), "grad_norm": (256, 2.0), "loss/sotu": (256, 5.25),
        "noise_scale": (640, 77.0), "final/sotu": (640, 4.125),
    },
    "d8-l1-r1-s1": {"train_loss": (256, 4.5), "learning_rate": (256, 0.01), "grad_norm": (256, 2.0)},
}  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(StudySpec.preset("smoke"), tmp_path)


def write_all(study: Study, log: str) -> None:
    with open_log(log, study, [ITEM]) as write:
        for kind, row in EVENTS:
            write(kind, row)


def test_tensorboard_reads_what_was_written(study: Study) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_all(study, "tensorboard")
    for trunk, curves in EXPECTED.items():
        events = reader.EventAccumulator(str(study.folder / "tensorboard" / trunk))
        events.Reload()
        assert set(events.Tags()["scalars"]) == set(curves)
        for name, point in curves.items():
            assert [(e.step, pytest.approx(e.value)) for e in events.Scalars(name)] == [point]


class FakeWriter:
    made: dict[str, "FakeWriter"]

    def __init__(self, folder: str) -> None:
        self.points: dict[str, Any] = {}
        self.closed = False
        FakeWriter.made[Path(folder).name] = self

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.points[name] = step, value

    def close(self) -> None:
        self.closed = True


def test_tensorboard_by_its_interface(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeWriter.made = {}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=FakeWriter))
    write_all(study, "tensorboard")
    assert {trunk: writer.points for trunk, writer in FakeWriter.made.items()} == EXPECTED
    assert all(writer.closed for writer in FakeWriter.made.values())


class FakeRun:
    def __init__(self) -> None:
        self.points: dict[str, Any] = {}
        self.axes: list[Any] = []
        self.finished = False

    def define_metric(self, name: str, **options: Any) -> None:
        self.axes.append((name, options.get("step_metric")))

    def log(self, row: dict[str, float]) -> None:
        (axis,) = [name for name in row if name.endswith("/tokens")]
        self.points |= {name: (row[axis], value) for name, value in row.items() if name != axis}

    def finish(self) -> None:
        self.finished = True


def test_wandb(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = FakeRun(), []

    def init(**options: Any) -> FakeRun:
        asked.append(options)
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    write_all(study, "wandb")
    write_all(study, "wandb")
    assert run.points == {f"{t}/{name}": point for t, curves in EXPECTED.items() for name, point in curves.items()}
    assert ("d8-l1-r1-s1/*", "d8-l1-r1-s1/tokens") in run.axes and run.finished
    assert asked[0] == asked[1] and asked[0]["resume"] == "allow"  # a study that goes on, goes on there, too
    assert asked[0]["config"]["training"]["batch_tokens"] == 256

    def offline(**options: Any) -> None:
        raise RuntimeError("no key")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=offline))
    with pytest.raises(StudyError, match=r"W&B could not be started \(no key\); log in"):
        write_all(study, "wandb")


def test_a_log_that_fails_costs_no_run(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun()
    run.log = lambda row: (_ for _ in ()).throw(OSError("gone"))  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: run))
    with pytest.warns(UserWarning, match=r"the log to wandb failed and is given up \(gone\); training goes on") as said:
        write_all(study, "wandb")
    assert len(said) == 1


@pytest.mark.parametrize(("log", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_log_whose_package_is_missing(study: Study, monkeypatch: pytest.MonkeyPatch, log: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"log='{log}' needs the package {log}: pip install 'pyscaling\[log\]'"):
        write_all(study, log)
    with pytest.raises(ValueError, match="log='csv' is unknown; known are tensorboard, wandb"):
        write_all(study, "csv")


def test_bars_show_the_latest_loss() -> None:
    bars = StudyProgress([ITEM], enabled=True)
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    bars._bars.live.console = console
    bars._lines = True
    shown = []
    for kind, row in EVENTS:
        bars.update(kind, "d8-l1", row)
        shown.append([task.fields.get("loss") for task in bars._bars.tasks])
    # of the best member where the curve was last taken, then of the run that was finished; of the study and of its fleet
    assert shown == [[None] * 2, [5.0] * 2, [4.5] * 2, [4.5] * 2, [4.5] * 2, [4.5] * 2, [4.5] * 2, [4.125] * 2]
    console.print(bars._bars.get_renderable())
    assert "loss 4.125" in console.file.getvalue()  # type: ignore[attr-defined]
    bars.update("progress", "d8-l1", {"steps": JOB.total_steps})
    assert "100% of 1 fleets after" in console.file.getvalue()  # type: ignore[attr-defined]
    assert ", loss 4.125 (d8-l1)" in console.file.getvalue()  # type: ignore[attr-defined]
