"""The audio of a training step: samples of the model, decoded after the end of what came before them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encore.codecs import Codec
from encore.codecs.bands import band_powers
from encore.codecs.base import join
from encore.data.dataset import Batch
from encore.models.generation import GenerationConfig, Sampler, generate, generate_prior, make_generators
from encore.models.pointer import Pointer
from encore.models.precision import FP32, autocast
from encore.models.priors import REPLAY, Context

BOUNDARY_SECONDS = 0.1  # of what comes before a crop are decoded with it, so that the losses see the transition
MAX_SAMPLES = 1000  # seeds are an item's number times this, plus the sample's


@dataclass(frozen=True)
class CropPlan:
    """Where the targets of a step begin, and what of them it generates and decodes.

    Attributes:
        starts: first frames of the blocks that are generated, counted from the context's end.
        first: first frame of a block that is decoded.
        frames: frames that are decoded of each block.
        rollout: the frames before the block (there is one then) are generated too, not the true ones.
        shift: frames that the boundary between context and target is moved back by (`Batch.shifted`).
    """

    starts: tuple[int, ...]
    first: int
    frames: int
    rollout: bool = False
    shift: int = 0


class Synthesizer:
    """Samples continuations from a model and decodes crops of them.

    Args:
        codec: decodes latents.
        generation: how continuations are generated.
        samples: per item.
        margin: latent frames that the decoder needs in front of a crop (see `Codec.measure_margin`).
        crop_frames: frames that a training step decodes of each sample: a crop of a block, or several blocks.
        precision: of the model, "fp32" or "bf16"; the decoder runs in float32.
        context_noise: largest standard deviation of noise on the context in training, in units of each latent
            channel's in the context. The model is told the deviation; it is 0 outside of training.
        rollout_blocks: most generated blocks in front of a block, in plans with `rollout`.
        pointer: the model's, if its prior is one.
        recompute: decode item by item and again in the backward pass, instead of keeping the decoder's activations.
    """

    def __init__(
        self,
        codec: Codec,
        generation: GenerationConfig,
        *,
        samples: int,
        margin: int,
        crop_frames: int,
        precision: str = FP32,
        context_noise: float = 0.0,
        rollout_blocks: int = 0,
        recompute: bool = False,
        pointer: Pointer | None = None,
    ):
        self.codec, self.generation, self.samples, self.margin = codec, generation, samples, margin
        self.crop_frames, self.precision = crop_frames, precision
        self.context_noise, self.rollout_blocks, self.recompute = context_noise, rollout_blocks, recompute
        self.pointer = pointer
        self.boundary = round(BOUNDARY_SECONDS * codec.frame_rate)

    def plan(
        self, frames: int, rollout: bool = False, generator: torch.Generator | None = None, most_shift: int = 0
    ) -> CropPlan:
        """Draws what to generate and decode of targets of `frames` frames.

        Args:
            frames: of the targets.
            rollout: draw a block after up to `rollout_blocks` generated ones.
            generator: None: PyTorch's default one.
            most_shift: most frames that the boundary is moved back by, uniformly; whole segments of the codec, where it
                works on these.
        """
        size = min(self.generation.block_frames, frames)
        count = frames // size
        if rollout and self.rollout_blocks:
            most = min(self.rollout_blocks, count - 1)
            starts = [int(torch.randint(most + 1, (), generator=generator))]
        else:
            starts = (
                torch.randperm(count, generator=generator)[: max(1, self.crop_frames // size)].sort().values.tolist()
            )
        decoded = min(self.crop_frames, size)
        first = int(torch.randint(size - decoded + 1, (), generator=generator))
        unit, shift = self.codec.segment_frames or 1, 0
        if most_shift:
            shift = unit * int(torch.randint(most_shift // unit + 1, (), generator=generator))
        places = tuple(size * start for start in starts)
        return CropPlan(places, first, decoded, rollout and bool(self.rollout_blocks), shift)

    def predict(self, model: nn.Module, batch: Batch, plan: CropPlan) -> Tensor:
        """The decoded crops of a plan, `[R, C, N]`: for each item its samples, for each sample its blocks."""
        rows, frames = len(batch) * self.samples, batch.context.shape[-1]
        size = min(self.generation.block_frames, batch.target_latents.shape[-1])
        sampler = self._sampler(self.generation, batch)
        history = self._history(model, batch, plan, sampler)
        noise = sampler.noise(size, len(plan.starts))
        prior, bands = self._guesses(unwrap(model), sampler, batch, plan, history)
        starts = [frames + start for start in plan.starts]
        known = history[:, : batch.context.shape[1], : max(starts)]  # without the gains of a rollout
        given, level = self._with_noise(known, unwrap(model), frames)
        with autocast(self.precision, given.device):
            latents = model(given, size, noise, prior, starts, level, frames, bands)
        blocks = latents.float().unflatten(-1, (len(starts), size)).transpose(1, 2)[..., : plan.first + plan.frames]
        # The decoder gets the past without the noise.
        before = self._frames_before(plan, frames)
        past = torch.stack([history[..., start - before : start] for start in starts], 1)
        past = past.repeat_interleave(rows // len(history), 0)
        latents = join(past.flatten(0, 1), blocks.flatten(0, 1))
        first = before + plan.first - self.boundary
        crop = (first, self.boundary + plan.frames, self.margin)
        if not self.recompute:
            return self.codec.decode_crop(latents, *crop)
        parts = latents.split(len(latents) // len(batch))
        return torch.cat([checkpoint(self.codec.decode_crop, part, *crop, use_reentrant=False) for part in parts])

    def _guesses(
        self, model: nn.Module, sampler: Sampler, batch: Batch, plan: CropPlan, history: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """The prior's guesses at a plan's blocks, one after the other, and what the blocks' gains follow."""
        frames, dim = batch.context.shape[-1], batch.context.shape[1]
        size = min(self.generation.block_frames, batch.target_latents.shape[-1])
        guesses, bands, powers = [], [], None
        if model.gains is not None:
            powers = self._powers(batch, history[..., frames : frames + max(plan.starts)])
        for start in plan.starts:
            guess = sampler.prior(start, size, history[:, :dim, : frames + start])
            if guess is None:
                return None, None
            guesses.append(guess)
            if powers is not None:
                bands.append(sampler.bands(powers[..., : frames + start]))
        each = [band for band in bands if band is not None]
        return torch.cat(guesses, -1), torch.stack(each, 1) if each else None

    def _powers(self, batch: Batch, following: Tensor) -> Tensor:
        """Powers in bands of the inputs and what lies between them and a block: the true music, or a rollout."""
        audio, hop = batch.input_audio, self.codec.hop_length
        if len(following) == len(batch):
            after = batch.target_audio[..., : following.shape[-1] * hop]
        else:
            after = self.codec.render(following).detach()
            audio = audio.repeat_interleave(len(after) // len(audio), 0)
        return band_powers(torch.cat([audio, after], -1), self.codec.sample_rate, hop)

    def references(self, batch: Batch, plan: CropPlan) -> tuple[Tensor, Tensor]:
        """The target's audio of each block of each item `[B · n, C, N]`, and the input's, which has no boundary.

        A target is compared with as many frames at the input's end.
        """
        hop, frames = self.codec.hop_length, batch.context.shape[-1]
        whole = torch.cat([batch.input_audio, batch.target_audio], -1)
        firsts = [start + plan.first for start in plan.starts]
        last = plan.frames
        target = [
            whole[..., (frames + first - self.boundary) * hop : (frames + first + last) * hop] for first in firsts
        ]
        skipped = frames - batch.target_latents.shape[-1]
        source = [batch.input_audio[..., (skipped + first) * hop : (skipped + first + last) * hop] for first in firsts]
        return torch.stack(target, 1).flatten(0, 1), torch.stack(source, 1).flatten(0, 1)

    @torch.no_grad()
    def sample(self, model: nn.Module, batch: Batch) -> Tensor:
        """Whole continuations, as long as the targets, each item's samples consecutive: `[B · S, C, N]`.

        Their seeds follow from the items' numbers, so that every validation draws the same noise.
        """
        context = batch.context.repeat_interleave(self.samples, 0)
        sampler = self._sampler(self.generation, batch, seeded=True)
        made = self._generate(model, sampler, batch.target_latents.shape[-1])
        return self.codec.decode_continuation(context, made, self.margin)

    @torch.no_grad()
    def replay(self, batch: Batch) -> Tensor:
        """The context repeated at random lags: what `sample` is compared with."""
        context = batch.context.repeat_interleave(self.samples, 0)
        config = GenerationConfig(self.generation.block_frames, generative=True, prior=REPLAY)
        latents = self._sampler(config, batch, seeded=True).prior(0, batch.target_latents.shape[-1], context)
        assert latents is not None
        return self.codec.decode_continuation(context, latents, self.margin)

    @torch.no_grad()
    def prior_alone(self, batch: Batch) -> Tensor:
        """The prior's guesses that `sample` starts from, with the same draws: what an untrained model gives."""
        context = batch.context.repeat_interleave(self.samples, 0)
        latents = generate_prior(self._sampler(self.generation, batch, seeded=True), batch.target_latents.shape[-1])
        return self.codec.decode_continuation(context, latents, self.margin)

    def _sampler(self, generation: GenerationConfig, batch: Batch, seeded: bool = False) -> Sampler:
        latents = batch.context.repeat_interleave(self.samples, 0)
        context = Context(latents, self.codec, lambda: batch.input_audio, self.samples, self.pointer)
        generators = None
        if seeded:
            numbers = batch.number.repeat_interleave(self.samples) * MAX_SAMPLES
            generators = make_generators((numbers + torch.arange(len(numbers)).to(numbers) % self.samples).tolist())
        return Sampler(generation, context, generators)

    def _history(self, model: nn.Module, batch: Batch, plan: CropPlan, sampler: Sampler) -> Tensor:
        """What lies before the blocks, `[B or R, D, F]`: the true latents, or the context and a rollout."""
        if not (plan.rollout and plan.starts[0]):
            return torch.cat([batch.context, batch.target_latents], -1)
        bare = unwrap(model)
        was_training = bare.training
        generated = self._generate(bare.eval(), sampler, plan.starts[0])  # without dropout, as in inference
        bare.train(was_training)
        return join(batch.context.repeat_interleave(self.samples, 0), generated)

    def _generate(self, model: nn.Module, sampler: Sampler, frames: int) -> Tensor:
        return generate(model, sampler, frames, self.precision)  # type: ignore[arg-type]

    def _with_noise(self, history: Tensor, model: nn.Module, frames: int) -> tuple[Tensor, Tensor | None]:
        """The history, whose first `frames` are the context, with noise added, and its standard deviation, `[B]`."""
        if not self.context_noise:
            return history, None
        level = self.context_noise * torch.rand(len(history), device=history.device)
        _, std = model.statistics(history[..., :frames])  # type: ignore[operator]
        return history + level[:, None, None] * std * torch.randn_like(history), level

    def _frames_before(self, plan: CropPlan, frames: int) -> int:
        """Frames of the past that are decoded in front of a block, for the boundary and the decoder's margin."""
        least = self.boundary - plan.first
        if self.codec.segment_frames is not None:
            return max(0, -(-least // self.codec.segment_frames) * self.codec.segment_frames)
        return min(max(0, least + self.margin), frames + plan.starts[0])


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP's wrapper."""
    return getattr(model, "module", model)


def crop_samples(codec: Codec, generation: GenerationConfig, crop_frames: int) -> int:
    """Samples of audio that a training step decodes at once: a block or a crop of one, without the boundary."""
    return min(crop_frames, generation.block_frames) * codec.hop_length
