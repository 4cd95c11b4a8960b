"""The held-out pairs of an evaluation: which there are, which recordings they come from, and their tensors."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

import numpy as np
import torch

from encore.audio import AUDIO_SUFFIXES
from encore.codecs import Codec
from encore.data import Pairs, segment_frames
from encore.data.dataset import Batch, PairDataset, collate
from encore.data.latent_cache import LatentCache
from encore.errors import EncoreError

T = TypeVar("T")

VAL = "val"
LEAST_SECONDS = 1.0  # of a pair: contours have one value per second


@dataclass(frozen=True)
class EvalSet:
    """Held-out pairs, and training segments to search for copies.

    Attributes:
        held_out: the pairs.
        split: which of the data set they are, "test" or "val".
        names: the name of each pair.
        recordings: the recording of each pair, or the names if the recordings are unknown.
        recordings_known: whether the recordings are known.
        train: numbers of training segments in the cache.
        cache: latents of the codec.
        total: how many pairs the split has.
        device: where batches go.
    """

    held_out: PairDataset
    split: str
    names: list[str]
    recordings: list[str]
    recordings_known: bool
    train: list[int]
    cache: LatentCache
    total: int
    device: torch.device

    @classmethod
    def open(
        cls,
        codec: Codec,
        pairs: Mapping[str, Pairs],
        cache_dir: Path,
        items: int | None,
        segments: int,
        device: torch.device,
        split: str = VAL,
    ) -> EvalSet:
        """Selects from the pairs of a data set (`find_pairs`), and encodes the files that are not in the cache yet.

        Args:
            cache_dir: folder for encoded latents.
            items: how many pairs to take, spread evenly over all; None for all of them.
            segments: how many training segments, likewise.
            split: whose pairs to take.

        Raises:
            EncoreError: there are fewer than two pairs, they are too short, or the recordings of only some are known.
        """
        frames, total = segment_frames(pairs, codec.hop_length), len(pairs[split])
        if frames.target < LEAST_SECONDS * codec.frame_rate:
            shortest = min(
                (split[int(split.samples.argmin())] for split in pairs.values()), key=lambda one: one.samples
            )
            raise EncoreError(
                f"{shortest.output}: {frames.target / codec.frame_rate:.2f} s long; evaluation needs at least "
                f"{LEAST_SECONDS:g} s, prepare longer pairs"
            )
        if total < 2:
            raise EncoreError(
                f"--dataset_folder: there is one pair in {split}, evaluation needs at least two; prepare more music"
            )
        chosen = pairs[split].take(spread(range(total), total if items is None else items))
        train = pairs["train"].numbers[spread(range(2 * len(pairs["train"])), segments)]
        recordings = _recordings(chosen)
        cache = LatentCache.open(cache_dir, codec, chosen.segments)
        cache.complete(np.unique(np.concatenate([chosen.numbers, train])), codec, device)
        dataset = PairDataset(chosen, cache, codec, frames)
        names = [pair.name for pair in chosen]
        known = recordings is not None
        return cls(dataset, split, names, recordings or names, known, train.tolist(), cache, total, device)

    def __len__(self) -> int:
        return len(self.held_out)

    def load(self, numbers: Iterable[int]) -> Batch:
        """The pairs of these numbers."""
        return collate([self.held_out[number] for number in numbers]).to(self.device)

    def one_of_each(self, count: int) -> list[int]:
        """The numbers of up to `count` pairs, each the first of a recording as long as there are recordings left."""
        order: dict[str, list[int]] = {}
        for number, recording in enumerate(self.recordings):
            order.setdefault(recording, []).append(number)
        rounds = max(map(len, order.values()))
        return [numbers[turn] for turn in range(rounds) for numbers in order.values() if turn < len(numbers)][:count]


def song_name(recording: str) -> str:
    """What pages call a recording: its file's name without folder and suffix."""
    path = PurePath(recording)
    return path.stem if path.suffix.lower() in AUDIO_SUFFIXES else path.name


def spread(entries: Sequence[T], count: int) -> list[T]:
    """At most `count` entries, evenly spaced."""
    count = min(count, len(entries))
    return [entries[number * len(entries) // count] for number in range(count)]


def _recordings(pairs: Pairs) -> list[str] | None:
    """The recording of each pair; None if they are unknown."""
    known = [pair.recording for pair in pairs if pair.recording is not None]
    if known and len(known) < len(pairs):
        missing = [pair.name for pair in pairs if pair.recording is None]
        raise EncoreError(
            f"--dataset_folder: the recording of {', '.join(missing[:3])} is unknown and that of other pairs is known; "
            "complete metadata.csv, or remove it"
        )
    return known or None


def partners_elsewhere(groups: Sequence[str], seed: int) -> list[int] | None:
    """For every item one of another group, drawn at random; None if there is only one group."""
    if len(set(groups)) < 2:
        return None
    draw = random.Random(seed)
    return [draw.choice([other for other, name in enumerate(groups) if name != group]) for group in groups]
