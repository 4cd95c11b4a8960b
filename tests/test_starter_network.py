"""The starter codec's networks before training: exact coefficients, texture of the right level, silence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from encore.codecs.starter.initialisation import block_basis, dct_basis, initialise
from encore.codecs.starter.network import BLOCK, PARTS, Architecture, StarterDecoder, StarterEncoder, interpolation
from encore.codecs.starter.trainer import below
from encore.errors import EncoreError
from losses import functional

RATE = 24000
SMALL = Architecture(width=16, layers=2)


@torch.no_grad()
def reconstruct(encoder: nn.Module, decoder: nn.Module, audio: Tensor) -> Tensor:
    decoded: Tensor = decoder(encoder(audio[None]))[0, :, : audio.shape[-1]]
    return decoded


def si_sdr(prediction: Tensor, target: Tensor) -> float:
    """In dB, of `[C, N]`."""
    return -float(functional.si_sdr(prediction[None], target[None], zero_mean=False))


def notes(seconds: float) -> Tensor:
    """Three steady notes with overtones up to 2.4 kHz, `[1, N]`."""
    t = torch.arange(int(seconds * RATE)) / RATE
    tone = sum(torch.sin(2 * math.pi * f * k * t + f * k) / k for f in (110.0, 165.0, 220.0) for k in range(1, 12))
    assert isinstance(tone, Tensor)
    return (0.1 * tone)[None]


def bright(seconds: float = 4.0) -> Tensor:
    """Noise whose spectrum falls with the frequency, in a beat twice a second, `[1, N]`."""
    noise = torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(0))
    spectrum = torch.fft.rfft(noise)
    tilted = torch.fft.irfft(spectrum / (1 + torch.arange(len(spectrum)) / seconds / 500), n=len(noise))
    return (tilted * torch.exp(-4 * (torch.arange(len(noise)) / RATE % 0.5)))[None]


def started(audio: Tensor, architecture: Architecture = SMALL) -> tuple[StarterEncoder, StarterDecoder]:
    torch.manual_seed(0)
    encoder, decoder = StarterEncoder(architecture), StarterDecoder(architecture)
    initialise(encoder, decoder, [audio])
    return encoder, decoder


def test_the_dct_is_orthonormal_and_ordered() -> None:
    basis = dct_basis(BLOCK, BLOCK)
    assert torch.allclose(basis @ basis.T, torch.eye(BLOCK, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(basis[0], torch.full((BLOCK,), BLOCK**-0.5, dtype=torch.float64))


def test_the_basis_is_orthonormal_and_better_than_the_dct_for_dull_music() -> None:
    audio = notes(4.0)
    basis = block_basis([audio, bright()], 120)
    assert torch.allclose(basis @ basis.T, torch.eye(BLOCK), atol=1e-5)
    blocks = audio.view(-1, BLOCK)
    kept = [(blocks @ rows.T @ rows).view(1, -1) for rows in (basis[:120], dct_basis(BLOCK, 120).float())]
    assert si_sdr(kept[0], audio) > si_sdr(kept[1], audio) + 5


@pytest.mark.parametrize("half", [False, True])
def test_without_texture_the_start_is_the_linear_transform(half: bool) -> None:
    audio = bright()
    encoder, decoder = started(audio)
    with torch.no_grad():
        decoder.carrier.weight.zero_()
        if half:
            for parameter in [*encoder.parameters(), *decoder.parameters()]:
                parameter.data = parameter.data.half().float()
    rows = block_basis([audio], 120)[:120]
    wanted = (audio.view(-1, BLOCK) @ rows.T @ rows).view(1, -1)
    assert si_sdr(reconstruct(encoder, decoder, audio), wanted) > 60


def test_latents_have_unit_deviation_over_the_music_of_the_start() -> None:
    audio = bright()
    encoder, decoder = started(audio)
    latents = encoder(audio[None])[0]
    assert latents.shape == (128, 300)
    assert torch.allclose(latents[:120].square().mean(1), torch.ones(120), atol=1e-3)
    assert torch.allclose(latents[120:].std(1), torch.ones(8), atol=1e-3)
    assert torch.allclose(latents[120:].mean(1), torch.zeros(8), atol=1e-3)
    # The decoder's components are the inverse of the encoder's.
    assert torch.allclose(encoder.components @ decoder.components, torch.eye(8), atol=1e-4)


def test_powers_are_those_of_white_noise_in_every_band_and_part() -> None:
    encoder = StarterEncoder(SMALL)
    noise = 0.1 * torch.randn(1, 1, 20 * RATE, generator=torch.Generator().manual_seed(1))
    powers = encoder.powers(noise).exp().mean((0, 2))
    assert powers.shape == (SMALL.bands + PARTS,)
    assert torch.allclose(powers, torch.full_like(powers, 0.01), rtol=0.1)


def test_a_burst_shows_in_its_own_part_of_its_own_block() -> None:
    audio = torch.zeros(1, 1, 10 * BLOCK)
    audio[..., 4 * BLOCK + 160 : 4 * BLOCK + 240] = torch.randn(80, generator=torch.Generator().manual_seed(1))
    powers = StarterEncoder(SMALL).powers(audio)[0, -PARTS:]
    assert divmod(int(powers.T.argmax()), PARTS)[0] == 4
    assert (powers[:, :4] == powers[0, 0]).all()  # causal: nothing before it


def test_texture_restores_the_level_above_the_coefficients() -> None:
    """Within 3 dB (it begins 2 dB too low, see TEXTURE_GAIN); without texture hardly anything is left there."""
    audio = bright(60.0)  # fewer blocks than samples per block would all be described exactly
    encoder, decoder = started(audio)
    textured = band_levels(encoder, reconstruct(encoder, decoder, audio))
    with torch.no_grad():
        decoder.carrier.weight.zero_()
    bare = band_levels(encoder, reconstruct(encoder, decoder, audio))
    wanted = band_levels(encoder, audio)
    assert (textured - wanted).abs().max() < 3
    assert (bare - wanted)[4:].max() < -10


def band_levels(encoder: StarterEncoder, audio: Tensor) -> Tensor:
    """Mean power of each band, dB."""
    return 10 * encoder.powers(audio[None])[0, :-PARTS].exp().mean(1).log10()


def test_music_at_another_level_is_decoded_alike() -> None:
    audio = bright()
    encoder, decoder = started(audio)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    loud, quiet = (reconstruct(encoder, decoder, gain * audio) for gain in (1.0, 0.1))
    assert si_sdr(quiet, 0.1 * loud) > 15


def test_silence_stays_silent() -> None:
    encoder, decoder = started(bright())
    assert reconstruct(encoder, decoder, torch.zeros(1, RATE)).abs().max() < 1e-3


def test_gradient_steps_leave_the_coefficients_alone() -> None:
    """Whatever the weights that are trained: what lies in the band of the coefficients hardly changes."""
    audio = bright()
    encoder, decoder = started(audio)
    rows = encoder.basis[:, 0]
    before = audio.view(-1, BLOCK) @ rows.T
    with torch.no_grad():
        decoder.carrier.weight.zero_()  # texture leaks into the band
        trained = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter is not decoder.carrier.weight:
                parameter.add_(0.05 * torch.randn_like(parameter))
    made = reconstruct(encoder, decoder, audio)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert torch.allclose(made.view(-1, BLOCK) @ rows.T, before, atol=1e-4)
    assert (made - (before @ rows).view(1, -1)).abs().max() > 1e-3


def test_frequencies_below_a_cut_off() -> None:
    t = torch.arange(RATE).double() / RATE
    low, high = torch.sin(2 * math.pi * 400 * t), torch.sin(2 * math.pi * 6000 * t)
    assert torch.allclose(below(low + high, 4800 / RATE), low, atol=1e-9)


def test_interpolation_is_linear_and_constant_beyond() -> None:
    weights = interpolation(torch.tensor([0.0, 1.0, 1.5, 3.0, 9.0]), torch.tensor([1.0, 2.0, 4.0]))
    assert (weights @ torch.tensor([10.0, 20.0, 40.0])).tolist() == pytest.approx([10, 10, 15, 30, 40])


def test_silent_music_is_refused() -> None:
    with pytest.raises(EncoreError, match="all training files are silent"):
        block_basis([torch.zeros(1, 5 * RATE), 1e-5 * torch.ones(1, RATE)], 120)
