"""Counts the launches, bytes and FLOPs of any torch code, for these kernels and for eager PyTorch by the same rules.

    with Meter(target="sm_90") as meter:
        step(...)
    print(meter)
    print(roofline(meter, "H100"))

Works on meta tensors, so a step of any size is counted without memory, and on real ones. The count is of what runs on a
CUDA device, whatever the device of the tensors:

1. One launch is one kernel. It reads each of its distinct inputs once and writes each of its outputs once; of an expanded
   or strided tensor only its distinct elements count. Caches are not modelled: the count is the least that must move.
2. A kernel of this room counts with the reads, writes and FLOPs that it declares to `launch`; `observed_bytes` checks them.
   Other operations that run within our operators (a torch.zeros, say) count as any other; nothing counts twice.
3. Any other operation is seen as aten dispatches it: composite ones by what they dispatch to. One that only makes views,
   allocates or fetches a number for the host costs nothing; any other is one launch.
4. FLOPs are those of matrix products, by the formulas of torch.utils.flop_counter; of causal attention only the pairs
   that see each other count, for torch's and for ours (torch.utils.flop_counter counts all).
5. What F.rms_norm, F.dropout and scaled_dot_product_attention launch on CUDA is one fused kernel each way, and counted so
   where they decompose on the tensors' device. Attention is flash attention, of which the log-sum-exp is stored.
6. Where CUDA tensors or meta tensors are used, operations on CPU tensors alone are the host's and cost nothing.

In doubt eager PyTorch is favoured: an operation is one launch even where CUDA needs two or three (flash attention's and
LayerNorm's backward, embedding's backward, bias additions before a product, nll_loss); a multi-tensor operation (_foreach_*,
_fused_adamw_) is one launch a call, though CUDA cuts long lists into several; attention is fused even where torch would fall
back to separate kernels (5-dimensional inputs, float32 with odd head sizes); gathers read no more than they return and
scatters touch no more than they are given; nll_loss reads one log-probability a row.

Not seen: kernels that Inductor or other libraries launch past the dispatcher, and what a captured CUDA graph replays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

from pyscaling.kernels import launch as machinery
from pyscaling.kernels.launch import INTERPRETED, Launch, compiled_for, replaced

aten = torch.ops.aten


@dataclass(frozen=True)
class Cost:
    """What one call of an operation costs. dtype: the narrowest floating one of its tensors, which sets the FLOP/s."""

    name: str
    launches: int
    read_bytes: int
    write_bytes: int
    flops: int
    dtype: torch.dtype | None
    on_host: bool = False


class Meter:
    """Within it every launch, byte and FLOP is counted, by the rules of this module; entered again it counts on.

    target: what launches choose their configuration for, "sm_90" or "gfx942", say. Give one with meta tensors: without it
    they choose as for Triton's interpreter, whose small blocks may repeat work or split it over more launches.
    """

    def __init__(self, target: str | None = None) -> None:
        self.target = target
        self._calls: Counter[Cost] = Counter()
        self._entered: list[ExitStack] = []

    def __enter__(self) -> Meter:
        stack = ExitStack()
        stack.callback(machinery.observers.remove, self._see_launch)
        machinery.observers.append(self._see_launch)
        if self.target is not None:
            stack.enter_context(compiled_for(self.target))
        stack.enter_context(_interpreter_unseen())
        stack.enter_context(_Dispatch(self))
        stack.enter_context(_Fusing(self))
        self._entered.append(stack)
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.pop().__exit__(*error)

    @property
    def costs(self) -> list[tuple[Cost, int]]:
        """Each distinct cost and how many calls had it, in the order of first use."""
        only_host = all(cost.on_host for cost in self._calls)
        return [(cost, n) for cost, n in self._calls.items() if only_host or not cost.on_host]

    @property
    def launches(self) -> int:
        return sum(n * cost.launches for cost, n in self.costs)

    @property
    def read_bytes(self) -> int:
        return sum(n * cost.read_bytes for cost, n in self.costs)

    @property
    def write_bytes(self) -> int:
        return sum(n * cost.write_bytes for cost, n in self.costs)

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.write_bytes

    @property
    def flops(self) -> int:
        return sum(n * cost.flops for cost, n in self.costs)

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Operation -> calls, launches, read_bytes, write_bytes, bytes, flops; the one that moves most first."""
        table: dict[str, dict[str, int]] = {}
        for cost, n in self.costs:
            row = table.setdefault(cost.name, dict.fromkeys(_COLUMNS, 0))
            for column, value in zip(_COLUMNS, _values(cost), strict=True):
                row[column] += n * value
        return dict(sorted(table.items(), key=lambda item: -item[1]["bytes"]))

    def to_frame(self) -> Any:
        """`to_dict` as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame.from_dict(self.to_dict(), orient="index", columns=list(_COLUMNS)).rename_axis("operation")

    def __str__(self) -> str:
        rows: list[Any] = [(name, *row.values()) for name, row in self.to_dict().items() if row["launches"]]
        total = ("total", *(sum(row[i] for row in rows) for i in range(1, 1 + len(_COLUMNS))))
        return _table(("operation", *_COLUMNS), [*rows, total])

    def _see_launch(self, record: Launch) -> None:
        arguments = [a.base if isinstance(a, TensorDescriptor) else a for a in record.args]
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        self._calls[
            Cost(
                kernel_name(record.kernel),
                1,
                record.read_bytes,
                record.write_bytes,
                record.flops,
                _dtype(tensors),
                _on_host(tensors),
            )
        ] += 1

    def _see_fused(
        self, name: str, reads: Sequence[Tensor], writes: Sequence[Tensor], statistics: int, flops: int
    ) -> None:
        """A kernel that torch fuses on CUDA; `statistics`: signed bytes of what forward leaves for backward (< 0: read)."""
        read, write = _distinct_bytes(reads) + max(0, -statistics), _distinct_bytes(writes) + max(0, statistics)
        self._calls[Cost(name, 1, read, write, flops, _dtype(reads), _on_host(reads))] += 1


def kernel_name(kernel: Any) -> str:
    """<file>.<function>, as in "attention.attention_forward_kernel"; the same in the interpreter and compiled."""
    return f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}"


_COLUMNS = ("calls", "launches", "read_bytes", "write_bytes", "bytes", "flops")


def _values(cost: Cost) -> tuple[int, ...]:
    return 1, cost.launches, cost.read_bytes, cost.write_bytes, cost.read_bytes + cost.write_bytes, cost.flops


# ---- what aten dispatches ------------------------------------------------------------------------------------------


class _Dispatch(TorchDispatchMode):
    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "pyscaling":  # our operators: run the function itself, and see what it launches
            defined = torch._library.custom_ops.OPDEFS.get(func._schema.name)
            if defined is None:
                return func(*args, **kwargs)
            with self:
                return defined._init_fn(*args, **kwargs)
        if func.namespace in ("prim", "prims", "profiler"):
            return func(*args, **kwargs)
        if _is_composite(func, tree_leaves((args, kwargs))):  # in inference mode they arrive undecomposed
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self.meter._calls[_cost(func, args, kwargs, out)] += 1
        return out


def _is_composite(func: Any, leaves: list[Any]) -> bool:
    if not func._can_decompose():
        return False
    devices = {"cuda": "CUDA", "cpu": "CPU", "meta": "Meta"}
    keys = {devices[t.device.type] for t in leaves if isinstance(t, Tensor) and t.device.type in devices}
    return not any(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key) for key in keys)


# Allocate, make views or fetch numbers for the host; views and mutated metadata are also known by their schema. A
# scalar_tensor is a kernel's argument.
_FREE = {
    "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh",
    "scalar_tensor", "_local_scalar_dense", "resize_", "set_", "detach_", "item", "is_pinned", "_pin_memory",
}  # fmt: skip
# Arguments that lend their shape, or are only overwritten.
_UNREAD = {
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like"), ("self",)),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full"), ("self",)),
    **dict.fromkeys(
        ("copy_", "zero_", "fill_", "normal_", "uniform_", "random_", "exponential_", "bernoulli_"), ("self",)
    ),
    "nll_loss_backward": ("self",),
    "native_layer_norm_backward": ("bias",),
    "_foreach_copy_": ("self",),
    "_foreach_zero_": ("self",),
}
_GATHERS = {"embedding": "weight", "index": "self", "index_select": "self", "gather": "self", "take": "self"}
_SCATTERS = {"index_put_", "_index_put_impl_", "index_add_", "index_copy_", "index_fill_", "scatter_", "scatter_add_"}
_EXTRA_FORMULAS: dict[str, Callable[..., int]] = {
    "mv": lambda a, x: 2 * a.numel(),
    "dot": lambda a, b: 2 * a.numel(),
    "addmv": lambda c, a, x: 2 * a.numel(),
    "addbmm": lambda c, a, b: 2 * a.numel() * b.shape[2],
}


def _cost(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Cost:
    schema = func._schema
    base = schema.name.split("::")[1]
    named = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    arguments = {name: [t for t in tree_leaves(value) if isinstance(t, Tensor)] for name, value in named.items()}
    inputs = [t for tensors in arguments.values() for t in tensors]
    mutated = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    if base.startswith("_fused_") and not arguments.get("grad_scale"):
        mutated.discard("grads")
    outs = out if isinstance(out, tuple) and len(schema.returns) > 1 else (out,)
    fresh = [
        t
        for value, declared in zip(outs, schema.returns, strict=False)
        if declared.alias_info is None
        for t in tree_leaves(value)
        if isinstance(t, Tensor)
    ]
    written = [t for name in mutated for t in arguments.get(name, ())] + fresh
    free = base in _FREE or torch.Tag.inplace_view in func.tags or _distinct_bytes(written) == 0
    name, on_host = f"{func.namespace}.{base}", _on_host(inputs or fresh)
    if free:
        return Cost(name, 0, 0, 0, 0, _dtype(inputs), on_host)

    unread = set(_UNREAD.get(base, ())) | {a.name for a in schema.arguments if a.kwarg_only and a.name in mutated}
    read_bytes = _distinct_bytes([t for name, tensors in arguments.items() if name not in unread for t in tensors])
    write_bytes = _distinct_bytes(written)
    if base in _GATHERS:  # of the table no more than is returned
        read_bytes -= max(0, _distinct_bytes(arguments[_GATHERS[base]]) - _distinct_bytes(fresh))
    elif base in ("nll_loss_forward", "nll_loss2d_forward"):
        picked = arguments["target"][0].numel() * arguments["self"][0].element_size()
        read_bytes -= max(0, _distinct_bytes(arguments["self"]) - picked)
    elif base in _SCATTERS:  # of the destination no more than is given, and none where it is only overwritten
        target = arguments["self"]
        given = arguments.get("values") or arguments.get("source") or arguments.get("src") or arguments.get("index", [])
        touched = min(_distinct_bytes(target), sum(t.numel() for t in given) * target[0].element_size())
        accumulates = base in ("index_add_", "scatter_add_") or named.get("accumulate") or named.get("reduce")
        read_bytes -= _distinct_bytes(target) - (touched if accumulates else 0)
        write_bytes = touched
    return Cost(
        name, 1, read_bytes, write_bytes, _flops(func, base, args, named, out), _dtype(inputs or fresh), on_host
    )


def _flops(func: Any, base: str, args: tuple[Any, ...], named: dict[str, Any], out: Any) -> int:
    if base.startswith("_scaled_dot_product_"):
        forward, backward = _attention_flops(named["query"], named["key"], named["value"], named.get("is_causal"))
        return backward if base.endswith("_backward") else forward
    formula = flop_counter.flop_registry.get(func._overloadpacket)
    if formula is not None:
        positional = {a.name for a, _ in zip(func._schema.arguments, args, strict=False)}
        return int(formula(*args, **{k: v for k, v in named.items() if k not in positional}, out_val=out))
    return int(_EXTRA_FORMULAS[base](*args)) if base in _EXTRA_FORMULAS else 0


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, causal: bool | None) -> tuple[int, int]:
    """Forward: scores, and weights by values. Backward: scores again, and two products for each of those."""
    n_query, n_key = query.shape[-2], key.shape[-2]
    square = min(n_query, n_key)
    pairs = square * (square + 1) // 2 + (n_query - square) * n_key if causal else n_query * n_key
    pairs *= prod(query.shape[:-2])
    return 2 * pairs * (query.shape[-1] + value.shape[-1]), 2 * pairs * (3 * query.shape[-1] + 2 * value.shape[-1])


def _distinct_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of the distinct elements of the tensors; the same elements seen through two views count once."""
    elements: dict[tuple[Any, ...], int] = {}
    for t in tensors:
        if t.layout != torch.strided:
            elements[(id(t),)] = t.numel() * t.element_size()
            continue
        dims = sorted((step, n) for n, step in zip(t.shape, t.stride(), strict=True) if n != 1 and step != 0)
        distinct = 0 if t.numel() == 0 else min(prod(n for _, n in dims), 1 + sum(step * (n - 1) for step, n in dims))
        start = t.storage_offset()
        rows: tuple[Any, ...] = tuple(dims)
        if distinct == 1 + sum(step * (n - 1) for step, n in dims):  # without gaps, in whatever shape
            rows = (distinct,)
        elements[(t.untyped_storage()._cdata, start, t.dtype, rows)] = distinct * t.element_size()
    return sum(elements.values())


