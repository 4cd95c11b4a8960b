"""Pairs of segments: what `find_pairs` finds in a data set of any format, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, overload

import numpy as np
from torch import Tensor

from encore.audio import SHORTEST_SECONDS
from encore.config.schema import latents_of
from encore.data.index_files import Numbers
from encore.data.segments import ABSENT, AudioFiles, Segments
from encore.errors import EncoreError, listing
from encore.registry import DATASETS

T = TypeVar("T", covariant=True)

SPLITS = ("train", "val")  # of which a data set must have pairs
TEST = "test"  # of which it may have some, which training never reads

register_dataset = DATASETS.register


@dataclass(frozen=True)
class Pair:
    """An input and what follows it.

    Attributes:
        name: in tables and reports.
        input: audio file, or where in a shard it is.
        output: what follows, as long as the input or shorter.
        recording: the recording that both are cut from, if it is known. Evaluation takes pairs of one recording as
            dependent.
        samples: length of the output; `find_pairs` sets it.
    """

    name: str
    input: Path
    output: Path
    recording: str | None = None
    samples: int = 0


class Column(Protocol[T]):
    """A value of each pair, by its index."""

    def __getitem__(self, index: int, /) -> T: ...


class Pairs(Sequence[Pair]):
    """The pairs of one split. A million of them are a few arrays: a `Pair` is made when it is asked for.

    Args:
        segments: of the data set, which may be shared by several splits.
        inputs: number of each pair's input among the segments, `[P]`.
        outputs: likewise.
        names: of the pairs.
        recordings: of the pairs, None where it is unknown.
    """

    def __init__(
        self,
        segments: Segments,
        inputs: Numbers,
        outputs: Numbers,
        names: Column[str],
        recordings: Column[str | None],
    ):
        self.segments, self.inputs, self.outputs = segments, inputs, outputs
        self.names, self.recordings = names, recordings

    def __len__(self) -> int:
        return len(self.inputs)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | Sequence[Pair]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        source, target = (int(numbers[index]) for numbers in (self.inputs, self.outputs))
        place = self.segments.place
        samples = int(self.segments.samples[target])
        return Pair(self.names[index], place(source), place(target), self.recordings[index], samples)

    @property
    def samples(self) -> Numbers:
        """Length of each pair's output in samples, `[P]`; its input is at least as long."""
        return self.segments.samples[self.outputs]

    @property
    def numbers(self) -> Numbers:
        """Numbers of all segments, the input and the output of one pair after the other, `[2 P]`."""
        return np.stack([self.inputs, self.outputs], 1).ravel()

    def audio(self, index: int, sample_rate: int, channels: int) -> tuple[Tensor, Tensor]:
        """Input and output of a pair as float32 `[channels, N]`.

        Raises:
            EncoreError: they cannot be read.
        """
        source, target = (
            self.segments.read(int(numbers[index]), sample_rate, channels) for numbers in (self.inputs, self.outputs)
        )
        return source, target

    def take(self, indices: Sequence[int]) -> Pairs:
        """Some of the pairs."""
        chosen = np.asarray(indices, np.int64)
        names, recordings = [self.names[index] for index in indices], [self.recordings[index] for index in indices]
        return Pairs(self.segments, self.inputs[chosen], self.outputs[chosen], names, recordings)


Found = Mapping[str, Sequence[Pair]]
Finder = Callable[[Path, int], Found]


def find_pairs(
    folder: Path, sample_rate: int, dataset_format: str = "pairs", cache_dir: Path | None = None
) -> dict[str, Pairs]:
    """The pairs of a data set by split, checked: "train", "val", and "test" if it has pairs of that.

    Args:
        folder: of the data set, or a manifest (manifest.py).
        sample_rate: Hz, which all files must have.
        dataset_format: registered name. A format of your own is a function
            `find_pairs(folder, sample_rate) -> dict[str, list[Pair]]` with the decorator `register_dataset`.
        cache_dir: folder with what earlier runs found out about the files; None for `.latents` in it or
            beside the manifest.

    Raises:
        EncoreError: no such format, no pairs in a split, or all problems of the files together, each with its remedy.
    """
    found = DATASETS.find(dataset_format)(folder, sample_rate)
    return check_pairs(_as_arrays(folder, found), sample_rate, cache_dir or latents_of(folder))


