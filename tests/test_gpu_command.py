"""`make gpu`'s runner: parts that crash, hang or write half a row; what it says without a card; what the record makes of it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpu import record, run
from gpu.parts import GRID_SHAPES, PARTS, Job, Part

ROOT = Path(__file__).resolve().parents[1]
WRITES = """import os, json
file = open(os.environ['PYSCALING_GPU_ROWS'], 'a')
put = lambda **row: print(json.dumps(row), file=file, flush=True)
"""


def script(name: str, text: str) -> Job:
    return Job(name, ("-c", f"{WRITES}\n{text}"))


def part(*jobs: Job, side_by_side: bool = False) -> Part:
    return Part("fake", 60.0, "pretends", lambda device: list(jobs), side_by_side)


def ran(fake: Part, out: Path, seconds: float = 60.0) -> dict[str, Any]:
    result = run.run_part(fake, "cuda", out, dict(os.environ), seconds)
    assert json.loads((out / "fake.json").read_text()) == result
    return result


def test_rows_and_statuses_lie_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    well = script("well", "put(a=1); print('as it goes'); put(a=2, ok=True)")
    result = ran(part(well, script("crashes", "put(a=3); raise SystemExit('no such kernel')")), tmp_path)
    assert result["status"] == "failed" and [row["a"] for row in result["rows"]] == [1, 2, 3]
    assert result["jobs"]["well"]["status"] == "ok" and result["jobs"]["crashes"]["exit"] == 1
    assert result["jobs"]["crashes"]["last_lines"] == ["no such kernel"]
    assert "  well: as it goes" in capsys.readouterr().out.splitlines()


def test_a_wrong_row_fails_its_part(tmp_path: Path) -> None:
    result = ran(part(script("off", "put(case='linear', ok=False)")), tmp_path)
    assert (result["status"], result["wrong"], result["jobs"]["off"]["status"]) == ("failed", 1, "ok")


def test_time_limit_ends_the_whole_process_group(tmp_path: Path) -> None:
    """What hangs is a child of the job, deaf to SIGTERM; the row written before is kept, half a row is not, the next is named."""
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    hangs = script(
        "hangs",
        f"""
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", {deaf!r}], stdout=subprocess.PIPE)
child.stdout.readline()
put(pid=child.pid); print('{{"half": ', end="", file=file, flush=True); child.wait()
""",
    )
    start = time.monotonic()
    result = ran(part(hangs, script("after", "put(a=1)")), tmp_path, seconds=2.0)
    assert time.monotonic() - start < 15
    assert result["status"] == "timed out" and [list(row) for row in result["rows"]] == [["pid", "job"]]
    assert {name: of["status"] for name, of in result["jobs"].items()} == {"hangs": "timed out", "after": "not begun"}
    deadline = time.monotonic() + 5  # a signal takes effect when its process is next scheduled
    while alive(result["rows"][0]["pid"]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(result["rows"][0]["pid"])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_jobs_run_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two waits for a file of the other's."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    wait = "import time, pathlib; pathlib.Path({!r}).touch()\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.01)"
    names = str(tmp_path / "left"), str(tmp_path / "right")
    jobs = [script("left", wait.format(*names)), script("right", wait.format(*reversed(names)))]
    assert ran(part(*jobs, side_by_side=True), tmp_path, seconds=20.0)["status"] == "ok"
    (tmp_path / "left").unlink(), (tmp_path / "right").unlink()
    assert ran(part(*jobs), tmp_path, seconds=1.0)["status"] == "timed out"


def test_parts_are_chosen_in_their_order() -> None:
    assert [part.name for part in run.chosen("step check")] == ["check", "step", "record"]
    assert [part.name for part in run.chosen("tune")] == ["tune", "record"]
    assert "tune" not in [part.name for part in run.chosen("")]
    with pytest.raises(ValueError, match="PARTS names stpe; known are check, tests, "):
        run.chosen("check,stpe")
    assert run.limits("check=200 grid=40.5") == {"check": 200.0, "grid": 40.5}
    with pytest.raises(ValueError, match="LIMITS names gird; known are check, "):
        run.limits("gird=1")
    for wrong in ("check", "check=x", "check=-1", "check=nan", "check=0"):
        with pytest.raises(ValueError, match="LIMITS has check=.*; give seconds, more than 0"):
            run.limits(wrong)
    with pytest.raises(ValueError, match="PARTS=',' names no part"):
        run.chosen(",")


@pytest.mark.parametrize(
    ("torch", "why"),
    [
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", "No module named 'torch'"),
        (
            "class cuda: is_available = lambda: False\nclass version: hip, cuda = None, '13'\n__version__ = '2'",
            "no card",
        ),
    ],
)
def test_without_a_card_it_says_what_it_would_do(torch: str, why: str, tmp_path: Path) -> None:
    """Status 2, and nothing is run. The folder of unpacked wheels is on the path, so stand-ins for torch lie there."""
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "torch.py").write_text(torch)
    (tmp_path / "wheels" / "triton.py").write_text("__version__ = '3'")
    command = [sys.executable, "-P", "-m", "gpu.run", "--OUT", str(tmp_path), "--PARTS", "check"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT / "bench")}, capture_output=True, text=True)
    assert done.returncode == 2 and why in done.stderr and "make gpu DEVICE=cpu" in done.stderr
    assert "check  every operation and gradient against float64" in done.stderr
    assert not list(tmp_path.glob("*.json"))


def test_exit_status_tells_whether_all_went_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that fails ends nothing: the next goes on."""
    fails, well = part(script("fails", "raise SystemExit(3)")), part(script("well", "put(a=1)"))
    parts = [replace(fails, name="first"), replace(well, name="second")]
    monkeypatch.setattr(run, "PARTS", parts)
    monkeypatch.setattr(run, "probe", lambda environment: {"card": "a card"})
    assert run.main(["--OUT", str(tmp_path)]) == 1
    assert json.loads((tmp_path / "second.json").read_text())["status"] == "ok"
    monkeypatch.setattr(run, "PARTS", parts[1:])
    assert run.main(["--OUT", str(tmp_path)]) == 0
    assert run.main(["--OUT", str(tmp_path), "--PARTS", "third"]) == 2


