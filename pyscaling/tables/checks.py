"""What no run can have: N, D, C and loss held against each other and against what has ever been trained.

A table in other units fits a law as well as any and plans nonsense. What is found is a doubt, a sentence that names the
likely unit; a fit and a plan carry it in their first line. A unit that the user states (`units=`, --unit) is not doubted.
"""

import re
from collections.abc import Collection, Mapping
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from pyscaling.accounting import PF_DAY

if TYPE_CHECKING:
    from pyscaling.tables.runs import Runs

# From the smallest transformer to beyond any that was announced: parameters, tokens, FLOPs.
_RANGE = {"N": (7e2, 1e14), "D": (1e4, 1e16), "C": (1e8, 1e29)}
_USUAL = {"N": (1e6, 1e12), "D": (1e8, 1e14), "C": (1e15, 1e26)}
# A table of C alone has nothing to be held against; so small a run would hardly be tabulated by its compute.
_LEAST_C_ALONE = 1e11
_TOKENS_PER_PARAMETER = (0.5, 2e4)  # the median run's
_BELOW, _SHARE_BELOW = 0.1, 0.25  # tokens per parameter that so large a share of the runs does not fall below
_RATIO = 5.0  # by which C may differ from 6ND: attention, embeddings, the head, experts
_FORWARD = (0.3, 0.37)  # C / 6ND of a forward pass alone
_ROW = 30.0  # times the median ratio: a row in a unit of its own
# (N, D, loss) of the median run: so large a model on so many tokens is below that loss; the last, ln of a vocabulary of 160,000
_LARGEST_LOSS = ((1e9, 1e10, 4.5), (1e7, 1e8, 6.5), (0.0, 0.0, 12.0))
_SMALL, _LOSS_OF_SMALL = 3e4, 2.7  # parameters of the median run, and the least loss in nats that such models come to
_BITS_PER_BYTE = (0.4, 1.35)  # the median run's; in nats per token text is above, and classifiers are often below
_PER_BYTE = "bits per byte are multiplied by ln 2 and the bytes of a token, as in --unit loss=2.9"
_SCALES = {
    "N": (1.0, 1e3, 1e6, 1e9),
    "D": (1.0, 1e3, 1e6, 1e9, 1e12),
    "C": (1.0, 1e3, 1e6, 1e9, 1e12, 1e15, 1e18, PF_DAY, 1e21, 1e24),
}
_WORDS = {1e3: "thousands", 1e6: "millions", 1e9: "billions", 1e12: "trillions"}
_FLOPS = {
    1e3: "kFLOPs",
    1e6: "MFLOPs",
    1e9: "GFLOPs",
    1e12: "TFLOPs",
    1e15: "PFLOPs",
    1e18: "EFLOPs",
    PF_DAY: "PF-days",
    1e21: "ZFLOPs",
    1e24: "YFLOPs",
}


def doubts(runs: "Runs", about: Collection[str] | None = None) -> tuple[str, ...]:
    """Sentences on columns whose unit cannot be right; empty where nothing is odd. about: the columns that matter, or None."""
    given = {name: runs[name] for name in ("N", "D", "C") if name in runs and name not in runs.derived}
    found = _sizes(given, runs, given.keys() if about is None else about) if len(runs) and given else []
    if "loss" in runs and len(runs) and "loss" not in runs.declared and (about is None or "loss" in about):
        found += _losses(runs) or (_small(runs) if not found else [])
    return tuple(found)


def _sizes(given: Mapping[str, np.ndarray], runs: "Runs", about: Collection[str]) -> list[str]:
    middle = {name: float(np.median(np.log10(column))) for name, column in given.items()}
    open_to_doubt = [name for name in given if name not in runs.declared]
    odd = [
        (text, names) for text, names in _odd(middle, given) if any(n in about and n in open_to_doubt for n in names)
    ]
    if not odd:
        return _rows(given, runs) if any(name in open_to_doubt and name in about for name in given) else []
    return [f"units: {'; '.join(text for text, _ in odd)}{_remedy(middle, given, open_to_doubt, runs.scaled)}"]


