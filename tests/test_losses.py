"""Creating losses by name, spectra shared between losses, and two ranks with half a batch each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import losses
from encore.training.distributed import Ranks
from losses import functional, waveform
from losses.dsp import bank
from tests.conftest import Forks
from tests.signals import RATE, loss_named, noise, second_call, shape_for
from tests.transforms import CountedTransforms

NAMES = list(losses.REGISTRY)
# At a quarter of the FFT: 512, 1024 and 2048; and multi_mel's 4096.
FAMILY = ("spectral", "mel", "multi_mel", "complex_stft", "phase", "loudness")


def test_rms_of_known_signals() -> None:
    zeros, ones = torch.zeros(2, 2, 100), torch.ones(2, 2, 100)
    assert waveform.rms(ones, zeros).tolist() == pytest.approx([1, 1])
    sine = torch.sin(2 * torch.pi * torch.arange(24000) / 240)[None, None]
    assert waveform.rms(sine, torch.zeros_like(sine)).item() == pytest.approx(0.5**0.5, rel=1e-5)
    assert losses.RMSLoss()(torch.stack([ones[0], zeros[0]]), zeros).item() == pytest.approx(0.5)


def test_each_registered_loss_is_described() -> None:
    for name, entry in losses.REGISTRY.items():
        assert 10 < len(entry.summary) < 110 and "\n" not in entry.summary, name
        assert entry.channels in (None, 2)
        assert (entry.metric is None) == (entry.minimum is not None)


def test_an_unknown_name_and_reduction_are_refused() -> None:
    with pytest.raises(ValueError, match="no loss named 'lpips'; there are rms, waveform_l1, .*embedding"):
        losses.create("lpips", RATE)
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none', got 'max'"):
        losses.RMSLoss(reduction="max")


def test_options_reach_the_loss() -> None:
    prediction, target = noise((2, 1, 5000), 0)

    def created(name: str, **options: Any) -> Tensor:
        return losses.create(name, RATE, reduction="none", **options)(prediction, target)

    assert torch.equal(created("mel", n_mels=40), functional.mel(prediction, target, RATE, n_mels=40))
    assert not torch.equal(created("mel", n_mels=40), created("mel"))
    assert torch.equal(created("snr", zero_mean=False), functional.snr(prediction, target, zero_mean=False))
    assert torch.equal(created("phase", n_ffts=(64,)), functional.phase_distance(prediction, target, (64,)))
    assert torch.equal(created("stft", fft_size=2048), functional.stft(prediction, target, fft_size=2048))
    assert torch.equal(created("spectral", w_sc=0.0, window="hann"), created("spectral", w_sc=0.0))
    draws = [losses.RandomResolutionSTFTLoss(seed=seed).draw(5000, 0) for seed in range(3)]
    assert draws[0] != draws[1] != draws[2]
    # The sample rate reaches the loss as well.
    assert not torch.equal(losses.create("loudness", 48000, reduction="none")(prediction, target), created("loudness"))


def parameter(signal: Tensor) -> Tensor:
    return signal.detach().clone().requires_grad_()


class TestSharedSpectra:
    def test_a_signal_is_transformed_once_for_each_resolution(self) -> None:
        prediction, target = noise((2, 1, 5000), 1)
        prediction.requires_grad_()
        family = [loss_named(name) for name in FAMILY]
        with CountedTransforms() as transforms:
            with losses.shared_spectra():
                total = torch.stack([loss(prediction, target) for loss in family]).sum()
            total.backward()
        assert transforms.sizes() == 2 * [512] + 2 * [1024] + 2 * [2048] + 2 * [4096]
        # Complex values, magnitudes and phases have one gradient at each spectrum.
        assert transforms.inverse == {512: 1, 1024: 1, 2048: 1, 4096: 1}
        for loss in family:  # a loss on its own shares its transforms too
            with CountedTransforms() as transforms:
                loss(prediction, target)
            assert set(transforms.seen.values()) == {1}

    @pytest.mark.parametrize("order", [("complex_stft", "spectral", "phase"), ("loudness", "phase", "complex_stft")])
    def test_complex_values_magnitudes_and_phases_share_a_spectrum_in_any_order(self, order: tuple[str, ...]) -> None:
        prediction, target = noise((2, 1, 5000), 9)
        alone, together = parameter(prediction), parameter(prediction)
        sum(loss_named(name)(alone, target).sum() for name in order).backward()
        with CountedTransforms() as transforms:
            with losses.shared_spectra():
                values = [loss_named(name)(together, target).sum() for name in order]
            torch.stack(values).sum().backward()
        assert transforms.sizes() == 2 * [512] + 2 * [1024] + 2 * [2048]
        assert transforms.inverse == {512: 1, 1024: 1, 2048: 1}
        assert alone.grad is not None and together.grad is not None
        assert (alone.grad - together.grad).norm() <= 1e-5 * alone.grad.norm()

    def test_no_registered_loss_transforms_anything_twice(self) -> None:
        prediction, target = noise((1, 2, 8000), 2)
        prediction.requires_grad_()
        every = [loss_named(name) for name in NAMES if name != "pesq"]  # it has transforms of its own
        with CountedTransforms() as transforms, losses.shared_spectra():
            for loss in every:
                loss(prediction, target)
        assert len(transforms.seen) > 40
        assert set(transforms.seen.values()) == {1}

    def test_values_and_gradients_stay_the_same(self) -> None:
        first, target = noise((2, 2, 8000), 3)
        alone, together = parameter(first), parameter(first)
        expected = [loss_named(name)(alone, target) for name in NAMES]
        with losses.shared_spectra():
            values = [loss_named(name)(together, target) for name in NAMES]
        assert all(map(torch.equal, values, expected))
        weights = [10.0 ** (number % 3) for number in range(len(NAMES))]
        for results in (expected, values):
            sum(weight * result.sum() for weight, result in zip(weights, results, strict=True)).backward()
        assert alone.grad is not None and together.grad is not None
        assert (alone.grad - together.grad).norm() <= 1e-5 * alone.grad.norm()

    def test_a_signal_changed_in_place_is_another(self) -> None:
        prediction, target = noise((1, 1, 5000), 4)
        loss = losses.create("mel", RATE)
        with losses.shared_spectra():
            before = loss(prediction, target)
            prediction.mul_(0.5)
            after = loss(prediction, target)
        assert not torch.equal(before, after) and torch.equal(after, loss(prediction, target))

    def test_a_new_signal_at_the_address_of_an_old_one_is_another(self) -> None:
        loss, target = losses.create("log_spectrogram", RATE), noise((1, 1, 5000), 5)[1]
        with losses.shared_spectra():
            for factor in (1.0, 2.0, 3.0, 4.0):  # the next signal could get the memory and id of this one
                assert loss(factor * target, target).item() == pytest.approx(
                    losses.create("log_spectrogram", RATE)(factor * target, target.clone()).item(), rel=1e-5
                )

    def test_spectra_computed_without_gradient_are_not_reused_with_one(self) -> None:
        prediction, target = noise((1, 1, 5000), 6)
        expected, signal = parameter(prediction), parameter(prediction)
        loss = losses.create("spectral", RATE)
        loss(expected, target).sum().backward()
        with losses.shared_spectra():
            with torch.inference_mode():
                loss(signal, target)
            with torch.no_grad():
                loss(signal, target)
            loss(signal, target).sum().backward()
        assert signal.grad is not None and expected.grad is not None and torch.equal(signal.grad, expected.grad)

    def test_inner_contexts_share_with_outer_ones_and_nothing_outlives_them(self) -> None:
        prediction, target = noise((1, 1, 5000), 7)
        loss = losses.create("mel", RATE)
        with CountedTransforms() as transforms:
            with losses.shared_spectra():
                for _ in range(2):
                    with losses.shared_spectra():
                        loss(prediction, target)
                loss(prediction, target)
            assert transforms.sizes() == [1024, 1024]
            loss(prediction, target)
            with losses.shared_spectra():
                loss(prediction, target)
            assert transforms.sizes() == [1024] * 4
        with pytest.raises(RuntimeError, match="stop"), losses.shared_spectra():
            raise RuntimeError("stop")
        assert bank._bank.get() is None


def second_calls(ranks: Ranks, folder: Path) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """On each of two ranks: the second call of each loss on its half of the batch, value and gradient."""
    torch.manual_seed(ranks.rank)
    half, results = slice(2 * ranks.rank, 2 * ranks.rank + 2), {}
    for name in losses.REGISTRY:
        prediction, target = (signal[half] for signal in noise(shape_for(name, 4), 8))
        value, gradient = second_call(name, prediction, target)
        results[name] = value, ranks.sum(value) / 2, gradient
    return results


@pytest.mark.slow
def test_two_ranks_with_half_a_batch_each_equal_one_with_the_whole(tmp_path: Path, forks: Forks) -> None:
    one, other = forks.results_of_two_ranks(second_calls, tmp_path)
    assert list(one) == list(other) == NAMES
    for name in NAMES:
        # Of random_resolution_stft both ranks draw what one process draws at its second step.
        value, gradient = second_call(name, *noise(shape_for(name, 4), 8))
        assert torch.equal(one[name][1], other[name][1])
        assert one[name][1].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-8), name
        halves = torch.cat([one[name][2], other[name][2]]) / 2
        # A network's float32 sums depend on the size of the batch.
        assert (halves - gradient).norm() <= (1e-3 if name == "embedding" else 1e-4) * gradient.norm(), name
        assert one[name][0] != other[name][0], name


def test_an_empty_signal_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 1, 0\] is empty"):
        losses.RMSLoss()(torch.zeros(2, 1, 0), torch.zeros(2, 1, 0))
