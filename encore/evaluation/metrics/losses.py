"""Losses as metrics: the distance of a continuation to the truth, of the mean and of the best candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

import losses
from encore.evaluation.metrics.registry import MetricSpec


def loss_specs(summaries: Mapping[str, str]) -> list[MetricSpec]:
    """The columns of the losses to the truth; `summaries` says what each loss is, by its name."""
    return [
        MetricSpec(f"{prefix}_{name}", name, f"Losses to the truth, {which}", summary, "low")
        for prefix, which in (("mean", "mean of the candidates"), ("best", "best candidate"))
        for name, summary in summaries.items()
    ]


def loss_values(
    functions: Mapping[str, Callable[[Tensor, Tensor], Tensor]], candidates: Tensor, truth: Tensor
) -> dict[str, Tensor]:
    """Losses of `candidates [B, N, C, S]` to the `truth [B, C, S]`: mean and least over the candidates, `[B]` each."""
    by_candidate: dict[str, list[Tensor]] = {name: [] for name in functions}
    for candidate in candidates.unbind(1):
        with losses.shared_spectra():
            for name, function in functions.items():
                by_candidate[name].append(function(candidate, truth))
    values: dict[str, Tensor] = {}
    for name, parts in by_candidate.items():
        stacked = torch.stack(parts, 1)
        values |= {f"mean_{name}": stacked.mean(1), f"best_{name}": stacked.amin(1)}
    return values
