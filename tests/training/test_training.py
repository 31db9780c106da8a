"""Schedules, the optimiser, the noise scale, and a loop that branches and resumes to the same bits."""

import contextlib
import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyscaling.accounting import Shape
from pyscaling.models import FleetTransformer
from pyscaling.training import Evaluation, FleetJob, kaplan_learning_rate, rate_factor, train_fleet
from pyscaling.training.loop import _asked, _fingerprint, _model_and_optimizer
from pyscaling.training.noise_scale import noise_scale_from_norms
from pyscaling.training.optimizer import FleetAdamW

SHAPE = Shape(8, 1, 1, context=8, vocab_size=20, position="rope", tied=False, bias=False, qk_norm=True)
TOKENS = np.random.default_rng(0).integers(20, size=4000).astype(np.uint16)
EVALUATION = Evaluation("main", np.random.default_rng(1).integers(20, size=(6, 9)))


def job(**changes: object) -> FleetJob:
    plain: dict[str, object] = {
        "fleet_id": "f", "shape": SHAPE, "trunk_ids": ("a", "b"), "learning_rates": (0.01, 0.02), "seeds": (0, 1),
        "budgets": (640, 1280, 2560), "batch_tokens": 32, "warmup_steps": 5, "noise_batches": 2,
    }  # fmt: skip
    return FleetJob(**{**plain, **changes})  # type: ignore[arg-type]


def train(this: FleetJob, checkpoint: Path | None = None, stop_after: int | None = None, seconds: float = 1e9) -> dict:
    """Everything that the job emits but progress and wall clocks; it is cut off at the stop_after-th message."""
    rows, count = {}, 0

    def emit(kind: str, row: dict) -> None:
        nonlocal count
        if kind in ("progress", "checkpoint"):
            return
        count += 1
        if stop_after is not None and count > stop_after:
            raise KeyboardInterrupt
        rows[kind, *(str(row.get(k)) for k in ("run_id", "trunk_id", "tokens", "distribution"))] = {
            k: v for k, v in row.items() if k != "wall_s"
        }

    with contextlib.suppress(KeyboardInterrupt):
        train_fleet(this, TOKENS, [EVALUATION], emit=emit, checkpoint=checkpoint, checkpoint_seconds=seconds)
    return rows


def finals(rows: dict) -> dict[str, float]:
    return {row["run_id"]: row["loss"] for key, row in rows.items() if key[0] == "finished"}


