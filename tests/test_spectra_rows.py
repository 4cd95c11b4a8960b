"""Rows of a signal share its spectra; losses registered as distances are of negative type, others are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import losses
from losses.dsp import stft as spectra
from tests.signals import loss_named, music, noise, shape_for

INDEX = torch.tensor([2, 0, 0, 3, 1, 2, 2])


class Transforms:
    """Counts the rows that are transformed, by FFT size."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.rows: dict[int, int] = {}
        for name in ("Spectrum", "SpectrumAndMagnitude"):
            kind = getattr(spectra, name)
            monkeypatch.setattr(spectra, name, type(name, (), {"apply": self.counting(kind.apply)}))

    def counting(self, apply: Any) -> Any:
        def counted(signal: Tensor, window: Tensor, n_fft: int, *settings: Any) -> Any:
            self.rows[n_fft] = self.rows.get(n_fft, 0) + len(signal)
            return apply(signal, window, n_fft, *settings)

        return counted


@pytest.mark.parametrize("first", ["rows", "signal"])
def test_rows_have_the_spectra_of_their_signal_and_cost_no_transform(
    monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    transforms = Transforms(monkeypatch)
    signal, _ = noise((4, 2, 900), 0)
    expected = {n_fft: spectra.spectrum(signal[INDEX], n_fft, n_fft // 4) for n_fft in (64, 256)}
    levels = {n_fft: spectra.magnitude(signal[INDEX], n_fft, n_fft // 4) for n_fft in (64, 256)}
    transforms.rows.clear()
    with losses.shared_spectra():
        rows = losses.shared_rows(signal, INDEX)
        assert torch.equal(rows, signal[INDEX])
        for n_fft in (64, 256):
            order = [rows, signal] if first == "rows" else [signal, rows]
            found = {id(part): spectra.magnitude(part, n_fft, n_fft // 4) for part in order}
            assert torch.allclose(found[id(rows)], levels[n_fft], atol=1e-6)
            assert torch.equal(found[id(rows)], found[id(signal)][INDEX])
            assert torch.allclose(spectra.spectrum(rows, n_fft, n_fft // 4), expected[n_fft], atol=1e-6)
    assert transforms.rows == {64: 8, 256: 8}  # the signal's four items of two channels, once
    alone = losses.shared_rows(signal, INDEX)  # outside the context it is just the rows
    assert torch.equal(alone, signal[INDEX])
    assert torch.allclose(spectra.spectrum(alone, 64, 16), expected[64], atol=1e-6)
    assert transforms.rows[64] == 8 + 2 * len(INDEX)


@pytest.mark.parametrize("name", ["spectral_energy", "mel", "spectral", "mrstft", "complex_stft", "phase"])
def test_gradients_through_shared_rows_are_those_of_plain_rows(name: str) -> None:
    audio, target = (signal.double() for signal in noise((4, 1, 2500), 1))
    loss, gradients = loss_named(name).double(), []
    left, right = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 3, 3])

    def value(rows: Any) -> Tensor:
        beside = loss(rows(signal, torch.arange(4).repeat(2)), rows(target, torch.arange(8) // 2))
        return beside.sum() - loss(rows(signal, left), rows(signal, right)).sum()

    for shared in (True, False):
        signal = audio.clone().requires_grad_()
        if shared:
            with losses.shared_spectra():
                total = value(losses.shared_rows)
        else:
            total = value(lambda whole, index: whole[index])
        gradients.append(torch.autograd.grad(total, signal)[0])
    assert (gradients[0] - gradients[1]).norm() <= 1e-9 * gradients[1].norm()


def test_an_energy_step_transforms_every_sample_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attraction and repulsion of three samples of two items: six rows and two targets."""
    transforms = Transforms(monkeypatch)
    audio, _ = noise((6, 1, 2500), 2)
    target, _ = noise((2, 1, 2500), 3)
    loss = loss_named("spectral_energy")
    with losses.shared_spectra():
        loss(audio, losses.shared_rows(target, torch.arange(6) // 3))
        loss(
            losses.shared_rows(audio, torch.tensor([0, 0, 1, 3])), losses.shared_rows(audio, torch.tensor([1, 2, 2, 4]))
        )
    assert len(transforms.rows) == 6 and set(transforms.rows.values()) == {8}


def matrix_of_distances(name: str, signals: Tensor) -> Tensor:
    """All signals against all, `[K, K]`."""
    count = len(signals)
    left, right = (part.flatten() for part in torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij"))
    with torch.no_grad():
        values: Tensor = loss_named(name).double()(signals[left], signals[right])
    return values.view(count, count)


def faults(name: str) -> tuple[float, float, float]:
    """How far the loss is from symmetric, and from strictly of negative type, relative to its mean.

    The second is the greatest eigenvalue of `P D P`, P the projection onto weights whose sum is 0: at most 0. The third
    is `w' D w` of two signals and their mean, with weights ½, ½ and −1: below 0 if the distance tells both from it.
    """
    items, channels, samples = shape_for(name, 2)
    sound, other = music((items, channels, samples), 4)
    hiss, loud = noise((items, channels, samples), 5)
    quiet, shifted = 0.01 * sound, sound.roll(50, -1)
    signals = torch.cat([sound, other, hiss, 3 * loud, quiet, shifted, sound + 0.1 * hiss, torch.zeros_like(sound[:1])])
    distances = matrix_of_distances(name, signals.double())
    size = distances.abs().mean()
    projection = torch.eye(len(signals), dtype=torch.float64) - 1 / len(signals)
    centred = projection @ (distances + distances.T) / 2 @ projection
    asymmetry = (distances - distances.T).abs().max() / size
    three = torch.stack([hiss[0], loud[0], (hiss[0] + loud[0]) / 2]).double()
    weights = torch.tensor([0.5, 0.5, -1.0]).double()
    told_apart = weights @ matrix_of_distances(name, three) @ weights / size
    return asymmetry.item(), (torch.linalg.eigvalsh(centred).max() / size).item(), told_apart.item()


@pytest.mark.parametrize("name", [name for name, entry in losses.REGISTRY.items() if entry.distance])
@pytest.mark.slow
def test_registered_distances_are_of_negative_type(name: str) -> None:
    asymmetry, positive, told_apart = faults(name)
    assert asymmetry < 1e-9 and positive < 1e-9 and told_apart < -0.01


@pytest.mark.parametrize("name", ["spectral", "esr", "complex_spec"])
def test_losses_normalised_by_their_target_are_not(name: str) -> None:
    asymmetry, positive, _ = faults(name)
    assert not losses.REGISTRY[name].distance
    assert asymmetry > 0.01 and positive > 1e-4  # that of a distance of negative type is 1e-15, by rounding


def test_a_square_is_not_strictly() -> None:
    """It is of negative type, but measures no more of a distribution than its mean."""
    asymmetry, positive, told_apart = faults("waveform_mse")
    assert not losses.REGISTRY["waveform_mse"].distance
    assert asymmetry < 1e-9 and positive < 1e-9 and abs(told_apart) < 1e-9
