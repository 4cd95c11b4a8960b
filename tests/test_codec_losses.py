"""Which losses can be computed on a codec's audio, and why the others cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import losses
from encore.codecs import Codec, load_codec
from encore.codecs.losses import build_losses
from encore.config.schema import ObjectiveConfig
from tests.conftest import melody


@pytest.fixture(scope="module")
def starter() -> Codec:
    return load_codec("starter")


def audio(samples: int, channels: int = 1) -> torch.Tensor:
    return torch.from_numpy(melody(1, 0)[:samples]).expand(1, channels, -1)


def test_losses_come_in_the_registrys_order_and_are_those_of_the_registry(starter: Codec) -> None:
    built, problems = build_losses(["mel", "rms", "spectral"], ObjectiveConfig(), starter, audio(24000))
    assert list(built) == [name for name in losses.REGISTRY if name in ("mel", "rms", "spectral")] and not problems
    for name, loss in built.items():
        expected = losses.create(name, starter.sample_rate, reduction="none")(audio(24000), 0.5 * audio(24000))
        assert torch.equal(loss(audio(24000), 0.5 * audio(24000)), expected) and expected.shape == (1,)


def test_a_loss_that_cannot_be_computed_is_named_with_the_reason(starter: Codec) -> None:
    built, problems = build_losses(
        ["rms", "spectral", "sum_and_difference_stft"], ObjectiveConfig(), starter, audio(600)
    )
    assert list(built) == ["rms"]
    assert "samples" in problems["spectral"] and "stereo" in problems["sum_and_difference_stft"]
    stereo, _ = build_losses(["sum_and_difference_stft"], ObjectiveConfig(), starter, audio(24000, channels=2))
    assert list(stereo) == ["sum_and_difference_stft"]


def test_the_embedding_loss_gets_the_codecs_encoder_or_the_models_weights(starter: Codec) -> None:
    built, _ = build_losses(["embedding"], ObjectiveConfig(embedding_layers="last"), starter, audio(24000))
    expected = losses.create("embedding", 24000, reduction="none", encoder=starter.feature_encoder(), layers="last")
    assert torch.equal(built["embedding"](audio(24000), -audio(24000)), expected(audio(24000), -audio(24000)))
    missing = ObjectiveConfig(embedding_model="panns", embedding_weights=Path("nowhere.pth"))
    _, problems = build_losses(["embedding"], missing, starter, audio(24000))
    assert "panns" in problems["embedding"]  # the package is missing, or else the file