def test_results_of_another_machine_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder's results are of one device, card, commit, torch and triton; the same ones add to it and keep its date."""
    monkeypatch.setattr(run, "PARTS", [part(script("well", "put(a=1)"))])
    facts = {"card": "a card", "commit": "abc", "torch": "2.11", "triton": "3.6"}
    monkeypatch.setattr(run, "probe", lambda environment: dict(facts))
    assert run.main(["--OUT", str(tmp_path)]) == 0
    before = json.loads((tmp_path / "facts.json").read_text())
    assert run.main(["--OUT", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "facts.json").read_text()) == before
    assert run.main(["--OUT", str(tmp_path), "--DEVICE", "cpu"]) == 2
    assert "holds results of device cuda; choose another folder" in capsys.readouterr().err
    facts["commit"] = "def"
    assert run.main(["--OUT", str(tmp_path)]) == 2
    assert json.loads((tmp_path / "facts.json").read_text()) == before


def test_folders_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert run.main(["--OUT", str(out)]) == 2
        assert "cannot be a folder" in capsys.readouterr().err
    assert run.main(["--OUT", str(tmp_path / "out"), "--WHEELS", str(tmp_path / "absent")]) == 2
    assert "absent is no folder" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert run.main(["--OUT", str(tmp_path / "out"), "--TEXT", str(tmp_path / "*.txt")]) == 2
    assert "*.txt is neither a file nor a folder" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_part_says_so(how: signal.Signals, tmp_path: Path) -> None:
    """Its rows so far are kept, what an earlier call found of it is gone, no job goes on, and the record is written."""
    (tmp_path / "fake.json").write_text('{"status": "ok"}')
    code = f"""
import json, os, signal, sys
from gpu import run
from gpu.parts import Job, Part
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, and what it starts, ignores it
hangs = Job("hangs", ("-c", {WRITES + "put(pid=os.getpid()); import time; time.sleep(60)"!r}))
after = Job("after", ("-c", {WRITES + "put(a=1)"!r}))
run.PARTS = [Part("fake", 60.0, "hangs", lambda device: [hangs]), Part("record", 60.0, "ends", lambda device: [after])]
run.probe = lambda environment: {{"card": "a card"}}
sys.exit(run.main(["--OUT", {str(tmp_path)!r}]))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "bench")}
    process = subprocess.Popen([sys.executable, "-P", "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    rows, deadline = tmp_path / "fake-hangs.jsonl", time.monotonic() + 20
    while not (rows.exists() and rows.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and "interrupted; OUT=" in said and "Traceback" not in said
    result = json.loads((tmp_path / "fake.json").read_text())
    assert result["status"] == "interrupted" and len(result["rows"]) == 1
    assert json.loads((tmp_path / "record.json").read_text())["status"] == "ok"
    assert not alive(result["rows"][0]["pid"])


def test_another_run_of_a_card_and_day_keeps_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "DOCS", tmp_path)
    (tmp_path / "hardware").mkdir()
    first, second = ({"facts": {"card": "A", "date": "2026-01-01", "began": f"1{n}:00"}} for n in (1, 2))
    assert record.place_of(first).name == "a-2026-01-01.json"
    record.place_of(first).write_text(json.dumps(first))
    assert record.place_of(first).name == "a-2026-01-01.json"
    assert record.place_of(second).name == "a-2026-01-01-2.json"


def test_all_processes_of_a_part_have_names_of_their_own() -> None:
    for device in ("cpu", "cuda"):
        for each in PARTS:
            names = [job.name for job in each.jobs(device)]
            assert len(set(names)) == len(names), each.name


def test_joined_package_is_the_checkout(tmp_path: Path) -> None:
    folder = run.joined_package(tmp_path / "package")
    where = "import pyscaling, pyscaling.kernels as k; print(pyscaling.__file__, k.__file__)"
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", where], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        str(folder / "pyscaling" / "__init__.py"),
        str(folder / "pyscaling" / "kernels" / "__init__.py"),
    ]


# ---- the record -----------------------------------------------------------------------------------------------------

FACTS = {
    "python": "3.12.1", "torch": "2.11.0", "triton": "3.6.0", "runtime": "CUDA 13.0", "card": "NVIDIA H100 80GB HBM3",
    "cores": 16, "driver": "580", "commit": "abc", "date": "2026-12-01", "device": "cuda",
}  # fmt: skip


def timed(operation: str, direction: str, d: int, seconds: float, **peers: float) -> dict[str, Any]:
    return {
        "operation": operation, "direction": direction, "d": d, "seconds": seconds, "flops": 8e9, "bytes": 1e6, "peers": peers,
        "failed": {},
    }  # fmt: skip


def a_record(**rows: list[dict[str, Any]]) -> dict[str, Any]:
    parts = {name: {"status": "ok", "seconds": 1.0, "wrong": 0, "jobs": {}} for name in rows}
    return {"facts": FACTS, "parts": parts, "rows": rows}


def test_aims_by_hand() -> None:
    """A product of 10 us beside 9.5 us of cuBLAS is 0.95 of it; one of 20 us beside 10 us is 0.5; a floor of 8 us is 80 %."""
    ceilings = [
        {"what": "matmul", "dtype": "bfloat16", "flops_per_s": 1e15},
        {"what": "copy", "bytes_per_s": 3e12},
    ]
    rows = [
        timed("linear d to 3d, bias", "forward", 512, 10e-6, bmm=9.5e-6, cublas=12e-6),
        timed("mlp gelu, biases", "backward", 1024, 20e-6, bmm=10e-6, cublas=30e-6),
        timed("linear d to d, residual", "forward", 512, 10e-6, bmm=1e-6, cublas=9.2e-6),
        timed("attention, causal, T 512", "forward", 256, 10e-6, flash=12e-6, cudnn=8e-6),
        timed("linear_cross_entropy", "forward", 256, 10e-6, eager=30e-6),
    ]
    one = {"what": "step", "d": 1024, "flops": 6e12, "seconds": 0.01, "peers": {}}
    fleet = {"what": "fleet", "fleet": "d64", "seconds": 2.0}
    plain = [
        {"what": "plain", "fleet": "d64", "grid_seconds": 13.0},
        {"what": "plain", "fleet": "d128", "grid_seconds": 99.0},
    ]
    found = record.aims(a_record(time=[*ceilings, *rows], step=[one], grid=[fleet, *plain]))
    of = {line[0].split(",")[0].split(" beside")[0]: line[2:] for line in found[1:]}
    assert of["linear and MLP"] == ["not measured", "-"]  # the later of the two, d <= 256
    assert found[1][2:] == ["0.50 (mlp gelu, biases, d 1024); 2 of 3", "no"]
    assert of["attention forward"] == ["1.20 (attention, causal, T 512, d 256); 1 of 1", "yes"]
    assert of["attention backward"] == ["not measured", "-"]
    assert of["head"] == ["3.00 (linear_cross_entropy, d 256); 1 of 1", "yes"]
    assert of["share of peak at d 1024"] == [
        "0.60 (of a large product here); 2 of 2",
        "yes",
    ]  # 6e14 of 1e15, of 9.894e14
    assert of["the grid gpu-mini"] == ["6.50 (1 shapes); 1 of 1", "yes"]
    lines = record.operations(a_record(time=[*ceilings, *rows]))
    assert lines[1][:5] == ["linear d to 3d, bias", "forward", "512", "10.0", "80%"]


def test_page_tells_what_failed_first() -> None:
    wrong = {
        "case": "attention",
        "dtype": "bfloat16",
        "worst": 7.0,
        "ok": False,
        "wrong": ["dq is 7 times over"],
        "errors": {"dq": [7, 1, 1]},
    }
    failed = a_record(check=[wrong])
    failed["parts"]["check"] |= {"status": "failed", "wrong": 1}
    failed["parts"]["check"]["jobs"] = {"d256": {"status": "timed out", "last_lines": ["compiling"]}}
    text = record.page([failed])
    assert "## NVIDIA H100 80GB HBM3, 2026-12-01" in text and "dq is 7 times over" in text
    assert "- check, process d256: timed out: `compiling`" in text and "| attention | bfloat16 | 1 | 1 | 7.00 |" in text
    assert record.file_name(FACTS) == "nvidia-h100-80gb-hbm3-2026-12-01.json"


def test_page_begins_with_what_no_kernel_did() -> None:
    kept = a_record()
    kept["facts"] = kept["facts"] | {"handed_over": ["linear_forward on sm_90, 16 bits, width up to 64: wrong"]}
    assert "2026-12-01\n\n**Not by kernels, but by plain PyTorch (kernels/eager.py): linear_forward on" in record.page(
        [kept]
    )
    assert "Not by kernels" not in record.page([a_record()])


def test_the_record_has_what_the_table_hands_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this checkout's table, which is read where the parts read it: a bare machine has no other pyscaling."""
    assert run.main(["--OUT", str(tmp_path / "none"), "--DEVICE", "cpu", "--PARTS", "record"]) == 0
    table = tmp_path / "none" / "package" / "pyscaling" / "kernels"
    assert table.resolve() == ROOT / "kernels"
    read = tmp_path / "rows" / "package" / "pyscaling" / "kernels" / "tiles.py"
    (tmp_path / "sitecustomize.py").write_text(
        "from pyscaling.kernels import tiles\n"
        f"assert tiles.__file__ == {str(read)!r}, tiles.__file__\n"
        "tiles._prefer((tiles.Row('linear_forward', 'sm_90', 16, tiles.ANY, '', (), 'wrong'),))\n"
    )
    within = run._environment

    def environment(*given: Any) -> dict[str, str]:
        own = within(*given)
        return own | {"PYTHONPATH": os.pathsep.join([own["PYTHONPATH"], str(tmp_path)])}

    monkeypatch.setattr(run, "_environment", environment)
    assert run.main(["--OUT", str(tmp_path / "rows"), "--DEVICE", "cpu", "--PARTS", "record"]) == 0
    facts = json.loads((tmp_path / "rows" / "facts.json").read_text())
    assert facts["handed_over"][0] == "linear_forward on sm_90, 16 bits, width up to inf: wrong"
    assert "**Not by kernels, but by plain PyTorch" in (tmp_path / "rows" / "hardware.md").read_text()
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pyscaling.kernels'] = None\n")
    assert run.handed_over(environment("cpu", tmp_path / "rows", ""))[0].startswith(
        "not known, for the table could not be read"
    )


