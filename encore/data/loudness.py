"""Loudness as ITU-R BS.1770-4 measures it, in LUFS: the one by which broadcasters and players level music."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

BLOCK_SECONDS, STEP_SECONDS = 0.4, 0.1
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # LUFS; LU below the mean
OFFSET = -0.691  # dB, so that a full-scale sine of 997 Hz in one channel has −3.01 LUFS
# The two K-weighting filters: frequency in Hz, quality, gain in dB; those of the standard's 48 kHz, for any rate.
SHELF = 1681.974450955533, 0.7071752369554196, 3.999843853973347
HIGH_PASS = 38.13547087602444, 0.5003270373238773


def integrated_loudness(audio: Tensor, sample_rate: int) -> float:
    """Gated loudness of `audio [C, N]` in LUFS; −inf for silence, or for less than 0.4 s."""
    from scipy.signal import lfilter  # takes half a second, and only preparation with a loudness needs it

    block, step = round(BLOCK_SECONDS * sample_rate), round(STEP_SECONDS * sample_rate)
    weighted = audio.double().numpy()
    for numerator, denominator in (_shelf(sample_rate), _high_pass(sample_rate)):
        weighted = lfilter(numerator, denominator, weighted, axis=-1)
    energy = np.concatenate([[0.0], np.cumsum((weighted**2).sum(0))])
    starts = np.arange(0, audio.shape[-1] - block + 1, step)
    power = (energy[starts + block] - energy[starts]) / block  # of each block
    power = power[_lufs(power) > ABSOLUTE_GATE]
    if not len(power):
        return -math.inf
    gate = _lufs(power.mean()) + RELATIVE_GATE
    return float(_lufs(power[_lufs(power) > gate].mean()))


def _lufs(power: np.ndarray) -> np.ndarray:
    return OFFSET + 10 * np.log10(np.maximum(power, 1e-30))


def _shelf(sample_rate: int) -> tuple[list[float], list[float]]:
    frequency, quality, gain = SHELF
    k, high = math.tan(math.pi * frequency / sample_rate), 10 ** (gain / 20)
    middle, scale = high**0.4996667741545416, 1 + k / quality + k * k
    numerator = [high + middle * k / quality + k * k, 2 * (k * k - high), high - middle * k / quality + k * k]
    return [value / scale for value in numerator], _poles(k, quality, scale)


def _high_pass(sample_rate: int) -> tuple[list[float], list[float]]:
    frequency, quality = HIGH_PASS
    k = math.tan(math.pi * frequency / sample_rate)
    return [1.0, -2.0, 1.0], _poles(k, quality, 1 + k / quality + k * k)


def _poles(k: float, quality: float, scale: float) -> list[float]:
    return [1.0, 2 * (k * k - 1) / scale, (1 - k / quality + k * k) / scale]
