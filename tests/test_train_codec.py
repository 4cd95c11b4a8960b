"""train_codec.py as a user runs it, on seconds of synthesised music, with a small codec."""

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from encore.audio import write_wav
from encore.codecs import load_codec
from encore.codecs.starter.trainer import (
    CodecTrainer,
    CodecTraining,
    CropSampler,
    log_relative_error,
    split_files,
    validation_crops,
)
from encore.commands import train_codec
from encore.errors import EncoreError
from losses import functional
from tests.conftest import Command

RATE = 24000
SMALL = ["--width", "16", "--layers", "1", "--coefficients", "27", "--envelopes", "5"]


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files of 2 s: a decaying chord with a little noise."""
    folder = tmp_path_factory.mktemp("music")
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(2 * RATE) / RATE
    for number in range(4):
        chord = sum(torch.sin(6.2832 * f * (1 + number / 7) * t) for f in (110.0, 277.0, 440.0))
        audio = 0.1 * chord * torch.exp(-4 * (t % 0.5)) + 0.01 * torch.randn(len(t), generator=generator)
        write_wav(folder / f"song_{number}.wav", audio[None], RATE)
    return folder


def test_training_improves_on_the_start_and_writes_a_codec(call_command: Command, music: Path, tmp_path: Path) -> None:
    result = call_command(
        "train_codec.py", music, "--output", tmp_path, *SMALL, "--steps", 12, "--batch_size", 2, "--crop_seconds", 0.3,
        "--lr", 0.002, "--val_fraction", 0.25, "--validate_every", 4, "--seed", 1, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    held_out = re.findall(r"^held out: (.*)$", result.stdout, re.M)
    assert held_out == [path.name for path in split_files(sorted(music.iterdir()), 0.25, 1)[1]]
    objectives = [float(value) for value in re.findall(r"objective: (-?[\d.]+)", result.stdout)]
    assert len(objectives) == 4  # before the first step, after 4, 8 and 12
    assert min(objectives[1:]) < objectives[0] - 0.002
    codec = load_codec(str(tmp_path / "codec.safetensors"))
    assert (codec.latent_dim, codec.sample_rate, codec.hop_length) == (32, RATE, 320)
    audio = torch.sin(6.2832 * 200 * torch.arange(RATE // 2 // 320 * 320) / RATE)[None, None] * 0.2
    assert -functional.si_sdr(codec.decode(codec.encode(audio)), audio, zero_mean=False) > 15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--val_fraction", "1.5", "--lr", "0"], "--minutes, --steps: both are missing.*--lr 0.*--val_fraction 1.5"),
        (["--steps", "1", "--coefficients", "100"], "--coefficients 100: must be a multiple of 3"),
        (["--steps", "1", "--envelopes", "40"], "--envelopes 40: must be a whole number from 1 to 36"),
        (["--steps", "1", *SMALL, "--crop_seconds", "60"], "no training file is as long.*--crop_seconds"),
    ],
)
def test_mistakes_are_named_with_their_remedies(
    music: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(train_codec.app, [str(music), "--output", str(tmp_path), *arguments])
    assert isinstance(result.exception, EncoreError)
    assert re.search(message, str(result.exception), re.S), result.exception


def test_a_missing_folder_is_named_in_one_line(call_command: Command, tmp_path: Path) -> None:
    result = call_command("train_codec.py", tmp_path / "nowhere", "--output", tmp_path, "--steps", 1, cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "nowhere" in result.stderr and "Traceback" not in result.stderr


def test_split_keeps_files_whole_and_needs_two() -> None:
    files = [Path(f"{name}.wav") for name in "abcdefghij"]
    train, held_out = split_files(files, 0.3, 0)
    assert len(held_out) == 3 and sorted(train + held_out) == files
    assert split_files(list(reversed(files)), 0.3, 0) == (train, held_out)
    assert split_files(files, 0.3, 1) != (train, held_out)
    assert [len(part) for part in split_files(files[:2], 0.01, 0)] == [1, 1]
    with pytest.raises(EncoreError, match="at least two"):
        split_files(files[:1], 0.5, 0)


def test_crops_come_from_the_recordings_at_several_levels() -> None:
    long = torch.arange(10000.0)[None] + 1
    batch = CropSampler([long, torch.ones(1, 50)], 100, seed=0).batch(400)
    assert batch.shape == (400, 1, 100)
    steps = batch.diff()  # the gain of each crop, as the ramp rises by 1 per sample
    assert torch.allclose(steps, steps.mean(-1, keepdim=True).expand_as(steps), atol=1e-2)
    gains = steps.mean((1, 2))
    assert 0.3 < (gains > 0.999).float().mean() < 0.5
    assert 0 < (gains == 0).sum() < 30
    assert 100 < ((gains < 0.1) & (gains > 0)).sum() < 200


def test_validation_crops_are_two_a_file_one_of_them_quieter() -> None:
    crops = validation_crops([torch.arange(10.0 * RATE)[None], torch.ones(1, RATE)], RATE)
    assert [crop.shape[-1] for crop in crops] == [4 * RATE, 4 * RATE, RATE, RATE]
    assert [float(crop[0, 0]) for crop in crops[:2]] == pytest.approx([2 * RATE, 0.4 * RATE])  # 20 dB quieter
    with pytest.raises(EncoreError, match="0.1 s"):
        validation_crops([torch.ones(1, 100)], RATE)


def test_the_relative_error_of_known_errors() -> None:
    t = torch.arange(RATE) / RATE
    target = torch.sin(6.2832 * 100 * t)[None, None]
    other = torch.sin(6.2832 * 200 * t)[None, None]
    assert log_relative_error(target + 0.1 * other, target).item() == pytest.approx(-4.605, abs=0.01)
    assert log_relative_error(0 * target, 0 * target).item() == pytest.approx(0, abs=1e-6)


def test_constants_stay_and_the_rest_is_trained() -> None:
    torch.manual_seed(0)
    encoder, decoder = torch.nn.Conv1d(1, 4, 1), torch.nn.Conv1d(4, 1, 1)
    encoder.requires_grad_(False)
    before = [parameter.detach().clone() for parameter in (encoder.weight, decoder.weight)]
    settings = CodecTraining(1, None, 2, 0.1, 10)
    trainer = CodecTrainer(encoder, decoder, lambda p, t: (p - t - 1).square().mean(), settings)
    sampler = CropSampler([torch.randn(1, 1000)], 100, 0)
    assert trainer.fit(sampler, lambda: 0.0, lambda *_: None, lambda: None) == 1
    assert torch.equal(encoder.weight, before[0])
    # Adam's first step is the learning rate itself, which warms up over 100 steps.
    assert torch.allclose((decoder.weight - before[1]).abs(), torch.full((1, 4, 1), 0.001), rtol=0.01)


def test_a_loss_that_is_not_finite_is_an_error_and_changes_nothing() -> None:
    encoder, decoder = torch.nn.Conv1d(1, 2, 1), torch.nn.Conv1d(2, 1, 1)
    before = decoder.weight.detach().clone()
    settings = CodecTraining(50, None, 2, 0.1, 100)
    trainer = CodecTrainer(encoder, decoder, lambda p, t: p.mean() * float("nan"), settings)
    with pytest.raises(EncoreError, match="not finite"):
        trainer.fit(CropSampler([torch.randn(1, 1000)], 100, 0), lambda: 0.0, lambda *_: None, lambda: None)
    assert torch.equal(decoder.weight, before)


def test_both_halves_train_unless_they_need_no_gradient() -> None:
    encoder, decoder = torch.nn.Conv1d(1, 2, 1), torch.nn.Conv1d(2, 1, 1)
    before = [parameter.detach().clone() for parameter in [*encoder.parameters(), *decoder.parameters()]]
    settings = CodecTraining(2, None, 2, 0.1, 100)
    trainer = CodecTrainer(encoder, decoder, lambda p, t: (p - t - 1).square().mean(), settings)
    trainer.fit(CropSampler([torch.randn(1, 1000)], 100, 0), lambda: 0.0, lambda *_: None, lambda: None)
    after = [*encoder.parameters(), *decoder.parameters()]
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))
