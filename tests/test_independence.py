"""Candidates are drawn independently, and systems whose candidates depend on each other are found out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from encore.codecs import Codec
from encore.data import find_pairs
from encore.data.dataset import Batch
from encore.evaluation.baselines import MODEL, Baselines, Continuer, model_continuers
from encore.evaluation.dataset import EvalSet
from encore.evaluation.independence import candidates_depend
from tests.conftest import SAMPLE_RATE, random_seanet
from tests.test_sampling import drawing

Maker = Callable[[Batch, int, Sequence[int]], Tensor]
FRAMES, CANDIDATES, DRAWS = 24, 3, 12


@pytest.fixture(scope="module")
def codec() -> Codec:
    torch.manual_seed(0)
    return random_seanet()


@pytest.fixture(scope="module")
def data(codec: Codec, tiny_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> EvalSet:
    cache = tmp_path_factory.mktemp("latents")
    return EvalSet.open(codec, find_pairs(tiny_pairs, SAMPLE_RATE, cache_dir=cache), cache, 3, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def batch(data: EvalSet) -> Batch:
    return data.load(range(3))


@pytest.fixture(scope="module")
def continuers(codec: Codec, data: EvalSet) -> dict[str, Continuer]:
    """Every continuer of an evaluation that draws candidates."""
    models = model_continuers(MODEL, drawing(codec, "rhythm", 0.1), 1.0)
    models += model_continuers("pointer", drawing(codec, "pointer", 0.1), 1.0)
    made = [*models, *Baselines(codec, data, margin=8, seed=0).continuers()]
    return {continuer.name: continuer for continuer in made if not continuer.deterministic}


def excerpts(batch: Batch, places: Sequence[int]) -> Tensor:
    """For each pair as many excerpts of its context as it has places, which are tenths of a second."""
    context = batch.input_audio.repeat_interleave(len(places) // len(batch), 0)
    length = FRAMES * 320
    return torch.stack([audio[:, 2400 * place :][:, :length] for audio, place in zip(context, places, strict=True)])


def best_three_each_once(batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
    """Three excerpts without replacement: the candidates of a pair are chosen together."""
    count = len(seeds) // len(batch)
    orders = [torch.randperm(3, generator=torch.Generator().manual_seed(s)).tolist() for s in seeds[::count]]
    return excerpts(batch, [(order * count)[n] for order in orders for n in range(count)])


def by_the_number_of_the_seed(batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
    """Three excerpts that take turns: each candidate can be drawn alone, but no two of three neighbours are equal."""
    return excerpts(batch, [seed % 3 for seed in seeds])


def independently(batch: Batch, frames: int, seeds: Sequence[int]) -> Tensor:
    """Three excerpts with replacement."""
    return excerpts(batch, [int(torch.randint(3, (), generator=torch.Generator().manual_seed(s))) for s in seeds])


def excess_distance(continuer: Continuer, batch: Batch) -> float:
    """How much farther apart the candidates of one draw are than those of different draws, in standard errors.

    Independent candidates have no excess.
    """
    draws = torch.stack([continuer.draw(batch, CANDIDATES, seed, FRAMES) for seed in range(DRAWS)], 1)
    points = draws.flatten(3).flatten(1, 2)  # [B, draws · candidates, samples]
    distances = (
        torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        .unflatten(1, (DRAWS, -1))
        .unflatten(3, (DRAWS, -1))
    )  # [B, S, N, S, N]
    within = distances.diagonal(dim1=1, dim2=3).sum((1, 2)) / (CANDIDATES * (CANDIDATES - 1))  # [B, S]
    across = (distances.sum((1, 2, 3, 4)) - within.sum(1) * CANDIDATES * (CANDIDATES - 1)) / (
        DRAWS * (DRAWS - 1) * CANDIDATES**2
    )
    excess = (within / across[:, None]).mean(0) - 1  # one value per draw, as these are independent
    return float(excess.mean() / (excess.std() / math.sqrt(DRAWS)).clamp_min(1e-9))


@pytest.mark.parametrize("make", [best_three_each_once, by_the_number_of_the_seed])
def test_candidates_that_depend_on_each_other_are_found_out(batch: Batch, make: Maker) -> None:
    assert excess_distance(Continuer("dependent", "", make, deterministic=False), batch) > 8


def test_candidates_that_are_chosen_together_are_found_out_in_an_evaluation(batch: Batch) -> None:
    assert candidates_depend(Continuer("together", "", best_three_each_once, deterministic=False), batch)
    assert not candidates_depend(Continuer("alone", "", independently, deterministic=False), batch)
    assert abs(excess_distance(Continuer("alone", "", independently, deterministic=False), batch)) < 4


@pytest.mark.slow
def test_every_continuer_draws_its_candidates_independently(continuers: dict[str, Continuer], batch: Batch) -> None:
    assert continuers.keys() == {"model", "prior", "pointer", "pointer_prior", "replay", "shards", "noise"}
    for name, continuer in continuers.items():
        assert not candidates_depend(continuer, batch), name
        assert abs(excess_distance(continuer, batch)) < 4, name
