"""The listening page: one HTML file with its sounds and pictures inside, which needs no network."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import soundfile
from torch import Tensor

from encore.reporting.spectrograms import peak, spectrograms


@dataclass(frozen=True)
class Exhibit:
    """One sound to listen to: its title, a sentence about it, and the audio `[C, N]`."""

    title: str
    note: str
    audio: Tensor


@dataclass(frozen=True)
class Table:
    """Figures to compare.

    Attributes:
        caption: a sentence that says how to read them.
        columns: what is compared.
        rows: by name, one value per column.
        notes: what a row measures, by its name.
        rivals: how many of the columns, from the first on, are rivals; the lowest of their values in a row is marked.
    """

    caption: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[float]]
    notes: Mapping[str, str]
    rivals: int = 0

    def best(self, name: str) -> int | None:
        """The column of a row that is marked: that of the first of the lowest values among rivals."""
        rivals = self.rows[name][: self.rivals]
        if len(rivals) < 2:
            return None
        return min(range(len(rivals)), key=lambda column: (math.isnan(rivals[column]), rivals[column]))


def write_page(
    path: Path,
    title: str,
    facts: Mapping[str, str],
    exhibits: Sequence[Exhibit],
    sample_rate: int,
    table: Table | None = None,
    candidates: Sequence[Exhibit] = (),
) -> None:
    """Writes the page: a player (FLAC, lossless) and a spectrogram per exhibit, the table, and facts by name.

    Candidates, if there are any, come first, side by side. 0 dB is the loudest point of the first exhibit in all
    pictures. All text is escaped.
    """
    reference_db = peak(exhibits[0].audio, sample_rate)
    before = ""
    if candidates:
        before = _cards("candidates", "Candidates", "candidates", candidates, sample_rate, reference_db)
    shown = _cards("listen", "Beside them" if candidates else "Listen", "exhibits", exhibits, sample_rate, reference_db)
    sections = f"""{before}{shown}
