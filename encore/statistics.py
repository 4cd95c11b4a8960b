"""Bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


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
