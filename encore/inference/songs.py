"""The songs that are continued: what is read of each, and what the folders with their continuations are called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from encore.audio import audio_length, find_audio_files, read_excerpt
from encore.errors import EncoreError
from encore.inference.config import SampleConfig
from encore.inference.continuation import context_of
from encore.models.loading import Generator

MAX_NAME = 200  # bytes of a folder's name; file systems allow 255
SHOWN_SECONDS = 60.0  # of a continuation, at most, in spectrograms, page and table
MIN_TRUTH_SECONDS = 0.25  # less than that is not compared


@dataclass(frozen=True)
class Song:
    """What is known of a song.

    Attributes:
        path: its file.
        context: the end of what the model is given, `[C, K]`.
        end: second of the song where the continuation begins.
        truth: what really follows, `[C, N]`, up to as much as will be shown; None if that is less than 0.25 s.
    """

    path: Path
    context: Tensor
    end: float
    truth: Tensor | None


def read_song(config: SampleConfig, path: Path, generator: Generator) -> Song:
    """Reads the context and what follows it, from --target, else from the song after --start, and no more.

    Raises:
        EncoreError: a file cannot be read, --start lies beyond the song's end, there is less than a second before it,
            or --target is shorter than 0.25 s.
    """
    codec = generator.codec
    rate, channels, start, target = codec.sample_rate, codec.channels, config.start, config.target
    length = audio_length(path, rate)
    if start is not None and start * rate > length:
        raise EncoreError(f"--start {start:g}: {path} ends at {length / rate:.2f} s; give an earlier second")
    end = length if start is None else round(start * rate)
    first = max(0, end - generator.context_frames * codec.hop_length)
    shown = round(min(config.seconds, SHOWN_SECONDS) * rate)
    audio = read_excerpt(path, rate, channels, first, end if target is not None else end + shown)
    context = context_of(generator, audio[:, : end - first])
    truth = audio[:, end - first :] if target is None else read_excerpt(target, rate, channels, 0, shown)
    if truth.shape[-1] >= MIN_TRUTH_SECONDS * rate:
        return Song(path, context, end / rate, truth)
    if target is not None:
        raise EncoreError(
            f"--target {target}: only {truth.shape[-1] / rate:.2f} s to compare; at least {MIN_TRUTH_SECONDS} s needed"
        )
    return Song(path, context, end / rate, None)


def find_songs(config: SampleConfig) -> list[Path]:
    """The songs of --inputs; what lies in --output is none.

    Raises:
        EncoreError: there are none.
    """
    assert config.inputs is not None
    output = config.output.resolve()
    try:
        found = find_audio_files(config.inputs)
    except EncoreError as error:
        raise EncoreError(f"--inputs {error}") from error
    songs = [path for path in found if output not in path.resolve().parents]
    if not songs:
        raise EncoreError(f"--inputs {config.inputs}: no song in it but those in --output {config.output}")
    return songs


def output_names(songs: Sequence[Path], folder: Path) -> list[str]:
    """A name for each song's folder of results: its path within `folder`, in one level and without a suffix.

    A name never leads out of the folder that it is made in, and is no longer than file systems allow. Songs whose names
    would be equal, in upper or lower case, keep the suffix, or get a number.
    """
    taken, names = {"index.html"}, []
    stems = [_short("_".join(song.relative_to(folder).with_suffix("").parts)) for song in songs]
    for song, stem in zip(songs, stems, strict=True):
        alike = [other for other in stems if other.casefold() == stem.casefold()]
        base = name = stem if len(alike) == 1 else stem + song.suffix
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _short(name: str) -> str:
    encoded = os.fsencode(name)
    return name if len(encoded) <= MAX_NAME else encoded[:MAX_NAME].decode("utf-8", "ignore")
