"""The transformer, its optimiser, the course of its learning rate and its averaged weights."""

from __future__ import annotations

import math

import pytest
import torch

from encore.model import ContinuationTransformer, rotate
from encore.optim import Schedule, adamw, averaged


@pytest.fixture
def model() -> ContinuationTransformer:
    torch.manual_seed(0)
    return ContinuationTransformer(latent_dim=6, d_model=16, nhead=2, num_layers=2, dropout=0.0)


def test_shapes_and_steps(model: ContinuationTransformer) -> None:
    context = torch.randn(3, 6, 20)
    whole = model(context)
    assert whole.shape == (3, 6, 20)
    assert torch.equal(model(context, steps=7), whole[..., :7])
    with pytest.raises(ValueError, match="21 steps from a context of 20 frames"):
        model(context, steps=21)


def test_without_layers_output_the_model_is_the_identity(model: ContinuationTransformer) -> None:
    torch.nn.init.zeros_(model.leave.weight)
    torch.nn.init.zeros_(model.leave.bias)
    model.set_statistics(torch.randn(6), torch.rand(6) + 0.5)
    context = torch.randn(2, 6, 9)
    assert torch.allclose(model(context), context, atol=1e-5)
    noise = torch.randn(2, 6, 9)
    assert torch.allclose(model(context, noise=noise), context + noise * model.std, atol=1e-5)


def test_latents_are_normalised_on_the_way_in_and_back_on_the_way_out(model: ContinuationTransformer) -> None:
    context, mean, deviation = torch.randn(2, 6, 9), torch.randn(6), torch.rand(6) + 0.5
    plain = model(context)
    model.set_statistics(mean, deviation)
    scaled = model(context * deviation[:, None] + mean[:, None])
    assert torch.allclose(scaled, plain * deviation[:, None] + mean[:, None], atol=1e-5)
    model.set_statistics(mean, torch.zeros(6))
    assert model(context).isfinite().all()


def test_every_output_frame_sees_the_whole_context(model: ContinuationTransformer) -> None:
    context = torch.randn(1, 6, 12, requires_grad=True)
    for frame in (0, 11):
        (gradient,) = torch.autograd.grad(model(context)[..., frame].sum(), context)
        assert (gradient.abs().sum((0, 1)) > 0).all()


def test_rotary_attention_scores_depend_on_distance_alone() -> None:
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    frequencies = 10000.0 ** (-torch.arange(4) / 4)

    def score(at: int, other: int) -> float:
        turned = [rotate(x, torch.tensor([[position]]) * frequencies) for x, position in ((query, at), (key, other))]
        return (turned[0] * turned[1]).sum().item()

    assert score(3, 10) == pytest.approx(score(103, 110), rel=1e-4)
    assert score(3, 10) != pytest.approx(score(3, 11), rel=1e-2)


def test_order_matters_to_the_model(model: ContinuationTransformer) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)  # at the start, attention hardly tells frames apart
    context = torch.randn(1, 6, 8)
    swapped = context[..., [1, 0, *range(2, 8)]]
    assert not torch.allclose(model(context)[..., 5], model(swapped)[..., 5], atol=1e-3)


def test_weight_decay_is_for_matrices_only(model: ContinuationTransformer) -> None:
    groups = adamw(model, 1e-3, 0.1).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.dim() > 1 for p in groups[0]["params"]) and all(p.dim() == 1 for p in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_warm_up_then_cosine_to_zero() -> None:
    schedule = Schedule("cosine", peak=2.0, warmup_steps=4, total_steps=24)
    assert [schedule.lr(step) for step in range(4)] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert schedule.lr(14) == pytest.approx(1.0)
    assert schedule.lr(24) == pytest.approx(0.0, abs=1e-12)
    assert schedule.lr(9) == pytest.approx(1 + math.cos(math.pi / 4))


def test_constant_and_plateau() -> None:
    assert Schedule("constant", 2.0, 0, 10).lr(9) == 2.0
    plateau = Schedule("plateau", 2.0, 0, 100)
    for loss in (1.0, *[1.0] * 6):
        plateau.epoch_ended(loss)
    assert plateau.lr(50) == 1.0
    other = Schedule("plateau", 2.0, 0, 100)
    other.load_state_dict(plateau.state_dict())
    for schedule in (plateau, other):
        for _ in range(6):
            schedule.epoch_ended(1.0)
    assert plateau.lr(50) == other.lr(50) == 0.5


def test_averaged_weights_follow_the_formula(model: ContinuationTransformer) -> None:
    ema = averaged(model, decay=0.15)
    expected = None
    for update in range(4):
        with torch.no_grad():
            model.enter.weight.fill_(float(update))
        ema.update_parameters(model)
        decay = min(0.15, (1 + update) / (10 + update))
        # The first update takes the weights as they are.
        expected = float(update) if expected is None else decay * expected + (1 - decay) * update
    assert ema.module.get_parameter("enter.weight")[0, 0].item() == pytest.approx(expected)
