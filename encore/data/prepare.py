"""From a folder of music to pairs: a segment, and the segment that follows it, as 16-bit wavs of one rate.

With segments of S seconds, pair k of a file has the seconds `[kS, (k+1)S)` as its input and `[(k+1)S, (k+2)S)` as its
output, for every k for which both are whole: the hop is one segment, so every segment but a file's first is once an
output, and every one but its last once an input.

Files are read, cut and written by several processes into a folder beside the output. Only then, when it is known which
files are of use, are they divided into train and val, numbered and moved into place; the folder gets its name last. So
numbers and split depend on the files and the seed only, and an interrupted run leaves no half data set.
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
from encore.errors import EncoreError, listing

Progress = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass(frozen=True)
class Recipe:
    """How files become pairs."""

    segment_seconds: float = 16.0
    val_fraction: float = 0.1  # of the files
    seed: int = 0
    min_rms: float = 0.001  # of full scale; 0.001 is −60 dBFS
    sample_rate: int = 24_000  # Hz
    channels: int = 1

    @property
    def segment(self) -> int:
        """Samples of a segment."""
        return round(self.segment_seconds * self.sample_rate)


@dataclass(frozen=True)
class Source:
    """What became of one file."""

    name: str  # its path below the music folder
    problem: str = ""  # why it gives no pairs; empty where it does
    unreadable: bool = False
    content: str = ""  # hash of the audio
    starts: tuple[int, ...] = ()  # samples at which the inputs of its pairs start
    silent: int = 0  # pairs that were dropped
    scale: float = 1.0  # what it was multiplied by, so that nothing clips


@dataclass(frozen=True)
class Split:
    """One of the two parts of the data set."""

    files: int
    pairs: int
    minutes: float  # of audio that is in a pair, each second counted once


@dataclass(frozen=True)
class Report:
    """What was made of a folder of music."""

    splits: dict[str, Split]
    sources: list[Source]


def prepare(music: Path, output: Path, recipe: Recipe, workers: int, progress: Progress) -> Report:
    """Makes `output/{train,val}/pair_0000_{input,output}.wav` and `output/metadata.csv`.

    Args:
        music: folder with wav, flac, ogg and mp3 files, at any depth, of any rate and number of channels.
        output: a folder that does not exist yet or is empty.
        recipe: how files become pairs.
        workers: processes that read and cut files; 0: this one does it.
        progress: called with an iterable and the number of its items, gives the items back; for a progress bar.

    Raises:
        EncoreError: bad settings, no file or fewer than two of use, an output that holds something or can't be written.
    """
    _check(music, output, recipe)
    files = find_audio_files(music)
    staging = output.resolve().with_name(f".{output.resolve().name}.{os.getpid()}.partial")
    try:
        staging.mkdir(parents=True)
        try:
            sources = _without_copies(_cut_all(files, music, staging, recipe, workers, progress))
            division = divide(sources, recipe)
            _move_into_place(staging, division, sources, recipe)
            staging.rename(output.resolve())
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise EncoreError(f"--output {output}: can't be written ({error}); name another folder or make room") from error
    return Report({split: _count(members, sources, recipe) for split, members in division.items()}, sources)


def _check(music: Path, output: Path, recipe: Recipe) -> None:
    problems = []
    if not 0 < recipe.val_fraction < 1:
        problems.append(f"--val_fraction {recipe.val_fraction}: must be between 0 and 1, for example 0.1")
    if not SHORTEST_SECONDS <= recipe.segment_seconds < float("inf"):
        problems.append(f"--segment_seconds {recipe.segment_seconds}: must be at least {SHORTEST_SECONDS}")
    if not 0 <= recipe.min_rms < 1:
        problems.append(f"--min_rms {recipe.min_rms}: must be at least 0 and below 1 (0.001 is −60 dBFS)")
    if output.exists() and not output.is_dir():
        problems.append(f"--output {output}: is a file; name a folder")
    elif output.is_dir() and any(output.iterdir()):
        problems.append(f"--output {output}: already holds files; name another folder, or delete this one first")
    elif output.resolve().is_relative_to(music.resolve()):
        problems.append(
            f"--output {output}: lies inside the music folder {music}, where the next run would take the pairs for "
            "music; name a folder outside"
        )
    if problems:
        raise EncoreError("\n".join(problems))


def cut(path: Path, name: str, folder: Path, recipe: Recipe) -> Source:
    """Writes a file's pairs into `folder` as `START_input.wav`, `START_output.wav`, START in samples.

    A file whose peak is above full scale after resampling is turned down as a whole, so that nothing clips.

    Raises:
        EncoreError: the pairs can't be written. A file that can't be read gives a `Source` that says so.
    """
    try:
        audio = read_audio(path, recipe.sample_rate, recipe.channels)
    except EncoreError as error:
        return Source(name, str(error).removeprefix(f"{path}: "), unreadable=True)
    except UnicodeError:
        return Source(name, "its name is not UTF-8; rename it", unreadable=True)
    except MemoryError:
        return Source(name, "does not fit into memory; cut it into shorter files", unreadable=True)
    size, length = recipe.segment, audio.shape[-1]
    if length < 2 * size:
        seconds = length / recipe.sample_rate
        return Source(name, f"{seconds:.2f} s long, shorter than two segments of {recipe.segment_seconds:g} s")
    content = hashlib.sha256(audio.numpy().tobytes()).hexdigest()
    scale = 1 / max(1.0, audio.abs().max().item())
    segments = (audio[:, : length // size * size] * scale).unfold(1, size, size).transpose(0, 1)
    loud = segments.square().mean((1, 2)).sqrt() >= recipe.min_rms
    kept = (loud[:-1] & loud[1:]).nonzero().flatten().tolist()
    silent = len(segments) - 1 - len(kept)
    if not kept:
        return Source(name, f"every pair has a segment below --min_rms {recipe.min_rms:g}", silent=silent)
    try:
        folder.mkdir()
        for k in kept:
            for role, segment in (("input", segments[k]), ("output", segments[k + 1])):
                write_wav(folder / f"{k * size}_{role}.wav", segment, recipe.sample_rate)
    except (OSError, soundfile.SoundFileError) as error:
        raise EncoreError(f"--output: can't be written ({error}); name another folder or make room") from error
    return Source(name, content=content, starts=tuple(k * size for k in kept), silent=silent, scale=scale)


def _start_worker() -> None:
    # Ctrl-C reaches every process: the workers finish their file, and the one that started them clears up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _cut_all(
    files: list[Path], music: Path, staging: Path, recipe: Recipe, workers: int, progress: Progress
) -> list[Source]:
    """A `Source` per file, in the files' order."""
    jobs = [(path, path.relative_to(music).as_posix(), staging / str(index)) for index, path in enumerate(files)]
    if not workers:
        return [cut(path, name, folder, recipe) for path, name, folder in progress(jobs, len(jobs))]
    # spawn: a forked child of a process with torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker)
    try:
        futures: list[Future[Source]] = [pool.submit(cut, *job, recipe) for job in jobs]
        for done in progress(as_completed(futures), len(jobs)):
            done.result()
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise EncoreError(
            f"--num_workers {workers}: a worker was killed, most likely for want of memory; take fewer, or cut long "
            "files into shorter ones"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _without_copies(sources: list[Source]) -> list[Source]:
    """Sets all but the first of several files with the same audio aside: the others would weigh twice, or be in both
    splits."""
    first: dict[str, str] = {}
    result = []
    for source in sources:
        if source.content and first.setdefault(source.content, source.name) != source.name:
            source = Source(source.name, f"the same audio as {first[source.content]}")
        result.append(source)
    return result


def divide(sources: list[Source], recipe: Recipe) -> dict[str, list[int]]:
    """Which sources (by index) go to train and which to val: whole files, at least one each, the same for a seed.

    Raises:
        EncoreError: fewer than two files give pairs.
    """
    usable = [index for index, source in enumerate(sources) if source.starts]
    if len(usable) < 2:
        problems = [f"  {source.name}: {source.problem}" for source in sources if source.problem]
        found = "one file gives pairs, and train and val need one each" if usable else "no file gives pairs"
        remedy = "give more music, or shorter --segment_seconds"
        raise EncoreError(f"{found}; {remedy}" + (f":\n{listing(problems)}" if problems else ""))
    train, val = split_whole(usable, recipe.val_fraction, recipe.seed)
    return {"train": train, "val": val}


def _move_into_place(staging: Path, division: dict[str, list[int]], sources: list[Source], recipe: Recipe) -> None:
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
            rows.append((pair, sources[index].name, f"{start / recipe.sample_rate:.10g}", split))
    # What is left are the files of copies and the emptied folders.
    for index in range(len(sources)):
        shutil.rmtree(staging / str(index), ignore_errors=True)
    # surrogateescape: names on Linux are bytes, not always UTF-8.
    with open(staging / "metadata.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([("pair", "source_file", "start_second", "split"), *rows])


def _count(members: list[int], sources: list[Source], recipe: Recipe) -> Split:
    used = [set(sources[index].starts) | {s + recipe.segment for s in sources[index].starts} for index in members]
    minutes = sum(map(len, used)) * recipe.segment / recipe.sample_rate / 60
    return Split(len(members), sum(len(sources[index].starts) for index in members), minutes)
