"""A finished study that was never trained: a store filled from a known law with known noise."""

from pathlib import Path

import numpy as np

from pyscaling.accounting import Shape, flops_per_token, parameter_count
from pyscaling.study.spec import StudySpec
from pyscaling.study.store import Store, spec_key

TRUTH = {"E": 1.9, "A": 26.0, "alpha": 0.36, "B": 190.0, "beta": 0.39}
WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96)
BUDGETS = (200_000, 400_000, 800_000, 1_600_000, 2_400_000)
SPEC = """
name = "synthetic"
description = "A law with noise, & no training."
[training]
budgets = ["200k", "400k", "800k", "1600k", "2400k"]
batch_tokens = 512
[model]
context = 64
[[sizes]]
d_model = 8
n_layer = 2
n_head = 1
"""


def true_loss(N: float, D: float) -> float:
    return TRUTH["E"] + TRUTH["A"] / N ** TRUTH["alpha"] + TRUTH["B"] / D ** TRUTH["beta"]


def make_study(
    folder: Path, *, noise: float = 0.003, largest_off: float = 0.0, widths: tuple[int, ...] = WIDTHS, seeds: int = 3
) -> Path:
    """Fills `folder` with a study.

    The two smallest sizes have `seeds` seeds; the largest model's losses are off by a factor 1 + largest_off; one run
    of the smallest has failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    key = spec_key(StudySpec.from_toml(SPEC).model_dump_json())
    with Store(folder, SPEC, key) as store:
        store.set_facts(
            {"version": "test", "corpus": "synthetic", "train_tokens": 3_000_000, "vocab_size": 1024, "wall_s": 12.5}
        )
        for width in widths:
            shape = Shape(width, 2, max(1, width // 16), context=64, vocab_size=1024)
            for seed in range(seeds if width in widths[:2] else 1):
                trunk = f"d{width}-l2-r1-s{seed}"
                _trunk(store, trunk, shape.N, random)
                for D in BUDGETS:
                    off = 1 + (largest_off if width == widths[-1] else 0.0)
                    loss = true_loss(shape.N, D) * off * float(np.exp(noise * random.normal()))
                    row = {
                        "run_id": f"{trunk}-D{D}", "trunk_id": trunk, "fleet_id": f"d{width}-l2", "member": seed,
                        "N": shape.N, "D": D, "C": 6.0 * shape.N * D, "d_model": width, "n_layer": 2,
                        "n_head": shape.n_head, "d_ff": shape.d_ff, "context": 64, "vocab_size": 1024, "seed": seed,
                        "learning_rate": 5e-3, "rate_factor": 1.0, "batch_tokens": 512, "steps": D // 512,
                        "N_total": parameter_count(shape, "total"), "C_full": flops_per_token(shape, "full") * D,
                    }  # fmt: skip
                    store.add_runs([row])
                    store.record("finished", {"run_id": row["run_id"], "loss": loss, "wall_s": 0.5})
                    for distribution, worse in (("synthetic", 1.0), ("python-stdlib", 1.4)):
                        evaluation = {
                            "run_id": row["run_id"],
                            "tokens": D,
                            "distribution": distribution,
                            "n_tokens": 65536,
                        }
                        store.record("evaluation", evaluation | {"loss": loss * worse})
        failed = {"run_id": "d8-l2-r4-s0-D200000", "trunk_id": "d8-l2-r4-s0", "fleet_id": "d8-l2", "member": 9}
        store.add_runs([failed | {"N": 1536, "D": 200_000, "rate_factor": 4.0}])
        store.record("failed", {"run_id": failed["run_id"], "reason": "loss is NaN at step 17 <diverged>"})
        store.commit()
    return folder


def _trunk(store: Store, trunk: str, N: int, random: np.random.Generator) -> None:
    """A learning curve above the law, and a noise scale that grows as the loss falls."""
    for step in sorted({round(s) for s in np.geomspace(1, BUDGETS[-1] / 512, 60)}):
        loss = min(6.93, 1.02 * true_loss(N, step * 512)) * float(np.exp(0.01 * random.normal()))
        row = {"trunk_id": trunk, "step": step, "tokens": step * 512, "train_loss": loss, "learning_rate": 5e-3}
        store.record("metric", row | {"grad_norm": 1.0})
    for tokens in (100_000, 200_000, 400_000, 800_000, 1_600_000):
        loss = true_loss(N, tokens)
        scale = 4e6 * loss**-5.0 * float(np.exp(0.3 * random.normal()))
        row = {"trunk_id": trunk, "tokens": tokens, "loss": loss, "noise_scale": scale, "grad_sq": 1.0, "trace": scale}
        store.record("noise_scale", row)
