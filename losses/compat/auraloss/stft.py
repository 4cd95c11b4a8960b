"""Distances of magnitude spectrograms and the STFT loss of one resolution, as `auraloss.freq` has them.

Signals are `[B, C, N]`, and every channel counts as an item of the batch. `reduction` concerns the distances of
magnitudes, over all bins: "mean", "sum", or "none" for `[B C, bins, frames]`. Spectral convergence is always one number
for the whole batch, and the phase term a mean. With `output="full"` a loss also returns its terms before weighting; one
of weight 0 is 0.0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from losses.base import full_precision
from losses.compat.auraloss.perceptual import FIRFilter
from losses.compat.auraloss.utils import apply_reduction
from losses.dsp.bank import sharing_spectra
from losses.dsp.scales import Log, difference
from losses.dsp.stft import POWER_FLOOR, window_values
from losses.dsp.transforms import STFT, Chroma, Mel
from losses.stft import checked_output
from losses.stft_settings import DISTANCES, LEAST
from losses.time_frequency import spectral_convergence

Term = Tensor | float
Terms = tuple[Term, Term, Term, Term, Term]  # the loss, spectral convergence, log magnitude, magnitude, phase


class SpectralConvergenceLoss(nn.Module):
    """Spectral convergence `‖T − P‖_F / ‖T‖_F` of two spectrograms of any shape, one number (Arık et al. 2018)."""

    def forward(self, x_mag: Tensor, y_mag: Tensor) -> Tensor:
        return spectral_convergence(_rows(x_mag), _rows(y_mag), floor=0.0)[0]


class STFTMagnitudeLoss(nn.Module):
    """L1 or mean square distance of two magnitude spectrograms of any shape, or of their logarithms.

    Args:
        log: compare `ln(log_fac S + log_eps)`.
        distance: "L1" or "L2" (squares).
        reduction: "mean", "sum" or "none".
        log_fac: factor under the logarithm.
        log_eps: offset under the logarithm.
        floor: least value under the logarithm; 0 for none.

    Raises:
        ValueError: an unknown distance or reduction.
    """

    def __init__(
        self,
        log: bool = True,
        distance: str = "L1",
        reduction: str = "mean",
        *,
        log_fac: float = 1.0,
        log_eps: float = 0.0,
        floor: float = 0.0,
    ):
        super().__init__()
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        self.log, self.distance, self.reduction = log, distance, reduction
        self.scale = Log(log_fac, log_eps, floor) if log else None

    def forward(self, x_mag: Tensor, y_mag: Tensor) -> Tensor:
        if self.reduction == "none":
            apart = x_mag - y_mag if self.scale is None else difference(x_mag, y_mag, self.scale)
            return apart.abs() if self.distance == "L1" else apart.square()
        mean = DISTANCES[self.distance](_rows(x_mag), _rows(y_mag), self.scale)[0]
        return mean * x_mag.numel() if self.reduction == "sum" else mean


class STFTLoss(nn.Module):
    """`w_sc SC + w_log_mag LOG + w_lin_mag LIN + w_phs PHS` of one resolution (Yamamoto et al. 2020).

    SC is the spectral convergence, LOG and LIN the distances of log magnitudes and magnitudes, PHS the mean square
    difference of the angles in (−π, π].

    Args:
        fft_size: transform size, samples.
        hop_size: samples from frame to frame.
        win_length: window, samples.
        window: a function of torch ("hann_window") or a name of `scipy.signal.get_window`.
        w_sc, w_log_mag, w_lin_mag, w_phs: weights of the terms.
        sample_rate: Hz, for `scale` and `perceptual_weighting`.
        scale: None, "mel" or "chroma".
        n_bins: bands of the scale; default 128, or 12 for chroma.
        perceptual_weighting: A-weight both signals first.
        scale_invariance: scale T to P by least squares, per channel.
        eps: least power of a bin.
        output: "loss", or "full" for the loss and its four terms.
        reduction: "mean", "sum" or "none".
        mag_distance: "L1" or "L2" for LOG and LIN.
        device: of the filter bank kept in the state; the loss computes where its signals are.
        log_fac, log_eps: LOG compares `ln(log_fac S + log_eps)`.

    Raises:
        ValueError: no such value of an option, or no sample rate where it is needed; at the call, shapes that differ or
            are not `[B, C, N]`, or a signal too short to be reflected.
    """

    def __init__(
        self,
        fft_size: int = 1024,
        hop_size: int = 256,
        win_length: int = 1024,
        window: str = "hann_window",
        w_sc: float = 1.0,
        w_log_mag: float = 1.0,
        w_lin_mag: float = 0.0,
        w_phs: float = 0.0,
        sample_rate: float | None = None,
        scale: str | None = None,
        n_bins: int | None = None,
        perceptual_weighting: bool = False,
        scale_invariance: bool = False,
        eps: float = POWER_FLOOR,
        output: str = "loss",
        reduction: str = "mean",
        mag_distance: str = "L1",
        device: Any = None,
        *,
        log_fac: float = 1.0,
        log_eps: float = 0.0,
    ):
        super().__init__()
        self.fft_size, self.hop_size, self.win_length, self.eps = fft_size, hop_size, win_length, eps
        self.w_sc, self.w_log_mag, self.w_lin_mag, self.w_phs = w_sc, w_log_mag, w_lin_mag, w_phs
        self.sample_rate, self.scale, self.n_bins = sample_rate, scale, n_bins
        self.perceptual_weighting, self.scale_invariance = perceptual_weighting, scale_invariance
        self.output, self.device = checked_output(output), device
        self.reduction, self.mag_distance = reduction, mag_distance
        self.transform = self._transform(fft_size, hop_size, win_length, window, 1, "reflect", eps)
        floor = LEAST if scale or scale_invariance else 0.0
        log = {"log_fac": log_fac, "log_eps": log_eps, "floor": floor}
        self.spectralconv = SpectralConvergenceLoss()
        self.logstft = STFTMagnitudeLoss(True, mag_distance, reduction, **log)
        self.linstft = STFTMagnitudeLoss(False, mag_distance, reduction)
        if perceptual_weighting:
            self.prefilter = FIRFilter("aw", fs=self._rate())

    def forward(self, input: Tensor, target: Tensor) -> Any:
        return self._output(full_precision(self._weighted_terms)(input, target))

    def stft(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitudes and angles `[B, fft_size // 2 + 1, frames]` of signals `[B, N]`, without the scale's bands."""
        window = window_values(self.transform.window, self.win_length, x.device, x.dtype)
        bins = torch.stft(x, self.fft_size, self.hop_size, self.win_length, window, return_complex=True)
        return (bins.real.square() + bins.imag.square()).clamp_min(self.eps).sqrt(), bins.angle()

    def _weighted_terms(self, prediction: Tensor, target: Tensor) -> Terms:
        if self.perceptual_weighting:
            prediction, target = self.prefilter(prediction, target)
        return self.terms(prediction, target)

    @sharing_spectra
    def terms(self, prediction: Tensor, target: Tensor) -> Terms:
        """The loss and its terms, of signals that are A-weighted already if they are to be."""
        predicted, wanted = (self._frames(self.transform(signal), signal) for signal in (prediction, target))
        if self.scale_invariance:
            energy = wanted.square().sum((-2, -1), keepdim=True)
            wanted = wanted * (predicted * wanted).sum((-2, -1), keepdim=True) / energy.clamp_min(POWER_FLOOR)
        sc = self.spectralconv(predicted, wanted) if self.w_sc else 0.0
        log = self._by_bins(self.logstft(predicted, wanted)) if self.w_log_mag else 0.0
        lin = self._by_bins(self.linstft(predicted, wanted)) if self.w_lin_mag else 0.0
        phs = mse_loss(self._angles(prediction), self._angles(target)) if self.w_phs else 0.0
        loss = self.w_sc * sc + self.w_log_mag * log + self.w_lin_mag * lin + self.w_phs * phs
        total = loss if isinstance(loss, Tensor) else predicted.new_tensor(loss)
        return apply_reduction(total, self.reduction), sc, log, lin, phs

    def _output(self, terms: Terms) -> Any:
        return terms if self.output == "full" else terms[0]

    def _angles(self, signal: Tensor) -> Tensor:
        # By torch, as auraloss: rounding decides between π and −π in a frame at a reflected end, which is symmetric.
        return self.stft(signal.flatten(0, 1))[1]

    def _frames(self, spectrogram: Tensor, signal: Tensor) -> Tensor:
        """The frames that auraloss has: with an odd FFT it pads a sample less."""
        return spectrogram[:, :, : 1 + (signal.shape[-1] - self.fft_size % 2) // self.hop_size]

    def _by_bins(self, values: Tensor) -> Tensor:
        """`[B, C, frames, bins]` as auraloss returns it, `[B C, bins, frames]`; a number as it is."""
        return values.flatten(0, 1).transpose(1, 2) if values.dim() else values

    def _transform(self, *sizes: Any) -> STFT:
        if self.scale is None:
            return STFT(*sizes)
        if self.scale not in ("mel", "chroma"):
            raise ValueError(f"scale must be None, 'mel' or 'chroma', got {self.scale!r}")
        rate = self._rate()
        if self.scale == "mel":
            transform: STFT = Mel(*sizes, sample_rate=rate, n_mels=self.n_bins or 128)
        else:
            transform = Chroma(*sizes, sample_rate=rate, n_chroma=self.n_bins or 12)
        # Not computed with, but part of a model's state, as with auraloss.
        filters = transform.bands(torch.eye(self.fft_size // 2 + 1)).T
        self.register_buffer("fb", filters[None].contiguous().to(self.device))
        return transform

    def _rate(self) -> Any:
        if self.sample_rate is None:
            raise ValueError("a mel or chroma scale and perceptual weighting need the sample_rate, in Hz")
        return self.sample_rate


class MelSTFTLoss(STFTLoss):
    """`STFTLoss` on `n_mels` mel bands (Slaney's, of unit area)."""

    def __init__(
        self,
        sample_rate: float,
        fft_size: int = 1024,
        hop_size: int = 256,
        win_length: int = 1024,
        window: str = "hann_window",
        w_sc: float = 1.0,
        w_log_mag: float = 1.0,
        w_lin_mag: float = 0.0,
        w_phs: float = 0.0,
        n_mels: int = 128,
        **kwargs: Any,
    ):
        sizes, weights = (fft_size, hop_size, win_length, window), (w_sc, w_log_mag, w_lin_mag, w_phs)
        super().__init__(*sizes, *weights, sample_rate, "mel", n_mels, **kwargs)


class ChromaSTFTLoss(STFTLoss):
    """`STFTLoss` on `n_chroma` pitch classes."""

    def __init__(
        self,
        sample_rate: float,
        fft_size: int = 1024,
        hop_size: int = 256,
        win_length: int = 1024,
        window: str = "hann_window",
        w_sc: float = 1.0,
        w_log_mag: float = 1.0,
        w_lin_mag: float = 0.0,
        w_phs: float = 0.0,
        n_chroma: int = 12,
        **kwargs: Any,
    ):
        sizes, weights = (fft_size, hop_size, win_length, window), (w_sc, w_log_mag, w_lin_mag, w_phs)
        super().__init__(*sizes, *weights, sample_rate, "chroma", n_chroma, **kwargs)


def _rows(spectrogram: Tensor) -> Tensor:
    """A spectrogram of any shape as one item, `[1, 1, rows, columns]`."""
    return spectrogram.reshape(1, 1, -1, spectrogram.shape[-1])
