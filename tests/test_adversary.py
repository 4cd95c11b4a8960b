"""The adversary: what gets gradients, when the discriminator is trained, its state, two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from encore.training.distributed import Ranks
from losses import Adversary, discriminator
from tests.conftest import Forks

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


class Untouchable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, audio: Tensor) -> None:
        raise AssertionError("the discriminator was run")


@pytest.mark.parametrize("gan_type", ["hinge", "lsgan"])
@pytest.mark.slow
def test_the_discriminator_learns_and_its_gradient_leads_the_generator_to_the_target(gan_type: str) -> None:
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

    @pytest.mark.slow
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
    def test_an_update_freq_of_0_is_refused(self) -> None:
        with pytest.raises(ValueError, match="update_freq must be at least 1, got 0"):
            new_adversary(update_freq=0)

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


def snapshots(ranks: Ranks, folder: Path) -> list[list[Tensor]]:
    """On each of two ranks: the weights after each of several steps."""
    rank = ranks.rank
    torch.manual_seed(rank)
    adversary = Adversary(discriminator("mpd", 24000, 1, filters=2))
    adversary.synchronise()
    found = []

    def end_step(skip: bool = False) -> None:
        adversary.step(skip)
        found.append(weights(adversary))

    end_step(skip=True)
    prediction, target = (part[rank] for part in torch.load(folder / "signals.pt"))
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
    return found


@pytest.mark.slow
def test_two_ranks_train_as_one_on_the_union(tmp_path: Path, forks: Forks) -> None:
    prediction, target = signals()
    torch.save([signal.unflatten(0, (2, 2)) for signal in (prediction, target)], tmp_path / "signals.pt")
    one, other = forks.results_of_two_ranks(snapshots, tmp_path)
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
