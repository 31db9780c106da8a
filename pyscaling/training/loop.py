"""Trains one fleet: a trunk of constant rate and, off it, one decayed branch for each token budget.

A run of budget D shares the trunk with every other budget of its size and only pays for its own decay (WSD, Hu et al.
2024; Hägele et al. 2024). The whole job is a fixed sequence of steps, `done` of which have been taken, and every
batch is a function of (seed, step): a job resumed from a checkpoint goes on to the same bits.
"""

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyscaling.accounting import Shape
from pyscaling.data.batches import FleetBatches
from pyscaling.models.transformer import FleetTransformer
from pyscaling.training.feed import Feed
from pyscaling.training.graph import GraphedStep
from pyscaling.training.noise_scale import measure_noise_scale
from pyscaling.training.optimizer import FleetAdamW
from pyscaling.training.schedules import Schedule, rate_factor
from pyscaling.training.segments import branch_segments

Emit = Callable[[str, dict[str, Any]], None]
Backend = Literal["auto", "torch", "triton"]
Precision = Literal["auto", "fp32", "ieee", "bf16"]


@dataclass(frozen=True)
class Evaluation:
    """A distribution to evaluate on: windows [n, context + 1] of token ids, scored whole at the end of each run.

    curve_windows: how many of them, spread evenly, are scored along the learning curve.
    """

    name: str
    windows: np.ndarray
    curve_windows: int = 64


@dataclass(frozen=True)
class FleetJob:
    """One fleet of a study: M members of one shape, each trained to every budget.

    trunk_ids, learning_rates, seeds: one per member. budgets: tokens, ascending. schedule: "wsd" and "constant" share
    one trunk between the budgets; "cosine" and "kaplan" depend on the horizon and take one budget only.
    decay_fraction: share of a budget spent on the decay ("wsd"). noise_batches: small batches in a measurement of
    the gradient noise scale at each budget, 0 for none. backend: "torch", "triton", or "auto", triton where there is a GPU.
    precision of products: "bf16", "fp32" (kernels take three TF32 products for one on NVIDIA's cards, see `dot_mode`),
    "ieee", float32 multiplied as it stands, or "auto", see `resolved`; weights and sums are float32 in all.
    """

    fleet_id: str
    shape: Shape
    trunk_ids: tuple[str, ...]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    budgets: tuple[int, ...]
    batch_tokens: int
    schedule: Schedule = "wsd"
    warmup_steps: int = 50
    decay_fraction: float = 0.2
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    embedding_rate: float = 1.0
    noise_batches: int = 8
    points_per_octave: int = 2
    precision: Precision = "auto"
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        if not len(self.trunk_ids) == len(self.learning_rates) == len(self.seeds):
            raise ValueError("trunk_ids, learning_rates and seeds must hold one entry per member.")
        if list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError(f"budgets must be ascending and distinct, got {self.budgets}.")
        if self.budgets[0] < 2 * self.batch_tokens:
            raise ValueError(
                f"budget of {self.budgets[0]} tokens is less than two steps of batch_tokens={self.batch_tokens}; "
                "raise the budget or lower batch_tokens."
            )
        if self.schedule in ("cosine", "kaplan") and len(self.budgets) > 1:
            raise ValueError(f"schedule={self.schedule!r} depends on the horizon: make one job per budget.")

    @property
    def segments(self) -> list[tuple[int, int, int]]:
        """(steps of the trunk to take, steps of the branch, budget in steps) for each budget."""
        return branch_segments(self.budgets, self.batch_tokens, self.decay_fraction if self.schedule == "wsd" else 0.0)

    @property
    def total_steps(self) -> int:
        return sum(trunk + branch for trunk, branch, _ in self.segments)

    def resolved(self, device_type: str) -> "FleetJob":
        """The job with its precision decided: "auto" is bf16 on a GPU and fp32 elsewhere."""
        if self.precision != "auto":
            return self
        return replace(self, precision="bf16" if device_type == "cuda" else "fp32")

    def run_id(self, member: int, budget: int) -> str:
        return f"{self.trunk_ids[member]}-D{budget}"


