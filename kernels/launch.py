"""How a kernel is started, seen and made an operator; what every file of this room shares.

An operation is a plain function that checks its arguments, allocates its outputs and calls `launch`. On tensors without
storage (meta tensors, torch's fake tensors) a launch is announced to `observers` and not made: so the same function serves
torch.compile as its shape rule, `meter` counts a step of any size without memory, and `aot` learns from it what to compile.

The host's share of a launch is kept small (bench/host.py): a kernel that Triton has compiled once for arguments of a kind is
started again without Triton's binding of arguments, and an operator that nothing watches is called without PyTorch's dispatcher.
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
from torch.autograd import forward_ad
from torch.nn import Parameter
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction, interpreter
from triton.runtime.driver import driver
from triton.tools.tensor_descriptor import TensorDescriptor

INTERPRETED: bool = triton.knobs.runtime.interpret
# The side of a block in the interpreter, where a program costs milliseconds whatever its size; tests take 32, to visit
# several. It does not change with the number of members, nor do therefore a member's bits.
INTERPRETER_SIDE = int(os.environ.get("PYSCALING_INTERPRETER_SIDE", "256"))
# Of the largest card of each target; the interpreter's makes small tests visit several parts and several rows a part.
MULTIPROCESSORS = {
    "sm_80": 108, "sm_90": 132, "sm_100": 148, "sm_120": 188, "gfx942": 304, "gfx950": 256, "interpreter": 2,
}  # fmt: skip
# Cards whose tiles are another's: of like instructions, and 99 KiB of shared memory a program on the first four.
_ALIKE = {
    "sm_86": "sm_120",
    "sm_89": "sm_120",
    "sm_121": "sm_120",
    "sm_75": "sm_120",
    "sm_87": "sm_80",
    "sm_103": "sm_100",
}
_float32_dots = "tf32x3"  # see `float32_dots`; of the process, since autograd computes gradients in threads of its own
_target: ContextVar[str | None] = ContextVar("target", default=None)
_MOST_PROGRAMS = 65_535  # along the second and third axis of a grid, on every CUDA card
_HIP = bool(torch.version.hip)


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
    if max(grid[1:], default=0) > _MOST_PROGRAMS:
        raise ValueError(
            f"a grid of {list(grid)} programs is more than {_MOST_PROGRAMS:,} along its second or third axis, which count "
            "members and cuts of a row, and no card takes that; split the fleet, and call the operation once for each part."
        )
    device = next(a for a in args if isinstance(a, Tensor)).device
    if all_registers and target_of(device).startswith("sm_"):
        constants["maxnreg"] = min(255, 65536 // (32 * num_warps))
    if observers:
        record = Launch(
            kernel, tuple(grid), args, constants, num_warps, num_stages, _bytes(reads), _bytes(writes), flops
        )
        for observe in observers:
            observe(record)
    if device.type == "meta":
        return
    kinds = _kinds(args) if type(kernel) is JITFunction else None
    if kinds is None and any(isinstance(a, Tensor) and (a.is_meta or isinstance(a, FakeTensor)) for a in args):
        return
    if INTERPRETED:
        # numpy warns of an overflow, say of exp in a tanh, where a GPU raises nothing
        with _language_patched_once(), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            kernel[tuple(grid)](*args, **constants, num_warps=num_warps, num_stages=num_stages)
        return
    current = driver.active.get_current_device()
    if device.index is None or device.index == current:
        _start(kernel, grid, args, kinds, constants, num_warps, num_stages, current)
    else:  # Triton starts kernels on the current device, wherever the tensors lie
        with torch.cuda.device(device.index):
            _start(kernel, grid, args, kinds, constants, num_warps, num_stages, device.index)


# What starts a compiled kernel, by all that Triton compiles it for; the last arguments are its constants.
_Started = tuple[Callable[..., None], Any, Any, tuple[Any, ...]]
_started: dict[tuple[Any, ...], _Started] = {}
_MOST_STARTED = 4096  # sizes that change with every call would fill the memory


def _start(
    kernel: Any,
    grid: Sequence[int],
    args: tuple[Any, ...],
    kinds: list[Any] | None,
    constants: dict[str, Any],
    num_warps: int,
    num_stages: int,
    device: int,
) -> None:
    """kernel[grid](...), but what was compiled before is started without being looked for.

    Triton's settings that change what is compiled (TRITON_DEBUG and the like) count as they were at the first launch; hooks
    of its profiler are seen.
    """
    runtime = triton.knobs.runtime
    watched = kinds is None or runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls
    key = None if watched else (id(kernel), device, num_warps, num_stages, *kinds, *constants.items())  # type: ignore[misc]
    known = None if key is None else _started.get(key)
    if known is None or kernel.pre_run_hooks:
        compiled = kernel[tuple(grid)](*args, **constants, num_warps=num_warps, num_stages=num_stages)
        names = kernel.arg_names[len(args) :]
        if key is not None and isinstance(compiled, CompiledKernel) and all(name in constants for name in names):
            last = tuple(constants[name] for name in names)
            if len(_started) >= _MOST_STARTED:
                _started.clear()
            _started[key] = compiled.run, compiled.function, compiled.packed_metadata, last
        return
    run, function, metadata, last = known
    x, y, z = (*grid, 1, 1)[:3]
    # None: neither metadata of the launch nor hooks, which nobody asked for
    run(x, y, z, driver.active.get_current_stream(device), function, metadata, None, None, None, *args, *last)


def _kinds(args: tuple[Any, ...]) -> list[Any] | None:
    """All of the arguments that Triton compiles for; None where one is of a type not thought of here.

    That is a tensor's dtype and whether its address divides by 16, on AMD also whether its storage is below 2 GiB; of a whole
    number, whether it is 1, divides by 16 and fits 32 bits, for which the number itself stands here: cheaper to find.
    """
    kinds: list[Any] = []
    for a in args:
        kind = type(a)
        if kind is Tensor or kind is Parameter:
            kinds += a.dtype, a.data_ptr() % 16
            if _HIP:
                kinds.append(a.untyped_storage().nbytes() < 2**31)
        elif kind is int:
            kinds.append(a)
        elif kind is float:
            kinds.append(kind)
        elif kind is TensorDescriptor:
            kinds += a.base.dtype, tuple(a.block_shape)
        elif kind is tuple:
            inner = _kinds(a)
            if inner is None:
                return None
            kinds.append(tuple(inner))
        else:
            return None
    return kinds


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
        if not mutates:
            defined.__class__ = _Operator

        defined.register_fake(function)
        return defined

    return register


class _Operator(torch.library.CustomOpDef):
    """An operator that its function answers for where PyTorch's dispatcher would add nothing but its 30 to 100 microseconds.

    That is on plain tensors, outside compilation, modes and transforms; a gradient then hangs on an autograd.Function.
    """

    _differentiated: type[torch.autograd.Function] | None = None

    def register_autograd(self, backward: Callable[..., Any], /, *, setup_context: Callable[..., Any]) -> None:  # type: ignore[override]
        super().register_autograd(backward, setup_context=setup_context)
        function = self._init_fn

        def forward(ctx: Any, *args: Any) -> Any:
            result = function(*args)
            setup_context(ctx, args, result)
            return result

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._differentiated = type(f"{self._name}_function", (torch.autograd.Function,), members)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling() or options or not _unwatched(args):
            if forward_ad._current_level >= 0 and any(
                forward_ad.unpack_dual(a).tangent is not None for a in args if isinstance(a, Tensor)
            ):  # PyTorch's dispatcher would take the derivative of an operator without one for zero
                raise NotImplementedError(
                    f"{self._name} has no forward-mode derivative; take a gradient in reverse, by torch.autograd.grad, or use "
                    "pyscaling.kernels.reference."
                )
            return self._opoverload(*args, **options)
        if not (torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)):
            return self._init_fn(*args)
        if self._differentiated is None:  # raises when it is differentiated
            return self._opoverload(*args)
        return self._differentiated.apply(*args)


def _unwatched(args: tuple[Any, ...]) -> bool:
    """Whether these are plain tensors (and what is none) that no mode, transform, tracer or profiler of PyTorch's waits for."""
    for a in args:
        if isinstance(a, Tensor) and type(a) is not Tensor and type(a) is not Parameter:
            return False
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not torch._C._is_tracing()
        and not torch.autograd._profiler_enabled()
    )


