"""Level, spectral centroid and texture of a continuation second by second: against the truth, and their drift."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from encore.errors import EncoreError
from encore.evaluation.metrics.log_mel import FLOOR_DB, decibels, log_mel, power_spectrogram, signal, window_length
from encore.evaluation.metrics.registry import MetricSpec

LEAST_HZ = 20.0
LEAST_TEXTURE = 0.5  # dB: less than any music has, so that ratios to silence are finite
WINDOW_SECONDS, FRAMES_PER_WINDOW = 0.04, 2

CONTOUR_SPECS = (
    MetricSpec("level_db", "level, dB", "Sound", "Level of the whole continuation less the truth’s, dB.", "zero"),
    MetricSpec(
        "centroid_octaves", "centroid, oct.", "Sound", "Mean spectral centroid against the truth’s, octaves.", "zero"
    ),
    MetricSpec(
        "texture_ratio",
        "texture",
        "Sound",
        "Deviation over time of log-mel bands, as a ratio to the truth’s.",
        "one",
        math.exp,
    ),
)
DRIFTS = {"level": "amplitude", "centroid": "spectral centroid", "texture": "texture"}


def drift_specs(seconds: float) -> list[MetricSpec]:
    """The columns of the drift of continuations of `seconds`; the mean of the logarithms becomes a fraction."""
    note = "Change of {} from start to end of a long continuation, as a fraction: 0.2 is 20% more."
    return [
        MetricSpec(f"drift_{name}", name, f"Drift over {seconds:g} s", note.format(what), "zero", math.expm1)
        for name, what in DRIFTS.items()
    ]


@dataclass(frozen=True)
class Contours:
    """Curves with one value per second, `[..., S]`.

    Attributes:
        level: `10 · log10 mean x²`, over the samples and channels of the second: dB of full scale, at least −80.
        centroid: `Σ f · |X| / Σ |X|` over all frames and frequencies of the second: Hz, at least 20, which is also the
            value of silence (a level of −80 dB). The mean of librosa's `spectral_centroid`, weighted by loudness.
        texture: the standard deviation of each band's log-mel power over the frames of the second, averaged over the
            bands: dB, at least 0.5. A flat or averaged sound has little of it, music with onsets has 5 to 9.
    """

    level: Tensor
    centroid: Tensor
    texture: Tensor

    def log_curves(self) -> dict[str, Tensor]:
        """Natural logarithms of amplitude, centroid and texture: `[..., S]` each.

        Averaging their differences is averaging ratios geometrically: `exp` of the mean is the typical ratio.
        """
        return {
            "level": self.level * math.log(10) / 20,
            "centroid": self.centroid.log(),
            "texture": self.texture.log(),
        }


def contours(audio: Tensor | ArrayLike, sample_rate: int) -> Contours:
    """The contours of `audio [..., C, N]`, one value per whole second; an incomplete last second is ignored.

    Spectra use windows of about 40 ms that overlap by half; no window reaches into the next second.

    Raises:
        EncoreError: less than a second of audio.
    """
    samples = signal(audio)
    seconds = samples.shape[-1] // sample_rate
    if seconds < 1:
        raise EncoreError(
            f"contours of {samples.shape[-1] / sample_rate:.2f} s of audio: there is one value per second; give at "
            "least 1 s"
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
    return Contours(level, centroid, texture)


def compare_contours(audio: Tensor | ArrayLike, truth: Tensor | ArrayLike, sample_rate: int) -> dict[str, Tensor]:
    """Whole continuations against the truth, both `[..., C, N]`: one value per item, `[...]`, 0 for equal ones.

    Returns:
        `level_db`: the level of the whole item less the truth's, dB.
        `centroid_octaves`: `log2` of the ratio of the mean centroids.
        `texture_ratio`: natural logarithm of the ratio of the mean textures; `exp` of its mean over items is the
            typical ratio (truth = 1).
    """
    mine, real = contours(audio, sample_rate), contours(truth, sample_rate)
    levels = [decibels(signal(item).square().mean((-1, -2))) for item in (audio, truth)]
    return {
        "level_db": levels[0] - levels[1],
        "centroid_octaves": (mine.centroid.mean(-1) / real.centroid.mean(-1)).log2(),
        "texture_ratio": (mine.texture.mean(-1) / real.texture.mean(-1)).log(),
    }


def slope(curve: Tensor) -> Tensor:
    """The slope of the least-squares line through `curve [..., S]`, one value per second: change per minute, `[...]`.

    Raises:
        EncoreError: fewer than two seconds.
    """
    if curve.shape[-1] < 2:
        raise EncoreError("a slope needs at least 2 s of audio; continue for longer")
    minutes = torch.arange(curve.shape[-1], dtype=torch.float64) / 60
    minutes -= minutes.mean()
    return (curve.double() @ minutes) / minutes.square().sum()


def drift(continuation: Contours) -> dict[str, Tensor]:
    """How much level, centroid and texture change from start to end: one value per item, `[...]`, by `drift_<name>`.

    The least-squares slope of the logarithmic contour (`Contours.log_curves`), times its length. `expm1` of the mean
    over items is the typical change as a fraction: 0.2 is 20% more at the end, of amplitude (not power), Hz or dB of
    deviation. Relative to any constant, such as the mean of real music, the slope is the same.
    """
    curves = continuation.log_curves()
    return {f"drift_{name}": slope(curve) * (curve.shape[-1] / 60) for name, curve in curves.items()}


def relative_contours(continuation: Contours, real: Contours) -> dict[str, list[float]]:
    """Contours `[B, S]` second by second against the mean of each item's real music, averaged over the items.

    Returns:
        By the title of a plot: the level in dB, the others as a ratio.
    """
    means = {name: curve.mean(-1, keepdim=True) for name, curve in real.log_curves().items()}
    relative = {name: (curve - means[name]).mean(0) for name, curve in continuation.log_curves().items()}
    return {
        "Level against real music, dB": (relative["level"] * 20 / math.log(10)).tolist(),
        "Spectral centroid, real music = 1": relative["centroid"].exp().tolist(),
        "Texture, real music = 1": relative["texture"].exp().tolist(),
    }
