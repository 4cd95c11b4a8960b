"""The critic: what it tells apart, what it cannot, and that it is never asked about what it was trained on."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor

from encore.evaluation.baselines import coloured
from encore.evaluation.metrics.critic import FOLDS, Verdicts, Windows, auc, critic_auc, folds_of, judge, windows_of

RATE = 8000
RECORDINGS, PAIRS = 10, 3
NAMES = [f"{number // PAIRS}.wav" for number in range(RECORDINGS * PAIRS)]


def music(recording: int, bars: int) -> Tensor:
    """Random notes in the scale, the sound and the tempo of a recording, `[1, bars · RATE / 2]`."""
    style = np.random.default_rng(recording)
    pitches, overtone = style.uniform(150, 900, 5), style.uniform(0, 0.8)
    decay, notes = style.uniform(4, 30), int(style.integers(2, 5))
    time = np.arange(RATE // 2 // notes) / RATE
    parts = []
    for _ in range(bars * notes):
        phase = 2 * np.pi * time * np.random.choice(pitches)
        parts.append((np.sin(phase) + overtone * np.sin(3 * phase)) * np.exp(-decay * time))
    audio = np.concatenate(parts)
    return torch.from_numpy(np.pad(audio, (0, bars * RATE // 2 - len(audio))).astype(np.float32))[None] / 4


@pytest.fixture(scope="module")
def context() -> Tensor:
    np.random.seed(0)
    return torch.stack([music(number // PAIRS, 3) for number in range(len(NAMES))])


def continued() -> Tensor:
    """The contexts as their recordings may go on: drawn anew at every call, `[I, 1, C, S]`."""
    return torch.stack([music(number // PAIRS, 3) for number in range(len(NAMES))])[:, None]


def shards(context: Tensor) -> Tensor:
    """Random tenths of a second of each context."""
    size = RATE // 10
    places = torch.randint(context.shape[-1] - size, (len(context), 15))
    return torch.stack([
        torch.cat([audio[:, place : place + size] for place in row], -1)
        for audio, row in zip(context, places.tolist(), strict=True)
    ])[:, None]
