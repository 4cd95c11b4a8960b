"""How continuations are sampled: noise, the prior's guess, and block after block."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from encore.codecs.bands import BANDS
from encore.errors import EncoreError
from encore.models.generation import (
    PER_BLOCK,
    PER_CONTINUATION,
    GenerationConfig,
    Sampler,
    generate,
    generate_blocks,
    generate_prior,
    make_generators,
)
from encore.models.priors import Context, Generators, Prior, Replay
from encore.models.transformer import MATCH_RATE, NOISE_CHANNELS, ContinuationTransformer
from encore.registry import PRIORS
from tests.conftest import random_seanet

D, FRAMES, SIZE = 6, 20, 4
CODEC = random_seanet()
ENERGY, REGRESSION = GenerationConfig(SIZE, True, "replay"), GenerationConfig(SIZE, False, "replay")


def new_model(window: int = 15) -> ContinuationTransformer:
    torch.manual_seed(0)
    model = ContinuationTransformer(D, 16, 2, 2, dropout=0.0, window=window).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model


def new_sampler(
    *seeds: int, config: GenerationConfig = ENERGY, context: Tensor | None = None, temperature: float = 1.0
) -> Sampler:
    latents = torch.zeros(len(seeds), D, FRAMES) if context is None else context
    contexts = Context(latents, CODEC, lambda: torch.zeros(len(seeds), 1, FRAMES * 320))
    return Sampler(config, contexts, make_generators(seeds), temperature)


def noise_of(sampler: Sampler, steps: int, count: int = 1) -> Tensor:
    noise = sampler.noise(steps, count)
    assert noise is not None
    return noise


def test_noise_is_constant_per_continuation_per_block_or_per_frame() -> None:
    sampler = new_sampler(1, 2)
    first, second = noise_of(sampler, SIZE, 3), noise_of(sampler, SIZE)
    assert first.shape == (2, NOISE_CHANNELS, 3 * SIZE) and second.shape == (2, NOISE_CHANNELS, SIZE)
    both = torch.cat([first, second], -1).unflatten(-1, (4, SIZE))
    lasting, block, frame = both.split([PER_CONTINUATION, PER_BLOCK, NOISE_CHANNELS - PER_CONTINUATION - PER_BLOCK], 1)
    assert (lasting == lasting[..., :1, :1]).all()
    assert (block == block[..., :1]).all()
    values = [lasting[..., 0, 0], block[..., 0], frame]
    assert all(len(part.flatten().unique()) == part.numel() for part in values)
    assert PER_CONTINUATION == PER_BLOCK == 16 and NOISE_CHANNELS == 64


def test_noise_has_the_temperature_as_its_standard_deviation() -> None:
    for temperature in (0.0, 1.0, 2.5):
        noise = noise_of(new_sampler(*range(20), temperature=temperature), 5, 40)
        for part in noise.split(16, 1):
            assert abs(part.std() - temperature) <= 0.1 * temperature and abs(part.mean()) <= 0.2 * temperature


def test_a_row_depends_on_its_own_seed_only() -> None:
    context = torch.randn(1, D, FRAMES)
    several = new_sampler(5, 7, 9, context=context.expand(3, -1, -1))
    alone, again = new_sampler(7, context=context), new_sampler(7, context=context)
    guesses = several.prior(0, SIZE, context.expand(3, -1, -1)), alone.prior(0, SIZE, context)
    assert guesses[0] is not None and guesses[1] is not None and torch.equal(guesses[0][1:2], guesses[1])
    for steps, count in ((SIZE, 2), (SIZE, 1)):
        one, noise = noise_of(alone, steps, count), noise_of(several, steps, count)
        assert torch.equal(noise[1:2], one) and torch.equal(noise_of(again, steps, count), one)
        assert not torch.equal(noise[0], noise[1])
    many = context.expand(50, -1, -1)
    first = new_sampler(*range(50), context=many).prior(0, 1, many)
    assert first is not None and len(first[:, 0].unique()) > 10  # of frames that the replays start from


def test_a_regression_has_no_noise_and_starts_from_the_context_frame_by_frame() -> None:
    context = torch.randn(2, D, FRAMES)
    fixed = new_sampler(1, 2, config=REGRESSION, context=context)
    assert fixed.noise(SIZE) is None
    prior = fixed.prior(0, 2 * FRAMES, context)
    assert prior is not None and torch.equal(prior, torch.cat([context, context], -1))
    model = new_model()
    one, other = (
        generate(model, new_sampler(*seeds, config=REGRESSION, context=context), 9) for seeds in ((1, 2), (3, 4))
    )
    assert torch.equal(one, other)


def test_without_a_prior_there_is_no_guess_and_the_noise_is_the_same() -> None:
    for generative in (True, False):
        assert (
            new_sampler(1, config=GenerationConfig(SIZE, generative, "none")).prior(0, SIZE, torch.zeros(1, D, FRAMES))
            is None
        )
    bare = new_sampler(1, config=GenerationConfig(SIZE, True, "none"))
    assert torch.equal(noise_of(bare, SIZE), noise_of(new_sampler(1), SIZE))


def test_a_prior_that_is_not_registered_is_named_with_the_choices() -> None:
    with pytest.raises(EncoreError, match=r"--prior replya: .*replay\?.* rhythm, replay, none"):
        new_sampler(1, config=GenerationConfig(SIZE, True, "replya"))


def test_a_continuation_is_its_blocks_cut_to_length() -> None:
    model, context = new_model(), torch.randn(3, D, FRAMES)
    endless = generate_blocks(model, new_sampler(1, 2, 3, context=context))
    expected = torch.cat(list(itertools.islice(endless, 30)), -1)
    assert expected.shape == (3, D, 120)
    for frames in (1, SIZE, 6 * SIZE + 1, 120):
        made = generate(model, new_sampler(1, 2, 3, context=context), frames)
        assert torch.equal(made, expected[..., :frames])
    other = generate(model, new_sampler(1, 2, 4, context=context), 120)
    assert torch.allclose(other[:2], expected[:2], atol=1e-5) and not torch.allclose(other[2], expected[2], atol=1e-2)


def test_gains_of_later_blocks_follow_what_was_played_with_the_gains_before() -> None:
    """A context that gets 6 dB louder, replayed from before that: 6 dB too quiet. Half of what is missing is added."""
    frames, block = 320, 80
    audio = torch.randn(1, 1, frames * 320, generator=torch.Generator().manual_seed(0)) * 0.1
    audio[..., : frames * 160] /= 2
    torch.manual_seed(0)
    model = ContinuationTransformer(D, 16, 2, 1, 0.0, window=frames, start_at_prior=True).eval()
    assert model.gains is not None
    with torch.no_grad():
        model.gains.shares.copy_(torch.tensor([[0.0, 0.5], [0.0, 0.0]]) / MATCH_RATE)
        model.gains.spread.bias.zero_()
    contexts = Context(torch.randn(1, D, frames), CODEC, lambda: audio)
    made = generate(model, quiet(contexts, block), 2 * block)
    assert made.shape == (1, D + BANDS, 2 * block)
    first, second = made[0, D:].unflatten(-1, (2, block)).unbind(1)
    assert torch.allclose(first, torch.full_like(first, 0.5 * math.log(2)), atol=0.15)
    assert torch.allclose(second, first / 2, atol=1e-4)  # it goes on, raised by the first gains
    assert torch.equal(made[:, :D], generate_prior(quiet(contexts, block), 2 * block))


def quiet(contexts: Context, block: int) -> Sampler:
    """A replay from frame 80 on."""
    sampler = Sampler(GenerationConfig(block, True, "replay"), contexts, make_generators([0]))
    sampler._prior = Replay(contexts, torch.tensor([contexts.latents.shape[-1] - 80]))
    return sampler


def test_a_continuation_equals_the_single_pass_of_training() -> None:
    """All blocks in one pass, given the generated frames, with the same noise and lag: the same blocks."""
    model, context, count = new_model(), torch.randn(3, D, FRAMES), 12
    sampler, noises = new_sampler(1, 2, 3, context=context), new_sampler(1, 2, 3, context=context)
    made = generate(model, sampler, count * SIZE)
    noise = torch.cat([noise_of(noises, SIZE) for _ in range(count)], -1)
    prior = sampler.prior(0, count * SIZE, context)
    starts = [FRAMES + SIZE * number for number in range(count)]
    with torch.no_grad():
        again = model(torch.cat([context, made], -1), SIZE, noise, prior, starts)
    assert (again - made).abs().max() <= 1e-5 * made.abs().max()
    assert not torch.allclose(made, prior if prior is not None else made, atol=0.1)


class Last(Prior):
    """The last frame of the history, held; notes what it was shown."""

    lookback = 3

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    @classmethod
    def draw(cls, context: Context, generators: Generators) -> Last:
        return cls()

    def frames(self, start: int, steps: int, history: Tensor) -> Tensor:
        self.seen.append(history)
        return history[..., -1:].expand(-1, -1, steps)


@pytest.mark.parametrize("frames", [2, FRAMES])  # shorter and longer than the prior looks back
def test_a_prior_sees_the_end_of_what_was_played(monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    monkeypatch.setitem(PRIORS._entries, "last", Last)
    model, context = new_model(), torch.randn(2, D, frames)
    sampler = new_sampler(1, 2, config=GenerationConfig(SIZE, True, "last"), context=context)
    made = generate(model, sampler, 3 * SIZE)
    whole, prior = torch.cat([context, made], -1), sampler._prior
    assert isinstance(prior, Last) and len(prior.seen) == 3
    for number, seen in enumerate(prior.seen):
        end = frames + number * SIZE
        assert torch.equal(seen, whole[..., max(0, end - 3) : end])
