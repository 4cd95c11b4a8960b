"""The energy score of a probabilistic forecast, and its skill against a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from encore.evaluation.metrics.registry import MetricSpec, short_name

SCORE, SKILL, SKILL_PRIOR, DIVERSITY = "energy_score_", "skill_", "skill_prior_", "diversity_"
GROUPS = {
    SKILL: ("Skill", "1 − score / score of the replay, {} distance.", "high"),
    SKILL_PRIOR: (
        "Skill against the own prior",
        "1 − score / score of the model's own prior from the same seeds, {} distance: what training added.",
        "high",
    ),
    SCORE: ("Energy score", "Mean distance to the truth less half of that between two candidates, {} distance.", "low"),
    DIVERSITY: (
        "Diversity",
        "Mean distance between two candidates, {} distance; the score subtracts half of it.",
        None,
    ),
}


@dataclass(frozen=True)
class EnergyScore:
    """The energy score of every item and its two terms, each `[B]`.

    Attributes:
        score: `attraction − repulsion / 2`; lower is better.
        attraction: mean distance of the candidates to the truth.
        repulsion: mean distance between two candidates; 0 for one candidate.
    """

    score: Tensor
    attraction: Tensor
    repulsion: Tensor


def score_specs(distances: Sequence[str]) -> list[MetricSpec]:
    """The columns of both skills, energy score and diversity under these distances."""
    return [
        MetricSpec(prefix + name, short_name(name), group, note.format(short_name(name)), goal)
        for prefix, (group, note, goal) in GROUPS.items()
        for name in distances
    ]


@torch.no_grad()
def energy_score(distance: Callable[[Tensor, Tensor], Tensor], candidates: Tensor, truth: Tensor) -> EnergyScore:
    """`mean_i d(xᵢ, y) − ½ · mean_{i≠j} d(xᵢ, xⱼ)` for each item, in the unit of `d`; lower is better.

    A proper scoring rule (Gneiting & Raftery 2007; Székely & Rizzo 2013; for audio Gritsenko et al. 2020): in the mean
    no forecast scores better than the distribution that the truth came from. The estimate is unbiased: no candidate is
    compared with itself, so the expected score does not depend on the number of candidates. A single candidate stands
    for a deterministic system, whose samples are all the same: there is no second term, and the score is `d(x, y)`. A
    stochastic system needs at least two candidates to be scored fairly.

    Args:
        distance: `d(prediction, target)` maps `[B, …]` twice to `[B]`; symmetric: each pair is computed only once.
        candidates: `[B, N, …]`, N samples for each item.
        truth: `[B, …]`.

    Raises:
        ValueError: the shapes do not match, or there are no candidates.
    """
    if candidates.shape[:1] + candidates.shape[2:] != truth.shape or candidates.shape[1] == 0:
        raise ValueError(f"candidates [B, N, …] and truth [B, …] differ: {list(candidates.shape)}, {list(truth.shape)}")
    samples = candidates.unbind(1)
    attraction = torch.stack([distance(sample, truth) for sample in samples]).mean(0)
    if len(samples) == 1:
        return EnergyScore(attraction, attraction, torch.zeros_like(attraction))
    repulsion = torch.stack([distance(one, other) for one, other in combinations(samples, 2)]).mean(0)
    return EnergyScore(attraction - repulsion / 2, attraction, repulsion)


def score_values(
    name: str, distance: Callable[[Tensor, Tensor], Tensor], candidates: Tensor, truth: Tensor
) -> dict[str, Tensor]:
    """The energy score under a distance and, of more than one candidate, the diversity, by the name of their column."""
    found = energy_score(distance, candidates, truth)
    values = {SCORE + name: found.score}
    if candidates.shape[1] > 1:
        values[DIVERSITY + name] = found.repulsion
    return values
