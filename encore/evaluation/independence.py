"""Are a continuer's candidates drawn independently? Otherwise its energy score and skill are too good."""

from __future__ import annotations

import torch

from encore.data.dataset import Batch
from encore.evaluation.baselines import Continuer, seeds_of

TOLERANCE_DB = -40.0  # of the RMS: rounding differs with the number of candidates


@torch.no_grad()
def candidates_depend(continuer: Continuer, batch: Batch, seed: int = 0) -> bool:
    """Whether a candidate changes with the others that are drawn: candidate 1 alone against candidates 0, 1 and 2.

    The energy score assumes independent candidates: its second term rewards that they differ. Candidates that are
    chosen to differ, such as the three best excerpts, each once, get a score that no forecast can have. A candidate
    that can be drawn alone, from its own seed, cannot have been chosen so.
    """
    if continuer.deterministic:
        return False
    together = continuer.draw(batch, 3, seed)[:, 1]
    seeds = seeds_of(batch, 2, seed)[1::2]
    alone = continuer.make(batch, batch.target_latents.shape[-1], seeds)[..., continuer.lead :]
    error = (alone - together).square().mean().sqrt()
    return bool(error > 10 ** (TOLERANCE_DB / 20) * together.square().mean().sqrt())
