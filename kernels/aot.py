"""Compiles every kernel that a piece of code launches, for every target, with no GPU: registers, spills, shared memory,
tensor cores, width of loads, occupancy.

    python -m pyscaling.kernels.aot [--target sm_90 ...] [--only attention ...] [--json FILE] [--markdown FILE] [--budget FILE]

A case is a function that launches kernels on meta tensors. It runs once for each target under `compiled_for`; what it
launches is specialised by Triton's own rules for a launch (pointers' alignment and range, integers divisible by 16, ones
made constants), with storages taken to start on 16 bytes as every GPU allocator gives them. Equal specialisations
are compiled once. Numbers come from the compiled code: ptxas -v and the disassembled cubin, or the metadata of amdgcn.

Loads and tensor-core instructions are counted in the text, not by how often a loop runs them. Occupancy is what registers,
shared memory and warps allow; whether a grid fills the device is another matter. A process with TRITON_INTERPRET holds no
compilable kernels: `report` raises RuntimeError there.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import io
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, make_backend
from triton.runtime.cache import get_cache_manager
from triton.runtime.jit import create_function_from_signature

from pyscaling.kernels import launch as machinery
from pyscaling.kernels.adamw import adamw_step
from pyscaling.kernels.attention import attention
from pyscaling.kernels.embedding import embedding
from pyscaling.kernels.launch import INTERPRETED, Launch, cdiv, compiled_for, target_of
from pyscaling.kernels.layer_norm import Norm, NormGradient, layer_norm, norm_tile_rows, rms_norm, sum_all_parts
from pyscaling.kernels.linear import linear, linear_backward, linear_forward
from pyscaling.kernels.linear_cross_entropy import linear_cross_entropy
from pyscaling.kernels.meter import kernel_name
from pyscaling.kernels.mlp import mlp, mlp_forward

Case = tuple[str, Callable[[], Any]]


@dataclass(frozen=True)
class Processor:
    """What a multiprocessor (AMD: compute unit) holds.

    warps, registers and their granule: of one of its four parts; registers are 32 bits a lane. shared and shared_limit:
    bytes of a multiprocessor and of one program. reserved: bytes that the system adds to each program's.
    """

    target: GPUTarget
    warps: int
    registers: int
    granule: int
    shared: int
    shared_limit: int
    reserved: int
    programs: int


_KiB = 1024
# NVIDIA: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability": 64 Ki registers a multiprocessor, so
# 512 a lane in each part, given out by 8. AMD: CDNA3 and CDNA4 instruction set guides: 512 registers (vector and
# accumulation together) a lane of each SIMD, given out by 8, at most 8 waves.
PROCESSORS = {
    "sm_80": Processor(GPUTarget("cuda", 80, 32), 16, 512, 8, 164 * _KiB, 163 * _KiB, _KiB, 32),
    "sm_90": Processor(GPUTarget("cuda", 90, 32), 16, 512, 8, 228 * _KiB, 227 * _KiB, _KiB, 32),
    "sm_100": Processor(GPUTarget("cuda", 100, 32), 16, 512, 8, 228 * _KiB, 227 * _KiB, _KiB, 32),
    "sm_120": Processor(GPUTarget("cuda", 120, 32), 12, 512, 8, 100 * _KiB, 99 * _KiB, _KiB, 24),
    "gfx942": Processor(GPUTarget("hip", "gfx942", 64), 8, 512, 8, 64 * _KiB, 64 * _KiB, 0, 32),
    "gfx950": Processor(GPUTarget("hip", "gfx950", 64), 8, 512, 8, 160 * _KiB, 160 * _KiB, 0, 32),
}
TARGETS = tuple(PROCESSORS)
TENSOR_MEMORY_COLUMNS = 512  # of a multiprocessor of sm_100


@dataclass(frozen=True)
class Row:
    """One kernel as compiled for one target."""

    kernel: str
    target: str
    dtype: str
    cases: tuple[str, ...]
    num_warps: int
    num_stages: int
    constants: dict[str, Any] = field(repr=False)
    registers: int = 0  # a thread
    spilled_bytes: int = 0  # a thread; NVIDIA: stores and loads in the text, AMD: scratch
    shared_bytes: int = 0
    shared_limit: int = 0
    tensor_memory_columns: int = 0
    dots: int = 0  # matrix products
    dots_16: int = 0  # of these with 16-bit operands
    tensor_cores: dict[str, int] = field(default_factory=dict)  # instruction -> times in the text
    tiles: dict[str, int] = field(
        default_factory=dict
    )  # "64x256x16": of one such instruction, M x N x K -> times in the text
    loads: int = 0  # of global memory, in the text
    loads_16: int = 0  # of these at least 16 bytes a thread
    loads_tma: int = 0  # of these a whole block by the tensor memory accelerator, from sm_90 on
    even: bool = False  # pointers, and sizes and strides of 16 or more, divide by 16: nothing forbids loads of 16 bytes
    warps: int = 0  # that fit: a multiprocessor's (NVIDIA) or a SIMD's (AMD)
    occupancy: float = 0.0
    limited_by: str = ""
    seconds: float = 0.0
    error: str = ""


# ---- capturing ------------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    kernel: Any
    target: str
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: Any
    even: bool
    cases: list[str]


class _Pointer:
    """A tensor as Triton's specialisation sees it; its storage is taken to be aligned."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype = tensor.dtype
        self._offset = int(tensor.storage_offset()) * tensor.element_size()
        self._range = tensor.untyped_storage().nbytes()

    def data_ptr(self) -> int:
        return self._offset

    def ptr_range(self) -> int:
        return self._range


