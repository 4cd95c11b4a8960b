"""Spectral optimal transport: how far the energy of one spectrum must be moved to become that of another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.base import FunctionLoss, full_precision
from losses.dsp.stft import Window, check_long_enough
from losses.dsp.transforms import STFT
from losses.registry import register
from losses.time_frequency import check_same_spectrogram, time_frequency_loss

FFT_SIZES = (512, 1024, 2048)
HOP_LENGTHS = (128, 256, 512)


def spectral_optimal_transport(
    prediction: Tensor,
    target: Tensor,
    positions: Tensor | None = None,
    p: float = 2,
    normalize: bool = True,
    balanced: bool = True,
    quantile_lowpass: bool = False,
) -> Tensor:
    """The Wasserstein distance of two spectra to the power p, `∫ |F_P⁻¹(q) − F_T⁻¹(q)|^p dq`, mean over frames.

    F⁻¹(q) is the position below which a share q of the frame's sum lies. One value per item, `[B]`, the mean over
    channels and frames, in units of the positions to the power p. Follows Torres et al. 2024, `sot-loss` and
    `korvax.loss.spectral_optimal_transport_loss`.

    Args:
        prediction: spectrogram `[B, C, frames, bins]`, nowhere negative.
        target: as the prediction.
        positions: rising positions of the bins, `[bins]`; default 0, 1/bins, … below 1.
        p: order of the distance, at least 1.
        normalize: the prediction's spectra are divided by their sums.
        balanced: scale the target's spectra to the prediction's sums. Without it, `normalize` divides the target by
            the prediction's sums, which is unbounded where the prediction is silent, and the surplus of one spectrum
            is compared with the other's last position.
        quantile_lowpass: omit quantiles above 1, which occur in unbalanced spectra.

    Raises:
        ValueError: shapes differ, the positions are not one per bin, or p is below 1.
    """
    check_same_spectrogram(prediction, target)
    bins = prediction.shape[-1]
    if p < 1:
        raise ValueError(f"p must be at least 1, got {p}")
    if positions is None:
        positions = torch.arange(bins, device=prediction.device, dtype=prediction.dtype) / bins
    if positions.shape != (bins,):
        raise ValueError(f"positions must be [{bins}], one per bin, got {list(positions.shape)}")
    positions = positions.to(prediction)

    predicted, wanted = prediction, target
    eps = torch.finfo(prediction.dtype).eps
    mass, wanted_mass = (spectra.sum(-1, keepdim=True) + eps for spectra in (predicted, wanted))
    if balanced:
        wanted = wanted / wanted_mass if normalize else wanted * (mass / wanted_mass)
    elif normalize:
        wanted = wanted / mass
    predicted = predicted / mass if normalize else predicted

    # In float64: in float32 different sums often coincide, and their order, which the gradient depends on, is lost.
    ours, theirs = (spectra.cumsum(-1, dtype=torch.float64) for spectra in (predicted, wanted))
    settings = positions, p, quantile_lowpass
    cost = _cost(ours, theirs, *settings) + _cost(theirs, ours, *settings, second=True)
    return cost.flatten(1).mean(1).to(prediction.dtype)


def _cost(own: Tensor, other: Tensor, positions: Tensor, p: float, lowpass: bool, second: bool = False) -> Tensor:
    """The part of the integral over the steps that end at a value of `own`; both are cumulative spectra `[..., bins]`.

    Of equal values the second spectrum's come second and end no step. Merging by rank avoids a sort and tensors of
    twice the length.
    """
    rank = torch.searchsorted(other.detach(), own.detach(), right=second)  # number of the other's values before it
    before, other_before = F.pad(own[..., :-1], (1, 0)), F.pad(other, (1, 0)).gather(-1, rank)
    later = before > other_before if second else before >= other_before
    width = own - torch.where(later, before, other_before)
    ends_none = own > 1 if lowpass else torch.zeros_like(later)
    if second:
        ends_none = ends_none | (own == other_before)
    there = positions.expand_as(own).gather(-1, rank.clamp_max(len(positions) - 1))
    distance = (positions - there).abs()
    return (width.masked_fill(ends_none, 0) * (distance if p == 1 else distance.pow(p))).sum(-1)


@register("spectral_optimal_transport", group="spectral")
@full_precision
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
    """How far energy must be moved along the frequencies.

    Formula: per frame `∫ (F_P⁻¹(q) − F_T⁻¹(q))² dq`, flat-top windows of 512, 1024, 2048, hop a quarter, summed.
    Use: pitch that is far off: its gradient reaches far. Indifferent to levels, so beside another loss.

    F⁻¹(q) is the frequency (0 to 1, half the sample rate) below which a share q of the frame's sum lies: the value is
    in squares of that (for p = 2) and at most the number of resolutions. Torres et al. 2024; sizes, window and the sum
    are the defaults of `sot-loss`'s `MultiResolutionSOTLoss`, except that magnitudes are at least 1e-4 here, so that a
    silent frame has a flat spectrum and no gradient.

    Args:
        prediction: `[B, C, N]`.
        target: as the prediction.
        fft_sizes: transform and window sizes, samples.
        hop_lengths: as many, samples.
        window: as in `losses.dsp.stft.Resolution`.
        p, normalize, balanced, quantile_lowpass: as in `spectral_optimal_transport`.

    Raises:
        ValueError: shapes differ, sizes differ in number, or fewer than `max(fft_sizes) // 2 + 1` samples.
    """
    if len(fft_sizes) != len(hop_lengths):
        raise ValueError(f"each FFT size needs a hop: {len(fft_sizes)} sizes and {len(hop_lengths)} hops do not fit")
    check_long_enough(prediction, max(fft_sizes))
    values = []
    for n_fft, hop in zip(fft_sizes, hop_lengths, strict=True):
        positions = torch.linspace(0, 1, n_fft // 2 + 1, device=prediction.device, dtype=prediction.dtype)
        distance = partial(
            spectral_optimal_transport,
            positions=positions,
            p=p,
            normalize=normalize,
            balanced=balanced,
            quantile_lowpass=quantile_lowpass,
        )
        values.append(time_frequency_loss(prediction, target, STFT(n_fft, hop, window=window, power=1), distance))
    return sum(values[1:], values[0])


class SpectralOptimalTransportLoss(FunctionLoss):
    """Spectral optimal transport at several resolutions; see `multi_resolution_transport`."""

    compare = staticmethod(multi_resolution_transport)

    def __init__(
        self,
        fft_sizes: Sequence[int] = FFT_SIZES,
        hop_lengths: Sequence[int] = HOP_LENGTHS,
        *,
        window: Window = "flattop",
        p: float = 2,
        normalize: bool = True,
        balanced: bool = True,
        quantile_lowpass: bool = False,
        reduction: str = "mean",
    ):
        super().__init__(
            fft_sizes=fft_sizes,
            hop_lengths=hop_lengths,
            window=window,
            p=p,
            normalize=normalize,
            balanced=balanced,
            quantile_lowpass=quantile_lowpass,
            reduction=reduction,
        )
