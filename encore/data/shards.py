"""Shards: the segments of a data set as FLAC in a few tar files (WebDataset's layout), and an index of the pairs.

`FOLDER/shard-000000.tar` holds `RECORDING/START.flac` for each piece of music, START in samples. Inputs and outputs
consist of one or more pieces that follow each other, so that music that is in several of them is stored once; those of
altered copies are in `altered-000000.tar`. Any tar program and the package webdataset read the shards.
`FOLDER/index.npz` says where each piece begins, so that any of them is read without the others, which pieces make each
segment, and which segments are the pairs of each split.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from encore.audio import read_audio
from encore.data.index_files import DIGEST_BYTES, Bytes, Numbers, load_columns, pack_text, save_columns, unpack_text
from encore.data.pairs import SPLITS, TEST, Pairs
from encore.data.segments import Segments
from encore.errors import EncoreError, listing

INDEX = "index.npz"
VERSION = 2
SHARD_BYTES = 2**27  # of audio, about an hour and a quarter of 24 kHz mono

Member = tuple[
    int, int, int, str
]  # of a piece: first sample in the recording, first byte and bytes in the shard, SHA-256


class ShardedSegments(Segments):
    """Segments in shards.

    Args:
        folder: of the data set.
        columns: of its index.
    """

    def __init__(self, folder: Path, columns: dict[str, np.ndarray]):
        self.folder = folder
        self.rate, self.samples, self.digests = int(columns["rate"]), columns["samples"], columns["digests"]
        self.shards = unpack_text(columns["shards"], len(columns["shard_sizes"]))
        self.shard_sizes, self.places, self.pieces = columns["shard_sizes"], columns["places"], columns["pieces"]

    def place(self, number: int) -> Path:
        shard, first, _ = self.places[self.pieces[number, 0]].tolist()
        return self.folder / f"{self.shards[shard]}, byte {first}"

    def check(self, sample_rate: int, cache_dir: Path) -> dict[int, str]:
        """Raises EncoreError for another sample rate, and for shards that are missing or of another size."""
        if self.rate != sample_rate:
            raise EncoreError(
                f"{self.folder}: {self.rate} Hz, but the codec works at {sample_rate} Hz; "
                f"make it again with prepare_data.py --sample_rate {sample_rate}"
            )
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(self.folder) if entry.is_file()}
        problems = []
        for name, size in zip(self.shards, self.shard_sizes.tolist(), strict=True):
            if sizes.get(name) != size:
                found = f"{sizes[name]} bytes long" if name in sizes else "missing"
                problems.append(f"{self.folder / name}: {found}, it should have {size}; copy it again")
        if problems:
            raise EncoreError(listing(problems))
        return {}

    def read(self, number: int, sample_rate: int, channels: int) -> Tensor:
        piece, count = self.pieces[number].tolist()
        places = self.places[piece : piece + count].tolist()
        shard = places[0][0]  # a recording lies in one shard
        try:
            with open(self.folder / self.shards[shard], "rb", buffering=0) as file:
                contents = [os.pread(file.fileno(), size, first) for _, first, size in places]
        except OSError as error:
            raise EncoreError(f"{self.place(number)}: cannot be read ({error.strerror}); copy it again") from error
        if segment_digest([hashlib.sha256(content).digest() for content in contents]) != self.digests[number].tobytes():
            raise EncoreError(f"{self.place(number)}: damaged, its checksum is another; copy the shard again")
        place = self.place(number)
        audio = torch.cat([read_audio(place, sample_rate, channels, content) for content in contents], -1)
        if audio.shape[-1] != self.samples[number]:
            raise EncoreError(
                f"{place}: {audio.shape[-1]} samples instead of {self.samples[number]}; copy the data set again"
            )
        return audio

    def hash(self, numbers: Numbers) -> Bytes:
        return self.digests[numbers]

    def remember(self, cache_dir: Path) -> None:
        """Does nothing: the index knows all."""


def segment_digest(pieces: Sequence[bytes]) -> bytes:
    """SHA-256 of a segment from those of its pieces: of the only one, or of all one after the other."""
    return pieces[0] if len(pieces) == 1 else hashlib.sha256(b"".join(pieces)).digest()


class NumberedNames:
    """`pair_0000` and so on."""

    def __init__(self, total: int):
        self.total, self.width = total, max(4, len(str(total - 1)))

    def __getitem__(self, index: int) -> str:
        return f"pair_{range(self.total)[index]:0{self.width}d}"


class CodedNames:
    """A name for each code."""

    def __init__(self, codes: Numbers, names: Sequence[str]):
        self.codes, self.names = codes, names

    def __getitem__(self, index: int) -> str:
        return self.names[self.codes[index]]


def find_shards(folder: Path) -> dict[str, Pairs]:
    """The pairs that `folder/index.npz` lists.

    Raises:
        EncoreError: the index is damaged or of a later version.
    """
    try:
        columns = load_columns(folder / INDEX)
        if (version := int(columns["version"])) != VERSION:
            raise ValueError(f"version {version} instead of {VERSION}")
        check_columns(columns)
        segments = ShardedSegments(folder, columns)
        recordings = unpack_text(columns["recordings"], count := int(columns["recording_count"]))
        if len(recordings) != count:
            raise ValueError(f"{len(recordings)} names of {count} recordings")
        splits = [*SPLITS, TEST] if TEST in columns else SPLITS
        return {split: _pairs(segments, columns[split], recordings) for split in splits}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise EncoreError(f"{folder / INDEX}: cannot be used ({error}); copy or prepare the data set again") from error


def check_columns(columns: Mapping[str, np.ndarray]) -> None:
    """Checks that the numbers of an index name pieces, segments and recordings that there are, and files in its folder.

    Raises:
        ValueError: they don't.
        KeyError: a column is missing.
    """
    splits = [split for split in (*SPLITS, TEST) if split in columns]
    for name, width in [("places", 3), ("pieces", 2), *((split, 3) for split in (*SPLITS, *splits))]:
        if columns[name].ndim != 2 or columns[name].shape[1] != width or columns[name].dtype != np.int64:
            raise ValueError(f"{name} is not a table of {width} columns")
    for name in ("shard_sizes", "samples"):
        if columns[name].ndim != 1 or columns[name].dtype != np.int64:
            raise ValueError(f"{name} is not a column of numbers")
    places, pieces, sizes, samples = (columns[name] for name in ("places", "pieces", "shard_sizes", "samples"))
    if columns["digests"].shape != (len(pieces), DIGEST_BYTES) or columns["digests"].dtype != np.uint8:
        raise ValueError("digests are not one for each segment")
    names = unpack_text(columns["shards"], len(sizes))
    if len(names) != len(sizes):
        raise ValueError(f"{len(names)} names of {len(sizes)} shards")
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise ValueError(f"the shard {name!r} would lie outside of the folder")
    check_range("places", places[:, 0], 0, len(sizes))
    check_range("places", places[:, 1:], 0, 2**62)
    if (places[:, 1] + places[:, 2] > sizes[places[:, 0]]).any():
        raise ValueError("a piece would lie beyond the end of its shard")
    check_range("pieces", pieces[:, 0], 0, len(places))
    check_range("pieces", pieces[:, 1], 1, len(places) - pieces[:, 0] + 1)
    if len(samples) != len(pieces) or (samples // pieces[:, 1] * pieces[:, 1] != samples).any():
        raise ValueError("samples are not whole pieces")
    check_range("samples", samples, 1, 2**48)
    for split in splits:
        check_range(split, columns[split][:, :2], 0, len(pieces))
        check_range(split, columns[split][:, 2], 0, int(columns["recording_count"]))


def check_range(name: str, numbers: Numbers, least: int, below: int | Numbers) -> None:
    """Raises ValueError unless all `numbers` lie from `least` to before `below`."""
    if ((numbers < least) | (numbers >= below)).any():
        raise ValueError(f"{name} names what there is not")


def _pairs(segments: Segments, rows: Numbers, recordings: Sequence[str]) -> Pairs:
    inputs, outputs, codes = rows.T
    return Pairs(segments, inputs, outputs, NumberedNames(len(rows)), CodedNames(codes, recordings))


@dataclass(frozen=True)
class ShardIndex:
    """What a data set of shards consists of.

    Attributes:
        rate: sample rate, Hz.
        samples: length of a piece.
        shards: names of the shards.
        sizes: of these, in bytes.
        places: number of the shard, first byte and bytes of each piece, `[N, 3]`.
        digests: SHA-256 of each piece's FLAC, `[N, 32]`.
        pieces: number of the first piece of each segment, and how many it has, `[S, 2]`.
        recordings: names of the recordings.
        pairs: for each split the input, the output and the recording of each pair, `[P, 3]`.
    """

    rate: int
    samples: int
    shards: Sequence[str]
    sizes: Sequence[int]
    places: Numbers
    digests: Bytes
    pieces: Numbers
    recordings: Sequence[str]
    pairs: dict[str, Numbers]

    def save(self, folder: Path) -> None:
        """Writes `folder/index.npz`."""
        digests = self.digests[self.pieces[:, 0]]
        for number in np.flatnonzero(self.pieces[:, 1] > 1).tolist():
            first, count = self.pieces[number].tolist()
            each = [digest.tobytes() for digest in self.digests[first : first + count]]
            digests[number] = np.frombuffer(segment_digest(each), np.uint8)
        columns = {
            "version": np.int64(VERSION),
            "rate": np.int64(self.rate),
            "samples": self.samples * self.pieces[:, 1],
            "shards": pack_text(self.shards),
            "shard_sizes": np.array(self.sizes, np.int64),
            "places": self.places,
            "digests": digests,
            "pieces": self.pieces,
            "recordings": pack_text(self.recordings),
            "recording_count": np.int64(len(self.recordings)),
        }
        save_columns(folder / INDEX, {**columns, **self.pairs})


class ShardWriter:
    """Writes one shard: a tar file that has its name only when it is complete.

    Args:
        path: of the shard.
    """

    def __init__(self, path: Path):
        self.path, self._partial = path, path.with_name(f"{path.name}.tmp")
        self._tar = tarfile.open(self._partial, "w", format=tarfile.GNU_FORMAT, encoding="utf-8")  # noqa: SIM115

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._tar.offset

    def add(self, recording: str, start: int, flac: bytes) -> Member:
        """Adds a piece that begins at sample `start` of its recording."""
        info = tarfile.TarInfo(f"{recording}/{start:012d}.flac")
        info.size = len(flac)
        first = self._tar.offset + len(info.tobuf(self._tar.format, self._tar.encoding, self._tar.errors))
        self._tar.addfile(info, io.BytesIO(flac))
        return start, first, len(flac), hashlib.sha256(flac).hexdigest()

    def close(self) -> None:
        """Gives the shard its name."""
        self._tar.close()
        with open(self._partial, "rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self.path)


def as_flac(segment: Tensor, sample_rate: int) -> bytes:
    """`[C, N]` as 16-bit FLAC with exactly the samples that `write_wav` writes.

    libsndfile rounds to 16 bits differently for FLAC than for wav; therefore the segment is a wav first.
    """
    wav, flac = io.BytesIO(), io.BytesIO()
    soundfile.write(wav, segment.clamp(-1, 1).numpy().T, sample_rate, format="WAV", subtype="PCM_16")
    wav.seek(0)
    samples, _ = soundfile.read(wav, dtype="int16", always_2d=True)
    soundfile.write(flac, samples, sample_rate, format="FLAC", subtype="PCM_16")
    return flac.getvalue()
