"""From a fit and what a user has and wants to a plan: the best N and D with intervals, batch, steps, shape, price."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np

from pyscaling.accounting import Shape, shape_near
from pyscaling.fitting.bootstrap import Bootstrap, check_level, interval_of
from pyscaling.fitting.groups import GroupFit, one_of
from pyscaling.fitting.isoflop import ComputeOptimal
from pyscaling.planning.around import Around
from pyscaling.planning.batch import choose_batch
from pyscaling.planning.budget import Budget, budget_of
from pyscaling.planning.device import Device
from pyscaling.planning.from_frontier import plan_along_frontier
from pyscaling.planning.frontier import FLOPS_PER_PARAMETER_TOKEN, SERVING_FLOPS, SMALLEST_N, Frontier, Repetition
from pyscaling.planning.identity import parameters_as
from pyscaling.planning.result import Plan, Quantity
from pyscaling.planning.text import verdict_of
from pyscaling.units import check_positive, format_count, parse_count, parse_memory

_LARGEST_N = 1e60
_NOTHING = 1e-4  # of the loss
_FAR = 4  # times beyond the runs, or below the largest of them
_MANY_EPOCHS = 4  # up to which repeated tokens are nearly as good as new ones (Muennighoff et al. 2023)


def plan(
    fit: Any,
    compute: float | str | None = None,
    *,
    gpu_hours: float | None = None,
    dollars: float | None = None,
    time: str | None = None,
    device: str | Device | None = None,
    devices: float | None = None,
    utilisation: float | None = None,
    price_per_gpu_hour: float | None = None,
    target_loss: float | None = None,
    target_gain: float | None = None,
    over: Mapping[str, Any] | None = None,
    unique_tokens: float | str | None = None,
    max_tokens: float | str | None = None,
    inference_tokens: float | str | None = None,
    serving_apart: bool = False,
    max_parameters: float | str | None = None,
    serving_memory: float | str | None = None,
    bytes_per_parameter: float = 2.0,
    repetition: tuple[float, float] | None = None,
    level: float = 0.9,
    bootstrap: Any = 4000,
    batch_tokens: float | None = None,
    noise_scale: Any = None,
    architecture: Mapping[str, Any] | None = None,
    group: Any = None,
    seed: int = 0,
) -> Plan:
    """Best N and D under every limit that is given, by any fitted law of N and D (and of unique tokens U).

    fit: of `ps.fit`; or an isoFLOP or an envelope, which answer for a budget and refuse goals and limits.

    **The budget**, in one unit or several, of which the tightest binds: compute, FLOPs or a text with a unit ("1e21",
    "3 PF-days"); gpu_hours of a `device` ("H100", or a planning.Device) at a `utilisation` of its peak (0.4 unless given);
    dollars at a price_per_gpu_hour, by default the device's list price (planning.DEVICES says whose and when); time, a text with
    a unit ("3 days"), on so many `devices`. It pays for 6ND of training and, with inference_tokens, for 2N of each token to be
    served, too (Sardana & Frankle 2024): the model gets smaller and is trained longer. With serving_apart the budget is
    training's alone, and the plan is the run of that budget which reaches its
    loss with the least compute of training and serving together.

    **Or a goal**: the least compute, hence time and money, for a target_loss in nats per token, or for a loss that lies
    target_gain below that of a run `over`, such as {"N": 7e10, "D": 1.4e12}. A budget beside a goal is a limit on it.

    **Limits**: unique_tokens, beyond which tokens repeat; what repetition costs is the law's affair if it knows U, and otherwise
    follows Muennighoff et al. 2023 with `repetition` = (R_D_star, R_N_star), theirs unless given. max_tokens: of training,
    repetitions included. max_parameters; serving_memory, bytes or a text ("80 GB"), that the weights must fit into at
    bytes_per_parameter. Counts may be texts: "40B".

    level: of all intervals. bootstrap: number of resamples, or a Bootstrap of this fit. batch_tokens: a batch to use;
    noise_scale: a measured gradient noise scale in tokens, or a mapping of columns "loss" and "noise_scale"; without either the
    batch follows Zhang et al. 2024, with Kaplan et al.'s beside. architecture: options of `accounting.shape_near` (context,
    vocab_size, mlp, ...). group: of a fit of several groups, the one to plan for, by its own and the shared parameters and
    the joint bootstrap.

    The plan's first line, and `verdict`, say whether the fit behind it is to be trusted; `warnings` how far it lies from any run.

    Raises ValueError that names the argument for a law without N or D, units that are missing or unknown, values that are
    not positive, a budget too small for any model, a loss that cannot be reached, and limits that contradict each other: which
    one binds, and by how much.
    """
    if isinstance(fit, ComputeOptimal):
        return plan_along_frontier(**locals())
    check_level(level)
    _check_fit(fit, bootstrap, seed)
    fit = one_of(fit, group)
    _check_law(fit, unique_tokens)
    budget = budget_of(compute, gpu_hours, dollars, time, device, devices, utilisation, price_per_gpu_hour)
    _check_goal(budget, target_loss, target_gain, over)
    if not isinstance(architecture, Mapping | None):
        raise ValueError(f"architecture must map options such as context to values, got {architecture!r}.")
    options = dict(architecture or {})
    context = _context(options)
    wide, N_limit = _limits(
        fit, context, unique_tokens, max_tokens, inference_tokens, max_parameters, serving_memory, bytes_per_parameter,
        repetition,
    )  # fmt: skip
    served, repeats = wide.inference_tokens, wide.repetition
    if not isinstance(serving_apart, bool):
        raise ValueError(f"serving_apart must be True or False, got {serving_apart!r}.")
    if serving_apart and (target_loss is not None or target_gain is not None):
        raise ValueError("serving_apart=True goes with a budget; a goal counts both kinds of compute. Leave one out.")
    if serving_apart and not served:
        raise ValueError("serving_apart=True says nothing without inference_tokens=; give it.")
    given = _Given.of(fit, bootstrap, seed, level, context)
    if target_loss is not None or target_gain is not None:
        best, needed = _least_compute(given, wide, budget, target_loss, target_gain, over)
    else:
        best, needed = (_training_alone if serving_apart else _spent)(given, wide, budget.compute), None
    N, D = best.N.value, best.D.value
    training = FLOPS_PER_PARAMETER_TOKEN * N * D
    spent = best.frontier.compute(N, D)
    resampled = {"n": bootstrap, "seed": seed} if isinstance(bootstrap, int) else {}
    loss = _predicted(fit, best.frontier, given.point, N, D, level, resampled)
    extrapolation = training / _largest_compute(fit)
    shape = shape_near(N, **options)
    fixed = training if serving_apart else None
    around = Around(
        best.frontier, given.point, given.samples, level, N, best.compute, fixed, wide.high, context
    )  # fmt: skip
    warned = (*_warnings(fit, N, D, extrapolation, best.share_at_edge, repeats), *_saturation(given, wide, best))
    return Plan(
        spent if spent < 0.999 * best.compute else best.compute,
        best.N,
        best.D,
        loss,
        choose_batch(loss.value, D, batch_tokens, noise_scale, shape.context),
        shape,
        level,
        fit.law.name,
        extrapolation,
        warned,
        floor=_floor(given, wide),
        budget=budget,
        needed=needed,
        inference_tokens=served,
        trained_alone=around.trained_alone() if served and not serving_apart and needed is None else None,
        serving_apart=serving_apart,
        unique_tokens=repeats.unique_tokens if repeats is not None else None,
        binding=_binding(
            budget, training if serving_apart else spent, {N_limit: (N, wide.high), "max_tokens": (D, wide.most_tokens)}
        ),
        dominant=_dominant(given.samples, best.N_samples),
        verdict=verdict_of(fit, warned),
        trustworthy=_trusted(fit),
        _around=around,
    )


@dataclass(frozen=True)
class _Given:
    """What a fit says: its parameters, name -> [1], and resamples of them, name -> [R]."""

    fit: Any
    point: Mapping[str, np.ndarray]
    samples: Mapping[str, np.ndarray]
    level: float
    degrees: int
    context: int

    @classmethod
    def of(cls, fit: Any, bootstrap: Any, seed: int, level: float, context: int) -> "_Given":
        point = {name: np.array([float(value)]) for name, value in fit.params.items()}
        if not isinstance(bootstrap, int):
            boot = fit.of_joint(bootstrap) if isinstance(fit, GroupFit) else bootstrap
            if set(boot.names) != set(point):
                raise ValueError(
                    f"bootstrap is of another law: it has {', '.join(boot.names)}, and {fit.law.name} {', '.join(point)}."
                )
        elif hasattr(fit, "_bootstrap_for_prediction"):
            boot = fit._bootstrap_for_prediction(bootstrap, None, seed, None)  # kept, for the next plan and for predict
        else:
            boot = fit.bootstrap(bootstrap, seed=seed)
        samples = dict(zip(boot.names, np.asarray(boot.samples).T, strict=True))
        return cls(fit, point, samples, level, boot.degrees, context)

    @property
    def size(self) -> int:
        return max(map(len, self.samples.values()))

    def quantity(self, value: float, drawn: np.ndarray) -> Quantity:
        low, high = interval_of(np.asarray(value), drawn, self.level, "t", self.degrees)
        return Quantity(float(value), float(low), float(high))


@dataclass(frozen=True)
class _Best:
    """The best run, and that of each sample. frontier: the models that `compute` can pay for."""

    frontier: Frontier
    compute: float
    N: Quantity
    D: Quantity
    N_samples: np.ndarray
    share_at_edge: float  # of samples without an optimum inside the range of possible models


def _least_compute(
    given: _Given, wide: Frontier, budget: Budget, target_loss: Any, target_gain: Any, over: Any
) -> tuple[_Best, Quantity]:
    """The cheapest run that reaches the goal, and the compute that it takes."""
    goals = [_goal(wide, params, target_loss, target_gain, over) for params in (given.point, given.samples)]
    value = float(goals[0][0])
    C, N = (float(array[0]) for array in wide.least_compute(given.point, goals[0]))
    if not np.isfinite(C):
        raise ValueError(_unreachable(given, wide, value))
    if budget.compute < C:
        raise ValueError(
            f"a loss of {value:.4f} needs {C:.4g} FLOPs by this fit, {C / budget.compute:.3g} times what "
            f"{budget.binding} allows ({budget.compute:.4g} FLOPs); raise it, or aim at a higher loss."
        )
    C_samples, N_samples = wide.least_compute(given.samples, goals[1], near=(C, N))
    return _best(given, wide, C, C_samples, N_samples, for_goal=True), given.quantity(C, C_samples)


def _spent(given: _Given, wide: Frontier, C: float) -> _Best:
    """The best run that C pays for."""
    return _best(given, wide, C, np.full(given.size, C), None)


def _training_alone(given: _Given, wide: Frontier, training: float) -> _Best:
    """Of the runs that take `training` FLOPs to train, the one whose loss no other reaches for less, serving included."""
    largest = FLOPS_PER_PARAMETER_TOKEN * wide.high * wide.most_tokens
    if largest <= training:  # both limits bind, and more than that cannot be spent
        C = wide.compute(wide.high, wide.most_tokens)
        return _best(given, wide, C, np.full(given.size, C), np.full(given.size, wide.high))
    C, N = (float(array[0]) for array in wide.total_for_training(given.point, training))
    if not np.isfinite(C):
        raise ValueError(
            f"no run spends {training:.3g} FLOPs on training under these limits: max_parameters, max_tokens and "
            f"unique_tokens leave the law no use for them. Leave serving_apart or a limit out."
        )
    return _best(given, wide, C, *wide.total_for_training(given.samples, training, near=(C, N)))


def _saturation(given: _Given, wide: Frontier, best: _Best) -> list[str]:
    """A warning where limits leave a part of the budget without use."""
    C, N, D = best.compute, best.N.value, best.D.value
    repeats = wide.repetition
    many = repeats is not None and _MANY_EPOCHS * repeats.unique_tokens < D
    if not many and wide.high * (1 - 1e-9) > N and wide.most_tokens * (1 - 1e-9) > D:
        return []
    half = wide.best_N(given.point, C / 2)
    loss, at_half = (
        float(wide.loss_at(given.point, np.array([[n]]), c)[0, 0]) for n, c in ((N, C), (float(half[0]), C / 2))
    )
    if at_half > loss * (1 + _NOTHING):
        return []
    enough = float(wide.least_compute(given.point, loss * (1 + _NOTHING), exact=False)[0][0])
    return [
        f"the limits on data and parameters leave most of this compute without use: {enough:.3g} FLOPs, {enough / C:.2g} of "
        f"it, lead within {_NOTHING:.2%} of this loss"
    ]


def _best(
    given: _Given, wide: Frontier, C: float, C_samples: np.ndarray, N_samples: np.ndarray | None, for_goal: bool = False
) -> _Best:
    """Raises ValueError where C pays for no model, or the best lies beyond any. N_samples: None for those best at C."""
    served, most_N = wide.inference_tokens, wide.high
    highest = C / (FLOPS_PER_PARAMETER_TOKEN * given.context + SERVING_FLOPS * served)  # at least one sequence is read
    _check_budget(C, highest, given.context, served, for_goal)
    frontier = replace(wide, high=min(highest, most_N))
    N = float(replace(wide, low=1e-6, high=min(C, most_N)).best_N(given.point, C)[0])
    if not SMALLEST_N <= N <= highest:
        raise ValueError(_no_optimum(given.fit, C, N, highest, given.context))
    if N_samples is None:
        N_samples = frontier.best_N(given.samples, C, near=N)
    most = np.minimum(C_samples / (C / highest), most_N)  # that read one sequence
    at_edge = (N_samples <= frontier.low * 1.001) | ((N_samples >= most * 0.999) & (most < most_N))
    D = given.quantity(float(frontier.tokens(np.array(N), C)), frontier.tokens(N_samples, C_samples))
    return _Best(frontier, C, given.quantity(N, N_samples), D, N_samples, float(np.mean(at_edge)))


def _check_fit(fit: Any, bootstrap: Any, seed: Any) -> None:
    if not all(hasattr(fit, name) for name in ("law", "params", "evaluate", "bootstrap")):
        raise ValueError(f"fit must be what ps.fit returns, or a planning.KnownLaw, got {fit!r}.")
    if not (isinstance(bootstrap, Bootstrap) or (isinstance(bootstrap, int) and bootstrap >= 2)):
        raise ValueError(f"bootstrap must be a number of resamples, 2 or more, or a Bootstrap, got {bootstrap!r}.")
    if not isinstance(seed, int):
        raise ValueError(f"seed must be a whole number, got {seed!r}.")


def _context(options: Mapping[str, Any]) -> int:
    try:
        return Shape(8, 1, 1, **options).context
    except (TypeError, ValueError) as error:
        if not isinstance(error, TypeError):
            raise ValueError(f"architecture={dict(options)!r}: {error}") from None
        known = "context, vocab_size, mlp, norm, position, tied, bias, qk_norm, rope_base"
        raise ValueError(f"architecture={dict(options)!r} has an option that is unknown; known are {known}.") from None


def _check_law(fit: Any, unique_tokens: Any) -> None:
    missing = [name for name in ("N", "D") if name not in fit.law.variables]
    if missing:
        raise ValueError(
            f"law={fit.law.name!r} has no {' and no '.join(missing)}, so it cannot divide a budget between N and D; "
            "fit a law of both, for example 'chinchilla' or 'kaplan_ND'."
        )
    extra = [name for name in fit.law.variables if name not in ("N", "D", "U")]
    if extra:
        raise ValueError(
            f"law={fit.law.name!r} also depends on {', '.join(extra)}; a plan needs a law of N and D, and perhaps U."
        )
    if "U" in fit.law.variables and unique_tokens is None and parameters_as(fit.law, "data_constrained") is None:
        raise ValueError(f"law={fit.law.name!r} depends on the unique tokens U; give unique_tokens=.")


def _check_goal(budget: Budget, target_loss: Any, target_gain: Any, over: Any) -> None:
    if target_loss is not None and target_gain is not None:
        raise ValueError("give target_loss or target_gain, not both: each is a goal.")
    for name, value in (("target_loss", target_loss), ("target_gain", target_gain)):
        if value is not None:
            check_positive(name, value)
    if target_gain is not None and (not isinstance(over, Mapping) or {"N", "D"} - set(over)):
        raise ValueError(f'target_gain needs over={{"N": ..., "D": ...}}, the run to be bettered; got over={over!r}.')
    if over is not None and target_gain is None:
        raise ValueError(f"over={over!r} says nothing without target_gain=; give it.")
    if not budget.limits and target_loss is None and target_gain is None:
        raise ValueError(
            "a plan needs a budget (compute, gpu_hours, dollars, or time and devices) or a goal (target_loss, target_gain)."
        )


def _limits(
    fit: Any,
    context: int,
    unique_tokens: Any,
    max_tokens: Any,
    inference_tokens: Any,
    max_parameters: Any,
    serving_memory: Any,
    bytes_per_parameter: float,
    repetition: Any,
) -> tuple[Frontier, str]:
    """The models that are allowed at any compute, and the name of the tightest limit on N."""
    served = parse_count("inference_tokens", inference_tokens) if inference_tokens is not None else 0.0
    most_tokens = parse_count("max_tokens", max_tokens) if max_tokens is not None else inf
    if most_tokens < context:
        raise ValueError(f"max_tokens={most_tokens:g} is less than one sequence of context={context} tokens.")
    check_positive("bytes_per_parameter", bytes_per_parameter)
    of_N = {}
    if max_parameters is not None:
        of_N["max_parameters"] = parse_count("max_parameters", max_parameters)
    if serving_memory is not None:
        of_N["serving_memory"] = parse_memory("serving_memory", serving_memory) / bytes_per_parameter
    name = min(of_N, key=of_N.__getitem__, default="")
    most_N = of_N.get(name, _LARGEST_N)
    if most_N < SMALLEST_N:
        raise ValueError(
            f"{name} allows {most_N:.3g} parameters, and the smallest transformer has {SMALLEST_N:.0f}; raise it."
        )
    repeats = None
    if unique_tokens is not None:
        repeats = Repetition(parse_count("unique_tokens", unique_tokens), *_checked_repetition(repetition))
    elif repetition is not None:
        raise ValueError(f"repetition={repetition!r} says nothing without unique_tokens=; give it.")
    return Frontier(fit.law, SMALLEST_N, min(most_N, _LARGEST_N), served, most_tokens, repeats), name


def _checked_repetition(repetition: Any) -> tuple[float, ...]:
    if repetition is None:
        return ()
    try:
        R_D_star, R_N_star = (float(value) for value in repetition)
    except (TypeError, ValueError):
        raise ValueError(f"repetition must be two numbers, (R_D_star, R_N_star), got {repetition!r}.") from None
    for name, value in (("R_D_star", R_D_star), ("R_N_star", R_N_star)):
        check_positive(f"repetition's {name}", value)
    return R_D_star, R_N_star


def _goal(frontier: Frontier, params: Mapping[str, Any], target_loss: Any, target_gain: Any, over: Any) -> np.ndarray:
    """The loss to be reached, [R]: a run to be bettered has each sample's own loss."""
    size = max(np.size(value) for value in params.values())
    if target_gain is None:
        return np.full(size, float(target_loss))
    N, D = (parse_count(f"over's {name}", over[name]) for name in ("N", "D"))
    loss = frontier.loss(params, np.array([[N]]), np.array([[D]]))[:, 0]
    if size == 1 and loss[0] <= target_gain:
        raise ValueError(f"target_gain={target_gain:g} exceeds the whole loss of over, {loss[0]:.4f}; give less.")
    return loss - float(target_gain)


