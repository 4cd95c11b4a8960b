"""Priors: guesses at what follows a context, which a model starts from: its own frames again, in some order.

`REPLAY` repeats the context at one lag. `RHYTHM` prefers the lags at which the context repeats itself, and takes each
repeat from any of the earlier ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

NONE, REPLAY, RHYTHM = PRIORS = ("none", "replay", "rhythm")
SHORTEST = 0.25  # of the context: the shortest lag of a replay
SHORTEST_SECONDS, LONGEST = 0.25, 0.9  # of a rhythm's lags: in seconds, and of the context
RHYTHMIC = 0.6  # how many continuations follow a rhythm; the others are replays, as one may be mistaken in it
SHARPNESS = 40.0  # how much more often a lag is drawn at which the context repeats itself better
N_FFT = 512  # samples: short enough to see the beat, long enough to see the chord


def replay(context: Tensor, lags: Tensor, start: int, steps: int) -> Tensor:
    """The context's last `lag` frames, again and again: `context[..., T − lag + (n mod lag)]`.

    Args:
        context: `[B, D, T]`.
        lags: frames, at most T each, `[B]`.
        start: number of the first frame n that is wanted, counted from the context's end.
        steps: how many.

    Returns:
        `[B, D, steps]`.
    """
    n = torch.arange(start, start + steps, device=context.device)
    return take(context, context.shape[-1] - lags[:, None] + n % lags[:, None])


def take(context: Tensor, index: Tensor) -> Tensor:
    """Frames `index [B, F]` of `context [B, D, T]`: `[B, D, F]`."""
    return context.gather(-1, index[:, None].expand(-1, context.shape[1], -1))


def draw_lags(count: int, frames: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniform lags for a context of `frames` frames, from a quarter of it to the whole, `[count]` int64, on the CPU."""
    least = max(1, round(SHORTEST * frames))
    return torch.randint(least, frames + 1, (count,), generator=generator)


@torch.no_grad()
def lag_odds(audio: Tensor, hop_length: int, frame_rate: float) -> Tensor:
    """How probable each lag is as a rhythm of `audio [B, C, N]`: `[B, T + 1]`, by lag in frames, sums 1, on the CPU.

    With a(L) the mean distance `‖ln|X_n| − ln|X_{n−L}|‖₂` of the spectra X of frames that lie L apart (channels' mean,
    FFT 512, magnitudes at least 1e-4), and m its median over the lags from 0.25 s to nine tenths of the audio,

        odds(L) ∝ exp( 40 · (m − a(L)) / m · √((T − L) / T) ).

    The root holds back long lags, whose distances are means over few frames.
    """
    sound = audio.mean(1)
    frames = sound.shape[-1] // hop_length
    window = torch.hann_window(N_FFT, device=sound.device)
    spectra = torch.stft(sound, N_FFT, hop_length, window=window, pad_mode="constant", return_complex=True)
    levels = spectra.abs().clamp_min(1e-4).log()[..., :frames].transpose(1, 2)
    apart = torch.cdist(levels, levels)
    least = min(frames, max(1, round(SHORTEST_SECONDS * frame_rate)))
    lags = range(least, max(least, int(LONGEST * frames)) + 1)
    mean = torch.stack([apart.diagonal(lag, 1, 2).mean(-1) if lag < frames else apart[:, 0, 0] for lag in lags], 1)
    middle = mean.median(1, keepdim=True).values.clamp_min(1e-6)  # silence repeats itself at every lag
    weight = (1 - torch.tensor(lags, device=sound.device) / frames).clamp_min(0).sqrt()
    odds = torch.zeros(len(sound), frames + 1)
    odds[:, least : lags[-1] + 1] = (SHARPNESS * (middle - mean) / middle * weight).softmax(1).cpu()
    return odds


class Rhythm:
    """One continuation's order of the context's frames, drawn as it goes on.

    With probability `rhythmic` its lag L is drawn by `odds`; every L frames it jumps to one of the context's places
    that lie a multiple of L before the context's end, drawn uniformly. Otherwise it is a replay at a uniform lag.

    Args:
        odds: of the lags, `[T + 1]`, see `lag_odds`.
        generator: of the draws; None: PyTorch's own.
        rhythmic: probability.
    """

    def __init__(self, odds: Tensor, generator: torch.Generator | None = None, rhythmic: float = RHYTHMIC):
        self.frames, self.generator = len(odds) - 1, generator
        self.rhythmic = bool(torch.rand((), generator=generator) < rhythmic)
        if self.rhythmic:
            self.lag = int(torch.multinomial(odds, 1, generator=generator))
        else:
            self.lag = int(draw_lags(1, self.frames, generator))
        self.repeat, self.place = -1, 0

    def indices(self, start: int, steps: int) -> Tensor:
        """Numbers of the context's frames that stand for frames `start …` of the continuation, `[steps]`.

        To be asked for in order: what was jumped over is not drawn again.
        """
        parts = []
        end = start + steps
        while start < end:
            repeat, phase = divmod(start, self.lag)
            while self.repeat < repeat:
                self.repeat, self.place = self.repeat + 1, self._place()
            length = min(self.lag - phase, end - start)
            parts.append(torch.arange(length) + self.place + phase)
            start += length
        return torch.cat(parts)

    def _place(self) -> int:
        most = self.frames // self.lag if self.rhythmic else 1
        back = int(torch.randint(most, (), generator=self.generator)) if most > 1 else 0
        return self.frames - self.lag * (1 + back)
