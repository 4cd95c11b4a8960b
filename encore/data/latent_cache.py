"""The latent cache: every audio file is encoded once per codec and memory-mapped from then on."""

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
    """Latents by codec and by what the audio file contains: `FOLDER/<codec identity>/<sha256 of the file>.npy`.

    A changed file or another codec has another name and so is encoded anew. Latents are float16 `[D, T]`: the
    rounding lies 66 dB below them. Hashes are remembered in `FOLDER/hashes.json` for files of unchanged size and
    modification time, so that a large data set isn't read again at every start.
    """

    def __init__(self, folder: Path, identity: str, hashes: dict[str, str]):
        self.folder = folder / identity
        self.hashes = hashes

    @classmethod
    def open(cls, folder: Path, identity: str, files: Iterable[Path]) -> LatentCache:
        """Hashes the files that are new or changed.

        Raises:
            EncoreError: the folder can't be written to.
        """
        index_path = folder / "hashes.json"
        try:
            (folder / identity).mkdir(parents=True, exist_ok=True)
            known = json.loads(index_path.read_text()) if index_path.is_file() else {}
        except (OSError, ValueError) as error:
            raise EncoreError(
                f"--cache_dir {folder}: can't be used ({error}); name another folder or delete it"
            ) from error
        hashes: dict[str, str] = {}
        index: dict[str, list] = dict(known)
        for path in files:
            status = path.stat()
            name, stamp = str(path.resolve()), [status.st_size, status.st_mtime_ns]
            if name not in known or known[name][:2] != stamp:
                index[name] = [*stamp, _digest(path)]
            hashes[name] = index[name][2]
        if index != known:
            temporary = index_path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(index))
            temporary.replace(index_path)
        return cls(folder, identity, hashes)

    def path(self, audio_file: Path) -> Path:
        return self.folder / f"{self.hashes[str(audio_file.resolve())]}.npy"

    def missing(self, files: Iterable[Path]) -> list[Path]:
        """Those of `files` that are not encoded yet, each content once, in a stable order."""
        wanted = {self.path(file): file for file in sorted(files, reverse=True)}
        return sorted(file for path, file in wanted.items() if not path.exists())

    def encode(self, files: Sequence[Path], codec: Codec, device: torch.device) -> Iterable[None]:
        """Encodes `files`, yielding after each one.

        Raises:
            EncoreError: at the end, all files that can't be used, each with the reason.
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
        """Latents of a file, float16 `[D, T]`, memory-mapped and copied."""
        return torch.from_numpy(np.array(np.load(self.path(audio_file), mmap_mode="r")))

    def statistics(self, files: Sequence[Path]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel, `[D]` each, over all frames of `files`."""
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
