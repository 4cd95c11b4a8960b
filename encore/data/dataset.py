"""Pairs served as batches of latents and audio, in an order of their own in every epoch."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from encore.codecs import Codec
from encore.data.latent_cache import LatentCache
from encore.data.pairs import PairFrames, Pairs
from encore.errors import EncoreError


@dataclass(frozen=True)
class Batch:
    """Pairs as tensors: contexts of F frames, and the T frames that follow them, T ≤ F.

    Attributes:
        context: latents of the inputs, `[B, D, F]`.
        input_audio: `[B, C, F * hop_length]`.
        target_audio: `[B, C, T * hop_length]`.
        target_latents: `[B, D, T]`.
        number: index of each pair in its data set, `[B]`.
    """

    context: Tensor
    input_audio: Tensor
    target_audio: Tensor
    target_latents: Tensor
    number: Tensor

    @property
    def input_end(self) -> Tensor:
        """The end of the inputs' audio, as long as the targets, `[B, C, T * hop_length]`."""
        return self.input_audio[..., -self.target_audio.shape[-1] :]

    def shifted(self, frames: int) -> Batch:
        """The same music with the boundary `frames` latent frames earlier.

        The contexts lose their last frames, with which the targets begin; the targets lose as many at their end.
        """
        if not frames:
            return self
        hop, length = self.input_audio.shape[-1] // self.context.shape[-1], self.target_latents.shape[-1]
        latents = torch.cat([self.context[..., -frames:], self.target_latents], -1)[..., :length]
        audio = torch.cat([self.input_audio[..., -frames * hop :], self.target_audio], -1)[..., : length * hop]
        return Batch(self.context[..., :-frames], self.input_audio[..., : -frames * hop], audio, latents, self.number)

    def to(self, device: torch.device) -> Batch:
        return Batch(*(part.to(device, non_blocking=True) for part in self._parts()))

    def pin_memory(self) -> Batch:
        return Batch(*(part.pin_memory() for part in self._parts()))

    def _parts(self) -> tuple[Tensor, ...]:
        return self.context, self.input_audio, self.target_audio, self.target_latents, self.number

    def __len__(self) -> int:
        return len(self.context)


def collate_or_error(items: Sequence[tuple[Tensor, ...]] | EncoreError) -> Batch | EncoreError:
    """`collate` of items, or the error that kept them from being read."""
    return items if isinstance(items, EncoreError) else collate(items)


def _batch_of(batch: Batch | EncoreError) -> Batch:
    if isinstance(batch, EncoreError):
        raise batch
    return batch


def collate(items: Sequence[tuple[Tensor, ...]]) -> Batch:
    return Batch(*(torch.stack(parts) for parts in zip(*items, strict=True)))


class PairDataset(Dataset[tuple[Tensor, ...]]):
    """Pairs as tensors of the same lengths: the last frames of each input and the first ones of each output.

    Args:
        pairs: to serve.
        cache: with the latents of all their segments.
        codec: gives sample rate, channels and hop length.
        frames: latent frames of each input and of each output.
        unity: make the target the input; both must have as many frames.
        shuffle_seed: give every input another pair's output, always the same one for a seed.
    """

    def __init__(
        self,
        pairs: Pairs,
        cache: LatentCache,
        codec: Codec,
        frames: PairFrames,
        unity: bool = False,
        shuffle_seed: int | None = None,
    ):
        self.pairs, self.cache = pairs, cache
        # Not the codec itself, as the data set is sent to the loader's processes.
        self.sample_rate, self.channels, self.hop_length = codec.sample_rate, codec.channels, codec.hop_length
        self.frames = frames
        self.sources, self.targets = pairs.inputs, pairs.inputs if unity else pairs.outputs
        if shuffle_seed is not None and not unity:
            order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(shuffle_seed)).numpy()
            # A cycle through the shuffled order gives no input its own target.
            self.targets = np.empty_like(pairs.outputs)
            self.targets[order] = pairs.outputs[np.roll(order, -1)]

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        source = self._load(int(self.sources[index]), self.frames.context, from_end=True)
        same = self.targets is self.sources
        target = source if same else self._load(int(self.targets[index]), self.frames.target, from_end=False)
        return source[0], source[1], target[1], target[0], torch.tensor(index)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, ...]] | EncoreError:
        """The items of a batch; an error is returned, for `BatchLoader` to raise it."""
        try:
            return [self[index] for index in indices]
        except EncoreError as error:
            return error

    @property
    def content_hash(self) -> str:
        """Hash of all that the items depend on, except for the codec; takes no file to be read."""
        contents = [self.cache.content_hash(numbers) for numbers in (self.sources, self.targets)]
        settings = *self.frames, self.hop_length, self.sample_rate, self.channels
        return hashlib.sha256(repr((contents, settings)).encode()).hexdigest()

    def _load(self, number: int, frames: int, from_end: bool) -> tuple[Tensor, Tensor]:
        latents = self.cache.load(number)
        audio = self.pairs.segments.read(number, self.sample_rate, self.channels)
        # Whole frames only: if a segment ends within a frame, the cached latents of that frame cover padding.
        whole = audio.shape[-1] // self.hop_length
        first = whole - frames if from_end else 0
        last = first + frames
        return latents[:, first:last].float(), audio[:, first * self.hop_length : last * self.hop_length]


