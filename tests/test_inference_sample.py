"""inference_sample.py with a model from a real training run."""

from __future__ import annotations

import io
import math
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.image import imread
from mlflow.tracking import MlflowClient
from PIL import Image

import losses
from encore.audio import read_audio
from encore.commands import sample as inference_sample
from encore.config import cli
from encore.config.schema import TrainConfig
from encore.inference.continuation import continue_song
from encore.inference.table import build_table_losses
from encore.models.loading import load_generator
from tests.conftest import ENVIRONMENT, SAMPLE_RATE, Command, command, melody
from tests.test_page import Page

START, SECONDS, SONG_SECONDS = 2.3, 2.5, 4.0  # so 1.7 s of the song follow


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("song") / "a [b] & <song>.flac"
    soundfile.write(path, melody(SONG_SECONDS, 77), SAMPLE_RATE)
    return path


@pytest.fixture(scope="module")
def continued(
    tmp_path_factory: pytest.TempPathFactory, call_command: Command, trained: Path, song: Path
) -> tuple[Path, str]:
    """The output folder of a run of the command, and what it printed."""
    folder = tmp_path_factory.mktemp("continued")
    flags = ("--input", song, "--start", START, "--seconds", SECONDS, "--output", folder / "new" / "out")
    result = call_command(
        "inference_sample.py", "--checkpoint", trained / "checkpoints" / "best_model.pt", *flags, cwd=folder
    )
    assert result.returncode == 0, result.stderr
    return folder / "new" / "out", result.stdout


def save_as(trained: Path, path: Path, **settings: object) -> Path:
    """The checkpoint of a run with changed settings."""
    content = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)
    if settings.get("objective") == "regression":  # such a model has no gains
        for part in ("model", "ema"):
            content[part] = {key: value for key, value in content[part].items() if "gains." not in key}
    torch.save({**content, "config": {**content["config"], **settings}}, path)
    return path


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """A checkpoint of a model that samples block by block, with a replay and noise."""
    path = tmp_path_factory.mktemp("drawing") / "model.pt"
    return save_as(trained, path, objective="energy", generation="blocks", block_seconds=0.4, prior="replay")


