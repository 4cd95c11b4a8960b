"""Losses on spectrograms: mel, plain and weighted magnitudes, complex values, phase.

In the formulas P and T are the magnitudes of the short-time Fourier transforms of prediction and target, at least 1e-4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from losses.base import FunctionLoss, full_precision
from losses.dsp.bank import sharing_spectra
from losses.dsp.compilation import constant_tensor
from losses.dsp.norms import item_mean, mean_abs
from losses.dsp.scales import Log, a_weighting, fft_frequencies
from losses.dsp.stft import (
    Resolution,
    absolute,
    anti_wrapped_distance,
    check_long_enough,
    log_ratio,
    magnitude,
    spectrum_parts,
)
from losses.dsp.transforms import STFT, Mel
from losses.registry import register
from losses.stft_settings import SILENCE
from losses.time_frequency import frame_rms, l1, l2, relative_l1, time_frequency_loss

RESOLUTIONS = (512, 1024, 2048)  # FFT sizes of the losses that Encore defines itself, a quarter of them the hop


@register("mel", group="spectral", distance=True)
@full_precision
def mel(
    prediction: Tensor,
    target: Tensor,
    sample_rate: int,
    n_fft: int = 1024,
    hop_length: int = 256,
    n_mels: int = 80,
    f_min: float = 0.0,
    f_max: float | None = 8000.0,
) -> Tensor:
    """L1 of log-mel spectrograms.

    Formula: `mean(|ln max(MP, 1e-5) − ln max(MT, 1e-5)|)`, M 80 Slaney mel bands up to 8 kHz, FFT 1024, hop 256.
    Use: timbre; robust in small details.

    Kong et al. 2020 (HiFi-GAN), with their parameters at 24 kHz.

    Args:
        prediction: `[B, C, N]`.
        target: as the prediction.
        sample_rate: Hz.
        n_fft: transform size, samples.
        hop_length: samples from frame to frame.
        n_mels: mel bands.
        f_min: lower end of the lowest band, Hz.
        f_max: upper end of the highest band, Hz; at most half the sample rate, which None stands for.

    Raises:
        ValueError: shapes differ, or fewer than `n_fft // 2 + 1` samples.
    """
    top = sample_rate / 2 if f_max is None else min(f_max, sample_rate / 2)
    bands: dict[str, Any] = {"sample_rate": sample_rate, "n_mels": n_mels, "f_min": f_min, "f_max": top}
    return time_frequency_loss(prediction, target, Mel(n_fft, hop_length, power=1, **bands), l1, Log(floor=1e-5))


@register("multi_mel", group="spectral", distance=True)
@full_precision
def multi_mel(
    prediction: Tensor,
    target: Tensor,
    sample_rate: int,
    n_ffts: Sequence[int] = (1024, 2048, 4096),
    hop_lengths: Sequence[int] = (256, 512, 1024),
    n_mels: Sequence[int] = (80, 160, 320),
    f_min: float = 0.0,
    f_max: float | None = None,
) -> Tensor:
    """L1 of log-mel spectrograms of three resolutions.

    Formula: mean of `mel` over FFT 1024, 2048, 4096 with 80, 160, 320 bands up to half the sample rate.
    Use: as `mel`, with more of pitch and treble.
    """
    check_long_enough(prediction, max(n_ffts))
    sizes = zip(n_ffts, hop_lengths, n_mels, strict=True)
    values = [mel(prediction, target, sample_rate, *size, f_min, f_max) for size in sizes]
    return torch.stack(values).mean(0)


@register("complex_spec", group="spectral")
@full_precision
def complex_spec(
    prediction: Tensor, target: Tensor, n_fft: int = 1024, hop_length: int | None = None, normalize: bool = True
) -> Tensor:
    """L1 of magnitudes relative to the target's mean.

    Formula: `mean(|P − T|) / mean(T)`, FFT 1024, hop half the FFT.
    Use: linear: loud partials count most.

    mean(T) counts as at least the mean magnitude of white noise at −60 dBFS. Without `normalize` it is `mean(|P − T|)`,
    which is symmetric and grows with the level.
    """
    transform = STFT(n_fft, hop_length or n_fft // 2, power=1)
    distance = partial(relative_l1, floor=silent_magnitude(n_fft)) if normalize else l1
    return time_frequency_loss(prediction, target, transform, distance)


@register("multi_complex_spec", group="spectral")
@full_precision
def multi_complex_spec(
    prediction: Tensor,
    target: Tensor,
    n_ffts: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048),
    normalize: bool = True,
) -> Tensor:
    """Relative L1 of magnitudes at seven resolutions, FFT 32 to 2048.

    Formula: mean of `complex_spec` over FFT 32, 64, … 2048.
    Use: as `complex_spec`, for attacks as well as for partials.

    `normalize` as in `complex_spec`.
    """
    return _mean_over(n_ffts, prediction, lambda n_fft: complex_spec(prediction, target, n_fft, normalize=normalize))


@register("mse_spectrogram", group="spectral")
@full_precision
def mse_spectrogram(prediction: Tensor, target: Tensor, n_fft: int = 1024, hop_length: int = 256) -> Tensor:
    """Mean square difference of magnitudes.

    Formula: `mean((P − T)²)`, FFT 1024, hop 256.
    Use: loud bins above all; grows with the square of the level.
    """
    return time_frequency_loss(prediction, target, STFT(n_fft, hop_length, power=1), l2)


@register("log_spectrogram", group="spectral", distance=True)
@full_precision
def log_spectrogram(prediction: Tensor, target: Tensor, n_fft: int = 1024, hop_length: int = 256) -> Tensor:
    """L1 of log magnitudes.

    Formula: `mean(|ln P − ln T|)`, FFT 1024, hop 256.
    Use: quiet bins count as much as loud ones.
    """
    return time_frequency_loss(prediction, target, STFT(n_fft, hop_length, power=1), l1, Log())


@register("complex_stft", group="spectral")
@full_precision
@sharing_spectra
def complex_stft(prediction: Tensor, target: Tensor, n_ffts: Sequence[int] = RESOLUTIONS) -> Tensor:
    """Distance of complex spectra: magnitude and phase together.

    Formula: mean over FFT 512, 1024, 2048, hop a quarter, of `mean(|X_p − X_t|) / mean(T)`, X the complex values.
    Use: magnitude and phase in one; 1 for silence.

    About √2 for an unrelated signal of the target's spectrum. mean(T) counts as at least the mean magnitude of white
    noise at −60 dBFS.

    Not made of a `time_frequency_loss`, because it needs the complex values and the magnitudes of one transform, which
    the shared bank computes together.
    """

    def compare(n_fft: int) -> Tensor:
        predicted, wanted = (spectrum_parts(signal, Resolution(n_fft)) for signal in (prediction, target))
        level = item_mean(magnitude(target, Resolution(n_fft)))
        return item_mean(absolute(predicted, wanted)) / level.clamp_min(silent_magnitude(n_fft))

    return _mean_over(n_ffts, prediction, compare)


@register("phase", group="spectral")
@full_precision
@sharing_spectra
def phase_distance(prediction: Tensor, target: Tensor, n_ffts: Sequence[int] = RESOLUTIONS) -> Tensor:
    """Anti-wrapped distance of phase, group delay and instantaneous frequency.

    Formula: mean over FFT 512, 1024, 2048, hop a quarter, of `mean f(Δ) + mean f(∂_k Δ) + mean f(∂_t Δ)`, Δ the
    difference of the angles, ∂ its differences along bins and frames, `f(x) = |x − 2π round(x / 2π)|`.
    Use: beside a loss of magnitudes; radians.

    Ai & Ling 2023. About 3.9 for unrelated noise: π/2 for the angles, but only 1.2 for either difference, since
    neighbouring bins and frames overlap. Levels do not matter, except that a bin below 1e-4 in both signals counts as
    equal, and that a bin below 1e-4 in the prediction has no gradient.

    Not made of a `time_frequency_loss`, because it needs the complex values and the magnitudes of one transform, which
    the shared bank computes together.
    """
    return _mean_over(n_ffts, prediction, lambda n_fft: anti_wrapped_distance(prediction, target, Resolution(n_fft)))


@register("loudness", group="spectral")
@full_precision
def loudness(prediction: Tensor, target: Tensor, sample_rate: int, n_ffts: Sequence[int] = RESOLUTIONS) -> Tensor:
    """Log-spectral error, weighted by how loud the target is to the ear.

    Formula: mean over FFT 512, 1024, 2048, hop a quarter, of `Σ w |ln P − ln T| / Σ w`, w A-weighting times T.
    Use: errors where they are audible; in nepers of 8.7 dB.

    `w = A(f) max(T, white noise of −60 dBFS)`, A the A-weighting of IEC 61672 as a factor of the amplitude.
    """

    def compare(n_fft: int) -> Tensor:
        return time_frequency_loss(prediction, target, STFT(n_fft, power=1), LoudnessDistance(sample_rate, n_fft))

    return _mean_over(n_ffts, prediction, compare)


@register("spectral_energy", group="spectral", distance=True)
@full_precision
def spectral_energy(
    prediction: Tensor, target: Tensor, n_ffts: Sequence[int] = (64, 128, 256, 512, 1024, 2048)
) -> Tensor:
    """Linear L1 and log L2 of magnitudes, FFT 64 to 2048.

    Formula: mean over FFT 64, 128, … 2048, hop a quarter, and frames of `mean_k |P − T| + rms_k(ln P − ln T)`, k bins.
    Use: the distance of an energy distance.

    Gritsenko et al. 2020: the distance of their spectral energy distance, per frame `‖P − T‖₁ + α ‖ln P − ln T‖₂`,
    divided by the number of bins K = n_fft / 2 + 1, so that all resolutions count alike; α is √K, where the paper has
    √(n_fft / 2). Both terms are norms, which makes an energy distance built on them a proper scoring rule.
    """

    def compare(n_fft: int) -> Tensor:
        transform = STFT(n_fft, power=1)
        return time_frequency_loss(prediction, target, transform, [l1, frame_rms], [None, Log()], [1, 1])

    return _mean_over(n_ffts, prediction, compare)


@dataclass(frozen=True)
class LoudnessDistance:
    """`Σ w |ln P − ln T| / Σ w` of magnitudes; see `loudness` for w."""

    sample_rate: int
    n_fft: int

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        audible = _a_weights(self.sample_rate, self.n_fft, target.device, target.dtype)
        weights = target.clamp_min(silent_magnitude(self.n_fft)) * audible
        return mean_abs(weights * log_ratio(prediction, target)) / item_mean(weights)


def silent_magnitude(n_fft: int) -> float:
    """The magnitude of white noise at −60 dBFS under Hann's window, whose mean square is 3/8."""
    return SILENCE * (0.375 * n_fft) ** 0.5


