"""The losses: known values, an independent NumPy reference, safety on silence, sharing of spectra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor

import losses
from losses import functional, waveform

NAMES = list(losses.REGISTRY)


def signals(seed: int = 0, shape: tuple[int, ...] = (3, 1, 6000), level: float = 0.2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * level, torch.randn(shape, generator=generator) * level


def numpy_magnitude(signal: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """Magnitudes `[bins, frames]` in float64, frame by frame."""
    padded = np.pad(signal.astype(np.float64), n_fft // 2, mode="reflect")
    window = scipy.signal.get_window("hann", n_fft)
    starts = range(0, len(padded) - n_fft + 1, hop)
    spectrum = np.stack([np.fft.rfft(window * padded[start : start + n_fft]) for start in starts], axis=1)
    return np.sqrt(np.maximum(np.abs(spectrum) ** 2, 1e-8))


def numpy_spectral(prediction: np.ndarray, target: np.ndarray) -> float:
    values = []
    for n_fft, hop in ((512, 128), (1024, 256), (2048, 512)):
        p, t = numpy_magnitude(prediction, n_fft, hop), numpy_magnitude(target, n_fft, hop)
        values.append(np.linalg.norm(t - p) / np.linalg.norm(t) + np.abs(np.log(p) - np.log(t)).mean())
    return float(np.mean(values))


def slaney_mel_filters(sample_rate: int, n_fft: int, bands: int, top: float) -> np.ndarray:
    """Triangles between Slaney's mel points, of unit area in Hz."""

    def hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * math.log(6.4) / 27))

    top_mel = 15 + 27 * math.log(top / 1000) / math.log(6.4)
    points = hz(np.linspace(0, top_mel, bands + 2))
    bins = np.arange(n_fft // 2 + 1) * sample_rate / n_fft
    rows = []
    for low, middle, high in zip(points, points[1:], points[2:], strict=False):
        triangle = np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle))
        rows.append(np.maximum(triangle, 0) * 2 / (high - low))
    return np.stack(rows)


def test_rms_of_known_signals() -> None:
    zeros, ones = torch.zeros(2, 2, 100), torch.ones(2, 2, 100)
    assert waveform.rms(ones, zeros).tolist() == pytest.approx([1, 1])
    sine = torch.sin(2 * torch.pi * torch.arange(24000) / 240)[None, None]
    assert waveform.rms(sine, torch.zeros_like(sine)).item() == pytest.approx(0.5**0.5, rel=1e-5)
    assert losses.RMSLoss()(torch.stack([ones[0], zeros[0]]), zeros).item() == pytest.approx(0.5)


def test_spectral_equals_an_independent_reference() -> None:
    prediction, target = signals()
    values = losses.SpectralLoss(reduction="none")(prediction, target)
    for item in range(3):
        expected = numpy_spectral(prediction[item, 0].numpy(), target[item, 0].numpy())
        assert values[item].item() == pytest.approx(expected, rel=1e-5)


