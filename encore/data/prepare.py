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
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from encore.audio import SHORTEST_SECONDS, find_audio_files
from encore.config.knobs import problems_of
from encore.data.augmentation import draw_alteration
from encore.data.cutting import Cut, SegmentConfig, Source, cut_to_flac, cut_to_wavs, in_order
from encore.data.division import Division, TooFewSources, split_sources
from encore.data.folders import COLUMNS
from encore.data.index_files import DIGEST_BYTES
from encore.data.shards import SHARD_BYTES, Member, NumberedNames, ShardIndex, ShardWriter
from encore.data.staging import MusicFile, Staging
from encore.errors import EncoreError
from encore.json_files import read_json, write_json

T = TypeVar("T")

# Settings that cutting does not depend on.
DIVISION = ("val_fraction", "test_fraction", "val_group", "augment", "seed")


class Progress(Protocol):
    """Shows how far a preparation is."""

    def say(self, line: str) -> None:
        """Prints a line."""

    def track(self, items: Iterable[T], total: int, done: int) -> Iterable[T]:
        """Counts items that are finished, beginning with `done`."""


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


def _check(music: Path, output: Path, config: SegmentConfig) -> None:
    problems = problems_of(config)
    if not 0 < config.val_fraction < 1:
        problems.append(f"--val_fraction {config.val_fraction}: must be between 0 and 1, for example 0.1")
    elif not config.val_fraction + config.test_fraction < 1:
        problems.append(f"--test_fraction {config.test_fraction}: with --val_fraction it leaves nothing to train on")
    if config.min_rms >= 1:
        problems.append(f"--min_rms {config.min_rms}: must be below 1 (0.001 is −60 dBFS)")
    if not problems:
        problems += _check_lengths(config)
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


def _check_lengths(config: SegmentConfig) -> list[str]:
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


def _say_what_is_kept(staging: Staging, done: int, total: int, progress: Progress) -> None:
    if staging.note:
        progress.say(staging.note)
        staging.note = ""
    if done:
        progress.say(f"going on where an earlier run was stopped: {done} of {total} files are finished")


def _make_wavs(
    files: Sequence[MusicFile], staging: Staging, config: SegmentConfig, workers: int, progress: Progress
) -> PrepareReport:
    """Cuts all files into wavs, and numbers and moves them."""
    parts = staging.folder / "sources"
    for unfinished in parts.glob("*.tmp"):
        shutil.rmtree(unfinished)

    def cut_all(jobs: Sequence[Cut]) -> list[Source]:
        todo = [job for job in jobs if not (parts / job.key).is_dir()]
        done = len(jobs) - len(todo)
        _say_what_is_kept(staging, done, len(jobs), progress)
        results = in_order(cut_to_wavs, [(job, parts / job.key, config) for job in todo], workers)
        for _ in progress.track(results, len(jobs), done):
            pass
        return [Source.from_dict(read_json(parts / job.key / "source.json")) for job in jobs]

    jobs = [Cut(file.path, file.name, file.key) for file in files]
    sources = _without_copies(cut_all(jobs))
    division = split_sources(sources, config)
    copies = altered_copies(jobs, sources, division["train"], config)
    if copies:
        sources, jobs = _with_copies(sources, cut_all(copies), division), jobs + copies
    staging.start_moving()
    for split, name, index, start in _numbered(division, sources):
        (staging.data / split).mkdir(exist_ok=True)
        for role in ("input", "output"):
            target = staging.data / split / f"{name}_{role}.wav"
            if not target.exists():  # moved before the run was stopped
                (parts / jobs[index].key / f"{start}_{role}.wav").rename(target)
    _write_metadata(staging.data / "metadata.csv", division, sources, config)
    return _report(division, sources, config)


def _make_shards(
    files: Sequence[MusicFile], staging: Staging, config: SegmentConfig, workers: int, progress: Progress
) -> PrepareReport:
    """Cuts all files into shards, and writes their index."""
    jobs = [Cut(file.path, file.name, file.key) for file in files]
    shards, entries = _cut_to_shards("shard", jobs, staging, config, workers, progress)
    sources = [Source.from_dict(entry["source"]) for entry in entries]
    division = split_sources(sources, config)
    copies = altered_copies(jobs, sources, division["train"], config)
    if copies:
        more_shards, more = _cut_to_shards("altered", copies, staging, config, workers, progress)
        made = [Source.from_dict(entry["source"]) for entry in more]
        sources, shards = _with_copies(sources, made, division), shards + more_shards
    _shard_index(shards, [job.key for job in jobs + copies], sources, division, config).save(staging.data)
    _write_metadata(staging.data / "metadata.csv", division, sources, config)
    return _report(division, sources, config)


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


def _with_copies(sources: list[Source], copies: list[Source], division: Division) -> list[Source]:
    """All sources; the altered copies go to train."""
    division["train"] += range(len(sources), len(sources) + len(copies))
    return sources + copies