def capture(cases: Iterable[Case], target: str) -> list[_Job]:
    """The distinct specialisations that the cases launch for one target."""
    jobs: dict[str, _Job] = {}
    name = ""
    backend = make_backend(PROCESSORS[target].target)

    def see(record: Launch) -> None:
        kernel = record.kernel
        if not isinstance(kernel, triton.JITFunction):
            raise TypeError(
                f"{name} launches {kernel!r}; only plain @triton.jit kernels can be compiled ahead of time."
            )
        arguments = [_Pointer(a) if isinstance(a, Tensor) else a for a in record.args]
        options = dict(record.constants, num_warps=record.num_warps, num_stages=record.num_stages)
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, _ = bind(*arguments, **options)
        options, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, None)
        key = f"{kernel.cache_key} {specialization} {options}"
        even = all(a.data_ptr() % 16 == 0 for a in arguments if isinstance(a, _Pointer)) and all(
            a < 16 or a % 16 == 0 for a in arguments if isinstance(a, int)
        )
        job = jobs.setdefault(key, _Job(kernel, target, signature, constants, attributes, options, True, []))
        job.even &= even  # equal specialisations may be launched with several sizes
        job.cases.append(name)

    machinery.observers.append(see)
    try:
        for name, run in cases:
            try:
                with compiled_for(target):
                    run()
            except Exception as error:
                error.add_note(f"in the case {name!r} for {target}")
                raise
    finally:
        machinery.observers.remove(see)
    return list(jobs.values())


# ---- compiling and reading ------------------------------------------------------------------------------------------


def report(
    cases: Sequence[Case], targets: Sequence[str] = TARGETS, *, processes: int = 2, progress: bool = False
) -> list[Row]:
    """Compiles what the cases launch; a kernel that does not compile is a row with its `error`.

    cases: (name, function) pairs, each run on meta tensors. targets: of TARGETS. progress: a line for each kernel to stderr.
    Raises RuntimeError under TRITON_INTERPRET and ValueError for an unknown target.
    """
    if INTERPRETED:
        raise RuntimeError(_NOT_HERE)
    for target in targets:
        if target not in PROCESSORS:
            raise ValueError(f"target {target!r} is unknown; known are {', '.join(TARGETS)}.")
    jobs = [job for target in targets for job in capture(cases, target)]
    _jobs[:] = jobs
    rows = []
    # fork: kernels are known by their functions, which may live in a script; Triton compiles without any device
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:
        for row in pool.map(_measure, range(len(jobs))):
            rows.append(row)
            if progress:
                result = _summary(row.error) if row.error else f"{row.registers} registers"
                head = f"[{len(rows)}/{len(jobs)}] {row.target} {row.kernel} {row.dtype}"
                print(f"{head}: {result}, {row.seconds:.1f} s", file=sys.stderr, flush=True)
    return rows


_NOT_HERE = "TRITON_INTERPRET is set, so kernels cannot be compiled; run this in a process without it."
_jobs: list[_Job] = []  # what the forked processes inherit


def _measure(index: int) -> Row:
    job, start = _jobs[index], time.perf_counter()
    kernel = job.kernel
    # pointers and tensor descriptors: "*bf16", "tensordesc<bf16[1, 128, 64]>"
    types = [t.removeprefix("tensordesc<").lstrip("*").split("[")[0] for t in job.signature.values() if t[0] in "*t"]
    floats = [t for t in types if t in ("fp16", "bf16", "fp32")]
    about: dict[str, Any] = {
        "kernel": kernel_name(kernel),
        "target": job.target,
        "dtype": next((t for t in floats if t != "fp32"), "fp32" if floats else ""),
        "cases": tuple(dict.fromkeys(job.cases)),
        "num_warps": job.options.num_warps,
        "num_stages": job.options.num_stages,
        "even": job.even,
        "constants": {kernel.arg_names[path[0]]: value for path, value in job.constants.items()},
    }
    try:
        source = ASTSource(kernel, job.signature, job.constants, job.attributes)
        log = io.StringIO()
        triton.knobs.nvidia.dump_ptxas_log = True
        with redirect_stdout(log):  # Triton prints what ptxas -v says, though not of a kernel from its cache
            compiled = triton.compile(source, target=PROCESSORS[job.target].target, options=job.options.__dict__)
        found = _read_cached(compiled, job, log.getvalue())
    except Exception as error:  # one kernel's failure is a row, not the end of the report
        return Row(**about, seconds=time.perf_counter() - start, error=f"{type(error).__name__}: {error}")
    return Row(**about, **found, seconds=time.perf_counter() - start)


