"""The loss doctor: run as a user runs it, and on losses with faults."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor
from typer.testing import CliRunner

from losses import REGISTRY, Entry
from losses.__main__ import app, folded
from losses.base import Loss
from losses.waveform import rms
from tests.conftest import Command, melody

GUIDE = ["RMS loss: works", "STFT loss: works", "Mel loss: works", "Combined loss: works", "Gradients: flow correctly"]
FEW = "rms,snr,mel,sum_and_difference_stft,embedding,gan,feature_matching"


def rows(output: str) -> dict[str, list[str]]:
    """The table's rows by loss."""
    lines = [line.split() for line in output.splitlines() if line.strip()]
    start = next(number for number, line in enumerate(lines) if line[0] == "loss")
    return {line[0]: line[1:] for line in lines[start + 1 :]}


def run(*arguments: object) -> tuple[int, str]:
    """The command run within this process: its exit status, and its output with errors."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def entry(function: Callable[[Tensor, Tensor], Tensor], minimum: float | None = 0.0) -> Entry:
    return Entry("faulty", lambda sample_rate: Loss(function), minimum)


@pytest.mark.slow
def test_losses_without_faults_pass(run_program: Command) -> None:
    program = "import runpy; runpy.run_module('losses', run_name='__main__')"  # python -m losses
    result = run_program(program, "--only", FEW, "--seconds", 0.2)
    assert result.returncode == 0, result.stdout + result.stderr
    table = rows(result.stdout)
    names = ("value", "music", "mark", "identity", "safe", "least", "channels", "ms", "mb", "gradient")
    found = dict(zip(names, table["mel"], strict=True))
    assert 0.1 < float(found["value"]) < 1 < float(found["music"]) < 10
    assert (found["mark"], found["identity"], found["safe"], found["channels"]) == ("✓", "0", "✓✓✓", "1,2")
    assert found["least"] == "513" and float(found["ms"]) > 0 and float(found["gradient"]) > 0
    assert float(found["mb"]) > 0.2 if sys.platform == "linux" else found["mb"] == "–"
    assert float(table["rms"][0]) == pytest.approx(0.141, abs=0.003)  # noise of RMS 0.1 against noise
    assert float(table["snr"][0]) == pytest.approx(3, abs=0.2) and float(table["snr"][3]) < -80
    assert table["sum_and_difference_stft"][6] == "2"
    assert set(FEW.split(",")) <= set(table)
    assert result.stdout.count("(random network)") == 3
    assert [line for line in result.stdout.splitlines() if line.startswith("✓")] == [f"✓ {line}" for line in GUIDE]


def test_a_users_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.wav", tmp_path / "b.wav"
    soundfile.write(first, melody(0.5, 0), 24000)
    soundfile.write(second, melody(0.4, 1), 24000)
    status, output = run("--input", first, "--target", second, "--only", "rms,sum_and_difference_stft")
    assert status == 0
    assert f"{first} is cut from 0.500 s to 0.400 s" in output and "[1, 1, 9600]" in output
    read = [torch.from_numpy(soundfile.read(path, 9600, dtype="float32")[0])[None, None] for path in (first, second)]
    table = rows(output)
    assert float(table["rms"][0]) == pytest.approx(rms(*read).item(), rel=5e-3)
    assert "needs stereo" in output and set(table["sum_and_difference_stft"]) == {"–"}
    assert run("--input", first, "--target", second, "--only", "rms", "--seconds", 0.1)[1].count("[1, 1, 2400]") == 1


def test_wrong_usage_gives_one_line(tmp_path: Path) -> None:
    good, other, short, text = (tmp_path / name for name in ("good.wav", "other.wav", "short.wav", "text.wav"))
    soundfile.write(good, melody(0.2, 0), 24000)
    soundfile.write(other, melody(0.2, 0), 16000)
    soundfile.write(short, melody(0.01, 0), 24000)
    text.write_text("no audio")
    files = ("--input", good, "--target")
    for arguments, message in {
        ("--only", "rms,lpips"): "--only lpips: no such loss; there are rms, waveform_l1,",
        ("--only", ","): "--only names no loss",
        ("--device", "tpu"): "--device tpu: must be cpu or cuda",
        ("--seconds", 0): "--seconds 0: must be above 0",
        ("--sample_rate", -1): "--sample_rate -1: must be above 0",
        ("--seconds", 0.01, "--only", "rms,mel"): "240 samples (0.01 s) are too few; at least: 513 for mel",
        ("--input", good): "--input and --target go together",
        (*files, tmp_path / "none.wav"): "none.wav: no such file",
        (*files, text): "text.wav: cannot be read as audio",
        (*files, other): "16000 Hz; resample one of them",
        (*files, good, "--sample-rate", 8000): "--sample_rate 8000: the files have 24000 Hz",
        (*files, short, "--only", "mel"): "240 samples (0.01 s) are too few; at least: 513 for mel",
    }.items():
        status, output = run(*arguments)
        errors = [line for line in output.splitlines() if not line.startswith("!")]
        assert status == 2 and len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0], output


def test_faulty_losses_fail_each_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    faulty: list[tuple[Callable[[Tensor, Tensor], Tensor], str]] = [
        (lambda p, t: (p - t).square().mean((1, 2)) * float("nan"), "noise: the value is nan"),
        (lambda p, t: (p - t).square().mean((1, 2)) + 0.5, "identity: the value is 0.5, but should be 0"),
        (lambda p, t: (p - t).square().mean((1, 2)).sqrt(), "identity: the value is 0, the gradient's norm nan"),
        (lambda p, t: (p - t).abs().mean((1, 2)) / t.abs().mean((1, 2)), "silence against silence: the value is nan"),
        (lambda p, t: p @ t, "noise: RuntimeError: Expected size"),
        (lambda p, t: (p * t).mean((1, 2)) - t.square().mean((1, 2)), "noise: the value is -0.0"),
        (lambda p, t: (p - t).detach().square().mean((1, 2)), "noise: RuntimeError: element 0 of tensors"),
        (lambda p, t: (p - t)[..., 10:].square().mean((1, 2)), "shortest input: 1 samples are too few"),
        (lambda p, t: (p - t).square().mean((1, 2)) * _asking(p, 20), "shortest input: fewer than the 20 samples"),
        (lambda p, t: (p - t).square().mean((1, 2)) * _mono(p), "stereo: no stereo, please"),
    ]
    for number, (function, _) in enumerate(faulty):
        monkeypatch.setitem(REGISTRY, f"faulty_{number}", entry(function))
    status, output = run("--only", ",".join(["rms", *(f"faulty_{number}" for number in range(len(faulty)))]))
    assert status == 1 and "✗ rms" not in output and output.count("works") == 4
    assert rows(output)["faulty_2"][2:5] == ["✗", "–", "✗✓✓"]
    for number, (_, problem) in enumerate(faulty):
        assert f"✗ faulty_{number}: {problem}" in output, output


def _asking(prediction: Tensor, least: int) -> int:
    """Raises an error that asks for more samples than are needed."""
    if prediction.shape[-1] < least - 5:
        raise ValueError(f"too short: at least {least} samples are needed")
    return 1


def _mono(prediction: Tensor) -> int:
    if prediction.shape[1] != 1:
        raise ValueError("no stereo, please")
    return 1


def test_a_loss_that_is_flat_where_it_should_be_trained_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(REGISTRY, "flat", entry(lambda p, t: (p - t).square().mean((1, 2)).clamp_max(1e-3)))
    status, output = run("--only", "flat,rms", "--seconds", 0.05)
    warning = "the gradient of 2 of 2 items is 0: training would learn nothing there"
    assert status == 0 and f"! flat: noise: {warning}" in output and f"! flat: music: {warning}" in output
    assert "rms: noise" not in output
    tone, hiss = torch.sin(torch.arange(24000) * 0.26), torch.randn(24000, generator=torch.Generator().manual_seed(0))
    for name, signal in (("tone", 0.1 * tone), ("noisy", 0.1 * tone + 0.07 * hiss)):
        soundfile.write(tmp_path / f"{name}.wav", signal.numpy(), 24000)
    files = ("--input", tmp_path / "noisy.wav", "--target", tmp_path / "tone.wav")
    assert "! pesq: files: the gradient of 1 of 1 items is 0" in run(*files, "--only", "pesq")[1]
    same = ("--input", tmp_path / "tone.wav", "--target", tmp_path / "tone.wav")
    assert "the gradient" not in run(*same, "--only", "rms")[1]


def test_a_loss_that_does_not_fall_towards_the_target_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "faulty", entry(lambda p, t: (p * t).mean((1, 2)), None))
    status, output = run("--only", "faulty", "--seconds", 0.05)
    assert status == 1 and re.search(
        r"✗ faulty: identity: the value is [\d.]+, but should be lower than for other predictions", output
    )


def test_a_faulty_loss_of_the_basic_recipe_fails_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "rms", entry(lambda p, t: (p - t).mean((1, 2)) * float("nan")))
    status, output = run("--only", "mel", "--seconds", 0.05)
    assert status == 1 and "✗ RMS loss: on noise," in output and "✗ Combined loss: on noise," in output
    assert "✗ Gradients: the gradient of rms has norms [nan, nan]" in output
    assert "✓ STFT loss: works" in output and "✓ Mel loss: works" in output


def test_a_missing_package_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pesq", None)
    from losses import pesq

    pesq._measure.cache_clear()
    monkeypatch.setitem(sys.modules, "encodec", None)
    monkeypatch.setitem(sys.modules, "encodec.msstftd", None)
    status, output = run("--only", "rms,pesq,gan", "--seconds", 0.05)
    assert status == 0 and "needs torch-pesq" in output and "needs encodec" in output
    assert "pip install -r requirements-losses.txt" in output


def test_names_fold_in_a_narrow_terminal() -> None:
    assert folded("spectral_optimal_transport") == "spectral_optimal_\ntransport"
    assert folded("rms") == "rms"
    for name in REGISTRY:
        assert folded(name).replace("\n", "") == name
