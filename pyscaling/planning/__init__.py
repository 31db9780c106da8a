"""Planning: from a fit to a decision. `plan` divides a compute budget; `Plan` prints, plots and exports."""

from pyscaling.planning.allocate import plan
from pyscaling.planning.batch import BatchSize, critical_batch
from pyscaling.planning.result import Plan, Quantity, Region

__all__ = ["BatchSize", "Plan", "Quantity", "Region", "critical_batch", "plan"]
