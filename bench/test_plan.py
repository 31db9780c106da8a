"""The planner: how fast a plan with 4,000-sample intervals is, and how often those intervals hold the truth.

    pytest bench/test_plan.py -s

Calibration: 1,000 studies at the design of the 240 points of Hoffmann et al. (N and D as digitised by Besiroglu et al. 2024),
whose truth is the law fitted to them, with Gaussian noise of 0.005 in log loss. Each is fitted and planned for ten times its
largest compute; the interval of N is held against the true optimum, that of the loss against a run made there, noise included.
"""

import statistics
import time
import warnings

import numpy as np
import pytest
from chinchilla_points import runs_240

import pyscaling as ps

SIMULATIONS, RESAMPLES, LEVEL, NOISE = 1000, 600, 0.9, 0.005
KINDS = {
    "compute": {"compute": 5.76e23},
    "time, data and serving": {
        "time": "3 days", "devices": 8, "device": "H100", "unique_tokens": "40B", "inference_tokens": "1T",
    },
    "the same, serving apart": {
        "time": "3 days", "devices": 8, "device": "H100", "unique_tokens": "40B", "inference_tokens": "1T", "serving_apart": True,
    },
    "goal": {"target_loss": 2.0},
    "goal, priced for serving": {"target_loss": 2.0, "inference_tokens": "10T"},
    "goal, with repeated data": {"target_loss": 2.2, "unique_tokens": "40B"},
    "goal, under a cap that binds": {"target_loss": 2.2, "max_tokens": "100B"},
    "serving apart, under a cap that binds": {
        "compute": 1e23, "unique_tokens": "40B", "inference_tokens": "1T", "serving_apart": True, "max_parameters": "10B",
    },
}  # fmt: skip


@pytest.mark.parametrize("law", ["chinchilla", "kaplan_ND_constant"])
@pytest.mark.parametrize("kind", KINDS)
def test_speed(kind: str, law: str) -> None:
    fit = ps.fit(runs_240(), law=law)
    fit.predict(N=1e9, D=2e10, n=4000)  # the bootstrap, which a fit keeps
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        ps.plan(fit, **KINDS[kind])
        seconds.append(time.perf_counter() - start)
    print(f"\n{kind}, {law}: {1e3 * statistics.median(seconds):.1f} ms, 4,000 samples")
    assert statistics.median(seconds) < 0.05


def test_calibration() -> None:
    design = runs_240()
    truth = ps.fit(design, law="chinchilla").params
    law = ps.Law("E + A/N**alpha + B/D**beta")
    log_loss = np.log(law.evaluate(truth, N=design.N, D=design.D))
    C = 10 * design.C.max()
    G = (truth["alpha"] * truth["A"] / (truth["beta"] * truth["B"])) ** (1 / (truth["alpha"] + truth["beta"]))
    N_best = G * (C / 6) ** (truth["beta"] / (truth["alpha"] + truth["beta"]))
    generator = np.random.default_rng(7)
    held = {"N": 0, "loss": 0}
    warnings.simplefilter("ignore")
    for seed in range(SIMULATIONS):
        noisy = np.exp(log_loss + NOISE * generator.standard_normal(len(log_loss)))
        plan = ps.plan(
            ps.fit(ps.Runs({"N": design.N, "D": design.D, "loss": noisy}), law="chinchilla"),
            C, level=LEVEL, bootstrap=RESAMPLES, seed=seed,
        )  # fmt: skip
        made = float(law.evaluate(truth, N=plan.N.value, D=plan.D.value)) * np.exp(NOISE * generator.standard_normal())
        held["N"] += plan.N.low <= N_best <= plan.N.high
        held["loss"] += plan.loss.low <= made <= plan.loss.high
    for name, count in held.items():
        print(
            f"\n{LEVEL:.0%} interval of {name}: holds the truth in {100 * count / SIMULATIONS:.1f} % of {SIMULATIONS}"
        )
        assert 0.88 <= count / SIMULATIONS <= 0.92