def _unreachable(given: _Given, frontier: Frontier, target: float) -> str:
    floor = _floor(given, frontier)
    free = float(Frontier(frontier.law, 1.0, _LARGEST_N).least_loss(given.point)[0])
    limited = (
        f", and without the limits on data and parameters not below {free:.4f}" if free < floor.value - 1e-9 else ""
    )
    return (
        f"a loss of {target:.4f} is not reachable: by this fit no compute leads below {floor.value:.4f} "
        f"[{floor.low:.4f}, {floor.high:.4f}]{limited}. Aim at a higher loss"
        + (", or lift a limit." if limited else ".")
    )


def _floor(given: _Given, frontier: Frontier) -> Quantity:
    """The least loss of any compute; an interval wider than all of its samples says no more than they do."""
    drawn = frontier.least_loss(given.samples)
    floor = given.quantity(float(frontier.least_loss(given.point)[0]), drawn)
    finite = drawn[np.isfinite(drawn)]
    if not finite.size:
        return floor
    low, high = max(floor.low, float(finite.min())), min(floor.high, float(finite.max()))
    return Quantity(floor.value, min(low, floor.value), max(high, floor.value))


def _check_budget(C: float, highest: float, context: int, served: float, for_goal: bool) -> None:
    if highest < SMALLEST_N:
        least = SMALLEST_N * (FLOPS_PER_PARAMETER_TOKEN * context + SERVING_FLOPS * served)
        serving = f" and serving {served:.3g} tokens" if served else ""
        budget = f"this loss takes {C:.3g} FLOPs by the fit, which" if for_goal else f"compute={C:.3g} FLOPs"
        raise ValueError(
            f"{budget} is too small for any model: the smallest transformer, {SMALLEST_N:.0f} parameters "
            f"reading one sequence of {context} tokens{serving}, needs {least:.3g} FLOPs, {least / C:.3g} times as many. "
            + ("Aim at a lower loss." if for_goal else "Give a larger budget.")
        )


