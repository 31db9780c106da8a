"""Whose a folder is: claimed last, by what was asked, with the spec beside the key; and what workers leave of it."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyscaling.study import Study, StudySpec, executor
from pyscaling.study import fleets as fleets_module
from pyscaling.study import store as store_module
from pyscaling.study.spec import CorpusSpec
from pyscaling.study.store import Store, StudyError, read_table
from pyscaling.training.loop import FleetJob, _asked, _fingerprint

SPEC = """
name = "tiny"
[corpus]
source = "{corpus}"
tokenizer = "bytes"
evaluate_on = []
[model]
context = 16
[training]
budgets = [128]
batch_tokens = 64
[evaluation]
tokens = 64
curve_tokens = 32
noise_batches = 0
[[sizes]]
d_model = 8
n_layer = 1
n_head = 1
"""


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    for i in range(6):
        (tmp_path / "texts" / f"{i}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{i}.txt").write_text(f"law and loss {i} " * 30)
    path = tmp_path / "tiny.toml"
    path.write_text(SPEC.format(corpus=tmp_path / "texts"))
    return path


def trains_nothing(items: Any, store: Store, **options: Any) -> None:
    """In a worker's place: every run is finished at once."""
    for item in items:
        job = item.job
        for member in range(len(job.seeds)):
            for budget in job.budgets:
                store.record("finished", {"run_id": job.run_id(member, budget), "D": budget, "loss": 3.0 + member})
    store.commit()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "run_local", trains_nothing)


def test_a_corpus_that_cannot_be_read_claims_nothing(spec_file: Path, tmp_path: Path, quick: None) -> None:
    folder = tmp_path / "studies" / "tiny"
    good = spec_file.read_text()
    for bad in (good.replace("texts", "absent"), good.replace("evaluate_on = []", 'evaluate_on = ["absent"]')):
        spec_file.write_text(bad)
        with pytest.raises(ValueError, match="absent' is not found"):
            Study.from_toml(spec_file, folder).run(progress=False)
        assert not folder.parent.exists()
    spec_file.write_text(good)
    assert len(Study.from_toml(spec_file, folder).run(progress=False)) == 1


