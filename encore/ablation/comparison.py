"""Runs side by side: one table of every measure for every run, on the terminal and on a page with their sounds."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from encore.evaluation.catalog import GOALS, Measure
from encore.evaluation.results import ARROWS, Results, shown
from encore.reporting.html import Cell, SampleGroup, card_groups, render
from encore.statistics import Interval

# An evaluation's names for what was evaluated, and for the music itself; all but the first are baselines.
MODEL, TRUTH = "model", "truth"
TIME = Measure("training_seconds", "training_seconds", "Training", "seconds by the clock", None)
HEAD = 14  # characters of a line above a column
GAP = 3  # columns of a terminal from one column of the table to the next

Figures = Mapping[str, Interval]


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        measures: rows, in order.
        runs: figures by run and measure; a run that failed has none.
        baselines: the same for what was evaluated beside every run.
        failures: why a run failed, by its name.
        warnings: why some figures are not to be trusted.
    """

    measures: Sequence[Measure]
    runs: Mapping[str, Figures]
    baselines: Mapping[str, Figures]
    failures: Mapping[str, str]
    warnings: Sequence[str]

    def best(self, measure: Measure) -> set[str]:
        """The runs with the best value; none if no value is better than another, or nothing is compared."""
        measured = {name: dict(figures) for name, figures in self.runs.items() if measure.name in figures}
        if len(measured) < 2:
            return set()
        truth = {TRUTH: dict(self.baselines.get(TRUTH, {}))}
        return Results({}, 0, 0, 0.0, systems={**measured, **truth}).best(measure)


def compare(
    evaluations: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, float], failures: Mapping[str, str]
) -> Comparison:
    """Puts evaluations beside one another.

    Args:
        evaluations: what evaluate.py wrote for each run that could be evaluated.
        seconds: how long each of all runs, in order, was trained.
        failures: why the others could not be.
    """
    measures: dict[str, Measure] = {}
    baselines: Mapping[str, Figures] = {}
    runs: dict[str, dict[str, Interval]] = {name: {} for name in seconds}
    for name, evaluation in evaluations.items():
        for measure, entry in evaluation["measures"].items():
            measures.setdefault(measure, Measure(measure, measure, entry["group"], entry["note"], entry["goal"]))
        systems = {system: _estimates(figures) for system, figures in evaluation["systems"].items()}
        runs[name] = {**systems.pop(MODEL), TIME.name: Interval(seconds[name], None, None)}
        # The same items, seeds and codec for all runs, so the first evaluation's baselines are everyone's.
        baselines = baselines or systems
    everyone = [*runs.values(), *baselines.values()]
    rows = [m for m in [*measures.values(), TIME] if any(m.name in figures for figures in everyone)]
    groups = list(dict.fromkeys(measure.group for measure in rows))
    rows.sort(key=lambda measure: groups.index(measure.group))  # brings those of a group together, in their order
    warnings = dict.fromkeys(warning for evaluation in evaluations.values() for warning in evaluation["warnings"])
    return Comparison(rows, runs, baselines, failures, list(warnings))


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The table; as many columns as the console is wide, then the next ones. The best of the runs are bold, with ★."""
    columns = {**comparison.runs, **comparison.baselines}
    best = {measure.name: comparison.best(measure) for measure in comparison.measures}
    label = max((len(_label(measure)) for measure in comparison.measures), default=0)
    cells = {
        name: [_text(figures.get(m.name), name in best[m.name]) for m in comparison.measures]
        for name, figures in columns.items()
    }
    heads = {name: _folded(name) + ["✗ failed"] * (name in comparison.failures) for name in columns}
    widths = {name: max(map(len, [*heads[name], *cells[name]])) for name in columns}
    for names in _blocks(widths, console.width - label - GAP):
        table = Table("measure", box=box.SIMPLE_HEAD)
        for name in names:
            style = None if name in comparison.runs else "dim"
            table.add_column("\n".join(heads[name]), justify="right", style=style, no_wrap=True)
        for row, measure in enumerate(comparison.measures):
            ends = comparison.measures[row + 1 : row + 2] != [] and comparison.measures[row + 1].group != measure.group
            values = [f"[bold]{cells[n][row]}[/]" if n in best[measure.name] else cells[n][row] for n in names]
            table.add_row(_label(measure), *values, end_section=ends)
        console.print(table)
    for name, reason in comparison.failures.items():
        console.print(f"{name}: {reason}", style="red", markup=False, soft_wrap=True)
    for warning in comparison.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)


def write_comparison(
    comparison: Comparison,
    listening: Sequence[SampleGroup],
    sample_rate: int,
    settings: Mapping[str, str],
    metadata: Mapping[str, str],
    path: Path,
) -> None:
    """Writes the page: the audio samples side by side, the table, the settings of each run, and how it was made."""
    columns = [
        {"name": name, "class": "" if name in comparison.runs else "baseline", "failed": name in comparison.failures}
        for name in [*comparison.runs, *comparison.baselines]
    ]
    page = render(
        "ablation.html.j2",
        title="Side by side",
        warnings=[*(f"{name}: {reason}" for name, reason in comparison.failures.items()), *comparison.warnings],
        listening=card_groups(listening, sample_rate),
        columns=columns,
        groups=[
            {"title": group, "rows": [_row(comparison, measure) for measure in measures]}
            for group, measures in groupby(comparison.measures, lambda measure: measure.group)
        ],
        settings=settings,
        metadata=metadata,
        number=shown,
    )
    path.write_text(page, encoding="utf-8")


def _row(comparison: Comparison, measure: Measure) -> dict[str, Any]:
    """A metric's row of the page's table, with a cell for every run and baseline."""
    best = comparison.best(measure)
    return {
        "name": measure.name,
        "note": measure.note,
        "goal": GOALS.get(measure.goal or "", ""),
        "cells": [
            Cell(figures.get(measure.name), name in best)
            for name, figures in {**comparison.runs, **comparison.baselines}.items()
        ],
    }


def _estimates(figures: Mapping[str, Mapping[str, float | None]]) -> dict[str, Interval]:
    """An evaluation's figures; one that is null is none."""
    return {
        name: Interval(figure["value"], figure["low"], figure["high"])
        for name, figure in figures.items()
        if figure["value"] is not None
    }


def _label(measure: Measure) -> str:
    return measure.name + ARROWS.get(measure.goal or "", "")


def _text(estimate: Interval | None, best: bool) -> str:
    return "–" if estimate is None else ("★ " if best else "") + shown(estimate.value)


def _folded(name: str) -> list[str]:
    """A name in short lines, broken after underscores, which the spaces stand for meanwhile."""
    return [line.replace(" ", "") for line in textwrap.wrap(name.replace("_", "_ "), HEAD)]


def _blocks(widths: Mapping[str, int], room: int) -> list[list[str]]:
    """The names, in order, as many together as fit."""
    blocks: list[list[str]] = []
    left = 0
    for name, width in widths.items():
        if not blocks or width + GAP > left:
            blocks.append([])
            left = room
        blocks[-1].append(name)
        left -= width + GAP
    return blocks