def _no_optimum(fit: Any, C: float, N: float, highest: float, context: int) -> str:
    if _trusted(fit):
        cause = f"is too small for any model: the best would have {N:.3g} parameters"
        remedy = "Give a larger budget, more unique tokens if they are few" + (
            ", or a shorter context." if highest < N else "."
        )
    else:
        cause = f"has no optimum by this fit: {'; '.join(fit.evidence.concerns)} (its best N would be {N:.3g})"
        remedy = "Mend the fit first, with more runs or a smaller law."
    return (
        f"compute={C:.3g} FLOPs {cause}; models range from N={SMALLEST_N:.0f} to {highest:.3g}, which reads one "
        f"sequence of context={context} tokens. {remedy}"
    )


def _predicted(
    fit: Any, frontier: Frontier, point: Any, N: float, D: float, level: float, resampled: Mapping[str, int]
) -> Quantity:
    """The loss of the run to be made; repeated tokens at what they are worth."""
    at = {"N": N, "D": D}
    repeats = frontier.repetition
    if "U" in fit.law.variables:
        at["U"] = repeats.unique_tokens if repeats is not None else 1e300
    elif repeats is not None:
        at = {
            name: float(value)
            for name, value in zip(
                ("N", "D"), repeats.effective(fit.law, {k: v[0] for k, v in point.items()}, N, D), strict=True
            )
        }
    predicted = fit.predict(level=level, kind="run", **resampled, **at)
    return Quantity(float(predicted.value), float(predicted.low), float(predicted.high))


