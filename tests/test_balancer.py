"""Combining losses: shares computed by hand, values that are not finite, state, and agreement of the ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import losses
from encore.training.distributed import Ranks
from losses.balancer import REFERENCE_STEPS, balance
from tests.conftest import Forks
from tests.signals import seeded

LINEAR = {"small": 1e-3, "large": 50.0}  # gradients' norms per item


def signal(items: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(items, 1, 400, generator=torch.Generator().manual_seed(seeded(seed))).requires_grad_()


def direction(seed: int) -> Tensor:
    """A direction of norm 1 in the space of one item."""
    vector = torch.randn(1, 400, generator=torch.Generator().manual_seed(100 + seed))
    return vector / vector.norm()


def linear(audio: Tensor, norms: dict[str, float]) -> dict[str, Tensor]:
    """Values whose gradients have the given norms at each item."""
    return {name: norm * (audio * direction(k)).flatten(1).sum(1) for k, (name, norm) in enumerate(norms.items())}


class Mean(nn.Module):
    def __init__(self, power: int):
        super().__init__()
        self.power = power

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs().pow(self.power).flatten(1).mean(1)


def test_a_weighted_sum_is_a_loss_with_parts() -> None:
    prediction, target = torch.rand(2, 1, 50), torch.zeros(2, 1, 50)
    combined = losses.WeightedSum({"l1": (Mean(1), 0.5), "l2": (Mean(2), 3.0), "off": (nn.Identity(), 0.0)})
    parts = combined.parts(prediction, target)
    assert parts.keys() == {"l1", "l2"}
    expected = 0.5 * prediction.mean((1, 2)) + 3 * prediction.square().mean((1, 2))
    assert torch.allclose(combined(prediction, target), expected)
    assert torch.equal(combined.total(parts), combined(prediction, target))
    for weights in ({"l1": 0.0}, {"l1": -1.0, "l2": 1.0}, {"l1": math.nan}):
        with pytest.raises(ValueError, match="weight"):
            losses.WeightedSum({name: (Mean(1), weight) for name, weight in weights.items()})
        with pytest.raises(ValueError, match="weight"):
            losses.LossBalancer(weights)


def test_factors_by_hand() -> None:
    factors = balance({"a": 1, "b": 3, "absent": 5}, {"a": 0.5, "b": 10}, total_norm=2)
    assert factors == pytest.approx({"a": 1.0, "b": 0.15})


@pytest.mark.parametrize("measure", [True, False])
def test_the_plain_gradient_is_that_of_the_weighted_mean(measure: bool) -> None:
    audio, weights = signal(), {"small": 4.0, "large": 0.1, "off": 0.0}
    combined = losses.WeightedGradient(weights)(linear(audio, LINEAR), audio, measure)
    values = linear(audio, LINEAR)
    (expected,) = torch.autograd.grad((4 * values["small"] + 0.1 * values["large"]).mean(), audio)
    assert torch.allclose(combined.gradient, expected, rtol=1e-5, atol=1e-9)
    shares = {"small": 4e-3 / 5.004, "large": 5 / 5.004} if measure else {}
    assert combined.shares == pytest.approx(shares, rel=1e-4)


def test_a_balanced_terms_norm_is_its_weights_share() -> None:
    audio, balancer = signal(), losses.LossBalancer({"small": 1.0, "large": 3.0}, total_norm=2.0)
    combined = balancer(linear(audio, LINEAR), audio)
    assert combined.shares == pytest.approx({"small": 0.25, "large": 0.75}, rel=1e-5)
    assert combined.left_out == ()
    # Of the mean over three items; 0.25 · 2 and 0.75 · 2 along each term's direction.
    expected = (0.5 * direction(0) + 1.5 * direction(1)) / 3
    assert torch.allclose(combined.gradient, expected.expand(3, 1, 400), atol=1e-6)


def test_averages_follow_the_formula() -> None:
    balancer, sizes = losses.LossBalancer({"a": 1.0, "b": 1.0}, beta=0.9), [1.0, 5.0, 2.0, 0.1]
    for count, size in enumerate(sizes, 1):
        audio = signal(seed=count)
        combined = balancer(linear(audio, {"a": size, "b": 1.0}), audio)
        decays = [0.9**age for age in reversed(range(count))]
        average = sum(d * s for d, s in zip(decays, sizes, strict=False)) / sum(decays)
        scaled = combined.gradient.flatten(1) @ torch.linalg.pinv(torch.cat([direction(0), direction(1)]))
        assert scaled[0, 0].item() * 3 == pytest.approx(0.5 * size / average, rel=1e-4)
        assert scaled[0, 1].item() * 3 == pytest.approx(0.5, rel=1e-4)


def test_norms_do_not_depend_on_the_size_of_the_batch() -> None:
    steps = []
    for items in (1, 6):
        audio = signal(items)
        steps.append(losses.LossBalancer({"small": 1.0, "large": 1.0})(linear(audio, LINEAR), audio).gradient)
    assert torch.allclose(steps[0][0] / 6, steps[1][5], atol=1e-7)


@pytest.mark.parametrize("broken", ["value", "gradient"])
def test_a_term_that_is_not_finite_is_left_out_and_named(broken: str) -> None:
    audio = signal()
    balancer = losses.LossBalancer({"small": 1.0, "broken": 7.0, "large": 3.0})
    values = linear(audio, {"small": LINEAR["small"], "large": LINEAR["large"]})
    if broken == "value":
        values["broken"] = values["small"] + torch.tensor([0.0, math.inf, 0.0])
    else:
        values["broken"] = (audio - audio.detach()).flatten(1).sum(1).sqrt()  # 0, with an infinite gradient
    combined = balancer(values, audio)
    assert combined.left_out == ("broken",)
    assert combined.gradient.isfinite().all()
    assert combined.shares == pytest.approx({"small": 0.25, "broken": 0.0, "large": 0.75}, rel=1e-5)
    again = signal(seed=1)
    norms = {"small": LINEAR["small"], "large": LINEAR["large"], "broken": 2.0}
    combined = balancer(linear(again, norms), again)
    assert combined.left_out == ()
    assert combined.shares == pytest.approx({"small": 1 / 11, "broken": 7 / 11, "large": 3 / 11}, rel=1e-5)


def test_a_term_without_gradient_gives_its_share_to_the_others_and_keeps_its_average() -> None:
    balancer = losses.LossBalancer({"small": 1.0, "later": 1.0})
    for seed in range(3):
        audio = signal(seed=seed)
        values = {"small": linear(audio, LINEAR)["small"], "later": torch.zeros(3)}
        combined = balancer(values, audio)
        assert combined.shares == {"small": 1.0, "later": 0.0} and combined.left_out == ()
    audio = signal(seed=9)
    combined = balancer(linear(audio, {"small": LINEAR["small"], "later": 30.0}), audio)
    assert combined.shares == pytest.approx({"small": 0.5, "later": 0.5}, rel=1e-5)
    values = {name: torch.zeros(3) for name in ("small", "later")}
    nothing = balancer(values, signal(seed=9))
    assert nothing.shares == {} and not nothing.gradient.any()


def test_gradients_shrink_only_when_told_to() -> None:
    kept, shrinking = (losses.LossBalancer({"a": 1.0}, beta=0.5, shrink=shrink) for shrink in (False, True))
    norms = {}
    for step in range(REFERENCE_STEPS + 40):
        audio = signal(1, seed=step)
        size = 2.0 if step < REFERENCE_STEPS else 0.02
        for name, balancer in (("kept", kept), ("shrinking", shrinking)):
            norms[name] = balancer(linear(audio, {"a": size}), audio).gradient.norm().item()
    assert norms == pytest.approx({"kept": 1.0, "shrinking": 0.01}, rel=1e-3)
    audio = signal(1)
    for _ in range(40):  # one that grows is still scaled down
        norm = shrinking(linear(audio, {"a": 600.0}), audio).gradient.norm().item()
    assert norm == pytest.approx(1.0, rel=1e-3)


def test_a_loaded_state_continues_where_it_was_saved(tmp_path: Path) -> None:
    def run(balancer: losses.LossBalancer, steps: range) -> Tensor:
        for step in steps:
            audio = signal(seed=step)
            gradient = balancer(linear(audio, {"a": 1.0 + step, "b": 3.0}), audio).gradient
        return gradient

    weights = {"a": 1.0, "b": 2.0}
    first, whole = losses.LossBalancer(weights), losses.LossBalancer(weights)
    run(first, range(5))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = losses.LossBalancer(weights)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(run(second, range(5, 9)), run(whole, range(9)))
    other = losses.LossBalancer({"a": 1.0, "new": 1.0})
    other.load_state_dict(first.state_dict())
    assert other.averages["a"] == first.averages["a"] and other.averages["new"].steps == 0


def combined_on(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """On each of two ranks: what two steps on its share of the batch give, and the balancer's state after them."""
    number = ranks.rank
    balancer, seen = losses.LossBalancer({"a": 1.0, "b": 1.0}), []
    for step, items in enumerate([(1, 3), (2, 2)]):
        audio = signal(4, seed=step)[sum(items[:number]) : sum(items[: number + 1])].detach().requires_grad_()
        values = linear(audio, {"a": 1.0 + 5 * number, "b": 2.0})
        if step == 1 and number == 1:
            values["b"] = values["b"] * math.nan
        combined = balancer(values, audio)
        seen.append((combined.gradient * len(audio), combined.left_out))
    return {"seen": seen, "state": balancer.state_dict()}


@pytest.mark.slow
def test_two_ranks_agree_on_averages_and_on_what_is_left_out(tmp_path: Path, forks: Forks) -> None:
    first, second = forks.results_of_two_ranks(combined_on, tmp_path)
    assert first["state"] == second["state"]
    averages = first["state"]["_extra_state"]
    # One item of norm 1 and three of norm 6; then two of each.
    assert averages["a"]["total"] == pytest.approx(0.999 * 19 / 4 + 14 / 4, rel=1e-5)
    assert (averages["a"]["steps"], averages["b"]["steps"]) == (2, 1)
    assert [left_out for _, left_out in first["seen"]] == [left_out for _, left_out in second["seen"]] == [(), ("b",)]
    expected = 0.5 * (1 / (19 / 4) * direction(0) + direction(1))
    assert torch.allclose(first["seen"][0][0][0], expected, atol=1e-6)
