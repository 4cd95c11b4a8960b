"""Cuts a folder of music into pairs: a segment and the segment that follows it, as 16-bit wavs of one sample rate.

With segments of S seconds, pair k of a file has the seconds `[kS, (k+1)S)` as its input and `[(k+1)S, (k+2)S)` as its
output, for every k for which both are complete. So each segment of a file is an output once, except for the first, and
an input once, except for the last.

Several processes read and cut the files and write the segments to a temporary folder. When all are done, the usable
files are divided into train and val, and their pairs are numbered and moved into place; the folder is renamed last.
Numbers and split therefore depend only on the files and the seed, and an interrupted run leaves no partial data set.
"""

from __future__ import annotations

import csv
import hashlib
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch

from encore.audio import SHORTEST_SECONDS, find_audio_files, read_audio, split_whole, write_wav
from encore.config.knobs import knob, problems_of
from encore.data.folders import COLUMNS
from encore.errors import EncoreError, listing

Progress = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass(frozen=True)
class SegmentConfig:
    """How files are cut into pairs."""

    segment_seconds: float = knob(
        16.0, "length of an input and of an output, in seconds", minimum=SHORTEST_SECONDS, common=True
    )
    val_fraction: float = knob(0.1, "share of the files that goes to val; whole files, at least one", common=True)
    seed: int = knob(0, "seed of the choice of files for val", common=True)
    min_rms: float = knob(
        0.001,
        "drop pairs with a segment of less RMS, full scale being 1; 0.001 is −60 dBFS",
        minimum=0,
        common=True,
    )
    sample_rate: int = knob(24_000, "sample rate of the codec, in Hz", minimum=1000, common=True)
    channels: int = knob(1, "channels of the codec: 1 mixes to mono, 2 keeps stereo", choices=(1, 2), common=True)

    @property
    def segment_samples(self) -> int:
        """Length of a segment in samples."""
        return round(self.segment_seconds * self.sample_rate)


@dataclass(frozen=True)
class Source:
    """The outcome for one file.

    Attributes:
        name: its path relative to the music folder.
        problem: why it gives no pairs; empty if it gives some.
        unreadable: the problem is that it cannot be read.
        content: hash of its audio.
        starts: first samples of its pairs' inputs.
        silent: number of pairs dropped as silent.
        scale: gain that keeps it from clipping, at most 1.
    """

    name: str
    problem: str = ""
    unreadable: bool = False
    content: str = ""
    starts: tuple[int, ...] = ()
    silent: int = 0
    scale: float = 1.0


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
    """Makes `output/{train,val}/pair_0000_{input,output}.wav` and `output/metadata.csv`.

    Args:
        music: folder with wav, flac, ogg and mp3 files, at any depth, of any sample rate and number of channels.
        output: a folder that does not exist yet or is empty.
        config: how files are cut.
        workers: processes that read and cut files; 0: this one does it.
        progress: wraps an iterable of a known number of items, to show a progress bar.

    Raises:
        EncoreError: invalid settings, no audio files or fewer than two usable ones, or an output folder that is not
            empty or cannot be written.
    """
    _check(music, output, config)
    files = find_audio_files(music)
    staging = output.resolve().with_name(f".{output.resolve().name}.{os.getpid()}.partial")
    try:
        staging.mkdir(parents=True)
        try:
            sources = _without_copies(_cut_all(files, music, staging, config, workers, progress))
            division = split_sources(sources, config)
            _move_into_place(staging, division, sources, config)
            staging.rename(output.resolve())
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise EncoreError(
            f"--output {output}: cannot be written ({error}); name another folder or free disk space"
        ) from error
    return PrepareReport({split: _summary(members, sources, config) for split, members in division.items()}, sources)


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