def _mean_over(n_ffts: Sequence[int], prediction: Tensor, compare: Callable[[int], Tensor]) -> Tensor:
    """The mean of `compare(n_fft)`; if the signal is too short, the error names the samples for the longest FFT."""
    check_long_enough(prediction, max(n_ffts))
    return torch.stack([compare(n_fft) for n_fft in n_ffts]).mean(0)


@constant_tensor
def _a_weights(sample_rate: int, n_fft: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    frequencies = torch.tensor(fft_frequencies(sample_rate, n_fft), dtype=torch.float64)
    return (10 ** (a_weighting(frequencies) / 20)).to(device=device, dtype=dtype)


class MelLoss(FunctionLoss):
    """L1 of log-mel spectrograms; see `mel` for the settings."""

    compare = staticmethod(mel)

    def __init__(
        self,
        sample_rate: int,
        n_fft: int = 1024,
        *,
        hop_length: int = 256,
        n_mels: int = 80,
        f_min: float = 0.0,
        f_max: float | None = 8000.0,
        reduction: str = "mean",
    ):
        super().__init__(
            sample_rate=sample_rate,
            n_fft=n_fft,
            hop_length=hop_length,
            n_mels=n_mels,
            f_min=f_min,
            f_max=f_max,
            reduction=reduction,
        )


class MultiMelLoss(FunctionLoss):
    """L1 of log-mel spectrograms of several resolutions; see `multi_mel` for the settings."""

    compare = staticmethod(multi_mel)

    def __init__(
        self,
        sample_rate: int,
        n_ffts: Sequence[int] = (1024, 2048, 4096),
        *,
        hop_lengths: Sequence[int] = (256, 512, 1024),
        n_mels: Sequence[int] = (80, 160, 320),
        f_min: float = 0.0,
        f_max: float | None = None,
        reduction: str = "mean",
    ):
        super().__init__(
            sample_rate=sample_rate,
            n_ffts=n_ffts,
            hop_lengths=hop_lengths,
            n_mels=n_mels,
            f_min=f_min,
            f_max=f_max,
            reduction=reduction,
        )


class LoudnessLoss(FunctionLoss):
    """Log-spectral error weighted by loudness; see `loudness` for the settings."""

    compare = staticmethod(loudness)

    def __init__(self, sample_rate: int, n_ffts: Sequence[int] = RESOLUTIONS, *, reduction: str = "mean"):
        super().__init__(sample_rate=sample_rate, n_ffts=n_ffts, reduction=reduction)


class ComplexSpecLoss(FunctionLoss):
    """Relative L1 of magnitudes; see `complex_spec` for the settings."""

    compare = staticmethod(complex_spec)

    def __init__(
        self, n_fft: int = 1024, hop_length: int | None = None, *, normalize: bool = True, reduction: str = "mean"
    ):
        super().__init__(n_fft=n_fft, hop_length=hop_length, normalize=normalize, reduction=reduction)


class MultiComplexSpecLoss(FunctionLoss):
    """Relative L1 of magnitudes of seven resolutions; see `multi_complex_spec` for the settings."""

    compare = staticmethod(multi_complex_spec)

    def __init__(
        self,
        n_ffts: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048),
        *,
        normalize: bool = True,
        reduction: str = "mean",
    ):
        super().__init__(n_ffts=n_ffts, normalize=normalize, reduction=reduction)


