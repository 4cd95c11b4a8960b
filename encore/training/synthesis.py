"""What a step makes and hears: samples from the model, decoded with the end of what came before in front of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from encore.codecs.encodec import FrozenCodec
from encore.data.dataset import Batch
from encore.models.generation import GenerationConfig, Sampler, generate, make_generators
from encore.models.priors import REPLAY, Context

SEAM_SECONDS = 0.1  # of what came before is heard with every block: the join is part of it
MOST_SAMPLES = 1000  # that an item's number is multiplied by for its samples' seeds


@dataclass(frozen=True)
class Plan:
    """What of a segment a step makes and hears.

    Attributes:
        starts: first frames of the blocks that are made, counted from the context's end.
        first: the first frame of a block that is heard.
        frames: how many are, of each block.
        own: what comes before the block (there is one then) is the model's own continuation, and not the truth.
    """

    starts: tuple[int, ...]
    first: int
    frames: int
    own: bool = False


class Hearing:
    """Draws samples from a model and decodes what is to be heard of them.

    Args:
        codec: decodes.
        recipe: how the model is used.
        samples: drawn per item.
        margin: frames that the decoder needs in front of a crop (see `FrozenCodec.measure_margin`).
        heard_frames: frames that a training step decodes, of each sample: a crop of a block, or several blocks.
        autocast: context for the model, e.g. of bfloat16; the decoder runs in float32.
        context_noise: greatest deviation of noise on the context in training, in units of each channel's. The model
            is told it, and uses 0 later.
        rollout_blocks: most blocks of the model's own that a block comes after, in plans with `own`.
    """

    def __init__(
        self,
        codec: FrozenCodec,
        recipe: GenerationConfig,
        samples: int,
        margin: int,
        heard_frames: int,
        autocast: Callable[[], AbstractContextManager[Any]],
        context_noise: float = 0.0,
        rollout_blocks: int = 0,
    ):
        self.codec, self.recipe, self.samples, self.margin = codec, recipe, samples, margin
        self.heard_frames, self.autocast = heard_frames, autocast
        self.context_noise, self.rollout_blocks = context_noise, rollout_blocks
        self.seam = round(SEAM_SECONDS * codec.frame_rate)

    def plan(self, frames: int, own: bool = False) -> Plan:
        """What to make and hear of segments of `frames` frames, drawn from PyTorch's generator.

        `own` asks for a block after some of the model's own, where there are to be any.
        """
        size = min(self.recipe.block_frames, frames)
        count = frames // size
        if own and self.rollout_blocks:
            most = min(self.rollout_blocks, count - 1)
            starts = [int(torch.randint(most + 1, ()))]
        else:
            starts = torch.randperm(count)[: max(1, self.heard_frames // size)].sort().values.tolist()
        heard = min(self.heard_frames, size)
        first = int(torch.randint(size - heard + 1, ()))
        return Plan(tuple(size * start for start in starts), first, heard, own and bool(self.rollout_blocks))

    def predict(self, model: nn.Module, batch: Batch, plan: Plan) -> Tensor:
        """What is heard of a plan's blocks, `[R, C, N]`: for each item its samples, for each of these its blocks."""
        rows, frames = len(batch) * self.samples, batch.context.shape[-1]
        size = min(self.recipe.block_frames, frames)
        draw = self._draw(self.recipe, batch)
        context = batch.context.repeat_interleave(self.samples, 0)
        history = torch.cat([batch.context, batch.target_latents], -1)
        if plan.own and plan.starts[0]:
            bare = bare_of(model)
            was_training = bare.training
            own = self._continue(bare.eval(), draw, plan.starts[0])  # as it will be used: without dropout
            bare.train(was_training)
            history = torch.cat([context, own], -1)
        noise = draw.noise(size, len(plan.starts))
        guesses = [draw.prior(start, size) for start in plan.starts]
        prior = None if guesses[0] is None else torch.cat([guess for guess in guesses if guess is not None], -1)
        starts = [frames + start for start in plan.starts]
        given, level = self._noisy(history[..., : max(starts)], bare_of(model))
        with self.autocast():
            latents = model(given, size, noise, prior, starts, level)
        made = latents.float().unflatten(-1, (len(starts), size)).transpose(1, 2)[..., : plan.first + plan.frames]
        # The decoder is given the true past, not the noisy one.
        before = self._before(plan, frames)
        past = torch.stack([history[..., start - before : start] for start in starts], 1)
        past = past.repeat_interleave(rows // len(history), 0)
        latents = torch.cat([past, made], -1).flatten(0, 1)
        return self.codec.decode_crop(latents, before + plan.first - self.seam, self.seam + plan.frames, self.margin)

    def references(self, batch: Batch, plan: Plan) -> tuple[Tensor, Tensor]:
        """The target's audio for each block of each item `[B · n, C, N]`, and the input's, without a seam before it."""
        hop, frames = self.codec.hop_length, batch.context.shape[-1]
        sounds = torch.cat([batch.input_audio, batch.target_audio], -1)
        firsts = [start + plan.first for start in plan.starts]
        last = plan.frames
        target = [sounds[..., (frames + first - self.seam) * hop : (frames + first + last) * hop] for first in firsts]
        source = [batch.input_audio[..., first * hop : (first + last) * hop] for first in firsts]
        return torch.stack(target, 1).flatten(0, 1), torch.stack(source, 1).flatten(0, 1)

    @torch.no_grad()
    def sample(self, model: nn.Module, batch: Batch) -> Tensor:
        """Whole continuations, as long as the contexts, each item's samples next to one another: `[B · S, C, N]`.

        What is drawn for an item follows from its number, so that every validation hears the same noise.
        """
        context = batch.context.repeat_interleave(self.samples, 0)
        made = self._continue(model, self._draw(self.recipe, batch, seeded=True), context.shape[-1])
        return self.codec.decode_continuation(context, made, self.margin)

    @torch.no_grad()
    def replay(self, batch: Batch) -> Tensor:
        """The context repeated at random lags, in the place of the model's samples."""
        context = batch.context.repeat_interleave(self.samples, 0)
        config = GenerationConfig(self.recipe.block_frames, generative=True, prior=REPLAY)
        made = self._draw(config, batch, seeded=True).prior(0, context.shape[-1])
        assert made is not None
        return self.codec.decode_continuation(context, made, self.margin)

    def _draw(self, recipe: GenerationConfig, batch: Batch, seeded: bool = False) -> Sampler:
        """The randomness of all samples; `seeded` by their items' numbers."""
        context = Context(batch.context.repeat_interleave(self.samples, 0), self.codec, lambda: batch.input_audio)
        generators = None
        if seeded:
            numbers = batch.number.repeat_interleave(self.samples) * MOST_SAMPLES
            generators = make_generators((numbers + torch.arange(len(numbers)).to(numbers) % self.samples).tolist())
        return Sampler(recipe, context, generators)

    def _continue(self, model: nn.Module, draw: Sampler, frames: int) -> Tensor:
        with self.autocast():
            return generate(model, draw, frames)  # type: ignore[arg-type]

    def _noisy(self, history: Tensor, model: nn.Module) -> tuple[Tensor, Tensor | None]:
        """The history with noise on it, and how much, `[B]`."""
        if not self.context_noise:
            return history, None
        level = self.context_noise * torch.rand(len(history), device=history.device)
        return history + level[:, None, None] * model.std * torch.randn_like(history), level  # type: ignore[operator]

    def _before(self, plan: Plan, frames: int) -> int:
        """Frames of the past that are decoded in front of a block, so that its seam can be heard."""
        least = self.seam - plan.first
        if self.codec.segment_frames is not None:
            return max(0, -(-least // self.codec.segment_frames) * self.codec.segment_frames)
        return min(max(0, least + self.margin), frames + plan.starts[0])


def bare_of(model: nn.Module) -> nn.Module:
    """The model within DDP's wrapper."""
    return getattr(model, "module", model)


def heard_samples(codec: FrozenCodec, recipe: GenerationConfig, heard_frames: int) -> int:
    """Samples of what a training step hears at once: a block or a crop of one, without the seam before it."""
    return min(heard_frames, recipe.block_frames) * codec.hop_length
