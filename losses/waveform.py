"""Losses on the samples themselves.

Means, energies and ratios are those of auraloss 0.4: along the samples of each channel, then averaged over channels.
Sums of energy are in squared units of the waveform, where full scale is 1.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from losses.base import Loss, check_same_shape, entry

SILENCE_POWER = 1e-6  # −60 dBFS: errors are relative to at least this mean square
KNEE = 10.0  # an error 10 dB above the target: from here on a ratio of energies counts by its logarithm


def rms(prediction: Tensor, target: Tensor) -> Tensor:
    """Root mean square error, `sqrt(mean((prediction − target)²))` over channels and samples.

    In units of the waveform; 0 at identity, where its gradient is taken as 0.
    """
    check_same_shape(prediction, target)
    error = (prediction - target).flatten(1)
    return torch.linalg.vector_norm(error, dim=1) / error.shape[1] ** 0.5


def waveform_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error, `mean(|prediction − target|)` over channels and samples, in units of the waveform."""
    check_same_shape(prediction, target)
    return (prediction - target).abs().mean((1, 2))


def waveform_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean square error, `mean((prediction − target)²)` over channels and samples, in squared units of the waveform."""
    check_same_shape(prediction, target)
    return (prediction - target).square().mean((1, 2))


def esr(prediction: Tensor, target: Tensor, eps: float = 1e-8) -> Tensor:
    """Error-to-signal ratio, `Σ(target − prediction)² / (Σ target² + eps)` of a channel, mean over channels.

    A ratio of energies: 0 at identity, 1 for a silent prediction. Wright & Välimäki 2019; equal to auraloss but for two
    things, or one silent target would outweigh all others: Σ target² counts as at least that of −60 dBFS, and a
    ratio r above 10 counts as `10 (1 + ln(r / 10))`.
    """
    check_same_shape(prediction, target)
    floor = SILENCE_POWER * target.shape[-1]
    signal = target.square().sum(-1).clamp_min(floor)
    return _compressed((target - prediction).square().sum(-1) / (signal + eps)).mean(1)


def dc(prediction: Tensor, target: Tensor, eps: float = 1e-8) -> Tensor:
    """Difference of the means, `mean(target − prediction)² / (mean(target²) + eps)` of a channel, mean over channels.

    A ratio of energies that sees the offset alone: 0 wherever the means are equal. Wright & Välimäki 2019; equal to
    auraloss but for silent targets, which `esr` treats in the same way: mean(target²) counts as at least −60 dBFS, and
    a ratio r above 10 counts as `10 (1 + ln(r / 10))`.
    """
    check_same_shape(prediction, target)
    power = target.square().mean(-1).clamp_min(SILENCE_POWER)
    return _compressed((target - prediction).mean(-1).square() / (power + eps)).mean(1)


def log_cosh(prediction: Tensor, target: Tensor, a: float = 1.0) -> Tensor:
    """Log-cosh of the error, `mean(ln cosh(a (prediction − target))) / a` over channels and samples.

    `a e² / 2` for small errors e, `|e| − ln 2 / a` for large ones; the larger `a`, the earlier. Chen et al. 2019.
    Auraloss adds 1e-8 within the logarithm (nothing in float32), loses the digits of small errors and overflows where
    `a e` is above 88; here none of it happens.

    Raises:
        ValueError: `a` is not above 0.
    """
    check_same_shape(prediction, target)
    if not a > 0:
        raise ValueError(f"log-cosh needs a above 0, got {a}")
    error = a * (prediction - target)
    # cosh x = 1 + 2 sinh²(x/2) keeps the digits of small errors; above 20, ln cosh grows as x does.
    near = error.clamp(-20, 20)
    values = (2 * (near / 2).sinh().square()).log1p() + (error.abs() - near.abs())
    return values.mean((1, 2)) / a


def snr(prediction: Tensor, target: Tensor, zero_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Minus the signal-to-noise ratio in dB, `−10 log10(Σ target² / Σ(prediction − target)²)`, mean over channels.

    The lower the better; the metric is minus this loss. `zero_mean` takes the mean off both signals first, as auraloss
    does (torchmetrics doesn't unless told). `eps` keeps both energies off zero and the loss below `−10 log10(eps)`,
    80 dB. Equal to auraloss but on a silent target: there it is 80 dB whatever the prediction, here the loss falls
    with the prediction's energy, to 0 dB for silence.
    """
    prediction, target = _signals(prediction, target, zero_mean)
    return _minus_db(_energy(target), prediction - target, target, eps)


