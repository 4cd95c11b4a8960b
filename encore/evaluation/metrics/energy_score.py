"""The energy score of a forecast, its skill, and bootstrap intervals for any statistic of items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class EnergyScore:
    """The energy score of every item, and what it is made of, each `[B]`.

    Attributes:
        score: `attraction − repulsion / 2`; lower is better.
        attraction: mean distance of the candidates to the truth.
        repulsion: mean distance between two candidates; 0 for one candidate.
    """

    score: Tensor
    attraction: Tensor
    repulsion: Tensor


@torch.no_grad()
def energy_score(distance: Callable[[Tensor, Tensor], Tensor], candidates: Tensor, truth: Tensor) -> EnergyScore:
    """`mean_i d(xᵢ, y) − ½ · mean_{i≠j} d(xᵢ, xⱼ)` for each item, in the unit of `d`; lower is better.

    A proper scoring rule (Gneiting & Raftery 2007; Székely & Rizzo 2013; for audio Gritsenko et al. 2020): in the mean
    no forecast scores better than the distribution that the truth came from. The pairs are unbiased: no candidate is
    compared with itself, so that the score's mean does not depend on the number of candidates. One candidate is taken
    for a deterministic system, whose every sample is the same: it has no second term, and its score is `d(x, y)`. A
    random system needs two candidates at least to be scored fairly.

    Args:
        distance: `d(prediction, target)` maps `[B, …]` twice to `[B]`; symmetric, each pair is asked for once only.
        candidates: `[B, N, …]`, N samples for each item.
        truth: `[B, …]`.

    Raises:
        ValueError: shapes that don't belong together, or no candidates.
    """
    if candidates.shape[:1] + candidates.shape[2:] != truth.shape or candidates.shape[1] == 0:
        raise ValueError(f"candidates [B, N, …] and truth [B, …] differ: {list(candidates.shape)}, {list(truth.shape)}")
    samples = candidates.unbind(1)
    attraction = torch.stack([distance(sample, truth) for sample in samples]).mean(0)
    if len(samples) == 1:
        return EnergyScore(attraction, attraction, torch.zeros_like(attraction))
    repulsion = torch.stack([distance(one, other) for one, other in combinations(samples, 2)]).mean(0)
    return EnergyScore(attraction - repulsion / 2, attraction, repulsion)


def skill(score: Array, reference: Array) -> float:
    """`1 − mean(score) / mean(reference)`: 1 is perfect, 0 as good as the reference, below 0 worse; without a unit.

    Both `[B]`, of the same items: `bootstrap(skill, score, reference)` has the interval of the comparison. Not a number
    where the reference's mean is 0.
    """
    mean = float(np.mean(reference))
    return 1 - float(np.mean(score)) / mean if mean else float("nan")
