"""Spectral distances of what can be heard: loudness in bands of hearing, and log-mel above a floor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from losses.base import FunctionLoss, full_precision
from losses.dsp.scales import Log, SpecificLoudness
from losses.dsp.stft import check_long_enough
from losses.dsp.transforms import ERB, Mel
from losses.registry import register
from losses.time_frequency import l1, time_frequency_loss

FLOOR_DB = -75.0  # of `floored_mel`, dB of full scale


@register("audible_energy", group="spectral", distance=True)
@full_precision
def audible_energy(
    prediction: Tensor, target: Tensor, sample_rate: int, n_ffts: Sequence[int] = (512, 1024, 2048)
) -> Tensor:
    """L1 of loudness in bands of hearing, above what can be heard.

    Formula: mean over FFT 512, 1024, 2048, hop a quarter, and frames of
      `Σ_b |N_b(P) − N_b(T)|`, `N_b = 0.047 ((W_b + F_b)^0.2 − F_b^0.2)`,
      W the A-weighted power of band b, one ERB wide, F the threshold of hearing plus the item's own power less 65 dB.
    Use: the distance of an energy distance that counts what a listener hears; sone.

    Powers are summed over bands one equivalent rectangular bandwidth apart (Glasberg & Moore 1990), or one bin where
    that is more, A-weighted (IEC 61672-1), and turned into loudness (Moore, Glasberg & Baer 1997): see
    `losses.dsp.scales.SpecificLoudness`. The threshold in quiet is Terhardt's (1979), for a sine of full scale played
    at 90 dB SPL, so that music of −20 dBFS sounds at 73 dB.

    Each signal is compressed with the floor of its own loudness, the same in whatever pair it is compared. So this is
    the L1 distance between two functions, each of one signal alone, and of negative type, which makes an energy
    distance built on it a proper scoring rule.

    Args:
        prediction: `[B, C, N]`, full scale ±1.
        target: as the prediction.
        sample_rate: Hz.
        n_ffts: transform sizes, samples.

    Raises:
        ValueError: shapes differ, or fewer than `max(n_ffts) // 2 + 1` samples.
    """
    check_long_enough(prediction, max(n_ffts))

    def compare(n_fft: int) -> Tensor:
        transform = ERB(n_fft, sample_rate=sample_rate)
        scale = SpecificLoudness(transform.frequencies, full_scale_power(n_fft))
        return time_frequency_loss(prediction, target, transform, l1, scale, [len(transform.frequencies)])

    return torch.stack([compare(n_fft) for n_fft in n_ffts]).mean(0)


@register("floored_mel", group="spectral", distance=True)
@full_precision
def floored_mel(
    prediction: Tensor, target: Tensor, sample_rate: int, n_fft: int = 1024, hop_length: int = 256, n_mels: int = 80
) -> Tensor:
    """L1 of log-mel powers above a floor of −75 dBFS.

    Formula: `mean(|½ ln(M P² + f) − ½ ln(M T² + f)|)`, M 80 mel bands up to half the sample rate, FFT 1024, hop 256,
      f −75 dB of full scale.
    Use: as `mel`, deaf to what is too quiet to matter; nepers of 8.7 dB.

    The bands are sums of bins (triangles of height 1 on Slaney's scale), so that a sine of amplitude 1 has about 0 dB.
    The floor of `mel`, 1e-5 in bands of unit area, lies between −105 and −120 dB on the same scale at 24 kHz.

    Raises:
        ValueError: shapes differ, or fewer than `n_fft // 2 + 1` samples.
    """
    transform = Mel(n_fft, hop_length, sample_rate=sample_rate, n_mels=n_mels, unit_area=False)
    floor = full_scale_power(n_fft) * 10 ** (FLOOR_DB / 10)
    return time_frequency_loss(prediction, target, transform, l1, Log(offset=floor), [0.5])


def full_scale_power(n_fft: int) -> float:
    """The power of a sine of amplitude 1 under Hann's window, summed over an FFT's bins: `n_fft / 4 · Σ w²`."""
    return 3 * n_fft**2 / 32


class AudibleEnergyLoss(FunctionLoss):
    """L1 of loudness in bands of hearing; see `audible_energy` for the settings."""

    compare = staticmethod(audible_energy)

    def __init__(self, sample_rate: int, n_ffts: Sequence[int] = (512, 1024, 2048), *, reduction: str = "mean"):
        super().__init__(sample_rate=sample_rate, n_ffts=n_ffts, reduction=reduction)


class FlooredMelLoss(FunctionLoss):
    """L1 of log-mel powers above a floor; see `floored_mel` for the settings."""

    compare = staticmethod(floored_mel)

    def __init__(
        self, sample_rate: int, n_fft: int = 1024, *, hop_length: int = 256, n_mels: int = 80, reduction: str = "mean"
    ):
        super().__init__(
            sample_rate=sample_rate, n_fft=n_fft, hop_length=hop_length, n_mels=n_mels, reduction=reduction
        )
