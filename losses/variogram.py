"""A distance that hears order: the variogram of the onsets."""

from __future__ import annotations

from torch import Tensor

from losses.audible import FLOOR_DB, full_scale_power
from losses.base import FunctionLoss, full_precision
from losses.dsp.norms import mean_abs
from losses.dsp.scales import Log
from losses.dsp.transforms import Mel
from losses.registry import register

FRAME_SECONDS = 0.02
LAGS = (2, 100)  # frames, from 40 ms to 2 s
N_FFT, N_MELS = 1024, 40
STEADY = 0.02  # nepers: a difference of onset strength that is added to the mean, so that steady sounds have no rhythm


@register("variogram", group="spectral", distance=True)
@full_precision
def variogram(prediction: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """L1 of the variograms of onset strength: rhythm, whatever the moment and the notes.

    Formula: `mean_τ |ρ_p(τ) − ρ_t(τ)|`, `ρ(τ) = γ(τ) / (0.02 + mean_τ γ)`, `γ(τ) = mean_s |o(s + τ) − o(s)|`, o(s) the
      mean over 40 mel bands of the rise of their log power, 20 ms a frame, τ from 40 ms to 2 s.
    Use: beside another distance, as it hears the order of sounds and nothing else.

    A mean over frames cannot tell music from its shuffled shards; differences over many lags can. After the variogram
    score of Scheuerer & Hamill (2015), with exponent 1, which they set against the finding of Pinson & Tastu (2013)
    that the energy score hardly sees how variables depend on one another. Unlike theirs, the variogram is averaged over
    time, so that a beat need not fall on the truth's, and divided by its mean, so that neither level nor number of
    onsets decides; the norm of the difference is not squared, so that not only the mean over samples counts. A function
    of each signal alone under a norm, hence of negative type.

    γ of all lags is a mean over the same s, and τ is at most half the signal's length. Log powers are as in
    `floored_mel`, with its floor of −75 dBFS.

    Raises:
        ValueError: shapes differ, or fewer than 80 ms or 513 samples.
    """
    hop = round(FRAME_SECONDS * sample_rate)
    least = max(N_FFT // 2 + 1, 2 * LAGS[0] * hop)
    if prediction.shape[-1] < least:
        raise ValueError(
            f"a signal of shape {list(prediction.shape)} is too short for a variogram: at least {least} samples are "
            "needed"
        )
    return mean_abs(*(_lagged_differences(signal, sample_rate, hop) for signal in (prediction, target)))


def _lagged_differences(signal: Tensor, sample_rate: int, hop: int) -> Tensor:
    """ρ of each lag, `[B, C, lags]`."""
    transform = Mel(N_FFT, hop, sample_rate=sample_rate, n_mels=N_MELS, unit_area=False)
    levels = Log(offset=full_scale_power(N_FFT) * 10 ** (FLOOR_DB / 10))(transform(signal)) / 2
    onsets = levels.diff(dim=-2).relu().mean(-1)
    longest = min(LAGS[1], onsets.shape[-1] // 2)
    windows = onsets.unfold(-1, longest + 1, 1)
    differences = (windows[..., LAGS[0] :] - windows[..., :1]).abs().mean(-2)
    scaled: Tensor = differences / (STEADY + differences.mean(-1, keepdim=True))
    return scaled


class VariogramLoss(FunctionLoss):
    """L1 of the variograms of onset strength; see `variogram` for the settings."""

    compare = staticmethod(variogram)

    def __init__(self, sample_rate: int, *, reduction: str = "mean"):
        super().__init__(sample_rate=sample_rate, reduction=reduction)
