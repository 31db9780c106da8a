"""Proves and times the kernels on this machine's card, and writes the record: what `make gpu` runs. Standard library only.

    make gpu                               # all parts in order; some ten minutes on one H100
    make gpu PARTS="check step"            # these alone
    make gpu WHEELS=folder OUT=folder TEXT="corpus/*.txt" LIMITS="check=200"
    make gpu DEVICE=cpu                    # all of it at tiny sizes in Triton's interpreter: not a measurement

It takes the python3, torch and triton that are there and installs nothing into them: packages that lack come from the wheels in
WHEELS, into a folder of OUT; pyscaling is not installed but joined in OUT from the checkout. Each part's results lie in OUT
before the next part begins, rows of a part that is cut included; a later call with the same OUT adds its parts to them. Exit
status: 0 if all is well, 1 if a part failed or ran out of time, 2 if nothing could be run.
"""

import argparse
import glob
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from gpu.parts import PARTS, Job, Part

ROOT = Path(__file__).resolve().parents[2]
_PROBE = """
import json, platform, torch, triton
facts = {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__}
facts["runtime"] = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
if torch.cuda.is_available():
    properties = torch.cuda.get_device_properties(0)
    facts |= {"card": properties.name, "multiprocessors": properties.multi_processor_count}
    facts["memory_GB"] = round(properties.total_memory / 1e9, 1)
print(json.dumps(facts))
"""
_HANDED_OVER = """
from pyscaling.kernels.tiles import handing_over
for row in handing_over:
    print(f"{row.operation} on {row.targets}, {row.bits} bits, width up to {row.up_to:g}: {row.reason}")
"""


# ---- the machine ----------------------------------------------------------------------------------------------------


