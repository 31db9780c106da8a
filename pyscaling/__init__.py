"""pyscaling: train a grid of small models, fit scaling laws to it, plan the large one.

Everything public hangs on this module and is imported on first use, so that `import pyscaling` stays fast
and needs neither torch nor pandas nor sympy nor matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Runs": "tables",
    "read_runs": "tables",
    "Law": "laws",
    "fit": "fitting",
    "Fit": "fitting",
    "compare": "fitting",
    "compute_gain": "fitting",
    "envelope": "fitting",
    "isoflop": "fitting",
    "load": "fitting.save",
    "plan": "planning",
    "next_runs": "planning",
    "overtake": "planning",
    "Plan": "planning",
    "Study": "study",
}
_MODULES = frozenset({"accounting", "fitting", "kernels", "laws", "planning", "report"})
__all__ = sorted({*_HOME, *_MODULES})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'pyscaling' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


if TYPE_CHECKING:
    from pyscaling import accounting, fitting, kernels, laws, planning, report

    # the functions, not their modules
    from pyscaling.fitting import Fit, compare, compute_gain, envelope, fit, isoflop  # type: ignore[no-redef]
    from pyscaling.fitting.save import load
    from pyscaling.laws import Law
    from pyscaling.planning import Plan, next_runs, overtake, plan  # type: ignore[no-redef]
    from pyscaling.study import Study
    from pyscaling.tables import Runs, read_runs
