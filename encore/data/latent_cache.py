"""The latent cache: each segment is encoded once per codec and then read from shards on disk."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encore.codecs import Codec
from encore.data.index_files import (
    DIGEST_BYTES,
    Bytes,
    Numbers,
    first_of_each,
    load_columns,
    match,
    pack_text,
    save_columns,
    unpack_text,
)
from encore.data.latent_shards import PATTERN, Checksums, Shard, checksum, is_finite, read_shard, write_shard
from encore.data.segments import Segments
from encore.errors import EncoreError, RestartError, disk_space, listing

SHARD_BYTES = 2**25  # of latents, about a quarter of an hour of audio at 75 frames of 128 values per second
LEFT_OVER = 3600  # seconds after which a temporary file is one of a process that was killed
INDEX = "index.npz"
AGAIN = "; start again (training: with --resume auto), and its music is encoded again"


class LatentCache:
    """Latents of segments by the SHA-256 of their content, so that equal segments of any name are encoded once.

    `FOLDER/<codec identity>/latents-*.safetensors` are the shards: one tensor per content, float16 `[D, T]`, under its
    hexadecimal hash; the rounding error is 66 dB below the latents. A shard is written under another name and then
    renamed, so there are only complete ones. `index.npz` beside them lists which shard holds what; it is made from the
    shards' headers, for those that it does not know.

    Whatever is read is compared with its checksum. A damaged shard is deleted, so that its segments are encoded again.

    Args:
        folder: of the shards.
        codec: whose latents they are; only its shapes are kept.
        segments: whose latents it serves, by their numbers.

    Attributes:
        notes: a line about each file that was damaged and has been deleted.
    """

    def __init__(self, folder: Path, codec: Codec, segments: Segments):
        self.folder, self.segments = folder, segments
        self.latent_dim, self.hop_length = codec.latent_dim, codec.hop_length
        self.notes: list[str] = []
        self.names: list[str] = []  # of the shards
        self.sizes: list[int] = []  # of these, in bytes
        self.indexed: set[str] = set()  # shards that the index lists
        self.digests: Bytes = np.zeros((0, DIGEST_BYTES), np.uint8)  # of all contents, shard by shard
        self.places: Numbers = np.zeros((0, 4), np.int64)  # number of the shard, first byte, D and T of each
        self.checksums: Checksums = np.zeros(0, np.uint32)  # of each
        self.rows: Numbers = np.full(len(segments), -1)  # of each segment among these

    @classmethod
    def open(cls, folder: Path, codec: Codec, segments: Segments) -> LatentCache:
        """Opens the cache of a codec.

        Raises:
            EncoreError: the folder cannot be used.
        """
        cache = cls(folder / codec.identity, codec, segments)
        with cache._usable():
            cache.folder.mkdir(parents=True, exist_ok=True)
            cache._delete_left_over()
        cache.refresh()
        return cache

    def refresh(self) -> None:
        """Reads the index, and the headers of the shards that have been added since; deletes damaged ones.

        Raises:
            EncoreError: the folder cannot be used.
        """
        with self._usable():
            known = self._read_index()
            shards = self._read_shards(known)
        self.names, self.sizes = list(shards), [shard.size for shard in shards.values()]
        self.indexed = set(known)
        self.digests = np.concatenate([self.digests[:0], *(shard.digests for shard in shards.values())])
        self.checksums = np.concatenate([self.checksums[:0], *(shard.checksums for shard in shards.values())])
        self.places = np.empty((len(self.digests), 4), np.int64)
        self.places[:, 0] = np.repeat(np.arange(len(shards)), [len(shard.digests) for shard in shards.values()])
        np.concatenate([self.places[:0, 1:], *(shard.layout for shard in shards.values())], out=self.places[:, 1:])
        del known, shards  # for millions of segments half of the memory
        self._match()

    def know(self, numbers: Numbers, digests: Bytes) -> None:
        """Takes note of the contents of segments (`Segments.hash`), and finds them among those that are stored."""
        if len(numbers):
            self.segments.note(numbers, digests)
            self._match()

    def save_index(self) -> None:
        """Stores the index if it has changed, so that the next start need not read the shards' headers.

        Raises:
            EncoreError: it cannot be written.
        """
        if self.indexed == set(self.names):
            return
        columns = {
            "names": pack_text(self.names),
            "sizes": np.array(self.sizes, np.int64),
            "counts": np.bincount(self.places[:, 0], minlength=len(self.names)),
            "digests": self.digests,
            "layout": self.places[:, 1:],
            "checksums": self.checksums,
        }
        self.save(INDEX, columns)

    def content_hash(self, numbers: Sequence[int] | Numbers) -> str:
        """SHA-256 of the contents of segments in their order, hexadecimal; takes no file to be read."""
        return hashlib.sha256(self.segments.digests[np.asarray(numbers, np.int64)].data).hexdigest()

    def missing(self, numbers: Numbers) -> Numbers:
        """Those of the segments without stored latents, one of those with equal content; all contents must be known."""
        absent = numbers[self.rows[numbers] < 0]
        return absent[first_of_each(self.segments.digests[absent])]

    def complete(self, numbers: Numbers, codec: Codec, device: torch.device) -> None:
        """Hashes and encodes whatever is new among segments.

        Raises:
            EncoreError: the folder cannot be written to, or segments cannot be used.
        """
        new = self.segments.unhashed(numbers)
        self.know(new, self.segments.hash(new))
        self.segments.remember(self.folder.parent)
        missing = self.missing(numbers)
        if len(missing):
            for _ in self.encode(missing, codec, device):
                pass
            self.refresh()
        self.save_index()

    def encode(self, numbers: Numbers, codec: Codec, device: torch.device) -> Generator[None, None, None]:
        """Encodes and stores segments on `device`, yielding after each one. `refresh` makes their latents known.

        Raises:
            EncoreError: a shard cannot be written; after the last one, all segments that cannot be used, each with the
                reason.
        """
        problems = []
        made: dict[str, np.ndarray] = {}
        size = 0
        try:
            for number in numbers.tolist():
                try:
                    latents = self._encoded(number, codec, device)
                except EncoreError as error:
                    problems.append(str(error))
                else:
                    made[self.segments.digests[number].tobytes().hex()] = latents
                    size += latents.nbytes
                    if size >= SHARD_BYTES:
                        self._write(made)
                        made, size = {}, 0
                yield
        finally:
            if made:
                self._write(made)
        if problems:
            raise EncoreError(listing(problems))

    def load(self, number: int) -> Tensor:
        """Latents of a segment, float16 `[D, T]`.

        Raises:
            RestartError: they are damaged, or have been removed; a new start encodes the segment again.
            EncoreError: they cannot be read.
        """
        row = int(self.rows[number])
        if row < 0:
            raise RestartError(f"{self.segments.place(number)}: has no latents in {self.folder}{AGAIN}")
        shard, first, channels, frames = self.places[row].tolist()
        path = self.folder / self.names[shard]
        try:
            values = np.fromfile(path, np.float16, channels * frames, offset=first)
        except FileNotFoundError as error:
            raise RestartError(f"{path}: was deleted during the run{AGAIN}") from error
        except OSError as error:
            raise EncoreError(f"{path}: cannot be read ({error.strerror or error}); delete it{AGAIN}") from error
        problem = None
        if len(values) < channels * frames:
            problem = "it has become shorter"
        elif checksum(values) != self.checksums[row]:
            problem = f"another checksum at byte {first}"
        elif not is_finite(values):
            problem = "values that are not finite"
        if problem is not None:
            self.delete(path, problem)
            raise RestartError(f"{self.notes[-1]}{AGAIN}")
        return torch.from_numpy(values.reshape(channels, frames))

    def save(self, name: str, columns: Mapping[str, Any]) -> None:
        """Stores an index file beside the shards.

        Raises:
            EncoreError: it cannot be written.
        """
        with self._usable(), disk_space(self.folder / name, "an index"):
            save_columns(self.folder / name, columns)

    def _match(self) -> None:
        """Finds the segments' contents among those that are stored.

        A shard whose latents are too short for their segments is deleted, like a damaged one.
        """
        self.rows = match(self.segments.digests, self.digests)
        stored = np.flatnonzero(self.rows >= 0)
        places = self.places[self.rows[stored]]
        short = places[:, 3] < self.segments.samples[stored] // self.hop_length
        if short.any():
            for shard in np.unique(places[short, 0]).tolist():
                self.delete(self.folder / self.names[shard], "latents that are shorter than their segments")
            self.refresh()

    def _encoded(self, number: int, codec: Codec, device: torch.device) -> np.ndarray:
        audio = self.segments.read(number, codec.sample_rate, codec.channels)
        latents = codec.encode(audio[None].to(device))[0].cpu().half().contiguous().numpy()
        if not is_finite(latents):
            raise EncoreError(
                f"{self.segments.place(number)}: the codec's latents of it are not finite numbers; remove the pair"
            )
        return latents

    def _write(self, latents: dict[str, np.ndarray]) -> None:
        with self._usable(), disk_space(self.folder, "latents"):
            write_shard(self.folder, latents)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EncoreError(
                f"--cache_dir {self.folder.parent}: cannot be used ({error}); name another folder"
            ) from error

    def delete(self, path: Path, problem: str) -> None:
        """Deletes a damaged file, which can be made again, and says so in `notes`."""
        path.unlink(missing_ok=True)
        self.notes.append(f"{path}: damaged ({problem}) and deleted")

    def _delete_left_over(self) -> None:
        """Deletes the temporary files of processes that were killed."""
        for path in self.folder.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - LEFT_OVER:
                    path.unlink()

    def _read_shards(self, known: Mapping[str, Shard]) -> dict[str, Shard]:
        """All shards by name; those that are not `known`, or whose size has changed, from their headers."""
        shards = {}
        for path in sorted(self.folder.glob(PATTERN)):
            with suppress(FileNotFoundError):  # another rank has deleted it
                try:
                    shard, size = known.get(path.name), path.stat().st_size
                    if shard is None or shard.size != size:
                        shard = read_shard(path, self.latent_dim)
                    shards[path.name] = shard
                except ValueError as error:
                    self.delete(path, str(error))
        return shards

    def _read_index(self) -> dict[str, Shard]:
        """The shards that the index lists, by name; none if it is damaged, as it can be made again."""
        path = self.folder / INDEX
        if not path.is_file():
            return {}
        try:
            stored = load_columns(path)
            ends = stored["counts"].cumsum()[:-1]
            sizes, names = stored["sizes"].tolist(), unpack_text(stored["names"], len(stored["sizes"]))
            columns = [np.split(stored[name], ends) for name in ("digests", "layout", "checksums")]
            return {name: Shard(*parts) for name, *parts in zip(names, sizes, *columns, strict=False)}
        except (ValueError, KeyError, TypeError) as error:
            self.delete(path, str(error))
            return {}
