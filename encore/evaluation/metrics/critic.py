"""The critic: a small network that learns to tell what really follows a context from what a system makes of it.

A classifier two-sample test (Lopez-Paz & Oquab 2017). It is trained and asked on different recordings: cross-fitting over
the recordings of the pairs, so that it needs no continuations of other music.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import softplus

from encore.evaluation.metrics.log_mel import BANDS, log_mel, window_length
from encore.evaluation.metrics.registry import MetricSpec
from encore.statistics import Interval, bootstrap

CRITIC = "critic"
CRITIC_SPEC = MetricSpec(
    CRITIC,
    "critic",
    "Distribution",
    "AUC of a small network that tells true continuations from these, on recordings it was not trained on: 0.5 if it "
    "cannot, 1 if it always can.",
    "half",
)
CONTEXT_SECONDS, CONTINUATION_SECONDS = 2.0, 4.0  # that the critic is given, at most
WINDOW_SECONDS, HOP_SECONDS = 0.043, 0.0215
DB_SCALE = 20.0
FOLDS = 5
STEPS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 150, 32, 2e-3, 0.05, 0.2
CHANNELS = 32


@dataclass(frozen=True)
class Windows:
    """What the critic is given of I items with N continuations each.

    Attributes:
        context: log-mel of the end of each context, `[I, K, 40]`.
        continuation: of the beginning of each continuation, `[I, N, F, 40]`.
    """

    context: Tensor
    continuation: Tensor

    @classmethod
    def cat(cls, parts: Sequence[Windows]) -> Windows:
        """All items of several batches."""
        return cls(torch.cat([part.context for part in parts]), torch.cat([part.continuation for part in parts]))


def windows_of(context: Tensor, continuations: Tensor, sample_rate: int) -> Windows:
    """Log-mel of the end of `context [B, C, K]` and the beginning of `continuations [B, N, C, S]`, on the CPU.

    In units of 20 dB. Each of the two has its own mean level taken off, and from both the spectrum of the context is
    taken off (the mean of each band): neither the level of a continuation nor the instruments of a piece decide, but
    whether the continuation sounds like its context does.
    """
    n_fft, hop = window_length(sample_rate, WINDOW_SECONDS), round(HOP_SECONDS * sample_rate)
    before = context[..., -round(CONTEXT_SECONDS * sample_rate) :].float().cpu()
    after = continuations[..., : round(CONTINUATION_SECONDS * sample_rate)].float().cpu()
    levels = [log_mel(audio, sample_rate, n_fft, hop) / DB_SCALE for audio in (before, after)]
    known, made = (level - level.mean((-2, -1), keepdim=True) for level in levels)
    spectrum = known.mean(-2, keepdim=True)
    return Windows(known - spectrum, made - spectrum[:, None])
