"""Fits whose law, parameters and spread are known exactly, for the tests of this room."""

import types
from typing import Any

import numpy as np

from pyscaling import laws
from pyscaling.fitting.bootstrap import Bootstrap
from pyscaling.laws import Law
from pyscaling.tables import Runs

CHINCHILLA = {"E": 1.8172, "A": 477.8, "B": 2143.4, "alpha": 0.3473, "beta": 0.3672}
KAPLAN = {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103}


CHINCHILLA_LAW = laws.get("chinchilla")
# Chinchilla's law in other parameters, so that no closed form is known of it: B = b^2.
NUMERICAL_LAW = Law("E + A/N**alpha + b**2/D**beta", name="mine")
NUMERICAL = {name: value for name, value in CHINCHILLA.items() if name != "B"} | {"b": CHINCHILLA["B"] ** 0.5}
KAPLAN_LAW = laws.get("kaplan_ND")


def chinchilla(p: Any, N: Any, D: Any) -> Any:
    return p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"]


class KnownFit:
    """Stands for a fit: a law whose parameters, and their spread, are known exactly."""

    def __init__(
        self,
        law: Law,
        params: dict[str, float],
        *,
        spread: float = 0.02,
        trusted: bool = True,
    ) -> None:
        self.law, self.params = law, params
        self.evidence = types.SimpleNamespace(trustworthy=trusted, concerns=["it is made up"])
        N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 6)))
        self.runs = Runs({"N": N, "D": D})
        self.spread = spread

    def evaluate(self, params: Any = None, **variables: Any) -> Any:
        return self.law.evaluate(params or self.params, **variables)

    def bootstrap(self, n: int, *, seed: int = 0) -> Any:
        noise = np.random.default_rng(seed).normal(size=(n, len(self.params))) * self.spread
        samples = np.array(list(self.params.values())) * np.exp(noise)
        return Bootstrap(self.params, samples, np.zeros(n), np.ones(n, dtype=bool), degrees=30)

    def predict(self, *, level: float, kind: str, n: int = 0, seed: int = 0, **variables: float) -> Any:
        assert kind == "run"
        value = self.evaluate(**variables)
        return types.SimpleNamespace(value=value, low=0.97 * value, high=1.03 * value)
