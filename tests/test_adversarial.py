"""Adversarial losses, discriminators and the adversary: known values, who gets gradients, state, ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encodec.msstftd import MultiScaleSTFTDiscriminator
from torch import Tensor, nn
from torch.nn import functional

from losses import Adversary, DiscriminatorLoss, FeatureMatchingLoss, GeneratorLoss, adversarial, discriminator
from losses.discriminators import MultiPeriod
from tests.conftest import ENVIRONMENT

LENGTHS = {"msstft": 2048, "mpd": 400, "msstft+mpd": 2048}


def signals(seed: int = 0, shape: tuple[int, ...] = (4, 1, 400)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 0.2, torch.randn(shape, generator=generator) * 0.2


def new_adversary(name: str = "mpd", seed: int = 0, channels: int = 1, **settings) -> Adversary:
    torch.manual_seed(seed)
    return Adversary(discriminator(name, 24000, channels, filters=2), **settings)


def weights(adversary: Adversary) -> list[Tensor]:
    return [weight.detach().clone() for weight in adversary.discriminator.parameters()]


def gradients(adversary: Adversary) -> list[Tensor]:
    return [weight.grad.clone() for weight in adversary.discriminator.parameters() if weight.grad is not None]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


def random_outputs(seed: int) -> list[Tensor]:
    """Of two discriminators, batch 3, with logits on both sides of ±1."""
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(shape, generator=generator) for shape in ((3, 1, 40), (3, 1, 7, 5))]


class Untouchable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, audio: Tensor) -> None:
        raise AssertionError("the discriminator was run")


class TestLosses:
    @pytest.mark.parametrize("gan_type", ["hinge", "lsgan"])
    def test_gan_losses_equal_numpy(self, gan_type: str) -> None:
        real, fake = random_outputs(0), random_outputs(1)
        generator = GeneratorLoss(gan_type)(fake)
        critic = DiscriminatorLoss(gan_type)(real, fake)
        for item in range(3):
            of_generator, of_critic = [], []
            for r, f in zip(real, fake, strict=True):
                x, y = r[item].double().numpy(), f[item].double().numpy()
                if gan_type == "hinge":
                    of_generator.append(-y.mean())
                    of_critic.append(np.maximum(0, 1 - x).mean() + np.maximum(0, 1 + y).mean())
                else:
                    of_generator.append(((y - 1) ** 2).mean())
                    of_critic.append(((x - 1) ** 2).mean() + (y**2).mean())
            assert generator[item].item() == pytest.approx(np.mean(of_generator), rel=1e-5)
            assert critic[item].item() == pytest.approx(np.mean(of_critic), rel=1e-5)

    @pytest.mark.parametrize("relative", [False, True])
    def test_feature_matching_equals_numpy(self, relative: bool) -> None:
        # Two discriminators with two layers and one: the mean over layers comes first.
        real, fake = ([found[:1] + [found[1] * 10], found[1:]] for found in (random_outputs(2), random_outputs(3)))
        values = FeatureMatchingLoss(relative)(fake, real)
        for item in range(3):
            expected = []
            for real_layers, fake_layers in zip(real, fake, strict=True):
                layers = []
                for r, f in zip(real_layers, fake_layers, strict=True):
                    x, y = r[item].double().numpy(), f[item].double().numpy()
                    layers.append(np.abs(x - y).mean() / (np.abs(x).mean() if relative else 1))
                expected.append(np.mean(layers))
            assert values[item].item() == pytest.approx(np.mean(expected), rel=1e-5)
        assert FeatureMatchingLoss(relative)(real, real).tolist() == [0, 0, 0]

    def test_known_ends_of_the_scales(self) -> None:
        ones, zeros = [torch.ones(2, 1, 9)], [torch.zeros(2, 1, 9)]
        assert adversarial.discriminator_loss(ones, [-one for one in ones], "hinge").tolist() == [0, 0]
        assert adversarial.discriminator_loss(zeros, zeros, "hinge").tolist() == [2, 2]
        assert adversarial.discriminator_loss(ones, zeros, "lsgan").tolist() == [0, 0]
        assert adversarial.discriminator_loss(zeros, zeros, "lsgan").tolist() == [1, 1]
        assert adversarial.generator_loss(ones, "hinge").tolist() == [-1, -1]
        assert adversarial.generator_loss(ones, "lsgan").tolist() == [0, 0]
        # Dead features of the real signal: finite, and no more than the floor allows.
        assert adversarial.feature_matching([ones], [zeros], relative=True).tolist() == pytest.approx([1e4, 1e4])

    def test_what_does_not_fit_is_refused(self) -> None:
        for build in (GeneratorLoss, DiscriminatorLoss):
            with pytest.raises(ValueError, match="gan_type must be one of hinge, lsgan, got 'wgan'"):
                build("wgan")
        with pytest.raises(ValueError):
            DiscriminatorLoss()(random_outputs(0), random_outputs(1)[:1])
        with pytest.raises(ValueError, match=r"\[3, 1, 40\] and \[3, 1, 7, 5\]"):
            FeatureMatchingLoss()([random_outputs(0)[:1]], [random_outputs(0)[1:]])
        with pytest.raises(ValueError, match="update_freq must be at least 1, got 0"):
            new_adversary(update_freq=0)


class TestDiscriminators:
    @pytest.mark.parametrize("channels", [1, 2])
    @pytest.mark.parametrize(
        ("name", "least", "scales"), [("msstft", 2048, 3), ("mpd", 11, 5), ("msstft+mpd", 2048, 8)]
    )
    def test_outputs_and_shortest_input(self, name: str, least: int, scales: int, channels: int) -> None:
        torch.manual_seed(0)
        network = discriminator(name, 24000, channels, filters=2)
        for length in (least, least + 5):  # no multiple of any period
            audio = torch.randn(2, channels, length)
            logits, features = network(audio)
            assert len(logits) == len(features) == scales
            assert all(len(found) == 2 for found in [*logits, *(layer for layers in features for layer in layers)])
            alone, _ = network(audio[1:])
            assert all(torch.allclose(a, b[1:], atol=1e-6) for a, b in zip(alone, logits, strict=True))
            turned = audio.transpose(1, 2).contiguous().transpose(1, 2)
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(network(turned)[0], logits, strict=True))
        with pytest.raises(ValueError, match=f"at least {least} samples"):
            network(torch.zeros(1, channels, least - 1))
        with pytest.raises(ValueError, match=rf"must be \[B, {channels}, N\], got \[2, 3, 4000\]"):
            network(torch.zeros(2, 3, 4000))

    @pytest.mark.parametrize(("sample_rate", "scale"), [(24000, 1), (44100, 2)])
    def test_msstft_is_that_of_the_encodec_package(self, sample_rate: int, scale: int) -> None:
        sizes = [1024 * scale, 2048 * scale, 512 * scale]
        hops = [size // 4 for size in sizes]
        reference = MultiScaleSTFTDiscriminator(2, 1, n_ffts=sizes, win_lengths=sizes, hop_lengths=hops)
        network = discriminator("msstft", sample_rate, 1, filters=2)
        network.load_state_dict({f"network.{name}": value for name, value in reference.state_dict().items()})
        audio, _ = signals(0, (2, 1, 5000))
        (logits, features), (expected, maps) = network(audio), reference(audio)
        assert equal(logits, expected)
        assert all(map(equal, features, maps))

    def test_mpd_convolves_each_phase_of_a_period_by_itself(self) -> None:
        torch.manual_seed(0)
        network = MultiPeriod(channels=2, filters=2)
        audio, _ = signals(1, (2, 2, 210))  # 210 = 2 · 3 · 5 · 7, and 11 needs 10 samples more
        logits, _ = network(audio)
        part: Any
        for period, part, found in zip((2, 3, 5, 7, 11), network.networks, logits, strict=True):
            padded = np.pad(audio.numpy(), ((0, 0), (0, 0), (0, -210 % period)), mode="reflect")
            for phase in range(period):
                signal = torch.from_numpy(padded[..., phase::period].copy())
                for layer, stride in zip(part.layers, (3, 3, 3, 3, 1), strict=True):
                    signal = functional.conv1d(signal, layer.weight[..., 0], layer.bias, stride, padding=2)
                    signal = torch.where(signal > 0, signal, 0.1 * signal)
                signal = functional.conv1d(signal, part.last.weight[..., 0], part.last.bias, padding=1)
                assert torch.allclose(found[..., phase], signal, atol=1e-6)

    def test_sizes_are_the_papers_and_names_are_checked(self) -> None:
        part: Any = MultiPeriod(channels=1, filters=2).networks[0]
        shapes = [list(layer.weight.shape) for layer in (*part.layers, part.last)]
        sizes = (1, 2, 8, 32, 64, 64, 1)  # of 2 filters; of 32: 1, 32, 128, 512, 1024, 1024, 1
        assert shapes == [[o, i, 3 if o == 1 else 5, 1] for i, o in zip(sizes, sizes[1:], strict=False)]
        with pytest.raises(ValueError, match="no discriminator named 'msd'; there are msstft, mpd, and msstft.mpd"):
            discriminator("msd", 24000, 1)


@pytest.mark.parametrize("gan_type", ["hinge", "lsgan"])
def test_it_learns_to_tell_noise_from_sines_and_shows_the_generator_the_way(gan_type: str) -> None:
    def sines(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        pitch, phase = torch.rand(2, 8, 1, 1, generator=generator).unbind(0)
        return torch.sin(torch.arange(400) * (0.02 + 0.1 * pitch) + 2 * torch.pi * phase)

    def noise(seed: int) -> Tensor:
        return torch.randn(8, 1, 400, generator=torch.Generator().manual_seed(seed)) / 2**0.5

    adversary = new_adversary(gan_type=gan_type, lr=3e-3)
    history = []
    for step in range(40):
        history.append(adversary.accumulate(noise(step), sines(step)).mean().item())
        adversary.step()
    assert history[-1] < 0.3 * history[0]
    # To a generator that mixes both, more of the sine must look better.
    share = torch.tensor(0.2, requires_grad=True)
    mixed, real = share * sines(100) + (1 - share) * noise(100), sines(101)
    adversary(mixed, real)["gan"].mean().backward()
    assert share.grad is not None and share.grad < -0.1
    assert (adversary(sines(100), real)["gan"] < adversary(noise(100), real)["gan"]).all()


@pytest.mark.parametrize("name", list(LENGTHS))
class TestGradients:
    def test_the_generators_pass_reaches_the_prediction_only(self, name: str) -> None:
        adversary = new_adversary(name, channels=2)
        prediction, target = (signal.requires_grad_() for signal in signals(0, (3, 2, LENGTHS[name])))
        values = adversary(prediction, target)
        assert {key: value.shape for key, value in values.items()} == {"gan": (3,), "feature_matching": (3,)}
        # The discriminator may be trained before the generator's backward pass, and afterwards.
        assert adversary.accumulate(prediction, target).shape == (3,)
        trained = gradients(adversary)
        assert len(trained) == len(weights(adversary)) and prediction.grad is None and target.grad is None
        sum(value.sum() for value in values.values()).backward()
        assert equal(gradients(adversary), trained) and target.grad is None
        assert prediction.grad is not None and prediction.grad.isfinite().all()
        assert (prediction.grad.flatten(1).norm(dim=1) > 0).all()
        before = weights(adversary)
        adversary.step()
        assert not equal(before, weights(adversary))
        assert all(weight.requires_grad for weight in adversary.discriminator.parameters())

    def test_items_are_independent_and_identity_matches(self, name: str) -> None:
        adversary = new_adversary(name)
        prediction, target = signals(1, (3, 1, LENGTHS[name]))
        values, critic = adversary(prediction, target), adversary.accumulate(prediction, target)
        for item in range(3):
            one = prediction[item : item + 1], target[item : item + 1]
            for key, alone in adversary(*one).items():
                assert alone.item() == pytest.approx(values[key][item].item(), rel=1e-4, abs=1e-6)
            assert adversary.accumulate(*one).item() == pytest.approx(critic[item].item(), rel=1e-4)
        assert adversary(target, target)["feature_matching"].tolist() == [0, 0, 0]

    def test_float32_outside_autocast(self, name: str) -> None:
        adversary = new_adversary(name)
        prediction, target = signals(2, (2, 1, LENGTHS[name]))
        plain, critic = adversary(prediction, target), adversary.accumulate(prediction, target)
        with torch.autocast("cpu", torch.bfloat16):
            inside = adversary(prediction, target)
            assert torch.equal(adversary.accumulate(prediction, target), critic)
        assert all(torch.equal(inside[key], plain[key]) for key in plain)
        assert adversary(prediction.bfloat16(), target)["gan"].dtype == torch.float32

    def test_silence_and_clipping_are_finite(self, name: str) -> None:
        adversary = new_adversary(name)
        noise, _ = signals(3, (1, 1, LENGTHS[name]))
        silence = torch.zeros_like(noise)
        for prediction, target in ((silence, silence), (noise, silence), ((100 * noise).clamp(-1, 1), noise)):
            prediction = prediction.clone().requires_grad_()
            values = torch.stack(list(adversary(prediction, target).values()))
            values.sum().backward()
            assert prediction.grad is not None and prediction.grad.isfinite().all()
            assert values.abs().max() < 10 and adversary.accumulate(prediction, target).isfinite().all()

    def test_resumed_equals_uninterrupted(self, name: str, tmp_path: Path) -> None:
        def train(adversary: Adversary, steps: range) -> list[Tensor]:
            losses = []
            for step in steps:
                losses.append(adversary.accumulate(*signals(step, (2, 1, LENGTHS[name]))))
                adversary.step()
            return [*losses, *adversary(*signals(9, (2, 1, LENGTHS[name]))).values()]

        first = new_adversary(name, lr=1e-3)
        train(first, range(2))
        torch.save(first.state_dict(), tmp_path / "state.pt")
        expected = train(first, range(2, 4))
        second = new_adversary(name, seed=1, lr=1e-3)
        second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert second.steps == 2
        assert equal(train(second, range(2, 4)), expected)
        assert equal(weights(second), weights(first))
        other = new_adversary(name, lr=5e-4)
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert [group["lr"] for group in other.optimizer.param_groups] == [5e-4]


class TestSteps:
    def test_nothing_runs_before_the_start(self) -> None:
        adversary = Adversary(Untouchable(), start_step=2)
        prediction, target = signals()
        prediction.requires_grad_()
        for _ in range(2):
            values = adversary(prediction, target)
            total = prediction.square().mean() + sum(3 * value.mean() for value in values.values())
            total.backward()
            assert {name: value.tolist() for name, value in values.items()} == {
                "gan": [0, 0, 0, 0],
                "feature_matching": [0, 0, 0, 0],
            }
            assert adversary.accumulate(prediction, target).tolist() == [0, 0, 0, 0]
            adversary.step()
        with pytest.raises(AssertionError, match="was run"):
            adversary(prediction, target)
        with pytest.raises(ValueError, match=r"\[4, 1, 400\] and \[4, 1, 399\]"):
            adversary(prediction, target[..., 1:])

    def test_it_is_trained_at_multiples_of_update_freq_from_start_step(self) -> None:
        adversary = new_adversary(update_freq=3, start_step=2)
        trained, computed = [], []
        for step in range(8):
            before = weights(adversary)
            if adversary.accumulate(*signals(step)).any():
                computed.append(step)
            assert bool(gradients(adversary)) == (step in computed)
            adversary.step()
            assert not gradients(adversary)
            if not equal(before, weights(adversary)):
                trained.append(step)
            assert adversary(*signals(step))["feature_matching"].all() == (step >= 1)  # the next step's
        assert trained == computed == [3, 6]

    def test_halves_of_a_batch_accumulate_to_the_whole(self) -> None:
        prediction, target = signals()
        whole, halves = new_adversary(), new_adversary()
        values = whole.accumulate(prediction, target)
        parts = [halves.accumulate(prediction[half], target[half], 0.5) for half in (slice(0, 2), slice(2, 4))]
        assert torch.allclose(torch.cat(parts), values)
        for one, other in zip(gradients(whole), gradients(halves), strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)

    def test_a_step_that_is_skipped_or_not_finite_is_only_counted(self) -> None:
        adversary = new_adversary()
        before = weights(adversary)
        prediction, target = signals()
        adversary.accumulate(prediction, target)
        adversary.step(skip=True)
        adversary.accumulate(torch.full_like(prediction, torch.nan), target)
        adversary.step()
        assert adversary.steps == 2 and not gradients(adversary)
        assert equal(weights(adversary), before) and not adversary.optimizer.state_dict()["state"]
        adversary.accumulate(prediction, target)
        adversary.step()
        assert not equal(weights(adversary), before)


# Rank r of two: what the weights are after each of several steps.
RANK = """
import sys
import torch
import torch.distributed as dist
from encore.distributed import end_process, stop
from losses import Adversary, discriminator

