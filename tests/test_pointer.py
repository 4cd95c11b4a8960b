"""The pointer: its features, the prior that draws from its odds, and its training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from encore.codecs import Codec, load_codec
from encore.config.schema import TrainConfig
from encore.inference.continuation import continue_song
from encore.models.generation import GenerationConfig, Sampler, generate_prior, make_generators
from encore.models.loading import build_model, load_generator
from encore.models.pointer import FEATURES, Places, Pointer, past_distances, place_features, stride_of
from encore.models.pointer_prior import Pointed, crossfade
from encore.models.priors import Context
from encore.training.pointer import (
    STEP,
    Case,
    block_odds,
    energy_score,
    excerpt_distances,
    fit,
    make_case,
    mean_score,
)
from tests.conftest import SAMPLE_RATE, Command, melody, write_pairs

D, FRAMES, SIZE = 8, 600, 75
STRIDE = stride_of(75.0)
CONFIG = GenerationConfig(SIZE, True, "pointer")


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec("starter")


def noisy(frames: int, seed: int = 0) -> Tensor:
    """Latents whose levels change every fifth of a second, `[1, D, frames]`."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randn(1, D, -(-frames // 15), generator=generator).repeat_interleave(15, -1)[..., :frames]
    return levels.exp() * torch.randn(1, D, frames, generator=generator)


def certain(stay: float = 6.0) -> Pointer:
    """A pointer that takes what matches best."""
    pointer = Pointer()
    pointer.after_music.mul_(20)
    pointer.after_excerpt.mul_(40)
    pointer.stay.fill_(stay)
    return pointer


