"""How continuations are drawn: their noise, their lag, and block after block."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from encore.models.generation import PER_BLOCK, PER_CONTINUATION, Draw, Recipe, blocks, continuation, generators_of
from encore.models.transformer import NOISE_CHANNELS, ContinuationTransformer

D, FRAMES, SIZE = 6, 20, 4
CPU = torch.device("cpu")
ENERGY, REGRESSION = Recipe(SIZE, True, "replay"), Recipe(SIZE, False, "replay")


def new_model(window: int = 15) -> ContinuationTransformer:
    torch.manual_seed(0)
    model = ContinuationTransformer(D, 16, 2, 2, dropout=0.0, window=window).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model


def draw(*seeds: int, recipe: Recipe = ENERGY, **settings: Any) -> Draw:
    return Draw(recipe, len(seeds), FRAMES, CPU, generators=generators_of(seeds), **settings)


def noise_of(drawn: Draw, steps: int, count: int = 1) -> Tensor:
    noise = drawn.noise(steps, count)
    assert noise is not None
    return noise


def test_noise_lasts_for_a_continuation_a_block_or_a_frame() -> None:
    drawn = draw(1, 2)
    first, second = noise_of(drawn, SIZE, 3), noise_of(drawn, SIZE)
    assert first.shape == (2, NOISE_CHANNELS, 3 * SIZE) and second.shape == (2, NOISE_CHANNELS, SIZE)
    both = torch.cat([first, second], -1).unflatten(-1, (4, SIZE))
    lasting, block, frame = both.split([PER_CONTINUATION, PER_BLOCK, NOISE_CHANNELS - PER_CONTINUATION - PER_BLOCK], 1)
    assert (lasting == lasting[..., :1, :1]).all()
    assert (block == block[..., :1]).all()
    values = [lasting[..., 0, 0], block[..., 0], frame]
    assert all(len(part.flatten().unique()) == part.numel() for part in values)
    assert PER_CONTINUATION == PER_BLOCK == 16 and NOISE_CHANNELS == 64


def test_noise_is_normal_and_the_temperature_its_deviation() -> None:
    for temperature in (0.0, 1.0, 2.5):
        noise = noise_of(draw(*range(20), temperature=temperature), 5, 40)
        for part in noise.split(16, 1):
            assert abs(part.std() - temperature) <= 0.1 * temperature and abs(part.mean()) <= 0.2 * temperature


def test_a_row_follows_from_its_seed_alone() -> None:
    several, alone, again = draw(5, 7, 9), draw(7), draw(7)
    assert several.lags[1] == alone.lags[0]
    for steps, count in ((SIZE, 2), (SIZE, 1)):
        one, noise = noise_of(alone, steps, count), noise_of(several, steps, count)
        assert torch.equal(noise[1:2], one) and torch.equal(noise_of(again, steps, count), one)
        assert not torch.equal(noise[0], noise[1])
    assert len(draw(*range(50)).lags.unique()) > 10


def test_a_regression_has_no_noise_and_starts_from_the_context_frame_by_frame() -> None:
    context = torch.randn(2, D, FRAMES)
    drawn = draw(1, 2, recipe=REGRESSION)
    assert drawn.noise(SIZE) is None
    prior = drawn.prior(context, 0, 2 * FRAMES)
    assert prior is not None and torch.equal(prior, torch.cat([context, context], -1))
    model = new_model()
    one, other = (
        continuation(model, REGRESSION, context, draw(*seeds, recipe=REGRESSION), 9) for seeds in ((1, 2), (3, 4))
    )
    assert torch.equal(one, other)


def test_without_a_prior_there_is_none() -> None:
    for generative in (True, False):
        assert draw(1, recipe=Recipe(SIZE, generative, "none")).prior(torch.randn(1, D, FRAMES), 0, SIZE) is None


def test_a_continuation_is_its_blocks_cut_to_length() -> None:
    model, context = new_model(), torch.randn(3, D, FRAMES)
    endless = blocks(model, ENERGY, context, draw(1, 2, 3))
    expected = torch.cat(list(itertools.islice(endless, 30)), -1)
    assert expected.shape == (3, D, 120)
    for frames in (1, SIZE, 6 * SIZE + 1, 120):
        made = continuation(model, ENERGY, context, draw(1, 2, 3), frames)
        assert torch.equal(made, expected[..., :frames])
    other = continuation(model, ENERGY, context, draw(1, 2, 4), 120)
    assert torch.allclose(other[:2], expected[:2], atol=1e-5) and not torch.allclose(other[2], expected[2], atol=1e-2)


def test_a_continuation_is_what_the_training_pass_makes_of_it() -> None:
    """All blocks in one pass, given the frames that were made, with the same noise and lag: the same blocks."""
    model, context, count = new_model(), torch.randn(3, D, FRAMES), 12
    drawn, noises = draw(1, 2, 3), draw(1, 2, 3)
    made = continuation(model, ENERGY, context, drawn, count * SIZE)
    noise = torch.cat([noise_of(noises, SIZE) for _ in range(count)], -1)
    prior = drawn.prior(context, 0, count * SIZE)
    starts = [FRAMES + SIZE * number for number in range(count)]
    with torch.no_grad():
        again = model(torch.cat([context, made], -1), SIZE, noise, prior, starts)
    assert (again - made).abs().max() <= 1e-5 * made.abs().max()
    assert not torch.allclose(made, prior if prior is not None else made, atol=0.1)
