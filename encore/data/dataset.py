"""Pairs of a segment and the segment that follows it: checked, and served as batches of latents and audio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from encore.audio import SHORTEST_SECONDS, check_complete, read_audio
from encore.codecs import Codec
from encore.data.latent_cache import LatentCache
from encore.errors import EncoreError, listing
from encore.registry import DATASETS

SPLITS = ("train", "val")

register_dataset = DATASETS.register


@dataclass(frozen=True)
class Pair:
    """An input file and the file of what follows it.

    Attributes:
        name: in tables and reports.
        input: audio file.
        output: audio file of the same length.
        recording: the recording that both are cut from, if it is known. Evaluation takes pairs of one recording as
            dependent.
        samples: length of each; `check_pairs` sets it.
    """

    name: str
    input: Path
    output: Path
    recording: str | None = None
    samples: int = 0


def find_pairs(folder: Path, sample_rate: int, dataset_format: str = "pairs") -> dict[str, list[Pair]]:
    """The pairs of a data set by split, "train" and "val".

    Args:
        folder: of the data set.
        sample_rate: Hz, which all files must have.
        dataset_format: registered name. A format of your own is a function
            `find_pairs(folder, sample_rate) -> dict[str, list[Pair]]` with the decorator `register_dataset`.

    Raises:
        EncoreError: no such format, no pairs in a split, or files that cannot be used.
    """
    return DATASETS.find(dataset_format)(folder, sample_rate)


def check_pairs(
    found: Mapping[str, Sequence[Pair]], sample_rate: int, problems: Sequence[str] = ()
) -> dict[str, list[Pair]]:
    """Checks the headers of all files and sets the lengths; samples are checked when `LatentCache.encode` reads them.

    Args:
        found: pairs by split.
        sample_rate: Hz, which all files must have.
        problems: that were found already.

    Raises:
        EncoreError: no pairs in a split, or all problems of the files together, each with its remedy.
    """
    problems, checked = list(problems), dict[str, list[Pair]]()
    if not problems:
        problems = [f"the data set has no pairs for {split}; add some" for split in SPLITS if not found.get(split)]
    for split, pairs in found.items():
        checked[split] = []
        for pair in pairs:
            try:
                checked[split].append(replace(pair, samples=_common_length(pair, sample_rate)))
            except EncoreError as error:
                problems.append(str(error))
    if problems:
        raise EncoreError(listing(problems))
    return checked


def _common_length(pair: Pair, sample_rate: int) -> int:
    """The length of both files in samples; raises EncoreError if they cannot be used."""
    source, target = pair.input, pair.output
    if source.is_file() and not target.is_file():
        raise EncoreError(f"{source}: its output {target.name} is missing; restore it or remove this file")
    lengths = []
    for path in (source, target):
        try:
            check_complete(path)
            header = soundfile.info(path)
        except (OSError, soundfile.SoundFileError) as error:
            raise EncoreError(f"{path}: cannot be read as audio ({error}); remove it with its partner") from error
        if header.samplerate != sample_rate:
            raise EncoreError(
                f"{path}: {header.samplerate} Hz, but the codec works at {sample_rate} Hz; prepare_data.py resamples"
            )
        lengths.append(header.frames)
    if min(lengths) < SHORTEST_SECONDS * sample_rate:
        raise EncoreError(
            f"{source if lengths[0] <= lengths[1] else target}: {min(lengths)} samples long; "
            f"at least {SHORTEST_SECONDS:g} s are needed, remove the pair"
        )
    if lengths[0] != lengths[1]:
        raise EncoreError(
            f"{source}: {lengths[0]} samples, but {target.name} has {lengths[1]}; cut both to the same length"
        )
    return lengths[0]


def segment_frames(pairs: Mapping[str, Sequence[Pair]], hop_length: int) -> int:
    """Whole latent frames of the shortest pair."""
    return min(pair.samples for split in pairs.values() for pair in split) // hop_length


@dataclass(frozen=True)
class Batch:
    """Pairs as tensors.

    Attributes:
        context: latents of the inputs, `[B, D, T]`.
        input_audio: `[B, C, T * hop_length]`.
        target_audio: `[B, C, T * hop_length]`.
        target_latents: `[B, D, T]`.
        number: index of each pair in its data set, `[B]`.
    """

    context: Tensor
    input_audio: Tensor
    target_audio: Tensor
    target_latents: Tensor
    number: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(part.to(device, non_blocking=True) for part in self._parts()))

    def pin_memory(self) -> Batch:
        return Batch(*(part.pin_memory() for part in self._parts()))

    def _parts(self) -> tuple[Tensor, ...]:
        return self.context, self.input_audio, self.target_audio, self.target_latents, self.number

    def __len__(self) -> int:
        return len(self.context)


def collate(items: Sequence[tuple[Tensor, ...]]) -> Batch:
    return Batch(*(torch.stack(parts) for parts in zip(*items, strict=True)))


class PairDataset(Dataset[tuple[Tensor, ...]]):
    """Pairs as tensors of one length: the last frames of each input and the first ones of each output.

    Args:
        pairs: to serve.
        cache: with the latents of all their files.
        codec: gives sample rate, channels and hop length.
        frames: latent frames of each segment.
        unity: make the target the input.
        shuffle_seed: give every input another pair's output, always the same one for a seed.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        cache: LatentCache,
        codec: Codec,
        frames: int,
        unity: bool = False,
        shuffle_seed: int | None = None,
    ):
        self.pairs, self.cache = pairs, cache
        # Not the codec itself, as the data set is sent to the loader's processes.
        self.sample_rate, self.channels, self.hop_length = codec.sample_rate, codec.channels, codec.hop_length
        self.frames, self.unity = frames, unity
        self.partner = list(range(len(pairs)))
        if shuffle_seed is not None:
            order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(shuffle_seed)).tolist()
            # A cycle through the shuffled order gives no input its own target.
            for here, there in zip(order, order[1:] + order[:1], strict=True):
                self.partner[here] = there

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        source = self._load(self.pairs[index].input, from_end=True)
        target = source if self.unity else self._load(self.pairs[self.partner[index]].output, from_end=False)
        return source[0], source[1], target[1], target[0], torch.tensor(index)

    def _load(self, path: Path, from_end: bool) -> tuple[Tensor, Tensor]:
        latents = self.cache.load(path)
        audio = read_audio(path, self.sample_rate, self.channels)
        # Whole frames only: if a file ends within a frame, the cached latents of that frame cover padding.
        whole = audio.shape[-1] // self.hop_length
        first = whole - self.frames if from_end else 0
        last = first + self.frames
        return latents[:, first:last].float(), audio[:, first * self.hop_length : last * self.hop_length]


