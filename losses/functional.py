"""The losses as pure functions of `(prediction, target)`, both `[B, C, N]`; each returns one value per item, `[B]`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from losses.base import check_same_shape
from losses.spectra import mel_filters, stft_magnitude

FFT_SIZES = (512, 1024, 2048)
HOP_SIZES = (128, 256, 512)
SILENCE = (
    1e-3  # −60 dBFS: spectral convergence is relative to at least this level, or silent targets would outweigh all
)


def spectral(
    prediction: Tensor,
    target: Tensor,
    fft_sizes: Sequence[int] = FFT_SIZES,
    hop_sizes: Sequence[int] = HOP_SIZES,
    win_lengths: Sequence[int] = FFT_SIZES,
) -> Tensor:
    """Multi-resolution STFT loss: spectral convergence plus L1 of log magnitudes, mean over resolutions.

    `mean_r( ‖|T_r| − |P_r|‖_F / ‖|T_r|‖_F + mean(| ln|P_r| − ln|T_r| |) )`, Hann windows, norms over one item's
    channels, bins and frames; sizes in samples. Follows Yamamoto et al. 2020 (Parallel WaveGAN), but for two things:
    their norms are over the whole batch, and here ‖|T_r|‖ counts as at least that of white noise at −60 dBFS.

    Raises:
        ValueError: shapes differ, or fewer than `max(fft_sizes) // 2 + 1` samples.
    """
    check_same_shape(prediction, target)
    total = prediction.new_zeros(len(prediction))
    for n_fft, hop, win in zip(fft_sizes, hop_sizes, win_lengths, strict=True):
        predicted = stft_magnitude(prediction, n_fft, hop, win)
        wanted = stft_magnitude(target, n_fft, hop, win)
        error = torch.linalg.vector_norm((wanted - predicted).flatten(1), dim=1)
        # The norm that white noise of level SILENCE has: E|X|² = σ² Σ w², and 3/8 is the mean square of Hann's window.
        floor = SILENCE * (0.375 * win * wanted[0].numel()) ** 0.5
        convergence = error / torch.linalg.vector_norm(wanted.flatten(1), dim=1).clamp_min(floor)
        total = total + convergence + (predicted.log() - wanted.log()).abs().flatten(1).mean(1)
    return total / len(fft_sizes)


def mel(
    prediction: Tensor,
    target: Tensor,
    sample_rate: int,
    n_fft: int = 1024,
    hop_length: int = 256,
    n_mels: int = 80,
    f_min: float = 0.0,
    f_max: float = 8000.0,
) -> Tensor:
    """L1 of log-mel spectrograms, `mean(| ln max(M|P|, 1e-5) − ln max(M|T|, 1e-5) |)`, M the Slaney mel filters.

    Frequencies in Hz, `f_max` at most half the sample rate; sizes in samples. Parameters of Kong et al. 2020
    (HiFi-GAN) at 24 kHz.

    Raises:
        ValueError: shapes differ, or fewer than `n_fft // 2 + 1` samples.
    """
    check_same_shape(prediction, target)
    f_max = min(f_max, sample_rate / 2)
    filters = mel_filters(sample_rate, n_fft, n_mels, f_min, f_max, prediction.device, prediction.dtype)
    predicted, wanted = (
        (filters @ stft_magnitude(signal, n_fft, hop_length, n_fft)).clamp_min(1e-5).log()
        for signal in (prediction, target)
    )
    return (predicted - wanted).abs().flatten(1).mean(1)
