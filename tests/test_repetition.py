"""Repetition: 1 for loops, less with damage, nothing for noise; the lag of bars whose length is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from encore.data.demo import compose
from encore.errors import EncoreError
from encore.evaluation.metrics.log_mel import log_mel
from encore.evaluation.metrics.repetition import Repetition, best_lag, repetition

RATE = 24000
FRAME = RATE // 150


def piece(seed: int, seconds: float) -> Tensor:
    return torch.from_numpy(compose(seconds, np.random.default_rng([13, seed]))).float()[None]


def loop(context: Tensor, lag: int, samples: int) -> Tensor:
    """The context's last `lag` samples, over and over."""
    return context[:, context.shape[1] - lag + torch.arange(samples) % lag]


def noise(seconds: float, seed: int, level: float = 0.1) -> Tensor:
    return level * torch.randn(1, round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lag", [30 * FRAME, 80 * FRAME, 80 * FRAME + 80, 600 * FRAME - 77])
@pytest.mark.slow
def test_a_loop_at_any_lag_scores_one(lag: int) -> None:
    context = piece(0, 4.02)
    found = repetition(context, loop(context, lag, 4 * RATE), RATE)
    assert found.similarity > (0.9999 if lag % FRAME == 0 else 0.98)
    # A multiple of the lag repeats too, and so may the music.
    assert abs(found.lag * RATE / lag - round(found.lag * RATE / lag)) * lag <= FRAME


@pytest.mark.slow
def test_repetition_falls_with_damage_and_between_pieces() -> None:
    context = piece(1, 4)
    looped = loop(context, 2 * RATE, 4 * RATE)
    found = [repetition(context, looped + noise(4, 5, level), RATE).similarity for level in (0.0, 0.01, 0.05, 0.3)]
    assert found[0] > 0.9999
    assert all(more < less - 0.05 for less, more in zip(found, found[1:], strict=False))
    parts = looped.split(RATE // 4, dim=1)
    mixed = torch.cat([parts[index] for index in np.random.default_rng(0).permutation(len(parts))], dim=1)
    assert repetition(context, mixed, RATE).similarity < 0.9
    other = [repetition(piece(seed, 4), piece(seed + 20, 4), RATE).similarity for seed in range(5)]
    assert max(other) < 0.7


def test_noise_does_not_repeat_and_silence_has_a_value() -> None:
    assert abs(repetition(noise(4, 0), noise(4, 1), RATE).similarity) < 0.1
    silence = torch.zeros(1, 4 * RATE)
    assert repetition(silence, silence, RATE).similarity == 0
    assert repetition(piece(0, 4), silence, RATE).similarity == 0


def test_the_similarity_is_the_correlation_at_that_lag() -> None:
    context, continuation = piece(2, 2), piece(3, 1.5)
    found = repetition(context.numpy(), continuation.numpy(), RATE)
    spectra = log_mel(torch.cat([context, continuation], 1), RATE, 2048, FRAME).double().numpy()
    best = Repetition(-1, 0)
    for lag in range(30, 301):
        pair = [spectra[300:], spectra[300 - lag : len(spectra) - lag]]
        centred = [part - part.mean(0) for part in pair]
        similarity = (centred[0] * centred[1]).sum() / np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
        if similarity > best.similarity:
            best = Repetition(similarity, lag / 150)
    assert found.similarity == pytest.approx(best.similarity, abs=1e-5)
    assert found.lag == pytest.approx(best.lag)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.slow
def test_the_bars_are_found_even_in_a_fade(seed: int) -> None:
    beats_per_minute = np.random.default_rng([13, seed]).uniform(100, 140)  # what `compose` draws first
    four_chords = 8 * 60 / beats_per_minute
    music = piece(seed, 12)
    fading = music * torch.exp(-0.2 * torch.arange(12 * RATE) / RATE)
    for context in (music, fading):
        assert abs(best_lag(context, RATE) - four_chords * RATE) <= FRAME


def test_the_lag_is_that_of_the_greatest_correlation() -> None:
    context = torch.cat([piece(5, 1), piece(6, 2)], 1)
    spectra = log_mel(context, RATE, 2048, FRAME).double().numpy()
    similarities = {}
    for lag in range(75, 226):
        pair = [part - part.mean(0) for part in (spectra[lag:], spectra[:-lag])]
        similarities[lag] = (pair[0] * pair[1]).sum() / np.linalg.norm(pair[0]) / np.linalg.norm(pair[1])
    assert best_lag(context, RATE) == FRAME * max(similarities, key=lambda lag: similarities[lag])


def test_the_lag_keeps_to_its_range() -> None:
    context = piece(4, 8)
    assert 0.5 * RATE <= best_lag(context, RATE, longest=1) <= RATE
    assert best_lag(torch.zeros(1, 4 * RATE), RATE) == best_lag(torch.zeros(1, 4 * RATE), RATE) >= 0.5 * RATE


def test_too_short_audio_is_refused() -> None:
    with pytest.raises(EncoreError, match=r"repetition in 0\.10 s after 4\.00 s"):
        repetition(noise(4, 0), noise(0.1, 0), RATE)
    with pytest.raises(EncoreError, match=r"a context of 0\.40 s"):
        best_lag(noise(0.4, 0), RATE)
