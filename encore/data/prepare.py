"""Cuts a folder of music into pairs: an input and the output that follows it, 16 bits, of one sample rate.

With inputs of C seconds, outputs of T and a hop of H, pair k of a file has the seconds `[kH, kH + C)` as its input and
`[kH + C, kH + C + T)` as its output, for every k for which both are complete. By default H is T: all of a file is an
output once, except for its first C seconds.

Several processes read and cut the files; what is finished lies in a hidden folder (staging.py), from which the same
command goes on if it was stopped. When all are done, the usable files are divided into train, val and test
(division.py), altered copies of those for train are cut likewise, and the pairs are numbered; the folder is renamed
last. Numbers and split therefore depend only on the files and the seed, and there is never a partial data set.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from encore.audio import SHORTEST_SECONDS, find_audio_files
from encore.config.knobs import problems_of
from encore.data.augmentation import draw_alteration
from encore.data.cutting import Cut, SegmentConfig, Source
from encore.data.division import Division, TooFewSources, numbered, split_sources
from encore.data.folders import COLUMNS
from encore.data.staging import MusicFile, Progress, Staging
from encore.data.to_shards import ShardedPairs
from encore.data.to_wavs import WavPairs
from encore.errors import EncoreError

# Settings that cutting does not depend on.
DIVISION = ("val_fraction", "test_fraction", "val_group", "augment", "seed")


@dataclass(frozen=True)
class SplitSummary:
    """Size of a split.

    Attributes:
        files: that give pairs.
        pairs: in all.
        altered: pairs among these that were cut from altered copies.
        minutes: of audio in these pairs, each second counted once.
    """

    files: int
    pairs: int
    altered: int
    minutes: float


@dataclass(frozen=True)
class PrepareReport:
    """The outcome for a folder of music, by split and by file."""

    splits: dict[str, SplitSummary]
    sources: list[Source]


def prepare(music: Path, output: Path, config: SegmentConfig, workers: int, progress: Progress) -> PrepareReport:
    """Makes `output/{train,val,test}/pair_0000_{input,output}.wav`, or shards, and `output/metadata.csv`.

    Args:
        music: folder with wav, flac, ogg and mp3 files, at any depth, of any sample rate and number of channels.
        output: a folder that does not exist yet or is empty.
        config: how files are cut.
        workers: processes that read and cut files; 0: this one does it.
        progress: shows a progress bar.

    Raises:
        EncoreError: invalid settings, no audio files or too few usable ones, or an output folder that is not empty or
            cannot be written.
    """
    if problems := folder_problems(music, output) + (problems_of(config) or length_problems(config)):
        raise EncoreError("\n".join(problems))
    files = [MusicFile.of(path, music) for path in find_audio_files(music)]
    settings = asdict(config)
    division = {name: settings.pop(name) for name in DIVISION}
    staging = Staging(output, settings, division, files)
    writer = (ShardedPairs if config.shards else WavPairs)(staging, config)
    try:
        with staging.open():
            report = _prepare(files, writer, staging.data, config, workers, progress)
            staging.finish()
    except TooFewSources:
        staging.discard()
        raise
    except OSError as error:
        raise EncoreError(
            f"--output {output}: cannot be written ({error}); name another folder or free disk space"
        ) from error
    return report


def _prepare(
    files: Sequence[MusicFile],
    writer: WavPairs | ShardedPairs,
    data: Path,
    config: SegmentConfig,
    workers: int,
    progress: Progress,
) -> PrepareReport:
    """Cuts all files, divides them, cuts altered copies of those for train, and completes the data set in `data`."""
    jobs = [Cut(file.path, file.name, file.key) for file in files]
    sources = writer.cut(jobs, workers, progress)
    division = split_sources(sources, config)
    copies = altered_copies(jobs, sources, division["train"], config)
    if copies:
        division["train"] += range(len(jobs), len(jobs) + len(copies))
        sources, jobs = sources + writer.cut(copies, workers, progress), jobs + copies
    writer.finish(jobs, sources, division)
    _write_metadata(data / "metadata.csv", division, sources, config)
    return _report(division, sources, config)


def folder_problems(music: Path, output: Path) -> list[str]:
    """What keeps `output` from being made of `music`, a line each."""
    if output.exists() and not output.is_dir():
        return [f"--output {output}: is a file; name a folder"]
    if output.is_dir() and any(output.iterdir()):
        return [f"--output {output}: already holds files; name another folder, or delete this one first"]
    if output.resolve().is_relative_to(music.resolve()):
        return [
            f"--output {output}: lies inside the music folder {music}, so that the next run would read the pairs as "
            "music; name a folder outside"
        ]
    return []


def length_problems(config: SegmentConfig) -> list[str]:
    """What of the settings does not go together, a line each."""
    if config.val_fraction + config.test_fraction >= 1:
        return [f"--test_fraction {config.test_fraction}: with --val_fraction it leaves nothing to train on"]
    lengths = config.context_seconds, config.segment_seconds
    if config.context_seconds < config.segment_seconds:
        return [
            "--context_seconds {:g} --segment_seconds {:g}: an input must be as long as its output".format(*lengths)
        ]
    piece = config.piece_samples / config.sample_rate
    if config.shards and piece < SHORTEST_SECONDS:
        return [
            "--shards: {:g} s of context and outputs of {:g} s have no common part of at least {:g} s, of which shards "
            "could consist; make them multiples of one another".format(*lengths, SHORTEST_SECONDS)
        ]
    return []


def altered_copies(
    jobs: Sequence[Cut], sources: Sequence[Source], train: Sequence[int], config: SegmentConfig
) -> list[Cut]:
    """What `--augment` cuts: copies of the training files, each drawn from the seed, its number and the audio."""
    copies, places = [], {sources[index].name: index for index in train}
    for index in train:
        job, others = jobs[index], [name for name in places if name != sources[index].name]
        for copy in range(1, config.augment + 1):
            generator = np.random.default_rng([config.seed, copy, int(sources[index].content[:16], 16)])
            alteration = draw_alteration(generator, others)
            mixed = [jobs[places[alteration.other]]] if alteration.other else []
            drawn = repr((job.key, copy, alteration, [other.key for other in mixed]))
            key = hashlib.sha256(drawn.encode("utf-8", "surrogateescape")).hexdigest()[:20]
            copies.append(Cut(job.path, job.name, key, copy, alteration, mixed[0].path if mixed else None))
    return copies


def _write_metadata(path: Path, division: Division, sources: Sequence[Source], config: SegmentConfig) -> None:
    # surrogateescape, because file names on Linux need not be UTF-8.
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for split, name, index, start in numbered(division, sources):
            source = sources[index]
            rows.writerow((name, source.name, f"{start / config.sample_rate:.10g}", split, source.altered))


def _report(division: Division, sources: list[Source], config: SegmentConfig) -> PrepareReport:
    splits = {split: _summary([sources[index] for index in members], config) for split, members in division.items()}
    return PrepareReport(splits, sources)


def _summary(sources: Sequence[Source], config: SegmentConfig) -> SplitSummary:
    length = config.context_samples + config.target_samples
    samples = sum(
        min(length, after - start)
        for source in sources
        for start, after in zip(source.starts, [*source.starts[1:], source.starts[-1] + length], strict=True)
    )
    pairs, altered = (
        sum(len(source.starts) for source in counted)
        for counted in (sources, [source for source in sources if source.altered])
    )
    files = len({source.name for source in sources})
    return SplitSummary(files, pairs, altered, samples / config.sample_rate / 60)
