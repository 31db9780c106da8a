"""Kaplan et al. 2020's own questions, with their published constants and with anyone's fit.

What compute-efficient training looks like at a budget; how far short of convergence it stops; how many tokens keep a model
from overfitting; and where their two laws of the loss, of compute and of data, contradict each other. "Kaplan et al. 2020"
is arXiv:2001.08361; compute is C_min in PF-days there, the least compute, spent by batches far below B_crit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyscaling import laws
from pyscaling.accounting import PF_DAY
from pyscaling.fitting.bootstrap import Bootstrap, check_level
from pyscaling.fitting.fit import Prediction
from pyscaling.fitting.result import Result, new_axes, text_table
from pyscaling.laws import Law
from pyscaling.planning.batch import critical_batch
from pyscaling.planning.identity import parameters_as
from pyscaling.planning.result import Quantity
from pyscaling.units import check_positive, format_count

Array = NDArray[np.float64]
PowerLaw = tuple[float, float]  # coefficient and exponent


class KnownLaw:
    """A law whose parameters are known, wherever a fit is asked for: the constants of a paper.

    law: a name or a Law. params: name -> value. Intervals from it have no width.
    Raises ValueError for a parameter that is missing, unknown or not finite.
    """

    def __init__(self, law: str | Law, params: Mapping[str, float]) -> None:
        self.law = laws.get(law)
        self.params = {name: float(value) for name, value in params.items()}
        for name in (*self.law.names, *self.params):
            if name not in self.params or name not in self.law.names:
                lack = "lack" if name not in self.params else "have the unknown name"
                raise ValueError(
                    f"params {lack} {name!r}; the parameters of {self.law.name} are {', '.join(self.law.names)}."
                )
            if not np.isfinite(self.params[name]):
                raise ValueError(f"params[{name!r}] must be finite, got {self.params[name]!r}.")

    def evaluate(self, params: Mapping[str, Any] | None = None, **variables: Any) -> Any:
        """The law at the known parameters, or at others."""
        return self.law.evaluate(self.params if params is None else params, **variables)

    def bootstrap(self, n: int = 2, *, seed: int = 0) -> Bootstrap:
        """Samples that are all the same."""
        ordered = {name: self.params[name] for name in self.law.names}
        return Bootstrap(ordered, np.tile(list(ordered.values()), (2, 1)), np.zeros(2), np.ones(2, dtype=bool), 1)

    def predict(self, **variables: Any) -> Prediction:
        """The law's value as an interval without width; level, kind, n and seed change nothing."""
        value = self.evaluate(**{name: x for name, x in variables.items() if name in self.law.variables})
        return Prediction(value, value, value, float(variables.get("level", 0.9)))

    def __repr__(self) -> str:
        return f"KnownLaw({self.law.name!r}: {', '.join(f'{k} = {v:.4g}' for k, v in self.params.items())})"


# Name of a law -> its published constants (tables 2-6); C of "kaplan_C" is C_min, in FLOPs.
KAPLAN_2020: Mapping[str, KnownLaw] = {
    name: KnownLaw(name, params)
    for name, params in {
        "kaplan_N": {"alpha_N": 0.076, "N_c": 8.8e13},
        "kaplan_D": {"alpha_D": 0.095, "D_c": 5.4e13},
        "kaplan_C": {"alpha_C": 0.050, "C_c": 3.1e8 * PF_DAY},
        "kaplan_ND": {"alpha_N": 0.076, "alpha_D": 0.103, "N_c": 6.4e13, "D_c": 1.8e13},
        "kaplan_NS": {"alpha_N": 0.077, "alpha_S": 0.76, "N_c": 6.5e13, "S_c": 2.1e3},
        "kaplan_B_crit": {"B_star": 2.1e8, "alpha_B": 0.21},
    }.items()
}


