"""Losses on samples, with the interface of `auraloss.time`.

A signal has any number of axes, of which the last is time: `[B, C, N]`, `[B, N]` or `[N]`. With `reduction="none"` a
loss gives one value per channel, in the shape of the axes before the last. See `losses.waveform` for the formulas.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losses.compat.auraloss.utils import apply_reduction
from losses.waveform import dc, esr, log_cosh, sd_sdr, si_sdr, snr


class _ChannelLoss(nn.Module):
    """A loss that compares every channel by itself; a subclass defines `compare`, `[R, 1, N]` twice to `[R]`."""

    reduction: str

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        input, target = torch.broadcast_tensors(input, target)
        rows = (signal.reshape(-1, 1, signal.shape[-1]) for signal in (input, target))
        values = self.compare(*rows)
        return apply_reduction(values.reshape(input.shape[:-1]), self.reduction)

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError


class ESRLoss(_ChannelLoss):
    """Error-to-signal ratio `Σ(t − p)² / (Σ t² + eps)` (Wright & Välimäki 2019), without floor or compression.

    Args:
        eps: added to the target's energy.
        reduction: "mean" or "sum" over channels, or "none".
    """

    def __init__(self, eps: float = 1e-8, reduction: str = "mean"):
        super().__init__()
        self.eps, self.reduction = eps, reduction

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        return esr(prediction, target, self.eps)


class DCLoss(_ChannelLoss):
    """Offset relative to power, `mean(t − p)² / (mean(t²) + eps)` (Wright & Välimäki 2019); arguments of `ESRLoss`."""

    def __init__(self, eps: float = 1e-8, reduction: str = "mean"):
        super().__init__()
        self.eps, self.reduction = eps, reduction

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        return dc(prediction, target, self.eps)


class LogCoshLoss(_ChannelLoss):
    """`mean(ln(cosh(a (p − t)) + eps)) / a` (Chen et al. 2019), finite for errors of any size.

    Args:
        a: factor of the error; the larger, the smaller the error at which the loss becomes linear.
        eps: added to the hyperbolic cosine, if 1 + eps differs from 1 in the signal's precision.
        reduction: "mean" or "sum" over channels, or "none".
    """

    def __init__(self, a: float = 1.0, eps: float = 1e-8, reduction: str = "mean"):
        super().__init__()
        self.a, self.eps, self.reduction = a, eps, reduction

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        value = log_cosh(prediction, target, self.a)
        if 1 + prediction.new_tensor(self.eps) == 1:
            return value
        share = self.eps / (self.a * (prediction - target)).cosh()
        return value + share.log1p().mean((1, 2)) / self.a


class SNRLoss(_ChannelLoss):
    """Minus the signal-to-noise ratio in dB.

    Args:
        zero_mean: subtract each signal's mean first.
        eps: keeps the energies above 0.
        reduction: "mean" or "sum" over channels, or "none".
    """

    function = staticmethod(snr)

    def __init__(self, zero_mean: bool = True, eps: float = 1e-8, reduction: str = "mean"):
        super().__init__()
        self.zero_mean, self.eps, self.reduction = zero_mean, eps, reduction

    def compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.function(prediction, target, self.zero_mean, self.eps)


class SISDRLoss(SNRLoss):
    """Minus the scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019); arguments of `SNRLoss`."""

    function = staticmethod(si_sdr)


class SDSDRLoss(SNRLoss):
    """Minus the scale-dependent signal-to-distortion ratio in dB (Le Roux et al. 2019); arguments of `SNRLoss`."""

    function = staticmethod(sd_sdr)
