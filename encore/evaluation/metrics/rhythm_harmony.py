"""Rhythm and harmony: the number of onsets, the pulse, the pitch classes. Uses librosa (McFee et al. 2015).

librosa is imported by the functions because its import takes seconds.
"""

from __future__ import annotations

import math
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from encore.errors import EncoreError
from encore.evaluation.metrics.log_mel import decibels, log_mel, power_spectrogram, signal, window_length
from encore.evaluation.metrics.registry import Item, metric

Values = NDArray[np.float64]

ONSET_WINDOW_SECONDS, ONSET_HOP_SECONDS = 0.04, 0.01
PULSE_SECONDS = (0.2, 2.0)  # 300 to 30 beats per minute
CHROMA_WINDOW_SECONDS = 0.17  # bins 6 Hz apart resolve semitones above 100 Hz


@metric("onset_rate", title="onsets/s", group="Music", note="Onsets per second.", goal="truth")
def onset_rate_of(item: Item) -> float:
    """`onset_rate` of the continuation."""
    return onset_rate(item.continuation, item.sample_rate)


@metric(
    "pulse_context",
    title="pulse",
    group="Music",
    note="Agreement of the pulse with the context’s, 0 to 1.",
    goal="truth",
)
def pulse_context(item: Item) -> float:
    """`pulse_agreement` of the continuation with the context."""
    return pulse_agreement(item.context, item.continuation, item.sample_rate)


@metric(
    "chroma_context",
    title="chroma, context",
    group="Music",
    note="Similarity of pitch classes with the context’s, −1 to 1.",
    goal="truth",
)
def chroma_context(item: Item) -> float:
    """`chroma_similarity` of the continuation and the context."""
    return chroma_similarity(item.context, item.continuation, item.sample_rate)


@metric(
    "chroma_truth",
    title="chroma, truth",
    group="Music",
    note="Similarity of pitch classes with the truth’s, moment by moment, −1 to 1.",
    goal="high",
    against_truth=True,
)
def chroma_truth(item: Item) -> float:
    """`framewise_chroma_similarity` of the continuation and the truth."""
    return framewise_chroma_similarity(item.continuation, item.truth, item.sample_rate)


def onset_strength(audio: Tensor | ArrayLike, sample_rate: int) -> Values:
    """librosa's onset strength of `audio [C, N]`, 100 frames a second: mean over the bands of the rise in dB, `[T]`.

    Powers below −80 dB of full scale are raised to it, so silence has no onsets.

    Raises:
        EncoreError: less than 0.4 s of audio.
    """
    librosa = load_librosa()
    samples = signal(audio)
    if samples.shape[-1] < 2 * PULSE_SECONDS[0] * sample_rate:
        raise EncoreError(
            f"onsets in {samples.shape[-1] / sample_rate:.2f} s of audio: at least {2 * PULSE_SECONDS[0]:g} s are "
            "needed; give more"
        )
    hop = round(ONSET_HOP_SECONDS * sample_rate)
    spectra = log_mel(samples, sample_rate, window_length(sample_rate, ONSET_WINDOW_SECONDS), hop)
    strength = librosa.onset.onset_strength(S=spectra.T.numpy(), sr=sample_rate, hop_length=hop, center=False)
    return np.asarray(strength, dtype=np.float64)


def onset_rate(audio: Tensor | ArrayLike, sample_rate: int) -> float:
    """Onsets per second in `audio [C, N]`: the number of peaks that librosa's `onset_detect` picks; 0 in silence."""
    librosa = load_librosa()
    hop = round(ONSET_HOP_SECONDS * sample_rate)
    strength = onset_strength(audio, sample_rate)
    onsets = librosa.onset.onset_detect(onset_envelope=strength, sr=sample_rate, hop_length=hop, sparse=True)
    return len(onsets) * sample_rate / signal(audio).shape[-1]


