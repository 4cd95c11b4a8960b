"""PESQ, a measure of speech quality, as a loss."""

from __future__ import annotations

from functools import lru_cache, partial
from importlib import import_module
from math import gcd
from typing import Any

import torch
from torch import Tensor
from torchaudio.functional import lfilter, resample

from losses.base import Loss, full_precision
from losses.dsp.compilation import eager
from losses.registry import register

RATE = 16000  # Hz, that of wide-band PESQ
SHORTEST = 5248  # samples at 16 kHz: the shortest signal that the package pads to its 20 frames of 512 samples, hop 256
AUDIBLE = 1e-5  # peak, −100 dBFS
POWER_FLOOR = 1e-8  # power in the band by which levels are aligned, relative to the louder signal's peak; −80 dB


@full_precision
@eager  # torchaudio's recursive filter cannot be compiled
def pesq(prediction: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """Differentiable PESQ (ITU-T P.862) by the package torch-pesq: `0.1 · d_symmetric + 0.0309 · d_asymmetric`.

    A measure of speech, fitted to listening tests on telephone speech: levels, filters and what lies above 8 kHz do not
    count. The two disturbances are distances of loudness over Bark bands, each from 0 to 45, so the loss goes from 0
    (1e-21 at identity and where no difference is audible) to 5.8905; 4.5 minus it is the package's raw mean opinion
    score. Audio of any rate is resampled to 16 kHz; channels are measured separately and averaged.

    Use it to refine predictions that are near their target; from far away it trains badly or not at all, because P.862
    caps both disturbances of a frame at 45, and a capped frame has no gradient. Measured on seconds of synthesised
    music: with white noise 20 dB below it the asymmetric disturbance is capped in 65 to 90% of the frames; with noise
    as loud as the music both are in 35 to 90%, against other music in 45 to 85%. Where both are in all frames, as for a
    steady tone under noise as loud as itself, the value is 5.8905 and the gradient exactly 0. So it is for a prediction
    of digital silence, whatever its target: the derivative of a power spectrum at 0 is 0.

    Equal to the package in float64, in which this is always computed: in float32 the package itself is off by 1e-4
    (its filter of tenth order rounds), and its gradient is not a number where a third of a second is without any
    disturbance. Two more things differ so that silence is safe. A signal whose power in the band of speech (325 to
    3250 Hz) is 80 dB below the peak of the louder one is no longer raised to the standard level; and where the peaks
    of both are below -100 dBFS the value is 0.

    Args:
        prediction: `[B, C, N]`.
        target: `[B, C, N]`.
        sample_rate: Hz, of both.

    Returns:
        One value per item, `[B]`.

    Raises:
        ValueError: shapes that differ, or fewer than 0.328 s.
        ImportError: torch-pesq is not installed.
    """
    divisor = gcd(sample_rate, RATE)
    least = (SHORTEST - 1) * (sample_rate // divisor) // (RATE // divisor) + 1
    if prediction.shape[-1] < least:
        raise ValueError(
            f"a signal of shape {list(prediction.shape)} is too short for PESQ at {sample_rate} Hz: at least {least} "
            "samples are needed"
        )
    rows = [resample(signal.flatten(0, 1).double(), sample_rate, RATE) for signal in (prediction, target)]
    audible = torch.maximum(*(row.abs().amax(1, keepdim=True) for row in rows)) > AUDIBLE
    # The package divides by the peak; the result for the ones that replace silence is discarded.
    degraded, reference = (torch.where(audible, row, torch.ones_like(row)) for row in rows)
    values = torch.where(audible[:, 0], _measure(prediction.device)(reference, degraded), 0)
    return values.unflatten(0, prediction.shape[:2]).mean(1).to(prediction.dtype)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # its filters must serve training, even if inference asks for them first
def _measure(device: torch.device) -> Any:
    """The package's loss in float64, changed so that silence is not raised to the level of speech."""
    try:
        package: Any = import_module("torch_pesq")
    except ImportError as error:
        raise ImportError(
            f"the loss pesq needs the package torch-pesq ({error}): pip install -r requirements-losses.txt"
        ) from error

    class Measure(package.PesqLoss):
        def align_level(self, signal: Tensor) -> Tensor:
            numerator, denominator = self.power_filter
            band = lfilter(signal, denominator, numerator, clamp=False)
            power = band.square().sum(1, keepdim=True) / (band.shape[1] + 5120) / 1.04684  # as in P.862's program
            return signal * (1e7 / power.clamp_min(POWER_FLOOR)).sqrt()

    return Measure(factor=1.0, sample_rate=RATE).to(device, torch.float64)


@register("pesq", group="perceptual", package="torch-pesq")
class PESQLoss(Loss):
    """Perceptual evaluation of speech quality (PESQ) at 16 kHz, a measure of speech.

    Formula: `0.1 d_symmetric + 0.0309 d_asymmetric` at 16 kHz, 0 to 5.9.
    Use: to refine speech that is near its target: flat far away; levels and treble do not count.

    Raises:
        ImportError: torch-pesq is not installed.
    """

    def __init__(self, sample_rate: int, reduction: str = "mean"):
        _measure(torch.device("cpu"))  # raises now, not at the first step, if the package is missing
        super().__init__(partial(pesq, sample_rate=sample_rate), reduction)
