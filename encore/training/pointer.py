"""Trains the pointer: by an energy score that is computed exactly, without sampling and without a decoder.

What follows each place of a context is known, and so is how far it is from the music that really follows. Over this
finite set of places the energy score of odds p is `p·D − ½ pᵀ M p`, with D the distances to the truth and M those
between one another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from encore.codecs import Codec
from encore.data.dataset import PairDataset
from encore.models.pointer import (
    ONSETS,
    Places,
    Pointer,
    distances,
    jump_logits,
    place_features,
    stride_of,
)
from encore.models.pointer_prior import EXCERPT_SECONDS

PAIRS, HELD_OUT = 192, 48  # at most, of training and of validation
STEPS, BATCH, LEARNING_RATE, DECAY = 300, 24, 0.4, 1e-5
CONTINUITY = 2.0  # log odds added for going on with an excerpt, as the score cannot hear a broken pulse
BOUNDARIES = (1.0, 0.75)  # of the context
STEP = 2  # strides from place to place
VERSION = 2  # of the pointers that are kept
BANDS, FFT_SECONDS, FLOOR_DB = 64, 0.043, -75.0  # of the spectra that are compared, two in a stride


@dataclass(frozen=True)
class Case:
    """A boundary in a recording, the P places before it, and what follows them.

    Attributes:
        features: at the boundary, `[P, K]`.
        later: after an excerpt from each place, `[P, P, K]`.
        length: of an excerpt, in strides, a multiple of `STEP`.
        to_truth: D, mean distance of an excerpt from each place to each block of the truth, `[n, P]`.
        between: M, mean distance of two excerpts, `[P, P]`.
    """

    features: Tensor
    later: Tensor
    length: int
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
    count = len(case.features)
    places, ends = torch.arange(count) * STEP, torch.arange(count) * STEP + case.length
    jump = jump_logits(case.later, pointer.after_excerpt, places, ends)
    stay = torch.where(ends <= places[-1], pointer.stay, -torch.inf)
    moves = torch.cat([jump, stay[:, None]], 1)
    moves = torch.where(moves.isneginf().all(1, keepdim=True), 0, moves).softmax(1)
    next_place = (ends // STEP).clamp_max(count - 1)
    odds = [(case.features @ pointer.after_music).softmax(0)]
    for _ in range(len(case.to_truth) - 1):
        stayed = torch.zeros(count).index_add(0, next_place, odds[-1] * moves[:, -1])
        odds.append(odds[-1] @ moves[:, :-1] + stayed)
    return torch.stack(odds)


def score(case: Case, pointer: Pointer) -> Tensor:
    """Mean energy score of the blocks, relative to the mean distance of two excerpts of the context."""
    found = energy_score(block_odds(case, pointer), case.to_truth, case.between).mean()
    return found / case.between.mean().clamp_min(1e-6)


def log_mel(audio: Tensor, codec: Codec, stride: int) -> Tensor:
    """Log-mel spectra of audio `[C, N]`, two in a stride, in nepers, at least −75 dB of full scale: `[S, 64]`."""
    rate = codec.sample_rate
    n_fft = 2 ** round(math.log2(FFT_SECONDS * rate))
    hop = max(1, codec.hop_length * stride // 2)
    window = torch.hann_window(n_fft)
    spectra = torch.stft(audio, n_fft, hop, window=window / window.sum() * 2, pad_mode="constant", return_complex=True)
    banks = melscale_fbanks(n_fft // 2 + 1, 0, rate / 2, BANDS, rate)
    power = spectra.abs().square().mean(0).T @ banks
    return power.sqrt().clamp_min(10 ** (FLOOR_DB / 20)).log()


def excerpt_distances(spectra: Tensor, one: Tensor, other: Tensor, length: int) -> Tensor:
    """Mean L1 distance of excerpts of `length` spectra that begin at `one [P]` and at `other [Q]`: `[P, Q]`."""
    frames = torch.cdist(spectra, spectra, p=1) / spectra.shape[1]
    total = torch.zeros(len(one), len(other))
    for offset in range(length):
        total += frames[(one + offset)[:, None], other + offset]
    return total / length


def make_case(latents: Tensor, audio: Tensor, boundary: int, codec: Codec, block_frames: int) -> Case | None:
    """The case of a boundary after `boundary` frames of a recording; None if it is too short.

    Args:
        latents: `[D, F]`.
        audio: the same music, `[C, F · hop_length]`.
        boundary: the truth is what follows, as many whole blocks as there are.
        codec: of the latents.
        block_frames: of an excerpt.
    """
    stride = stride_of(codec.frame_rate)
    first = boundary % stride  # strides are counted from here, so that one ends at the boundary
    context = boundary // stride
    length = STEP * max(1, round(block_frames / (STEP * stride)))
    blocks = (latents.shape[-1] - boundary) // (length * stride)
    if context <= length or not blocks:
        return None
    places = Places.of(latents[None, :, :boundary], stride)
    levels, onsets = (distances(part, part)[0] for part in (places.levels, places.onsets))
    index = torch.arange(0, context - length + 1, STEP)

    def features(ends: Tensor) -> Tensor:
        """Of each place at queries that end at `ends`; what precedes the context repeats its first stride."""
        past = (ends[:, None] - torch.arange(ONSETS, 0, -1)).clamp_min(0)
        return place_features(levels[past], onsets[past], places.rhythm, ends)[:, index]

    spectra = log_mel(audio[:, first * codec.hop_length :], codec, stride)
    truth = context + length * torch.arange(blocks)
    starts = 2 * torch.cat([index, truth])
    table = excerpt_distances(spectra, starts, 2 * index, 2 * length)
    return Case(
        features(torch.tensor([context]))[0], features(index + length), length, table[len(index) :], table[: len(index)]
    )


def make_cases(data: PairDataset, codec: Codec, block_frames: int, most: int) -> list[Case]:
    """Two boundaries in each pair, of at most `most` pairs spread over a data set."""
    cases = []
    for number in torch.linspace(0, len(data) - 1, min(most, len(data))).round().int().tolist():
        context, source, target, following, _ = data[number]
        latents, audio = torch.cat([context, following], -1), torch.cat([source, target], -1)
        for share in BOUNDARIES:
            boundary = round(share * context.shape[-1])
            end = boundary + following.shape[-1]
            part = audio[:, : end * codec.hop_length]
            cases.append(make_case(latents[:, :end], part, boundary, codec, block_frames))
    return [case for case in cases if case is not None]


def fit(pointer: Pointer, cases: Sequence[Case], seed: int) -> None:
    """Trains a pointer by Adam, with a learning rate that falls linearly and a little decay of its weights.

    Afterwards going on with an excerpt gets `CONTINUITY` more log odds.
    """
    parameters = list(pointer.parameters())
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    pointer.requires_grad_(True)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
        chosen = torch.randperm(len(cases), generator=generator)[:BATCH].tolist()
        loss = torch.stack([score(cases[number], pointer) for number in chosen]).mean()
        loss = loss + DECAY * torch.stack([weights.square().sum() for weights in parameters]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pointer.requires_grad_(False)
    pointer.stay.add_(CONTINUITY)


@torch.no_grad()
def mean_score(pointer: Pointer, cases: Sequence[Case]) -> float:
    """The mean of `score`."""
    return torch.stack([score(case, pointer) for case in cases]).mean().item()


def train_pointer(train: PairDataset, val: PairDataset, codec: Codec, block_frames: int, seed: int) -> Pointer:
    """A pointer trained on training pairs; an untrained one if that is no worse on validation pairs.

    Args:
        train, val: pairs.
        codec: of their latents.
        block_frames: of generated blocks.
        seed: of the order in which pairs are used.
    """
    size = min(block_frames, max(1, round(EXCERPT_SECONDS * codec.frame_rate)))
    cases, held_out = (make_cases(data, codec, size, most) for data, most in ((train, PAIRS), (val, HELD_OUT)))
    pointer, untrained = Pointer(), Pointer()
    if not cases or not held_out:  # pairs too short to choose places in
        return untrained
    fit(pointer, cases, seed)
    return pointer if mean_score(pointer, held_out) < mean_score(untrained, held_out) else untrained
