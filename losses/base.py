"""What every loss is: a module over a pure function, with an entry in the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Function = Callable[[Tensor, Tensor], Any]


def check_same_shape(prediction: Tensor, target: Tensor) -> None:
    """Raises ValueError, with both shapes, unless both are `[B, C, N]`, equal in shape and not empty."""
    if prediction.shape != target.shape or prediction.dim() != 3:
        raise ValueError(
            "prediction and target must both be [B, C, N] and equal in shape, got "
            f"{list(prediction.shape)} and {list(target.shape)}"
        )
    if not prediction.numel():
        raise ValueError(f"a signal of shape {list(prediction.shape)} is empty: at least 1 samples are needed")


class Loss(nn.Module):
    """A loss of `(prediction, target)`, both `[B, C, N]`; it falls when things get better.

    Computed in float32 at least, autocast or not: a sum over an audio file does not fit into half precision.

    Args:
        function: gives one value per item, `[B]`.
        reduction: "mean" over the items, or "none" for all of them.

    Raises:
        ValueError: an unknown reduction; at the call, shapes that differ or are not `[B, C, N]`.
    """

    def __init__(self, function: Function, reduction: str = "mean"):
        super().__init__()
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
        self.function, self.reduction = function, reduction

    def forward(self, prediction: Tensor, target: Tensor) -> Any:
        check_same_shape(prediction, target)
        if prediction.dtype in (torch.float16, torch.bfloat16):
            prediction = prediction.float()
        with torch.autocast(prediction.device.type, enabled=False):
            return self.reduced(self.function(prediction, target.to(prediction.dtype)))

    def reduced(self, values: Any) -> Any:
        """What is returned for the function's values."""
        return values.mean() if self.reduction == "mean" else values

    def extra_repr(self) -> str:
        return f"{self.function}, reduction={self.reduction!r}"


def entry(summary: str, loss: Callable[..., Loss], takes_rate: bool = False, **attributes: Any) -> Entry:
    """An entry for a loss class, whose first argument is the sample rate if `takes_rate`."""

    def build(sample_rate: int, **options: Any) -> Loss:
        rate = {"sample_rate": sample_rate} if takes_rate else {}
        return loss(**rate, **{"reduction": "none", **options})

    return Entry(summary, build, **attributes)


@dataclass(frozen=True)
class Entry:
    """One registered loss.

    Attributes:
        summary: what it is, in a line.
        build: `build(sample_rate, **options)` gives the loss for audio at `sample_rate` Hz, one value per item.
        minimum: its value at identity; None where it falls without end, as minus a ratio in dB does.
        metric: name of the measure that is minus this loss, e.g. "snr_db", reported beside it.
        channels: 2 for a loss of stereo audio only.
        package: the optional package that it needs, as pip names it.
        distance: whether it may be the distance within an energy distance: symmetric, of each item by itself, and of
            negative type, as norms of differences are that are not squared (Székely & Rizzo 2013). Such a loss makes
            a proper scoring rule of samples; one that is normalised by its target, or squared, does not.
    """

    summary: str
    build: Callable[..., Loss]
    minimum: float | None = 0.0
    metric: str | None = None
    channels: int | None = None
    package: str | None = None
    distance: bool = False
