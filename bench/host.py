"""What a launch costs the host, without a GPU: everything is done but the call into the driver.

    python bench/host.py [--json FILE]

Triton's driver is replaced by one whose launcher returns at once, and CPU tensors pose as tensors of an H100: kernels are
compiled for sm_90 and found, bound and "started" as on a card. What remains unmeasured is Triton's own launcher in C and the
driver, both the same whoever calls. Peers, in the same run: `kernel[grid](...)` itself, and the dispatch of PyTorch's
operators on tensors as small. Medians of many short runs, microseconds of this thread's own time.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from pyscaling.kernels import launch as launching

FILES = ("adamw", "attention", "embedding", "layer_norm", "linear", "linear_cross_entropy", "mlp")


class NoDriver:
    """A driver of Triton's whose kernels load and start in no time."""

    launcher_cls = staticmethod(lambda source, metadata: lambda *args: None)
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 232448, "multiprocessor_count": 132},
        load_binary=lambda *args: (object(), 1, 32, 0, 1024),
    )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def posing(target: str = "sm_90") -> Iterator[None]:
    """Within it CPU tensors take the way of a card's."""
    if launching.INTERPRETED:
        raise SystemExit("TRITON_INTERPRET is set; the interpreter's cost is no launch's.")
    before = driver._active
    with ExitStack() as stack:
        stack.enter_context(launching.compiled_for(target))
        for name in FILES:
            module = importlib.import_module(f"pyscaling.kernels.{name}")
            stack.enter_context(launching.replaced(module, check_first=_check_first))
        driver.set_active(NoDriver())
        try:
            yield
        finally:
            driver._active = before


def _check_first(name: str, tensor: torch.Tensor) -> None:
    """`launching.check_first` but for the device, which it would refuse."""
    launching.check_tensors({name: tensor})
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(name)


def microseconds(run: Callable[[], Any], runs: int = 41, calls: int = 50) -> float:
    for _ in range(calls):
        run()
    seconds = []
    for _ in range(runs):
        started = time.thread_time()
        for _ in range(calls):
            run()
        seconds.append((time.thread_time() - started) / calls)
    return 1e6 * statistics.median(seconds)


def cases() -> dict[str, Callable[[], Any]]:
    """A launch by launchers as the fused transformer calls them, by Triton alone, and public operators."""
    from pyscaling import kernels as k
    from pyscaling.kernels.adamw import adamw_update
    from pyscaling.kernels.attention import attention_forward
    from pyscaling.kernels.layer_norm import layer_norm_forward
    from pyscaling.kernels.linear import linear_backward, linear_forward
    from pyscaling.kernels.mlp import mlp_forward

    def tensor(*size: int, grad: bool = False) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.bfloat16, requires_grad=grad)

    M, R, d, T = 2, 64, 64, 32
    x, w, bias = tensor(M, R, d), tensor(M, d, d), tensor(M, d)
    up, down = tensor(M, d, 4 * d), tensor(M, 4 * d, d)
    q, key, v = (tensor(M, 2, T, 32) for _ in range(3))
    gain, table = tensor(M, d), tensor(M, 256, d)
    tokens, targets = torch.zeros(M, 2, T, dtype=torch.int64), torch.zeros(M, R, dtype=torch.int64)
    head = tensor(M, d, 256)
    flat = [torch.zeros(M, 4096) for _ in range(4)]
    settings, clock = torch.ones(6, M, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    loss, alive, failed = torch.zeros(M), torch.ones(M, dtype=torch.bool), torch.zeros(M, dtype=torch.int64)
    seen: list[launching.Launch] = []
    launching.observers.append(seen.append)
    try:
        linear_forward(x, w, bias)
    finally:
        launching.observers.pop()
    one = seen[0]
    options = {**one.constants, "num_warps": one.num_warps, "num_stages": one.num_stages}

    def trained(function: Callable[..., torch.Tensor], *leaves: torch.Tensor) -> Callable[[], Any]:
        leaves = tuple(leaf.clone().requires_grad_() if leaf.is_floating_point() else leaf for leaf in leaves)
        return lambda: function(*leaves)

    def both(function: Callable[..., torch.Tensor], *leaves: torch.Tensor) -> Callable[[], Any]:
        forward = trained(function, *leaves)
        grad = torch.zeros_like(forward().detach())
        return lambda: forward().backward(grad)

    attention = lambda q, k_, v: k.attention(q, k_, v, causal=True)  # noqa: E731
    mlp = lambda x, up, down: k.mlp(x, up, None, down, None, "gelu")  # noqa: E731
    return {
        "kernel[grid](...), linear": lambda: one.kernel[one.grid](*one.args, **options),
        "launch(...), linear": lambda: launching.launch(
            one.kernel, one.grid, *one.args, reads=[x, w, bias], writes=[x], flops=1, **options
        ),
        "launcher linear forward": lambda: linear_forward(x, w, bias),
        "launcher linear backward": lambda: linear_backward(x, x, w),
        "launcher mlp forward": lambda: mlp_forward(x, up, None, down, None, None, "gelu"),
        "launcher attention forward": lambda: attention_forward(q, key, v, causal=True),
        "launcher layer_norm forward": lambda: layer_norm_forward(x, gain, None),
        "launcher adamw (2 launches)": lambda: adamw_update(*flat, settings, clock, loss, alive, failed, 2048),
        "public linear": lambda: k.linear(x, w, bias),
        "public mlp": lambda: mlp(x, up, down),
        "public attention": lambda: attention(q, key, v),
        "public rms_norm": lambda: k.rms_norm(x, gain),
        "public embedding": lambda: k.embedding(tokens, table),
        "public linear_cross_entropy": lambda: k.linear_cross_entropy(x, head, targets),
        "public linear, to be differentiated": trained(k.linear, x, w, bias),
        "public mlp, to be differentiated": trained(mlp, x, up, down),
        "public attention, to be differentiated": trained(attention, q, key, v),
        "public linear, with backward": both(k.linear, x, w, bias),
        "public attention, with backward": both(attention, q, key, v),
        "torch.baddbmm": lambda: torch.baddbmm(bias[:, None], x[:, :1, :8], w[:, :8, :]),
        "F.layer_norm": lambda: F.layer_norm(x[:, 0, :8], (8,)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with posing():
        measured = {name: microseconds(run) for name, run in cases().items()}
    print(f"triton {triton.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}; microseconds")
    for name, value in measured.items():
        print(f"  {name:42s} {value:7.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
