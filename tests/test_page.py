"""The listening page: what a browser would find in it."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from jinja2 import UndefinedError
from PIL import Image

from encore.reporting.html import AudioSample, Heading, Table, encode_audio, rate_of, render, write_page

RATE = 24000
NASTY = "a <script>alert('1')</script> & \"b\""
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Collects what the tests ask for: media, table rows, best cells (row, column), all text, links to elsewhere."""

    def __init__(self, path: Path):
        super().__init__()
        self.audio: list[bytes] = []
        self.images: list[bytes] = []
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.elsewhere: list[str] = []
        self.best: list[tuple[int, int]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        source = values.get("src") or values.get("href") or ""
        if source and not source.startswith(("data:", "#")):
            self.elsewhere.append(source)
        if tag in ("audio", "img"):
            content = base64.b64decode(source.partition(";base64,")[2], validate=True)
            (self.audio if tag == "audio" else self.images).append(content)
            assert values.get("aria-label") or values.get("alt")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        in_cell = "td" in self.open or "th" in self.open
        if in_cell and self.open[-1] in ("td", "th", "strong"):
            self.rows[-1][-1] += data
        if in_cell and self.open[-1] == "strong":
            self.best.append((len(self.rows) - 1, len(self.rows[-1]) - 1))


@pytest.fixture
def samples() -> list[AudioSample]:
    generator = torch.Generator().manual_seed(0)
    return [
        AudioSample(f"{NASTY} {number}", f"note {NASTY}", 0.3 * torch.randn(channels, RATE, generator=generator))
        for number, channels in enumerate((1, 2))
    ]


def test_players_hold_the_audio_and_images_are_spectrograms(tmp_path: Path, samples: list[AudioSample]) -> None:
    write_page(tmp_path / "index.html", Heading(NASTY), {NASTY: NASTY}, samples, RATE)
    page = Page(tmp_path / "index.html")
    assert len(page.audio) == len(page.images) == 2
    for content, sample in zip(page.audio, samples, strict=True):
        stored, rate = soundfile.read(io.BytesIO(content), always_2d=True)
        expected = sample.audio.numpy().T
        assert (rate, stored.shape) == (RATE, expected.shape)
        assert np.square(stored - expected).mean() < 0.15 * np.square(expected).mean()  # noise is the hardest
    for content in page.images:
        assert min(Image.open(io.BytesIO(content)).size) > 200
    assert "table" not in page.tags


@pytest.mark.parametrize(
    ("rate", "channels", "kind"), [(24000, 1, "mpeg"), (48000, 2, "mpeg"), (20000, 1, "flac"), (48000, 4, "flac")]
)
def test_audio_is_mp3_at_the_rates_and_channels_that_it_knows_else_flac(rate: int, channels: int, kind: str) -> None:
    audio = 0.5 * torch.sin(torch.arange(rate) * 0.1).expand(channels, -1)
    head, _, content = encode_audio(audio, rate, 64).partition(";base64,")
    assert head == f"data:audio/{kind}"
    stored, found = soundfile.read(io.BytesIO(base64.b64decode(content)), always_2d=True)
    assert found == rate and stored.shape == (rate, channels)
    np.testing.assert_allclose(stored[1000:-1000].T, audio[:, 1000:-1000], atol=0.05)


def test_the_more_audio_a_page_holds_the_lower_is_its_bit_rate() -> None:
    def sample(seconds: int, channels: int = 1) -> AudioSample:
        return AudioSample("", "", torch.zeros(channels, 100 * seconds))

    assert rate_of([sample(10)], 100) == 96
    # 3.6 MB are 28,800 kbit.
    assert rate_of([sample(400), sample(200, 2)], 100) == pytest.approx(28_800 / 800)
    assert rate_of([sample(100_000)], 100) == 24
    noise = 0.1 * torch.randn(1, 30 * RATE, generator=torch.manual_seed(0))
    for kbps in (24, 48, 96):
        content = base64.b64decode(encode_audio(noise, RATE, kbps).partition(";base64,")[2])
        assert len(content) == pytest.approx(30 * 1000 * kbps / 8, rel=0.15)


def test_all_text_is_escaped_and_nothing_comes_from_elsewhere(tmp_path: Path, samples: list[AudioSample]) -> None:
    table = Table(NASTY, [NASTY], {NASTY: [1.0]}, {NASTY: NASTY})
    write_page(tmp_path / "index.html", Heading(NASTY, NASTY), {NASTY: NASTY}, samples, RATE, table)
    page = Page(tmp_path / "index.html")
    assert page.tags.count("script") == 1
    # Title, heading, answer, fact (2), titles and notes (4), legend, caption, column, row and its note.
    assert page.text.count(NASTY) == 14
    assert page.elsewhere == []
    assert "://" not in (tmp_path / "index.html").read_text()


def test_the_table_has_a_row_per_loss_and_a_column_per_signal(tmp_path: Path, samples: list[AudioSample]) -> None:
    table = Table("read so", ["mine", "other"], {"rms": [0.12345, 2], "mel": [1, 0]}, {"rms": "(r)", "mel": "(m)"})
    write_page(tmp_path / "index.html", Heading("title"), {}, samples, RATE, table)
    page = Page(tmp_path / "index.html")
    assert page.rows == [["Loss", "mine", "other"], ["rms", "0.1235", "2.0000"], ["mel", "1.0000", "0.0000"]]
    assert "(r)" in page.text and "read so" in page.text


@pytest.mark.slow
def test_candidates_come_first_and_the_best_of_a_row_is_marked(tmp_path: Path, samples: list[AudioSample]) -> None:
    rows = {"rms": [0.3, 0.2, 0.1], "mel": [0.5, 0.5, 0.9], "nan": [float("nan"), 7, 1]}
    table = Table("", ["one", "two", "codec"], rows, dict.fromkeys(rows, ""), ranked=2)
    assert [table.best(name) for name in rows] == [1, 0, 1]
    candidate = AudioSample(NASTY, NASTY, torch.zeros(1, 500))
    write_page(tmp_path / "index.html", Heading("title"), {}, samples, RATE, table, [candidate, candidate])
    page = Page(tmp_path / "index.html")
    assert [len(soundfile.read(io.BytesIO(content))[0]) for content in page.audio] == [500, 500, RATE, RATE]
    assert page.text.count(NASTY) == 4 + 5  # title and note of each candidate; of each sample, and the legend
    assert page.best == [(1, 2), (2, 1), (3, 2)]  # row and column; of equals the first one

    alone = Table("", ["one", "codec"], {"rms": [0.1, 0.2]}, {"rms": ""}, ranked=1)
    write_page(tmp_path / "index.html", Heading("title"), {}, samples, RATE, alone)
    assert "strong" not in Page(tmp_path / "index.html").tags


def test_a_page_of_which_something_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="is undefined"):
        render("continuation.html.j2", title="title")
