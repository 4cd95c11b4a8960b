"""What an evaluation found: as tables for the terminal, and as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from encore.evaluation.catalog import Measure
from encore.statistics import Interval

HEAR_THE_TRUTH = ("codec", "truth")  # no rivals: their figures say what could be had at best
ARROWS = {"low": " ↓", "high": " ↑", "zero": " →0", "one": " →1", "truth": " →t"}
EQUAL = 1e-6  # values that differ by less are equally good
MOST_COLUMNS = 4  # of a table that is read at a width of 100 characters


@dataclass
class Results:
    """What an evaluation found.

    Attributes:
        facts: how it was made, by name.
        items: validation pairs.
        candidates: continuations per pair of a stochastic system.
        seconds: length of each.
        measures: what was measured, in order.
        systems: figures by system and measure; a system lacks what has no meaning for it.
        per_item: the values that belong to pairs, by measure and system, in the order of `pairs`.
        pairs: names of the pairs.
        recordings: what each was cut from.
        courses: by quantity and system, its value in every second of long continuations.
        warnings: why some figures are not to be trusted.
        notes: what a system is, by its name.
    """

    facts: dict[str, str]
    items: int
    candidates: int
    seconds: float
    measures: list[Measure] = field(default_factory=list)
    systems: dict[str, dict[str, Interval]] = field(default_factory=dict)
    per_item: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    pairs: list[str] = field(default_factory=list)
    recordings: list[str] = field(default_factory=list)
    courses: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def groups(self) -> dict[str, list[Measure]]:
        """The measures that any system has, by group."""
        found: dict[str, list[Measure]] = {}
        for measure in self.measures:
            if any(measure.name in figures for figures in self.systems.values()):
                found.setdefault(measure.group, []).append(measure)
        return found

    def best(self, measure: Measure) -> set[str]:
        """The systems with the best value, of those that don't hear the truth; none if no value is better."""
        truth = self.systems.get("truth", {}).get(measure.name)
        if measure.goal is None or (measure.goal == "truth" and truth is None):
            return set()
        values = {
            system: _badness(measure.goal, figures[measure.name].value, truth)
            for system, figures in self.systems.items()
            if system not in HEAR_THE_TRUTH and measure.name in figures
        }
        finite = {system: value for system, value in values.items() if math.isfinite(value)}
        return {system for system, value in finite.items() if value <= min(finite.values()) + EQUAL}

    def metrics(self) -> dict[str, float]:
        """`eval_<system>_<measure>` of all finite figures."""
        return {
            f"eval_{system}_{name}": estimate.value
            for system, figures in self.systems.items()
            for name, estimate in figures.items()
            if math.isfinite(estimate.value)
        }


def write_json(results: Results, path: Path) -> None:
    """Writes everything that was found; what is not finite is null."""
    content = {
        "checkpoint": results.facts["Checkpoint"],
        "items": results.items,
        "candidates": results.candidates,
        "seconds": results.seconds,
        "systems": {
            system: {
                name: {"value": _plain(figure.value), "low": _plain(figure.low), "high": _plain(figure.high)}
                for name, figure in figures.items()
            }
            for system, figures in results.systems.items()
        },
        "warnings": results.warnings,
        "measures": {
            measure.name: {"group": measure.group, "note": measure.note, "goal": measure.goal}
            for measure in results.measures
        },
        "pairs": results.pairs,
        "recordings": results.recordings,
        "per_item": {
            name: {system: [_plain(value) for value in values] for system, values in systems.items()}
            for name, systems in results.per_item.items()
        },
        "courses": {
            name: {system: [_plain(value) for value in values] for system, values in systems.items()}
            for name, systems in results.courses.items()
        },
        "facts": results.facts,
    }
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def print_tables(results: Results, console: Console) -> None:
    """A table per group of measures, split where it would be too wide: systems as rows, the best in bold, with ★."""
    for group, measures in results.groups().items():
        tables = math.ceil(len(measures) / MOST_COLUMNS)
        width = math.ceil(len(measures) / tables)
        for first in range(0, len(measures), width):
            part = measures[first : first + width]
            table = Table("", title=group if first == 0 else f"{group}, continued", box=box.SIMPLE_HEAD)
            table.title_justify = "left"
            for measure in part:
                arrow = ARROWS.get(measure.goal or "", "")
                table.add_column(measure.title + arrow, justify="right")
            best = {measure.name: results.best(measure) for measure in part}
            for system, figures in results.systems.items():
                if any(measure.name in figures for measure in part):
                    cells = [_cell(figures.get(m.name), system in best[m.name]) for m in part]
                    table.add_row(system, *cells)
            console.print(table)
    for warning in results.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)


def _badness(goal: str, value: float, truth: Interval | None) -> float:
    """How far a value is from the best one; lower is better."""
    if goal == "truth" and truth is not None:
        return abs(value - truth.value)
    if goal == "high":
        return -value
    if goal == "zero":
        return abs(value)
    if goal == "one":
        return abs(math.log(value)) if value > 0 else math.inf
    return value


def _plain(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def shown(value: float) -> str:
    """Three digits that count, and four places at most."""
    if not math.isfinite(value):
        return "–"
    if abs(value) < 5e-5:
        return "0"
    return f"{value:.{min(4, max(0, 2 - math.floor(math.log10(abs(value)))))}f}".replace("-", "−")


def _cell(estimate: Interval | None, best: bool) -> str:
    if estimate is None:
        return "–"
    text = ("★ " if best else "") + shown(estimate.value)
    text = f"[bold]{text}[/]" if best else text
    if estimate.low is None or estimate.high is None:
        return text
    half = (estimate.high - estimate.low) / 2
    return f"{text} [dim]±{shown(half)}[/]"
