"""The energy score of a forecast, its skill, and bootstrap intervals for any statistic of items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure and its confidence interval; `low` and `high` are None where there is no telling."""

    value: float
    low: float | None
    high: float | None


def bootstrap(
    statistic: Callable[..., float], *arrays: ArrayLike, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap over items (Efron & Tibshirani 1993, chapter 13).

    Items lie on the first axis; a draw takes the same items, with replacement, of all arrays, so that what is compared
    stays paired. A draw for which the statistic is not defined (not finite) says nothing and is left out; where that
    is every second one, or where there is one item only, there is no interval.

    Args:
        statistic: `statistic(*arrays)`, of arrays such as the given ones.
        arrays: at least one, all of the same number of items.
        level: coverage of the interval.

    Raises:
        ValueError: no items, or arrays of different numbers of them.
    """
    data = [np.asarray(array) for array in arrays]
    items = {len(array) for array in data}
    if len(items) != 1 or 0 in items:
        raise ValueError(f"arrays must have the same number of items, at least one, got {[len(a) for a in data]}")
    count = items.pop()
    value = float(statistic(*data))
    if count == 1 or not np.isfinite(value):
        return Interval(value, None, None)
    random = np.random.default_rng(seed)
    drawn = np.empty(draws)
    for draw in range(draws):
        chosen = random.integers(count, size=count)
        drawn[draw] = statistic(*(array[chosen] for array in data))
    defined = drawn[np.isfinite(drawn)]
    if len(defined) <= draws / 2:
        return Interval(value, None, None)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


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