<p class="legend">Colours: level in dB, 0 being the loudest point of “{escape(exhibits[0].title)}”.</p>
{"" if table is None else _table(table)}
{facts_html("How it was made", facts)}"""
    write_document(path, title, sections)


def write_document(path: Path, title: str, sections: str, style: str = "") -> None:
    """Writes a page of Encore's look: the title, then `sections`, which are HTML. `style` is CSS beside `STYLE`."""
    path.write_text(
        f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<header>
<p class="brand">Encore</p>
<h1>{escape(title)}</h1>
</header>
<main>
{sections}
</main>
<script>{SCRIPT}</script>
</body>
</html>
""",
        encoding="utf-8",
    )


def _cards(
    name: str, heading: str, style: str, exhibits: Sequence[Exhibit], sample_rate: int, reference_db: float
) -> str:
    cards = "".join(exhibit_html(exhibit, sample_rate, reference_db) for exhibit in exhibits)
    return f"""<section aria-labelledby="{name}">
<h2 id="{name}">{heading}</h2>
<div class="{style}">{cards}
</div>
</section>"""


def side_by_side_html(title: str, exhibits: Sequence[Exhibit], sample_rate: int) -> str:
    """A heading, and the cards of exhibits to compare; 0 dB is the loudest point of the first one in all pictures."""
    reference_db = peak(exhibits[0].audio, sample_rate)
    cards = "".join(exhibit_html(exhibit, sample_rate, reference_db) for exhibit in exhibits)
    return f'<h3 class="item">{escape(title)}</h3>\n<div class="exhibits">{cards}\n</div>'


def exhibit_html(exhibit: Exhibit, sample_rate: int, reference_db: float) -> str:
    """A card with a player (FLAC, lossless) and a spectrogram whose 0 dB is `reference_db`."""
    picture, sound = io.BytesIO(), io.BytesIO()
    spectrograms({"": exhibit.audio}, sample_rate, picture, reference_db)
    samples = exhibit.audio.detach().cpu().float().clamp(-1, 1).numpy().T
    soundfile.write(sound, samples, sample_rate, format="FLAC", subtype="PCM_16")
    title = escape(exhibit.title)
    seconds = exhibit.audio.shape[-1] / sample_rate
    return f"""
<article>
<h3>{title} <small>{seconds:.1f} s</small></h3>
<p>{escape(exhibit.note)}</p>
<audio controls preload="metadata" aria-label="{title}" src="data:audio/flac;base64,{_base64(sound)}"></audio>
{picture_html(picture, f"Spectrogram: {exhibit.title}")}
</article>"""


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = "".join(
        f'\n<tr><th scope="row">{escape(name)}<small>{escape(table.notes[name])}</small></th>'
        + "".join(_cell(value, column == table.best(name)) for column, value in enumerate(values))
        + "</tr>"
        for name, values in table.rows.items()
    )
    return f"""
<section aria-labelledby="losses">
<h2 id="losses">Losses</h2>
<div class="scroll" role="region" aria-labelledby="losses" tabindex="0">
<table>
<caption>{escape(table.caption)}</caption>
<thead><tr><th scope="col">Loss</th>{head}</tr></thead>
<tbody>{rows}
</tbody>
</table>
</div>
</section>"""


def _cell(value: float, best: bool) -> str:
    return f'<td class="best"><strong>{value:.4f}</strong></td>' if best else f"<td>{value:.4f}</td>"


def facts_html(heading: str, facts: Mapping[str, str]) -> str:
    """A section of facts by name."""
    rows = "".join(f"\n<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"""<section aria-labelledby="facts">
<h2 id="facts">{escape(heading)}</h2>
<dl>{rows}</dl>
</section>"""


def picture_html(picture: io.BytesIO, description: str) -> str:
    """A PNG inside the page, and what it says to those who can't see it."""
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{_base64(picture)}">'


def _base64(content: io.BytesIO) -> str:
    return base64.b64encode(content.getvalue()).decode("ascii")


STYLE = """
:root { color-scheme: light dark; --page: #f6f5f2; --card: #fff; --ink: #1d1e22; --soft: #5d6068; --line: #dedcd6;
  --accent: #a3324f; }
@media (prefers-color-scheme: dark) {
  :root { --page: #101114; --card: #191b20; --ink: #ececee; --soft: #a5a8b0; --line: #2e3138; --accent: #f28ba2; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: clamp(1rem, 4vw, 3rem); background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3, p, dl, dd { margin: 0; }
h1 { font-size: clamp(1.5rem, 5vw, 2.25rem); line-height: 1.2; letter-spacing: -0.015em; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.9rem; }
h3 { font-size: 1rem; display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; }
small { color: var(--soft); font-size: 0.85rem; font-weight: 400; font-variant-numeric: tabular-nums; }
.brand { color: var(--accent); font-weight: 700; letter-spacing: 0.08em; text-transform: uppercase;
  font-size: 0.8rem; margin-bottom: 0.35rem; }
.exhibits { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
.candidates { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
.candidates:has(> :nth-child(4):last-child) {
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
article { background: var(--card); border: 1px solid var(--line); border-radius: 0.75rem; padding: 1rem;
  display: flex; flex-direction: column; gap: 0.6rem; }
article p, .legend, caption { color: var(--soft); font-size: 0.9rem; }
.exhibits article:first-child { grid-column: 1 / -1; }
audio { width: 100%; margin-top: auto; }
img { display: block; width: 100%; height: auto; border-radius: 0.4rem; }
@media (min-width: 60rem) {
  .exhibits article:first-child { display: grid; grid-template: auto auto 1fr / 1fr 1.8fr; gap: 0.6rem 1.5rem; }
  .exhibits article:first-child img { grid-area: 1 / 2 / 4 / 3; }
  .exhibits article:first-child audio { margin: 0; }
}
.legend { margin-top: 0.8rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 0.75rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; padding: 1rem 1rem 0.5rem; }
th, td { padding: 0.55rem 1rem; text-align: right; vertical-align: baseline; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-size: 0.85rem; font-weight: 600; vertical-align: bottom; }
th:first-child { text-align: left; }
th small { display: block; }
.best { color: var(--accent); }
dl { display: grid; gap: 0.7rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
dt { color: var(--soft); font-size: 0.85rem; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (max-width: 34rem) { th, td { padding: 0.5rem 0.6rem; } th small { display: none; } }
"""

# One sound at a time: starting a player pauses the others.
SCRIPT = """
const players = [...document.querySelectorAll("audio")];
for (const player of players)
  player.addEventListener("play", () => players.forEach((other) => other === player || other.pause()));
"""
