"""Means of metrics over the items of all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from encore.training.distributed import Ranks

ITEMS = "/items"  # ends the name under which the number of items of a sum is kept


class WeightedMean:
    """Running sums over items and the numbers of items, by metric: not every metric has the same items."""

    def __init__(self, sums: Mapping[str, float] | None = None):
        self.sums = dict(sums or {})

    def add(self, values: Mapping[str, Tensor], total: Tensor) -> None:
        """Adds a batch's values, `[B]` each, and the weighted total as "loss"."""
        named = {**values, "loss": total}
        # One transfer from the device for all.
        means = torch.stack([value.detach().double().mean() for value in named.values()]).tolist()
        for name, mean in zip(named, means, strict=True):
            self.add_value(name, mean, len(named[name]))

    def add_value(self, name: str, value: float, items: int) -> None:
        """Adds a mean over `items` items."""
        for key, number in ((name, value * items), (name + ITEMS, items)):
            self.sums[key] = self.sums.get(key, 0.0) + number

    def sum_over(self, ranks: Ranks) -> dict[str, float]:
        """The sums over all ranks, on every rank."""
        names = sorted(set().union(*ranks.gather(list(self.sums))))
        own = torch.tensor([self.sums.get(name, 0.0) for name in names], dtype=torch.float64, device=ranks.device)
        return dict(zip(names, ranks.sum(own).tolist(), strict=True))


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Means per item, of what `WeightedMean` has summed up."""
    return {name: value / sums[name + ITEMS] for name, value in sums.items() if not name.endswith(ITEMS)}
