"""Ahead-of-time compilation, in a process of its own without the interpreter, against the tools' own statements."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyscaling.kernels import aot
from pyscaling.kernels.launch import INTERPRETED

TOYS = '''
import json, re, subprocess, sys
from pathlib import Path
import torch, triton, triton.language as tl
from triton.backends.nvidia.compiler import get_ptxas
from pyscaling.kernels import aot
from pyscaling.kernels.attention import attention_backward, attention_forward
from pyscaling.kernels.launch import dot, launch, target_of

@triton.jit
def product(a, b, out, bias, n, one, scale, stride, BLOCK: tl.constexpr, DOT: tl.constexpr):
    """out = a b scale, [BLOCK, n] by [n, BLOCK]"""
    i, j = tl.arange(0, BLOCK), tl.arange(0, 32)
    acc = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, n, 32):
        b_a = tl.load(a + i[:, None] * stride + (start + j)[None, :] * one)
        b_b = tl.load(b + (start + j)[:, None] * stride + i[None, :])
        acc = dot(b_a, b_b, acc, DOT)
    tl.store(out + i[:, None] * BLOCK + i[None, :], (acc * scale).to(out.dtype.element_ty))

@triton.jit
def described(a, b, out, n, BLOCK: tl.constexpr, DOT: tl.constexpr):
    """out = a b, [BLOCK, n] by [n, BLOCK], through tensor descriptors made in the kernel"""
    d_a = tl.make_tensor_descriptor(a, [BLOCK, n], [n, 1], [BLOCK, 64])
    d_b = tl.make_tensor_descriptor(b, [n, BLOCK], [BLOCK, 1], [64, BLOCK])
    acc = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, n, 64):
        acc = dot(d_a.load([0, start]), d_b.load([start, 0]), acc, DOT)
    tl.make_tensor_descriptor(out, [BLOCK, BLOCK], [BLOCK, 1], [BLOCK, BLOCK]).store([0, 0], acc.to(out.dtype.element_ty))

@triton.jit
def copy(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n), mask=i < n)

@triton.jit
def hoard(x, out, BLOCK: tl.constexpr):
    """More numbers a thread than it has registers."""
    i = tl.arange(0, BLOCK)
    b_x = tl.load(x + i)
    for _ in range(4):
        b_x += tl.sum(b_x * b_x) * tl.exp(b_x)
    tl.store(out + i, b_x)

@triton.jit
def wrong(x, BLOCK: tl.constexpr):
    tl.static_assert(BLOCK == 3, "no such block")

def multiply(dtype, block=64, stages=2, offset=0, stride=64):
    a = torch.empty(64 * 1024, dtype=dtype, device="meta")[offset:]
    out = torch.empty(block, block, dtype=dtype, device="meta")
    warps = 8 if target_of(a.device) == "sm_80" else 4
    launch(product, (1,), a, a, out, None, 64, 1, 0.5, stride, reads=[a], writes=[out], num_warps=warps, num_stages=stages,
           BLOCK=block, DOT="ieee")

def describe():
    a, out = (torch.empty(64, width, dtype=torch.bfloat16, device="meta") for width in (256, 64))
    launch(described, (1,), a, a, out, 256, reads=[a], writes=[out], num_warps=4, num_stages=3, BLOCK=64, DOT="ieee")

def copies(n, offset=0):
    x = torch.empty(n + offset, dtype=torch.float32, device="meta")[offset:]
    launch(copy, (4,), x, torch.empty_like(x), n, reads=[x], writes=[x], BLOCK=1024)

def small(kernel, block, warps):
    x = torch.empty(block, device="meta")
    arguments = (x,) if kernel is wrong else (x, x)
    launch(kernel, (1,), *arguments, reads=[x], writes=[x], num_warps=warps, BLOCK=block)
'''

JOBS = """
targets = ["sm_80", "sm_90", "sm_100", "gfx942", "gfx950"]
cases = [
    ("bf16", lambda: multiply(torch.bfloat16)),
    ("bf16 again", lambda: multiply(torch.bfloat16)),
    ("fp32", lambda: multiply(torch.float32, block=32)),
    ("descriptors", describe),
]
few = [
    ("unaligned", lambda: copies(2048, offset=1)),
    ("odd length", lambda: copies(2047)),
    ("copy", lambda: copies(2048)),
    ("does not compile", lambda: small(wrong, 64, 4)),
]
rows = aot.report(cases, targets, progress=True) + aot.report(few, ["sm_80", "gfx942"])
rows += aot.report([("spills", lambda: small(hoard, 8192, 1))], ["sm_80"])
rows += aot.report([
    ("spills", lambda: small(hoard, 16384, 1)),
    ("too much shared memory", lambda: multiply(torch.bfloat16, stages=12)),
], ["gfx942"])