def main():
    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(rank)
    adversary = Adversary(discriminator("mpd", 24000, 1, filters=2))
    adversary.synchronise()
    snapshots = []

    def end_step(skip=False):
        adversary.step(skip)
        snapshots.append([weight.detach().clone() for weight in adversary.parameters()])

    end_step(skip=True)
    prediction, target = (part[rank] for part in torch.load(f"{folder}/signals.pt"))
    for half in (slice(0, 1), slice(1, 2)):
        adversary.accumulate(prediction[half], target[half], 0.5)
    end_step()
    adversary.accumulate(prediction * (torch.nan if rank else 1), target)
    end_step()
    adversary.accumulate(prediction, target)
    end_step(skip=rank == 0)
    if rank == 0:
        adversary.accumulate(prediction, target)
    end_step()
    torch.save(snapshots, f"{folder}/{rank}.pt")
    stop()

end_process(main)
"""


def test_two_ranks_train_as_one_on_the_union(tmp_path: Path) -> None:
    prediction, target = signals()
    torch.save([signal.unflatten(0, (2, 2)) for signal in (prediction, target)], tmp_path / "signals.pt")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        problems = [process.communicate(timeout=120)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], problems
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(map(equal, one, other))
    alone = new_adversary()
    start, trained, after_nan, after_skip, last = one
    assert equal(start, weights(alone))  # rank 0's on both
    assert equal(after_nan, trained) and equal(after_skip, trained)
    alone.accumulate(prediction, target)
    alone.step()
    for weight, expected in zip(trained, weights(alone), strict=True):
        assert torch.allclose(weight, expected, rtol=1e-5, atol=1e-6)
    alone.accumulate(prediction[:2], target[:2], 0.5)  # rank 1 had nothing to add
    alone.step()
    for weight, expected in zip(last, weights(alone), strict=True):
        assert torch.allclose(weight, expected, rtol=1e-5, atol=1e-6)
    assert not equal(last, trained)
