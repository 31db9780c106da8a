"""Planning: from a fit to a decision. `plan` finds what to train; `next_runs` what to train to know it better.

Beside them: time against compute (`time_compute`, `batch_ramp`), devices (`memory`, `best_shape`, `StepTime`), two laws
(`overtake`), Kaplan et al.'s questions, and the split of an encoder-decoder.
"""

from pyscaling.fitting.groups import GroupFit
from pyscaling.planning.allocate import plan
from pyscaling.planning.batch import BatchSize, critical_batch, critical_batch_of_tokens, steps_and_tokens
from pyscaling.planning.budget import Budget
from pyscaling.planning.design import NextRuns, next_runs
from pyscaling.planning.device import (
    DEVICES,
    BestShape,
    CarriedStepTime,
    Device,
    Memory,
    StepTime,
    best_shape,
    good_shapes,
    largest_shape,
    memory,
    serving_memory,
)
from pyscaling.planning.encoder_decoder import EncoderDecoderSplit, encoder_decoder_split
from pyscaling.planning.from_frontier import FrontierPlan
from pyscaling.planning.kaplan import (
    KAPLAN_2020,
    KnownLaw,
    contradiction,
    derived_frontier,
    early_stopping,
    kaplan_frontier,
    stopping_step,
    tokens_against_overfitting,
)
from pyscaling.planning.overtake import Overtake, overtake
from pyscaling.planning.rates import LearningRateAndBatch, learning_rate_and_batch
from pyscaling.planning.result import Plan, Quantity, Region
from pyscaling.planning.time import BatchRamp, TimeCompute, batch_ramp, time_compute

__all__ = [
    "DEVICES", "KAPLAN_2020", "BatchRamp", "BatchSize", "BestShape", "Budget", "CarriedStepTime", "Device",
    "EncoderDecoderSplit", "FrontierPlan", "GroupFit", "KnownLaw", "LearningRateAndBatch", "Memory", "NextRuns", "Overtake",
    "Plan", "Quantity", "Region", "StepTime", "TimeCompute", "batch_ramp", "best_shape", "contradiction", "critical_batch",
    "critical_batch_of_tokens", "derived_frontier", "early_stopping", "encoder_decoder_split", "good_shapes",
    "kaplan_frontier", "largest_shape", "learning_rate_and_batch", "memory", "next_runs", "overtake", "plan",
    "serving_memory", "steps_and_tokens", "stopping_step", "time_compute", "tokens_against_overfitting",
]  # fmt: skip