(job,) = aot.capture(cases[:1], "sm_90")
compiled = triton.compile(aot.ASTSource(job.kernel, job.signature, job.constants, job.attributes),
                          target=aot.PROCESSORS["sm_90"].target, options=job.options.__dict__)
Path("kernel.cubin").write_bytes(compiled.asm["cubin"])
cuobjdump = str(Path(get_ptxas(90).path).parent / "cuobjdump")
resources = subprocess.run([cuobjdump, "--dump-resource-usage", "kernel.cubin"], capture_output=True, text=True).stdout
(job_amd,) = aot.capture(few[2:3], "gfx942")
amdgcn = triton.compile(aot.ASTSource(job_amd.kernel, job_amd.signature, job_amd.constants, job_amd.attributes),
                        target=aot.PROCESSORS["gfx942"].target, options=job_amd.options.__dict__).asm["amdgcn"]
(large,) = aot.capture([("large", lambda: copies(2**31))], "gfx942")

def attend(offset):
    q, k = (torch.empty(1, 2, n, 64, dtype=torch.bfloat16, device="meta") for n in (48, 80))
    out, lse = attention_forward(q, k, k, causal=True, offset=offset, rope_base=10000.0)
    attention_backward(out, q, k, k, out, lse, causal=True, offset=offset, rope_base=10000.0)

offsets = [(str(offset), lambda offset=offset: attend(offset)) for offset in (0, 1, 7, 16, 32)]

errors = {}
for name, run in {
    "unknown target": lambda: aot.report(cases, ["sm_75"]),
    "failing case": lambda: aot.report([("broken", lambda: 1 / 0)], ["sm_90"]),
}.items():
    try:
        run()
    except Exception as error:
        errors[name] = [type(error).__name__, str(error), *getattr(error, "__notes__", [])]

