"""Fitting of laws to runs, with its uncertainty and the evidence for believing it."""

from pyscaling.fitting.bootstrap import Bootstrap
from pyscaling.fitting.evidence import Evidence
from pyscaling.fitting.fit import Fit, Prediction, fit

__all__ = ["Bootstrap", "Evidence", "Fit", "Prediction", "fit"]
