"""How a kernel is started, seen and made an operator; what every file of this room shares.

An operation is a plain function that checks its arguments, allocates its outputs and calls `launch`. On tensors without
storage (meta tensors, torch's fake tensors) a launch is announced to `observers` and not made: so the same function serves
torch.compile as its shape rule, `meter` counts a step of any size without memory, and `aot` learns from it what to compile.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from triton.runtime import interpreter

INTERPRETED: bool = triton.knobs.runtime.interpret
# The side of a block in the interpreter, where a program costs milliseconds whatever its size; tests take 32, to visit
# several. It does not change with the number of members, nor do therefore a member's bits.
INTERPRETER_SIDE = int(os.environ.get("PYSCALING_INTERPRETER_SIDE", "256"))
# Of the largest card of each target; the interpreter's makes small tests visit several parts and several rows a part.
MULTIPROCESSORS = {
    "sm_80": 108, "sm_90": 132, "sm_100": 148, "sm_120": 188, "gfx942": 304, "gfx950": 256, "interpreter": 2,
}  # fmt: skip
_float32_dots = "tf32x3"  # see `float32_dots`; of the process, since autograd computes gradients in threads of its own
_target: ContextVar[str | None] = ContextVar("target", default=None)


@dataclass(frozen=True)
class Launch:
    """One launch: positional arguments and constants of the kernel, bytes read and written at least, FLOPs of its dots."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    read_bytes: int
    write_bytes: int
    flops: int


observers: list[Callable[[Launch], None]] = []


