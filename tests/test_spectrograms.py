"""The spectrogram losses against NumPy in float64 and by hand; the presets of korvax against korvax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

import losses
from losses.spectrograms import RESOLUTIONS
from tests.signals import RATE, korvax, loss_named, music, noise

Pair = tuple[np.ndarray, np.ndarray]
QUIET = 1e-3  # RMS of the noise that silent targets count as


def transform(signal: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """Spectra `[C, frames, bins]` of `[C, N]`, frame by frame, with Hann's window and reflected ends."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    padded = np.pad(signal, ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
    starts = range(0, padded.shape[1] - n_fft + 1, hop)
    return np.stack([np.fft.rfft(window * padded[:, start : start + n_fft]) for start in starts], axis=1)


def magnitudes(pair: Pair, n_fft: int, hop: int) -> Pair:
    """Not below 1e-4."""
    p, t = (np.maximum(np.abs(transform(signal, n_fft, hop)), 1e-4) for signal in pair)
    return p, t


def quiet_level(n_fft: int) -> float:
    """Mean magnitude, root mean square, of the spectrum of noise that is QUIET."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    return float(QUIET * np.sqrt((window**2).sum()))


def mel(pair: Pair, n_fft: int = 1024, hop: int = 256, bands: int = 80, top: float = 8000.0) -> float:
    filters = librosa.filters.mel(sr=RATE, n_fft=n_fft, n_mels=bands, fmax=top, dtype=np.float64)
    p, t = (np.log(np.maximum(values @ filters.T, 1e-5)) for values in magnitudes(pair, n_fft, hop))
    return np.abs(p - t).mean()


def multi_mel(pair: Pair) -> float:
    sizes = ((1024, 256, 80), (2048, 512, 160), (4096, 1024, 320))
    return float(np.mean([mel(pair, *size, top=RATE / 2) for size in sizes]))


def complex_spec(pair: Pair, n_fft: int = 1024) -> float:
    p, t = magnitudes(pair, n_fft, n_fft // 2)
    return np.abs(p - t).mean() / max(t.mean(), quiet_level(n_fft))


def multi_complex_spec(pair: Pair) -> float:
    return float(np.mean([complex_spec(pair, 2**power) for power in range(5, 12)]))


def mse_spectrogram(pair: Pair) -> float:
    p, t = magnitudes(pair, 1024, 256)
    return ((p - t) ** 2).mean()


def log_spectrogram(pair: Pair) -> float:
    p, t = magnitudes(pair, 1024, 256)
    return np.abs(np.log(p / t)).mean()


def complex_stft(pair: Pair) -> float:
    values = []
    for n_fft in RESOLUTIONS:
        p, t = (transform(signal, n_fft, n_fft // 4) for signal in pair)
        level = magnitudes(pair, n_fft, n_fft // 4)[1].mean()
        values.append(np.abs(p - t).mean() / max(level, quiet_level(n_fft)))
    return float(np.mean(values))


def phase(pair: Pair) -> float:
    def anti_wrapped(angle: np.ndarray) -> float:
        return np.abs(angle - 2 * np.pi * np.round(angle / (2 * np.pi))).mean()

    values = []
    for n_fft in RESOLUTIONS:
        p, t = (np.angle(transform(signal, n_fft, n_fft // 4)) for signal in pair)
        # Group delay and instantaneous frequency of each signal, as in the paper, not differences of the difference.
        along = (np.diff(p, axis=axis) - np.diff(t, axis=axis) for axis in (1, 2))
        values.append(anti_wrapped(p - t) + sum(map(anti_wrapped, along)))
    return float(np.mean(values))


def loudness(pair: Pair) -> float:
    values = []
    for n_fft in RESOLUTIONS:
        p, t = magnitudes(pair, n_fft, n_fft // 4)
        audible = 10 ** (librosa.A_weighting(np.maximum(np.arange(n_fft // 2 + 1) * RATE / n_fft, 1e-3)) / 20)
        weights = audible * np.maximum(t, quiet_level(n_fft))
        values.append((weights * np.abs(np.log(p / t))).sum() / weights.sum())
    return float(np.mean(values))


def spectral_energy(pair: Pair) -> float:
    values = []
    for n_fft in (64, 128, 256, 512, 1024, 2048):
        p, t = magnitudes(pair, n_fft, n_fft // 4)
        frames = np.abs(p - t).mean(-1) + np.sqrt((np.log(p / t) ** 2).mean(-1))
        values.append(frames.mean())
    return float(np.mean(values))


def spectral(pair: Pair) -> float:
    values = []
    for n_fft in (512, 1024, 2048):
        p, t = magnitudes(pair, n_fft, n_fft // 4)
        values.append(np.linalg.norm(t - p) / np.linalg.norm(t) + np.abs(np.log(p / t)).mean())
    return float(np.mean(values))


REFERENCES: list[Callable[..., float]] = [
    spectral,
    mel,
    multi_mel,
    complex_spec,
    multi_complex_spec,
    mse_spectrogram,
    log_spectrogram,
    complex_stft,
    phase,
    loudness,
    spectral_energy,
]


@pytest.mark.parametrize("signals", [noise, music])
@pytest.mark.parametrize("shape", [(2, 2, 5000), (1, 1, 2049), (3, 1, 4801)])
@pytest.mark.parametrize("reference", REFERENCES, ids=lambda function: function.__name__)
def test_values_are_those_of_numpy(
    reference: Callable[..., float], shape: tuple[int, ...], signals: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    prediction, target = signals(shape, 0)
    expected = [reference((p.double().numpy(), t.double().numpy())) for p, t in zip(prediction, target, strict=True)]
    loss = loss_named(reference.__name__)
    assert loss(prediction.double(), target.double()).tolist() == pytest.approx(expected, rel=1e-9)
    assert loss(prediction, target).tolist() == pytest.approx(expected, rel=1e-5)


def test_settings_reach_the_reference() -> None:
    prediction, target = noise((1, 1, 4000), 1)
    pair = prediction[0].double().numpy(), target[0].double().numpy()
    settings: dict[str, Any] = {"n_fft": 512, "hop_length": 100, "n_mels": 40, "f_max": 6000.0}
    value = losses.MelLoss(RATE, **settings)(prediction.double(), target.double())
    assert value.item() == pytest.approx(mel(pair, 512, 100, 40, 6000.0), rel=1e-9)
    value = losses.ComplexSpecLoss(n_fft=256)(prediction.double(), target.double())
    assert value.item() == pytest.approx(complex_spec(pair, 256), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "doubled", "turned", "silent"),
    [
        ("mel", math.log(2), 0, None),
        ("multi_mel", math.log(2), 0, None),
        ("complex_spec", 1, 0, 1),
        ("multi_complex_spec", 1, 0, 1),
        ("log_spectrogram", math.log(2), 0, None),
        ("complex_stft", 1, 2, 1),
        ("phase", 0, math.pi, None),  # half a turn of every angle, none of their differences
        ("loudness", math.log(2), 0, None),
    ],
)
def test_twice_the_level_the_other_sign_and_silence(
    name: str, doubled: float, turned: float, silent: float | None
) -> None:
    target, loss = noise((2, 1, 6000), 2)[1].double(), loss_named(name)
    for prediction, expected in ((2 * target, doubled), (-target, turned), (0 * target, silent)):
        if expected is not None:
            assert loss(prediction, target).tolist() == pytest.approx([expected] * 2, rel=1e-3, abs=1e-6)


def test_unrelated_noise_has_the_values_of_the_docstrings() -> None:
    prediction, target = noise((1, 1, 48000), 3)
    assert loss_named("complex_stft")(prediction, target).item() == pytest.approx(2**0.5, rel=0.02)
    assert loss_named("phase")(prediction, target).item() == pytest.approx(3.9, abs=0.05)


def test_a_silent_target_counts_as_quiet_noise() -> None:
    prediction, silence = noise((1, 1, 24000), 4, QUIET)[0], torch.zeros(1, 1, 24000)
    for name in ("complex_spec", "complex_stft"):
        # The mean of a Rayleigh distribution is √π/2 of its root mean square.
        assert loss_named(name)(prediction, silence).item() == pytest.approx(math.pi**0.5 / 2, rel=0.05)


def test_loudness_weights_the_bands_of_the_ear_and_what_is_loud() -> None:
    target = noise((1, 1, 24000), 5)[1].double()

    def halved(low: float, high: float) -> Tensor:
        spectra, hz = torch.fft.rfft(target), torch.fft.rfftfreq(24000, 1 / RATE)
        return torch.fft.irfft(spectra * torch.where((hz >= low) & (hz < high), 0.5, 1.0), n=24000)

    def compared(name: str, *bands: tuple[float, float]) -> list[float]:
        return [loss_named(name)(halved(*band), target).item() for band in bands]

    low, middle, high = compared("loudness", (0, 150), (200, 350), (2500, 2650))
    assert 2 * low < middle < high  # A-weighting: below -17 dB, about -8 dB, +1.3 dB
    low, middle = plain = compared("log_spectrogram", (50, 200), (200, 350))
    assert low == pytest.approx(middle, rel=0.2), plain
    quiet = target * torch.cat([torch.full((12000,), 0.01), torch.ones(12000)])
    early, late = quiet.clone(), quiet.clone()
    early[..., :12000] *= 2
    late[..., 12000:] *= 2
    loss = loss_named("loudness")
    assert 20 * loss(early, quiet) < loss(late, quiet)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["mrstft", "smooth_mrstft"])
def test_presets_equal_korvax(preset: str) -> None:
    """Values and gradients, in float64 and in float32."""
    theirs = getattr(korvax().loss, f"{preset}_loss")
    import jax

    prediction, target = (signal.double() for signal in noise((2, 2, 3000), 6))
    with jax.enable_x64(True):
        derived = jax.jit(jax.vmap(jax.value_and_grad(theirs)))
        expected, reference = (np.array(result) for result in derived(prediction.numpy(), target.numpy()))
    module = {"mrstft": losses.MRSTFTLoss, "smooth_mrstft": losses.SmoothMRSTFTLoss}[preset]
    for dtype, limit, slack in ((torch.float64, 1e-10, 1e-9), (torch.float32, 1e-5, 1e-4)):
        parameter = prediction.to(dtype, copy=True).requires_grad_()
        values = module(reduction="none")(parameter, target.to(dtype))
        values.sum().backward()
        assert values.tolist() == pytest.approx(expected.tolist(), rel=limit)
        assert parameter.grad is not None
        # Stretch by stretch: in float32 the gradient of ln(|X| + 1e-7) is ill-conditioned at the few bins near 0.
        error, scale = (
            np.linalg.norm(signal.reshape(-1, 250), axis=1)
            for signal in (parameter.grad.double().numpy() - reference, reference)
        )
        assert np.median(error / scale) <= slack and (dtype == torch.float32 or (error / scale).max() <= slack)
