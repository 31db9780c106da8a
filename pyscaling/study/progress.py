"""What a user sees while a study trains: a bar for the whole and one for each running fleet."""

import math
import time
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from pyscaling.study.executor import WorkItem
from pyscaling.units import format_time


class _TokensPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = (task.speed or 0.0) * task.fields.get("tokens_per_unit", 0.0)
        shown = f"{rate / 1e3:8.0f}k" if rate >= 1e4 else f"{rate:9.0f}"
        return Text(f"{shown} tok/s" if rate else "", style="dim")


class _Loss(ProgressColumn):
    def render(self, task: Task) -> Text:
        loss = task.fields.get("loss")
        return Text("" if loss is None else f"loss {loss:.3f}", style="dim")


class StudyProgress:
    """Rich bars over a study's fleets, or a line each tenth of it where no terminal shows them; silent with enabled=False.

    A fleet's loss is the training loss of its best member where its curve was last taken, then the validation loss of the last
    run that it finished; the study's is that of the fleet that last told one.
    """

    def __init__(self, items: list[WorkItem], *, enabled: bool) -> None:
        self._items = {item.job.fleet_id: item for item in items}
        self._steps: dict[str, int] = {}
        self._losses: dict[str, tuple[Any, float]] = {}  # fleet -> where it was told, and how low
        self._latest: str | None = None
        self._cost = sum(item.cost for item in items)
        tokens = sum(item.job.total_steps * item.job.batch_tokens * len(item.job.seeds) for item in items)
        self._bars = Progress(
            TextColumn("{task.description:>16}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            _TokensPerSecond(),
            _Loss(),
            disable=not enabled,
        )
        self._all = self._bars.add_task(f"{len(items)} fleets", total=self._cost, tokens_per_unit=tokens / self._cost)
        self._tasks: dict[str, Any] = {}
        self._lines = enabled and not self._bars.console.is_terminal
        self._tenth, self._started = 0, time.monotonic()

    def update(self, kind: str, fleet_id: str, row: dict[str, Any]) -> None:
        """What a fleet reports: "progress" with the steps taken, or a row of the store."""
        item = self._items[fleet_id]
        job = item.job
        if fleet_id not in self._tasks:
            self._tasks[fleet_id] = self._bars.add_task(
                f"{fleet_id} x{len(job.seeds)}",
                total=job.total_steps,
                tokens_per_unit=float(job.batch_tokens * len(job.seeds)),
            )
        if kind in ("metric", "finished"):
            self._tell(
                fleet_id, row["train_loss" if kind == "metric" else "loss"], (kind, row.get("step", row.get("D")))
            )
        if kind != "progress":
            return
        self._bars.update(self._tasks[fleet_id], completed=row["steps"])
        if row["steps"] >= job.total_steps:
            self._bars.update(self._tasks[fleet_id], visible=False)
        self._steps[fleet_id] = row["steps"]
        done = sum(self._items[f].cost * steps / self._items[f].job.total_steps for f, steps in self._steps.items())
        self._bars.update(self._all, completed=done)
        if self._lines and (tenth := int(10 * done / self._cost * (1 + 1e-9))) > self._tenth:
            self._tenth, took = tenth, format_time(time.monotonic() - self._started)
            told = "" if self._latest is None else f", loss {self._losses[self._latest][1]:.3f} ({self._latest})"
            self._bars.console.print(f"{10 * tenth}% of {len(self._items)} fleets after {took}{told}", highlight=False)

    def _tell(self, fleet_id: str, loss: float, place: tuple[str, Any]) -> None:
        where, best = self._losses.get(fleet_id, (None, math.inf))
        self._losses[fleet_id] = place, min(loss, best) if where == place else loss
        self._latest = fleet_id
        for task in (self._tasks[fleet_id], self._all):
            self._bars.update(task, loss=self._losses[fleet_id][1])

    def __enter__(self) -> "StudyProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()
