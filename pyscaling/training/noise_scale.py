"""The gradient noise scale of McCandlish et al. 2018, from gradients at two batch sizes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyscaling.models.transformer import FleetTransformer


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


def measure_noise_scale(model: FleetTransformer, batches: list[Tensor]) -> NoiseScale:
    """Measures the noise scale on k batches [M, B, T + 1]: each is a small batch, all together the big one."""
    tokens = batches[0][0, :, 1:].numel()
    total = torch.zeros_like(model.gradient)
    small_sq = torch.zeros(model.n_member, dtype=torch.float64, device=model.device)
    for batch in batches:
        model.loss_and_gradient(batch)
        small_sq += model.gradient.double().square().sum(1) / len(batches)
        total += model.gradient / len(batches)
    big_sq = total.double().square().sum(1)
    return noise_scale_from_norms(small_sq.cpu().numpy(), big_sq.cpu().numpy(), tokens, tokens * len(batches))
