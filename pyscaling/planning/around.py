"""Around a plan: what other models cost in loss at the same budget, and what more data would be worth."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from pyscaling.planning.frontier import FLOPS_PER_PARAMETER_TOKEN, Frontier, region_bounds
from pyscaling.planning.result import Region, Worth
from pyscaling.units import check_positive


@dataclass(frozen=True)
class Around:
    """The curve L(N, D(N)) that a plan is the lowest point of, with `compute` FLOPs for training and serving.

    frontier: its models. point, samples: parameters of the law, name -> [1] and [R]. training: FLOPs, where those of
    training alone are what stays fixed. most_N: what limits allow at any compute. context: tokens, the least to be read.
    """

    frontier: Frontier
    point: Mapping[str, np.ndarray]
    samples: Mapping[str, np.ndarray]
    level: float
    N: float
    compute: float
    training: float | None
    most_N: float
    context: int

    def region(self, epsilon: float) -> Region:
        """Models whose loss is within a fraction epsilon of the best one's."""
        check_positive("epsilon", epsilon)
        along, fixed = self._fixed()
        best = along.loss_at(self.point, np.array([[self.N]]), fixed)[0, 0]
        low, high = along.low, along.high
        N_low, N_high = region_bounds(along, self.point, fixed, self.N, best * (1 + epsilon), low, high)
        D_low, D_high = (float(along.tokens(np.array(n), fixed)) for n in (N_high, N_low))
        return Region(epsilon, N_low, N_high, D_low, D_high, N_low <= low, N_high >= high)

    def isoflop(self, N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Loss of each N [K], and the ends of its interval."""
        along, fixed = self._fixed()
        curves = along.loss_at(self.samples, N[None], fixed)
        ends = np.nanquantile(curves, [0.5 - self.level / 2, 0.5 + self.level / 2], axis=0)
        return along.loss_at(self.point, N[None], fixed)[0], ends[0], ends[1]

    def with_more_data(self, tokens: float) -> Worth:
        repeats = self.frontier.repetition
        if repeats is None:
            return Worth(0.0, 1.0)
        better = replace(self.frontier, repetition=replace(repeats, unique_tokens=repeats.unique_tokens + tokens))
        here = self._loss(self.frontier, self.N)
        there = self._loss(better, float(better.best_N(self.point, self.compute)[0]))
        if there >= here * (1 - 1e-12):
            return Worth(0.0, 1.0)
        needed = float(replace(self.frontier, high=self.most_N).least_compute(self.point, there)[0][0])
        return Worth(here - there, needed / self.compute if np.isfinite(needed) else inf)

    def trained_alone(self) -> tuple[float, float]:
        """N and loss of the best run if nothing were served."""
        alone = self._unserved(self.compute)
        N = float(alone.best_N(self.point, self.compute)[0])
        return N, self._loss(alone, N)

    def _fixed(self) -> tuple[Frontier, float]:
        """What stays fixed where N is chosen otherwise: the models, and the budget."""
        if self.training is None:
            return self.frontier, self.compute
        return self._unserved(self.training), self.training

    def _unserved(self, compute: float) -> Frontier:
        high = min(self.most_N, compute / (FLOPS_PER_PARAMETER_TOKEN * self.context))
        return replace(self.frontier, inference_tokens=0.0, high=high)

    def _loss(self, frontier: Frontier, N: float) -> float:
        return float(frontier.loss_at(self.point, np.array([[N]]), self.compute)[0, 0])
