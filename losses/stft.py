"""STFT losses with auraloss's options: one resolution, mel or chroma scale."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from losses.base import Loss, check_same_shape
from losses.dsp.autograd import mean_abs
from losses.dsp.filterbanks import mel_spectrogram
from losses.dsp.filters import a_weighted
from losses.dsp.stft import POWER_FLOOR, Window, log_ratio, magnitude, phase, shared_spectra, window_values
from losses.dsp.transforms import chroma_filters
from losses.registry import register

SILENCE = 1e-3  # −60 dBFS: convergence is relative to at least this level, or silent targets would outweigh all others
LEAST = 1e-12
DISTANCES = ("L1", "L2")
SCALES = (None, "mel", "chroma")


class STFTTerms(NamedTuple):
    """The loss and its terms before weighting, each `[B]` (or a mean over items); a term of weight 0 is 0."""

    loss: Tensor
    sc_mag_loss: Tensor
    log_mag_loss: Tensor
    lin_mag_loss: Tensor
    phs_loss: Tensor


def norm(values: Tensor) -> Tensor:
    """Frobenius norm per item, `[B, …] → [B]`, with gradient 0 at 0."""
    return torch.linalg.vector_norm(torch.linalg.vector_norm(values, dim=-1).flatten(1), dim=1)


def distance(name: str) -> Callable[[Tensor], Tensor]:
    """The distance of a difference `[B, …] → [B]`: "L1", mean of magnitudes, or "L2", mean of squares."""
    if name not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {name!r}")
    return mean_abs if name == "L1" else lambda values: values.square().mean(-1).flatten(1).mean(1)


def convergence(prediction: Tensor, target: Tensor, silence: Tensor, batch: bool = False) -> Tensor:
    """Spectral convergence `‖T − P‖_F / max(‖T‖_F, silence)` of spectrograms, per item or over the batch, `[B]`.

    Arik et al. 2018. The floor keeps silent targets from outweighing all others.
    """
    error, reference = norm(target - prediction), norm(target)
    if batch:
        error = torch.linalg.vector_norm(error).expand(len(error))
        reference = torch.linalg.vector_norm(reference).expand(len(reference))
        silence = silence * len(reference) ** 0.5
    return error / torch.maximum(reference, silence)


@shared_spectra()
def stft_terms(
    prediction: Tensor,
    target: Tensor,
    fft_size: int = 1024,
    hop_size: int = 256,
    win_length: int = 1024,
    window: Window = "hann_window",
    w_sc: float = 1.0,
    w_log_mag: float = 1.0,
    w_lin_mag: float = 0.0,
    w_phs: float = 0.0,
    sample_rate: int | None = None,
    scale: str | None = None,
    n_bins: int | None = None,
    perceptual_weighting: bool = False,
    scale_invariance: bool = False,
    eps: float = POWER_FLOOR,
    mag_distance: str = "L1",
    log_fac: float = 1.0,
    log_eps: float = 0.0,
    pad_mode: str = "reflect",
    batch: bool = False,
) -> STFTTerms:
    """The terms of `stft`, which explains the arguments; each `[B]`."""
    check_same_shape(prediction, target)
    if scale not in SCALES:
        raise ValueError(f"scale must be None, 'mel' or 'chroma', got {scale!r}")
    if sample_rate is None and (scale or perceptual_weighting):
        raise ValueError("a mel or chroma scale and perceptual weighting need the sample_rate, in Hz")
    if perceptual_weighting:
        assert sample_rate is not None
        prediction, target = a_weighted(prediction, sample_rate), a_weighted(target, sample_rate)
    resolution: dict[str, Any] = {
        "n_fft": fft_size,
        "hop_length": hop_size,
        "win_length": win_length,
        "window": window,
        "pad_mode": pad_mode,
        "eps": eps,
    }
    predicted, wanted = magnitude(prediction, **resolution), magnitude(target, **resolution)
    # Magnitudes of white noise at the level of silence.
    energy = window_values(window, win_length, predicted.device, predicted.dtype).square().sum()
    silence = (SILENCE * energy.sqrt()).expand(1, predicted.shape[-1])
    plain = True
    if scale is not None:
        assert sample_rate is not None
        predicted, wanted, silence = (
            _bands(values, scale, sample_rate, fft_size, n_bins) for values in (predicted, wanted, silence)
        )
        plain = False
    if scale_invariance:
        energy = wanted.square().sum((-2, -1), keepdim=True)
        wanted = wanted * (predicted * wanted).sum((-2, -1), keepdim=True) / energy.clamp_min(POWER_FLOOR)
        plain = False
    zero = predicted.new_zeros(len(predicted))
    sc = log_mag = lin_mag = phs = zero
    of = distance(mag_distance)
    if w_sc:
        floor = torch.linalg.vector_norm(silence) * (predicted.shape[1] * predicted.shape[2]) ** 0.5
        sc = convergence(predicted, wanted, floor, batch)
    if w_log_mag:
        if plain and log_fac == 1 and log_eps == 0:
            difference = log_ratio(prediction, target, **resolution)
        else:
            difference = _log(predicted, log_fac, log_eps) - _log(wanted, log_fac, log_eps)
        log_mag = of(difference)
    if w_lin_mag:
        lin_mag = of(predicted - wanted)
    if w_phs:
        phs = distance("L2")(phase(prediction, **resolution) - phase(target, **resolution))
    loss = w_sc * sc + w_log_mag * log_mag + w_lin_mag * lin_mag + w_phs * phs
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
        target: likewise.
        **settings: fft_size, hop_size, win_length: samples. window: see `spectra.spectrum`. w_sc, w_log_mag,
            w_lin_mag, w_phs: weights. sample_rate: Hz, for mel, chroma and perceptual weighting. scale: None, "mel" or
            "chroma", with n_bins bands (128, or 12 for chroma). perceptual_weighting: A-weight both signals first.
            scale_invariance: scale T to P by least squares, per channel. eps: floor of the power. mag_distance: "L1"
            or "L2", for LOG and LIN. log_fac, log_eps: factor and offset under the logarithm. pad_mode: "reflect" or
            "constant". batch: SC over the whole batch, the same value for each item, as auraloss has it.

    Raises:
        ValueError: shapes differ, the signal is too short, or a setting is not one of those above.
    """
    return stft_terms(prediction, target, **settings).loss


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
        batch = {"batch": True} if reduction == "batch" else {}
        super().__init__(partial(self.terms, **settings, **batch), "mean" if batch else reduction)

    terms: Callable[..., STFTTerms] = staticmethod(stft_terms)

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


def _log(values: Tensor, log_fac: float, log_eps: float) -> Tensor:
    """A filter without bins gives 0, whose logarithm must be finite."""
    return (log_fac * values + log_eps).clamp_min(LEAST).log()


def _bands(values: Tensor, scale: str, sample_rate: int, n_fft: int, n_bins: int | None) -> Tensor:
    """Mel bands or pitch classes of `[…, frames, bins]`."""
    if scale == "mel":
        return mel_spectrogram(values, sample_rate, n_fft, n_bins or 128)
    return values @ chroma_filters(sample_rate, n_fft, n_bins or 12, values.device, values.dtype).T
