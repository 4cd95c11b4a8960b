"""Scales: what is made of a spectrogram `[B, C, bins, frames]` before two of them are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from losses.dsp.compilation import constant
from losses.dsp.filterbanks import mel_spectrogram


def log_scale(spectrogram: Tensor, log_fac: float = 1.0, log_eps: float = 1e-7) -> Tensor:
    """`ln(log_fac S + log_eps)`."""
    return (log_fac * spectrogram + log_eps).log()


def power_to_db(spectrogram: Tensor, ref: float = 1.0, amin: float = 1e-10, top_db: float | None = 80.0) -> Tensor:
    """Level of a power spectrogram, `10 log10(max(S, amin) / max(ref, amin))` dB, as `korvax.power_to_db` of each item.

    Args:
        spectrogram: powers, `[B, ...]`.
        ref: the power that is 0 dB.
        amin: the least power that counts; lower ones have no gradient.
        top_db: levels more than this below the item's loudest are lifted to there, so what is quieter still is not
            compared; None for no such limit.
    """
    level = 10 * spectrogram.clamp_min(amin).log10() - 10 * math.log10(max(ref, amin))
    if top_db is None:
        return level
    loudest = level.amax(dim=tuple(range(1, level.dim())), keepdim=True)
    return torch.maximum(level, loudest - top_db)


def amplitude_to_db(spectrogram: Tensor, ref: float = 1.0, amin: float = 1e-8, top_db: float | None = 80.0) -> Tensor:
    """Level of a magnitude spectrogram, `20 log10(max(S, amin) / max(ref, amin))` dB, as `korvax.amplitude_to_db`.

    `ref` and `amin` are magnitudes; see `power_to_db`.
    """
    return power_to_db(spectrogram.square(), ref**2, amin**2, top_db)


def a_weighting(frequencies: Tensor, min_db: float | None = -80.0) -> Tensor:
    """How much louder than 1 kHz the ear finds `frequencies` (Hz) at low levels, in dB (IEC 61672-1, A-weighting).

    `20 log10( c₄² f⁴ / ((f² + c₁²) sqrt((f² + c₂²)(f² + c₃²)) (f² + c₄²)) ) + 2.00`, c = 20.598997, 107.65265,
    737.86223 and 12194.217 Hz; not below `min_db` where that is given, and −∞ at 0 Hz where it is None. As
    `librosa.A_weighting`.
    """
    square = frequencies.square()
    lowest, low, high, highest = (corner**2 for corner in (20.598997, 107.65265, 737.86223, 12194.217))
    gain = highest * square.square() / ((square + lowest) * (square + highest))
    level = 20 * (gain / ((square + low) * (square + high)).sqrt()).log10() + 2
    return level if min_db is None else level.clamp_min(min_db)


def fft_frequencies(sample_rate: float, n_fft: int) -> tuple[float, ...]:
    """Frequencies of the bins of an FFT, Hz: `n_fft // 2 + 1` from 0 up."""
    return tuple(bin_ * sample_rate / n_fft for bin_ in range(n_fft // 2 + 1))


@dataclass(frozen=True)
class AWeighted:
    """Level in dB as the ear weighs it, `decibels(S) + A(f)`.

    Attributes:
        frequencies: of the bins, Hz: `fft_frequencies(sample_rate, n_fft)`, or those of a `VQT`.
        decibels: `amplitude_to_db` for magnitudes, `power_to_db` for powers.

    Raises:
        ValueError: at the call, a spectrogram of another number of bins.
    """

    frequencies: tuple[float, ...]
    decibels: Callable[[Tensor], Tensor] = amplitude_to_db

    def __call__(self, spectrogram: Tensor) -> Tensor:
        if spectrogram.shape[-2] != len(self.frequencies):
            raise ValueError(
                f"a spectrogram of {spectrogram.shape[-2]} bins does not fit {len(self.frequencies)} frequencies"
            )
        return self.decibels(spectrogram) + _a_weights(self.frequencies, spectrogram.device, spectrogram.dtype)


@constant
def _a_weights(frequencies: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    level = a_weighting(torch.tensor(frequencies, dtype=torch.float64))
    return level[:, None].to(device=device, dtype=dtype)


@dataclass(frozen=True)
class MelScale:
    """Mel bands of an FFT's spectrogram, `M S` with Slaney's filters, as `korvax.to_mel_scale`.

    Attributes:
        sample_rate: Hz.
        n_fft: of the transform, samples.
        n_mels: bands.
        f_min: lower end of the lowest, Hz.
        f_max: upper end of the highest, Hz; None for half the sample rate.

    Raises:
        ValueError: at the call, a spectrogram of another transform size.
    """

    sample_rate: int
    n_fft: int
    n_mels: int = 128
    f_min: float = 0.0
    f_max: float | None = None

    def __call__(self, spectrogram: Tensor) -> Tensor:
        if spectrogram.shape[-2] != self.n_fft // 2 + 1:
            raise ValueError(f"a spectrogram of {spectrogram.shape[-2]} bins is not that of an FFT of {self.n_fft}")
        settings = self.sample_rate, self.n_fft, self.n_mels, self.f_min, self.f_max
        return mel_spectrogram(spectrogram.transpose(-1, -2), *settings).transpose(-1, -2)
