"""Losses on the samples themselves.

Means, energies and ratios are those of auraloss 0.4: along the samples of each channel, then averaged over channels.
Amplitudes are in units of the waveform, where full scale is 1; energies in squares of that.
"""

from __future__ import annotations

from torch import Tensor

from losses.base import FunctionLoss, full_precision
from losses.dsp.norms import row_norm
from losses.registry import register

SILENCE_POWER = 1e-6  # −60 dBFS: errors are relative to at least this mean square
KNEE = 10.0  # an error 10 dB above the target: above it a ratio of energies counts by its logarithm


@register("rms", distance=True)
@full_precision
def rms(prediction: Tensor, target: Tensor) -> Tensor:
    """Root mean square error of the waveform.

    Formula: `sqrt(mean((p − t)²))` over channels and samples.
    Use: reconstruction; the codec's own error is its lower limit.

    In units of the waveform. At identity it is 0, and so is its gradient.
    """
    error = (prediction - target).flatten(1)
    return row_norm(error) / error.shape[1] ** 0.5


@register("waveform_l1", distance=True)
@full_precision
def waveform_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the waveform.

    Formula: `mean(|p − t|)` over channels and samples.
    Use: as `rms`, but outliers count less.
    """
    return (prediction - target).abs().mean((1, 2))


@register("waveform_mse")
@full_precision
def waveform_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean square error of the waveform.

    Formula: `mean((p − t)²)` over channels and samples.
    Use: as `rms`, but loud passages count most.
    """
    return (prediction - target).square().mean((1, 2))


@register("esr", training={"bounded": True})
@full_precision
def esr(prediction: Tensor, target: Tensor, eps: float = 1e-8, bounded: bool = False) -> Tensor:
    """Error-to-signal ratio: the error's energy relative to the target's.

    Formula: `Σ(t − p)² / (Σ t² + eps)` of a channel, mean over channels.
    Use: models of amplifiers and effects, with the same importance for quiet items as for loud ones.

    A ratio of energies: 0 at identity, 1 for a silent prediction. Wright & Välimäki 2019, auraloss 0.4.

    Args:
        prediction: `[B, C, N]`.
        target: as the prediction.
        eps: energy that is added to the target's.
        bounded: so that one silent target cannot outweigh all others: Σ t² counts as at least that of −60 dBFS, and a
            ratio r above 10 as `10 (1 + ln(r / 10))`. Off by default, so that values are those that are published; on
            in Encore's training.
    """
    signal, error = target.square().sum(-1), (target - prediction).square().sum(-1)
    if not bounded:
        return (error / (signal + eps)).mean(1)
    floor = SILENCE_POWER * target.shape[-1]
    return _compressed(error / (signal.clamp_min(floor) + eps)).mean(1)


@register("dc", training={"bounded": True})
@full_precision
def dc(prediction: Tensor, target: Tensor, eps: float = 1e-8, bounded: bool = False) -> Tensor:
    """Difference of the means (DC offset), relative to the target's power.

    Formula: `mean(t − p)² / (mean(t²) + eps)` of a channel, mean over channels.
    Use: beside `esr`, against an offset, which is all that it measures.

    A ratio of energies: 0 wherever the means are equal. Wright & Välimäki 2019, auraloss 0.4.

    Args:
        prediction: `[B, C, N]`.
        target: as the prediction.
        eps: power that is added to the target's.
        bounded: as in `esr`: mean(t²) counts as at least −60 dBFS, and a ratio r above 10 as `10 (1 + ln(r / 10))`.
    """
    power, offset = target.square().mean(-1), (target - prediction).mean(-1).square()
    if not bounded:
        return (offset / (power + eps)).mean(1)
    return _compressed(offset / (power.clamp_min(SILENCE_POWER) + eps)).mean(1)


