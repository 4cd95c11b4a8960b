"""Does a model repeat its training music? Distances to the nearest training patch, compared with held-out music."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encore.evaluation.metrics.registry import MetricSpec
from encore.statistics import Interval, bootstrap

BLOCK = 2**24  # distances in memory at a time, 64 MB

MEMORIZATION_SPEC = MetricSpec(
    "memorisation",
    "memorisation",
    "Music",
    "Distance to the nearest training music, as a ratio to that of held-out real music: 0 is copied.",
    "one",
)


@dataclass(frozen=True)
class Memorization:
    """How close continuations are to the training music.

    Attributes:
        continuations: for each item the mean over its patches of the distance to the nearest training patch, `[I]`.
        held_out: the same for held-out real music, `[I]`.
        ratio: mean of the first divided by the mean of the second: 1 as new as real music, 0 copied; paired interval.
    """

    continuations: NDArray[np.float64]
    held_out: NDArray[np.float64]
    ratio: Interval


@torch.no_grad()
def nearest_distances(queries: Tensor, training: Tensor) -> Tensor:
    """Distance `‖q − n‖ / √F` of each row q of `[Q, F]` to the nearest n of `[N, F]`: `[Q]`, in the features' unit.

    Raises:
        ValueError: no training features, or features of another number than those of the queries.
    """
    if not len(training) or queries.shape[1:] != training.shape[1:]:
        raise ValueError(f"features must be [Q, F] and [N, F], got {list(queries.shape)} and {list(training.shape)}")
    training = training.to(queries)
    nearest = torch.full((len(queries),), torch.inf, dtype=torch.float64)
    for block in training.split(max(1, BLOCK // max(1, len(queries)))):
        indices = torch.cdist(queries, block).argmin(1)
        # Computed again for the nearest alone: matrix products do not give exactly 0 for a copy.
        distances = (queries - block[indices]).double().norm(dim=1)
        nearest = torch.minimum(nearest, distances.cpu())
    return nearest / queries.shape[1] ** 0.5


def memorization(continuations: Tensor, held_out: Tensor, training: Tensor, seed: int = 0) -> Memorization:
    """Distances of continuations and of held-out music to the nearest training music (after Meehan et al. 2020).

    A ratio far below 1 means that the model repeats training music; a few low items (compared with `held_out`) mean
    that it does so occasionally. Copies are found wherever they begin if the training patches overlap (`hop_seconds`)
    and the features do not depend on where in a patch a note begins: `pooled` log-mel patches rather than latents. Dull
    continuations may be close to everything: silence has a low ratio if there is silence in the training music.

    Args:
        continuations: patches, `[I, P, F]`; several continuations of an item lie on P.
        held_out: patches of real music that the model was not trained on, `[I, Q, F]`, item for item.
        training: patches of the training music, `[N, F]`.

    Raises:
        ValueError: the shapes do not match, or there is nothing to compare.
    """
    if len(continuations) != len(held_out) or not continuations.shape[:2].numel() or not held_out.shape[:2].numel():
        raise ValueError(
            f"features must be [I, P, F] and [I, Q, F], got {list(continuations.shape)} and {list(held_out.shape)}"
        )
    ours, theirs = (
        nearest_distances(patches.flatten(0, 1), training).unflatten(0, patches.shape[:2]).mean(1).numpy()
        for patches in (continuations, held_out)
    )

    def ratio(distances: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
        return float(distances.mean() / reference.mean()) if reference.any() else float("nan")

    return Memorization(ours, theirs, bootstrap(ratio, ours, theirs, seed=seed))
