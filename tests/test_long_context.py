"""Inputs longer than outputs, through the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile

from encore.codecs import load_codec
from encore.config.schema import TrainConfig
from encore.data import find_pairs
from encore.models.loading import read
from encore.training.data import PairData
from tests.conftest import SAMPLE_RATE, Command, write_pairs

INPUT, OUTPUT = 2.0, 1.0  # seconds; 150 and 75 frames


@pytest.fixture(scope="module")
def long_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training, two validation and one test pair."""
    folder = write_pairs(tmp_path_factory.mktemp("long") / "pairs", {"train": 4, "val": 2, "test": 1}, INPUT)
    for path in folder.glob("*/*_output.wav"):
        audio, _ = soundfile.read(path)
        soundfile.write(path, audio[: round(OUTPUT * SAMPLE_RATE)], SAMPLE_RATE)
    return folder


@pytest.mark.parametrize(
    ("flags", "frames", "most_shift"),
    [
        ({}, (150, 75), 37),  # a quarter of the context
        ({"shuffle_targets": True}, (150, 75), 0),  # the targets would begin with the inputs' ends
        ({"unity_test": True}, (75, 75), 0),
    ],
)
def test_lengths_and_offsets(long_pairs: Path, flags: dict[str, Any], frames: tuple[int, int], most_shift: int) -> None:
    config = TrainConfig.from_flags(dataset_folder=long_pairs, codec="starter", **flags)
    data = PairData.open(config, load_codec("starter"))
    assert data.frames == frames and data.most_shift == most_shift
    assert list(data.pairs) == ["train", "val"] and len(find_pairs(long_pairs, SAMPLE_RATE)["test"]) == 1


@pytest.mark.slow
def test_a_model_is_trained_with_long_contexts_and_continues_songs_from_them(
    long_pairs: Path, call_command: Command, train_flags: list[object], tmp_path: Path
) -> None:
    flags = ("--dataset_folder", long_pairs, "--max_steps", 2, "--tracker", "none", "--metrics", "rms_input")
    done = call_command("train_worker.py", *train_flags, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 training and 2 validation pairs of 2.00 s and the 1.00 s after them" in done.stdout
    assert "12 of 12 files newly encoded" in done.stdout  # the test pair is left alone
    copy = next(line for line in done.stdout.splitlines() if line.startswith("Copy baseline"))
    assert "rms_in: 0.0000" in copy  # the copy is the input's end
    checkpoint = tmp_path / "checkpoints" / "last.pt"
    content = read(checkpoint)
    assert (content["context_frames"], content["segment_frames"]) == (150, 75)
    song = long_pairs / "test" / "pair_0000_input.wav"
    sampled = call_command(
        "inference_sample.py", "--checkpoint", checkpoint, "--input", song, "--seconds", 1, cwd=tmp_path
    )
    assert sampled.returncode == 0, sampled.stderr
    assert soundfile.info(tmp_path / "out" / "full.wav").frames == (INPUT + 1) * SAMPLE_RATE