# ---- the frontier ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KaplanFrontier(Result):
    """Compute-efficient training at budgets C_min [n] in PF-days.

    N: non-embedding parameters; B: tokens, the critical batch; S_min: least steps, at B >> B_crit; D: tokens read at
    B = B_crit, where a run takes twice S_min; loss: nats per token.
    """

    C_min: Array
    N: Array
    B: Array
    S_min: Array
    D: Array
    loss: Array

    def __str__(self) -> str:
        head = ("C_min (PF-days)", "N", "B (tokens)", "S_min", "D (tokens)", "loss")
        columns = [np.atleast_1d(getattr(self, name)) for name in ("C_min", "N", "B", "S_min", "D", "loss")]
        rows = [
            (f"{C:.3g}", *map(format_count, (N, B, S, D)), f"{L:.3f}")
            for C, N, B, S, D, L in zip(*columns, strict=True)
        ]
        return "compute-efficient training by Kaplan et al. 2020\n" + text_table([head, *rows])

    def to_dict(self) -> dict[str, Any]:
        return {name: np.asarray(value).tolist() for name, value in vars(self).items()}

    def to_frame(self) -> Any:
        """A pandas DataFrame, one row per budget."""
        import pandas as pd

        return pd.DataFrame({name: np.atleast_1d(value) for name, value in vars(self).items()})

    def plot(self, ax: Any = None) -> Any:
        """N, B, S_min and D against C_min, each relative to the smallest budget: where added compute goes."""
        ax = new_axes() if ax is None else ax
        C = np.atleast_1d(self.C_min)
        for name, style in (("N", "-"), ("D", "--"), ("B", "-."), ("S_min", ":")):
            value = np.atleast_1d(getattr(self, name))
            ax.plot(C / C[0], value / value[0], style, color="black", lw=1.2, label=name)
        ax.set(xscale="log", yscale="log", xlabel="C_min, relative", ylabel="relative", title="where compute goes")
        ax.legend(fontsize=8)
        return ax


def kaplan_frontier(
    C_min: Any,
    *,
    N: PowerLaw = (1.3e9, 0.73),
    B: PowerLaw = (2.0e6, 0.24),
    S_min: PowerLaw = (5.4e3, 0.03),
    D: PowerLaw = (2e10, 0.27),
    L: PowerLaw = (3.1e8, 0.050),
) -> KaplanFrontier:
    """N, B, S_min, D and loss of compute-efficient training by the published power laws (Kaplan et al. 2020, table 6, fig. 14).

    C_min: PF-days, a number or an array. N, B, S_min, D: coefficient and exponent of c C_min^p; L: C_c and alpha_C of
    (C_c / C_min)^alpha_C. Raises ValueError for a budget that is not finite and positive.
    """
    C = check_positive("C_min", C_min, "it is a compute in PF-days")
    sizes, batches, steps, tokens = (c * C**p for c, p in (N, B, S_min, D))
    return KaplanFrontier(C, sizes, batches, steps, tokens, (L[0] / C) ** L[1])


