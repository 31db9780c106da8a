"""Writes what the parts found: docs/hardware/<card>-<date>.json, and docs/hardware.md made of all such files.

    python -P bench/gpu/record.py       # makes the page anew from the records that are there

Standard library only. A run on a CPU goes to OUT alone, and says in its first line that it is not a measurement.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_NAMES = ("check", "tests", "step", "time", "grid", "tune")
# Peak bf16 FLOP/s and bytes/s as pyscaling.kernels.meter.DEVICES states them, which torch would have to be there to read.
NOMINAL = {
    "A100": (312e12, 2.039e12),
    "H100": (989.4e12, 3.35e12),
    "B200": (2250e12, 8e12),
    "MI300X": (1307.4e12, 5.3e12),
}

Record = dict[str, Any]
Rows = list[dict[str, Any]]


# ---- records --------------------------------------------------------------------------------------------------------


def collected(out: Path) -> Record:
    """facts, parts (status, seconds, ...) and rows by part, of what lies in a run's folder."""
    parts, rows = {}, {}
    for name in (*_NAMES, "warm"):
        file = out / f"{name}.json"
        if file.exists():
            part = json.loads(file.read_text())
            rows[name] = [rounded(row) for row in part.pop("rows")]
            part["jobs"] = {job: of for job, of in part["jobs"].items() if of["status"] != "ok"}
            parts[name] = part
    return {"facts": json.loads((out / "facts.json").read_text()), "parts": parts, "rows": rows}


