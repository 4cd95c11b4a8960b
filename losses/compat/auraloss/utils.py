"""Reductions with auraloss's names."""

from __future__ import annotations

from torch import Tensor


def apply_reduction(losses: Tensor, reduction: str = "none") -> Tensor:
    """The mean ("mean") or sum ("sum") of all values; with any other `reduction` the values themselves."""
    if reduction == "mean":
        return losses.mean()
    return losses.sum() if reduction == "sum" else losses
