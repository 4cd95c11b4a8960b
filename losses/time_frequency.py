"""The general spectral loss, a transform × a scale × a distance, and the distances; the spectral losses are made of it.

A spectrogram is `[B, C, frames, bins]`. Transforms are in `losses.dsp.transforms`, scales in `losses.dsp.scales`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from losses.base import Loss, full_precision
from losses.dsp.norms import item_mean, mean_abs, norm_along_bins, row_norm
from losses.dsp.scales import difference

Transform = Callable[[Tensor], Tensor]  # a signal [B, C, N] to a spectrogram
Scale = Callable[[Tensor], Tensor]  # a spectrogram to one of as many frames
Distance = Callable[[Tensor, Tensor], Tensor]  # two spectrograms to one value per item, [B]


def check_same_spectrogram(prediction: Tensor, target: Tensor) -> None:
    """Raises ValueError, naming both shapes, unless both are `[B, C, frames, bins]` and equal in shape."""
    if prediction.shape != target.shape or prediction.dim() != 4:
        raise ValueError(
            "two spectrograms must both be [B, C, frames, bins] and equal in shape, got "
            f"{list(prediction.shape)} and {list(target.shape)}"
        )


@dataclass(frozen=True)
class Norm:
    """A norm of `P − T`. A scale that can give the difference of two spectrograms at once is asked for that.

    Attributes:
        of: the norm of one spectrogram, or of the difference of two; sums along the bins first keep float32 exact to
            1e-6.
    """

    of: Callable[[Tensor, Tensor | None], Tensor]

    def __call__(self, prediction: Tensor, target: Tensor, scale: Scale | None = None) -> Tensor:
        check_same_spectrogram(prediction, target)
        if scale is None:
            return self.of(prediction, target)
        return self.of(difference(prediction, target, scale), None)


def _mean_square(values: Tensor, other: Tensor | None) -> Tensor:
    return item_mean((values if other is None else values - other).square())


def _mean_frame_rms(values: Tensor, other: Tensor | None) -> Tensor:
    return norm_along_bins(values, other).flatten(1).mean(1) / values.shape[-1] ** 0.5


l1 = Norm(mean_abs)
"""`mean(|P − T|)` over channels, bins and frames, `[B]`."""

l2 = Norm(_mean_square)
"""`mean((P − T)²)` over channels, bins and frames, `[B]`."""

frame_rms = Norm(_mean_frame_rms)
"""`mean_frames( sqrt(mean_bins((P − T)²)) )`, `[B]`."""


def spectral_convergence(
    prediction: Tensor, target: Tensor, floor: float | Tensor = 0.01, batch: bool = False
) -> Tensor:
    """Spectral convergence `‖T − P‖_F / ‖T‖_F` of an item (Arık et al. 2018), `[B]`.

    It would be unbounded for a silent target, so the root mean square of T counts as at least `floor`, in units of the
    spectrogram: for magnitudes of an FFT of 1024 and Hann's window 0.01 is white noise at −66 dBFS.

    Args:
        prediction: `[B, C, frames, bins]`.
        target: as the prediction.
        floor: a number, or a tensor with the least norm that T counts as.
        batch: norms over the whole batch, the same value for each item.
    """
    check_same_spectrogram(prediction, target)
    error, reference = _frobenius(prediction, target), _frobenius(target)
    least = floor if isinstance(floor, Tensor) else error.new_tensor(floor * target[0].numel() ** 0.5)
    if batch:
        error = norm_along_bins(error).expand(len(error))
        reference = norm_along_bins(reference).expand(len(reference))
        least = least * len(reference) ** 0.5
    return error / torch.maximum(reference, least)


def relative_l1(prediction: Tensor, target: Tensor, floor: float) -> Tensor:
    """`mean(|P − T|) / mean(T)` of magnitudes, `[B]`; mean(T) counts as at least `floor`."""
    return l1(prediction, target) / item_mean(target).clamp_min(floor)


@full_precision
def time_frequency_loss(
    prediction: Tensor,
    target: Tensor,
    transform: Transform,
    distance: Distance | Sequence[Distance],
    scale: Scale | Sequence[Scale | None] | None = None,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """`Σ_i weight_i distance_i(scale_i(transform(prediction)), scale_i(transform(target)))`, one value per item, `[B]`.

    As `korvax.loss.time_frequency_loss` of each item.

    Args:
        prediction: `[B, C, N]`.
        target: as the prediction.
        transform: signal to spectrogram; computed once for all distances.
        distance: one, or several.
        scale: applied to both spectrograms before the distance, one for each distance; None for none.
        weights: one for each distance; default 1 over their number.

    Raises:
        ValueError: shapes differ, or distances, scales and weights differ in number.
    """
    terms = _terms(distance, scale, weights)
    predicted, wanted = transform(prediction), transform(target)
    values = [weight * _compared(predicted, wanted, one, of) for one, of, weight in terms]
    return sum(values[1:], values[0])


def _compared(predicted: Tensor, wanted: Tensor, distance: Distance, scale: Scale | None) -> Tensor:
    if isinstance(distance, Norm):
        return distance(predicted, wanted, scale)
    return distance(predicted, wanted) if scale is None else distance(scale(predicted), scale(wanted))


def _terms(
    distance: Distance | Sequence[Distance],
    scale: Scale | Sequence[Scale | None] | None,
    weights: Sequence[float] | None,
) -> list[tuple[Distance, Scale | None, float]]:
    distances = [distance] if callable(distance) else list(distance)
    if not distances:
        raise ValueError("at least one distance is needed")
    scales = [scale] if callable(scale) else [None] * len(distances) if scale is None else list(scale)
    shares = [1 / len(distances)] * len(distances) if weights is None else list(weights)
    if not len(distances) == len(scales) == len(shares):
        raise ValueError(
            "each distance needs one scale and one weight: got "
            f"{len(distances)} distances, {len(scales)} scales and {len(shares)} weights"
        )
    return list(zip(distances, scales, shares, strict=True))


def _frobenius(values: Tensor, other: Tensor | None = None) -> Tensor:
    """Norm of an item of the values, or of `values − other`, `[B, …]` to `[B]`; its gradient at 0 is 0."""
    return row_norm(norm_along_bins(values, other).flatten(1))


class TimeFrequencyLoss(Loss):
    """`time_frequency_loss` as a module. Those of its parts that are modules themselves are moved and saved with it."""

    def __init__(
        self,
        transform: Transform,
        distance: Distance | Sequence[Distance],
        scale: Scale | Sequence[Scale | None] | None = None,
        weights: Sequence[float] | None = None,
        reduction: str = "mean",
    ):
        terms = _terms(distance, scale, weights)
        function = partial(time_frequency_loss, transform=transform, distance=distance, scale=scale, weights=weights)
        super().__init__(function, reduction)
        parts = [transform, *(part for term in terms for part in term[:2])]
        self.parts = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))
