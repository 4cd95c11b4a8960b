"""Levels, weightings and frequencies with the interface of korvax."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from losses.compat.korvax.arrays import takes_arrays
from losses.dsp import scales

Reference = float | Tensor | Callable[[Tensor], Tensor]


@takes_arrays
def power_to_db(S: Tensor, /, ref: Reference = 1.0, amin: float = 1e-10, top_db: float | None = 80.0) -> Tensor:
    """Level of a power spectrogram, `10 log10(max(S, amin) / max(ref, amin))` dB.

    Args:
        S: powers of any shape, or complex values, whose magnitudes are taken.
        ref: the power that is 0 dB, or a function of S that gives it.
        amin: the least power.
        top_db: lower levels count as this far below the loudest of all; None for no limit.
    """
    power = S.abs() if S.is_complex() else S
    level = scales.power_to_db(power[None], 1.0, amin, top_db)[0] + 10 * math.log10(max(1.0, amin))
    reference = ref(power) if callable(ref) else torch.as_tensor(ref).abs()
    return level - 10 * reference.to(level).clamp_min(amin).log10()


@takes_arrays
def amplitude_to_db(S: Tensor, /, ref: Reference = 1.0, amin: float = 1e-8, top_db: float | None = 80.0) -> Tensor:
    """Level of a magnitude spectrogram, `20 log10(max(S, amin) / max(ref, amin))` dB; see `power_to_db`."""
    magnitude = S.abs() if S.is_complex() else S
    reference = ref(magnitude) if callable(ref) else torch.as_tensor(ref)
    return power_to_db(magnitude.square(), reference.square(), amin**2, top_db)


@takes_arrays
def db_to_power(S_db: Tensor, /, ref: float = 1.0) -> Tensor:
    """`ref 10^(S_db / 10)`."""
    return ref * 10 ** (S_db / 10)


@takes_arrays
def db_to_amplitude(S_db: Tensor, /, ref: float = 1.0) -> Tensor:
    """`ref 10^(S_db / 20)`."""
    return ref * 10 ** (S_db / 20)


@takes_arrays
def A_weighting(frequencies: Tensor, /, min_db: float | None = -80.0) -> Tensor:
    """The A-weighting of `frequencies` in Hz, dB relative to 1 kHz, not below `min_db`; see `losses.dsp.scales`."""
    return scales.a_weighting(frequencies, min_db)


def fft_frequencies(*, sr: float = 22050, n_fft: int = 2048) -> Tensor:
    """Frequencies of the bins of an FFT, Hz, `[n_fft // 2 + 1]`."""
    return torch.tensor(scales.fft_frequencies(sr, n_fft))


def cqt_frequencies(n_bins: int, /, fmin: float, bins_per_octave: int = 12, tuning: float = 0.0) -> Tensor:
    """Frequencies `fmin 2^((k + tuning) / bins_per_octave)` of a constant-Q transform, Hz, `[n_bins]`."""
    return fmin * 2 ** ((torch.arange(n_bins) + tuning) / bins_per_octave)
