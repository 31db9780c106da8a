"""Cuts a grid into fleets: members of one shape train together, whatever their rate and seed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pyscaling.accounting import flops_per_token, parameter_count, training_flops
from pyscaling.data import open_corpus
from pyscaling.data.tokens import TokenSet, cache_folder
from pyscaling.study.executor import WorkItem
from pyscaling.study.spec import SizeSpec, StudySpec
from pyscaling.training.loop import FleetJob
from pyscaling.training.schedules import kaplan_learning_rate

# Seconds a training token costs on one core: measured here, used only to order fleets and to start the ETA.
_FLOPS_PER_SECOND = 4.5e10
_SECONDS_PER_TOKEN = 4e-6
_OTHERS_SHARE = 4  # distributions besides the main one are scored on a quarter of the tokens
_REFERENCE_WIDTH = 64  # d_model at which [training] learning_rate is stated


def plan_fleets(spec: StudySpec, folder: Path) -> tuple[list[WorkItem], list[dict[str, Any]], dict[str, Any]]:
    """Work items, rows of the runs table, and facts on the corpus, of a spec.

    Tokenizes the corpus if it is not in the cache. Raises ValueError if the corpus is too short for a batch.
    """
    main = open_corpus(
        spec.corpus.source,
        vocab_size=spec.corpus.vocab_size if spec.corpus.tokenizer == "bpe" else None,
        validation_fraction=spec.corpus.validation_fraction,
        seed=spec.corpus.split_seed,
        field=spec.corpus.field,
    )
    # one field for all: who has to name it made the others alike, or they are texts
    field = spec.corpus.field
    others = [
        open_corpus(source, main.tokenizer, seed=spec.corpus.split_seed, field=field, validation_only=True)
        for source in spec.corpus.evaluate_on
    ]
    vocab_size = main.tokenizer.vocab_size
    context = spec.model.context
    evaluations = tuple(
        (
            tokens.name,
            cache_folder() / tokens.key / "validation.npy",
            max(1, spec.evaluation.tokens // context // share),
            max(1, spec.evaluation.curve_tokens // context // share),
        )
        for tokens, share in [(main, 1), *((tokens, _OTHERS_SHARE) for tokens in others)]
    )
    items: list[WorkItem] = []
    rows: list[dict[str, Any]] = []
    for size in spec.sizes:
        for job, factors in _jobs(spec, size, vocab_size):
            items.append(
                WorkItem(
                    job=job,
                    train_file=cache_folder() / main.key / "train.npy",
                    evaluations=evaluations,
                    checkpoint=folder / "checkpoints" / f"{job.fleet_id}.safetensors",
                    cost=len(job.seeds)
                    * _estimated_seconds(spec, size, vocab_size, job.total_steps * job.batch_tokens),
                )
            )
            rows += [
                {
                    "run_id": job.run_id(member, budget), "trunk_id": job.trunk_ids[member], "fleet_id": job.fleet_id,
                    "member": member, "learning_rate": job.learning_rates[member], "rate_factor": factors[member],
                    "seed": job.seeds[member], **_describe_run(spec, size, vocab_size, budget),
                }
                for member in range(len(job.seeds))
                for budget in job.budgets
            ]  # fmt: skip
    _check_corpus_length(spec, main)
    return items, rows, _facts(main, others)


def plan_added(spec: StudySpec, folder: Path) -> tuple[list[WorkItem], list[dict[str, Any]]]:
    """Work items and rows of the runs that were added: a fleet for each shape and budget, its members the seeds."""
    if not spec.added:
        return [], []
    alone = spec.model_copy(update={"sizes": tuple(added.size for added in spec.added), "added": ()})
    planned, rows, _ = plan_fleets(alone, folder)  # one fleet, with its members' rows in order, for each
    items, renamed, left = [], [], iter(rows)
    for added, item in zip(spec.added, planned, strict=True):
        seeds = tuple(range(added.first_seed, added.first_seed + added.seeds))
        near = spec.nearest_size(item.job.shape.N)
        job = replace(
            item.job,
            fleet_id=added.fleet_id,
            trunk_ids=tuple(f"{added.fleet_id}-s{seed}" for seed in seeds),
            seeds=seeds,
            warmup_steps=min(spec.warmup_steps(added.size), spec.warmup_steps(near)),
        )
        items.append(replace(item, job=job, checkpoint=folder / "checkpoints" / f"{job.fleet_id}.safetensors"))
        for member, seed in enumerate(seeds):
            names = {"run_id": job.run_id(member, job.budgets[0]), "trunk_id": job.trunk_ids[member]}
            renamed.append(next(left) | names | {"fleet_id": job.fleet_id, "seed": seed})
    return items, renamed


def _jobs(spec: StudySpec, size: SizeSpec, vocab_size: int) -> list[tuple[FleetJob, list[float]]]:
    """The fleets of one size with the rate factor of each member: one, or one per budget if the schedule needs that."""
    training = spec.training
    shape = spec.shape(size, vocab_size)
    peak = _peak_rate(spec, size, shape.N)
    members = [(factor, seed) for factor in size.rate_factors for seed in range(spec.seed, spec.seed + size.seeds)]
    factors = [factor for factor, _ in members]
    budgets = spec.budgets(size)
    shared = training.schedule in ("wsd", "constant")
    jobs = []
    for group in [budgets] if shared else [(budget,) for budget in budgets]:
        name = f"d{shape.d_model}-l{shape.n_layer}" + ("" if shared else f"-D{group[0]}")
        job = FleetJob(
            fleet_id=name,
            shape=shape,
            trunk_ids=tuple(f"{name}-r{factor:g}-s{seed}" for factor, seed in members),
            learning_rates=tuple(peak * factor for factor in factors),
            seeds=tuple(seed for _, seed in members),
            budgets=group,
            batch_tokens=training.batch_tokens,
            schedule=training.schedule,
            warmup_steps=spec.warmup_steps(size),
            decay_fraction=training.decay_fraction,
            weight_decay=training.weight_decay,
            beta1=training.beta1,
            beta2=training.beta2,
            clip=training.clip,
            embedding_rate=training.embedding_rate,
            noise_batches=spec.evaluation.noise_batches,
            precision=training.precision,
            backend=training.backend,
        )
        jobs.append((job, factors))
    return jobs


def _peak_rate(spec: StudySpec, size: SizeSpec, N: int) -> float:
    if size.learning_rate is not None:
        return size.learning_rate
    if spec.training.learning_rate == "kaplan":
        return kaplan_learning_rate(N)
    return spec.training.learning_rate * (size.d_model / _REFERENCE_WIDTH) ** spec.training.learning_rate_exponent


def _check_corpus_length(spec: StudySpec, main: TokenSet) -> None:
    context = spec.model.context
    needed = spec.training.batch_tokens + context + 1
    if len(main.train) < needed:
        raise ValueError(
            f"corpus {spec.corpus.source!r} holds {len(main.train)} training tokens, shorter than one batch of "
            f"{spec.training.batch_tokens} (needs {needed}). Give more text, or lower training.batch_tokens or model.context."
        )
    if len(main.validation) < context + 1:
        raise ValueError(
            f"corpus {spec.corpus.source!r} holds {len(main.validation)} validation tokens, shorter than one window of "
            f"{context + 1}. Give more text, raise corpus.validation_fraction or lower model.context."
        )


def _facts(main: TokenSet, others: list[TokenSet]) -> dict[str, Any]:
    return {
        "corpus": main.name,
        "corpus_key": main.key,
        "skipped_files": main.skipped,
        "train_tokens": len(main.train),
        "validation_tokens": len(main.validation),
        "vocab_size": main.tokenizer.vocab_size,
        "bytes_per_token": main.bytes_per_token,
        "distributions": ",".join(tokens.name for tokens in (main, *others)),
    }


def _describe_run(spec: StudySpec, size: SizeSpec, vocab_size: int, budget: int) -> dict[str, Any]:
    """The columns of a run that its spec alone decides: shape, N, D and C by both conventions."""
    shape = spec.shape(size, vocab_size)
    return {
        "N": shape.N,
        "D": budget,
        "C": training_flops(shape.N, budget),
        "N_total": parameter_count(shape, "total"),
        "C_full": flops_per_token(shape, "full") * budget,
        "steps": budget // spec.training.batch_tokens,
        "batch_tokens": spec.training.batch_tokens,
        **{name: getattr(shape, name) for name in ("d_model", "n_layer", "n_head", "d_ff", "context", "vocab_size")},
    }


def _estimated_seconds(spec: StudySpec, size: SizeSpec, vocab_size: int, tokens: int) -> float:
    """A rough cost of training on a CPU core, to start the longest fleet first."""
    flops = flops_per_token(spec.shape(size, vocab_size), "full")
    return tokens * (flops / _FLOPS_PER_SECOND + _SECONDS_PER_TOKEN)
