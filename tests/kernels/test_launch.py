"""How kernels are started on a card, without one: Triton's driver is replaced by one that writes down what it is told.

The kernels are compiled for sm_90, which the interpreter rules out; each test is therefore a process of its own, which runs
the function of the test's name below.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from pyscaling.kernels import launch as launching
from pyscaling.kernels.launch import check, launch, operator


@triton.jit
def _scale(x, out, n, stride, factor, OFFSET: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + o * stride, mask=o < n, other=0.0)
    tl.store(out + o, (value * factor + OFFSET).to(out.dtype.element_ty), mask=o < n)


def _run_alone(name: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    bench = Path(__file__).parents[2] / "bench"
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(bench), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, __file__, name], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def _recording() -> Iterator[list[tuple[Any, ...]]]:
    """What the driver was told at each launch: grid, stream, the loaded kernel, the kernel's arguments."""
    import host
    from triton.runtime.driver import driver

    seen: list[tuple[Any, ...]] = []

    def launcher(source: Any, metadata: Any) -> Any:
        return lambda x, y, z, stream, function, packed, launch_metadata, enter, leave, *args: seen.append(
            ((x, y, z), stream, function, packed, args)
        )

    with host.posing():
        recorder = host.NoDriver()
        recorder.launcher_cls = launcher  # type: ignore[misc]
        recorder.get_current_stream = lambda device: 100 + device  # type: ignore[method-assign]
        recorder.utils = SimpleNamespace(**vars(recorder.utils))
        recorder.utils.load_binary = lambda name, binary, *rest: (object(), hash(binary), 32, 0, 1024)
        driver.set_active(recorder)
        yield seen


def _kinds_of_arguments() -> Iterator[tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]]:
    """Grids, arguments and constants: dtypes, alignment, whole numbers that Triton tells apart, options."""
    x, out = torch.zeros(64), torch.zeros(64)
    plain: dict[str, Any] = {"OFFSET": 2, "BLOCK": 16, "num_warps": 4, "num_stages": 2}
    for number in (1, 2, 16, 17, 32, 0, -16, 2**31 - 1, 2**31, 2**31 + 16, 2**40, 2**63 + 1):
        yield (3,), (x, out, number, 1, 0.5), plain
        yield (3, 2), (x, out, 5, number, 0.5), plain
    for dtype in (torch.float16, torch.bfloat16, torch.int32):
        yield (1, 2, 3), (x, out.to(dtype), 5, 16, 2.0), plain
    for first, second in ((1, 0), (0, 1), (4, 0), (3, 3)):
        yield (1,), (x[first:], out[second:], 5, 16, 2.0), plain
    yield (1,), (x, torch.nn.Parameter(out), 5, 16, 2.0), plain
    yield (1,), (x, out, 5, 16, 7), plain
    for changed in ({"BLOCK": 32}, {"OFFSET": 1}, {"OFFSET": True}, {"num_warps": 8}, {"maxnreg": 64}):
        yield (1,), (x, out, 5, 16, 2.0), plain | changed


def launches_are_what_triton_would_start() -> None:
    cases = list(_kinds_of_arguments())
    with _recording() as seen:
        for _ in range(3):  # compiled, found by its kind, and once more
            for grid, args, options in cases:
                launch(_scale, grid, *args, reads=[], writes=[], **options)
        ours = list(seen)
        fast = len(launching._started)
        seen.clear()
        for _ in range(3):
            for grid, args, options in cases:
                _scale[grid](*args, **options)
    assert fast == 35  # three differ in nothing that is compiled: a Parameter, 5 and 16 again, OFFSET 1 and True
    assert len(ours) == len(seen) == 3 * len(cases)
    for number, (mine, theirs) in enumerate(zip(ours, seen, strict=True)):
        assert mine[:4] == theirs[:4], (number, mine, theirs)
        assert all(a is b or a == b for a, b in zip(mine[4], theirs[4], strict=True)), (number, mine, theirs)
    count = len({function for _, _, function, _, _ in ours})
    assert count > 10, count  # machine codes


