"""What a training step generates and decodes, with a model that knows the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encore.codecs import Codec, load_codec
from encore.data.dataset import Batch
from encore.models.generation import GenerationConfig
from encore.models.pointer import Pointer
from encore.models.priors import Context, Generators, Prior, draw_lags
from encore.models.transformer import ContinuationTransformer, KVCache
from encore.registry import PRIORS
from encore.training.synthesis import MAX_SAMPLES, CropPlan, Synthesizer
from tests.conftest import SAMPLE_RATE, melody, random_seanet

HOP, FRAMES, ITEMS = 320, 75, 2


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec("starter")


@pytest.fixture(scope="module")
def batch(codec: Codec) -> Batch:
    return batch_of(codec, FRAMES)


@pytest.fixture(scope="module")
def rendering(codec: Codec, batch: Batch) -> Tensor:
    """The decoding of the batch's songs as a whole."""
    return rendered(codec, batch)


def batch_of(codec: Codec, frames: int) -> Batch:
    """Songs, each encoded as a whole, so that a target's latents are those that follow its context."""
    songs = torch.stack([torch.from_numpy(melody(2 * frames * HOP / SAMPLE_RATE, seed))[None] for seed in range(ITEMS)])
    source, target = songs.split(frames * HOP, -1)
    context, following = codec.encode(songs).split(frames, -1)
    return Batch(context, source, target, following, torch.arange(ITEMS))


