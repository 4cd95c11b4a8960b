"""Spectral optimal transport: how far the energy of one spectrum must be moved to become the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.base import Entry, Loss, check_same_shape
from losses.spectra import Window, magnitude

FFT_SIZES = (512, 1024, 2048)
HOP_LENGTHS = (128, 256, 512)


def check_same_spectrogram(prediction: Tensor, target: Tensor) -> None:
    """Raises ValueError, with both shapes, unless both are `[B, C, bins, frames]` and equal in shape."""
    if prediction.shape != target.shape or prediction.dim() != 4:
        raise ValueError(
            "two spectrograms must both be [B, C, bins, frames] and equal in shape, got "
            f"{list(prediction.shape)} and {list(target.shape)}"
        )


def spectral_optimal_transport(
    prediction: Tensor,
    target: Tensor,
    positions: Tensor | None = None,
    p: float = 2,
    normalize: bool = True,
    balanced: bool = True,
    quantile_lowpass: bool = False,
) -> Tensor:
    """The Wasserstein distance of each two spectra to the power p, `∫ |F_P⁻¹(q) − F_T⁻¹(q)|^p dq`.

    F⁻¹(q) is the position below which a share q of the frame's sum lies; mean over channels and frames. One value per item, `[B]`, in units of the
    positions to the power p. Follows Torres et al. 2024, `sot-loss` and `korvax.loss.spectral_optimal_transport_loss`.

    Args:
        prediction: spectrogram `[B, C, bins, frames]`, nowhere negative.
        target: as the prediction.
        positions: rising positions of the bins, `[bins]`; default 0, 1/bins, … below 1.
        p: order of the distance, at least 1.
        normalize: the prediction's spectra are divided by their sums.
        balanced: the target's sums are made those of the prediction. If not, and `normalize`, the target is divided by
            the prediction's sums, which is without bounds where the prediction is silent. What one spectrum has more
            of than the other is compared with the other's last position.
        quantile_lowpass: leaves out quantiles above 1, which unbalanced spectra have.

    Raises:
        ValueError: shapes differ, the positions are not one per bin, or p is below 1.
    """
    check_same_spectrogram(prediction, target)
    bins = prediction.shape[-2]
    if p < 1:
        raise ValueError(f"p must be at least 1, got {p}")
    if positions is None:
        positions = torch.arange(bins, device=prediction.device, dtype=prediction.dtype) / bins
    if positions.shape != (bins,):
        raise ValueError(f"positions must be [{bins}], one per bin, got {list(positions.shape)}")
    positions = positions.to(prediction)

    predicted, wanted = prediction.transpose(-1, -2), target.transpose(-1, -2)
    eps = torch.finfo(prediction.dtype).eps
    mass, wanted_mass = (spectra.sum(-1, keepdim=True) + eps for spectra in (predicted, wanted))
    if balanced:
        wanted = wanted / wanted_mass if normalize else wanted * (mass / wanted_mass)
    elif normalize:
        wanted = wanted / mass
    predicted = predicted / mass if normalize else predicted

    ours, theirs = predicted.cumsum(-1).contiguous(), wanted.cumsum(-1).contiguous()
    settings = positions, p, quantile_lowpass
    cost = _cost(ours, theirs, *settings) + _cost(theirs, ours, *settings, second=True)
    return cost.flatten(1).mean(1)


def _cost(own: Tensor, other: Tensor, positions: Tensor, p: float, lowpass: bool, second: bool = False) -> Tensor:
    """The part of the integral whose steps end at a value of `own`; both are cumulative spectra `[..., bins]`.

    Merging the two by rank needs neither the sort nor the doubled length of the textbook's way. A step that ends at
    a value of both belongs to the first.
    """
    last = len(positions) - 1
    below = torch.searchsorted(other.detach(), own.detach())  # how many of the other's values lie below each
    start = torch.maximum(F.pad(own[..., :-1], (1, 0)), F.pad(other, (1, 0)).gather(-1, below))
    width = own - start
    there = below.clamp_max(last)
    if second:
        width = width.masked_fill((other.gather(-1, there) == own).detach(), 0)
    if lowpass:
        width = width.masked_fill(own > 1, 0)
    # A bin without energy repeats the value before it, whose position is the quantile's.
    index = torch.arange(last + 1, device=own.device)
    rises = F.pad(own[..., 1:] > own[..., :-1], (1, 0), value=True)
    here = torch.where(rises, index, 0).cummax(-1).values
    distance = (positions[here] - positions[there]).abs()
    return (width * (distance if p == 1 else distance.pow(p))).sum(-1)


def multi_resolution_transport(
    prediction: Tensor,
    target: Tensor,
    fft_sizes: Sequence[int] = FFT_SIZES,
    hop_lengths: Sequence[int] = HOP_LENGTHS,
    window: Window = "flattop",
    p: float = 2,
    normalize: bool = True,
    balanced: bool = True,
    quantile_lowpass: bool = False,
) -> Tensor:
    """`spectral_optimal_transport` of STFT magnitudes, summed over resolutions, `[B]`.

    Positions are frequencies from 0 to 1, half the sample rate: the value is in squares of that (of p = 2) and at most
    the number of resolutions. The level of a frame does not matter, only how its energy is spread, so this loss needs
    another one beside it. Sizes, window and the sum are the defaults of `sot-loss`'s `MultiResolutionSOTLoss`; only
    magnitudes are at least 1e-4 here, so that a silent frame has a flat spectrum and no gradient.

    Args:
        prediction: `[B, C, N]`.
        target: as the prediction.
        fft_sizes: transform and window sizes, samples.
        hop_lengths: as many, samples.
        window: as in `losses.spectra.spectrum`.
        p, normalize, balanced, quantile_lowpass: as in `spectral_optimal_transport`.

    Raises:
        ValueError: shapes differ, sizes differ in number, or fewer than `max(fft_sizes) // 2 + 1` samples.
    """
    check_same_shape(prediction, target)
    if len(fft_sizes) != len(hop_lengths):
        raise ValueError(f"each FFT size needs a hop: {len(fft_sizes)} sizes and {len(hop_lengths)} hops do not fit")
    total = prediction.new_zeros(len(prediction))
    for n_fft, hop in zip(fft_sizes, hop_lengths, strict=True):
        predicted, wanted = (
            magnitude(signal, n_fft, hop, window=window).transpose(-1, -2) for signal in (prediction, target)
        )
        positions = torch.linspace(0, 1, n_fft // 2 + 1, device=prediction.device, dtype=prediction.dtype)
        total = total + spectral_optimal_transport(
            predicted, wanted, positions, p, normalize, balanced, quantile_lowpass
        )
    return total


class SpectralOptimalTransportLoss(Loss):
    """Spectral optimal transport at several resolutions; see `multi_resolution_transport`."""

    def __init__(
        self,
        fft_sizes: Sequence[int] = FFT_SIZES,
        hop_lengths: Sequence[int] = HOP_LENGTHS,
        window: Window = "flattop",
        p: float = 2,
        normalize: bool = True,
        balanced: bool = True,
        quantile_lowpass: bool = False,
        reduction: str = "mean",
    ):
        function = partial(
            multi_resolution_transport,
            fft_sizes=fft_sizes,
            hop_lengths=hop_lengths,
            window=window,
            p=p,
            normalize=normalize,
            balanced=balanced,
            quantile_lowpass=quantile_lowpass,
        )
        super().__init__(function, reduction)


ENTRIES = {
    "spectral_optimal_transport": Entry(
        "how far energy must be moved along the frequencies",
        lambda sample_rate, **options: SpectralOptimalTransportLoss(**options, reduction="none"),
    )
}
