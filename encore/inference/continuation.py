"""Continuations of a song: block after block of latents, decoded and cross-faded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encore.codecs import Codec
from encore.codecs.base import join
from encore.errors import EncoreError
from encore.inference.details import Details
from encore.models.generation import Sampler, generate, generate_blocks, generate_prior, make_generators
from encore.models.loading import Generator
from encore.models.priors import Context, crossfade

FADE_SECONDS = 0.1
LEAST_SECONDS = 1.0  # of a song
DECODED_SECONDS = 1.0  # at once, at least: shorter pieces cost more for what is decoded in front of each
BATCH_SIZE = 8  # songs


@dataclass(frozen=True)
class Continuation:
    """Continuations of a song.

    Attributes:
        context: the end of the song, which the model was given, `[C, K]`.
        full: the context followed by each continuation, `[S, C, K + M]`. Its last 0.1 s differs from `context`: it
            fades into what lies before the continuation.
    """

    context: Tensor
    full: Tensor

    @property
    def audio(self) -> Tensor:
        """The continuations alone, `[S, C, M]`."""
        return self.full[..., self.context.shape[-1] :]


@dataclass(frozen=True)
class Draws:
    """Which continuations of each song are made.

    Attributes:
        seconds: length of each.
        seeds: one continuation of every song per seed.
        temperature: standard deviation of the model's noise.
    """

    seconds: float
    seeds: Sequence[int] = (0,)
    temperature: float = 1.0


@dataclass(frozen=True)
class Contexts:
    """Contexts to continue: their latents `[B, D, T]`, and the audio that these encode, `[B, C, T · hop]`."""

    latents: Tensor
    audio: Tensor


@torch.no_grad()
def continue_latents(
    generator: Generator,
    contexts: Contexts,
    frames: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    prior_alone: bool = False,
) -> Tensor:
    """Continues contexts by `frames` frames each: audio `[R, C, (fade + frames) · hop]`.

    The first `fade_frames(codec)` frames are the end of the context, as it goes over into the continuation.

    Args:
        seeds: R of them, the same number for each context, those of a context in a row. Row r depends on its context
            and `seeds[r]` only.
        temperature: standard deviation of the model's noise.
        prior_alone: leave out the model: its prior's guesses, from the same draws.
    """
    copies = len(seeds) // len(contexts.latents)
    latents = contexts.latents.repeat_interleave(copies, 0)
    context = Context(latents, generator.codec, lambda: contexts.audio, copies, generator.model.pointer)
    sampler = Sampler(generator.generation, context, make_generators(seeds), temperature)
    if prior_alone:
        made = generate_prior(sampler, frames)
    else:
        made = generate(generator.model, sampler, frames, generator.precision)
    codec, fade = generator.codec, fade_frames(generator.codec)
    lead = lead_frames(codec, generator.margin, latents.shape[-1])
    past, sources = sampler.lead_in(lead)
    details = Details(codec, contexts.latents, lambda: contexts.audio, fade)
    taken = torch.cat([sources, sampler.sources(frames)], -1)
    return codec.render(join(past, made, fade), details.of(taken))[..., (lead - fade) * codec.hop_length :]


def fade_frames(codec: Codec) -> int:
    """Frames at the end of what came before that fade into what follows."""
    return max(1, round(FADE_SECONDS * codec.frame_rate))


def continue_song(
    generator: Generator, song: Tensor, seconds: float, seeds: Sequence[int] = (0,), temperature: float = 1.0
) -> Continuation:
    """Continues `song [C, N]` by `round(seconds * sample_rate)` samples, once per seed; see `stream_song`.

    Raises:
        EncoreError: the song is shorter than one second (or a context of training, if that is less).
    """
    context, pieces = stream_song(generator, song, seconds, seeds, temperature)
    return Continuation(context, torch.cat(list(pieces), dim=-1))


def continue_songs(
    generator: Generator, songs: Sequence[Tensor], draws: Draws, batch_size: int = BATCH_SIZE
) -> list[Continuation]:
    """Continues each of `songs`, `[C, N]` of any lengths; up to `batch_size` with contexts of one length at a time.

    A song's continuations do not depend on the other songs, up to rounding.

    Raises:
        EncoreError: a song is shorter than one second (or a context of training, if that is less).
    """
    contexts = [context_of(generator, song) for song in songs]
    made: dict[int, Continuation] = {}
    for batch in batches_of([context.shape[-1] for context in contexts], batch_size):
        together = torch.stack([contexts[number] for number in batch])
        full = torch.cat(list(stream_batch(generator, together, draws)), -1)
        for number, rows in zip(batch, full.split(len(draws.seeds)), strict=True):
            made[number] = Continuation(contexts[number], rows)
    return [made[number] for number in range(len(songs))]


def batches_of(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """The indices of `lengths` in batches of up to `batch_size` whose lengths are equal, longest first."""
    alike: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        alike.setdefault(length, []).append(number)
    groups = [alike[length] for length in sorted(alike, reverse=True)]
    return [group[at : at + batch_size] for group in groups for at in range(0, len(group), batch_size)]


def stream_song(
    generator: Generator, song: Tensor, seconds: float, seeds: Sequence[int] = (0,), temperature: float = 1.0
) -> tuple[Tensor, Iterator[Tensor]]:
    """The context `[C, K]` of `song [C, N]`, and an iterator of pieces `[S, C, n]`, one row per seed.

    The context is as long as those of training, or the whole song if that is shorter, in whole frames up to the end of
    the song. The pieces concatenated are context and continuation; the first piece is the context. Memory and time per
    piece are constant; a piece is at least a second long, if the continuation is.

    What is generated is decoded with the latents before it in front, so that its audio also covers the last 0.1 s
    before it. There the earlier audio fades out and the new one fades in. The first piece fades in over the end of the
    song itself, and begins with what lies before the prior's first guess where that was taken from (`Sampler.lead_in`).

    Raises:
        EncoreError: the song is shorter than one second (or a context of training, if that is less).
    """
    context = context_of(generator, song)
    return context, stream_batch(generator, context[None], Draws(seconds, seeds, temperature))


@torch.no_grad()
def stream_batch(generator: Generator, contexts: Tensor, draws: Draws) -> Iterator[Tensor]:
    """Continues the songs that end in `contexts [B, C, K]`: pieces `[B · S, C, n]`, the S seeds of a song in order.

    See `stream_song`; each song's rows are what it yields for the song alone, up to rounding.
    """
    codec, device, hop = generator.codec, generator.codec.device, generator.codec.hop_length
    copies, remaining = len(draws.seeds), round(draws.seconds * codec.sample_rate)
    held = contexts.repeat_interleave(copies, 0)
    encoded = _encode(codec, contexts)
    latents = encoded.repeat_interleave(copies, 0)
    context = Context(latents, codec, lambda: contexts.to(device), copies, generator.model.pointer)
    generators = make_generators([*draws.seeds] * len(contexts))
    sampler = Sampler(generator.generation, context, generators, draws.temperature)
    fade = min(fade_frames(codec), generator.generation.block_frames)
    lead = lead_frames(codec, generator.margin, latents.shape[-1], fade)
    details = Details(codec, encoded, lambda: contexts.to(device), fade)
    blocks = generate_blocks(generator.model, sampler, generator.precision)
    unit = codec.segment_frames or 1
    frames = math.ceil(remaining / hop / unit) * unit
    for number, made in enumerate(_joined(blocks, math.ceil(DECODED_SECONDS * codec.frame_rate), frames)):
        if number == 0:
            past, sources = sampler.lead_in(lead)
        past, sources = join(past, made, fade), torch.cat([sources, sampler.sources(made.shape[-1])], -1)
        audio = codec.render(past, details.of(sources)).cpu()
        before, audio = audio[..., (lead - fade) * hop : lead * hop], audio[..., lead * hop :]
        # The earlier audio is held back until its end can be cross-faded.
        yield torch.cat([held[..., : -fade * hop], crossfade(held[..., -fade * hop :], before)], -1)
        if remaining <= audio.shape[-1]:
            yield audio[..., :remaining]
            return
        past, sources = past[..., -lead:], sources[..., -lead:]
        held, remaining = audio, remaining - audio.shape[-1]


def _encode(codec: Codec, contexts: Tensor) -> Tensor:
    """Latents of `contexts [B, C, K]`; a processor takes one at a time, whose activations are a hundred megabytes."""
    rows = 1 if codec.device.type == "cpu" else len(contexts)
    return torch.cat([codec.encode(part.to(codec.device)) for part in contexts.split(rows)])


def _joined(blocks: Iterator[Tensor], least: int, frames: int) -> Iterator[Tensor]:
    """Blocks `[R, D, F]` joined to at least `least` frames each, until there are `frames` in all."""
    while frames > 0:
        parts = [next(blocks)]
        while (length := sum(part.shape[-1] for part in parts)) < min(least, frames):
            parts.append(next(blocks))
        yield torch.cat(parts, -1)[..., :frames]
        frames -= length


@torch.no_grad()
def reconstruct(codec: Codec, audio: Tensor, segment_frames: int) -> Tensor:
    """`decode(encode(audio))` of `audio [C, N]`, segment by segment as in training."""
    device = codec.device
    pieces = [
        codec.decode(codec.encode(piece[None].to(device)))[0, :, : piece.shape[-1]].cpu()
        for piece in audio.split(segment_frames * codec.hop_length, dim=-1)
    ]
    return torch.cat(pieces, dim=-1)


def context_of(generator: Generator, song: Tensor) -> Tensor:
    """The end of `song [C, N]` that the model is given, `[C, K]`; see `stream_song`.

    Raises:
        EncoreError: the song is shorter than one second (or a context of training, if that is less).
    """
    codec, context_frames = generator.codec, generator.context_frames
    least = min(context_frames, math.ceil(LEAST_SECONDS * codec.frame_rate))
    frames = min(context_frames, song.shape[-1] // codec.hop_length)
    if frames < least:
        raise EncoreError(
            f"the song is {song.shape[-1] / codec.sample_rate:.2f} s long where the continuation begins, but at least "
            f"{least / codec.frame_rate:.2f} s are needed; give a longer song (--input) or a later second (--start)"
        )
    if codec.segment_frames is not None:
        # With a codec that works on segments, the continuation must begin with a whole one.
        frames -= frames % codec.segment_frames
    return song[..., song.shape[-1] - codec.hop_length * frames :]


def lead_frames(codec: Codec, margin: int, context: int, fade: int | None = None) -> int:
    """Frames to decode in front of a piece: for the cross-fade and the decoder's margin, at most `context`.

    Args:
        margin: see `Codec.measure_margin`.
        context: frames of the context.
        fade: frames of the cross-fade; default `fade_frames(codec)`.
    """
    lead = margin + (fade_frames(codec) if fade is None else fade)
    if codec.segment_frames is not None:
        lead = math.ceil(lead / codec.segment_frames) * codec.segment_frames
    return min(lead, context)
