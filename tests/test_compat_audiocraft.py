"""`losses.compat.audiocraft` and `.encodec`: the balancer by its definition, the adversarial losses by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from losses.adversarial import FeatureMatchingLoss, GeneratorLoss, discriminator
from losses.compat import encodec
from losses.compat.audiocraft import adversarial
from losses.compat.audiocraft.losses import Balancer
from tests.signals import noise

WEIGHTS = {"near": 2.0, "loud": 1.0}


class Step(NamedTuple):
    """What a step of a balancer gave: loss, gradient at the signal's origin, metrics; and each loss and gradient."""

    effective: Tensor
    gradient: Tensor
    metrics: dict[str, float]
    losses: dict[str, Tensor]
    alone: dict[str, Tensor]


def steps_of(balancer: Balancer, steps: int = 3) -> list[Step]:
    """Steps on a signal that is twice its origin."""
    results = []
    for step in range(steps):
        origin, target = (signal.double() for signal in noise((3, 1, 50), step))
        origin.requires_grad_()
        signal = 2 * origin
        losses = {"near": (signal - target).abs().mean(), "loud": 300 * (step + 1) * signal.square().mean()}
        alone = {name: torch.autograd.grad(loss, signal, retain_graph=True)[0] for name, loss in losses.items()}
        effective = balancer.backward(losses, signal)
        assert origin.grad is not None
        torch.autograd.grad(losses["near"], signal)  # the graph is still there
        results.append(Step(effective, origin.grad, balancer.metrics, losses, alone))
    return results


@pytest.mark.parametrize("per_item", [True, False])
def test_balanced_gradients_follow_the_definition(per_item: bool) -> None:
    beta, total_norm = 0.9, 1.5
    balancer = Balancer(WEIGHTS, True, total_norm, beta, per_item, monitor=True)
    totals, counts = {"near": 0.0, "loud": 0.0}, 0.0
    for effective, gradient, metrics, losses, alone in steps_of(balancer):
        counts = beta * counts + 1
        expected, value = torch.zeros(3, 1, 50, dtype=torch.float64), 0.0
        for name, slope in alone.items():
            norm = slope.flatten(1).norm(dim=1).mean() if per_item else slope.norm()
            totals[name] = beta * totals[name] + norm.item()
            scale = WEIGHTS[name] / 3 * total_norm / (totals[name] / counts)
            expected += 2 * scale * slope
            value += scale * losses[name].item()
        assert torch.allclose(gradient, expected, rtol=1e-9)
        assert effective.item() == pytest.approx(value) and not effective.requires_grad
        assert metrics["ratio_loud"] == pytest.approx(totals["loud"] / sum(totals.values()))


def test_without_balance_the_gradient_is_that_of_the_weighted_sum() -> None:
    for balancer in (Balancer(WEIGHTS, balance_grads=False), encodec.Balancer(WEIGHTS, rescale_grads=False)):
        for effective, gradient, metrics, losses, alone in steps_of(balancer, 2):
            assert torch.allclose(gradient, 2 * (2 * alone["near"] + alone["loud"]))
            assert effective.item() == pytest.approx(sum(WEIGHTS[name] * loss.item() for name, loss in losses.items()))
            assert metrics == {}


def test_equal_and_opposite_gradients_add_up_to_exactly_nothing() -> None:
    signal = torch.zeros(1, requires_grad=True)
    losses = {"up": (signal - 1).abs(), "down": 100 * (signal + 1).abs()}
    encodec.Balancer({"up": 1.0, "down": 1.0}).backward(losses, signal)
    assert signal.grad is not None and signal.grad.item() == 0


def test_only_losses_that_are_given_count_and_each_needs_a_weight() -> None:
    signal = torch.ones(2, 1, 4, requires_grad=True)
    Balancer({"a": 1.0, "absent": 3.0}, per_batch_item=False).backward({"a": signal.sum()}, signal)
    assert signal.grad is not None and signal.grad.norm().item() == pytest.approx(1)
    with pytest.raises(KeyError, match="b"):
        Balancer({"a": 1.0}).backward({"b": signal.sum()}, signal)


def test_a_process_group_of_one_rank_changes_nothing(tmp_path: Path) -> None:
    alone = [step.gradient for step in steps_of(Balancer(WEIGHTS))]
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        together = [step.gradient for step in steps_of(Balancer(WEIGHTS))]
        loss = adversary("mse")
        assert loss.train_adv(*noise((2, 1, 1200), 3)).isfinite()
    finally:
        dist.destroy_process_group()
    assert all(torch.allclose(*pair) for pair in zip(alone, together, strict=True))


def adversary(kind: str, *feature_loss: nn.Module, **options: Any) -> adversarial.AdversarialLoss:
    """audiocraft's loss around the multi-period discriminator."""
    torch.manual_seed(0)
    module = discriminator("mpd", 24000, 1, filters=1)
    criteria: list[Any] = [getattr(adversarial, f"get_{side}_criterion")(kind) for side in ("adv", "real", "fake")]
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    return adversarial.AdversarialLoss(module, optimizer, *criteria, *feature_loss, **options)


