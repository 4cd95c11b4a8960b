"""The held-out pairs that an evaluation is about: which there are, of which recordings, and as tensors."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from encore.codecs import Codec
from encore.data.dataset import Pair, PairDataset, collate, find_pairs, segment_frames
from encore.data.latent_cache import LatentCache
from encore.errors import EncoreError

T = TypeVar("T")

LEAST_SECONDS = 1.0  # of a pair: the measures go second by second


@dataclass(frozen=True)
class Clips:
    """Pairs to continue.

    Attributes:
        numbers: their places in the set that they come from; what is drawn for a pair follows from its number.
        context: latents of the inputs, `[B, D, T]`.
        input: their audio, `[B, C, T * hop_length]`.
        truth: the audio that really follows, `[B, C, T * hop_length]`.
        truth_latents: its latents, `[B, D, T]`.
        frames: how many latent frames a continuation has.
    """

    numbers: tuple[int, ...]
    context: Tensor
    input: Tensor
    truth: Tensor
    truth_latents: Tensor
    frames: int

    def __len__(self) -> int:
        return len(self.numbers)


def load_clips(pairs: PairDataset, numbers: Sequence[int], device: torch.device, frames: int | None = None) -> Clips:
    """The pairs of these numbers, to be continued by `frames` latent frames (default: as many as the inputs have)."""
    batch = collate([pairs[number] for number in numbers]).to(device)
    length = batch.context.shape[-1] if frames is None else frames
    return Clips(tuple(numbers), batch.context, batch.input_audio, batch.target_audio, batch.target_latents, length)


@dataclass(frozen=True)
class HeldOut:
    """Validation pairs, and training segments that they are held out from.

    Attributes:
        val: the validation pairs.
        train: files of training segments.
        recordings: the recording of each validation pair; its own name where that isn't known.
        known: whether it is.
        cache: latents of the codec.
        everything: how many validation pairs the folder has.
    """

    val: PairDataset
    train: list[Path]
    recordings: list[str]
    known: bool
    cache: LatentCache
    everything: int

    def one_of_each(self, count: int) -> list[int]:
        """The numbers of up to `count` pairs, each the first of a recording as long as there are recordings left."""
        order: dict[str, list[int]] = {}
        for number, recording in enumerate(self.recordings):
            order.setdefault(recording, []).append(number)
        rounds = max(map(len, order.values()))
        return [numbers[turn] for turn in range(rounds) for numbers in order.values() if turn < len(numbers)][:count]


def open_held_out(
    codec: Codec, folder: Path, cache_dir: Path | None, items: int | None, segments: int, device: torch.device
) -> HeldOut:
    """Finds the pairs of `folder`, as training does, and encodes what of the files that are needed is not yet.

    Args:
        items: how many validation pairs to take, spread evenly over all; None for all of them.
        segments: how many training segments, likewise.

    Raises:
        EncoreError: no pairs, fewer than two to validate by, or too short ones.
    """
    pairs = find_pairs(folder, codec.sample_rate)
    frames, everything = segment_frames(pairs, codec.hop_length), len(pairs["val"])
    if frames < LEAST_SECONDS * codec.frame_rate:
        raise EncoreError(
            f"--dataset_folder {folder}: the shortest pair has {frames / codec.frame_rate:.2f} s; at least "
            f"{LEAST_SECONDS:g} s are needed to judge a continuation, prepare longer ones"
        )
    if everything < 2:
        raise EncoreError(f"--dataset_folder {folder}: one validation pair is too few to judge by; prepare more music")
    val = spread(pairs["val"], everything if items is None else items)
    train = spread([file for pair in pairs["train"] for file in (pair.input, pair.output)], segments)
    files = [file for pair in val for file in (pair.input, pair.output)] + train
    cache = LatentCache.open(cache_dir or folder / ".latents", codec.identity, files)
    for _ in cache.encode(cache.missing(files), codec, device):
        pass
    known = recordings(val, folder)
    names = known or [pair.input.name.removesuffix("_input.wav") for pair in val]
    return HeldOut(PairDataset(val, cache, codec, frames), train, names, known is not None, cache, everything)


def spread(entries: Sequence[T], count: int) -> list[T]:
    """At most `count` entries, evenly spaced."""
    count = min(count, len(entries))
    return [entries[number * len(entries) // count] for number in range(count)]


def recordings(pairs: Sequence[Pair], folder: Path) -> list[str] | None:
    """The recording that each pair was cut from, by `folder/metadata.csv`, which prepare_data.py writes.

    None if there is no such file.

    Raises:
        EncoreError: the file says nothing of some pair.
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
    names = [(pair.input.parent.name, pair.input.name.removesuffix("_input.wav")) for pair in pairs]
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
