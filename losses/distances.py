"""Distances of two spectrograms `[B, C, bins, frames]`, the prediction's and the target's, as one value per item."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.transport import check_same_spectrogram, spectral_optimal_transport

__all__ = ["l1", "l2", "spectral_convergence", "spectral_optimal_transport"]


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """`mean(|P − T|)` over channels, bins and frames, `[B]`."""
    check_same_spectrogram(prediction, target)
    return (prediction - target).abs().flatten(1).mean(1)


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """`mean((P − T)²)` over channels, bins and frames, `[B]`."""
    check_same_spectrogram(prediction, target)
    return (prediction - target).square().flatten(1).mean(1)


def spectral_convergence(prediction: Tensor, target: Tensor, floor: float = 0.01) -> Tensor:
    """`‖T − P‖_F / ‖T‖_F` of each channel, mean over channels, `[B]` (Arık et al. 2018).

    Of a silent target it would be without bounds, so the root mean square of T counts as at least `floor`, in units
    of the spectrogram: for magnitudes of an FFT of 1024 and Hann's window 0.01 is white noise at −66 dBFS. Else as
    `korvax.loss.spectral_convergence_loss`.
    """
    check_same_spectrogram(prediction, target)
    error = torch.linalg.vector_norm((target - prediction).flatten(2), dim=2)
    whole = torch.linalg.vector_norm(target.flatten(2), dim=2)
    return (error / whole.clamp_min(floor * target[0, 0].numel() ** 0.5)).mean(1)
