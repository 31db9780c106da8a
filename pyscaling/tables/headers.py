"""What a header means: which of this library's columns it names, how surely, and in which unit.

A header is read as words. One of them is a noun (params, tokens, flops, steps, loss); every other must be a unit or a
qualifier that the table below knows, or the header names something else ("tokens_per_second", "loss_scale").
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyscaling.accounting import parse_compute
from pyscaling.units import parse_count

# Nouns: their spellings in lower case. A spelling of several words is matched as such.
_NOUNS = {
    "N": ("params", "param", "parameters", "parameter", "model size"),
    "D": ("tokens", "token", "data size", "dataset size"),
    "C": ("flops", "flop", "compute", "pf days", "pf day"),
    "S": ("steps", "step", "iterations", "iteration", "iters", "iter", "updates"),
    "loss": ("loss", "nll", "xent", "cross entropy", "crossentropy", "perplexity", "ppl"),
    "seed": ("seed",),
    "run": ("run", "run name", "run id"),
    "group": ("group",),
}
# Qualifiers: how good a column they make, 0 the best; of several the worst counts. What N, D and C mean here decides.
_QUALIFIERS: dict[str, dict[str, int]] = {
    "N": {
        "non embedding": 0, "nonembedding": 0, "non emb": 0, "nonembed": 0, "non embed": 0, "no embed": 0, "without embedding": 0,
        "without embeddings": 0, "excluding embedding": 0, "excluding embeddings": 0,
        "model": 1, "trainable": 1, "active": 1, "total": 2,
    },
    "D": {
        "training": 0, "train": 0, "trained": 0, "seen": 1, "consumed": 1, "processed": 1, "total": 1, "throughput": 1,
        "cumulative": 1, "perf": 1, "data": 2, "dataset": 2,
    },
    "C": {"training": 0, "train": 0, "total": 1, "budget": 1, "cumulative": 1, "model": 1, "throughput": 1, "perf": 1},
    "S": {
        "training": 0, "train": 0, "global": 0, "optimizer": 0, "optimiser": 0, "trainer": 0, "gradient": 0, "total": 1,
        "max": 2,
    },
    "loss": {
        "eval": 1, "evaluation": 1, "val": 1, "valid": 1, "validation": 1, "dev": 1, "heldout": 1, "held out": 1, "test": 2,
        "training": 3, "train": 3, "final": 0, "lm": 0, "ce": 0, "mean": 0, "avg": 0, "average": 0, "best": 0, "smoothed": 0,
        "token": 0, "per token": 0,
    },
    "seed": {}, "run": {}, "group": {},
}  # fmt: skip
_FILLERS = {"N": "n", "D": "d n", "C": "c", "S": "n", "loss": "l", "seed": "", "run": "", "group": ""}
_COUNTING = {
    "number", "num", "of", "no", "nr", "count", "counts", "in", "the", "#", "summary", "config", "metrics", "history",
}  # fmt: skip
_PLAIN = 1  # a noun alone
_LETTER = 9  # one letter, which may be the name of anything
_INDIRECT = 8  # a loss that must be computed first
_LEAST = {"N": 1e3, "D": 1e4, "C": 1e8, "S": 10.0}
_LETTERS = {"N": "N", "D": "D", "C": "C", "S": "S", "L": "loss"}
_UNIT_WORDS = {
    "k": 1e3, "thousand": 1e3, "thousands": 1e3, "m": 1e6, "mn": 1e6, "mil": 1e6, "mio": 1e6, "million": 1e6,
    "millions": 1e6, "b": 1e9, "bn": 1e9, "billion": 1e9, "billions": 1e9, "g": 1e9, "t": 1e12, "tn": 1e12,
    "trillion": 1e12, "trillions": 1e12,
}  # fmt: skip
_PREFIXES = {
    "kilo": "k",
    "mega": "m",
    "giga": "g",
    "tera": "t",
    "peta": "p",
    "exa": "e",
    "zetta": "z",
    "yotta": "y",
}
_NO_UNIT = {"tokens", "token", "params", "parameters", "flop", "flops", "nats", "nat", "nats token", "nats per token"}
EMPTY = (
    "",
    "nan",
    "na",
    "n/a",
    "<na>",
    "nat",
    "null",
    "none",
    "-",
    "--",
    "—",
    "?",
)  # a missing value as text, in lower case
BITS = float(np.log(2))  # nats
_LOSSES = {"nats": 1.0, "nat": 1.0, "bits": BITS, "bit": BITS}


@dataclass(frozen=True)
class Unit:
    """What a column's numbers are multiplied by; logarithm: of a perplexity, whose logarithm is the loss."""

    scale: float = 1.0
    logarithm: bool = False

    def done_to(self, name: str) -> str:
        return (
            f"{name} is ln of a perplexity"
            if self.logarithm
            else f"{name} x {self.scale:.4g}".replace("e+0", "e").replace("e+", "e")
        )

    def apply(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return np.log(values) if self.logarithm else values if self.scale == 1 else values * self.scale


@dataclass(frozen=True)
class Meaning:
    """A header taken for a column. rank: 0 is surest."""

    column: str
    rank: int
    unit: Unit


def unit_of(column: str, given: object) -> Unit:
    """The unit that a user names for a column: a number, "M", "billions", "GFLOPs", "PF-days", "bits", "perplexity".

    Raises ValueError for what is no unit of that column.
    """
    if isinstance(given, Unit):
        return given
    try:
        scale = float(given) if not isinstance(given, bool) else float("nan")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        unit = _unit(column, str(given))
    else:
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"unit of {column} must be finite and positive, got {given!r}.")
        unit = Unit(scale)
    if unit is None:
        known = {
            "loss": "nats, bits or perplexity (bits per byte: ln 2 times the bytes of a token)",
            "C": "GFLOPs, EFLOPs or PF-days",
        }.get(column, "k, M, B or T")
        raise ValueError(f"unit of {column}={given!r} is unknown; give a number to multiply by, or {known}.")
    return unit


