"""The energy distance: its value, its gradient and its parts, against the formula item by item in double precision."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import losses
from encore.codecs import load_codec
from encore.data.dataset import Batch
from encore.models.generation import GenerationConfig
from encore.models.transformer import ContinuationTransformer
from encore.training.objective import ATTRACTION, REPULSION, Component, Objective
from encore.training.optim import adamw
from encore.training.synthesis import CropPlan, Synthesizer
from tests.conftest import SAMPLE_RATE, melody
from tests.signals import loss_named

ITEMS, BLOCKS, LENGTH = 2, 3, 2400
DISTANCES = ("spectral_energy", "rms", "mel")


class Given:
    """A synthesizer whose samples are given signals, without a model."""

    def __init__(self, audio: Tensor, target: Tensor, source: Tensor):
        self.audio, self.target, self.source = audio, target, source
        self.codec, self.samples = SimpleNamespace(sample_rate=SAMPLE_RATE), 1

    def predict(self, model: nn.Module, batch: Batch, plan: CropPlan) -> Tensor:
        return self.audio

    def references(self, batch: Batch, plan: CropPlan) -> tuple[Tensor, Tensor]:
        return self.target, self.source


def signals(samples: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Audio, target and source in float64, as a `Synthesizer` gives them; the source lacks a boundary of 400."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(ITEMS * samples * BLOCKS, LENGTH), (ITEMS * BLOCKS, LENGTH), (ITEMS * BLOCKS, LENGTH - 400)]
    audio, target, source = (
        0.2 * torch.randn(rows, 1, length, generator=generator).double() for rows, length in shapes
    )
    return audio.requires_grad_(), target, source


def component(name: str, weight: float = 1.0, against_input: bool = False) -> Component:
    distance = losses.REGISTRY[name].distance and not against_input
    title = name + "_input" * against_input
    return Component(title, name, weight, against_input, loss_named(name).double(), distance=distance)


def objective(
    synthesizer: Any,
    *components: Component,
    combiner: losses.WeightedGradient | losses.LossBalancer | None = None,
    adversary: Any = None,
) -> Objective:
    combiner = combiner or losses.WeightedGradient({c.name: c.weight for c in components})
    return Objective(components, synthesizer, combiner, adversary)


def batch_of(items: int) -> Batch:
    nothing = torch.zeros(items, 1, 1)
    return Batch(nothing, nothing, nothing, nothing, torch.arange(items))


def direct(
    name: str, audio: Tensor, target: Tensor, samples: int, repelled: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, attraction and repulsion of every item, a pair of signals at a time."""
    loss = loss_named(name).double()
    rows, beside = audio.unflatten(0, (ITEMS, samples, BLOCKS)), target.unflatten(0, (ITEMS, BLOCKS))

    def d(left: Tensor, right: Tensor) -> Tensor:
        return loss(left[None], right[None])[0]

    attraction, repulsion = [], []
    for item in range(ITEMS):
        near, apart = [], []
        for block in range(BLOCKS):
            for i in range(samples):
                near.append(d(rows[item, i, block], beside[item, block]))
                apart += [d(rows[item, i, block], rows[item, j, block]) for j in range(samples) if j != i]
        attraction.append(torch.stack(near).mean())
        repulsion.append(torch.stack(apart).mean())
    drawn, pushed = torch.stack(attraction), torch.stack(repulsion)
    return drawn - pushed / 2 if repelled else drawn, drawn, pushed


@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.slow
def test_value_parts_and_gradient_are_those_of_the_formula(samples: int) -> None:
    """Several losses at once, which share their spectra, and rows of them."""
    audio, target, source = signals(samples)
    weights = {"spectral_energy": 1.0, "rms": 0.5, "mel": 2.0}
    components = [component(name, weight) for name, weight in weights.items()]
    terms = objective(Given(audio, target, source), *components)
    forward = terms(nn.Identity(), batch_of(ITEMS), CropPlan((0,), 0, 1))
    total = torch.zeros(ITEMS, dtype=torch.float64)
    for name, weight in weights.items():
        value, near, apart = direct(name, audio, target, samples)
        assert torch.allclose(forward.values[name], value, rtol=1e-9)
        assert torch.allclose(forward.parts[name + ATTRACTION], near, rtol=1e-9)
        assert torch.allclose(forward.parts[name + REPULSION], apart, rtol=1e-9)
        total = total + weight * value
    (expected,) = torch.autograd.grad(total.mean(), audio)
    for measure in (True, False):
        audio.grad = None
        for scale in (0.25, 0.75):  # as two batches of an optimiser step
            terms.backward(terms(nn.Identity(), batch_of(ITEMS), CropPlan((0,), 0, 1)), scale, measure)
        assert audio.grad is not None
        assert (audio.grad - expected).norm() <= 1e-9 * expected.norm()