def rounded(value: Any) -> Any:
    """Floats to four digits, which is more than any clock is good for."""
    if isinstance(value, dict):
        return {name: rounded(of) for name, of in value.items()}
    if isinstance(value, list):
        return [rounded(of) for of in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def written(record: Record) -> str:
    """JSON with a line for each row."""
    rows = {
        name: "[\n" + ",\n".join(json.dumps(row) for row in of) + "\n]" if of else "[]"
        for name, of in record["rows"].items()
    }
    body = ",\n".join(f"{json.dumps(name)}: {text}" for name, text in rows.items())
    head = ",\n".join(f'"{name}": {json.dumps(record[name], indent=1)}' for name in ("facts", "parts"))
    return f'{{\n{head},\n"rows": {{\n{body}\n}}\n}}\n'


def file_name(facts: dict[str, Any]) -> str:
    card = re.sub(r"[^a-z0-9]+", "-", facts["card"].lower()).strip("-")
    return f"{card}-{facts['date']}.json"


# ---- aims -----------------------------------------------------------------------------------------------------------


def place_of(record: Record) -> Path:
    """Its file in docs/hardware: another run of that card and day keeps its own."""
    first = DOCS / "hardware" / file_name(record["facts"])
    file, number = first, 1
    while file.exists() and json.loads(file.read_text())["facts"].get("began") != record["facts"].get("began"):
        number += 1
        file = first.with_stem(f"{first.stem}-{number}")
    return file


def peak_of(record: Record) -> tuple[float, float] | None:
    """FLOP/s of bf16 products and bytes/s, as measured on the card itself."""
    rows = record["rows"].get("time", [])
    flops = [row["flops_per_s"] for row in rows if row.get("what") == "matmul" and row["dtype"] == "bfloat16"]
    copied = [row["bytes_per_s"] for row in rows if row.get("what") == "copy"]
    return (flops[0], copied[0]) if flops and copied else None


def _ratios(
    record: Record, operation: str, direction: str, peers: Sequence[str], widths: Callable[[int], bool] = lambda d: True
) -> list[tuple[str, float]]:
    """(where, seconds of the fastest of these peers / ours) of the rows that have one."""
    found = []
    for row in record["rows"].get("time", []):
        named = row.get("operation", "")
        if named.startswith(operation) and row.get("direction") == direction and "seconds" in row and widths(row["d"]):
            theirs = [row["peers"][peer] for peer in peers if row["peers"].get(peer)]
            if theirs:
                found.append((f"{named}, d {row['d']}", min(theirs) / row["seconds"]))
    return found


def _steps(record: Record, peer: str) -> list[tuple[str, float]]:
    rows = [row for row in record["rows"].get("step", []) if row.get("what") == "step"]
    return [
        (f"d {row['d']}", row["peers"][peer] / row["seconds"])
        for row in rows
        if row["d"] <= 256 and peer in row["peers"]
    ]


def _head_memory(record: Record) -> list[tuple[str, float]]:
    """Of what the whole fleet holds for a while, as a share of eager PyTorch's for one member."""
    rows = [row for row in record["rows"].get("time", []) if row.get("temporary_bytes_eager_one_member")]
    return [
        (f"d {row['d']}", row["temporary_bytes"] / row["temporary_bytes_eager_one_member"])
        for row in rows
        if row["direction"] == "backward"
    ]


def _share(record: Record) -> list[tuple[str, float]]:
    """Of the peak that a product reaches on this card, and of the vendor's."""
    peak, found = peak_of(record), []
    nominal = next((of for card, of in NOMINAL.items() if card in record["facts"].get("card", "")), None)
    for row in record["rows"].get("step", []):
        if row.get("what") == "step" and row["d"] == 1024:
            if peak:
                found.append(("of a large product here", row["flops"] / row["seconds"] / peak[0]))
            if nominal:
                found.append(("of the vendor's peak", row["flops"] / row["seconds"] / nominal[0]))
    return found


def grid_ratio(record: Record) -> tuple[float, float, int] | None:
    """Seconds of the fleets, of the plain grid, and how many shapes have both."""
    rows = record["rows"].get("grid", [])
    ours = {row["fleet"]: row["seconds"] for row in rows if row.get("what") == "fleet"}
    plain = {row["fleet"]: row["grid_seconds"] for row in rows if row.get("what") == "plain" and "grid_seconds" in row}
    both = ours.keys() & plain.keys()
    return (sum(ours[f] for f in both), sum(plain[f] for f in both), len(both)) if both else None


def _grid(record: Record) -> list[tuple[str, float]]:
    ratio = grid_ratio(record)
    return [(f"{ratio[2]} shapes", ratio[1] / ratio[0])] if ratio else []


def _narrow(d: int) -> bool:
    return d <= 256


def _wide(d: int) -> bool:
    return d >= 512


def _products(record: Record, widths: Callable[[int], bool], peer: str) -> list[tuple[str, float]]:
    """Of linear and MLP. A residual is an operand of cuBLAS's own product, so it is never left to ours alone."""
    return [
        ratio
        for operation in ("linear d", "mlp")
        for direction in ("forward", "backward")
        for name in {peer, "cublas"}
        for ratio in _ratios(record, operation, direction, [name], widths)
        if name == ("cublas" if "residual" in ratio[0] else peer)
    ]


_FORMS = ("flash",)
# What an H100 is to show in bf16 with 16 members: text, least (or most, if negative), what is found in a record.
AIMS: tuple[tuple[str, float, Callable[[Record], list[tuple[str, float]]]], ...] = (
    ("linear and MLP, d >= 512: speed beside the products alone, batched by cuBLAS", 0.9, lambda r: _products(r, _wide, "bmm")),
    (
        "linear and MLP, d <= 256: beside cuBLAS with bias, activation, residual and norm apart", 1.0,
        lambda r: _products(r, _narrow, "cublas"),
    ),
    ("attention forward beside flash attention, T 512 to 2048", 1.0, lambda r: _ratios(r, "attention", "forward", _FORMS)),
    ("attention backward beside flash attention", 0.8, lambda r: _ratios(r, "attention", "backward", _FORMS)),
    (
        "head beside eager PyTorch, forward and backward", 1.0,
        lambda r: [x for way in ("forward", "backward") for x in _ratios(r, "linear_cross_entropy", way, ("eager",))],
    ),
    ("the fleet's head: memory beside one member's in eager PyTorch, at most", -0.1, _head_memory),
    ("a step at d <= 256 beside eager PyTorch, one member after another", 3.0, lambda r: _steps(r, "eager")),
    ("a step at d <= 256 beside torch.compile, one member after another", 1.5, lambda r: _steps(r, "compile")),
    ("share of peak at d 1024, one member", 0.4, _share),
    ("the grid gpu-mini beside plain PyTorch, one run after another", 5.0, _grid),
)  # fmt: skip


def aims(record: Record | None) -> list[list[str]]:
    lines = [["aim", "needed", "measured", "met"]]
    for text, needed, find in AIMS:
        found = find(record) if record else []
        most = needed < 0
        worst = (max if most else min)(found, key=lambda item: item[1]) if found else None
        measured = "not measured"
        if worst is not None:
            met = sum((value <= -needed) if most else (value >= needed) for _, value in found)
            measured = f"{worst[1]:.2f} ({worst[0]}); {met} of {len(found)}"
            lines.append([text, f"{abs(needed):g}", measured, "yes" if met == len(found) else "no"])
            continue
        lines.append([text, f"{abs(needed):g}", measured, "-"])
    return lines


# ---- the page -------------------------------------------------------------------------------------------------------

_HOW = """`make gpu` proves every kernel operation on this machine's card against float64, times it beside its peers and writes
this page. It takes the machine's own python3, torch and triton (3.6.0 with torch 2.11, or 3.7.1 with 2.13), numpy and pytest,
needs no package index, and some ten minutes on an H100.

    make gpu                          # the whole; results in .gpu-out/<date>, records in docs/hardware/
    make gpu PARTS="check step"       # parts: check tests warm step time grid tune record
    make gpu OUT=folder PARTS=grid    # a later call with the same OUT adds its parts to what lies there
    make gpu LIMITS="check=200"       # seconds of a part, where a card or its host is slower
    make gpu-wheels                   # where there is an index: .gpu/wheels, what a bare machine with Python 3.12 lacks
    make gpu WHEELS=.gpu/wheels       # adds those, in a folder of the run's own
    make gpu COMMIT=$(git rev-parse HEAD)   # names the commit where the checkout came without its history
    make gpu TEXT="corpus/*.txt"      # what the grid trains on; without: the speeches, or Python's own source
    make gpu DEVICE=cpu               # all of it at tiny sizes in Triton's interpreter: not a measurement

An operation that is wrong on a card is handed to plain PyTorch until it is mended: by its function's name in kernels/eager.py,
in a row of `HANDED_OVER` at the end of kernels/tiles.py, one for 16 and one for 32 bits, such as
`Row("attention_backward", "sm_90", 16, 128, "", (), "wrong: H100, 2026-12-01")`. Studies on the kernels go on then; the parts
check to grid take what the rows say, and the section here begins with it; the tests try the kernels all the same.
"""


def table(lines: Sequence[Sequence[str]]) -> str:
    if len(lines) < 2:
        return "Nothing was recorded.\n"
    header, *rest = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([header, "|" + "---|" * len(lines[0]), *rest]) + "\n"


def page(records: Iterable[Record]) -> str:
    """docs/hardware.md of all records, the newest first."""
    ordered = sorted(records, key=lambda record: record["facts"]["date"], reverse=True)
    head = "# Kernels on hardware\n\n"
    if not ordered:
        nothing = "No run on a card has been recorded yet: nothing below is measured.\n\n"
        return f"{head}{nothing}{_HOW}\n## Aims\n\nOf an H100, in bfloat16, with fleets of 16.\n\n{table(aims(None))}"
    return head + _HOW + "".join(section(record) for record in ordered)


def section(record: Record) -> str:
    facts, parts = record["facts"], record["parts"]
    said = ", ".join(
        f"{name} {facts[name]}" for name in ("driver", "python", "torch", "triton", "runtime", "commit", "cores")
    )
    lines = [["part", "status", "seconds", "rows", "wrong"]]
    for name, part in parts.items():
        of = (part["status"], f"{part['seconds']:.0f}", str(len(record["rows"][name])), str(part["wrong"]))
        lines.append([name, *of])
    return "\n".join(
        [
            f"\n## {facts.get('card', 'no card')}, {facts['date']}\n\n{handed_over(facts)}{said}.\n",
            f"{table(lines)}\n{first_failures(record)}",
            f"### Aims\n\nThe worst of each, and how many cases meet it. Ratios are times: peer / ours.\n\n{table(aims(record))}",
            f"### Correct\n\n{table(correct(record))}",
            f"### A training step\n\n{curve_lines(record)}{table(steps(record))}",
            f"### Operations\n\n{ceiling_line(record)}\n{table(operations(record))}",
            f"### Operations, forward and backward, beside their projections\n\n{table(projections(record))}",
            f"### The grid\n\n{grid_text(record)}\n{table(grid(record))}",
            *tiles(record),
        ]
    )


def handed_over(facts: dict[str, Any]) -> str:
    """What the table of tiles kept from its kernels: what is said of it below is of plain PyTorch."""
    rows = facts.get("handed_over")
    return f"**Not by kernels, but by plain PyTorch (kernels/eager.py): {'; '.join(rows)}.**\n\n" if rows else ""


def first_failures(record: Record) -> str:
    """What failed first in each part: a wrong row, else a job's last words."""
    lines = []
    for name, part in record["parts"].items():
        wrong = next((row for row in record["rows"][name] if row.get("ok") is False), None)
        if wrong:
            shown = {key: value for key, value in wrong.items() if key not in ("errors", "ok")}
            lines.append(f"- {name}, first of {part['wrong']} wrong rows: `{json.dumps(shown)}`")
        for job, of in part["jobs"].items():
            words = (of.get("last_lines") or [""])[-1]
            if of["status"] != "failed" or not wrong:
                lines.append(f"- {name}, process {job}: {of['status']}" + (f": `{words[:200]}`" if words else ""))
    return "What failed:\n\n" + "\n".join(lines) + "\n" if lines else "Nothing failed.\n"


def correct(record: Record) -> list[list[str]]:
    """By operation and dtype: cases, wrong ones, and the largest error as a share of its limit."""
    groups: dict[tuple[str, str], Rows] = {}
    for row in record["rows"].get("check", []):
        groups.setdefault((row["case"], row["dtype"]), []).append(row)
    lines = [["operation", "dtype", "shapes", "wrong", "largest error / limit", "largest error"]]
    for (case, dtype), rows in sorted(groups.items()):
        errors = [error for row in rows for error, _, _ in row["errors"].values()]
        worst, wrong = max(row["worst"] for row in rows), sum(not row["ok"] for row in rows)
        lines.append(
            [case, dtype, str(len(rows)), str(wrong), f"{worst:.2f}", f"{max(errors, default=float('nan')):.1e}"]
        )
    return lines


def curve_lines(record: Record) -> str:
    lines = []
    for row in record["rows"].get("step", []):
        if row["what"] == "loss curve":
            where = f"{row['dtype']}, {row['steps']} steps, d {row['d']}, {row['members']} members"
            losses = f"{row['first']:.3f} to {row['last']:.3f} (plain PyTorch: {row['last_plain']:.3f})"
            apart = f"from float64 at most {row['error']:.1e}, plain PyTorch {row['error_plain']:.1e}, limit {row['limit']:.1e}"
            lines.append(f"- Loss curves, {where}: {losses}; {apart}: {'ok' if row['ok'] else 'WRONG'}.")
        elif row["what"] == "graph":
            how = row.get("note") or f"{row.get('same_bits')} of {row.get('of')} steps have the bits of single launches"
            lines.append(f"- CUDA graph, d {row['d']}: {how}.")
    return "\n".join(lines) + "\n\n" if lines else ""


def steps(record: Record) -> list[list[str]]:
    peak = peak_of(record)
    nominal = next((of for card, of in NOMINAL.items() if card in record["facts"].get("card", "")), None)
    header = [
        "d",
        "layers",
        "members",
        "rows",
        "ms",
        "launched singly, ms",
        "tokens/s",
        "TFLOP/s",
        "of product",
        "of vendor's",
    ]
    lines = [[*header, "step, GB", "eager / ours", "compile / ours"]]
    for row in record["rows"].get("step", []):
        if row["what"] != "step":
            continue
        rate = row["flops"] / row["seconds"]
        size = [str(row[name]) for name in ("d", "layers", "members", "rows")]
        shares = [f"{rate / of[0]:.0%}" if of else "-" for of in (peak, nominal)]
        peers = [f"{row['peers'][p] / row['seconds']:.2f}" if p in row["peers"] else "-" for p in ("eager", "compile")]
        times = [f"{1e3 * row['seconds']:.2f}", f"{1e3 * row['launched_singly']:.2f}", f"{row['tokens_per_s']:.3g}"]
        lines.append([*size, *times, f"{rate / 1e12:.0f}", *shares, f"{row['step_bytes'] / 1e9:.2f}", *peers])
    return lines


def ceiling_line(record: Record) -> str:
    peak = peak_of(record)
    if peak is None:
        return "The card's own ceilings were not measured.\n"
    return (
        f"The card itself: {peak[0] / 1e12:.0f} TFLOP/s in a bf16 product of 8192 x 8192, {peak[1] / 1e12:.2f} TB/s copied. "
        "A floor is max(FLOPs / that, bytes / that).\n"
    )


def operations(record: Record) -> list[list[str]]:
    peak = peak_of(record)
    lines = [["operation", "direction", "d", "us", "of floor", "TFLOP/s", "GB/s", "peers / ours"]]
    for row in record["rows"].get("time", []):
        if row.get("direction") not in ("forward", "backward") or "seconds" not in row:
            continue
        seconds = row["seconds"]
        floor = max(row["flops"] / peak[0], row["bytes"] / peak[1]) if peak else None
        peers = [f"{name} {of / seconds:.2f}" for name, of in row["peers"].items()]
        peers += [f"{name}: {words.split(':')[0]}" for name, words in row["failed"].items()]
        lines.append(
            [
                row["operation"], row["direction"], str(row["d"]), f"{1e6 * seconds:.1f}",
                f"{floor / seconds:.0%}" if floor else "-", f"{row['flops'] / seconds / 1e12:.1f}",
                f"{row['bytes'] / seconds / 1e9:.0f}", ", ".join(peers),
            ]
        )  # fmt: skip
    return lines


def projections(record: Record) -> list[list[str]]:
    lines = [["operation", "dtype", "us", "projected us", "projected / measured", "peers / ours"]]
    for row in record["rows"].get("time", []):
        if row.get("direction") == "both":
            projected, seconds = row["projected"], row["seconds"]
            beside = [f"{1e6 * projected:.1f}", f"{projected / seconds:.2f}"] if projected else ["-", "-"]
            peers = ", ".join(f"{name} {of / seconds:.2f}" for name, of in row["peers"].items())
            lines.append([row["operation"], row["dtype"], f"{1e6 * seconds:.1f}", *beside, peers])
    return lines


def grid_text(record: Record) -> str:
    rows, ratio = record["rows"].get("grid", []), grid_ratio(record)
    text = next((f"Text: {row['text']}, {row['tokens']:,} tokens." for row in rows if row.get("what") == "text"), "")
    if ratio is None:
        return f"{text} Not both sides were measured.\n"
    ours, plain, n_shape = ratio
    return (
        f"{text} {n_shape} shapes: {ours:.1f} s on fleets, evaluations, noise scales and captures included; {plain:.0f} s as "
        f"plain PyTorch, one run after another (steps alone, sampled and scaled): **{plain / ours:.1f} times**.\n"
    )


def grid(record: Record) -> list[list[str]]:
    lines = [
        [
            "fleet",
            "N",
            "members",
            "steps",
            "s",
            "tokens/s",
            "eager step, ms",
            "compiled, ms",
            "plain s",
            "plain / fleet",
        ]
    ]
    rows = record["rows"].get("grid", [])
    plain = {row["fleet"]: row for row in rows if row.get("what") == "plain"}
    for row in rows:
        if row.get("what") == "fleet":
            of = plain.get(row["fleet"], {})
            peers = [
                f"{1e3 * s:.2f}" if (s := of.get("seconds_a_step", {}).get(p)) else "-" for p in ("eager", "compile")
            ]
            whole = of.get("grid_seconds")
            beside = [f"{whole:.0f}", f"{whole / row['seconds']:.1f}"] if whole else ["-", "-"]
            size = [row["fleet"], f"{row['N']:,}", str(row["members"]), str(row["steps"])]
            lines.append([*size, f"{row['seconds']:.1f}", f"{row['tokens_per_s']:.3g}", *peers, *beside])
    return lines


def tiles(record: Record) -> list[str]:
    """Rows that kernels/tiles.py may take, where candidates were timed."""
    rows = [row["proposed"] for row in record["rows"].get("tune", []) if "proposed" in row]
    return ["### Tiles proposed\n", *(f"    {row}" for row in rows), ""] if rows else []


def main() -> None:
    if "PYSCALING_GPU_OUT" in os.environ:
        out = Path(os.environ["PYSCALING_GPU_OUT"])
        record = collected(out)
        if record["facts"]["device"] == "cpu":
            first = "Not a measurement: tiny sizes in Triton's interpreter on a CPU.\n\n"
            (out / "hardware.md").write_text(first + page([record]))
            print(f"not a measurement; its page is {out / 'hardware.md'}")
            return
        (out / "hardware.json").write_text(written(record))
        (out / "hardware.md").write_text(page([record]))
        print(f"written to {out / 'hardware.json'} and hardware.md beside it")
        try:
            (DOCS / "hardware").mkdir(exist_ok=True)
            file = place_of(record)
            file.write_text(written(record))
        except OSError as error:
            sys.exit(f"{DOCS} cannot be written ({error.strerror}): bring hardware.json to docs/hardware/ by hand.")
        print(f"written to {file}")
    text = page(json.loads(file.read_text()) for file in sorted((DOCS / "hardware").glob("*.json")))
    (DOCS / "hardware.md").write_text(text)
    if "PYSCALING_GPU_OUT" in os.environ:
        (Path(os.environ["PYSCALING_GPU_OUT"]) / "hardware.md").write_text(text)


if __name__ == "__main__":
    sys.exit(main())
