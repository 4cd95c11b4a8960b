"""The objective: what is compared with what, and what a weight of zero costs."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

import losses
from encore.codec import FrozenCodec, load_codec
from encore.config import TrainConfig
from encore.objective import Component, Crop, Regression
from encore.pairs import Batch
from tests.conftest import melody
from train_worker import components_of


class Counted(nn.Module):
    """A loss that notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, prediction: Tensor, reference: Tensor) -> Tensor:
        self.calls.append((prediction, reference))
        return (prediction - reference).abs().flatten(1).mean(1)


@pytest.fixture(scope="module")
def codec() -> FrozenCodec:
    return load_codec("starter")


@pytest.fixture(scope="module")
def batch(codec: FrozenCodec) -> Batch:
    source, target = (torch.stack([torch.from_numpy(melody(2, s))[None] for s in seeds]) for seeds in ((0, 1), (2, 3)))
    return Batch(codec.encode(source), source, target, codec.encode(target))


def objective(codec: FrozenCodec, *components: Component, margin: int = 64) -> Regression:
    return Regression(components, codec, margin, losses.shared_spectra, contextlib.nullcontext)


def test_components_are_compared_with_their_references_and_weighted(codec: FrozenCodec, batch: Batch) -> None:
    near, far, off = Counted(), Counted(), Counted()
    terms = objective(
        codec,
        Component("a", "a", 0.5, True, near),
        Component("b", "b", 2.0, False, far),
        Component("c", "c", 0.0, False, off),
    )
    crop = Crop(40, 50)
    values = terms(nn.Identity(), batch, crop)
    assert set(values) == {"a", "b"} and not off.calls  # a weight of 0 costs nothing
    (audio, source), (same, target) = near.calls[0], far.calls[0]
    assert audio is same
    assert torch.equal(source, batch.input_audio[..., 40 * 320 : 90 * 320])
    assert torch.equal(target, batch.target_audio[..., 40 * 320 : 90 * 320])
    whole = codec.decode(batch.context)[..., 40 * 320 : 90 * 320]
    assert 20 * torch.log10((audio - whole).norm() / whole.norm()) < -50
    assert torch.allclose(terms.total(values), 0.5 * values["a"] + 2 * values["b"])
    assert set(terms.measure(batch.target_audio, batch)) == {"a", "b", "c"}


def test_floor_and_copy(codec: FrozenCodec, batch: Batch) -> None:
    terms = objective(codec, *components_of(TrainConfig(), codec.sample_rate))
    floor, copy = terms.floor(batch), terms.measure(batch.input_audio, batch)
    rms = losses.create("rms", codec.sample_rate)
    assert torch.allclose(floor["rms_target"], rms(codec.decode(batch.target_latents), batch.target_audio))
    assert torch.allclose(floor["rms_input"], rms(codec.decode(batch.context), batch.input_audio))
    assert copy["rms_input"].abs().max() == 0
    assert torch.allclose(copy["rms_target"], rms(batch.input_audio, batch.target_audio))
    assert (floor["rms_target"] < 0.3 * copy["rms_target"]).all()


def test_gradients_reach_the_model_through_the_decoder(codec: FrozenCodec, batch: Batch) -> None:
    terms = objective(codec, *components_of(TrainConfig(loss_weight_spectral=1, loss_weight_mel=1), 24000))
    model = nn.Conv1d(128, 128, 1)
    terms.total(terms(model, batch, Crop(0, 60))).mean().backward()
    assert model.weight.grad is not None and model.weight.grad.isfinite().all() and model.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in codec.parameters())
    assert not terms.state_dict()  # the codec's weights are no part of its state
