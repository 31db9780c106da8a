"""Which batch to train with: the gradient noise scale, measured, or a published rule for the critical batch.

At B = B_crit a run needs twice the least steps and twice the least tokens (McCandlish et al. 2018, section 2.3).
B_crit = B* / L^(1/alpha_B) grows as the loss falls (Kaplan et al. 2020, eq. 1.4); the noise scale predicts it. Zhang et al. 2024
(arXiv:2410.21676) held N and D apart: the batch that takes 20 % more tokens than a small one grows with D and hardly with N,
and a loss, which falls with both, cannot say that. Their rule is the default here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyscaling.planning.rates import ZHANG_CONTEXT, ZHANG_EXPONENT, ZHANG_SEQUENCES
from pyscaling.units import check_positive, format_count

KAPLAN_B_STAR = 2.1e8  # tokens
KAPLAN_ALPHA_B = 0.21


@dataclass(frozen=True)
class BatchSize:
    """A batch in tokens, where the number comes from, and what another rule gives (rule, tokens); None beside one's own."""

    tokens: float
    source: str
    other: tuple[str, float] | None = None

    @property
    def said(self) -> str:
        beside = "" if self.other is None else f"; {self.other[0]} gives {format_count(self.other[1])}"
        return f"{self.source}{beside}"


def critical_batch(loss: Any, *, B_star: float = KAPLAN_B_STAR, alpha_B: float = KAPLAN_ALPHA_B) -> Any:
    """B_crit(L) = B* / L^(1/alpha_B) in tokens, loss in nats per token, a number or an array (Kaplan et al. 2020, eq. 1.4)."""
    return B_star / loss ** (1.0 / alpha_B)


def critical_batch_of_tokens(D: Any) -> Any:
    """B_crit(D) = 22.91 (D / 1e6)^0.47 sequences of 512 tokens, in tokens; D tokens of the run, a number or an array.

    Zhang et al. 2024 (arXiv:2410.21676), fitted on C4 to 85 M to 1.2 B parameters at 20 tokens each.
    """
    return ZHANG_SEQUENCES * ZHANG_CONTEXT * (D / 1e6) ** ZHANG_EXPONENT


def steps_and_tokens(batch: Any, B_crit: Any, S_min: Any) -> tuple[Any, Any]:
    """Steps S and tokens E to a loss with batches of `batch` tokens (McCandlish et al. 2018, eq. 2.11).

    S = S_min (1 + B_crit/B) and E = B S = E_min (1 + B/B_crit) with E_min = B_crit S_min, so that
    (S/S_min - 1)(E/E_min - 1) = 1; compute is C = C_min (1 + B/B_crit). Numbers or arrays; batch may be infinite.
    Raises ValueError for a B_crit or S_min that is not finite and positive, or a batch that is not positive.
    """
    B_crit = check_positive("B_crit", B_crit, "it is a batch in tokens")
    S_min = check_positive("S_min", S_min, "it counts optimiser steps")
    batch = np.asarray(batch, dtype=np.float64)
    if not np.all(batch > 0):
        raise ValueError(f"batch must be positive, got {batch}; it is in tokens.")
    return S_min * (1 + B_crit / batch), B_crit * S_min * (1 + batch / B_crit)


def choose_batch(loss: float, D: float, batch_tokens: float | None, noise_scale: Any, context: int) -> BatchSize:
    """The batch for a run that ends at `loss` after D tokens.

    batch_tokens: the user's own. noise_scale: a measured noise scale in tokens, or a mapping with arrays "loss" and
    "noise_scale" (rows of a study's store), continued to `loss` by the power law above. Otherwise B_crit(D) of Zhang et
    al. 2024, with Kaplan et al.'s B_crit(L) beside. Rounded to whole sequences; at least one, at most a hundredth of D.
    Raises ValueError for a batch or noise scale that is not finite and positive.
    """
    if batch_tokens is not None:
        check_positive("batch_tokens", batch_tokens)
        if batch_tokens > D:
            raise ValueError(
                f"batch_tokens={batch_tokens:g} is more than the run's D={D:.4g} tokens; give a smaller one."
            )
        return BatchSize(float(batch_tokens), "as given")
    other = None
    if noise_scale is None:
        tokens, source = (
            critical_batch_of_tokens(D),
            "B_crit(D) of Zhang et al. 2024, who find that it follows D, not N",
        )
        other = ("B_crit(L) of Kaplan et al. 2020", float(critical_batch(loss)))
    elif isinstance(noise_scale, Mapping):
        tokens, source = _continued(noise_scale, loss)
    else:
        check_positive("noise_scale", noise_scale)
        tokens, source = float(noise_scale), "the measured noise scale"
    most = max(D / 100, context)
    if tokens > most:
        tokens, source = most, f"{source}; capped at D/100, so that the run has 100 steps"
    return BatchSize(float(max(1, round(tokens / context)) * context), source, other)


def _continued(measured: Mapping[str, Any], loss: float) -> tuple[float, str]:
    """The noise scale at `loss` from measured pairs, by least squares of ln B on ln L where they show a trend."""
    for name in ("loss", "noise_scale"):
        if name not in measured:
            raise ValueError(f"noise_scale needs the column {name!r}; it has {', '.join(measured)}.")
    L, B = (np.asarray(measured[name], dtype=np.float64) for name in ("loss", "noise_scale"))
    usable = np.isfinite(L) & np.isfinite(B) & (L > 0) & (B > 0)  # the unbiased estimate of |G|^2 may be negative
    if not usable.any():
        raise ValueError("noise_scale has no row that is finite and positive; measure it with more batches.")
    x, y = np.log(L[usable]), np.log(B[usable])
    last = float(np.exp(np.median(y[np.argsort(x)[: max(1, len(x) // 4)]])))
    if len(x) < 8 or np.ptp(x) < np.log(1.1):
        return last, "the measured noise scale"
    slope, intercept = np.polyfit(x, y, 1)
    if not -25 < slope < 0:
        return last, "the measured noise scale at the lowest losses (it shows no trend)"
    reach = max(np.log(loss), x.min() - 0.5)  # beyond that a noisy slope says nothing
    return float(np.exp(intercept + slope * reach)), f"the measured noise scale, as L^{slope:.1f}"