def _dtype(tensors: Sequence[Tensor]) -> torch.dtype | None:
    """The narrowest: products are of that, whatever statistics or gradients lie beside in float32."""
    return min((t.dtype for t in tensors if t.dtype.is_floating_point), key=lambda d: d.itemsize, default=None)


def _on_host(tensors: Sequence[Tensor]) -> bool:
    return all(t.device.type == "cpu" for t in tensors)


# ---- what torch fuses on CUDA and decomposes elsewhere --------------------------------------------------------------


class _Fusing(TorchFunctionMode):
    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("input", kwargs.get("query"))
        if not isinstance(first, Tensor) or first.device.type == "cuda":
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func in (F.rms_norm, torch.rms_norm):
            return self._rms_norm(*args, **kwargs)
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **more) -> Tensor:
        def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal, **more)
            return _as_flash_lays_out(out, q)

        mask = () if attn_mask is None else (attn_mask,)
        name = "aten._scaled_dot_product_flash_attention"
        log_sums = 4 * prod(query.shape[:-1])
        flops = _attention_flops(query, key, value, is_causal)
        return _Fused.apply(self.meter, name, run, log_sums, flops, True, query, key, value, *mask)

    def _rms_norm(self, input, normalized_shape, weight=None, eps=None) -> Tensor:
        def run(x: Tensor, gain: Tensor | None = None) -> Tensor:
            return F.rms_norm(x, tuple(normalized_shape), gain, eps)

        statistics = 4 * prod(input.shape[: input.dim() - len(normalized_shape)])
        gain = () if weight is None else (weight,)
        return _Fused.apply(self.meter, "aten._fused_rms_norm", run, statistics, (0, 0), False, input, *gain)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0 or inplace:
            return F.dropout(input, p, training, inplace)
        return torch.native_dropout(input, p, True)[0]


