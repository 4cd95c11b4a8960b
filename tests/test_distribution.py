"""Distances between distributions: exact on small arrays, zero for samples of the same music, growing with damage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor
from torchaudio.functional import lowpass_biquad

from encore.data.demo import compose
from encore.errors import EncoreError
from encore.evaluation.metrics.distribution import (
    bandwidth,
    energy_distance,
    frechet,
    frechet_distance,
    frechet_warning,
    kernel_distance,
)
from encore.evaluation.metrics.embeddings import log_mel_patches, pooled
from encore.statistics import Interval

RATE = 24000
Distance = Callable[[Tensor, Tensor], Interval]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def patches_of(seed: int, items: int = 60, patches: int = 3, features: int = 4) -> Tensor:
    """Patches; those of one item are similar to each other."""
    return normal(seed, items, patches, features) + normal(seed + 1000, items, 1, features)


def contains_zero(interval: Interval) -> bool:
    assert interval.low is not None and interval.high is not None
    assert interval.low <= interval.value <= interval.high
    return interval.low <= 0 <= interval.high


def naive(x: np.ndarray, y: np.ndarray, function: Callable[[np.ndarray], float]) -> float:
    """E f(x, x′) + E f(y, y′) − 2 E f(x, y) over all pairs of patches of different items, one after the other."""

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        items = range(len(a))
        return float(np.mean([function(p - q) for i in items for j in items if i != j for p in a[i] for q in b[j]]))

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def test_kernel_and_energy_distance_are_means_over_pairs_of_different_items() -> None:
    x, y = patches_of(0, 5, 2, 3) + 0.5, patches_of(1, 5, 3, 3)
    real = y.numpy()
    distances = [np.linalg.norm(p - q) for i in range(5) for j in range(i) for p in real[i] for q in real[j]]
    width = bandwidth(y)
    assert width == pytest.approx(np.sort(distances)[(len(distances) - 1) // 2], rel=1e-9)
    expected = 100 * naive(x.numpy(), real, lambda d: float(np.exp(-(d @ d) / (2 * width**2))))
    assert kernel_distance(x, y).value == pytest.approx(expected, rel=1e-9)
    expected = -naive(x.numpy(), real, lambda d: float(np.linalg.norm(d)) / 3**0.5)
    assert energy_distance(x, y).value == pytest.approx(expected, rel=1e-9)
    assert energy_distance(x + 1e6, y + 1e6).value == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_is_kad_where_samples_are_independent() -> None:
    """One patch per item; KAD has also the pairs of an item with its own truth, one in a hundred here."""
    x, y = normal(0, 100, 1, 5) + 0.7, normal(1, 100, 1, 5)
    squares = [torch.cdist(a[:, 0], b[:, 0]).square() for a, b in ((x, x), (y, y), (x, y))]
    upper = torch.ones(100, 100).triu(1).bool()
    gamma = 1 / (2 * squares[1][upper].sqrt().median() ** 2)
    kernels = [(-gamma * s).exp() for s in squares]
    expected = 100 * float(kernels[0][upper].mean() + kernels[1][upper].mean() - 2 * kernels[2].mean())
    assert kernel_distance(x, y).value == pytest.approx(expected, rel=0.03)


def test_items_that_are_drawn_twice_make_no_pair() -> None:
    """Corners of a simplex: any two items are as far apart as any other two, so every draw gives the same value."""
    corners = torch.eye(4, 5, dtype=torch.float64)[:, None]
    shift = torch.tensor([0, 0, 0, 0, 2.0], dtype=torch.float64)
    expected = (2 * 6**0.5 - 2 * 2**0.5) / 5**0.5
    found = energy_distance(corners + shift, corners)
    assert (found.value, found.low, found.high) == pytest.approx((expected,) * 3, rel=1e-9)


def test_energy_distance_agrees_with_scipy() -> None:
    """scipy's is the square root of the biased one, of one feature: the same but for 1 / n."""
    x, y = 0.5 + 2 * normal(0, 1000, 1, 1), normal(1, 1000, 1, 1)
    expected = scipy.stats.energy_distance(x.flatten().numpy(), y.flatten().numpy()) ** 2
    assert energy_distance(x, y).value == pytest.approx(expected, rel=0.02)


