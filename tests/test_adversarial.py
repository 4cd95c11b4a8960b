"""Adversarial losses and discriminators: known values, the reference package, the papers' sizes, wrong input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from encodec.msstftd import MultiScaleSTFTDiscriminator
from torch import Tensor, nn
from torch.nn import functional

from losses import DiscriminatorLoss, FeatureMatchingLoss, GeneratorLoss, adversarial, discriminator
from losses.adversarial.discriminators import MultiPeriod
from tests.signals import seeded

LOSSES: list[nn.Module] = [build(kind) for build in (GeneratorLoss, DiscriminatorLoss) for kind in ("hinge", "lsgan")]
LOSSES += [FeatureMatchingLoss(), FeatureMatchingLoss(relative=True)]


def random_outputs(seed: int) -> list[Tensor]:
    """Of two discriminators, batch 3, with logits on both sides of ±1."""
    generator = torch.Generator().manual_seed(seeded(seed))
    return [2 * torch.randn(shape, generator=generator) for shape in ((3, 1, 40), (3, 1, 7, 5))]


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

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.slow
    def test_gradients_are_those_of_finite_differences(self, loss: nn.Module) -> None:
        found = [output.double().requires_grad_() for seed in (4, 5) for output in random_outputs(seed)]

        def value(*outputs: Tensor) -> Tensor:
            if isinstance(loss, GeneratorLoss):
                return loss(outputs)
            if isinstance(loss, DiscriminatorLoss):
                return loss(outputs[:2], outputs[2:])
            return loss([outputs[:2]], [outputs[2:]])

        assert torch.autograd.gradcheck(value, found)

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

    def test_wrong_input_is_refused(self) -> None:
        for build in (GeneratorLoss, DiscriminatorLoss):
            with pytest.raises(ValueError, match="gan_type must be one of hinge, lsgan, got 'wgan'"):
                build("wgan")
        with pytest.raises(ValueError):
            DiscriminatorLoss()(random_outputs(0), random_outputs(1)[:1])
        with pytest.raises(ValueError, match=r"\[3, 1, 40\] and \[3, 1, 7, 5\]"):
            FeatureMatchingLoss()([random_outputs(0)[:1]], [random_outputs(0)[1:]])


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

    @pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
    @pytest.mark.parametrize(("sample_rate", "scale"), [(24000, 1), (44100, 2)])
    def test_msstft_is_that_of_the_encodec_package(self, sample_rate: int, scale: int) -> None:
        sizes = [1024 * scale, 2048 * scale, 512 * scale]
        hops = [size // 4 for size in sizes]
        reference = MultiScaleSTFTDiscriminator(2, 1, n_ffts=sizes, win_lengths=sizes, hop_lengths=hops)
        network = discriminator("msstft", sample_rate, 1, filters=2)
        network.load_state_dict({f"network.{name}": value for name, value in reference.state_dict().items()})
        audio = torch.randn(2, 1, 5000, generator=torch.Generator().manual_seed(0))
        (logits, features), (expected, maps) = network(audio), reference(audio)
        assert all(map(torch.equal, logits, expected))
        for layers, wanted in zip(features, maps, strict=True):
            assert len(layers) == len(wanted) and all(map(torch.equal, layers, wanted))

    def test_mpd_convolves_each_phase_of_a_period_by_itself(self) -> None:
        torch.manual_seed(0)
        network = MultiPeriod(channels=2, filters=2)
        audio = torch.randn(
            2, 2, 210, generator=torch.Generator().manual_seed(1)
        )  # 210 = 2 · 3 · 5 · 7, and 11 needs 10 samples more
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
