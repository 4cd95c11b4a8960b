"""Copies of training music are found wherever they begin; new music is as far away as held-out music."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from encore.codecs import load_codec
from encore.data.demo import compose
from encore.evaluation.metrics import memorization as module
from encore.evaluation.metrics.embeddings import latent_deviation, latent_patches, log_mel_patches, pooled
from encore.evaluation.metrics.memorization import memorization, nearest_distances

RATE = 24000


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_nearest_distances_are_those_of_a_search_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, training = normal(0, 40, 6), normal(1, 300, 6)
    expected = cKDTree(training.numpy()).query(queries.numpy())[0] / 6**0.5
    whole = nearest_distances(queries, training)
    assert whole.numpy() == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(module, "BLOCK", 40 * 7)
    assert torch.equal(nearest_distances(queries, training), whole)
    assert nearest_distances(training[7:9], training).tolist() == [0, 0]


def test_ratio_of_new_of_copied_and_of_half_copied_music() -> None:
    training, held_out = normal(0, 500, 8), normal(1, 30, 4, 8)
    new = memorization(normal(2, 30, 3, 8), held_out, training)
    assert new.ratio.low is not None and new.ratio.high is not None and new.ratio.low < 1 < new.ratio.high
    copied = memorization(training[:90].unflatten(0, (30, 3)), held_out, training)
    assert copied.ratio.value == copied.ratio.high == 0
    some = normal(3, 30, 4, 8)
    some[5] = training[100:104]
    found = memorization(some, held_out, training)
    assert found.continuations.argmin() == 5 and found.continuations[5] == 0 and (found.held_out > 0).all()
    near = memorization(held_out + 0, held_out, training)
    assert (near.ratio.low, near.ratio.value, near.ratio.high) == pytest.approx((1, 1, 1))


def test_ratio_grows_with_the_damage_done_to_a_copy() -> None:
    training, held_out = normal(0, 500, 8), normal(1, 20, 4, 8)
    copy = training[:80].unflatten(0, (20, 4))
    ratios = [
        memorization(copy + level * normal(2, 20, 4, 8), held_out, training).ratio.value for level in (0, 0.1, 1, 3)
    ]
    assert ratios[0] == 0 and ratios == sorted(ratios) and ratios[3] > 1.5


@pytest.mark.slow
def test_a_copy_of_training_music_is_found_wherever_it_begins() -> None:
    codec = load_codec("starter")
    pieces = [torch.from_numpy(compose(1.5, np.random.default_rng([7, i]))).float() for i in range(26)]
    audio = torch.stack(pieces)[:, None]
    trained, held_out, new = audio[:10], audio[10:18], audio[18:]
    copied = trained[:8, :, 7000 : 7000 + RATE]  # between the training patches, and between frames
    deviation = latent_deviation(codec.encode(trained))

    def latent(music: Tensor, hop: float = 0.5) -> Tensor:
        return latent_patches(codec.encode(music), codec.frame_rate, deviation, hop)

    def mel(music: Tensor, hop: float = 0.5) -> Tensor:
        return pooled(log_mel_patches(music, RATE, hop))

    for features in (latent, mel):
        training = features(trained, 0.125).flatten(0, 1)
        real = features(held_out)
        found = memorization(features(copied), real, training).ratio
        fresh = memorization(features(new), real, training).ratio
        assert found.high is not None and fresh.low is not None and found.high < 0.75 < fresh.low
        assert fresh.value == pytest.approx(1, abs=0.35)


def test_invalid_features_are_refused() -> None:
    items, training = normal(0, 3, 2, 4), normal(1, 9, 4)
    for continuations, held_out in ((items, items[:2]), (items[:0], items[:0]), (items[:, :0], items)):
        with pytest.raises(ValueError, match="features must be"):
            memorization(continuations, held_out, training)
    for wrong in (training[:0], training[:, :3]):
        with pytest.raises(ValueError, match="features must be"):
            memorization(items, items, wrong)
    # Held-out music that is in the training set: the ratio is not defined.
    same = memorization(items, training[:3, None], training)
    assert np.isnan(same.ratio.value) and same.ratio.low is None