class BatchLoader:
    """A `DataLoader` of batches, whose processes' errors arrive as they were raised.

    `DataLoader` itself wraps the traceback of the process into the message.
    """

    def __init__(self, data: PairDataset, batch_size: int = 1, **settings: Any):
        if "batch_sampler" not in settings:
            settings["batch_size"] = batch_size
        self.loader = DataLoader(data, collate_fn=collate_or_error, **settings)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        # At once, not with the first batch: it draws from the generator that a training step seeds.
        return map(_batch_of, iter(self.loader))


@dataclass(frozen=True)
class Division:
    """How the pairs of an optimiser step are divided among ranks, and a rank's among its batches: as evenly as can be.

    Attributes:
        pairs: of a step, over all ranks.
        ranks: number of ranks.
        batch_size: most pairs in a batch.
    """

    pairs: int
    ranks: int
    batch_size: int

    @classmethod
    def of(cls, ranks: int, batch_size: int, accumulation: int, global_batch_size: int | None) -> Division:
        """`batch_size · ranks · accumulation` pairs per step, or `global_batch_size` where that is given.

        Raises:
            EncoreError: `global_batch_size` leaves some rank without a pair for each of its batches.
        """
        division = cls(global_batch_size or batch_size * ranks * accumulation, ranks, batch_size)
        if division.pairs // ranks < division.accumulation:
            remedy = "" if division.pairs < ranks else f" a multiple of {ranks}, or --batch_size"
            least = ranks if division.pairs < ranks else 2
            raise EncoreError(
                f"--global_batch_size {division.pairs}: there are {ranks} ranks; it must be{remedy} at least {least}"
            )
        return division

    @property
    def accumulation(self) -> int:
        """Batches of a step, on every rank."""
        return math.ceil(math.ceil(self.pairs / self.ranks) / self.batch_size)

    def batches(self, rank: int) -> list[slice]:
        """The place of each of a rank's batches among the pairs of a step."""
        first, last = (self.pairs * number // self.ranks for number in (rank, rank + 1))
        bounds = [first + (last - first) * number // self.accumulation for number in range(self.accumulation + 1)]
        return [slice(*bound) for bound in itertools.pairwise(bounds)]


class EpochSampler(Sampler[list[int]]):
    """The training batches of one rank: disjoint between ranks, in a new order every epoch that the seed determines.

    The order does not depend on ranks or batches, so an epoch can be continued with others after any number of pairs.
    Pairs at its end that do not fill a step are left out, different ones in every epoch.

    Args:
        items: number of pairs.
        division: of a step's pairs.
        rank: of this process.
        seed: of the order.

    Raises:
        EncoreError: there are too few pairs for one step.
    """

    def __init__(self, items: int, division: Division, rank: int, seed: int):
        self.items, self.division, self.rank, self.seed = items, division, rank, seed
        if not self.steps(0):
            raise EncoreError(
                f"--batch_size {division.batch_size}: a step takes {division.pairs} pairs (ranks: {division.ranks}, "
                f"batches of each: {division.accumulation}), but there are only {items} training pairs; lower "
                "--batch_size, --grad_accumulation or --global_batch_size, or prepare more pairs"
            )
        self.epoch = self.done = 0

    def steps(self, done: int) -> int:
        """Steps that are left in an epoch of which `done` pairs have been used."""
        return max(0, self.items - done) // self.division.pairs

    def start_at(self, epoch: int, done: int) -> None:
        """Makes the next iteration yield the batches of `epoch` that follow its first `done` pairs."""
        self.epoch, self.done = epoch, done

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.items, generator=generator)  # 8 MB and some 20 ms per million pairs
        batches, pairs = self.division.batches(self.rank), self.division.pairs
        for step in range(self.steps(self.done)):
            first = self.done + step * pairs
            for batch in batches:
                yield order[first : first + pairs][batch].tolist()
