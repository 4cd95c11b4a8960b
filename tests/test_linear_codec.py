"""The linear codec is a block DCT, also in half precision, and silent on silence."""

import math

import pytest
import torch
from torch import Tensor, nn

from encore.codecs.starter.dct_init import coefficient_deviations, dct_basis, initialise_linear_path
from encore.codecs.starter.texture_init import band_edges, initialise_texture
from encore.codecs.starter.weights import Architecture
from encore.errors import EncoreError
from losses import functional

BLOCK, RATE = 320, 24000


@torch.no_grad()
def reconstruct(encoder: nn.Module, decoder: nn.Module, audio: Tensor) -> Tensor:
    return decoder(encoder(audio[None]))[0, :, : audio.shape[-1]]


def si_sdr(prediction: Tensor, target: Tensor) -> Tensor:
    """In dB, of `[C, N]`."""
    return -functional.si_sdr(prediction[None], target[None], zero_mean=False)


def music(seconds: float = 1.0) -> Tensor:
    """Decaying notes with overtones up to 3 kHz, `[1, N]`."""
    t = torch.arange(int(seconds * RATE)) / RATE
    notes = [f * k for f in (110.0, 165.0, 220.0) for k in range(1, 12)]
    tone = sum(torch.sin(2 * math.pi * f * t + f) * 30 / f for f in notes)
    assert isinstance(tone, Tensor)
    return (0.1 * tone * torch.exp(-3 * (t % 0.25)))[None]


def linear_codec(coefficients: int, dimension: int = 128, n_filters: int = 8) -> tuple:
    torch.manual_seed(0)
    encoder, decoder = Architecture(n_filters=n_filters, dimension=dimension).build()
    deviations = coefficient_deviations(music()[0], BLOCK, coefficients)
    return encoder, decoder, initialise_linear_path(encoder, decoder, deviations)


def truncated_dct(audio: Tensor, count: int) -> Tensor:
    basis = dct_basis(BLOCK, count).float()
    return (audio.view(-1, BLOCK) @ basis.T @ basis).view(1, -1)


def test_basis_is_orthonormal_and_ordered() -> None:
    basis = dct_basis(BLOCK, BLOCK)
    assert torch.allclose(basis @ basis.T, torch.eye(BLOCK, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(basis[0], torch.full((BLOCK,), BLOCK**-0.5, dtype=torch.float64))


@pytest.mark.parametrize("half", [False, True])
def test_codec_is_the_truncated_dct(half: bool) -> None:
    encoder, decoder, _ = linear_codec(100)
    if half:
        for parameter in [*encoder.parameters(), *decoder.parameters()]:
            parameter.data = parameter.data.half().float()
    audio = music()
    wanted = truncated_dct(audio, 100)
    error = reconstruct(encoder, decoder, audio) - wanted
    assert 20 * torch.log10(error.norm() / wanted.norm()) < -60


def test_latents_are_normalised_coefficients() -> None:
    encoder, _, _ = linear_codec(100)
    audio = music()
    coefficients = audio.view(-1, BLOCK) @ dct_basis(BLOCK, 100).float().T
    deviations = coefficient_deviations(audio[0], BLOCK, 100).clamp(min=1e-3)
    with torch.no_grad():
        latents = encoder(audio[None])[0, :100].T
    # Deviations are rounded to 9 significant bits; where they are at their floor, half precision has an effect.
    assert torch.allclose(latents, coefficients / deviations, rtol=3e-3, atol=0.05)


def test_silence_stays_silent() -> None:
    encoder, decoder, _ = linear_codec(100)
    assert reconstruct(encoder, decoder, torch.zeros(1, RATE)).abs().max() < 1e-4


def test_gradient_steps_leave_the_path_alone() -> None:
    """Every element that is not constant is changed at random, except in the last convolutions."""
    encoder, decoder, rates = linear_codec(100)
    parameters = {f"encoder.{n}": p for n, p in encoder.named_parameters()}
    parameters |= {f"decoder.{n}": p for n, p in decoder.named_parameters()}
    assert set(rates) <= set(parameters)
    moved = 0.0
    for name, parameter in parameters.items():
        step = 0.05 * torch.randn_like(parameter)
        if name in rates:
            step = step * rates[name]
        if name.startswith("decoder") and parameter is decoder.model[-1].conv.conv.weight:
            step = 0 * step
        if parameter is encoder.model[-1].conv.conv.weight or parameter is encoder.model[-1].conv.conv.bias:
            step = 0 * step  # only the path's 100 latents are read
        parameter.data += step
        moved += float(step.abs().sum())
    assert moved > 1000
    audio = music()
    assert si_sdr(reconstruct(encoder, decoder, audio), truncated_dct(audio, 100)) > 50


def test_texture_restores_the_level_above_the_path() -> None:
    """With 28 coefficients (1 kHz) and 4 bands, the bands of noise return within 4 dB; without texture they do not."""
    generator = torch.Generator().manual_seed(1)
    noise = 0.1 * torch.randn(1, 4 * RATE, generator=generator)
    torch.manual_seed(0)
    encoder, decoder = Architecture(n_filters=8, dimension=32).build()
    rates = initialise_linear_path(encoder, decoder, coefficient_deviations(noise[0], BLOCK, 28))
    bare = band_levels(reconstruct(encoder, decoder, noise), 28, 4)
    initialise_texture(encoder, decoder, 28, noise[0], rates, seed=0)
    textured = band_levels(reconstruct(encoder, decoder, noise), 28, 4)
    wanted = band_levels(noise, 28, 4)
    assert (textured - wanted).abs().max() < 4
    assert (bare - wanted).max() < -10
    with torch.no_grad():
        free = encoder(noise[None])[0, 28:]
    assert torch.allclose(free.std(1), torch.ones(4), atol=0.1)
    assert reconstruct(encoder, decoder, torch.zeros(1, RATE)).abs().max() < 1e-3


def band_levels(audio: Tensor, count: int, bands: int) -> Tensor:
    """Energy in dB of each of the texture's bands."""
    power = torch.fft.rfft(audio[0]).abs().square()
    edges = [round(e * len(power) / BLOCK) for e in band_edges(BLOCK, count, bands)]
    return torch.stack([10 * power[low:high].sum().log10() for low, high in zip(edges, edges[1:], strict=False)])


@pytest.mark.parametrize(
    ("n_filters", "coefficients", "message"),
    [(4, 20, "4 filters are too few for 20"), (8, 127, "8 filters are too few for 127")],
)
def test_too_narrow_a_network_is_an_error(n_filters: int, coefficients: int, message: str) -> None:
    with pytest.raises(EncoreError, match=message):
        linear_codec(coefficients, n_filters=n_filters)


def test_too_narrow_for_texture_is_an_error() -> None:
    encoder, decoder, rates = linear_codec(100)
    with pytest.raises(EncoreError, match="28 bands above"):
        initialise_texture(encoder, decoder, 100, music()[0], rates, seed=0)