def _read_cached(compiled: Any, job: _Job, log: str) -> dict[str, Any]:
    """What `_read` finds lies beside the compiled kernel, for as long as the functions that read stay as they are."""
    cache = get_cache_manager(compiled.hash)
    name = f"pyscaling_{_READERS}.json"
    path = cache.get_file(name)
    if path is not None:
        return json.loads(Path(path).read_text())
    found = _read(compiled, job, log)
    cache.put(json.dumps(found), name, binary=False)
    return found


def _read(compiled: Any, job: _Job, log: str) -> dict[str, Any]:
    """log: what ptxas -v said, if it ran just now."""
    read = _read_nvidia if "cubin" in compiled.asm else _read_amd
    found, text, wide = read(compiled, job, log)
    metadata = compiled.metadata
    processor = PROCESSORS[job.target]
    tensor_cores = Counter(re.findall(r"\b(?:[HIOQ]MMA|HGMMA|UTC[A-Z]MMA)\b|\bv_s?mfma(?=_)", text))
    loads = re.findall(r"\b(?:LDG|LDGSTS|UTMALDG|UBLKCP)\b[.\w]*|\b(?:global|buffer|flat)_load_\w+", text)
    # sm_100's shapes lie in a descriptor that the text does not show
    tiles = re.findall(r"\bHGMMA\.(\d+x\d+x\d+)|\bHMMA\.(16816|1688)\b|\bv_s?mfma_\w+?_(\d+x\d+x\d+)", text)
    named = {"16816": "16x8x16", "1688": "16x8x8"}
    warps, by = occupancy(found["registers"], metadata.shared, metadata.num_warps, job.target)
    return {
        **found,
        "shared_bytes": metadata.shared,
        "shared_limit": processor.shared_limit,
        "tensor_memory_columns": getattr(metadata, "tmem_size", None) or 0,
        "dots": len(re.findall(r"tt\.dot [^\n]*: tensor<", compiled.asm["ttir"])),
        "dots_16": len(re.findall(r"tt\.dot [^\n]*: tensor<[\dx]+x(?:bf16|f16)>", compiled.asm["ttir"])),
        "tensor_cores": dict(tensor_cores),
        "tiles": dict(Counter(hgmma or named.get(hmma) or mfma for hgmma, hmma, mfma in tiles)),
        "loads": len(loads),
        "loads_16": sum(bool(re.search(wide, load)) for load in loads),
        "loads_tma": sum(load.startswith("UTMALDG") for load in loads),
        "warps": warps,
        "occupancy": warps / (processor.warps * (4 if "cubin" in compiled.asm else 1)),
        "limited_by": by,
    }


def _read_nvidia(compiled: Any, job: _Job, log: str) -> tuple[dict[str, int], str, str]:
    ptxas = get_ptxas(PROCESSORS[job.target].target.arch).path
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernel.cubin").write_bytes(compiled.asm["cubin"])
        if "Used" not in log:
            log = _ptxas_again(ptxas, folder, compiled.asm["ptx"], job)
        disassemble = [str(Path(ptxas).parent / "nvdisasm"), "-c", "kernel.cubin"]
        text = subprocess.run(disassemble, cwd=folder, capture_output=True, text=True, check=True).stdout
    registers = re.search(r"Used (\d+) registers", log)
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert registers is not None and spilled is not None, log
    found = {"registers": int(registers[1]), "spilled_bytes": int(spilled[1]) + int(spilled[2])}
    return found, text, r"\.128|\.256|^UTMALDG|^UBLKCP"


def _ptxas_again(ptxas: str, folder: str, ptx: str, job: _Job) -> str:
    arch = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert arch is not None
    Path(folder, "kernel.ptx").write_text(ptx)
    # Triton's own options, see NVIDIABackend.make_cubin
    fuse = [] if job.options.enable_fp_fusion else ["--fmad=false"]
    more = job.options.ptx_options.split() if job.options.ptx_options else []
    options = ["-v", "-lineinfo", "--regAllocOptLevel=2", *fuse, *more, f"--gpu-name={arch[1]}"]
    return subprocess.run(
        [ptxas, *options, "kernel.ptx"], cwd=folder, capture_output=True, text=True, check=True
    ).stderr


