"""The continuation of a song: block after block of latents, decoded and joined without a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encore.codecs import Codec
from encore.errors import EncoreError
from encore.models.generation import Sampler, generate, generate_blocks, make_generators
from encore.models.loading import Generator
from encore.models.priors import Context

FADE_SECONDS = 0.03
LEAST_SECONDS = 1.0


@dataclass(frozen=True)
class Continuation:
    """What a model makes of a song.

    Attributes:
        context: the song's end, as the model was given it, `[C, K]`.
        full: the same stretch and each continuation after it, `[S, C, K + M]`; only the last 30 ms of the stretch
            differ from `context`, where it fades into the codec's rendering of itself.
    """

    context: Tensor
    full: Tensor

    @property
    def audio(self) -> Tensor:
        """The continuations alone, `[S, C, M]`."""
        return self.full[..., self.context.shape[-1] :]


@torch.no_grad()
def continue_latents(
    generator: Generator, latents: Tensor, frames: int, seeds: Sequence[int], temperature: float = 1.0
) -> Tensor:
    """Continues contexts `latents [B, D, T]` by `frames` frames each: audio `[B, C, frames · hop]`.

    The contexts' ends are decoded in front. Row b's randomness follows from `seeds[b]` alone.
    """
    codec = generator.codec
    context = Context(latents, codec, lambda: codec.decode(latents))
    sampler = Sampler(generator.generation, context, make_generators(seeds), temperature)
    made = generate(generator.model, sampler, frames)
    return codec.decode_continuation(latents, made, codec.measure_margin(latents[:1]))


def continue_song(
    generator: Generator, song: Tensor, seconds: float, seeds: Sequence[int] = (0,), temperature: float = 1.0
) -> Continuation:
    """Continues `song [C, N]` by `round(seconds * sample_rate)` samples, once per seed; see `stream_song`.

    Raises:
        EncoreError: the song is shorter than one second (or a segment, if that is less).
    """
    context, pieces = stream_song(generator, song, seconds, seeds, temperature)
    return Continuation(context, torch.cat(list(pieces), dim=-1))


def stream_song(
    generator: Generator, song: Tensor, seconds: float, seeds: Sequence[int] = (0,), temperature: float = 1.0
) -> tuple[Tensor, Iterator[Tensor]]:
    """The context that is continued, `[C, K]`, and pieces `[S, C, n]` of it and its continuations, one after the other.

    The context is the last `segment_frames` latents of the song (a shorter song is a shorter one), cut so that its end
    is the song's end, whatever N is to the codec's hop. The pieces together are context and continuation; making the
    next one takes as much memory and time however many came before.

    Each block is decoded with the latents before it in front, so that its audio also covers the last 30 ms before
    it: there the earlier audio fades out and the block's fades in, with gains that add up to one, as both render
    the same latents. The first block fades in over the end of the song itself.

    Raises:
        EncoreError: the song is shorter than one second (or a segment, if that is less).
    """
    codec = generator.codec
    frames = _context_frames(codec, song, generator.segment_frames)
    context = song[..., song.shape[-1] - codec.hop_length * frames :]
    return context, _pieces(generator, context, round(seconds * codec.sample_rate), seeds, temperature)


@torch.no_grad()
def _pieces(
    generator: Generator, context: Tensor, samples: int, seeds: Sequence[int], temperature: float
) -> Iterator[Tensor]:
    codec, config, hop = generator.codec, generator.generation, generator.codec.hop_length
    device = next(codec.parameters()).device
    latents = codec.encode(context[None].to(device)).expand(len(seeds), -1, -1)
    fade = min(max(1, round(FADE_SECONDS * codec.frame_rate)), config.block_frames)
    lead = _lead_frames(codec, latents[:1], fade)
    contexts = Context(latents, codec, lambda: context[None].to(device))
    sampler = Sampler(config, contexts, make_generators(seeds), temperature)
    past, held, left = latents[..., -lead:], context.expand(len(seeds), -1, -1), samples
    for block in generate_blocks(generator.model, sampler):
        audio = codec.decode(torch.cat([past, block], dim=-1)).cpu()
        before, audio = audio[..., (lead - fade) * hop : lead * hop], audio[..., lead * hop :]
        # What was made before is held back until it is known what its end fades into.
        yield torch.cat([held[..., : -fade * hop], crossfade(held[..., -fade * hop :], before)], -1)
        if left <= audio.shape[-1]:
            yield audio[..., :left]
            return
        past, held, left = torch.cat([past, block], dim=-1)[..., -lead:], audio, left - audio.shape[-1]


def crossfade(first: Tensor, second: Tensor) -> Tensor:
    """`(1 − g) · first + g · second`, both `[..., N]`, with `g` rising linearly from 0 to 1: equal gain."""
    gain = torch.linspace(0, 1, first.shape[-1] + 2, dtype=first.dtype, device=first.device)[1:-1]
    return torch.lerp(first, second, gain)


@torch.no_grad()
def reconstruct(codec: Codec, audio: Tensor, segment_frames: int) -> Tensor:
    """The codec's own rendering of `audio [C, N]`, `decode(encode(audio))`, segment by segment as in training."""
    device = next(codec.parameters()).device
    pieces = [
        codec.decode(codec.encode(piece[None].to(device)))[0, :, : piece.shape[-1]].cpu()
        for piece in audio.split(segment_frames * codec.hop_length, dim=-1)
    ]
    return torch.cat(pieces, dim=-1)


def _context_frames(codec: Codec, song: Tensor, segment_frames: int) -> int:
    least = min(segment_frames, math.ceil(LEAST_SECONDS * codec.frame_rate))
    frames = min(segment_frames, song.shape[-1] // codec.hop_length)
    if frames < least:
        raise EncoreError(
            f"the song is {song.shape[-1] / codec.sample_rate:.2f} s long where it is to be continued; at least "
            f"{least / codec.frame_rate:.2f} s are needed: give a longer --input or a later --start"
        )
    if codec.segment_frames is not None:
        # A codec that works in segments of its own needs the continuation to begin with a whole one.
        frames -= frames % codec.segment_frames
    return frames


def _lead_frames(codec: Codec, latents: Tensor, fade: int) -> int:
    """Frames that are decoded in front of a block: those of the cross-fade, and what these need before them."""
    lead = codec.measure_margin(latents) + fade
    if codec.segment_frames is not None:
        lead = math.ceil(lead / codec.segment_frames) * codec.segment_frames
    return min(lead, latents.shape[-1])
