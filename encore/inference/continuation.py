"""Continuations of a song: block after block of latents, decoded and cross-faded."""

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
    """Continuations of a song.

    Attributes:
        context: the end of the song, which the model was given, `[C, K]`.
        full: the context followed by each continuation, `[S, C, K + M]`. Its last 30 ms differ from `context`, where it
            fades into the codec's reconstruction of itself.
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

    The end of each context is decoded in front. Row b depends on `seeds[b]` only.
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
    """The context `[C, K]` of `song [C, N]`, and an iterator of pieces `[S, C, n]`, one row per seed.

    The context is as long as a training segment, or the whole song if that is shorter, in whole frames up to the end of
    the song. The pieces concatenated are context and continuation; the first piece is the context. Memory and time per
    piece are constant.

    Each block is decoded with the latents before it in front, so that its audio also covers the last 30 ms before
    it. There the earlier audio fades out and the block's fades in, with gains that add up to one, as both are decoded
    from the same latents. The first block fades in over the end of the song itself.

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
    device = codec.device
    latents = codec.encode(context[None].to(device)).expand(len(seeds), -1, -1)
    fade = min(max(1, round(FADE_SECONDS * codec.frame_rate)), config.block_frames)
    lead = _lead_frames(codec, latents[:1], fade)
    contexts = Context(latents, codec, lambda: context[None].to(device))
    sampler = Sampler(config, contexts, make_generators(seeds), temperature)
    past, held, remaining = latents[..., -lead:], context.expand(len(seeds), -1, -1), samples
    for block in generate_blocks(generator.model, sampler):
        audio = codec.decode(torch.cat([past, block], dim=-1)).cpu()
        before, audio = audio[..., (lead - fade) * hop : lead * hop], audio[..., lead * hop :]
        # The earlier audio is held back until its end can be cross-faded.
        yield torch.cat([held[..., : -fade * hop], crossfade(held[..., -fade * hop :], before)], -1)
        if remaining <= audio.shape[-1]:
            yield audio[..., :remaining]
            return
        past, held, remaining = torch.cat([past, block], dim=-1)[..., -lead:], audio, remaining - audio.shape[-1]


def crossfade(first: Tensor, second: Tensor) -> Tensor:
    """Equal-gain cross-fade of signals `[..., N]`: `(1 − g) · first + g · second`, g rising linearly from 0 to 1."""
    gain = torch.linspace(0, 1, first.shape[-1] + 2, dtype=first.dtype, device=first.device)[1:-1]
    return torch.lerp(first, second, gain)


@torch.no_grad()
def reconstruct(codec: Codec, audio: Tensor, segment_frames: int) -> Tensor:
    """`decode(encode(audio))` of `audio [C, N]`, segment by segment as in training."""
    device = codec.device
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
            f"the song is {song.shape[-1] / codec.sample_rate:.2f} s long where the continuation begins, but at least "
            f"{least / codec.frame_rate:.2f} s are needed; give a longer song (--input) or a later second (--start)"
        )
    if codec.segment_frames is not None:
        # With a codec that works on segments, the continuation must begin with a whole one.
        frames -= frames % codec.segment_frames
    return frames


def _lead_frames(codec: Codec, latents: Tensor, fade: int) -> int:
    """Frames to decode in front of a block: those of the cross-fade, and their own margin."""
    lead = codec.measure_margin(latents) + fade
    if codec.segment_frames is not None:
        lead = math.ceil(lead / codec.segment_frames) * codec.segment_frames
    return min(lead, latents.shape[-1])