Path("budget.json").write_text(OTHER)
aot.OPERATIONS.clear()
aot.OPERATIONS["toy"] = lambda shape, dtype, device: multiply(dtype)
aot.TARGETS = ("sm_90", "gfx942")
code = aot.main(["--json", "rows.json", "--markdown", "rows.md", "--budget", "budget.json"])
code += aot.main(["--target", "sm_90", "--only", "bfloat16", "float16", "--json", "only.json", "--markdown", "only.md"])
json.dump(
    dict(
        rows=json.loads(aot.to_json(rows)), problems=aot.problems(rows), errors=errors,
        signature=job.signature, attributes={str(k): v for k, v in job.attributes.items()},
        constants={str(k): v for k, v in job.constants.items()}, resources=resources,
        llvm=dict(registers=int(re.search(r"; TotalNumVgprs: (\\d+)", amdgcn)[1]),
                  occupancy=int(re.search(r"; Occupancy: (\\d+)", amdgcn)[1])),
        large=[large.signature, {str(k): v for k, v in large.attributes.items()}],
        amd=[job_amd.signature, {str(k): v for k, v in job_amd.attributes.items()}],
        only=json.loads(Path("only.json").read_text()),
        offsets={aot.kernel_name(job.kernel): [job.cases, job.signature.get("offset")]
                 for target in ("sm_90", "gfx942") for job in aot.capture(offsets, target)},
        main=[code, json.loads(Path("rows.json").read_text()), Path("rows.md").read_text(), Path("budget.json").read_text()],
    ),
    open("result.json", "w"), default=str,
)
"""


# what a budget holds of another version, and of this one before
OTHER = {
    "triton 2.9.0": {"problems": ["a spill"], "kernels": {"toy sm_90 bf16": {"registers": 3}}},
    aot.budget_section(): {"problems": ["gone"], "kernels": {}},
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("aot")
    (folder / "toys.py").write_text(f"{TOYS}\nOTHER = {json.dumps(OTHER)!r}\n{JOBS}")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "toys.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(Path(folder, "result.json").read_text()) | {"stderr": done.stderr}


def find(result: dict[str, Any], case: str, target: str) -> aot.Row:
    (row,) = (aot.Row(**row) for row in result["rows"] if case in row["cases"] and row["target"] == target)
    return row


INSTRUCTION = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma", "gfx950": "v_mfma"}
# of 64 x 64 by 4 warps (8 on sm_80): a warp's HMMA, a group's HGMMA, MFMA as wide as its K in bfloat16
TILE = {"sm_80": "16x8x16", "sm_90": "64x64x16", "sm_100": None, "gfx942": "32x32x8", "gfx950": "32x32x16"}


@pytest.mark.parametrize("target", INSTRUCTION)
def test_sixteen_bit_products_use_tensor_cores(result: dict[str, Any], target: str) -> None:
    row = find(result, "bf16", target)
    assert set(row.tensor_cores) == {INSTRUCTION[target]} and set(row.tiles) == {TILE[target]} - {None}
    assert (row.kernel, row.dtype, row.cases) == ("__main__.product", "bf16", ["bf16", "bf16 again"])  # compiled once
    assert row.dots_16 == 1 and row.loads_16 == row.loads > 0
    assert row.num_warps == (8 if target == "sm_80" else 4)  # what the launcher chose for the target
    assert 16 < row.registers <= 255 and row.spilled_bytes == 0 and 0 < row.shared_bytes < row.shared_limit
    assert 0 < row.occupancy <= 1
    in_full = find(result, "fp32", target)
    assert in_full.dots_16 == 0 and not (target.startswith("sm") and in_full.tensor_cores)


@pytest.mark.parametrize("target", INSTRUCTION)
def test_blocks_by_tensor_descriptors(result: dict[str, Any], target: str) -> None:
    """TMA from sm_90 on, whose every load counts as a wide one; elsewhere Triton makes plain loads of them."""
    row = find(result, "descriptors", target)
    assert not row.error and set(row.tensor_cores) == {INSTRUCTION[target]} and row.dots_16 == 1
    assert row.loads_16 == row.loads > 0
    assert row.loads_tma == (row.loads if target in ("sm_90", "sm_100") else 0)
    assert aot.problems([row]) == []
    (line,) = (line for line in aot.to_markdown([row]).splitlines() if line.startswith("| described"))
    assert ("| 100%, TMA in 1 |" in line) == (row.loads_tma > 0)


def test_specialised_as_a_launch_would_be(result: dict[str, Any]) -> None:
    signature, aligned = result["signature"], [["tt.divisibility", 16]]
    pointers, numbers = dict.fromkeys(("a", "b", "out"), "*bf16"), {"n": "i32", "scale": "fp32", "stride": "i32"}
    expected = pointers | numbers | dict.fromkeys(("bias", "one", "BLOCK", "DOT"), "constexpr")
    assert signature == expected
    assert {k: v for k, v in result["attributes"].items() if v} == {f"({i},)": aligned for i in (0, 1, 2, 4, 7)}
    assert result["constants"] == {"(3,)": None, "(5,)": 1, "(8,)": 64, "(9,)": "ieee"}
    # AMD: a tensor under 2 GiB may be read by buffer instructions
    assert result["amd"][1]["(0,)"] == [*aligned, ["tt.pointer_range", 32]]
    assert result["large"][0]["n"] == "i64" and result["large"][1]["(0,)"] == aligned


def test_a_caches_length_compiles_nothing_anew(result: dict[str, Any]) -> None:
    """Neither 0, 1, nor what divides by 16."""
    every = ["0", "1", "7", "16", "32"]
    ways = {way: result["offsets"].pop(f"attention.attention_{way}_kernel") for way in ("forward", "delta", "backward")}
    assert ways == {"forward": [every, "i32"], "delta": [every, None], "backward": [every, "i32"]}
    assert not result["offsets"]


def test_registers_are_the_binarys(result: dict[str, Any]) -> None:
    row = find(result, "bf16", "sm_90")
    assert f"REG:{row.registers} STACK:0 " in result["resources"]
    amd = find(result, "copy", "gfx942")
    assert amd.registers == result["llvm"]["registers"]
    assert (amd.warps, amd.limited_by) == (result["llvm"]["occupancy"], "warps") == (8, "warps")


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_narrow_loads_show(result: dict[str, Any], target: str) -> None:
    assert find(result, "copy", target).loads_16 == find(result, "copy", target).loads > 0
    for case in ("unaligned", "odd length"):
        row = find(result, case, target)
        assert row.loads > 0 == row.loads_16


def test_problems_name_what_is_wrong(result: dict[str, Any]) -> None:
    spilling, greedy = find(result, "spills", "sm_80"), find(result, "too much shared memory", "gfx942")
    assert spilling.spilled_bytes > 0 and greedy.shared_bytes > greedy.shared_limit == 64 * 1024
    assert find(result, "spills", "gfx942").spilled_bytes > 0
    assert any("hoard fp32 for sm_80 (spills): spills" in p for p in result["problems"])
    assert any("bytes of shared memory, the limit is 65536" in p for p in result["problems"])
    assert any("wrong fp32 for gfx942 (does not compile): " in p and "no such block" in p for p in result["problems"])
    sound = [
        p
        for p in result["problems"]
        if any(f"({case}" in p for case in ("bf16", "fp32", "descriptors", "copy", "unaligned"))
    ]
    assert sound == []
    row = find(result, "bf16", "sm_90")
    assert aot.problems([row]) == []
    assert aot.problems([replace(row, tensor_cores={})])[0].endswith("16-bit operands and no tensor-core instruction.")
    assert "640 columns of tensor memory" in aot.problems([replace(row, tensor_memory_columns=640)])[0]


def test_narrow_loads_are_a_problem_where_sizes_divide(result: dict[str, Any]) -> None:
    row = find(result, "bf16", "sm_90")
    assert row.even and row.dots == row.dots_16 == 1
    narrow = replace(row, loads_16=0)
    assert aot.problems([narrow])[0].endswith(
        f"none of {row.loads} loads takes 16 bytes, though every size divides by 16."
    )
    assert aot.problems([replace(narrow, even=False)]) == aot.problems([replace(narrow, dots=0, dots_16=0)]) == []
    even = {case: find(result, case, "sm_80").even for case in ("copy", "unaligned", "odd length")}
    assert even == {"copy": True, "unaligned": False, "odd length": False}


def test_budget_holds_the_worst_and_notices_more(result: dict[str, Any]) -> None:
    row = find(result, "bf16", "sm_90")
    worse = replace(
        row, registers=row.registers + 20, occupancy=row.occupancy / 2, tensor_cores={"HMMA": 1, "HGMMA": 1}
    )
    (key,), (line,) = zip(*aot.budget([row, worse]).items(), strict=True)
    assert key == "__main__.product sm_90 bf16"
    assert (line["registers"], line["occupancy"], line["wide"]) == (worse.registers, worse.occupancy, 1.0)
    assert line["tensor_cores"] == "HGMMA"  # what both use
    allowed = {key: line}
    for sound in (row, worse, replace(worse, registers=worse.registers + 8)):
        assert aot.regressions([sound], allowed) == []
    for bad, says in [
        (replace(worse, registers=worse.registers + 9), f"takes {worse.registers + 9} registers, the budget is"),
        (replace(worse, occupancy=worse.occupancy / 2, limited_by="registers"), "limited by registers; it was"),
        (replace(row, tensor_cores={"HMMA": 8}), "uses HMMA, not HGMMA."),
        (replace(row, tensor_cores={}), "uses no tensor cores, not HGMMA."),
        (replace(row, loads_16=0), "loads take 16 bytes, it was 100%."),
        (replace(row, kernel="other"), "not in the budget; write it anew with --budget."),
    ]:
        (found,) = aot.regressions([bad], allowed)
        assert says in found
    # By shape one instruction or another: each row has some, no row a third.
    other = replace(row, tensor_cores={"HMMA": 2})
    (mixed,), (line,) = aot.worst([row, other]), aot.budget([row, other]).values()
    assert mixed.tensor_cores == ("HGMMA", "HMMA") and line["tensor_cores"] == "HGMMA or HMMA"
    assert "| HGMMA or HMMA 64x64 |" in aot.to_markdown([row, other])
    assert aot.regressions([row, other], {key: line}) == []
    for cores, says in (
        ({}, "uses no tensor cores, not HGMMA or HMMA."),
        ({"IMMA": 1}, "uses IMMA, not HGMMA or HMMA."),
    ):
        assert says in aot.regressions([replace(row, tensor_cores=cores)], {key: line})[0]
    assert aot.worst([row, replace(row, tensor_cores={})])[0].tensor_cores == ()  # one of the problems


# What a change of a kernel or of its blocks moves, a few of each kind: the whole takes half an hour.
SAMPLE = {
    "sm_80": ["linear, d_model 256, float16", "layer_norm of a sum, d_model 256, float32"],
    "sm_90": ["attention, rotary and qk_norm, d_model 256, bfloat16", "mlp swiglu, d_model 256, bfloat16"],
    "gfx942": [
        "attention, d_model 24, float32",
        "linear_cross_entropy, tied, d_model 256, bfloat16",
        "adamw, d_model 24, float32",
    ],
}
BUDGET = Path(__file__).with_name("budget.json")
AGAINST_BUDGET = """
import json, os, sys
from pyscaling.kernels import aot

