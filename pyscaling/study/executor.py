"""Runs fleets on this machine: one worker process and one thread per core, or one per GPU, longest fleet first.

Workers only compute and save their own fleet's checkpoint; everything that must last travels through a pipe to the
parent, the store's one writer.
"""

import ctypes
import multiprocessing
import os
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from pyscaling.cores import available_cores
from pyscaling.study.store import Store, StudyError
from pyscaling.training.loop import CheckpointError, Evaluation, FleetJob

Watch = Callable[[str, str, dict[str, Any]], None]  # kind, fleet_id and row of what a fleet reports
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
_PATIENCE = 10.0  # seconds that a worker has to end


@dataclass(frozen=True)
class WorkItem:
    """A fleet to train, the files of its tokens (memory-mapped by the worker) and its estimated cost in seconds."""

    job: FleetJob
    train_file: Path
    evaluations: tuple[tuple[str, Path, int, int], ...]  # name, file of tokens, windows, windows on the curve
    checkpoint: Path
    cost: float


def evaluation_windows(tokens: np.ndarray, context: int, n_window: int) -> np.ndarray:
    """n_window windows [n, context + 1] spread evenly over a token array (fewer if it is short)."""
    last = len(tokens) - context - 1
    if last < 0:
        raise ValueError(
            f"a validation split of {len(tokens)} tokens is shorter than one window of {context + 1}; give more text."
        )
    starts = np.unique(np.linspace(0, last, min(n_window, last // context + 1)).astype(np.int64))
    return tokens[np.add.outer(starts, np.arange(context + 1))]


def default_workers() -> int:
    import torch

    return torch.cuda.device_count() or available_cores()


def run_local(
    items: Sequence[WorkItem],
    store: Store,
    *,
    workers: int,
    watch: Watch = lambda kind, fleet_id, row: None,
) -> None:
    """Trains every item and records what it reports; returns when all are done.

    watch(kind, fleet_id, row) is called with each fleet's "progress", the "steps" taken, and with each row that is recorded.
    Raises StudyError when a worker dies or a disk is full; what was recorded stays, and another call goes on from the
    checkpoints.
    """
    queue = sorted(items, key=lambda item: -item.cost)
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, tuple[Any, WorkItem | None]] = {}
    restarted: set[str] = set()
    failure: str | None = None
    try:
        with _one_thread_each():
            for number in range(min(workers, len(queue))):
                ours, theirs = context.Pipe()
                process = context.Process(target=_worker, args=(theirs, number, os.getpid()), daemon=True)
                process.start()
                theirs.close()
                running[ours] = (process, None)
        while running and failure is None:
            for pipe in [p for p, (_, item) in running.items() if item is None]:
                if queue:
                    item = queue.pop(0)
                    pipe.send(item)
                    running[pipe] = (running[pipe][0], item)
                else:
                    pipe.send(None)
                    _end(running.pop(pipe)[0])
            dirty = False
            for ready in wait(list(running), timeout=1.0):
                assert isinstance(ready, Connection)
                process, working_on = running[ready]
                assert working_on is not None
                try:
                    kind, row = ready.recv()
                except (EOFError, ConnectionResetError):
                    _end(process)
                    failure = (
                        f"the worker of fleet {working_on.job.fleet_id} died (exit code {process.exitcode}; -9 usually means "
                        "that memory ran out). Finished runs are safe; run the study again to go on."
                    )
                    break
                if kind == "done":
                    running[ready] = (process, None)
                    store.commit()
                    if working_on.job.fleet_id in store.pending_fleets():
                        failure = _start_over(working_on, queue, restarted)
                elif kind == "error":
                    failure = row["message"]
                    break
                elif kind == "warning":
                    print(row["message"], file=sys.stderr)
                elif kind == "checkpoint":
                    store.commit()
                    ready.send("stored")
                elif kind == "progress":
                    watch(kind, working_on.job.fleet_id, row)
                else:
                    store.record(kind, row)
                    dirty |= kind == "finished"
                    watch(kind, working_on.job.fleet_id, row)
            if dirty:
                store.commit()
        store.commit()
    except (OSError, sqlite3.Error) as error:
        raise StudyError(
            f"the study in {store.folder} could not go on: {error}. Finished runs are safe; mend the cause (is the disk full?) "
            "and run it again."
        ) from error
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            _end(process)
    if failure is not None:
        raise StudyError(failure)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that are started within have one thread each, in libraries that count cores when they are loaded, too."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end(process: Any) -> None:
    """Waits for a worker that was told to end, for a while: one that hangs must not hang the study."""
    process.join(_PATIENCE)
    if process.is_alive():
        process.kill()
        process.join(_PATIENCE)


def _start_over(item: WorkItem, queue: list[WorkItem], restarted: set[str]) -> str | None:
    """A fleet whose checkpoint is ahead of the store (study.db was deleted, say) trains again, once."""
    if item.job.fleet_id in restarted:
        return f"fleet {item.job.fleet_id} ended without reporting all of its runs; please report this."
    restarted.add(item.job.fleet_id)
    item.checkpoint.unlink(missing_ok=True)
    queue.insert(0, item)
    return None


def _worker(pipe: Connection, number: int, parent: int) -> None:
    """Trains the items that come down the pipe until None does. parent: the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _die_with(parent)
    import torch

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    device = _device(number)
    while (item := pipe.recv()) is not None:
        try:
            _train(item, pipe, device)
        except (BrokenPipeError, EOFError):
            os._exit(1)  # the parent is gone; the checkpoint holds all that matters
        except (CheckpointError, ValueError, OSError) as error:
            pipe.send(("error", {"message": str(error)}))
        except Exception:
            pipe.send(("error", {"message": f"fleet {item.job.fleet_id} failed:\n{traceback.format_exc()}"}))


def _device(number: int) -> str:
    """The device of a worker, from now on the current one: Triton starts kernels there, and graphs are captured there."""
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        return "cpu"
    torch.cuda.set_device(number % gpus)
    return f"cuda:{number % gpus}"


def _train(item: WorkItem, pipe: Connection, device: str) -> None:
    from pyscaling.training.loop import train_fleet

    context = item.job.shape.context
    evaluations = [
        Evaluation(name, evaluation_windows(np.load(file, mmap_mode="r"), context, n_window), n_curve)
        for name, file, n_window, n_curve in item.evaluations
    ]
    tokens = np.load(item.train_file, mmap_mode="r")

    def emit(kind: str, row: dict[str, Any]) -> None:
        pipe.send((kind, row))
        if kind == "checkpoint":
            pipe.recv()  # the parent has stored everything up to here

    train_fleet(item.job, tokens, evaluations, emit=emit, checkpoint=item.checkpoint, device=device)
    pipe.send(("done", {"at": time.time()}))


def _die_with(parent: int) -> None:
    """parent may be 1: a container's first process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before it could be watched
        os._exit(1)
