"""Mel and ERB filter banks, and their product with a spectrogram."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from losses.dsp import plain
from losses.dsp.compilation import constant, constant_tensor, plain_only

FILTERS_AT_ONCE = 16
ERB_HZ, ERB_SLOPE = 24.7, 4.37e-3  # Glasberg & Moore 1990: ERB(f) = 24.7 Hz (1 + 4.37e-3 f / Hz)
MEL_BREAK, MEL_HZ, MEL_RATIO = 15.0, 200 / 3, 6.4 ** (1 / 27)  # Slaney: 66.7 Hz a mel below 1 kHz, then exponential


@constant_tensor
def mel_filters(
    sample_rate: int,
    n_fft: int,
    n_mels: int,
    f_min: float,
    f_max: float | None,
    unit_area: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Mel filter bank `[n_mels, n_fft // 2 + 1]`: Slaney's scale, triangles of unit area in Hz (librosa's default).

    Without `unit_area` they are triangles of height 1 (librosa's `norm=None`), so that a band is the sum of its bins.
    Frequencies in Hz; `f_max` None is half the sample rate. Warns of filters that contain no bin, with sizes that avoid
    it.

    Raises:
        ValueError: no band between `f_min` and `f_max`, or `f_max` above half the sample rate.
    """
    f_max = sample_rate / 2 if f_max is None else f_max
    if not 0 <= f_min < f_max <= sample_rate / 2:
        raise ValueError(
            f"mel bands from {f_min:g} to {f_max:g} Hz: must be rising and within 0 to {sample_rate / 2:g} Hz"
        )
    bank = _mel_triangles(sample_rate, n_fft, n_mels, f_min, f_max, unit_area)
    empty = int((bank.max(axis=1) == 0).sum())
    if empty:
        longer = n_fft
        while _any_empty(sample_rate, longer, n_mels, f_min, f_max):
            longer *= 2
        fewer = n_mels - 1
        while fewer > 1 and _any_empty(sample_rate, n_fft, fewer, f_min, f_max):
            fewer -= 1
        warnings.warn(
            f"{empty} of {n_mels} mel filters contain no bin of an FFT of {n_fft} at {sample_rate} Hz and are always "
            f"0; use n_fft={longer} or n_mels={fewer}",
            stacklevel=2,
        )
    return torch.from_numpy(bank).to(device=device, dtype=dtype)


def mel_spectrogram(
    magnitudes: Tensor,
    sample_rate: int,
    n_fft: int,
    n_mels: int,
    f_min: float = 0.0,
    f_max: float | None = None,
    unit_area: bool = True,
) -> Tensor:
    """The mel filters applied to `[…, frames, n_fft // 2 + 1]`: `[…, frames, n_mels]`; see `mel_filters`."""
    settings = sample_rate, n_fft, n_mels, f_min, f_max
    filters = mel_filters(*settings, unit_area, magnitudes.device, magnitudes.dtype)
    if plain_only():
        return plain.product(magnitudes, filters)
    value: Tensor = _Product.apply(magnitudes, filters, _mel_groups(*settings))
    return value


@constant
def erb_frequencies(sample_rate: int, n_fft: int) -> tuple[float, ...]:
    """Centres of the bands of `erb_spectrogram`, Hz, from one ERB (or bin) up to below half the sample rate.

    Each lies an equivalent rectangular bandwidth of hearing above the one before, `24.7 Hz (1 + 4.37 f / kHz)`
    (Glasberg & Moore 1990), and at least a bin of the FFT.
    """
    return tuple(_erb_points(sample_rate, n_fft)[1:-1])


def erb_spectrogram(spectrogram: Tensor, sample_rate: int, n_fft: int) -> Tensor:
    """Sums over bands of hearing of `[…, frames, n_fft // 2 + 1]`: `[…, frames, bands]`.

    The filters are triangles of height 1 from one of the `erb_frequencies` to the next but one: each bin between the
    first and the last of them is shared out between two bands, so no power is lost.
    """
    filters = _erb_filters(sample_rate, n_fft, spectrogram.device, spectrogram.dtype)
    if plain_only():
        return plain.product(spectrogram, filters)
    value: Tensor = _Product.apply(spectrogram, filters, _erb_groups(sample_rate, n_fft))
    return value


