"""The starter codec: the metrics of its card, and its behaviour as a decoder to train through."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.bench_codec import card_metrics, coefficients_alone
from encore.audio import read_audio
from encore.codecs import Codec, load_codec
from encore.codecs.starter.weights import STARTER_WEIGHTS, StarterCodec
from tests.conftest import ROOT

ASSETS = ROOT / "assets"
RATE = 24000


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec("starter")


@pytest.fixture(scope="module")
def music() -> Tensor:
    return read_audio(ASSETS / "starter_codec_check.flac", RATE, 1)[None]


def rms_db(audio: Tensor) -> float:
    return float(20 * audio.square().mean().sqrt().clamp(min=1e-9).log10())


def test_the_bundled_second_has_the_metrics_of_the_card(codec: Codec, music: Tensor) -> None:
    row = re.search(r"^\| bundled second, trained \|(.*)\|$", (ROOT / "docs" / "starter_codec.md").read_text(), re.M)
    assert row is not None
    published = [float(cell) for cell in row[1].split("|")]
    measured = card_metrics(codec.decode(codec.encode(music))[..., : music.shape[-1]], music, RATE)
    assert list(measured.values()) == pytest.approx(published, rel=0.02, abs=0.05)


def test_training_improved_the_codec(codec: Codec, music: Tensor) -> None:
    """Compared with its coefficients alone it has a spectrum above their band, and hardly a larger waveform error."""
    assert isinstance(codec, StarterCodec)
    alone = coefficients_alone(codec)
    before, after = (
        card_metrics(c.decode(c.encode(music))[..., : music.shape[-1]], music, RATE) for c in (alone, codec)
    )
    assert after["mel 4.5-12 kHz"] < before["mel 4.5-12 kHz"] / 2
    assert after["multi-resolution STFT"] < before["multi-resolution STFT"]
    assert after["SI-SDR (dB)"] > before["SI-SDR (dB)"] - 3.5


def test_weights_are_half_precision_and_small() -> None:
    assert STARTER_WEIGHTS.stat().st_size < 16e6
    with safe_open(STARTER_WEIGHTS, framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118 (not a dict)


def test_silence_decodes_to_silence(codec: Codec) -> None:
    assert codec.decode(codec.encode(torch.zeros(1, 1, RATE))).abs().max() < 1e-3  # -60 dBFS


def test_decoder_is_causal(codec: Codec, music: Tensor) -> None:
    latents = codec.encode(music)
    changed = latents.clone()
    changed[..., 40:] = torch.randn(latents[..., 40:].shape, generator=torch.Generator().manual_seed(0))
    before, after = codec.decode(latents), codec.decode(changed)
    assert torch.allclose(before[..., : 40 * 320], after[..., : 40 * 320], atol=1e-5)
    assert (before[..., 40 * 320 :] - after[..., 40 * 320 :]).abs().max() > 0.01


@pytest.mark.slow
def test_error_grows_in_proportion_to_an_error_of_the_latents(codec: Codec, music: Tensor) -> None:
    """Latents with three times the noise have about 9.5 dB more error; large latents do not diverge."""
    latents = codec.encode(music.repeat(1, 1, 4))
    clean = codec.decode(latents)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    levels = [rms_db(codec.decode(latents + scale * noise) - clean) for scale in (0.1, 0.3, 0.9)]
    assert levels[1] - levels[0] == pytest.approx(9.5, abs=2)
    assert levels[2] - levels[1] == pytest.approx(9.5, abs=2)
    assert codec.decode(5 * torch.randn(1, 128, 75, generator=torch.Generator().manual_seed(1))).abs().max() < 15


def test_gradients_reach_the_latents(codec: Codec, music: Tensor) -> None:
    latents = codec.encode(music).requires_grad_()
    (codec.decode(latents) - music[..., : latents.shape[-1] * 320]).square().mean().backward()
    assert latents.grad is not None and torch.isfinite(latents.grad).all()
    assert (latents.grad.square().mean((0, 2)) > 0).all()
