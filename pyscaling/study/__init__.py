"""A study: a grid of runs as a spec, the store that holds them, and what executes them."""

from pyscaling.study.spec import StudySpec
from pyscaling.study.study import Study

__all__ = ["Study", "StudySpec"]