def _as_flash_lays_out(value: Tensor, like: Tensor) -> Tensor:
    """As `like` lies where that has no gaps, else with heads side by side; a later reshape copies or does not by this."""
    if value.dim() < 3:
        return value
    by_time = like.transpose(-3, -2)
    shape = (*by_time.shape[:-1], value.shape[-1])
    empty = torch.empty_like(by_time) if shape == by_time.shape else by_time.new_empty(shape)
    return empty.transpose(-3, -2).copy_(value)


class _Fused(torch.autograd.Function):
    """One launch forward, one backward; the numbers are the unfused function's, its backward by running it again."""

    @staticmethod
    def forward(ctx, meter, name, run, statistics, flops, is_attention, *tensors):
        with _unseen():
            out = run(*tensors)
        meter._see_fused(name, tensors, [out], statistics, flops[0])
        ctx.save_for_backward(*tensors, *((out,) if is_attention else ()))
        ctx.meter, ctx.name, ctx.run, ctx.is_attention = meter, name, run, is_attention
        ctx.statistics, ctx.flops, ctx.n = statistics, flops[1], len(tensors)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        saved = ctx.saved_tensors
        wanted = ctx.needs_input_grad[6:]
        with _unseen():
            tensors = [t.detach().requires_grad_(need) for t, need in zip(saved[: ctx.n], wanted, strict=True)]
            with torch.enable_grad():
                out = ctx.run(*tensors)
            given = iter(torch.autograd.grad(out, [t for t in tensors if t.requires_grad], grad_out))
            lay_out = _as_flash_lays_out if ctx.is_attention else lambda grad, like: torch.empty_like(like).copy_(grad)
            grads = [lay_out(next(given), t) if t.requires_grad else None for t in tensors]
        written = [g for g in grads if g is not None]
        ctx.meter._see_fused(f"{ctx.name}_backward", [grad_out, *saved], written, -ctx.statistics, ctx.flops)
        return (None,) * 6 + tuple(grads)