def derived_frontier(
    C_min: Any,
    kaplan_NS: Mapping[str, float] | None = None,
    kaplan_B_crit: Mapping[str, float] | None = None,
) -> KaplanFrontier:
    """The same frontier derived from L(N, S_min) and B_crit(L) instead of fitted (Kaplan et al. 2020, appendix B).

    Minimises L(N, S_min) at C_min = 6 N B_crit(L) S_min, which gives L = (1 + alpha_N/alpha_S) L(N, inf) and
    L = (C_c / C_min)^alpha_C with 1/alpha_C = 1/alpha_S + 1/alpha_B + 1/alpha_N (eqs. 6.3, B.9). C_min: PF-days, a number or an
    array. kaplan_NS, kaplan_B_crit: parameters of these laws (fit.params), by default the published ones.
    Raises ValueError for a budget or a parameter that is not finite and positive.
    """
    C = check_positive("C_min", C_min, "it is a compute in PF-days")
    p = _published("kaplan_NS", kaplan_NS) | _published("kaplan_B_crit", kaplan_B_crit)
    alpha_N, alpha_S, alpha_B = p["alpha_N"], p["alpha_S"], p["alpha_B"]
    r = alpha_N / alpha_S
    alpha_C = 1 / (1 / alpha_S + 1 / alpha_B + 1 / alpha_N)
    log_C_c = np.log(6 * p["N_c"] * p["B_star"] * p["S_c"]) + np.log1p(r) * (1 / alpha_S + 1 / alpha_N)
    log_C_c -= np.log(r) / alpha_S  # in FLOPs
    loss = np.exp(alpha_C * (log_C_c - np.log(C * PF_DAY)))
    converged = loss / (1 + r)
    N = p["N_c"] / converged ** (1 / alpha_N)
    S = p["S_c"] / (r * converged) ** (1 / alpha_S)
    B = critical_batch(loss, B_star=p["B_star"], alpha_B=alpha_B)
    return KaplanFrontier(C, N, B, S, 2 * B * S, loss)


# ---- how far to train, and on how much -------------------------------------------------------------------------------


@dataclass(frozen=True)
class EarlyStopping(Result):
    """Where compute-efficient training of a model of N parameters stops.

    amount: steps S_min or tokens D, by the law's `variable`. loss: there; converged: L(N, inf); excess: the fraction by which
    loss exceeds it. Intervals are of `level`.
    """

    N: float
    variable: str
    amount: Quantity
    loss: Quantity
    converged: Quantity
    excess: Quantity
    level: float
    law: str

    def __str__(self) -> str:
        unit = "steps" if self.variable == "S" else "tokens"
        return (
            f"N = {format_count(self.N)} by {self.law}: stop {_percent(self.excess)} above the converged loss, after "
            f"{_said(self.amount, format_count)} {unit}, at L = {_said(self.loss)}; L(N, inf) = {_said(self.converged)}"
        )

    def to_dict(self) -> dict[str, Any]:
        return _plain(self)


def early_stopping(
    N: float, fit: Any = KAPLAN_2020["kaplan_NS"], *, level: float = 0.9, bootstrap: Any = 2000, seed: int = 0
) -> EarlyStopping:
    """How far short of convergence compute-efficient training of N parameters stops.

    fit: of a law of N and S or of N and D (or a KnownLaw). At fixed C = 6 N B S the loss is least where
    dL/dlnN = dL/dlnS; that B grows as the loss falls changes nothing to first order. For L(N, S) it follows that
    L = (1 + alpha_N/alpha_S) L(N, inf), 10 % above, at any N (Kaplan et al. 2020, eq. B.8); other laws are solved for S
    or D. bootstrap: number of resamples, or a Bootstrap of this fit.
    Raises ValueError for another law, a bad N or level, and a model that is never compute-efficient.
    """
    size = float(check_positive("N", N, "it counts parameters"))
    check_level(level)
    variable = _second_variable(fit, ("S", "D"))
    names = parameters_as(fit.law, "kaplan_NS")

    def amount(params: Mapping[str, Array]) -> Array:
        if names is not None:
            p = {name: params[own] for name, own in names.items()}
            r = p["alpha_N"] / p["alpha_S"]
            return p["S_c"] / (r * (p["N_c"] / size) ** p["alpha_N"]) ** (1 / p["alpha_S"])
        return _solve(lambda x: _slope_N(fit.law, params, size, variable, x), params)

    def value(params: Mapping[str, Array], at: Any) -> Array:
        return np.asarray(fit.law.evaluate(params, N=size, **{variable: at}))

    def excess(params: Mapping[str, Array]) -> Array:
        if names is not None:
            return params[names["alpha_N"]] / params[names["alpha_S"]]
        return value(params, amount(params)) / value(params, np.inf) - 1

    if not np.isfinite(amount(_scalars(fit))).all():
        raise ValueError(
            f"N={size:.3g} is compute-efficient at no {variable} by this fit of {fit.law.name}; check its evidence, "
            "or choose an N near its data."
        )
    boot = _bootstrap_of(fit, bootstrap, seed)
    quantity = _quantities(boot, level)
    return EarlyStopping(
        size,
        variable,
        quantity(amount),
        quantity(lambda p: value(p, amount(p))),
        quantity(lambda p: value(p, np.inf)),
        quantity(excess),
        level,
        fit.law.name,
    )