def what_is_known_is_started_without_a_search() -> None:
    x, out = torch.zeros(64), torch.zeros(64)
    with _recording() as seen:
        for _ in range(2):
            launch(_scale, (1,), x, out, 5, 1, 2.0, reads=[], writes=[], OFFSET=0, BLOCK=16)
        with launching.replaced(triton.JITFunction, run=None):  # Triton's own way would fail
            launch(_scale, (1,), x, out, 5, 1, 2.0, reads=[], writes=[], OFFSET=0, BLOCK=16)
        assert len(seen) == 3
        called: list[Any] = []
        triton.knobs.runtime.launch_enter_hook.add(called.append)  # a profiler begins
        with launching.replaced(
            triton.JITFunction, run=lambda self, *args, **options: called.append("Triton's own way")
        ):
            launch(_scale, (1,), x, out, 5, 1, 2.0, reads=[], writes=[], OFFSET=0, BLOCK=16)
        assert called == ["Triton's own way"]


def kernels_start_where_their_tensors_lie() -> None:
    class Elsewhere(torch.Tensor):
        device = property(lambda self: torch.device("cuda", 1))  # type: ignore[assignment]

    x, out = torch.zeros(64).as_subclass(Elsewhere), torch.zeros(64).as_subclass(Elsewhere)
    with _recording() as seen:
        current = [0]
        active = launching.driver.active
        active.get_current_device = lambda: current[0]

        @contextmanager
        def device(index: int) -> Iterator[None]:
            before, current[0] = current[0], index
            yield
            current[0] = before

        with launching.replaced(torch.cuda, device=device):
            launch(_scale, (1,), x, out, 5, 1, 2.0, reads=[], writes=[], OFFSET=0, BLOCK=16)
            current[0] = 1
            with launching.replaced(torch.cuda, device=None):  # nothing is entered where it lies already
                launch(_scale, (1,), x, out, 5, 1, 2.0, reads=[], writes=[], OFFSET=0, BLOCK=16)
        assert [stream for _, stream, *_ in seen] == [101, 101]
        current[0] = 0
        launch(_scale, (1,), torch.zeros(64), out[:], 5, 1, 2.0, reads=[], writes=[], OFFSET=0, BLOCK=16)
        assert seen[-1][1] == 100


@pytest.mark.parametrize(
    "name",
    [
        "launches_are_what_triton_would_start",
        "what_is_known_is_started_without_a_search",
        "kernels_start_where_their_tensors_lie",
    ],
)
def test_on_a_card(name: str) -> None:
    _run_alone(name)


def test_more_members_than_a_grid_holds() -> None:
    x = torch.empty(1, device="meta")
    launch(_scale, (2**20, 65_535, 65_535), x, x, 1, 1, 1.0, reads=[], writes=[], OFFSET=0, BLOCK=16)
    for grid in ((1, 65_536), (1, 2, 65_536)):
        with pytest.raises(
            ValueError, match=r"65,535 along its second or third axis, which count members.*split the fleet"
        ):
            launch(_scale, grid, x, x, 1, 1, 1.0, reads=[], writes=[], OFFSET=0, BLOCK=16)


@operator()
def launch_test_square(x: torch.Tensor, factor: float) -> torch.Tensor:
    return factor * x * x


@operator()
def launch_test_square_gradient(grad: torch.Tensor, x: torch.Tensor, factor: float) -> torch.Tensor:
    return 2 * factor * x * grad


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.factor = inputs[1]


launch_test_square.register_autograd(
    lambda ctx, grad: (launch_test_square_gradient(grad, ctx.saved_tensors[0], ctx.factor), None), setup_context=_save
)


@contextmanager
def _dispatched() -> Iterator[list[str]]:
    """Names of our operators as PyTorch's dispatcher sees them, by a mode of its own."""
    from torch.utils._python_dispatch import TorchDispatchMode

    names: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    with Mode():
        yield names