@register("log_cosh", distance=True)
@full_precision
def log_cosh(prediction: Tensor, target: Tensor, a: float = 1.0) -> Tensor:
    """Log-cosh of the error: square where it is small, absolute where it is large.

    Formula: `mean(ln cosh(a (p − t))) / a` over channels and samples, a = 1.
    Use: a compromise of `waveform_mse` and `waveform_l1`.

    `a e² / 2` for small errors e, `|e| − ln 2 / a` for large ones; the larger `a`, the smaller the error at which the
    one becomes the other. Chen et al. 2019. Auraloss adds 1e-8 within the logarithm (which changes nothing in float32),
    loses the digits of small errors and overflows where `a e` is above 88; this function does not.

    Of negative type, as `exp(−t ln cosh e) = (cosh e)^−t` is a characteristic function for every t > 0 (Schoenberg
    1938). As the distance of an energy distance it needs an `a` far above 1 over the size of the errors, such as 100:
    where it is square, it tells distributions of one mean hardly apart.

    Raises:
        ValueError: `a` is not above 0.
    """
    check_factor(a)
    error = a * (prediction - target)
    # cosh x = 1 + 2 sinh²(x/2) keeps the digits of small errors; above 20, ln cosh grows as x does.
    near = error.clamp(-20, 20)
    values = (2 * (near / 2).sinh().square()).log1p() + (error.abs() - near.abs())
    return values.mean((1, 2)) / a