def check_pairs(found: Mapping[str, Pairs], sample_rate: int, cache_dir: Path) -> dict[str, Pairs]:
    """Checks the headers of all segments; samples are checked when `LatentCache.encode` reads them.

    Raises:
        EncoreError: no pairs in a split, or all problems of the segments together, each with its remedy.
    """
    empty = [f"the data set has no pairs for {split}; add some" for split in SPLITS if not len(found.get(split, ()))]
    if empty:
        raise EncoreError(listing(empty))
    unusable: dict[int, dict[int, str]] = {}
    for pairs in found.values():
        if id(pairs.segments) not in unusable:
            unusable[id(pairs.segments)] = pairs.segments.check(sample_rate, cache_dir)
    problems = [
        problem for pairs in found.values() for problem in _problems(pairs, unusable[id(pairs.segments)], sample_rate)
    ]
    if problems:
        raise EncoreError(listing(problems))
    return dict(found)


def _problems(pairs: Pairs, unusable: Mapping[int, str], sample_rate: int) -> Iterable[str]:
    """One problem of each pair that cannot be used."""
    lengths = pairs.segments.samples[pairs.numbers].reshape(-1, 2)
    shortest = SHORTEST_SECONDS * sample_rate
    bad = (lengths[:, 0] < lengths[:, 1]) | (lengths.min(1) < shortest)
    bad |= np.isin(pairs.numbers, list(unusable)).reshape(-1, 2).any(1)
    for index in np.flatnonzero(bad).tolist():
        pair, (before, after) = pairs[index], lengths[index].tolist()
        known = [unusable[int(column[index])] for column in (pairs.inputs, pairs.outputs) if column[index] in unusable]
        if before == after == ABSENT:
            yield f"{pair.input}: no such file, and its output is missing too; leave the pair out"
        elif before == ABSENT:
            yield f"{pair.output}: its input is missing; restore it or remove this file"
        elif after == ABSENT:
            yield f"{pair.input}: its output {pair.output.name} is missing; restore it or remove this file"
        elif known:
            yield known[0]
        elif min(before, after) < shortest:
            yield (
                f"{pair.input if before <= after else pair.output}: {min(before, after)} samples long; "
                f"at least {SHORTEST_SECONDS:g} s are needed, remove the pair"
            )
        else:
            yield (
                f"{pair.input}: {before} samples, but {pair.output.name} has {after}; an input must be as long as its "
                "output, or longer"
            )


def _as_arrays(folder: Path, found: Found) -> dict[str, Pairs]:
    """Pairs that a format gives as lists of `Pair`, as `Pairs`."""
    lists = {split: pairs for split, pairs in found.items() if not isinstance(pairs, Pairs)}
    paths = [path for pairs in lists.values() for pair in pairs for path in (pair.input, pair.output)]
    segments, result, first = AudioFiles.of_paths(folder, paths), dict[str, Pairs](), 0
    for split, pairs in found.items():
        if isinstance(pairs, Pairs):
            result[split] = pairs
            continue
        inputs = np.arange(first, first + 2 * len(pairs), 2)
        first += 2 * len(pairs)
        result[split] = Pairs(segments, inputs, inputs + 1, [p.name for p in pairs], [p.recording for p in pairs])
    return result


class PairFrames(NamedTuple):
    """Latent frames of the inputs of a data set, and of its outputs, which are as long or shorter."""

    context: int
    target: int


def segment_frames(pairs: Mapping[str, Pairs], hop_length: int) -> PairFrames:
    """Whole latent frames of the shortest input and of the shortest output; all pairs are cut to these."""
    inputs = min(int(split.segments.samples[split.inputs].min()) for split in pairs.values())
    outputs = min(int(split.samples.min()) for split in pairs.values())
    return PairFrames(inputs // hop_length, outputs // hop_length)
