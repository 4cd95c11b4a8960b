"""Measures of music: how many onsets, the same pulse, the same pitch classes. With librosa (McFee et al. 2015).

librosa is imported where it is needed: with what it compiles that takes seconds.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from encore.errors import EncoreError
from encore.evaluation.metrics.log_mel import decibels, log_mel, power_spectrogram, signal, window_length

Values = NDArray[np.float64]

ONSET_WINDOW_SECONDS, ONSET_HOP_SECONDS = 0.04, 0.01
PULSE_SECONDS = (0.2, 2.0)  # 300 to 30 beats per minute
CHROMA_WINDOW_SECONDS = 0.17  # its bins are 6 Hz apart: the semitones above 100 Hz


def onset_strength(audio: Tensor | ArrayLike, sample_rate: int) -> Values:
    """librosa's onset strength of `audio [C, N]`, 100 frames a second: mean over the bands of the rise in dB, `[T]`.

    The powers below −80 dB of full scale count as that, so silence has none.

    Raises:
        EncoreError: less than 0.4 s of audio.
    """
    import librosa

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
    """Onsets per second in `audio [C, N]`: the peaks that librosa's `onset_detect` picks, per length; 0 in silence."""
    import librosa

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
    """Whether `continuation [C, M]` goes on in the tempo and metre of `context [C, K]`: 0 to 1.

    The correlation of their pulses (see `pulse`), with lags up to 2 s or half of the shorter one; 0 if it is
    negative, or if either is silent. Where the bars lie does not matter, as a listener would hear in the seam.
    """
    shorter = min(signal(audio).shape[-1] for audio in (context, continuation)) / sample_rate
    longest = min(PULSE_SECONDS[1], shorter / 2)
    return max(0.0, _correlation(*(pulse(audio, sample_rate, longest) for audio in (context, continuation))))


def chroma(audio: Tensor | ArrayLike, sample_rate: int) -> Values:
    """librosa's `chroma_stft` of `audio [C, N]`: `[T, 12]`, each frame at norm 1, silence (−80 dB) at 0; C first.

    Windows of about 0.17 s, half overlapping; tuned to A = 440 Hz, so that two recordings have the same classes.

    Raises:
        EncoreError: less audio than one window.
    """
    import librosa

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

    The cosine of their mean chroma vectors, each less its mean over the twelve: without that, as no class is
    negative, noise would be at 0.9 to everything.
    """
    return _correlation(*(chroma(audio, sample_rate).mean(0) for audio in (first, second)))


def chroma_following(audio: Tensor | ArrayLike, truth: Tensor | ArrayLike, sample_rate: int) -> float:
    """The same, frame by frame, of what sounds at the same time: the mean over the frames of both, −1 to 1."""
    pairs = zip(chroma(audio, sample_rate), chroma(truth, sample_rate), strict=False)
    return float(np.mean([_correlation(mine, real) for mine, real in pairs]))


def _correlation(first: Values, second: Values) -> float:
    """The cosine of two vectors less their means; 0 where one has no direction."""
    first, second = first - first.mean(), second - second.mean()
    norms = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / norms if norms > 1e-9 else 0.0
