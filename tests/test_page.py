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
from matplotlib.image import imread

from encore.reporting.html import AudioSample, Table, render, write_page

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
        if source and not source.startswith("data:"):
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
        if self.open[-1:] in (["td"], ["th"], ["strong"]):
            self.rows[-1][-1] += data
        if self.open[-1:] == ["strong"]:
            self.best.append((len(self.rows) - 1, len(self.rows[-1]) - 1))


@pytest.fixture
def samples() -> list[AudioSample]:
    generator = torch.Generator().manual_seed(0)
    return [
        AudioSample(f"{NASTY} {number}", f"note {NASTY}", 0.3 * torch.randn(channels, RATE, generator=generator))
        for number, channels in enumerate((1, 2))
    ]


def test_players_hold_the_audio_and_images_are_spectrograms(tmp_path: Path, samples: list[AudioSample]) -> None:
    write_page(tmp_path / "index.html", NASTY, {NASTY: NASTY}, samples, RATE)
    page = Page(tmp_path / "index.html")
    assert len(page.audio) == len(page.images) == 2
    for content, sample in zip(page.audio, samples, strict=True):
        stored, rate = soundfile.read(io.BytesIO(content), always_2d=True)
        assert rate == RATE
        np.testing.assert_allclose(stored.T, sample.audio.clamp(-1, 1).numpy(), atol=1 / 2**15)
    for content in page.images:
        assert min(imread(io.BytesIO(content)).shape[:2]) > 200
    assert "table" not in page.tags


def test_all_text_is_escaped_and_nothing_comes_from_elsewhere(tmp_path: Path, samples: list[AudioSample]) -> None:
    table = Table(NASTY, [NASTY], {NASTY: [1.0]}, {NASTY: NASTY})
    write_page(tmp_path / "index.html", NASTY, {NASTY: NASTY}, samples, RATE, table)
    page = Page(tmp_path / "index.html")
    assert page.tags.count("script") == 1
    # Title, heading, fact (2), titles and notes (4), legend, caption, column, row and its note.
    assert page.text.count(NASTY) == 13
    assert page.elsewhere == []
    assert "://" not in (tmp_path / "index.html").read_text()


def test_the_table_has_a_row_per_loss_and_a_column_per_signal(tmp_path: Path, samples: list[AudioSample]) -> None:
    table = Table("read so", ["mine", "other"], {"rms": [0.12345, 2], "mel": [1, 0]}, {"rms": "(r)", "mel": "(m)"})
    write_page(tmp_path / "index.html", "title", {}, samples, RATE, table)
    page = Page(tmp_path / "index.html")
    assert page.rows == [["Loss", "mine", "other"], ["rms", "0.1235", "2.0000"], ["mel", "1.0000", "0.0000"]]
    assert "(r)" in page.text and "read so" in page.text


@pytest.mark.slow
def test_candidates_come_first_and_the_best_of_a_row_is_marked(tmp_path: Path, samples: list[AudioSample]) -> None:
    rows = {"rms": [0.3, 0.2, 0.1], "mel": [0.5, 0.5, 0.9], "nan": [float("nan"), 7, 1]}
    table = Table("", ["one", "two", "codec"], rows, dict.fromkeys(rows, ""), ranked=2)
    assert [table.best(name) for name in rows] == [1, 0, 1]
    candidate = AudioSample(NASTY, NASTY, torch.zeros(1, 500))
    write_page(tmp_path / "index.html", "title", {}, samples, RATE, table, [candidate, candidate])
    page = Page(tmp_path / "index.html")
    assert [len(soundfile.read(io.BytesIO(content))[0]) for content in page.audio] == [500, 500, RATE, RATE]
    assert page.text.count(NASTY) == 4 + 5  # title and note of each candidate; of each sample, and the legend
    assert page.best == [(1, 2), (2, 1), (3, 2)]  # row and column; of equals the first one

    alone = Table("", ["one", "codec"], {"rms": [0.1, 0.2]}, {"rms": ""}, ranked=1)
    write_page(tmp_path / "index.html", "title", {}, samples, RATE, alone)
    assert "strong" not in Page(tmp_path / "index.html").tags


def test_a_page_of_which_something_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'candidates' is undefined"):
        render("continuation.html.j2", title="title")
