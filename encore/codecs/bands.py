"""Levels of audio in a few frequency bands, and gains that change them.

A gain that differs from band to band cannot be applied to latents: what scales their channels differently breaks the
codec's own frames at their edges, which is heard as hiss. Decoded audio takes it, whatever the codec.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

BANDS = 16
FLOOR = 10**-7.5  # mean square of a band below which its level does not count: −75 dBFS
KNEE = 1000.0  # Hz: below it the bands are equally wide, above it they widen with frequency


@lru_cache(maxsize=8)
def band_weights(sample_rate: int, bins: int) -> Tensor:
    """The share of each band in each bin up to half the sample rate, `[BANDS, bins]`; 1 in total for each bin.

    Triangles whose centres are equally spaced in `asinh(f / 1 kHz)`, the first at 0 and the last at half the rate.
    """
    frequencies = torch.linspace(0, sample_rate / 2, bins)
    place = torch.asinh(frequencies / KNEE) / torch.asinh(torch.tensor(sample_rate / 2 / KNEE)) * (BANDS - 1)
    return (1 - (place - torch.arange(BANDS)[:, None]).abs()).clamp_min(0)


def _windows(audio: Tensor, hop: int) -> tuple[Tensor, Tensor]:
    """Spectra of windows of two frames, one frame apart, and their window; F frames have F + 1 of them.

    Audio `[B, C, F · hop]` to `[B, C, F + 1, hop + 1]`.
    """
    window = torch.sin(torch.pi * (torch.arange(2 * hop, device=audio.device) + 0.5) / (2 * hop))
    return torch.fft.rfft(F.pad(audio, (hop, hop)).unfold(-1, 2 * hop, hop) * window), window


@torch.no_grad()
def band_powers(audio: Tensor, sample_rate: int, hop: int) -> Tensor:
    """The mean square of audio `[B, C, F · hop]` in each band and frame, plus `FLOOR`: `[B, BANDS, F]`.

    The channels' mean; of each frame, the mean of the two windows that it lies in.
    """
    spectra, window = _windows(audio, hop)
    powers = spectra.abs().square().mean(1) / (window.square().sum() * hop)
    powers = powers @ band_weights(sample_rate, hop + 1).T.to(powers)
    return ((powers[:, 1:] + powers[:, :-1]) / 2).transpose(1, 2) + FLOOR


def equalize(audio: Tensor, gains: Tensor, sample_rate: int, hop: int) -> Tensor:
    """Audio `[B, C, F · hop]` with gains `[B, BANDS, F]` in nepers (8.7 dB), interpolated in frequency and time.

    Windows overlap by half (sine, before and after the filter), so that gains of zero give the audio back. The last
    frame needs the one after it, which is taken to be silent.
    """
    spectra, window = _windows(audio, hop)
    gains = F.pad(gains, (1, 1), mode="replicate")
    between = (gains[..., 1:] + gains[..., :-1]) / 2  # of each window's two frames
    response = (between.transpose(1, 2) @ band_weights(sample_rate, hop + 1).to(between)).exp()
    parts = torch.fft.irfft(spectra * response[:, None], 2 * hop) * window
    first, second = parts.split(hop, -1)
    return (first[:, :, 1:] + second[:, :, :-1]).flatten(2)