def _read_amd(compiled: Any, job: _Job, log: str) -> tuple[dict[str, int], str, str]:
    text = compiled.asm["amdgcn"]

    def number(key: str) -> int:
        match = re.search(rf"^\s*-?\s*\.{key}:\s*(\d+)", text, re.MULTILINE)
        assert match is not None, key
        return int(match[1])

    found = {"registers": number("vgpr_count"), "spilled_bytes": number("private_segment_fixed_size")}
    return found, text, r"dwordx4|b128"


def occupancy(registers: int, shared_bytes: int, num_warps: int, target: str) -> tuple[int, str]:
    """Warps that fit on a multiprocessor (AMD: waves on a SIMD), and what keeps more from fitting."""
    p = PROCESSORS[target]
    given = max(p.granule, -(-registers // p.granule) * p.granule)
    fits = {
        "warps": 4 * p.warps // num_warps,
        "registers": 4 * min(p.registers // given, p.warps) // num_warps,
        "programs": p.programs,
        "shared memory": p.shared // (shared_bytes + p.reserved) if shared_bytes + p.reserved else p.programs,
    }
    programs = min(fits.values())
    warps = programs * num_warps
    return warps if p.target.backend == "cuda" else warps // 4, min(fits, key=fits.__getitem__)


_READERS = hashlib.sha256(
    "".join([*(inspect.getsource(f) for f in (_read, _read_nvidia, _read_amd, occupancy)), repr(PROCESSORS)]).encode()
).hexdigest()[:16]


# ---- judging and printing -------------------------------------------------------------------------------------------


def problems(rows: Iterable[Row]) -> list[str]:
    """What no kernel may have: errors, spills, too much shared memory, 16-bit products without tensor cores, narrow loads.

    Narrow: a kernel with products has no load of 16 bytes, though every pointer, size and stride divides by 16 (`Row.even`;
    numbers below 16 count heads or members and address no element). Without products a load may well be of one number a row.
    """
    found = []
    for row in rows:
        where = _where(row)
        if row.error:
            found.append(f"{where}: {_summary(row.error)}")
            continue
        if row.spilled_bytes:
            found.append(
                f"{where}: spills {row.spilled_bytes} bytes; take a smaller block, more warps or fewer stages."
            )
        if row.shared_bytes > row.shared_limit:
            found.append(f"{where}: takes {row.shared_bytes} bytes of shared memory, the limit is {row.shared_limit}.")
        if row.tensor_memory_columns > TENSOR_MEMORY_COLUMNS:
            found.append(
                f"{where}: takes {row.tensor_memory_columns} columns of tensor memory of {TENSOR_MEMORY_COLUMNS}."
            )
        if row.dots_16 and not row.tensor_cores:
            found.append(f"{where}: has {row.dots_16} products of 16-bit operands and no tensor-core instruction.")
        if row.dots and row.constants.get("DOT") == "tf32x3" and not row.tensor_cores:
            found.append(f"{where}: has {row.dots} products by tf32x3 and no tensor-core instruction.")
        if row.even and row.dots and row.loads and not row.loads_16:
            found.append(f"{where}: none of {row.loads} loads takes 16 bytes, though every size divides by 16.")
    return found


@dataclass(frozen=True)
class Worst:
    """The worst of one kernel, target and dtype over what is compiled of it."""

    kernel: str
    target: str
    dtype: str
    compiled: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    shared_limit: int
    tensor_cores: tuple[str, ...]  # that each uses which has 16-bit products; if none is, of which each uses some
    each_uses_all: bool
    tiles: tuple[str, ...]  # of those instructions in any, as M x N
    by_tma: int  # how many load blocks by the tensor memory accelerator
    wide: float | None  # share of loads of 16 bytes, of those where nothing forbids them
    occupancy: float
    limited_by: str
    errors: tuple[str, ...]


def worst(rows: Iterable[Row]) -> list[Worst]:
    """One for each kernel, target and dtype, in the order of kernels, dtypes and TARGETS."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.kernel, row.dtype, row.target), []).append(row)
    return [_worst(*key, groups[key]) for key in sorted(groups, key=lambda key: (*key[:2], TARGETS.index(key[2])))]


def _worst(kernel: str, dtype: str, target: str, rows: list[Row]) -> Worst:
    sound = [row for row in rows if not row.error]
    lowest = min(sound, key=lambda row: row.occupancy, default=None)
    cores = [set(row.tensor_cores) for row in sound if row.dots_16] or [set().union(*(r.tensor_cores for r in sound))]
    mixed = all(cores) and not set.intersection(*cores)
    return Worst(
        kernel=kernel,
        target=target,
        dtype=dtype,
        compiled=len(rows),
        registers=max((row.registers for row in sound), default=0),
        spilled_bytes=max((row.spilled_bytes for row in sound), default=0),
        shared_bytes=max((row.shared_bytes for row in sound), default=0),
        shared_limit=PROCESSORS[target].shared_limit,
        tensor_cores=tuple(sorted(set.union(*cores) if mixed else set.intersection(*cores))),
        each_uses_all=not mixed,
        tiles=tuple(sorted({tile.rpartition("x")[0] for row in sound for tile in row.tiles}, key=_by_size)),
        by_tma=sum(row.loads_tma > 0 for row in sound),
        wide=min((row.loads_16 / row.loads for row in sound if row.even and row.loads), default=None),
        occupancy=lowest.occupancy if lowest else 0.0,
        limited_by=lowest.limited_by if lowest else "",
        errors=tuple(_summary(row.error) for row in rows if row.error),
    )


def _by_size(tile: str) -> list[int]:
    return [int(side) for side in tile.split("x")]


def budget(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """What each kernel may take on each target in each dtype; `regressions` compares with it."""
    return {
        f"{w.kernel} {w.target} {w.dtype}": {
            "registers": w.registers,
            "shared": w.shared_bytes,
            "occupancy": round(w.occupancy, 4),
            "wide": None if w.wide is None else round(w.wide, 3),
            "tensor_cores": (" " if w.each_uses_all else " or ").join(w.tensor_cores),
        }
        for w in worst(rows)
    }


def regressions(rows: Iterable[Row], allowed: dict[str, dict[str, Any]]) -> list[str]:
    """Where rows are worse than the budget allows; rows may be a part of what it was made of, as it holds the worst.

    Registers may grow by 8, the granule in which they are given out; occupancy may not fall, nor the share of 16-byte loads
    by more than 0.05, nor may a tensor-core instruction vanish; where the budget knows "one or another", no third may appear.
    """
    found = []
    for row in rows:
        where, line = _where(row), allowed.get(f"{row.kernel} {row.target} {row.dtype}")
        if row.error:
            continue  # one of the `problems`
        if line is None:
            found.append(f"{where}: not in the budget; write it anew with --budget.")
            continue
        if row.registers > line["registers"] + 8:
            found.append(f"{where}: takes {row.registers} registers, the budget is {line['registers']}.")
        if row.occupancy < line["occupancy"] - 1e-3:
            found.append(
                f"{where}: occupancy {row.occupancy:.0%}, limited by {row.limited_by}; it was {line['occupancy']:.0%}."
            )
        uses, known = set(row.tensor_cores), line["tensor_cores"]
        kept = bool(uses) and uses <= set(known.split(" or ")) if " or " in known else set(known.split()) <= uses
        if row.dots_16 and not kept:
            gone = known if " or " in known else ", ".join(sorted(set(known.split()) - uses))
            found.append(f"{where}: uses {', '.join(row.tensor_cores) or 'no tensor cores'}, not {gone}.")
        if row.even and row.loads and line["wide"] is not None and row.loads_16 / row.loads < line["wide"] - 0.05:
            found.append(f"{where}: {row.loads_16} of {row.loads} loads take 16 bytes, it was {line['wide']:.0%}.")
    return found


def versions() -> str:
    return f"torch {torch.__version__.partition('+')[0]}, triton {triton.__version__}"


def to_json(rows: Iterable[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=1, default=str)


def budget_section() -> str:
    """Which part of a budget is of what compiles here: the code is Triton's, whatever torch is beside it."""
    return f"triton {triton.__version__}"


def to_budget(rows: Sequence[Row], before: str = "{}") -> str:
    """JSON with a section for each version of Triton: its `problems`, and `kernels`, a line each, so that changes read well.

    before: the budget so far, of which the other versions' sections stay.
    """
    sections = json.loads(before) | {budget_section(): {"problems": problems(rows), "kernels": budget(rows)}}
    written = []
    for name in sorted(sections, key=lambda name: [int(n) for n in re.findall(r"\d+", name)], reverse=True):
        of = sections[name]
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in of["kernels"].items())
        written.append(
            f' {json.dumps(name)}: {{"problems": {json.dumps(of["problems"])}, "kernels": {{\n{lines}\n }}}}'
        )
    return "{\n" + ",\n".join(written) + "\n}\n"


def to_markdown(rows: Sequence[Row], known: str = "{}") -> str:
    """A page with a table for each file of kernels, one line for each kernel, dtype and target, and the problems found.

    known: a budget, of whose other sections the problems are listed.
    """
    found = problems(rows)
    n_target, names = len({row.target for row in rows}), {name for row in rows for name in row.cases}
    shapes: dict[Shape, dict[str, None]] = {}
    for name, shape, _ in _shipped():
        if name in names:
            shapes.setdefault(shape, {})[re.split("[ ,]", name)[0]] = None
    listed = [f"- {s}" if s in (TYPICAL, SMALL) else f"- {s} ({' and '.join(of)} only)" for s, of in shapes.items()]
    lines = [_PAGE.format(versions=versions(), n_row=len(rows), n_target=n_target, shapes="\n".join(listed))]
    lines += [f"- {problem}" for problem in found] or ["No problems found."]
    for name, section in json.loads(known).items():
        if name != budget_section():
            lines.append(f"\nWith {name}:\n" if section["problems"] else f"\nWith {name}: no problems found.")
            lines += [f"- {problem}" for problem in section["problems"]]
    header = (
        "kernel", "dtype", "target", "compiled", "registers", "spilled", "shared", "tensor cores", "16-byte loads",
        "occupancy",
    )  # fmt: skip
    file = ""
    for w in worst(rows):
        if not w.kernel.startswith(f"{file}."):
            file = w.kernel.partition(".")[0]
            lines += [f"\n## {file}\n", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        cells = [w.kernel.removeprefix(f"{file}."), w.dtype or "integers", w.target, str(w.compiled)]
        if w.errors:
            cells += [w.errors[0].replace("|", "/"), *[""] * 5]
        else:
            cells += [
                str(w.registers),
                str(w.spilled_bytes),
                f"{w.shared_bytes / _KiB:.0f} of {w.shared_limit // _KiB} KiB",
                (", " if w.each_uses_all else " or ").join(w.tensor_cores) + f" {', '.join(w.tiles)}".rstrip() or "-",
                ("-" if w.wide is None else f"{w.wide:.0%}") + (f", TMA in {w.by_tma}" if w.by_tma else ""),
                f"{w.occupancy:.0%} ({w.limited_by})",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


_PAGE = """# Kernels as compiled

Written by `python -m pyscaling.kernels.aot --markdown docs/kernels.md --budget tests/kernels/budget.json` with {versions}:
{n_row} kernels, compiled ahead of time for {n_target} targets. **Nothing here ran on hardware.** The numbers are read from the
compiled code and say nothing of speed; the rows one by one are what `--json FILE` writes.

Shapes and head widths:

{shapes}

Not among them is attention in float32 with heads wider than 64: its backward spills on NVIDIA at a head width of 256 (2.3 KB a
thread on sm_90). Nor is float16 with such heads, which compiles as bfloat16 does.

A line is the worst of one kernel, dtype and target over the shapes and options that are compiled:

- *compiled*: how many those are.
- *registers*: of 32 bits a thread, at most 255 (AMD: 512). *spilled*: bytes a thread; must be 0.
- *shared*: memory of one program, of the most it may have.
- *tensor cores*: the instructions that each of them uses which multiplies 16-bit matrices, or of which each uses one or
  another, by its shape; and M x N of one such instruction, where the text shows it. float32 is multiplied on NVIDIA as three
  products of 11 bits (tf32x3), on AMD in full precision.
- *16-byte loads*: the least share, of the loads of global memory in the text, where all sizes divide by 16; and how many load
  whole blocks by the tensor memory accelerator (TMA).
- *occupancy*: warps that fit on a multiprocessor (AMD: waves on a SIMD), of the most it holds, and what keeps more from
  fitting; whether a grid fills the device is another matter.
"""


def _where(row: Row) -> str:
    return f"{row.kernel} {row.dtype} for {row.target} ({_first(row.cases)})"


def _summary(error: str) -> str:
    """Its first line; Triton's is a place, with the source and then the cause below it."""
    lines = [line for line in error.splitlines() if line.strip()]
    return f"{lines[0]} {lines[-1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def _first(cases: Sequence[str]) -> str:
    return cases[0] + (f"; {len(cases) - 1} more" if len(cases) > 1 else "")


# ---- the shipped cases ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    n_member: int
    n_sequence: int
    context: int
    d_model: int
    n_head: int
    d_ff: int
    vocab: int

    def __str__(self) -> str:
        return (
            f"{self.n_member} members x {self.n_sequence} sequences x {self.context} tokens, d_model {self.d_model}, "
            f"{self.n_head} heads of width {self.d_model // self.n_head}, d_ff {self.d_ff}, vocabulary {self.vocab}"
        )


TYPICAL = Shape(n_member=8, n_sequence=16, context=512, d_model=256, n_head=4, d_ff=1024, vocab=8192)
SMALL = Shape(n_member=3, n_sequence=2, context=100, d_model=24, n_head=3, d_ff=90, vocab=257)  # nothing divides by 16
# attention's blocks depend on head_dim
WIDE_HEADS = tuple(Shape(8, 4, 1024, 4 * head_dim, 4, 1024, 8192) for head_dim in (128, 256))
WIDE_MODEL = Shape(2, 4, 512, 1024, 8, 4096, 8192)  # the widest tiles; the cross-entropy's backward in chunks
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def shipped_cases(
    shapes: Sequence[Shape] = (TYPICAL, SMALL), dtypes: Sequence[torch.dtype] = DTYPES, device: str = "meta"
) -> list[Case]:
    """Forward and backward of every operation of this room at each shape and dtype, and some at WIDER ones."""
    return [(name, partial(run, device=device)) for name, _, run in _shipped(shapes, dtypes)]


def _shipped(
    shapes: Sequence[Shape] = (TYPICAL, SMALL), dtypes: Sequence[torch.dtype] = DTYPES
) -> list[tuple[str, Shape, Callable[..., None]]]:
    """Each case's name, shape, and function but for its device."""
    return [
        (f"{name}, d_model {shape.d_model}, {str(dtype).removeprefix('torch.')}", shape, partial(run, shape, dtype))
        for name, run in OPERATIONS.items()
        for shape in (*shapes, *WIDER.get(name, ()))
        for dtype in dtypes
        if shape not in WIDE_HEADS or dtype == torch.bfloat16  # float16 compiles alike; float32 spills (attention.py)
    ]


def _random(*size: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(*size, dtype=torch.float32, device=device).to(dtype).requires_grad_()


def _backward(*outputs: Tensor) -> None:
    torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])


def _linear(shape: Shape, dtype: torch.dtype, device: str) -> None:
    make, n_row = partial(_random, shape.n_member, dtype=dtype, device=device), shape.n_sequence * shape.context
    d = shape.d_model
    _backward(linear(make(n_row, d), make(d, 3 * d), make(3 * d)))
    _backward(linear(make(n_row, d), make(d, d), None, make(n_row, d)))


def _mlp(activation: str, shape: Shape, dtype: torch.dtype, device: str) -> None:
    make, n_row = partial(_random, shape.n_member, dtype=dtype, device=device), shape.n_sequence * shape.context
    width = shape.d_ff * (2 if activation in ("swiglu", "geglu") else 1)
    up, down = make(shape.d_model, width), make(shape.d_ff, shape.d_model)
    x = make(n_row, shape.d_model)
    _backward(mlp(x, up, make(width), down, make(shape.d_model), activation, x))


def _attention(options: dict[str, Any], shape: Shape, dtype: torch.dtype, device: str) -> None:
    head_dim = shape.d_model // shape.n_head
    packed = _random(
        shape.n_member * shape.n_sequence, shape.context, 3, shape.n_head, head_dim, dtype=dtype, device=device
    )
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    _backward(attention(q, k, v, **options))


def _layer_norm(options: dict[str, Any], shape: Shape, dtype: torch.dtype, device: str) -> None:
    make, n_row = partial(_random, shape.n_member, dtype=dtype, device=device), shape.n_sequence * shape.context
    x, gain, residual = make(n_row, shape.d_model), make(shape.d_model), make(n_row, shape.d_model)
    norm = rms_norm if options["rms"] else partial(layer_norm, bias=make(shape.d_model))
    out = norm(x, gain, residual=residual if options["residual"] else None)
    _backward(*(out if options["residual"] else (out,)))


def _norm_in_products(rms: bool, shape: Shape, dtype: torch.dtype, device: str) -> None:
    """What a fused transformer launches besides: products that norm what they write, and their gradients."""
    M, R, d = shape.n_member, shape.n_sequence * shape.context, shape.d_model
    make = partial(torch.empty, dtype=dtype, device=device)
    full = partial(torch.empty, dtype=torch.float32, device=device)
    activation, width = ("swiglu", 2 * shape.d_ff) if rms else ("gelu", shape.d_ff)
    norm_bias, bias, up_bias = (None, None, None) if rms else (make(M, d), make(M, d), make(M, width))
    rows, stats = make(M, R, d), full(1 if rms else 2, M, R)
    norm = Norm(make(M, d), norm_bias, make(M, R, d), stats)
    linear_forward(rows, make(M, d, d), bias, make(M, R, d), norm)
    mlp_forward(rows, make(M, d, width), up_bias, make(M, shape.d_ff, d), bias, make(M, R, d), activation, norm)
    n_part = cdiv(R, norm_tile_rows(R, d, dtype, target_of(rows.device)))
    parts = full(1 if rms else 2, M, n_part, d)
    gradient = NormGradient(make(M, R, d), make(M, d), stats, make(M, R, d), parts)
    for wide in (3 * d, width):
        grads = full(M, d, wide), None if rms else full(M, wide)
        linear_backward(make(M, R, wide), rows, make(M, d, wide), *grads, gradient, has_bias=not rms)
    sum_all_parts(parts, full(M, 4 * d), d * torch.arange(len(parts), device=device))


def _linear_cross_entropy(tied: bool, shape: Shape, dtype: torch.dtype, device: str) -> None:
    make, n_row = partial(_random, shape.n_member, dtype=dtype, device=device), shape.n_sequence * shape.context
    d, vocab = shape.d_model, shape.vocab
    weight = make(vocab, d).mT if tied else make(d, vocab)
    targets = torch.randint(0, vocab, (shape.n_member, n_row), device=device)
    _backward(linear_cross_entropy(make(n_row, d), weight, targets))


def _embedding(positions: bool, shape: Shape, dtype: torch.dtype, device: str) -> None:
    make = partial(_random, shape.n_member, dtype=dtype, device=device)
    tokens = torch.randint(0, shape.vocab, (shape.n_member, shape.n_sequence, shape.context), device=device)
    position = make(shape.context + 1, shape.d_model) if positions else None
    _backward(embedding(tokens, make(shape.vocab, shape.d_model), position))


def _adamw(shape: Shape, dtype: torch.dtype, device: str) -> None:
    """Weights are float32 always; in 16 bits a copy of them is written, too."""
    n_member, n_parameter = shape.n_member, shape.d_model * (12 * shape.d_model + shape.vocab)
    make = partial(torch.rand, dtype=torch.float32, device=device)
    flat, gradient, exp_avg, exp_avg_sq = (make(n_member, n_parameter) for _ in range(4))
    settings, clock = make(6, n_member, dtype=torch.float64), torch.ones(2, dtype=torch.float64, device=device)
    alive = torch.ones(n_member, dtype=torch.bool, device=device)
    failed_step = torch.zeros(n_member, dtype=torch.int64, device=device)
    cast = torch.empty_like(flat, dtype=dtype) if dtype != torch.float32 else None
    n_decayed = 12 * shape.d_model**2
    adamw_step(
        flat, gradient, exp_avg, exp_avg_sq, settings, clock, make(n_member), alive, failed_step, n_decayed, cast=cast
    )


OPERATIONS: dict[str, Callable[[Shape, torch.dtype, str], None]] = {
    "linear": _linear,
    **{f"mlp {activation}": partial(_mlp, activation) for activation in ("gelu", "gelu_exact", "swiglu", "geglu")},
    "attention": partial(_attention, {"causal": True}),
    "attention, every pair": partial(_attention, {"causal": False}),
    "attention, rotary and qk_norm": partial(_attention, {"causal": True, "rope_base": 10000.0, "qk_norm": True}),
    **{
        f"{'rms' if rms else 'layer'}_norm{' of a sum' if residual else ''}": partial(
            _layer_norm, {"rms": rms, "residual": residual}
        )
        for rms in (False, True)
        for residual in (False, True)
    },
    "layer_norm within products": partial(_norm_in_products, False),
    "rms_norm within products": partial(_norm_in_products, True),
    "linear_cross_entropy": partial(_linear_cross_entropy, False),
    "linear_cross_entropy, tied": partial(_linear_cross_entropy, True),
    "embedding": partial(_embedding, False),
    "embedding and position": partial(_embedding, True),
    "adamw": _adamw,
}
WIDER = {  # attention without a mask is less than with one
    **dict.fromkeys(("attention", "attention, rotary and qk_norm"), WIDE_HEADS),
    **dict.fromkeys(
        ("linear", "mlp gelu", "mlp swiglu", "linear_cross_entropy", "linear_cross_entropy, tied"), (WIDE_MODEL,)
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 1 where `problems` finds any."""
    parser = argparse.ArgumentParser(
        prog="python -m pyscaling.kernels.aot", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--target", nargs="+", choices=TARGETS, help="default: all of them")
    only = "cases whose name has one of these in it, such as attention or bfloat16; default: all of them"
    parser.add_argument("--only", nargs="+", metavar="TEXT", help=only)
    parser.add_argument("--json", type=Path, metavar="FILE", help="one row for each kernel as compiled")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="the tables, else printed, as docs/kernels.md holds them"
    )
    parser.add_argument(
        "--budget",
        type=Path,
        metavar="FILE",
        help="what tests/kernels/test_aot.py compares with: the part of it that is of this version of Triton",
    )
    options = parser.parse_args(arguments)
    if options.budget and (options.only or options.target):
        parser.error("--budget holds every kernel for every target; leave out --only and --target.")
    for name in ("json", "markdown", "budget"):
        path = getattr(options, name)
        if path is not None and not path.parent.is_dir():
            parser.error(f"argument --{name}: there is no folder {path.parent}; make it first.")
    cases = shipped_cases()
    for text in options.only or ():
        if not any(text in name for name, _ in cases):
            parser.error(f"argument --only: no case has {text!r} in its name; operations are {'; '.join(OPERATIONS)}.")
    if options.only:
        cases = [case for case in cases if any(text in case[0] for text in options.only)]
    if INTERPRETED:
        parser.error(_NOT_HERE)
    rows = report(cases, options.target or TARGETS, progress=True)
    if options.json:
        options.json.write_text(to_json(rows))
    known = options.budget.read_text() if options.budget and options.budget.exists() else "{}"
    if options.budget:
        options.budget.write_text(to_budget(rows, known))
    if options.markdown:
        options.markdown.write_text(to_markdown(rows, known))
    else:
        print(to_markdown(rows, known))
    found = problems(rows)
    for problem in found:
        print(f"problem: {problem}", file=sys.stderr)
    print(f"{len(rows)} kernels, {len(found)} problems", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
