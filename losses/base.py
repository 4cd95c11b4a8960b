"""What every loss is: a module over a pure function of `(prediction, target)`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

Function = Callable[[Tensor, Tensor], Any]


def check_same_shape(prediction: Tensor, target: Tensor) -> None:
    """Raises ValueError, naming both shapes, unless both are `[B, C, N]`, equal in shape and not empty."""
    if prediction.shape != target.shape or prediction.dim() != 3:
        raise ValueError(
            "prediction and target must both be [B, C, N] and equal in shape, got "
            f"{list(prediction.shape)} and {list(target.shape)}"
        )
    if not prediction.numel():
        raise ValueError(f"a signal of shape {list(prediction.shape)} is empty: at least 1 samples are needed")


class Loss(nn.Module):
    """A loss of `(prediction, target)`, both `[B, C, N]`; lower is better.

    Computed in float32 or float64 even under autocast: a sum over an audio file needs more than half precision.

    Args:
        function: `function(prediction, target)` gives one value per item, `[B]`.
        reduction: "mean" over the items, or "none" for one value per item.

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
        """Applies the reduction to the function's values."""
        return values.mean() if self.reduction == "mean" else values

    def extra_repr(self) -> str:
        return f"{self.function}, reduction={self.reduction!r}"


class FunctionLoss(Loss):
    """Base of the losses that are a pure function and its settings; a subclass names the function::

        class MelLoss(FunctionLoss):
            compare = staticmethod(mel)     # MelLoss(24000, n_mels=40)(prediction, target)

    Args:
        *positional: settings of the function, in the order of its parameters after prediction and target.
        reduction: "mean" over the items, or "none".
        **settings: settings of the function by name.

    Raises:
        TypeError: settings that the function does not take, or that it lacks.
    """

    compare: Callable[..., Tensor]

    def __init__(self, *positional: Any, reduction: str = "mean", **settings: Any):
        accepted = signature(self.compare)
        accepted.bind(None, None, *positional, **settings)
        named = dict(zip(list(accepted.parameters)[2:], positional, strict=False))
        super().__init__(partial(self.compare, **named, **settings), reduction)
