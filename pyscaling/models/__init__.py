"""Models, each as a fleet: M members of one shape with every weight stacked on a leading model axis."""

from pyscaling.models.transformer import FleetTransformer

__all__ = ["FleetTransformer"]
