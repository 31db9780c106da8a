"""The 240 points that most of the benchmarks of fitting use."""

from pathlib import Path

import numpy as np

import pyscaling as ps

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "epoch_chinchilla.csv"


def runs_240() -> ps.Runs:
    """The 240 published points, or where they are absent a synthetic table of the same design."""
    if DATA.exists():
        runs = ps.read_runs(DATA, columns={"N": "Model Size", "C": "Training FLOP"})
        return runs.select(np.sort(np.argsort(runs.loss)[:-5]))
    generator = np.random.default_rng(0)
    N = np.exp(generator.uniform(np.log(4e7), np.log(1.6e10), 240))
    D = np.exp(generator.uniform(np.log(5e8), np.log(1e12), 240))
    loss = (1.8 + 480 / N**0.35 + 2000 / D**0.366) * np.exp(0.008 * generator.standard_t(3, 240))
    return ps.Runs({"N": N, "D": D, "loss": loss})
