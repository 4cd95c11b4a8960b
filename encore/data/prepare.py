"""Cuts a folder of music into pairs: a segment and the segment that follows it, 16 bits, of one sample rate.

With segments of S seconds, pair k of a file has the seconds `[kS, (k+1)S)` as its input and `[(k+1)S, (k+2)S)` as its
output, for every k for which both are complete. So each segment of a file is an output once, except for the first, and
an input once, except for the last.

Several processes read and cut the files; what is finished lies in a hidden folder (staging.py), from which the same
command goes on if it was stopped. When all are done, the usable files are divided into train and val and their pairs
are numbered; the folder is renamed last. Numbers and split therefore depend only on the files and the seed, and there
is never a partial data set.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from encore.audio import find_audio_files, split_whole
from encore.config.knobs import problems_of
from encore.data.cutting import SegmentConfig, Source, cut_to_flac, cut_to_wavs, in_order
from encore.data.folders import COLUMNS
from encore.data.index_files import DIGEST_BYTES
from encore.data.pairs import SPLITS
from encore.data.shards import SHARD_BYTES, Member, NumberedNames, ShardIndex, ShardWriter
from encore.data.staging import MusicFile, Staging
from encore.errors import EncoreError, listing
from encore.json_files import read_json, write_json

T = TypeVar("T")

DIVISION = ("val_fraction", "seed")  # settings that cutting does not depend on


class Progress(Protocol):
    """Shows how far a preparation is."""

    def say(self, line: str) -> None:
        """Prints a line."""

    def track(self, items: Iterable[T], total: int, done: int) -> Iterable[T]:
        """Counts items that are finished, beginning with `done`."""


@dataclass(frozen=True)
class SplitSummary:
    """Size of train or val.

    Attributes:
        files: that give pairs.
        pairs: in all.
        minutes: of audio in these pairs, each second counted once.
    """

    files: int
    pairs: int
    minutes: float


@dataclass(frozen=True)
class PrepareReport:
    """The outcome for a folder of music, by split and by file."""

    splits: dict[str, SplitSummary]
    sources: list[Source]


def prepare(music: Path, output: Path, config: SegmentConfig, workers: int, progress: Progress) -> PrepareReport:
    """Makes `output/{train,val}/pair_0000_{input,output}.wav`, or shards, and `output/metadata.csv`.

    Args:
        music: folder with wav, flac, ogg and mp3 files, at any depth, of any sample rate and number of channels.
        output: a folder that does not exist yet or is empty.
        config: how files are cut.
        workers: processes that read and cut files; 0: this one does it.
        progress: shows a progress bar.

    Raises:
        EncoreError: invalid settings, no audio files or fewer than two usable ones, or an output folder that is not
            empty or cannot be written.
    """
    _check(music, output, config)
    files = [MusicFile.of(path, music) for path in find_audio_files(music)]
    settings = asdict(config)
    division = {name: settings.pop(name) for name in DIVISION}
    staging = Staging(output, settings, division, files)
    make = _make_shards if config.shards else _make_wavs
    try:
        with staging.open():
            report = make(files, staging, config, workers, progress)
            staging.finish()
    except TooFewSources:
        staging.discard()
        raise
    except OSError as error:
        raise EncoreError(
            f"--output {output}: cannot be written ({error}); name another folder or free disk space"
        ) from error
    return report


class TooFewSources(EncoreError):
    """Fewer than two files give pairs."""


def _check(music: Path, output: Path, config: SegmentConfig) -> None:
    problems = problems_of(config)
    if not 0 < config.val_fraction < 1:
        problems.append(f"--val_fraction {config.val_fraction}: must be between 0 and 1, for example 0.1")
    if config.min_rms >= 1:
        problems.append(f"--min_rms {config.min_rms}: must be below 1 (0.001 is −60 dBFS)")
    if output.exists() and not output.is_dir():
        problems.append(f"--output {output}: is a file; name a folder")
    elif output.is_dir() and any(output.iterdir()):
        problems.append(f"--output {output}: already holds files; name another folder, or delete this one first")
    elif output.resolve().is_relative_to(music.resolve()):
        problems.append(
            f"--output {output}: lies inside the music folder {music}, so that the next run would read the pairs as "
            "music; name a folder outside"
        )
    if problems:
        raise EncoreError("\n".join(problems))


def _say_what_is_kept(staging: Staging, done: int, total: int, progress: Progress) -> None:
    if staging.note:
        progress.say(staging.note)
    if done:
        progress.say(f"going on where an earlier run was stopped: {done} of {total} files are finished")


def _make_wavs(
    files: Sequence[MusicFile], staging: Staging, config: SegmentConfig, workers: int, progress: Progress
) -> PrepareReport:
    """Cuts all files into wavs, and numbers and moves them."""
    parts = staging.folder / "sources"
    for unfinished in parts.glob("*.tmp"):
        shutil.rmtree(unfinished)
    todo = [file for file in files if not (parts / file.key).is_dir()]
    done = len(files) - len(todo)
    _say_what_is_kept(staging, done, len(files), progress)
    jobs = [(file.path, file.name, parts / file.key, config) for file in todo]
    for _ in progress.track(in_order(cut_to_wavs, jobs, workers), len(files), done):
        pass
    sources = _without_copies([Source.from_dict(read_json(parts / file.key / "source.json")) for file in files])
    division = split_sources(sources, config)
    staging.start_moving()
    for split, name, index, start in _numbered(division, sources):
        (staging.data / split).mkdir(exist_ok=True)
        for role in ("input", "output"):
            target = staging.data / split / f"{name}_{role}.wav"
            if not target.exists():  # moved before the run was stopped
                (parts / files[index].key / f"{start}_{role}.wav").rename(target)
    _write_metadata(staging.data / "metadata.csv", division, sources, config)
    return _report(division, sources, config)


def _make_shards(
    files: Sequence[MusicFile], staging: Staging, config: SegmentConfig, workers: int, progress: Progress
) -> PrepareReport:
    """Cuts all files into shards, and writes their index."""
    shards = _finished_shards(files, staging)
    done = sum(len(shard["sources"]) for shard in shards)
    _say_what_is_kept(staging, done, len(files), progress)
    first: dict[str, str] = {}
    for shard in shards:
        first |= {entry["source"]["content"]: entry["source"]["name"] for entry in shard["sources"]}
    results = in_order(cut_to_flac, [(file.path, file.name, config) for file in files[done:]], workers)
    writer, entries = None, list[dict[str, Any]]()
    for file, (source, segments) in zip(files[done:], progress.track(results, len(files), done), strict=True):
        if source.content and first.setdefault(source.content, source.name) != source.name:
            source, segments = _copy_of(source, first[source.content]), []
        if segments and writer is None:
            writer = ShardWriter(staging.data / f"shard-{len(shards):06d}.tar")
        members = [writer.add(source.name, start, flac) for start, flac in segments] if writer is not None else []
        entries.append({"key": file.key, "source": asdict(source), "members": members})
        if writer is not None and writer.size >= SHARD_BYTES:
            shards.append(_finish_shard(writer, entries, staging))
            writer, entries = None, []
    if writer is not None:
        shards.append(_finish_shard(writer, entries, staging))
        entries = []
    entries = [entry for shard in shards for entry in shard["sources"]] + entries
    sources = [Source.from_dict(entry["source"]) for entry in entries]
    division = split_sources(sources, config)
    _shard_index(shards, sources, division, config).save(staging.data)
    _write_metadata(staging.data / "metadata.csv", division, sources, config)
    return _report(division, sources, config)


def _finished_shards(files: Sequence[MusicFile], staging: Staging) -> list[dict[str, Any]]:
    """What an earlier run noted of its finished shards, as far as their files are the same; others are deleted."""
    shards: list[dict[str, Any]] = []
    done = 0
    while (noted := read_json(staging.folder / f"shard-{len(shards):06d}.json")) is not None:
        keys = [entry["key"] for entry in noted["sources"]]
        if keys != [file.key for file in files[done : done + len(keys)]]:
            staging.note = f"files changed since the run that was stopped: cut again from {files[done].name} on"
            break
        shards.append(noted)
        done += len(keys)
    kept = {shard["name"] for shard in shards}
    for path in [*staging.data.iterdir(), *staging.folder.glob("shard-*.json")]:
        if path.with_suffix(".tar").name not in kept:
            path.unlink()
    return shards


def _finish_shard(writer: ShardWriter, entries: list[dict[str, Any]], staging: Staging) -> dict[str, Any]:
    """Completes a shard, and notes what is in it: a shard without this note is made again."""
    writer.close()
    noted = {"name": writer.path.name, "size": writer.path.stat().st_size, "sources": entries}
    write_json(staging.folder / f"{writer.path.stem}.json", noted)
    return noted


def _shard_index(
    shards: Sequence[dict[str, Any]],
    sources: Sequence[Source],
    division: dict[str, list[int]],
    config: SegmentConfig,
) -> ShardIndex:
    places, digests = list[tuple[int, int, int]](), list[str]()
    rows: list[dict[int, int]] = []  # for each source the row of the segment that begins at a sample
    for number, shard in enumerate(shards):
        for entry in shard["sources"]:
            members: list[Member] = entry["members"]
            rows.append({start: len(places) + k for k, (start, *_) in enumerate(members)})
            places += [(number, begin, size) for _, begin, size, _ in members]
            digests += [digest for *_, digest in members]
    size = config.segment_samples
    pairs = {
        split: np.array(
            [(rows[i][start], rows[i][start + size], i) for i in members for start in sources[i].starts], np.int64
        )
        for split, members in division.items()
    }
    return ShardIndex(
        config.sample_rate,
        size,
        [shard["name"] for shard in shards],
        [shard["size"] for shard in shards],
        np.array(places, np.int64),
        np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, DIGEST_BYTES),
        [source.name for source in sources],
        pairs,
    )


def _without_copies(sources: list[Source]) -> list[Source]:
    """Leaves out all but the first of files with the same audio, which could otherwise be in both splits."""
    first: dict[str, str] = {}
    result = []
    for source in sources:
        if source.content and first.setdefault(source.content, source.name) != source.name:
            source = _copy_of(source, first[source.content])
        result.append(source)
    return result


def _copy_of(source: Source, original: str) -> Source:
    return Source(source.name, f"the same audio as {original}")


def split_sources(sources: list[Source], config: SegmentConfig) -> dict[str, list[int]]:
    """Indices of the sources for train and for val: whole files, at least one each; the seed determines the split.

    Raises:
        EncoreError: fewer than two files give pairs.
    """
    usable = [index for index, source in enumerate(sources) if source.starts]
    if len(usable) < 2:
        problems = [f"  {source.name}: {source.problem}" for source in sources if source.problem]
        found = "one file gives pairs, and train and val need one each" if usable else "no file gives pairs"
        remedy = "add music, or shorten --segment_seconds"
        raise TooFewSources(f"{found}; {remedy}" + (f":\n{listing(problems)}" if problems else ""))
    train, val = split_whole(usable, config.val_fraction, config.seed)
    return {"train": train, "val": val}


def _numbered(division: dict[str, list[int]], sources: Sequence[Source]) -> Iterator[tuple[str, str, int, int]]:
    """Split, name, source and first sample of each pair, numbered by file and start."""
    for split in SPLITS:
        pairs = [(index, start) for index in division[split] for start in sources[index].starts]
        names = NumberedNames(len(pairs))
        for number, (index, start) in enumerate(pairs):
            yield split, names[number], index, start


def _write_metadata(
    path: Path, division: dict[str, list[int]], sources: Sequence[Source], config: SegmentConfig
) -> None:
    # surrogateescape, because file names on Linux need not be UTF-8.
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for split, name, index, start in _numbered(division, sources):
            rows.writerow((name, sources[index].name, f"{start / config.sample_rate:.10g}", split))


def _report(division: dict[str, list[int]], sources: list[Source], config: SegmentConfig) -> PrepareReport:
    return PrepareReport({split: _summary(members, sources, config) for split, members in division.items()}, sources)


def _summary(members: list[int], sources: list[Source], config: SegmentConfig) -> SplitSummary:
    used = [
        set(sources[index].starts) | {s + config.segment_samples for s in sources[index].starts} for index in members
    ]
    minutes = sum(map(len, used)) * config.segment_samples / config.sample_rate / 60
    return SplitSummary(len(members), sum(len(sources[index].starts) for index in members), minutes)
