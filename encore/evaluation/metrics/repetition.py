"""Is a continuation only its context once more? And at which lag does music repeat best?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from encore.errors import EncoreError
from encore.evaluation.metrics.log_mel import log_mel, signal, window_length

WINDOW_SECONDS = 0.08
FRAMES_PER_SECOND = 150
LEAST_LAG_SECONDS = 0.2
LEAST_LOOP_SECONDS = 0.5
LEAST_CHANGE = 1e-4  # dB², the mean square over frames and bands: below it nothing changes over time


@dataclass(frozen=True)
class Repetition:
    """What a continuation is most like of what lies one lag before it.

    Attributes:
        similarity: correlation of log-mel spectrograms, −1 to 1: 1 for a loop or a copy of the context (above 0.98
            where its lag lies between two frames), about 0 for noise. Real music has some; compare with the truth's.
        lag: in seconds.
    """

    similarity: float
    lag: float


def repetition(context: Tensor | ArrayLike, continuation: Tensor | ArrayLike, sample_rate: int) -> Repetition:
    """The greatest similarity of `continuation [C, M]` to what lies one lag before it.

    Context `[C, K]` and continuation lie in one log-mel spectrogram of 150 frames a second. For every lag L from
    0.2 s to the whole context, all frames n of the continuation are held to the frames n − L, of the context or, where
    n − L ≥ 0, of the continuation itself: a loop equals itself there. The similarity is the correlation over all
    frames and bands, each band less its mean over the frames: a steady spectrum that both share is no repetition.
    Where nothing changes over time it is 0.

    Raises:
        EncoreError: the context is shorter than the shortest lag, or the continuation than that and a window.
    """
    before, after = signal(context), signal(continuation)
    hop, n_fft = round(sample_rate / FRAMES_PER_SECOND), window_length(sample_rate, WINDOW_SECONDS)
    first = round(LEAST_LAG_SECONDS * FRAMES_PER_SECOND)
    start, frames = before.shape[-1] // hop, 1 + (after.shape[-1] - n_fft) // hop
    if start < first or frames < first:
        raise EncoreError(
            f"repetition in {after.shape[-1] / sample_rate:.2f} s after {before.shape[-1] / sample_rate:.2f} s of "
            f"context: at least {LEAST_LAG_SECONDS + n_fft / sample_rate:.2f} s of each are needed; give longer ones"
        )
    # The spectrogram begins so that the join lies at the beginning of a frame.
    spectra = log_mel(
        torch.cat([before[..., before.shape[-1] - start * hop :], after], dim=-1), sample_rate, n_fft, hop
    )
    spectra -= spectra.mean(0)
    continued = spectra[start:] - spectra[start:].mean(0)
    earlier = spectra[: start - first + frames]
    products = torch.nn.functional.conv1d(earlier.T[None], continued.T[None])[0, 0].double()
    # Sums over the frames that each lag compares with, as differences of cumulated ones.
    sums, squares = (
        torch.nn.functional.pad(part.double().cumsum(0), (0, 0, 1, 0)).unfold(0, frames + 1, 1)
        for part in (earlier, earlier.square())
    )
    sums, squares = sums[..., -1] - sums[..., 0], squares[..., -1] - squares[..., 0]
    changes = (squares - sums.square() / frames).sum(1) * continued.double().square().sum()
    least = (LEAST_CHANGE * continued.numel()) ** 2
    similarities = torch.where(changes > least, products / changes.clamp_min(least).sqrt(), 0.0)
    best = int(similarities.argmax())
    return Repetition(min(1.0, float(similarities[best])), (start - best) * hop / sample_rate)


def best_lag(
    context: Tensor | ArrayLike,
    sample_rate: int,
    shortest: float = LEAST_LOOP_SECONDS,
    longest: float | None = None,
) -> int:
    """The lag, in samples, at which `context [C, K]` is most like itself: of music mostly some bars.

    The greatest correlation of the log-mel spectrogram's frames t ≥ L with the frames t − L, each band less its mean;
    in steps of 1/150 s.

    Args:
        shortest, longest: seconds; `longest` is half the context unless given, so that at least half of it is compared.

    Raises:
        EncoreError: no lag lies between `shortest` and `longest`, or the context is hardly longer than it.
    """
    audio = signal(context)
    hop, n_fft = round(sample_rate / FRAMES_PER_SECOND), window_length(sample_rate, WINDOW_SECONDS)
    longest = audio.shape[-1] / sample_rate / 2 if longest is None else longest
    lags = range(round(shortest * sample_rate / hop), int(longest * sample_rate / hop) + 1)
    # Two frames at least, as the correlation of one with its mean is nothing.
    if not lags or audio.shape[-1] < (lags[-1] + 1) * hop + n_fft:
        raise EncoreError(
            f"a context of {audio.shape[-1] / sample_rate:.2f} s: lags from {shortest:g} s to {longest:.2f} s can't be "
            "found in it; give a longer context"
        )
    spectra = log_mel(audio, sample_rate, n_fft, hop)
    similarities = torch.stack([(_unit(spectra[lag:]) * _unit(spectra[:-lag])).sum() for lag in lags])
    return hop * lags[int(similarities.argmax())]


def _unit(spectra: Tensor) -> Tensor:
    """`[frames, bands]` less each band's mean, at norm 1; hardly anything where it does not change."""
    varied = spectra - spectra.mean(0)
    return varied / varied.norm().clamp_min((LEAST_CHANGE * varied.numel()) ** 0.5)