def _odd(middle: Mapping[str, float], given: Mapping[str, np.ndarray]) -> list[tuple[str, tuple[str, ...]]]:
    """What cannot be, in words, and the columns that it is about."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for name, value in middle.items():
        low, high = _RANGE[name]
        if name == "C" and len(middle) == 1:
            low = _LEAST_C_ALONE
        if not low <= 10**value <= high:
            found.append((f"no run has {_about(name, 10**value)}", (name,)))
    if {"N", "D"} <= set(middle) or len(middle) == 2:
        N, D = _both(middle)
        ratio, names = 10 ** (D - N), tuple(middle) if len(middle) == 2 else ("N", "D")
        low, high = _TOKENS_PER_PARAMETER
        starved = False
        if {"N", "D"} <= set(given):
            starved = bool(np.mean(given["D"] < _BELOW * given["N"]) > _SHARE_BELOW)
        if not low <= ratio <= high or starved:
            found.append((f"the median run has {ratio:.2g} tokens per parameter", names))
    if len(middle) == 3:
        ratio = float(np.median(given["C"] / (6 * given["N"] * given["D"])))
        if not 1 / _RATIO <= ratio <= _RATIO:
            found.append((f"C is {ratio:.2g} times 6ND", ("N", "D", "C")))
        elif _FORWARD[0] <= ratio <= _FORWARD[1]:
            found.append(("C is a third of 6ND, as of a forward pass alone", ("N", "D", "C")))
    return found


def _both(middle: Mapping[str, float]) -> tuple[float, float]:
    """log10 of N and D, one by C = 6ND where it is not there."""
    N, D = middle.get("N"), middle.get("D")
    rest = middle.get("C", 0.0) - np.log10(6)
    return (rest - D if N is None else N), (rest - N if D is None else D)


def _about(name: str, value: float) -> str:
    what = {"N": "parameters", "D": "training tokens", "C": "training FLOPs"}[name]
    return f"{name} = {value:.3g} {what}"


def _remedy(
    middle: Mapping[str, float],
    given: Mapping[str, np.ndarray],
    open_to_doubt: list[str],
    scaled: Mapping[str, float],
) -> str:
    """The least odd reading of the numbers, as options that make it so. scaled: by what a header's unit multiplied them."""
    if len(middle) == 3 and _FORWARD[0] <= 10 ** (middle["C"] - middle["N"] - middle["D"]) / 6 <= _FORWARD[1]:
        return ". Where it is a whole step's, it is three times that: --unit C=3"
    steps = _steps(middle, given) if "D" in open_to_doubt else ""
    if steps:
        return f". {steps}"
    choices = [
        (*_SCALES[name], *([1 / scaled[name]] if name in scaled else [])) if name in open_to_doubt else (1.0,)
        for name in middle
    ]
    swaps = (False, True) if {"N", "D"} <= set(open_to_doubt) else (False,)
    readings = [(_cost(middle, scales, swap), scales, swap) for scales in product(*choices) for swap in swaps]
    cost, scales, swap = min(readings, key=lambda reading: reading[0])
    words = ["N and D look swapped (name them: --column N=..., --column D=...)"] if swap else []
    if list(middle) == ["C"]:
        return ". C looks to be in a larger unit; say in which: --unit C=1e18, --unit C=PF-days"
    for name, scale in zip(middle, scales, strict=True):
        if scale != 1:
            whole = scale * scaled.get(name, 1.0)
            unit = (
                "PF-days"
                if whole == PF_DAY
                else f"{whole:.0e}".replace("e+00", "").replace("e+0", "e").replace("e+", "e")
            )
            said = (_FLOPS if name == "C" else _WORDS).get(scale)
            words.append(
                f"{name} looks to be in {said} (--unit {name}={unit})"
                if said and name not in scaled
                else f"the header's unit of {name} looks wrong (--unit {name}={unit})"
            )
    if not words or cost > 5:
        return f". Check the units of {', '.join(middle)}; where they are right, say so: --unit {open_to_doubt[0]}=1"
    return f". {', '.join(words)}"


def _steps(middle: Mapping[str, float], given: Mapping[str, np.ndarray]) -> str:
    """Where D looks to count optimiser steps."""
    N, D = middle.get("N"), middle.get("D")
    if N is None or D is None or not (2.5 < D < 7 and D < N - 1 and np.all(given["D"] == np.round(given["D"]))):
        return ""
    if "C" not in middle:
        return "D looks to count steps: multiply it by the batch in tokens (--unit D=524288 where that is the batch)"
    batch = 10 ** (middle["C"] - np.log10(6) - N - D)
    return f"D looks to count steps of {batch:.3g} tokens (--unit D={batch:.6g})" if 1e3 < batch < 1e8 else ""