def meaning(header: str) -> Meaning | None:
    """What a header names, or None. One letter counts only as N, D, C, S and L exactly."""
    if "%" in header:
        return None
    bare, unit_text = _without_unit(header)
    if bare in _LETTERS:
        column = _LETTERS[bare]
        unit = _unit(column, unit_text) if unit_text else Unit()
        return None if unit is None else Meaning(column, -1 if column == bare else _LETTER, unit)
    if bare in _NOUNS and not unit_text:
        return Meaning(bare, -1, Unit())
    words = _words(bare)
    if words[:1] == ["n"] and _QUALIFIERS["N"].get(" ".join(words[1:])) == 0:  # N_non_embedding
        return Meaning("N", 0, Unit())
    for column, nouns in _NOUNS.items():
        found = _meaning_as(column, nouns, words, unit_text)
        if found is not None:
            return found
    return None


def match(table: Mapping[str, Any], taken: Iterable[str] = ()) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Header -> column for the surest header of each column that is not taken, and column -> headers equally sure of it.

    One letter whose numbers cannot be what it would say (D, a width) gives way to a header whose can.
    """
    candidates: dict[str, list[tuple[int, str]]] = {}
    for header in table:
        found = meaning(header)
        if found is not None and found.column not in taken:
            rank = found.rank + _of_words(found.column, table[header])
            candidates.setdefault(found.column, []).append((rank, header))
    chosen: dict[str, str] = {}
    unclear: dict[str, list[str]] = {}
    for column, ranked in candidates.items():
        if column in table and len(ranked) > 1:
            likelier = [pair for pair in ranked if pair[1] != column and _could_be(column, pair[1], table)]
            ranked = likelier if likelier and not _could_be(column, column, table) else ranked
        ranked = [pair for pair in ranked if pair[0] < 20 or pair[1] == column or len(ranked) == 1]
        best = min((rank for rank, _ in ranked), default=0)
        headers = [header for rank, header in ranked if rank == best]
        if len(headers) == 1:
            chosen[headers[0]] = column
        elif headers:
            unclear[column] = headers
    return chosen, unclear


def _of_words(column: str, values: Any) -> int:
    """How far a column of texts stands behind one of numbers: sizes such as 135M are names before they are counts."""
    if column not in ("N", "D", "C", "S", "loss"):
        return 0
    array = np.asarray(values, dtype=object)
    cells = [bare_cell(cell) for cell in array[:100].tolist() if isinstance(cell, str)] if array.ndim == 1 else []
    cells = [cell for cell in cells if cell.lower() not in EMPTY]
    if not cells or all(is_number(cell) for cell in cells):
        return 0
    try:
        for cell in cells:
            cell_value(column, cell)
    except ValueError:
        return 20  # tiny, small: no count at all
    return 2


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _could_be(column: str, header: str, table: Mapping[str, Any]) -> bool:
    """Whether the numbers under a header may be those of a column."""
    found = meaning(header)
    try:
        numbers = np.asarray(table[header], dtype=np.float64)
    except (TypeError, ValueError):
        return True
    if not np.isfinite(numbers).any():
        return True
    middle = float(np.nanmedian(numbers))
    return found is None or middle * found.unit.scale >= _LEAST.get(column, 0.0)


def likely(table: Iterable[str], column: str) -> list[str]:
    """Headers that hold a noun of a column without being taken for it: what an error suggests."""
    nouns = {noun.replace(" ", "") for noun in _NOUNS.get(column, ())}
    return [
        header
        for header in table
        if header == column.lower()
        or (_without_unit(header)[0] not in _LETTERS and nouns & set(_words(header)) and "per" not in _words(header))
    ]


def _meaning_as(column: str, nouns: tuple[str, ...], words: list[str], unit_text: str) -> Meaning | None:
    for noun in sorted(nouns, key=lambda noun: -noun.count(" ")):
        rest = _removed(words, noun.split())
        if rest is not None:
            break
        # "gflops", "petaflops": the unit is in the noun
        if column == "C" and noun == "flops":
            with_prefix = [w for w in words if _prefixed_flops(w)]
            if with_prefix:
                noun, unit_text = with_prefix[0], unit_text or with_prefix[0]
                rest = [w for w in words if w != noun]
                break
    else:
        return None
    if noun in ("pf days", "pf day"):
        unit_text = unit_text or "pf-days"
    rank = _PLAIN if column != "loss" else 0
    ranks: list[int] = []
    left: list[str] = []
    while rest:
        for length in (2, 1):
            phrase = " ".join(rest[:length])
            if len(rest) >= length and phrase in _QUALIFIERS[column]:
                ranks.append(_QUALIFIERS[column][phrase])
                rest = rest[length:]
                break
        else:
            left.append(rest.pop(0))
    left = [w for w in left if w not in _COUNTING]
    fillers = _FILLERS[column].split()
    if len(left) > 1 or (left and left[0] not in fillers):
        # one word may be left: the unit, which says more than a filler
        units = [w for w in left if w not in fillers and _unit(column, w) is not None]
        if len(units) == 1 and not unit_text:
            unit_text = units[0]
            left.remove(units[0])
        elif column == "C" and not unit_text and _unit(column, " ".join(left)) is not None:
            unit_text, left = " ".join(left), []
    if any(w not in fillers for w in left):
        return None
    unit = _unit(column, unit_text) if unit_text else Unit()
    if unit is None:
        # "loss (C4)" is a loss of something; "loss (%)" is none
        return None
    if noun in ("perplexity", "ppl"):
        return Meaning(column, _INDIRECT, Unit(logarithm=True)) if unit.scale == 1 else None
    return Meaning(column, max(ranks, default=rank), unit)


def _removed(words: list[str], part: list[str]) -> list[str] | None:
    for i in range(len(words) - len(part) + 1):
        if words[i : i + len(part)] == part:
            return words[:i] + words[i + len(part) :]
    return None


def _without_unit(header: str) -> tuple[str, str]:
    """A header without the unit in brackets at its end, and that unit; "" where the brackets hold a qualifier."""
    found = re.fullmatch(r"\s*(.*?)\s*[\(\[\{](.*?)[\)\]\}]\s*", header)
    if found is None:
        return header.strip(), ""
    inside = found[2].strip()
    known = any(_unit(column, inside) is not None for column in ("N", "C", "loss"))
    return (found[1].strip(), inside) if known else (f"{found[1]} {inside}", "")


def _words(header: str) -> list[str]:
    """Words in lower case: cut at everything but letters and digits, and where a small letter meets a capital."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", " ", header)
    words = re.findall(r"[a-z0-9]+|#", spaced.lower())
    apart = " ".join(part for word in words for part in _apart(word) or [word])
    return re.sub(r"\bpeta ?flops? s? ?(?=days?\b)", "pf ", apart).split()


