"""A folder of songs in the place of a data set: its pairs are cut once, and found again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from encore.audio import find_audio_files
from encore.data.cutting import SegmentConfig
from encore.data.pairs import SPLITS, TEST
from encore.data.prepare import prepare
from encore.data.shards import INDEX
from encore.errors import EncoreError

T = TypeVar("T")

FILES_OF_WORKER = 8  # files, for fewer of which a process of their own takes longer to start than to cut them


def is_songs(folder: Path) -> bool:
    """Whether a folder has audio files and nothing that a data set has."""
    prepared = folder.is_file() or any((folder / name).exists() for name in (INDEX, *SPLITS, TEST))
    if prepared or not folder.is_dir():
        return False
    try:
        return bool(find_audio_files(folder))
    except EncoreError:
        return False


def pairs_of_songs(
    songs: Path, cache_dir: Path | None, sample_rate: int, channels: int, log: Callable[[str], None]
) -> Path:
    """The folder of pairs that are cut from a folder of songs; made if it does not exist yet.

    It stands beside the songs, or in `cache_dir`, and its name says for what sample rate and channels it is.

    Args:
        songs: folder with audio files, at any depth.
        cache_dir: of the user's; None for none.
        sample_rate: of the codec, in Hz.
        channels: of the codec.
        log: prints a line to the user: what has been made, or is used again, and where it is.

    Raises:
        EncoreError: the songs are too few or too short, or the folder cannot be written.
    """
    songs = songs.resolve()
    output = (cache_dir or songs.parent) / f"{songs.name}_pairs_{sample_rate}hz_{channels}ch"
    if output.is_dir() and any(output.iterdir()):
        log(f"{songs}: a folder of songs; using the pairs that were cut from it before, in {output}")
        return output
    config = SegmentConfig(sample_rate=sample_rate, channels=channels)
    log(f"{songs}: a folder of songs; cutting pairs from it first")
    workers = min(len(os.sched_getaffinity(0)), len(find_audio_files(songs)) // FILES_OF_WORKER)
    command = f"python prepare_data.py {shlex.quote(str(songs))} --output PAIRS"
    try:
        report = prepare(songs, output, config, workers, Quiet(log))
    except EncoreError as error:
        raise EncoreError(
            f"--dataset_folder {songs}: {error}\nor prepare it with flags of your own: {command}"
        ) from error
    counts = ", ".join(f"{split.pairs} for {name}" for name, split in report.splits.items())
    lengths = f"{config.context_seconds:g} s and the {config.segment_seconds:g} s after them"
    log(f"cut pairs of {lengths} ({counts}) into {output}; for other lengths: {command}")
    return output


class Quiet:
    """Progress without a bar."""

    def __init__(self, log: Callable[[str], None]):
        self.say = log

    def track(self, items: Iterable[T], total: int, done: int) -> Iterable[T]:
        return items
