"""Means of the components over the items of all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from encore.training import distributed

ITEMS = "/items"  # ends the name of the number of items that a sum is over


class Sums:
    """Running sums over items, one per figure, each with the number of its items beside it: not all have the same."""

    def __init__(self, sums: dict[str, float] | None = None):
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

    def over_ranks(self, device: torch.device) -> dict[str, float]:
        """The sums of all ranks' sums, on every rank."""
        names: Iterable[str] = sorted(set().union(*distributed.gather(list(self.sums))))
        mine = torch.tensor([self.sums.get(name, 0.0) for name in names], dtype=torch.float64, device=device)
        return dict(zip(names, distributed.total(mine).tolist(), strict=True))


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Means per item."""
    return {name: value / sums[name + ITEMS] for name, value in sums.items() if not name.endswith(ITEMS)}
