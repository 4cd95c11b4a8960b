"""The prior "pointer": excerpts of the context, chosen block by block by what was just played."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from encore.models.pointer import (
    ONSETS,
    Places,
    Pointer,
    distances,
    jump_logits,
    place_features,
    stride_of,
)
from encore.models.priors import Context, Generators, Prior, crossfade, register_prior, take

POINTER = "pointer"
EXCERPT_SECONDS = 1.0  # after so long at most, it chooses again
MATCHED_SECONDS = 1.0  # before a place, by which its frame is found
FADE_SECONDS = 0.1  # from one excerpt to the next


@register_prior(POINTER)
class Pointed(Prior):
    """Excerpts of the context, at places that a `Pointer` gives the odds of.

    For each block a row draws whether it goes on with its excerpt or where the next one begins, by the softmax of the
    pointer's log odds; the next one begins at that frame around its place whose past matches best. An excerpt that ends
    with the context is always followed by another one. Two excerpts are joined by `crossfade`.

    Args:
        context: R contexts.
        pointer: with its odds.
        generators: one per row.
    """

    def __init__(self, context: Context, pointer: Pointer, generators: Generators):
        self.pointer, self.generators, self.context = pointer, generators, context.latents
        rate = context.codec.frame_rate
        self.longest, self.fade = max(1, round(EXCERPT_SECONDS * rate)), max(1, round(FADE_SECONDS * rate))
        self.rows, _, self.length = context.latents.shape
        stride = min(stride_of(rate), self.length)
        self.places = Places.of(context.latents[:: context.copies], stride).repeat(context.copies)
        self.fine = replace(self.places, stride=1)
        self.levels = self.fine.describe(context.latents)[0]  # of frames
        self.matched = max(1, round(MATCHED_SECONDS * rate))
        self.lookback = (ONSETS + 1) * stride  # the first stride only says whether there is an onset in the second one
        self.played = 0  # frames
        # Frame of the context after each row's excerpt; counts on beyond the context while music itself was played.
        self.end = torch.full((self.rows,), self.length)

    @classmethod
    def draw(cls, context: Context, generators: Generators) -> Pointed:
        if context.pointer is None:
            raise ValueError("the prior 'pointer' needs the context's pointer, a part of the model")
        return cls(context, context.pointer, generators)

    @torch.no_grad()
    def frames(self, start: int, steps: int, history: Tensor) -> Tensor:
        if start != self.played:  # what lies between was not played by this prior
            self.end = torch.full_like(self.end, self.length + start)
        self.played = start + steps
        history, made, taken = history.repeat_interleave(self.rows // len(history), 0), [], []
        while steps > 0:
            size = min(steps, self.longest)
            history = history[..., max(0, history.shape[-1] - self.lookback) :]
            made.append(self._excerpt(size, history))
            taken.append(self._index(self.end - size, size))
            history, steps = torch.cat([history, made[-1]], -1), steps - size
        self.taken = torch.cat(taken, -1)
        return torch.cat(made, -1)

    def _excerpt(self, size: int, history: Tensor) -> Tensor:
        """The next `size` frames; advances `end`."""
        begin = self._draw(size, history)
        latents = self._take(begin, size)
        jumps = (begin != self.end) & (self.end < self.length)
        if jumps.any():
            fade = min(self.fade, size)
            faded = crossfade(self._take(self.end, fade), latents[..., :fade], self.places.centre)
            rows = jumps.to(latents.device)
            latents[rows, :, :fade] = faded[rows]
        self.end = begin + size
        return latents

    def _draw(self, size: int, history: Tensor) -> Tensor:
        """The first frames of the next excerpts, `[R]`, on the CPU."""
        places, stride = self.places, self.places.stride
        end = (self.end.to(history.device) - self.length % stride + stride // 2) // stride
        levels, onsets = places.describe(history)
        compared = distances(levels, places.levels), distances(onsets[:, 1:], places.onsets)
        features = place_features(*compared, places.rhythm, end)
        inside = self.end < self.length
        weights = torch.where(inside[:, None].to(history.device), self.pointer.after_excerpt, self.pointer.after_music)
        index = torch.arange(features.shape[1], device=features.device)
        logits = jump_logits(features, weights, index, end).cpu()
        # Excerpts lie within the context, unless it is shorter than a block.
        first = torch.arange(len(index)) * stride + self.length % stride
        logits = logits.masked_fill(first > max(self.length - size, int(first[0])), -torch.inf)
        stay = torch.where(inside & (self.end + size <= self.length), self.pointer.stay.cpu(), -torch.inf)
        odds = torch.cat([logits, stay[:, None]], 1)
        odds[odds.isneginf().all(1), 0] = 0  # a context of one excerpt is repeated
        rows = zip(odds.softmax(1), self.generators, strict=True)
        drawn = torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
        begin = self._match(first[drawn.clamp_max(len(first) - 1)], size, history)
        return torch.where(drawn < len(first), begin, self.end)

    def _match(self, begin: Tensor, size: int, history: Tensor) -> Tensor:
        """The frames within half a stride of `begin [R]` whose past is most like what was just played, `[R]`."""
        stride = self.places.stride
        around = begin[:, None] + torch.arange(stride) - stride // 2
        around = around.clamp(0, max(0, self.length - size))
        recent = self.fine.describe(history[..., -self.matched :])[0]
        past = (around[..., None] - torch.arange(recent.shape[1], 0, -1)).clamp_min(0).to(recent.device)
        rows = torch.arange(self.rows, device=recent.device)[:, None, None]
        difference = (self.levels[rows, past] - recent[:, None]).abs().mean((2, 3))
        best = difference.argmin(1).cpu()
        return around.gather(1, best[:, None])[:, 0]

    def _take(self, begin: Tensor, size: int) -> Tensor:
        """Frames of the context from `begin [R]` on; after its end comes its beginning."""
        return take(self.context, self._index(begin, size))

    def _index(self, begin: Tensor, size: int) -> Tensor:
        """Numbers of these frames, `[R, size]`."""
        return ((begin[:, None] + torch.arange(size)) % self.length).to(self.context.device)