@register("snr", minimum=None, metric="snr_db")
@full_precision
def snr(prediction: Tensor, target: Tensor, zero_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Minus the signal-to-noise ratio in dB.

    Formula: `−10 log10(Σ t² / Σ(p − t)²)`, mean over channels.
    Use: reconstruction in dB.

    Lower is better; the metric is minus this loss. `zero_mean` subtracts the mean of each signal first, as auraloss
    does (torchmetrics does so only when told). `eps` keeps both energies above zero and the loss below
    `−10 log10(eps)`, 80 dB. Equal to auraloss except on a silent target: auraloss gives 80 dB whatever the prediction,
    this loss falls with the prediction's energy, to 0 dB for silence.
    """
    prediction, target = _signals(prediction, target, zero_mean)
    return _minus_db(_energy(target), prediction - target, target, eps)


@register("si_sdr", minimum=None, metric="si_sdr_db")
@full_precision
def si_sdr(prediction: Tensor, target: Tensor, zero_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Minus the scale-invariant signal-to-distortion ratio in dB.

    Formula: `−10 log10(Σ(αt)² / Σ(p − αt)²)`, `α = Σ pt / Σ t²`, mean over channels.
    Use: separation of sources; indifferent to level and sign.

    Lower is better; the metric is minus this loss. `zero_mean` subtracts the mean of each signal first, as auraloss
    does (torchmetrics does so only when told). `eps` keeps the loss below `−10 log10(eps)`, 80 dB. Le Roux et al. 2019;
    equal to auraloss except on a silent target, as `snr`.
    """
    prediction, target = _signals(prediction, target, zero_mean)
    scaled = _projected(prediction, target, eps)
    return _minus_db(_energy(scaled), prediction - scaled, target, eps)


@register("sd_sdr", minimum=None, metric="sd_sdr_db")
@full_precision
def sd_sdr(prediction: Tensor, target: Tensor, zero_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Minus the scale-dependent signal-to-distortion ratio in dB.

    Formula: `−10 log10(Σ(αt)² / Σ(p − t)²)`, `α = Σ pt / Σ t²`, mean over channels.
    Use: as `si_sdr`, but a wrong level costs.

    Lower is better; the metric is minus this loss. `zero_mean` subtracts the mean of each signal first, as auraloss
    does. `eps` keeps the loss below `−10 log10(eps)`, 80 dB. Le Roux et al. 2019; equal to auraloss except on a silent
    target, as `snr`.
    """
    prediction, target = _signals(prediction, target, zero_mean)
    scaled = _projected(prediction, target, eps)
    return _minus_db(_energy(scaled), prediction - target, target, eps)


def _compressed(ratio: Tensor) -> Tensor:
    """`ratio` up to KNEE and its logarithm above, with the same value and slope where they meet."""
    return ratio.clamp_max(KNEE) + KNEE * (ratio / KNEE).clamp_min(1).log()


def check_factor(a: float) -> None:
    """Raises ValueError unless the factor of `log_cosh` is above 0."""
    if not a > 0:
        raise ValueError(f"log-cosh needs a factor a above 0, got {a}")


def _signals(prediction: Tensor, target: Tensor, zero_mean: bool) -> tuple[Tensor, Tensor]:
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
    # What is added to the signal's energy is eps where the target is silent, so that a silent prediction is best there,
    # and next to nothing elsewhere, where a silent prediction must not be good.
    signal_energy = signal_energy + eps**2 / (_energy(target) + eps)
    return -10 * (signal_energy / (_energy(noise) + eps) + eps).log10().mean(1)


class RMSLoss(FunctionLoss):
    """Root mean square error of the waveform; see `rms`."""

    compare = staticmethod(rms)

    def __init__(self, *, reduction: str = "mean"):
        super().__init__(reduction=reduction)


class WaveformL1Loss(FunctionLoss):
    """Mean absolute error of the waveform; see `waveform_l1`."""

    compare = staticmethod(waveform_l1)

    def __init__(self, *, reduction: str = "mean"):
        super().__init__(reduction=reduction)


class WaveformMSELoss(FunctionLoss):
    """Mean square error of the waveform; see `waveform_mse`."""

    compare = staticmethod(waveform_mse)

    def __init__(self, *, reduction: str = "mean"):
        super().__init__(reduction=reduction)


class ESRLoss(FunctionLoss):
    """Error-to-signal ratio; see `esr` for the settings."""

    compare = staticmethod(esr)

    def __init__(self, eps: float = 1e-8, *, bounded: bool = False, reduction: str = "mean"):
        super().__init__(eps=eps, bounded=bounded, reduction=reduction)


class DCLoss(FunctionLoss):
    """Difference of the means, relative to the target's power; see `dc` for the settings."""

    compare = staticmethod(dc)

    def __init__(self, eps: float = 1e-8, *, bounded: bool = False, reduction: str = "mean"):
        super().__init__(eps=eps, bounded=bounded, reduction=reduction)


class LogCoshLoss(FunctionLoss):
    """Log-cosh of the error; see `log_cosh` for the settings."""

    compare = staticmethod(log_cosh)

    def __init__(self, a: float = 1.0, *, reduction: str = "mean"):
        check_factor(a)
        super().__init__(a=a, reduction=reduction)


class SNRLoss(FunctionLoss):
    """Minus the signal-to-noise ratio in dB; see `snr` for the settings."""

    compare = staticmethod(snr)

    def __init__(self, zero_mean: bool = True, eps: float = 1e-8, *, reduction: str = "mean"):
        super().__init__(zero_mean=zero_mean, eps=eps, reduction=reduction)


class SISDRLoss(FunctionLoss):
    """Minus the scale-invariant signal-to-distortion ratio in dB; see `si_sdr` for the settings."""

    compare = staticmethod(si_sdr)

    def __init__(self, zero_mean: bool = True, eps: float = 1e-8, *, reduction: str = "mean"):
        super().__init__(zero_mean=zero_mean, eps=eps, reduction=reduction)


class SDSDRLoss(FunctionLoss):
    """Minus the scale-dependent signal-to-distortion ratio in dB; see `sd_sdr` for the settings."""

    compare = staticmethod(sd_sdr)

    def __init__(self, zero_mean: bool = True, eps: float = 1e-8, *, reduction: str = "mean"):
        super().__init__(zero_mean=zero_mean, eps=eps, reduction=reduction)
