"""Features of audio: exact values on signals that have them, and errors that say what to install and to download."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from encore.codecs import load_codec
from encore.data.demo import compose
from encore.errors import EncoreError
from encore.evaluation.metrics.embeddings import (
    WEIGHTS,
    latent_deviation,
    latent_distance,
    latent_patches,
    load_embedding,
    log_mel_patches,
    pooled,
)
from encore.evaluation.metrics.energy_score import energy_score
from losses.embedding.networks import panns_models

RATE = 24000


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rate", [16000, 24000, 44100, 48000])
def test_log_mel_of_a_sine_and_of_silence(rate: int) -> None:
    time = torch.arange(rate) / rate
    patches = log_mel_patches(torch.sin(2 * math.pi * 1000 * time).expand(2, 1, -1), rate)
    assert patches.shape == (2, 2, 640)
    bands = patches[0, 0].reshape(40, 16)
    mel = 2595 * math.log10(1 + 1000 / 700) / (2595 * math.log10(1 + rate / 2 / 700)) * 41 - 1
    assert abs(int(bands[:, 8].argmax()) - mel) <= 1
    # Amplitude ½ at the window's peak, spread over the band's bins: below that, above a tenth of it.
    assert math.log(0.05) < bands.max() < math.log(0.5)
    assert bands.std(1).max() < 0.01  # a sine is the same in every frame
    silence = log_mel_patches(torch.zeros(1, 2, rate), rate)
    assert torch.allclose(silence, torch.tensor(math.log(1e-10) / 2))


def test_log_mel_shifts_with_the_level_and_depends_only_on_its_own_half_second() -> None:
    audio = 0.1 * noise(0, 2, 2, 2 * RATE + 777)
    patches = log_mel_patches(audio, RATE)
    assert patches.shape == (2, 4, 640)
    assert torch.allclose(log_mel_patches(audio * 10**0.5, RATE), patches + math.log(10) / 2, atol=1e-4)
    changed = audio.clone()
    changed[..., RATE // 2 : RATE] = 0
    same = torch.isclose(log_mel_patches(changed, RATE), patches).all(-1).all(0)
    assert same.tolist() == [True, False, True, True]
    swapped = torch.isclose(log_mel_patches(audio.flip(1), RATE), patches, atol=1e-5)
    assert swapped.all()  # the channels' order does not matter
    finer = log_mel_patches(audio, RATE, hop_seconds=0.25)
    assert finer.shape == (2, 7, 640) and torch.allclose(finer[:, ::2], patches, atol=1e-5)
    bands = patches[1, 2].reshape(40, 16).numpy()
    assert pooled(patches)[1, 2].numpy() == pytest.approx(np.concatenate([bands.mean(1), bands.std(1)]), rel=1e-4)
    with pytest.raises(ValueError, match="shorter"):
        log_mel_patches(audio[..., : RATE // 2 - 1], RATE)


def test_latent_distance_and_patches_equal_a_reference() -> None:
    latents, other = noise(0, 3, 5, 80) * torch.arange(1, 6)[:, None], noise(1, 3, 5, 80)
    deviation = latent_deviation(latents)
    assert deviation.numpy() == pytest.approx(latents.transpose(0, 1).flatten(1).numpy().std(1), rel=1e-5)
    difference = ((latents - other) / deviation[:, None]).double().numpy()
    expected = np.sqrt((difference**2).mean(1)).mean(1)
    assert latent_distance(latents, other, deviation).numpy() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(latent_distance(latents, other, deviation), latent_distance(other, latents, deviation))
    # An un-squared norm: twice the difference, twice the distance.
    assert torch.allclose(latent_distance(2 * latents, 2 * other, deviation) / 2, torch.tensor(expected).float())
    patches = latent_patches(latents, 75.0, deviation)
    assert patches.shape == (3, 2, 10)
    second = (latents / deviation[:, None])[:, :, 37:74].numpy()
    assert patches[:, 1].numpy() == pytest.approx(np.concatenate([second.mean(2), second.std(2)], 1), rel=1e-4)
    finer = latent_patches(latents, 75.0, deviation, hop_seconds=0.125)
    assert finer.shape == (3, 5, 10) and torch.equal(finer[:, 0], patches[:, 0])
    with pytest.raises(ValueError, match="shorter"):
        latent_patches(latents[..., :36], 75.0, deviation)


def test_a_dead_latent_channel_can_be_divided_by() -> None:
    latents = noise(0, 2, 3, 50)
    latents[:, 1] = 7
    deviation = latent_deviation(latents)
    assert deviation[1] == pytest.approx(1e-3 * latent_deviation(latents).mean().item(), rel=1e-2)
    with pytest.raises(ValueError, match="vary"):
        latent_deviation(torch.ones(2, 3, 4))


@pytest.mark.slow
def test_codec_distance_grows_with_damage_and_serves_an_energy_score() -> None:
    codec = load_codec("starter")
    songs = [compose(1, np.random.default_rng([3, i])) for i in range(4)]
    audio = torch.from_numpy(np.stack(songs)).float()[:, None]
    truth = codec.encode(audio)
    deviation = latent_deviation(truth)
    hiss = noise(0, *audio.shape)
    damaged = [codec.encode(audio + level * hiss) for level in (0, 0.01, 0.05, 0.2)]
    distances = [latent_distance(latents, truth, deviation).mean().item() for latents in damaged]
    assert distances[0] == 0 and distances == sorted(distances) and distances[3] > 3 * distances[1]
    score = energy_score(lambda p, t: latent_distance(p, t, deviation), torch.stack(damaged[1:], 1), truth)
    assert score.score.shape == (4,) and (score.score < score.attraction).all()


def test_missing_weights_and_packages_are_named(tmp_path: Path) -> None:
    with pytest.raises(EncoreError, match="--embedding vggish: no such embedding; use panns or clap"):
        load_embedding("vggish")
    for name, package, module in (
        ("panns", "panns-inference", "panns_inference"),
        ("clap", "laion-clap", "laion_clap"),
    ):
        missing = tmp_path / "missing.pt"
        with pytest.raises(
            EncoreError, match=f"--embedding {name}: no weights at .*missing.pt; get .*{WEIGHTS[name][0]}"
        ):
            load_embedding(name, missing)
        wrong = tmp_path / "wrong.pt"
        torch.save({"model": {"weight": torch.zeros(1)}}, wrong)
        installed = importlib.util.find_spec(module) is not None
        expected = f"does not hold the weights of {WEIGHTS[name][0]}" if installed else f"needs the package {package}"
        if name == "panns" or not installed:  # laion-clap asks the network for its tokenizer
            with pytest.raises(EncoreError, match=expected):
                load_embedding(name, wrong)


def test_panns_embeds_every_second(tmp_path: Path) -> None:
    """With random weights: the test is about the shapes and the windows of the audio."""
    if importlib.util.find_spec("panns_inference") is None:
        pytest.skip("panns-inference is not installed")
    network = panns_models().Cnn14(32000, 1024, 320, 64, 50, 14000, 527)
    torch.save({"model": network.state_dict()}, tmp_path / "cnn14.pth")
    embedding = load_embedding("panns", tmp_path / "cnn14.pth")
    audio = 0.1 * noise(0, 2, 2, int(2.5 * RATE))
    found = embedding(audio, RATE)
    assert found.shape == (2, 2, 2048) and found.isfinite().all()
    assert torch.allclose(embedding(audio[1:, :, :RATE], RATE)[0, 0], found[1, 0], rtol=0.1, atol=1e-3)
