"""Is a continuation only its context once more? And at which lag does music repeat best?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from encore.errors import EncoreError
from encore.mel import log_mel, signal, window_length

WINDOW_SECONDS = 0.08
FRAMES_PER_SECOND = 75
LEAST_LAG_SECONDS = 0.2
LEAST_LOOP_SECONDS = 0.5


@dataclass(frozen=True)
class Repetition:
    """The context repeated at the one lag that explains a continuation best.

    Attributes:
        similarity: correlation of the continuation's log-mel spectrogram with the repetition's, −1 to 1: 1 for a loop
            at any lag, about 0 for noise.
        lag: of that repetition, in seconds.
    """

    similarity: float
    lag: float


def repetition(context: Tensor | ArrayLike, continuation: Tensor | ArrayLike, sample_rate: int) -> Repetition:
    """The greatest similarity of `continuation [C, M]` to `context [C, K]` repeated at one lag.

    Both lie in one log-mel spectrogram x, 75 frames a second, in which the continuation begins at frame T. For every
    lag L from 0.2 s to the whole context, frame T + n is held to frame T − L + (n mod L). The similarity is the
    correlation over all frames and bands, each band less its mean over the frames: a steady spectrum that both share
    is no repetition. Where nothing changes over time it is 0.

    Raises:
        EncoreError: the context is shorter than the window and the shortest lag, or the continuation than both.
    """
    before, after = signal(context), signal(continuation)
    hop = round(sample_rate / FRAMES_PER_SECOND)
    n_fft = window_length(sample_rate, WINDOW_SECONDS)
    first = round(LEAST_LAG_SECONDS * FRAMES_PER_SECOND)
    start, frames = before.shape[-1] // hop, 1 + (after.shape[-1] - n_fft) // hop
    if start < first or frames < first:
        raise EncoreError(
            f"repetition in {after.shape[-1] / sample_rate:.2f} s after {before.shape[-1] / sample_rate:.2f} s of "
            f"context: at least {LEAST_LAG_SECONDS + n_fft / sample_rate:.2f} s of each are needed; give longer ones"
        )
    # The spectrogram begins so that the join lies at the beginning of a frame.
    both = torch.cat([before[..., before.shape[-1] - start * hop :], after], dim=-1)
    spectra = log_mel(both, sample_rate, n_fft, hop)
    continued = _unit(spectra[start : start + frames])
    step = torch.arange(frames)
    lags = range(first, start + 1)
    similarities = torch.stack([(continued * _unit(spectra[start - lag + step % lag])).sum() for lag in lags])
    best = int(similarities.argmax())
    return Repetition(float(similarities[best]), lags[best] * hop / sample_rate)


def best_lag(
    context: Tensor | ArrayLike,
    sample_rate: int,
    hop: int,
    shortest: float = LEAST_LOOP_SECONDS,
    longest: float | None = None,
) -> int:
    """The lag, in frames of `hop` samples, at which `context [C, K]` is most like itself: its bars' length, mostly.

    The greatest correlation of the log-mel spectrogram's frames t ≥ L with the frames t − L, each band less its mean.

    Args:
        shortest, longest: seconds; `longest` is half the context unless given, so that at least half of it is compared.

    Raises:
        EncoreError: no lag lies between `shortest` and `longest`.
    """
    audio = signal(context)
    n_fft = window_length(sample_rate, WINDOW_SECONDS)
    longest = audio.shape[-1] / sample_rate / 2 if longest is None else longest
    spectra = log_mel(audio, sample_rate, n_fft, hop) if audio.shape[-1] >= n_fft else torch.zeros(0, 1)
    first = max(1, round(shortest * sample_rate / hop))
    # Two frames at least, as the correlation of one with its mean is nothing.
    lags = range(first, min(round(longest * sample_rate / hop), len(spectra) - 2) + 1)
    if not lags:
        raise EncoreError(
            f"a context of {audio.shape[-1] / sample_rate:.2f} s: no lag from {shortest:g} s to {longest:g} s can be "
            "found in it; give a longer context"
        )
    return lags[int(torch.stack([(_unit(spectra[lag:]) * _unit(spectra[:-lag])).sum() for lag in lags]).argmax())]


def _unit(spectra: Tensor) -> Tensor:
    """`[frames, bands]` less each band's mean, at norm 1; 0 where it does not change."""
    varied = spectra - spectra.mean(0)
    return varied / varied.norm().clamp_min(1e-3)
