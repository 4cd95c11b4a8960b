"""Pages that need no network: one HTML file each, with audio and images as data URIs, made from Jinja2 templates."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import soundfile
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from encore.errors import disk_space
from encore.reporting.spectrograms import peak, spectrograms
from encore.statistics import Interval

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class AudioSample:
    """One sound to listen to: its title, a sentence about it, and the audio `[C, N]`."""

    title: str
    note: str
    audio: Tensor


@dataclass(frozen=True)
class SampleGroup:
    """Audio samples to compare, such as those of one held-out pair, under a heading."""

    title: str
    samples: Sequence[AudioSample]


@dataclass(frozen=True)
class Table:
    """Values to compare.

    Attributes:
        caption: a sentence that says how to read them.
        columns: what is compared.
        rows: by name, one value per column.
        notes: what a row measures, by its name.
        ranked: number of columns, from the first on, whose values compete: the lowest in a row is marked.
    """

    caption: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[float]]
    notes: Mapping[str, str]
    ranked: int = 0

    def best(self, name: str) -> int | None:
        """The column of a row that is marked: the first one with the lowest value; None if fewer than 2 are ranked."""
        values = self.rows[name][: self.ranked]
        if len(values) < 2:
            return None
        return min(range(len(values)), key=lambda column: (math.isnan(values[column]), values[column]))


@dataclass(frozen=True)
class Cell:
    """An estimate in a table, None where there is none, and whether it is the best of those it is ranked with."""

    estimate: Interval | None
    best: bool = False


@dataclass(frozen=True)
class AudioCard:
    """An audio sample as a page holds it: FLAC (16 bits, lossless) and PNG as data URIs."""

    title: str
    note: str
    seconds: float
    audio: str
    spectrogram: str


def render(template: str, **context: Any) -> str:
    """Renders a template of `encore/reporting/templates`, with all text escaped.

    Raises:
        jinja2.UndefinedError: the template uses a name that the context lacks.
    """
    page = _templates.get_template(template).render(context)
    return page.encode("utf-8", "replace").decode("utf-8")  # file names need not be UTF-8


def write_page(
    path: Path,
    title: str,
    metadata: Mapping[str, str],
    samples: Sequence[AudioSample],
    sample_rate: int,
    table: Table | None = None,
    candidates: Sequence[AudioSample] = (),
) -> None:
    """Writes a listening page: a player and a spectrogram per sample, the table, and the metadata.

    Candidates, if there are any, come first, side by side. 0 dB is the loudest point of the first of `samples` in all
    spectrograms.
    """
    reference_db = peak(samples[0].audio, sample_rate)
    page = render(
        "continuation.html.j2",
        title=title,
        metadata=metadata,
        samples=audio_cards(samples, sample_rate, reference_db),
        candidates=audio_cards(candidates, sample_rate, reference_db),
        table=table,
    )
    with disk_space(path, "the page"):
        path.write_text(page, encoding="utf-8")


def audio_cards(samples: Sequence[AudioSample], sample_rate: int, reference_db: float) -> list[AudioCard]:
    """The cards of audio samples; 0 dB of their spectrograms is `reference_db`."""
    cards = []
    for sample in samples:
        spectrogram = io.BytesIO()
        spectrograms({"": sample.audio}, sample_rate, spectrogram, reference_db)
        flac = io.BytesIO()
        values = sample.audio.detach().cpu().float().clamp(-1, 1).numpy().T
        soundfile.write(flac, values, sample_rate, format="FLAC", subtype="PCM_16")
        seconds = sample.audio.shape[-1] / sample_rate
        audio, image = _data_uri("audio/flac", flac), _data_uri("image/png", spectrogram)
        cards.append(AudioCard(sample.title, sample.note, seconds, audio, image))
    return cards


def card_groups(groups: Sequence[SampleGroup], sample_rate: int) -> list[tuple[str, list[AudioCard]]]:
    """Title and cards of each group; 0 dB is the loudest point of a group's first sample in all its spectrograms."""
    return [
        (group.title, audio_cards(group.samples, sample_rate, peak(group.samples[0].audio, sample_rate)))
        for group in groups
    ]


def png(draw: Callable[[BinaryIO], None]) -> str:
    """What `draw` writes to a file, a PNG, as a data URI."""
    content = io.BytesIO()
    draw(content)
    return _data_uri("image/png", content)


def _data_uri(kind: str, content: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
