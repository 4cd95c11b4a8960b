"""Time-frequency transforms of a signal `[B, C, N]` and the filter banks that they need."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def chroma_filters(sample_rate: float, n_fft: int, n_chroma: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Chroma filter bank `[n_chroma, n_fft // 2 + 1]`, the first row is C.

    A bin at `f` Hz lies at `p(f) = n_chroma log2(f / 27.5)` on the circle of pitch classes and gives to class `c`
    `exp(−½ (2 d / w)²)`, d the distance of p and c around the circle, w the width of the bin (at least one class). Each
    column has unit Euclidean norm before it is weighted by `exp(−½ ((p / n_chroma − 5) / 2)²)`, which favours the
    octaves around 880 Hz. Equal to `librosa.filters.chroma` with its defaults (Ellis 2007).
    """
    frequencies = torch.arange(1, n_fft, dtype=torch.float64) * (sample_rate / n_fft)
    position = n_chroma * torch.log2(frequencies / 27.5)
    position = torch.cat([position[:1] - 1.5 * n_chroma, position])  # 0 Hz: an octave and a half below the first bin
    width = torch.cat([position.diff().clamp_min(1), position.new_ones(1)])
    half = round(n_chroma / 2)
    distance = torch.remainder(position - torch.arange(n_chroma)[:, None] + half, n_chroma) - half
    weights = torch.exp(-2 * (distance / width) ** 2)
    weights = weights / torch.linalg.vector_norm(weights, dim=0)
    weights = weights * torch.exp(-0.5 * ((position / n_chroma - 5) / 2) ** 2)
    weights = weights.roll(-3 * (n_chroma // 12), dims=0)  # class 0 was A
    return weights[:, : n_fft // 2 + 1].to(device=device, dtype=dtype).contiguous()
