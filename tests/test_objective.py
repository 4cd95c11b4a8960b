"""The objective: what is compared with what, and what a weight of zero costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import losses
from encore.codecs import Codec, load_codec
from encore.config.components import loss_knobs
from encore.config.schema import TrainConfig
from encore.data.dataset import Batch
from encore.errors import EncoreError
from encore.models.generation import GenerationConfig
from encore.training.build import build_adversary, build_components
from encore.training.objective import Component, Objective
from encore.training.synthesis import CropPlan, Synthesizer
from losses import pesq
from tests.conftest import melody


class Counted(nn.Module):
    """A loss that keeps its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, prediction: Tensor, reference: Tensor) -> Tensor:
        self.calls.append((prediction, reference))
        return (prediction - reference).abs().flatten(1).mean(1)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec("starter")


@pytest.fixture(scope="module")
def batch(codec: Codec) -> Batch:
    source, target = (torch.stack([torch.from_numpy(melody(2, s))[None] for s in seeds]) for seeds in ((0, 1), (2, 3)))
    return Batch(codec.encode(source), source, target, codec.encode(target), torch.arange(2))


class Answer(nn.Module):
    """Predicts its prior, through a convolution over single frames if it is to have weights."""

    gains = None  # in bands

    def __init__(self, learns: bool = True):
        super().__init__()
        self.turn = nn.Conv1d(128, 128, 1) if learns else nn.Identity()

    def forward(self, given: Tensor, steps: int, noise: Any, prior: Tensor, *others: Any) -> Tensor:
        return self.turn(prior)


def crop(first: int, frames: int) -> CropPlan:
    return CropPlan((0,), first, frames)


def weight_of(model: Answer) -> Tensor:
    return model.get_parameter("turn.weight")


def gradient_of(model: Answer) -> Tensor:
    gradient = weight_of(model).grad
    assert gradient is not None
    return gradient


def objective(
    codec: Codec,
    *components: Component,
    combiner: type[losses.WeightedGradient | losses.LossBalancer] = losses.WeightedGradient,
    adversary: losses.Adversary | None = None,
    samples: int = 1,
) -> Objective:
    """For whole continuations that start from their context, or where there are several samples from replays of it."""
    weights = {component.name: component.weight for component in components}
    generation = GenerationConfig(150, generative=samples > 1, prior="replay")
    synthesizer = Synthesizer(codec, generation, samples=samples, margin=64, crop_frames=150)
    return Objective(components, synthesizer, combiner(weights), adversary)


def components_for(codec: Codec, **settings: Any) -> list[Component]:
    return build_components(TrainConfig.from_flags(**settings).resolved(), codec, torch.zeros(1, 1, 9600))


def test_components_are_compared_with_their_references_and_weighted(codec: Codec, batch: Batch) -> None:
    near, far, off = Counted(), Counted(), Counted()
    terms = objective(
        codec,
        Component("a", "a", 0.5, True, near),
        Component("b", "b", 2.0, False, far),
        Component("c", "c", 0.0, False, off),
    )
    values = terms(Answer(learns=False), batch, crop(40, 50)).values
    assert set(values) == {"a", "b"} and not off.calls  # a weight of 0 costs nothing
    (audio, source), (same, target) = near.calls[0], far.calls[0]
    boundary = terms.synthesizer.boundary * 320  # of it, only the target knows what it should be
    assert boundary == 8 * 320 and torch.equal(audio, same[..., boundary:])
    assert torch.equal(source, batch.input_audio[..., 40 * 320 : 90 * 320])
    assert torch.equal(target, batch.target_audio[..., 32 * 320 : 90 * 320])
    whole = codec.decode(torch.cat([batch.context, batch.context], -1))[..., (150 + 32) * 320 : (150 + 90) * 320]
    assert 20 * torch.log10((same - whole).norm() / whole.norm()) < -50
    assert torch.allclose(terms.total(values), 0.5 * values["a"] + 2 * values["b"])
    assert set(terms.measure(batch.target_audio, batch)) == {"a", "b", "c"}