def test_mel_equals_an_independent_reference() -> None:
    prediction, target = signals(1)
    filters = slaney_mel_filters(24000, 1024, 80, 8000)
    values = functional.mel(prediction, target, 24000)
    for item in range(3):
        logs = [
            np.log(np.maximum(filters @ numpy_magnitude(signal[item, 0].numpy(), 1024, 256), 1e-5))
            for signal in (prediction, target)
        ]
        assert values[item].item() == pytest.approx(np.abs(logs[0] - logs[1]).mean(), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
class TestContract:
    """What holds for every registered loss."""

    def test_zero_at_identity_and_above_elsewhere(self, name: str) -> None:
        prediction, target = signals(2)
        loss = losses.create(name, 24000)
        assert loss(target, target).abs().max() == 0
        assert (loss(prediction, target) > 0).all()

    def test_a_value_per_item_whose_mean_is_the_default(self, name: str) -> None:
        prediction, target = signals(3, (4, 2, 5000))
        loss = losses.create(name, 24000)
        values = loss(prediction, target)
        assert values.shape == (4,)
        for item in range(4):
            alone = loss(prediction[item : item + 1], target[item : item + 1])
            assert values[item].item() == pytest.approx(alone.item(), rel=1e-5)
        loss.reduction = "mean"
        assert loss(prediction, target).item() == pytest.approx(values.mean().item(), rel=1e-6)

    def test_gradient_is_that_of_finite_differences(self, name: str) -> None:
        prediction, target = (signal.double() for signal in signals(4, (1, 1, 2100)))
        loss = losses.create(name, 24000)
        prediction.requires_grad_()
        direction = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        (gradient,) = torch.autograd.grad(loss(prediction, target).sum(), prediction)
        step = 1e-7
        with torch.no_grad():
            above, below = (loss(prediction + sign * step * direction, target).sum() for sign in (1, -1))
        slope = ((above - below) / (2 * step)).item()
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-3)

    @pytest.mark.parametrize("kind", ["silence", "same", "to silence", "from silence", "clipping", "impulse"])
    def test_finite_with_gradient_on_hard_signals(self, name: str, kind: str) -> None:
        noise, silence = signals(5)[0], torch.zeros(3, 1, 6000)
        impulse = torch.zeros(3, 1, 6000)
        impulse[..., 3000] = 1
        prediction, target = {
            "silence": (silence, silence),
            "same": (noise, noise),
            "to silence": (noise, silence),
            "from silence": (silence, noise),
            "clipping": ((100 * noise).clamp(-1, 1), noise),
            "impulse": (impulse, noise),
        }[kind]
        prediction = prediction.clone().requires_grad_()
        value = losses.create(name, 24000)(prediction, target)
        value.sum().backward()
        assert value.isfinite().all() and prediction.grad is not None and prediction.grad.isfinite().all()
        # Against a silent target nothing may outweigh all the rest by orders of magnitude.
        assert value.max() < 500

    def test_shapes_that_do_not_fit_are_named(self, name: str) -> None:
        loss = losses.create(name, 24000)
        with pytest.raises(ValueError, match=r"\[1, 1, 5000\] and \[1, 1, 4999\]"):
            loss(torch.zeros(1, 1, 5000), torch.zeros(1, 1, 4999))
        with pytest.raises(ValueError, match=r"\[1, 5000\]"):
            loss(torch.zeros(1, 5000), torch.zeros(1, 5000))

    def test_input_need_not_be_contiguous(self, name: str) -> None:
        prediction, target = signals(6, (2, 6000, 1))
        loss = losses.create(name, 24000)
        turned = [signal.transpose(1, 2) for signal in (prediction, target)]
        assert torch.allclose(loss(*turned), loss(*(signal.contiguous() for signal in turned)))


@pytest.mark.parametrize(("name", "least"), [("spectral", 1025), ("mel", 513)])
def test_a_signal_that_is_too_short_is_refused_with_the_length_it_needs(name: str, least: int) -> None:
    loss = losses.create(name, 24000)
    assert loss(*signals(7, (1, 1, least))).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {least} samples"):
        loss(*signals(7, (1, 1, least - 1)))


def test_an_unknown_name_and_reduction_are_refused() -> None:
    with pytest.raises(ValueError, match="no loss named 'lpips'; there are rms, spectral"):
        losses.create("lpips", 24000)
    with pytest.raises(ValueError, match="reduction must be"):
        losses.RMSLoss(reduction="sum")


def test_shared_spectra_are_computed_once_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, target = signals(8)
    spectral, mel = losses.create("spectral", 24000), losses.create("mel", 24000)
    alone = spectral(prediction, target), mel(prediction, target)
    calls, stft = [], torch.stft

    def counted(*arguments, **settings):
        calls.append(arguments[1])
        return stft(*arguments, **settings)

    monkeypatch.setattr(torch, "stft", counted)
    with losses.shared_spectra():
        shared = spectral(prediction, target), mel(prediction, target)
    assert sorted(calls) == [512, 512, 1024, 1024, 2048, 2048]  # mel found its 1024 there
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    with losses.shared_spectra():
        before = mel(prediction, target)
        prediction.mul_(0.5)  # a signal changed in place is another signal
        assert not torch.equal(mel(prediction, target), before)
    mel(prediction, target)
    assert len(calls) == 6 + 3 + 2