def test_losses_that_are_no_distances_have_no_repulsion() -> None:
    samples = 3
    audio, target, source = signals(samples)
    components = [component("spectral"), component("waveform_mse"), component("rms", against_input=True)]
    forward = objective(Given(audio, target, source), *components)(nn.Identity(), batch_of(ITEMS), CropPlan((0,), 0, 1))
    assert not forward.parts
    for name in ("spectral", "waveform_mse"):
        expected, _, _ = direct(name, audio, target, samples, repelled=False)
        assert torch.allclose(forward.values[name], expected, rtol=1e-9)
    beside = torch.cat([torch.zeros(ITEMS * BLOCKS, 1, 400).double(), source], -1)
    mask = torch.cat([torch.zeros(400), torch.ones(LENGTH - 400)]).double()  # the boundary takes no part
    expected, _, _ = direct("rms", audio * mask, beside, samples, repelled=False)
    assert torch.allclose(forward.values["rms_input"], expected * (LENGTH / (LENGTH - 400)) ** 0.5, rtol=1e-9)


def test_measures_of_whole_continuations_are_the_same_formula_with_all_their_parts() -> None:
    samples = 3
    audio, target, source = signals(samples)
    audio, target = audio.detach()[::1][: ITEMS * samples], target[:ITEMS]
    batch = Batch(target, target, target, target, torch.arange(ITEMS))
    components = [component("rms", 0.0), component("mel"), component("spectral"), component("rms", 0, True)]
    values = objective(Given(audio, target, source), *components).measure(audio, batch)
    assert values.keys() == {
        "rms", "rms_attraction", "rms_repulsion", "mel", "mel_attraction", "mel_repulsion", "spectral", "rms_input",
    }  # fmt: skip
    loss, rows = loss_named("rms"), audio.unflatten(0, (ITEMS, samples))
    for item in range(ITEMS):
        near = [loss(rows[item, i][None], target[item][None]) for i in range(samples)]
        apart = [loss(rows[item, i][None], rows[item, j][None]) for i, j in ((0, 1), (0, 2), (1, 2))]
        expected = sum(near) / 3 - sum(apart) / 6
        assert values["rms"][item].item() == pytest.approx(expected.item(), rel=1e-9)
    assert torch.equal(values["rms_input"], values["rms_attraction"])
    one = objective(Given(audio, target, source), *components).measure(audio[::samples], batch)
    assert one.keys() == {"rms", "mel", "spectral", "rms_input"}  # a single sample: the plain losses
    assert one["rms"][0].item() == pytest.approx(loss(audio[:1], target[:1]).item(), rel=1e-9)


def test_samples_like_the_targets_score_best() -> None:
    """The mean over targets of a two-valued truth: spread like it is better than its mean, or either of its values."""
    generator = torch.Generator().manual_seed(0)
    left, right = (0.2 * torch.randn(1, 1, LENGTH, generator=generator).double() for _ in range(2))
    middle, scores = (left + right) / 2, {}
    targets = torch.cat([left, right])
    batch = Batch(targets, targets, targets, targets, torch.arange(2))
    for name, pairs in {
        "truth": [(left, left), (left, right), (right, left), (right, right)],
        "mean": [(middle, middle)],
        "one": [(left, left)],
        "always different": [(left, right)],
    }.items():
        values = [
            objective(Given(targets, targets, targets), component("rms")).measure(torch.cat([*pair, *pair]), batch)
            for pair in pairs
        ]
        scores[name] = torch.stack([value["rms"].mean() for value in values]).mean().item()
    assert scores["always different"] < scores["truth"]  # such pairs are no independent draws
    del scores["always different"]
    assert min(scores, key=scores.__getitem__) == "truth"


def test_the_balancers_shares_are_the_weights_of_whole_components() -> None:
    audio, target, source = signals(2)
    components = [component("rms", 1), component("mel", 3), component("spectral", 4)]
    balancer = losses.LossBalancer({c.name: c.weight for c in components})
    terms = objective(Given(audio, target, source), *components, combiner=balancer)
    step = terms.backward(terms(nn.Identity(), batch_of(ITEMS), CropPlan((0,), 0, 1)), 1.0, measure=False)
    assert step.shares == pytest.approx({"rms": 0.125, "mel": 0.375, "spectral": 0.5}) and step.finite
    assert step.values.keys() == {
        "rms", "rms_attraction", "rms_repulsion", "mel", "mel_attraction", "mel_repulsion", "spectral",
    }  # fmt: skip
    assert not any(value.requires_grad for value in step.values.values())
    assert audio.grad is not None
    norms = audio.grad.flatten(1).norm(dim=1)
    assert norms.mean() * ITEMS <= 1.0001 and norms.min() > 0  # of the mean over items, of total norm 1


