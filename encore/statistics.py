"""Bootstrap confidence intervals, for single items and for items that come in groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval; `low` and `high` are None where no interval can be given."""

    value: float
    low: float | None
    high: float | None

    def map(self, function: Callable[[float], float]) -> Interval:
        """The interval on another scale; `function` must be increasing."""
        low, high = (None if end is None else function(end) for end in (self.low, self.high))
        return Interval(function(self.value), low, high)


ENOUGH_RECORDINGS = 8  # below it intervals over recordings are rough
BLOCK = 2**14  # items that are drawn at a time, where a statistic takes several draws


def bootstrap(
    statistic: Callable[..., Any],
    *arrays: ArrayLike,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    vectorized: bool = False,
) -> Interval:
    """Percentile bootstrap over items (Efron & Tibshirani 1993, chapter 13).

    Items lie on the first axis. Each draw takes the same items, with replacement, from all arrays, so that comparisons
    stay paired. Draws for which the statistic is not finite are left out; if they are half of all draws or more, or if
    there is only one item, there is no interval.

    Args:
        statistic: `statistic(*arrays)`, called with arrays resampled from the given ones.
        arrays: at least one, all with the same number of items.
        level: coverage of the interval.
        vectorized: whether the statistic takes several draws at a time, `[draws, items]`, and reduces the last axis.

    Raises:
        ValueError: no items, or arrays with different numbers of items.
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
    for part in np.array_split(drawn, math.ceil(draws * count / BLOCK)) if vectorized else drawn[:, None]:
        chosen = random.integers(count, size=(len(part), count))
        part[:] = statistic(*(array[chosen if vectorized else chosen[0]] for array in data))
    defined = drawn[np.isfinite(drawn)]
    if len(defined) <= draws / 2:
        return Interval(value, None, None)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def group_sums(values: Sequence[float], groups: Sequence[str]) -> NDArray[np.float64]:
    """The sum of the values of each group, in the order in which the groups first appear."""
    sums: dict[str, float] = {}
    for value, group in zip(values, groups, strict=True):
        sums[group] = sums.get(group, 0.0) + value
    return np.array(list(sums.values()))


def group_mean(values: Sequence[float], groups: Sequence[str]) -> Interval:
    """The mean over all values; the bootstrap draws whole groups, because values within a group are alike."""
    sums, counts = group_sums(values, groups), group_sums([1.0] * len(values), groups)
    return bootstrap(lambda part, count: part.sum(-1) / count.sum(-1), sums, counts, vectorized=True)


def skill(score: Iterable[float], reference: Iterable[float], recordings: Sequence[str]) -> Interval:
    """`1 − mean(score) / mean(reference)`: 1 is perfect, 0 as good as the reference, below 0 worse; without a unit.

    Args:
        score, reference: one value per item, of the same items.
        recordings: the recording of each item; the bootstrap draws recordings. Not a number where the mean of the
            reference is 0.
    """

    def statistic(ours: NDArray, theirs: NDArray) -> float:
        return 1 - float(ours.sum() / theirs.sum()) if theirs.any() else float("nan")

    return bootstrap(statistic, group_sums([*score], recordings), group_sums([*reference], recordings))
