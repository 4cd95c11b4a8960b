"""Scales: functions of a spectrogram `[B, C, frames, bins]`, applied before two of them are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from losses.dsp.compilation import constant
from losses.dsp.stft import log_ratio


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


@constant
def _a_weights(frequencies: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    level = a_weighting(torch.tensor(frequencies, dtype=torch.float64))
    return level.to(device=device, dtype=dtype)
