"""Transforms of a signal before a loss, with the interface of `auraloss.perceptual`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from losses.dsp.filters import (
    a_weighting_taps,
    fir_filter,
    folded_differentiator_taps,
    highpass_taps,
    sum_and_difference,
)


class SumAndDifference(nn.Module):
    """Left plus right and left minus right of a stereo signal `[B, 2, N]`, each `[B, 1, N]`.

    Raises:
        ValueError: not two channels.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return sum_and_difference(x)

    @staticmethod
    def sum(x: Tensor) -> Tensor:
        """Left plus right, `[B, N]`."""
        return sum_and_difference(x)[0].squeeze(1)

    @staticmethod
    def diff(x: Tensor) -> Tensor:
        """Left minus right, `[B, N]`."""
        return sum_and_difference(x)[1].squeeze(1)


class FIRFilter(nn.Module):
    """Pre-emphasis of two signals `[B, C, N]` by one filter (Wright & Välimäki 2019).

    As auraloss pads all filters for `ntaps` taps, "hp" and "fd", which have 3, append `ntaps − 3` samples.

    Args:
        filter_type: "hp" (first-order high-pass), "fd" (folded differentiator) or "aw" (A-weighting).
        coef: coefficient of "hp" and "fd".
        fs: sample rate for "aw", Hz.
        ntaps: odd length of "aw", and of the padding.
        plot: not supported.

    Raises:
        ValueError: an unknown filter type, an even `ntaps`, or `plot`.
    """

    def __init__(
        self, filter_type: str = "hp", coef: float = 0.85, fs: float = 44100, ntaps: int = 101, plot: bool = False
    ):
        super().__init__()
        if ntaps % 2 == 0:
            raise ValueError(f"ntaps must be odd, got {ntaps}")
        if plot:
            raise ValueError("plot=True is not supported; the taps are in `fir.weight`")
        self.filter_type, self.coef, self.fs, self.ntaps, self.plot = filter_type, coef, fs, ntaps, plot
        if filter_type == "aw":
            taps = a_weighting_taps(fs, ntaps)  # type: ignore[arg-type]
        elif filter_type in ("hp", "fd"):
            taps = highpass_taps(coef) if filter_type == "hp" else folded_differentiator_taps(coef)
        else:
            raise ValueError(f"filter_type must be 'hp', 'fd' or 'aw', got {filter_type!r}")
        # A frozen convolution, so that a model's state has the same keys as with auraloss.
        self.fir = nn.Conv1d(1, 1, len(taps), padding=ntaps // 2, bias=False).requires_grad_(False)
        self.fir.weight.copy_(taps.to(torch.float32)[None, None])

    def forward(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return self._filtered(input), self._filtered(target)

    def _filtered(self, signal: Tensor) -> Tensor:
        taps = self.fir.weight.detach().flatten()
        longer = self.ntaps // 2 - len(taps) // 2
        return fir_filter(pad(signal, (longer, longer)) if longer else signal, taps)
