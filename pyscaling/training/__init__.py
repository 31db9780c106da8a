"""Training of fleets: the loop, schedules, the optimiser and the gradient noise scale."""

from pyscaling.training.loop import Evaluation, FleetJob, train_fleet
from pyscaling.training.schedules import kaplan_learning_rate, rate_factor

__all__ = ["Evaluation", "FleetJob", "kaplan_learning_rate", "rate_factor", "train_fleet"]