def pulse(audio: Tensor | ArrayLike, sample_rate: int, longest: float = PULSE_SECONDS[1]) -> Values:
    """The autocorrelation of the onset strength of `audio [C, N]` at lags from 0.2 s to `longest`, 10 ms apart.

    `r(L) = mean_t o(t) · o(t − L) / mean_t o(t)²`, o less its mean; 0 in silence.

    Raises:
        EncoreError: the audio is not longer than `longest` seconds.
    """
    strength = onset_strength(audio, sample_rate)
    strength = strength - strength.mean()
    lags = range(round(PULSE_SECONDS[0] / ONSET_HOP_SECONDS), round(longest / ONSET_HOP_SECONDS) + 1)
    if lags[-1] >= len(strength):
        raise EncoreError(
            f"the pulse of {len(strength) * ONSET_HOP_SECONDS:.2f} s of audio up to a lag of {longest:g} s: "
            "give more audio"
        )
    power = max(float(np.mean(strength**2)), 1e-12)
    return np.array([np.mean(strength[lag:] * strength[:-lag]) for lag in lags]) / power


def pulse_agreement(context: Tensor | ArrayLike, continuation: Tensor | ArrayLike, sample_rate: int) -> float:
    """Whether `continuation [C, M]` keeps the tempo and metre of `context [C, K]`: 0 to 1.

    The correlation of their pulses (see `pulse`), with lags up to 2 s or half of the shorter one; 0 if it is negative,
    or if either is silent. The position of the bars does not matter, although a listener would notice it at the
    boundary.
    """
    shorter = min(signal(audio).shape[-1] for audio in (context, continuation)) / sample_rate
    longest = min(PULSE_SECONDS[1], shorter / 2)
    return max(0.0, _correlation(*(pulse(audio, sample_rate, longest) for audio in (context, continuation))))


def chroma(audio: Tensor | ArrayLike, sample_rate: int) -> Values:
    """librosa's `chroma_stft` of `audio [C, N]`: `[T, 12]`, each frame at norm 1, silence (−80 dB) at 0; C comes first.

    Windows of about 0.17 s, half overlapping; tuned to A = 440 Hz, so that two recordings have the same classes.

    Raises:
        EncoreError: less audio than one window.
    """
    librosa = load_librosa()
    samples = signal(audio)
    n_fft = window_length(sample_rate, CHROMA_WINDOW_SECONDS)
    if samples.shape[-1] < n_fft:
        raise EncoreError(
            f"chroma of {samples.shape[-1] / sample_rate:.2f} s of audio: at least {n_fft / sample_rate:.2f} s are "
            "needed; give more"
        )
    power = power_spectrogram(samples, n_fft, n_fft // 2)
    power = torch.where(decibels(power) > decibels(torch.zeros(())), power, 0.0)
    classes = librosa.feature.chroma_stft(S=power.T.numpy(), sr=sample_rate, n_fft=n_fft, norm=2, tuning=0.0)
    return np.asarray(classes.T, dtype=np.float64)


def chroma_similarity(first: Tensor | ArrayLike, second: Tensor | ArrayLike, sample_rate: int) -> float:
    """Whether two pieces of audio, `[C, N]` each, use the same pitch classes: −1 to 1, 0 for silence.

    The cosine of their mean chroma vectors, each less its mean over the twelve classes: without that, since no class is
    negative, noise would have a similarity of 0.9 to everything.
    """
    return _correlation(*(chroma(audio, sample_rate).mean(0) for audio in (first, second)))


def framewise_chroma_similarity(audio: Tensor | ArrayLike, truth: Tensor | ArrayLike, sample_rate: int) -> float:
    """`chroma_similarity` frame by frame, of simultaneous frames: the mean over the frames that both have, −1 to 1."""
    pairs = zip(chroma(audio, sample_rate), chroma(truth, sample_rate), strict=False)
    return float(np.mean([_correlation(mine, real) for mine, real in pairs]))


@lru_cache(maxsize=1)
def load_librosa() -> Any:
    """librosa, imported by one process at a time.

    Its first import compiles functions into numba's cache on disk; two processes that fill it at once can mix up its
    files, and a process that loads them crashes.
    """
    with FileLock(Path(tempfile.gettempdir()) / f"encore_librosa_{os.getuid()}.lock"):
        import librosa
        import librosa.feature
        import librosa.onset
    return librosa


def _correlation(first: Values, second: Values) -> float:
    """The cosine of two vectors less their means; 0 where one of them is constant."""
    first, second = first - first.mean(), second - second.mean()
    norms = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / norms if norms > 1e-9 else 0.0