def stopping_step(
    N: Any,
    D: Any,
    kaplan_ND: Mapping[str, float] | None = None,
    kaplan_NS: Mapping[str, float] | None = None,
) -> Any:
    """The least number of steps before a run of N parameters on D unique tokens should stop early.

    S_stop >= S_c / (L(N, D) - L(N, inf))^(1/alpha_S) (Kaplan et al. 2020, eq. 5.7), S counted at B >> B_crit; N, D: numbers
    or arrays. kaplan_ND, kaplan_NS: parameters of these laws, by default the published ones.
    Raises ValueError for values that are not finite and positive.
    """
    N, D = check_positive("N", N, "it counts parameters"), check_positive("D", D, "it counts tokens")
    nd, ns = _published("kaplan_ND", kaplan_ND), _published("kaplan_NS", kaplan_NS)
    law = laws.get("kaplan_ND")
    excess = law.evaluate(nd, N=N, D=D) - law.evaluate(nd, N=N, D=np.inf)
    with np.errstate(divide="ignore"):  # beyond rounding D is infinite, and so is S
        steps = ns["S_c"] / excess ** (1 / ns["alpha_S"])
    return steps if np.ndim(steps) else float(steps)


@dataclass(frozen=True)
class TokenNeed(Result):
    """Tokens D, with an interval of `level`, from which on the loss of N parameters is within `epsilon` of L(N, inf)."""

    N: float
    epsilon: float
    D: Quantity
    level: float
    law: str

    def __str__(self) -> str:
        return (
            f"N = {format_count(self.N)} by {self.law}: {_said(self.D, format_count)} tokens "
            f"({self.D.value / self.N:.3g} per parameter) keep the loss within {self.epsilon:.2g} of L(N, inf)"
        )

    def to_dict(self) -> dict[str, Any]:
        return _plain(self)


def tokens_against_overfitting(
    N: float,
    fit: Any = KAPLAN_2020["kaplan_ND"],
    *,
    epsilon: float = 0.02,
    level: float = 0.9,
    bootstrap: Any = 2000,
    seed: int = 0,
) -> TokenNeed:
    """The D at which L(N, D) = (1 + epsilon) L(N, inf): with fewer tokens a model of N parameters is held back by data.

    fit: of any law of N and D (or a KnownLaw). Kaplan et al.'s gives D = D_c (N/N_c)^(alpha_N/alpha_D) /
    ((1 + epsilon)^(1/alpha_D) - 1): 5e3 N^0.74 at epsilon = 0.02, the scatter between their seeds (section 4.2, eq. 4.4).
    Raises ValueError for another law, a bad N, epsilon or level, and a fit by which no D is enough.
    """
    size = float(check_positive("N", N, "it counts parameters"))
    share = float(check_positive("epsilon", epsilon, "it is a fraction of the loss"))
    check_level(level)
    _second_variable(fit, ("D",))
    names = parameters_as(fit.law, "kaplan_ND")

    def tokens(params: Mapping[str, Array]) -> Array:
        if names is not None:
            p = {name: params[own] for name, own in names.items()}
            scale = p["D_c"] * (size / p["N_c"]) ** (p["alpha_N"] / p["alpha_D"])
            return scale / np.expm1(np.log1p(share) / p["alpha_D"])
        limit = (1 + share) * fit.law.evaluate(params, N=size, D=np.inf)
        return _solve(lambda x: fit.law.evaluate(params, N=size, D=np.exp(x)) - limit, params)

    if not np.isfinite(tokens(_scalars(fit))).all():
        raise ValueError(
            f"by this fit of {fit.law.name} the loss at N={size:.3g} passes (1 + {share:g}) L(N, inf) at no D between 1 and "
            "1e40; choose another epsilon, or check the fit's evidence."
        )
    boot = _bootstrap_of(fit, bootstrap, seed)
    return TokenNeed(size, share, _quantities(boot, level)(tokens), level, fit.law.name)