LOGITS = torch.tensor([-2.0, 0.5, 3.0])
CRITERIA: list[tuple[str, Callable[[str], Callable[[Tensor], Tensor]], list[float]]] = [
    ("mse", adversarial.get_adv_criterion, [9, 0.25, 4]),
    ("mse", adversarial.get_real_criterion, [9, 0.25, 4]),
    ("mse", adversarial.get_fake_criterion, [4, 0.25, 9]),
    ("hinge", adversarial.get_adv_criterion, [2, -0.5, -3]),
    ("hinge", adversarial.get_real_criterion, [3, 0.5, 0]),
    ("hinge", adversarial.get_fake_criterion, [0, 1.5, 4]),
    ("hinge2", adversarial.get_adv_criterion, [3, 0.5, 0]),
    ("hinge2", adversarial.get_fake_criterion, [0, 1.5, 4]),
]


@pytest.mark.parametrize(("kind", "make", "values"), CRITERIA)
def test_criteria_are_means_over_logits(
    kind: str, make: Callable[[str], Callable[[Tensor], Tensor]], values: list[float]
) -> None:
    assert make(kind)(LOGITS).item() == pytest.approx(sum(values) / 3)
    assert make(kind)(torch.zeros(1, 2, 0)).item() == 0
    with pytest.raises(ValueError, match="must be one of mse, hinge, hinge2, got 'lsgan'"):
        make("lsgan")


def test_features_are_matched_layer_by_layer() -> None:
    fake, real = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 10.0, 3.0])
    assert adversarial.FeatureMatchingLoss()([fake, fake], [real, real]).item() == pytest.approx(3)
    assert adversarial.FeatureMatchingLoss(nn.MSELoss(), normalize=False)([fake, fake], [real, real]).item() == (
        pytest.approx(2 * 65 / 3)
    )
    for layers in ([], [real, real], [real[:2]]):
        with pytest.raises(AssertionError, match="must be equal in number and shape"):
            adversarial.FeatureMatchingLoss()([fake][: len(layers)], layers)


def test_the_generator_gets_the_losses_of_this_package() -> None:
    fake, real = noise((2, 1, 1200), 0)
    loss = adversary("hinge", adversarial.FeatureMatchingLoss())
    fake.requires_grad_()
    realism, matching = loss(fake, real)
    logits, features = loss.adversary(fake)
    assert realism.item() == pytest.approx(GeneratorLoss("hinge")(logits).mean().item(), rel=1e-5)
    distance = FeatureMatchingLoss()(features, loss.adversary(real)[1]).mean()
    assert matching.item() == pytest.approx(distance.item(), rel=1e-5)
    (realism + matching).backward()
    assert fake.grad is not None and all(weight.grad is None for weight in loss.adversary.parameters())
    summed = adversary("hinge", normalize=False)(fake, real)
    assert summed[0].item() == pytest.approx(len(logits) * realism.item(), rel=1e-5) and summed[1].item() == 0


def test_the_discriminator_learns_and_its_state_holds_the_optimiser() -> None:
    fake, real = noise((2, 1, 1200), 1)
    loss = adversary("mse")
    values = [loss.train_adv(fake.requires_grad_(), 3 * real).item() for _ in range(6)]
    assert values[-1] < 0.9 * values[0] and fake.grad is None
    resumed = adversary("mse")
    resumed.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert resumed.train_adv(fake, real).item() == loss.train_adv(fake, real).item()
    assert resumed.train_adv(fake, real).item() == loss.train_adv(fake, real).item()


def test_discriminators_have_audiocrafts_weights_and_outputs() -> None:
    """Shapes by hand; strides of 4 at every scale, since audiocraft compares the signal itself at all of them."""
    signal = noise((1, 2, 400), 2)[0]
    scales = adversarial.MultiScaleDiscriminator(2, filters=4, max_filters=32, scale_norms=["none", "weight_norm"])
    logits, features = scales(signal)
    assert [list(values.shape) for values in logits] == 2 * [[1, 1, 2]] and len(features[0]) == 7
    names = set(scales.state_dict())
    assert {"discriminators.0.convs.0.1.conv.weight", "discriminators.1.conv_post.conv.weight_g"} <= names
    periods = adversarial.MultiPeriodDiscriminator(2, periods=[1, 3], filters=1, filters_scale=2)
    logits, features = periods(signal)
    assert [list(values.shape) for values in logits] == [[1, 1, 5, 1], [1, 1, 2, 3]]
    assert [values.shape[1] for values in features[1]] == [2, 4, 8, 16, 32, 1]
    sizes: dict[str, Any] = {"n_ffts": [128, 64], "hop_lengths": [32, 16], "win_lengths": [128, 64]}
    spectra = adversarial.MultiScaleSTFTDiscriminator(2, in_channels=2, sep_channels=True, **sizes)
    logits, features = spectra(signal)
    assert [len(part) for part in (logits, features)] == [2, 2] and logits[0].dim() == 4
    assert spectra.num_discriminators == 2
