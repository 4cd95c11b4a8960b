"""The latent cache: each segment is encoded once per codec and then read from shards on disk."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
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
from encore.data.segments import Segments
from encore.errors import EncoreError, listing

SHARD_BYTES = 2**25  # of latents, about a quarter of an hour of audio at 75 frames of 128 values per second
BLOCK_BYTES = 2**21  # of latents that are summed up at once
INDEX = "index.npz"


class LatentCache:
    """Latents of segments by the SHA-256 of their content, so that equal segments of any name are encoded once.

    `FOLDER/<codec identity>/latents-*.safetensors` are the shards: one tensor per content, float16 `[D, T]`, under its
    hexadecimal hash; the rounding error is 66 dB below the latents. A shard is written under another name and then
    renamed, so there are only complete ones. `index.npz` beside them lists which shard holds what; it is made from the
    shards' headers, for those that it does not know.

    Args:
        folder: of the shards.
        segments: whose latents it serves, by their numbers.
    """

    def __init__(self, folder: Path, segments: Segments):
        self.folder, self.segments = folder, segments
        self.names: list[str] = []  # of the shards
        self.sizes: list[int] = []  # of these, in bytes
        self.indexed: set[str] = set()  # shards that the index lists
        self.digests: Bytes = np.zeros((0, DIGEST_BYTES), np.uint8)  # of all contents, shard by shard
        self.places: Numbers = np.zeros((0, 4), np.int64)  # number of the shard, first byte, D and T of each
        self.rows: Numbers = np.full(len(segments), -1)  # of each segment among these

    @classmethod
    def open(cls, folder: Path, identity: str, segments: Segments) -> LatentCache:
        """Opens the cache of a codec.

        Raises:
            EncoreError: the folder cannot be written to, or a shard is damaged.
        """
        cache = cls(folder / identity, segments)
        try:
            cache.folder.mkdir(parents=True, exist_ok=True)
            cache.refresh()
        except (OSError, ValueError, KeyError) as error:
            raise EncoreError(
                f"--cache_dir {folder}: cannot be used ({error}); name another folder or delete it"
            ) from error
        return cache

    def refresh(self) -> None:
        """Reads the index, and the headers of the shards that have been added since."""
        known, shards = self._read_index(), dict[str, Shard]()
        for path in sorted(self.folder.glob("latents-*.safetensors")):
            shard, size = known.get(path.name), path.stat().st_size
            shards[path.name] = shard if shard is not None and shard.size == size else read_shard(path)
        self.names, self.sizes = list(shards), [shard.size for shard in shards.values()]
        self.indexed = set(known)
        self.digests = np.concatenate([self.digests[:0], *(shard.digests for shard in shards.values())])
        self.places = np.empty((len(self.digests), 4), np.int64)
        self.places[:, 0] = np.repeat(np.arange(len(shards)), [len(shard.digests) for shard in shards.values()])
        np.concatenate([self.places[:0, 1:], *(shard.layout for shard in shards.values())], out=self.places[:, 1:])
        del known, shards  # for millions of segments half of the memory
        self.rows = match(self.segments.digests, self.digests)

    def know(self, numbers: Numbers, digests: Bytes) -> None:
        """Takes note of the contents of segments (`Segments.hash`), and finds them among those that are stored."""
        if len(numbers):
            self.segments.digests[numbers] = digests
            self.rows = match(self.segments.digests, self.digests)

    def save_index(self) -> None:
        """Stores the index if it has changed, so that the next start need not read the shards' headers."""
        if self.indexed == set(self.names):
            return
        columns = {
            "names": pack_text(self.names),
            "sizes": np.array(self.sizes, np.int64),
            "counts": np.bincount(self.places[:, 0], minlength=len(self.names)),
        }
        save_columns(self.folder / INDEX, {**columns, "digests": self.digests, "layout": self.places[:, 1:]})

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

    def encode(self, numbers: Numbers, codec: Codec, device: torch.device) -> Iterator[None]:
        """Encodes and stores segments on `device`, yielding after each one. `refresh` makes their latents known.

        Raises:
            EncoreError: after the last one, all segments that cannot be used, each with the reason.
        """
        problems = []
        made: dict[str, np.ndarray] = {}
        size = 0
        try:
            for number in numbers.tolist():
                try:
                    audio = self.segments.read(number, codec.sample_rate, codec.channels)
                except EncoreError as error:
                    problems.append(str(error))
                else:
                    latents = codec.encode(audio[None].to(device))[0].cpu().numpy().astype(np.float16)
                    made[self.segments.digests[number].tobytes().hex()] = np.ascontiguousarray(latents)
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
            EncoreError: the shard is damaged or has been removed.
        """
        shard, first, channels, frames = self.places[self.rows[number]].tolist()
        path = self.folder / self.names[shard]
        try:
            values = np.fromfile(path, np.float16, channels * frames, offset=first)
            return torch.from_numpy(values.reshape(channels, frames))
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error

    def statistics(self, numbers: Numbers) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over all frames of segments, `[D]` each.

        Sums in float64 over one pass through the shards, in which equal segments are read once; the result is stored
        beside the shards, under a hash of the contents that it depends on.
        """
        rows, counts = np.unique(self.rows[numbers], return_counts=True)
        key = hashlib.sha256(self.digests[rows].data)
        key.update(counts.data)
        path = self.folder / f"statistics-{key.hexdigest()[:16]}.npz"
        if not path.is_file():
            mean, deviation = self._sum_up(rows, counts)
            save_columns(path, {"mean": mean, "deviation": deviation})
        try:
            stored = load_columns(path)
            return torch.from_numpy(stored["mean"]), torch.from_numpy(stored["deviation"])
        except (OSError, ValueError, KeyError) as error:
            raise EncoreError(f"{path}: cannot be used ({error}); delete it, and it is made again") from error

    def _sum_up(self, rows: Numbers, counts: Numbers) -> tuple[np.ndarray, np.ndarray]:
        total, sums, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        for number in np.unique(self.places[rows, 0]).tolist():
            path, chosen = self.folder / self.names[number], self.places[rows, 0] == number
            try:
                content = np.fromfile(path, np.uint8)
                for block, weights in _blocks(content, self.places[rows[chosen], 1:], counts[chosen]):
                    latents = torch.from_numpy(block).double()
                    each = torch.from_numpy(weights).double()
                    total += int(weights.sum()) * block.shape[2]
                    sums = sums + torch.einsum("n,ndt->d", each, latents)
                    squares = squares + torch.einsum("n,ndt->d", each, latents.square())
            except (OSError, ValueError) as error:
                raise _damaged(path, error) from error
        mean = sums / total
        deviation = (squares / total - mean.square()).clamp_min(0).sqrt()
        return mean.float().numpy(), deviation.float().numpy()

    def _write(self, tensors: dict[str, np.ndarray]) -> None:
        name = hashlib.sha256("".join(tensors).encode()).hexdigest()[:16]
        temporary = self.folder / f".{uuid.uuid4().hex}.tmp"
        try:
            save_file(tensors, temporary)
            temporary.replace(self.folder / f"latents-{name}.safetensors")
        except (OSError, SafetensorError) as error:
            raise EncoreError(
                f"--cache_dir {self.folder.parent}: cannot be written ({error}); name another folder or free disk space"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _read_index(self) -> dict[str, Shard]:
        """The shards that the index lists, by name."""
        path = self.folder / INDEX
        if not path.is_file():
            return {}
        stored = load_columns(path)
        ends = stored["counts"].cumsum()[:-1]
        sizes, names = stored["sizes"].tolist(), unpack_text(stored["names"], len(stored["sizes"]))
        columns = np.split(stored["digests"], ends), np.split(stored["layout"], ends)
        return {name: Shard(*parts) for name, *parts in zip(names, sizes, *columns, strict=False)}


def _blocks(content: Bytes, layout: Numbers, counts: Numbers) -> Iterator[tuple[np.ndarray, Numbers]]:
    """Latents that lie one after the other in a shard and have one shape, together, `[N, D, T]`, with their counts."""
    first, shapes = layout[:, 0], layout[:, 1:]
    sizes = 2 * shapes.prod(1)
    ends = (first[1:] != first[:-1] + sizes[:-1]) | (shapes[1:] != shapes[:-1]).any(1)
    for run in np.split(np.arange(len(layout)), np.flatnonzero(ends) + 1):
        for part in np.array_split(run, math.ceil(sizes[run].sum() / BLOCK_BYTES)):
            begin, end = first[part[0]], first[part[-1]] + sizes[part[-1]]
            yield content[begin:end].view(np.float16).reshape(len(part), *shapes[part[0]]), counts[part]


@dataclass(frozen=True)
class Shard:
    """What a shard holds.

    Attributes:
        size: in bytes.
        digests: of the contents, `[L, 32]`.
        layout: first byte, D and T of the latents of each, `[L, 3]`.
    """

    size: int
    digests: Bytes
    layout: Numbers


def read_shard(path: Path) -> Shard:
    """Reads the header of a shard.

    Raises:
        EncoreError: it is damaged.
    """
    try:
        with safe_open(path, "np"):  # which verifies that header and size go together
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(path, error) from error
    header.pop("__metadata__", None)
    digests = np.frombuffer(bytes.fromhex("".join(header)), np.uint8).reshape(-1, DIGEST_BYTES)
    layout = [(8 + length + entry["data_offsets"][0], *entry["shape"]) for entry in header.values()]
    return Shard(path.stat().st_size, digests, np.array(layout, np.int64).reshape(-1, 3))


def _damaged(path: Path, error: Exception) -> EncoreError:
    return EncoreError(f"{path}: damaged or removed ({error}); delete it, and its music is encoded again")
