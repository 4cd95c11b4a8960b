"""Onsets, pulse and chroma on music whose tempo and notes are known, on damaged music and on silence."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor

from encore.data.demo import SAMPLE_RATE as RATE
from encore.data.demo import compose, pluck
from encore.errors import EncoreError
from encore.evaluation.metrics.rhythm_harmony import (
    chroma,
    chroma_similarity,
    framewise_chroma_similarity,
    onset_rate,
    onset_strength,
    pulse,
    pulse_agreement,
)

SILENCE = torch.zeros(1, 4 * RATE)


def noise(seed: int, level: float = 0.1) -> Tensor:
    return level * torch.randn(1, 4 * RATE, generator=torch.Generator().manual_seed(seed))


def notes(midi: list[int], seconds_apart: float, seconds: float = 4.0, brightness: float = 0.7) -> Tensor:
    """The notes in turn, over and over, each plucked on its beat."""
    track: NDArray[np.float64] = np.zeros(int(seconds * RATE))
    for index in range(int(seconds / seconds_apart)):
        sound = pluck(440 * 2 ** ((midi[index % len(midi)] - 69) / 12), 2 * seconds_apart, 0.3, brightness)
        stretch = track[round(index * seconds_apart * RATE) :][: len(sound)]
        stretch += 0.2 * sound[: len(stretch)]
    return torch.from_numpy(track)[None]


@pytest.fixture(scope="module")
def halves() -> list[tuple[Tensor, Tensor]]:
    """The first and the last four seconds of six pieces of music."""
    pieces = [torch.from_numpy(compose(8, np.random.default_rng([11, index]))).float()[None] for index in range(6)]
    return [(piece[:, : 4 * RATE], piece[:, 4 * RATE :]) for piece in pieces]


def shuffled(audio: Tensor, seconds: float, seed: int = 0) -> Tensor:
    """Pieces of `seconds` in another order."""
    parts = audio.split(round(seconds * RATE), dim=-1)
    return torch.cat([parts[index] for index in np.random.default_rng(seed).permutation(len(parts))], dim=-1)


def test_onsets_are_counted() -> None:
    for apart in (0.5, 0.25):
        assert onset_rate(notes([60, 64], apart), RATE) == pytest.approx(1 / apart, abs=0.3)


def test_the_pulse_is_the_autocorrelation_and_peaks_at_the_beat() -> None:
    audio = notes([60, 60, 67], 0.4)
    strength = onset_strength(audio, RATE)
    strength = strength - strength.mean()
    full = scipy.signal.correlate(strength, strength)[len(strength) - 1 :]
    lags = np.arange(20, 201)
    expected = full[lags] / (len(strength) - lags) / np.mean(strength**2)
    found = pulse(audio, RATE)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert abs(lags[found.argmax()] % 40) <= 1


@pytest.mark.slow
def test_pulse_agrees_within_a_piece_and_less_with_damage(halves: list[tuple[Tensor, Tensor]]) -> None:
    same = np.mean([pulse_agreement(*half, RATE) for half in halves])
    others = np.mean(
        [pulse_agreement(half[0], other[1], RATE) for half, other in zip(halves, halves[1:] + halves[:1], strict=True)]
    )
    mixed = np.mean([pulse_agreement(first, shuffled(last, 0.17), RATE) for first, last in halves])
    hiss = np.mean([pulse_agreement(first, noise(index), RATE) for index, (first, _) in enumerate(halves)])
    assert same > 0.9
    assert others < 0.5
    assert max(mixed, hiss) < 0.2
    assert pulse_agreement(halves[0][0], halves[0][0], RATE) == pytest.approx(1)


def test_chroma_names_the_notes() -> None:
    assert chroma(notes([69], 0.5), RATE).mean(0).argmax() == 9  # A
    both = np.argsort(chroma(notes([60, 66], 0.5), RATE).mean(0))[-2:]
    assert set(both) == {0, 6}  # C and F#
    assert np.linalg.norm(chroma(notes([60], 0.5), RATE), axis=1) == pytest.approx(1, abs=1e-5)


def test_chroma_is_alike_for_the_same_notes_and_not_for_others() -> None:
    chord = notes([60, 64, 67], 0.25)
    assert chroma_similarity(chord, notes([60, 64, 67], 0.25, brightness=0.5), RATE) > 0.95
    assert chroma_similarity(chord, notes([72, 64, 79], 0.25), RATE) > 0.8
    assert chroma_similarity(chord, notes([66, 70, 73], 0.25), RATE) < 0
    found = [chroma_similarity(chord, chord + noise(3, level), RATE) for level in (0.0, 0.3, 3.0)]
    assert found[0] == pytest.approx(1)
    assert found[0] > found[1] > found[2]


def test_chroma_similarity_equals_scipys_correlation() -> None:
    first, second = notes([60, 64, 67], 0.25), notes([60, 65, 69], 0.25)
    means = [chroma(audio, RATE).mean(0) for audio in (first, second)]
    expected = scipy.stats.pearsonr(*means).statistic
    assert chroma_similarity(first, second, RATE) == pytest.approx(expected, abs=1e-9)


def test_framewise_chroma_similarity_depends_on_the_order() -> None:
    audio = torch.cat([notes([60, 64, 67], 0.25, 2), notes([62, 66, 69], 0.25, 2)], dim=1)
    turned = audio.roll(2 * RATE, -1)
    assert framewise_chroma_similarity(audio, audio, RATE) == pytest.approx(1)
    assert chroma_similarity(audio, turned, RATE) > 0.9
    assert framewise_chroma_similarity(audio, turned, RATE) < 0.3


def test_silence_has_values() -> None:
    music = notes([60, 64], 0.25)
    faint = noise(0, 1e-6)
    for still in (SILENCE, faint):
        assert onset_rate(still, RATE) == 0
        assert pulse_agreement(music, still, RATE) == pulse_agreement(still, still, RATE) == 0
        assert chroma_similarity(music, still, RATE) == framewise_chroma_similarity(still, music, RATE) == 0


def test_too_short_audio_is_refused() -> None:
    short = torch.zeros(1, 2000)
    with pytest.raises(EncoreError, match=r"onsets in 0\.08 s"):
        onset_rate(short, RATE)
    with pytest.raises(EncoreError, match=r"chroma of 0\.08 s"):
        chroma(short, RATE)
    with pytest.raises(EncoreError, match=r"up to a lag of 5 s"):
        pulse(SILENCE, RATE, 5)