def sample(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Runs the command within this process; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["inference_sample.py", *(str(argument) for argument in arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.run(inference_sample.app)
    return int(ended.value.code or 0)


def samples_of(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="int16")
    assert rate == SAMPLE_RATE
    return samples


def assert_plays(played: np.ndarray, expected: np.ndarray) -> None:
    """The MP3 of a page is as long as what it was made of, with an error of at most 5% of its power."""
    assert len(played) == len(expected)
    error = played.astype(float) - expected
    assert np.square(error).mean() <= 0.05 * np.square(expected.astype(float)).mean()


def test_full_wav_is_the_context_and_the_continuation(continued: tuple[Path, str], song: Path) -> None:
    folder, _ = continued
    continuation, full = samples_of(folder / "continuation.wav"), samples_of(folder / "full.wav")
    context = 75 * 320  # one second, as in training
    assert len(continuation) == round(SECONDS * SAMPLE_RATE)
    assert len(full) == context + len(continuation)
    np.testing.assert_array_equal(full[context:], continuation)
    # In front of it is the song itself, up to the cross-fade of eight frames.
    end = round(START * SAMPLE_RATE)
    original = soundfile.read(song, dtype="int16")[0][end - context : end]
    np.testing.assert_allclose(full[: context - 2560], original[:-2560], atol=1)


def test_the_table_holds_the_runs_losses_against_the_truth(
    continued: tuple[Path, str], trained: Path, song: Path
) -> None:
    folder, printed = continued
    generator = load_generator(trained / "checkpoints" / "best_model.pt", torch.device("cpu"))
    audio = read_audio(song, SAMPLE_RATE, 1)
    end = round(START * SAMPLE_RATE)
    truth, count = audio[:, end:], audio.shape[1] - end
    made = continue_song(generator, audio[:, :end], SECONDS)
    segments = truth.split(SAMPLE_RATE, dim=1)
    with torch.no_grad():
        through = [generator.codec.decode(generator.codec.encode(s[None]))[0, :, : s.shape[1]] for s in segments]
    copy = torch.cat([audio[:, end - SAMPLE_RATE : end]] * math.ceil(count / SAMPLE_RATE), dim=1)
    predictions = [made.audio[0, :, :count], torch.cat(through, dim=1), copy[:, :count]]

    head, *rows = Page(folder / "index.html").rows
    assert head == ["Loss", "Continuation", "Truth through the codec", "Copy of the input"]
    assert [row[0] for row in rows] == ["rms", "spectral", "mel"]
    for name, *shown in rows:
        expected = [float(losses.create(name, SAMPLE_RATE)(p[None], truth[None])) for p in predictions]
        assert [float(value) for value in shown] == pytest.approx(expected, abs=2e-4), name
        assert re.search(rf"{name}\s+" + r"\s+".join(map(re.escape, shown)), printed), printed
    assert "over 1.70 s" in printed


def test_the_page_has_players_and_spectrograms_of_all_signals(continued: tuple[Path, str], song: Path) -> None:
    folder, _ = continued
    page = Page(folder / "index.html")
    assert len(page.audio) == len(page.images) == 5
    full, context, continuation, truth, codec = (soundfile.read(io.BytesIO(c), dtype="int16")[0] for c in page.audio)
    assert_plays(continuation, samples_of(folder / "continuation.wav"))
    assert_plays(full, samples_of(folder / "full.wav"))
    original, end = soundfile.read(song, dtype="int16")[0], round(START * SAMPLE_RATE)
    assert_plays(context, original[end - 24000 : end])
    assert_plays(truth, original[end:])
    assert len(codec) == len(truth)
    for content in page.images:
        assert np.asarray(Image.open(io.BytesIO(content))).std() > 12
    assert imread(folder / "spectrogram.png").shape[0] > 2 * Image.open(io.BytesIO(page.images[0])).height
    assert song.stem in page.text and "continuation begins at 1.00 s" in page.text


def test_the_table_has_the_losses_of_training_or_those_of_metrics(trained: Path) -> None:
    config = TrainConfig.from_flags(loss_weight_gan=1.0, loss_weight_esr=0.5, metrics="rms_input,phase")
    assert config.objective.loss_names == {"rms", "esr", "phase"}
    generator = load_generator(trained / "checkpoints" / "best_model.pt", torch.device("cpu"))
    truth = torch.from_numpy(melody(1, 3))[None]
    assert list(build_table_losses(generator, None, truth)) == ["rms", "spectral", "mel"]
    assert list(build_table_losses(generator, "mel, rms", truth)) == ["rms", "mel"]


@pytest.mark.slow
def test_a_run_id_fetches_the_best_checkpoint_of_that_run(
    continued: tuple[Path, str], call_command: Command, trained: Path, store: str, song: Path, tmp_path: Path
) -> None:
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("trained")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    flags = (
        "--run_id",
        run.info.run_id,
        "--mlflow_uri",
        store,
        "--input",
        song,
        "--start",
        START,
        "--seconds",
        SECONDS,
    )
    result = call_command("inference_sample.py", *flags, "--output", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    np.testing.assert_array_equal(samples_of(tmp_path / "full.wav"), samples_of(continued[0] / "full.wav"))


@pytest.mark.slow
def test_at_the_songs_end_there_is_no_truth_unless_a_target_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trained: Path, song: Path, tmp_path: Path
) -> None:
    flags = ("--checkpoint", trained / "checkpoints" / "best_model.pt", "--input", song, "--seconds", 1.5)
    assert sample(monkeypatch, *flags, "--output", tmp_path / "end", "--device", "cpu") == 0
    page = Page(tmp_path / "end" / "index.html")
    assert len(page.audio) == len(page.images) == 3
    assert page.rows == []
    assert "Against the truth" not in capsys.readouterr().out

    target = tmp_path / "target.wav"
    soundfile.write(target, np.stack([melody(3, 5)] * 2, axis=1), SAMPLE_RATE)
    assert sample(monkeypatch, *flags, "--output", tmp_path / "with", "--target", target, "--device", "cpu") == 0
    page = Page(tmp_path / "with" / "index.html")
    assert len(page.audio) == 5 and len(page.rows) == 1 + 3
    truth = soundfile.read(io.BytesIO(page.audio[3]), dtype="float32")[0]
    assert_plays(truth, melody(3, 5)[: len(truth)])
    assert len(truth) == 1.5 * SAMPLE_RATE
    assert "over 1.50 s" in capsys.readouterr().out


@pytest.mark.slow
def test_candidates_stand_side_by_side_and_the_best_of_each_row_is_marked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], drawing: Path, song: Path, tmp_path: Path
) -> None:
    flags = ("--checkpoint", drawing, "--input", song, "--start", START, "--seconds", SECONDS, "--device", "cpu")
    assert sample(monkeypatch, *flags, "--candidates", 3, "--seed", 4, "--output", tmp_path) == 0
    printed = capsys.readouterr().out
    page = Page(tmp_path / "index.html")
    assert len(page.audio) == len(page.images) == 3 + 3
    names = ["continuation.wav", "continuation_2.wav", "continuation_3.wav"]
    assert sorted(path.name for path in tmp_path.glob("continuation*")) == names
    for number, name in enumerate(names):
        made, whole = samples_of(tmp_path / name), samples_of(tmp_path / name.replace("continuation", "full"))
        np.testing.assert_array_equal(whole[24000:], made)
        played = soundfile.read(io.BytesIO(page.audio[number]), dtype="int16")[0]
        assert_plays(played, whole)  # all of the context, as it is shorter than 2 s
        assert f"Seed {4 + number}, {name}; it begins at 1.00 s" in page.text
    head, *rows = page.rows
    assert head[1:] == ["Candidate 1", "Candidate 2", "Candidate 3", "Truth through the codec", "Copy of the input"]
    assert page.tags.count("strong") == len(rows) == printed.count(" *")
    for name, *values in rows:
        best = min(values[:3], key=float)
        assert f"<strong>{best}</strong>" in (tmp_path / "index.html").read_text()
        assert re.search(rf"{name}\s.*{re.escape(best)} \*", printed), printed

    # A candidate depends on its own seed only.
    second = samples_of(tmp_path / "continuation_2.wav")
    assert sample(monkeypatch, *flags, "--seed", 5, "--output", tmp_path / "five") == 0
    np.testing.assert_allclose(samples_of(tmp_path / "five" / "continuation.wav"), second, atol=1)
    assert np.abs(samples_of(tmp_path / "continuation.wav").astype(int) - second).max() > 100
    assert sample(monkeypatch, *flags, "--seed", 5, "--temperature", 2, "--output", tmp_path / "hot") == 0
    assert np.abs(samples_of(tmp_path / "hot" / "continuation.wav").astype(int) - second).max() > 10


@pytest.mark.slow
def test_a_stream_can_be_played_while_it_grows_and_stopped(drawing: Path, song: Path, tmp_path: Path) -> None:
    flags = ("--checkpoint", drawing, "--input", song, "--seconds", 360000, "--stream", "--output", "out")
    with subprocess.Popen(
        command("inference_sample.py", *flags, "--candidates", 2),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "can be played, and grows" in line:
                break
        while_it_grows = len(soundfile.read(tmp_path / "out" / "full.wav")[0])
        process.send_signal(signal.SIGINT)
        printed = process.stdout.read()
    assert process.returncode == inference_sample.STOPPED, printed
    assert while_it_grows > SAMPLE_RATE
    far = re.search(r"stopped after ([\d.]+) of 360000 s", printed)
    assert far is not None, printed
    for number in ("", "_2"):
        made, whole = (samples_of(tmp_path / "out" / f"{stem}{number}.wav") for stem in ("continuation", "full"))
        assert len(made) / SAMPLE_RATE == pytest.approx(float(far[1]), abs=0.41)  # plus the piece being written
        np.testing.assert_array_equal(whole[SAMPLE_RATE:][: len(made)], made[: len(whole) - SAMPLE_RATE])
    assert len(Page(tmp_path / "out" / "index.html").audio) == 3


@pytest.mark.slow
def test_a_folder_of_songs_is_continued_and_a_bad_file_is_named(
    call_command: Command, drawing: Path, tmp_path: Path
) -> None:
    """Each song as alone, whatever its length and rate; names do not collide."""
    songs = tmp_path / "songs"
    (songs / "sub").mkdir(parents=True)
    soundfile.write(songs / "a.wav", melody(3, 1), SAMPLE_RATE)
    soundfile.write(songs / "a.flac", melody(2.5, 2), SAMPLE_RATE)
    soundfile.write(songs / "sub" / "b #1.wav", melody(4, 3)[::2], SAMPLE_RATE // 2)
    (songs / "bad.wav").write_text("no music")
    flags = ("--checkpoint", drawing, "--start", 1.4, "--seconds", 0.4, "--seed", 3, "--precision", "fp32")
    result = call_command("inference_sample.py", *flags, "--inputs", songs, "--candidates", 2, cwd=tmp_path)
    assert result.returncode == 1
    assert "1 of 4 songs were not continued" in result.stderr and "bad.wav: cannot be read" in result.stderr
    out = tmp_path / "out"
    names = {"a.wav": "a.wav", "a.flac": "a.flac", "sub/b #1.wav": "sub_b #1"}
    assert {path.name for path in out.iterdir()} == {"index.html", *names.values()}
    for song, name in names.items():
        made, other = (
            samples_of(out / name / f"{stem}.wav").astype(int) for stem in ("continuation", "continuation_2")
        )
        assert len(made) == 0.4 * SAMPLE_RATE and np.abs(made - other).max() > 100
        if song == "a.wav":  # the longest of those of its rate
            continue
        alone = call_command("inference_sample.py", *flags, "--input", songs / song, "--output", "alone", cwd=tmp_path)
        assert alone.returncode == 0, alone.stderr
        np.testing.assert_allclose(samples_of(tmp_path / "alone" / "continuation.wav"), made, atol=2)
    page = (out / "index.html").read_text()
    assert all(f'src="{quote(name)}/full_2.wav"' in page for name in names.values())
    assert "means over 3 songs" in page and "bad.wav" in page
    again = call_command("inference_sample.py", *flags, "--inputs", ".", "--output", "out", cwd=tmp_path)
    assert again.returncode == 1 and "out/" not in again.stderr
    assert (out / "songs_sub_b #1").is_dir() and not list(out.glob("out_*"))  # no results of an earlier run


@pytest.mark.parametrize(
    ("changed", "messages"),
    [
        ({"--checkpoint": "no.pt"}, ["--checkpoint no.pt: no such file"]),
        ({"--checkpoint": "{text}"}, ["{text}: not a checkpoint"]),
        ({"--checkpoint": None}, ["--checkpoint, --run_id: neither is given"]),
        ({"--run_id": "abc"}, ["--checkpoint, --run_id: both are given"]),
        (
            {"--checkpoint": None, "--run_id": "abc", "--mlflow_uri": "sqlite:///no.db"},
            ["--mlflow_uri sqlite:///no.db"],
        ),
        (
            {"--checkpoint": None, "--run_id": "abc", "--mlflow_uri": "{store}"},
            ["--run_id abc: ", "Run with id=abc not found"],
        ),
        ({"--input": "no.wav"}, ["no.wav: cannot be read as audio"]),
        ({"--input": None}, ["--input, --inputs: neither is given"]),
        (
            {"--inputs": "songs", "--stream": "true"},
            ["--input, --inputs: both are given", "--stream: for one song only"],
        ),
        ({"--input": None, "--inputs": "songs"}, ["--inputs songs: no such folder"]),
        ({"--precision": "fp16"}, ["--precision fp16: must be one of"]),
        ({"--input": "{text}"}, ["{text}: cannot be read as audio"]),
        ({"--start": 4.1}, ["--start 4.1: ", "ends at 4.00 s"]),
        ({"--start": 0.4}, ["0.40 s long", "at least 1.00 s"]),
        ({"--start": -1, "--seconds": 0}, ["--seconds 0.0: must be", "--start -1.0: must be"]),
        ({"--seconds": "nan"}, ["--seconds nan: must be"]),
        (
            {"--candidates": 0, "--seed": -1},
            ["--candidates 0: must be a whole number from 1 to 1024", "--seed -1: must be"],
        ),
        ({"--seed": 2**32}, ["--seed 4294967296: must be"]),
        ({"--temperature": -1}, ["--temperature -1.0: must be"]),
        ({"--temperature": "nan"}, ["--temperature nan: must be"]),
        (
            {"--checkpoint": "{regression}", "--candidates": 2, "--temperature": 0.5},
            ["--candidates 2: this model was trained with --objective regression", "--temperature 0.5: this model"],
        ),
        ({"--metrics": "mel,gan, lpips"}, ["--metrics gan,lpips: no such loss; there are rms, "]),
        ({"--start": 2, "--metrics": "rms,sum_and_difference_stft"}, ["--metrics sum_and_difference_stft: ", "stereo"]),
        ({"--target": "{short}"}, ["--target {short}: only 0.10 s"]),
        ({"--output": "{text}/out"}, ["--output {text}/out: cannot be written to"]),
        ({"--device": "cuda:99"}, ["--device cuda:99: not a device"]),
    ],
    ids=lambda value: " ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_each_mistake_is_one_line_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trained: Path,
    store: str,
    song: Path,
    tmp_path: Path,
    changed: dict[str, object],
    messages: list[str],
) -> None:
    text, short = tmp_path / "notes.txt", tmp_path / "short.wav"
    text.write_text("nothing of that kind")
    soundfile.write(short, melody(0.25, 1)[:2400], SAMPLE_RATE)
    regression = save_as(trained, tmp_path / "regression.pt", objective="regression")
    places = {"text": text, "short": short, "store": store, "regression": regression}
    monkeypatch.chdir(tmp_path)
    flags = {
        "--checkpoint": trained / "checkpoints" / "best_model.pt",
        "--input": song,
        "--seconds": 1,
        "--output": tmp_path / "out",
        **changed,
    }
    arguments = [str(part).format(**places) for item in flags.items() if item[1] is not None for part in item]
    assert sample(monkeypatch, *arguments) == cli.USER_ERROR
    lines = capsys.readouterr().err.splitlines()
    expected = [message.format(**places) for message in messages]
    assert all(line.startswith("error: ") for line in lines)
    assert len(lines) <= len(expected)
    for message in expected:
        assert any(message in line for line in lines), lines
    assert not (tmp_path / "no.db").exists()
    assert not list((tmp_path / "out").glob("*"))
