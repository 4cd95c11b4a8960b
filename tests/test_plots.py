"""Spectrograms: their levels, and what the PNG files show."""

from __future__ import annotations

import io
import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from encore.reporting.spectrograms import (
    MAX_FRAMES,
    PANEL_ENDS,
    log_frequency,
    log_spectrogram,
    peak,
    row_frequencies,
    spectrograms,
)
from tests.conftest import SAMPLE_RATE, Command


def tone(frequency: float, seconds: float, amplitude: float = 1.0) -> torch.Tensor:
    time = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return amplitude * torch.sin(2 * math.pi * frequency * time)[None]


def levels_of(image: np.ndarray) -> np.ndarray:
    """The level in dB that each pixel shows, in every 20th column from 1/5 to 3/4 of the width (within the panel)."""
    scale = matplotlib.colormaps["magma"](np.arange(256))[:, :3]
    width = image.shape[1]
    pixels = image[:, width // 5 : 3 * width // 4 : 20, None, :3]
    distance = np.abs(pixels - scale).max(-1)
    # Text, being grey, has none of these colours.
    return np.where(distance.min(-1) < 0.01, -80 + 80 * distance.argmin(-1) / 255, -80)


def test_levels_are_decibels_at_the_right_frequency_and_time() -> None:
    levels, seconds = log_spectrogram(torch.cat([torch.zeros(1, 24000), tone(3000, 1, 0.1)], dim=1), SAMPLE_RATE)
    assert levels.shape == (1025, 1 + 48000 // 257)
    assert seconds == 257 / 24000
    frame = round(1.5 / seconds)
    assert levels[:, frame].argmax() == round(3000 / (24000 / 2048))
    assert levels[:, frame].max() == pytest.approx(-6.02 - 20, abs=0.05)
    assert levels[:, round(0.5 / seconds)].max() == -200


def test_power_is_the_mean_over_channels() -> None:
    mono = tone(1000, 0.5)
    one_sided = torch.cat([mono, torch.zeros_like(mono)])
    assert peak(one_sided, SAMPLE_RATE) == pytest.approx(peak(mono, SAMPLE_RATE) - 3.01, abs=0.01)


@pytest.mark.parametrize("hz", [55, 440, 3520])
def test_octaves_are_equally_far_apart_on_the_frequency_axis(hz: int) -> None:
    power = torch.zeros(1025, 1)
    power[round(hz / (24000 / 2048))] = 1.0
    rows, frequencies = log_frequency(power, SAMPLE_RATE)[:, 0], row_frequencies(SAMPLE_RATE)
    assert float(frequencies[rows.argmax()]) == pytest.approx(hz, rel=0.12 if hz < 100 else 0.03)
    octaves = torch.log2(frequencies).diff()
    torch.testing.assert_close(octaves, torch.full_like(octaves, 1 / 18))
    noise = log_frequency(torch.full((1025, 1), 0.25), SAMPLE_RATE)
    torch.testing.assert_close(noise, torch.full_like(noise, 0.25))


def test_a_long_signal_has_no_more_frames_than_a_png_can_show() -> None:
    levels, seconds = log_spectrogram(torch.zeros(1, 60 * SAMPLE_RATE), SAMPLE_RATE)
    assert levels.shape[1] <= MAX_FRAMES + 1
    assert (levels.shape[1] - 1) * seconds == pytest.approx(60, abs=seconds)


@pytest.mark.slow
def test_panels_share_the_level_of_the_first_signal(tmp_path: Path) -> None:
    path = tmp_path / "two.png"
    spectrograms({"loud": tone(6000, 1), "soft": tone(6000, 1, 0.01)}, SAMPLE_RATE, path)
    levels = levels_of(imread(path))
    loud, soft = (np.max(part) for part in np.array_split(levels, 2))
    assert loud > -40  # lines are thinner than pixels, so they lose some, by matplotlib's version
    assert loud - soft == pytest.approx(40, abs=1.5)


@pytest.mark.slow
def test_several_files_can_share_a_reference(tmp_path: Path) -> None:
    levels = []
    for reference_db in (None, 14.0):
        spectrograms({"": tone(6000, 1)}, SAMPLE_RATE, tmp_path / "a.png", reference_db)
        levels.append(np.max(levels_of(imread(tmp_path / "a.png"))))
    assert levels[0] - levels[1] == pytest.approx(14 + 6.02, abs=1.5)


def test_time_runs_to_the_right_and_frequency_upwards(tmp_path: Path) -> None:
    spectrograms({"": torch.cat([tone(9000, 1), tone(500, 1)], dim=1)}, SAMPLE_RATE, tmp_path / "a.png")
    levels = levels_of(imread(tmp_path / "a.png"))
    height, rows = len(levels), levels.argmax(0)
    assert set(np.abs(np.diff(rows)) > 0.3 * height) == {False, True}
    assert rows[:8].max() < 0.4 * height < rows[-8:].min()


@pytest.mark.parametrize(
    "signal",
    [torch.zeros(1, 5000), torch.full((2, 5000), float("nan")), torch.full((1, 5000), float("inf")), torch.ones(1, 3)],
    ids=["silence", "nan", "inf", "three samples"],
)
def test_any_signal_can_be_drawn(tmp_path: Path, signal: torch.Tensor) -> None:
    spectrograms({"first": signal, "sound": tone(500, 0.2)}, SAMPLE_RATE, tmp_path / "any.png")
    assert imread(tmp_path / "any.png").shape[2] == 4


def test_a_white_line_marks_where_a_continuation_begins(tmp_path: Path) -> None:
    images = []
    for begins in (None, 0.5):
        spectrograms({"": tone(500, 1)}, SAMPLE_RATE, tmp_path / "a.png", begins=begins)
        images.append(imread(tmp_path / "a.png")[..., :3])
    without, marked = (image[:200].min(-1) > 0.95 for image in images)
    columns = np.flatnonzero((marked & ~without).any(0)) / images[0].shape[1]
    left, right = PANEL_ENDS
    assert len(columns) and columns.mean() == pytest.approx((left + right) / 2, abs=0.01)


def test_an_open_file_becomes_webp_which_is_small() -> None:
    content = io.BytesIO()
    spectrograms({"": 0.1 * torch.randn(1, 4 * SAMPLE_RATE, generator=torch.manual_seed(0))}, SAMPLE_RATE, content)
    assert content.getvalue()[8:12] == b"WEBP" and len(content.getvalue()) < 60_000


def test_titles_are_plain_text(tmp_path: Path) -> None:
    spectrograms({"cost $5_ and $x": tone(500, 0.2)}, SAMPLE_RATE, tmp_path / "title.png")
    assert (tmp_path / "title.png").stat().st_size > 1000


@pytest.mark.slow
def test_pyplot_is_never_imported(run_program: Command) -> None:
    program = "import sys, encore.reporting.html, encore.reporting.plots; print('matplotlib.pyplot' in sys.modules)"
    assert run_program(program).stdout == "False\n"
