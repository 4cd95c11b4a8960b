"""Data sets of shards: the same pairs, batches and trained weights as from wavs, and damage that is noticed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from encore.codecs import Codec, load_codec
from encore.commands.evaluate import open_data
from encore.data import find_pairs, segment_frames
from encore.data.dataset import Division, EpochSampler, PairDataset, collate
from encore.data.latent_cache import LatentCache
from encore.errors import EncoreError
from encore.evaluation.config import EvalConfig
from encore.models.loading import load_generator, read
from tests.conftest import SAMPLE_RATE, Command, melody

CPU = torch.device("cpu")
SECONDS = 1.0


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec("starter")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, call_command: Command) -> dict[str, Path]:
    """The same music, one file of it above full scale, as wavs and as shards."""
    root = tmp_path_factory.mktemp("prepared")
    (root / "music" / "deep").mkdir(parents=True)
    for number, name in enumerate(["a", "b", "deep/c.d", "e", "f"]):
        audio = melody(4.3, number) * (3 if number == 1 else 1)
        soundfile.write(root / "music" / f"{name}.wav", audio, SAMPLE_RATE, subtype="FLOAT")
    lengths = ("--context_seconds", SECONDS, "--segment_seconds", SECONDS)
    flags = (*lengths, "--num_workers", 0, "--val_fraction", 0.4, "--test_fraction", 0)
    for kind, more in (("wavs", ()), ("shards", ("--shards",))):
        done = call_command("prepare_data.py", root / "music", "--output", root / kind, *flags, *more, cwd=root)
        assert done.returncode == 0, done.stderr
    return {kind: root / kind for kind in ("wavs", "shards")}


@pytest.fixture
def shards(prepared: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the shards, to be damaged."""
    for path in prepared["shards"].iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def batches(folder: Path, codec: Codec) -> list[tuple[torch.Tensor, ...]]:
    """Two epochs of one rank's training batches, by a loader with a process of its own."""
    pairs = find_pairs(folder, SAMPLE_RATE)
    segments = pairs["train"].segments
    cache = LatentCache.open(folder / ".latents", codec, segments)
    cache.complete(np.arange(len(segments)), codec, CPU)
    data = PairDataset(pairs["train"], cache, codec, segment_frames(pairs, codec.hop_length), shuffle_seed=1)
    sampler = EpochSampler(len(data), Division(4, 2, 2), rank=1, seed=3)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=collate, num_workers=1, persistent_workers=True)
    found: list[tuple[torch.Tensor, ...]] = []
    for epoch in range(2):
        sampler.start_at(epoch, 0)
        found += [
            (batch.context, batch.input_audio, batch.target_audio, batch.target_latents, batch.number)
            for batch in loader
        ]
    return found


def test_both_kinds_hold_the_same_pairs(prepared: dict[str, Path]) -> None:
    wavs, shards = (find_pairs(prepared[kind], SAMPLE_RATE) for kind in ("wavs", "shards"))
    for split, count in (("train", 9), ("val", 6)):
        assert len(wavs[split]) == len(shards[split]) == count
        for mine, its in zip(wavs[split], shards[split], strict=True):
            assert (mine.name, mine.recording, mine.samples) == (its.name, its.recording, its.samples)
        for index in range(count):
            one, other = (pairs[split].audio(index, SAMPLE_RATE, 1) for pairs in (wavs, shards))
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert (prepared["wavs"] / "metadata.csv").read_bytes() == (prepared["shards"] / "metadata.csv").read_bytes()