sample = json.loads(sys.argv[1])
rows = []
for target, names in sample.items():
    cases = [case for case in aot.shipped_cases() if names is None or case[0] in names]
    assert names is None or len(cases) == len(names), names
    rows += aot.report(cases, [target], progress=True)
section = json.loads(open(sys.argv[2]).read()).get(aot.budget_section(), {"problems": [], "kernels": None})
allowed = section["kernels"]
found = [problem for problem in aot.problems(rows) if problem not in section["problems"]]
if allowed is not None:
    found += aot.regressions(rows, allowed)
print(json.dumps([found, sorted(set(allowed or ()) - {f"{row.kernel} {row.target} {row.dtype}" for row in rows})]))
"""


def test_kernels_stay_within_their_budget() -> None:
    """PYSCALING_AOT=all compiles every kernel for every target; a change for the better is written down by

    python -m pyscaling.kernels.aot --markdown docs/kernels.md --budget tests/kernels/budget.json

    with each version of Triton that the budget holds, the newest last. Another may have no problems all the same.
    """
    whole = os.environ.get("PYSCALING_AOT") == "all"
    sample = dict.fromkeys(aot.TARGETS) if whole else SAMPLE
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", AGAINST_BUDGET, json.dumps(sample), str(BUDGET)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, gone = json.loads(done.stdout.splitlines()[-1])
    assert found == []
    assert not (whole and gone), "these are in the budget and no longer compiled"
    if aot.budget_section() not in (held := json.loads(BUDGET.read_text())):
        pytest.skip(f"no problems; but the budget is of {', '.join(held)}, here is {aot.budget_section()}")


def test_errors_name_the_case(result: dict[str, Any]) -> None:
    assert result["errors"]["unknown target"] == [
        "ValueError", "target 'sm_75' is unknown; known are sm_80, sm_90, sm_100, sm_120, gfx942, gfx950.",
    ]  # fmt: skip
    assert result["errors"]["failing case"][0] == "ZeroDivisionError"
    assert result["errors"]["failing case"][2] == "in the case 'broken' for sm_90"


def test_command_writes_tables_and_progress(result: dict[str, Any]) -> None:
    code, rows, markdown, budget = result["main"]
    assert code == 0 and len(rows) == 6  # three dtypes, two targets; both shapes launch the same
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 8 and len({line.count("|") for line in lines}) == 1
    assert (
        "## __main__" in markdown
        and "| product | bf16 | sm_90 | 1 |" in markdown
        and "| HGMMA 64x64 | 100% |" in markdown
    )
    assert aot.versions() in markdown and "6 kernels, compiled ahead of time for 2 targets" in markdown
    assert "No problems found." in markdown
    assert "- 8 members x 16 sequences x 512 tokens, d_model 256, 4 heads of width 64" in markdown
    assert {(row["target"], row["dtype"]) for row in result["only"]} == {("sm_90", "bf16"), ("sm_90", "fp16")}
    sections = json.loads(budget)
    assert (
        list(sections) == [aot.budget_section(), "triton 2.9.0"] and sections["triton 2.9.0"] == OTHER["triton 2.9.0"]
    )
    assert "\nWith triton 2.9.0:\n\n- a spill\n" in markdown
    problems, kernels = sections[aot.budget_section()].values()
    assert problems == [] and len(kernels) == 6 and len(budget.splitlines()) == 2 + 2 + 6 + 2 + 1
    (row,) = (row for row in rows if (row["target"], row["dtype"]) == ("sm_90", "bf16"))
    assert kernels["__main__.product sm_90 bf16"]["registers"] == row["registers"]
    assert "[1/" in result["stderr"] and "6 kernels, 0 problems" in result["stderr"]


# Truth: NVIDIA's occupancy calculator and LLVM's AMDGPU tables.
@pytest.mark.parametrize(
    ("registers", "shared", "num_warps", "target", "warps", "by"),
    [
        (32, 0, 8, "sm_80", 64, "warps"),
        (33, 0, 8, "sm_80", 48, "registers"),
        (128, 0, 8, "sm_90", 16, "registers"),
        (255, 0, 4, "sm_90", 8, "registers"),
        (32, 0, 1, "sm_90", 32, "programs"),
        (32, 100 * 1024, 4, "sm_90", 8, "shared memory"),
        (32, 227 * 1024, 4, "sm_90", 4, "shared memory"),
        (32, 228 * 1024, 4, "sm_90", 0, "shared memory"),
        (32, 0, 4, "sm_120", 48, "warps"),
        (64, 0, 4, "gfx942", 8, "warps"),
        (72, 0, 4, "gfx942", 7, "registers"),
        (128, 0, 4, "gfx942", 4, "registers"),
        (256, 0, 4, "gfx950", 2, "registers"),
        (512, 0, 4, "gfx950", 1, "registers"),
        (64, 32 * 1024, 8, "gfx942", 4, "shared memory"),
        (64, 32 * 1024, 8, "gfx950", 8, "warps"),
    ],
)
def test_occupancy(registers: int, shared: int, num_warps: int, target: str, warps: int, by: str) -> None:
    assert aot.occupancy(registers, shared, num_warps, target) == (warps, by)


@pytest.mark.skipif(not INTERPRETED, reason="kernels here can be compiled")
def test_the_interpreter_is_refused() -> None:
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set, so kernels cannot be compiled"):
        aot.report([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "attention", "relu"], "argument --only: no case has 'relu' in its name; operations are linear; mlp gelu;"),
        (["--only", "attention", "--budget", "b.json"], "--budget holds every kernel for every target; leave out --only"),
        (["--target", "sm_90", "--budget", "b.json"], "--budget holds every kernel for every target"),
        (["--json", "absent/rows.json"], "argument --json: there is no folder absent; make it first."),
        (["--markdown", "absent/rows.md"], "argument --markdown: there is no folder absent; make it first."),
        pytest.param(
            ["--only", "attention"], "TRITON_INTERPRET is set, so kernels cannot be compiled",
            marks=pytest.mark.skipif(not INTERPRETED, reason="kernels here can be compiled"),
        ),
    ],
)  # fmt: skip
def test_the_command_refuses_before_it_compiles(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        aot.main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_shipped_cases_are_named_once() -> None:
    names = [name for name, _ in aot.shipped_cases()]
    wide = (
        len(aot.WIDE_HEADS) * 2 + 5 * 3
    )  # attention with a mask, in one dtype; products and the cross-entropy in three
    assert len(names) == len(set(names)) == len(aot.OPERATIONS) * 2 * 3 + wide
