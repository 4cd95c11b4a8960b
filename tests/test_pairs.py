"""Pairs: finding and checking them, and the batches of a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from encore.codecs import load_codec
from encore.data import PairFrames, find_pairs, segment_frames
from encore.data.dataset import Division, EpochSampler, PairDataset, collate
from encore.data.latent_cache import LatentCache
from encore.errors import EncoreError
from tests.conftest import SAMPLE_RATE, Command, Forks, write_pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs", {"train": 3, "val": 2}, seconds=0.5)


def first(folder: Path, part: str = "input") -> Path:
    return folder / "train" / f"pair_0000_{part}.wav"


def test_pairs_of_a_good_folder(folder: Path) -> None:
    found = find_pairs(folder, SAMPLE_RATE)
    assert [pair.input.name for pair in found["train"]] == [f"pair_{n:04d}_input.wav" for n in range(3)]
    assert found["val"][1].output == folder / "val" / "pair_0001_output.wav"
    assert {pair.samples for pair in found["train"]} == {SAMPLE_RATE // 2}
    assert segment_frames(found, 320) == (37, 37)  # 12000 samples are 37.5 frames


def remove_output(folder: Path) -> Path:
    first(folder, "output").unlink()
    return first(folder)


def remove_input(folder: Path) -> Path:
    first(folder).unlink()
    return first(folder, "output")


def other_rate(folder: Path) -> Path:
    audio, _ = soundfile.read(first(folder))
    soundfile.write(first(folder), audio, 44100)
    return first(folder)


def truncate(folder: Path) -> Path:
    content = first(folder).read_bytes()
    first(folder).write_bytes(content[: len(content) // 2])
    return first(folder)


def empty(folder: Path) -> Path:
    soundfile.write(first(folder), np.zeros(0), SAMPLE_RATE)
    return first(folder)


def not_audio(folder: Path) -> Path:
    first(folder).write_text("no audio")
    return first(folder)


def shorter(folder: Path) -> Path:
    audio, _ = soundfile.read(first(folder))
    soundfile.write(first(folder), audio[:-1000], SAMPLE_RATE)
    return first(folder)


def no_val(folder: Path) -> Path:
    for path in (folder / "val").iterdir():
        path.unlink()
    return folder / "val"


DAMAGES = [
    (remove_output, "its output pair_0000_output.wav is missing"),
    (remove_input, "its input is missing"),
    (other_rate, "44100 Hz, but the codec works at 24000 Hz"),
    (truncate, "truncated, its header declares 24000 bytes"),
    (empty, "0 samples long"),
    (not_audio, "cannot be read as audio"),
    (shorter, "11000 samples, but pair_0000_output.wav has 12000"),
    (no_val, "no pair_"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_a_damaged_pair_is_named_with_the_reason(folder: Path, damage, reason: str) -> None:
    culprit = damage(folder)
    with pytest.raises(EncoreError) as caught:
        find_pairs(folder, SAMPLE_RATE)
    message = str(caught.value)
    assert str(culprit) in message and reason in message and len(message.splitlines()) == 1


@pytest.mark.slow
def test_all_damaged_pairs_are_reported_together_without_a_traceback(folder: Path, call_command: Command) -> None:
    other_rate(folder)
    (folder / "val" / "pair_0001_output.wav").unlink()
    result = call_command("train_worker.py", "--dataset_folder", folder, "--codec", "starter", cwd=folder.parent)
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") for line in lines), result.stderr


@pytest.mark.slow
def test_nan_samples_are_found_when_latents_are_encoded(folder: Path, forks: Forks) -> None:
    audio, _ = soundfile.read(first(folder))
    audio[100] = np.nan
    soundfile.write(first(folder), audio, SAMPLE_RATE, subtype="FLOAT")
    flags = ("--dataset_folder", folder, "--codec", "starter", "--block_seconds", 0.4, "--tracker", "none")
    results = forks.ranks(2, *flags, cwd=folder.parent)
    assert [result.returncode for result in results] == [2, 2]
    errors = "".join(result.stderr for result in results)
    assert errors.count(f"error: {first(folder)}: holds NaN or infinite samples") == 1
    assert "Traceback" not in errors


def test_a_batch_larger_than_the_data_set_is_refused(folder: Path, call_command: Command) -> None:
    flags = ("--dataset_folder", folder, "--codec", "starter", "--batch_size", 4, "--block_seconds", 0.4)
    result = call_command("train_worker.py", *flags, cwd=folder.parent)
    assert result.returncode == 2
    assert "--batch_size 4: a step takes 4 pairs" in result.stderr and "only 3 training pairs" in result.stderr
    assert "Traceback" not in result.stderr


def test_items_are_the_cached_latents_and_the_waveforms(folder: Path) -> None:
    codec = load_codec("starter")
    pairs = find_pairs(folder, SAMPLE_RATE)
    segments = pairs["train"].segments
    cache = LatentCache.open(folder / ".latents", codec, segments)
    cache.complete(np.arange(len(segments)), codec, torch.device("cpu"))
    data = PairDataset(pairs["train"], cache, codec, PairFrames(30, 30))
    batch = collate([data[0], data[2]])
    assert batch.number.tolist() == [0, 2] and len(batch) == 2
    audio = torch.from_numpy(soundfile.read(pairs["train"][2].input, dtype="float32")[0])
    # The last frames of the input and the first ones of the output, which follow each other.
    assert torch.equal(batch.input_audio[1, 0], audio[7 * 320 : 37 * 320])
    following = torch.from_numpy(soundfile.read(pairs["train"][2].output, dtype="float32")[0])
    assert torch.equal(batch.target_audio[1, 0], following[: 30 * 320])
    expected = codec.encode(audio[None, None])[0, :, 7:37]
    assert torch.allclose(batch.context[1], expected, atol=1e-2, rtol=1e-3)

    unity = PairDataset(pairs["train"], cache, codec, PairFrames(30, 30), unity=True)[1]
    assert torch.equal(unity[0], unity[3]) and torch.equal(unity[1], unity[2])
    shuffled = PairDataset(pairs["train"], cache, codec, PairFrames(30, 30), shuffle_seed=0)
    for number in range(3):
        assert torch.equal(shuffled[number][1], data[number][1])
        assert not torch.equal(shuffled[number][2], data[number][2])
    assert len({shuffled[number][2].sum().item() for number in range(3)}) == 3
    longer = collate([PairDataset(pairs["train"], cache, codec, PairFrames(30, 10))[2]])
    assert torch.equal(longer.input_audio[0], batch.input_audio[1]) and torch.equal(longer.context[0], batch.context[1])
    assert torch.equal(longer.target_audio[0, 0], following[: 10 * 320])
    assert torch.equal(longer.target_latents[0], batch.target_latents[1, :, :10])
    assert torch.equal(longer.input_end, longer.input_audio[..., 20 * 320 :])


def test_inputs_may_be_longer_than_outputs_and_test_is_optional(folder: Path) -> None:
    write_pairs(folder, {"test": 2}, seconds=0.6)
    for path in [*folder.glob("*/*_output.wav"), folder / "train" / "pair_0001_input.wav"]:
        audio, _ = soundfile.read(path)
        soundfile.write(path, audio[: 8000 if path.parent.name == "test" else 9000], SAMPLE_RATE)
    found = find_pairs(folder, SAMPLE_RATE)
    assert list(found) == ["train", "val", "test"] and len(found["test"]) == 2
    assert segment_frames(found, 320) == (9000 // 320, 8000 // 320)
    training = {split: found[split] for split in ("train", "val")}
    assert segment_frames(training, 320) == (9000 // 320, 9000 // 320)
    for path in (folder / "test").iterdir():
        path.unlink()
    assert list(find_pairs(folder, SAMPLE_RATE)) == ["train", "val"]


def served(
    division: Division, items: int = 23, epoch: int = 0, done: int = 0, steps: int | None = None
) -> list[list[int]]:
    """The pairs of each step of an epoch, of all ranks; every batch is checked for its size."""
    ranks = []
    for rank in range(division.ranks):
        sampler = EpochSampler(items, division, rank, seed=5)
        sampler.start_at(epoch, done)
        batches = list(sampler)
        assert len(batches) == sampler.steps(done) * division.accumulation
        assert all(0 < len(batch) <= division.batch_size for batch in batches)
        size = division.accumulation
        ranks.append([sum(batches[n : n + size], []) for n in range(0, len(batches), size)])
    return [sum(parts, []) for parts in zip(*ranks, strict=True)][:steps]


def test_ranks_share_an_epoch_without_overlap_and_orders_differ_between_epochs() -> None:
    division = Division.of(ranks=3, batch_size=2, accumulation=2, global_batch_size=None)
    assert division.pairs == 12
    orders = [served(division, epoch=epoch) for epoch in range(2)]
    assert [len(steps) for steps in orders] == [1, 1]
    assert all(len(set(step)) == 12 for steps in orders for step in steps)
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 6), (1, 2), (2, 2), (3, 1), (4, 2), (5, 4), (6, 1)])
def test_a_step_has_the_same_pairs_for_any_number_of_ranks(ranks: int, batch_size: int) -> None:
    division = Division.of(ranks, batch_size, 1, global_batch_size=6)
    assert served(division) == served(Division(6, 1, 6))
    sizes = [sum(part.stop - part.start for part in division.batches(rank)) for rank in range(ranks)]
    assert max(sizes) - min(sizes) <= 1


def test_an_epoch_is_continued_after_any_pair_with_other_ranks_and_batches() -> None:
    """No pair is repeated or left out."""
    order = sum(served(Division(1, 1, 1), items=40), [])
    first, second, third = Division(6, 2, 3), Division(10, 3, 2), Division(4, 1, 1)
    used = sum(served(first, 40, steps=2), [])
    used += sum(served(second, 40, done=12, steps=2), [])
    used += sum(served(third, 40, done=32), [])
    assert used == order and sorted(used) == list(range(40))
    assert EpochSampler(40, second, 0, seed=5).steps(done=32) == 0


@pytest.mark.parametrize(("pairs", "ranks", "batch_size"), [(2, 3, 8), (4, 3, 1)])
def test_a_global_batch_that_leaves_a_rank_without_pairs_is_refused(pairs: int, ranks: int, batch_size: int) -> None:
    with pytest.raises(EncoreError, match=f"^--global_batch_size {pairs}: there are {ranks} ranks; it must be"):
        Division.of(ranks, batch_size, 1, pairs)
