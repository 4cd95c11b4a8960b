"""The latent cache encodes what is new and keeps the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import soundfile
import torch

from encore.codecs import Codec, load_codec
from encore.data.latent_cache import LatentCache
from tests.conftest import SAMPLE_RATE, melody

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec("starter")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.wav" for number in range(3)]
    for seed, path in enumerate(paths):
        soundfile.write(path, melody(0.5, seed), SAMPLE_RATE)
    return paths


def filled(folder: Path, codec: Codec, files: list[Path]) -> tuple[LatentCache, int]:
    cache = LatentCache.open(folder, codec.identity, files)
    missing = cache.missing(files)
    assert sum(1 for _ in cache.encode(missing, codec, CPU)) == len(missing)
    return cache, len(missing)


def test_latents_are_the_codecs_and_are_encoded_once(tmp_path: Path, codec: Codec, files: list[Path]) -> None:
    cache, encoded = filled(tmp_path / "cache", codec, files)
    assert encoded == 3
    expected = codec.encode(torch.from_numpy(soundfile.read(files[1], dtype="float32")[0])[None, None])[0]
    assert torch.allclose(cache.load(files[1]).float(), expected, rtol=1e-3, atol=1e-3)
    assert filled(tmp_path / "cache", codec, files)[1] == 0


def test_a_changed_file_is_encoded_again_even_with_its_old_time(
    tmp_path: Path, codec: Codec, files: list[Path]
) -> None:
    before, _ = filled(tmp_path / "cache", codec, files)
    old = before.load(files[0])
    stamp = files[0].stat()
    soundfile.write(files[0], melody(0.6, 9), SAMPLE_RATE)
    os.utime(files[0], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after, encoded = filled(tmp_path / "cache", codec, files)
    assert encoded == 1 and after.load(files[0]).shape != old.shape


def test_equal_content_is_encoded_once_under_any_name(tmp_path: Path, codec: Codec, files: list[Path]) -> None:
    files[2].write_bytes(files[0].read_bytes())
    cache, encoded = filled(tmp_path / "cache", codec, files)
    assert encoded == 2 and torch.equal(cache.load(files[0]), cache.load(files[2]))


def test_another_codec_has_its_own_latents(tmp_path: Path, codec: Codec, files: list[Path]) -> None:
    filled(tmp_path / "cache", codec, files)
    other = LatentCache.open(tmp_path / "cache", "another", files)
    assert len(other.missing(files)) == 3


def test_statistics_are_those_of_all_frames(tmp_path: Path, codec: Codec, files: list[Path]) -> None:
    soundfile.write(files[2], melody(1.5, 7), SAMPLE_RATE)
    cache, _ = filled(tmp_path / "cache", codec, files)
    mean, deviation = cache.statistics(files)
    frames = torch.cat([cache.load(file).double() for file in files], dim=1)
    assert torch.allclose(mean.double(), frames.mean(1), atol=1e-5)
    assert torch.allclose(deviation.double(), frames.std(1, correction=0), atol=1e-5)
