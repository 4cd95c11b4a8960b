"""prepare_data.py as a user runs it, on seconds of synthesised audio."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from encore.audio import read_audio
from encore.commands.prepare import app
from encore.data import find_pairs, segment_frames
from encore.errors import EncoreError
from tests.conftest import Command, Forks

STEP = 2 / 32768  # of 16 bits, rounded when written and when read


def tune(path: Path, seconds: float, rate: int = 24_000, channels: int = 1, seed: int = 0, level: float = 0.1) -> Path:
    """Writes noise below 1 kHz and a tone: audio without repetitions that resampling preserves."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    steps = np.interp(time * 500, np.arange(int(seconds * 500) + 2), rng.standard_normal(int(seconds * 500) + 2))
    tones = np.stack([np.sin(2 * np.pi * (220 + 50 * seed + 10 * c) * time) for c in range(channels)], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, level * (0.5 * steps[:, None] + tones), rate)
    return path


def prepare(music: Path, output: Path, *flags: str) -> str:
    """Runs the command in this process and returns its output; an EncoreError is raised."""
    lengths = ["--context_seconds", "1", "--segment_seconds", "1"]
    arguments = [str(music), "--output", str(output), *lengths, "--test_fraction", "0", "--num_workers", "0", *flags]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rows(output: Path) -> list[dict[str, str]]:
    with open(output / "metadata.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """Files of every format, several rates and channel counts."""
    folder = tmp_path / "my music"
    tune(folder / "a.wav", 4.3, 24_000, 1, seed=1)
    tune(folder / "b.flac", 3.2, 44_100, 2, seed=2)
    tune(folder / "deeper/c.ogg", 3.5, 48_000, 2, seed=3)
    tune(folder / "d.mp3", 3.5, 22_050, 1, seed=4)
    tune(folder / "E.WAV", 2.5, 16_000, 6, seed=5)
    return folder


def test_segments_are_the_resampled_source_cut_up(music: Path, tmp_path: Path) -> None:
    output = tmp_path / "pairs"
    prepare(music, output)
    found = rows(output)
    assert {row["source_file"] for row in found} == {"a.wav", "b.flac", "deeper/c.ogg", "d.mp3", "E.WAV"}
    # Pairs overlap by one segment: 4.3 s give those at 0, 1 and 2 s.
    assert [row["start_second"] for row in found if row["source_file"] == "a.wav"] == ["0", "1", "2"]
    assert [row["start_second"] for row in found if row["source_file"] == "E.WAV"] == ["0"]
    for row in found:
        source = read_audio(music / row["source_file"], 24_000, 1).numpy()
        start = int(row["start_second"]) * 24_000
        for role, begin in (("input", start), ("output", start + 24_000)):
            path = output / row["split"] / f"{row['pair']}_{role}.wav"
            segment, rate = soundfile.read(path, dtype="float32")
            assert (rate, segment.shape, soundfile.info(path).subtype) == (24_000, (24_000,), "PCM_16")
            assert np.abs(segment - source[0, begin : begin + 24_000]).max() < STEP


def test_the_result_is_what_training_reads(music: Path, tmp_path: Path) -> None:
    prepare(music, tmp_path / "pairs")
    found = find_pairs(tmp_path / "pairs", 24_000)
    counts = {split: sum(row["split"] == split for row in rows(tmp_path / "pairs")) for split in ("train", "val")}
    assert {split: len(pairs) for split, pairs in found.items()} == counts
    for split, pairs in found.items():
        assert [pair.input.name for pair in pairs] == [f"pair_{k:04d}_input.wav" for k in range(counts[split])]


def test_whole_files_go_to_one_split(tmp_path: Path) -> None:
    for k in range(10):
        tune(tmp_path / f"music/{k}.wav", 3.1, seed=k)
    splits: dict[int, list[set[str]]] = {}
    for seed in (0, 0, 1):
        output = tmp_path / f"pairs{len(list(tmp_path.iterdir()))}"
        prepare(tmp_path / "music", output, "--val_fraction", "0.3", "--seed", str(seed))
        files = {split: {r["source_file"] for r in rows(output) if r["split"] == split} for split in ("train", "val")}
        assert not files["train"] & files["val"]
        assert (len(files["train"]), len(files["val"])) == (7, 3)
        splits.setdefault(seed, []).append(files["val"])
    assert splits[0][0] == splits[0][1] != splits[1][0]


LONG = ("--context_seconds", "3", "--segment_seconds", "1.5")


@pytest.mark.parametrize("kind", ["wavs", "shards"])
def test_inputs_longer_than_outputs(tmp_path: Path, kind: str) -> None:
    """Every second after the first input is in one output; a file that is too short for a pair is named."""
    lengths = {"a": 9.2, "b": 4.5, "c": 6.0, "short": 4.4}
    files = {name: tune(tmp_path / f"music/{name}.wav", lengths[name], seed=k) for k, name in enumerate(lengths)}
    text = prepare(tmp_path / "music", tmp_path / "pairs", *LONG, *["--shards", "true"] * (kind == "shards"))
    assert "short.wav: 4.40 s long, shorter than an input and an output, 4.5 s" in text
    found, starts = find_pairs(tmp_path / "pairs", 24_000), dict[str, list[float]]()
    assert segment_frames(found, 320) == (225, 112)
    metadata = rows(tmp_path / "pairs")
    for split, pairs in found.items():
        known = [row for row in metadata if row["split"] == split]
        for index, row in enumerate(known):
            source = read_audio(files[row["source_file"][:-4]], 24_000, 1)
            begin = round(float(row["start_second"]) * 24_000)
            starts.setdefault(row["source_file"], []).append(float(row["start_second"]))
            before, after = pairs.audio(index, 24_000, 1)
            assert (before - source[:, begin : begin + 72_000]).abs().max() < STEP
            assert (after - source[:, begin + 72_000 : begin + 108_000]).abs().max() < STEP
    assert starts == {"a.wav": [0, 1.5, 3, 4.5], "b.wav": [0], "c.wav": [0, 1.5]}
    if kind == "shards":  # each second once, in pieces of the greatest common length
        assert len(np.load(tmp_path / "pairs/index.npz")["places"]) == 6 + 3 + 4
    prepare(tmp_path / "music", tmp_path / "dense", *LONG, "--hop_seconds", "0.5")
    dense = [float(row["start_second"]) for row in rows(tmp_path / "dense") if row["source_file"] == "c.wav"]
    assert dense == [0, 0.5, 1, 1.5]


def test_test_is_held_out_by_folder_or_by_file(tmp_path: Path) -> None:
    """One file of pairs each; a folder larger than a share of the files is not held out while a smaller one is."""
    names = [*(f"large/deep/{k}" for k in range(5)), *(f"b/{k}" for k in range(2)), *(f"c/{k}" for k in range(2)), "d"]
    for seed, name in enumerate(names):
        tune(tmp_path / f"music/{name}.wav", 2.1, seed=seed)
    fractions = ("--val_fraction", "0.2", "--test_fraction", "0.2")
    folders = []
    for seed in range(4):
        prepare(tmp_path / "music", tmp_path / f"{seed}", *fractions, "--seed", str(seed))
        files: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
        for row in rows(tmp_path / f"{seed}"):
            files[row["split"]].add(row["source_file"].removesuffix(".wav"))
        tops = [{name.partition("/")[0] for name in of_split} for of_split in files.values()]
        assert all(tops) and sum(map(len, tops)) == 4 and set.union(*files.values()) == set(names)
        assert "large" in tops[0]
        folders.append(tops[2])
        assert {split: len(pairs) for split, pairs in find_pairs(tmp_path / f"{seed}", 24_000).items()} == {
            split: len(of_split) for split, of_split in files.items()
        }
    assert len({tuple(sorted(tops)) for tops in folders}) > 1  # the seed chooses
    prepare(tmp_path / "music", tmp_path / "files", *fractions, "--val_group", "file", "--shards", "true")
    counts = [sum(row["split"] == split for row in rows(tmp_path / "files")) for split in ("train", "val", "test")]
    assert counts == [6, 2, 2]
    assert {split: len(pairs) for split, pairs in find_pairs(tmp_path / "files", 24_000).items()} == dict(
        zip(("train", "val", "test"), counts, strict=True)
    )
    for name in names[5:]:
        (tmp_path / f"music/{name}.wav").unlink()
    with pytest.raises(EncoreError, match="one folder or file gives pairs, and train, val and test need .*file$"):
        prepare(tmp_path / "music", tmp_path / "pairs", "--test_fraction", "0.1")


@pytest.mark.parametrize("kind", ["wavs", "shards"])
def test_altered_copies_are_for_training_alone(tmp_path: Path, kind: str) -> None:
    for k in range(5):
        tune(tmp_path / f"music/{k}.wav", 3.5, seed=k)
    flags = ["--augment", "2", *["--shards", "true"] * (kind == "shards"), *LONG[2:], "--context_seconds", "1.5"]
    text = prepare(tmp_path / "music", tmp_path / "pairs", *flags)
    altered = [row for row in rows(tmp_path / "pairs") if row["altered"]]
    assert f"Pairs of altered copies (--augment), in train: {len(altered)}" in text
    assert {row["split"] for row in altered} == {"train"} and len({row["altered"] for row in altered}) == 4 * 2
    held_out = {row["source_file"] for row in rows(tmp_path / "pairs") if row["split"] == "val"}
    assert not any(f"with {name}" in row["altered"] for name in held_out for row in altered)
    pairs = find_pairs(tmp_path / "pairs", 24_000)["train"]
    of_train = [row for row in rows(tmp_path / "pairs") if row["split"] == "train"]
    checked = 0
    for index, row in enumerate(of_train):
        if row["altered"] and "with" not in row["altered"]:
            # The tone of the recording is as many semitones higher, and half the power is the tone's.
            tone = 220 + 50 * int(row["source_file"][0])
            semitones = float(row["altered"].partition(" ")[0])
            audio = pairs.audio(index, 24_000, 1)[0][0].numpy()
            spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
            assert abs(spectrum.argmax() / 1.5 - tone * 2 ** (semitones / 12)) < 1.5
            checked += 1
    assert checked > 3


@pytest.mark.slow
def test_workers_give_the_same_bytes_as_one_process(music: Path, forks: Forks, tmp_path: Path) -> None:
    prepare(music, tmp_path / "alone", "--seed", "3")
    flags = (
        "--output",
        "new/pairs",
        "--context-seconds",
        1,
        "--segment-seconds",
        1,
        "--test_fraction",
        0,
        "--num_workers",
        2,
        "--seed",
        3,
    )
    done = forks("prepare_data.py", "my music", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "alone") == contents(tmp_path / "new/pairs")
    assert os.listdir(tmp_path / "new") == ["pairs"]


def test_copies_do_not_end_up_in_both_splits(tmp_path: Path) -> None:
    """Not even if one is a wav and the other a flac."""
    original = tune(tmp_path / "music/a.wav", 2.5, seed=1)
    samples, rate = soundfile.read(original, dtype="int16")
    soundfile.write(tmp_path / "music/b.flac", samples, rate)
    (tmp_path / "music/c.wav").write_bytes(original.read_bytes())
    tune(tmp_path / "music/d.wav", 2.5, seed=2)
    text = prepare(tmp_path / "music", tmp_path / "pairs", "--val_fraction", "0.5")
    assert {row["source_file"] for row in rows(tmp_path / "pairs")} == {"a.wav", "d.wav"}
    assert "b.flac: the same audio as a.wav" in text
    assert "c.wav: the same audio as a.wav" in text


def test_pairs_with_a_silent_segment_are_dropped_and_counted(tmp_path: Path) -> None:
    samples, rate = soundfile.read(tune(tmp_path / "music/a.wav", 6, seed=1))
    samples[2 * rate : 3 * rate] = 0
    soundfile.write(tmp_path / "music/a.wav", samples, rate)
    tune(tmp_path / "music/b.wav", 3, seed=2)
    tune(tmp_path / "music/quiet.wav", 3, seed=3, level=0.0005)
    text = prepare(tmp_path / "music", tmp_path / "pairs")
    assert [r["start_second"] for r in rows(tmp_path / "pairs") if r["source_file"] == "a.wav"] == ["0", "3", "4"]
    assert "Pairs dropped as silent (--min_rms): 4" in text
    assert "quiet.wav: every pair has a segment below --min_rms 0.001" in text
    prepare(tmp_path / "music", tmp_path / "all", "--min_rms", "0")
    assert len(rows(tmp_path / "all")) == 5 + 2 + 2


def test_start_seconds_of_a_fractional_segment(tmp_path: Path) -> None:
    for k in range(2):
        tune(tmp_path / f"music/{k}.wav", 2, seed=k)
    prepare(tmp_path / "music", tmp_path / "pairs", "--context_seconds", "0.4", "--segment_seconds", "0.4")
    starts = [row["start_second"] for row in rows(tmp_path / "pairs") if row["source_file"] == "0.wav"]
    assert starts == ["0", "0.4", "0.8", "1.2"]


def test_stereo_is_kept_and_mono_repeated(tmp_path: Path) -> None:
    stereo = tune(tmp_path / "music/a.wav", 2, 48_000, 2, seed=1)
    mono = tune(tmp_path / "music/b.wav", 2, 48_000, 1, seed=2)
    prepare(tmp_path / "music", tmp_path / "pairs", "--channels", "2", "--sample_rate", "48000")
    for row in rows(tmp_path / "pairs"):
        segment, rate = soundfile.read(tmp_path / "pairs" / row["split"] / f"{row['pair']}_output.wav")
        source = soundfile.read({"a.wav": stereo, "b.wav": mono}[row["source_file"]], always_2d=True)[0]
        assert (rate, segment.shape) == (48_000, (48_000, 2))
        assert np.abs(segment - source[48_000:]).max() < STEP


def test_a_file_that_would_clip_is_attenuated(tmp_path: Path) -> None:
    samples, rate = soundfile.read(tune(tmp_path / "music/a.wav", 3, seed=1))
    soundfile.write(tmp_path / "music/a.wav", samples / np.abs(samples).max() * 1.6, rate, subtype="FLOAT")
    tune(tmp_path / "music/b.wav", 3, seed=2)
    text = prepare(tmp_path / "music", tmp_path / "pairs")
    assert "peaks would have clipped: 1" in text
    for row in rows(tmp_path / "pairs"):
        if row["source_file"] == "a.wav":
            begin = int(row["start_second"]) * rate
            segment, _ = soundfile.read(tmp_path / "pairs" / row["split"] / f"{row['pair']}_input.wav")
            expected = samples[begin : begin + rate] / np.abs(samples).max()
            assert np.abs(segment - expected).max() < STEP


def test_unusable_files_are_listed_and_the_rest_is_prepared(music: Path, tmp_path: Path) -> None:
    (music / "empty.mp3").write_bytes(b"")
    (music / "text.flac").write_text("not audio")
    (music / "notes.txt").write_text("skipped")
    whole = tune(tmp_path / "whole.wav", 3).read_bytes()
    (music / "cut [1].wav").write_bytes(whole[: len(whole) // 2])
    nan = np.full(60_000, 0.1, dtype=np.float32)
    nan[30_000] = np.nan
    soundfile.write(music / "nan.wav", nan, 24_000, subtype="FLOAT")
    tune(music / "short.wav", 1.5)
    (music / os.fsdecode(b"latin\xe9.wav")).write_bytes(whole[:100])
    text = prepare(music, tmp_path / "pairs")
    assert "Files that cannot be read: 5" in text
    for start in (
        "empty.mp3: cannot be read as audio",
        "text.flac: cannot be read as audio",
        "cut [1].wav: truncated",
        "nan.wav: holds NaN",
        "latin\ufffd.wav: truncated",  # a name need not be UTF-8
    ):
        assert f"\n  {start}" in text
    assert "Files left out: 1\n  short.wav: 1.50 s long, shorter than an input and an output, 2 s" in text
    assert "notes.txt" not in text
    assert len(rows(tmp_path / "pairs")) == 3 + 2 + 2 + 2 + 1


def test_nothing_readable_is_an_error(tmp_path: Path, call_command: Command) -> None:
    (tmp_path / "music").mkdir()
    (tmp_path / "music/a.wav").write_text("not audio")
    done = call_command(
        "prepare_data.py", tmp_path / "music", "--output", tmp_path / "pairs", "--num_workers", 0, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "no file gives pairs" in done.stderr
    assert "a.wav: cannot be read as audio" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["music"]


def test_one_usable_file_is_an_error(tmp_path: Path) -> None:
    tune(tmp_path / "music/a.wav", 3)
    with pytest.raises(EncoreError, match="one file gives pairs, and train and val need one each"):
        prepare(tmp_path / "music", tmp_path / "pairs")
    assert os.listdir(tmp_path) == ["music"]


def test_an_output_folder_that_is_not_empty_is_left_alone(music: Path, tmp_path: Path) -> None:
    prepare(music, tmp_path / "pairs")
    before = contents(tmp_path / "pairs")
    with pytest.raises(EncoreError) as refused:
        prepare(music, tmp_path / "pairs", "--val_fraction", "1.5")
    # All problems are reported together.
    assert "pairs: already holds files; name another folder, or delete this one first" in str(refused.value)
    assert "--val_fraction 1.5: must be a number from 1e-09 to 0.999" in str(refused.value)
    assert contents(tmp_path / "pairs") == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--segment_seconds", "0"), "--segment_seconds 0.0: must be a number from 0.2 to "),
        (("--segment_seconds", "nan"), "--segment_seconds nan: must be a number from 0.2 to "),
        (("--min_rms", "-1"), "--min_rms -1.0: must be a number from 0 to 0.999"),
        (("--val_fraction", "0"), "--val_fraction 0.0: must be a number from 1e-09 to 0.999"),
        (("--test_fraction", "0.9"), "--test_fraction 0.9: with --val_fraction it leaves nothing to train on"),
        (("--context_seconds", "0.5"), "--context_seconds 0.5 --segment_seconds 1: an input must be as long"),
        (("--output", "{music}/pairs"), "lies inside the music folder"),
        (("--output", "{music}/a.wav"), "is a file"),
        (("--output", "/proc/pairs"), "--output /proc/pairs: cannot be written"),
    ],
)
def test_bad_settings_are_named(music: Path, tmp_path: Path, flags: tuple[str, str], message: str) -> None:
    with pytest.raises(EncoreError, match=message):
        prepare(music, tmp_path / "pairs", *(flag.format(music=music) for flag in flags))


def test_a_folder_without_music(tmp_path: Path) -> None:
    with pytest.raises(EncoreError, match="no such folder"):
        prepare(tmp_path / "nowhere", tmp_path / "pairs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoreError, match="no .wav, .flac, .ogg, .mp3 file in it"):
        prepare(tmp_path / "empty", tmp_path / "pairs")
