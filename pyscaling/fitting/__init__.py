"""Fitting of laws to runs, with its uncertainty and the evidence for believing it."""

from pyscaling.fitting.bootstrap import Bootstrap
from pyscaling.fitting.compare import Comparison, compare
from pyscaling.fitting.envelope import Envelope, envelope
from pyscaling.fitting.evidence import Evidence
from pyscaling.fitting.fit import Fit, Prediction, fit
from pyscaling.fitting.gain import ComputeGain, compute_gain
from pyscaling.fitting.isoflop import IsoFlop, isoflop

__all__ = [
    "Bootstrap",
    "Comparison",
    "ComputeGain",
    "Envelope",
    "Evidence",
    "Fit",
    "IsoFlop",
    "Prediction",
    "compare",
    "compute_gain",
    "envelope",
    "fit",
    "isoflop",
]
