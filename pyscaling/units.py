"""Quantities as people write and read them: "40B" tokens, "3 days", "80 GB"."""

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SECONDS = {
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "day": 86400.0,
    "week": 604800.0,
    "month": 2629800.0,
    "year": 31557600.0,
}
_TIME_WORDS = {
    "s": "s", "sec": "s", "second": "s", "min": "min", "minute": "min", "h": "h", "hr": "h", "hour": "h", "d": "day",
    "day": "day", "w": "week", "week": "week", "month": "month", "y": "year", "year": "year",
}  # fmt: skip
_COUNTS = {
    "": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "thousand": 1e3, "million": 1e6, "billion": 1e9,
    "trillion": 1e12, "mn": 1e6, "bn": 1e9, "tn": 1e12,
}  # fmt: skip


def parse_time(time: Any) -> float:
    """Seconds of a text with a unit: "3 days", "72 h", "90 min". Raises ValueError for a number without one."""
    match = re.fullmatch(r"\s*([-+]?[\d.,_]+(?:e[-+]?\d+)?)\s*([a-z]*)\s*", str(time), re.IGNORECASE)
    unit = _TIME_WORDS.get(match[2].lower().removesuffix("s") or match[2].lower()) if match else None
    if match is None or unit is None:
        missing = match is not None and not match[2]
        raise ValueError(
            f"time={time!r} {'has no unit' if missing else 'is not a time'}; write for example "
            f'"{match[1] if match else 3} days", or h, min, s, weeks.'
        )
    seconds = _number("time", match[1], time) * _SECONDS[unit]
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"time must be finite and positive, got {time!r}.")
    return seconds


def parse_count(name: str, value: Any) -> float:
    """A count of tokens or parameters: a number, or a text such as "40B", "1e12", "1.5 T"."""
    number = value
    if isinstance(value, str):
        match = re.fullmatch(
            r"\s*([-+]?[\d.,_]+(?:e[-+]?\d+)?)\s*([a-z]*?)\s*(?:tokens?|parameters?|params?|steps?)?\s*",
            value,
            re.IGNORECASE,
        )
        if match is None or match[2].lower() not in _COUNTS:
            raise ValueError(f'{name}={value!r} is not a count; write for example "40B", "1e12" or "1.5 T".')
        number = _number(name, match[1], value) * _COUNTS[match[2].lower()]
    if check_positive(name, number, given=value).ndim:
        raise ValueError(f"{name} must be one number, got {value!r}.")
    return float(number)


_BYTES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_memory(name: str, value: Any) -> float:
    """Bytes of a number, or of a text with a unit: "80 GB", "24 GiB"."""
    number = value
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([-+]?[\d.,_]+(?:e[-+]?\d+)?)\s*([kmgt]i?b)\s*", value, re.IGNORECASE)
        if match is None:
            raise ValueError(f'{name}={value!r} is not a size with a unit; write for example "80 GB" or "24 GiB".')
        number = _number(name, match[1], value) * _BYTES[match[2].lower()]
    if check_positive(name, number, given=value).ndim:
        raise ValueError(f"{name} must be one number, got {value!r}.")
    return float(number)


def check_positive(name: str, value: Any, what: str = "", given: Any = None) -> NDArray[np.float64]:
    """`value`, a number or several, as an array of floats; ValueError that names it where one is not finite and positive.

    what: the unit, for the message. given: what the user wrote, where that is not `value` itself.
    """
    try:
        if isinstance(value, str | bool):
            raise TypeError
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.array(np.nan)
    if isinstance(value, str):
        raise ValueError(f"{name} must be a number, got the text {value!r}.")
    if not np.all(np.isfinite(array) & (array > 0)):
        shown = repr(value if given is None else given)
        raise ValueError(f"{name} must be finite and positive, got {shown}{'; ' + what if what else ''}.")
    return array


def is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool | str) and math.isfinite(float(value)) | True
    except (TypeError, ValueError):
        return False


def plain_number(text: str) -> float:
    """A number, its thousands grouped by commas or spaces or not; 1,5 is none, for it may mean either. Raises ValueError."""
    if re.fullmatch(r"[-+]?\d{1,3}([ \u00a0\u202f]\d{3})+(\.\d+)?", text):
        return float(re.sub(r"[ \u00a0\u202f]", "", text))
    if "," in text and not re.match(r"[-+]?\d{1,3}(,\d{3})+(?![\d,])", text):
        raise ValueError(text)
    return float(text.replace(",", "").replace("_", ""))


def _number(name: str, text: str, given: Any) -> float:
    try:
        return plain_number(text)
    except ValueError:
        raise ValueError(f"{name}={given!r} is not a number with a unit.") from None


def format_time(seconds: float) -> str:
    """A duration as people say it: 3.2 days, 5.5 h, 40 min."""
    for unit, name in ((31557600.0, "years"), (86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"


def format_count(value: float) -> str:
    """A count as people say it: 1.23 M, 70 B."""
    for size, suffix in ((1e15, None), (1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * size:
            return f"{value:.3g}" if suffix is None else f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"
