"""These kernels beside Liger-Kernel's, operation by operation: registers, spills, launches, bytes, FLOPs; no GPU needed.

    pip install --no-deps liger-kernel==0.8.5     # extra `bench`
    python bench/liger.py [--markdown FILE]

Both sides pass through the same compiler (kernels/aot.py) and the same meter. Liger's public functions run on meta tensors that
call themselves CUDA tensors; each launch is announced instead of made, torch's own operations within them count as the
meter counts any. An operation is what a model would call: where Liger's kernel is a part of ours (an activation between two
products, RoPE before attention), the rest of theirs is torch's, as in Liger's own modules.

In doubt Liger is favoured: a scalar gradient of 1 is not multiplied in; weights' gradients are summed in the weights' dtype
(its default), ours in float32; tables of RoPE are there before; numbers that it fetches for the host (.item(), torch.equal)
cost nothing; of SwiGLU's variants the one that moves least stands.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import KernelInterface

from pyscaling.kernels import aot, attention, layer_norm, linear_cross_entropy, mlp, rms_norm
from pyscaling.kernels import launch as machinery
from pyscaling.kernels.launch import MULTIPROCESSORS, Launch, target_of
from pyscaling.kernels.meter import Meter, roofline

VERSION = "0.8.5"
ROWS = 8192
DEVICES = {"sm_90": "H100", "gfx942": "MI300X"}
TARGETS = tuple(DEVICES)
DTYPES = (torch.bfloat16, torch.float32)
WIDTHS = {256: 8192, 1024: 32768, 4096: 32768}  # d_model: vocabulary
DIRECTIONS = ("forward", "backward")

# What each of Liger's kernels reads and writes, by its arguments' names (test_liger.py observes it in the interpreter). Each
# counts once: cross entropy and the gradients of activations are written over what was read.
_ARGUMENTS = {
    "_layer_norm_forward_kernel": ("X_ptr W_ptr B_ptr", "Y_ptr Mean_ptr RSTD_ptr"),
    "_layer_norm_backward_kernel": ("X_ptr W_ptr Mean_ptr RSTD_ptr DY_ptr", "DX_ptr DW_ptr DB_ptr"),
    "_rms_norm_forward_kernel": ("X_ptr W_ptr", "Y_ptr RSTD_ptr"),
    "_rms_norm_backward_kernel": ("dY_ptr X_ptr W_ptr RSTD_ptr", "dX_ptr dW_ptr"),
    "_fused_add_rms_norm_forward_kernel": ("X_ptr R_ptr W_ptr", "Y_ptr S_ptr RSTD_ptr"),
    "_fused_add_rms_norm_backward_kernel": ("dY_ptr dS_out_ptr X_ptr W_ptr RSTD_ptr", "dX_ptr dW_ptr"),
    "_swiglu_fused_gate_up_forward_kernel": ("y_ptr", "c_ptr"),
    "_swiglu_fused_gate_up_backward_kernel": ("dc_ptr y_ptr", "dy_ptr"),
    "_geglu_tanh_forward_kernel": ("a b", "c"),
    "_geglu_tanh_backward_kernel": ("dc a b", "a b"),
    "liger_cross_entropy_kernel": ("X_ptr Y_ptr", "X_ptr loss_ptr"),
    "_triton_rope": ("q_ptr k_ptr cos sin", "q_ptr k_ptr"),
}


# ---- Liger's launches, announced ------------------------------------------------------------------------------------


@contextmanager
def announced() -> Iterator[None]:
    """Within it Liger's launches reach the same observers as ours (Meter, aot.capture), and on meta tensors are not made."""
    subscript = KernelInterface.__getitem__

    def launcher(kernel: Any, grid: Any) -> Callable[..., None]:
        run = subscript(kernel, grid)
        if not kernel.fn.__module__.startswith("liger_kernel."):
            return run

        def start(*args: Any, **kwargs: Any) -> None:
            record = _record(kernel, grid, args, kwargs)
            for observe in machinery.observers:
                observe(record)
            if not any(a.is_meta for a in record.args if isinstance(a, Tensor)):
                run(*args, **kwargs)

        return start

    with patch.object(KernelInterface, "__getitem__", launcher):
        yield