class Broken(nn.Module):
    def forward(self, prediction: Tensor, reference: Tensor) -> Tensor:
        return prediction.flatten(1).mean(1) * torch.nan


@pytest.mark.parametrize("balanced", [True, False])
def test_a_component_that_is_not_finite_costs_the_step_or_is_left_out_with_its_parts(balanced: bool) -> None:
    audio, target, source = signals(2)
    components = [component("rms"), Component("broken", "broken", 1.0, False, Broken(), distance=True)]
    combiner = (losses.LossBalancer if balanced else losses.WeightedGradient)({c.name: c.weight for c in components})
    terms = objective(Given(audio, target, source), *components, combiner=combiner)
    step = terms.backward(terms(nn.Identity(), batch_of(ITEMS), CropPlan((0,), 0, 1)), 1.0, measure=False)
    assert step.finite == balanced and step.left_out == (("broken",) if balanced else ())
    kept = {"rms", "rms_attraction", "rms_repulsion"}
    broken = {name.replace("rms", "broken") for name in kept}
    assert step.values.keys() == (kept if balanced else kept | broken)
    assert audio.grad is not None and bool(audio.grad.isfinite().all()) == balanced


def test_the_adversary_gets_every_sample() -> None:
    samples = 2
    audio, target, source = (signal.detach().float() for signal in signals(samples))
    audio.requires_grad_()
    torch.manual_seed(0)
    adversary = losses.Adversary(losses.discriminator("mpd", SAMPLE_RATE, 1, filters=2), lr=1e-3)
    loss = losses.create("rms", SAMPLE_RATE, reduction="none")
    components = [
        Component("rms", "rms", 1.0, False, loss, distance=True),
        Component("gan", "gan", 1.0, False, None),
        Component("feature_matching", "feature_matching", 1.0, False, None),
    ]
    terms = objective(Given(audio, target, source), *components, adversary=adversary)
    forward = terms(nn.Identity(), batch_of(ITEMS), CropPlan((0,), 0, 1))
    each = torch.arange(ITEMS * BLOCKS).unflatten(0, (ITEMS, 1, BLOCKS)).expand(-1, samples, -1).flatten()
    assert torch.equal(forward.target, target[each])
    given = adversary(audio, target[each])
    for name in ("gan", "feature_matching"):
        assert torch.allclose(forward.values[name], given[name].unflatten(0, (ITEMS, -1)).mean(1), rtol=1e-5)
        assert name + REPULSION not in forward.parts
    before = [weight.clone() for weight in adversary.parameters()]
    step = terms.backward(forward, 1.0, measure=True)
    assert step.values["disc_loss"].shape == (ITEMS,) and step.finite
    assert sum(step.shares.values()) == pytest.approx(1) and all(share > 0 for share in step.shares.values())
    assert torch.allclose(step.total, step.values["rms"])
    terms.end_step(skip=False)
    assert any(not torch.equal(a, b) for a, b in zip(adversary.parameters(), before, strict=True))


@pytest.mark.parametrize("prior", ["replay", "none"])
@pytest.mark.slow
def test_the_first_step_moves(prior: str) -> None:
    """Also from an output layer of zeros: all weights that matter then get a gradient, and the output changes."""
    codec = load_codec("starter")
    source, target = (torch.stack([torch.from_numpy(melody(1, s))[None] for s in seeds]) for seeds in ((0, 1), (2, 3)))
    batch = Batch(codec.encode(source), source, target, codec.encode(target), torch.arange(2))
    torch.manual_seed(0)
    model = ContinuationTransformer(128, 16, 2, 2, 0.0, window=75, start_at_prior=prior != "none")
    latents = batch.context.transpose(0, 1).flatten(1)
    model.set_statistics(latents.std(1))
    synthesizer = Synthesizer(codec, GenerationConfig(30, True, prior), samples=2, margin=8, crop_frames=30)
    terms = objective(
        synthesizer,
        Component("e", "e", 1.0, False, losses.create("spectral_energy", 24000, reduction="none"), distance=True),
    )
    optimizer, before = adamw(model, 1e-3, 0.01), synthesizer.sample(model, batch)
    for step in range(2):
        forward = terms(model, batch, CropPlan((30,), 0, 30))
        terms.backward(forward, 1.0, measure=False)
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        # A gain and a scale of zero give nothing back to the layers before them, until they have moved; without a
        # prior there are no gains.
        gain = {"gains.shares", "gains.spread.weight", "gains.spread.bias"}
        expected = {*gradients} if prior == "none" else {*gradients} if step else {*gain, "scale"}
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
        moving = {name for name, gradient in gradients.items() if gradient is not None and gradient.any()}
        assert moving >= expected
        optimizer.step()
        optimizer.zero_grad()
        after = synthesizer.sample(model, batch)
        assert (after - before).norm() > 1e-4 * before.norm()
        before = after
