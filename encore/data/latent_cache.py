"""The latent cache: each audio file is encoded once per codec and then read from disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from encore.audio import read_audio
from encore.codecs import Codec
from encore.errors import EncoreError, listing


class LatentCache:
    """Latents of audio files, stored as `FOLDER/<codec identity>/<sha256 of the file>.npy`.

    A changed file, or another codec, leads to another name and is encoded again. Latents are float16 `[D, T]`; the
    rounding error is 66 dB below them. `FOLDER/hashes.json` keeps the hashes of files whose size and modification time
    have not changed, so that a large data set need not be read at every start.

    Args:
        folder: of the cache.
        identity: of the codec.
        hashes: SHA-256 by resolved path; `LatentCache.open` computes them.
    """

    def __init__(self, folder: Path, identity: str, hashes: dict[str, str]):
        self.folder = folder / identity
        self.hashes = hashes

    @classmethod
    def open(cls, folder: Path, identity: str, files: Iterable[Path]) -> LatentCache:
        """Opens the cache for `files`, hashing those that are new or changed.

        Raises:
            EncoreError: the folder cannot be written to.
        """
        index_path = folder / "hashes.json"
        try:
            (folder / identity).mkdir(parents=True, exist_ok=True)
            stored = json.loads(index_path.read_text()) if index_path.is_file() else {}
        except (OSError, ValueError) as error:
            raise EncoreError(
                f"--cache_dir {folder}: cannot be used ({error}); name another folder or delete it"
            ) from error
        hashes: dict[str, str] = {}
        index: dict[str, list] = dict(stored)
        for path in files:
            status = path.stat()
            name, stamp = str(path.resolve()), [status.st_size, status.st_mtime_ns]
            if name not in stored or stored[name][:2] != stamp:
                index[name] = [*stamp, _digest(path)]
            hashes[name] = index[name][2]
        if index != stored:
            temporary = index_path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(index))
            temporary.replace(index_path)
        return cls(folder, identity, hashes)

    def path(self, audio_file: Path) -> Path:
        """Where the latents of a file are stored."""
        return self.folder / f"{self.hashes[str(audio_file.resolve())]}.npy"

    def missing(self, files: Iterable[Path]) -> list[Path]:
        """The files without stored latents, one of those with equal content, sorted."""
        wanted = {self.path(file): file for file in sorted(files, reverse=True)}
        return sorted(file for path, file in wanted.items() if not path.exists())

    def encode(self, files: Sequence[Path], codec: Codec, device: torch.device) -> Iterable[None]:
        """Encodes and stores `files` on `device`, yielding after each one.

        Raises:
            EncoreError: after the last one, all files that cannot be used, each with the reason.
        """
        problems = []
        for file in files:
            try:
                audio = read_audio(file, codec.sample_rate, codec.channels)
            except EncoreError as error:
                problems.append(str(error))
            else:
                latents = codec.encode(audio[None].to(device))[0].cpu().numpy().astype(np.float16)
                path = self.path(file)
                temporary = path.with_suffix(f".{os.getpid()}.tmp")
                with open(temporary, "wb") as out:
                    np.save(out, latents)
                temporary.replace(path)
            yield
        if problems:
            raise EncoreError(listing(problems))

    def load(self, audio_file: Path) -> Tensor:
        """Latents of a file, float16 `[D, T]`."""
        return torch.from_numpy(np.array(np.load(self.path(audio_file), mmap_mode="r")))

    def statistics(self, files: Sequence[Path]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over all frames of `files`, `[D]` each."""
        count, sums, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        for file in files:
            latents = self.load(file).double()
            count += latents.shape[1]
            sums = sums + latents.sum(1)
            squares = squares + latents.square().sum(1)
        mean = sums / count
        return mean.float(), (squares / count - mean.square()).clamp_min(0).sqrt().float()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
