"""A study from its spec to its table of runs."""

import hashlib
import json
import math
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pyscaling import __version__, laws
from pyscaling.accounting import Shape, shape_near
from pyscaling.study.spec import AddedSpec, Backend, Precision, StudySpec, preset_text
from pyscaling.study.store import Store, StudyError, connect, read_table, replace_text, spec_key
from pyscaling.tables import Runs

# What may change between two calls on one folder: what only the report or the machine heeds, and what `extend` adds.
_NOT_OF_THE_RUNS: Any = {"description": True, "law": True, "training": {"backend"}, "added": True}
# As keys were first written: everything, defaults, too, of the fields that there were then, and the law.
_NOT_IN_OLD_KEYS: Any = {"description": True, "training": {"backend"}, "added": True, "corpus": {"field"}}
GIVEN = "given-"  # fleets of runs that were trained elsewhere
_SAME_SIZE = 0.05  # of ln N: an added run takes a shape that the study has already
Log = Literal["tensorboard", "wandb"]
_FAR = 0.15  # of ln N or ln D: said, where a run cannot be nearer to what was asked for


def _settings(table: dict[str, Any], before: str = "") -> dict[str, Any]:
    """By dotted name, entries of lists by their number."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, list):
            value = {str(i): entry for i, entry in enumerate(value)}
        found |= _settings(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


class Study:
    """A grid of runs in a folder. Make one with `Study.from_toml`, `Study.from_preset` or `Study.open`.

    folder: where study.toml, study.db and checkpoints/ live; by default studies/<name>.
    """

    def __init__(self, spec: StudySpec, folder: str | Path | None = None, *, text: str | None = None) -> None:
        self.spec = spec
        self.folder = Path(folder) if folder is not None else Path("studies") / spec.name
        self._text = text if text is not None else spec.to_toml()

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

    def run(
        self,
        *,
        workers: int | None = None,
        progress: bool = True,
        backend: Backend | None = None,
        log: Log | None = None,
    ) -> Runs:
        """Trains what is not finished yet and returns the runs. Of a study that is finished no text is read.

        workers: processes of one thread each, by default one per core that this process may use, or one per GPU. progress: show
        bars with loss, ETA and tokens/s. backend: "torch" or "triton" instead of the spec's; runs then differ by rounding.
        log: "tensorboard", into the folder's tensorboard/, or "wandb": losses, rates and noise scales against tokens, a curve
        for each trunk; needs pyscaling[log].
        Raises StudyError if the folder is another process's or another spec's, or if the study cannot go on, and ValueError if
        its corpus cannot be read; the folder is then left as it was.
        """
        from pyscaling.study.executor import default_workers, run_local
        from pyscaling.study.fleets import plan_added, plan_fleets
        from pyscaling.study.logs import open_log
        from pyscaling.study.progress import StudyProgress

        if (backend or self.spec.training.backend) == "triton":  # before anything is written
            import torch

            from pyscaling.training.loop import check_backend

            try:
                check_backend("triton", "cuda" if torch.cuda.is_available() else "cpu")
            except ValueError as error:
                raise StudyError(str(error)) from None
        if self.folder.exists() and not self.folder.is_dir():
            raise StudyError(f"the study's folder {str(self.folder)!r} is a file; choose another with --out.")
        self._adopt()
        # A corpus that cannot be read must not claim the folder.
        items, rows, facts = ([], [], {}) if self.finished else plan_fleets(self.spec, self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._store() as store:
            if self.finished:
                return self.runs
            added_items, added_rows = plan_added(self.spec, self.folder)
            items += added_items
            self._same_corpus(store, facts)
            precision = self._precision(store)
            items = [replace(item, job=replace(item.job, precision=precision)) for item in items]
            store.add_runs([*rows, *added_rows])
            store.set_facts({"version": __version__, "precision": precision, **facts})
            pending = store.pending_fleets()
            items = [item for item in items if item.job.fleet_id in pending]
            if backend is not None:
                items = [replace(item, job=replace(item.job, backend=backend)) for item in items]
            if items:
                started = time.perf_counter()
                with open_log(log, self, items) as write, StudyProgress(items, enabled=progress) as bars:

                    def watch(kind: str, fleet_id: str, row: dict[str, Any]) -> None:
                        bars.update(kind, fleet_id, row)
                        write(kind, row)

                    run_local(items, store, workers=workers or default_workers(), watch=watch)
                wall = float(store.facts().get("wall_s", 0.0)) + time.perf_counter() - started
                store.set_facts({"wall_s": wall})
        return self.runs

    def _same_corpus(self, store: Store, facts: Mapping[str, Any]) -> None:
        """Half of a grid on one text and half on another fits no law."""
        known = store.facts().get("corpus_key")
        if facts and known not in (None, facts["corpus_key"]):
            raise StudyError(
                f"the text of corpus {self.spec.corpus.source!r} is not what the study in {self.folder} was begun with; put it "
                "back, or choose another folder."
            )

    def extend(
        self,
        runs: Any,
        *,
        workers: int | None = None,
        progress: bool = True,
        backend: Backend | None = None,
        log: Log | None = None,
    ) -> Runs:
        """Adds runs to a study that exists, trains what is pending and returns all runs.

        runs: what `next_runs` gives, a table with columns N and D, or pairs (N, D) or (Shape, D), of which a shape's widths and
        depth are taken. N becomes the study's own size within 5 %, otherwise `accounting.shape_near` with the study's [model]; D
        whole steps, two at least. A run that occurs several times gets as many seeds. Each is trained on its own with a
        seed of its shape that no run had, at the rate of the nearest size, by the rate factor that did best near it.

        The runs become [[added]] of the folder's study.toml in one step, and finished runs stay as they are: killed, an
        extension is made wholly or not at all, and `run` goes on with it. The same call again adds nothing: a table is known
        by its runs, and next_runs also by the runs that it was planned from.

        A table with a column loss holds runs that were trained already, on the same text and tokens: they are recorded as they
        are, finished, once, with whatever columns of theirs a study knows (d_model, seed, ...), and nothing is trained.

        workers, progress, backend, log: as in `run`; a script calls either under `if __name__ == "__main__":`, for workers import
        it. Raises ValueError for runs without N or D, and StudyError if the folder holds no study, or another's.
        """
        if not (self.folder / "study.db").exists():
            raise StudyError(f"{self.folder} is no study folder yet, so nothing can be added to it; call run() first.")
        given = _with_losses(runs)
        if given is not None:
            with self._store() as store:
                if "run_id" in given:  # of a study, perhaps of this one
                    own = read_table(self.folder, "runs")
                    there = set(zip(own["run_id"], own["loss"], strict=True))
                    pairs = zip(given["run_id"].tolist(), given.loss.tolist(), strict=True)
                    given = given.select(np.array([pair not in there for pair in pairs], dtype=bool))
                store.add_finished(_given_rows(given, store.facts(), self.spec))
            return self.runs
        wanted, batch = _wanted(runs)
        with self._store():  # nobody else trains here, or extends
            added = self._to_add(wanted, batch)
            if added:
                spec = StudySpec.model_validate({**self.spec.model_dump(), "added": (*self.spec.added, *added)})
                self._write(spec)
        return self.run(workers=workers, progress=progress, backend=backend, log=log)

    def _store(self) -> Store:
        """The open store; from now on this study has what was added to its folder."""
        self._adopt()
        store = Store(self.folder, self._text, self._key(self.spec), self._unlike(), self._was_key)
        self._adopt()  # what was added before the folder was ours
        return store

    @staticmethod
    def _key(spec: StudySpec) -> str:
        """What was asked: defaults are left out, so that a field that is added to the spec leaves folders theirs."""
        # "fp32" counts as the "auto" that it was before `_precision` told them apart.
        training = spec.training.model_copy(update={"precision": spec.training.precision.replace("fp32", "auto")})
        asked = spec.model_copy(update={"training": training})
        table = asked.model_dump(mode="json", exclude=_NOT_OF_THE_RUNS, exclude_defaults=True)
        return spec_key(json.dumps(table, sort_keys=True))

    def _was_key(self, key: str) -> bool:
        """Whether a key is this spec's as keys were first written, by whatever law the report was to plan then."""
        if self.spec.corpus.field is not None:
            return False
        return key in {self._old_key(self.spec, law) for law in ("auto", self.spec.law, *laws.LAWS)}

    @staticmethod
    def _old_key(spec: StudySpec, law: str) -> str:
        training = spec.training.model_copy(update={"precision": spec.training.precision.replace("auto", "fp32")})
        asked = spec.model_copy(update={"training": training, "law": law})
        return spec_key(asked.model_dump_json(exclude=_NOT_IN_OLD_KEYS))

    def _precision(self, store: Store) -> Precision:
        """What the folder's runs are trained in: as they began, whatever machine goes on with them."""
        import torch

        asked, known = self.spec.training.precision, store.facts()
        if "precision" not in known:
            if asked != "auto":
                return asked
            # a folder that was begun before this was written down was begun in fp32
            return "bf16" if torch.cuda.is_available() and "version" not in known else "fp32"
        if asked not in ("auto", known["precision"]):
            raise StudyError(
                f"study folder {self.folder} was begun with training.precision={known['precision']!r}, not {asked!r}; "
                "choose another folder."
            )
        return known["precision"]  # type: ignore[return-value]  # one of them, as `run` wrote it

    def _adopt(self) -> None:
        file = self.folder / "study.toml"
        if not file.is_file():
            return
        try:
            text = file.read_text(encoding="utf-8")
            there = StudySpec.from_toml(text, str(file))
        except ValueError:  # the store says whether the folder is this study's
            return
        if there.added and self._key(there) == self._key(self.spec):
            self.spec = self.spec.model_copy(update={"added": there.added})
            self._text = text

    def _unlike(self) -> str:
        """Up to three settings of the folder's spec that are not this one's; "" where it has none, or none that can be read."""
        try:
            there = StudySpec.from_toml((self.folder / "study.toml").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ""
        old, new = (_settings(spec.model_dump(mode="json", exclude=_NOT_OF_THE_RUNS)) for spec in (there, self.spec))
        found = [
            f"{name} = {old[name]!r}, not {new[name]!r}" if name in old and name in new else f"{name} differs"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
        more = [f"{len(found) - 3} more"] if len(found) > 3 else []
        return "".join(f", {text}" for text in found[:3] + more)

    def _write(self, spec: StudySpec) -> None:
        """Replaces study.toml at once: the text that is there, with what was added behind it."""
        file = self.folder / "study.toml"
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        new = spec.added[len(self.spec.added) :]
        text = text.rstrip("\n") + "\n" + spec.model_copy(update={"added": new}).to_toml(only="added")
        try:
            whole = StudySpec.from_toml(text) == spec
        except ValueError:  # written by hand in another way, or by an earlier version
            whole = False
        text = text if whole else spec.to_toml()
        replace_text(file, text)
        self.spec, self._text = spec, text

    def _to_add(self, wanted: list[tuple[float | Shape, float]], batch: str | None) -> list[AddedSpec]:
        spec = self.spec
        step = spec.training.batch_tokens
        places = Counter()  # type: Counter[tuple[Shape, int]]
        for size, D in wanted:
            shape = self._shape(size)
            tokens = max(2, round(D / step)) * step
            if abs(math.log(tokens / D)) > _FAR:
                warnings.warn(f"D={D:.4g} becomes {tokens}, whole steps of {step} tokens, two at least.", stacklevel=3)
            places[shape, tokens] += 1
        if batch is None:
            named = sorted((s.d_model, s.n_layer, s.n_head, s.d_ff, D, n) for (s, D), n in places.items())
            batch = hashlib.sha256(repr(named).encode()).hexdigest()[:8]
        if batch in {added.batch for added in spec.added}:
            return []
        taken: dict[tuple[int, int], int] = {}
        for entry in spec.sizes:
            taken[entry.d_model, entry.n_layer] = spec.seed + entry.seeds
        for earlier in spec.added:
            place = earlier.d_model, earlier.n_layer
            taken[place] = max(taken.get(place, spec.seed), earlier.first_seed + earlier.seeds)
        finished = self.runs if "finished" in read_table(self.folder, "runs")["status"] else None
        added = []
        for (shape, D), count in places.items():
            place = shape.d_model, shape.n_layer
            first = taken.get(place, spec.seed)
            taken[place] = first + count
            near = spec.nearest_size(shape.N)
            factor = near.rate_factors[len(near.rate_factors) // 2]
            if finished is not None:
                miss = [
                    abs(math.log(N / shape.N)) + abs(math.log(d / D))
                    for N, d in zip(finished.N, finished.D, strict=True)
                ]
                factor = float(finished["rate_factor"][miss.index(min(miss))])
            added.append(
                AddedSpec(
                    batch=batch, d_model=shape.d_model, n_layer=shape.n_layer, n_head=shape.n_head, d_ff=shape.d_ff, D=D,
                    seeds=count, first_seed=first, learning_rate=near.learning_rate, rate_factor=factor,
                )
            )  # fmt: skip
        return added

    def _shape(self, size: float | Shape) -> Shape:
        """The study's own shape near N, or the usual one."""
        spec, options = self.spec, self.spec.model.model_dump()
        if isinstance(size, Shape):
            return Shape(
                size.d_model, size.n_layer, size.n_head, size.d_ff, vocab_size=spec.corpus.vocab_size, **options
            )
        entries = [*spec.sizes, *(added.size for added in spec.added)]
        shapes = [spec.shape(entry, spec.corpus.vocab_size) for entry in entries]
        near = min(shapes, key=lambda shape: abs(math.log(shape.N / size)))
        if abs(math.log(near.N / size)) <= _SAME_SIZE:
            return near
        shape = shape_near(size, vocab_size=spec.corpus.vocab_size, **options)
        if abs(math.log(shape.N / size)) > _FAR:
            warnings.warn(f"N={size:.4g} becomes {shape.N}, the nearest shape's.", stacklevel=4)
        return shape

    @property
    def finished(self) -> bool:
        """Whether no run is left to train."""
        try:
            table = read_table(self.folder, "runs")
        except StudyError:  # killed before its tables were made, or never begun
            return False
        there = {added.fleet_id for added in self.spec.added} <= set(table["fleet_id"])
        return bool(table["status"]) and "pending" not in table["status"] and there

    @property
    def all_runs(self) -> Runs:
        """Every finished run."""
        table = read_table(self.folder, "runs", "WHERE status = 'finished' ORDER BY N, D, rate_factor, seed")
        if None in table["steps"]:  # of a run that was trained elsewhere
            del table["steps"]
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


def _wanted(runs: Any) -> tuple[list[tuple[float | Shape, float]], str | None]:
    """(N or shape, D) of the runs to add, and the name of the batch where they bring one."""
    pairs: list[tuple[Any, Any]]
    if hasattr(runs, "runs") and hasattr(runs, "key"):  # NextRuns
        pairs, batch = list(zip(runs.N.tolist(), runs.D.tolist(), strict=True)), str(runs.key)
    else:
        batch = None
        listed = isinstance(runs, Sequence) and not isinstance(runs, str)
        if listed and all(isinstance(run, Sequence) and len(run) == 2 for run in runs):
            pairs = [tuple(run) for run in runs]
        elif isinstance(runs, str) or (listed and not all(isinstance(run, Mapping) for run in runs)):
            raise ValueError(f"runs must be NextRuns, a table with columns N and D, or pairs (N, D), got {runs!r}.")
        else:
            table = Runs(runs, source="the runs to add")
            pairs = list(zip(table.N.tolist(), table.D.tolist(), strict=True))
    if not pairs:
        raise ValueError("runs holds no run to add.")
    for size, D in pairs:
        for name, value in (("D", D), *(() if isinstance(size, Shape) else (("N", size),))):
            if isinstance(value, bool | str) or not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} of a run to add must be finite and positive, got {value!r}.")
    return [(size if isinstance(size, Shape) else float(size), float(D)) for size, D in pairs], batch


def _with_losses(runs: Any) -> Runs | None:
    """A table of runs that were trained already; None of runs that are to be."""
    if (hasattr(runs, "runs") and hasattr(runs, "key")) or isinstance(runs, str):
        return None
    if isinstance(runs, Sequence) and not (runs and all(isinstance(run, Mapping) for run in runs)):
        return None
    table = Runs(runs, source="the runs to add")
    return table if "loss" in table else None


def _given_rows(runs: Runs, facts: Mapping[str, str], spec: StudySpec) -> list[dict[str, Any]]:
    """Rows of the runs table, named by what they hold, so that the same table is recorded once."""
    columns: dict[str, list[Any]] = {name: runs[name].tolist() for name in ("N", "D", "C", "loss")}
    columns |= {name: runs[name].tolist() for name in _KEPT if name in runs}
    alone = {
        "rate_factor": 1.0,
        "context": spec.model.context,
        "vocab_size": facts.get("vocab_size", spec.corpus.vocab_size),
    }
    rows, seen = [], Counter[str]()
    for values in zip(*columns.values(), strict=True):
        row = {name: None if value != value else value for name, value in zip(columns, values, strict=True)}
        name = GIVEN + hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()[:12]
        seen[name] += 1
        run_id = f"{name}-{seen[name]}"
        rows.append({**alone, **row, "run_id": run_id, "trunk_id": run_id, "fleet_id": name, "member": seen[name] - 1})
    return rows


_KEPT = (
    "d_model", "n_layer", "n_head", "d_ff", "context", "vocab_size", "learning_rate", "rate_factor", "batch_tokens", "steps",
    "seed", "N_total", "C_full", "wall_s",
)  # fmt: skip