def test_an_operator_without_the_dispatcher() -> None:
    """Plain tensors: the function itself, its gradient on one node; whoever watches sees the operator."""
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    with (
        launching.replaced(launch_test_square, _opoverload=None),
        launching.replaced(launch_test_square_gradient, _opoverload=None),
    ):
        out = launch_test_square(x, 2.0)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert not launch_test_square(x.detach(), 2.0).requires_grad
        with torch.no_grad():
            assert not launch_test_square(x, 2.0).requires_grad
    assert out.tolist() == [2.0, 8.0, 18.0] and gradient.tolist() == [4.0, 8.0, 12.0]
    with _dispatched() as names:
        launch_test_square(x, 2.0)
    assert names == ["pyscaling::launch_test_square"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        launch_test_square(x, 2.0)
    assert "pyscaling::launch_test_square" in {event.name for event in profile.events()}
    (through,) = torch.autograd.grad(launch_test_square._opoverload(x, 2.0).sum(), x)
    assert torch.equal(through, gradient)


def test_transforms_take_the_operator() -> None:
    """What the direct call would get wrong is left to PyTorch."""
    x = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(torch.vmap(lambda x: launch_test_square(x, 2.0))(x), 2.0 * x * x)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(launch_test_square(leaf, 2.0).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula|Trying to backward"):
        gradient.sum().backward()
    with pytest.raises(NotImplementedError, match="launch_test_square has no forward-mode derivative"):
        torch.func.jvp(lambda x: launch_test_square(x, 2.0), (x,), (x,))
    compiled = torch.compile(lambda x: launch_test_square(x, 2.0) + 1.0, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), launch_test_square(x, 2.0) + 1.0)


def test_check_names_what_does_not_fit() -> None:
    x = torch.zeros(2, 3)
    check("y", None, (1,), x)
    check("y", x, (None, 3), x)
    check("y", x.int(), (2, 3), x, (torch.int32, torch.int64))
    for tensor, shape, message in (
        (x, (2, 4), r"y must have shape \[2, 4\], got \[2, 3\]"),
        (x, (2, None, None), r"y must have shape \[2, any, any\], got \[2, 3\]"),
        (x.double(), (2, 3), "y must be float32, got float64"),
        (x.to("meta"), (2, 3), "y is on meta, the first argument on cpu"),
        (x.to_sparse(), (2, 3), "y must be dense"),
        ([[0.0]], (1, 1), "y must be a tensor, got list"),
    ):
        with pytest.raises(ValueError, match=message):
            check("y", tensor, shape, x)  # type: ignore[arg-type]


def _tf32(x: torch.Tensor) -> torch.Tensor:
    """Rounded to 11 significant bits, to nearest and ties away from zero, as cvt.rna.tf32.f32 does."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _product(parts: list[tuple[torch.Tensor, torch.Tensor]], block: int = 32) -> torch.Tensor:
    """The sum of products a b over blocks of K one after another, in float32, as `dot` within a kernel's loop."""
    acc = torch.zeros(parts[0][0].shape[0], parts[0][1].shape[1])
    for k in range(0, parts[0][0].shape[1], block):
        for a, b in parts:
            acc = acc + a[:, k : k + block] @ b[k : k + block]
    return acc


@pytest.mark.parametrize("K", [64, 256, 1024, 4096, 16384])
def test_three_products_of_tf32_are_nearly_float32(K: int) -> None:
    """Emulated, for no test here runs on tensor cores. Three products leave out 2^-22 of one and round three sums where
    float32 rounds one, independently; TF32 alone rounds both factors to 11 bits, by at most 2^-11 each."""
    generator = torch.Generator().manual_seed(K)
    a, b = torch.randn(64, K, generator=generator), torch.randn(K, 64, generator=generator)
    exact = a.double() @ b.double()
    upper_a, upper_b = _tf32(a), _tf32(b)
    lower_a, lower_b = _tf32(a - upper_a), _tf32(b - upper_b)

    def error(product: torch.Tensor) -> float:
        return float(((product.double() - exact).square().mean() / exact.square().mean()).sqrt())

    single = error(_product([(a, b)]))
    three = error(_product([(lower_a, upper_b), (upper_a, lower_b), (upper_a, upper_b)]))
    one = error(_product([(upper_a, upper_b)]))
    print(f"K {K}: float32 {single:.2e}, three products {three:.2e} ({three / single:.2f} times), TF32 {one:.2e}")
    assert three < 2**-22 + 3**0.5 * single
    assert 2e-4 < one < 2**-11


if __name__ == "__main__":
    globals()[sys.argv[1]]()
