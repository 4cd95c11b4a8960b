"""Losses with the interface of `korvax.loss`: one number for spectrograms `[…, bins, frames]` or signals `[…, N]`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from losses import time_frequency, transport
from losses.compat.korvax.arrays import takes_arrays
from losses.dsp.scales import Log
from losses.dsp.transforms import STFT
from losses.multi_resolution import MRSTFT_SIZES, SMOOTH_SIZES
from losses.stft_settings import DISTANCES

TransformFn = Callable[[Tensor], Tensor]
ScaleFn = Callable[[Tensor], Tensor]
LossFn = Callable[[Tensor, Tensor], Tensor]


@takes_arrays
def spectral_convergence_loss(S_x: Tensor, S_y: Tensor) -> Tensor:
    """Spectral convergence `‖S_y − S_x‖_F / ‖S_y‖_F` of each channel, mean over channels (Arık et al. 2018)."""
    predicted, wanted = (_items(S).unsqueeze(1) for S in (S_x, S_y))
    least = S_y.new_tensor(torch.finfo(S_y.dtype).eps)
    return time_frequency.spectral_convergence(predicted, wanted, least).mean()


@takes_arrays
def elementwise_loss(S_x: Tensor, S_y: Tensor, /, metric: str = "L1") -> Tensor:
    """Mean absolute ("L1") or mean square ("L2") difference of two arrays of any shape.

    Raises:
        ValueError: another metric.
    """
    return _distance(metric)(S_x.reshape(1, 1, -1, S_x.shape[-1]), S_y.reshape(1, 1, -1, S_y.shape[-1]))[0]


@takes_arrays
def spectral_optimal_transport_loss(
    S_x: Tensor,
    S_y: Tensor,
    /,
    positions: Tensor | None = None,
    p: int = 2,
    normalize: bool = True,
    balanced: bool = True,
    quantile_lowpass: bool = False,
) -> Tensor:
    """Wasserstein distance of spectra to the power p, mean over frames; see `losses.transport`."""
    predicted, wanted = (_items(S).transpose(1, 2)[None] for S in (S_x, S_y))
    options = positions, p, normalize, balanced, quantile_lowpass
    return transport.spectral_optimal_transport(predicted, wanted, *options)[0]


@takes_arrays
def time_frequency_loss(
    x: Tensor,
    y: Tensor,
    /,
    transform_fn: TransformFn,
    loss_fn: LossFn | Sequence[LossFn],
    scale_fn: ScaleFn | Sequence[ScaleFn] | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """`Σ_i weights_i loss_fn_i(scale_fn_i(S_x), scale_fn_i(S_y))`, `S = transform_fn(signal)`.

    Args:
        x: signal.
        y: target.
        transform_fn: signal to spectrogram.
        loss_fn: one function of two spectrograms, or several.
        scale_fn: applied to both spectrograms, one for each loss; None for none.
        weights: one for each loss; default 1 over their number.

    Raises:
        ValueError: losses, scales and weights differ in number, or signals in shape.
    """
    shares = None if weights is None else [float(weight) for weight in weights]
    return time_frequency.time_frequency_loss(
        _channels(x), _channels(y), lambda rows: transform_fn(rows.reshape(x.shape)), loss_fn, scale_fn, shares
    )


@takes_arrays
def mrstft_loss(
    x: Tensor,
    y: Tensor,
    /,
    hop_lengths: Sequence[int] = MRSTFT_SIZES[1],
    win_lengths: Sequence[int] = MRSTFT_SIZES[2],
    fft_sizes: Sequence[int] | None = None,
    window: Any = "hann",
    w_lin: float = 1.0,
    w_log: float = 1.0,
    lin_dist: str = "L1",
    log_dist: str = "L1",
    log_fac: float = 1.0,
    log_eps: float = 1e-7,
    power: float = 1,
) -> Tensor:
    """Mean over resolutions of `w_lin d(S_x, S_y) + w_log d(ln(log_fac S_x + log_eps), ln(log_fac S_y + log_eps))`.

    `S = |STFT|^power`, frames centred and padded with zeros.

    Args:
        x: signal.
        y: target.
        hop_lengths, win_lengths, fft_sizes: samples, one per resolution; FFTs are as long as windows by default.
        window: by name, as in `losses.dsp.stft.Resolution`.
        w_lin, w_log: weights.
        lin_dist, log_dist: "L1" or "L2".
        log_fac: factor under the logarithm.
        log_eps: offset under the logarithm.
        power: exponent of the magnitudes.

    Raises:
        ValueError: sizes differ in number, or signals in shape; an unknown distance or window.
    """
    fft_sizes = win_lengths if fft_sizes is None else fft_sizes
    if not len(win_lengths) == len(hop_lengths) == len(fft_sizes) > 0:
        raise ValueError(
            "hop_lengths, win_lengths and fft_sizes must be equally long, got "
            f"{len(hop_lengths)}, {len(win_lengths)} and {len(fft_sizes)}"
        )
    distances, scales = [_distance(lin_dist), _distance(log_dist)], [None, Log(log_fac, log_eps)]
    predicted, wanted = _channels(x), _channels(y)
    values = []
    for sizes in zip(fft_sizes, hop_lengths, win_lengths, strict=True):
        transform = STFT(*sizes, window, power, "constant", 0.0)
        terms = transform, distances, scales, [w_lin, w_log]
        values.append(time_frequency.time_frequency_loss(predicted, wanted, *terms))
    return torch.stack(values).mean()


def smooth_mrstft_loss(x: Tensor, y: Tensor) -> Tensor:
    """`mrstft_loss` in the smooth configuration of Schwär & Müller 2023: squares of ln(1 + S), flat-top windows."""
    return mrstft_loss(x, y, *SMOOTH_SIZES[1:], window="flattop", w_lin=0.0, log_dist="L2", log_eps=1.0)


def _channels(signal: Tensor) -> Tensor:
    """`[…, N]` as one item, `[1, channels, N]`."""
    return signal.reshape(1, -1, signal.shape[-1])


def _items(spectrogram: Tensor) -> Tensor:
    """`[…, bins, frames]` as `[channels, bins, frames]`."""
    return spectrogram.reshape(-1, *spectrogram.shape[-2:])


def _distance(metric: str) -> time_frequency.Norm:
    if metric not in DISTANCES:
        raise ValueError(f"a distance must be one of {', '.join(DISTANCES)}, got {metric!r}")
    return DISTANCES[metric]
