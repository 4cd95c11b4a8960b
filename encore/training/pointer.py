"""Trains the pointer: by an energy score that is computed exactly, without sampling and without a decoder.

What follows each place of a context is known, and so is how far it is from the music that really follows. Over this
finite set of places the energy score of odds p is `p·D − ½ pᵀ M p`, with D the distances to the truth and M those
between one another.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from encore.codecs import Codec
from encore.data.dataset import PairDataset
from encore.models.pointer import (
    MIN_LAG,
    ONSETS,
    Places,
    Pointer,
    distances,
    jump_logits,
    place_features,
    stride_of,
)
from encore.models.pointer_prior import EXCERPT_SECONDS
from encore.training.stored import stored

PAIRS, STEPS, BATCH, LEARNING_RATE, DECAY = 192, 100, 24, 0.4, 1e-4
EARLIER = 0.75  # of the context: where a second boundary lies, in half of the pairs
BANDS, FLOOR_DB = 64, -75.0
STEP = 2  # strides between the places that are compared
VERSION = 1  # of what `fit` does, in the name of its file


@dataclass(frozen=True)
class Case:
    """A boundary in a recording, the P places before it, and what follows them.

    Attributes:
        features: at the boundary, `[P, K]`.
        later: after an excerpt from each place, `[P, P, K]`.
        ends: stride that ends the excerpt from each place, `[P]`.
        to_truth: D, mean distance of an excerpt from each place to each block of the truth, `[n, P]`.
        between: M, mean distance of two excerpts, `[P, P]`.
    """

    features: Tensor
    later: Tensor
    ends: Tensor
    to_truth: Tensor
    between: Tensor


def energy_score(odds: Tensor, to_truth: Tensor, between: Tensor) -> Tensor:
    """`p·D − ½ pᵀ M p`: the energy score of odds over a finite set of forecasts, exactly.

    Args:
        odds: p, `[…, P]`.
        to_truth: D, `[…, P]`.
        between: M, `[P, P]`.
    """
    return (odds * (to_truth - (odds @ between) / 2)).sum(-1)


def block_odds(case: Case, pointer: Pointer) -> Tensor:
    """The odds that each block is the excerpt from each place, `[n, P]`, as the prior draws one after the other."""
    places = torch.arange(len(case.features)) * STEP
    end = case.ends[-1:] + STEP  # beyond all places
    full = torch.zeros(int(end) + 1, case.features.shape[-1])
    full[places] = case.features
    odds = [(case.features @ pointer.after_music).softmax(0)]
    near = (places - case.ends[:, None]).abs() < MIN_LAG
    jump = (case.later @ pointer.after_excerpt).masked_fill(near, -torch.inf)
    following = case.ends // STEP
    stays = following < len(places)
    stay = torch.where(stays, pointer.stay, -torch.inf)
    moves = torch.cat([jump, stay[:, None]], 1).softmax(1)
    target = following.clamp_max(len(places) - 1)
    for _ in range(len(case.to_truth) - 1):
        stayed = torch.zeros_like(odds[-1]).index_add(0, target, odds[-1] * moves[:, -1])
        odds.append(odds[-1] @ moves[:, :-1] + stayed)
    return torch.stack(odds)


def score(case: Case, pointer: Pointer) -> Tensor:
    """Mean energy score of the blocks, relative to the mean distance of two excerpts of the context."""
    found = energy_score(block_odds(case, pointer), case.to_truth, case.between).mean()
    return found / case.between.mean().clamp_min(1e-6)
