"""Charts of estimates with their intervals, as tables that a page draws with its own text: readable at any width."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from encore.statistics import Interval

MAX_DECIMALS = 4
TICKS = 2  # steps of an axis, at most


@dataclass(frozen=True)
class Bar:
    """A row of a chart.

    Attributes:
        name: what was measured.
        value: as text.
        interval: likewise, `low … high`; empty without one.
        left: where the interval begins, in percent of the axis.
        width: of the interval, likewise.
        dot: where the value is, likewise.
        beyond: "low" or "high" if the value lies beyond that end of the axis.
        best: whether it is marked as the best.
        kind: a class of the page's style.
    """

    name: str
    value: str
    interval: str
    left: float
    width: float
    dot: float
    beyond: str = ""
    best: bool = False
    kind: str = ""


@dataclass(frozen=True)
class Chart:
    """Estimates of several systems on one axis.

    Attributes:
        title: what was measured.
        note: a sentence on it, with its unit.
        goal: which value is best.
        rows: one per system.
        ticks: place in percent, and text, of the axis's labels.
        reference: place of a line across all rows, in percent; None without one.
    """

    title: str
    note: str
    goal: str
    rows: list[Bar]
    ticks: list[tuple[float, str]]
    reference: float | None = None


@dataclass(frozen=True)
class Style:
    """How estimates are shown.

    Attributes:
        percent: as percentages.
        reference: value that a line marks.
        best: names that are marked.
        kinds: classes of names.
        aside: names that do not set the ends of the axis; an arrow stands for what lies beyond.
    """

    percent: bool = False
    reference: float | None = None
    best: Collection[str] = ()
    kinds: Mapping[str, str] | None = None
    aside: Collection[str] = ()


def chart(title: str, note: str, goal: str, estimates: Mapping[str, Interval], style: Style = Style()) -> Chart:
    """A chart of estimates by name, in their order; those that are not finite are left out."""
    scale, unit = (100, "%") if style.percent else (1, "")
    shown = {name: one.map(lambda v: v * scale) for name, one in estimates.items() if math.isfinite(one.value)}
    reference = None if style.reference is None else style.reference * scale
    inner = {name: one for name, one in shown.items() if name not in style.aside} or shown
    ends = [end for one in inner.values() for end in (one.value, one.low, one.high) if end is not None]
    ends += [] if reference is None else [reference]
    low, high = _axis(ends)

    def place(value: float) -> float:
        return round(100 * (min(max(value, low), high) - low) / (high - low), 2)

    rows = []
    for name, one in shown.items():
        value, interval = format_estimate(one, unit)
        first, last = (one.value if end is None else end for end in (one.low, one.high))
        beyond = "low" if one.value < low else "high" if one.value > high else ""
        left = place(first)
        kind = (style.kinds or {}).get(name, "")
        bar = Bar(
            *(name, value, interval, left, round(place(last) - left, 2), place(one.value)),
            *(beyond, name in style.best, kind),
        )
        rows.append(bar)
    ticks = [
        (place(tick), f"{tick:g}{unit}".replace("-", "−"))
        for tick in MaxNLocator(TICKS).tick_values(low, high)
        if low <= tick <= high
    ]
    return Chart(title, note, goal, rows, ticks, None if reference is None else place(reference))


def format_estimate(estimate: Interval, unit: str = "") -> tuple[str, str]:
    """A value and its interval as text, with equally many decimals.

    As many as half of the interval's length needs for one digit, or its ends to be told from 0; of a value without an
    interval three digits.
    """
    value, low, high = estimate.value, estimate.low, estimate.high
    if low is None or high is None:
        return format_number(value, _decimals_of(value / 100)) + unit, ""
    ends = (low, high) if low * high > 0 else ()
    decimals = max(map(_decimals_of, ((high - low) / 2, *ends)))
    if low == high:
        decimals = _decimals_of(value / 100)
    return (
        format_number(value, decimals) + unit,
        f"[{format_number(low, decimals)}, {format_number(high, decimals)}]",
    )


def format_number(value: float, decimals: int) -> str:
    """With a minus sign that is as wide as a plus, and none in front of zero."""
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def _decimals_of(size: float) -> int:
    """As many decimals as show one digit of a number of this size."""
    return min(MAX_DECIMALS, max(0, -math.floor(math.log10(abs(size))))) if size else 0


def _axis(values: Collection[float]) -> tuple[float, float]:
    """The ends of an axis that holds all values, and a little more."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin
