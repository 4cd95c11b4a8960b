"""Level, centroid and texture: exact values, none for the same music, growing with damage, drift of known slope."""

from __future__ import annotations

import math

import librosa
import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor

from encore.data.demo import compose
from encore.errors import EncoreError
from encore.evaluation.metrics.drift import LEAST_HZ, LEAST_TEXTURE, Contours, compare_contours, contours, drift, slope
from encore.evaluation.metrics.log_mel import power_spectrogram

RATE = 24000


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> Tensor:
    return level * torch.randn(1, round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def halves() -> tuple[Tensor, Tensor]:
    """The first and the last four seconds of six pieces of music, `[6, 1, N]` each."""
    pieces = [torch.from_numpy(compose(8, np.random.default_rng([5, index]))).float() for index in range(6)]
    first, last = torch.stack(pieces)[:, None].chunk(2, dim=-1)
    return first, last


@pytest.mark.slow
def test_contours_equal_a_reference_in_float64() -> None:
    audio = torch.cat([noise(2.3), 0.5 * noise(2.3, seed=1)])
    found = contours(audio, RATE)
    assert found.level.shape == found.centroid.shape == found.texture.shape == (2,)
    window = scipy.signal.get_window("hann", 1024)
    filters = librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=40, htk=True, norm=None, dtype=np.float64)
    for second in range(2):
        block = audio[:, second * RATE : (second + 1) * RATE].double().numpy()
        frames = np.lib.stride_tricks.sliding_window_view(block, 1024, axis=-1)[:, ::512]
        power = (np.abs(np.fft.rfft(frames * window * 2 / window.sum())) ** 2).mean(0)
        amplitude = np.sqrt(power).sum(0)
        assert found.level[second] == pytest.approx(10 * np.log10((block**2).mean()), abs=1e-4)
        assert found.centroid[second] == pytest.approx(
            (amplitude @ np.arange(513)) / amplitude.sum() * RATE / 1024, rel=1e-5
        )
        bands = 10 * np.log10(np.maximum(power @ filters.T, 1e-8))
        assert found.texture[second] == pytest.approx(bands.std(0).mean(), rel=1e-4)


def test_a_sine_of_amplitude_one_is_at_zero_decibels() -> None:
    tone = torch.sin(2 * math.pi * 3000 * torch.arange(RATE) / RATE)[None]
    assert power_spectrogram(tone, 1024, 512).amax() == pytest.approx(1, abs=1e-4)
    assert contours(tone, RATE).level.item() == pytest.approx(-3.0103, abs=1e-3)


def test_arrays_and_leading_axes_are_as_one_item_each() -> None:
    audio = torch.stack([noise(2, seed) for seed in range(3)])
    together = contours(audio.numpy(), RATE)
    alone = [contours(item, RATE) for item in audio]
    for name in ("level", "centroid", "texture"):
        torch.testing.assert_close(getattr(together, name), torch.stack([getattr(item, name) for item in alone]))


@pytest.mark.slow
def test_the_same_music_differs_by_nothing_and_damage_by_more_and_more(halves: tuple[Tensor, Tensor]) -> None:
    first, last = halves
    for name, values in compare_contours(first, last, RATE).items():
        assert values.shape == (6,)
        assert abs(values.mean()) < 3 * values.std() / math.sqrt(6) + 1e-3, name
    assert all(not values.any() for values in compare_contours(last, last, RATE).values())

    quieter = [compare_contours(gain * last, last, RATE)["level_db"].mean() for gain in (0.5, 0.25)]
    torch.testing.assert_close(torch.stack(quieter), torch.tensor([-6.0206, -12.0412]))
    duller = []
    for hertz in (4000, 1000):
        sections = scipy.signal.butter(4, hertz, fs=RATE, output="sos")
        duller.append(
            compare_contours(scipy.signal.sosfilt(sections, last.numpy()), last, RATE)["centroid_octaves"].mean()
        )
    assert duller[1] < duller[0] < -0.05
    hiss = torch.randn(last.shape, generator=torch.Generator().manual_seed(0))
    flatter = [compare_contours(last + level * hiss, last, RATE)["texture_ratio"].mean() for level in (0.005, 0.05)]
    assert flatter[1] < flatter[0] < -0.05


def test_a_fade_drifts_by_its_slope_and_nothing_else() -> None:
    steady = noise(60)
    fading = steady * torch.exp(-0.01 * torch.arange(60 * RATE) / RATE)
    found = drift(contours(fading, RATE))
    assert math.expm1(found["drift_level"]) == pytest.approx(math.expm1(-0.6), abs=0.005)
    assert abs(found["drift_centroid"]) < 0.01
    assert abs(found["drift_texture"]) < 0.02
    against = contours(fading, RATE).log_curves()["level"] - contours(steady, RATE).log_curves()["level"]
    assert float(slope(against)) == pytest.approx(-0.6, abs=1e-4)
    assert slope(contours(fading, RATE).log_curves()["level"]).item() == pytest.approx(-0.6, abs=0.01)


def test_a_glide_drifts_in_its_centroid() -> None:
    time = torch.arange(20 * RATE) / RATE
    glide = 0.1 * torch.sin(2 * math.pi * 500 * (2 ** (time / 20) - 1) * 20 / math.log(2))[None]
    found = drift(contours(glide.float(), RATE))
    assert math.exp(found["drift_centroid"]) == pytest.approx(2, rel=0.05)
    assert abs(found["drift_level"]) < 0.01


def test_the_slope_is_that_of_least_squares() -> None:
    curve = torch.rand(2, 9, generator=torch.Generator().manual_seed(0))
    expected = [np.polyfit(np.arange(9) / 60, row, 1)[0] for row in curve.double().numpy()]
    np.testing.assert_allclose(slope(curve).numpy(), expected, rtol=1e-9)


def test_silence_and_what_is_not_finite_have_values() -> None:
    silent = contours(torch.cat([torch.zeros(1, RATE), noise(2, level=1e-6)], 1), RATE)
    expected = Contours(torch.full((3,), -80.0), torch.full((3,), LEAST_HZ), torch.full((3,), LEAST_TEXTURE))
    for name in ("level", "centroid", "texture"):
        torch.testing.assert_close(getattr(silent, name), getattr(expected, name))
    for values in compare_contours(torch.full((1, RATE), math.nan), noise(1), RATE).values():
        assert values.isfinite().all()
    assert all(value == 0 for value in drift(silent).values())


def test_too_short_audio_is_refused() -> None:
    with pytest.raises(EncoreError, match=r"contours of 0\.50 s"):
        contours(noise(0.5), RATE)
    with pytest.raises(EncoreError, match="at least 2 s"):
        drift(contours(noise(1), RATE))