@contextmanager
def _unseen() -> Iterator[None]:
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


# ---- Triton's interpreter -------------------------------------------------------------------------------------------


@contextmanager
def _interpreter_unseen() -> Iterator[None]:
    """The interpreter copies tensors by aten operations, which no GPU would launch."""
    if not INTERPRETED:
        yield
        return

    call = interpreter.GridExecutor.__call__

    def call_unseen(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _unseen():
            return call(self, *args, **kwargs)

    with replaced(interpreter.GridExecutor, __call__=call_unseen):
        yield


@dataclass
class Observed:
    """Distinct bytes that one launch loaded and stored, beside those it declared."""

    name: str
    declared_read_bytes: int
    declared_write_bytes: int
    _read: dict[int, set[int]] = field(default_factory=dict, repr=False)  # item size -> addresses
    _written: dict[int, set[int]] = field(default_factory=dict, repr=False)

    @property
    def read_bytes(self) -> int:
        return _count_bytes(self._read)

    @property
    def write_bytes(self) -> int:
        return _count_bytes(self._written)


def _count_bytes(addresses: dict[int, set[int]]) -> int:
    if len(addresses) <= 1:
        return sum(size * len(of_size) for size, of_size in addresses.items())
    return len({a + i for size, of_size in addresses.items() for a in of_size for i in range(size)})


def observed_bytes(function: Callable[[], Any]) -> list[Observed]:
    """Runs `function` in Triton's interpreter: what each launch really loaded and stored, masked elements left out.

    Raises RuntimeError outside the interpreter (TRITON_INTERPRET=1 must be set before Python starts).
    """
    if not INTERPRETED:
        raise RuntimeError("observed_bytes needs Triton's interpreter; set TRITON_INTERPRET=1 before Python starts.")
    seen: list[Observed] = []
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store
    rmw, cas = builder.create_atomic_rmw, builder.create_atomic_cas

    def note(kind: str, pointers: Any, mask: Any) -> None:
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = pointers.data if mask is None else pointers.data[mask.data.astype(bool)]
        getattr(seen[-1], kind).setdefault(size, set()).update(addresses.ravel().tolist())

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **more: Any) -> Any:
        note("_read", pointers, mask)
        return load(self, pointers, mask, *rest, **more)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **more: Any) -> Any:
        note("_written", pointers, mask)
        return store(self, pointers, value, mask, *rest, **more)

    def atomic_rmw(self: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note("_read", pointers, mask)
        note("_written", pointers, mask)
        return rmw(self, operation, pointers, value, mask, *rest)

    def atomic_cas(self: Any, pointers: Any, *rest: Any) -> Any:
        note("_read", pointers, None)
        note("_written", pointers, None)
        return cas(self, pointers, *rest)

    def begin(record: Launch) -> None:
        seen.append(Observed(kernel_name(record.kernel), record.read_bytes, record.write_bytes))

    machinery.observers.append(begin)
    try:
        with replaced(
            builder,
            create_masked_load=masked_load,
            create_masked_store=masked_store,
            create_atomic_rmw=atomic_rmw,
            create_atomic_cas=atomic_cas,
        ):
            function()
    finally:
        machinery.observers.remove(begin)
    return seen


# ---- roofline -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """Peak rates of a GPU as its vendor states them: dense 16-bit tensor FLOP/s, float32 FLOP/s, memory bytes/s."""

    flops_16: float
    flops_32: float
    bandwidth: float
    source: str


DEVICES = {
    "A100": Device(312e12, 19.5e12, 2.039e12, "NVIDIA A100 80GB SXM datasheet (2021)"),
    "H100": Device(
        989.4e12, 66.9e12, 3.35e12, "NVIDIA H100 SXM5, Hopper architecture white paper and datasheet (2023)"
    ),
    "B200": Device(2250e12, 80e12, 8e12, "NVIDIA B200 (HGX, 1000 W), Blackwell architecture technical brief (2024)"),
    "MI300X": Device(1307.4e12, 163.4e12, 5.3e12, "AMD Instinct MI300X data sheet (2023)"),
}
# Assumed alike for every device. From a stream the host needs 4 to 6 us a launch; in a graph NVIDIA ("Getting started with
# CUDA Graphs", 2019) saw 0.5 us between kernels, others about 1 us.
LAUNCH_SECONDS = 5e-6
GRAPH_LAUNCH_SECONDS = 1e-6


_PROJECTED = ("launches", "bytes", "flops", "seconds", "launch_seconds", "memory", "arithmetic")


@dataclass(frozen=True)
class Projection:
    """Projected seconds of each operation: not a measurement."""

    device: str
    cuda_graph: bool
    source: str
    operations: dict[str, dict[str, float]]  # operation -> launches, bytes, flops, seconds, launch_seconds

    @property
    def seconds(self) -> float:
        return sum(row["seconds"] for row in self.operations.values())

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "projection", "seconds": self.seconds, **asdict(self)}

    def to_frame(self) -> Any:
        """One row an operation; the column of seconds is named projected_seconds."""
        import pandas as pd

        frame = pd.DataFrame.from_dict(self.operations, orient="index").rename_axis("operation")
        return frame.rename(columns={"seconds": "projected_seconds", "launch_seconds": "projected_launch_seconds"})

    def __str__(self) -> str:
        rows: list[Any] = [
            (name, int(r["launches"]), int(r["bytes"]), int(r["flops"]), f"{1e6 * r['seconds']:.1f}", r["bound"])
            for name, r in self.operations.items()
        ]
        totals = [sum(r[i] for r in rows) for i in (1, 2, 3)]
        how = "within a CUDA graph" if self.cuda_graph else "launched one by one"
        title = f"Projection, not a measurement: {self.device} ({self.source}), {how}"
        header = ("operation", "launches", "bytes", "flops", "projected us", "bound by")
        return f"{title}\n{_table(header, [*rows, ('total', *totals, f'{1e6 * self.seconds:.1f}', '')])}"


