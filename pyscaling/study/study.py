"""A study from its spec to its table of runs."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyscaling import __version__
from pyscaling.runs import Runs
from pyscaling.study.spec import Backend, StudySpec, preset_text
from pyscaling.study.store import Store, StudyError, connect, read_table, spec_key

# What may change between two calls on one folder.
_NOT_OF_THE_RUNS: Any = {"description": True, "training": {"backend"}}


class Study:
    """A grid of runs in a folder. Make one with `Study.from_toml`, `Study.from_preset` or `Study.open`.

    folder: where study.toml, study.db and checkpoints/ live; by default studies/<name>.
    """

    def __init__(self, spec: StudySpec, folder: str | Path | None = None, *, text: str | None = None) -> None:
        self.spec = spec
        self.folder = Path(folder) if folder is not None else Path("studies") / spec.name
        self._text = text if text is not None else spec.model_dump_json(indent=1)

    @classmethod
    def from_toml(cls, path: str | Path, folder: str | Path | None = None) -> "Study":
        """Reads a spec from a TOML file. Raises ValueError that names every wrong key and value."""
        if not Path(path).is_file():
            raise ValueError(
                f"the study's spec {str(path)!r} is not found; give a TOML file, such as those in study/presets."
            )
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"the study's spec {str(path)!r} is not text in UTF-8.") from None
        return cls(StudySpec.from_toml(text, str(path)), folder, text=text)

    @classmethod
    def from_preset(cls, name: str, folder: str | Path | None = None) -> "Study":
        return cls(StudySpec.preset(name), folder, text=preset_text(name))

    @classmethod
    def open(cls, folder: str | Path) -> "Study":
        """Opens an existing study folder to read its runs or to go on with it."""
        connect(Path(folder)).close()
        return cls.from_toml(Path(folder) / "study.toml", folder)

    def run(self, *, workers: int | None = None, progress: bool = True, backend: Backend | None = None) -> Runs:
        """Trains what is not finished yet and returns the runs.

        workers: processes of one thread each, by default one per core, or one per GPU. progress: show bars with ETA and
        tokens/s. backend: "torch" or "triton" instead of the spec's; runs then differ by rounding.
        Raises StudyError if the folder is another process's or another spec's, or if the study cannot go on.
        """
        from pyscaling.study.executor import default_workers, run_local
        from pyscaling.study.fleets import plan_fleets
        from pyscaling.study.progress import StudyProgress

        if self.folder.exists() and not self.folder.is_dir():
            raise StudyError(f"the study's folder {str(self.folder)!r} is a file; choose another with --out.")
        self.folder.mkdir(parents=True, exist_ok=True)
        with Store(self.folder, self._text, spec_key(self.spec.model_dump_json(exclude=_NOT_OF_THE_RUNS))) as store:
            items, rows, facts = plan_fleets(self.spec, self.folder)
            store.add_runs(rows)
            store.set_facts({"version": __version__, **facts})
            pending = store.pending_fleets()
            items = [item for item in items if item.job.fleet_id in pending]
            if backend is not None:
                items = [replace(item, job=replace(item.job, backend=backend)) for item in items]
            if items:
                started = time.perf_counter()
                with StudyProgress(items, enabled=progress) as bars:
                    run_local(items, store, workers=workers or default_workers(), progress=bars.update)
                wall = float(store.facts().get("wall_s", 0.0)) + time.perf_counter() - started
                store.set_facts({"wall_s": wall})
        return self.runs

    @property
    def finished(self) -> bool:
        """Whether no run is left to train."""
        try:
            status = read_table(self.folder, "runs")["status"]
        except StudyError:  # killed before its tables were made, or never begun
            return False
        return bool(status) and "pending" not in status

    @property
    def all_runs(self) -> Runs:
        """Every finished run."""
        table = read_table(self.folder, "runs", "WHERE status = 'finished' ORDER BY N, D, rate_factor, seed")
        return Runs(table)

    @property
    def runs(self) -> Runs:
        """The runs to fit: where rates were swept, those of the rate that did best on average over the seeds."""
        runs = self.all_runs
        best: dict[tuple[int, int], tuple[float, float]] = {}
        groups: dict[tuple[int, int, float], list[float]] = {}
        for N, D, factor, loss in zip(runs.N, runs.D, runs["rate_factor"], runs.loss, strict=True):
            groups.setdefault((int(N), int(D), float(factor)), []).append(float(loss))
        for (N, D, factor), losses in groups.items():
            mean = sum(losses) / len(losses)
            if (N, D) not in best or mean < best[N, D][0]:
                best[N, D] = (mean, factor)
        keep = [
            best[int(N), int(D)][1] == factor for N, D, factor in zip(runs.N, runs.D, runs["rate_factor"], strict=True)
        ]
        return runs.select(keep)

    def __repr__(self) -> str:
        return f"Study({self.spec.name!r}, folder={str(self.folder)!r}, {len(self.spec.sizes)} sizes)"