class Truth(nn.Module):
    """Predicts the true latents whatever its input, which it keeps for inspection."""

    def __init__(self, batch: Batch):
        super().__init__()
        self.latents = torch.cat([batch.context, batch.target_latents], -1)
        self.std = torch.full((128, 1), 2.0)
        self.given: list[Tensor] = []
        self.gains = None
        self.level: Tensor | None = None

    def forward(
        self,
        given: Tensor,
        steps: int,
        noise: Tensor | None,
        prior: Tensor | None,
        starts: Sequence[int],
        level: Tensor | None,
        context_frames: int,
        bands: Tensor | None,
    ) -> Tensor:
        self.given.append(given)
        self.level = level
        rows = next(len(part) for part in (prior, noise, given) if part is not None)
        truth = torch.cat([self.latents[..., start : start + steps] for start in starts], -1)
        return truth.repeat_interleave(rows // len(truth), 0)

    def statistics(self, context: Tensor) -> tuple[Tensor, Tensor]:
        assert context.shape[-1] == FRAMES  # the context alone
        return torch.zeros_like(self.std), self.std

    def prefill(self, latents: Tensor, cache: KVCache | None = None) -> KVCache:
        self.given.append(latents)
        if cache is None:
            keys = torch.arange(len(latents)).reshape(-1, 1, 1, 1)  # of each row the item that it belongs to
            return KVCache([keys], [keys], latents, latents, latents.shape[-1])
        assert len(latents) == len(cache.keys[0])
        return KVCache(cache.keys, cache.values, cache.mean, cache.std, cache.end + latents.shape[-1])

    def decode_block(
        self, cache: KVCache, steps: int, noise: Tensor | None, prior: Tensor | None, bands: Tensor | None
    ) -> Tensor:
        rows = next((len(part) for part in (prior, noise) if part is not None), len(cache.keys[0]))
        items = cache.keys[0].flatten().repeat_interleave(rows // len(cache.keys[0]))
        padded = nn.functional.pad(self.latents, (0, steps))
        return padded[items, :, cache.end : cache.end + steps]


def new_synthesizer(
    codec: Codec, size: int = 20, samples: int = 2, crop_frames: int = 45, prior: str = "replay", **settings: Any
) -> Synthesizer:
    margin = 0 if codec.segment_frames is not None else 32
    generation = GenerationConfig(size, samples > 1, prior)
    return Synthesizer(
        codec,
        generation,
        samples=samples,
        margin=margin,
        crop_frames=crop_frames,
        pointer=Pointer() if prior == "pointer" else None,
        **settings,
    )


def relative_db(signal: Tensor, reference: Tensor) -> float:
    return 20 * math.log10(float((signal - reference).norm() / reference.norm()) + 1e-12)


def rendered(codec: Codec, batch: Batch) -> Tensor:
    return codec.decode(torch.cat([batch.context, batch.target_latents], -1))


PLANS = [
    (2, 20, CropPlan((0,), 0, 20)),  # right at the boundary
    (1, 20, CropPlan((0, 40), 0, 20)),
    (2, 20, CropPlan((0, 40), 0, 20)),
    (2, 20, CropPlan((20,), 3, 9)),  # a crop so near the block's start that the past is decoded with it
    (1, 75, CropPlan((0,), 0, 75)),
    (2, 75, CropPlan((0,), 30, 40)),  # a crop far inside the block: no past is needed
    (2, 20, CropPlan((0,), 0, 20, rollout=True)),
    (2, 20, CropPlan((40,), 2, 15, rollout=True)),
]


@pytest.mark.parametrize(("samples", "size", "plan"), PLANS)
def test_decoded_crops_are_those_of_the_plan(
    codec: Codec, batch: Batch, rendering: Tensor, samples: int, size: int, plan: CropPlan
) -> None:
    """True latents give the audio of the whole song's decoding, boundary included, and the song itself as reference."""
    synthesizer = new_synthesizer(codec, size, samples, rollout_blocks=2)
    audio = synthesizer.predict(Truth(batch), batch, plan)
    target, source = synthesizer.references(batch, plan)
    whole, song = rendering, torch.cat([batch.input_audio, batch.target_audio], -1)
    boundary, blocks = round(0.1 * 75), len(plan.starts)
    assert synthesizer.boundary == boundary
    rows = audio.unflatten(0, (ITEMS, samples, blocks))
    assert rows.shape[3:] == (1, (boundary + plan.frames) * HOP)
    for number, start in enumerate(plan.starts):
        first = start + plan.first
        span = slice((FRAMES + first - boundary) * HOP, (FRAMES + first + plan.frames) * HOP)
        beside = target.unflatten(0, (ITEMS, blocks))[:, number]
        assert torch.equal(beside, song[..., span])
        assert torch.equal(
            source.unflatten(0, (ITEMS, blocks))[:, number],
            batch.input_audio[..., first * HOP : (first + plan.frames) * HOP],
        )
        for item in range(ITEMS):
            for sample in range(samples):
                made = rows[item, sample, number]
                assert relative_db(made, whole[item, :, span]) < -50
                assert relative_db(made[:, : boundary * HOP], whole[item, :, span][:, : boundary * HOP]) < -40
                assert relative_db(made, whole[item - 1, :, span]) > -10


@pytest.mark.parametrize("shift", [0, 15])
def test_contexts_longer_than_targets(codec: Codec, batch: Batch, rendering: Tensor, shift: int) -> None:
    """Blocks follow the whole context, which may end earlier, and are compared with the input's last frames."""
    frames, plan = 40, CropPlan((20,), 0, 20, shift=shift)
    shorter = Batch(
        batch.context,
        batch.input_audio,
        batch.target_audio[..., : frames * HOP],
        batch.target_latents[..., :frames],
        batch.number,
    ).shifted(plan.shift)
    synthesizer, end = new_synthesizer(codec), FRAMES - shift
    boundary = synthesizer.boundary
    whole, song = rendering, torch.cat([batch.input_audio, batch.target_audio], -1)
    truth = Truth(batch)
    made = synthesizer.predict(truth, shorter, plan)
    assert torch.equal(truth.given[-1], truth.latents[..., : end + 20])
    span = slice((end + 20 - boundary) * HOP, (end + 40) * HOP)
    assert all(relative_db(row, whole[number // 2, :, span]) < -50 for number, row in enumerate(made))
    target, source = synthesizer.references(shorter, plan)
    assert torch.equal(target, song[..., span])
    assert torch.equal(source, song[..., (end - 20) * HOP : end * HOP])
    sample = synthesizer.sample(truth, shorter)
    assert sample.shape[-1] == frames * HOP == synthesizer.replay(shorter).shape[-1]
    assert relative_db(sample[::2], whole[..., end * HOP : (end + frames) * HOP]) < -50
    assert torch.equal(shorter.target_audio, song[..., end * HOP : (end + frames) * HOP])
    assert torch.equal(shorter.input_end, song[..., (end - frames) * HOP : end * HOP])


def test_decoding_again_in_the_backward_pass_gives_the_same_audio_and_gradient(codec: Codec, batch: Batch) -> None:
    plan, made = CropPlan((0, 40), 0, 20), []
    for recompute in (False, True):
        truth = Truth(batch)
        truth.latents = truth.latents.clone().requires_grad_()
        audio = new_synthesizer(codec, recompute=recompute).predict(truth, batch, plan)
        (gradient,) = torch.autograd.grad(audio.square().sum(), truth.latents)
        made.append((audio, gradient))
    assert torch.allclose(made[0][0], made[1][0], atol=1e-5)
    assert torch.allclose(made[0][1], made[1][1], atol=1e-4) and made[0][1].abs().max() > 1e-2


def test_crops_of_a_codec_that_works_in_segments_are_exact() -> None:
    torch.manual_seed(0)
    codec = random_seanet(segment_seconds=0.2)  # 15 frames
    batch = batch_of(codec, FRAMES)
    truth = Truth(batch)
    truth.std = torch.ones(129, 1)
    whole = rendered(codec, batch)
    for plan in (CropPlan((0,), 0, 30), CropPlan((30,), 20, 7), CropPlan((0, 30), 4, 9)):
        synthesizer = new_synthesizer(codec, 30, crop_frames=30)
        audio = synthesizer.predict(truth, batch, plan).unflatten(0, (ITEMS, 2, -1))
        for number, start in enumerate(plan.starts):
            first = FRAMES + start + plan.first
            expected = whole[..., (first - synthesizer.boundary) * HOP : (first + plan.frames) * HOP]
            assert relative_db(audio[:, :, number], expected[:, None].expand(-1, 2, -1, -1)) < -100
    assert relative_db(synthesizer.sample(truth, batch)[::2], whole[..., FRAMES * HOP :]) < -100


def test_a_block_is_predicted_from_all_frames_before_it(codec: Codec, batch: Batch) -> None:
    truth, synthesizer = Truth(batch), new_synthesizer(codec, rollout_blocks=2)
    synthesizer.predict(truth, batch, CropPlan((20, 40), 0, 20))
    (given,) = truth.given
    assert torch.equal(given, torch.cat([batch.context, batch.target_latents], -1)[..., : FRAMES + 40])
    assert truth.level is None


def test_in_a_rollout_the_generated_blocks_are_the_past_of_model_and_decoder(codec: Codec, batch: Batch) -> None:
    """With a model that errs, so that its blocks differ from the true ones."""
    wrong, synthesizer = Truth(batch), new_synthesizer(codec, rollout_blocks=2)
    wrong.latents = torch.cat([batch.context, batch.target_latents.flip(-1)], -1)
    audio = synthesizer.predict(wrong, batch, CropPlan((40,), 0, 20, rollout=True))
    assert torch.equal(wrong.given[-1][::2], wrong.latents[..., : FRAMES + 40]) and len(wrong.given[-1]) == 2 * ITEMS
    expected = codec.decode(wrong.latents)[..., (FRAMES + 40 - synthesizer.boundary) * HOP : (FRAMES + 60) * HOP]
    assert relative_db(audio[::2], expected) < -50 and relative_db(audio[1::2], expected) < -50
    before = synthesizer.predict(wrong, batch, CropPlan((40,), 0, 20))[..., : synthesizer.boundary * HOP]
    assert relative_db(before, audio[..., : synthesizer.boundary * HOP]) > -10


@pytest.mark.slow
def test_noise_is_added_to_the_models_context_and_not_to_the_decoders(codec: Codec, batch: Batch) -> None:
    torch.manual_seed(0)
    truth, synthesizer, plan = Truth(batch), new_synthesizer(codec, context_noise=0.3), CropPlan((20,), 0, 1)
    levels = []
    for _ in range(10):
        audio = synthesizer.predict(truth, batch, plan)
        added = truth.given[-1] - torch.cat([batch.context, batch.target_latents], -1)[..., : FRAMES + 20]
        assert truth.level is not None
        assert torch.allclose(added.std((1, 2)), 2.0 * truth.level, rtol=0.05)  # of the channels' deviation
        levels += truth.level.tolist()
    assert 0 < min(levels) < 0.1 and 0.2 < max(levels) <= 0.3
    quiet = new_synthesizer(codec).predict(truth, batch, plan)
    assert torch.allclose(audio, quiet, atol=1e-5)
    given = len(truth.given)
    synthesizer.sample(truth, batch)
    assert torch.equal(truth.given[given], batch.context)  # none on what is validated, and each context once


def test_plans_cover_all_of_a_segment(codec: Codec) -> None:
    torch.manual_seed(0)
    blocks = new_synthesizer(codec, 20, crop_frames=45)
    plans = [blocks.plan(FRAMES) for _ in range(200)]
    assert all(len(plan.starts) == 2 and list(plan.starts) == sorted(set(plan.starts)) for plan in plans)
    assert {start for plan in plans for start in plan.starts} == {0, 20, 40}
    assert {(plan.first, plan.frames, plan.rollout) for plan in plans} == {(0, 20, False)}
    crops = [new_synthesizer(codec, 20, crop_frames=8).plan(FRAMES) for _ in range(300)]
    assert {plan.starts for plan in crops} == {(0,), (20,), (40,)}
    assert {plan.first for plan in crops} == set(range(13)) and {plan.frames for plan in crops} == {8}
    whole = [new_synthesizer(codec, FRAMES, crop_frames=40).plan(FRAMES) for _ in range(500)]
    assert {plan.starts for plan in whole} == {(0,)} and {plan.first for plan in whole} == set(range(36))
    seeded = [blocks.plan(FRAMES, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2, 3, 4)]
    assert seeded[0] == seeded[1] and len({plan.starts for plan in seeded}) > 1
    shifted = [blocks.plan(FRAMES, most_shift=5) for _ in range(100)]
    assert {plan.shift for plan in shifted} == set(range(6)) and {plan.shift for plan in plans} == {0}
    short = new_synthesizer(codec, 20, crop_frames=45).plan(10)
    assert short == CropPlan((0,), 0, 10)


def test_plans_of_rollouts(codec: Codec) -> None:
    torch.manual_seed(0)
    synthesizer = new_synthesizer(codec, 20, crop_frames=45, rollout_blocks=1)
    assert {synthesizer.plan(FRAMES, rollout=True).starts for _ in range(100)} == {(0,), (20,)}
    assert synthesizer.plan(FRAMES, rollout=True).rollout and not synthesizer.plan(FRAMES).rollout
    many = new_synthesizer(codec, 20, crop_frames=45, rollout_blocks=50)
    assert {many.plan(FRAMES, rollout=True).starts for _ in range(100)} == {(0,), (20,), (40,)}
    assert not new_synthesizer(codec).plan(FRAMES, rollout=True).rollout  # where there are to be none


@pytest.mark.parametrize("prior", ["replay", "none", "pointer"])
@pytest.mark.slow
def test_validation_samples_do_not_depend_on_the_rest_of_the_batch(codec: Codec, batch: Batch, prior: str) -> None:
    torch.manual_seed(0)
    model = ContinuationTransformer(128, 16, 2, 1, 0.0, FRAMES).eval()
    model.set_statistics(batch.context.std((0, 2)))
    synthesizer = new_synthesizer(codec, prior=prior)
    together = synthesizer.sample(model, batch)
    assert together.shape == (2 * ITEMS, 1, FRAMES * HOP)
    torch.manual_seed(1)
    assert torch.equal(synthesizer.sample(model, batch), together)
    order = [1, 0, 1]
    parts = Batch(*(part[order] for part in batch._parts()))
    others = synthesizer.sample(model, parts).unflatten(0, (3, 2))
    assert (others - together.unflatten(0, (ITEMS, 2))[order]).abs().max() <= 1e-4 * together.abs().max()
    each = together.unflatten(0, (ITEMS, 2))
    assert relative_db(each[0, 0], each[0, 1]) > -40


@pytest.mark.parametrize("prior", ["replay", "rhythm", "pointer"])
def test_an_untrained_model_continues_with_exactly_the_prior_alone(codec: Codec, batch: Batch, prior: str) -> None:
    torch.manual_seed(0)
    model = ContinuationTransformer(128, 16, 2, 1, 0.0, FRAMES, start_at_prior=True).eval()
    model.set_statistics(batch.context.std((0, 2)))
    synthesizer = new_synthesizer(codec, 20, prior=prior)  # blocks that do not fill the segment
    alone = synthesizer.prior_alone(batch)
    assert alone.shape == (2 * ITEMS, 1, FRAMES * HOP)
    assert torch.equal(synthesizer.sample(model, batch), alone)
    assert relative_db(alone[0], alone[1]) > -40  # each sample has a prior of its own


def test_the_replay_baseline_repeats_the_contexts_frames(codec: Codec, batch: Batch) -> None:
    """At the lags that follow from the item's number and the sample's."""
    replayed, frames = new_synthesizer(codec).replay(batch), torch.arange(FRAMES)
    seeds = [item * MAX_SAMPLES + sample for item in range(ITEMS) for sample in range(2)]
    rows = []
    for row, seed in enumerate(seeds):
        lag = int(draw_lags(1, FRAMES, torch.Generator().manual_seed(seed)))
        context = batch.context[row // 2]
        rows.append(torch.cat([context, context[:, FRAMES - lag + frames % lag]], -1))
    expected = codec.decode(torch.stack(rows))[..., FRAMES * HOP :]
    assert all(relative_db(*pair) < -50 for pair in zip(replayed, expected, strict=True))


class Shifted(Prior):
    """The last frames of the history once more, from as far back as the block is long."""

    @classmethod
    def draw(cls, context: Context, generators: Generators) -> Shifted:
        return cls()

    def frames(self, start: int, steps: int, history: Tensor) -> Tensor:
        return history[..., -steps:].repeat_interleave(2, 0)


def test_the_prior_of_a_training_step_sees_the_true_music_before_each_block(
    monkeypatch: pytest.MonkeyPatch, codec: Codec, batch: Batch
) -> None:
    monkeypatch.setitem(PRIORS._entries, "shifted", Shifted)
    given: list[Tensor] = []

    class Watched(Truth):
        def forward(self, given_: Tensor, steps: int, noise: Any, prior: Any, *more: Any) -> Tensor:
            given.append(prior)
            return super().forward(given_, steps, noise, prior, *more)

    new_synthesizer(codec, prior="shifted").predict(Watched(batch), batch, CropPlan((0, 40), 0, 20))
    truth = torch.cat([batch.context, batch.target_latents], -1)
    expected = torch.cat([truth[..., FRAMES - 20 : FRAMES], truth[..., FRAMES + 20 : FRAMES + 40]], -1)
    assert torch.equal(given[0], expected.repeat_interleave(2, 0))
