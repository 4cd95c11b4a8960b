"""The page of an evaluation: one HTML file with its plots, tables and sounds inside, which needs no network."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from encore.evaluation.catalog import GOALS, Measure
from encore.evaluation.results import Results, shown
from encore.reporting.html import Exhibit, facts_html, picture_html, side_by_side_html, write_document
from encore.reporting.plots import colours, curves, points
from encore.statistics import Interval

LEAST_SKILL = -1.5  # of the plot: silence would flatten all others


@dataclass(frozen=True)
class Listening:
    """Sounds to compare, of one pair: a heading, and an exhibit per system."""

    title: str
    exhibits: Sequence[Exhibit]


def write_report(results: Results, listening: Sequence[Listening], sample_rate: int, path: Path) -> None:
    """Writes the page: warnings, plots, a table per group with intervals, the sounds, and how it was made."""
    sections = [_warnings(results.warnings)]
    groups = results.groups()
    scores = [measure for measures in groups.values() for measure in measures if measure.name in results.per_item]
    sections += [_plots(results, scores)]
    sections += [_table(results, group, measures, number) for number, (group, measures) in enumerate(groups.items())]
    sections += [_listen(listening, sample_rate)]
    systems = "".join(
        f"\n<div><dt>{escape(name)}</dt><dd>{escape(note)}</dd></div>" for name, note in results.notes.items()
    )
    sections += [
        f'<section aria-labelledby="systems">\n<h2 id="systems">The systems</h2>\n<dl>{systems}</dl>\n</section>'
    ]
    sections += [facts_html("How it was made", results.facts)]
    write_document(path, f"How good is {results.facts['Name']}?", "\n".join(filter(None, sections)), STYLE)


def _table(results: Results, group: str, measures: Sequence[Measure], number: int) -> str:
    best = {measure.name: results.best(measure) for measure in measures}
    head = "".join(
        f'<th scope="col" title="{escape(m.note)}">{escape(m.title)}<small>{GOALS.get(m.goal or "", "")}</small></th>'
        for m in measures
    )
    rows = "".join(
        f'\n<tr><th scope="row">{escape(system)}</th>'
        + "".join(_html_cell(figures.get(m.name), system in best[m.name]) for m in measures)
        + "</tr>"
        for system, figures in results.systems.items()
        if any(m.name in figures for m in measures)
    )
    notes = "".join(f"<dt>{escape(m.title)}</dt><dd>{escape(m.note)}</dd>" for m in measures)
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


def _html_cell(estimate: Interval | None, best: bool) -> str:
    if estimate is None:
        return "<td>–</td>"
    value = f"<strong>★ {shown(estimate.value)}</strong>" if best else shown(estimate.value)
    if estimate.low is None or estimate.high is None:
        return f"<td>{value}</td>"
    return f"<td>{value}<small>{shown(estimate.low)} … {shown(estimate.high)}</small></td>"


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    lines = "".join(f"\n<li>{escape(warning)}</li>" for warning in warnings)
    return f"""<section aria-labelledby="warnings" class="warnings">
<h2 id="warnings">Take care</h2>
<ul>{lines}
</ul>
</section>"""


def _plots(results: Results, scores: Sequence[Measure]) -> str:
    """Skill and score with their intervals, and how long continuations change."""

    def panels(measures: Sequence[Measure]) -> dict[str, dict[str, Interval]]:
        return {
            measure.title: {
                s: figures[measure.name] for s, figures in results.systems.items() if measure.name in figures
            }
            for measure in measures
        }

    cards = []
    looks = colours(list(results.systems))
    skills = [measure for measure in results.measures if measure.name.startswith("skill_")]
    for title, note, measures, reference, least in (
        (
            "Skill",
            "1 − score / score of the replay, with 95% intervals: above 0 is better than the replay.",
            skills,
            0.0,
            LEAST_SKILL,
        ),
        ("Energy score", "Held-out, with 95% intervals: lower is better.", scores, None, None),
    ):
        found = {name: values for name, values in panels(measures).items() if values}
        if found:
            picture = io.BytesIO()
            points(found, looks, picture, reference, least)
            cards.append(_card(title, note, picture))
    if results.courses:
        picture = io.BytesIO()
        curves(results.courses, looks, picture, "seconds after the context")
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


def _listen(listening: Sequence[Listening], sample_rate: int) -> str:
    parts = []
    for item in listening:
        parts.append(side_by_side_html(item.title, item.exhibits, sample_rate))
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
