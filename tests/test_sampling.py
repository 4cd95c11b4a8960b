"""Continuations by models whose output is known."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encore.codecs import Codec, load_codec
from encore.codecs.encodec import SEANetCodec
from encore.config.schema import TrainConfig
from encore.errors import EncoreError
from encore.inference.continuation import (
    Contexts,
    Continuation,
    continue_latents,
    continue_song,
    reconstruct,
    stream_song,
)
from encore.models.generation import make_generators
from encore.models.loading import Generator, build_model
from encore.models.priors import crossfade, draw_lags
from encore.models.transformer import KVCache
from tests.conftest import SAMPLE_RATE, melody, random_seanet

HOP = 320
SEGMENT = 100  # frames
FADE = 8 * HOP
TINY = TrainConfig.from_flags(d_model=16, nhead=2, num_layers=2, dropout=0.0)


@pytest.fixture(scope="module")
def codec() -> SEANetCodec:
    torch.manual_seed(0)
    return random_seanet()


@pytest.fixture(scope="module")
def segmented() -> Codec:
    """A codec that works on segments of 0.2 s (15 frames), each with its own scale."""
    torch.manual_seed(0)
    return random_seanet(segment_seconds=0.2)


@pytest.fixture(scope="module")
def starter() -> Codec:
    """With it, other latents give other audio, unlike with random weights."""
    return load_codec("starter")


def repeating(codec: Codec, frames: int = SEGMENT) -> Generator:
    """A model that repeats its context: a regression that returns its prior unchanged."""
    config = TrainConfig.from_flags(TINY.to_dict(), objective="regression", prior="replay").resolved()
    torch.manual_seed(0)
    generator = Generator(build_model(config, codec, frames).eval(), codec, config, frames, frames, codec.margin)
    nn.init.zeros_(generator.model.scale)
    return generator


def drawing(
    codec: Codec, prior: str = "replay", block_seconds: float = 0.4, context_seconds: float | None = None
) -> Generator:
    """An untrained model of the objective energy whose samples differ, whatever the prior."""
    config = TrainConfig.from_flags(
        TINY.to_dict(), objective="energy", prior=prior, block_seconds=block_seconds, context_seconds=context_seconds
    ).resolved()
    torch.manual_seed(1)
    generator = Generator(build_model(config, codec, SEGMENT).eval(), codec, config, SEGMENT, SEGMENT, codec.margin)
    nn.init.normal_(generator.model.out_proj.weight, std=0.3)
    nn.init.ones_(generator.model.scale)
    return generator


class Oracle(nn.Module):
    """Returns the latents of a known song; counts the frames that it is given."""

    pointer = None
    gains = None

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents

    def prefill(self, latents: Tensor, cache: int = 0) -> int:
        return cache + latents.shape[-1]

    def decode_block(self, cache: int, steps: int, noise: Tensor | None, prior: Tensor | None, bands: None) -> Tensor:
        return self.latents[..., cache : cache + steps]


def song(samples: int) -> Tensor:
    return torch.from_numpy(melody(samples / SAMPLE_RATE, 0))[None]


def relative_db(signal: Tensor, reference: Tensor) -> float:
    return 20 * math.log10(float((signal - reference).norm() / reference.norm()) + 1e-12)


@pytest.mark.parametrize("samples", [SEGMENT * HOP, SEGMENT * HOP + 123, 3 * SEGMENT * HOP - 1, 30000])
@pytest.mark.parametrize("seconds", [0.0101, 1.0, 3.21987])
def test_lengths_are_exact_and_the_context_ends_with_the_song(codec: Codec, samples: int, seconds: float) -> None:
    audio = song(samples)
    made = continue_song(repeating(codec), audio, seconds)
    frames = min(SEGMENT, samples // HOP)
    assert made.audio.shape == (1, 1, round(seconds * SAMPLE_RATE))
    assert made.context.shape == (1, frames * HOP)
    torch.testing.assert_close(made.context, audio[:, -frames * HOP :], rtol=0, atol=0)
    assert made.full.shape[2] == made.context.shape[1] + made.audio.shape[2]
    untouched = frames * HOP - FADE
    torch.testing.assert_close(made.full[0, :, :untouched], made.context[:, :untouched], rtol=0, atol=0)


def test_a_model_that_repeats_gives_the_decoding_of_repeated_latents(codec: Codec) -> None:
    audio, seconds = song(SEGMENT * HOP), 4.1
    made = continue_song(repeating(codec), audio, seconds)
    whole = codec.decode(codec.encode(audio[None]).repeat(1, 1, 5))
    start, end = SEGMENT * HOP, SEGMENT * HOP + round(seconds * SAMPLE_RATE)
    assert relative_db(made.audio, whole[..., start:end]) < -50
    # Around the joins alone, as an error there would hardly change the whole.
    for joint in range(start + SEGMENT * HOP, end, SEGMENT * HOP):
        around = slice(joint - FADE - 50, min(joint + FADE, end))
        assert relative_db(made.full[..., around], whole[..., around]) < -50


@pytest.mark.parametrize(("frames", "kept"), [(90, 90), (97, 90), (20, 15)])
@pytest.mark.slow
def test_a_codec_with_independent_segments_is_joined_exactly(segmented: Codec, frames: int, kept: int) -> None:
    """Also if the song is not a whole number of the codec's segments long: its context then is."""
    audio = song(frames * HOP)
    made = continue_song(repeating(segmented, 15 * (frames // 15)), audio, 3.0)
    assert made.context.shape[1] == kept * HOP
    latents = segmented.encode(audio[None, :, -kept * HOP :])
    whole = segmented.decode(latents.repeat(1, 1, 18))
    assert relative_db(made.audio, whole[..., kept * HOP :][..., :72000]) < -100
    through, joint = whole[0, :, kept * HOP - FADE : kept * HOP], made.full[0, :, kept * HOP - FADE : kept * HOP]
    assert relative_db(joint, crossfade(made.context[None, :, -FADE:], through[None])[0]) < -100


@pytest.mark.parametrize("frames", [10, 15, 40])
def test_a_continuation_is_decoded_from_the_beginning_of_a_segment(segmented: Codec, frames: int) -> None:
    latents = segmented.encode(song(90 * HOP)[None])
    made = segmented.decode_continuation(latents[..., :frames], latents[..., :30], margin=0)
    torch.testing.assert_close(made, segmented.decode(latents[..., :30]))


def test_the_true_latents_give_the_song_through_the_codec_without_a_discontinuity(codec: Codec) -> None:
    audio, end = song(5 * SEGMENT * HOP), 2 * SEGMENT * HOP
    start = end - SEGMENT * HOP
    latents = codec.encode(audio[None, :, start:])
    through = codec.decode(latents)[0]
    whole = Generator(Oracle(latents), codec, repeating(codec).config, SEGMENT, SEGMENT, codec.margin)  # type: ignore[arg-type]
    for generator in (
        whole,
        replace(whole, config=drawing(codec, "none").config),
    ):  # a segment at once, and blocks of 30 frames
        made = continue_song(generator, audio[:, :end], 3.0)
        assert relative_db(made.audio[0], through[:, end - start :][:, : 3 * SAMPLE_RATE]) < -50
        # The cross-fade from the song to its own reconstruction, sample by sample.
        joint = slice(end - start - FADE, end - start)
        expected = crossfade(audio[None, :, end - FADE : end], through[None, :, joint])
        assert relative_db(made.full[:1, :, joint], expected) < -50


def test_a_song_fades_into_what_lies_before_the_excerpt_that_follows(starter: Codec) -> None:
    audio, seeds = song(SEGMENT * HOP), [1, 2, 5]
    made = continue_song(drawing(starter, "replay"), audio, 1.0, seeds)
    lags = [int(draw_lags(1, SEGMENT, generator)) for generator in make_generators(seeds)]
    assert max(lags) < SEGMENT - 8  # none begins so early that it has nothing before it
    for row, lag in enumerate(lags):
        before = audio[None, :, : -lag * HOP][..., -FADE:]
        end = slice(audio.shape[1] - FADE, audio.shape[1])
        assert relative_db(made.full[row, :, end], crossfade(audio[None, :, -FADE:], before)[0]) < -40


def test_an_excerpt_sounds_as_it_was_recorded_unless_the_model_changes_it(starter: Codec) -> None:
    audio, lag = song(SEGMENT * HOP), 70  # the replay's of seed 1
    audio = audio + 0.05 * torch.randn(audio.shape, generator=torch.Generator().manual_seed(0))  # what it can't code
    generator, expected = drawing(starter, "replay"), audio[None, :, -lag * HOP :]
    contexts = Contexts(starter.encode(audio[None]), audio[None])
    through = starter.decode(contexts.latents[..., -lag:])
    assert relative_db(through, expected) > -20
    played = continue_latents(generator, contexts, lag, [1], prior_alone=True)[..., FADE:]
    assert relative_db(played, expected) < -60
    # Of what has little in common with its guess, nothing but what the codec makes of it is heard.
    other = torch.randn(1, starter.latent_dim, 90) * contexts.latents.std()  # three blocks
    oracle = Oracle(torch.cat([contexts.latents, other], -1))
    played = continue_latents(replace(generator, model=oracle), contexts, lag, [1])[..., FADE:]  # type: ignore[arg-type]
    before = contexts.latents[..., -lag - 16 : -lag]
    alone = starter.decode(torch.cat([before, other[..., :lag]], -1))[..., before.shape[-1] * HOP :]
    assert relative_db(played, alone) < -60


def test_blocks_may_be_shorter_than_a_cross_fade(codec: Codec) -> None:
    latents = codec.encode(song(3 * SEGMENT * HOP)[None])
    config = drawing(codec, "none", block_seconds=0.01).config  # one frame
    generator = Generator(Oracle(latents), codec, config, SEGMENT, SEGMENT, codec.margin)  # type: ignore[arg-type]
    made = continue_song(generator, song(3 * SEGMENT * HOP)[:, : SEGMENT * HOP], 0.5)
    assert relative_db(made.audio, codec.decode(latents)[..., SEGMENT * HOP :][..., :12000]) < -50


def test_a_short_song_is_a_short_context(codec: Codec, segmented: Codec) -> None:
    assert continue_song(repeating(codec, 200), song(80 * HOP), 1.5).context.shape[1] == 80 * HOP
    # Segments of less than a second are context enough.
    assert continue_song(repeating(codec, 10), song(10 * HOP), 0.5).context.shape[1] == 10 * HOP
    assert continue_song(repeating(segmented, 150), song(89 * HOP), 1.0).context.shape[1] == 75 * HOP


def test_too_little_song_is_an_error(codec: Codec) -> None:
    with pytest.raises(EncoreError, match=r"0\.50 s long .* at least 1\.00 s .*--input.*--start"):
        continue_song(repeating(codec), song(12000), 1.0)


def continued(generator: Generator, seeds: Sequence[int], temperature: float = 1.0) -> Continuation:
    return continue_song(generator, song(SEGMENT * HOP), 1.3, seeds, temperature)


@pytest.mark.parametrize("prior", ["replay", "rhythm", "pointer", "none"])
@pytest.mark.slow
def test_a_candidate_depends_on_its_own_seed_only(starter: Codec, prior: str) -> None:
    generator = drawing(starter, prior)
    three = continued(generator, [5, 6, 7])
    for number, seed in enumerate([5, 6, 7]):
        assert relative_db(continued(generator, [seed]).audio[0], three.audio[number]) < -80
    for one, other in ((0, 1), (1, 2), (2, 0)):
        assert relative_db(three.audio[one], three.audio[other]) > -20
    # Likewise for latents of several contexts.
    audio = song(SEGMENT * HOP)[None]
    context = Contexts(starter.encode(audio), audio)
    both = continue_latents(generator, context, 60, [6, 7])
    assert relative_db(continue_latents(generator, context, 60, [7])[0], both[1]) < -80
    assert relative_db(both[0], both[1]) > -20
    two = Contexts(*(torch.cat([part.flip(-1), part]) for part in (context.latents, context.audio)))
    four = continue_latents(generator, two, 60, [5, 4, 6, 7])
    assert relative_db(four[2:].flatten(), both.flatten()) < -80


@pytest.mark.slow
def test_temperature_scales_the_noise_and_leaves_the_lag_to_the_seed(starter: Codec) -> None:
    free = drawing(starter, "none")
    cold, warm = continued(free, [1, 2], 0.0).audio, continued(free, [1, 2], 0.5).audio
    assert relative_db(cold[0], cold[1]) < -80
    assert relative_db(warm[0], warm[1]) > -40
    lagged = continued(drawing(starter, "replay"), [1, 2], 0.0).audio
    assert relative_db(lagged[0], lagged[1]) > -20


def living() -> int:
    """Bytes of all tensors."""
    gc.collect()
    tensors = (item for item in gc.get_objects() if type(item) is Tensor)
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


@pytest.mark.parametrize("prior", ["replay", "rhythm", "pointer"])
@pytest.mark.slow
def test_time_and_memory_per_block_are_constant(
    monkeypatch: pytest.MonkeyPatch, codec: SEANetCodec, prior: str
) -> None:
    generator = drawing(codec, prior, context_seconds=0.8)
    attended: list[int] = []
    decoded: list[int] = []
    decode_block = generator.model.decode_block

    def watched(cache: KVCache, *arguments: Any, **named: Any) -> Tensor:
        attended.append(cache.keys[0].shape[2])
        return decode_block(cache, *arguments, **named)

    monkeypatch.setattr(generator.model, "decode_block", watched)
    hook = codec.decoder.register_forward_pre_hook(lambda _, given: decoded.append(given[0].shape[2]))
    _, pieces = stream_song(generator, song(2 * SEGMENT * HOP), 1e6, seeds=[0, 1])
    memory, costs = [], []
    gc.collect()
    gc.freeze()  # what is there before need not be gone through
    for number in range(17):
        piece = next(pieces)
        if number in (6, 11, 16):
            memory.append(living())
            costs.append((attended[-2:], decoded[-1], piece.shape))
    hook.remove()
    assert memory[0] == memory[1] == memory[2]
    assert costs[0][0] == [60, 60]  # past frames of the two last blocks
    assert costs[0] == costs[1] == costs[2]


@pytest.mark.parametrize("samples", [7, SEGMENT * HOP, SEGMENT * HOP + 7, 2 * SEGMENT * HOP + 5000])
def test_reconstruction_is_that_of_each_segment(codec: Codec, samples: int) -> None:
    audio = song(samples)
    made = reconstruct(codec, audio, SEGMENT)
    assert made.shape == audio.shape
    last = samples - (samples - 1) // (SEGMENT * HOP) * SEGMENT * HOP
    for piece in (slice(SEGMENT * HOP), slice(samples - last, samples)):
        alone = codec.decode(codec.encode(audio[None, :, piece]))[0]
        torch.testing.assert_close(made[:, piece], alone[:, : audio[:, piece].shape[1]])
