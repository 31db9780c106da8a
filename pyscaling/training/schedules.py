"""Learning-rate schedules, as factors of the peak rate, and Kaplan's rule for the peak itself."""

import math
from typing import Literal

Schedule = Literal["wsd", "cosine", "constant", "kaplan"]


def rate_factor(schedule: Schedule, step: int, steps: int, warmup_steps: int, decay_steps: int = 0) -> float:
    """The rate of a step (0-based) as a share of the peak rate.

    steps: length of the whole run. "wsd": linear warmup, constant, then linear decay to zero over the last
    decay_steps (Hu et al. 2024). "cosine": warmup, then a half cosine to a tenth (Hoffmann et al. 2022). "kaplan":
    warmup, then a half cosine to zero (Kaplan et al. 2020). "constant": warmup alone.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule == "constant":
        return warmup
    if schedule == "wsd":
        return warmup * min(1.0, (steps - step) / (decay_steps + 1))
    floor = {"cosine": 0.1, "kaplan": 0.0}[schedule]
    progress = max(0, step - warmup_steps) / max(1, steps - warmup_steps)
    return warmup * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def kaplan_learning_rate(N: float) -> float:
    """LR(N) = 0.003239 - 0.0001395 ln N (Kaplan et al. 2020, eq. D.1); N non-embedding parameters.

    Raises ValueError outside the rule's range, where it would be negative.
    """
    rate = 0.003239 - 0.0001395 * math.log(N)
    if not rate > 0 or N < 1:
        raise ValueError(
            f"Kaplan's rule gives no positive rate at N={N:.3g} (valid below 1.2e10); give an explicit rate."
        )
    return rate