class MSESpectrogramLoss(FunctionLoss):
    """Mean square difference of magnitudes; see `mse_spectrogram` for the settings."""

    compare = staticmethod(mse_spectrogram)

    def __init__(self, n_fft: int = 1024, hop_length: int = 256, *, reduction: str = "mean"):
        super().__init__(n_fft=n_fft, hop_length=hop_length, reduction=reduction)


class LogSpectrogramLoss(FunctionLoss):
    """L1 of log magnitudes; see `log_spectrogram` for the settings."""

    compare = staticmethod(log_spectrogram)

    def __init__(self, n_fft: int = 1024, hop_length: int = 256, *, reduction: str = "mean"):
        super().__init__(n_fft=n_fft, hop_length=hop_length, reduction=reduction)


class ComplexSTFTLoss(FunctionLoss):
    """Relative distance of complex spectra; see `complex_stft` for the settings."""

    compare = staticmethod(complex_stft)

    def __init__(self, n_ffts: Sequence[int] = RESOLUTIONS, *, reduction: str = "mean"):
        super().__init__(n_ffts=n_ffts, reduction=reduction)


class PhaseLoss(FunctionLoss):
    """Anti-wrapped phase distance; see `phase_distance` for the settings."""

    compare = staticmethod(phase_distance)

    def __init__(self, n_ffts: Sequence[int] = RESOLUTIONS, *, reduction: str = "mean"):
        super().__init__(n_ffts=n_ffts, reduction=reduction)


class SpectralEnergyLoss(FunctionLoss):
    """Linear L1 and log L2 of magnitudes; see `spectral_energy` for the settings."""

    compare = staticmethod(spectral_energy)

    def __init__(self, n_ffts: Sequence[int] = (64, 128, 256, 512, 1024, 2048), *, reduction: str = "mean"):
        super().__init__(n_ffts=n_ffts, reduction=reduction)
