"""The page of an evaluation: one HTML file with its plots, tables and audio samples, which needs no network."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from encore.evaluation.metrics.energy_score import SKILL
from encore.evaluation.metrics.registry import GOALS, MetricSpec
from encore.evaluation.results import Results, format_value
from encore.reporting.html import Exhibit, facts_html, picture_html, side_by_side_html, write_document
from encore.reporting.plots import colours, curves, points
from encore.statistics import Interval

LEAST_SKILL = -1.5  # left end of the plot's axis, because the skill of silence is far below all others


@dataclass(frozen=True)
class SampleGroup:
    """Audio samples of one pair to compare: a heading, and one sample per continuer."""

    title: str
    samples: Sequence[Exhibit]


def write_report(results: Results, groups: Sequence[SampleGroup], sample_rate: int, path: Path) -> None:
    """Writes the page: warnings, plots, a table per group with intervals, audio samples, and how it was made."""
    sections = [_warnings(results.warnings)]
    tables = results.groups()
    scores = [spec for specs in tables.values() for spec in specs if spec.name in results.per_item]
    sections += [_plots(results, scores)]
    sections += [_table(results, group, specs, number) for number, (group, specs) in enumerate(tables.items())]
    sections += [_listen(groups, sample_rate)]
    systems = "".join(
        f"\n<div><dt>{escape(name)}</dt><dd>{escape(note)}</dd></div>" for name, note in results.notes.items()
    )
    sections += [
        f'<section aria-labelledby="systems">\n<h2 id="systems">The systems</h2>\n<dl>{systems}</dl>\n</section>'
    ]
    sections += [facts_html("How it was made", results.metadata)]
    write_document(path, f"How good is {results.metadata['Name']}?", "\n".join(filter(None, sections)), STYLE)


def _table(results: Results, group: str, specs: Sequence[MetricSpec], number: int) -> str:
    best = {spec.name: results.best(spec) for spec in specs}
    head = "".join(
        f'<th scope="col" title="{escape(m.note)}">{escape(m.title)}<small>{GOALS.get(m.goal or "", "")}</small></th>'
        for m in specs
    )
    rows = "".join(
        f'\n<tr><th scope="row">{escape(system)}</th>'
        + "".join(_html_cell(values.get(m.name), system in best[m.name]) for m in specs)
        + "</tr>"
        for system, values in results.values.items()
        if any(m.name in values for m in specs)
    )
    notes = "".join(f"<dt>{escape(m.title)}</dt><dd>{escape(m.note)}</dd>" for m in specs)
    return f"""<section aria-labelledby="group{number}">
<h2 id="group{number}">{escape(group)}</h2>
<div class="scroll" role="region" aria-labelledby="group{number}" tabindex="0">
<table>
<thead><tr><th scope="col">System</th>{head}</tr></thead>
<tbody>{rows}
</tbody>
</table>
</div>
<details><summary>What these are</summary><dl>{notes}</dl></details>
</section>"""


def _html_cell(interval: Interval | None, best: bool) -> str:
    if interval is None:
        return "<td>–</td>"
    value = f"<strong>★ {format_value(interval.value)}</strong>" if best else format_value(interval.value)
    if interval.low is None or interval.high is None:
        return f"<td>{value}</td>"
    return f"<td>{value}<small>{format_value(interval.low)} … {format_value(interval.high)}</small></td>"


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    lines = "".join(f"\n<li>{escape(warning)}</li>" for warning in warnings)
    return f"""<section aria-labelledby="warnings" class="warnings">
<h2 id="warnings">Take care</h2>
<ul>{lines}
</ul>
</section>"""


def _plots(results: Results, scores: Sequence[MetricSpec]) -> str:
    """Skill and score with their intervals, and the contours of long continuations."""

    def panels(specs: Sequence[MetricSpec]) -> dict[str, dict[str, Interval]]:
        found = {
            spec.title: {name: values[spec.name] for name, values in results.values.items() if spec.name in values}
            for spec in specs
        }
        return {title: values for title, values in found.items() if values}

    cards = []
    look = colours(list(results.values))
    if skills := panels([spec for spec in results.specs if spec.name.startswith(SKILL)]):
        picture = io.BytesIO()
        points(skills, look, picture, 0.0, LEAST_SKILL)
        note = "1 − score / score of the replay, with 95% intervals: above 0 is better than the replay."
        cards.append(_card("Skill", note, picture))
    if found := panels(scores):
        picture = io.BytesIO()
        points(found, look, picture)
        cards.append(_card("Energy score", "Held-out, with 95% intervals: lower is better.", picture))
    if results.contours:
        picture = io.BytesIO()
        curves(results.contours, look, picture, "seconds after the context")
        cards.append(_card("Drift", "Long continuations, second by second, against real music.", picture))
    return f"""<section aria-labelledby="plots">
<h2 id="plots">At a glance</h2>
<div class="exhibits plots">{"".join(cards)}
</div>
</section>"""


def _card(title: str, note: str, picture: io.BytesIO) -> str:
    return (
        f"\n<article>\n<h3>{title}</h3>\n<p>{note}</p>\n{picture_html(picture, f'Plot: {title}. {note}')}\n</article>"
    )


def _listen(groups: Sequence[SampleGroup], sample_rate: int) -> str:
    parts = [side_by_side_html(group.title, group.samples, sample_rate) for group in groups]
    if not parts:
        return ""
    return '<section aria-labelledby="listen">\n<h2 id="listen">Listen</h2>\n' + "\n".join(parts) + "\n</section>"


STYLE = """
td small { display: block; white-space: nowrap; }
td strong { color: var(--accent); }
thead small { display: block; font-weight: 400; }
.plots article:first-child { grid-column: auto; display: flex; }
.plots { align-items: start; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
.warnings ul { margin: 0; padding: 0.8rem 1rem 0.8rem 2.2rem; background: var(--card); border: 1px solid var(--accent);
  border-radius: 0.75rem; }
details { margin-top: 0.6rem; color: var(--soft); font-size: 0.9rem; }
details dl { margin-top: 0.6rem; display: block; }
details dt { color: var(--ink); font-weight: 600; margin-top: 0.4rem; }
.item { margin: 1.4rem 0 0.7rem; }
"""