def next_power_of_2(n: int) -> int:
    """Triton's own, at a twentieth of its cost; of a size that torch.compile traces as a symbol, the number it stands for now.

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
    return _card(device if device.index is not None else torch.device("cuda", torch.cuda.current_device()))


@functools.cache
def _card(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    capability = f"sm_{properties.major}{properties.minor}"
    return _ALIKE.get(capability, capability)


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


def check_members(name: str, tensor: Tensor) -> tuple[int, ...]:
    """The model axis of a fleet's [M, rows, columns], (M,), or () of a single model's [rows, columns].

    Raises ValueError for any other number of axes, and for no member. With it what else a call is given can be checked as it
    was given, before a single model's tensors get the axis: errors then show the caller's own shapes.
    """
    if tensor.dim() not in (2, 3):
        raise ValueError(
            f"{name} must have shape [M, rows, columns], or [rows, columns] of a single model, got {list(tensor.shape)}."
        )
    members = tuple(tensor.shape[:-2])
    if members:
        check_filled(name, tensor, member=0)
    return members


def as_fleet(*tensors: Tensor | None) -> list[Any]:
    """A single model's tensors with the model axis."""
    return [tensor.unsqueeze(0) if tensor is not None else None for tensor in tensors]


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
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        check_tensors({name: tensor})
    fits = tensor.dim() == len(shape)
    if fits:
        for n, size in zip(shape, tensor.shape, strict=False):
            fits = fits and (n is None or n == size)
    if not fits:  # torch.compile with dynamic shapes traces no str of a size
        expected = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} must have shape [{expected}], got {list(tensor.shape)}.")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, the first argument on {like.device}; move one of them.")
    if tensor.dtype != like.dtype if dtypes is None else tensor.dtype not in dtypes:
        allowed = (like.dtype,) if dtypes is None else dtypes
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
    if tensor is None or tensor.is_contiguous() or tensor[0].is_contiguous():
        return tensor
    return tensor.contiguous()


def dot_mode(dtype: torch.dtype, target: str) -> str:
    """How `dot` multiplies numbers of this dtype.

    "cast": as float32, since Triton's interpreter computes bfloat16 on its raw bits. "tf32x3": float32 as three products of
    its upper and lower 11 bits on NVIDIA's tensor cores, as it stands for "ieee". Emulated on normal numbers (tests/kernels/
    test_launch.py), the error of a sum of K = 64 / 1,024 / 16,384 products, relative to the sum's size: "tf32x3" 1.2e-7 /
    2.1e-7 / 7.2e-7, "ieee" 1.1e-7 / 1.4e-7 / 4.2e-7, TF32 alone 3e-4 throughout.
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
