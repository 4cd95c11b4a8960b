"""The critic: what it tells apart, what it cannot, and that it is never asked about what it was trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from encore.evaluation.baselines import coloured
from encore.evaluation.metrics import critic
from encore.evaluation.metrics.critic import Windows, critic_values, folds_of, windows_of

RATE = 8000
BEAT = RATE // 4  # samples
RECORDINGS, PAIRS = 20, 2
NAMES = [f"{number // PAIRS}.wav" for number in range(RECORDINGS * PAIRS)]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps and folds than in an evaluation: these differences are plain."""
    monkeypatch.setattr(critic, "STEPS", 60)
    monkeypatch.setattr(critic, "FOLDS", 2)


def music(recording: int, seed: int, beats: int = 6) -> Tensor:
    """Random notes of a recording's scale and sound on its beats, `[1, beats · BEAT]`."""
    style, notes = np.random.default_rng(recording), np.random.default_rng(1000 + seed)
    pitches = 100 * 2 ** style.uniform(0, 4) * style.uniform(1, 1.5, 5)  # Hz
    overtone, decay = style.uniform(0, 0.8), style.uniform(8, 30)
    time = np.arange(BEAT) / RATE
    phases = 2 * np.pi * time * notes.choice(pitches, (beats, 1))
    sound = (np.sin(phases) + overtone * np.sin(3 * phases)) * np.exp(-decay * time)
    quiet = 1e-3 * style.standard_normal(beats * BEAT)
    return torch.from_numpy((sound.ravel() / 4 + quiet).astype(np.float32))[None]


def draw(seed: int) -> Tensor:
    """Music of each item's recording, `[I, 1, C, S]`."""
    return torch.stack([music(n // PAIRS, seed * len(NAMES) + n) for n in range(len(NAMES))])[:, None]


@pytest.fixture(scope="module")
def context() -> Tensor:
    return draw(0)[:, 0]


@pytest.fixture(scope="module")
def truth(context: Tensor) -> Windows:
    return windows_of(context, draw(1), RATE)


def shards(context: Tensor) -> Tensor:
    """Random tenths of a second of each context."""
    places = np.random.default_rng(0).integers(context.shape[-1] - RATE // 10, size=(len(context), 15))
    parts = [
        [audio[:, place : place + RATE // 10] for place in row] for audio, row in zip(context, places, strict=True)
    ]
    return torch.stack([torch.cat(row, -1) for row in parts])[:, None]


@pytest.mark.slow
def test_what_is_not_music_or_other_music_is_told_apart(context: Tensor, truth: Windows) -> None:
    real = draw(1)
    white = torch.randn(len(context), real.shape[-1], generator=torch.Generator().manual_seed(0))
    noise, other = coloured(white, real[:, 0], RATE)[:, None], real.roll(4 * PAIRS, 0)
    for name, made, least in (("shards", shards(context), 0.95), ("noise", noise, 0.95), ("other music", other, 0.75)):
        assert critic_values(truth, windows_of(context, made, RATE), NAMES).mean() > least, name


@pytest.mark.slow
def test_music_of_the_same_kind_is_not(context: Tensor, truth: Windows) -> None:
    """Whatever notes follow, they are as probable as those that do; nor does it matter how loud they are."""
    again = critic_values(truth, windows_of(context, 0.3 * draw(2), RATE), NAMES)
    assert abs(again.mean() - 0.5) < 0.2
    assert critic_values(truth, truth, NAMES).tolist() == [0.5] * len(NAMES)


@pytest.mark.slow
def test_a_recording_is_never_judged_by_a_critic_that_knows_it() -> None:
    """What makes a continuation true differs from recording to recording: it is learned only by those who know them."""
    random = torch.Generator().manual_seed(0)
    marks = 2 * torch.randn(10, 40, 1, generator=random).repeat_interleave(3, 0)

    def windows(sign: int) -> Windows:
        noise = [0.3 * torch.randn(30, 40, 16, generator=random) for _ in range(2)]
        return Windows(noise[0], (noise[1] + sign * marks)[:, None])

    real, made = windows(1), windows(-1)
    assert abs(critic_values(real, made, [str(number // 3) for number in range(30)]).mean() - 0.5) < 0.25
    mixed = [str(number % 3) for number in range(30)]  # as if every recording were in all folds
    assert critic_values(real, made, mixed).mean() > 0.8


def test_all_items_of_a_recording_are_in_one_fold() -> None:
    folds = folds_of(NAMES)
    assert set(folds.tolist()) == {0, 1}
    for name in NAMES:
        assert len({fold for fold, other in zip(folds.tolist(), NAMES, strict=True) if other == name}) == 1
    assert folds_of(["a", "b", "a"]).tolist() in ([0, 1, 0], [1, 0, 1])


def test_a_value_is_the_share_of_candidates_that_sound_less_true(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a critic that rates the first value of a continuation."""
    monkeypatch.setattr(critic, "train_critic", lambda *_: lambda context, continuation: continuation[:, 0, 0])
    real = Windows(torch.zeros(2, 40, 4), torch.tensor([1.0, 5.0])[:, None, None, None].expand(2, 1, 40, 4))
    ratings = torch.tensor([[0.0, 1.0, 2.0, 0.5], [1.0, 2.0, 3.0, 4.0]])
    made = Windows(real.context, ratings[:, :, None, None].expand(2, 4, 40, 4))
    assert critic_values(real, made, ["a", "b"]).tolist() == [(1 + 0.5 + 0 + 1) / 4, 1.0]


def test_the_same_seed_gives_the_same_critic_and_leaves_other_draws_alone(
    context: Tensor, truth: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(critic, "STEPS", 5)
    made, names = windows_of(context, draw(3), RATE), ["a", "b"] * PAIRS * (RECORDINGS // 2)
    before = torch.random.get_rng_state()
    values = [critic_values(truth, made, names, seed).tolist() for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(before, torch.random.get_rng_state())
