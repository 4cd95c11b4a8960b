"""What a codec leaves out of a recording, played with the excerpts of it that a continuation is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from encore.codecs import Codec
from encore.models.priors import crossfade


class Details:
    """What a codec leaves out of contexts: `audio − decode(latents)`.

    A prior's excerpts are known as they were recorded, so only what a model changes in them has to sound like the
    codec. Where nothing is changed, the decoded excerpt and its details are the recording itself.

    Args:
        codec: of the latents.
        latents: of B contexts, `[B, D, T]`.
        audio: returns their audio, which ends with them, `[B, C, N]`.
        fade: frames over which details of one excerpt go over into those of the next.
    """

    def __init__(self, codec: Codec, latents: Tensor, audio: Callable[[], Tensor], fade: int):
        self.codec, self.latents, self.audio, self.fade = codec, latents, audio, fade

    @cached_property
    def missing(self) -> Tensor:
        """`[B, C, T, hop_length]`, decoded one by one: a decoder's activations are large."""
        decoded = torch.cat([self.codec.decode(row) for row in self.latents.split(1)])
        return (self.audio()[..., -decoded.shape[-1] :] - decoded).unflatten(-1, (-1, self.codec.hop_length))

    def of(self, sources: Tensor) -> Tensor | None:
        """The details of frames that come from `sources [R, 2, F]` (see `Sampler.sources`): `[R, C, F · hop_length]`.

        R / B consecutive rows have the same context. None if no frame comes from it.
        """
        index, share = sources[:, 0].long(), sources[:, 1]
        if not share.any():
            return None
        copies = len(index) // len(self.missing)
        rows = torch.arange(len(index), device=index.device) // copies
        found = self.missing[rows[:, None], :, index.clamp_min(0)].transpose(1, 2)  # [R, C, F, hop_length]
        jumps = (index.diff(dim=1).abs() != 1).nonzero().tolist()
        for row, before in jumps:
            old = int(index[row, before]) + 1
            count = min(self.fade, index.shape[1] - before - 1, self.missing.shape[2] - old)
            if old > 0 and count > 0:
                ending = self.missing[row // copies, :, old : old + count]
                part = found[row, :, before + 1 : before + 1 + count]
                part.copy_(crossfade(ending.flatten(1)[None], part.flatten(1)[None]).view_as(part))
        return (found * share[:, None, :, None]).flatten(2)
