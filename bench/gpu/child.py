"""What the processes of a part share: the device, rows on disk as they come, random numbers, clocks."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

DEVICE = os.environ.get("PYSCALING_GPU_DEVICE", "cuda")
ON_CARD = DEVICE == "cuda"
WARM = "--warm" in sys.argv  # compiles what will be timed, and times nothing

_LONG = ("errors",)  # on disk, not on the screen
_wrong = 0


def names() -> list[str]:
    """The arguments that are no flags."""
    return [argument for argument in sys.argv[1:] if not argument.startswith("-")]


def write(**row: Any) -> None:
    """A row of the record; ok=False marks a wrong result. Printed, and on disk before the next is begun."""
    global _wrong
    _wrong += row.get("ok") is False
    if WARM:
        return
    path = os.environ.get("PYSCALING_GPU_ROWS")
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(row, default=_plain) + "\n")
    print(", ".join(f"{name} {_short(value)}" for name, value in row.items() if name not in _LONG), flush=True)


def finish() -> None:
    """Ends the process: 1 if a row was wrong."""
    sys.exit(1 if _wrong else 0)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else str(value)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {_short(of)}" for name, of in value.items())
    if isinstance(value, list | tuple):
        return "/".join(map(_short, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def why(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"


def synchronize() -> None:
    if ON_CARD:
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], Any], *, captured: bool = False) -> float:
    """Median seconds of a replay in a CUDA graph with a cold L2 cache; on a CPU, and to warm up, of one run."""
    from hardware import graph_seconds

    if ON_CARD and not WARM:
        return graph_seconds(run, captured)
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def wall_seconds_a_step(step: Callable[[int], Any], n_step: int, n_before: int = 3) -> float:
    """Seconds of a step as a user sees it: many in a row, the host's part included; n_before steps come first, untimed."""
    if WARM or not ON_CARD:
        n_step = 1
    for i in range(n_before if ON_CARD else 1):
        step(i)
    synchronize()
    start = time.perf_counter()
    for i in range(n_step):
        step(i)
    synchronize()
    return (time.perf_counter() - start) / n_step


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most bytes that a run holds beyond what is there before it; 0 on a CPU."""
    if not ON_CARD:
        return 0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    torch.cuda.synchronize()
    most = torch.cuda.max_memory_allocated() - before
    del kept
    return most


def free() -> None:
    if ON_CARD:
        torch.cuda.empty_cache()


class Random:
    """Seeded numbers on the device."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator(DEVICE).manual_seed(seed)

    def normal(self, *size: int, dtype: torch.dtype = torch.float32, std: float = 1.0) -> Tensor:
        return (std * torch.randn(*size, device=DEVICE, generator=self.generator)).to(dtype)

    def integers(self, most: int, *size: int) -> Tensor:
        return torch.randint(most, size, device=DEVICE, generator=self.generator)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def gradients(
    function: Callable[..., Any], leaves: Sequence[Tensor], given: Sequence[Tensor], *, unused: bool = False
) -> list[Tensor]:
    """Outputs of function(*leaves), then the leaves' gradients for the outputs' gradients `given`.

    unused: a leaf may have no part in the outputs; its gradient is None.
    """
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    out = function(*leaves)
    outs = out if isinstance(out, tuple) else (out,)
    toward = [grad.to(o.dtype) for o, grad in zip(outs, given, strict=True)]
    return [*(o.detach() for o in outs), *torch.autograd.grad(outs, leaves, toward, allow_unused=unused)]
