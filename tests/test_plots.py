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

from encore.reporting.spectrograms import MAX_FRAMES, log_spectrogram, peak, spectrograms
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
    assert levels.shape == (513, 1 + 48000 // 256)
    assert seconds == 256 / 24000
    frame = round(1.5 / seconds)
    assert levels[:, frame].argmax() == round(3000 / (24000 / 1024))
    assert levels[:, frame].max() == pytest.approx(-6.02 - 20, abs=0.05)
    assert levels[:, round(0.5 / seconds)].max() == -200


def test_power_is_the_mean_over_channels() -> None:
    mono = tone(1000, 0.5)
    one_sided = torch.cat([mono, torch.zeros_like(mono)])
    assert peak(one_sided, SAMPLE_RATE) == pytest.approx(peak(mono, SAMPLE_RATE) - 3.01, abs=0.01)


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
def test_several_files_can_share_a_reference() -> None:
    levels = []
    for reference_db in (None, 14.0):
        content = io.BytesIO()
        spectrograms({"": tone(6000, 1)}, SAMPLE_RATE, content, reference_db)
        levels.append(np.max(levels_of(imread(io.BytesIO(content.getvalue())))))
    assert levels[0] - levels[1] == pytest.approx(14 + 6.02, abs=1.5)


def test_time_runs_to_the_right_and_frequency_upwards() -> None:
    content = io.BytesIO()
    spectrograms({"": torch.cat([tone(9000, 1), tone(3000, 1)], dim=1)}, SAMPLE_RATE, content)
    levels = levels_of(imread(io.BytesIO(content.getvalue())))
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


def test_titles_are_plain_text(tmp_path: Path) -> None:
    spectrograms({"cost $5_ and $x": tone(500, 0.2)}, SAMPLE_RATE, tmp_path / "title.png")
    assert (tmp_path / "title.png").stat().st_size > 1000


@pytest.mark.slow
def test_pyplot_is_never_imported(run_program: Command) -> None:
    program = "import sys, encore.reporting.html, encore.reporting.plots; print('matplotlib.pyplot' in sys.modules)"
    assert run_program(program).stdout == "False\n"
