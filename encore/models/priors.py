"""Priors: first guesses at what follows a context, which the model corrects.

Encore's own priors guess that the context repeats itself: `replay` at one random lag, `rhythm` at a lag at which the
context resembles itself, where each repetition may be any of the earlier ones.

A prior of your own is a subclass of `Prior` with the decorator `register_prior`; `--prior` names it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encore.codecs import Codec
from encore.models.pointer import Pointer
from encore.registry import PRIORS

RHYTHM, REPLAY, NONE = "rhythm", "replay", "none"
MIN_LAG = 0.25  # of the context: the shortest lag of a replay
MIN_RHYTHM_SECONDS, MAX_RHYTHM_LAG = 0.25, 0.9  # lags of a rhythm: at least so many seconds, at most this share of T
RHYTHM_SHARE = 0.6  # of the continuations; the others are replays, in case the estimated rhythm is wrong
SHARPNESS = 40.0  # of the softmax over lags
N_FFT = 512  # samples: short enough to resolve beats, long enough to resolve chords

Generators = Sequence["torch.Generator | None"]
register_prior = PRIORS.register


@dataclass(frozen=True)
class Context:
    """The contexts of R continuations.

    Attributes:
        latents: `[R, D, T]`.
        codec: that encoded them.
        audio: returns their audio `[B, C, N]`, for priors that need it; row b belongs to R / B consecutive latents.
        copies: consecutive latents that are the same context: R is a multiple of it.
        pointer: of the model, for the prior "pointer".
    """

    latents: Tensor
    codec: Codec
    audio: Callable[[], Tensor]
    copies: int = 1
    pointer: Pointer | None = None


class Prior(ABC):
    """First guesses at what follows R contexts."""

    empty = False  # whether there is never a guess: the model then starts from noise alone
    lookback = 0  # frames of the history that `frames` looks at
    taken: Tensor | None = None  # frames of the context that the last guess consists of, `[R, steps]`; None: unknown

    @classmethod
    @abstractmethod
    def draw(cls, context: Context, generators: Generators) -> Prior:
        """Draws one guess per context.

        Args:
            context: `R` contexts.
            generators: one per context, so that a guess depends on its own seed only; None: PyTorch's default one.
        """

    @classmethod
    def fixed(cls, context: Context) -> Prior:
        """The guess of a model that was trained by regression: the whole context once more, frame by frame."""
        rows, _, frames = context.latents.shape
        return Replay(context, torch.full((rows,), frames, device=context.latents.device))

    @abstractmethod
    def frames(self, start: int, steps: int, history: Tensor) -> Tensor | None:
        """The guess at frames `start … start + steps − 1` after the contexts, `[R, D, steps]`; None if it is empty.

        Called in order of `start`.

        Args:
            start: counted from the contexts' end.
            steps: number of frames.
            history: what comes before `start`, contexts included: `[R, D, F]`, or `[B, D, F]` where R / B consecutive
                rows have the same past. At least the last `lookback` frames, or all there are. In generation it is what
                was generated, in teacher-forced training the true music.
        """


def replayed_frames(frames: int, lags: Tensor, start: int, steps: int) -> Tensor:
    """The last `lag` of T frames, repeated: `T − lag + (n mod lag)`.

    Args:
        frames: T.
        lags: frames, 1 to T, `[B]`.
        start: first n, counted from the context's end.
        steps: number of frames.

    Returns:
        `[B, steps]`.
    """
    n = torch.arange(start, start + steps, device=lags.device)
    return frames - lags[:, None] + n % lags[:, None]


def replay(context: Tensor, lags: Tensor, start: int, steps: int) -> Tensor:
    """The frames of `context [B, D, T]` that `replayed_frames` names, `[B, D, steps]`."""
    return take(context, replayed_frames(context.shape[-1], lags, start, steps))


def take(context: Tensor, index: Tensor) -> Tensor:
    """Frames `index [B, F]` of `context [B, D, T]`: `[B, D, F]`."""
    return context.gather(-1, index[:, None].expand(-1, context.shape[1], -1))


def preceding(begin: Tensor, frames: int, length: int) -> Tensor:
    """Numbers of the `frames` frames before frames `begin [R]` of a context, `[R, frames]`.

    Before its first frame the context, of `length` frames, is mirrored.
    """
    index = (begin[:, None] + torch.arange(-frames, 0, device=begin.device)).abs()
    return index.clamp_max(length - 1)


def crossfade(old: Tensor, new: Tensor, centre: Tensor | float = 0.0) -> Tensor:
    """From `old` to `new`, audio `[R, C, N]` or latents `[R, D, F]` around `centre [R, D, 1]`, at a steady level.

    With the weight g rising linearly and ρ the correlation of the two (at least 0), their sum `(1 − g) old + g new` is
    divided by `√((1 − g)² + g² + 2 g (1 − g) ρ)`, the level that it would otherwise have.
    """
    frames = new.shape[-1]
    gain = torch.arange(1, frames + 1, device=new.device) / (frames + 1)
    old, new = old - centre, new - centre
    norms = old.flatten(1).norm(dim=1) * new.flatten(1).norm(dim=1)
    correlation = ((old * new).flatten(1).sum(1) / norms.clamp_min(1e-9)).clamp(0, 1)[:, None, None]
    level = ((1 - gain) ** 2 + gain**2 + 2 * gain * (1 - gain) * correlation).sqrt()
    return ((1 - gain) * old + gain * new) / level + centre


def draw_lags(count: int, frames: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniform lags from a quarter of `frames` to all of it, in frames, `[count]` int64 on the CPU."""
    shortest = max(1, round(MIN_LAG * frames))
    return torch.randint(shortest, frames + 1, (count,), generator=generator)