class EpochSampler(Sampler[list[int]]):
    """The training batches of one rank: disjoint between ranks, in a new order every epoch that the seed determines.

    A step takes `batch_size · world_size · accumulation` pairs. Pairs that do not fill a step are left out, different
    ones in every epoch.

    Args:
        items: number of pairs.
        batch_size: pairs per batch.
        accumulation: batches per step.
        rank: of this process.
        world_size: number of processes.
        seed: of the order.

    Raises:
        EncoreError: there are too few pairs for one step.
    """

    def __init__(self, items: int, batch_size: int, accumulation: int, rank: int, world_size: int, seed: int):
        self.items, self.batch_size, self.accumulation = items, batch_size, accumulation
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.steps = items // (batch_size * world_size * accumulation)
        if not self.steps:
            raise EncoreError(
                f"--batch_size {batch_size}: a step takes {batch_size * world_size * accumulation} pairs (ranks: "
                f"{world_size}, --grad_accumulation {accumulation}), but there are only {items} training pairs; lower "
                "one of them, or prepare more pairs"
            )
        self.epoch = self.skip = 0

    def start_at(self, epoch: int, step: int) -> None:
        """Makes the next iteration yield the batches of `epoch` from step `step` on."""
        self.epoch, self.skip = epoch, step

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.items, generator=generator).tolist()
        for number in range(self.skip * self.accumulation, self.steps * self.accumulation):
            first = (number * self.world_size + self.rank) * self.batch_size
            yield order[first : first + self.batch_size]