def new_prior(codec: Codec, context: Tensor, seeds: Sequence[int] = (1,), pointer: Pointer | None = None) -> Pointed:
    rows = context.repeat(len(seeds) // len(context), 1, 1)
    given = Context(rows, codec, lambda: torch.zeros(len(context), 1, 1), 1, pointer or Pointer())
    return Pointed.draw(given, make_generators(seeds))


def new_sampler(codec: Codec, context: Tensor, *seeds: int) -> Sampler:
    rows = context.expand(len(seeds), -1, -1)
    given = Context(rows, codec, lambda: context, len(seeds), Pointer())
    return Sampler(CONFIG, given, make_generators(seeds))


def test_levels_are_relative_to_the_context_and_end_with_it() -> None:
    context = noisy(FRAMES + 1)
    places = Places.of(context, STRIDE)
    assert places.levels.shape == (1, FRAMES // STRIDE, D)
    assert torch.allclose(places.levels.std(1, correction=0), torch.ones(1, D), atol=1e-4)
    levels, onsets = places.describe(context[..., -10 * STRIDE :])
    assert torch.allclose(levels, places.levels[:, -10:], atol=1e-5)
    assert torch.allclose(onsets[:, 1:], places.onsets[:, -9:], atol=1e-5)
    louder = Places.of(4 * context, STRIDE)
    assert torch.allclose(louder.levels - louder.levels.mean(1), places.levels - places.levels.mean(1), atol=1e-3)


def test_what_precedes_a_place_is_compared_stride_by_stride() -> None:
    distance = torch.rand(2, 7, 12)
    for window, found in zip((2, 5), past_distances(distance, (2, 5)), strict=True):
        for place in range(12):
            expected = [distance[:, 7 - back, place - back] for back in range(1, window + 1)] if place >= window else []
            value = torch.stack(expected).mean(0) if expected else torch.zeros(2)
            assert torch.allclose(found[:, place], value)


@pytest.mark.parametrize(("length", "strides"), [(3, 12), (7, 4), (1, 1)])  # less was played, or the context is short
def test_less_is_compared_where_there_is_less(length: int, strides: int) -> None:
    places = torch.rand(2, strides)
    features = place_features(
        torch.rand(2, length, strides), torch.rand(2, length, strides), places, torch.tensor([strides, 0])
    )
    assert features.shape == (2, strides, len(FEATURES)) and features.isfinite().all()


def test_the_pointer_finds_the_one_place_that_goes_on_like_the_music(codec: Codec) -> None:
    """The last second of the context was heard once before, after 3.2 s: what followed it then follows now."""
    context = noisy(FRAMES)
    context[..., -SIZE:] = context[..., 165:240]
    for pointer in (certain(), None):
        prior = new_prior(codec, context, range(20), pointer)
        guess = prior.frames(0, SIZE, context.expand(20, -1, -1))
        hits = [torch.equal(row, context[0, :, 240 : 240 + SIZE]) for row in guess]
        assert all(hits) if pointer is not None else sum(hits) >= 5  # of 130 places, with the odds of an untrained one


def test_it_chooses_by_what_was_played_not_by_the_context(codec: Codec) -> None:
    context = noisy(FRAMES)
    prior = new_prior(codec, context, [1], certain())
    played = torch.cat([context, context[..., 300:448]], -1)  # music, not the prior's own excerpt
    assert torch.equal(prior.frames(148, SIZE, played), context[..., 448 : 448 + SIZE])


def test_excerpts_end_before_the_context_does_and_then_another_one_begins(codec: Codec) -> None:
    context = noisy(FRAMES)
    prior, history = new_prior(codec, context, range(30), certain(stay=1e4)), context.expand(30, -1, -1)
    ends = []
    for start in range(0, 12 * SIZE, SIZE):
        guess = prior.frames(start, SIZE, history)
        history = torch.cat([history, guess], -1)
        ends.append(prior.end)
        assert guess.shape == (30, D, SIZE) and guess.isfinite().all()
    found = torch.stack(ends)
    assert (found <= FRAMES).all() and (found >= SIZE).all()
    moved = found.diff(dim=0)
    stayed = moved == SIZE
    assert stayed[found[:-1] <= FRAMES - SIZE].all() and not stayed[found[:-1] > FRAMES - SIZE].any()


def test_a_row_depends_on_its_own_seed_only_and_blocks_on_nothing_after_them(codec: Codec) -> None:
    context = noisy(FRAMES)
    three = generate_prior(new_sampler(codec, context, 5, 6, 7), 450)
    for number, seed in enumerate((5, 6, 7)):
        alone = generate_prior(new_sampler(codec, context, seed), 450)
        assert torch.equal(alone[0], three[number])
        assert torch.equal(generate_prior(new_sampler(codec, context, seed), 150), alone[..., :150])
    assert not torch.equal(three[0], three[1])
    mixed = torch.cat([noisy(FRAMES, 1), context])
    prior = new_prior(codec, mixed, (9, 6))
    single = new_prior(codec, context, (6,))
    assert torch.equal(prior.frames(0, SIZE, mixed)[1:], single.frames(0, SIZE, context))


def test_a_long_block_is_several_excerpts_chosen_one_after_the_other(codec: Codec) -> None:
    context = noisy(FRAMES)
    whole = new_prior(codec, context, [3, 4]).frames(0, 3 * SIZE + 10, context.expand(2, -1, -1))
    prior, history = new_prior(codec, context, [3, 4]), context.expand(2, -1, -1)
    for start in range(0, 3 * SIZE, SIZE):
        history = torch.cat([history, prior.frames(start, SIZE, history[..., -prior.lookback :])], -1)
    last = prior.frames(3 * SIZE, 10, history)
    assert torch.equal(torch.cat([history[..., FRAMES:], last], -1), whole)


@pytest.mark.parametrize("frames", [1, 3, 20, SIZE, SIZE + 1])
def test_contexts_may_be_shorter_than_a_block(codec: Codec, frames: int) -> None:
    context = noisy(frames)
    guess = new_prior(codec, context, [1, 2]).frames(0, 100, context.expand(2, -1, -1))
    assert guess.shape == (2, D, 100) and guess.isfinite().all()


def test_a_silent_context_is_continued_with_silence(codec: Codec) -> None:
    context = torch.zeros(1, D, FRAMES)
    assert not generate_prior(new_sampler(codec, context, 1, 2), 200).any()


def test_excerpts_are_joined_by_a_fade_that_keeps_the_level(codec: Codec) -> None:
    fade = 8  # frames: a tenth of a second
    same, centre = torch.randn(2, D, 3), torch.zeros(2, D, 1)
    torch.testing.assert_close(crossfade(same, same, centre), same)
    old, new = torch.randn(1, 1000, 3), torch.randn(1, 1000, 3)
    joined = crossfade(old + 5, new + 5, torch.full((1, 1000, 1), 5.0)) - 5
    assert ((joined.square().mean((0, 1)) - 1).abs() < 0.15).all()  # a plain mean of the two would have a half
    toward = [torch.nn.functional.cosine_similarity(joined[..., n], new[..., n], dim=1).item() for n in range(3)]
    assert toward[0] < 0.5 < 0.6 < toward[1] < 0.8 < 0.9 < toward[2]
    # In the prior: the first frames of a block whose excerpt is a new one.
    context = noisy(FRAMES)
    prior, history = new_prior(codec, context, range(10), certain(stay=-1e4)), context.expand(10, -1, -1)
    first = prior.frames(0, SIZE, history)
    end = prior.end
    second = prior.frames(SIZE, SIZE, torch.cat([history, first], -1))
    for row in range(10):
        begin = int(prior.end[row]) - SIZE
        assert torch.equal(second[row, :, fade:], context[0, :, begin + fade : begin + SIZE])
        if end[row] <= FRAMES - fade:
            old = context[..., end[row] : end[row] + fade]
            expected = crossfade(old, context[..., begin : begin + fade], context.mean(-1, keepdim=True))
            torch.testing.assert_close(second[row, :, :fade], expected[0])


def test_the_pointer_is_part_of_a_model_with_this_prior_only(codec: Codec) -> None:
    settings = {"objective": "energy", "d_model": 16, "nhead": 2}
    with_it = build_model(TrainConfig.from_flags(settings, prior="pointer").resolved(), codec, 100)
    without = build_model(TrainConfig.from_flags(settings, prior="rhythm").resolved(), codec, 100)
    extra = set(with_it.state_dict()) - set(without.state_dict())
    assert extra == {"pointer.after_music", "pointer.after_excerpt", "pointer.stay"}
    assert not any(parameter.requires_grad for name, parameter in with_it.named_parameters() if name in extra)
    given = Context(torch.zeros(1, D, 40), codec, lambda: torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="needs the context's pointer"):
        Sampler(CONFIG, given)


# --- Training


def test_the_energy_score_of_odds_is_the_expected_one_of_samples() -> None:
    places, truth = torch.rand(6, 3, dtype=torch.double), torch.rand(3, dtype=torch.double)
    to_truth, between = (places - truth).norm(dim=1), torch.cdist(places, places)
    odds = torch.rand(6, dtype=torch.double).softmax(0).requires_grad_()
    expected = sum(
        odds[i] * odds[j] * (to_truth[i] / 2 + to_truth[j] / 2 - between[i, j] / 2) for i in range(6) for j in range(6)
    )
    value = energy_score(odds, to_truth, between)
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value, odds)
    torch.testing.assert_close(gradient, to_truth - between @ odds)


def test_distances_of_excerpts_are_means_over_their_spectra() -> None:
    spectra = torch.rand(30, 5)
    one, other = torch.tensor([0, 3, 20]), torch.tensor([2, 11])
    found = excerpt_distances(spectra, one, other, 6)
    for i, a in enumerate(one.tolist()):
        for j, b in enumerate(other.tolist()):
            torch.testing.assert_close(found[i, j], (spectra[a : a + 6] - spectra[b : b + 6]).abs().mean())


def new_case(codec: Codec, seed: int = 0, seconds: float = 8.0, period: float | None = None) -> Case:
    audio = torch.from_numpy(melody(seconds + 2, seed))[None]
    if period is not None:
        audio = audio[:, torch.arange(audio.shape[-1]) % round(period * SAMPLE_RATE)]
    latents = codec.encode(audio[None])[0]
    case = make_case(latents, audio, round(seconds * 75), codec, SIZE)
    assert case is not None
    return case


def test_a_case_has_the_distances_of_what_follows(codec: Codec) -> None:
    case = new_case(codec)
    places = len(case.features)
    assert case.length % STEP == 0 and case.length * STRIDE == pytest.approx(SIZE, abs=STEP * STRIDE / 2)
    assert case.to_truth.shape == (2, places) and case.between.shape == (places, places)
    assert torch.allclose(case.between, case.between.T, atol=1e-5) and not case.between.diagonal().any()
    assert (case.to_truth > 0).all()
    audio = torch.from_numpy(melody(1.0, 0))[None]
    assert make_case(codec.encode(audio[None])[0], audio, 40, codec, SIZE) is None  # too short to choose from


def test_block_odds_are_those_of_the_draws_of_the_prior() -> None:
    """Against a simulation: a place, then with the odds of staying the place after its excerpt, or another one."""
    torch.manual_seed(0)
    count, kinds = 12, len(FEATURES)
    zeros = torch.zeros(3, count)
    case = Case(torch.randn(count, kinds), torch.randn(count, count, kinds), 4, zeros, torch.zeros(count, count))
    pointer = Pointer()
    pointer.after_music.copy_(torch.randn(kinds))
    pointer.after_excerpt.copy_(torch.randn(kinds))
    pointer.stay.fill_(2.0)
    odds = block_odds(case, pointer)
    torch.testing.assert_close(odds.sum(1), torch.ones(3))
    torch.testing.assert_close(odds[0], (case.features @ pointer.after_music).softmax(0))
    draws, counts = 20000, torch.zeros(3, count)
    place = torch.multinomial(odds[0], draws, replacement=True)
    counts[0] = torch.bincount(place, minlength=count)
    logits = case.later @ pointer.after_excerpt
    for number in range(count):
        near = (torch.arange(count) * STEP - (number * STEP + 4)).abs() < 4
        logits[number, near] = -torch.inf
    for block in (1, 2):
        stay = torch.where(place + 2 < count, 2.0, -torch.inf)
        drawn = torch.multinomial(torch.cat([logits[place], stay[:, None]], 1).softmax(1), 1)[:, 0]
        place = torch.where(drawn < count, drawn, place + 2)
        counts[block] = torch.bincount(place, minlength=count)
    assert (counts / draws - odds).abs().max() < 0.02


@pytest.mark.slow
def test_training_learns_what_is_to_be_trusted(codec: Codec) -> None:
    """Places are right where the rhythm says so, whatever the last second was like."""
    torch.manual_seed(0)
    cases = []
    for _ in range(8):
        right = torch.rand(40) < 0.2
        features = torch.randn(40, len(FEATURES))
        features[:, FEATURES.index("rhythm")] = right.float()
        sound = torch.where(right, 0.0, 1.0)[:, None] + 0.1 * torch.randn(40, 1)
        truth = 0.1 * torch.randn(2, 1)
        cases.append(
            Case(features, features.expand(40, -1, -1), 18, (truth - sound[:, 0]).abs(), torch.cdist(sound, sound))
        )
    pointer, untrained, again = Pointer(), Pointer(), Pointer()
    fit(pointer, cases, seed=0)
    weights = dict(zip(FEATURES, pointer.after_music.tolist(), strict=True))
    assert weights["rhythm"] > 3 and max(weights, key=lambda name: abs(weights[name])) == "rhythm"
    assert mean_score(pointer, cases) < 0.5 * mean_score(untrained, cases)
    assert not any(parameter.requires_grad for parameter in pointer.parameters())
    fit(again, cases, seed=0)
    assert all(torch.equal(one, other) for one, other in zip(pointer.parameters(), again.parameters(), strict=True))


@pytest.mark.slow
def test_training_on_loops_lowers_the_score_of_other_loops(codec: Codec) -> None:
    cases, others = ([new_case(codec, seed, period=1.2) for seed in seeds] for seeds in ((0, 1), (2, 3)))
    pointer, untrained = Pointer(), Pointer()
    fit(pointer, cases, seed=0)
    assert mean_score(pointer, cases) < mean_score(untrained, cases)
    assert mean_score(pointer, others) < mean_score(untrained, others)


@pytest.mark.slow
def test_a_run_trains_its_pointer_once_and_keeps_it_in_its_checkpoints(
    call_command: Command, train_flags: list[object], tmp_path: Path
) -> None:
    pairs = write_pairs(tmp_path / "pairs", {"train": 4, "val": 2}, seconds=2.0)
    flags = [*train_flags, "--dataset_folder", pairs, "--prior", "pointer", "--max_steps", 1, "--tracker", "none"]
    done = call_command("train_worker.py", *flags, "--metrics", "rms_input", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    generator = load_generator(tmp_path / "checkpoints" / "best_model.pt", torch.device("cpu"))
    pointer, untrained = generator.model.pointer, Pointer()
    assert pointer is not None and not torch.equal(pointer.after_music, untrained.after_music)
    (kept,) = (pairs / ".latents").glob("*/pointers/*.json")
    assert json.loads(kept.read_text())["after_music"] == pointer.after_music.tolist()
    kept.write_text(json.dumps({name: value.tolist() for name, value in untrained.state_dict().items()}))
    song = torch.from_numpy(melody(2.0, 7))[None]
    one, other = continue_song(generator, song, 1.0, [1]), continue_song(generator, song, 1.0, [2])
    assert one.audio.shape == (1, 1, SAMPLE_RATE) and not torch.equal(one.audio, other.audio)
    again = call_command(
        "train_worker.py", *flags, "--checkpoint_dir", "second", "--metrics", "rms_input", cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr
    second = load_generator(tmp_path / "second" / "best_model.pt", torch.device("cpu")).model.pointer
    assert second is not None and torch.equal(second.after_music, untrained.after_music)  # read, not trained again
