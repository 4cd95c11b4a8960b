"""The general spectral loss: a transform, a scale and a distance, or several of the last two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from losses.base import Loss, check_same_shape
from losses.transport import check_same_spectrogram, spectral_optimal_transport

__all__ = [
    "TimeFrequencyLoss",
    "l1",
    "l2",
    "spectral_convergence",
    "spectral_optimal_transport",
    "time_frequency_loss",
]

Transform = Callable[[Tensor], Tensor]  # [B, C, N] to [B, C, bins, frames]; see losses.dsp.transforms
Scale = Callable[[Tensor], Tensor]  # [B, C, bins, frames] to as many frames of as many or other bins: losses.dsp.scales
Distance = Callable[[Tensor, Tensor], Tensor]  # two [B, C, bins, frames] to [B]; see below


def time_frequency_loss(
    prediction: Tensor,
    target: Tensor,
    transform: Transform,
    distance: Distance | Sequence[Distance],
    scale: Scale | Sequence[Scale] | None = None,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """`Σ_i weight_i distance_i(scale_i(transform(prediction)), scale_i(transform(target)))`, one value per item, `[B]`.

    As `korvax.loss.time_frequency_loss` of each item.

    Args:
        prediction: `[B, C, N]`.
        target: as the prediction.
        transform: signal to spectrogram `[B, C, bins, frames]`; computed once for all distances.
        distance: one, or several.
        scale: what is applied to both spectrograms before the distance, as many as there are distances; default none.
        weights: one for each distance; default 1 over their number.

    Raises:
        ValueError: shapes differ, or distances, scales and weights differ in number.
    """
    check_same_shape(prediction, target)
    terms = _terms(distance, scale, weights)
    predicted, wanted = transform(prediction), transform(target)
    total = prediction.new_zeros(len(prediction))
    for one_distance, one_scale, weight in terms:
        if one_scale is None:
            total = total + weight * one_distance(predicted, wanted)
        else:
            total = total + weight * one_distance(one_scale(predicted), one_scale(wanted))
    return total


def _terms(
    distance: Distance | Sequence[Distance],
    scale: Scale | Sequence[Scale] | None,
    weights: Sequence[float] | None,
) -> list[tuple[Distance, Scale | None, float]]:
    distances = [distance] if callable(distance) else list(distance)
    if not distances:
        raise ValueError("at least one distance is needed")
    scales = [scale] if callable(scale) else [None] * len(distances) if scale is None else list(scale)
    shares = [1 / len(distances)] * len(distances) if weights is None else list(weights)
    if not len(distances) == len(scales) == len(shares):
        raise ValueError(
            "each distance needs one scale and one weight: "
            f"{len(distances)} distances, {len(scales)} scales and {len(shares)} weights do not fit"
        )
    return list(zip(distances, scales, shares, strict=True))


class TimeFrequencyLoss(Loss):
    """`time_frequency_loss` as a module. Those of its parts that are modules themselves are moved and saved with it."""

    def __init__(
        self,
        transform: Transform,
        distance: Distance | Sequence[Distance],
        scale: Scale | Sequence[Scale] | None = None,
        weights: Sequence[float] | None = None,
        reduction: str = "mean",
    ):
        terms = _terms(distance, scale, weights)
        function = partial(time_frequency_loss, transform=transform, distance=distance, scale=scale, weights=weights)
        super().__init__(function, reduction)
        parts = [transform, *(part for term in terms for part in term[:2])]
        self.parts = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))


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
