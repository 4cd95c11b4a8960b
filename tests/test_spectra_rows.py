"""Rows of a signal share its spectra; losses registered as distances are of negative type, others are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import losses
from losses.dsp import stft as spectra
from losses.dsp.stft import Resolution
from tests.signals import loss_named, music, noise, shape_for
from tests.transforms import CountedTransforms

INDEX = torch.tensor([2, 0, 0, 3, 1, 2, 2])


@pytest.mark.parametrize("first", ["rows", "signal"])
def test_rows_have_the_spectra_of_their_signal_and_cost_no_transform(first: str) -> None:
    signal, _ = noise((4, 2, 900), 0)
    sizes = Resolution(64), Resolution(256)
    expected = {size: spectra.spectrum(signal[INDEX], size) for size in sizes}
    levels = {size: spectra.magnitude(signal[INDEX], size) for size in sizes}
    with CountedTransforms() as transforms, losses.shared_spectra():
        rows = losses.shared_rows(signal, INDEX)
        assert torch.equal(rows, signal[INDEX])
        for size in sizes:
            order = [rows, signal] if first == "rows" else [signal, rows]
            found = {id(part): spectra.magnitude(part, size) for part in order}
            assert torch.allclose(found[id(rows)], levels[size], atol=1e-6)
            assert torch.equal(found[id(rows)], found[id(signal)][INDEX])
            assert torch.allclose(spectra.spectrum(rows, size), expected[size], atol=1e-6)
    assert transforms.rows == {64: 8, 256: 8}  # the signal's four items of two channels, once
    with CountedTransforms() as transforms:
        alone = losses.shared_rows(signal, INDEX)  # outside the context it is just the rows
        assert torch.equal(alone, signal[INDEX])
        assert torch.allclose(spectra.spectrum(alone, Resolution(64)), expected[Resolution(64)], atol=1e-6)
    assert transforms.rows == {64: 2 * len(INDEX)}


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


def test_an_energy_step_transforms_every_sample_once() -> None:
    """Attraction and repulsion of three samples of two items: six rows and two targets."""
    audio, _ = noise((6, 1, 2500), 2)
    target, _ = noise((2, 1, 2500), 3)
    audio.requires_grad_()
    loss = loss_named("spectral_energy")
    with CountedTransforms() as transforms:
        with losses.shared_spectra():
            attraction = loss(audio, losses.shared_rows(target, torch.arange(6) // 3))
            left, right = torch.tensor([0, 0, 1, 3]), torch.tensor([1, 2, 2, 4])
            repulsion = loss(losses.shared_rows(audio, left), losses.shared_rows(audio, right))
        (attraction.mean() - repulsion.mean() / 2).backward()
    assert len(transforms.rows) == 6 and set(transforms.rows.values()) == {8}
    assert len(transforms.inverse) == 6 and set(transforms.inverse.values()) == {1}


def matrix_of_distances(name: str, signals: Tensor, **options: Any) -> Tensor:
    """All signals against all, `[K, K]`."""
    count = len(signals)
    left, right = (part.flatten() for part in torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij"))
    with torch.no_grad():
        values: Tensor = loss_named(name, **options).double()(signals[left], signals[right])
    return values.view(count, count)


def faults(name: str, **options: Any) -> tuple[float, float, float]:
    """How far the loss is from symmetric, and from strictly of negative type, relative to its mean.

    The second is the greatest eigenvalue of `P D P`, P the projection onto weights whose sum is 0: at most 0. The third
    is `w' D w` of two signals and their mean, with weights ½, ½ and −1: below 0 if the distance tells both from it.
    """
    items, channels, samples = shape_for(name, 2)
    sound, other = music((items, channels, samples), 4)
    hiss, loud = noise((items, channels, samples), 5)
    quiet, shifted = 0.01 * sound, sound.roll(50, -1)
    signals = torch.cat([sound, other, hiss, 3 * loud, quiet, shifted, sound + 0.1 * hiss, torch.zeros_like(sound[:1])])
    distances = matrix_of_distances(name, signals.double(), **options)
    size = distances.abs().mean()
    projection = torch.eye(len(signals), dtype=torch.float64) - 1 / len(signals)
    centred = projection @ (distances + distances.T) / 2 @ projection
    asymmetry = (distances - distances.T).abs().max() / size
    three = torch.stack([hiss[0], loud[0], (hiss[0] + loud[0]) / 2]).double()
    weights = torch.tensor([0.5, 0.5, -1.0]).double()
    told_apart = weights @ matrix_of_distances(name, three, **options) @ weights / size
    return asymmetry.item(), (torch.linalg.eigvalsh(centred).max() / size).item(), told_apart.item()


@pytest.mark.parametrize("name", [name for name, entry in losses.REGISTRY.items() if entry.distance])
@pytest.mark.slow
def test_registered_distances_are_of_negative_type(name: str) -> None:
    asymmetry, positive, told_apart = faults(name)
    assert asymmetry < 1e-9 and positive < 1e-9 and told_apart < (-0.005 if name == "log_cosh" else -0.01)


def test_log_cosh_is_a_good_distance_where_it_is_absolute() -> None:
    asymmetry, positive, told_apart = faults("log_cosh", a=100.0)
    assert asymmetry < 1e-9 and positive < 1e-9 and told_apart < -0.5


def test_magnitudes_without_normalisation_are_of_negative_type() -> None:
    for name in ("complex_spec", "multi_complex_spec"):
        asymmetry, positive, told_apart = faults(name, normalize=False)
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
