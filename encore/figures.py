"""Means of the components over the items of all ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from encore import distributed


class Sums:
    """Running sums over items: one per component, the weighted total as "loss", and the number of "items"."""

    def __init__(self, sums: dict[str, float] | None = None):
        self.sums = dict(sums or {})

    def add(self, values: dict[str, Tensor], total: Tensor) -> None:
        """Adds a batch's values, `[B]` each."""
        for name, value in {**values, "loss": total, "items": torch.ones_like(total)}.items():
            self.add_value(name, value.detach().double().sum().item())

    def add_value(self, name: str, value: float) -> None:
        """Adds to one sum; `value` counts for as many items as have been added beside it."""
        self.sums[name] = self.sums.get(name, 0.0) + value

    def over_ranks(self, device: torch.device) -> dict[str, float]:
        """The sums of all ranks' sums, on every rank."""
        names: Iterable[str] = sorted(set().union(*distributed.gather(list(self.sums))))
        mine = torch.tensor([self.sums.get(name, 0.0) for name in names], dtype=torch.float64, device=device)
        return dict(zip(names, distributed.total(mine).tolist(), strict=True))


def means(sums: dict[str, float]) -> dict[str, float]:
    """Means per item; empty where there was no item."""
    items = sums.get("items", 0.0)
    return {name: value / items for name, value in sums.items() if name != "items"} if items else {}
