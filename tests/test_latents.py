"""The latent cache encodes what is new and keeps the rest."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from encore.codecs import Codec, load_codec
from encore.data.latent_cache import LatentCache
from encore.data.latent_statistics import LatentStatistics
from encore.data.segments import AudioFiles
from tests.conftest import SAMPLE_RATE, melody, random_seanet

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


def opened(folder: Path, codec: Codec, files: list[Path]) -> LatentCache:
    segments = AudioFiles.of_paths(files[0].parent, files)
    assert not segments.check(SAMPLE_RATE, folder)
    return LatentCache.open(folder, codec, segments)


def filled(folder: Path, codec: Codec, files: list[Path]) -> tuple[LatentCache, int]:
    """The cache with all latents, and how many it lacked."""
    cache = opened(folder, codec, files)
    lacking = len(lacking_of(cache))
    cache.complete(np.arange(len(files)), codec, CPU)
    return cache, lacking


def lacking_of(cache: LatentCache) -> list[int]:
    numbers = np.arange(len(cache.segments))
    new = cache.segments.unhashed(numbers)
    cache.know(new, cache.segments.hash(new))
    return cache.missing(numbers).tolist()


def test_latents_are_the_codecs_and_are_encoded_once(tmp_path: Path, codec: Codec, files: list[Path]) -> None:
    cache, encoded = filled(tmp_path / "cache", codec, files)
    assert encoded == 3
    expected = codec.encode(torch.from_numpy(soundfile.read(files[1], dtype="float32")[0])[None, None])[0]
    assert torch.allclose(cache.load(1).float(), expected, rtol=1e-3, atol=1e-3)
    assert filled(tmp_path / "cache", codec, files)[1] == 0


def test_a_changed_file_is_encoded_again_even_with_its_old_time(
    tmp_path: Path, codec: Codec, files: list[Path]
) -> None:
    before, _ = filled(tmp_path / "cache", codec, files)
    old = before.load(0)
    stamp = files[0].stat()
    soundfile.write(files[0], melody(0.6, 9), SAMPLE_RATE)
    os.utime(files[0], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after, encoded = filled(tmp_path / "cache", codec, files)
    assert encoded == 1 and after.load(0).shape != old.shape


def test_equal_content_is_encoded_once_under_any_name(tmp_path: Path, codec: Codec, files: list[Path]) -> None:
    files[2].write_bytes(files[0].read_bytes())
    cache, encoded = filled(tmp_path / "cache", codec, files)
    assert encoded == 2 and torch.equal(cache.load(0), cache.load(2))


def test_another_codec_has_its_own_latents(tmp_path: Path, codec: Codec, files: list[Path]) -> None:
    filled(tmp_path / "cache", codec, files)
    other = opened(tmp_path / "cache", random_seanet(), files)
    assert lacking_of(other) == [0, 1, 2]


def test_statistics_are_those_of_all_frames(tmp_path: Path, codec: Codec, files: list[Path]) -> None:
    """Each segment counts as often as it is named; the second time they come from disk, and are the same."""
    soundfile.write(files[2], melody(1.5, 7), SAMPLE_RATE)
    cache, _ = filled(tmp_path / "cache", codec, files)
    numbers = np.array([0, 1, 2, 1])
    measured = LatentStatistics(cache, numbers)
    assert measured.stored() is None
    mean, deviation = measured.of_sums(measured.sums(0, 2) + measured.sums(1, 2))
    frames = torch.cat([cache.load(number).double() for number in numbers.tolist()], dim=1)
    assert torch.allclose(mean.double(), frames.mean(1), atol=1e-5)
    assert torch.allclose(deviation.double(), frames.std(1, correction=0), atol=1e-5)
    measured.store(mean, deviation)
    again = LatentStatistics(cache, numbers).stored()
    assert again is not None and torch.equal(again[0], mean) and torch.equal(again[1], deviation)
    assert LatentStatistics(cache, numbers[:2]).stored() is None


def test_statistics_of_many_segments_are_those_of_some_spread_evenly(
    tmp_path: Path, codec: Codec, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encore.data.latent_statistics.MOST", 2)
    cache, _ = filled(tmp_path / "cache", codec, files)
    measured = LatentStatistics(cache, np.array([2, 0, 1, 0]))
    mean, _ = measured.of_sums(measured.sums())
    assert measured.numbers.tolist() == [2, 1]
    assert torch.allclose(mean, torch.cat([cache.load(2), cache.load(1)], 1).float().mean(1), atol=1e-5)