# ---- the contradiction -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contradiction(Result):
    """Where L(C_min) falls below what L(D(C_min)) allows: C in PF-days, N, D, loss in nats per token.

    sensitivity: name of a constant -> change of ln C per relative change of that constant, d ln C / d ln constant.
    """

    C: float
    N: float
    D: float
    loss: float
    sensitivity: Mapping[str, float]

    def __str__(self) -> str:
        shifts = ", ".join(f"{name} {0.01 * slope:+.2f}" for name, slope in self.sensitivity.items())
        return (
            f"L(C_min) meets L(D(C_min)) at C = {self.C:.2g} PF-days: N = {format_count(self.N)}, D = {format_count(self.D)} "
            f"tokens, L = {self.loss:.3g}\n  change of ln C for 1 % more of: {shifts}"
        )

    def to_dict(self) -> dict[str, Any]:
        return _plain(self)


def contradiction(
    *,
    L_C: PowerLaw = (3.1e8, 0.050),
    L_D: PowerLaw = (5.4e13, 0.095),
    D: PowerLaw = (2e10, 0.27),
    N: PowerLaw = (1.3e9, 0.73),
) -> Contradiction:
    """The budget beyond which compute-efficient training would beat what its data allow (Kaplan et al. 2020, section 6.3).

    L_C, L_D: scale and exponent of (C_c/C_min)^alpha_C and (D_c/D)^alpha_D; D, N: coefficient and exponent of c C_min^p. One
    law must break down before. Kaplan et al. quote C ~ 1e4 PF-days, N ~ 1e12, D ~ 1e12, L ~ 1.7. Their table's D = 2e10
    C^0.27 gives 1.1e4, 1.2e12, 2.5e11 and 1.67; D = 4e10 C^0.26, which their section 6.3 writes, gives C = 1.1e5 and
    L = 1.49. The curves part by alpha_C - 0.27 alpha_D = 0.024 only: 1 % more of alpha_C raises C by 23 %, 1 % more of
    alpha_D lowers it by 19 %.
    Raises ValueError for constants that are not positive, or if L(C_min) falls no faster than L(D(C_min)).
    """
    for name, pair in (("L_C", L_C), ("L_D", L_D), ("D", D), ("N", N)):
        check_positive(name, pair, "it is a coefficient and an exponent")
    (C_c, alpha_C), (D_c, alpha_D), (D_1, growth) = L_C, L_D, D
    gap = alpha_C - alpha_D * growth
    if gap <= 0:
        raise ValueError(
            f"L_C falls with exponent {alpha_C:g}, no faster than L(D(C_min)) with {alpha_D * growth:g}: the laws never "
            "contradict each other. Check the exponents of L_C, L_D and D."
        )
    x = (alpha_C * np.log(C_c) - alpha_D * np.log(D_c / D_1)) / gap
    slopes = {
        "alpha_C": alpha_C * (np.log(C_c) - x) / gap,
        "alpha_D": alpha_D * (growth * x - np.log(D_c / D_1)) / gap,
        "exponent of D": growth * alpha_D * x / gap,
        "C_c": alpha_C / gap,
        "D_c": -alpha_D / gap,
        "coefficient of D": alpha_D / gap,
    }
    C = float(np.exp(x))
    sensitivity = {name: float(slope) for name, slope in slopes.items()}
    return Contradiction(C, N[0] * C ** N[1], D_1 * C**growth, float((C_c / C) ** alpha_C), sensitivity)


