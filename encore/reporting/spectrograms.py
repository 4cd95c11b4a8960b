"""Log-magnitude spectrograms as PNG, without matplotlib's global state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from encore.reporting.plots import INK, WIDTH, new_figure, save, set_title

N_FFT = 1024
HOP_LENGTH = 256
MAX_FRAMES = 2000  # more than a PNG has columns
RANGE_DB = 80.0
FLOOR_DB = -200.0
NO_SIGNAL = "#30343c"  # beyond the end of a signal
# Inches, whole pixels each, so that all panels are drawn alike. Finding a layout takes longer than drawing one.
LEFT, RIGHT, TOP, BOTTOM, GAP, PANEL = 0.8, 1.0, 0.25, 0.5, 0.35, 1.2
BAR = (0.15, 0.2)  # from the panels, and its width


def log_spectrogram(signal: Tensor, sample_rate: int) -> tuple[Tensor, float]:
    """Levels `10 · log10 |STFT|²` in dB, `[513, frames]`, and the hop from one frame to the next in seconds.

    The power `|STFT|²` is the mean over the channels of `signal [C, N]`. The Hann window is scaled to a sum of 1, so
    that a sine of amplitude 1 has a level of −6 dB. Samples that are not finite count as 0; silence is −200 dB.
    """
    signal = torch.nan_to_num(signal.detach().float().cpu(), nan=0.0, posinf=0.0, neginf=0.0)
    signal = torch.nn.functional.pad(signal, (0, max(0, N_FFT - signal.shape[-1])))
    hop = max(HOP_LENGTH, math.ceil(signal.shape[-1] / MAX_FRAMES))
    window = torch.hann_window(N_FFT)
    spectrum = torch.stft(signal, N_FFT, hop, window=window / window.sum(), pad_mode="constant", return_complex=True)
    power = spectrum.abs().square().mean(0)
    return 10 * power.clamp_min(10 ** (FLOOR_DB / 10)).log10(), hop / sample_rate


def peak(signal: Tensor, sample_rate: int) -> float:
    """The highest level in the spectrogram of a signal `[C, N]`, in dB."""
    return float(log_spectrogram(signal, sample_rate)[0].max())


def spectrograms(
    named: Mapping[str, Tensor], sample_rate: int, path: Path | BinaryIO, reference_db: float | None = None
) -> None:
    """Writes one PNG with a log-magnitude spectrogram per signal, below each other on shared axes.

    Time in seconds, frequency in Hz, colour in dB relative to the loudest point of the first signal, over 80 dB.

    Args:
        named: at least one signal `[C, N]` by the title of its panel.
        path: file to write, or an open binary one.
        reference_db: the level to show as 0 dB instead (see `peak`), the same for plots that are to be compared.
    """
    spectra = [log_spectrogram(signal, sample_rate) for signal in named.values()]
    if reference_db is None:
        reference_db = float(spectra[0][0].max())
    height = TOP + len(named) * PANEL + (len(named) - 1) * GAP + BOTTOM
    figure, panels = new_figure(len(named), height, sharex=True, sharey=True)
    right, bottom, top = WIDTH - RIGHT, BOTTOM / height, 1 - TOP / height
    figure.subplots_adjust(LEFT / WIDTH, bottom, right / WIDTH, top, hspace=GAP / PANEL)
    for panel, title, (levels, seconds) in zip(panels, named, spectra, strict=True):
        image = panel.imshow(
            (levels - reference_db).numpy(),
            origin="lower",
            aspect="auto",
            cmap="magma",
            interpolation_stage="data",  # where pixels are coarser, levels are averaged, not their colours
            vmin=-RANGE_DB,
            vmax=0,
            # Frames and bins are points: each fills the half step on both its sides.
            extent=(-seconds / 2, (levels.shape[1] - 0.5) * seconds, *_bin_edges(sample_rate)),
        )
        panel.set_facecolor(NO_SIGNAL)
        set_title(panel, title)
        panel.set_ylabel("Hz", color=INK)
        panel.tick_params(colors=INK)
    panels[-1].set_xlabel("seconds", color=INK)
    panels[-1].set_xlim(0, max((levels.shape[1] - 1) * seconds for levels, seconds in spectra))
    panels[-1].set_ylim(0, sample_rate / 2)
    bar = figure.colorbar(image, figure.add_axes(((right + BAR[0]) / WIDTH, bottom, BAR[1] / WIDTH, top - bottom)))
    bar.set_label("dB", color=INK)
    bar.ax.tick_params(colors=INK)
    save(figure, path)


def _bin_edges(sample_rate: int) -> tuple[float, float]:
    half_step = sample_rate / N_FFT / 2
    return -half_step, sample_rate / 2 + half_step
