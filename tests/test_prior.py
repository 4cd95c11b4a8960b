"""What a continuation starts from: the context again."""

from __future__ import annotations

import pytest
import torch

from encore.prior import draw_lags, replay


@pytest.mark.parametrize("start", [0, 1, 7, 1000])
def test_a_replay_is_the_end_of_the_context_again_and_again(start: int) -> None:
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