def test_frechet_agrees_with_the_matrix_square_root() -> None:
    mix = normal(9, 6, 6)
    x, y = normal(0, 200, 6) @ mix + 0.3, normal(1, 300, 6)
    cov_x, cov_y = np.cov(x.numpy().T), np.cov(y.numpy().T)
    shift = float((x.mean(0) - y.mean(0)).square().sum())
    expected = shift + np.trace(cov_x + cov_y - 2 * np.real(scipy.linalg.sqrtm(cov_x @ cov_y)))
    assert frechet(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet(y, x) == pytest.approx(expected, rel=1e-9)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet(x + 2, x) == pytest.approx(4 * 6, rel=1e-9)  # ‖μ_x − μ_y‖²
    # With few samples: singular covariances, and still the trace norm of the product of the centred sets.
    few_x, few_y = normal(2, 4, 50), normal(3, 5, 50)
    centred = [s - s.mean(0) for s in (few_x, few_y)]
    overlap = float(torch.linalg.svdvals(centred[0] @ centred[1].T).sum()) / (3 * 4) ** 0.5
    expected = float((few_x.mean(0) - few_y.mean(0)).square().sum())
    expected += float(centred[0].square().sum() / 3 + centred[1].square().sum() / 4) - 2 * overlap
    assert frechet(few_x, few_y) == pytest.approx(expected, rel=1e-6)


DISTANCES = {"kernel": kernel_distance, "energy": energy_distance, "frechet": frechet_distance}


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.slow
def test_intervals_cover_the_true_distance(name: str) -> None:
    """They contain zero for equal distributions, else the known distance, at least 9 times in 10."""
    distance: Distance = DISTANCES[name]
    trials, same, known = 20, 0, 0
    # From very many independent samples.
    far = distance(normal(98, 1500, 1, 4) * 2**0.5 + 1, normal(99, 1500, 1, 4) * 2**0.5).value
    values = []
    for trial in range(trials):
        x, y = patches_of(2 * trial), patches_of(2 * trial + 1)
        null, apart = distance(x, y), distance(x + 1, y)
        values.append(null.value)
        same += contains_zero(null)
        assert apart.low is not None and apart.high is not None and apart.low > 0
        known += apart.low <= far <= apart.high
    assert same >= 0.9 * trials and known >= 0.8 * trials, (same, known)
    assert abs(np.mean(values)) < 3 * np.std(values) / trials**0.5  # unbiased


@pytest.mark.parametrize("name", DISTANCES)
def test_the_same_samples_are_at_no_distance(name: str) -> None:
    x = patches_of(0)
    interval = DISTANCES[name](x, x)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0, 0, 0), abs=1e-9)


@pytest.fixture(scope="module")
def songs() -> tuple[Tensor, Tensor]:
    """Two samples of the same kind of music, 40 items of a second each."""
    audio = [compose(1, np.random.default_rng([5, i])) for i in range(80)]
    both = torch.from_numpy(np.stack(audio)).float()[:, None]
    return both[:40], both[40:]


def shuffled(audio: Tensor, parts: int) -> Tensor:
    """Each half second cut into parts, and these put in another order."""
    cut = audio.unflatten(-1, (2, parts, -1))
    order = torch.from_numpy(np.random.default_rng(parts).permutation(parts))
    return cut[..., order, :].flatten(-3)


DAMAGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "noise": lambda audio, step: audio + 10 ** (-3.2 + 0.6 * step) * torch.randn(audio.shape, generator=_generator()),
    "low-pass": lambda audio, step: lowpass_biquad(audio, RATE, 12000 / 4**step),
    "level": lambda audio, step: audio * 10 ** (-0.4 * step),
    "shuffled": lambda audio, step: shuffled(audio, 3 * 10 ** (step - 1)),
}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.slow
def test_distances_of_music_are_small_and_grow_with_damage(songs: tuple[Tensor, Tensor], name: str) -> None:
    distance: Distance = DISTANCES[name]
    features: Callable[[Tensor], Tensor] = (
        (lambda audio: pooled(log_mel_patches(audio, RATE))[..., ::5])  # few features for few samples
        if name == "frechet"
        else (lambda audio: log_mel_patches(audio, RATE))
    )
    one, other = songs
    real = features(other)
    undamaged = distance(features(one), real)
    assert contains_zero(undamaged)
    for damage, apply in DAMAGES.items():
        found = [distance(features(apply(one, step)), real) for step in (1, 2, 3)]
        values = [undamaged.value, *(f.value for f in found)]
        if damage == "shuffled" and name == "frechet":
            continue  # means and deviations over half a second hardly depend on the order within
        assert values == sorted(values), (damage, values)
        assert found[-1].low is not None and found[-1].low > 0, (damage, values)


def test_warning_of_too_few_samples() -> None:
    assert frechet_warning(torch.zeros(20, 8, 16), torch.zeros(20, 8, 16)) is None
    warning = frechet_warning(torch.zeros(20, 16, 16), torch.zeros(20, 7, 16))
    assert warning is not None and "140 patches are too few for 16 features; below 160" in warning
    # What it warns of: samples of the same distribution at a large distance.
    few = frechet_distance(normal(0, 20, 2, 60), normal(1, 20, 2, 60))
    assert few.low is not None and few.low > 0


def test_invalid_samples_are_refused() -> None:
    for x, y in (
        (patches_of(0, 1), patches_of(1, 1)),
        (patches_of(0, 5), patches_of(1, 6)),
        (patches_of(0, 5), patches_of(1, 5, features=3)),
    ):
        for distance in DISTANCES.values():
            with pytest.raises(ValueError, match="of the same items, at least two"):
                distance(x, y)
    with pytest.raises(EncoreError, match="15 patches of real music are all the same"):
        kernel_distance(patches_of(0, 5), torch.ones(5, 3, 4))
    with pytest.raises(ValueError, match="at least 2"):
        frechet(torch.zeros(1, 3), torch.zeros(4, 3))