def roofline(meter: Meter | Sequence[tuple[Cost, int]], device: str, *, cuda_graph: bool = False) -> Projection:
    """Projected time of each call = max(bytes / bandwidth, FLOPs / peak) + launch, summed by operation.

    meter: a Meter or its `costs`. device: "A100", "H100", "B200" or "MI300X". No kernel reaches both peaks and caches
    are not modelled, so compare projections with projections.
    """
    if device not in DEVICES:
        raise ValueError(f"device={device!r} is unknown; known are {', '.join(DEVICES)}.")
    of = DEVICES[device]
    launch_seconds = GRAPH_LAUNCH_SECONDS if cuda_graph else LAUNCH_SECONDS
    operations: dict[str, dict[str, Any]] = {}
    for cost, n in meter.costs if isinstance(meter, Meter) else meter:
        if not cost.launches:
            continue
        peak = of.flops_16 if cost.dtype in (torch.float16, torch.bfloat16) else of.flops_32
        n_byte = cost.read_bytes + cost.write_bytes
        parts = {
            "memory": n_byte / of.bandwidth,
            "arithmetic": cost.flops / peak,
            "launch": launch_seconds * cost.launches,
        }
        row = operations.setdefault(cost.name, dict.fromkeys(_PROJECTED, 0))
        row["launches"] += n * cost.launches
        row["bytes"] += n * n_byte
        row["flops"] += n * cost.flops
        row["seconds"] += n * (max(parts["memory"], parts["arithmetic"]) + parts["launch"])
        row["launch_seconds"] += n * parts["launch"]
        row["memory"] += n * parts["memory"]
        row["arithmetic"] += n * parts["arithmetic"]
    for row in operations.values():
        parts = {"memory": row.pop("memory"), "arithmetic": row.pop("arithmetic"), "launch": row["launch_seconds"]}
        row["bound"] = max(parts, key=parts.__getitem__)
    ordered = dict(sorted(operations.items(), key=lambda item: -item[1]["seconds"]))
    return Projection(device, cuda_graph, of.source, ordered)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [header, *([f"{c:,}" if isinstance(c, int) else str(c) for c in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)
