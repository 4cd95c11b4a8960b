"""Levels of audio in bands, and gains that change them."""

from __future__ import annotations

import math

import pytest
import torch

from encore.codecs import Codec, load_codec
from encore.codecs.bands import BANDS, FLOOR, band_powers, band_weights, equalize
from encore.codecs.base import join
from encore.models.band_levels import BandLevels

RATE, HOP = 24000, 320


@pytest.fixture(scope="module")
def starter() -> Codec:
    return load_codec("starter")


def sine(frequency: float, frames: int) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * frequency / RATE * torch.arange(frames * HOP))[None, None]


def centres() -> torch.Tensor:
    return torch.sinh(torch.linspace(0, math.asinh(RATE / 2000), BANDS)) * 1000


def test_the_bands_share_every_frequency() -> None:
    weights = band_weights(RATE, HOP + 1)
    assert torch.allclose(weights.sum(0), torch.ones(HOP + 1), atol=1e-5)
    assert (weights.argmax(1).float() * RATE / 2 / HOP - centres()).abs().max() <= RATE / 4 / HOP + 1


@pytest.mark.parametrize("hop", [160, 320, 1024])
def test_powers_add_up_to_the_mean_square(hop: int) -> None:
    audio = 0.1 * torch.randn(2, 2, 40 * hop, generator=torch.Generator().manual_seed(0))
    powers = band_powers(audio, RATE, hop)
    assert powers.shape == (2, BANDS, 40)
    assert torch.allclose(powers[..., 1:-1].mean(-1).sum(1), torch.full((2,), 0.01), rtol=0.1)
    assert torch.equal(band_powers(torch.zeros(1, 1, 2 * hop), RATE, hop), torch.full((1, BANDS, 2), FLOOR))


@pytest.mark.parametrize("band", [3, 9, 13])
def test_a_gain_changes_its_band_alone(band: int) -> None:
    gains = torch.zeros(1, BANDS, 30)
    gains[:, band] = 0.7
    for other in (band - 2, band, band + 2):
        audio = sine(float(centres()[other]), 30)
        changed = equalize(audio, gains, RATE, HOP)
        ratio = float(changed[..., HOP:-HOP].norm() / audio[..., HOP:-HOP].norm())
        assert math.log(ratio) == pytest.approx(0.7 if other == band else 0.0, abs=0.08)
        measured = 0.5 * (band_powers(changed, RATE, HOP) / band_powers(audio, RATE, HOP))[:, other, 2:-2].log()
        assert (measured - math.log(ratio)).abs().max() < 0.02


def test_gains_follow_time_without_clicks_and_zeros_change_nothing() -> None:
    audio = sine(440, 30)
    gains = torch.zeros(1, BANDS, 30)
    assert (equalize(audio, gains, RATE, HOP) - audio).abs().max() < 1e-6
    gains[..., 15:] = -1.0
    changed = equalize(audio, gains, RATE, HOP)
    assert torch.allclose(changed[..., : 13 * HOP], audio[..., : 13 * HOP], atol=1e-6)
    assert torch.allclose(changed[..., 17 * HOP : -HOP], audio[..., 17 * HOP : -HOP] * math.exp(-1), atol=1e-3)
    assert changed.diff().abs().max() <= 1.05 * audio.diff().abs().max()


def test_a_codec_renders_latents_with_gains(starter: Codec) -> None:
    latents = torch.randn(2, starter.latent_dim, 30)
    gains = torch.full((2, BANDS, 30), 0.5)
    plain, raised = starter.decode(latents), starter.render(torch.cat([latents, gains], 1))
    assert torch.allclose(raised[..., :-HOP], plain[..., :-HOP] * math.exp(0.5), atol=1e-5 * float(raised.abs().max()))
    assert torch.equal(starter.render(torch.cat([latents, 0 * gains], 1)), plain)
    assert torch.equal(starter.render(latents), plain)


def test_what_fades_in_before_a_block_has_its_first_gains() -> None:
    before, after = torch.randn(2, 5, 10), torch.randn(2, 5 + BANDS, 4)
    joined = join(before, after, 3)
    assert torch.equal(joined[:, :5], torch.cat([before, after[:, :5]], -1))
    begun = torch.tensor([0.0] * 7 + [1.0] * 3)
    assert torch.equal(joined[:, 5:], torch.cat([after[:, 5:, :1] * begun, after[:, 5:]], -1))
    assert torch.equal(join(after, after), torch.cat([after, after], -1))


def test_a_mismatch_is_what_an_excerpt_has_to_be_raised_by() -> None:
    """A context whose second half is 6 dB louder: an excerpt from before is too quiet by that."""
    powers = torch.ones(2, BANDS, 40)
    powers[..., 20:] *= 4
    powers[1, 3] *= 9
    levels = BandLevels(powers, frame_rate=8.0)  # 2 and 8 frames are compared
    taken = torch.tensor([[10, 11], [30, 31]])
    features = levels.features(powers, taken, True)
    assert torch.allclose(features[0, :, :2], torch.full((BANDS, 2), math.log(2)), atol=1e-6)
    assert torch.allclose(features[1, :, :2], torch.zeros(BANDS, 2), atol=1e-6)
    seconds = 0.5 * torch.tensor([1.0, 1.0, 2.5, 4.0, 4.0]).log()
    assert torch.allclose(features[..., 2], seconds.std(correction=0).expand(2, BANDS), atol=1e-6)
    assert (features[..., 3] == 1).all() and (levels.features(powers, taken, False)[..., 3] == 0).all()
    # nothing precedes the beginning of the context; a prior may not say what it took
    assert (levels.features(powers, torch.zeros(2, 2).long(), True)[..., :2] == 0).all()
    assert (levels.features(powers, None, True)[..., :2] == 0).all()
    shared = levels.features(powers[:1], torch.tensor([[10], [30]]), True)  # both rows have one past
    assert torch.allclose(shared[1, 0, :2], torch.zeros(2), atol=1e-6)
