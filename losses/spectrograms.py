"""Losses on spectrograms: mel, plain and weighted magnitudes, complex values, phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from losses.base import Loss, check_same_shape, entry
from losses.dsp.autograd import AntiWrapped, mean_abs
from losses.dsp.compilation import constant
from losses.dsp.filterbanks import mel_spectrogram
from losses.dsp.scales import a_weighting, fft_frequencies
from losses.dsp.stft import (
    POWER_FLOOR,
    absolute,
    check_long_enough,
    log_ratio,
    magnitude,
    phase_difference,
    shared_spectra,
    spectrum,
)
from losses.stft import SILENCE, distance

RESOLUTIONS = (512, 1024, 2048)  # FFT sizes of the losses that Encore defines itself, a quarter of them the hop


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
    """L1 of log-mel spectrograms, `mean(| ln max(M|P|, 1e-5) − ln max(M|T|, 1e-5) |)`, M the Slaney mel filters, `[B]`.

    Frequencies in Hz, `f_max` half the sample rate if that is less or if it is None; sizes in samples. Parameters of
    Kong et al. 2020 (HiFi-GAN) at 24 kHz.

    Raises:
        ValueError: shapes differ, or fewer than `n_fft // 2 + 1` samples.
    """
    check_same_shape(prediction, target)
    top = sample_rate / 2 if f_max is None else min(f_max, sample_rate / 2)
    predicted, wanted = (
        mel_spectrogram(magnitude(signal, n_fft, hop_length), sample_rate, n_fft, n_mels, f_min, top)
        .clamp_min(1e-5)
        .log()
        for signal in (prediction, target)
    )
    return mean_abs(predicted - wanted)


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
    """The mean of `mel` over resolutions, up to half the sample rate, `[B]`."""
    check_long_enough(prediction, max(n_ffts))
    sizes = zip(n_ffts, hop_lengths, n_mels, strict=True)
    values = [mel(prediction, target, sample_rate, *size, f_min, f_max) for size in sizes]
    return torch.stack(values).mean(0)


def complex_spec(prediction: Tensor, target: Tensor, n_fft: int = 1024, hop_length: int | None = None) -> Tensor:
    """L1 of magnitudes relative to the target's mean, `mean(| |P| − |T| |) / mean(|T|)`, `[B]`.

    The mean magnitude counts as at least that of white noise at −60 dBFS. Hop half the FFT.
    """
    check_same_shape(prediction, target)
    predicted, wanted = (magnitude(signal, n_fft, hop_length or n_fft // 2) for signal in (prediction, target))
    return mean_abs(predicted - wanted) / mean_abs(wanted).clamp_min(_silence(n_fft))


def multi_complex_spec(
    prediction: Tensor, target: Tensor, n_ffts: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048)
) -> Tensor:
    """The mean of `complex_spec` over resolutions, `[B]`."""
    check_long_enough(prediction, max(n_ffts))
    return torch.stack([complex_spec(prediction, target, n_fft) for n_fft in n_ffts]).mean(0)


def mse_spectrogram(prediction: Tensor, target: Tensor, n_fft: int = 1024, hop_length: int = 256) -> Tensor:
    """Mean square difference of magnitudes, `mean((|P| − |T|)²)`, `[B]`."""
    check_same_shape(prediction, target)
    return distance("L2")(magnitude(prediction, n_fft, hop_length) - magnitude(target, n_fft, hop_length))


def log_spectrogram(prediction: Tensor, target: Tensor, n_fft: int = 1024, hop_length: int = 256) -> Tensor:
    """L1 of log magnitudes, `mean(| ln|P| − ln|T| |)`, magnitudes at least 1e-4, `[B]`."""
    check_same_shape(prediction, target)
    return mean_abs(log_ratio(prediction, target, n_fft, hop_length))


@shared_spectra()
def complex_stft(prediction: Tensor, target: Tensor, n_ffts: Sequence[int] = RESOLUTIONS) -> Tensor:
    """Distance of complex values, magnitude and phase together: `mean_r( mean(|P_r − T_r|) / mean(|T_r|) )`, `[B]`.

    1 for silence, about √2 for an unrelated signal of the target's spectrum. The mean magnitude counts as at least
    that of white noise at −60 dBFS. Hop a quarter of the FFT.
    """
    check_same_shape(prediction, target)
    check_long_enough(prediction, max(n_ffts))
    values = []
    for n_fft in n_ffts:
        predicted, wanted = (spectrum(signal, n_fft, n_fft // 4) for signal in (prediction, target))
        level = mean_abs(magnitude(target, n_fft, n_fft // 4))
        values.append(mean_abs(absolute(predicted - wanted)) / level.clamp_min(_silence(n_fft)))
    return torch.stack(values).mean(0)


@shared_spectra()
def phase_distance(prediction: Tensor, target: Tensor, n_ffts: Sequence[int] = RESOLUTIONS) -> Tensor:
    """Anti-wrapped distance of instantaneous phase, group delay and instantaneous frequency, `[B]`, radians.

    `mean_r( mean f(Δ) + mean f(∂_k Δ) + mean f(∂_t Δ) )`, Δ the difference of the angles, ∂_k and ∂_t its differences
    along bins and frames, `f(x) = |x − 2π round(x / 2π)|`. Ai & Ling 2023. About 3.9 for unrelated noise: π/2
    for the angles, but 1.2 for either difference, as neighbouring bins and frames have much in common. Levels play no
    part, but a bin below 1e-4 in both signals counts as equal, and one below in the prediction has no gradient. Hop a
    quarter of the FFT.
    """
    check_same_shape(prediction, target)
    check_long_enough(prediction, max(n_ffts))
    values = []
    for n_fft in n_ffts:
        sizes = n_fft, n_fft // 4
        # The differences of differences are those of this one, up to whole turns, which f does not see.
        difference = phase_difference(spectrum(prediction, *sizes), spectrum(target, *sizes))
        empty = torch.maximum(magnitude(prediction, *sizes), magnitude(target, *sizes)).detach() <= POWER_FLOOR**0.5
        difference = difference.masked_fill(empty, 0)
        anti_wrapped: Tensor = AntiWrapped.apply(difference)
        values.append(anti_wrapped)
    return torch.stack(values).mean(0)


@shared_spectra()
def loudness(prediction: Tensor, target: Tensor, sample_rate: int, n_ffts: Sequence[int] = RESOLUTIONS) -> Tensor:
    """Log-spectral error where the target is loud to the ear, `mean_r( Σ w | ln|P_r| − ln|T_r| | / Σ w )`, `[B]`.

    In nepers, with `w = A(f) max(|T_r|, noise of −60 dBFS)`, A the A-weighting of IEC 61672 as a factor of the
    amplitude; one neper is 8.7 dB. Hop a quarter of the FFT.
    """
    check_same_shape(prediction, target)
    check_long_enough(prediction, max(n_ffts))
    values = []
    for n_fft in n_ffts:
        sizes = n_fft, n_fft // 4
        weights = magnitude(target, *sizes).clamp_min(_silence(n_fft)) * _a_weights(
            sample_rate, n_fft, prediction.device, prediction.dtype
        )
        error = weights * log_ratio(prediction, target, *sizes)
        values.append(mean_abs(error) / mean_abs(weights))
    return torch.stack(values).mean(0)


@shared_spectra()
def spectral_energy(
    prediction: Tensor, target: Tensor, n_ffts: Sequence[int] = (64, 128, 256, 512, 1024, 2048)
) -> Tensor:
    """Linear L1 and log L2 per frame, `mean_r mean_t( mean_k | |P| − |T| | + rms_k( ln|P| − ln|T| ) )`, `[B]`.

    The distance inside the spectral energy distance of Gritsenko et al. 2020, per frame
    `‖|P| − |T|‖₁ + √(n_fft/2) ‖ln|P| − ln|T|‖₂`, divided by the number of bins, so that all resolutions
    count alike. Frames overlap by three quarters. Both terms are norms, which makes an energy distance built on them a
    proper scoring rule.
    """
    check_same_shape(prediction, target)
    check_long_enough(prediction, max(n_ffts))
    values = []
    for n_fft in n_ffts:
        sizes = n_fft, n_fft // 4
        linear = mean_abs(magnitude(prediction, *sizes) - magnitude(target, *sizes))
        logs = log_ratio(prediction, target, *sizes)
        values.append(linear + torch.linalg.vector_norm(logs, dim=-1).flatten(1).mean(1) / (n_fft // 2 + 1) ** 0.5)
    return torch.stack(values).mean(0)


def _silence(n_fft: int) -> float:
    """The magnitude of white noise at the level of silence under Hann's window, whose mean square is 3/8."""
    return SILENCE * (0.375 * n_fft) ** 0.5


