"""The bootstrap of a fit: every resample refitted, thousands a second."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pyscaling.fitting.fit import Fit


class Bootstrap:
    """Resampled fits.

    samples: [R, P], columns in the order of `names`, in the parameters' own units. objective_values: [R].
    converged: [R], whether each resample reached its minimum.
    """

    def __init__(
        self, names: list[str], samples: np.ndarray, objective_values: np.ndarray, converged: np.ndarray
    ) -> None:
        self.names, self.samples, self.objective_values, self.converged = names, samples, objective_values, converged

    @property
    def params(self) -> dict[str, np.ndarray]:
        """name -> [R]."""
        return dict(zip(self.names, self.samples.T, strict=True))

    def interval(
        self, quantity: str | Callable[[dict[str, np.ndarray]], np.ndarray], level: float = 0.95
    ) -> tuple[float, float]:
        """Percentile interval of a parameter, or of a function of the parameters' sample arrays."""
        _check_level(level)
        if isinstance(quantity, str):
            if quantity not in self.names:
                raise ValueError(f"{quantity!r} is not a parameter; those are {', '.join(self.names)}.")
            values = self.params[quantity]
        else:
            values = np.asarray(quantity(self.params))
        low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return (float(low), float(high)) if np.ndim(low) == 0 else (low, high)

    def standard_error(self, name: str) -> float:
        return float(np.std(self.params[name], ddof=1))

    def to_frame(self) -> Any:
        import pandas as pd

        return pd.DataFrame({**self.params, "objective": self.objective_values})

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        rows = [f"Bootstrap of {len(self)} resamples, 95 % percentile intervals"]
        for name in self.names:
            low, high = self.interval(name)
            rows.append(f"  {name:>8} {low:.5g} .. {high:.5g}")
        return "\n".join(rows)


def bootstrap(fit: "Fit", n: int, cluster: Any, seed: int, starts: int) -> Bootstrap:
    """Pairs bootstrap of a fit; see Fit.bootstrap."""
    if n < 2:
        raise ValueError(f"n must be at least 2 resamples, got {n}; 1,000 or more make a steady interval.")
    labels = (
        np.arange(len(fit.runs))
        if cluster is None
        else fit.runs[cluster]
        if isinstance(cluster, str)
        else np.asarray(cluster)
    )
    if labels.shape != (len(fit.runs),):
        raise ValueError(
            f"cluster must name a column or hold one label per run ({len(fit.runs)}), got shape {labels.shape}."
        )
    _, number = np.unique(labels, return_inverse=True)
    if number.max() < 1:
        raise ValueError("cluster puts every run into one cluster; a bootstrap needs at least two.")
    solved = fit.problem.solve(fit.restarts(starts), n_resample=n, cluster=number.astype(np.int64), seed=seed)
    return Bootstrap(
        fit.law.names,
        fit.problem.to_params(solved["theta"]),
        solved["value"] * fit.problem.objective_scale(),
        solved["status"] == 0,
    )


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}; 0.9 means a 90 % interval.")
