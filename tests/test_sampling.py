"""The continuation with models whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from encore.codec import Architecture, FrozenCodec
from encore.errors import EncoreError
from encore.sampling import continue_song, crossfade, reconstruct
from tests.conftest import SAMPLE_RATE, melody

HOP = 320
SEGMENT = 100  # frames
FADE = 2 * HOP


@pytest.fixture(scope="module")
def codec() -> FrozenCodec:
    torch.manual_seed(0)
    return FrozenCodec(*Architecture(n_filters=2).build(), sample_rate=SAMPLE_RATE, channels=1)


@pytest.fixture(scope="module")
def segmented() -> FrozenCodec:
    """A codec that works on segments of 0.2 s (15 frames), each with its own scale."""
    torch.manual_seed(0)
    return FrozenCodec(*Architecture(n_filters=2).build(), sample_rate=SAMPLE_RATE, channels=1, segment_seconds=0.2)


class Repeat(nn.Module):
    """Continues a context by itself, and notes how long its contexts were."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []

    def forward(self, context: Tensor, steps: int | None = None, noise: Tensor | None = None) -> Tensor:
        self.lengths.append(context.shape[-1])
        return context[..., :steps]


class Oracle(nn.Module):
    """Knows the latents of the whole song, and finds the context among them."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents

    def forward(self, context: Tensor, steps: int | None = None, noise: Tensor | None = None) -> Tensor:
        frames = context.shape[-1]
        windows = self.latents.unfold(-1, frames, 1)
        start = int((windows - context[:, :, None]).square().sum((0, 1, 3)).argmin())
        following = self.latents[..., start + frames : start + 2 * frames]
        return following[..., :steps]


def song(samples: int) -> Tensor:
    return torch.from_numpy(melody(samples / SAMPLE_RATE, 0))[None]


def relative_db(signal: Tensor, reference: Tensor) -> float:
    return 20 * math.log10(float((signal - reference).norm() / reference.norm()) + 1e-12)


@pytest.mark.parametrize("samples", [SEGMENT * HOP, SEGMENT * HOP + 123, 3 * SEGMENT * HOP - 1, 30000])
@pytest.mark.parametrize("seconds", [0.0101, 1.0, 3.21987])
def test_lengths_are_exact_and_the_context_ends_with_the_song(codec: FrozenCodec, samples: int, seconds: float) -> None:
    audio = song(samples)
    made = continue_song(Repeat(), codec, audio, seconds, SEGMENT)
    frames = min(SEGMENT, samples // HOP)
    assert made.audio.shape == (1, round(seconds * SAMPLE_RATE))
    assert made.context.shape == (1, frames * HOP)
    torch.testing.assert_close(made.context, audio[:, -frames * HOP :], rtol=0, atol=0)
    assert made.full.shape[1] == made.context.shape[1] + made.audio.shape[1]
    untouched = frames * HOP - FADE
    torch.testing.assert_close(made.full[:, :untouched], made.context[:, :untouched], rtol=0, atol=0)


def test_a_model_that_repeats_gives_the_decoding_of_repeated_latents(codec: FrozenCodec) -> None:
    audio, seconds = song(SEGMENT * HOP), 4.1
    made = continue_song(Repeat(), codec, audio, seconds, SEGMENT)
    whole = codec.decode(codec.encode(audio[None]).repeat(1, 1, 5))[0]
    start, end = SEGMENT * HOP, SEGMENT * HOP + round(seconds * SAMPLE_RATE)
    assert relative_db(made.audio, whole[:, start:end]) < -50
    # At the joins alone, where a fault would be lost in the whole.
    for join in range(start + SEGMENT * HOP, end, SEGMENT * HOP):
        around = slice(join - FADE - 50, join + FADE)
        assert relative_db(made.full[:, around], whole[:, around]) < -50


def test_a_codec_that_works_in_segments_is_joined_exactly(segmented: FrozenCodec) -> None:
    audio = song(90 * HOP)
    made = continue_song(Repeat(), segmented, audio, 3.0, 90)
    whole = segmented.decode(segmented.encode(audio[None]).repeat(1, 1, 4))[0]
    assert relative_db(made.audio, whole[:, 90 * HOP :][:, :72000]) < -100


def test_the_true_latents_give_the_song_through_the_codec_with_no_step(codec: FrozenCodec) -> None:
    audio, end = song(5 * SEGMENT * HOP), 2 * SEGMENT * HOP
    start = end - SEGMENT * HOP
    latents = codec.encode(audio[None, :, start:])
    made = continue_song(Oracle(latents), codec, audio[:, :end], 3.0, SEGMENT)
    through = codec.decode(latents)[0]
    assert relative_db(made.audio, through[:, end - start :][:, : 3 * SAMPLE_RATE]) < -50
    # The seam: the song gives way to its own rendering, sample by sample.
    gain = torch.arange(1, FADE + 1) / (FADE + 1)
    seam = slice(end - start - FADE, end - start)
    expected = (1 - gain) * audio[:, end - FADE : end] + gain * through[:, seam]
    assert relative_db(made.full[:, seam], expected) < -50


def test_a_short_song_is_a_short_context_that_grows(codec: FrozenCodec) -> None:
    model = Repeat()
    continue_song(model, codec, song(80 * HOP), 320 * HOP / SAMPLE_RATE, 200)
    assert model.lengths == [80, 160, 200]
    continue_song(model, codec, song(10 * HOP), 0.5, 10)  # segments of less than a second are context enough
    assert model.lengths[3:] == [10, 10, 10, 10]


def test_a_short_context_is_a_whole_number_of_the_codecs_segments(segmented: FrozenCodec) -> None:
    assert continue_song(Repeat(), segmented, song(89 * HOP), 1.0, 150).context.shape[1] == 75 * HOP


def test_too_little_song_is_an_error(codec: FrozenCodec) -> None:
    with pytest.raises(EncoreError, match=r"0\.50 s long .* at least 1\.00 s .*--input.*--start"):
        continue_song(Repeat(), codec, song(12000), 1.0, SEGMENT)


@pytest.mark.parametrize("samples", [7, SEGMENT * HOP, SEGMENT * HOP + 7, 2 * SEGMENT * HOP + 5000])
def test_reconstruction_is_that_of_each_segment(codec: FrozenCodec, samples: int) -> None:
    audio = song(samples)
    made = reconstruct(codec, audio, SEGMENT)
    assert made.shape == audio.shape
    last = samples - (samples - 1) // (SEGMENT * HOP) * SEGMENT * HOP
    for piece in (slice(SEGMENT * HOP), slice(samples - last, samples)):
        alone = codec.decode(codec.encode(audio[None, :, piece]))[0]
        torch.testing.assert_close(made[:, piece], alone[:, : audio[:, piece].shape[1]])


def test_crossfade_leaves_equal_signals_alone_and_is_linear_between_others() -> None:
    same = torch.randn(2, 100)
    torch.testing.assert_close(crossfade(same, same), same)
    torch.testing.assert_close(crossfade(torch.zeros(1, 3), torch.ones(1, 3)), torch.tensor([[0.25, 0.5, 0.75]]))