@constant
def _a_weights(sample_rate: int, n_fft: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    frequencies = torch.tensor(fft_frequencies(sample_rate, n_fft), dtype=torch.float64)
    return (10 ** (a_weighting(frequencies) / 20)).to(device=device, dtype=dtype)


class SpectrogramLoss(Loss):
    """A loss of this room as a module.

    Args:
        reduction: "mean" over items, or "none".
        **settings: the function's, see there.
    """

    compare: Callable[..., Tensor]

    def __init__(self, *, reduction: str = "mean", **settings: Any):
        super().__init__(partial(self.compare, **settings), reduction)


class RatedSpectrogramLoss(SpectrogramLoss):
    """One whose function takes the sample rate, in Hz."""

    def __init__(self, sample_rate: int, **settings: Any):
        super().__init__(sample_rate=sample_rate, **settings)


class MelLoss(RatedSpectrogramLoss):
    """L1 of log-mel spectrograms; see `mel` for the settings."""

    compare = staticmethod(mel)


class MultiMelLoss(RatedSpectrogramLoss):
    """L1 of log-mel spectrograms of several resolutions; see `multi_mel` for the settings."""

    compare = staticmethod(multi_mel)


class LoudnessLoss(RatedSpectrogramLoss):
    """Log-spectral error weighted by loudness; see `loudness` for the settings."""

    compare = staticmethod(loudness)


class ComplexSpecLoss(SpectrogramLoss):
    """Relative L1 of magnitudes; see `complex_spec` for the settings."""

    compare = staticmethod(complex_spec)


class MultiComplexSpecLoss(SpectrogramLoss):
    """Relative L1 of magnitudes of seven resolutions; see `multi_complex_spec` for the settings."""

    compare = staticmethod(multi_complex_spec)


class MSESpectrogramLoss(SpectrogramLoss):
    """Mean square difference of magnitudes; see `mse_spectrogram` for the settings."""

    compare = staticmethod(mse_spectrogram)


class LogSpectrogramLoss(SpectrogramLoss):
    """L1 of log magnitudes; see `log_spectrogram` for the settings."""

    compare = staticmethod(log_spectrogram)


class ComplexSTFTLoss(SpectrogramLoss):
    """Relative distance of complex spectra; see `complex_stft` for the settings."""

    compare = staticmethod(complex_stft)


class PhaseLoss(SpectrogramLoss):
    """Anti-wrapped phase distance; see `phase_distance` for the settings."""

    compare = staticmethod(phase_distance)


class SpectralEnergyLoss(SpectrogramLoss):
    """Linear L1 and log L2 of magnitudes; see `spectral_energy` for the settings."""

    compare = staticmethod(spectral_energy)


ENTRIES = {
    "mel": entry("L1 of log-mel spectrograms", MelLoss, True, distance=True),
    "multi_mel": entry("L1 of log-mel spectrograms of three resolutions", MultiMelLoss, True, distance=True),
    "complex_spec": entry("L1 of magnitudes relative to the target's mean", ComplexSpecLoss),
    "multi_complex_spec": entry("relative L1 of magnitudes, FFT 32 to 2048", MultiComplexSpecLoss),
    "mse_spectrogram": entry("mean square difference of magnitudes", MSESpectrogramLoss),
    "log_spectrogram": entry("L1 of log magnitudes", LogSpectrogramLoss, distance=True),
    "complex_stft": entry("distance of complex spectra: magnitude and phase", ComplexSTFTLoss),
    "phase": entry("anti-wrapped phase, group delay and instantaneous frequency", PhaseLoss),
    "loudness": entry("log-spectral error where the target is loud to the ear", LoudnessLoss, True),
    "spectral_energy": entry("linear L1 + log L2 of magnitudes, FFT 64 to 2048", SpectralEnergyLoss, distance=True),
}
