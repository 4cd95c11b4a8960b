"""The validation pairs of an evaluation: which there are, which recordings they come from, and their tensors."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from encore.codecs import Codec
from encore.data.dataset import Batch, Pair, PairDataset, collate, find_pairs, segment_frames
from encore.data.latent_cache import LatentCache
from encore.errors import EncoreError

T = TypeVar("T")

LEAST_SECONDS = 1.0  # of a pair: contours have one value per second


@dataclass(frozen=True)
class EvalSet:
    """Validation pairs, and training segments to search for copies.

    Attributes:
        val: the validation pairs.
        train: files of training segments.
        recordings: the recording of each validation pair; the name of the pair where it is unknown.
        recordings_known: whether the recordings are known.
        cache: latents of the codec.
        total: how many validation pairs the folder has.
        device: where batches go.
    """

    val: PairDataset
    train: list[Path]
    recordings: list[str]
    recordings_known: bool
    cache: LatentCache
    total: int
    device: torch.device

    @classmethod
    def open(
        cls,
        codec: Codec,
        folder: Path,
        cache_dir: Path | None,
        items: int | None,
        segments: int,
        device: torch.device,
    ) -> EvalSet:
        """Finds the pairs of `folder`, as training does, and encodes the files that are not in the cache yet.

        Args:
            items: how many validation pairs to take, spread evenly over all; None for all of them.
            segments: how many training segments, likewise.

        Raises:
            EncoreError: there are no pairs, fewer than two validation pairs, or they are too short.
        """
        pairs = find_pairs(folder, codec.sample_rate)
        frames, total = segment_frames(pairs, codec.hop_length), len(pairs["val"])
        if frames < LEAST_SECONDS * codec.frame_rate:
            raise EncoreError(
                f"--dataset_folder {folder}: the shortest pair has {frames / codec.frame_rate:.2f} s; evaluation needs "
                f"at least {LEAST_SECONDS:g} s, prepare longer pairs"
            )
        if total < 2:
            raise EncoreError(
                f"--dataset_folder {folder}: there is one validation pair, evaluation needs at least two; prepare more "
                "music"
            )
        val = spread(pairs["val"], total if items is None else items)
        train = spread([file for pair in pairs["train"] for file in (pair.input, pair.output)], segments)
        files = [file for pair in val for file in (pair.input, pair.output)] + train
        cache = LatentCache.open(cache_dir or folder / ".latents", codec.identity, files)
        for _ in cache.encode(cache.missing(files), codec, device):
            pass
        known = recordings(val, folder)
        names = known or [pair_name(pair) for pair in val]
        return cls(PairDataset(val, cache, codec, frames), train, names, known is not None, cache, total, device)

    def __len__(self) -> int:
        return len(self.val)

    @property
    def names(self) -> list[str]:
        """The names of the validation pairs."""
        return [pair_name(pair) for pair in self.val.pairs]

    def load(self, numbers: Iterable[int]) -> Batch:
        """The validation pairs of these numbers."""
        return collate([self.val[number] for number in numbers]).to(self.device)

    def one_of_each(self, count: int) -> list[int]:
        """The numbers of up to `count` pairs, each the first of a recording as long as there are recordings left."""
        order: dict[str, list[int]] = {}
        for number, recording in enumerate(self.recordings):
            order.setdefault(recording, []).append(number)
        rounds = max(map(len, order.values()))
        return [numbers[turn] for turn in range(rounds) for numbers in order.values() if turn < len(numbers)][:count]


def spread(entries: Sequence[T], count: int) -> list[T]:
    """At most `count` entries, evenly spaced."""
    count = min(count, len(entries))
    return [entries[number * len(entries) // count] for number in range(count)]


def pair_name(pair: Pair) -> str:
    return pair.input.name.removesuffix("_input.wav")


def recordings(pairs: Sequence[Pair], folder: Path) -> list[str] | None:
    """The recording that each pair was cut from, by `folder/metadata.csv`, which prepare_data.py writes.

    None if there is no such file.

    Raises:
        EncoreError: the file has no row for some pair.
    """
    path = folder / "metadata.csv"
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        missing = {"pair", "source_file", "split"} - set(rows.fieldnames or ())
        if missing:
            raise EncoreError(f"{path}: has no column {', '.join(sorted(missing))}; restore or remove it")
        sources = {(row["split"], row["pair"]): row["source_file"] for row in rows}
    names = [(pair.input.parent.name, pair_name(pair)) for pair in pairs]
    unknown = [f"{split}/{name}" for split, name in names if (split, name) not in sources]
    if unknown:
        raise EncoreError(
            f"{path}: has no row for {', '.join(unknown[:3])}; prepare the data again, or remove the file"
        )
    return [sources[name] for name in names]


def partners_elsewhere(groups: Sequence[str], seed: int) -> list[int] | None:
    """For every item one of another group, drawn at random; None if there is only one group."""
    if len(set(groups)) < 2:
        return None
    draw = random.Random(seed)
    return [draw.choice([other for other, name in enumerate(groups) if name != group]) for group in groups]
