"""Does a continuation only repeat its context? And at which lag does music repeat itself best?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from encore.errors import EncoreError
from encore.evaluation.metrics.log_mel import log_mel, signal, window_length
from encore.evaluation.metrics.registry import Item, MetricSpec, metric

WINDOW_SECONDS = 0.08
FRAMES_PER_SECOND = 150
LEAST_LAG_SECONDS = 0.2
LEAST_LOOP_SECONDS = 0.5
REPETITION, REPETITION_DIFFERENCE = "repetition", "repetition_difference"
REPETITION_SPEC = MetricSpec(
    REPETITION_DIFFERENCE,
    "repetition − truth’s",
    "Music",
    "Repetition, less the truth’s of the same pairs; above 0 is more repetitive than the music.",
    "zero",
)
LEAST_CHANGE = 1e-4  # dB², the mean square over frames and bands: below it counts as no change over time


@metric(
    REPETITION,
    title="repetition",
    group="Music",
    note="Greatest similarity with the context repeated at one lag: 1 for a loop.",
    goal="truth",
)
def repetition_similarity(item: Item) -> float:
    """The similarity of `repetition`, −1 to 1."""
    return repetition(item.context, item.continuation, item.sample_rate).similarity


@dataclass(frozen=True)
class Repetition:
    """The lag at which a continuation is most similar to the music one lag earlier.

    Attributes:
        similarity: correlation of log-mel spectrograms, −1 to 1: 1 for a loop or a copy of the context (above 0.98
            where its lag lies between two frames), about 0 for noise. Real music has some; compare with the truth's.
        lag: in seconds.
    """

    similarity: float
    lag: float


def repetition(context: Tensor | ArrayLike, continuation: Tensor | ArrayLike, sample_rate: int) -> Repetition:
    """The greatest similarity of `continuation [C, M]` to the music one lag earlier.

    Context `[C, K]` and continuation lie in one log-mel spectrogram of 150 frames a second. For every lag L from 0.2 s
    to the whole context, all frames n of the continuation are compared with the frames n − L, of the context or, where
    n − L ≥ 0, of the continuation itself: a loop equals itself there. The similarity is the correlation over all frames
    and bands, each band less its mean over the frames: a steady spectrum that both share does not count as repetition.
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
    # The spectrogram starts so that the boundary lies at the beginning of a frame.
    spectra = log_mel(
        torch.cat([before[..., before.shape[-1] - start * hop :], after], dim=-1), sample_rate, n_fft, hop
    )
    spectra -= spectra.mean(0)
    continued = spectra[start:] - spectra[start:].mean(0)
    earlier = spectra[: start - first + frames]
    products = torch.nn.functional.conv1d(earlier.T[None], continued.T[None])[0, 0].double()
    # Sums over the frames that each lag compares with, as differences of cumulative sums.
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
    """The lag, in samples, at which `context [C, K]` is most similar to itself: for most music a few bars.

    The lag L with the greatest correlation of the log-mel spectrogram's frames t ≥ L with the frames t − L, each band
    less its mean; in steps of 1/150 s.

    Args:
        shortest, longest: seconds; `longest` is half the context unless given, so that at least half of it is compared.

    Raises:
        EncoreError: no lag lies between `shortest` and `longest`, or the context is too short for `longest`.
    """
    audio = signal(context)
    hop, n_fft = round(sample_rate / FRAMES_PER_SECOND), window_length(sample_rate, WINDOW_SECONDS)
    longest = audio.shape[-1] / sample_rate / 2 if longest is None else longest
    lags = range(round(shortest * sample_rate / hop), int(longest * sample_rate / hop) + 1)
    # At least two frames: the correlation of a single one with its mean is 0.
    if not lags or audio.shape[-1] < (lags[-1] + 1) * hop + n_fft:
        raise EncoreError(
            f"a context of {audio.shape[-1] / sample_rate:.2f} s: too short to search for lags from {shortest:g} s to "
            f"{longest:.2f} s; give a longer context"
        )
    spectra = log_mel(audio, sample_rate, n_fft, hop)
    similarities = torch.stack([(_unit(spectra[lag:]) * _unit(spectra[:-lag])).sum() for lag in lags])
    return hop * lags[int(similarities.argmax())]


def _unit(spectra: Tensor) -> Tensor:
    """`[frames, bands]` less each band's mean, at norm 1; close to 0 where it does not change over time."""
    varied = spectra - spectra.mean(0)
    return varied / varied.norm().clamp_min((LEAST_CHANGE * varied.numel()) ** 0.5)
