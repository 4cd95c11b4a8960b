"""Priors: guesses at what follows a context, which a model starts from. Latents in, latents out."""

from __future__ import annotations

import torch
from torch import Tensor

SHORTEST = 0.25  # of the context: the shortest lag that is drawn


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
    index = context.shape[-1] - lags[:, None] + n % lags[:, None]
    return context.gather(-1, index[:, None].expand(-1, context.shape[1], -1))


def draw_lags(count: int, frames: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniform lags for a context of `frames` frames, from a quarter of it to the whole, `[count]` int64, on the CPU."""
    least = max(1, round(SHORTEST * frames))
    return torch.randint(least, frames + 1, (count,), generator=generator)
