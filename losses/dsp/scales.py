"""Scales: functions of a spectrogram `[B, C, frames, bins]`, applied before two of them are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from losses.dsp.compilation import constant_tensor
from losses.dsp.stft import log_ratio

SONES, COMPRESSION = 0.047, 0.2  # of specific loudness: sone per ERB, and the exponent (Moore, Glasberg & Baer 1997)


@dataclass(frozen=True)
class Log:
    """`ln max(factor S + offset, floor)`.

    Of positive spectrograms, the default `Log()` is their logarithm, and the difference of two takes one logarithm.
    """

    factor: float = 1.0
    offset: float = 0.0
    floor: float = 0.0

    def __call__(self, spectrogram: Tensor) -> Tensor:
        if (self.factor, self.offset) != (1, 0):
            spectrogram = self.factor * spectrogram + self.offset
        return (spectrogram.clamp_min(self.floor) if self.floor else spectrogram).log()

    def difference(self, prediction: Tensor, target: Tensor) -> Tensor:
        if self == Log():
            return log_ratio(prediction, target)
        return self(prediction) - self(target)


def difference(prediction: Tensor, target: Tensor, scale: Callable[[Tensor], Tensor]) -> Tensor:
    """`scale(P) − scale(T)`, by the scale's own method `difference` where it has one."""
    if isinstance(scale, Log):
        return scale.difference(prediction, target)
    return scale(prediction) - scale(target)


def power_to_db(spectrogram: Tensor, ref: float = 1.0, amin: float = 1e-10, top_db: float | None = 80.0) -> Tensor:
    """Level of a power spectrogram, `10 log10(max(S, amin) / max(ref, amin))` dB, as `korvax.power_to_db` of each item.

    Args:
        spectrogram: powers, `[B, ...]`.
        ref: the power that is 0 dB.
        amin: the least power; lower ones count as this and have no gradient.
        top_db: dynamic range in dB: lower levels count as this far below the item's loudest; None for no limit.
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
    """The A-weighting (IEC 61672-1) of `frequencies` in Hz: the ear's sensitivity at low levels, dB relative to 1 kHz.

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
    """A-weighted level in dB, `decibels(S) + A(f)`.

    Attributes:
        frequencies: of the bins, Hz: `fft_frequencies(sample_rate, n_fft)`, or those of a `VQT`.
        decibels: `amplitude_to_db` for magnitudes, `power_to_db` for powers.

    Raises:
        ValueError: at the call, a spectrogram of another number of bins.
    """

    frequencies: tuple[float, ...]
    decibels: Callable[[Tensor], Tensor] = amplitude_to_db

    def __call__(self, spectrogram: Tensor) -> Tensor:
        if spectrogram.shape[-1] != len(self.frequencies):
            raise ValueError(
                f"a spectrogram of {spectrogram.shape[-1]} bins does not fit {len(self.frequencies)} frequencies"
            )
        return self.decibels(spectrogram) + _a_weights(self.frequencies, spectrogram.device, spectrogram.dtype)


@constant_tensor
def _a_weights(frequencies: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    level = a_weighting(torch.tensor(frequencies, dtype=torch.float64))
    return level.to(device=device, dtype=dtype)


def hearing_threshold(frequencies: Tensor) -> Tensor:
    """The absolute threshold of hearing at `frequencies` in Hz, at least 20 Hz: dB of sound pressure level (SPL).

    `3.64 f^−0.8 − 6.5 exp(−0.6 (f − 3.3)²) + 1e-3 f⁴`, f in kHz: what a young listener can just hear in quiet (Terhardt
    1979). 83 dB at 20 Hz, 3.4 dB at 1 kHz, −5 dB at 3.3 kHz, 21 dB at 12 kHz.
    """
    kilohertz = frequencies.clamp_min(20) / 1000
    return 3.64 * kilohertz**-0.8 - 6.5 * (-0.6 * (kilohertz - 3.3) ** 2).exp() + 1e-3 * kilohertz**4


@dataclass(frozen=True)
class SpecificLoudness:
    """Loudness of each band of hearing, `0.047 ((W + F)^0.2 − F^0.2)` sone per ERB, from powers E of the bands.

    `W = A E` is the power heard, A the A-weighting, in units of a sine of 1 kHz at 0 dB SPL. `F = A H + R mean ΣW` is
    the power at the limit of what can be heard: H the threshold of hearing, and R = `−range_db` below the item's own
    loudness, its A-weighted power, summed over bands and averaged over channels and frames. Far above F loudness grows
    with the power's root of fifth degree, doubling with every 15 dB; far below, it is in proportion to E / F^0.8 and
    soon nothing.

    The loudness of Moore, Glasberg & Baer 1997, formula 5 and its constants, without the spread of excitation over
    neighbouring bands. A function of one signal alone, so norms of a difference of two are of negative type.

    Attributes:
        frequencies: centres of the bands, Hz.
        full_scale: the power E, summed over bands, of a sine of amplitude 1.
        playback_db: level at which such a sine is played, dB SPL.
        range_db: dB below the item's own loudness at which sound is no longer heard.
    """

    frequencies: tuple[float, ...]
    full_scale: float
    playback_db: float = 90.0
    range_db: float = 65.0

    def __call__(self, spectrogram: Tensor) -> Tensor:
        weights, threshold = _hearing(
            self.frequencies, self.playback_db, self.full_scale, spectrogram.device, spectrogram.dtype
        )
        heard = spectrogram * weights
        own = heard.sum(-1).flatten(1).mean(1).view(-1, *[1] * (heard.dim() - 1))
        floor = threshold + 10 ** (-self.range_db / 10) * own
        return SONES * ((heard + floor) ** COMPRESSION - floor**COMPRESSION)


@constant_tensor
def _hearing(
    frequencies: tuple[float, ...], playback_db: float, full_scale: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """`[2, bands]`: factors from a band's power to that heard, and the threshold of it; both relative to 0 dB SPL."""
    hertz = torch.tensor(frequencies, dtype=torch.float64)
    level = a_weighting(hertz)
    weights = 10 ** ((level + playback_db) / 10) / full_scale
    threshold = 10 ** ((level + hearing_threshold(hertz)) / 10)
    return torch.stack([weights, threshold]).to(device=device, dtype=dtype)