def test_floor_and_copy(codec: Codec, batch: Batch) -> None:
    terms = objective(codec, *components_for(codec, objective="regression"))
    floor, copy = terms.floor(batch), terms.measure(batch.input_audio, batch)
    rms = losses.create("rms", codec.sample_rate, reduction="none")
    assert torch.allclose(floor["rms_target"], rms(codec.decode(batch.target_latents), batch.target_audio))
    assert torch.allclose(floor["rms_input"], rms(codec.decode(batch.context), batch.input_audio))
    assert copy["rms_input"].abs().max() == 0
    assert torch.allclose(copy["rms_target"], rms(batch.input_audio, batch.target_audio))
    assert (floor["rms_target"] < 0.3 * copy["rms_target"]).all()


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.slow
def test_gradients_reach_the_model_through_the_decoder(codec: Codec, batch: Batch, samples: int) -> None:
    """Measured or not, in two halves or at once: always the gradient of the weighted mean."""
    chosen = components_for(codec, loss_weight_target=1, loss_weight_spectral=1, loss_weight_mel=2)
    terms, model = objective(codec, *chosen, samples=samples), Answer()

    def same_draw() -> Any:
        torch.manual_seed(0)
        return terms(model, batch, crop(0, 60))

    forward = same_draw()
    terms.total(forward.values).mean().backward()
    expected, gradients = gradient_of(model), list[Tensor]()
    assert expected.isfinite().all() and expected.abs().sum() > 0
    for measure in (True, False):
        model.zero_grad()
        for _ in range(2):
            step = terms.backward(same_draw(), 0.5, measure)
        gradients.append(gradient_of(model))
        names = {"rms_target", "spectral", "mel"}
        parts = {name + part for name in ("rms_target", "mel") for part in ("_attraction", "_repulsion")}
        assert step.values.keys() == names | (parts if samples > 1 else set())
        assert step.shares.keys() == (names if measure else set())
        assert step.finite and torch.allclose(step.total, terms.total(forward.values), rtol=1e-5)
        assert not any(value.requires_grad for value in step.values.values())
    for gradient in gradients:
        assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert all(parameter.grad is None for parameter in codec.parameters())
    assert not terms.state_dict()  # the codec's weights are no part of its state


