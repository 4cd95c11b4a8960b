"""A pointer: where in a context music goes on, by what was just played.

A *place* is a frame of the context, one about every 50 ms, from which an excerpt can be played. What precedes it is
compared with what was just played. This is done on latents, so it needs no decoder and works with any codec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

STRIDE_SECONDS = 0.053  # from place to place
SHORT, LONG, ONSETS = 4, 19, 38  # strides that are compared: 0.2 s and 1 s of levels, 2 s of onsets
MIN_LAG = 4  # strides: an excerpt that is moved by less only stutters
FLOOR = 0.01  # of a channel's mean energy
FEATURES = ("past_short", "past_long", "onsets", "rhythm", "recency")


def stride_of(frame_rate: float) -> int:
    """Frames from place to place."""
    return max(1, round(STRIDE_SECONDS * frame_rate))


class Pointer(nn.Module):
    """The odds of every place: a weight for each of `FEATURES`, and one for going on with the excerpt being played.

    It starts as a match of the last second, all else being equal. `encore.training.pointer` trains it.

    Attributes:
        after_music: weights `[K]` where what was just played is the music itself.
        after_excerpt: where it is an excerpt of the context, which resembles the context more than new music does.
        stay: log odds of going on with this excerpt.
    """

    def __init__(self) -> None:
        super().__init__()
        matching = torch.tensor([8.0 if name == "past_long" else 0.0 for name in FEATURES])
        self.after_music = nn.Parameter(matching.clone(), requires_grad=False)
        self.after_excerpt = nn.Parameter(matching / 2, requires_grad=False)
        self.stay = nn.Parameter(torch.tensor(6.0), requires_grad=False)


@dataclass(frozen=True)
class Places:
    """Contexts in strides.

    Attributes:
        levels: ln energy of each channel around its mean, relative to its deviation over the context, `[R, G, D]`.
        onsets: mean rise of the levels since the stride before, relative to its deviation over the context,
            `[R, G, 1]`.
        rhythm: evidence for each lag, by how much strides of the context that far apart resemble each other, `[R, G]`.
        centre: mean of the context's latents, `[R, D, 1]`.
        floor: added to energies, `[R, 1, D]`.
        scale: deviation of their logarithm, `[R, 1, D]`.
        rise: deviation of the rises, `[R, 1, 1]`.
        stride: frames.
    """

    levels: Tensor
    onsets: Tensor
    rhythm: Tensor
    centre: Tensor
    floor: Tensor
    scale: Tensor
    rise: Tensor
    stride: int

    @classmethod
    def of(cls, context: Tensor, stride: int) -> Places:
        """Of contexts `[R, D, C]`; the last stride ends with them."""
        centre = context.mean(-1, keepdim=True)
        energy = _energy(context - centre, stride)
        floor = FLOOR * energy.mean(1, keepdim=True) + 1e-8
        logs = (energy + floor).log()
        scale = logs.std(1, correction=0, keepdim=True).clamp_min(0.1)
        levels = logs / scale
        rises = _rises(levels)
        rise = rises.std(1, correction=0, keepdim=True).clamp_min(1e-6)
        return cls(levels, rises / rise, _rhythm(levels), centre, floor, scale, rise, stride)

    def describe(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Levels `[R, Q, D]` and onsets `[R, Q, 1]` of other latents of these rows, `[R, D, F]`.

        Q is F // stride; the last stride ends with the latents.
        """
        levels = (_energy(latents - self.centre, self.stride) + self.floor).log() / self.scale
        return levels, _rises(levels) / self.rise

    def repeat(self, times: int) -> Places:
        """Each row `times` times, its copies next to one another."""
        parts = self.levels, self.onsets, self.rhythm, self.centre, self.floor, self.scale, self.rise
        levels, onsets, rhythm, centre, floor, scale, rise = (part.repeat_interleave(times, 0) for part in parts)
        return Places(levels, onsets, rhythm, centre, floor, scale, rise, self.stride)


def _energy(deviations: Tensor, stride: int) -> Tensor:
    """Mean squares of strides, `[R, D, F]` to `[R, F // stride, D]`."""
    count = deviations.shape[-1] // stride
    last = deviations[..., deviations.shape[-1] - count * stride :]
    return last.square().unflatten(-1, (count, stride)).mean(-1).transpose(1, 2)


