"""Log-mel spectrograms, on which the metrics of boundary, drift, rhythm and repetition are computed."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torchaudio.functional import melscale_fbanks

BANDS = 40
FLOOR_DB = -80.0  # of full scale: anything quieter counts as silence


def window_length(sample_rate: int, seconds: float) -> int:
    """The power of two that is nearest to `seconds`: samples."""
    return 2 ** round(math.log2(seconds * sample_rate))


def signal(audio: Tensor | ArrayLike) -> Tensor:
    """The audio as float32 on the CPU; values that are not finite become 0."""
    return torch.nan_to_num(torch.as_tensor(audio).detach().float().cpu(), nan=0.0, posinf=0.0, neginf=0.0)


def decibels(power: Tensor) -> Tensor:
    """`10 · log10 max(power, 1e-8)`: dB of full scale, at least −80."""
    return 10 * power.clamp_min(10 ** (FLOOR_DB / 10)).log10()


def power_spectrogram(audio: Tensor, n_fft: int, hop: int) -> Tensor:
    """`|STFT|²`, the mean over the channels: `[..., C, N] -> [..., frames, n_fft // 2 + 1]`.

    Frame k is `audio[k · hop : k · hop + n_fft]` under a Hann window that is scaled so that a sine of amplitude 1 has a
    peak of 1. There are `1 + (N - n_fft) // hop` frames; N must be at least `n_fft`.
    """
    window = torch.hann_window(n_fft)
    flat = audio.reshape(-1, audio.shape[-1])
    spectrum = torch.stft(flat, n_fft, hop, window=2 * window / window.sum(), center=False, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    return power.reshape(*audio.shape[:-1], *power.shape[1:]).mean(-3).transpose(-1, -2)


@lru_cache(maxsize=8)
def mel_filters(sample_rate: int, n_fft: int) -> Tensor:
    """40 triangles of height 1, evenly spaced in mel from 0 Hz to half the sample rate: `[n_fft // 2 + 1, 40]`.

    mel(f) = 2595 · log10(1 + f / 700), f in Hz (the HTK Book, Young et al. 2006).
    """
    return melscale_fbanks(n_fft // 2 + 1, 0.0, sample_rate / 2, BANDS, sample_rate)


def log_mel(audio: Tensor, sample_rate: int, n_fft: int, hop: int) -> Tensor:
    """Powers in 40 mel bands, in dB of full scale and at least −80: `[..., C, N] -> [..., frames, 40]`."""
    return decibels(power_spectrogram(audio, n_fft, hop) @ mel_filters(sample_rate, n_fft))