@constant_tensor
def _erb_filters(sample_rate: int, n_fft: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(_erb_triangles(sample_rate, n_fft)).to(device=device, dtype=dtype)


@constant
def _erb_groups(sample_rate: int, n_fft: int) -> list[tuple[slice, slice]]:
    return _groups(_erb_triangles(sample_rate, n_fft) > 0)


@constant
def _mel_groups(
    sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float | None
) -> list[tuple[slice, slice]]:
    return _groups(_mel_triangles(sample_rate, n_fft, n_mels, f_min, sample_rate / 2 if f_max is None else f_max) > 0)


def _groups(used: np.ndarray) -> list[tuple[slice, slice]]:
    """Groups of neighbouring filters, each with the bins in which they are not all 0."""
    groups = []
    for first in range(0, len(used), FILTERS_AT_ONCE):
        filters = slice(first, first + FILTERS_AT_ONCE)
        bins = used[filters].any(0).nonzero()[0]
        if len(bins):
            groups.append((filters, slice(int(bins[0]), int(bins[-1]) + 1)))
    return groups


class _Product(torch.autograd.Function):
    """Bins times filters, group by group, because most factors of a dense product would be zeros."""

    @staticmethod
    def forward(ctx: Any, magnitudes: Tensor, filters: Tensor, groups: list[tuple[slice, slice]]) -> Tensor:
        ctx.save_for_backward(filters)
        ctx.groups = groups
        rows = magnitudes.flatten(0, -2)
        result = rows.new_zeros(len(rows), len(filters))
        for bands, bins in groups:
            torch.mm(rows[:, bins], filters[bands, bins].T, out=result[:, bands])
        return result.unflatten(0, magnitudes.shape[:-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (filters,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated
            return plain.product(gradient, filters.T), None, None
        rows = plain.solid(gradient).flatten(0, -2)
        result = rows.new_zeros(len(rows), filters.shape[1])
        for bands, bins in ctx.groups:
            result[:, bins].addmm_(rows[:, bands], filters[bands, bins])
        return result.unflatten(0, gradient.shape[:-1]), None, None


def _mel_triangles(
    sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float, unit_area: bool = True
) -> np.ndarray:
    points = _hz(np.linspace(_mel(f_min), _mel(f_max), n_mels + 2))
    area = (points[2:] - points[:-2])[:, None] / 2
    return _triangles(points, sample_rate, n_fft) / (area if unit_area else 1)


def _erb_points(sample_rate: int, n_fft: int) -> list[float]:
    """0 Hz, the centres of the bands, and the upper end of the last one, half the sample rate or above."""
    points = [0.0]
    while points[-1] < sample_rate / 2:
        points.append(points[-1] + max(ERB_HZ * (1 + ERB_SLOPE * points[-1]), sample_rate / n_fft))
    return points


def _erb_triangles(sample_rate: int, n_fft: int) -> np.ndarray:
    return _triangles(np.array(_erb_points(sample_rate, n_fft)), sample_rate, n_fft)


def _triangles(points: np.ndarray, sample_rate: int, n_fft: int) -> np.ndarray:
    """Triangles of height 1 over an FFT's bins, each from one of the rising points, in Hz, to the next but one."""
    bins = np.arange(n_fft // 2 + 1) * sample_rate / n_fft
    low, middle, high = points[:-2, None], points[1:-1, None], points[2:, None]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    triangles: np.ndarray = np.maximum(np.minimum(rising, falling), 0)
    return triangles


def _any_empty(*settings: float) -> bool:
    return bool((_mel_triangles(*settings).max(axis=1) == 0).any())  # type: ignore[arg-type]


def _mel(hz: float) -> float:
    linear = hz / MEL_HZ
    return linear if linear < MEL_BREAK else MEL_BREAK + np.log(linear / MEL_BREAK) / np.log(MEL_RATIO)


def _hz(mel: np.ndarray) -> np.ndarray:
    above = MEL_BREAK * MEL_HZ * MEL_RATIO ** (mel - MEL_BREAK)
    return np.where(mel < MEL_BREAK, mel * MEL_HZ, above)
