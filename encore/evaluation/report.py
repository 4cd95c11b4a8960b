"""The page of an evaluation: one HTML file with its plots, tables and audio samples inside, which needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from encore.errors import disk_space
from encore.evaluation.metrics.energy_score import GROUPS, SKILL
from encore.evaluation.metrics.registry import GOALS, MetricSpec
from encore.evaluation.results import HEADLINE_TITLE, Results, format_value
from encore.reporting.html import Cell, SampleGroup, card_groups, png, render
from encore.reporting.plots import colours, curves, points
from encore.statistics import Interval

LEAST_SKILL = -1.5  # left end of the plot's axis, because the skill of silence is far below all others


def write_report(results: Results, groups: Sequence[SampleGroup], sample_rate: int, path: Path) -> None:
    """Writes the page: warnings, plots, a table per group of metrics, audio samples, and how it was made."""
    page = render(
        "evaluation.html.j2",
        title=f"How good is {results.metadata['Name']}?",
        warnings=results.warnings,
        headline=_headline(results),
        plots=_plots(results),
        tables=[_table(results, group, specs) for group, specs in results.groups().items()],
        listening=card_groups(groups, sample_rate),
        systems=results.notes,
        metadata=results.metadata,
        number=format_value,
    )
    with disk_space(path, "the page"):
        path.write_text(page, encoding="utf-8")


def _headline(results: Results) -> dict[str, Any] | None:
    """The headline as a table with a caption; None without any of its figures."""
    specs = results.headline_specs()
    return {**_table(results, HEADLINE_TITLE, specs), "caption": results.caption} if specs else None


def _table(results: Results, group: str, specs: Sequence[MetricSpec]) -> dict[str, Any]:
    """A group's metrics as columns, the continuers that have any of them as rows."""
    best = {spec.name: results.best(spec) for spec in specs}
    return {
        "title": group,
        "columns": [{"title": m.title, "note": m.note, "goal": GOALS.get(m.goal or "", "")} for m in specs],
        "rows": [
            {"name": name, "cells": [Cell(values.get(m.name), name in best[m.name]) for m in specs]}
            for name, values in results.values.items()
            if any(m.name in values for m in specs)
        ],
    }


def _plots(results: Results) -> list[dict[str, str]]:
    """Skill and energy score with their intervals, and the contours of long continuations, as PNG."""
    looks = colours(list(results.values))
    skills = _panels(results, [spec for spec in results.specs if spec.group == GROUPS[SKILL][0]])
    scores = _panels(results, [spec for spec in results.specs if spec.name in results.per_item])
    plots = []
    if skills:
        note = "1 − score / score of the replay, with 95% intervals: above 0 is better than the replay."
        image = png(lambda file: points(skills, looks, file, reference=0.0, least=LEAST_SKILL))
        plots.append({"title": "Skill", "note": note, "image": image})
    if scores:
        note = "Held-out, with 95% intervals: lower is better."
        plots.append({"title": "Energy score", "note": note, "image": png(lambda file: points(scores, looks, file))})
    if results.contours:
        note = "Long continuations, second by second, against real music."
        image = png(lambda file: curves(results.contours, looks, file, "seconds after the context"))
        plots.append({"title": "Drift", "note": note, "image": image})
    return plots


def _panels(results: Results, specs: Sequence[MetricSpec]) -> dict[str, dict[str, Interval]]:
    """The values of every continuer, by metric; metrics that no continuer has are left out."""
    panels = {
        spec.title: {name: values[spec.name] for name, values in results.values.items() if spec.name in values}
        for spec in specs
    }
    return {title: values for title, values in panels.items() if values}