def _binding(budget: Budget, paid: float, limits: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """The limits that the plan runs into; paid: what the budget is spent on, in FLOPs."""
    names = [budget.binding] if paid >= 0.98 * budget.compute else []
    return (*names, *(name for name, (value, most) in limits.items() if value >= most * (1 - 1e-9)))


def _largest_compute(fit: Any) -> float:
    """Of the fitted runs; infinite for a law that comes without any."""
    runs = getattr(fit, "runs", None)
    if runs is None:
        return inf
    return float(np.max(runs["C"] if "C" in runs.columns else FLOPS_PER_PARAMETER_TOKEN * runs["N"] * runs["D"]))


def _dominant(samples: Mapping[str, np.ndarray], N_samples: np.ndarray) -> tuple[str, float] | None:
    """The parameter with which ln N varies most over the samples, and the share of its variance that goes along."""
    with np.errstate(all="ignore"):
        y = np.log(N_samples)
    shares = {}
    for name, values in samples.items():
        usable = np.isfinite(y) & np.isfinite(values)
        if usable.sum() > 2 and np.ptp(values[usable]) > 0 and np.ptp(y[usable]) > 1e-12:
            shares[name] = float(np.corrcoef(values[usable], y[usable])[0, 1] ** 2)
    if not shares:
        return None
    name = max(shares, key=shares.__getitem__)
    return name, shares[name]


def _trusted(fit: Any) -> bool:
    return getattr(fit, "evidence", None) is None or fit.evidence.trustworthy


def _warnings(
    fit: Any, N: float, D: float, extrapolation: float, at_edge: float, repeats: Repetition | None
) -> list[str]:
    warnings: list[str] = []
    if not _trusted(fit):
        warnings.append(f"the fit itself is not to be trusted: {'; '.join(fit.evidence.concerns)}")
    if getattr(fit, "runs", None) is not None:
        warnings += _off_the_ground(fit.runs, N, D, extrapolation)
    if at_edge > 0.01:
        warnings.append(f"{at_edge:.0%} of the bootstrap samples have no optimum inside the range of possible models")
    if repeats is not None and repeats.unique_tokens * 1.001 < D:
        epochs = f"{D / repeats.unique_tokens:.3g} epochs of {format_count(repeats.unique_tokens)} unique tokens"
        source = "the law" if "U" in fit.law.variables else f"R_D* = {repeats.R_D_star:.3g}, measured on other data"
        warnings.append(
            f"{epochs}: beyond {_MANY_EPOCHS} what a repeated token is worth decides, and that follows {source}"
            if _MANY_EPOCHS * repeats.unique_tokens < D
            else f"{epochs}: up to {_MANY_EPOCHS} a repeated token is nearly as good as a new one (Muennighoff et al. 2023)"
        )
    return warnings


def _off_the_ground(runs: Any, N: float, D: float, extrapolation: float) -> Iterator[str]:
    """What lies far from every run that the law was fitted to."""
    for factor in (100, 10):
        if extrapolation > factor:
            yield (
                f"the budget is {extrapolation:.3g} x the largest compute in the data, more than {factor} x: "
                "intervals hold only if the law itself does"
            )
            break
    seen = {name: np.asarray(runs[name]) for name in ("N", "D")}
    for name, value, what, other in (("N", N, "models", "tokens"), ("D", D, "token counts", "parameters")):
        least, most = seen[name].min(), seen[name].max()
        if value > _FAR * most or value < least / _FAR:
            beyond, side = (value / most, "above") if value > most else (least / value, "below")
            yield f"the best {name} lies {beyond:.3g} x {side} the data's range, {format_count(least)} to {format_count(most)}"
        elif extrapolation >= 1 and value < most / _FAR:
            yield (
                f"the best {name}, {format_count(value)}, is {most / value:.3g} x smaller than the largest trained though the "
                f"budget is larger than any run's: the fit says that {what} of that size are wasted, and that {other} are short. "
                f"Runs near {name} = {format_count(value)} with more {other} would tell"
            )
    ratio, known = D / N, seen["D"] / seen["N"]
    if not known.min() <= ratio <= known.max():
        yield f"{ratio:.3g} tokens per parameter lie outside the data's range, {known.min():.3g} to {known.max():.3g}"
