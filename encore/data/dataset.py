"""Pairs served as batches of latents and audio, in an order of their own in every epoch."""

from __future__ import annotations

import hashlib
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

    def __iter__(self) -> Iterator[Batch]:
        # At once, not with the first batch: it draws from the generator that a training step seeds.
        return map(_batch_of, iter(self.loader))


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
        order = torch.randperm(self.items, generator=generator)  # 8 MB and some 20 ms per million pairs
        for number in range(self.skip * self.accumulation, self.steps * self.accumulation):
            first = (number * self.world_size + self.rank) * self.batch_size
            yield order[first : first + self.batch_size].tolist()
