"""Reading, writing and resampling audio: soundfile for the formats, soxr for the sample rates; no ffmpeg."""

from __future__ import annotations

import contextlib
import io
import math
import os
import random
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from encore.errors import EncoreError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
MAX_RIFF_BYTES = 2**32 - 2**16  # of audio; the rest is for the header
EXCERPT_MARGIN_SECONDS = 0.05  # around an excerpt, for the resampler's filter
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1000, 1_000_000  # Hz
MAX_SAMPLES_PER_BYTE = 2000  # of a file, all channels counted: FLAC of nothing but silence has a few hundred
MAX_CHUNKS = 10_000  # of a wav
SHORTEST_SECONDS = 0.2  # of a segment; the longest window of the common spectral losses has 2048 samples

T = TypeVar("T")


def find_audio_files(folder: Path) -> list[Path]:
    """All wav, flac, ogg and mp3 files below `folder`, sorted; hidden files and folders are skipped.

    Raises:
        EncoreError: the folder does not exist or holds no such file.
    """
    if not folder.is_dir():
        raise EncoreError(f"{folder}: no such folder; give a folder with {', '.join(AUDIO_SUFFIXES)} files")
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in AUDIO_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise EncoreError(f"{folder}: no {', '.join(AUDIO_SUFFIXES)} file in it; give a folder of music")
    return found


def split_whole(recordings: Sequence[T], val_fraction: float, seed: int) -> tuple[list[T], list[T]]:
    """Splits recordings into those for training and those for validation, at least one each, in their order.

    Args:
        recordings: at least two.
        val_fraction: share for validation.
        seed: determines the split.
    """
    shuffled = list(range(len(recordings)))
    random.Random(seed).shuffle(shuffled)
    held_out = min(max(1, round(val_fraction * len(recordings))), len(recordings) - 1)
    train, val = sorted(shuffled[held_out:]), sorted(shuffled[:held_out])
    return [recordings[index] for index in train], [recordings[index] for index in val]


def to_channels(audio: Tensor, channels: int) -> Tensor:
    """`[C, N]` to `[channels, N]`: mono is the mean of all channels; stereo repeats mono, or keeps the first two."""
    if audio.shape[0] == channels:
        return audio
    if channels == 1:
        return audio.mean(0, keepdim=True)
    return audio.expand(channels, -1) if audio.shape[0] == 1 else audio[:channels]


def read_audio(path: Path, sample_rate: int, channels: int, content: bytes | None = None) -> Tensor:
    """Reads a file as float32 `[channels, N]` at `sample_rate` Hz.

    Args:
        content: of the file, if it is a part of another one; `path` is then for messages only.

    Raises:
        EncoreError: the file cannot be read, is truncated, is empty, has a header that cannot be true, does not fit
            into memory, or holds values that are not finite.
    """
    with _naming(path):
        audio, file_rate = _part(path, channels, content=content)
        return resample(audio, file_rate, sample_rate)


def audio_header(path: Path) -> tuple[int, int]:
    """Samples of a file at its own rate, and that rate in Hz, from its header.

    Raises:
        EncoreError: the file cannot be read, is truncated, or has a header that cannot be true.
    """
    with _naming(path), _opened(path) as file:
        return int(file.frames), int(file.samplerate)


def audio_length(path: Path, sample_rate: int) -> int:
    """Samples of a file at `sample_rate` Hz, from its header; raises as `audio_header`."""
    frames, rate = audio_header(path)
    return int(frames * sample_rate / rate + 0.5)


