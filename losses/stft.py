"""STFT losses with auraloss's options: one resolution, mel or chroma scale."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from losses.base import Loss, check_same_shape
from losses.dsp.bank import shared_spectra
from losses.dsp.filters import a_weighted
from losses.dsp.scales import Log
from losses.dsp.stft import POWER_FLOOR, Window, phase, window_values
from losses.dsp.transforms import STFT, Chroma, Mel
from losses.registry import register
from losses.time_frequency import Norm, l1, l2, spectral_convergence

SILENCE = 1e-3  # −60 dBFS: convergence is relative to at least this level, or silent targets would outweigh all others
LEAST = 1e-12  # what a mel filter without bins counts as under a logarithm
DISTANCES: dict[str, Norm] = {"L1": l1, "L2": l2}


class STFTTerms(NamedTuple):
    """The loss and its terms before weighting, each `[B]` (or a mean over items); a term of weight 0 is 0."""

    loss: Tensor
    sc_mag_loss: Tensor
    log_mag_loss: Tensor
    lin_mag_loss: Tensor
    phs_loss: Tensor


@dataclass(frozen=True)
class STFTSettings:
    """The settings of `stft`, with auraloss's names and defaults.

    Attributes:
        fft_size: transform size, samples.
        hop_size: samples from frame to frame.
        win_length: window, samples.
        window: by name, as in `losses.dsp.stft.Resolution`.
        w_sc: weight of the spectral convergence.
        w_log_mag: weight of the distance of log magnitudes.
        w_lin_mag: weight of the distance of magnitudes.
        w_phs: weight of the mean square difference of the angles.
        sample_rate: Hz, for mel, chroma and perceptual weighting.
        scale: None, "mel" or "chroma".
        n_bins: bands of the scale; default 128, or 12 for chroma.
        perceptual_weighting: A-weight both signals first.
        scale_invariance: scale T to P by least squares, per channel.
        eps: least power of a bin.
        mag_distance: "L1" or "L2", for magnitudes and log magnitudes.
        log_fac: factor under the logarithm.
        log_eps: offset under the logarithm.
        pad_mode: "reflect" or "constant" (zeros) beyond the ends.
        batch: spectral convergence over the whole batch, the same value for each item, as auraloss has it.

    Raises:
        ValueError: an unknown scale or distance, or no sample rate where it is needed.
    """

    fft_size: int = 1024
    hop_size: int = 256
    win_length: int = 1024
    window: Window = "hann_window"
    w_sc: float = 1.0
    w_log_mag: float = 1.0
    w_lin_mag: float = 0.0
    w_phs: float = 0.0
    sample_rate: int | None = None
    scale: str | None = None
    n_bins: int | None = None
    perceptual_weighting: bool = False
    scale_invariance: bool = False
    eps: float = POWER_FLOOR
    mag_distance: str = "L1"
    log_fac: float = 1.0
    log_eps: float = 0.0
    pad_mode: str = "reflect"
    batch: bool = False

    def __post_init__(self) -> None:
        if self.scale not in (None, "mel", "chroma"):
            raise ValueError(f"scale must be None, 'mel' or 'chroma', got {self.scale!r}")
        if self.mag_distance not in DISTANCES:
            raise ValueError(f"mag_distance must be one of {', '.join(DISTANCES)}, got {self.mag_distance!r}")
        if self.sample_rate is None and (self.scale or self.perceptual_weighting):
            raise ValueError("a mel or chroma scale and perceptual weighting need the sample_rate, in Hz")

    @property
    def transform(self) -> STFT:
        """The magnitudes that are compared."""
        sizes = self.fft_size, self.hop_size, self.win_length, self.window, 1, self.pad_mode, self.eps
        if self.scale is None:
            return STFT(*sizes)
        assert self.sample_rate is not None
        if self.scale == "mel":
            return Mel(*sizes, sample_rate=self.sample_rate, n_mels=self.n_bins or 128)
        return Chroma(*sizes, sample_rate=self.sample_rate, n_chroma=self.n_bins or 12)

    @property
    def log(self) -> Log:
        """The logarithm of the log magnitudes; that of plain magnitudes, which are above 0, needs no floor."""
        plain = self.scale is None and not self.scale_invariance and (self.log_fac, self.log_eps) == (1, 0)
        return Log() if plain else Log(self.log_fac, self.log_eps, LEAST)

    def silent_norm(self, spectrogram: Tensor) -> Tensor:
        """The norm of an item of the spectrogram's shape for white noise at −60 dBFS."""
        window = window_values(self.window, self.win_length, spectrogram.device, spectrogram.dtype)
        magnitudes = (SILENCE * window.square().sum().sqrt()).expand(1, self.fft_size // 2 + 1)
        frames = spectrogram.shape[1] * spectrogram.shape[2]
        return torch.linalg.vector_norm(self.transform.bands(magnitudes)) * frames**0.5


@shared_spectra()
def stft_terms(prediction: Tensor, target: Tensor, settings: STFTSettings) -> STFTTerms:
    """The terms of `stft`, which explains them; each `[B]`."""
    check_same_shape(prediction, target)
    if settings.perceptual_weighting:
        assert settings.sample_rate is not None
        prediction, target = (a_weighted(signal, settings.sample_rate) for signal in (prediction, target))
    predicted, wanted = settings.transform(prediction), settings.transform(target)
    distance = DISTANCES[settings.mag_distance]
    if settings.scale_invariance:
        energy = wanted.square().sum((-2, -1), keepdim=True)
        wanted = wanted * (predicted * wanted).sum((-2, -1), keepdim=True) / energy.clamp_min(POWER_FLOOR)
    sc = log_mag = lin_mag = phs = predicted.new_zeros(len(predicted))
    if settings.w_sc:
        sc = spectral_convergence(predicted, wanted, settings.silent_norm(predicted), settings.batch)
    if settings.w_log_mag:
        log_mag = distance(predicted, wanted, settings.log)
    if settings.w_lin_mag:
        lin_mag = distance(predicted, wanted)
    if settings.w_phs:
        resolution = settings.transform.resolution
        phs = l2(phase(prediction, resolution, settings.eps), phase(target, resolution, settings.eps))
    loss = settings.w_sc * sc + settings.w_log_mag * log_mag + settings.w_lin_mag * lin_mag + settings.w_phs * phs
    return STFTTerms(loss, sc, log_mag, lin_mag, phs)


def stft(prediction: Tensor, target: Tensor, **settings: Any) -> Tensor:
    """STFT loss `w_sc·SC + w_log_mag·LOG + w_lin_mag·LIN + w_phs·PHS` of magnitudes P and T, `[B]`.

    SC is the spectral convergence `‖T − P‖_F / ‖T‖_F` (T at least white noise of −60 dBFS), LOG the distance of
    `ln(log_fac·P + log_eps)`, LIN that of P, PHS the mean square difference of the angles in (−π, π], which jumps where
    an angle passes π (`losses.phase` does not). Arik et al. 2018, Yamamoto et al. 2020; options and defaults of
    auraloss 0.4's `STFTLoss`, to whose value and gradient it is equal for one item, and with `batch` for several (the
    gradient of ln|X| is ill-conditioned in float32: at bins near 0 either is as far from the exact one).
    Differences: SC is per item, so that its mean does not depend on how a batch is divided among ranks; the chroma
    scale works (auraloss registers a NumPy array as a buffer and fails); scale invariance works for several items
    (auraloss multiplies them into each other's bins); a mel filter without bins does not give ln 0.

    Args:
        prediction: `[B, C, N]`.
        target: as the prediction.
        **settings: see `STFTSettings`.

    Raises:
        ValueError: shapes differ, the signal is too short, or a setting has no such value.
    """
    return stft_terms(prediction, target, STFTSettings(**settings)).loss


@register("stft", group="spectral")
class STFTLoss(Loss):
    """STFT loss of one resolution: spectral convergence + L1 of log magnitudes.

    Formula: `w_sc SC + w_log_mag LOG + w_lin_mag LIN + w_phs PHS`, weights 1, 1, 0, 0, FFT 1024, hop 256.
    Use: when you want all the options.

    Args:
        output: "loss", or "full" for `STFTTerms`, the loss and its terms.
        reduction: "mean" over items, "none" for all of them, or "batch": the mean, with spectral convergence over the
            whole batch, as auraloss has it.
        **settings: see `stft`.
    """

    def __init__(self, *, output: str = "loss", reduction: str = "mean", **settings: Any):
        if output not in ("loss", "full"):
            raise ValueError(f"output must be 'loss' or 'full', got {output!r}")
        self.output = output
        batch: dict[str, Any] = {"batch": True} if reduction == "batch" else {}
        super().__init__(partial(self.terms, **settings, **batch), "mean" if batch else reduction)

    @staticmethod
    def terms(prediction: Tensor, target: Tensor, **settings: Any) -> STFTTerms:
        return stft_terms(prediction, target, STFTSettings(**settings))

    def reduced(self, values: Any) -> Any:
        if self.output == "loss":
            return super().reduced(values.loss)
        return STFTTerms(*(super(STFTLoss, self).reduced(term) for term in values))


@register("mel_stft", group="spectral")
class MelSTFTLoss(STFTLoss):
    """STFT loss on 128 mel bands.

    Formula: `stft` on mel bands, `n_mels` = 128.
    Use: as `stft`, but coarser with rising frequency, as hearing is.
    """

    def __init__(self, sample_rate: int, n_mels: int = 128, **settings: Any):
        super().__init__(sample_rate=sample_rate, scale="mel", n_bins=n_mels, **settings)


@register("chroma_stft", group="spectral")
class ChromaSTFTLoss(STFTLoss):
    """STFT loss on 12 pitch classes.

    Formula: `stft` on pitch classes, `n_chroma` = 12.
    Use: harmony, whatever the octave and timbre.
    """

    def __init__(self, sample_rate: int, n_chroma: int = 12, **settings: Any):
        super().__init__(sample_rate=sample_rate, scale="chroma", n_bins=n_chroma, **settings)
