"""Processing of a signal before a loss: sum and difference of stereo channels, and pre-emphasis by an FIR filter."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d

from losses.dsp.compilation import constant, constant_tensor

FILTER_TYPES = ("hp", "fd", "aw")
# IEC 61672's A-weighting: corner frequencies in Hz (the first and the last twice), and the gain for 0 dB at 1 kHz.
A_WEIGHTING_HZ = (20.598997, 107.65265, 737.86223, 12194.217)
A_WEIGHTING_GAIN_DB = 1.9997
RESPONSE_POINTS = 512  # frequencies from 0 up to half the sample rate at which A-weighting is fitted


def sum_and_difference(signal: Tensor) -> tuple[Tensor, Tensor]:
    """Left plus right and left minus right of `signal [B, 2, N]`, each `[B, 1, N]`, without a factor of ½.

    Raises:
        ValueError: not two channels.
    """
    if signal.dim() != 3 or signal.shape[1] != 2:
        channels = f"{signal.shape[1]} channel(s)" if signal.dim() == 3 else f"shape {list(signal.shape)}"
        raise ValueError(f"sum and difference need a stereo signal [B, 2, N], got {channels}")
    left, right = signal[:, :1], signal[:, 1:]
    return left + right, left - right


class SumAndDifference(nn.Module):
    """Sum and difference of a stereo signal; see `sum_and_difference`."""

    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        return sum_and_difference(signal)


def fir_filter(signal: Tensor, taps: Tensor) -> Tensor:
    """Each channel of `signal [B, C, N]` filtered by `taps [K]`: same shape, no delay, zeros beyond the ends.

    `y[n] = Σ_k taps[k] x[n + k − K//2]`: the taps are not reversed, as in auraloss; magnitudes are the same either way.
    On CUDA, PyTorch convolves with 10 bits of mantissa unless `torch.backends.cudnn.allow_tf32` is False.

    Raises:
        ValueError: the signal is not `[B, C, N]`, or the number of taps is even.
    """
    if signal.dim() != 3:
        raise ValueError(f"the signal must be [B, C, N], got {list(signal.shape)}")
    _check_odd(len(taps))
    kernel = taps.to(device=signal.device, dtype=signal.dtype)[None, None]
    with torch.autocast(signal.device.type, enabled=False):
        filtered = conv1d(signal.flatten(0, 1).unsqueeze(1), kernel, padding=len(taps) // 2)
    return filtered.squeeze(1).unflatten(0, signal.shape[:2])


def highpass_taps(coef: float = 0.85) -> Tensor:
    """First-order high-pass `1 − coef z⁻¹` as the taps `[1, −coef, 0]`, float64."""
    return torch.tensor([1, -coef, 0], dtype=torch.float64)


def folded_differentiator_taps(coef: float = 0.85) -> Tensor:
    """Folded differentiator `1 − coef z⁻²` as the taps `[1, 0, −coef]`, float64."""
    return torch.tensor([1, 0, -coef], dtype=torch.float64)


@constant
def a_weighting_taps(sample_rate: int, ntaps: int = 101) -> Tensor:
    """Linear-phase FIR filter `[ntaps]` whose gain is A-weighting's at `sample_rate` Hz, float64.

    Fitted by least squares to the gain of the bilinear transform of IEC 61672's analog filter at 512 frequencies, as in
    auraloss.

    Raises:
        ValueError: an even number of taps.
    """
    from scipy import signal  # slow to import

    _check_odd(ntaps)
    poles = [-2 * math.pi * corner for corner in A_WEIGHTING_HZ]
    poles += [poles[0], poles[-1]]
    gain = poles[-1] ** 2 * 10 ** (A_WEIGHTING_GAIN_DB / 20)
    digital = signal.bilinear_zpk([0] * 4, poles, gain, sample_rate)
    frequencies, response = signal.freqz_zpk(*digital, worN=RESPONSE_POINTS, fs=sample_rate)
    return torch.from_numpy(signal.firls(ntaps, frequencies, abs(response), fs=sample_rate))


def a_weighted(signal: Tensor, sample_rate: int) -> Tensor:
    """`signal [B, C, N]` through the A-weighting filter; see `a_weighting_taps`."""
    return fir_filter(signal, _taps("aw", 0.0, sample_rate, 101, signal.device, signal.dtype))


class FIRFilter(nn.Module):
    """Pre-emphasis of a signal `[B, C, N]` of any number of channels: same shape, device and dtype.

    Wright & Välimäki 2019, as in auraloss 0.4, but called on one signal at a time. Auraloss pads its filters of 3 taps
    as if they had `ntaps`, so that "hp" and "fd" append `ntaps − 3` zeros; these filters do not.

    Args:
        filter_type: "hp" (first-order high-pass), "fd" (folded differentiator) or "aw" (A-weighting).
        coef: coefficient of "hp" and "fd"; 0.85 was chosen for 44.1 kHz.
        sample_rate: Hz, for "aw".
        ntaps: odd length of "aw".

    Raises:
        ValueError: an unknown filter type, an even number of taps; at the call, a signal that is not `[B, C, N]`.
    """

    def __init__(self, filter_type: str = "hp", coef: float = 0.85, sample_rate: int = 44100, ntaps: int = 101):
        super().__init__()
        if filter_type not in FILTER_TYPES:
            raise ValueError(f"filter_type must be one of {', '.join(FILTER_TYPES)}, got {filter_type!r}")
        _check_odd(ntaps)
        self.settings = (filter_type, coef, sample_rate, ntaps)

    def forward(self, signal: Tensor) -> Tensor:
        return fir_filter(signal, _taps(*self.settings, signal.device, signal.dtype))


@constant_tensor
def _taps(
    filter_type: str, coef: float, sample_rate: int, ntaps: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    if filter_type == "aw":
        taps = a_weighting_taps(sample_rate, ntaps)
    else:
        taps = highpass_taps(coef) if filter_type == "hp" else folded_differentiator_taps(coef)
    return taps.to(device=device, dtype=dtype)


def _check_odd(ntaps: int) -> None:
    if ntaps % 2 == 0:
        raise ValueError(f"the number of taps must be odd, got {ntaps}")
