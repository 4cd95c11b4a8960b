"""Findings in words: only what an interval supports is said, the rest is "no difference found"."""

from __future__ import annotations

import math

from encore.statistics import Interval

LEAST = 0.005  # what is less than this is 0 with two decimals
SYMMETRIC = 0.25  # the most that the two sides of an interval written with ± differ from it, as a share of it


def percent(interval: Interval) -> str:
    """A fraction and its interval in percent: `8% ± 3`, or `8% [6, 15]`; see `quantity`."""
    return quantity(Interval(100 * interval.value, *(e and 100 * e for e in (interval.low, interval.high))), "%")


def quantity(interval: Interval, unit: str) -> str:
    """A value with its unit and its interval: `−4.2 dB ± 0.3`, or `−4.2 dB [−5.9, −4.0]` with sides of unequal length.

    At most two decimals, as many as the length of the interval makes sense of, and as tell its ends from 0.
    """
    value, low, high = interval.value, interval.low, interval.high
    if low is None or high is None:
        return f"{_number(value, _decimals(value / 10))}{unit}"
    if 0 < max(abs(value), abs(low), abs(high)) < LEAST:
        return f"less than {2 * LEAST:g}{unit}"
    half = (high - low) / 2
    digits = max(_decimals(half) if half > LEAST else 0, *(_decimals(end) for end in (low, high) if low * high > 0), 0)
    text = f"{_number(value, digits)}{unit}"
    # Nor may what is written with ± say something else about 0 than the interval does.
    ends = round(value, digits) - round(half, digits), round(value, digits) + round(half, digits)
    if is_even(interval) and all((shown > 0) == (end > 0) for shown, end in zip(ends, (low, high), strict=True)):
        return f"{text} ± {_number(half, digits)}"
    return f"{text} [{_number(low, digits)}, {_number(high, digits)}]"


def is_even(interval: Interval) -> bool:
    """Whether both sides of an interval are about equally long, so that ± says what it is."""
    if interval.low is None or interval.high is None:
        return False
    half = (interval.high - interval.low) / 2
    return abs(interval.high - interval.value - half) <= SYMMETRIC * half


def compared(gain: Interval, other: str, what: str = "") -> str:
    """Whether something is better than `other`: `better than the replay by 8% ± 3`.

    Args:
        gain: as a fraction; above 0 is better.
        other: what it is compared with.
        what: by which measure, in brackets after it.
    """
    note = f" ({what})" if what else ""
    if gain.low is None or gain.high is None or not math.isfinite(gain.value):
        known = f" ({percent(gain)})" if math.isfinite(gain.value) else ""
        return f"no interval, so nothing is known against {other}{known}"
    if gain.low > 0:
        return f"better than {other} by {percent(gain)}{note}"
    if gain.high < 0:
        return f"worse than {other} by {percent(negative(gain))}{note}"
    return f"no difference found from {other}, {percent(gain)}{note}"


def negative(interval: Interval) -> Interval:
    """The interval of minus the value."""
    low, high = interval.low, interval.high
    return Interval(-interval.value, None if high is None else -high, None if low is None else -low)


def sentence(*clauses: str) -> str:
    """Clauses as one sentence, with semicolons."""
    text = "; ".join(clause for clause in clauses if clause)
    return text[:1].upper() + text[1:] + "."


def enumerated(names: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _decimals(size: float) -> int:
    """Decimals, 0 to 2, that show a number of this size."""
    return min(2, max(0, -math.floor(math.log10(abs(size))))) if size else 0


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return (text.lstrip("-") if float(text) == 0 else text).replace("-", "−")
