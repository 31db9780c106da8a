"""Times candidates for the table of tiles (kernels/tiles.py) and proposes rows; what `make gpu PARTS=tune` runs.

    python -P -m gpu.tune attention [d256 d1024]      # or linear, mlp, head

An operation is run once to learn what it asks of the table. For each such question the candidates are those that the table lists
and the neighbours of today's: one side halved or doubled, other warps, one stage more or less. A candidate counts that changes a
launch and gives the same numbers; a row is proposed if it is 3 % faster, timed again. Candidates are compiled side by side
first, one process a core.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hardware import TOLERANCE
from torch import Tensor

from gpu.child import DEVICE, ON_CARD, WARM, Random, finish, free, names, seconds_of, why, write
from gpu.timing import Sizes, attentions, heads, linears, mlps, sizes
from pyscaling.kernels import launch as machinery
from pyscaling.kernels import tiles
from pyscaling.kernels.launch import Launch, replaced
from pyscaling.kernels.tiles import Row, preferring

SUBJECTS: dict[str, Callable[[Sizes, Random], Iterator[Any]]] = {
    "linear": linears, "mlp": mlps, "attention": attentions, "head": heads,
}  # fmt: skip
ENOUGH = 1.03  # times faster than today's
Question = tuple[
    str, str, int, int, tuple[str, ...]
]  # operation, target, bits, width, conditions: what `choose` is asked


@contextmanager
def heard(questions: dict[Question, tuple[Any, ...]]) -> Iterator[None]:
    """Within it each question to the table is noted with its answer."""
    choose = tiles._choose

    def note(*question: Any) -> tuple[Any, ...]:
        questions[question] = choose(*question)  # type: ignore[index]
        return questions[question]  # type: ignore[index]

    note.cache_clear = choose.cache_clear  # type: ignore[attr-defined]
    with replaced(tiles, _choose=note):
        yield


def launches(run: Callable[[], Any]) -> tuple[list[Tensor], list[Any]]:
    """The results of a run, and what of its launches a choice of tiles can change."""
    seen: list[Any] = []

    def see(record: Launch) -> None:
        seen.append((record.grid, sorted(record.constants.items()), record.num_warps, record.num_stages))

    machinery.observers.append(see)
    try:
        return [t.clone() for t in run()], seen
    finally:
        machinery.observers.remove(see)


def candidates(question: Question, today: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Those that the table lists for the question, and the neighbours of today's."""
    operation, _, bits, width, conditions = question
    found = [
        row.tiles
        for row in tiles.CANDIDATES
        if (row.operation, row.bits) == (operation, bits)
        and width <= row.up_to
        and set(row.only.split()) <= set(conditions)
    ]
    for i, (name, value) in enumerate(zip(tiles.FIELDS[operation], today, strict=False)):
        others: tuple[int, ...] = ()
        if name.isupper() and value:
            others = tuple(n for n in (value // 2, 2 * value) if 16 <= n <= 256)
        elif name == "num_warps":
            others = (4, 8)
        elif name == "num_stages":
            others = tuple(n for n in (value - 1, value + 1) if n >= 1)
        elif name == "programs" and value:
            others = (1, 2)
        found += [(*today[:i], other, *today[i + 1 :]) for other in others]
    unique = dict.fromkeys(found)
    unique.pop(today, None)
    return list(unique)


def trial(question: Question, of: tuple[Any, ...], reason: str = "") -> Row:
    operation, target, bits, width, conditions = question
    return Row(operation, target, bits, width, " ".join(conditions), of, reason)


def tuned(case: Any, direction: str, run: Callable[[], list[Tensor]], s: Sizes, share: tuple[int, int]) -> None:
    """share: (i, n): to compile every n-th candidate from the i-th on, and no more; (0, 1) with WARM unset times all."""
    questions: dict[Question, tuple[Any, ...]] = {}
    tiles._choose.cache_clear()
    with heard(questions):
        truth, plain = launches(run)
    where = {"operation": case.name, "direction": direction, "d": s.d}
    if not questions:
        write(**where, note="asks nothing of the table")
        return
    number = 0
    for question, today in questions.items():
        before, best = seconds_of(run), (0.0, today)
        tried = candidates(question, today)
        for of in tried if ON_CARD else tried[:1]:
            number += 1
            if WARM and number % share[1] != share[0]:
                continue
            try:
                with preferring([trial(question, of)]):
                    results, seen = launches(run)
                    if seen == plain:
                        continue
                    apart = [_apart(a, b) for a, b in zip(results, truth, strict=True)]
                    seconds = seconds_of(run)
            except Exception as error:  # too many registers or too much shared memory is an answer, too
                write(**where, question=question, tiles=of, failed=why(error))
                continue
            right = all(of_result <= TOLERANCE[s.dtype] for of_result in apart)  # NaN is no agreement
            write(**where, question=question, tiles=of, seconds=seconds, today=before, apart=apart, ok=right)
            if right and before / seconds > best[0]:
                best = (before / seconds, of)
        if best[0] >= ENOUGH and not WARM:
            with preferring([trial(question, best[1])]):
                after = seconds_of(run)
            before = seconds_of(run)
            if before / after >= ENOUGH:
                card = torch.cuda.get_device_name() if ON_CARD else "the interpreter, not a measurement"
                times = f"{1e6 * after:.0f} us against {1e6 * before:.0f} us with {today}"
                reason = f"measured on {card}, {time.strftime('%Y-%m-%d')}, d {s.d}: {times}"
                write(**where, proposed=repr(trial(question, best[1], reason)), times=before / after)


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


def compiled_side_by_side(arguments: list[str]) -> None:
    """Every candidate once, over all cores, so that those timed are compiled."""
    n = os.cpu_count() or 1
    command = [sys.executable, "-P", "-m", "gpu.tune", *arguments, "--warm"]
    processes = [subprocess.Popen([*command, f"--share={i}/{n}"]) for i in range(n)]
    for process in processes:
        process.wait()


def main() -> None:
    subject, *widths = names() or ["attention"]
    share = next((a.removeprefix("--share=") for a in sys.argv if a.startswith("--share=")), "0/1")
    first, every = map(int, share.split("/"))
    if ON_CARD and not WARM:
        compiled_side_by_side([subject, *widths])
    for width in widths or (["d128", "d256", "d512", "d1024"] if ON_CARD else ["tiny"]):
        s = sizes(width)
        for case in SUBJECTS[subject](s, Random(3)):
            for direction in ("forward", "backward"):
                run = getattr(case, direction)
                if run is not None:
                    with torch.no_grad():
                        tuned(case, direction, run, s, (first, every))
            free()
            if DEVICE == "cpu":
                return


if __name__ == "__main__":
    main()
    finish()
