"""What else --dataset_folder takes: a manifest of pairs, and a folder of songs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from encore.audio import write_wav
from encore.config.schema import TrainConfig
from encore.data import find_pairs
from encore.data.cutting import Cut, SegmentConfig, cut
from encore.data.loudness import integrated_loudness
from encore.data.songs import is_songs, pairs_of_songs
from encore.errors import EncoreError
from tests.conftest import SAMPLE_RATE, Command, melody

ROWS = [
    {"input": f"audio/train/pair_000{number}_input.wav", "output": f"audio/train/pair_000{number}_output.wav"}
    for number in range(3)
]


@pytest.fixture
def rows(tmp_path: Path, tiny_pairs: Path) -> list[dict[str, str]]:
    """Lines of a manifest in `tmp_path`, for two pairs of train and one of val."""
    (tmp_path / "audio").symlink_to(tiny_pairs)
    return [{**row, "split": split} for row, split in zip(ROWS, ("train", "train", "val"), strict=True)]


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    return path


def test_both_kinds_of_manifest_give_the_same_pairs(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    rows = [{**row, "recording": "one", "bpm": "120"} for row in rows]
    files = write_csv(tmp_path / "pairs.csv", rows), write_jsonl(tmp_path / "pairs.jsonl", rows)
    table, lines = (find_pairs(file, SAMPLE_RATE) for file in files)
    assert {split: len(pairs) for split, pairs in table.items()} == {"train": 2, "val": 1}
    for split in table:
        for one, other in zip(table[split], lines[split], strict=True):
            assert (one.input, one.output, one.recording, one.samples) == (
                other.input,
                other.output,
                "one",
                SAMPLE_RATE,
            )
    assert table["val"][0].input.resolve() == (tmp_path / rows[2]["input"]).resolve()


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
def test_problems_of_a_manifest_name_file_line_and_column(
    tmp_path: Path, rows: list[dict[str, str]], write: object
) -> None:
    assert callable(write)
    rows = [*rows, {**rows[0], "split": "dev"}, {**rows[0], "output": ""}, {**rows[0], "input": "gone.wav"}]
    path, header = write(tmp_path / f"pairs{'.csv' if write is write_csv else '.jsonl'}", rows), write is write_csv
    with pytest.raises(EncoreError) as raised:
        find_pairs(path, SAMPLE_RATE)
    assert str(raised.value).splitlines() == [
        f"{path}: line {4 + header}: column split: dev: must be one of train, val, test",
        f"{path}: line {5 + header}: column output: missing; every line needs input, output, split",
        f"{path}: line {6 + header}: column input: {tmp_path}/gone.wav: no such file",
    ]


def test_what_is_no_manifest_is_refused(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(rows[0]) + "\n{input: 1}\n[1]\n")
    with pytest.raises(EncoreError, match="line 2: is no JSON .*\n.*line 3: must be a JSON object"):
        find_pairs(path, SAMPLE_RATE)
    (tmp_path / "pairs.txt").write_text("")
    with pytest.raises(EncoreError, match=r"a file must be a manifest, .jsonl or .csv"):
        find_pairs(tmp_path / "pairs.txt", SAMPLE_RATE)


@pytest.mark.full
def test_training_reads_a_manifest(
    tmp_path: Path, rows: list[dict[str, str]], call_command: Command, train_flags: list[object]
) -> None:
    path = write_csv(tmp_path / "pairs.csv", rows)
    flags = ("--dataset_folder", path, "--max_steps", 1, "--objective", "regression", "--tracker", "none")
    result = call_command("train_worker.py", *train_flags, *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "2 training and 1 validation pairs" in result.stdout and (tmp_path / ".latents").is_dir()
    assert TrainConfig.from_flags(dataset_folder=path).data.latent_folder == tmp_path / ".latents"


def write_songs(folder: Path, seconds: float) -> Path:
    folder.mkdir()
    for number in range(3):
        soundfile.write(
            folder / f"song_{number}.wav", np.resize(melody(2, number), round(seconds * SAMPLE_RATE)), SAMPLE_RATE
        )
    return folder


def test_a_folder_of_songs_is_cut_once(tmp_path: Path, tiny_pairs: Path) -> None:
    songs, lines = write_songs(tmp_path / "songs", 24.5), list[str]()
    assert is_songs(songs) and not is_songs(tiny_pairs) and not is_songs(tmp_path / "none")
    made = pairs_of_songs(songs, None, SAMPLE_RATE, 1, lines.append)
    assert made == tmp_path / "songs_pairs_24000hz_1ch"
    assert {split: len(pairs) for split, pairs in find_pairs(made, SAMPLE_RATE).items()} == {
        split: 1 for split in ("train", "val", "test")
    }
    before = (made / "metadata.csv").stat()
    assert pairs_of_songs(songs, None, SAMPLE_RATE, 1, lines.append) == made
    assert (made / "metadata.csv").stat() == before
    assert [str(made) in line for line in lines] == [False, True, True]
    other = pairs_of_songs(songs, tmp_path / "cache", SAMPLE_RATE, 2, lines.append)
    assert other == tmp_path / "cache" / "songs_pairs_24000hz_2ch"


def test_songs_that_are_too_short_say_what_to_do(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs", 1.0)
    with pytest.raises(
        EncoreError, match="or prepare it with flags of your own: python prepare_data.py .*/songs --out"
    ):
        pairs_of_songs(songs, None, SAMPLE_RATE, 1, print)


def test_loudness_follows_the_standard() -> None:
    """EBU Tech 3341: a sine of 1 kHz at −23 dBFS in both channels has −23 LUFS, and quiet parts are gated out."""
    for rate in (24000, 44100, 48000):
        time = torch.arange(16 * rate) / rate
        sine = 10 ** (-23 / 20) * torch.sin(2 * torch.pi * 1000 * time).expand(2, -1)
        assert integrated_loudness(sine, rate) == pytest.approx(-23, abs=0.1)
        quiet = torch.cat([sine * 0.1, sine, sine * 0.1], -1)
        assert integrated_loudness(quiet, rate) == pytest.approx(-23, abs=0.1)
    assert integrated_loudness(torch.zeros(1, 48000), 48000) == -float("inf")


@pytest.mark.parametrize("lufs", [None, -20.0])
def test_files_are_brought_to_one_loudness_if_asked(tmp_path: Path, lufs: float | None) -> None:
    config = SegmentConfig(context_seconds=2, segment_seconds=2, loudness_lufs=lufs)
    audio = torch.from_numpy(melody(4, 1))[None]
    for name, gain in (("loud", 1.0), ("quiet", 0.1)):
        write_wav(tmp_path / f"{name}.wav", gain * audio, SAMPLE_RATE)
    found = [cut(Cut(tmp_path / f"{name}.wav", name, name), config) for name in ("loud", "quiet")]
    levels = [integrated_loudness(audio, SAMPLE_RATE) for _, audio in found]
    gains = [source.gain_db for source, _ in found]
    if lufs is None:
        assert levels[0] - levels[1] == pytest.approx(20, abs=0.1) and gains == [0, 0]
    else:
        assert levels == pytest.approx([-20, -20], abs=0.05)
        assert gains[1] - gains[0] == pytest.approx(20, abs=0.1)
