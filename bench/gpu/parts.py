"""The parts of `make gpu` in their order, and the processes of each. Standard library only.

A part is some processes with one time limit; those of `check`, `warm` and `tune`'s like run side by side, one a core, for
what they do is compile; those that time something have the card to themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Job:
    """A process: `python -P *arguments`. name: of its files, <part>-<name>.log and .jsonl."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """seconds: the limit of all its jobs together. what: it does, for people. jobs: of a device, "cuda" or "cpu"."""

    name: str
    seconds: float
    what: str
    jobs: Callable[[str], list[Job]]
    side_by_side: bool = False
    asked_for: bool = False  # runs only where PARTS names it


def module(name: str, *arguments: str) -> Job:
    return Job("-".join(arguments) or name, ("-m", f"gpu.{name}", *arguments))


# ---- check ----------------------------------------------------------------------------------------------------------

# name -> d_model, head_dim, members, sequences a member, tokens a sequence, vocabulary. Widths and lengths that divide by 16
# and such as do not; 1, 3 and 16 members.
CHECK_SHAPES = {
    "d256": (256, 64, 3, 2, 250, 4096),
    "d24": (24, 8, 16, 2, 99, 257),
    "d1024": (1024, 256, 1, 1, 513, 4096),
    "d128": (128, 32, 16, 1, 256, 1000),
    "d512": (512, 128, 3, 1, 500, 8192),
    "d72": (72, 24, 3, 1, 131, 1001),
    "d160": (160, 80, 1, 1, 129, 1024),
    "d384": (384, 96, 3, 1, 65, 2048),
    "tiny": (24, 8, 2, 1, 19, 37),
}
FAMILIES = ("products", "others")  # linear, mlp and the model; all else
HALF = ("d256", "d24", "d1024", "d128")  # also in float16


def _check(device: str) -> list[Job]:
    if device == "cpu":
        return [module("check", "tiny", "float32", "products"), module("check", "tiny", "bfloat16", "others")]
    groups = [(shape, dtype) for shape in CHECK_SHAPES if shape != "tiny" for dtype in ("bfloat16", "float32")]
    groups += [(shape, "float16") for shape in HALF]
    return [module("check", shape, dtype, family) for shape, dtype in groups for family in FAMILIES]


# ---- tests ----------------------------------------------------------------------------------------------------------

_NOT_OF_A_CARD = ("test_aot", "test_meter", "test_bench")  # compile or count for cards that need not be there


def _tests(device: str) -> list[Job]:
    pytest = ("-m", "pytest", "-p", "gpu.reports", "-p", "no:cacheprovider")
    if device == "cpu":  # the whole suite runs beside this one
        return [Job("pytest", (*pytest, "tests/kernels/test_reference.py"))]
    left_out = [f"--ignore=tests/kernels/{name}.py" for name in _NOT_OF_A_CARD]
    workers = ("-n", "auto") if find_spec("xdist") else ()
    return [Job("pytest", (*pytest, "tests/kernels", "tests/models", "--device", "cuda", *left_out, *workers))]


# ---- step, time, grid -----------------------------------------------------------------------------------------------

CURVES = ("curve-float32", "curve-bfloat16")
# name -> d_model, layers, members, sequences a member, context
STEPS = {
    "d128": (128, 4, 16, 32, 512),
    "d256": (256, 8, 16, 16, 512),
    "d512": (512, 8, 16, 16, 512),
    "d1024": (1024, 16, 1, 32, 1024),
    "tiny": (16, 1, 2, 2, 12),
}
TIMINGS = (("ceilings",), ("d256",), ("d1024",), ("d512",), ("d128",), ("fleet", "bfloat16"), ("fleet", "float32"))
GRID_SHAPES = 5  # of the preset gpu-mini


def _steps(device: str) -> list[Job]:
    names = ("curve-float32", "tiny") if device == "cpu" else (*CURVES, *(name for name in STEPS if name != "tiny"))
    return [module("step", name) for name in names]


def _timings(device: str) -> list[Job]:
    return [module("timing", *names) for names in ((("ceilings",), ("tiny",)) if device == "cpu" else TIMINGS)]


def _grid(device: str) -> list[Job]:
    return [module("grid", "fleets"), *(module("grid", "plain", number) for number in _shapes(device))]


def _shapes(device: str) -> list[str]:
    return [str(i) for i in range(1 if device == "cpu" else GRID_SHAPES)]


def _tune(device: str) -> list[Job]:
    subjects = ("attention",) if device == "cpu" else ("attention", "linear", "mlp", "head")
    return [module("tune", subject) for subject in subjects]


def _warm(device: str) -> list[Job]:
    """Those of the parts that time, which then find their kernels compiled."""
    if device == "cpu":  # nothing is compiled there
        return []
    fleets = [module("grid", "fleets", number) for number in _shapes(device)]
    timed = [*_steps(device), *_timings(device), *_grid(device)[1:], *fleets]
    return [Job(job.arguments[1].removeprefix("gpu.") + "-" + job.name, (*job.arguments, "--warm")) for job in timed]


PARTS = (
    Part("check", 100, "every operation and gradient against float64, bit by bit twice, members alone", _check, True),
    Part("tests", 100, "the tests of kernels and models on the card", _tests),
    Part("warm", 120, "compiles what the next parts time", _warm, True),
    Part("step", 100, "the CUDA graph against single launches, loss curves beside plain PyTorch, time and memory", _steps),
    Part("time", 120, "the card's ceilings, then each operation beside its peers", _timings),
    Part("grid", 180, "the preset gpu-mini on fleets, and as plain PyTorch one run after another", _grid),
    Part("tune", 480, "candidates for tiles, timed; proposes rows", _tune, asked_for=True),
    Part("record", 30, "writes docs/hardware/ and docs/hardware.md", lambda device: [module("record")]),
)  # fmt: skip
