"""How continuations are sampled from a model: noise, a prior's guess, and block after block of latents."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encore.codecs.bands import band_powers
from encore.models.band_levels import MATCHED_SECONDS, BandLevels
from encore.models.precision import FP32, autocast
from encore.models.priors import Context, Generators, preceding, take
from encore.models.transformer import NOISE_CHANNELS, PER_BLOCK, PER_CONTINUATION, ContinuationTransformer, KVCache
from encore.registry import PRIORS


@dataclass(frozen=True)
class GenerationConfig:
    """How continuations are generated.

    Attributes:
        block_frames: latent frames generated at once.
        generative: whether continuations are sampled. A model trained by regression is deterministic: it gets no noise,
            and its prior is fixed (see `Prior.fixed`).
        prior: registered name; see `encore.models.priors`.
    """

    block_frames: int
    generative: bool
    prior: str


class Sampler:
    """The random part of R continuations: their noise and their priors.

    A quarter of the noise's channels holds one value per continuation, a quarter one per block, the rest one per frame,
    all normal with standard deviation `temperature`.

    Args:
        config: how continuations are generated.
        context: the R contexts.
        generators: one per row, so that a row depends on its own seed only; None: PyTorch's default one.
        temperature: standard deviation of the noise.

    Raises:
        EncoreError: no prior of that name is registered.
    """

    def __init__(
        self,
        config: GenerationConfig,
        context: Context,
        generators: Sequence[torch.Generator] | None = None,
        temperature: float = 1.0,
    ):
        self.config, self.context, self.generators, self.temperature = config, context, generators, temperature
        self.rows, self.device = len(context.latents), context.latents.device
        self._sources: list[Tensor] = []
        self._begin: Tensor | None = None  # frames of the context that the first guesses begin with
        prior = PRIORS.find(config.prior)
        if not config.generative:
            self._prior = prior.fixed(context)
            return
        each: Generators = generators or [None] * self.rows
        self._prior = prior.draw(context, each)
        self._constant = self._normal(PER_CONTINUATION, 1)
        self._levels: BandLevels | None = None

    @property
    def equalized(self) -> bool:
        """Whether the model changes the levels of bands: it samples, and has a prior."""
        return self.config.generative and not self._prior.empty

    @property
    def powers(self) -> Tensor:
        """The contexts' powers in bands, `[R / copies, BANDS, T]`."""
        return self.levels.powers[:: self.context.copies]

    @property
    def levels(self) -> BandLevels:
        """The contexts' levels in bands."""
        if self._levels is None:
            codec = self.context.codec
            audio = self.context.audio()[..., -self.context.latents.shape[-1] * codec.hop_length :]
            powers = band_powers(audio, codec.sample_rate, codec.hop_length)
            self._levels = BandLevels(powers.repeat_interleave(self.rows // len(powers), 0), codec.frame_rate)
        return self._levels

    def bands(self, played: Tensor, first: bool = True) -> Tensor | None:
        """What gains in bands follow, for the block of the last `prior`; None where there are no gains.

        See `BandLevels.features`, which this is.
        """
        return self.levels.features(played, self._prior.taken, first) if self.equalized else None

    def played(self, before: Tensor, gains: Tensor) -> Tensor:
        """The end of powers `[R, BANDS, F]` and, after them, those of the last `prior` with gains `[R, BANDS, n]`."""
        taken = self._prior.taken
        powers = torch.zeros_like(gains) if taken is None else take(self.levels.powers, taken)
        most = max(1, round(max(MATCHED_SECONDS) * self.context.codec.frame_rate))
        return torch.cat([before, powers * (2 * gains).exp()], -1)[..., -most:]

    def noise(self, steps: int, blocks: int = 1) -> Tensor | None:
        """Noise for `blocks` blocks of `steps` frames, `[R, NOISE_CHANNELS, blocks · steps]`."""
        if not self.config.generative:
            return None
        parts = [self._constant.expand(-1, -1, blocks * steps)]
        parts.append(self._normal(PER_BLOCK, blocks).repeat_interleave(steps, -1))
        parts.append(self._normal(NOISE_CHANNELS - PER_BLOCK - PER_CONTINUATION, blocks * steps))
        return torch.cat(parts, 1)

    def prior(self, start: int, steps: int, history: Tensor) -> Tensor | None:
        """The prior's guess at frames `start … start + steps − 1` after the contexts, `[R, D, steps]`.

        `history` is what comes before `start`; see `Prior.frames`.
        """
        return self._prior.frames(start, steps, history)

    def record(self, guess: Tensor | None, made: Tensor) -> None:
        """Keeps where a block `made [R, D, steps]` from the last `prior`'s guess comes from, for `sources`."""
        taken = self._prior.taken if self.config.generative else None
        if guess is None or taken is None:
            self._sources.append(_elsewhere(len(made), made.shape[-1], made.device))
            return
        if self._begin is None:
            self._begin = taken[:, 0]
        centre = self.context.latents.mean(-1, keepdim=True)
        one, other = (guess - centre).flatten(1), (made - centre).flatten(1)
        share = (2 * torch.cosine_similarity(one, other).clamp_min(0).square() - 1).clamp_min(0)
        self._sources.append(torch.stack([taken.to(made), share[:, None].expand(taken.shape)], 1))

    def sources(self, frames: int) -> Tensor:
        """Where the next `frames` frames of the blocks so far come from, `[R, 2, frames]`; all are then forgotten.

        Of each frame the number of the context's frame that was guessed, −1 if none was, and how much of the guess is
        left: `2 ρ² − 1`, at least 0, ρ the block's correlation with it, both relative to the context's mean. That is 1
        if nothing has changed, and 0 as soon as the guess explains no more than half of the block.
        """
        found = torch.cat(self._sources, -1)[..., :frames]
        self._sources.clear()
        return found

    def lead_in(self, frames: int) -> tuple[Tensor, Tensor]:
        """What to decode in front of the first block, `[R, D, frames]`, and its sources, `[R, 2, frames]`.

        It is what lies before the prior's first guess. The end of the recording fades into it, so that the first block
        begins as it does where it was taken from. A deterministic model, or one without a prior, goes on from the
        contexts. Called after the first block.
        """
        context = self.context.latents
        if self._begin is None:
            return context[..., -frames:], _elsewhere(self.rows, frames, self.device)
        index = preceding(self._begin, frames, context.shape[-1])
        return take(context, index), torch.stack([index.to(context), torch.ones_like(index).to(context)], 1)

    def recent(self, history: Tensor) -> Tensor:
        """The end of `history [R, D, F]`, as much as the prior looks at."""
        return history[..., max(0, history.shape[-1] - self._prior.lookback) :]

    def _normal(self, channels: int, length: int) -> Tensor:
        if self.generators is None:
            values = torch.randn(self.rows, channels, length, device=self.device)
        else:
            rows = [torch.randn(channels, length, generator=generator) for generator in self.generators]
            values = torch.stack(rows).to(self.device)
        return self.temperature * values


def _elsewhere(rows: int, frames: int, device: torch.device) -> Tensor:
    """Sources of frames that come from no frame of the context, `[R, 2, frames]`."""
    return torch.tensor([-1.0, 0.0], device=device)[:, None].expand(rows, 2, frames)


def make_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@torch.no_grad()
def generate_blocks(model: ContinuationTransformer, sampler: Sampler, precision: str = FP32) -> Iterator[Tensor]:
    """Blocks of latents `[R, D, block_frames]` that follow the sampler's contexts, without end.

    With a prior they are latents and gains, `[R, D + BANDS, block_frames]`; see `Codec.render`.

    The model should be in evaluation mode. Memory and time per block are constant, as the cache holds only what a block
    attends to, and the prior only the context and as much of the end as it looks at. Continuations of one context share
    its keys and values until their first block is appended.
    """
    context, steps = sampler.context, sampler.config.block_frames
    device = context.latents.device
    with autocast(precision, device):
        cache = model.prefill(context.latents[:: context.copies])
    history, powers = sampler.recent(context.latents), sampler.powers if model.gains is not None else None
    for start in itertools.count(0, steps):
        noise, prior = sampler.noise(steps), sampler.prior(start, steps, history)
        bands = None if powers is None else sampler.bands(powers, start == 0)
        with autocast(precision, device):
            made = model.decode_block(cache, steps, noise, prior, bands=bands).float()
        block, gains = made[:, : context.latents.shape[1]], made[:, context.latents.shape[1] :]
        sampler.record(prior, block)
        yield made
        history = sampler.recent(torch.cat([history, block], -1))
        if powers is not None:
            powers = sampler.played(powers.repeat_interleave(len(made) // len(powers), 0), gains)
        if start == 0 and context.copies > 1:
            cache = _repeat_rows(cache, context.copies)
        with autocast(precision, device):
            cache = model.prefill(block, cache)


def generate(model: ContinuationTransformer, sampler: Sampler, frames: int, precision: str = FP32) -> Tensor:
    """The `frames` latents that follow the sampler's contexts, `[R, D or D + BANDS, frames]`; see `generate_blocks`."""
    count = -(-frames // sampler.config.block_frames)
    return torch.cat(list(itertools.islice(generate_blocks(model, sampler, precision), count)), -1)[..., :frames]


def generate_prior(sampler: Sampler, frames: int) -> Tensor:
    """The prior's guesses alone, `[R, D, frames]`, drawn as in `generate`: what an untrained model gives.

    Raises:
        ValueError: the prior is empty.
    """
    steps, blocks = sampler.config.block_frames, list[Tensor]()
    history = sampler.recent(sampler.context.latents)
    for start in range(0, frames, steps):
        sampler.noise(steps)  # a row has one generator for its noise and its prior
        guess = sampler.prior(start, steps, history)
        if guess is None:
            raise ValueError(f"the prior {sampler.config.prior!r} makes no guesses")
        sampler.record(guess, guess)
        blocks.append(guess)
        history = sampler.recent(torch.cat([history, guess], -1))
    return torch.cat(blocks, -1)[..., :frames]


def _repeat_rows(cache: KVCache, times: int) -> KVCache:
    """Each row `times` times, its copies next to one another."""
    keys, values = ([part.repeat_interleave(times, 0) for part in parts] for parts in (cache.keys, cache.values))
    mean, std = (part.repeat_interleave(times, 0) for part in (cache.mean, cache.std))
    return KVCache(keys, values, mean, std, cache.end)
