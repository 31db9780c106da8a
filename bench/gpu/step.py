"""Whole training steps: bits of the CUDA graph, loss curves beside plain PyTorch, time and memory.

python -P -m gpu.step curve-float32     # or curve-bfloat16, or a row of parts.STEPS
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpu.check import exactly, truncated
from gpu.child import (
    DEVICE,
    ON_CARD,
    WARM,
    Random,
    default_dtype,
    finish,
    free,
    named,
    names,
    peak_bytes,
    seconds_of,
    wall_seconds_a_step,
    why,
    write,
)
from gpu.parts import STEPS
from gpu.plain import plain_step
from pyscaling.accounting import Shape, flops_per_token
from pyscaling.kernels import reference
from pyscaling.models.fused import FusedTransformer
from pyscaling.models.transformer import FleetTransformer
from pyscaling.training.graph import GraphedStep
from pyscaling.training.optimizer import FleetAdamW, FusedAdamW


def recipe(d_model: int, n_layer: int, context: int, vocab_size: int) -> Shape:
    """As the presets train: RoPE, RMSNorm, QK-norm, no biases; heads of 64."""
    return Shape(
        d_model, n_layer, max(1, d_model // 64), context=context, vocab_size=vocab_size, position="rope", norm="rmsnorm",
        tied=False, bias=False, qk_norm=True,
    )  # fmt: skip


# ---- curves ---------------------------------------------------------------------------------------------------------


def curves(dtype: torch.dtype) -> None:
    """Fifty steps of the fused fleet beside the plain one, of the same seeds on the same batches.

    Rounding makes trainings drift apart. How far is seen on plain PyTorch itself, whose curve in this dtype is held against the
    same in float64: its error is the largest difference of any loss. A fused step may round three times as much (see
    check.py), and on tensor cores lose t = `truncated` of float32 sums:

        error of the fused fleet <= (3 + t / u) max(error of plain PyTorch, least)

    At least is the error that rounding a head's weights makes, alike for every token: u / sqrt(d) of a logit, and 4 units of
    float32, in which losses are kept; both by the size of the loss.
    """
    shape, n_member, n_sequence, n_step = (
        (recipe(128, 4, 256, 2048), 4, 8, 50) if ON_CARD else (recipe(16, 1, 12, 37), 2, 2, 4)
    )
    n_step = 1 if WARM else n_step
    random, u = Random(1), torch.finfo(dtype).eps / 2
    batches = [random.integers(shape.vocab_size, n_member, n_sequence, shape.context + 1) for _ in range(4)]
    rate = 3e-3
    rates = torch.full((n_member,), rate)
    start = FleetTransformer(shape, range(n_member), DEVICE).flat.detach().clone()

    def curve(model: FleetTransformer, update: Callable[[Tensor, int, float], Any], autocast: bool = False) -> Tensor:
        losses = []
        for step in range(n_step):
            with torch.autocast(DEVICE, dtype, enabled=autocast):
                loss = model.loss_and_gradient(batches[step % len(batches)])
            update(loss, step, min(1.0, (step + 1) / 5))
            losses.append(loss.clone())
        return torch.stack(losses).double()

    theirs = FleetTransformer(shape, range(n_member), DEVICE)
    plain = curve(theirs, FleetAdamW(theirs, rates).step, autocast=dtype != torch.float32)
    fused = FusedTransformer(shape, range(n_member), DEVICE, dtype)
    ours = curve(fused, FusedAdamW(fused, rates).step)
    with exactly(), default_dtype(torch.float64):
        double = FleetTransformer(shape, range(n_member), DEVICE)
        with torch.no_grad():
            double.flat.copy_(start)
        exact = curve(double, exact_adamw(double, rate))
    error, peer = float((ours - exact).abs().max()), float((plain - exact).abs().max())
    least = max(u / shape.d_model**0.5, 4 * torch.finfo(torch.float32).eps / 2) * float(exact.max())
    limit = (3 + truncated(dtype, n_sequence * shape.context) / u) * max(peer, least)
    write(
        what="loss curve", dtype=named(dtype), steps=n_step, d=shape.d_model, members=n_member, first=float(ours[0].mean()),
        last=float(ours[-1].mean()), last_plain=float(plain[-1].mean()), error=error, error_plain=peer, limit=limit,
        ok=error <= limit,
    )  # fmt: skip


def exact_adamw(model: FleetTransformer, rate: float) -> Callable[[Tensor, int, float], Tensor]:
    """FleetAdamW's step in float64, with its defaults."""
    n_member, device = model.n_member, model.device
    moments = torch.zeros_like(model.flat), torch.zeros_like(model.flat)
    settings = torch.tensor([rate, 0.9, 0.95, 1e-8, 0.1, 1.0], device=device).repeat(n_member, 1).T.contiguous()
    alive = torch.ones(n_member, dtype=torch.bool, device=device)
    failed = torch.full((n_member,), -1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(loss: Tensor, step: int, factor: float) -> Tensor:
        clock = torch.tensor([step, factor], device=device)
        return reference.adamw_step(
            model.flat, model.gradient, *moments, settings, clock, loss, alive, failed, model.n_decayed
        )

    return update


# ---- a step ---------------------------------------------------------------------------------------------------------


def step(name: str) -> None:
    d_model, n_layer, n_member, n_sequence, context = STEPS[name]
    shape, dtype = recipe(d_model, n_layer, context, 8192 if ON_CARD else 37), torch.bfloat16
    random = Random(2)
    batches = [random.integers(shape.vocab_size, n_member, n_sequence, context + 1) for _ in range(3)]

    def made() -> tuple[FusedTransformer, FusedAdamW]:
        model = FusedTransformer(shape, range(n_member), DEVICE, dtype)
        return model, FusedAdamW(model, torch.full((n_member,), 1e-3))

    model, optimizer = made()
    size = {"d": d_model, "layers": n_layer, "members": n_member, "rows": n_sequence * context, "context": context}
    if ON_CARD:
        graph_is_single_launches(size, model, optimizer, batches, *made())
        free()
        graphed = GraphedStep(model, optimizer, batches[0])
        seconds = seconds_of(graphed.replay, captured=True)
    else:
        write(what="graph", ok=True, note="no graph on a CPU", **size)
        seconds = wall_seconds_a_step(lambda i: optimizer.update(model.loss_and_gradient(batches[0])), 1)
    eager = wall_seconds_a_step(lambda i: optimizer.update(model.loss_and_gradient(batches[0])), 10)
    tokens = n_member * n_sequence * context
    # beside the model's own weights and moments: what a step keeps and frees
    memory = peak_bytes(lambda: optimizer.update(model.loss_and_gradient(batches[0])))
    row = {
        "what": "step", **size, "dtype": "bfloat16", "seconds": seconds, "launched_singly": eager,
        "tokens_per_s": tokens / seconds, "flops": flops_per_token(shape, "causal_full") * tokens, "step_bytes": memory,
        "state_bytes": 4 * model.flat.nbytes + (model.low.nbytes if model.low is not None else 0),
    }  # fmt: skip
    peers, failed = {}, {}
    for peer, compiled in (("eager", False), ("compile", True)):
        try:
            run = plain_step(shape, dtype, compiled=compiled)
            alone = batches[0][0]
            peers[peer] = n_member * wall_seconds_a_step(lambda i, run=run, alone=alone: run(alone), 10)
        except Exception as error:
            failed[peer] = why(error)
        free()
    write(**row, peers=peers, failed=failed)


def graph_is_single_launches(
    size: dict[str, int], model: FusedTransformer, optimizer: FusedAdamW, batches: list[Tensor],
    model2: FusedTransformer, optimizer2: FusedAdamW,
) -> None:  # fmt: skip
    """Six replays against six steps launched one by one: losses, norms and weights have the same bits."""
    graphed, same = GraphedStep(model, optimizer, batches[0]), []
    for i in range(6):
        batch, factor = batches[i % len(batches)], min(1.0, (i + 1) / 3)
        graphed.batch.copy_(batch)
        loss, norm = (t.clone() for t in graphed(i, factor))
        loss2 = model2.loss_and_gradient(batch)
        norm2 = optimizer2.step(loss2, i, factor)
        same.append(torch.equal(loss, loss2) and torch.equal(norm, norm2) and torch.equal(model.flat, model2.flat))
    finite = bool(loss.isfinite().all())
    write(what="graph", ok=all(same) and finite, same_bits=sum(same), of=len(same), loss=float(loss.mean()), **size)


if __name__ == "__main__":
    (name,) = names()
    if name.startswith("curve-"):
        curves(getattr(torch, name.removeprefix("curve-")))
    else:
        step(name)
    finish()
