"""STFT losses with auraloss's options: one resolution, mel or chroma scale."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from losses.base import Loss, full_precision
from losses.dsp.bank import sharing_spectra
from losses.dsp.filters import a_weighted
from losses.dsp.stft import POWER_FLOOR, Window, phase
from losses.registry import register
from losses.stft_settings import (
    DISTANCES,
    ScaledSTFTOptions,
    STFTOptions,
    STFTSettings,
    changed_settings,
    checked_settings,
    spelled_out,
)
from losses.time_frequency import l2, spectral_convergence

if TYPE_CHECKING:
    from typing_extensions import Unpack


class STFTTerms(NamedTuple):
    """The loss and its terms before weighting, each `[B]` (or a mean over items); a term of weight 0 is 0."""

    loss: Tensor
    sc_mag_loss: Tensor
    log_mag_loss: Tensor
    lin_mag_loss: Tensor
    phs_loss: Tensor


@sharing_spectra
def stft_terms(prediction: Tensor, target: Tensor, settings: STFTSettings, weighted: bool = False) -> STFTTerms:
    """The terms of `stft`, which explains them; each `[B]`. `weighted`: perceptual weighting is done already."""
    if settings.perceptual_weighting and not weighted:
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


@full_precision
@spelled_out(ScaledSTFTOptions)
def stft(
    prediction: Tensor,
    target: Tensor,
    fft_size: int = 1024,
    hop_size: int = 256,
    win_length: int = 1024,
    window: Window = "hann_window",
    **options: Unpack[ScaledSTFTOptions],
) -> Tensor:
    """STFT loss `w_sc·SC + w_log_mag·LOG + w_lin_mag·LIN + w_phs·PHS` of magnitudes P and T, `[B]`.

    SC is the spectral convergence `‖T − P‖_F / ‖T‖_F` (T at least white noise of −60 dBFS), LOG the distance of
    `ln(log_fac·P + log_eps)`, LIN that of P, PHS the mean square difference of the angles in (−π, π], which jumps where
    an angle passes π (`losses.phase` does not). Arik et al. 2018, Yamamoto et al. 2020; options and defaults of
    auraloss 0.4's `STFTLoss`, to whose value and gradient it is equal for one item, and with `batch` for several (the
    gradient of ln|X| is ill-conditioned in float32: at bins near 0 either is as far from the exact one).
    Differences: PHS has no gradient at bins whose power is at most `eps`, where auraloss's has no bound, and where
    frames at reflected ends are symmetric, rounding decides in both between the angles π and −π; SC is per item, so
    that its mean does not depend on how a batch is divided among ranks; the chroma scale works (auraloss registers a
    NumPy array as a buffer and fails); scale invariance works for several items (auraloss multiplies them into each
    other's bins); a mel filter without bins does not give ln 0.

    Args:
        prediction: `[B, C, N]`.
        target: as the prediction.
        fft_size: transform size, samples.
        hop_size: samples from frame to frame.
        win_length: samples of the window.
        window: by name, as in `losses.dsp.stft.Resolution`.
        **options: see `losses.stft_settings.STFTSettings`.

    Raises:
        ValueError: shapes differ, the signal is too short, or a setting has no such value.
        TypeError: an option that it does not take.
    """
    sizes = {"fft_size": fft_size, "hop_size": hop_size, "win_length": win_length, "window": window}
    return stft_terms(prediction, target, checked_settings(stft, sizes, options)).loss


@register("stft", group="spectral")
class STFTLoss(Loss):
    """STFT loss of one resolution: spectral convergence + L1 of log magnitudes.

    Formula: `w_sc SC + w_log_mag LOG + w_lin_mag LIN + w_phs PHS`, weights 1, 1, 0, 0, FFT 1024, hop 256.
    Use: when you want all the options.

    Args:
        fft_size: transform size, samples.
        hop_size: samples from frame to frame.
        win_length: samples of the window.
        window: by name, as in `losses.dsp.stft.Resolution`.
        output: "loss", or "full" for `STFTTerms`, the loss and its terms.
        reduction: "mean" or "sum" over items, "none" for all of them, or "batch": the mean, with spectral convergence
            over the whole batch, as auraloss has it.
        **options: see `stft`.

    Raises:
        ValueError: a setting has no such value.
        TypeError: an option that it does not take.
    """

    @spelled_out(ScaledSTFTOptions)
    def __init__(
        self,
        fft_size: int = 1024,
        hop_size: int = 256,
        win_length: int = 1024,
        window: Window = "hann_window",
        *,
        output: str = "loss",
        reduction: str = "mean",
        **options: Unpack[ScaledSTFTOptions],
    ):
        if reduction == "batch":
            options["batch"], reduction = True, "mean"
        self.output = checked_output(output)
        sizes = {"fft_size": fft_size, "hop_size": hop_size, "win_length": win_length, "window": window}
        self.stft_settings = checked_settings(type(self), sizes, options)
        super().__init__(partial(stft_terms, settings=self.stft_settings), reduction)

    def settings(self) -> Mapping[str, Any]:
        output = {} if self.output == "loss" else {"output": self.output}
        return {**changed_settings(self.stft_settings), **output}

    def reduced(self, values: Any) -> Any:
        if self.output == "loss":
            return super().reduced(values.loss)
        return STFTTerms(*(super(STFTLoss, self).reduced(term) for term in values))


@register("mel_stft", group="spectral")
class MelSTFTLoss(STFTLoss):
    """STFT loss on 128 mel bands.

    Formula: `stft` on mel bands, `n_mels` = 128.
    Use: as `stft`, but coarser with rising frequency, as hearing is.

    Args:
        sample_rate: Hz.
        n_mels: bands.
        others: see `STFTLoss`.
    """

    @spelled_out(STFTOptions)
    def __init__(
        self,
        sample_rate: int,
        fft_size: int = 1024,
        hop_size: int = 256,
        win_length: int = 1024,
        window: Window = "hann_window",
        *,
        n_mels: int = 128,
        output: str = "loss",
        reduction: str = "mean",
        **options: Unpack[STFTOptions],
    ):
        scale: ScaledSTFTOptions = {"sample_rate": sample_rate, "scale": "mel", "n_bins": n_mels, **options}
        super().__init__(fft_size, hop_size, win_length, window, output=output, reduction=reduction, **scale)


@register("chroma_stft", group="spectral")
class ChromaSTFTLoss(STFTLoss):
    """STFT loss on 12 pitch classes.

    Formula: `stft` on pitch classes, `n_chroma` = 12.
    Use: harmony, whatever the octave and timbre.

    Args:
        sample_rate: Hz.
        n_chroma: pitch classes.
        others: see `STFTLoss`.
    """

    @spelled_out(STFTOptions)
    def __init__(
        self,
        sample_rate: int,
        fft_size: int = 1024,
        hop_size: int = 256,
        win_length: int = 1024,
        window: Window = "hann_window",
        *,
        n_chroma: int = 12,
        output: str = "loss",
        reduction: str = "mean",
        **options: Unpack[STFTOptions],
    ):
        scale: ScaledSTFTOptions = {"sample_rate": sample_rate, "scale": "chroma", "n_bins": n_chroma, **options}
        super().__init__(fft_size, hop_size, win_length, window, output=output, reduction=reduction, **scale)


def checked_output(output: str) -> str:
    """The kind of output, "loss" or "full".

    Raises:
        ValueError: another one.
    """
    if output not in ("loss", "full"):
        raise ValueError(f"output must be 'loss' or 'full', got {output!r}")
    return output