def test_page_proposes_tiles() -> None:
    tried = {"operation": "attention", "tiles": [64, 64, 4, 3], "seconds": 1e-5, "ok": True}
    assert "Tiles proposed" not in record.page([a_record(tune=[tried])])
    assert "\n    Row('linear', ...)\n" in record.page([a_record(tune=[tried, {"proposed": "Row('linear', ...)"}])])


def test_written_record_reads_back(tmp_path: Path) -> None:
    rows = [{"case": "linear", "errors": {"out": [1.23456789e-7, 2, 3]}}, {"case": "mlp"}]
    (tmp_path / "facts.json").write_text(json.dumps(FACTS))
    (tmp_path / "check.json").write_text(
        json.dumps({"status": "ok", "seconds": 1, "wrong": 0, "jobs": {}, "rows": rows})
    )
    collected = record.collected(tmp_path)
    assert json.loads(record.written(collected)) == collected
    assert collected["rows"]["check"][0]["errors"]["out"][0] == 1.235e-7


def test_committed_page_is_of_the_committed_records() -> None:
    records = [json.loads(file.read_text()) for file in sorted((ROOT / "docs" / "hardware").glob("*.json"))]
    assert (ROOT / "docs" / "hardware.md").read_text() == record.page(records)


def test_nominal_peaks_are_the_meters() -> None:
    from pyscaling.kernels.meter import DEVICES

    assert {card: (of.flops_16, of.bandwidth) for card, of in DEVICES.items()} == record.NOMINAL


# ---- the grid's jobs ------------------------------------------------------------------------------------------------


def test_grid_trains_the_jobs_of_the_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYSCALING_GPU_DEVICE", "cuda")
    for name in ("gpu.child", "gpu.grid", "gpu.plain"):  # they read the device when they are imported
        monkeypatch.delitem(sys.modules, name, raising=False)
    from gpu import grid

    from pyscaling.study.fleets import _jobs
    from pyscaling.study.spec import StudySpec

    spec = StudySpec.preset("gpu-mini")
    assert len(spec.sizes) == GRID_SHAPES
    ours = grid.jobs(grid.preset(), 4096)
    assert ours == [job for size in spec.sizes for job, _ in _jobs(spec, size, 4096)]
    for name in ("gpu.child", "gpu.grid", "gpu.plain"):
        monkeypatch.delitem(sys.modules, name, raising=False)
