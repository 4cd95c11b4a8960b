"""Segments of music as files: what a data set is made of, numbered, with what is remembered of each file."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch import Tensor

from encore.audio import audio_header, read_audio
from encore.data.index_files import DIGEST_BYTES, Bytes, Numbers, load_columns, pack_text, save_columns, unpack_text
from encore.errors import EncoreError

T = TypeVar("T")

THREADS = 8  # that wait for the disk at once
ABSENT = -1  # length of a segment whose file does not exist


class Segments(ABC):
    """The segments of a data set, of all its splits, by number.

    Attributes:
        samples: length of each at the sample rate of the data set, `[S]`, −1 for a file that does not exist; known once
            `check` has been called.
        digests: SHA-256 of the content of each, `[S, 32]`; zeros where it is not known yet.
    """

    samples: Numbers
    digests: Bytes

    def __len__(self) -> int:
        return len(self.samples)

    @abstractmethod
    def place(self, number: int) -> Path:
        """Where a segment is stored, for messages."""

    @abstractmethod
    def check(self, sample_rate: int, cache_dir: Path) -> dict[int, str]:
        """Finds the lengths of all segments; returns the problems of those that cannot be used, by number."""

    @abstractmethod
    def read(self, number: int, sample_rate: int, channels: int) -> Tensor:
        """A segment as float32 `[channels, N]`.

        Raises:
            EncoreError: it cannot be read, or holds values that are not finite.
        """

    def unhashed(self, numbers: Numbers) -> Numbers:
        """Those of the segments whose content is not known yet."""
        return numbers[~self.digests[numbers].any(1)]

    def hash(self, numbers: Numbers) -> Bytes:
        """SHA-256 of the contents of segments, `[N, 32]`."""
        raise NotImplementedError(f"{type(self).__name__} knows all contents")

    def note(self, numbers: Numbers, digests: Bytes) -> None:
        """Takes note of the contents of segments, as `hash` has found them in this process or in another."""
        self.digests[numbers] = digests

    @abstractmethod
    def remember(self, cache_dir: Path) -> None:
        """Stores what was found out about the segments, so that the next start need not open them."""


class AudioFiles(Segments):
    """Segments that are audio files.

    `CACHE_DIR/files-*.npz` remembers sample rate, length and hash of each file by its name, size and modification
    time, so that a start lists the folders and opens only files that are new or changed.

    Args:
        root: folder of the data set.
        names: of the files, relative to it or absolute.
        sizes: of each in bytes, −1 for a file that does not exist, `[S]`.
        times: of their last modification, in nanoseconds, `[S]`.
    """

    def __init__(self, root: Path, names: Sequence[str], sizes: Numbers, times: Numbers):
        self.root, self.names, self.sizes, self.times = root, names, sizes, times
        self.samples, self.rates = np.where(sizes == ABSENT, ABSENT, 0), np.zeros(len(names), np.int64)
        self.digests = np.zeros((len(names), DIGEST_BYTES), np.uint8)
        self._stored = False

    @classmethod
    def of_paths(cls, root: Path, paths: Sequence[Path]) -> AudioFiles:
        """Files anywhere, of the data set in `root`."""
        sizes, times = np.zeros((2, len(paths)), np.int64)
        for number, path in enumerate(paths):
            try:
                status = path.stat()
                sizes[number], times[number] = status.st_size, status.st_mtime_ns
            except OSError:
                sizes[number] = ABSENT
        return cls(root, [os.path.abspath(path) for path in paths], sizes, times)

    def place(self, number: int) -> Path:
        return self.root / self.names[number]

    def check(self, sample_rate: int, cache_dir: Path) -> dict[int, str]:
        self._recall(self._index(cache_dir))
        new = np.flatnonzero((self.rates == 0) & (self.samples != ABSENT))
        problems = {}
        for number, found in zip(new.tolist(), _by_threads(self._header, new), strict=True):
            if isinstance(found, str):
                problems[number] = found
            else:
                self.samples[number], self.rates[number] = found
        self._stored = self._stored and not len(new)
        for number in np.flatnonzero((self.rates != sample_rate) & (self.rates != 0)).tolist():
            problems[number] = (
                f"{self.place(number)}: {self.rates[number]} Hz, but the codec works at {sample_rate} Hz; "
                "prepare_data.py resamples"
            )
        return problems

    def _header(self, number: int) -> tuple[int, int] | str:
        """Length and sample rate of a file, or why it cannot be used."""
        try:
            return audio_header(self.place(number))
        except EncoreError as error:
            return str(error)

    def read(self, number: int, sample_rate: int, channels: int) -> Tensor:
        """Also raises EncoreError if the content is not the one that `digests` knows."""
        path, known = self.place(number), self.digests[number].tobytes()
        if any(known) and _digest(path) != known:
            raise EncoreError(
                f"{path}: damaged or changed since it was first read, its checksum is another; restore it, or touch it "
                "if it is right as it is"
            )
        return read_audio(path, sample_rate, channels)

    def note(self, numbers: Numbers, digests: Bytes) -> None:
        super().note(numbers, digests)
        self._stored = self._stored and not len(numbers)

    def hash(self, numbers: Numbers) -> Bytes:
        digests = list(_by_threads(lambda number: _digest(self.place(number)), numbers))
        return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)

    def remember(self, cache_dir: Path) -> None:
        if self._stored:
            return
        columns = {name: getattr(self, name) for name in ("sizes", "times", "samples", "rates", "digests")}
        save_columns(self._index(cache_dir), {"names": pack_text(self.names), **columns})
        self._stored = True

    def _index(self, cache_dir: Path) -> Path:
        """The index of this data set: several can share a cache, and one can be moved together with its cache."""
        place = os.path.relpath(self.root.resolve(), cache_dir.resolve())
        return cache_dir / f"files-{hashlib.sha256(os.fsencode(place)).hexdigest()[:12]}.npz"

    def _recall(self, index: Path) -> None:
        """Takes over what an index says about files that have not changed since."""
        if not index.is_file():
            return
        try:
            stored = load_columns(index)
            count = len(stored["sizes"])
            names = unpack_text(stored["names"], count)
            here = np.arange(len(self.names))
            there = here
            if names != list(self.names):
                rows = {name: row for row, name in enumerate(names)}
                there = np.array([rows.get(name, -1) for name in self.names], np.int64)
                here, there = here[there >= 0], there[there >= 0]
            same = (stored["sizes"][there] == self.sizes[here]) & (stored["times"][there] == self.times[here])
            here, there = here[same], there[same]
            for name in ("samples", "rates", "digests"):
                getattr(self, name)[here] = stored[name][there]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise EncoreError(f"{index}: cannot be used ({error}); delete it, and all files are read again") from error
        self._stored = count == len(here) == len(self.names)


def _by_threads(function: Callable[[int], T], numbers: Numbers) -> Iterable[T]:
    """`function` of each number, in their order."""
    if not len(numbers):
        return []
    blocks = np.array_split(numbers, max(1, len(numbers) // 64))
    with ThreadPoolExecutor(THREADS) as pool:
        return [
            result
            for block in pool.map(lambda block: [function(n) for n in block.tolist()], blocks)
            for result in block
        ]


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise EncoreError(
            f"{path}: cannot be read ({error.strerror or error}); restore it or remove the pair"
        ) from error
    return digest.digest()
