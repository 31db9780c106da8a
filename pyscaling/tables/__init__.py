"""Tables of runs: reading them, what their headers mean and in which unit, and what no run can have."""

from pyscaling.tables.runs import Runs, as_runs, read_runs

__all__ = ["Runs", "as_runs", "read_runs"]
