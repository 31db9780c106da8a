"""The operations of a training step, each as fused Triton kernels and, in `reference`, in plain PyTorch.

    from pyscaling.kernels import attention, mlp

gives functions; their files, of the same names, hold the launchers (`from pyscaling.kernels.mlp import mlp_forward`).
Nothing is imported before it is asked for: `reference` needs no Triton.

None of it has run on hardware yet. Gradients are for torch.autograd and torch.compile, once: forward
mode raises, torch.func.grad does not take them, and there is no gradient of a gradient.
Under torch.autocast nothing is cast: inputs must share a dtype, so cast the weights yourself. Attention takes as many key
and value heads as query heads; grouped-query attention repeats them first. causal=True is torch's top-left rule where
lengths differ; queries after a cache of keys take causal="bottom_right".
"""

import importlib
import sys
from types import ModuleType
from typing import Any

# function -> its file
FUNCTIONS = {
    "adamw_step": "adamw",
    "attention": "attention",
    "embedding": "embedding",
    "layer_norm": "layer_norm",
    "linear": "linear",
    "linear_cross_entropy": "linear_cross_entropy",
    "mlp": "mlp",
    "rms_norm": "layer_norm",
}


class _Operations(ModuleType):
    """A package in which a function takes the place of the file that bears its name."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system announces a file here once it is loaded.
        announced = name in FUNCTIONS and isinstance(value, ModuleType)
        super().__setattr__(name, getattr(value, name) if announced else value)

    def __getattr__(self, name: str) -> Any:
        if name not in FUNCTIONS:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{self.__name__}.{FUNCTIONS[name]}"), name)


sys.modules[__name__].__class__ = _Operations
