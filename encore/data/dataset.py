"""Pairs of a segment and the segment that follows it: found in a folder, checked, and served as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Pair:
    """An input file, the file of what follows it, and the length of each in samples."""

    input: Path
    output: Path
    samples: int


@DATASETS.register("pairs")
def find_pairs(folder: Path, sample_rate: int) -> dict[str, list[Pair]]:
    """The pairs of `folder/train` and `folder/val`, named `pair_*_input.wav` and `pair_*_output.wav`, in order.

    Files are checked as far as their headers go; `LatentCache.encode` checks the samples.

    Raises:
        EncoreError: no pairs in a split, or all problems of the files together, each with its remedy.
    """
    found: dict[str, list[Pair]] = {}
    problems: list[str] = []
    for split in SPLITS:
        inputs = sorted((folder / split).glob("pair_*_input.wav"))
        outputs = sorted((folder / split).glob("pair_*_output.wav"))
        if not inputs and not outputs:
            problems.append(
                f"{folder / split}: no pair_*_input.wav in it; python prepare_data.py MUSIC --output {folder}"
            )
        partners = {path.with_name(path.name.replace("_input.wav", "_output.wav")) for path in inputs}
        problems += [
            f"{path}: its input is missing; restore it or remove this file" for path in outputs if path not in partners
        ]
        pairs = (_check(path, sample_rate, problems) for path in inputs)
        found[split] = [pair for pair in pairs if pair is not None]
    if problems:
        raise EncoreError(listing(problems))
    return found


def _check(source: Path, sample_rate: int, problems: list[str]) -> Pair | None:
    target = source.with_name(source.name.replace("_input.wav", "_output.wav"))
    if not target.is_file():
        problems.append(f"{source}: its output {target.name} is missing; restore it or remove this file")
        return None
    lengths = []
    for path in (source, target):
        try:
            check_complete(path)
            header = soundfile.info(path)
        except (OSError, soundfile.SoundFileError) as error:
            problems.append(f"{path}: can't be read as audio ({error}); remove it with its partner")
            return None
        except EncoreError as error:
            problems.append(str(error))
            return None
        if header.samplerate != sample_rate:
            problems.append(
                f"{path}: {header.samplerate} Hz, but the codec works at {sample_rate} Hz; prepare_data.py resamples"
            )
            return None
        lengths.append(header.frames)
    if min(lengths) < SHORTEST_SECONDS * sample_rate:
        problems.append(
            f"{source if lengths[0] <= lengths[1] else target}: {min(lengths)} samples long; "
            f"at least {SHORTEST_SECONDS:g} s are needed, remove the pair"
        )
        return None
    if lengths[0] != lengths[1]:
        problems.append(
            f"{source}: {lengths[0]} samples, but {target.name} has {lengths[1]}; cut both to the same length"
        )
        return None
    return Pair(source, target, lengths[0])


def segment_frames(pairs: Mapping[str, list[Pair]], hop_length: int) -> int:
    """Latent frames that all pairs have: those of the shortest one."""
    return min(pair.samples for split in pairs.values() for pair in split) // hop_length


@dataclass(frozen=True)
class Batch:
    """What a step works on: latents `[B, D, T]` and audio `[B, C, T * hop_length]` of pairs, and their numbers."""

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
    """Pairs as tensors of one length, `frames` latent frames: the input's last ones and the output's first ones.

    With `unity`, the target is the input. With `shuffle_seed`, every input gets another pair's output, the same one
    every time.
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
        # The numbers and not the codec: a dataset travels to the loader's processes.
        self.sample_rate, self.channels, self.hop_length = codec.sample_rate, codec.channels, codec.hop_length
        self.frames, self.unity = frames, unity
        self.partner = list(range(len(pairs)))
        if shuffle_seed is not None:
            order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(shuffle_seed)).tolist()
            # A cycle through the shuffled order leaves nobody with his own target.
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
        # Whole frames only: the cache's last frame of a file that ends inside it holds padding.
        whole = audio.shape[-1] // self.hop_length
        first = whole - self.frames if from_end else 0
        last = first + self.frames
        return latents[:, first:last].float(), audio[:, first * self.hop_length : last * self.hop_length]


class EpochSampler(Sampler[list[int]]):
    """This rank's training batches: a new order every epoch, the same for a seed, disjoint over the ranks.

    A step takes `batch_size · world_size · accumulation` pairs; a rest too small for a step is left out, other pairs
    in every epoch.

    Raises:
        EncoreError: there are too few pairs for one step.
    """

    def __init__(self, items: int, batch_size: int, accumulation: int, rank: int, world_size: int, seed: int):
        self.items, self.batch_size, self.accumulation = items, batch_size, accumulation
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.steps = items // (batch_size * world_size * accumulation)
        if not self.steps:
            raise EncoreError(
                f"--batch_size {batch_size}: a step takes {batch_size * world_size * accumulation} pairs ({world_size} "
                f"ranks, --grad_accumulation {accumulation}), but there are only {items} training pairs; lower one"
            )
        self.epoch = self.skip = 0

    def start_at(self, epoch: int, step: int) -> None:
        """The next iteration gives the batches of `epoch` from step `step` on."""
        self.epoch, self.skip = epoch, step

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.items, generator=generator).tolist()
        for number in range(self.skip * self.accumulation, self.steps * self.accumulation):
            first = (number * self.world_size + self.rank) * self.batch_size
            yield order[first : first + self.batch_size]