def test_schedules() -> None:
    wsd = [rate_factor("wsd", s, 100, 10, 20) for s in range(100)]
    assert wsd[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert wsd[10:80] == [1.0] * 70
    assert np.all(np.diff(wsd[80:]) < 0)
    assert wsd[-1] == pytest.approx(1 / 21)
    assert rate_factor("cosine", 99, 100, 0) == pytest.approx(0.1, abs=1e-3)
    assert rate_factor("kaplan", 55, 100, 10) == pytest.approx(0.5, abs=1e-12)
    assert rate_factor("constant", 99, 100, 10) == 1.0


def test_kaplan_rate() -> None:
    """Their 1.5 B model: 0.003239 - 0.0001395 ln 1.5e9 = 2.9e-4."""
    assert kaplan_learning_rate(1.5e9) == pytest.approx(0.003239 - 0.0001395 * 21.1286, rel=1e-3)
    with pytest.raises(ValueError, match="no positive rate at N=1e"):
        kaplan_learning_rate(1e12)


def test_optimizer_against_torch() -> None:
    """Per member: torch's own AdamW and clipping; a member whose gradient is not finite stops where it stands."""
    rates, clip = [0.01, 0.02, 0.005], 0.5
    fleet = FleetTransformer(SHAPE, [0, 1, 2])
    ours = FleetAdamW(fleet, torch.tensor(rates), embedding_rate=3.0, clip=clip, weight_decay=0.1)
    cut = fleet.n_decayed
    parts = [[row[:cut].clone().requires_grad_(), row[cut:].clone().requires_grad_()] for row in fleet.flat.detach()]
    theirs = [
        torch.optim.AdamW(
            [{"params": [m], "lr": r, "weight_decay": 0.1}, {"params": [e], "lr": 3 * r, "weight_decay": 0.0}],
            betas=(0.9, 0.95),
        )
        for (m, e), r in zip(parts, rates, strict=True)
    ]
    for step in range(6):
        loss = fleet.loss_and_gradient(torch.randint(0, 20, (3, 2, 9), generator=torch.Generator().manual_seed(step)))
        gradient = fleet.gradient.clone()
        if step == 3:
            fleet.gradient[1, 0] = math.nan
        frozen = fleet.flat[1].clone()
        ours.step(loss, step, 1.0)
        for member, (matrices, rest) in enumerate(parts):
            if member == 1 and step >= 3:
                continue
            matrices.grad, rest.grad = gradient[member, :cut].clone(), gradient[member, cut:].clone()
            torch.nn.utils.clip_grad_norm_([matrices, rest], clip)
            theirs[member].step()
            torch.testing.assert_close(fleet.flat[member], torch.cat([matrices, rest]).detach(), rtol=1e-5, atol=1e-6)
        if step >= 3:
            assert torch.equal(fleet.flat[1], frozen)
    assert ours.alive.tolist() == [True, False, True]
    assert ours.failed_step.tolist() == [-1, 3, -1]


def test_noise_scale_is_unbiased() -> None:
    """Gradients G + noise of covariance Sigma / B: the estimates' means must be |G|^2 and tr(Sigma)."""
    generator = np.random.default_rng(0)
    G, sigma, small, k, trials = generator.standard_normal(50), np.linspace(1, 3, 50), 4, 8, 20_000
    gradients = G + generator.standard_normal((trials, k, 50)) * sigma / math.sqrt(small)
    small_sq = (gradients**2).sum(2).mean(1)
    big_sq = (gradients.mean(1) ** 2).sum(1)
    scale = noise_scale_from_norms(small_sq, big_sq, small, k * small)
    for estimate, truth in ((scale.grad_sq, G @ G), (scale.trace, (sigma**2).sum())):
        assert abs(estimate.mean() - truth) < 4 * estimate.std() / math.sqrt(trials)
    assert scale.noise_scale.shape == (trials,)


def test_branch_is_the_run_it_replaces() -> None:
    """Each budget off the shared trunk has the bits of a run that was made for that budget alone."""
    shared = finals(train(job()))
    for budget in (640, 1280, 2560):
        alone = finals(train(job(budgets=(budget,), noise_batches=0)))
        assert alone == {run: loss for run, loss in shared.items() if run.endswith(f"-D{budget}")}


def test_members_do_not_depend_on_each_other() -> None:
    both = finals(train(job()))
    alone = finals(train(job(trunk_ids=("b",), learning_rates=(0.02,), seeds=(1,))))
    assert alone == pytest.approx({run: loss for run, loss in both.items() if run.startswith("b")}, rel=1e-5)
    spoiled = finals(train(job(learning_rates=(0.01, 1e30))))
    assert spoiled == {run: loss for run, loss in both.items() if run.startswith("a")}


def test_bf16_follows_fp32() -> None:
    assert finals(train(job(precision="bf16"))) == pytest.approx(finals(train(job())), rel=5e-3)


@pytest.mark.parametrize("stop_after", [1, 7, 12, 19, 26])
def test_resume_to_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    whole = train(job())
    path = tmp_path / "f.safetensors"
    first = train(job(), path, stop_after=stop_after, seconds=0.0)
    second = train(job(), path)
    assert {**first, **second} == whole


def test_learning_happens() -> None:
    """A sequence that repeats with period 4 is learnt almost perfectly."""
    tokens = np.tile(np.array([3, 1, 4, 15], dtype=np.uint16), 1000)
    windows = np.stack([tokens[i : i + 9] for i in range(4)])
    rows: dict[str, float] = {}
    this = job(budgets=(6400,), learning_rates=(0.01, 0.02))
    train_fleet(
        this, tokens, [Evaluation("main", windows)], emit=lambda kind, row: rows.update({kind: row.get("loss")})
    )
    assert rows["finished"] < 0.05


def test_errors() -> None:
    with pytest.raises(ValueError, match="less than two steps of batch_tokens=32"):
        job(budgets=(32,))
    with pytest.raises(ValueError, match="depends on the horizon"):
        job(schedule="cosine")


def test_checkpoints_from_before_precision_was_auto_fit() -> None:
    """The fingerprint as it was written when fp32 was the default; on a GPU a job is another one."""
    plain = FleetJob("f", SHAPE, ("a", "b"), (0.01, 0.02), (0, 1), (640,), 32)
    whole = {name: value for name, value in asdict(plain.resolved("cpu")).items() if name != "backend"}
    written = json.dumps(whole, sort_keys=True)
    known = "95845d0e43ce28012f40b588c9e328ac35bb1449e9568501fe0e8e4f592a930f"
    assert hashlib.sha256(written.encode()).hexdigest() == known
    assert _asked(json.loads(written)) == json.loads(_fingerprint(plain.resolved("cpu")))
    assert _asked(json.loads(written)) != json.loads(_fingerprint(plain.resolved("cuda")))
    assert (
        plain.resolved("cuda").precision == "bf16"
        and replace(plain, precision="ieee").resolved("cuda").precision == "ieee"
    )


def test_ieee_reaches_every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches for sm_90 multiply float32 in three parts unless the job says otherwise; the setting is left as it was."""
    pytest.importorskip("triton")
    from pyscaling.kernels import launch as launching

    for precision in ("fp32", "ieee"):
        model, _ = _model_and_optimizer(job(precision=precision, backend="triton"), torch.device("meta"))
        modes: dict[str, Any] = {}
        with launching.compiled_for("sm_90"):
            launching.observers.append(
                lambda record: modes.update({record.kernel.fn.__name__: record.constants.get("DOT")})  # noqa: B023 - called here
            )
            try:
                tokens = torch.zeros(2, 4, 9, dtype=torch.int64, device="meta")
                model.loss_and_gradient(tokens)
                model.loss(tokens)
                model.hidden(tokens[:, :, :-1])
            finally:
                launching.observers.pop()
        assert modes.pop("embedding_backward_kernel") == "ieee"  # by a matrix of zeros and ones, exact
        assert set(modes.values()) - {None} == {"tf32x3" if precision == "fp32" else "ieee"}
    assert launching.dot_mode(torch.float32, "sm_90") == "tf32x3"