def cut(path: Path, name: str, folder: Path, config: SegmentConfig) -> Source:
    """Writes the pairs of one file into `folder` as `START_input.wav` and `START_output.wav`, START in samples.

    A file whose peak is above full scale after resampling is attenuated as a whole, so that nothing clips.

    Raises:
        EncoreError: the pairs cannot be written. A file that cannot be read gives a `Source` with its problem.
    """
    try:
        audio = read_audio(path, config.sample_rate, config.channels)
    except EncoreError as error:
        return Source(name, str(error).removeprefix(f"{path}: "), unreadable=True)
    except UnicodeError:
        return Source(name, "its name is not UTF-8; rename it", unreadable=True)
    except MemoryError:
        return Source(name, "does not fit into memory; cut it into shorter files", unreadable=True)
    size, length = config.segment_samples, audio.shape[-1]
    if length < 2 * size:
        seconds = length / config.sample_rate
        return Source(name, f"{seconds:.2f} s long, shorter than two segments of {config.segment_seconds:g} s")
    content = hashlib.sha256(audio.numpy().tobytes()).hexdigest()
    scale = 1 / max(1.0, audio.abs().max().item())
    segments = (audio[:, : length // size * size] * scale).unfold(1, size, size).transpose(0, 1)
    loud = segments.square().mean((1, 2)).sqrt() >= config.min_rms
    audible = (loud[:-1] & loud[1:]).nonzero().flatten().tolist()
    silent = len(segments) - 1 - len(audible)
    if not audible:
        return Source(name, f"every pair has a segment below --min_rms {config.min_rms:g}", silent=silent)
    try:
        folder.mkdir()
        for k in audible:
            for role, segment in (("input", segments[k]), ("output", segments[k + 1])):
                write_wav(folder / f"{k * size}_{role}.wav", segment, config.sample_rate)
    except (OSError, soundfile.SoundFileError) as error:
        raise EncoreError(f"--output: cannot be written ({error}); name another folder or free disk space") from error
    return Source(name, content=content, starts=tuple(k * size for k in audible), silent=silent, scale=scale)


def _start_worker() -> None:
    # Ctrl-C reaches every process: workers finish their file, and the parent process removes the temporary folder.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _cut_all(
    files: list[Path], music: Path, staging: Path, config: SegmentConfig, workers: int, progress: Progress
) -> list[Source]:
    """A `Source` per file, in the files' order."""
    jobs = [(path, path.relative_to(music).as_posix(), staging / str(index)) for index, path in enumerate(files)]
    if not workers:
        return [cut(path, name, folder, config) for path, name, folder in progress(jobs, len(jobs))]
    # spawn, because a forked child of a process with torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker)
    try:
        futures: list[Future[Source]] = [pool.submit(cut, *job, config) for job in jobs]
        for done in progress(as_completed(futures), len(jobs)):
            done.result()
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise EncoreError(
            f"--num_workers {workers}: a worker was killed, most likely because memory ran out; use fewer, or cut long "
            "files into shorter ones"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _without_copies(sources: list[Source]) -> list[Source]:
    """Leaves out all but the first of files with the same audio, which could otherwise be in both splits."""
    first: dict[str, str] = {}
    result = []
    for source in sources:
        if source.content and first.setdefault(source.content, source.name) != source.name:
            source = Source(source.name, f"the same audio as {first[source.content]}")
        result.append(source)
    return result


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
        raise EncoreError(f"{found}; {remedy}" + (f":\n{listing(problems)}" if problems else ""))
    train, val = split_whole(usable, config.val_fraction, config.seed)
    return {"train": train, "val": val}


def _move_into_place(
    staging: Path, division: dict[str, list[int]], sources: list[Source], config: SegmentConfig
) -> None:
    """Numbers the pairs of each split, by file and start, and writes `metadata.csv`."""
    rows = []
    for split, members in division.items():
        (staging / split).mkdir()
        pairs = [(index, start) for index in members for start in sources[index].starts]
        width = max(4, len(str(len(pairs) - 1)))
        for number, (index, start) in enumerate(pairs):
            pair = f"pair_{number:0{width}d}"
            for role in ("input", "output"):
                (staging / str(index) / f"{start}_{role}.wav").rename(staging / split / f"{pair}_{role}.wav")
            rows.append((pair, sources[index].name, f"{start / config.sample_rate:.10g}", split))
    # Empty folders and the files of copies are left.
    for index in range(len(sources)):
        shutil.rmtree(staging / str(index), ignore_errors=True)
    # surrogateescape, because file names on Linux need not be UTF-8.
    with open(staging / "metadata.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def _summary(members: list[int], sources: list[Source], config: SegmentConfig) -> SplitSummary:
    used = [
        set(sources[index].starts) | {s + config.segment_samples for s in sources[index].starts} for index in members
    ]
    minutes = sum(map(len, used)) * config.segment_samples / config.sample_rate / 60
    return SplitSummary(len(members), sum(len(sources[index].starts) for index in members), minutes)
