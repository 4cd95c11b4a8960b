"""Spectrograms `[…, bins, frames]` of signals `[…, N]`, with the interface of korvax.

Frames are centred and padded with zeros unless told otherwise. `pad_kwargs` takes a `mode`: "constant" (zeros),
"reflect", "edge" or "wrap".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from losses.compat.korvax.arrays import as_tensor, takes_arrays
from losses.dsp.stft import PAD_MODES, absolute, window_values
from losses.dsp.transforms import STFT, VQT, Mel

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@takes_arrays
def stft(
    x: Tensor,
    /,
    n_fft: int = 2048,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Any = "hann",
    center: bool = True,
    pad_kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """Short-time Fourier transform, complex `[…, n_fft // 2 + 1, frames]`.

    Args:
        x: signal.
        n_fft: transform size, samples.
        hop_length: samples from frame to frame; default a quarter of the window.
        win_length: samples of the window; default `n_fft`.
        window: a name of `scipy.signal.get_window`, with its parameter if it has one, or the values themselves.
        center: pad the signal so that frames are centred at their times.
        pad_kwargs: `mode` of the padding.

    Raises:
        ValueError: an unknown window or padding.
    """
    size = win_length or n_fft
    shape = window if isinstance(window, (str, tuple, float)) else as_tensor(window).to(x)
    values = shape if isinstance(shape, Tensor) else window_values(shape, size, x.device, x.dtype)  # type: ignore
    rows = x.reshape(-1, x.shape[-1])
    if center:
        rows = pad(rows, (n_fft // 2, n_fft - n_fft // 2), _pad_mode(pad_kwargs))
    bins = torch.stft(rows, n_fft, hop_length or size // 4, len(values), values, center=False, return_complex=True)
    return bins.reshape(*x.shape[:-1], *bins.shape[1:])


@takes_arrays
def spectrogram(
    x: Tensor,
    /,
    n_fft: int = 2048,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Any = "hann",
    center: bool = True,
    power: float | None = 2.0,
    pad_kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """`|X|^power` of the `stft` X, or X itself if `power` is None; the gradient of |X| at 0 is 0."""
    mode = _pad_mode(pad_kwargs)
    if power is not None and center and mode in PAD_MODES and isinstance(window, (str, tuple)):
        transform = STFT(n_fft, hop_length, win_length, window, power, mode, eps=0.0)
        values = transform(x.reshape(1, -1, x.shape[-1]))[0].transpose(1, 2)
        return values.reshape(*x.shape[:-1], *values.shape[1:])
    bins = stft(x, n_fft, hop_length, win_length, window, center, pad_kwargs)
    if power is None:
        return bins
    magnitude = absolute(torch.stack([bins.real, bins.imag]))
    return magnitude if power == 1 else magnitude**power


def mel_filterbank(
    *,
    sr: float,
    n_fft: int,
    n_mels: int = 128,
    fmin: float = 0.0,
    fmax: float | None = None,
    htk: bool = False,
    norm: str | float | None = "slaney",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Slaney's mel filters of unit area, `[n_mels, n_fft // 2 + 1]`.

    Raises:
        ValueError: the HTK scale or another `norm`, which `torchaudio.functional.melscale_fbanks` has.
    """
    if htk or norm != "slaney":
        raise ValueError(
            "only Slaney's filters of unit area are here; torchaudio.functional.melscale_fbanks has others"
        )
    rate: Any = sr
    bins = torch.eye(n_fft // 2 + 1, dtype=dtype)
    return Mel(n_fft, sample_rate=rate, n_mels=n_mels, f_min=fmin, f_max=fmax).bands(bins).T


@takes_arrays
def to_mel_scale(
    S: Tensor, /, sr: float, n_fft: int, n_mels: int = 128, fmin: float = 0.0, fmax: float | None = None
) -> Tensor:
    """Mel bands `[…, n_mels, frames]` of a spectrogram; `sr`, `fmin` and `fmax` in Hz."""
    rate: Any = sr
    mel = Mel(n_fft, sample_rate=rate, n_mels=n_mels, f_min=fmin, f_max=fmax)
    return mel.bands(S.transpose(-1, -2)).transpose(-1, -2)


@takes_arrays
def mel_spectrogram(
    x: Tensor,
    /,
    sr: float,
    n_fft: int,
    n_mels: int = 128,
    fmin: float = 0.0,
    fmax: float | None = None,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Any = "hann",
    center: bool = True,
    power: float = 2.0,
    pad_kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """Mel bands `[…, n_mels, frames]` of the `spectrogram`."""
    bins = spectrogram(x, n_fft, hop_length, win_length, window, center, power, pad_kwargs)
    return to_mel_scale(bins, sr, n_fft, n_mels, fmin, fmax)


@takes_arrays
def vqt(
    x: Tensor,
    /,
    sr: float,
    hop_length: int = 512,
    fmin: float = 32.70,
    fmax: float | None = None,
    n_bins: int = 84,
    gamma: float = 0.0,
    bins_per_octave: int = 12,
    filter_scale: float = 1.0,
    norm_kernels: float = 1,
    power: float | None = 2.0,
    window: Any = "hann",
    center: bool = True,
    normalization_type: str = "librosa",
    pad_kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """Variable-Q transform, `|V|^power`, `[…, n_bins, frames]`, |V| at least 1e-4; see `losses.dsp.transforms.VQT`.

    Args:
        x: signal.
        sr: sample rate, Hz.
        hop_length: samples from frame to frame.
        fmin: frequency of the lowest bin, Hz.
        fmax: end of the bins, Hz, instead of `n_bins`.
        n_bins: bins.
        gamma: bandwidth added to each bin, Hz.
        bins_per_octave: bins of an octave.
        power: 1 for magnitudes, 2 for powers.
        window: as in `stft`, by name.
        filter_scale, norm_kernels, center, normalization_type, pad_kwargs: only their defaults.

    Raises:
        ValueError: another value of an option that has only its default, or bins above half the sample rate.
    """
    fixed = filter_scale, norm_kernels, center, normalization_type, _pad_mode(pad_kwargs)
    if power is None or fixed != (1, 1, True, "librosa", "constant"):
        raise ValueError(
            "only magnitudes and powers, and only the defaults of filter_scale, norm_kernels, center, "
            "normalization_type and pad_kwargs are here"
        )
    if fmax is not None:
        n_bins = math.ceil(bins_per_octave * math.log2(fmax / fmin))
    rate: Any = sr
    transform = VQT(rate, hop_length, fmin, n_bins, bins_per_octave, window, power, gamma)
    values = transform(x.reshape(1, -1, x.shape[-1]))[0].transpose(1, 2)
    return values.reshape(*x.shape[:-1], *values.shape[1:])


def cqt(
    x: Tensor,
    /,
    sr: float,
    hop_length: int = 512,
    fmin: float = 32.70,
    fmax: float | None = None,
    n_bins: int = 84,
    bins_per_octave: int = 12,
    filter_scale: float = 1.0,
    norm_kernels: float = 1,
    power: float | None = 2.0,
    window: Any = "hann",
    center: bool = True,
    normalization_type: str = "librosa",
    pad_kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """Constant-Q transform: the `vqt` with gamma 0."""
    sizes = hop_length, fmin, fmax, n_bins, 0.0, bins_per_octave
    options: Any = (filter_scale, norm_kernels, power, window, center, normalization_type, pad_kwargs)
    return vqt(x, sr, *sizes, *options)


def _pad_mode(pad_kwargs: Mapping[str, Any] | None) -> str:
    options = {"mode": "constant"} | dict(pad_kwargs or {})
    mode = options.pop("mode")
    if options or mode not in _PAD_MODES:
        raise ValueError(f"pad_kwargs takes a mode of {', '.join(_PAD_MODES)}, got {pad_kwargs}")
    return _PAD_MODES[mode]
