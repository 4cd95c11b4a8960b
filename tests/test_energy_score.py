"""Energy score, skill and bootstrap against float64 references, and on forecasts of known quality."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from encore.evaluation.metrics.energy_score import energy_score
from encore.statistics import Interval, bootstrap, group_mean, group_sums, skill


def rms(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().flatten(1).mean(1).sqrt()


def mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_energy_score_is_the_mean_over_all_pairs() -> None:
    x, y = normal(0, 3, 4, 2, 50), normal(1, 3, 2, 50)
    found = energy_score(rms, x, y)
    samples, truth = x.flatten(2).numpy(), y.flatten(1).numpy()
    for item in range(3):
        attraction = np.mean([np.sqrt(np.mean((s - truth[item]) ** 2)) for s in samples[item]])
        pairs = [
            np.sqrt(np.mean((samples[item, i] - samples[item, j]) ** 2)) for i in range(4) for j in range(4) if i != j
        ]
        assert found.attraction[item].item() == pytest.approx(attraction, rel=1e-12)
        assert found.repulsion[item].item() == pytest.approx(np.mean(pairs), rel=1e-12)
        assert found.score[item].item() == pytest.approx(attraction - np.mean(pairs) / 2, rel=1e-12)


def test_one_candidate_has_no_second_term_and_equal_ones_none_either() -> None:
    x, y = normal(0, 5, 1, 1, 20), normal(1, 5, 1, 20)
    single, repeated = energy_score(rms, x, y), energy_score(rms, x.expand(-1, 3, -1, -1), y)
    assert torch.equal(single.score, rms(x[:, 0], y)) and not single.repulsion.any()
    assert torch.allclose(repeated.score, single.score) and not repeated.repulsion.any()


def test_mean_score_does_not_depend_on_the_number_of_candidates() -> None:
    truth = normal(1, 20000, 1, 1)
    two, eight = (energy_score(rms, normal(n, 20000, n, 1, 1), truth).score.mean().item() for n in (2, 8))
    expected = 1 / np.sqrt(np.pi)  # E|X − Y| / 2 of two standard normal variables
    assert two == pytest.approx(expected, abs=0.02) and eight == pytest.approx(expected, abs=0.02)


def test_the_true_distribution_scores_best() -> None:
    """Proper: too narrow, too wide, shifted and mean forecasts are all worse, by more than chance."""
    truth, x = normal(1, 4000, 1, 4), normal(2, 4000, 4, 1, 4)
    best = energy_score(rms, x, truth).score.numpy()
    items = [str(item) for item in range(4000)]
    others = {
        "underdispersed": 0.5 * x,
        "overdispersed": 1.6 * x,
        "shifted": x + 0.5,
        "mean": torch.zeros(4000, 1, 1, 4),
    }
    for name, candidates in others.items():
        worse = energy_score(rms, candidates.double(), truth).score.numpy()
        interval = skill(worse, best, items)
        assert interval.high is not None and interval.high < 0, name


def test_shuffled_parts_of_the_truth_score_worse_the_more_are_shuffled() -> None:
    truth = normal(1, 6, 1, 800)
    means = []
    for parts in (0, 2, 4, 8):
        shuffled = truth.clone().unflatten(-1, (8, 100))
        shuffled[..., :parts, :] = shuffled[..., :parts, :].roll(1, dims=-2)
        means.append(energy_score(rms, shuffled.flatten(-2)[:, None], truth).score.mean().item())
    assert means[0] == 0 and means == sorted(means) and means[3] > 1.5 * means[1]


def test_shapes_that_do_not_belong_together() -> None:
    for candidates in (torch.zeros(2, 3, 1, 9), torch.zeros(3, 2, 1, 10), torch.zeros(2, 0, 1, 10)):
        with pytest.raises(ValueError, match="differ"):
            energy_score(rms, candidates, torch.zeros(2, 1, 10))


def test_skill() -> None:
    assert skill([0.25, 0.75], [1.5, 0.5], ["a", "b"]).value == pytest.approx(0.5)
    assert skill([2.0], [1.0], ["a"]).value == pytest.approx(-1)
    assert np.isnan(skill([2.0], [0.0], ["a"]).value)


def test_intervals_of_grouped_items_draw_groups() -> None:
    values, groups = [1.0, 2.0, 6.0, 3.0], ["a", "b", "a", "b"]
    assert group_sums(values, groups).tolist() == [7, 5]
    mean = group_mean(values, groups)
    # Two groups of two: every draw has the mean of one of them, or of both.
    assert (mean.value, mean.low, mean.high) == pytest.approx((3, 2.5, 3.5))
    found = skill(values, [2.0, 1.0, 2.0, 3.0], groups)
    assert (found.value, found.low, found.high) == pytest.approx((1 - 12 / 8, 1 - 7 / 4, 1 - 5 / 4))
    assert Interval(0.0, None, 1.0).map(lambda x: 2 * x + 1) == Interval(1.0, None, 3.0)


def test_bootstrap_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).gamma(2, size=60)
    ours = bootstrap(mean, values, draws=4000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, rel=0.02) and ours.high == pytest.approx(theirs.high, rel=0.02)


@pytest.mark.slow
def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        interval = bootstrap(mean, random.normal(size=40), draws=200, level=0.8, seed=seed)
        assert interval.low is not None and interval.high is not None
        hits += interval.low <= 0 <= interval.high
    assert 0.72 <= hits / 300 <= 0.88


def test_bootstrap_is_paired_and_repeatable() -> None:
    """The difference of two columns that differ by 1 in every item is 1 in every draw."""
    items = 10 * np.random.default_rng(0).normal(size=30)
    interval = bootstrap(lambda a, b: mean(a) - mean(b), items + 1, items)
    assert interval.low == pytest.approx(1) and interval.high == pytest.approx(1)
    assert bootstrap(mean, items, seed=1) == bootstrap(mean, items, seed=1) != bootstrap(mean, items, seed=2)


def test_bootstrap_says_when_it_cannot_tell() -> None:
    single = bootstrap(mean, [3.0])
    assert (single.value, single.low, single.high) == (3.0, None, None)
    undefined = bootstrap(mean, [1.0, np.nan])
    assert undefined.low is None and undefined.high is None
    with np.errstate(all="ignore"):
        # A draw of both items alone has a variance other than 0; half of the draws have none.
        rare = bootstrap(lambda a: float(np.var(a) / (np.var(a) > 0)), [0.0, 1.0, 1.0])
    assert rare.low is not None and rare.high is not None and np.isfinite([rare.low, rare.high]).all()
    unlike: list[list[list[float]]] = [[], [[]], [[1, 2], [1]]]
    for arrays in unlike:
        with pytest.raises(ValueError, match="number of items"):
            bootstrap(lambda *_: 0.0, *arrays)