# ---- shared ----------------------------------------------------------------------------------------------------------

_LOG_RANGE = (0.0, 40 * np.log(10))  # where steps and tokens are looked for
_STEP = 0.02


def _published(name: str, params: Mapping[str, float] | None) -> dict[str, float]:
    known = KAPLAN_2020[name] if params is None else KnownLaw(name, params)
    for parameter, value in known.params.items():
        check_positive(f"{name}[{parameter!r}]", value, "it is a constant of a falling law")
    return known.params


def _second_variable(fit: Any, allowed: tuple[str, ...]) -> str:
    others = [name for name in fit.law.variables if name != "N"]
    if "N" not in fit.law.variables or len(others) != 1 or others[0] not in allowed:
        raise ValueError(
            f"fit is of law {fit.law.name!r}, a function of {', '.join(fit.law.variables)}; this needs one of N and "
            f"{' or '.join(allowed)}, for example {' or '.join(repr(f'kaplan_N{name}') for name in allowed)}."
        )
    return others[0]


def _scalars(fit: Any) -> dict[str, Array]:
    return {name: np.asarray(value, dtype=np.float64) for name, value in fit.params.items()}


def _bootstrap_of(fit: Any, bootstrap: Any, seed: int) -> Bootstrap:
    return fit.bootstrap(bootstrap, seed=seed) if isinstance(bootstrap, int) else bootstrap


def _quantities(boot: Bootstrap, level: float) -> Callable[[Callable[[Mapping[str, Array]], Array]], Quantity]:
    def quantity(function: Callable[[Mapping[str, Array]], Array]) -> Quantity:
        estimate = {name: np.asarray(value) for name, value in boot.estimate.items()}
        with np.errstate(all="ignore"):  # a degenerate sample overflows; the interval leaves it out
            low, high = boot.interval(function, level)
            return Quantity(float(function(estimate)), low, high)

    return quantity


def _slope_N(law: Law, params: Mapping[str, Array], N: float, variable: str, x: Array) -> Array:
    """dL/dlnN - dL/dlnS at S = exp(x), by differences of fourth order: positive while steps pay better than parameters."""

    def derivative(move_N: bool) -> Array:
        total = np.zeros_like(x)
        for offset, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            shift = offset * _STEP
            at = x if move_N else x + shift
            total = total + weight * law.evaluate(
                params, N=N * np.exp(shift) if move_N else N, **{variable: np.exp(at)}
            )
        return total / (12 * _STEP)

    return derivative(True) - derivative(False)


def _solve(f: Callable[[Array], Array], params: Mapping[str, Array]) -> Array:
    """exp(x) where f falls through zero, one for each sample; NaN where it does not in the range."""
    shape = np.broadcast_shapes(*(np.shape(value) for value in params.values()))
    low, high = (np.full(shape, end) for end in _LOG_RANGE)
    with np.errstate(all="ignore"):
        bracketed = (f(low) > 0) & (f(high) < 0)
        for _ in range(70):
            middle = 0.5 * (low + high)
            above = f(middle) > 0
            low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(bracketed, np.exp(0.5 * (low + high)), np.nan)


def _said(quantity: Quantity, write: Callable[[float], str] = "{:.4g}".format) -> str:
    if np.isclose(quantity.low, quantity.high, rtol=1e-9):
        return write(quantity.value)
    return f"{write(quantity.value)} [{write(quantity.low)}, {write(quantity.high)}]"


def _percent(quantity: Quantity) -> str:
    return _said(quantity, "{:.1%}".format)


def _plain(result: Any) -> dict[str, Any]:
    return {k: dict(vars(v)) if isinstance(v, Quantity) else v for k, v in vars(result).items()}
