"""The training and validation pairs of a run: found, encoded by all ranks together, and served in batches."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from encore.codecs import Codec
from encore.config.schema import OptimConfig, TrainConfig
from encore.data import PairFrames, Pairs, find_pairs, segment_frames
from encore.data.dataset import BatchLoader, Division, EpochSampler, PairDataset
from encore.data.index_files import Bytes, Numbers
from encore.data.latent_cache import LatentCache
from encore.data.latent_statistics import LatentStatistics
from encore.data.pairs import SPLITS
from encore.errors import EncoreError, RestartError
from encore.training.checkpoint import Progress
from encore.training.console import TrainConsole
from encore.training.distributed import Ranks
from encore.training.rounds import in_rounds

HASHED_AT_ONCE = 256  # files


@contextmanager
def lost_readers() -> Iterator[None]:
    """A loader's process that has been killed becomes a RestartError; PyTorch reports it from anywhere in this one."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise RestartError(
            f"a process that reads the pairs was killed, often for want of memory ({error}); lower --num_workers or "
            "--batch_size if it happens again, and go on with --resume auto"
        ) from error


class PairData:
    """The pairs of a data set. Batches can be had once `encode` has been called.

    Attributes:
        frames: latent frames of every input and of every output.
        train, val: the pairs as tensors.
        sampler: this rank's training batches.
        train_loader, val_loader: this rank's batches.
    """

    train: PairDataset
    val: PairDataset
    sampler: EpochSampler
    train_loader: BatchLoader
    val_loader: BatchLoader

    def __init__(self, pairs: Mapping[str, Pairs], codec: Codec, config: TrainConfig):
        self.pairs, self.codec, self.config = pairs, codec, config
        self.segments = pairs["train"].segments
        self.frames = segment_frames(pairs, codec.hop_length)
        if config.data.unity_test:  # the target is the input's end
            self.frames = PairFrames(self.frames.target, self.frames.target)
        piece = codec.segment_frames
        if piece is not None and self.frames.context % piece:
            raise EncoreError(
                f"--dataset_folder {config.data.dataset_folder}: inputs of {self.frames.context / codec.frame_rate:g} "
                f"s, but {config.codec.name} works on segments of {piece / codec.frame_rate:g} s; prepare inputs "
                "(--context_seconds) of a multiple of that"
            )

    @classmethod
    def open(cls, config: TrainConfig, codec: Codec) -> PairData:
        """Finds the pairs of `config.data` and checks their files' headers. Those for `test` are left alone.

        Raises:
            EncoreError: no such data set format, no pairs, all problems of the files together, or inputs that the codec
                cannot be given.
        """
        data = config.data
        assert data.dataset_folder is not None
        pairs = find_pairs(data.dataset_folder, codec.sample_rate, data.dataset_format, data.latent_folder)
        return cls({split: pairs[split] for split in SPLITS}, codec, config)

    def encode(self, ranks: Ranks, console: TrainConsole) -> None:
        """Encodes what the latent cache lacks, each rank its share, and prepares the batches.

        Raises:
            EncoreError: the cache's folder or some of the files cannot be used, or there are too few pairs for a step.
        """
        folder = self.config.data.latent_folder
        numbers = np.unique(np.concatenate([pairs.numbers for pairs in self.pairs.values()]))
        with ranks.agree():
            self.cache = LatentCache.open(folder, self.codec, self.segments)
        self._hash(numbers, ranks, console)
        missing = ranks.broadcast_from_main(lambda: self.cache.missing(numbers))
        share = missing[ranks.rank :: ranks.world_size]
        with console.task("encoding", len(share)) as advance:
            in_rounds(self.cache.encode(share, self.codec, ranks.device), ranks, advance)
        with ranks.agree():
            if len(missing):
                self.cache.refresh()
            if absent := len(self.cache.missing(numbers)):
                raise EncoreError(
                    f"--cache_dir {folder}: rank {ranks.rank} lacks the latents of {absent} files; all ranks must see "
                    "the same folder, and nothing may delete from it"
                )
            if ranks.is_main:
                self.cache.save_index()
        for note in sorted({note for notes in ranks.gather(self.cache.notes) for note in notes}):
            console.print(f"{note}; its music has been encoded again", style="yellow")
        console.print(
            f"{len(self.pairs['train'])} training and {len(self.pairs['val'])} validation pairs of {self._lengths}, "
            f"{len(missing)} of {len(numbers)} files newly encoded"
        )
        with ranks.agree():
            self._prepare_batches(ranks)

    def samples_left(self, optim: OptimConfig, progress: Progress) -> int:
        """Pairs that training is still going to use, on all ranks together."""
        epochs = optim.epochs - progress.epoch
        steps = self.sampler.steps(progress.epoch_samples) + (epochs - 1) * self.sampler.steps(0) if epochs > 0 else 0
        if optim.max_steps is not None:
            steps = min(steps, max(0, optim.max_steps - progress.step))
        return steps * self.sampler.division.pairs

    @property
    def most_shift(self) -> int:
        """Most frames that training moves the boundary between contexts and targets back by.

        At most a target's length and a quarter of the context, and a context stays at least as long as its target. 0
        for inputs as long as outputs, as in a unity test, and for shuffled targets, which would begin with their input.
        """
        context, target = self.frames
        return 0 if self.config.data.shuffle_targets else min(target, context // 4, context - target)

    @property
    def _lengths(self) -> str:
        context, target = (frames / self.codec.frame_rate for frames in self.frames)
        return f"{target:.2f} s" if context == target else f"{context:.2f} s and the {target:.2f} s after them"

    def _hash(self, numbers: Numbers, ranks: Ranks, console: TrainConsole) -> None:
        """Hashes the contents of new segments, each rank its share, and stores what is known after each round."""
        new, found = self.segments.unhashed(numbers), list[tuple[Numbers, Bytes]]()
        share = new[ranks.rank :: ranks.world_size]
        blocks = np.array_split(share, -(-len(share) // HASHED_AT_ONCE)) if len(share) else []

        def share_results() -> None:
            for one, digests in itertools.chain(*ranks.gather(found)):
                self.segments.note(one, digests)
            found.clear()
            with ranks.agree():
                if ranks.is_main:
                    self.segments.remember(self.config.data.latent_folder)

        def hash_blocks() -> Generator[None, None, None]:
            for block in blocks:
                found.append((block, self.segments.hash(block)))
                yield

        with console.task("hashing", len(blocks)) as advance:
            in_rounds(hash_blocks(), ranks, advance, share_results)
        self.cache.know(new, self.segments.digests[new])

    def _prepare_batches(self, ranks: Ranks) -> None:
        data, seed = self.config.data, self.config.run.seed
        settings: dict[str, Any] = {
            "cache": self.cache,
            "codec": self.codec,
            "frames": self.frames,
            "unity": data.unity_test,
            "shuffle_seed": seed if data.shuffle_targets else None,
        }
        self.train = PairDataset(self.pairs["train"], **settings)
        self.val = PairDataset(self.pairs["val"], **settings)
        accumulation = self.config.optim.grad_accumulation
        division = Division.of(ranks.world_size, data.batch_size, accumulation, data.global_batch_size)
        self.sampler = EpochSampler(len(self.train), division, ranks.rank, seed)
        loader = partial(BatchLoader, num_workers=data.num_workers, pin_memory=ranks.has_gpu)
        own = range(ranks.rank, len(self.val), ranks.world_size)
        self.train_loader = loader(self.train, batch_sampler=self.sampler, persistent_workers=data.num_workers > 0)
        self.val_loader = loader(self.val, data.batch_size, sampler=own)

    def statistics(self, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each latent channel over the training inputs, `[D]` each.

        They are read from the cache's folder, or measured by all ranks together.
        """
        measured = LatentStatistics(self.cache, self.pairs["train"].inputs)
        known = ranks.broadcast_from_main(measured.stored)
        if known is not None:
            return known
        with ranks.agree():
            sums = measured.sums(ranks.rank, ranks.world_size)
        mean, deviation = measured.of_sums(ranks.sum(sums.to(ranks.device)).cpu())
        with ranks.agree():
            if ranks.is_main:
                measured.store(mean, deviation)
        return mean, deviation
