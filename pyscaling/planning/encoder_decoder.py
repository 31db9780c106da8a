"""How to divide parameters between an encoder and a decoder (Ghorbani et al. 2021, arXiv:2109.07740).

Their law L = alpha (N_e0/N_e)^p_e (N_d0/N_d)^p_d + L_inf is, at N = N_e + N_d fixed, least where N_e / N = p_e / (p_e + p_d),
whatever N. Around it the loss hardly moves, so the region says more than the optimum.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyscaling.fitting.bootstrap import check_level
from pyscaling.fitting.result import Result, new_axes
from pyscaling.planning.batch import check_positive
from pyscaling.planning.identity import parameters_as
from pyscaling.planning.result import Quantity
from pyscaling.units import format_count

Array = NDArray[np.float64]


@dataclass(frozen=True)
class EncoderDecoderSplit(Result):
    """The best division of N parameters; intervals are of `level`.

    share: N_e / N. N_e, N_d: parameters of encoder and decoder. loss: there, of the curve, in nats per token.
    """

    N: float
    share: Quantity
    N_e: Quantity
    N_d: Quantity
    loss: Quantity
    level: float
    params: Mapping[str, float] = field(repr=False)

    def penalty(self, share: Any) -> Any:
        """L(share) / L(best) - 1 of other divisions, shares N_e / N between 0 and 1, a number or an array.

        Raises ValueError for a share outside.
        """
        x = np.asarray(share, dtype=np.float64)
        if not np.all((x > 0) & (x < 1)):
            raise ValueError(f"share must lie between 0 and 1, got {share!r}; it is N_e / N.")
        p = self.params
        best = p["p_e"] / (p["p_e"] + p["p_d"])
        ratio = np.expm1(p["p_e"] * np.log(best / x) + p["p_d"] * np.log((1 - best) / (1 - x)))
        loss = _loss(p, self.N, best)
        penalty = ratio * (1 - p["L_inf"] / loss)
        return penalty if penalty.ndim else float(penalty)

    def region(self, epsilon: float = 0.01) -> tuple[float, float]:
        """The shares N_e / N between which the loss is within a fraction `epsilon` of the best.

        Raises ValueError for an epsilon that is not finite and positive.
        """
        from scipy.optimize import brentq

        limit = float(check_positive("epsilon", epsilon, "it is a fraction of the loss"))
        best = self.params["p_e"] / (self.params["p_e"] + self.params["p_d"])

        def beyond(logit: float) -> float:
            return float(self.penalty(1 / (1 + math.exp(-logit)))) - limit

        middle, ends = math.log(best / (1 - best)), []
        for reach in (-30.0, 30.0):
            inside = beyond(reach) <= 0  # hardly: the loss without bound at both ends
            at = reach if inside else brentq(beyond, middle, reach, xtol=1e-13)
            ends.append(1 / (1 + math.exp(-at)))
        return ends[0], ends[1]

    def __str__(self) -> str:
        low, high = self.region(0.01)
        return (
            f"{format_count(self.N)} parameters, {self.level:.0%} intervals\n"
            f"  encoder share {self.share.value:.3f} [{self.share.low:.3f}, {self.share.high:.3f}]: N_e = "
            f"{format_count(self.N_e.value)}, N_d = {format_count(self.N_d.value)}, L = {self.loss}\n"
            f"  within 1 % of that loss: shares {low:.3g} to {high:.3g}; halves cost {self.penalty(0.5):.2%}"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"region": dict(zip(("low", "high"), self.region(0.01), strict=True))}

    def plot(self, ax: Any = None) -> Any:
        """Penalty in per cent against the encoder's share, with the optimum's interval; a matplotlib Axes."""
        ax = new_axes() if ax is None else ax
        share = np.linspace(0.02, 0.98, 193)
        low, high = self.region(0.01)
        ax.axvspan(low, high, color="0.92", lw=0, label="within 1 %")
        ax.plot(share, 100 * self.penalty(share), "k-", lw=1.2)
        error = [[max(0.0, self.share.value - self.share.low)], [max(0.0, self.share.high - self.share.value)]]
        ax.errorbar(
            self.share.value, 0, xerr=error, fmt="ok", mfc="w", capsize=4, label=f"best, {self.level:.0%} interval"
        )
        ax.set(xlabel="N_e / N", ylabel="loss above the best (%)", title=f"N = {format_count(self.N)}", xlim=(0, 1))
        ax.legend(fontsize=8)
        return ax


def encoder_decoder_split(
    fit: Any, N: float, *, level: float = 0.9, bootstrap: Any = 2000, seed: int = 0
) -> EncoderDecoderSplit:
    """The best encoder and decoder of N parameters together, with intervals from the fit's bootstrap.

    fit: of the law "encoder_decoder" over N_e, N_d (or a kaplan.KnownLaw). bootstrap: number of resamples, or a Bootstrap of
    this fit. Raises ValueError for another law, a bad N or level, and exponents that are not positive.
    """
    names = parameters_as(fit.law, "encoder_decoder")
    if names is None:
        raise ValueError(
            f"fit is of law {fit.law.name!r}; dividing parameters needs a fit of 'encoder_decoder' over N_e and N_d."
        )
    size = float(check_positive("N", N, "it counts parameters of encoder and decoder together"))
    check_level(level)
    estimate = {name: fit.params[own] for name, own in names.items()}
    for name in ("p_e", "p_d"):
        if not estimate[name] > 0:
            raise ValueError(
                f"{names[name]}={estimate[name]:g} of the fit is not positive, so one side should have no parameters at all; "
                "check fit.evidence, and that runs vary N_e and N_d apart."
            )
    boot = fit.bootstrap(bootstrap, seed=seed) if isinstance(bootstrap, int) else bootstrap

    def share(p: Mapping[str, Any]) -> Any:
        return p[names["p_e"]] / (p[names["p_e"]] + p[names["p_d"]])

    best = share(fit.params)
    low, high = boot.interval(share, level)
    low, high = max(low, 0.0), min(high, 1.0)
    with np.errstate(all="ignore"):  # a sample with an exponent at zero
        loss_low, loss_high = boot.interval(
            lambda p: _loss({name: p[own] for name, own in names.items()}, size, share(p)), level
        )
    return EncoderDecoderSplit(
        size,
        Quantity(best, low, high),
        Quantity(best * size, low * size, high * size),
        Quantity((1 - best) * size, (1 - high) * size, (1 - low) * size),
        Quantity(float(_loss(estimate, size, best)), loss_low, loss_high),
        level,
        estimate,
    )


def _loss(p: Mapping[str, Any], N: float, share: Any) -> Any:
    return p["L_inf"] + p["A"] / ((share * N) ** p["p_e"] * ((1 - share) * N) ** p["p_d"])
