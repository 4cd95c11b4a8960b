"""The continuation of a song: window after window of latents, decoded and joined without a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from encore.codec import FrozenCodec
from encore.errors import EncoreError

FADE_SECONDS = 0.03
LEAST_SECONDS = 1.0


@dataclass(frozen=True)
class Continuation:
    """What a model makes of a song.

    Attributes:
        context: the song's end, as the model was given it, `[C, K]`.
        full: the same stretch and the continuation after it, `[C, K + M]`; only the last 30 ms of the stretch differ
            from `context`, where it fades into the codec's rendering of itself.
    """

    context: Tensor
    full: Tensor

    @property
    def audio(self) -> Tensor:
        """The continuation alone, `[C, M]`."""
        return self.full[..., self.context.shape[-1] :]


@torch.no_grad()
def continue_song(
    model: nn.Module, codec: FrozenCodec, song: Tensor, seconds: float, segment_frames: int
) -> Continuation:
    """Continues `song [C, N]` by `round(seconds * sample_rate)` samples.

    The model turns the last `segment_frames` latents of the song so far into as many that follow; these are appended,
    and the last `segment_frames` are the next window's context. A shorter song is a shorter context. The context is
    cut so that its end is the song's end, whatever N is to the codec's hop.

    Each window is decoded with the latents before it in front, so that its audio also covers the last 30 ms before
    it: there the earlier audio fades out and the window's fades in, with gains that add up to one, as both render
    the same latents. The first window fades in over the end of the song itself.

    Args:
        model: `model(context [1, D, T], steps=…) -> [1, D, steps]`, on the codec's device.
        segment_frames: latent frames of the segments that the model was trained on.

    Raises:
        EncoreError: the song is shorter than one second (or a segment, if that is less).
    """
    hop, rate = codec.hop_length, codec.sample_rate
    context = song[..., song.shape[-1] - hop * _context_frames(codec, song, segment_frames) :]
    latents = codec.encode(context[None].to(next(codec.parameters()).device))
    fade = max(1, round(FADE_SECONDS * codec.frame_rate))
    lead = _lead_frames(codec, latents, fade)
    samples = round(seconds * rate)
    left = math.ceil(samples / hop)
    pieces = [context.clone()]
    while left > 0:
        window = model(latents, steps=min(left, latents.shape[-1]))
        audio = codec.decode(torch.cat([latents[..., -lead:], window], dim=-1))[0].cpu()
        before, audio = audio[..., (lead - fade) * hop : lead * hop], audio[..., lead * hop :]
        tail = pieces[-1][..., -fade * hop :]
        tail.copy_(crossfade(tail, before))
        pieces.append(audio)
        latents = torch.cat([latents, window], dim=-1)[..., -segment_frames:]
        left -= window.shape[-1]
    return Continuation(context, torch.cat(pieces, dim=-1)[..., : context.shape[-1] + samples])


def crossfade(first: Tensor, second: Tensor) -> Tensor:
    """`(1 − g) · first + g · second`, both `[..., N]`, with `g` rising linearly from 0 to 1: equal gain."""
    gain = torch.linspace(0, 1, first.shape[-1] + 2, dtype=first.dtype, device=first.device)[1:-1]
    return torch.lerp(first, second, gain)


@torch.no_grad()
def reconstruct(codec: FrozenCodec, audio: Tensor, segment_frames: int) -> Tensor:
    """The codec's own rendering of `audio [C, N]`, `decode(encode(audio))`, segment by segment as in training."""
    device = next(codec.parameters()).device
    pieces = [
        codec.decode(codec.encode(piece[None].to(device)))[0, :, : piece.shape[-1]].cpu()
        for piece in audio.split(segment_frames * codec.hop_length, dim=-1)
    ]
    return torch.cat(pieces, dim=-1)


def _context_frames(codec: FrozenCodec, song: Tensor, segment_frames: int) -> int:
    least = min(segment_frames, math.ceil(LEAST_SECONDS * codec.frame_rate))
    frames = min(segment_frames, song.shape[-1] // codec.hop_length)
    if frames < least:
        raise EncoreError(
            f"the song is {song.shape[-1] / codec.sample_rate:.2f} s long where it is to be continued; at least "
            f"{least / codec.frame_rate:.2f} s are needed: give a longer --input or a later --start"
        )
    if codec.segment_frames is not None and frames < segment_frames:
        # A codec that works in segments of its own needs the continuation to begin with a whole one.
        frames -= frames % codec.segment_frames
    return frames


def _lead_frames(codec: FrozenCodec, latents: Tensor, fade: int) -> int:
    """Frames that are decoded in front of a window: those of the cross-fade, and what these need before them."""
    lead = codec.measure_margin(latents) + fade
    if codec.segment_frames is not None:
        lead = math.ceil(lead / codec.segment_frames) * codec.segment_frames
    return min(lead, latents.shape[-1])