def _cost(middle: Mapping[str, float], scales: tuple[float, ...], swap: bool) -> float:
    """How odd a reading is, in decades; a plainer one first."""
    at = {name: value + float(np.log10(scale)) for (name, value), scale in zip(middle.items(), scales, strict=True)}
    if swap:
        at["N"], at["D"] = at["D"], at["N"]
    cost = 0.25 * swap + sum(0.3 * (scale != 1) + 0.003 * np.log10(scale) for scale in scales)
    for name, value in at.items():
        cost += 0.02 * abs(value - np.mean(np.log10(_USUAL[name])))
        for (low, high), weight in ((_RANGE[name], 5.0), (_USUAL[name], 0.1)):
            cost += weight * max(0.0, np.log10(low) - value, value - np.log10(high))
    if len(at) > 1:
        N, D = _both(at)
        cost += max(0.0, abs(D - N - 1.3) - 1.3) + 0.1 * abs(D - N - 1.3)
    if len(at) == 3:
        cost += 3 * max(0.0, abs(at["C"] - np.log10(6) - at["N"] - at["D"]) - 0.7)
    return float(cost)


def _rows(given: Mapping[str, np.ndarray], runs: "Runs") -> list[str]:
    """Single rows in a unit of their own."""
    if len(given) == 3:
        ratio = given["C"] / (6 * given["N"] * given["D"])
        off, what = np.abs(np.log(ratio / np.median(ratio))) > np.log(_ROW), "C is far from 6ND"
    elif {"N", "D"} <= set(given):
        ratio = given["D"] / given["N"]
        off = (given["N"] < _RANGE["N"][0]) & (ratio > _TOKENS_PER_PARAMETER[1])
        off |= (given["D"] < _RANGE["D"][0]) & (ratio < _BELOW)
        what = "N or D has another size than in the rest"
    else:
        return []
    if not off.any():
        return []
    rows = ", ".join(str(row + 1) for row in runs.rows[off][:5])
    more = f" and {off.sum() - 5} more" if off.sum() > 5 else ""
    return [f"units: {what} in {'row' if off.sum() == 1 else 'rows'} {rows}{more}; mend or drop what is wrong"]


def _losses(runs: "Runs") -> list[str]:
    middle = float(np.median(runs["loss"]))
    header = runs.renamed.get("loss", "")
    if re.search(r"bp[bc](?![a-z])|bits.{0,3}per.{0,3}(byte|char)", header.lower()):
        return [f"units: {header!r} is in bits, and not per token; {_PER_BYTE}"]
    sizes = {name: float(np.median(runs[name])) for name in ("N", "D") if name in runs}
    text = all(sizes.get(name, 0.0) >= _USUAL[name][0] for name in ("N", "D"))
    most = next(loss for N, D, loss in _LARGEST_LOSS if sizes.get("N", 0.0) >= N and sizes.get("D", 0.0) >= D)
    if middle > most:
        about = f" of models of {sizes['N']:.2g} parameters" if most < _LARGEST_LOSS[-1][2] else ""
        return [
            f"units: a loss of {middle:.3g} nats per token{about} is no trained model's; a perplexity is read by "
            "--unit loss=perplexity (where it is right, as for images, say so: --unit loss=nats)"
        ]
    if text and _BITS_PER_BYTE[0] < middle < _BITS_PER_BYTE[1]:
        return [
            f"units: a loss of {middle:.3g} nats per token is below what models of text reach; {_PER_BYTE} (where it is right, "
            "say so: --unit loss=nats)"
        ]
    return []


def _small(runs: "Runs") -> list[str]:
    """Models of a few thousand parameters with the losses of large ones: N and D both in millions look like any small grid."""
    given = {
        name: float(np.median(runs[name])) for name in ("N", "D", "C") if name in runs and name not in runs.derived
    }
    least = float(np.min(runs["loss"]))
    if given.keys() != {"N", "D"} or given["N"] > _SMALL or least > _LOSS_OF_SMALL or {"N", "D"} & runs.declared:
        return []
    return [
        f"units: a loss of {least:.3g} nats per token is beyond models of {given['N']:.2g} parameters; where N and D are in "
        "millions: --unit N=1e6 --unit D=1e6 (where they are right, say so: --unit N=1)"
    ]
