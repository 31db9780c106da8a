"""From a fit and a budget to a plan: the best N and D with intervals, batch, steps, shape, and how flat the optimum."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyscaling.accounting import Shape, parse_compute, shape_near
from pyscaling.planning.batch import choose_batch
from pyscaling.planning.frontier import FLOPS_PER_PARAMETER_TOKEN, best_N, loss_at, region_bounds
from pyscaling.planning.result import Plan, Quantity, Region

SMALLEST_N = 768.0  # one layer of width 8, the smallest shape of `shape_near`


def plan(
    fit: Any,
    compute: float | str,
    *,
    level: float = 0.9,
    bootstrap: Any = 4000,
    batch_tokens: float | None = None,
    noise_scale: Any = None,
    architecture: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Plan:
    """Best N and D for a training budget C = 6ND, by any fitted law of N and D.

    compute: FLOPs, or a text with a unit ("1e21", "3 PF-days"). level: of all intervals. bootstrap: number of
    resamples, or a Bootstrap of this fit. batch_tokens: a batch to use; noise_scale: a measured gradient noise scale
    in tokens, or a mapping of columns "loss" and "noise_scale"; without either the batch follows Kaplan et al.
    architecture: options of `accounting.shape_near` (context, vocab_size, mlp, ...).
    Raises ValueError for a law without N or D, a unit it does not know, and a budget too small for any model.
    """
    C = parse_compute(compute)
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level!r}.")
    missing = [name for name in ("N", "D") if name not in fit.law.variables]
    if missing:
        raise ValueError(
            f"law={fit.law.name!r} has no {' and no '.join(missing)}, so it cannot divide a budget between N and D; "
            "fit a law of both, for example 'chinchilla' or 'kaplan_ND'."
        )
    extra = [name for name in fit.law.variables if name not in ("N", "D")]
    if extra:
        raise ValueError(
            f"law={fit.law.name!r} also depends on {', '.join(extra)}; a plan needs a law of N and D alone."
        )
    options = dict(architecture or {})
    context = Shape(8, 1, 1, **options).context

    highest = C / FLOPS_PER_PARAMETER_TOKEN / context  # at least one sequence is read
    _check_budget(C, highest, context)
    point = {name: np.array([float(value)]) for name, value in fit.params.items()}
    N = float(best_N(fit.law, point, C, 1e-6, C)[0])
    if not SMALLEST_N <= N <= highest:
        if fit.evidence.trustworthy:
            cause = f"is too small for any model: the best would have {N:.3g} parameters"
            remedy = "Give a larger budget" + (" or a shorter context." if highest < N else ".")
        else:
            cause = f"has no optimum by this fit: {'; '.join(fit.evidence.concerns)} (its best N would be {N:.3g})"
            remedy = "Mend the fit first, with more runs or a smaller law."
        raise ValueError(
            f"compute={C:.3g} FLOPs {cause}; models range from N={SMALLEST_N:.0f} to {highest:.3g}, which reads one "
            f"sequence of context={context} tokens. {remedy}"
        )
    boot = fit.bootstrap(bootstrap, seed=seed) if isinstance(bootstrap, int) else bootstrap
    samples = dict(zip(boot.names, np.asarray(boot.samples).T, strict=True))
    N_samples = best_N(fit.law, samples, C, SMALLEST_N, highest)
    N_low, N_high = np.nanquantile(N_samples, [0.5 - level / 2, 0.5 + level / 2])
    D = C / (FLOPS_PER_PARAMETER_TOKEN * N)
    predicted = fit.predict(N=N, D=D, level=level, kind="run")
    loss = Quantity(float(predicted.value), float(predicted.low), float(predicted.high))

    extrapolation = C / float(np.max(fit.runs["C"] if "C" in fit.runs.columns else 6 * fit.runs["N"] * fit.runs["D"]))
    shape = shape_near(N, **options)
    at_edge = float(np.mean((N_samples <= SMALLEST_N * 1.001) | (N_samples >= highest * 0.999)))

    def region(epsilon: float) -> Region:
        if not (np.isfinite(epsilon) and epsilon > 0):
            raise ValueError(f"epsilon must be finite and positive, got {epsilon!r}.")
        best = loss_at(fit.law, point, np.array([[N]]), C)[0, 0]
        low, high = region_bounds(fit.law, point, C, N, best * (1 + epsilon), SMALLEST_N, highest)
        D_of = [C / (FLOPS_PER_PARAMETER_TOKEN * n) for n in (high, low)]
        return Region(epsilon, low, high, D_of[0], D_of[1], low <= SMALLEST_N, high >= highest)

    def isoflop(at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        curves = loss_at(fit.law, samples, at[None], C)
        low, high = np.nanquantile(curves, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return loss_at(fit.law, point, at[None], C)[0], low, high

    return Plan(
        C,
        Quantity(N, float(N_low), float(N_high)),
        Quantity(D, C / (FLOPS_PER_PARAMETER_TOKEN * float(N_high)), C / (FLOPS_PER_PARAMETER_TOKEN * float(N_low))),
        loss,
        choose_batch(loss.value, D, batch_tokens, noise_scale, shape.context),
        shape,
        level,
        fit.law.name,
        extrapolation,
        tuple(_warnings(fit, N, D, extrapolation, at_edge)),
        _region=region,
        _isoflop=isoflop,
    )


def _check_budget(C: float, highest: float, context: int) -> None:
    if highest < SMALLEST_N:
        raise ValueError(
            f"compute={C:.3g} FLOPs is too small for any model: the smallest transformer, {SMALLEST_N:.0f} parameters "
            f"reading one sequence of {context} tokens, needs "
            f"{FLOPS_PER_PARAMETER_TOKEN * SMALLEST_N * context:.3g} FLOPs. Give a larger budget."
        )


def _warnings(fit: Any, N: float, D: float, extrapolation: float, at_edge: float) -> list[str]:
    warnings = []
    if not fit.evidence.trustworthy:
        warnings.append(f"the fit itself is not to be trusted: {'; '.join(fit.evidence.concerns)}")
    for factor in (100, 10):
        if extrapolation > factor:
            warnings.append(
                f"the budget is {extrapolation:.3g} x the largest compute in the data, more than {factor} x: "
                "intervals hold only if the law itself does"
            )
            break
    for name, value in (("N", N), ("D", D)):
        column = np.asarray(fit.runs[name])
        for beyond in (value / column.max(), column.min() / value):
            if beyond > 10:
                side = "above" if value > column.max() else "below"
                warnings.append(f"the best {name} lies {beyond:.3g} x {side} the data's range")
    ratio, seen = D / N, np.asarray(fit.runs["D"]) / np.asarray(fit.runs["N"])
    if not seen.min() <= ratio <= seen.max():
        warnings.append(
            f"{ratio:.3g} tokens per parameter lie outside the data's range, {seen.min():.3g} to {seen.max():.3g}"
        )
    if at_edge > 0.01:
        warnings.append(f"{at_edge:.0%} of the bootstrap samples have no optimum inside the range of possible models")
    return warnings
