"""Runs side by side: one table of every measure for every run, on the terminal and on a page with their sounds."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from encore.evaluation.metrics.registry import GOALS, MetricSpec
from encore.evaluation.results import ARROWS, Results, format_value
from encore.reporting.html import Exhibit, facts_html, side_by_side_html, write_document
from encore.statistics import Interval

# An evaluation's names for what was evaluated, and for the music itself; all but the first are baselines.
MODEL, TRUTH = "model", "truth"
TIME = MetricSpec("training_seconds", "training_seconds", "Training", "seconds by the clock", None)
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

    measures: Sequence[MetricSpec]
    runs: Mapping[str, Figures]
    baselines: Mapping[str, Figures]
    failures: Mapping[str, str]
    warnings: Sequence[str]

    def best(self, measure: MetricSpec) -> set[str]:
        """The runs with the best value; none if no value is better than another, or nothing is compared."""
        measured = {name: dict(figures) for name, figures in self.runs.items() if measure.name in figures}
        if len(measured) < 2:
            return set()
        truth = {TRUTH: dict(self.baselines.get(TRUTH, {}))}
        return Results({}, 0, 0, 0.0, values={**measured, **truth}).best(measure)


def compare(
    evaluations: Mapping[str, Mapping[str, Any]], seconds: Mapping[str, float], failures: Mapping[str, str]
) -> Comparison:
    """Puts evaluations beside one another.

    Args:
        evaluations: what evaluate.py wrote for each run that could be evaluated.
        seconds: how long each of all runs, in order, was trained.
        failures: why the others could not be.
    """
    measures: dict[str, MetricSpec] = {}
    baselines: Mapping[str, Figures] = {}
    runs: dict[str, dict[str, Interval]] = {name: {} for name in seconds}
    for name, evaluation in evaluations.items():
        for measure, entry in evaluation["measures"].items():
            measures.setdefault(measure, MetricSpec(measure, measure, entry["group"], entry["note"], entry["goal"]))
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


@dataclass(frozen=True)
class Heard:
    """Sounds of one validation pair: what the pair is, and an exhibit of the truth and of each run."""

    title: str
    exhibits: Sequence[Exhibit]


def write_comparison(
    comparison: Comparison,
    heard: Sequence[Heard],
    sample_rate: int,
    settings: Mapping[str, str],
    facts: Mapping[str, str],
    path: Path,
) -> None:
    """Writes the page: the sounds side by side, the table, what each run was, and how it was made."""
    troubles = [*(f"{name}: {reason}" for name, reason in comparison.failures.items()), *comparison.warnings]
    lines = "".join(f"\n<li>{escape(trouble)}</li>" for trouble in troubles)
    sections = [
        f'<section aria-label="Take care">\n<ul class="troubles">{lines}\n</ul>\n</section>' if lines else "",
        _listen(heard, sample_rate),
        _table(comparison),
        facts_html("The runs", settings),
        facts_html("How it was made", facts),
    ]
    write_document(path, "Side by side", "\n".join(filter(None, sections)), STYLE)


def _estimates(figures: Mapping[str, Mapping[str, float | None]]) -> dict[str, Interval]:
    """An evaluation's figures; one that is null is none."""
    return {
        name: Interval(figure["value"], figure["low"], figure["high"])
        for name, figure in figures.items()
        if figure["value"] is not None
    }


def _label(measure: MetricSpec) -> str:
    return measure.name + ARROWS.get(measure.goal or "", "")


def _text(estimate: Interval | None, best: bool) -> str:
    return "–" if estimate is None else ("★ " if best else "") + format_value(estimate.value)


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


def _listen(heard: Sequence[Heard], sample_rate: int) -> str:
    parts = []
    for item in heard:
        parts.append(side_by_side_html(item.title, item.exhibits, sample_rate))
    if not parts:
        return ""
    legend = '<p class="legend">Colours: level in dB, 0 being the loudest point of the truth.</p>'
    return "\n".join(['<section aria-labelledby="listen">\n<h2 id="listen">Listen</h2>', *parts, legend, "</section>"])


def _table(comparison: Comparison) -> str:
    columns = {**comparison.runs, **comparison.baselines}
    head = "".join(
        f'<th scope="col"{"" if name in comparison.runs else " class=baseline"}>{escape(name)}'
        f"{'<small>failed</small>' if name in comparison.failures else ''}</th>"
        for name in columns
    )
    bodies = []
    for group, measures in groupby(comparison.measures, lambda measure: measure.group):
        rows = []
        for measure in measures:
            best = comparison.best(measure)
            row = "".join(
                _cell(figures.get(measure.name), name in best, name in comparison.runs)
                for name, figures in columns.items()
            )
            goal = GOALS.get(measure.goal or "", "")
            title = f'<th scope="row" title="{escape(measure.note)}">{escape(measure.name)}<small>{goal}</small></th>'
            rows.append(f"\n<tr>{title}{row}</tr>")
        rest = f'<td colspan="{len(columns)}"></td>'
        title = f'\n<tr><th scope="rowgroup" class="group">{escape(group)}</th>{rest}</tr>'
        bodies.append(f"\n<tbody>{title}{''.join(rows)}\n</tbody>")
    if not bodies:
        return ""
    return f"""<section aria-labelledby="figures">
<h2 id="figures">Figures</h2>
<div class="scroll" role="region" aria-labelledby="figures" tabindex="0">
<table>
<thead><tr><th scope="col">Measure</th>{head}</tr></thead>{"".join(bodies)}
</table>
</div>
<p class="legend">★ is the best of the runs. Small: 95% intervals. Grey: baselines, the same for all runs.</p>
</section>"""


def _cell(estimate: Interval | None, best: bool, run: bool) -> str:
    kind = "" if run else ' class="baseline"'
    if estimate is None:
        return f"<td{kind}>–</td>"
    value = f"<strong>★ {format_value(estimate.value)}</strong>" if best else format_value(estimate.value)
    if estimate.low is None or estimate.high is None:
        return f"<td{kind}>{value}</td>"
    return f"<td{kind}>{value}<small>{format_value(estimate.low)} … {format_value(estimate.high)}</small></td>"


STYLE = """
.item { margin: 1.4rem 0 0.7rem; }
.scroll { max-height: 90vh; overflow-y: auto; }
thead th { position: sticky; top: 0; background: var(--card); z-index: 1; vertical-align: bottom; }
th:first-child { position: sticky; left: 0; background: var(--card); }
thead th:first-child { z-index: 2; }
th:first-child, td { white-space: nowrap; }
td small { display: block; }
td strong { color: var(--accent); }
.baseline { color: var(--soft); }
.group { color: var(--accent); font-size: 0.85rem; }
tbody:not(:first-of-type) .group { padding-top: 1.4rem; }
.troubles { margin: 1.5rem 0 0; padding: 0.8rem 1rem 0.8rem 2.2rem; background: var(--card);
  border: 1px solid var(--accent); border-radius: 0.75rem; }
@media (max-width: 40rem) {
  th:first-child { min-width: 9rem; max-width: 9rem; white-space: normal; overflow-wrap: anywhere; font-size: 0.8rem; }
}
"""