def launch(
    kernel: Any,
    grid: Sequence[int],
    *args: Any,
    reads: Sequence[Tensor | None],
    writes: Sequence[Tensor | None],
    flops: int = 0,
    num_warps: int = 4,
    num_stages: int = 2,
    all_registers: bool = False,
    **constants: Any,
) -> None:
    """Starts kernel[grid](*args, **constants).

    reads, writes: the tensors of which each byte is read or written at least once (None is left out); a part of a tensor
    is a view of it. flops: two for each multiplication and addition of a matrix product. constants: the tl.constexpr
    arguments. all_registers: NVIDIA's assembler may use as many as a program of num_warps can have, where by itself it would
    spill a few to fit a second program beside the first. Nothing is started for an empty grid.
    """
    if 0 in grid:
        return
    device = next(a.device for a in args if isinstance(a, Tensor))
    if all_registers and target_of(device).startswith("sm_"):
        constants["maxnreg"] = min(255, 65536 // (32 * num_warps))
    if observers:
        record = Launch(
            kernel, tuple(grid), args, constants, num_warps, num_stages, _bytes(reads), _bytes(writes), flops
        )
        for observe in observers:
            observe(record)
    if any(isinstance(a, Tensor) and (a.is_meta or isinstance(a, FakeTensor)) for a in args):
        return
    if INTERPRETED:
        # numpy warns of an overflow, say of exp in a tanh, where a GPU raises nothing
        with _language_patched_once(), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            kernel[tuple(grid)](*args, **constants, num_warps=num_warps, num_stages=num_stages)
    else:
        kernel[tuple(grid)](*args, **constants, num_warps=num_warps, num_stages=num_stages)


@contextmanager
def _language_patched_once() -> Iterator[None]:
    """Triton's interpreter patches triton.language whenever one jitted function calls another, for a third of its time.

    Within a launch once is enough for all functions of a module, which see the same language.
    """
    patch, patched = interpreter._patch_lang, set()

    def patch_once(function: Callable[..., Any]) -> Any:
        if function.__module__ in patched:
            return None  # only the kernel's own patches are taken back, when the launch ends
        patched.add(function.__module__)
        return patch(function)

    with replaced(interpreter, _patch_lang=patch_once, _patch_lang_tensor=_patch_tensor):
        yield


_patch_tensor = interpreter._patch_lang_tensor
if triton.__version__.startswith("3.6."):

    def _patch_tensor(tensor: Any, scope: Any, patch: Callable[..., None] = interpreter._patch_lang_tensor) -> None:
        """A loop's bound is an array [1] to Triton 3.6's interpreter, of which numpy 2.4 makes no int; 3.7 squeezes it."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


@contextmanager
def replaced(owner: Any, **members: Any) -> Iterator[None]:
    """Within it the owner's members of these names are these."""
    before = {name: getattr(owner, name) for name in members}
    for name, member in members.items():
        setattr(owner, name, member)
    try:
        yield
    finally:
        for name, member in before.items():
            setattr(owner, name, member)


def operator(mutates: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: a function becomes the operator pyscaling::<its name>, with itself as the rule for fake tensors.

    Traceable by torch.compile and capturable in a CUDA graph; add a gradient with `.register_autograd`.
    """

    def register(function: Callable[..., Any]) -> Any:
        defined = torch.library.custom_op(f"pyscaling::{function.__name__}", function, mutates_args=tuple(mutates))

        @functools.wraps(function)
        def on_fake_tensors(*args: Any) -> Any:
            with replaced(triton, next_power_of_2=_next_power_of_2):
                return function(*args)

        defined.register_fake(on_fake_tensors)
        return defined

    return register


def _next_power_of_2(n: int) -> int:
    """Triton's own, but for a size that torch.compile traces as a symbol the number it stands for just now.

    A tracing launches nothing, and simplifying what follows from Triton's shifts of a symbol takes minutes.
    """
    size = (n.node.hint or 1) if isinstance(n, torch.SymInt) else n
    return 1 << (size - 1).bit_length() if size > 0 else 0


@contextmanager
def compiled_for(target: str):  # type: ignore[no-untyped-def]
    """Within it launches choose their configuration for a target such as "sm_90" or "gfx942", whatever the device."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


def target_of(device: torch.device) -> str:
    """ "sm_<compute capability>", "gfx<...>", or "interpreter"."""
    override = _target.get()
    if override is not None:
        return override
    if device.type != "cuda":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def check_tensors(tensors: dict[str, Any], optional: dict[str, Any] | None = None) -> None:
    """Raises ValueError that names the argument unless each is a dense tensor; an optional one may be None."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}.")
        if tensor.layout != torch.strided:
            raise ValueError(f"{name} must be dense, got layout {tensor.layout}; call .to_dense().")
    if optional is not None:
        check_tensors({name: tensor for name, tensor in optional.items() if tensor is not None})


def check_filled(name: str, tensor: Tensor, **axes: int) -> None:
    """Raises ValueError unless these axes, each by the name of what it counts, are at least 1 long."""
    for counted, axis in axes.items():
        if tensor.shape[axis] == 0:
            raise ValueError(f"{name} is empty: {list(tensor.shape)}; it needs at least one {counted}.")


def check_number(name: str, value: Any, *, whole: bool = False) -> None:
    """Raises ValueError unless it is a number, or a whole one; True and False are none."""
    kinds = (Integral, torch.SymInt) if whole else (Real, torch.SymFloat, torch.SymInt)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number, got {value!r}.")


def check(
    name: str,
    tensor: Tensor | None,
    shape: Sequence[int | None],
    like: Tensor,
    dtypes: Sequence[torch.dtype] | None = None,
) -> None:
    """Raises ValueError that names the argument unless its shape (None: any length), device and dtype fit.

    like: the operation's first tensor, which sets the device and, unless `dtypes` are given, the dtype. None passes.
    """
    if tensor is None:
        return
    check_tensors({name: tensor})
    fits = tensor.dim() == len(shape) and all(
        n is None or n == size for n, size in zip(shape, tensor.shape, strict=False)
    )
    if not fits:  # torch.compile with dynamic shapes traces no str of a size
        expected = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} must have shape [{expected}], got {list(tensor.shape)}.")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, the first argument on {like.device}; move one of them.")
    allowed = (like.dtype,) if dtypes is None else tuple(dtypes)
    if tensor.dtype not in allowed:
        raise ValueError(
            f"{name} must be {' or '.join(str(d).removeprefix('torch.') for d in allowed)}, got "
            f"{str(tensor.dtype).removeprefix('torch.')}; convert it with .to()."
        )


def check_first(name: str, tensor: Tensor) -> None:
    """Raises ValueError unless the operation's first tensor has a dtype and a device that kernels run on."""
    check_tensors({name: tensor})
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(
            f"{name} must be float32, float16 or bfloat16, got {str(tensor.dtype).removeprefix('torch.')}."
        )
    if tensor.device.type not in ("cuda", "meta") and not INTERPRETED:
        raise ValueError(
            f"{name} is on {tensor.device}; Triton kernels need a GPU, or TRITON_INTERPRET=1 set before Python starts. "
            "pyscaling.kernels.reference runs anywhere."
        )


def rows_contiguous(tensor: Any) -> Any:
    """The tensor, or a copy unless each member's part of it is contiguous."""
    return tensor if tensor is None or tensor[0].is_contiguous() else tensor.contiguous()


def dot_mode(dtype: torch.dtype, target: str) -> str:
    """How `dot` multiplies numbers of this dtype.

    "cast": as float32, since Triton's interpreter computes bfloat16 on its raw bits. "tf32x3": float32 as three products of
    its upper and lower 11 bits on NVIDIA's tensor cores; what is left out is 2^-22 of a product. "ieee": as it stands.
    """
    if INTERPRETED and dtype == torch.bfloat16:
        return "cast"
    return _float32_dots if dtype == torch.float32 and target.startswith("sm_") else "ieee"


@contextmanager
def float32_dots(mode: str) -> Iterator[None]:
    """Within it, in every thread, kernels on NVIDIA multiply float32 by "tf32x3" (the default) or "ieee"; see `dot_mode`."""
    if mode not in ("tf32x3", "ieee"):
        raise ValueError(f'mode must be "tf32x3" or "ieee", got {mode!r}.')
    with replaced(sys.modules[__name__], _float32_dots=mode):
        yield


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _bytes(tensors: Sequence[Tensor | None]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


@triton.jit
def dot(a, b, acc, DOT: tl.constexpr):
    """acc + a b in float32; DOT: see `dot_mode`."""
    if DOT == "cast":
        a = a.to(tl.float32)
        b = b.to(tl.float32)
        return tl.dot(a, b, acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision=DOT)