def _record(kernel: Any, grid: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    target = target_of(torch.device("meta"))
    given = aot.PROCESSORS[target].target if target in aot.PROCESSORS else GPUTarget("cuda", 90, 32)
    defaults = make_backend(given).parse_options({})
    options = {name: kwargs.pop(name, getattr(defaults, name)) for name in ("num_warps", "num_stages")}
    bound = inspect.signature(kernel.fn).bind(*args, **kwargs)
    bound.apply_defaults()
    of = bound.arguments
    reads, writes = (
        [of[name] for name in names.split() if of[name] is not None] for names in _ARGUMENTS[kernel.fn.__name__]
    )
    return Launch(
        kernel, grid, tuple(of.values()), {}, options["num_warps"], options["num_stages"],
        machinery._bytes(reads), machinery._bytes(writes), 0,
    )  # fmt: skip


class _AsCuda(TorchFunctionMode):
    """Meta tensors call themselves CUDA tensors, new CUDA tensors are made on meta, numbers for the host are made up."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return torch.device("cuda", 0) if func(*args).type == "meta" else func(*args)
        if func is Tensor.item:
            return ROWS  # the count of tokens that have a loss
        if func in (torch.equal, Tensor.__bool__):
            return True  # the gradient of the loss is 1; targets are in range
        if str(kwargs.get("device")).startswith("cuda"):
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@contextmanager
def as_on(target: str) -> Iterator[None]:
    """Liger asks torch about the device; it gets the answers of `target`."""
    properties = SimpleNamespace(multi_processor_count=MULTIPROCESSORS[target])
    with (
        announced(),
        patch.object(torch.cuda, "get_device_properties", lambda device=None: properties),
        patch.object(torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
        patch.object(torch.cuda, "device", lambda device: nullcontext()),
        patch.object(torch.version, "hip", "7.0" if target.startswith("gfx") else None),
        _AsCuda(),
    ):
        yield


# ---- operations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """n_member: 0 for Liger, whose tensors have no model axis."""

    d_model: int
    vocab: int
    dtype: torch.dtype
    n_member: int
    n_row: int = ROWS
    context: int = 512
    head_dim: int = 64
    device: str = "meta"

    @property
    def lead(self) -> tuple[int, ...]:
        return (self.n_member,) if self.n_member else ()

    def make(self, *shape: int) -> Tensor:
        return torch.ones(*self.lead, *shape, dtype=self.dtype, device=self.device, requires_grad=True)

    def rows(self) -> Tensor:
        return self.make(self.n_row, self.d_model)

    def targets(self) -> Tensor:
        return torch.ones(*self.lead, self.n_row, dtype=torch.int64, device=self.device)

    def heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, n_head, T, head_dim] as three products leave them: heads side by side."""
        n = max(1, self.n_member) * self.n_row // self.context
        shape = (n, self.context, self.d_model // self.head_dim, self.head_dim)
        q, k, v = (torch.ones(shape, dtype=self.dtype, device=self.device, requires_grad=True) for _ in range(3))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


Run = Callable[[Size], Any]  # returns the outputs, whose gradients the backward takes


def _ours_layer_norm(size: Size) -> Any:
    return layer_norm(size.rows(), size.make(size.d_model), size.make(size.d_model))


def _liger_layer_norm(size: Size) -> Any:
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    return LigerLayerNormFunction.apply(size.rows(), size.make(size.d_model), size.make(size.d_model), 1e-5)


def _ours_rms_norm(size: Size) -> Any:
    return rms_norm(size.rows(), size.make(size.d_model))


def _liger_rms_norm(size: Size) -> Any:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return LigerRMSNormFunction.apply(size.rows(), size.make(size.d_model), 1e-5)


def _ours_rms_norm_of_a_sum(size: Size) -> Any:
    return rms_norm(size.rows(), size.make(size.d_model), residual=size.rows())


def _liger_rms_norm_of_a_sum(size: Size) -> Any:
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    return LigerFusedAddRMSNormFunction.apply(size.rows(), size.rows(), size.make(size.d_model), 1e-5)


def _ours_mlp(activation: str, size: Size) -> Any:
    d, d_ff = size.d_model, 4 * size.d_model
    return mlp(size.rows(), size.make(d, 2 * d_ff), None, size.make(d_ff, d), None, activation)


def _liger_swiglu(size: Size) -> Any:
    from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction

    d, d_ff = size.d_model, 4 * size.d_model
    u = F.linear(size.rows(), size.make(2 * d_ff, d))
    return F.linear(LigerFusedGateUpSiLUMulFunction.apply(u, True), size.make(d, d_ff))


def _liger_geglu(size: Size) -> Any:
    """As LigerGEGLUMLP: two products, because its kernels take gate and value apart."""
    from liger_kernel.ops.geglu import LigerGELUMulFunction

    d, d_ff = size.d_model, 4 * size.d_model
    x = size.rows()
    gate, value = F.linear(x, size.make(d_ff, d)), F.linear(x, size.make(d_ff, d))
    return F.linear(LigerGELUMulFunction.apply(gate, value), size.make(d, d_ff))


def _ours_linear_cross_entropy(size: Size) -> Any:
    weight = size.make(size.vocab, size.d_model).mT
    return linear_cross_entropy(size.rows(), weight, size.targets())


def _liger_fused_linear_cross_entropy(size: Size) -> Any:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    weight = size.make(size.vocab, size.d_model)
    return LigerFusedLinearCrossEntropyFunction.apply(size.rows(), weight, size.targets())[0]


def _liger_cross_entropy(size: Size) -> Any:
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

    logits = F.linear(size.rows(), size.make(size.vocab, size.d_model))
    return LigerCrossEntropyFunction.apply(logits, size.targets(), None)[0]


def _ours_rope(size: Size) -> Any:
    return attention(*size.heads(), causal=True, rope_base=10_000.0)


def _liger_rope(size: Size) -> Any:
    """Its kernel writes over q and k."""
    from liger_kernel.ops.rope import LigerRopeFunction

    q, k, v = size.heads()
    # half of each row, because the kernel reads no more
    cos, sin = (torch.ones(size.context, size.head_dim // 2, dtype=size.dtype, device=size.device) for _ in range(2))
    q, k = LigerRopeFunction.apply(q, k, cos, sin, None, 1, size.head_dim)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@dataclass(frozen=True)
class Operation:
    ours: Run
    liger: Run


OPERATIONS = {
    "layer_norm": Operation(_ours_layer_norm, _liger_layer_norm),
    "rms_norm": Operation(_ours_rms_norm, _liger_rms_norm),
    "rms_norm of a sum": Operation(_ours_rms_norm_of_a_sum, _liger_rms_norm_of_a_sum),
    "mlp swiglu": Operation(partial(_ours_mlp, "swiglu"), _liger_swiglu),
    "mlp geglu": Operation(partial(_ours_mlp, "geglu"), _liger_geglu),
    "head and loss, fused": Operation(_ours_linear_cross_entropy, _liger_fused_linear_cross_entropy),
    "head and loss, apart": Operation(_ours_linear_cross_entropy, _liger_cross_entropy),
    "rope and attention": Operation(_ours_rope, _liger_rope),
}


# ---- counting and compiling -----------------------------------------------------------------------------------------


@dataclass
class Side:
    """One direction of one operation; launches, bytes, FLOPs and seconds of one model, projected on DEVICES within a graph.

    registers, spilled: of the kernel with most."""

    launches: float = 0.0
    bytes: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    registers: int = 0
    spilled: int = 0
    kernels: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass
class Row:
    operation: str
    direction: str
    d_model: int
    dtype: torch.dtype
    target: str
    sides: dict[str, Side]  # "liger", "1 member", "16 members" (a member's share)


SIDES = {"liger": 0, "1 member": 1, "16 members": 16}


def parts_of(run: Run, size: Size) -> dict[str, Callable[[], Any]]:
    """The two directions, to be called in this order."""
    kept: list[Any] = []

    def forward() -> None:
        out = run(size)
        kept[:] = out if isinstance(out, tuple) else (out,)

    def backward() -> None:
        # torch.autograd.backward itself leaves function modes, of which one is _AsCuda
        gradients = tuple(torch.ones_like(t) for t in kept)
        _engine_run_backward(tuple(kept), gradients, False, False, (), allow_unreachable=True, accumulate_grad=True)

    return {"forward": forward, "backward": backward}


def _sides(operation: str, d_model: int, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Callable[[], Any]]]]:
    of = OPERATIONS[operation]
    for side, n_member in SIDES.items():
        yield side, parts_of(of.ours if n_member else of.liger, Size(d_model, WIDTHS[d_model], dtype, n_member))


def count(operation: str, d_model: int, dtype: torch.dtype, target: str) -> dict[str, Row]:
    """Launches, bytes and FLOPs by direction."""
    rows = {direction: Row(operation, direction, d_model, dtype, target, {}) for direction in DIRECTIONS}
    for side, parts in _sides(operation, d_model, dtype):
        n = max(1, SIDES[side])
        meter = Meter(target)  # one for both directions: what torch fuses counts with the meter of its forward
        before = (0.0, 0.0, 0.0, 0.0)
        for direction, run in parts.items():
            with meter, as_on(target) if side == "liger" else nullcontext():
                run()
            seconds = roofline(meter, DEVICES[target], cuda_graph=True).seconds
            now = meter.launches, meter.bytes, meter.flops, seconds
            rows[direction].sides[side] = Side(*((b - a) / n for a, b in zip(before, now, strict=True)))
            before = now
    return rows


def compare(
    operations: list[str] | None = None,
    widths: list[int] | None = None,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    targets: tuple[str, ...] = TARGETS,
    progress: bool = False,
) -> list[Row]:
    """Every operation, width and dtype on every target."""
    rows: list[Row] = []
    for target in targets:
        places: dict[str, list[Side]] = {}
        cases: list[aot.Case] = []
        for operation in operations or OPERATIONS:
            for d_model in widths or WIDTHS:
                for dtype in dtypes:
                    counted = count(operation, d_model, dtype, target)
                    rows += counted.values()
                    for side, parts in _sides(operation, d_model, dtype):
                        for direction, run in parts.items():
                            name = f"{side}, {operation} {direction}, {d_model}, {dtype}"
                            places.setdefault(name, []).append(counted[direction].sides[side])
                            cases.append((name, partial(_within, as_on(target), run) if side == "liger" else run))
        for compiled in aot.report(cases, [target], progress=progress):
            for side in (place for case in compiled.cases for place in places[case]):
                side.registers = max(side.registers, compiled.registers)
                side.spilled = max(side.spilled, compiled.spilled_bytes)
                side.kernels.append(compiled.kernel)
                side.errors += [compiled.error] if compiled.error else []
    return rows


def _within(context: Any, run: Callable[[], Any]) -> None:
    with context:
        run()


# ---- the table ------------------------------------------------------------------------------------------------------


def to_markdown(rows: list[Row]) -> str:
    header = ["operation", "direction", "d_model", "dtype", "target"]
    header += [f"{column}: Liger, ours" for column in ("registers", "spilled bytes")]
    header += [f"{column}: Liger, ours, of 16" for column in ("launches", "MB", "GFLOP", "projected us")]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        liger, one, fleet = (row.sides[side] for side in SIDES)
        cells = [row.operation, row.direction, str(row.d_model), str(row.dtype).removeprefix("torch."), row.target]
        cells += [f"{liger.registers or '-'}, {one.registers}", f"{liger.spilled}, {one.spilled}"]
        cells += [f"{liger.launches:.0f}, {one.launches:.0f}, {fleet.launches:.2f}"]
        cells += [", ".join(f"{side.bytes / 1e6:.1f}" for side in (liger, one, fleet))]
        cells += [", ".join(f"{side.flops / 1e9:.0f}" for side in (liger, one, fleet))]
        cells += [", ".join(f"{1e6 * side.seconds:.0f}" for side in (liger, one, fleet))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operation", nargs="+", choices=OPERATIONS, help="default: all of them")
    parser.add_argument("--width", nargs="+", type=int, choices=WIDTHS, help="d_model; default: all of them")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args()
    table = to_markdown(compare(options.operation, options.width, progress=True))
    if options.markdown:
        options.markdown.write_text(table)
    print(f"Liger-Kernel {VERSION} beside pyscaling, {ROWS} rows; compiled and counted, not run\n\n{table}")


if __name__ == "__main__":
    main()