def _cut_to_shards(
    kind: str, jobs: Sequence[Cut], staging: Staging, config: SegmentConfig, workers: int, progress: Progress
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Cuts files into shards named after `kind`; returns these, and an entry per file."""
    shards = _finished_shards(kind, jobs, staging)
    done = sum(len(shard["sources"]) for shard in shards)
    _say_what_is_kept(staging, done, len(jobs), progress)
    first: dict[str, str] = {}
    for shard in shards:
        first |= {entry["source"]["content"]: entry["source"]["name"] for entry in shard["sources"]}
    results = in_order(cut_to_flac, [(job, config) for job in jobs[done:]], workers)
    writer, entries = None, list[dict[str, Any]]()
    for job, (source, pieces) in zip(jobs[done:], progress.track(results, len(jobs), done), strict=True):
        if source.content and first.setdefault(source.content, source.name) != source.name:
            source, pieces = _copy_of(source, first[source.content]), []
        if pieces and writer is None:
            writer = ShardWriter(staging.data / f"{kind}-{len(shards):06d}.tar")
        folder = f"{job.name}.{job.copy}" if job.copy else job.name
        members = [writer.add(folder, start, flac) for start, flac in pieces] if writer is not None else []
        entries.append({"key": job.key, "source": asdict(source), "members": members})
        if writer is not None and writer.size >= SHARD_BYTES:
            shards.append(_finish_shard(writer, entries, staging))
            writer, entries = None, []
    if writer is not None:
        shards.append(_finish_shard(writer, entries, staging))
        entries = []
    return shards, [entry for shard in shards for entry in shard["sources"]] + entries


def _finished_shards(kind: str, jobs: Sequence[Cut], staging: Staging) -> list[dict[str, Any]]:
    """What an earlier run noted of its finished shards, as far as their files are the same; others are deleted."""
    shards: list[dict[str, Any]] = []
    done = 0
    while (noted := read_json(staging.folder / f"{kind}-{len(shards):06d}.json")) is not None:
        keys = [entry["key"] for entry in noted["sources"]]
        if keys != [job.key for job in jobs[done : done + len(keys)]]:
            changed = f" from {jobs[done].name} on" if done < len(jobs) else ""
            staging.note = f"files changed since the run that was stopped: cut again{changed}"
            break
        shards.append(noted)
        done += len(keys)
    kept = {shard["name"] for shard in shards}
    for path in [*staging.data.glob(f"{kind}-*"), *staging.folder.glob(f"{kind}-*.json")]:
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
    keys: Sequence[str],
    sources: Sequence[Source],
    division: Division,
    config: SegmentConfig,
) -> ShardIndex:
    """The index of shards, whose files have `keys`."""
    places, digests = list[tuple[int, int, int]](), list[str]()
    rows: dict[str, dict[int, int]] = {}  # for each file the row of the piece that begins at a sample
    for number, shard in enumerate(shards):
        for entry in shard["sources"]:
            members: list[Member] = entry["members"]
            rows[entry["key"]] = {start: len(places) + k for k, (start, *_) in enumerate(members)}
            places += [(number, begin, size) for _, begin, size, _ in members]
            digests += [digest for *_, digest in members]
    context, target = (length // config.piece_samples for length in (config.context_samples, config.target_samples))
    found = {
        split: [
            (rows[keys[i]][start], rows[keys[i]][start + config.context_samples], i)
            for i in members
            for start in sources[i].starts
        ]
        for split, members in division.items()
    }
    # A segment is a first piece and a number of pieces; if inputs and outputs have the same, many are both.
    wanted = [((first, context), (second, target)) for pairs in found.values() for first, second, _ in pairs]
    pieces, numbers = np.unique(np.array(wanted, np.int64).reshape(-1, 2), axis=0, return_inverse=True)
    segments = iter(np.split(numbers.reshape(-1, 2), np.cumsum([len(pairs) for pairs in found.values()])[:-1]))
    return ShardIndex(
        config.sample_rate,
        config.piece_samples,
        [shard["name"] for shard in shards],
        [shard["size"] for shard in shards],
        np.array(places, np.int64),
        np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, DIGEST_BYTES),
        pieces,
        [source.name for source in sources],
        {
            split: np.concatenate([next(segments), np.array([i for *_, i in pairs], np.int64)[:, None]], 1)
            for split, pairs in found.items()
        },
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


def _numbered(division: Division, sources: Sequence[Source]) -> Iterator[tuple[str, str, int, int]]:
    """Split, name, source and first sample of each pair, numbered by file and start."""
    for split, members in division.items():
        pairs = [(index, start) for index in members for start in sources[index].starts]
        names = NumberedNames(len(pairs))
        for number, (index, start) in enumerate(pairs):
            yield split, names[number], index, start


def _write_metadata(path: Path, division: Division, sources: Sequence[Source], config: SegmentConfig) -> None:
    # surrogateescape, because file names on Linux need not be UTF-8.
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for split, name, index, start in _numbered(division, sources):
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