def probe(environment: dict[str, str]) -> dict[str, Any]:
    """What torch says of this machine; {"error": ...} where it cannot be imported."""
    done = subprocess.run([sys.executable, "-P", "-c", _PROBE], env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    facts = json.loads(done.stdout.splitlines()[-1])
    return {**facts, "driver": _driver(), "cores": os.cpu_count(), "commit": _commit(), "machine": platform.platform()}


def handed_over(environment: dict[str, str]) -> list[str]:
    """What this checkout's table of tiles keeps from its kernels, or why that cannot be read; the parts will say so, too."""
    done = subprocess.run([sys.executable, "-P", "-c", _HANDED_OVER], env=environment, capture_output=True, text=True)
    if done.returncode:
        return [
            f"not known, for the table could not be read ({(done.stderr.strip().splitlines() or ['no message'])[-1]})"
        ]
    return done.stdout.splitlines()


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return _said(query if shutil.which("nvidia-smi") else ["rocm-smi", "--showdriverversion"]) or "unknown"


def _commit() -> str:
    """Of the checkout; COMMIT where its history was not brought along."""
    changed = "+changes" if _said(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"]) else ""
    commit = _said(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"])
    return commit + changed if commit else os.environ.get("COMMIT", "unknown")


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.strip().splitlines() if done.returncode == 0 else []
    return lines[0].strip() if lines else ""


# ---- what the parts import ------------------------------------------------------------------------------------------


def joined_package(folder: Path) -> Path:
    """A folder whose `pyscaling` is the checkout's pyscaling/ and kernels/ in one, as an installation would have them.

    The C++ core is there if the checkout has it; no part needs it, as none needs pydantic, pandas or scipy.
    """
    package = folder / "pyscaling"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for entry in (ROOT / "pyscaling").iterdir():
        if entry.name not in ("kernels", "__pycache__"):
            (package / entry.name).symlink_to(entry)
    (package / "kernels").symlink_to(ROOT / "kernels")
    return folder


def unpack_wheels(wheels: Path, folder: Path) -> str:
    """Installs the wheels of packages that this Python lacks into a folder of its own; returns the pip's complaint."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    if not wheels.is_dir():
        return f"WHEELS={wheels} is no folder"
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        return f"WHEELS={wheels} holds no .whl file"
    done = subprocess.run([*pip, "--target", str(folder), *files], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip()


# ---- running --------------------------------------------------------------------------------------------------------


@dataclass
class Running:
    job: Job
    log: Path
    process: subprocess.Popen[bytes]
    began: float
    tail: TextIO
    rest: str = field(default="", repr=False)

    def new_lines(self) -> list[str]:
        *lines, self.rest = (self.rest + self.tail.read()).split("\n")
        return lines

    def kill(self) -> None:
        """The process and all that it started."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, how)
                self.process.wait(3)
            except (ProcessLookupError, PermissionError):
                break
            except subprocess.TimeoutExpired:
                continue
        self.process.wait()


def run_jobs(
    part: str, jobs: Sequence[Job], seconds: float, at_once: int, out: Path, environment: dict[str, str]
) -> dict[str, Any]:
    """Runs jobs, at most `at_once` side by side, until all have ended or the time is up: name -> status, seconds, ..."""
    waiting, running = list(jobs), []  # type: list[Job], list[Running]
    began, ended = time.monotonic(), {}  # type: float, dict[str, Any]

    def start(job: Job) -> Running:
        log = out / f"{part}-{job.name}.log"
        own = environment | {"PYSCALING_GPU_ROWS": str(log.with_suffix(".jsonl"))}
        log.with_suffix(".jsonl").unlink(missing_ok=True)
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-P", *job.arguments], cwd=ROOT, env=own, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return Running(job, log, process, time.monotonic(), open(log, errors="replace"))

    def end(child: Running, status: str) -> None:
        for line in (*child.new_lines(), child.rest):
            if line.strip():
                print(f"  {child.job.name}: {line}", flush=True)
        child.tail.close()
        last = child.log.read_text(errors="replace").strip().splitlines()[-15:] if status != "ok" else []
        took = round(time.monotonic() - child.began, 1)
        ended[child.job.name] = {
            "status": status,
            "seconds": took,
            "exit": child.process.returncode,
            "last_lines": last,
        }
        running.remove(child)

    try:
        while (waiting or running) and time.monotonic() - began < seconds:
            while waiting and len(running) < at_once:
                running.append(start(waiting.pop(0)))
            for child in list(running):
                code = child.process.poll()
                for line in child.new_lines():
                    print(f"  {child.job.name}: {line}", flush=True)
                if code is not None:
                    end(child, "ok" if code == 0 else "failed")
            time.sleep(0.05)
    finally:
        for child in list(running):
            child.kill()
            end(child, "timed out")
    return ended | {job.name: {"status": "not begun", "seconds": 0.0} for job in waiting}


def run_part(part: Part, device: str, out: Path, environment: dict[str, str], seconds: float) -> dict[str, Any]:
    """Runs a part and puts <part>.json into `out`, with the rows of its jobs as far as each got."""
    jobs, began = part.jobs(device), time.monotonic()
    print(f"{part.name}: {part.what} ({len(jobs)} processes, at most {seconds:.0f} s)", flush=True)
    (out / f"{part.name}.json").unlink(missing_ok=True)  # of an earlier call: no result of this one
    at_once = (os.cpu_count() or 1) if part.side_by_side or device == "cpu" else 1
    if at_once > 1:  # a core each: Inductor would start as many compilers in every one
        environment = environment | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    ended: dict[str, Any] = {}
    try:
        ended = run_jobs(part.name, jobs, seconds, at_once, out, environment)
    finally:  # what an interrupted part found lasts, too
        statuses = {of["status"] for of in ended.values()}
        rows = [row | {"job": job.name} for job in jobs for row in read_rows(out / f"{part.name}-{job.name}.jsonl")]
        wrong = [row for row in rows if row.get("ok") is False]
        status = "ok"
        if not ended and jobs:
            status = "interrupted"
        elif statuses & {"timed out", "not begun"}:
            status = "timed out"
        elif "failed" in statuses or wrong:
            status = "failed"
        result = {
            "part": part.name, "status": status, "seconds": round(time.monotonic() - began, 1), "limit_s": seconds,
            "wrong": len(wrong), "jobs": ended, "rows": rows,
        }  # fmt: skip
        write_json(out / f"{part.name}.json", result)
        counted = f"{len(rows)} rows" + (f", {len(wrong)} of them wrong" if wrong else "")
        print(f"{part.name}: {status}, {counted}, {result['seconds']} s", flush=True)
    return result


def read_rows(file: Path) -> list[dict[str, Any]]:
    """A row a line; the last may be cut where its process was killed."""
    rows = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def write_json(file: Path, value: Any) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, file)


# ---- the command ----------------------------------------------------------------------------------------------------


def chosen(names: str) -> list[Part]:
    """The parts that are named, in their own order, `record` always; all but those to be asked for where none is."""
    wanted, known = set(names.replace(",", " ").split()), [part.name for part in PARTS]
    if unknown := wanted - set(known):
        raise ValueError(f"PARTS names {', '.join(sorted(unknown))}; known are {', '.join(known)}.")
    if not wanted and names.strip():
        raise ValueError(f"PARTS={names!r} names no part; known are {', '.join(known)}.")
    if not wanted:
        return [part for part in PARTS if not part.asked_for]
    return [part for part in PARTS if part.name in wanted | {"record"}]


def limits(text: str) -> dict[str, float]:
    """Seconds of parts, "check=200 grid=400", in place of their own."""
    given: dict[str, str] = {}
    for item in text.replace(",", " ").split():
        name, _, value = item.partition("=")
        given[name] = value
    if unknown := given.keys() - {part.name for part in PARTS}:
        raise ValueError(
            f"LIMITS names {', '.join(sorted(unknown))}; known are {', '.join(part.name for part in PARTS)}."
        )
    for name, value in given.items():
        if not value.replace(".", "", 1).isdigit() or float(value) <= 0:
            raise ValueError(f'LIMITS has {name}={value}; give seconds, more than 0: LIMITS="{name}=200".')
    return {name: float(value) for name, value in given.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--PARTS", dest="parts", default="")
    parser.add_argument("--DEVICE", dest="device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--OUT", dest="out", type=Path)
    parser.add_argument("--WHEELS", dest="wheels", type=Path)
    parser.add_argument("--TEXT", dest="text", default="", help="what the grid trains on: a file, a folder or a glob")
    parser.add_argument("--LIMITS", dest="limits", default="", help='seconds of parts, "check=200 grid=400"')
    given = parser.parse_args(arguments)
    try:
        parts, seconds = chosen(given.parts), limits(given.limits)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if (
        given.text
        and given.text not in ("sotu", "python-stdlib")
        and not (Path(given.text).exists() or glob.glob(given.text, recursive=True))
    ):
        print(f"TEXT={given.text} is neither a file nor a folder, and no file fits it as a pattern.", file=sys.stderr)
        return 2
    if given.device == "cpu" and not given.parts:
        parts = list(PARTS)  # what is asked for elsewhere, too: here it only has to work
    out = (given.out or ROOT / ".gpu-out" / time.strftime("%Y-%m-%d-%H%M%S")).resolve()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"OUT={out} cannot be a folder: {error.strerror}; choose another.", file=sys.stderr)
        return 2
    code = 2
    try:
        code = _run(parts, seconds, given, out)
    finally:
        if code == 2 and not any(out.iterdir()):
            out.rmdir()
    return code


_ONE_RUN = ("device", "card", "commit", "torch", "triton")  # a folder's results are of one of each


def _run(parts: Sequence[Part], seconds: dict[str, float], given: argparse.Namespace, out: Path) -> int:
    environment = _environment(given.device, out, given.text)
    if given.wheels is not None:
        complaint = unpack_wheels(given.wheels, out / "wheels")
        if complaint:
            print(f"the wheels could not be unpacked: {complaint}", file=sys.stderr)
            return 2
    facts = probe(environment)
    lacking = facts.get("error") or (given.device == "cuda" and "card" not in facts and "torch sees no card")
    if lacking:
        print(_nothing_to_run(str(lacking), given.device, parts), file=sys.stderr)
        return 2
    facts |= {"device": given.device, "date": time.strftime("%Y-%m-%d"), "began": time.strftime("%Y-%m-%d %H:%M:%S")}
    if (out / "facts.json").exists():
        before = json.loads((out / "facts.json").read_text())
        other = [f"{name} {before.get(name)}" for name in _ONE_RUN if before.get(name) != facts.get(name)]
        if other:
            print(f"OUT={out} holds results of {', '.join(other)}; choose another folder.", file=sys.stderr)
            return 2
        facts |= {name: before[name] for name in ("date", "began")}
    joined_package(out / "package")
    facts |= {"handed_over": rows} if (rows := handed_over(environment)) else {}
    write_json(out / "facts.json", facts)
    print(", ".join(f"{name} {value}" for name, value in facts.items()), f"results in {out}", sep="\n", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: no job outlives this process
    results, interrupted = [], False
    try:
        for part in parts:
            if part.jobs(given.device):
                results.append(run_part(part, given.device, out, environment, seconds.get(part.name, part.seconds)))
    except KeyboardInterrupt:
        interrupted = True
        print(f"interrupted; OUT={out} PARTS=... goes on with the parts that it names", file=sys.stderr)
        last = parts[-1]
        run_part(last, given.device, out, environment, last.seconds)
    for result in results:
        print(f"{result['part']:>8}  {result['status']}")
    return 130 if interrupted else 0 if all(result["status"] == "ok" for result in results) else 1


def _environment(device: str, out: Path, text: str) -> dict[str, str]:
    """Of every process of a part."""
    paths = [out / "package", out / "wheels", ROOT / "bench"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONUNBUFFERED": "1", "PYSCALING_GPU_DEVICE": device,
        "PYSCALING_GPU_OUT": str(out), "PYSCALING_GPU_TEXT": text, "PYSCALING_CACHE": str(out / "tokens"),
        "PYSCALING_TEST_DEVICE": device,
    }  # fmt: skip
    environment.pop("TRITON_INTERPRET", None)
    if device == "cpu":
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return environment


def _nothing_to_run(why: str, device: str, parts: Sequence[Part]) -> str:
    would = "\n".join(f"  {part.name:>8}  {part.what}, at most {part.seconds:.0f} s" for part in parts)
    return (
        f"make gpu: {why} ({sys.executable}). On a machine with a card, torch, triton, numpy and pytest it would run\n{would}\n"
        "Choose another Python with PYTHON=..."
        + (", or see all of it work at tiny sizes: make gpu DEVICE=cpu" if device != "cpu" else ".")
    )


if __name__ == "__main__":
    sys.exit(main())