def test_losses_that_cannot_be_computed_here_are_named_with_their_flags(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_pesq", None)  # as if it were not installed
    pesq._measure.cache_clear()
    config = TrainConfig.from_flags(loss_weight_sum_and_difference_stft=0.5, metrics="pesq,mel,multi_mel").resolved()
    with pytest.raises(EncoreError) as caught:
        build_components(config, codec, torch.zeros(1, 1, 6000))
    stereo, package = str(caught.value).splitlines()
    assert stereo.startswith("--loss_weight_sum_and_difference_stft 0.5: ") and "stereo" in stereo
    assert package.startswith("--metrics pesq: ") and "pip install" in package
    with pytest.raises(EncoreError, match="^--metrics mel: .*at least 513 samples"):
        build_components(TrainConfig.from_flags(metrics="mel", loss_weight_target=1), codec, torch.zeros(1, 1, 512))
    with pytest.raises(EncoreError, match="^--discriminator msstft: .*samples"):
        build_adversary(TrainConfig.from_flags(loss_weight_gan=1), codec, torch.zeros(1, 1, 320))


def test_every_loss_is_known_to_configuration_and_training(codec: Codec) -> None:
    """By flag and by --metrics; the codec's embedding gets the codec that is trained with."""
    weights = {one.name: 1.0 for one in loss_knobs() if "pesq" not in one.name}
    weights["loss_weight_sum_and_difference_stft"] = 0.0
    components = components_for(codec, **weights, metrics="")
    names = ["rms_input", "rms_target", *losses.REGISTRY, "gan", "feature_matching"]
    expected = [name for name in names if name not in ("rms", "pesq", "sum_and_difference_stft")]
    assert sorted(component.name for component in components) == sorted(expected)
    assert {c.name: c.metric for c in components if c.metric} == {
        "snr": "snr_db", "si_sdr": "si_sdr_db", "sd_sdr": "sd_sdr_db"
    }  # fmt: skip
    (embedding,) = (c.loss for c in components if c.name == "embedding")
    assert embedding is not None and next(codec.feature_encoder().parameters()) is next(embedding.parameters())
    terms = objective(codec, *(c for c in components if c.loss is not None))
    assert terms.state_dict().keys() == {"losses.random_resolution_stft"}  # no network's weights


class Broken(nn.Module):
    def forward(self, prediction: Tensor, reference: Tensor) -> Tensor:
        return prediction.flatten(1).mean(1) * torch.nan


@pytest.mark.slow
def test_a_loss_that_is_not_finite_costs_the_step_or_is_left_out_by_the_balancer(codec: Codec, batch: Batch) -> None:
    components = (Component("a", "a", 1.0, False, Counted()), Component("b", "b", 1.0, False, Broken()))
    for combiner in (losses.WeightedGradient, losses.LossBalancer):
        model, terms = Answer(), objective(codec, *components, combiner=combiner)
        step = terms.backward(terms(model, batch, crop(0, 60)), 1.0, measure=False)
        balanced = combiner is losses.LossBalancer
        assert step.finite == balanced == bool(gradient_of(model).isfinite().all())
        assert step.left_out == (("b",) if balanced else ())
        assert ("b" in step.values) != balanced
    assert torch.equal(step.total, step.values["a"])
    terms = objective(codec, components[1], combiner=losses.LossBalancer)
    step = terms.backward(terms(model, batch, crop(0, 60)), 1.0, measure=False)
    assert not step.finite and step.left_out == ("b",)


def adversarial(codec: Codec, start_step: int = 0) -> Objective:
    torch.manual_seed(0)
    discriminator = losses.discriminator("mpd", codec.sample_rate, 1, filters=2)
    components = components_for(codec, loss_weight_target=1, loss_weight_gan=1, loss_weight_feature_matching=2)
    adversary = losses.Adversary(discriminator, lr=1e-3, start_step=start_step)
    return objective(codec, *components, combiner=losses.LossBalancer, adversary=adversary)


@pytest.mark.slow
def test_adversarial_terms_are_trained_on_and_train_their_discriminator(codec: Codec, batch: Batch) -> None:
    terms, model = adversarial(codec, start_step=1), Answer()
    names = {"rms_target", "gan", "feature_matching"}
    for number in range(3):
        before = [weight.clone() for weight in terms.adversary.parameters()]  # type: ignore[union-attr]
        step = terms.backward(terms(model, batch, crop(0, 30)), 1.0, measure=False)
        started = number > 0
        assert step.values.keys() == (names | {"disc_loss"} if started else names)
        expected = (0.25, 0.25, 0.5) if started else (1.0, 0.0, 0.0)
        shares = dict(zip(("rms_target", "gan", "feature_matching"), expected, strict=True))
        assert step.shares == pytest.approx(shares, rel=0.3)  # by averages, which the norms stay near
        assert torch.equal(step.total, step.values["rms_target"])  # no yardstick: they are in no total
        terms.end_step(skip=number == 1)
        after = terms.adversary.parameters()  # type: ignore[union-attr]
        assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True)) == (number == 2)
    whole = batch.target_audio
    assert "gan" not in terms.measure(whole, batch) and "gan" not in terms.floor(batch)


@pytest.mark.slow
def test_the_state_is_that_of_balancer_and_adversary(codec: Codec, batch: Batch, tmp_path: Path) -> None:
    """Saved after two of four steps and loaded into a new one: the same gradients and the same discriminator."""
    results = []
    for pause in (False, True):
        terms, model = adversarial(codec), Answer()
        with torch.no_grad():
            weight_of(model).copy_(torch.eye(128)[..., None])
        for number in range(4):
            if pause and number == 2:
                assert terms.state_dict().keys() == {"combiner", "adversary"}
                torch.save(terms.state_dict(), tmp_path / "state.pt")
                terms = adversarial(codec)
                terms.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            model.zero_grad()
            terms.backward(terms(model, batch, crop(10 * number, 30)), 1.0, measure=False)
            terms.end_step(skip=False)
        results.append([gradient_of(model), *terms.adversary.parameters()])  # type: ignore[union-attr]
    assert all(torch.equal(ours, uninterrupted) for ours, uninterrupted in zip(*results, strict=True))


def test_state_of_a_missing_part_is_dropped_and_a_new_part_starts_afresh(codec: Codec, batch: Batch) -> None:
    """A run is resumed with another combiner of its losses, in both directions."""
    balanced, model = adversarial(codec), Answer()
    balanced.backward(balanced(model, batch, crop(0, 30)), 1.0, measure=False)
    plain = objective(codec, *components_for(codec, loss_weight_mel=1))
    plain.load_state_dict(balanced.state_dict())
    assert not plain.state_dict()
    again = adversarial(codec)
    again.load_state_dict(plain.state_dict())
    assert isinstance(again.combiner, losses.LossBalancer)
    assert all(average.steps == 0 for average in again.combiner.averages.values())
