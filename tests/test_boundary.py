"""The boundary: percentiles of untouched cuts are typical, those of clicks and jumps extreme; exact flux and step."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor

from encore.data.demo import compose
from encore.errors import EncoreError
from encore.evaluation.metrics import Item
from encore.evaluation.metrics.boundary import boundary_flux, boundary_step, flux, level_step

RATE = 24000


@pytest.fixture(scope="module")
def pieces() -> list[Tensor]:
    return [torch.from_numpy(compose(6, np.random.default_rng([7, index]))).float()[None] for index in range(6)]


def cuts(piece: Tensor, seed: int, count: int = 6) -> list[tuple[Tensor, Tensor]]:
    """A piece, cut into context and what follows at random positions."""
    positions = np.random.default_rng(seed).integers(2 * RATE, 4 * RATE, count)
    return [(piece[:, :position], piece[:, position:]) for position in positions]


def ranked(pieces: list[Tensor], damage: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of flux and step at random cuts of the pieces, the continuation `damage` times as loud."""
    items = [
        Item(context, damage * truth, truth, RATE)
        for index, piece in enumerate(pieces)
        for context, truth in cuts(piece, index)
    ]
    return np.array([boundary_flux(item) for item in items]), np.array([boundary_step(item) for item in items])


@pytest.mark.slow
def test_untouched_cuts_are_typical_and_louder_continuations_less_and_less(pieces: list[Tensor]) -> None:
    untouched = ranked(pieces)
    for values in untouched:
        assert abs(values.mean() - 50) < 3 * values.std() / len(values) ** 0.5
        assert np.mean((values > 5) & (values < 95)) > 0.75
    for before, some, more in zip(untouched, ranked(pieces, 0.3), ranked(pieces, 0.03), strict=True):
        assert before.mean() < some.mean() < more.mean()
        assert more.mean() > 95


def test_a_click_is_at_the_upper_end_of_the_flux(pieces: list[Tensor]) -> None:
    quiet = 0.05 * pieces[0]
    context, truth = quiet[:, : 3 * RATE + 5000], quiet[:, 3 * RATE + 5000 :]
    clicking = truth.clone()
    clicking[:, 0] += 0.9
    assert boundary_flux(Item(context, clicking, truth, RATE)) > 99
    assert 5 < boundary_flux(Item(context, truth, truth, RATE)) < 95


def test_flux_and_step_equal_a_reference_in_float64() -> None:
    audio = 0.1 * torch.randn(2, 20000, generator=torch.Generator().manual_seed(0))
    audio[:, 10000:] *= 3
    positions = torch.tensor([5000, 9900, 10000])
    filters = librosa.filters.mel(sr=RATE, n_fft=512, n_mels=40, htk=True, norm=None, dtype=np.float64)
    window = scipy.signal.get_window("hann", 512)
    samples = audio.double().numpy()
    for position, rise, step in zip(
        positions.tolist(), flux(audio, RATE, positions), level_step(audio, RATE, positions), strict=True
    ):
        bands = []
        for later in range(5):
            begin = position - 512 + later * 128
            power = np.abs(np.fft.rfft(samples[:, begin : begin + 512] * window * 2 / window.sum())) ** 2
            bands.append(10 * np.log10(np.maximum(filters @ power.mean(0), 1e-8)))
        assert float(rise) == pytest.approx(max(np.abs(band - bands[0]).mean() for band in bands[1:]), rel=1e-4)
        before, after = (
            np.mean(part**2) for part in (samples[:, position - 2400 : position], samples[:, position:][:, :2400])
        )
        assert float(step) == pytest.approx(abs(10 * np.log10(after / before)), abs=1e-4)


def test_silence_in_silence_is_typical_and_steadiness_in_music_is_at_the_lower_end(pieces: list[Tensor]) -> None:
    silence = torch.zeros(1, 2 * RATE)
    silent = Item(silence, silence, silence, RATE)
    assert boundary_flux(silent) == boundary_step(silent) == 50
    # A context that fades out early: silence continues it without a change, where music nearly always has one.
    faded = torch.cat([pieces[1], torch.zeros(1, RATE // 4)], dim=1)
    item = Item(faded, silence, pieces[2], RATE)
    assert boundary_flux(item) < 5
    assert boundary_step(item) < 5


def test_too_short_parts_are_refused() -> None:
    with pytest.raises(EncoreError, match=r"context of 0\.10 s and a continuation of 1\.00 s"):
        boundary_flux(Item(torch.zeros(1, 2400), torch.zeros(1, RATE), torch.zeros(1, RATE), RATE))
    with pytest.raises(EncoreError, match=r"a continuation of 0\.05 s"):
        boundary_step(Item(torch.zeros(1, RATE), torch.zeros(1, 1200), torch.zeros(1, RATE), RATE))
