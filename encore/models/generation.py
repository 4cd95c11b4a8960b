"""How continuations are drawn from a model: its noise, its prior's lag, and block after block of latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encore.codecs.encodec import FrozenCodec
from encore.models.priors import NONE, RHYTHM, Rhythm, draw_lags, lag_odds, replay, take
from encore.models.transformer import NOISE_CHANNELS, ContinuationTransformer

PER_CONTINUATION, PER_BLOCK = NOISE_CHANNELS // 4, NOISE_CHANNELS // 4  # channels of noise; the others are per frame


@dataclass(frozen=True)
class Recipe:
    """How a model is used.

    Attributes:
        block_frames: latent frames that are made at once.
        generative: whether samples are drawn. Otherwise there is no noise and the prior's lag is the whole context, so
            that frame t of a continuation starts from frame t of its context.
        prior: "replay", "rhythm" or "none"; see `encore.models.priors`.
    """

    block_frames: int
    generative: bool
    prior: str


class Draw:
    """The randomness of R continuations: noise, and what their prior draws.

    Of the noise's channels a quarter holds one value for the whole continuation, a quarter one for each block, the
    rest one for each frame; all are normal, of deviation `temperature`.

    Args:
        rows: R.
        frames: latent frames of the contexts.
        odds: of the lags, for each row, `[R, T + 1]`; for the prior "rhythm", see `lag_odds`.
        device: where noise is wanted.
        generators: one per row, so that a row is the same whatever is drawn beside it; None: PyTorch's own.
        temperature: scale of the noise.
    """

    def __init__(
        self,
        recipe: Recipe,
        rows: int,
        frames: int,
        device: torch.device,
        odds: Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
        temperature: float = 1.0,
    ):
        self.recipe, self.rows, self.device, self.generators = recipe, rows, device, generators
        self.temperature = temperature
        if not recipe.generative:
            self.lags = torch.full((rows,), frames, device=device)
            return
        each: Sequence[torch.Generator | None] = generators or [None] * rows
        if recipe.prior == RHYTHM:
            assert odds is not None
            self.rhythms = [Rhythm(row, generator) for row, generator in zip(odds, each, strict=True)]
        else:
            self.lags = torch.cat([draw_lags(1, frames, generator) for generator in each]).to(device)
        self.lasting = self._normal(PER_CONTINUATION, 1)

    def noise(self, steps: int, blocks: int = 1) -> Tensor | None:
        """Noise for blocks of `steps` frames, `[R, NOISE_CHANNELS, blocks · steps]`."""
        if not self.recipe.generative:
            return None
        parts = [self.lasting.expand(-1, -1, blocks * steps)]
        parts.append(self._normal(PER_BLOCK, blocks).repeat_interleave(steps, -1))
        parts.append(self._normal(NOISE_CHANNELS - PER_BLOCK - PER_CONTINUATION, blocks * steps))
        return torch.cat(parts, 1)

    def prior(self, context: Tensor, start: int, steps: int) -> Tensor | None:
        """The guess at `steps` frames from the `start`-th after `context [R, D, T]` on, `[R, D, steps]`."""
        if self.recipe.prior == NONE:
            return None
        if self.recipe.prior == RHYTHM and self.recipe.generative:
            index = torch.stack([rhythm.indices(start, steps) for rhythm in self.rhythms])
            return take(context, index.to(context.device))
        return replay(context, self.lags, start, steps)

    def _normal(self, channels: int, length: int) -> Tensor:
        if self.generators is None:
            values = torch.randn(self.rows, channels, length, device=self.device)
        else:
            rows = [torch.randn(channels, length, generator=generator) for generator in self.generators]
            values = torch.stack(rows).to(self.device)
        return self.temperature * values


def odds_for(recipe: Recipe, codec: FrozenCodec, audio: Callable[[], Tensor]) -> Tensor | None:
    """The odds of the lags of contexts whose audio `[R, C, N]` can be had; None where `Draw` doesn't need them."""
    if not recipe.generative or recipe.prior != RHYTHM:
        return None
    return lag_odds(audio(), codec.hop_length, codec.frame_rate)


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """A generator per seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@torch.no_grad()
def blocks(model: ContinuationTransformer, recipe: Recipe, context: Tensor, draw: Draw) -> Iterator[Tensor]:
    """Endless blocks of latents `[R, D, block_frames]` that follow `context [R, D, T]`; the model is in eval mode then.

    Memory and cost of a block stay the same, however many came before: the model keeps what a block can see, and the
    prior the context's own frames.
    """
    memory = model.remember(context)
    start, steps = 0, recipe.block_frames
    while True:
        block = model.answer(memory, steps, draw.noise(steps), draw.prior(context, start, steps)).float()
        yield block
        memory = model.remember(block, memory)
        start += steps


def continuation(model: ContinuationTransformer, recipe: Recipe, context: Tensor, draw: Draw, frames: int) -> Tensor:
    """The `frames` latents that follow, `[R, D, frames]`."""
    made: list[Tensor] = []
    for block in blocks(model, recipe, context, draw):
        made.append(block)
        if sum(part.shape[-1] for part in made) >= frames:
            break
    return torch.cat(made, -1)[..., :frames]
