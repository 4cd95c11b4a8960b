"""How a continuation runs: level, spectral centroid and texture, second after second, and whether they drift away."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from encore.errors import EncoreError
from encore.evaluation.metrics.log_mel import FLOOR_DB, decibels, log_mel, power_spectrogram, signal, window_length

LEAST_HZ = 20.0
LEAST_TEXTURE = 0.5  # dB: below that of any music, so that silence has a finite ratio to it
WINDOW_SECONDS, FRAMES_PER_WINDOW = 0.04, 2


@dataclass(frozen=True)
class Course:
    """Curves with one value per second, `[..., S]`.

    Attributes:
        level: `10 · log10 mean x²`, over the samples and channels of the second: dB of full scale, at least −80.
        centroid: `Σ f · |X| / Σ |X|` over all frames and frequencies of the second: Hz, at least 20, which is also
            what silence (a level of −80 dB) counts as. Of librosa's `spectral_centroid` the mean, weighted by loudness.
        texture: the standard deviation over the frames of the second of each band's log-mel power, the mean over the
            bands: dB, at least 0.5. A flat or averaged sound has little of it, music with onsets has 5 to 9.
    """

    level: Tensor
    centroid: Tensor
    texture: Tensor

    def log_curves(self, truth: Course | None = None) -> dict[str, Tensor]:
        """Natural logarithms of amplitude, centroid and texture, less those of the truth: `[..., S]` each.

        Averaging them over items is averaging ratios geometrically: `exp` of the mean is the typical ratio.
        """
        curves = {
            "level": self.level * math.log(10) / 20,
            "centroid": self.centroid.log(),
            "texture": self.texture.log(),
        }
        if truth is None:
            return curves
        others = truth.log_curves()
        seconds = min(self.level.shape[-1], truth.level.shape[-1])
        return {name: curve[..., :seconds] - others[name][..., :seconds] for name, curve in curves.items()}


def course(audio: Tensor | ArrayLike, sample_rate: int) -> Course:
    """The curves of `audio [..., C, N]`, one value per whole second; what is left of the last second is ignored.

    Spectra are of windows of about 40 ms, half overlapping, none of which reaches into another second.

    Raises:
        EncoreError: less than a second of audio.
    """
    samples = signal(audio)
    seconds = samples.shape[-1] // sample_rate
    if seconds < 1:
        raise EncoreError(
            f"the course of {samples.shape[-1] / sample_rate:.2f} s of audio: it is measured second by second; give it "
            "at least 1 s"
        )
    blocks = samples[..., : seconds * sample_rate].unflatten(-1, (seconds, sample_rate)).transpose(-2, -3)
    n_fft = window_length(sample_rate, WINDOW_SECONDS)
    hop = n_fft // FRAMES_PER_WINDOW
    level = decibels(blocks.square().mean((-1, -2)))
    magnitudes = power_spectrogram(blocks, n_fft, hop).sqrt().sum(-2)
    frequencies = torch.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    centroid = (magnitudes @ frequencies) / magnitudes.sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    centroid = torch.where(level > FLOOR_DB, centroid, 0.0).clamp_min(LEAST_HZ)
    texture = log_mel(blocks, sample_rate, n_fft, hop).std(-2, correction=0).mean(-1).clamp_min(LEAST_TEXTURE)
    return Course(level, centroid, texture)


def compare(audio: Tensor | ArrayLike, truth: Tensor | ArrayLike, sample_rate: int) -> dict[str, Tensor]:
    """Whole continuations against the truth, both `[..., C, N]`: one value per item, `[...]`, 0 for equal ones.

    Returns:
        `level_db`: the level of the whole item less the truth's, dB.
        `centroid_octaves`: `log2` of the ratio of the mean centroids.
        `texture_log`: natural logarithm of the ratio of the mean textures. `exp` of its mean over items is the
            texture ratio (truth = 1).
    """
    mine, real = course(audio, sample_rate), course(truth, sample_rate)
    levels = [decibels(signal(item).square().mean((-1, -2))) for item in (audio, truth)]
    return {
        "level_db": levels[0] - levels[1],
        "centroid_octaves": (mine.centroid.mean(-1) / real.centroid.mean(-1)).log2(),
        "texture_log": (mine.texture.mean(-1) / real.texture.mean(-1)).log(),
    }


def slope(curve: Tensor) -> Tensor:
    """The slope of the least-squares line through `curve [..., S]`, a value per second: change per minute, `[...]`.

    Raises:
        EncoreError: fewer than two seconds.
    """
    if curve.shape[-1] < 2:
        raise EncoreError("a slope needs at least 2 s of audio; continue for longer")
    minutes = torch.arange(curve.shape[-1], dtype=torch.float64) / 60
    minutes -= minutes.mean()
    return (curve.double() @ minutes) / minutes.square().sum()


def drift(continuation: Course, truth: Course | None = None) -> dict[str, Tensor]:
    """How much level, centroid and texture change from start to end: one value per item, `[...]`.

    The least-squares slope of the logarithmic curve (`Course.log_curves`), times its length. `expm1` of the mean over
    items is the typical change as a fraction: 0.2 is 20% more at the end, of amplitude (not power), Hz or dB of
    deviation. Without the truth the curve itself is taken: against any constant, such as real music's mean, the
    slope is the same.
    """
    curves = continuation.log_curves(truth)
    return {name: slope(curve) * (curve.shape[-1] / 60) for name, curve in curves.items()}
