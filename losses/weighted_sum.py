"""Several losses as one: `0.5 * RMSLoss() + 0.25 * SpectralLoss()`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

import torch
from torch import Tensor, nn

from losses.dsp.bank import shared_spectra


class Summand(nn.Module):
    """A module that can be multiplied by a weight and added to others, which gives a `WeightedSum`."""

    def terms(self) -> dict[str, tuple[nn.Module, float]]:
        """What this module is the weighted sum of: name to module and weight."""
        return {type(self).__name__: (self, 1.0)}

    def __mul__(self, weight: float) -> WeightedSum:
        if not isinstance(weight, Real):
            return NotImplemented
        return WeightedSum({name: (loss, own * float(weight)) for name, (loss, own) in self.terms().items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> WeightedSum:
        return self * (1 / divisor)

    def __add__(self, other: Summand) -> WeightedSum:
        if not isinstance(other, Summand):
            return NotImplemented
        terms = dict(self.terms())
        for wanted, (loss, weight) in other.terms().items():
            same = [name for name, (mine, _) in terms.items() if mine is loss]
            name = same[0] if same else _unused(wanted, terms)
            terms[name] = loss, weight + (terms[name][1] if same else 0)
        return WeightedSum(terms)

    def __radd__(self, other: object) -> WeightedSum:
        if other == 0:  # where sum() begins
            return WeightedSum(self.terms())
        return NotImplemented


class WeightedSum(Summand):
    """`Σ weight · loss(prediction, target)` over named losses, which share their spectra.

    Also what arithmetic with losses gives; they are then named after their classes, a second one `MelLoss_2`.

    Args:
        terms: name to loss and weight. A weight of 0 costs nothing.

    Raises:
        ValueError: a weight below 0 or not finite, or none above 0; losses of which some give one value per item
            (`reduction="none"`) and others one for all, or several values (`output="full"`).
    """

    def __init__(self, terms: Mapping[str, tuple[nn.Module, float]]):
        super().__init__()
        self.weights = checked_weights({name: weight for name, (_, weight) in terms.items()})
        self.losses = nn.ModuleDict({name: terms[name][0] for name in self.weights})
        reductions = {name: loss.reduction for name, loss in self.losses.items() if hasattr(loss, "reduction")}
        if "none" in reductions.values() and set(reductions.values()) != {"none"}:
            raise ValueError(
                "the losses of a sum must all give one value, or all one value per item (reduction='none'), got the "
                f"reductions {', '.join(f'{reduction!r} of {name}' for name, reduction in reductions.items())}"
            )
        for name, loss in self.losses.items():
            if getattr(loss, "output", "loss") != "loss":
                raise ValueError(f"{name} has output='full' and gives several values; only output='loss' can be added")

    def terms(self) -> dict[str, tuple[nn.Module, float]]:
        return {name: (self.losses[name], weight) for name, weight in self.weights.items()}

    def parts(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The value of every loss, without its weight."""
        with shared_spectra():
            return {name: loss(prediction, target) for name, loss in self.losses.items()}

    def total(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the values that `parts` returned."""
        shapes = {name: list(parts[name].shape) for name in self.weights}
        if len({*map(tuple, shapes.values())}) > 1:
            raise ValueError(f"losses can be added if their values are alike in shape, got {shapes}")
        return torch.stack([weight * parts[name] for name, weight in self.weights.items()]).sum(0)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.total(self.parts(prediction, target))

    def extra_repr(self) -> str:
        return " + ".join(f"{weight:g} {name}" for name, weight in self.weights.items())


def checked_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights above 0.

    Raises:
        ValueError: a weight below 0 or not finite, or none above 0.
    """
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"the weight of {name!r} must be a finite number of at least 0, got {weight}")
    above = {name: weight for name, weight in weights.items() if weight}
    if not above:
        raise ValueError("there is nothing to combine: at least one weight must be above 0")
    return above


def _unused(name: str, taken: Mapping[str, object]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
