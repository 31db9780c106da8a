"""Training of fleets: the loop, schedules, the optimiser and the gradient noise scale."""

from typing import TYPE_CHECKING, Any

from pyscaling.training.schedules import kaplan_learning_rate, rate_factor

if TYPE_CHECKING:
    from pyscaling.training.loop import Evaluation, FleetJob, train_fleet

__all__ = ["Evaluation", "FleetJob", "kaplan_learning_rate", "rate_factor", "train_fleet"]


def __getattr__(name: str) -> Any:
    """The loop is imported when it is asked for: what a study costs is told without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pyscaling.training import loop

    return getattr(loop, name)