def test_a_finished_study_reads_nothing(
    spec_file: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study.from_toml(spec_file, tmp_path / "study")
    study.run(progress=False)
    shutil.rmtree(tmp_path / "texts")
    monkeypatch.setattr(fleets_module, "open_corpus", lambda *a, **o: pytest.fail("a text was read"))
    assert len(Study.from_toml(spec_file, tmp_path / "study").run(progress=False)) == 1
    spec_file.write_text(spec_file.read_text().replace("context = 16", "context = 8"))
    with (
        pytest.raises(AssertionError, match="a text was read")
        if False
        else pytest.raises(StudyError, match="another spec")
    ):
        Study.from_toml(spec_file, tmp_path / "study").run(progress=False)


def test_the_text_may_not_change_under_a_study(
    spec_file: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "run_local", lambda *a, **o: None)  # interrupted at once
    study = Study.from_toml(spec_file, tmp_path / "study")
    study.run(progress=False)
    assert not study.finished
    study.run(progress=False)
    (tmp_path / "texts" / "3.txt").write_text("something else " * 40)
    with pytest.raises(StudyError, match="is not what the study in .* was begun with; put it back"):
        study.run(progress=False)


def test_killed_between_spec_and_key(spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a claim is cut short, the folder can be opened, or is nobody's."""
    for name in ("set_facts", "replace_text"):
        folder = tmp_path / name
        with monkeypatch.context() as cut:
            target: Any = Store if name == "set_facts" else store_module
            cut.setattr(target, name, lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                Store(folder, "text", "key")
        db = sqlite3.connect(folder / "study.db")
        assert not db.execute("SELECT * FROM study").fetchall()
        db.close()
        with Store(folder, "text", "key"):
            assert (folder / "study.toml").read_text() == "text"
    (tmp_path / "set_facts" / "study.toml").unlink()
    with Store(tmp_path / "set_facts", "text", "key"):  # as earlier versions left it, killed between
        assert (tmp_path / "set_facts" / "study.toml").read_text() == "text"


OLD_KEYS = {
    "auto": "71434d8ebc3a1e4adee396f8b7b6a76eb4713052fe5f08d1e95b7fef2088865a",
    "kaplan_ND": "a081c815985e91dcdaddd88ed69afd303b7945a2abdee13e611d610773572753",
}


def with_key(folder: Path, key: str) -> None:
    db = sqlite3.connect(folder / "study.db")
    db.execute("UPDATE study SET value = ? WHERE key = 'spec_key'", [key])
    db.commit()
    db.close()


def test_folders_of_the_version_before_open(spec_file: Path, tmp_path: Path, quick: None) -> None:
    """Their keys hold every default and the law; written down by that version."""
    text = spec_file.read_text().replace(str(tmp_path / "texts"), "sotu")
    spec = StudySpec.from_toml(text)
    assert Study._old_key(spec, "auto") == OLD_KEYS["auto"]
    assert Study._old_key(spec, "kaplan_ND") == OLD_KEYS["kaplan_ND"]
    study = Study.from_toml(spec_file, tmp_path / "study")
    study.run(progress=False)
    for law in ("auto", "kaplan_ND"):
        with_key(study.folder, Study._old_key(study.spec, law))
        for asked in ("", 'law = "chinchilla"\n'):
            spec_file.write_text(asked + SPEC.format(corpus=tmp_path / "texts"))
            assert len(Study.from_toml(spec_file, study.folder).run(progress=False)) == 1
    for old_text, new_text in (("context = 16", "context = 32"), ("tokenizer", 'field = "body"\ntokenizer')):
        spec_file.write_text(SPEC.format(corpus=tmp_path / "texts").replace(old_text, new_text))
        with pytest.raises(StudyError, match="belongs to another spec"):
            Study.from_toml(spec_file, study.folder).run(progress=False)


def test_a_key_is_what_was_asked() -> None:
    text = SPEC.format(corpus="sotu")
    key = Study._key(StudySpec.from_toml(text))
    assert (
        key == "d0bb6bc974919b231f58127c3b70e38b902029011c471005cc1f4578f247d6cc"
    )  # whoever changes it orphans the folders that were made since

    def keyed(old: str, new: str) -> str:
        assert old in text
        return Study._key(StudySpec.from_toml(text.replace(old, new, 1)))

    assert (
        keyed("[training]", "[training]\nclip = 1.0\nbackend = 'torch'") == key
    )  # a default said aloud is no other spec
    assert keyed('name = "tiny"', 'law = "kaplan_ND"\ndescription = "x"\nname = "tiny"') == key  # of the report
    assert keyed("[training]", "[training]\nclip = 2.0") != key
    assert keyed("[[sizes]]", "[[sizes]]\nseeds = 2") != key
    assert keyed("tokenizer", 'field = "body"\ntokenizer') != key

    class LaterCorpus(CorpusSpec):
        shuffled: bool = False

    class Later(StudySpec):
        """As of a version with further fields, at their defaults."""

        corpus: LaterCorpus = LaterCorpus()
        teacher: str | None = None

    assert Study._key(Later.from_toml(text)) == key
    assert Study._key(Later.from_toml(text.replace("[corpus]", "[corpus]\nshuffled = true"))) != key


def test_checkpoints_are_of_what_was_asked() -> None:
    job = FleetJob(
        "f", StudySpec.preset("smoke").shape(StudySpec.preset("smoke").sizes[0], 512), ("a",), (0.01,), (0,), (640,), 32
    )
    written = json.loads(json.dumps({k: v for k, v in asdict(job).items() if k != "backend"}))  # with all defaults
    assert _asked(written) == json.loads(_fingerprint(job))
    del written["embedding_rate"], written["shape"]["rope_base"], written["shape"]["d_ff"]
    assert _asked(written) != json.loads(_fingerprint(job))  # the preset's rope_base is none of the defaults
    written["shape"] |= {"rope_base": job.shape.rope_base, "d_ff": job.shape.d_ff}
    assert _asked(written) == json.loads(_fingerprint(job))  # as a version wrote it that had no embedding_rate
    assert _asked(written | {"clip": 2.0}) != json.loads(_fingerprint(job))


def test_what_no_table_takes_is_an_error(tmp_path: Path) -> None:
    with (
        Store(tmp_path, "text", "key") as store,
        pytest.raises(ValueError, match="a fleet reported 'metrics', which no"),
    ):
        store.record("metrics", {"trunk_id": "x"})


@pytest.mark.parametrize("name", ["..", ".", "...", ""])
def test_a_name_is_a_folder_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match=f"name='{name}'"):
        StudySpec.from_toml(SPEC.format(corpus="sotu").replace('"tiny"', f'"{name}"'))
    assert StudySpec.from_toml(SPEC.format(corpus="sotu").replace('"tiny"', '".a-1_b"')).name == ".a-1_b"


def test_toml_of_any_text() -> None:
    for source in ('a "quoted" \\ path', "emoji 😀 é", "del \x7f, tab \t, line\nbreak", "''' [x]"):
        spec = StudySpec.from_toml(SPEC.format(corpus="sotu"))
        spec = spec.model_copy(update={"corpus": spec.corpus.model_copy(update={"source": source})})
        assert StudySpec.from_toml(spec.to_toml()) == spec


def test_cost_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pyscaling.study import Study\nfrom pyscaling.study.cost import predict_cost\n"
        "print(predict_cost(Study.from_preset('gpu').spec))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "PF-days" in done.stdout, done.stderr


# ---- workers ----------------------------------------------------------------------------------------------------------


def test_a_worker_lives_as_long_as_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container whose first process is the study the parent is 1."""
    ended: list[int] = []
    monkeypatch.setattr(executor.os, "_exit", ended.append)
    monkeypatch.setattr(executor.ctypes, "CDLL", lambda name: type("C", (), {"prctl": staticmethod(lambda *a: 0)}))
    for parent, actual, expected in ((1, 1, []), (77, 77, []), (77, 1, [1])):
        monkeypatch.setattr(executor.os, "getppid", lambda actual=actual: actual)
        executor._die_with(parent)
        assert ended == expected


def test_workers_are_begun_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    code = "import os; print([os.environ.get(f'{name}_NUM_THREADS') for name in ('OMP', 'MKL', 'OPENBLAS')])"
    with executor._one_thread_each():
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.strip() == "['1', '1', '1']"
    assert (os.environ["OMP_NUM_THREADS"], os.environ.get("MKL_NUM_THREADS")) == ("7", None)


def test_a_worker_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_PATIENCE", 0.1)
    process = subprocess.Popen(["sleep", "60"])

    class Hanging:
        def join(self, timeout: float) -> None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout)

        def is_alive(self) -> bool:
            return process.poll() is None

        def kill(self) -> None:
            process.kill()

    executor._end(Hanging())
    assert process.poll() == -9


# ---- runs that were trained elsewhere ---------------------------------------------------------------------------------


def test_a_table_with_losses_is_recorded(spec_file: Path, tmp_path: Path, quick: None) -> None:
    study = Study.from_toml(spec_file, tmp_path / "study")
    study.run(progress=False)
    given = {
        "params": [1000, 2000, 2000], "tokens": [5000, 7000, 7000], "loss": [2.5, 2.25, 2.25], "d_model": [8, 12, 12],
        "seed": [np.nan, 1, 1], "note": ["a", "b", "b"],
    }  # fmt: skip
    text = (study.folder / "study.toml").read_text()
    for table in (given, [dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)]):
        runs = study.extend(table, progress=False)
        assert len(runs) == 4 and study.finished
    study.extend(study.runs, progress=False)  # its own are there
    rows = read_table(study.folder, "runs", "WHERE fleet_id LIKE 'given-%' ORDER BY N, run_id")
    assert (rows["N"], rows["D"], rows["loss"]) == ([1000, 2000, 2000], [5000, 7000, 7000], [2.5, 2.25, 2.25])
    assert rows["C"] == [6 * 1000 * 5000, 6 * 2000 * 7000, 6 * 2000 * 7000]
    assert (rows["d_model"], rows["seed"], set(rows["status"])) == ([8, 12, 12], [None, 1, 1], {"finished"})
    assert (study.folder / "study.toml").read_text() == text
    assert len(study.run(progress=False)) == 4
    with pytest.raises(ValueError, match="loss must be finite and positive"):
        study.extend({"N": [1e3], "D": [1e4], "loss": [float("nan")]})
