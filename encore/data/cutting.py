"""Cuts audio files into segments, in several processes."""

from __future__ import annotations

import hashlib
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

from encore.audio import SHORTEST_SECONDS, read_audio, write_wav
from encore.config.knobs import knob
from encore.data.shards import as_flac
from encore.errors import EncoreError
from encore.json_files import write_json

T = TypeVar("T")


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
    shards: bool = knob(
        False, "write FLAC into a few large shards instead of two wavs per pair; for many pairs", common=True
    )

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

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Source:
        """A source from `asdict` of it, as JSON keeps it."""
        return cls(**{**values, "starts": tuple(values["starts"])})


def cut(path: Path, name: str, config: SegmentConfig) -> tuple[Source, Tensor]:
    """Cuts one file; its segments are `[S, C, segment_samples]`.

    A file whose peak is above full scale after resampling is attenuated as a whole, so that nothing clips. A file that
    cannot be read gives a `Source` with its problem.
    """
    none = torch.zeros(0)
    try:
        audio = read_audio(path, config.sample_rate, config.channels)
    except EncoreError as error:
        return Source(name, str(error).removeprefix(f"{path}: "), unreadable=True), none
    except UnicodeError:
        return Source(name, "its name is not UTF-8; rename it", unreadable=True), none
    except MemoryError:
        return Source(name, "does not fit into memory; cut it into shorter files", unreadable=True), none
    size, length = config.segment_samples, audio.shape[-1]
    if length < 2 * size:
        seconds = length / config.sample_rate
        return Source(name, f"{seconds:.2f} s long, shorter than two segments of {config.segment_seconds:g} s"), none
    content = hashlib.sha256(audio.numpy().tobytes()).hexdigest()
    scale = 1 / max(1.0, audio.abs().max().item())
    segments = (audio[:, : length // size * size] * scale).unfold(1, size, size).transpose(0, 1)
    loud = segments.square().mean((1, 2)).sqrt() >= config.min_rms
    audible = (loud[:-1] & loud[1:]).nonzero().flatten().tolist()
    silent = len(segments) - 1 - len(audible)
    if not audible:
        return Source(name, f"every pair has a segment below --min_rms {config.min_rms:g}", silent=silent), none
    source = Source(name, content=content, starts=tuple(k * size for k in audible), silent=silent, scale=scale)
    return source, segments


def cut_to_wavs(path: Path, name: str, folder: Path, config: SegmentConfig) -> Source:
    """Writes the pairs of one file as `folder/START_{input,output}.wav`, START in samples, and `folder/source.json`.

    The folder has its name only when it is complete.

    Raises:
        EncoreError: the pairs cannot be written.
    """
    source, segments = cut(path, name, config)
    temporary = folder.with_name(f"{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        for start in source.starts:
            k = start // config.segment_samples
            for role, segment in (("input", segments[k]), ("output", segments[k + 1])):
                write_wav(temporary / f"{start}_{role}.wav", segment, config.sample_rate)
        write_json(temporary / "source.json", asdict(source))
        temporary.rename(folder)
    except (OSError, soundfile.SoundFileError) as error:
        raise EncoreError(f"--output: cannot be written ({error}); name another folder or free disk space") from error
    return source


def cut_to_flac(path: Path, name: str, config: SegmentConfig) -> tuple[Source, list[tuple[int, bytes]]]:
    """The segments of one file's pairs, each once: its first sample, and its FLAC."""
    source, segments = cut(path, name, config)
    size = config.segment_samples
    starts = sorted({*source.starts, *(start + size for start in source.starts)})
    return source, [(start, as_flac(segments[start // size], config.sample_rate)) for start in starts]


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
    # spawn, because a forked child of a process with torch's threads can hang.
    context = multiprocessing.get_context("spawn")
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
