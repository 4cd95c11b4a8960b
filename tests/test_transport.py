"""Spectral optimal transport against korvax and sot-loss, and what moving energy costs by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from sot.losses import MultiResolutionSOTLoss, wasserstein_1d
from torch import Tensor

from losses.transport import SpectralOptimalTransportLoss, multi_resolution_transport, spectral_optimal_transport
from tests.signals import korvax, noise, seeded


def random_spectrograms(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seeded(seed))
    prediction, target = (torch.rand(shape, generator=generator, dtype=torch.float64) ** 2 / 20 for _ in range(2))
    return prediction, target


def value_and_gradient(function: Callable[..., Tensor], prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    prediction = prediction.clone().requires_grad_()
    values = function(prediction, target)
    (gradient,) = torch.autograd.grad(values.sum(), prediction)
    return values.detach(), gradient


def spectrum_of(masses: dict[int, float], bins: int = 10) -> Tensor:
    """One frame with these masses in these bins."""
    frame = torch.zeros(1, 1, 1, bins, dtype=torch.float64)
    for index, mass in masses.items():
        frame[..., index] = mass
    return frame


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"p": 1},
        {"p": 3, "positions": True},
        {"balanced": False},
        {"balanced": False, "quantile_lowpass": True},
        {"normalize": False},
        {"normalize": False, "balanced": False},
        {"normalize": False, "balanced": False, "quantile_lowpass": True},
    ],
    ids=str,
)
def test_equals_korvax(settings: dict[str, Any]) -> None:
    spectral_optimal_transport_loss = korvax().loss.spectral_optimal_transport_loss
    import jax

    prediction, target = (signal.float() for signal in random_spectrograms((2, 2, 7, 33), 0))
    positions = torch.linspace(0, 1, 33, dtype=torch.float64) ** 2 * 3
    ours, theirs = dict(settings), dict(settings)
    if "positions" in settings:
        ours["positions"], theirs["positions"] = positions, positions.numpy()
    reference_loss = partial(spectral_optimal_transport_loss, **theirs)
    with jax.enable_x64(True):  # in float32 the package's gradient is wrong where two sums coincide
        arrays = [signal.double().mT.numpy() for signal in (prediction, target)]
        expected, reference = (np.asarray(r) for r in jax.vmap(jax.value_and_grad(reference_loss))(*arrays))
    for dtype, value_limit, gradient_limit in ((torch.float64, 1e-12, 1e-10), (torch.float32, 1e-5, 1e-4)):
        pair = prediction.to(dtype), target.to(dtype)
        values, gradient = value_and_gradient(partial(spectral_optimal_transport, **ours), *pair)
        assert values.dtype == dtype
        np.testing.assert_allclose(values, expected, rtol=value_limit)
        errors = np.linalg.norm(gradient.mT.numpy() - reference, axis=2) / np.linalg.norm(reference, axis=2).mean()
        # In float32 rounding changes the order of two sums in a frame here and there.
        assert np.quantile(errors, 1 if dtype == torch.float64 else 0.9) <= gradient_limit


@pytest.mark.parametrize("shape", [(2, 1, 5000), (1, 3, 4097)])
def test_the_registered_loss_equals_sot_loss_with_its_defaults(shape: tuple[int, ...]) -> None:
    reference = MultiResolutionSOTLoss()
    prediction, target = noise(shape, shape[-1], 20.0)  # no magnitude comes near the floor of 1e-4
    loss = SpectralOptimalTransportLoss()
    assert loss(prediction, target).item() == pytest.approx(reference(prediction, target).item(), rel=1e-5)
    double = prediction.double(), target.double()
    reference = reference.double()
    for resolution in reference.loss_modules:  # its window is float32 by itself
        transform = resolution.transform_module
        transform.window = torch.from_numpy(scipy.signal.get_window("flattop", transform.win_length))
    exact, expected = value_and_gradient(reference, *double)
    value, gradient = value_and_gradient(loss, *double)
    assert value.item() == pytest.approx(exact.item(), rel=1e-7)
    assert (gradient - expected).norm() <= 1e-6 * expected.norm()
    # In float32 a transform's rounding changes the order of two sums in a frame here and there.
    value, gradient = value_and_gradient(loss, prediction, target)
    errors = (gradient - expected).unfold(-1, 250, 250).norm(dim=-1) / expected.unfold(-1, 250, 250).norm(dim=-1)
    assert errors.median() <= 1e-5
    items = SpectralOptimalTransportLoss(reduction="none")(prediction, target)
    for item in range(shape[0]):
        alone = reference(prediction[item : item + 1].double(), target[item : item + 1].double())
        assert items[item].item() == pytest.approx(alone.item(), rel=1e-5)


def test_options_of_sot_loss() -> None:
    prediction, target = (signal.double() for signal in noise((2, 1, 3000), 2))
    ours = multi_resolution_transport(
        prediction, target, fft_sizes=[256], hop_lengths=[100], window="hann", p=1, balanced=False
    )
    options = {"fft_sizes": [256], "hop_lengths": [100], "window": "hann", "p": 1, "balanced": False}
    reference = MultiResolutionSOTLoss(**options, reduce=True).double()
    assert ours.mean().item() == pytest.approx(reference(prediction, target).item(), rel=1e-6)


def test_bins_without_energy_are_passed_over() -> None:
    prediction, target = random_spectrograms((1, 1, 6, 40), 3)
    prediction[..., ::3], target[..., ::4], prediction[..., 30:] = 0, 0, 0
    positions = torch.linspace(0, 1, 40, dtype=torch.float64)

    def rows(spectrogram: Tensor) -> Tensor:
        return (spectrogram / (spectrogram.sum(-1, keepdim=True) + torch.finfo(torch.float64).eps))[0, 0]

    for pair in ((prediction, target), (target, prediction), (prediction, prediction)):
        places = positions.expand(6, 40)
        expected = wasserstein_1d(places, places, *(rows(spectrogram) for spectrogram in pair), p=2).mean()
        assert spectral_optimal_transport(*pair, positions).item() == pytest.approx(expected.item(), rel=1e-9)
    # Energy can only be added to an empty bin: the gradient is the slope in that direction.
    _, gradient = value_and_gradient(spectral_optimal_transport, prediction, target)
    step = 1e-8
    for index in (3, 9, 15, 30, 36):
        more = prediction.clone()
        more[0, 0, 2, index] += step
        slope = spectral_optimal_transport(more, target) - spectral_optimal_transport(prediction, target)
        assert gradient[0, 0, 2, index].item() == pytest.approx(slope.item() / step, rel=1e-4, abs=1e-7)


def test_the_cost_is_the_distance_times_the_share_that_is_moved() -> None:
    low, high = spectrum_of({2: 5.0}), spectrum_of({7: 0.1})
    for p, cost in ((1, 0.5), (2, 0.25), (3, 0.125)):
        assert spectral_optimal_transport(low, high, p=p).item() == pytest.approx(cost)
        assert spectral_optimal_transport(high, low, p=p).item() == pytest.approx(cost)
    half = spectrum_of({2: 1.0, 7: 1.0})
    assert spectral_optimal_transport(half, high).item() == pytest.approx(0.125)
    hertz = torch.arange(10) * 100.0
    assert spectral_optimal_transport(low, high, hertz, p=1).item() == pytest.approx(500)
    # Unbalanced: what the target has beyond the prediction's sum is compared with the last bin.
    assert spectral_optimal_transport(low, spectrum_of({2: 10.0}), balanced=False).item() == pytest.approx(0.49)
    unbalanced = partial(spectral_optimal_transport, low, spectrum_of({2: 4.0, 5: 10.0}), balanced=False)
    assert unbalanced(quantile_lowpass=True).item() == pytest.approx(0.2 * 0.09)
    assert unbalanced().item() == pytest.approx(0.2 * 0.09 + 1.8 * 0.16)


def test_sums_that_coincide_count_once() -> None:
    raw = partial(spectral_optimal_transport, normalize=False, balanced=False)
    assert raw(spectrum_of({2: 1.0}), spectrum_of({7: 1.0})).item() == pytest.approx(0.25)


def test_float32_has_the_gradient_of_float64() -> None:
    prediction, target = (frames.float() for frames in random_spectrograms((1, 1, 50, 257), 11))
    _, gradient = value_and_gradient(spectral_optimal_transport, prediction, target)
    _, exact = value_and_gradient(spectral_optimal_transport, prediction.double(), target.double())
    errors = (gradient - exact).norm(dim=3) / exact.norm(dim=3)
    # Rounding changes the order of two sums in a frame here and there.
    assert errors.quantile(0.9) <= 1e-4


def test_identity_is_zero_and_without_gradient_whatever_the_level() -> None:
    target = random_spectrograms((2, 1, 5, 50), 4)[0]
    for p in (1, 2):
        values, gradient = value_and_gradient(partial(spectral_optimal_transport, p=p), target, target)
        assert (values == 0).all() and (gradient == 0).all()
    assert spectral_optimal_transport(3 * target, target).max() < 1e-12
    ones = torch.ones(1, 1, 3, 8)
    values, gradient = value_and_gradient(spectral_optimal_transport, ones, ones)
    assert (values == 0).all() and (gradient == 0).all()


@pytest.mark.parametrize("kind", ["silence", "to silence", "from silence"])
def test_silence_is_finite_and_bounded(kind: str) -> None:
    sound, silence = noise((2, 1, 4000), 5)[0], torch.zeros(2, 1, 4000)
    prediction, target = {
        "silence": (silence, silence),
        "to silence": (sound, silence),
        "from silence": (silence, sound),
    }[kind]
    values, gradient = value_and_gradient(SpectralOptimalTransportLoss(reduction="none"), prediction, target)
    assert gradient.isfinite().all() and (values <= 3).all()
    assert (values == 0).all() if kind == "silence" else (values > 0).all()
    # Also of spectra without any energy.
    frames = random_spectrograms((1, 1, 4, 20), 6)[0].float()
    for pair in ((0 * frames, 0 * frames), (frames, 0 * frames), (0 * frames, frames)):
        values, gradient = value_and_gradient(spectral_optimal_transport, *pair)
        assert values.isfinite().all() and gradient.isfinite().all()


def test_settings_that_do_not_fit_are_refused() -> None:
    frames = torch.ones(1, 1, 3, 8)
    with pytest.raises(ValueError, match=r"\[1, 1, 3, 8\] and \[1, 3, 8\]"):
        spectral_optimal_transport(frames, frames[0])
    with pytest.raises(ValueError, match=r"positions must be \[8\].*got \[9\]"):
        spectral_optimal_transport(frames, frames, torch.arange(9.0))
    with pytest.raises(ValueError, match="p must be at least 1, got 0.5"):
        spectral_optimal_transport(frames, frames, p=0.5)
    signal = torch.zeros(1, 1, 3000)
    with pytest.raises(ValueError, match="2 sizes and 3 hops"):
        multi_resolution_transport(signal, signal, fft_sizes=(512, 1024))
    with pytest.raises(ValueError, match="at least 1025 samples"):
        multi_resolution_transport(signal[..., :1024], signal[..., :1024])
