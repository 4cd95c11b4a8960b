"""Priors: replays of the context, and rhythms."""

from __future__ import annotations

import pytest
import torch

from encore.models.priors import Context, FrameOrder, Replay, draw_lags, lag_probs, preceding, replay


def test_what_precedes_a_guess_is_where_it_was_taken_from() -> None:
    context = torch.arange(20.0).expand(3, 2, 20)
    given = Context(context, None, lambda: context)  # type: ignore[arg-type]
    prior = Replay(given, torch.tensor([5, 18, 20]))
    assert prior.frames(0, 2, context)[:, 0].tolist() == [[15, 16], [2, 3], [0, 1]]
    begin = torch.tensor([15, 2, 0])
    assert prior.taken is not None and prior.taken[:, 0].tolist() == begin.tolist()
    assert preceding(begin, 2, 20).tolist() == [[13, 14], [0, 1], [2, 1]]
    # Before the context's first frame it is mirrored.
    assert preceding(begin, 4, 20).tolist() == [[11, 12, 13, 14], [2, 1, 0, 1], [4, 3, 2, 1]]
    assert preceding(begin, 20, 20)[2].tolist() == [19, *range(19, 0, -1)]


@pytest.mark.parametrize("start", [0, 1, 7, 1000])
def test_a_replay_repeats_the_end_of_the_context(start: int) -> None:
    context, lags = torch.randn(3, 2, 10), torch.tensor([10, 3, 1])
    made = replay(context, lags, start, 25)
    assert made.shape == (3, 2, 25)
    for row, lag in enumerate(lags.tolist()):
        for n in range(25):
            assert torch.equal(made[row, :, n], context[row, :, 10 - lag + (start + n) % lag])


def test_lags_are_uniform_from_a_quarter_of_the_context_to_the_whole() -> None:
    lags = draw_lags(20000, 12, torch.Generator().manual_seed(0))
    assert lags.dtype == torch.int64
    counts = torch.bincount(lags, minlength=13)
    assert not counts[:3].any() and len(counts) == 13
    assert ((counts[3:] / 2000 - 1).abs() < 0.1).all()
    assert torch.equal(lags, draw_lags(20000, 12, torch.Generator().manual_seed(0)))
    assert draw_lags(5, 1).tolist() == [1] * 5


def test_lags_at_which_the_music_repeats_itself_are_probable() -> None:
    decay = torch.linspace(1, 0.05, 36 * 320)
    pattern = decay * torch.randn(1, 1, 36 * 320, generator=torch.Generator().manual_seed(0))
    probs = lag_probs(pattern.repeat(1, 1, 5), 320, 75.0)
    assert probs.shape == (1, 181) and probs.sum().item() == pytest.approx(1)
    assert probs[0, 36::36].sum() > 0.99 and probs[0, 36] > probs[0, 144]  # long lags are discounted
    assert not probs[0, :19].any() and not probs[0, 163:].any()  # from 0.25 s to nine tenths


def test_all_lags_of_silence_are_equally_probable() -> None:
    probs = lag_probs(torch.zeros(2, 1, 75 * 320), 320, 75.0)
    assert probs.isfinite().all()
    assert torch.equal(probs[0, 19:68], probs[1, 19:68]) and probs[0, 19:68].std() < 1e-6


def test_a_rhythm_keeps_its_phase_and_takes_any_earlier_repeat() -> None:
    probs = torch.zeros(151)
    probs[36] = 1
    n, places = torch.arange(400), set[int]()
    for seed in range(5):
        rhythm = FrameOrder(probs, torch.Generator().manual_seed(seed), rhythmic=1.0)
        parts = [rhythm.indices(0, 30), rhythm.indices(30, 170), rhythm.indices(200, 200)]
        index = torch.cat(parts)
        assert torch.equal(index, FrameOrder(probs, torch.Generator().manual_seed(seed), rhythmic=1.0).indices(0, 400))
        assert index.min() >= 0 and index.max() < 150
        assert torch.equal((index - 150) % 36, n % 36)
        places.update(index[::36].tolist())
    assert places == {150 - 36 * (1 + back) for back in range(4)}


def test_without_a_rhythm_it_is_a_replay() -> None:
    probs = torch.full((151,), 1 / 151)
    index = FrameOrder(probs, torch.Generator().manual_seed(3), rhythmic=0.0).indices(0, 300)
    lag = 150 - int(index[0])
    assert 38 <= lag <= 150 and torch.equal(index, 150 - lag + torch.arange(300) % lag)