def test_a_segment_that_is_in_two_pairs_is_stored_and_encoded_once(prepared: dict[str, Path], codec: Codec) -> None:
    """Three pairs of a recording have four segments."""
    pairs = find_pairs(prepared["shards"], SAMPLE_RATE)
    segments = pairs["train"].segments
    assert len(segments) == 5 * 4
    with tarfile.open(prepared["shards"] / "shard-000000.tar") as tar:
        names = tar.getnames()
        assert len(names) == 20 and names[-8:-4] == [f"e.wav/{k * SAMPLE_RATE:012d}.flac" for k in range(4)]
        member = tar.extractfile("deep/c.d.wav/000000024000.flac")
        assert member is not None
        samples, rate = soundfile.read(io.BytesIO(member.read()))
    assert rate == SAMPLE_RATE and np.abs(samples - melody(4.3, 2)[24000:48000]).max() < 2 / 32768
    cache = LatentCache.open(prepared["shards"] / ".latents", codec, segments)
    cache.complete(np.arange(20), codec, CPU)
    assert len(cache.digests) == 20 and np.array_equal(np.unique(cache.rows), np.arange(20))


def test_batches_are_equal_bit_by_bit(prepared: dict[str, Path], codec: Codec) -> None:
    wavs, shards = (batches(prepared[kind], codec) for kind in ("wavs", "shards"))
    assert len(wavs) == len(shards) == 4
    for one, other in zip(wavs, shards, strict=True):
        assert all(torch.equal(mine, its) for mine, its in zip(one, other, strict=True))
    assert not torch.equal(wavs[0][4], wavs[2][4])


@pytest.mark.slow
def test_training_and_evaluation_give_the_same_from_both(
    prepared: dict[str, Path], call_command: Command, train_flags: list[object], tmp_path: Path
) -> None:
    weights, opened = [], []
    for kind, folder in prepared.items():
        (tmp_path / kind).mkdir()
        flags = (*train_flags, "--dataset_folder", folder, "--max_steps", 1, "--tracker", "none", "--prior", "none")
        flags += ("--precision", "fp32")  # not the faster one, which a busy machine may measure differently
        done = call_command("train_worker.py", *flags, "--metrics", "", cwd=tmp_path / kind)
        assert done.returncode == 0, done.stderr
        checkpoint = tmp_path / kind / "checkpoints" / "last.pt"
        weights.append(read(checkpoint)["model"])
        config = EvalConfig(checkpoint, folder, memorisation=4)
        data = open_data(config, load_generator(checkpoint, CPU), CPU)
        opened.append((data.load(range(6)), [data.cache.load(number) for number in data.train], data.recordings))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    (batch, training, recordings), (other, its_training, its_recordings) = opened
    for part in ("context", "input_audio", "target_audio", "target_latents"):
        assert torch.equal(getattr(batch, part), getattr(other, part)), part
    assert len(training) == 4 and all(map(torch.equal, training, its_training)) and recordings == its_recordings


def test_a_damaged_shard_is_named(shards: Path) -> None:
    path = shards / "shard-000000.tar"
    pairs = find_pairs(shards, SAMPLE_RATE)
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(EncoreError, match=r"shard-000000.tar, byte 512: damaged, its checksum is another"):
        pairs["train"].segments.read(0, SAMPLE_RATE, 1)
    path.write_bytes(content[:-1])
    with pytest.raises(EncoreError, match=r"shard-000000.tar: \d+ bytes long, it should have \d+; copy it again"):
        find_pairs(shards, SAMPLE_RATE)
    path.unlink()
    with pytest.raises(EncoreError, match=r"shard-000000.tar: missing, it should have"):
        find_pairs(shards, SAMPLE_RATE)


def test_a_damaged_index_is_named(shards: Path) -> None:
    content = (shards / "index.npz").read_bytes()
    for broken in (content[:-10], content.replace(b"places", b"palace"), b"", b"no zip"):
        (shards / "index.npz").write_bytes(broken)
        with pytest.raises(EncoreError, match=r"index.npz: cannot be used"):
            find_pairs(shards, SAMPLE_RATE)


def test_shards_of_another_rate_are_refused(shards: Path) -> None:
    with pytest.raises(EncoreError, match="24000 Hz, but the codec works at 48000 Hz; .*--sample_rate 48000"):
        find_pairs(shards, 48000)
