"""The page of an evaluation: one HTML file with its plots, tables and sounds inside, which needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from encore.evaluation.catalog import GOALS, Measure
from encore.evaluation.results import Results, shown
from encore.reporting.html import Cell, SampleGroup, card_groups, png, render
from encore.reporting.plots import colours, curves, points
from encore.statistics import Interval

LEAST_SKILL = -1.5  # left end of the plot's axis: silence is so far below that the others could not be told apart


def write_report(results: Results, listening: Sequence[SampleGroup], sample_rate: int, path: Path) -> None:
    """Writes the page: warnings, plots, a table per group of metrics, audio samples, and how it was made."""
    page = render(
        "evaluation.html.j2",
        title=f"How good is {results.facts['Name']}?",
        warnings=results.warnings,
        plots=_plots(results),
        tables=[_table(results, group, measures) for group, measures in results.groups().items()],
        listening=card_groups(listening, sample_rate),
        systems=results.notes,
        metadata=results.facts,
        number=shown,
    )
    path.write_text(page, encoding="utf-8")


def _table(results: Results, group: str, measures: Sequence[Measure]) -> dict[str, Any]:
    """A group's metrics as columns, the systems that have any of them as rows."""
    best = {measure.name: results.best(measure) for measure in measures}
    return {
        "title": group,
        "columns": [{"title": m.title, "note": m.note, "goal": GOALS.get(m.goal or "", "")} for m in measures],
        "rows": [
            {"name": system, "cells": [Cell(figures.get(m.name), system in best[m.name]) for m in measures]}
            for system, figures in results.systems.items()
            if any(m.name in figures for m in measures)
        ],
    }


def _plots(results: Results) -> list[dict[str, str]]:
    """Skill and energy score with their intervals, and how long continuations change, as PNG."""
    looks = colours(list(results.systems))
    skills = _panels(results, [m for m in results.measures if m.name.startswith("skill_")])
    scores = _panels(results, [m for m in results.measures if m.name in results.per_item])
    plots = []
    if skills:
        note = "1 − score / score of the replay, with 95% intervals: above 0 is better than the replay."
        image = png(lambda file: points(skills, looks, file, reference=0.0, least=LEAST_SKILL))
        plots.append({"title": "Skill", "note": note, "image": image})
    if scores:
        note = "Held-out, with 95% intervals: lower is better."
        plots.append({"title": "Energy score", "note": note, "image": png(lambda file: points(scores, looks, file))})
    if results.courses:
        note = "Long continuations, second by second, against real music."
        image = png(lambda file: curves(results.courses, looks, file, "seconds after the context"))
        plots.append({"title": "Drift", "note": note, "image": image})
    return plots


def _panels(results: Results, measures: Sequence[Measure]) -> dict[str, dict[str, Interval]]:
    """The estimates of every system, by metric; metrics that no system has are left out."""
    panels = {
        measure.title: {name: found[measure.name] for name, found in results.systems.items() if measure.name in found}
        for measure in measures
    }
    return {title: estimates for title, estimates in panels.items() if estimates}
