"""Cuts audio files into segments, in several processes."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import signal
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import soundfile
import torch
from torch import Tensor

from encore.audio import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE, SHORTEST_SECONDS, read_audio, write_wav
from encore.config.knobs import MAX_SECONDS, MAX_SEED, knob
from encore.data.augmentation import Alteration, alter
from encore.data.loudness import integrated_loudness
from encore.data.shards import as_flac
from encore.errors import EncoreError
from encore.json_files import write_json

T = TypeVar("T")

FILE, FOLDER = "file", "folder"


@dataclass(frozen=True)
class SegmentConfig:
    """How files are cut into pairs."""

    context_seconds: float = knob(
        16.0, "length of an input in seconds", minimum=SHORTEST_SECONDS, maximum=MAX_SECONDS, common=True
    )
    segment_seconds: float = knob(
        8.0,
        "length of an output in seconds; at most that of an input",
        minimum=SHORTEST_SECONDS,
        maximum=MAX_SECONDS,
        common=True,
    )
    hop_seconds: float | None = knob(
        None,
        "seconds from one pair of a file to the next; default: --segment_seconds, so that all but the beginning of a "
        "file is an output once",
        minimum=SHORTEST_SECONDS,
        maximum=MAX_SECONDS,
        common=True,
    )
    val_fraction: float = knob(
        0.1, "share of the files that goes to val; at least one group", minimum=1e-9, maximum=0.999, common=True
    )
    test_fraction: float = knob(
        0.1, "share of the files that goes to test, likewise; 0: no test", minimum=0, maximum=0.999, common=True
    )
    val_group: str = knob(
        FOLDER,
        "what is never divided between train, val and test: folder, all files of a top folder (an artist, a "
        "collection), files in none being groups of their own; or file",
        choices=(FILE, FOLDER),
        common=True,
    )
    augment: int = knob(0, "altered copies of each training file to cut as well", minimum=0, maximum=10000, common=True)
    loudness_lufs: float | None = knob(
        None,
        "loudness that every file is brought to, in LUFS (BS.1770), e.g. -16; default: each keeps its own",
        minimum=-70,
        maximum=0,
        common=True,
    )
    seed: int = knob(
        0,
        "seed of the choice of files for val and test, and of what is altered",
        minimum=0,
        maximum=MAX_SEED,
        common=True,
    )
    min_rms: float = knob(
        0.001,
        "drop pairs with a segment of less RMS, full scale being 1; 0.001 is −60 dBFS",
        minimum=0,
        maximum=0.999,
        common=True,
    )
    sample_rate: int = knob(
        24_000, "sample rate of the codec, in Hz", minimum=MIN_SAMPLE_RATE, maximum=MAX_SAMPLE_RATE, common=True
    )
    channels: int = knob(1, "channels of the codec: 1 mixes to mono, 2 keeps stereo", choices=(1, 2), common=True)
    shards: bool = knob(
        False, "write FLAC into a few large shards instead of two wavs per pair; for many pairs", common=True
    )

    @property
    def context_samples(self) -> int:
        """Length of an input in samples."""
        return round(self.context_seconds * self.sample_rate)

    @property
    def target_samples(self) -> int:
        """Length of an output in samples."""
        return round(self.segment_seconds * self.sample_rate)

    @property
    def hop_samples(self) -> int:
        """Samples from one pair to the next."""
        seconds = self.segment_seconds if self.hop_seconds is None else self.hop_seconds
        return round(seconds * self.sample_rate)

    @property
    def piece_samples(self) -> int:
        """Length of what shards are made of: inputs, outputs and hops are multiples of it."""
        return math.gcd(self.context_samples, self.target_samples, self.hop_samples)


@dataclass(frozen=True)
class Cut:
    """A file to cut, as it is or altered.

    Attributes:
        path: of the file.
        name: its path relative to the music folder.
        key: hash of the file and of what is done to it.
        copy: number of the altered copy, from 1; 0: the file as it is.
        alteration: what is done to it.
        other: file that is mixed in.
    """

    path: Path
    name: str
    key: str
    copy: int = 0
    alteration: Alteration | None = None
    other: Path | None = None


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
        gain_db: gain that brings it to --loudness_lufs.
        altered: what was done to it; empty: nothing.
    """

    name: str
    problem: str = ""
    unreadable: bool = False
    content: str = ""
    starts: tuple[int, ...] = ()
    silent: int = 0
    scale: float = 1.0
    gain_db: float = 0.0
    altered: str = ""

    def copy_of(self, original: str) -> Source:
        """This source as one without pairs, because another one has the same audio."""
        return Source(self.name, f"the same audio as {original}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Source:
        """A source from `asdict` of it, as JSON keeps it."""
        return cls(**{**values, "starts": tuple(values["starts"])})


def cut(job: Cut, config: SegmentConfig) -> tuple[Source, Tensor]:
    """Reads a file and finds its pairs; the audio is `[C, N]`.

    With `loudness_lufs` a file is brought to that loudness as a whole, before it is altered; silence stays as it is.
    A file whose peak is above full scale after resampling is attenuated as a whole, so that nothing clips. A file that
    cannot be read gives a `Source` with its problem.
    """
    none, name = torch.zeros(0), job.name
    try:
        audio, gain_db = read_levelled(job.path, config)
        if job.alteration is not None:
            other = None if job.other is None else read_levelled(job.other, config)[0]
            audio = alter(audio, config.sample_rate, job.alteration, other)
    except EncoreError as error:
        return Source(name, str(error).removeprefix(f"{job.path}: "), unreadable=True), none
    except MemoryError:
        return Source(name, "does not fit into memory; cut it into shorter files", unreadable=True), none
    length, needed = audio.shape[-1], config.context_samples + config.target_samples
    altered = "" if job.alteration is None else str(job.alteration)
    if length < needed:
        seconds, least = length / config.sample_rate, config.context_seconds + config.segment_seconds
        problem = f"{seconds:.2f} s long, shorter than an input and an output, {least:g} s"
        return Source(name, problem, altered=altered), none
    content = hashlib.sha256(audio.numpy().tobytes()).hexdigest()
    scale = 1 / max(1.0, audio.abs().max().item())
    audio = audio * scale
    places = range(0, length - needed + 1, config.hop_samples)
    starts = tuple(start for start in places if all(_audible(part, config) for part in pair(audio, start, config)))
    silent = len(places) - len(starts)
    if not starts:
        problem = f"every pair has a segment below --min_rms {config.min_rms:g}"
        return Source(name, problem, silent=silent, altered=altered), none
    return Source(name, "", False, content, starts, silent, scale, gain_db, altered), audio


def read_levelled(path: Path, config: SegmentConfig) -> tuple[Tensor, float]:
    """The audio of a file `[C, N]` at the loudness of `config`, and the gain in dB that this took.

    Raises:
        EncoreError: it cannot be read.
    """
    audio = read_audio(path, config.sample_rate, config.channels)
    if config.loudness_lufs is None:
        return audio, 0.0
    gain_db = config.loudness_lufs - integrated_loudness(audio, config.sample_rate)
    return (audio * 10 ** (gain_db / 20), gain_db) if math.isfinite(gain_db) else (audio, 0.0)


def pair(audio: Tensor, start: int, config: SegmentConfig) -> tuple[Tensor, Tensor]:
    """The input that begins at sample `start` of `audio [C, N]`, and its output."""
    boundary = start + config.context_samples
    return audio[:, start:boundary], audio[:, boundary : boundary + config.target_samples]


def _audible(segment: Tensor, config: SegmentConfig) -> bool:
    return bool(segment.square().mean().sqrt() >= config.min_rms)


def cut_to_wavs(job: Cut, folder: Path, config: SegmentConfig) -> Source:
    """Writes the pairs of one file as `folder/START_{input,output}.wav`, START in samples, and `folder/source.json`.

    The folder has its name only when it is complete.

    Raises:
        EncoreError: the pairs cannot be written.
    """
    source, audio = cut(job, config)
    temporary = folder.with_name(f"{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        for start in source.starts:
            for role, segment in zip(("input", "output"), pair(audio, start, config), strict=True):
                write_wav(temporary / f"{start}_{role}.wav", segment, config.sample_rate)
        write_json(temporary / "source.json", asdict(source))
        temporary.rename(folder)
    except (OSError, soundfile.SoundFileError) as error:
        raise EncoreError(f"--output: cannot be written ({error}); name another folder or free disk space") from error
    return source


def cut_to_flac(job: Cut, config: SegmentConfig) -> tuple[Source, list[tuple[int, bytes]]]:
    """The pieces of one file's pairs, each once: its first sample, and its FLAC."""
    source, audio = cut(job, config)
    size, length = config.piece_samples, config.context_samples + config.target_samples
    starts = sorted({first for start in source.starts for first in range(start, start + length, size)})
    return source, [(start, as_flac(audio[:, start : start + size], config.sample_rate)) for start in starts]


def _start_worker() -> None:
    # Ctrl-C reaches every process: workers finish their file, and the parent process ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the one that started it is killed, which it would not notice."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def in_order(function: Callable[..., T], jobs: Sequence[tuple[Any, ...]], workers: int) -> Iterator[T]:
    """Calls a function with the arguments of each job, in several processes; at most a few results wait in memory."""
    if not workers or not jobs:
        yield from (function(*job) for job in jobs)
        return
    # A forked child of a process with torch's threads can hang; the fork server has none, and imports torch once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker)
    waiting: deque[Future[T]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(function, *job))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise EncoreError(
            f"--num_workers {workers}: a worker was killed, most likely because memory ran out; use fewer, or cut long "
            "files into shorter ones. What is finished is kept: the same command goes on"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