@dataclass
class _Cursor:
    """Where a job stands: segment k, steps of its trunk and of its branch already taken, seconds spent so far."""

    segment: int = 0
    trunk: int = 0
    branch: int = 0
    in_branch: bool = False
    seconds: float = 0.0
    loss_count: int = 0


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; says which file and what to do."""


def train_fleet(
    job: FleetJob,
    tokens: np.ndarray,
    evaluations: Sequence[Evaluation],
    *,
    emit: Emit,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 15.0,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Trains a fleet from its beginning, or from its checkpoint, to its last budget.

    tokens: 1-d training tokens. evaluations: the first is the main one, whose loss a run reports. emit(kind, row) is
    called with "progress", "metric", "evaluation", "noise_scale", "finished" and "failed" rows (columns of the
    study's tables); a resumed job may repeat rows, always with the same values. It is called with "checkpoint" before a
    checkpoint is written, and must then return only when all rows before are stored. threads: of torch while it trains; small
    models want one, since two processes that both take every core wait for each other. Raises CheckpointError.
    """
    place = torch.device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        # graphs are captured on the current device
        with torch.cuda.device(place) if place.type == "cuda" else nullcontext():
            _Trainer(job, tokens, evaluations, emit, checkpoint, checkpoint_seconds, place).run()
    finally:
        torch.set_num_threads(before)


