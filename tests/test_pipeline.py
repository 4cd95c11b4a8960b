"""Continuing music from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import encore
from encore.audio import resample
from encore.errors import EncoreError
from encore.inference.pipeline import ContinuationPipeline
from tests.conftest import ENVIRONMENT, SAMPLE_RATE, Command, melody


@pytest.fixture(scope="module")
def model(trained: Path) -> ContinuationPipeline:
    return encore.load(trained / "checkpoints" / "last.pt", device="cpu", precision="fp32")


@pytest.mark.slow
def test_it_is_what_the_command_writes(
    model: ContinuationPipeline, trained: Path, call_command: Command, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "song.wav", melody(1.6, 3), SAMPLE_RATE)
    flags = (
        "--checkpoint",
        trained / "checkpoints" / "last.pt",
        "--seconds",
        1.3,
        "--seed",
        4,
        "--precision",
        "fp32",
    )
    result = call_command("inference_sample.py", "--input", "song.wav", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    samples, rate = soundfile.read(tmp_path / "song.wav", dtype="float32")
    audio = model.continue_(samples, rate, seconds=1.3, seed=4)
    assert audio.shape == (1, round(1.3 * SAMPLE_RATE)) and audio.dtype == torch.float32
    written = soundfile.read(tmp_path / "out" / "continuation.wav")[0]
    np.testing.assert_allclose(audio[0], written, atol=1 / 32768)


def test_any_shape_rate_and_number_of_channels(model: ContinuationPipeline) -> None:
    song = melody(1.5, 5)
    expected = model.continue_(song, SAMPLE_RATE, seconds=0.7)
    assert torch.equal(model.continue_(torch.from_numpy(song)[None], SAMPLE_RATE, seconds=0.7), expected)
    stereo = np.stack([1.5 * song, 0.5 * song])
    for same in (stereo.astype(np.float64), stereo.T, stereo.astype(">f4"), torch.from_numpy(stereo).T, list(song)):
        torch.testing.assert_close(model.continue_(same, SAMPLE_RATE, seconds=0.7), expected, atol=1e-4, rtol=0)
    for scale, kind in ((32768, np.int16), (2**31, np.int32)):
        integers = (song * scale).astype(kind)
        assert torch.equal(
            model.continue_(integers, SAMPLE_RATE, seconds=0.7),
            model.continue_((integers / scale).astype(np.float32), SAMPLE_RATE, seconds=0.7),
        )
    assert (model.sample_rate, model.channels) == (SAMPLE_RATE, 1)


def test_a_file_is_continued_at_its_own_rate_or_another(model: ContinuationPipeline, tmp_path: Path) -> None:
    song, path = melody(2.5, 5), tmp_path / "song.flac"
    soundfile.write(path, np.stack([song, song], 1), SAMPLE_RATE)
    samples, rate = soundfile.read(path)  # [N, C]
    expected = model.continue_(samples, rate, seconds=0.7)
    assert torch.equal(model.continue_(path, seconds=0.7), expected)
    at_16 = model.continue_(str(path), 16000, seconds=0.7)
    assert at_16.shape == (1, 11200)
    back = resample(at_16, 16000, SAMPLE_RATE)
    inner = slice(1000, 15000)  # a resampler's ends differ
    low = resample(resample(expected, SAMPLE_RATE, 16000), 16000, SAMPLE_RATE)
    assert (back - low)[:, inner].norm() < 0.05 * low[:, inner].norm()
    soundfile.write(tmp_path / "song.wav", song[::2], SAMPLE_RATE // 2)
    files = model.continue_batch([path, str(tmp_path / "song.wav")], seconds=0.5)
    assert [one.shape for one in files] == [(1, 12000), (1, 6000)]
    with pytest.raises(EncoreError, match="nothing.wav"):
        model.continue_(tmp_path / "nothing.wav")


def test_a_batch_is_each_waveform_alone(model: ContinuationPipeline) -> None:
    songs = [melody(seconds, seed) for seconds, seed in ((1.5, 5), (1.2, 6), (2.0, 7))]
    made = model.continue_batch(songs, 16000, seconds=0.7, seed=[2, 3])
    for song, rows in zip(songs, made, strict=True):
        assert rows.shape == (2, 1, 11200)
        alone = model.continue_(song, 16000, seconds=0.7, seed=3)
        torch.testing.assert_close(rows[1], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rate", [16000, 44100, 48000, 22051])
@pytest.mark.slow
def test_the_continuation_has_the_rate_of_the_waveform(model: ContinuationPipeline, rate: int) -> None:
    """A tone's continuation at another rate is the same music: its spectrum, in Hz, as at the codec's rate."""
    seconds = 0.8
    at_codec, other = (
        np.sin(2 * np.pi * 440 * np.arange(round(1.5 * r)) / r).astype(np.float32) * 0.3 for r in (SAMPLE_RATE, rate)
    )
    expected = model.continue_(at_codec, SAMPLE_RATE, seconds=seconds)[0]
    audio = model.continue_(other, rate, seconds=seconds)[0]
    assert audio.shape == (round(seconds * rate),)
    below = round(seconds * 6000)  # bins are 1 / seconds Hz wide at any rate
    spectra = [torch.fft.rfft(signal).abs()[:below] / len(signal) for signal in (expected, audio)]
    assert (spectra[0] - spectra[1]).norm() < 0.2 * spectra[0].norm()


@pytest.mark.slow
def test_seeds(model: ContinuationPipeline) -> None:
    song = melody(1.2, 6)
    both = model.continue_(song, SAMPLE_RATE, seconds=0.5, seed=np.array([3, 8]))
    assert both.shape == (2, 1, 12000)
    for seed, row in zip((3, np.int64(8)), both, strict=True):
        torch.testing.assert_close(model.continue_(song, SAMPLE_RATE, seconds=0.5, seed=seed), row, atol=1e-4, rtol=0)
    assert (both[0] - both[1]).abs().max() > 1e-3
    hot = model.continue_(song, SAMPLE_RATE, seconds=0.5, seed=3, temperature=2.0)
    assert (hot - both[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("waveform", "settings", "error", "message"),
    [
        (np.zeros(24000, np.int64), {}, TypeError, r"torch.int64 must be floating point .* or int16 or int32"),
        (np.array(["a"] * 24000), {}, TypeError, r"type <U1 must be floating point"),
        (np.full(24000, 3e4), {}, ValueError, r"samples of up to 30000; .* divide 16-bit samples by 32768"),
        (np.zeros(24000, np.float32), {"sample_rate": None}, TypeError, r"sample_rate: missing"),
        (np.zeros(0, np.float32), {}, ValueError, r"shape \[0\] holds no samples"),
        (np.zeros((2, 1, 24000), np.float32), {}, ValueError, r"shape \[2, 1, 24000\] must be \[N\], \[C, N\]"),
        (np.zeros((200, 200), np.float32), {}, ValueError, r"shape \[200, 200\] has 200 channels"),
        (np.full(24000, np.nan, np.float32), {}, ValueError, "NaN"),
        (np.zeros(4800, np.float32), {}, EncoreError, r"0\.20 s long .* at least 1\.00 s"),
        (np.zeros(24000, np.float32), {"sample_rate": 0}, ValueError, "sample_rate must be .* got 0"),
        (np.zeros(24000, np.float32), {"sample_rate": np.zeros(3)}, ValueError, "sample_rate must be "),
        ((np.zeros(24000), 24000), {}, TypeError, "waveform and sample rate are two arguments"),
        (np.zeros(24000, np.float32), {"seed": 1.5}, TypeError, "seed must be a whole number .* got 1.5"),
        (np.zeros(24000, np.float32), {"seed": []}, ValueError, "seed: an empty list"),
        (np.zeros(24000, np.float32), {"seconds": 0}, ValueError, "seconds must be .* got 0"),
        (np.zeros(24000, np.float32), {"temperature": -1.0}, ValueError, "temperature must be .* got -1"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(
    model: ContinuationPipeline, waveform: np.ndarray, settings: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.continue_(waveform, **{"sample_rate": SAMPLE_RATE, **settings})


@pytest.mark.slow
def test_a_model_of_regression_makes_one_continuation(trained_regression: Path) -> None:
    model = encore.load(str(trained_regression / "checkpoints" / "best_model.pt"), device="cpu")
    song = melody(1.2, 6)
    one, other = (model.continue_(song, SAMPLE_RATE, seconds=0.3, seed=seed) for seed in (0, 1))
    assert torch.equal(one, other)
    for settings in ({"seed": [0, 1]}, {"temperature": 0.5}):
        with pytest.raises(EncoreError, match="trained with --objective regression"):
            model.continue_(song, SAMPLE_RATE, **settings)


def test_what_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EncoreError, match="no such checkpoint"):
        encore.load(tmp_path / "best_model.pt")
    with pytest.raises(EncoreError, match="a folder without a config.json"):
        encore.load(tmp_path)


@pytest.mark.slow
def test_loading_a_model_imports_nothing_of_training_data_or_evaluation(trained: Path, run_program: Command) -> None:
    bare = [sys.executable, "-c", "import sys, encore; print(*sys.modules)"]
    result = subprocess.run(bare, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert "encore" in result.stdout.split() and not {"torch", "numpy"} & set(result.stdout.split())
    program = "import sys, encore; encore.load(sys.argv[1], device='cpu'); print(*sys.modules)"
    result = run_program(program, trained / "checkpoints" / "last.pt")
    assert result.returncode == 0, result.stderr
    loaded = result.stdout.split()
    assert "encore.inference.pipeline" in loaded
    wings = [f"encore.{name}" for name in ("training", "data", "evaluation", "reporting", "tracking")]
    unwanted = [*wings, "mlflow", "matplotlib", "librosa", "typer", "huggingface_hub"]
    assert [name for name in loaded if name in unwanted or name.startswith(tuple(f"{n}." for n in unwanted))] == []
