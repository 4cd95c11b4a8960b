"""Log-magnitude spectrograms on a logarithmic frequency axis, as images, without matplotlib's global state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from encore.reporting.plots import INK, WIDTH, new_figure, save, set_title

WINDOW_SECONDS = 0.085  # resolves the semitones of the middle octaves
HOP_SECONDS = 0.0107
LEAST_WINDOW = 64  # samples
MAX_FRAMES = 2000  # more than an image has columns
RANGE_DB = 80.0
FLOOR_DB = -200.0
LOWEST_HZ = 40.0
ROWS_PER_OCTAVE = 18
TICKS_HZ = (50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
NO_SIGNAL = "#30343c"  # beyond the end of a signal
# Inches, whole pixels each, so that all panels are drawn alike. Finding a layout takes longer than drawing one.
LEFT, RIGHT, TOP, BOTTOM, GAP, PANEL = 0.55, 0.65, 0.25, 0.45, 0.35, 1.25
BAR = (0.1, 0.12)  # from the panels, and its width
PANEL_ENDS = (LEFT / WIDTH, 1 - RIGHT / WIDTH)  # of the image's width
FONT = 9  # points


def window_size(sample_rate: int) -> int:
    """The power of two next to 85 ms, in samples; also the size of the transform."""
    return max(LEAST_WINDOW, 2 ** round(math.log2(WINDOW_SECONDS * sample_rate)))


def log_spectrogram(signal: Tensor, sample_rate: int) -> tuple[Tensor, float]:
    """Levels `10 · log10 |STFT|²` in dB, `[bins, frames]`, and the hop from one frame to the next in seconds.

    The power `|STFT|²` is the mean over the channels of `signal [C, N]`. The Hann window is scaled to a sum of 1, so
    that a sine of amplitude 1 has a level of −6 dB. Samples that are not finite count as 0; silence is −200 dB.
    """
    power, seconds = _power(signal, sample_rate)
    return _decibels(power), seconds


def log_frequency(power: Tensor, sample_rate: int) -> Tensor:
    """A power spectrogram `[bins, frames]` on a logarithmic axis from 40 Hz, 18 rows per octave: `[rows, frames]`.

    A row is a mean of the bins around its frequency, with a triangular weight that is as wide as the neighbouring rows
    lie apart, or as the bins do where those are further apart.
    """
    bins = torch.linspace(0, sample_rate / 2, len(power))
    centres = row_frequencies(sample_rate)[:, None]
    half_width = (centres * (2 ** (1 / ROWS_PER_OCTAVE) - 1)).clamp_min(float(bins[1]))
    weights = (1 - (bins - centres).abs() / half_width).clamp_min(0)
    return (weights / weights.sum(1, keepdim=True)) @ power


def row_frequencies(sample_rate: int) -> Tensor:
    """The frequencies of the rows of `log_frequency`, in Hz."""
    octaves = max(1.0, math.log2(sample_rate / 2 / LOWEST_HZ))
    lowest = sample_rate / 2 / 2**octaves
    return lowest * 2 ** (torch.arange(math.floor(octaves * ROWS_PER_OCTAVE) + 1) / ROWS_PER_OCTAVE)


def peak(signal: Tensor, sample_rate: int) -> float:
    """The highest level in the spectrogram of a signal `[C, N]`, in dB."""
    return float(log_spectrogram(signal, sample_rate)[0].max())


def spectrograms(
    named: Mapping[str, Tensor],
    sample_rate: int,
    path: Path | BinaryIO,
    reference_db: float | None = None,
    begins: float | None = None,
) -> None:
    """Writes one image with a log-magnitude spectrogram per signal, below each other on shared axes.

    Time in seconds, frequency in Hz, colour in dB relative to the loudest point of the first signal, over 80 dB.

    Args:
        named: at least one signal `[C, N]` by the title of its panel.
        path: PNG file to write, or an open binary one, which becomes WebP.
        reference_db: the level to show as 0 dB instead (see `peak`), the same for plots that are to be compared.
        begins: second that is marked by a dashed line, where a continuation begins.
    """
    spectra = [_power(signal, sample_rate) for signal in named.values()]
    if reference_db is None:
        reference_db = float(_decibels(spectra[0][0]).max())
    # A panel without a title needs no place for one.
    above = TOP if any(named) else 0.08
    height = above + len(named) * PANEL + (len(named) - 1) * GAP + BOTTOM
    figure, panels = new_figure(len(named), height, sharex=True, sharey=True)
    right, bottom, top = WIDTH - RIGHT, BOTTOM / height, 1 - above / height
    figure.subplots_adjust(LEFT / WIDTH, bottom, right / WIDTH, top, hspace=GAP / PANEL)
    heights = torch.log2(row_frequencies(sample_rate))
    for panel, title, (power, seconds) in zip(panels, named, spectra, strict=True):
        levels = _decibels(log_frequency(power, sample_rate)) - reference_db
        image = panel.imshow(
            levels.numpy(),
            origin="lower",
            aspect="auto",
            cmap="magma",
            interpolation_stage="data",  # where pixels are coarser, levels are averaged, not their colours
            vmin=-RANGE_DB,
            vmax=0,
            # Frames and rows are points: each fills the half step on both its sides.
            extent=(
                *(-seconds / 2, (levels.shape[1] - 0.5) * seconds),
                *(float(heights[0]) - 0.5 / ROWS_PER_OCTAVE, float(heights[-1]) + 0.5 / ROWS_PER_OCTAVE),
            ),
        )
        panel.set_facecolor(NO_SIGNAL)
        if title:
            set_title(panel, title)
        if begins is not None:
            panel.axvline(begins, color="white", linewidth=1.2, linestyle=(0, (4, 3)))
        panel.set_ylabel("Hz", color=INK, fontsize=FONT, labelpad=1)
        panel.tick_params(colors=INK, labelsize=FONT)
    ticks = [hz for hz in TICKS_HZ if heights[0] <= math.log2(hz) <= heights[-1]]
    labels = [f"{hz / 1000:g}k" if hz >= 1000 else str(hz) for hz in ticks]
    panels[-1].set_yticks([math.log2(hz) for hz in ticks], labels)
    panels[-1].set_ylim(float(heights[0]), float(heights[-1]))
    panels[-1].set_xlabel("seconds", color=INK, fontsize=FONT, labelpad=1)
    panels[-1].set_xlim(0, max((power.shape[1] - 1) * seconds for power, seconds in spectra))
    bar = figure.colorbar(image, figure.add_axes(((right + BAR[0]) / WIDTH, bottom, BAR[1] / WIDTH, top - bottom)))
    bar.set_ticks([-RANGE_DB, -RANGE_DB / 2, 0], labels=[f"−{RANGE_DB:g}", f"−{RANGE_DB / 2:g}", "0 dB"])
    bar.ax.tick_params(colors=INK, labelsize=FONT)
    save(figure, path)


def _power(signal: Tensor, sample_rate: int) -> tuple[Tensor, float]:
    """The power spectrogram `[bins, frames]` of a signal `[C, N]`, and its hop in seconds."""
    n_fft = window_size(sample_rate)
    signal = torch.nan_to_num(signal.detach().float().cpu(), nan=0.0, posinf=0.0, neginf=0.0)
    signal = torch.nn.functional.pad(signal, (0, max(0, n_fft - signal.shape[-1])))
    hop = max(1, round(HOP_SECONDS * sample_rate), math.ceil(signal.shape[-1] / MAX_FRAMES))
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(signal, n_fft, hop, window=window / window.sum(), pad_mode="constant", return_complex=True)
    return spectrum.abs().square().mean(0), hop / sample_rate


def _decibels(power: Tensor) -> Tensor:
    return 10 * power.clamp_min(10 ** (FLOOR_DB / 10)).log10()
