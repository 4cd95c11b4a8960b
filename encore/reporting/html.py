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
from encore.reporting.spectrograms import PANEL_ENDS, peak, spectrograms

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz
AUDIO_BYTES = 3_600_000  # of all audio of a page, which is a third more in the page's text
LEAST_KBPS, MOST_KBPS = 24, 96  # of one channel


@dataclass(frozen=True)
class AudioSample:
    """One sound to listen to.

    Attributes:
        title: its name.
        note: a sentence about it.
        audio: `[C, N]`.
        begins: second at which a continuation begins in it, if one does.
    """

    title: str
    note: str
    audio: Tensor
    begins: float | None = None


@dataclass(frozen=True)
class SampleGroup:
    """Audio samples to compare, such as those of one held-out pair, under a heading, with a note beside it."""

    title: str
    samples: Sequence[AudioSample]
    note: str = ""


@dataclass(frozen=True)
class Heading:
    """The title of a page, and what it shows in a sentence."""

    title: str
    answer: str = ""


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
class AudioCard:
    """An audio sample as a page holds it: the audio and an image of its spectrogram as data URIs, or the file's URL."""

    title: str
    note: str
    seconds: float
    audio: str
    spectrogram: str


@dataclass(frozen=True)
class CardGroup:
    """The cards of a `SampleGroup`."""

    title: str
    note: str
    cards: list[AudioCard]


def render(template: str, **context: Any) -> str:
    """Renders a template of `encore/reporting/templates`, with all text escaped.

    Raises:
        jinja2.UndefinedError: the template uses a name that the context lacks.
    """
    page = _templates.get_template(template).render({"panel": PANEL_ENDS} | context)
    return page.encode("utf-8", "replace").decode("utf-8")  # file names need not be UTF-8


def write_page(
    path: Path,
    heading: Heading,
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
    kbps = rate_of([*samples, *candidates], sample_rate)
    reference_db = peak(samples[0].audio, sample_rate)
    page = render(
        "continuation.html.j2",
        title=heading.title,
        answer=heading.answer,
        metadata=metadata,
        samples=audio_cards(samples, sample_rate, reference_db, kbps),
        candidates=audio_cards(candidates, sample_rate, reference_db, kbps),
        table=table,
    )
    with disk_space(path, "the page"):
        path.write_text(page, encoding="utf-8")


def card_groups(groups: Sequence[SampleGroup], sample_rate: int) -> list[CardGroup]:
    """The cards of each group; 0 dB is the loudest point of a group's first sample in all its spectrograms."""
    kbps = rate_of([sample for group in groups for sample in group.samples], sample_rate)
    return [
        CardGroup(
            group.title,
            group.note,
            audio_cards(group.samples, sample_rate, peak(group.samples[0].audio, sample_rate), kbps),
        )
        for group in groups
    ]


def audio_cards(samples: Sequence[AudioSample], sample_rate: int, reference_db: float, kbps: float) -> list[AudioCard]:
    """The cards of audio samples; 0 dB of their spectrograms is `reference_db`."""
    return [
        audio_card(sample, sample_rate, reference_db, encode_audio(sample.audio, sample_rate, kbps))
        for sample in samples
    ]


def audio_card(sample: AudioSample, sample_rate: int, reference_db: float, audio: str) -> AudioCard:
    """The card of an audio sample that plays `audio`, a URL; 0 dB of its spectrogram is `reference_db`."""

    def draw(file: BinaryIO) -> None:
        spectrograms({"": sample.audio}, sample_rate, file, reference_db, sample.begins)

    seconds = sample.audio.shape[-1] / sample_rate
    return AudioCard(sample.title, sample.note, seconds, audio, image(draw))


def rate_of(samples: Sequence[AudioSample], sample_rate: int) -> float:
    """The bit rate in kbit/s for a channel at which a page's audio samples take 3.6 MB together, within 24 and 96."""
    seconds = sum(sample.audio.numel() for sample in samples) / sample_rate
    return min(MOST_KBPS, max(LEAST_KBPS, 8 * AUDIO_BYTES / 1000 / max(seconds, 1e-9)))


def encode_audio(audio: Tensor, sample_rate: int, kbps: float) -> str:
    """Audio `[C, N]` as a data URI: MP3, which all browsers play, at `kbps` for each channel.

    Ogg Vorbis is as small, and Safari before 18.4 does not play it. At rates that MP3 does not know, and with more than
    two channels, it is FLAC, which all browsers play too, and which takes about 200 kbit/s.
    """
    content = io.BytesIO()
    values = audio.detach().cpu().float().clamp(-1, 1).numpy().T
    if sample_rate not in MP3_RATES or len(audio) > 2:
        soundfile.write(content, values, sample_rate, format="FLAC", subtype="PCM_16")
        return _data_uri("audio/flac", content)
    # libsndfile takes a level from 0 for the highest bit rate that the sample rate allows to 1 for the lowest.
    least, most = (32, 320) if sample_rate >= 32000 else (8, 160)
    level = min(0.99, max(0.0, (most - kbps * len(audio)) / (most - least)))
    settings = {"format": "MP3", "subtype": "MPEG_LAYER_III", "compression_level": level, "bitrate_mode": "AVERAGE"}
    soundfile.write(content, values, sample_rate, **settings)
    return _data_uri("audio/mpeg", content)


def image(draw: Callable[[BinaryIO], None]) -> str:
    """What `draw` writes to a file, a WebP, as a data URI."""
    content = io.BytesIO()
    draw(content)
    return _data_uri("image/webp", content)


def _data_uri(kind: str, content: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