def read_excerpt(path: Path, sample_rate: int, channels: int, start: int, end: int) -> Tensor:
    """Samples `start … end − 1` (or to the end of a shorter file) of what `read_audio` returns; reads no more of it.

    Equal to that up to −90 dB where the file has another sample rate.

    Raises:
        EncoreError: as `read_audio`, for what is read.
    """
    _, file_rate = audio_header(path)
    if file_rate == sample_rate:
        with _naming(path):
            return _part(path, channels, start, end)[0].contiguous()
    step = file_rate // math.gcd(file_rate, sample_rate)  # samples that are a whole number of samples at both rates
    around = round(EXCERPT_MARGIN_SECONDS * file_rate)
    first = max(0, start * file_rate // sample_rate - around) // step * step
    before = first * sample_rate // file_rate
    with _naming(path):
        audio, _ = _part(path, channels, first, -(-end * file_rate // sample_rate) + around)
        return resample(audio, file_rate, sample_rate)[:, start - before : end - before].contiguous()


def _part(
    path: Path, channels: int, start: int = 0, stop: int | None = None, content: bytes | None = None
) -> tuple[Tensor, int]:
    """Samples `start … stop − 1` of a file at its own rate, `[channels, N]`, and that rate in Hz."""
    with _opened(path, content) as file:
        wanted = max(0, (file.frames if stop is None else min(stop, file.frames)) - start)
        if start and wanted:
            file.seek(start)
        samples = file.read(wanted, dtype="float32", always_2d=True)
        if len(samples) < wanted and file.format != "MP3":  # whose header may be an estimate
            raise EncoreError(
                f"{path}: truncated, its header declares {file.frames} samples, but there are {start + len(samples)}; "
                "copy or export it again"
            )
        rate = int(file.samplerate)
    if not len(samples):
        raise EncoreError(f"{path}: holds no samples; remove it")
    if not np.isfinite(samples).all():
        raise EncoreError(f"{path}: holds NaN or infinite samples; export it again or remove it")
    return to_channels(torch.from_numpy(samples.T), channels), rate


@contextlib.contextmanager
def _opened(path: Path, content: bytes | None = None) -> Iterator[soundfile.SoundFile]:
    """An audio file whose header can be true."""
    if content is None:
        check_complete(path)
    size = os.path.getsize(path) if content is None else len(content)
    # As bytes, because libsndfile takes names that are not UTF-8 in no other way.
    with soundfile.SoundFile(os.fsencode(path) if content is None else io.BytesIO(content)) as file:
        if not MIN_SAMPLE_RATE <= file.samplerate <= MAX_SAMPLE_RATE:
            raise EncoreError(
                f"{path}: claims {file.samplerate} Hz, but rates from {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz can be "
                "read; export it again"
            )
        if file.frames * file.channels > MAX_SAMPLES_PER_BYTE * size:
            raise EncoreError(
                f"{path}: its header claims {file.frames} samples, or does not know how many; it has {size} bytes. "
                "Export it again"
            )
        yield file


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What cannot be read is an EncoreError with the file's name."""
    try:
        yield
    except soundfile.LibsndfileError as error:  # whose text has the name once more
        raise EncoreError(f"{path}: cannot be read as audio ({error.error_string.strip()})") from error
    except (OSError, soundfile.SoundFileError, struct.error) as error:
        raise EncoreError(f"{path}: cannot be read as audio ({error})") from error
    except MemoryError as error:
        raise EncoreError(f"{path}: does not fit into memory; cut it into shorter files") from error


def resample(audio: Tensor, from_rate: float, to_rate: float) -> Tensor:
    """`[C, N]` at `from_rate` Hz to about `N * to_rate / from_rate` samples at `to_rate` Hz (soxr, high quality)."""
    if from_rate == to_rate:
        return audio.contiguous()
    return torch.from_numpy(soxr.resample(audio.T.numpy(), from_rate, to_rate).T).contiguous()


def check_complete(path: Path) -> None:
    """Raises EncoreError if the header of a RIFF or RF64 wav declares more data than the file holds.

    libsndfile reads such a file without an error and returns what is there.
    """
    size = regular_size(path)
    if path.suffix.lower() != ".wav":
        return
    with open(path, "rb") as file:
        if file.read(4) not in (b"RIFF", b"RF64"):
            return
        file.seek(12)
        long = 0  # length of the audio in an RF64, which has it in a chunk of its own
        for _ in range(MAX_CHUNKS):
            if len(header := file.read(8)) < 8:
                return
            name, length = struct.unpack("<4sI", header)
            start = file.tell()
            if name == b"ds64":
                _, long = struct.unpack("<QQ", file.read(16))
            if name == b"data" and length == 0xFFFFFFFF and long:
                length = long
            # Programs that write to a pipe leave the length at its maximum: the real one is unknown then.
            if name == b"data" and not 0xFFFFFFFF - 4096 <= length <= 0xFFFFFFFF and start + length > size:
                raise EncoreError(
                    f"{path}: truncated, its header declares {length} bytes of audio, but {size - start} are there; "
                    "copy or export it again"
                )
            file.seek(min(start + length + length % 2, size))
    raise EncoreError(f"{path}: has more than {MAX_CHUNKS} parts; export it again")


def regular_size(path: Path) -> int:
    """Size of a file in bytes. A pipe or a device, from which reading might never end, is an OSError."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a file")
    return status.st_size


def write_wav(path: Path, audio: Tensor, sample_rate: int) -> None:
    """Writes float audio `[C, N]` as a 16-bit wav; samples beyond ±1 are clipped."""
    with _writing(path):
        soundfile.write(os.fsencode(path), _clipped(audio), sample_rate, subtype="PCM_16")


def start_wav(path: Path, channels: int, sample_rate: int, samples: int) -> None:
    """Creates an empty 16-bit wav that will grow to `samples` samples: an RF64 if these are too many for a RIFF."""
    kind = "WAV" if 2 * channels * samples < MAX_RIFF_BYTES else "RF64"
    with _writing(path), soundfile.SoundFile(os.fsencode(path), "w", sample_rate, channels, "PCM_16", format=kind):
        pass


def append_wav(path: Path, audio: Tensor) -> None:
    """Appends `[C, N]` to a wav, which is a complete file before and after; samples beyond ±1 are clipped."""
    with _writing(path), soundfile.SoundFile(os.fsencode(path), "r+") as file:
        file.seek(0, soundfile.SEEK_END)
        file.write(_clipped(audio))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What cannot be written is an EncoreError with the file's name. libsndfile does not tell why."""
    try:
        yield
    except (OSError, soundfile.SoundFileError, AssertionError) as error:  # an assertion of soundfile's: too few bytes
        raise EncoreError(f"{path}: cannot be written; make space there, or name another folder") from error


def _clipped(audio: Tensor) -> np.ndarray:
    return audio.detach().cpu().float().clamp(-1, 1).numpy().T
