"""What a study reports while it trains, written for TensorBoard or Weights & Biases.

A curve for each trunk, over tokens: training loss, learning rate and gradient norm, the validation loss on each distribution,
the noise scale, and under "final" the losses of the runs that were finished, each after its decay.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyscaling.study.executor import WorkItem
from pyscaling.study.store import StudyError

if TYPE_CHECKING:
    from pyscaling.study.study import Study

KINDS = ("tensorboard", "wandb")
_Point = tuple[str, int, dict[str, float]]  # trunk, tokens, name -> value
_METRICS = ("train_loss", "learning_rate", "grad_norm")


@contextmanager
def open_log(
    log: str | None, study: "Study", items: Sequence[WorkItem]
) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """A function (kind, row) that writes what is recorded; does nothing with log=None.

    A log that fails is given up with a warning: runs go on. Raises ValueError for an unknown log, and one that says what to
    install where its package is missing.
    """
    if log is None:
        yield lambda kind, row: None
        return
    if log not in KINDS:
        raise ValueError(f"log={log!r} is unknown; known are {', '.join(KINDS)}.")
    add, close = (_tensorboard if log == "tensorboard" else _wandb)(study)
    trunks = {job.run_id(m, budget): trunk for job in (item.job for item in items) for m, trunk in enumerate(job.trunk_ids)
              for budget in job.budgets}  # fmt: skip
    broken = False

    def write(kind: str, row: dict[str, Any]) -> None:
        nonlocal broken
        point = _point(kind, row, trunks)
        if point is None or broken:
            return
        try:
            add(*point)
        except Exception as error:  # whatever a server or a full disk does, a run is worth more than its log
            broken = True
            warnings.warn(f"the log to {log} failed and is given up ({error}); training goes on.", stacklevel=2)

    try:
        yield write
    finally:
        close()


def _point(kind: str, row: dict[str, Any], trunks: dict[str, str]) -> _Point | None:
    if kind == "metric":
        return row["trunk_id"], row["tokens"], {name: row[name] for name in _METRICS}
    if kind == "evaluation":
        trunk = trunks.get(row["run_id"])
        place = "loss" if trunk is None else "final"  # a trunk's own rows bear its name
        return trunk or row["run_id"], row["tokens"], {f"{place}/{row['distribution']}": row["loss"]}
    if kind == "noise_scale" and row["noise_scale"] is not None:
        return row["trunk_id"], row["tokens"], {"noise_scale": row["noise_scale"]}
    return None


def _tensorboard(study: "Study") -> tuple[Callable[..., None], Callable[[], None]]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise ValueError("log='tensorboard' needs the package tensorboard: pip install 'pyscaling[log]'.") from None
    writers: dict[str, Any] = {}

    def add(trunk: str, tokens: int, values: dict[str, float]) -> None:
        if trunk not in writers:
            writers[trunk] = SummaryWriter(str(study.folder / "tensorboard" / trunk))
        for name, value in values.items():
            writers[trunk].add_scalar(name, value, tokens)

    def close() -> None:
        for writer in writers.values():
            writer.close()

    return add, close


def _wandb(study: "Study") -> tuple[Callable[..., None], Callable[[], None]]:
    """One run of W&B for a study, which goes on where the study does."""
    try:
        import wandb
    except ModuleNotFoundError:
        raise ValueError("log='wandb' needs the package wandb: pip install 'pyscaling[log]'.") from None
    name = hashlib.sha256(str(study.folder.resolve()).encode()).hexdigest()[:16]
    try:
        run = wandb.init(
            project="pyscaling",
            name=study.spec.name,
            id=name,
            resume="allow",
            dir=str(study.folder),
            config=study.spec.model_dump(mode="json"),
        )
    except Exception as error:
        raise StudyError(
            f"W&B could not be started ({error}); log in with `wandb login`, or set WANDB_MODE=offline."
        ) from error
    known: set[str] = set()

    def add(trunk: str, tokens: int, values: dict[str, float]) -> None:
        if trunk not in known:  # each trunk has an axis of its own, for fleets train side by side
            known.add(trunk)
            run.define_metric(f"{trunk}/tokens", hidden=True)
            run.define_metric(f"{trunk}/*", step_metric=f"{trunk}/tokens")
        run.log({f"{trunk}/tokens": tokens, **{f"{trunk}/{name}": value for name, value in values.items()}})

    return add, run.finish