@torch.no_grad()
def lag_probs(audio: Tensor, hop_length: int, frame_rate: float) -> Tensor:
    """Probability of each lag as the rhythm of `audio [B, C, N]`: `[B, T + 1]` by lag in frames, on the CPU.

    With a(L) the mean distance `‖ln|X_n| − ln|X_{n−L}|‖₂` of spectra L frames apart (channels averaged, FFT of 512,
    magnitudes clamped to 1e-4), and m its median over the lags from 0.25 s to nine tenths of the audio,

        p(L) ∝ exp( 40 · (m − a(L)) / m · √((T − L) / T) ).

    The square root discounts long lags, whose means are over few frames.

    Args:
        audio: `[B, C, N]`.
        hop_length: samples per frame; T = N // hop_length.
        frame_rate: Hz.
    """
    mono = audio.mean(1)
    frames = mono.shape[-1] // hop_length
    window = torch.hann_window(N_FFT, device=mono.device)
    spectra = torch.stft(mono, N_FFT, hop_length, window=window, pad_mode="constant", return_complex=True)
    levels = spectra.abs().clamp_min(1e-4).log()[..., :frames].transpose(1, 2)
    distances = torch.cdist(levels, levels)
    shortest = min(frames, max(1, round(MIN_RHYTHM_SECONDS * frame_rate)))
    lags = range(shortest, max(shortest, int(MAX_RHYTHM_LAG * frames)) + 1)
    mean = torch.stack(
        [distances.diagonal(lag, 1, 2).mean(-1) if lag < frames else distances[:, 0, 0] for lag in lags], 1
    )
    median = mean.median(1, keepdim=True).values.clamp_min(1e-6)  # silence is equally similar at every lag
    weight = (1 - torch.tensor(lags, device=mono.device) / frames).clamp_min(0).sqrt()
    probs = torch.zeros(len(mono), frames + 1)
    probs[:, shortest : lags[-1] + 1] = (SHARPNESS * (median - mean) / median * weight).softmax(1).cpu()
    return probs


class FrameOrder:
    """The order in which one continuation repeats the frames of its context, drawn while it grows.

    With probability `rhythmic` its lag L is drawn from `probs`, and each L frames it jumps to one of the positions that
    lie a multiple of L before the context's end, drawn uniformly. Otherwise it is a replay at a uniform lag.

    Args:
        probs: of the lags, `[T + 1]`; see `lag_probs`.
        generator: None: PyTorch's default one.
        rhythmic: probability.
    """

    def __init__(self, probs: Tensor, generator: torch.Generator | None = None, rhythmic: float = RHYTHM_SHARE):
        self.frames, self.generator = len(probs) - 1, generator
        self.rhythmic = bool(torch.rand((), generator=generator) < rhythmic)
        if self.rhythmic:
            self.lag = int(torch.multinomial(probs, 1, generator=generator))
        else:
            self.lag = int(draw_lags(1, self.frames, generator))
        self.repeat, self.position = -1, 0

    def indices(self, start: int, steps: int) -> Tensor:
        """Context frames that stand for frames `start … start + steps − 1` of the continuation, `[steps]`.

        To be called in order of `start`: positions are drawn once per repetition, including those skipped.
        """
        parts = []
        end = start + steps
        while start < end:
            repeat, phase = divmod(start, self.lag)
            while self.repeat < repeat:
                self.repeat, self.position = self.repeat + 1, self._draw_position()
            length = min(self.lag - phase, end - start)
            parts.append(torch.arange(length) + self.position + phase)
            start += length
        return torch.cat(parts)

    def _draw_position(self) -> int:
        count = self.frames // self.lag if self.rhythmic else 1
        back = int(torch.randint(count, (), generator=self.generator)) if count > 1 else 0
        return self.frames - self.lag * (1 + back)


@register_prior(RHYTHM)
class Rhythm(Prior):
    """The context's frames in the order of a `FrameOrder` per row."""

    def __init__(self, context: Context, orders: Sequence[FrameOrder]):
        self.latents, self.orders = context.latents, orders

    @classmethod
    def draw(cls, context: Context, generators: Generators) -> Rhythm:
        probs = lag_probs(context.audio(), context.codec.hop_length, context.codec.frame_rate)
        probs = probs.repeat_interleave(len(context.latents) // len(probs), 0)
        return cls(context, [FrameOrder(row, generator) for row, generator in zip(probs, generators, strict=True)])

    def frames(self, start: int, steps: int, history: Tensor) -> Tensor:
        index = torch.stack([order.indices(start, steps) for order in self.orders])
        self.taken = index.to(self.latents.device)
        return take(self.latents, self.taken)


@register_prior(REPLAY)
class Replay(Prior):
    """The context's last frames, repeated at one lag per row; see `replay` and `draw_lags`."""

    def __init__(self, context: Context, lags: Tensor):
        self.latents, self.lags = context.latents, lags

    @classmethod
    def draw(cls, context: Context, generators: Generators) -> Replay:
        lags = torch.cat([draw_lags(1, context.latents.shape[-1], generator) for generator in generators])
        return cls(context, lags.to(context.latents.device))

    def frames(self, start: int, steps: int, history: Tensor) -> Tensor:
        self.taken = replayed_frames(self.latents.shape[-1], self.lags, start, steps)
        return take(self.latents, self.taken)


@register_prior(NONE)
class Empty(Prior):
    """No guess."""

    empty = True

    @classmethod
    def draw(cls, context: Context, generators: Generators) -> Empty:
        for generator in generators:  # so that a seed gives the same noise as with a replay
            draw_lags(1, context.latents.shape[-1], generator)
        return cls()

    @classmethod
    def fixed(cls, context: Context) -> Empty:
        return cls()

    def frames(self, start: int, steps: int, history: Tensor) -> None:
        return None