class _Trainer:
    def __init__(
        self,
        job: FleetJob,
        tokens: np.ndarray,
        evaluations: Sequence[Evaluation],
        emit: Emit,
        checkpoint: Path | None,
        checkpoint_seconds: float,
        device: torch.device,
    ) -> None:
        self.device = device
        job = job.resolved(self.device.type)
        self.job, self.emit, self.checkpoint, self.checkpoint_seconds = job, emit, checkpoint, checkpoint_seconds
        self.evaluations = evaluations
        self.batches = FleetBatches(tokens, context=job.shape.context, batch_tokens=job.batch_tokens, seeds=job.seeds)
        self.feed = Feed(self.batches, self.device) if self.device.type == "cuda" else None
        self.model, optimizer = _model_and_optimizer(job, self.device)
        self.fused = optimizer is not FleetAdamW
        self.graph: GraphedStep | None = None
        self.optimizer = optimizer(
            self.model,
            torch.tensor(job.learning_rates),
            beta1=job.beta1,
            beta2=job.beta2,
            weight_decay=job.weight_decay,
            clip=job.clip,
            embedding_rate=job.embedding_rate,
        )
        self.cursor = _Cursor()
        self.trunk: dict[str, Tensor] = {}  # the trunk's state while a branch runs
        self.loss_sum = torch.zeros(self.model.n_member, dtype=torch.float64, device=self.device)
        self.curve = _log_spaced(job.segments[-1][2], job.points_per_octave)

    def run(self) -> None:
        self._load()
        cursor, job = self.cursor, self.job
        self._clock, self._last_save, self._last_beat = time.perf_counter(), time.perf_counter(), 0.0
        reached = sum(trunk for trunk, _, _ in job.segments[: cursor.segment])
        while cursor.segment < len(job.segments):
            trunk, branch, steps = job.segments[cursor.segment]
            while cursor.trunk < trunk:
                self._trunk_step(reached + cursor.trunk, steps)
                cursor.trunk += 1
                self._beat()
            if not cursor.in_branch:
                if branch:
                    self.trunk = {name: tensor.detach().clone() for name, tensor in self.optimizer.state().items()}
                cursor.in_branch = True
                self._measure_noise(reached + trunk)
            while cursor.branch < branch:
                step = reached + trunk + cursor.branch
                self._step(step, rate_factor("wsd", step, steps, job.warmup_steps, branch))
                cursor.branch += 1
                self._beat()
            self._finish_budget(job.budgets[cursor.segment], steps)
            if branch:
                self.optimizer.load(self.trunk)
                self.trunk = {}
            reached += trunk
            cursor.segment, cursor.trunk, cursor.branch, cursor.in_branch = cursor.segment + 1, 0, 0, False
            self._beat(save=True)

    def _batch(self, step: int) -> Tensor:
        if self.feed is None:
            return torch.from_numpy(self.batches.batch(step))
        self.feed.send(step)
        return self.feed.batch()

    def _graphed(self) -> GraphedStep | None:
        """The step as graphs where they serve, from the first time that one is asked for."""
        if self.graph is None and self.fused and self.feed is not None:
            self.graph = GraphedStep(self.model, self.optimizer, self.feed)  # type: ignore[arg-type]  # both fused
        return self.graph

    def _step(self, step: int, factor: float) -> tuple[Tensor, Tensor]:
        graph = self._graphed()
        if graph is not None:
            return graph(step, factor)
        batch = self._batch(step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.job.precision == "bf16" and not self.fused):
            loss = self.model.loss_and_gradient(batch)
        return loss, self.optimizer.step(loss, step, factor)

    def _trunk_step(self, step: int, steps: int) -> None:
        job, cursor = self.job, self.cursor
        schedule: Schedule = "constant" if job.schedule == "wsd" else job.schedule
        factor = rate_factor(schedule, step, steps, job.warmup_steps)
        loss, norm = self._step(step, factor)
        self.loss_sum += loss
        cursor.loss_count += 1
        if step + 1 not in self.curve:
            return
        tokens = (step + 1) * job.batch_tokens
        losses, norms = (self.loss_sum / cursor.loss_count).tolist(), norm.tolist()
        scores = {e.name: self._evaluate(e, curve=True) for e in self.evaluations}
        for member, trunk_id in enumerate(job.trunk_ids):
            if not self._alive(member):
                continue
            rate = job.learning_rates[member] * factor
            self.emit(
                "metric",
                {
                    "trunk_id": trunk_id, "step": step + 1, "tokens": tokens, "train_loss": losses[member],
                    "learning_rate": rate, "grad_norm": norms[member],
                },
            )  # fmt: skip
            for name, (score, n_tokens) in scores.items():
                self.emit(
                    "evaluation",
                    {
                        "run_id": trunk_id,
                        "tokens": tokens,
                        "distribution": name,
                        "loss": score[member],
                        "n_tokens": n_tokens,
                    },
                )
        self.loss_sum.zero_()
        cursor.loss_count = 0

    @torch.no_grad()
    def _evaluate(self, evaluation: Evaluation, *, curve: bool = False) -> tuple[list[float], int]:
        """Mean loss of each member in nats per token, and the number of tokens scored."""
        windows = evaluation.windows
        if curve and len(windows) > evaluation.curve_windows:
            windows = windows[np.linspace(0, len(windows) - 1, evaluation.curve_windows).astype(int)]
        total = torch.zeros(self.model.n_member, dtype=torch.float64, device=self.device)
        n_sequence = max(1, self.job.batch_tokens // self.job.shape.context)
        for start in range(0, len(windows), n_sequence):
            block = torch.from_numpy(windows[start : start + n_sequence].astype(np.int64)).to(self.device)
            total += self.model.loss(block.expand(self.model.n_member, *block.shape)).double() * len(block)
        return (total / len(windows)).tolist(), windows.shape[0] * (windows.shape[1] - 1)

    def _measure_noise(self, step: int) -> None:
        job = self.job
        if not job.noise_batches:
            return
        graph = self._graphed()

        def differentiate(i: int) -> Tensor:
            if graph is not None:
                return graph.gradient(step + i)
            return self.model.loss_and_gradient(self._batch(step + i))

        scale = measure_noise_scale(self.model, differentiate, job.noise_batches, job.batch_tokens)
        losses, _ = self._evaluate(self.evaluations[0], curve=True)
        for member, trunk_id in enumerate(job.trunk_ids):
            if self._alive(member):
                ratio = float(scale.noise_scale[member])
                self.emit(
                    "noise_scale",
                    {
                        "trunk_id": trunk_id, "tokens": step * job.batch_tokens, "loss": losses[member],
                        "noise_scale": ratio if math.isfinite(ratio) else None, "grad_sq": float(scale.grad_sq[member]),
                        "trace": float(scale.trace[member]),
                    },
                )  # fmt: skip

    def _finish_budget(self, budget: int, steps: int) -> None:
        job = self.job
        scores = {e.name: self._evaluate(e) for e in self.evaluations}
        main = scores[self.evaluations[0].name][0]
        for member in range(self.model.n_member):
            run_id = job.run_id(member, budget)
            if not self._alive(member) or not math.isfinite(main[member]):
                at = int(self.optimizer.failed_step[member])
                reason = (
                    f"the loss or its gradient was not finite at step {at} of {steps}"
                    if at >= 0
                    else "the loss on the validation text is not finite"
                )
                self.emit(
                    "failed", {"run_id": run_id, "reason": f"{reason} (learning rate {job.learning_rates[member]:.3g})"}
                )
                continue
            for name, (score, n_tokens) in scores.items():
                self.emit(
                    "evaluation",
                    {
                        "run_id": run_id, "tokens": steps * job.batch_tokens, "distribution": name,
                        "loss": score[member], "n_tokens": n_tokens,
                    },
                )  # fmt: skip
            self.emit(
                "finished",
                {
                    "run_id": run_id, "D": steps * job.batch_tokens, "steps": steps, "loss": main[member],
                    "wall_s": self._seconds(),
                },
            )  # fmt: skip

    def _alive(self, member: int) -> bool:
        return bool(self.optimizer.alive[member])

    def _seconds(self) -> float:
        return self.cursor.seconds + time.perf_counter() - self._clock

    def _done(self) -> int:
        finished = sum(trunk + branch for trunk, branch, _ in self.job.segments[: self.cursor.segment])
        return finished + self.cursor.trunk + self.cursor.branch

    def _beat(self, *, save: bool = False) -> None:
        """Reports progress and saves a checkpoint, each when it is due."""
        now = time.perf_counter()
        if save or now - self._last_beat > 0.2:
            self._last_beat = now
            self.emit("progress", {"steps": self._done()})
        if self.checkpoint is not None and (save or now - self._last_save > self.checkpoint_seconds):
            self._last_save = now
            self.emit("checkpoint", {})  # what was reported must last before the checkpoint that is beyond it does
            self._save(self.checkpoint)

    def _save(self, path: Path) -> None:
        from safetensors.torch import save

        tensors = {f"now.{name}": tensor.detach() for name, tensor in self.optimizer.state().items()}
        tensors |= {f"trunk.{name}": tensor for name, tensor in self.trunk.items()}
        tensors["loss_sum"] = self.loss_sum
        cursor = {**asdict(self.cursor), "seconds": self._seconds()}
        payload = save(tensors, {"cursor": json.dumps(cursor), "job": _fingerprint(self.job)})
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(temporary, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CheckpointError(
                f"checkpoint {path} could not be written ({error.strerror}); what is finished is safe. "
                "Free some space and run the study again: it goes on from its last checkpoint."
            ) from error

    def _load(self) -> None:
        path = self.checkpoint
        if path is None or not path.exists():
            return
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            damaged = path.with_suffix(".damaged")
            os.replace(path, damaged)
            message = (
                f"checkpoint {path} is damaged ({error}); it is kept as {damaged.name}, finished runs are untouched, "
                "and the unfinished ones of this fleet start again from their beginning."
            )
            self.emit("warning", {"message": message})
            warnings.warn(message, stacklevel=2)
            return
        if _asked(json.loads(metadata["job"])) != json.loads(_fingerprint(self.job)):
            raise CheckpointError(
                f"checkpoint {path} belongs to another job; give this study a folder of its own, or delete the file."
            )
        state = {name.removeprefix("now."): t for name, t in tensors.items() if name.startswith("now.")}
        self.optimizer.load(state)
        self.trunk = {name.removeprefix("trunk."): t for name, t in tensors.items() if name.startswith("trunk.")}
        self.trunk = {name: tensor.to(self.device) for name, tensor in self.trunk.items()}
        self.loss_sum.copy_(tensors["loss_sum"])
        self.cursor = _Cursor(**json.loads(metadata["cursor"]))


def check_backend(backend: Backend, device_type: str) -> None:
    """Raises ValueError for "triton" on a device where kernels do not run."""
    if backend != "triton" or device_type == "cuda":
        return
    from pyscaling.kernels.launch import INTERPRETED

    if not INTERPRETED:
        raise ValueError(
            f'backend="triton" needs a GPU, this is {device_type}; take backend="torch", or set TRITON_INTERPRET=1 before Python '
            "starts, which runs the kernels slowly on any machine."
        )


def _model_and_optimizer(job: FleetJob, device: torch.device) -> tuple[FleetTransformer, type[FleetAdamW]]:
    if job.backend == "torch" or (job.backend == "auto" and device.type != "cuda"):
        return FleetTransformer(job.shape, job.seeds, device), FleetAdamW
    check_backend(job.backend, device.type)
    from pyscaling.models.fused import FusedTransformer
    from pyscaling.training.optimizer import FusedAdamW

    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    return FusedTransformer(job.shape, job.seeds, device, dtype, ieee=job.precision == "ieee"), FusedAdamW


def _fingerprint(job: FleetJob) -> str:
    return json.dumps(_asked(json.loads(json.dumps(asdict(job)))), sort_keys=True)


def _asked(job: dict[str, Any]) -> dict[str, Any]:
    """What a job asks for beside the defaults, so that a field that is added later leaves checkpoints theirs."""
    kept = {name: value for name, value in job.items() if name != "backend" and value != _DEFAULTS.get(name, MISSING)}
    if "shape" in kept:
        kept["shape"] = {n: v for n, v in kept["shape"].items() if v != _SHAPE_DEFAULTS.get(n, MISSING)}
    return kept


_DEFAULTS = {field.name: field.default for field in fields(FleetJob)}
_SHAPE_DEFAULTS = {field.name: field.default for field in fields(Shape)}


def _log_spaced(steps: int, per_octave: int) -> frozenset[int]:
    """Step counts spaced evenly in their logarithm, from 16 to `steps`."""
    count = max(1, round(per_octave * math.log2(max(2, steps / 16)))) + 1
    return frozenset(np.unique(np.geomspace(min(16, steps), steps, count).round().astype(int)).tolist())
