"""The gradient noise scale of McCandlish et al. 2018, from gradients at two batch sizes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyscaling.models.transformer import FleetTransformer

_PART = 2**22  # weights whose doubles are in memory at a time: 64 MiB with their squares


@dataclass(frozen=True)
class NoiseScale:
    """Per member, [M] each: grad_sq estimates |G|^2, trace estimates tr(Sigma) in units of one token's gradient.

    noise_scale = trace / grad_sq is B_simple in tokens, NaN where the estimate of |G|^2 is not positive.
    """

    grad_sq: np.ndarray
    trace: np.ndarray

    @property
    def noise_scale(self) -> np.ndarray:
        return np.divide(self.trace, self.grad_sq, out=np.full_like(self.trace, np.nan), where=self.grad_sq > 0)


def noise_scale_from_norms(small_sq: np.ndarray, big_sq: np.ndarray, small: int, big: int) -> NoiseScale:
    """Unbiased |G|^2 and tr(Sigma) from squared gradient norms at two batch sizes (McCandlish et al. 2018, eq. A.1).

    small_sq, big_sq: mean squared norm at batches of `small` and `big` tokens, arrays of one shape.
    """
    if not 0 < small < big:
        raise ValueError(f"batch sizes must satisfy 0 < small < big, got small={small}, big={big}.")
    grad_sq = (big * big_sq - small * small_sq) / (big - small)
    trace = (small_sq - big_sq) / (1 / small - 1 / big)
    return NoiseScale(grad_sq, trace)


def measure_noise_scale(
    model: FleetTransformer, differentiate: Callable[[int], object], n_batch: int, tokens: int
) -> NoiseScale:
    """Measures the noise scale on n_batch batches: each is a small one of `tokens` tokens, all together the big one.

    differentiate(i) leaves the gradient of batch i in `model.gradient`. Beside it one array of its size is held.
    """
    total = torch.zeros_like(model.gradient)
    small_sq = torch.zeros(model.n_member, dtype=torch.float64, device=model.device)
    for i in range(n_batch):
        differentiate(i)
        small_sq += _squared_norms(model.gradient) / n_batch
        total.add_(model.gradient, alpha=1 / n_batch)
    big_sq = _squared_norms(total)
    return noise_scale_from_norms(small_sq.cpu().numpy(), big_sq.cpu().numpy(), tokens, tokens * n_batch)


def _squared_norms(gradient: Tensor) -> Tensor:
    """[M] in float64 of [M, P]; doubles are formed of a part of a member at a time, whoever else there is."""
    sums = [
        sum((part.double().square().sum() for part in member.split(_PART)), torch.zeros((), device=gradient.device))
        for member in gradient
    ]
    return torch.stack(sums)