def _rises(levels: Tensor) -> Tensor:
    """Mean rise of levels `[R, G, D]` since the stride before, 0 at the first: `[R, G, 1]`."""
    return levels.diff(dim=1, prepend=levels[:, :1]).clamp_min(0).mean(-1, keepdim=True)


def distances(one: Tensor, other: Tensor) -> Tensor:
    """Mean difference of levels `[R, Q, D]` and `[R, G, D]`: `[R, Q, G]`."""
    return torch.cdist(one, other, p=1) / one.shape[-1]


def evidence(distance: Tensor, first: int) -> Tensor:
    """How much better than usual places fit: `(m − d) / m`, m the median over the places from `first` on, `[…, G]`.

    0 at the places before `first`, of which nothing is known.
    """
    known = distance[..., first:]
    if not known.shape[-1]:
        return torch.zeros_like(distance)
    median = known.median(-1, keepdim=True).values.clamp_min(1e-6)
    return pad((median - known) / median, (first, 0))


def past_distances(distance: Tensor, windows: Sequence[int]) -> list[Tensor]:
    """Mean distance of what was just played to what precedes each place, for several numbers of strides.

    Args:
        distance: of the last Q strides played to the G strides of the context, `[R, Q, G]`.
        windows: numbers of strides; compared are at most Q and G.

    Returns:
        For each number n, `mean_{i=1…n} distance[Q − i, g − i]` at place g, `[R, G]`; 0 at places g < n.
    """
    rows, length, strides = distance.shape
    total, found = distance.new_zeros(rows, strides), {0: distance.new_zeros(rows, strides)}
    most = min(length, strides - 1)
    for back in range(1, min(most, max(windows)) + 1):
        total = total + pad(distance[:, length - back, : strides - back], (back, 0))
        found[back] = total / back
    return [pad(found[min(window, most)][:, window:], (min(window, strides), 0)) for window in windows]


def _rhythm(levels: Tensor) -> Tensor:
    """Evidence for each lag L in strides: from the mean distance of strides L apart, times √((G − L) / G)."""
    own, count = distances(levels, levels), levels.shape[1]
    mean = torch.stack([own.diagonal(lag, 1, 2).mean(-1) for lag in range(count)], -1)
    left = 1 - torch.arange(count, device=levels.device) / count
    return evidence(mean, min(MIN_LAG, count)) * left.sqrt()


def place_features(past: Tensor, onsets: Tensor, rhythm: Tensor, end: Tensor) -> Tensor:
    """What speaks for each place, `[R, G, K]` in the order of `FEATURES`.

    Three are `evidence` from distances of what was just played to what precedes the place: of 0.2 s and 1 s of levels
    and of 2 s of onsets. `rhythm` is the evidence for the lag from the place to where what was just played ends;
    `recency` is `−⅓ ln` of the share of the context after the place.

    Args:
        past: distances of the levels of the last Q strides played to those of the context, `[R, Q, G]`.
        onsets: likewise, of their onsets.
        rhythm: of the context, `[R, G]` or `[1, G]`.
        end: stride of the context after what was just played, where that is an excerpt of it; G or more after the
            context itself, `[R]`.
    """
    count = past.shape[-1]
    index = torch.arange(count, device=past.device)
    windows = (SHORT, LONG)
    columns = [evidence(d, n) for d, n in zip(past_distances(past, windows), windows, strict=True)]
    columns.append(evidence(past_distances(onsets, (ONSETS,))[0], ONSETS))
    lag = (end[:, None] - index).abs()
    known = rhythm.expand(len(past), -1).gather(1, lag.clamp_max(count - 1))
    columns.append(torch.where(lag < count, known, torch.zeros_like(known)))
    columns.append((-(1 - index / count).log() / 3).expand(len(past), -1))
    return torch.stack(columns, -1)


def jump_logits(features: Tensor, weights: Tensor, places: Tensor, end: Tensor) -> Tensor:
    """Log odds of starting an excerpt at each of P places, `[R, P]`; −∞ near `end`, where it would only stutter.

    Args:
        features: `[R, P, K]`.
        weights: `[K]`, or `[R, K]`.
        places: in strides, `[P]`.
        end: see `place_features`.
    """
    logits = (features * weights.unsqueeze(-2)).sum(-1)
    return logits.masked_fill((places - end[:, None]).abs() < MIN_LAG, -torch.inf)
