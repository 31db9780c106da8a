"""How budgets share a trunk: the steps between one branch and the next."""

from collections.abc import Sequence


def branch_segments(budgets: Sequence[int], batch_tokens: int, decay_fraction: float) -> list[tuple[int, int, int]]:
    """(steps of the trunk to take, steps of the branch, budget in steps) for each budget, ascending.

    decay_fraction: share of a budget that its branch decays over; 0 for no branch.
    """
    out, reached = [], 0
    for budget in budgets:
        steps = budget // batch_tokens
        decay = max(1, round(decay_fraction * steps)) if decay_fraction else 0
        out.append((steps - decay - reached, decay, steps))
        reached = steps - decay
    return out