_VOCABULARY = {word for nouns in _NOUNS.values() for noun in nouns for word in noun.split()}
_VOCABULARY |= {word for known in _QUALIFIERS.values() for qualifier in known for word in qualifier.split()}
_VOCABULARY |= {"n", "num", "pf"}


def _apart(word: str) -> list[str] | None:
    """A word cut into known ones, as nparams and trainingflops; None where it cannot be."""
    if word in _VOCABULARY:
        return [word]
    for end in range(1, len(word)):
        if word[:end] in _VOCABULARY and (rest := _apart(word[end:])) is not None:
            return [word[:end], *rest]
    return None


def _prefixed_flops(word: str) -> float | None:
    for long, short in _PREFIXES.items():
        word = re.sub(rf"^{long}(?=flop)", short, word)
    return float(parse_compute(f"1 {word}")) if re.fullmatch(r"[kmgtpezy]flops?", word) else None


def _unit(column: str, text: str) -> Unit | None:
    """The unit that a text names; None for what is none."""
    plain = re.sub(r"\s+", " ", text.strip().lower()).removeprefix("in ").strip()
    if column == "loss":
        word = plain.replace("/", " ").replace(" per token", "").replace(" token", "")
        if word in ("perplexity", "ppl"):
            return Unit(logarithm=True)
        return Unit(_LOSSES[word]) if word in _LOSSES else _power(plain)
    if plain in _NO_UNIT:
        return Unit()
    first, _, rest = plain.partition(" ")
    if first in _UNIT_WORDS and (not rest or rest in _NO_UNIT):
        return Unit(_UNIT_WORDS[first])
    if column == "C":
        words = re.sub(r"[^a-z0-9]+", " ", plain)
        if re.fullmatch(r"(pf|pflops?|petaflops?|peta flops?)( s)? ?days?", words):
            return Unit(float(parse_compute("1 PF-days")))
        flops = _prefixed_flops(words.replace(" ", ""))
        if flops is not None or re.fullmatch(r"[kmgtpezy]", words):
            return Unit(flops or float(parse_compute(f"1 {words}flops")))
    return _power(plain)


def _power(plain: str) -> Unit | None:
    """1e18, 10^18, x10^18, e18."""
    found = re.fullmatch(
        r"[x×*]?\s*(?:(\d+(?:\.\d+)?)?e\+?(\d+)|10\s*(?:\^|\*\*)\s*(\d+))(?: flops?| tokens?| params?)?", plain
    )
    if found is None:
        return None
    scale = float(f"{found[1] or 1}e{found[2] or found[3]}")
    return Unit(scale)


def bare_cell(cell: Any) -> str:
    """A cell as text, without marks of emphasis and of about; "" for None."""
    return "" if cell is None else re.sub(r"[*`~≈\\]", "", str(cell)).strip()


def cell_value(column: str, text: str) -> float:
    """A number as people write it in a table: "1.3B", "1,300,000,000", "300B tokens", "3 PF-days". Raises ValueError."""
    return float(parse_compute(text) if column == "C" else parse_count(column, text))