def si_sdr(prediction: Tensor, target: Tensor, zero_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Minus the scale-invariant signal-to-distortion ratio in dB, mean over channels.

    `−10 log10(Σ(α target)² / Σ(prediction − α target)²)` with `α = Σ prediction·target / Σ target²`: blind to the
    prediction's level and sign. The lower the better; the metric is minus this loss. `zero_mean` takes the mean off
    both signals first, as auraloss does (torchmetrics doesn't unless told). `eps` keeps the loss below
    `−10 log10(eps)`, 80 dB. Le Roux et al. 2019; equal to auraloss but on a silent target: there it is 80 dB whatever
    the prediction, here the loss falls with the prediction's energy, to 0 dB for silence.
    """
    prediction, target = _signals(prediction, target, zero_mean)
    scaled = _projected(prediction, target, eps)
    return _minus_db(_energy(scaled), prediction - scaled, target, eps)


def sd_sdr(prediction: Tensor, target: Tensor, zero_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Minus the scale-dependent signal-to-distortion ratio in dB, mean over channels.

    `−10 log10(Σ(α target)² / Σ(prediction − target)²)` with `si_sdr`'s α: a prediction that is too soft or too loud
    pays for it. The lower the better; the metric is minus this loss. `zero_mean` takes the mean off both signals
    first, as auraloss does. `eps` keeps the loss below `−10 log10(eps)`, 80 dB. Le Roux et al. 2019; equal to
    auraloss but on a silent target, as `si_sdr`.
    """
    prediction, target = _signals(prediction, target, zero_mean)
    scaled = _projected(prediction, target, eps)
    return _minus_db(_energy(scaled), prediction - target, target, eps)


def _compressed(ratio: Tensor) -> Tensor:
    """`ratio` up to KNEE, from there on its logarithm, with the same value and slope where they meet."""
    return ratio.clamp_max(KNEE) + KNEE * (ratio / KNEE).clamp_min(1).log()


def _signals(prediction: Tensor, target: Tensor, zero_mean: bool) -> tuple[Tensor, Tensor]:
    check_same_shape(prediction, target)
    if not zero_mean:
        return prediction, target
    return prediction - prediction.mean(-1, keepdim=True), target - target.mean(-1, keepdim=True)


def _energy(signal: Tensor) -> Tensor:
    return signal.square().sum(-1)


def _projected(prediction: Tensor, target: Tensor, eps: float) -> Tensor:
    """The prediction's part along the target, `α target`."""
    alpha = (prediction * target).sum(-1) / (_energy(target) + eps)
    return alpha.unsqueeze(-1) * target


def _minus_db(signal_energy: Tensor, noise: Tensor, target: Tensor, eps: float) -> Tensor:
    # What is added to the signal is eps where the target is silent, so that silence is best there, and next to nothing
    # elsewhere, where a silent prediction must not be good.
    signal_energy = signal_energy + eps**2 / (_energy(target) + eps)
    return -10 * (signal_energy / (_energy(noise) + eps) + eps).log10().mean(1)


class RMSLoss(Loss):
    """Root mean square error of the waveforms; see `rms`."""

    def __init__(self, reduction: str = "mean"):
        super().__init__(rms, reduction)


class WaveformL1Loss(Loss):
    """Mean absolute error of the waveforms; see `waveform_l1`."""

    def __init__(self, reduction: str = "mean"):
        super().__init__(waveform_l1, reduction)


class WaveformMSELoss(Loss):
    """Mean square error of the waveforms; see `waveform_mse`."""

    def __init__(self, reduction: str = "mean"):
        super().__init__(waveform_mse, reduction)


class ESRLoss(Loss):
    """Error-to-signal ratio; see `esr`."""

    def __init__(self, eps: float = 1e-8, reduction: str = "mean"):
        super().__init__(partial(esr, eps=eps), reduction)


class DCLoss(Loss):
    """Difference of the means, relative to the target's power; see `dc`."""

    def __init__(self, eps: float = 1e-8, reduction: str = "mean"):
        super().__init__(partial(dc, eps=eps), reduction)


class LogCoshLoss(Loss):
    """Log-cosh of the error; see `log_cosh`."""

    def __init__(self, a: float = 1.0, reduction: str = "mean"):
        super().__init__(partial(log_cosh, a=a), reduction)


class SNRLoss(Loss):
    """Minus the signal-to-noise ratio in dB; see `snr`."""

    def __init__(self, zero_mean: bool = True, eps: float = 1e-8, reduction: str = "mean"):
        super().__init__(partial(snr, zero_mean=zero_mean, eps=eps), reduction)


class SISDRLoss(Loss):
    """Minus the scale-invariant signal-to-distortion ratio in dB; see `si_sdr`."""

    def __init__(self, zero_mean: bool = True, eps: float = 1e-8, reduction: str = "mean"):
        super().__init__(partial(si_sdr, zero_mean=zero_mean, eps=eps), reduction)


class SDSDRLoss(Loss):
    """Minus the scale-dependent signal-to-distortion ratio in dB; see `sd_sdr`."""

    def __init__(self, zero_mean: bool = True, eps: float = 1e-8, reduction: str = "mean"):
        super().__init__(partial(sd_sdr, zero_mean=zero_mean, eps=eps), reduction)


ENTRIES = {
    "rms": entry("root mean square error of the waveform", RMSLoss, distance=True),
    "waveform_l1": entry("mean absolute error of the waveform", WaveformL1Loss, distance=True),
    "waveform_mse": entry("mean square error of the waveform", WaveformMSELoss),
    "esr": entry("energy of the error relative to the target's", ESRLoss),
    "dc": entry("difference of the means, relative to the target's power", DCLoss),
    "log_cosh": entry("log-cosh of the error: square where small, absolute where large", LogCoshLoss),
    "snr": entry("minus the signal-to-noise ratio in dB", SNRLoss, minimum=None, metric="snr_db"),
    "si_sdr": entry(
        "minus the scale-invariant signal-to-distortion ratio in dB", SISDRLoss, minimum=None, metric="si_sdr_db"
    ),
    "sd_sdr": entry(
        "minus the scale-dependent signal-to-distortion ratio in dB", SDSDRLoss, minimum=None, metric="sd_sdr_db"
    ),
}
