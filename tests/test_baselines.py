"""The baselines: what each one makes of a context; and the held-out pairs of an evaluation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor

from encore.codecs import Codec, load_codec
from encore.data import find_pairs
from encore.errors import EncoreError
from encore.evaluation.baselines import BASELINES, Baselines, Continuer, check_comparable, seeds_of
from encore.evaluation.dataset import EvalSet, partners_elsewhere
from encore.models.priors import draw_lags
from tests.conftest import SAMPLE_RATE, write_pairs

CPU = torch.device("cpu")
PERIOD = 0.4  # seconds


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_codec("starter")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of two seconds: validation pair 0 repeats itself every 0.4 s, 0 and 1 are of one recording."""
    folder = write_pairs(tmp_path_factory.mktemp("pairs"), {"train": 2, "val": 3}, seconds=2.0)
    period = round(PERIOD * SAMPLE_RATE)
    time = torch.arange(2 * 5 * period) % period / SAMPLE_RATE
    beat = 0.4 * torch.sin(2 * torch.pi * 440 * time) * torch.exp(-12 * time)
    for part, audio in zip(("input", "output"), beat.chunk(2), strict=True):
        soundfile.write(folder / "val" / f"pair_0000_{part}.wav", audio.numpy(), SAMPLE_RATE)
    rows = ["pair_0000,a.wav,0,val", "pair_0001,a.wav,2,val", "pair_0002,b.wav,0,val", "pair_0000,c.wav,0,train"]
    (folder / "metadata.csv").write_text("\n".join(["pair,source_file,start_second,split", *rows]) + "\n")
    return folder


def open_set(codec: Codec, folder: Path, items: int | None = None, segments: int = 0) -> EvalSet:
    return EvalSet.open(codec, find_pairs(folder, SAMPLE_RATE), folder / ".latents", items, segments, CPU)


@pytest.fixture(scope="module")
def data(codec: Codec, folder: Path) -> EvalSet:
    return open_set(codec, folder, None, 3)


@pytest.fixture(scope="module")
def continuers(codec: Codec, data: EvalSet) -> dict[str, Continuer]:
    made = Baselines(codec, data, margin=64, seed=0).continuers()
    assert [continuer.name for continuer in made] == list(BASELINES)
    return {continuer.name: continuer for continuer in made}


@pytest.mark.slow
def test_each_baseline_makes_the_waveform_of_its_name(continuers: dict[str, Continuer], data: EvalSet) -> None:
    batch = data.load([0, 1, 2])
    drawn = {name: continuer.draw(batch, 4, 0) for name, continuer in continuers.items()}
    shape = (3, 1, *batch.target_audio.shape[1:])
    assert {name: audio.shape for name, audio in drawn.items() if audio.shape[1] == 1} == dict.fromkeys(
        set(BASELINES) - {"noise", "shards", "replay"}, shape
    )
    assert not drawn["silence"].any()
    torch.testing.assert_close(drawn["copy"][:, 0], batch.input_audio)
    torch.testing.assert_close(drawn["truth"][:, 0], batch.target_audio)
    # The only other recording's for pairs 0 and 1, one of these two's for pair 2.
    torch.testing.assert_close(drawn["other_music"][:2, 0], batch.target_audio[2:].expand(2, -1, -1))
    assert any(drawn["other_music"][2, 0].equal(batch.target_audio[n]) for n in (0, 1))
    error = (drawn["codec"][:, 0] - batch.target_audio).square().mean((1, 2)) / batch.target_audio.square().mean((1, 2))
    assert error.max() < 0.05


def test_the_loop_of_a_beat_continues_the_beat(continuers: dict[str, Continuer], data: EvalSet) -> None:
    batch = data.load([0])
    torch.testing.assert_close(continuers["loop"].draw(batch, 1, 0)[:, 0], batch.target_audio, atol=1e-3, rtol=0)


def test_a_replay_is_the_input_from_a_lag_on(continuers: dict[str, Continuer], data: EvalSet, codec: Codec) -> None:
    batch = data.load([0, 1])
    drawn = continuers["replay"].draw(batch, 3, 0)
    frames = batch.context.shape[-1]
    seeds = iter(seeds_of(batch, 3, 0))
    for row in range(2):
        for audio in drawn[row]:
            lag = int(draw_lags(1, frames, torch.Generator().manual_seed(next(seeds))))
            again = batch.input_audio[row][:, -lag * codec.hop_length :].repeat(1, 4)[:, : audio.shape[-1]]
            assert torch.equal(audio, again)
    assert not drawn[0, 0].equal(drawn[0, 1])


def test_noise_has_the_level_and_the_spectrum_of_the_truth(continuers: dict[str, Continuer], data: EvalSet) -> None:
    batch = data.load([0, 1])
    drawn = continuers["noise"].draw(batch, 2, 0)
    truth = batch.target_audio[:, None].expand_as(drawn)
    torch.testing.assert_close(drawn.square().mean(-1), truth.square().mean(-1), rtol=1e-4, atol=0)
    bands = [torch.fft.rfft(audio).abs().square().unfold(-1, 400, 400).mean(-1) for audio in (drawn, truth)]
    loud = bands[1] > 1e-2 * bands[1].amax(-1, keepdim=True)
    assert (10 * (bands[0] / bands[1]).log10()).abs()[loud].max() < 3  # dB
    assert (drawn[:, 0] * drawn[:, 1]).mean().abs() < 0.1 * drawn.square().mean()


def test_shards_are_random_pieces_of_the_context(codec: Codec, data: EvalSet) -> None:
    made: list[Tensor] = []

    class Kept:
        """A codec that decodes nothing and keeps the latents it is given."""

        frame_rate, hop_length, segment_frames = codec.frame_rate, codec.hop_length, None

        def decode_continuation(self, context: Tensor, continuation: Tensor, margin: int, lead: int) -> Tensor:
            made.append(continuation)
            return continuation

    batch = data.load([0, 1])
    Baselines(Kept(), data, margin=0, seed=0).shards(batch, 30, [1, 2, 3, 4])  # type: ignore[arg-type]
    (latents,) = made
    assert latents.shape == (4, codec.latent_dim, 30)
    for row, shards in enumerate(latents):
        context = batch.context[row // 2].unfold(-1, 8, 1)  # a tenth of a second is 8 frames
        places = [(context == shard[:, None]).all(-1).all(0).nonzero() for shard in shards[:, :24].split(8, -1)]
        assert all(len(place) for place in places) and len({int(place[0]) for place in places}) > 1


@pytest.mark.slow
def test_candidates_depend_on_pair_seed_and_number_alone(continuers: dict[str, Continuer], data: EvalSet) -> None:
    together = continuers["replay"].draw(data.load([0, 1, 2]), 3, 7)
    alone = continuers["replay"].draw(data.load([2]), 2, 7)
    torch.testing.assert_close(together[2:, :2], alone, atol=1e-5, rtol=0)
    assert not continuers["replay"].draw(data.load([2]), 2, 8).allclose(alone, atol=1e-3)


def test_what_is_heard_before_goes_over_into_the_continuation(
    continuers: dict[str, Continuer], codec: Codec, data: EvalSet
) -> None:
    batch = data.load([0, 1])
    before, audio = continuers["replay"].hear(batch, 1, 0)
    lead = continuers["replay"].lead
    assert lead == 8 * codec.hop_length and before.shape == batch.input_audio.shape
    torch.testing.assert_close(before[..., :-lead], batch.input_audio[..., :-lead])
    assert not before[..., -lead:].allclose(batch.input_audio[..., -lead:], atol=1e-2)
    torch.testing.assert_close(audio, continuers["replay"].draw(batch, 1, 0))
    assert continuers["truth"].hear(batch, 1, 0)[0] is batch.input_audio

    # The truth through the codec is music that goes on, so that the end of the input is the codec's too.
    before, audio = continuers["codec"].hear(batch, 1, 0)
    whole = codec.decode(codec.encode(torch.cat([batch.input_audio, batch.target_audio], -1)))
    torch.testing.assert_close(audio[:, 0], whole[..., -audio.shape[-1] :], atol=2e-3, rtol=0)
    last = before[..., -1] - whole[..., before.shape[-1] - 1]
    assert last.abs().max() < 0.1 * (before[..., -1] - batch.input_audio[..., -1]).abs().max() + 2e-3


def test_long_continuations_begin_like_short_ones(continuers: dict[str, Continuer], data: EvalSet) -> None:
    batch = data.load([1])
    for name in ("loop", "replay"):
        audio = continuers[name].draw(batch, 1, 0, frames=400)
        assert audio.shape[-1] == 400 * data.held_out.hop_length
        first = continuers[name].draw(batch, 1, 0)
        torch.testing.assert_close(audio[..., : first.shape[-1]], first, atol=1e-4, rtol=0)


def test_pairs_and_their_recordings(data: EvalSet, folder: Path, codec: Codec, tmp_path: Path) -> None:
    assert data.recordings == ["a.wav", "a.wav", "b.wav"] and data.recordings_known
    assert data.one_of_each(2) == [0, 2] and data.one_of_each(9) == [0, 2, 1]
    assert partners_elsewhere(["a", "a"], 0) is None
    copy = shutil.copytree(folder, tmp_path / "pairs")
    few = open_set(codec, copy, 2, 1)
    assert [pair.input.name[:9] for pair in few.held_out.pairs] == ["pair_0000", "pair_0001"]
    assert (few.total, len(few.train)) == (3, 1)
    (copy / "metadata.csv").write_text("pair,source_file,start_second,split\npair_0000,a.wav,0,val\n")
    with pytest.raises(EncoreError, match=r"the recording of pair_0001, pair_0002 is unknown"):
        open_set(codec, copy, None, 0)
    (copy / "metadata.csv").write_text("pair,split\n")  # another program's file of that name
    assert not open_set(codec, copy, None, 0).recordings_known
    (copy / "metadata.csv").unlink()
    unknown = open_set(codec, copy, None, 0)
    assert not unknown.recordings_known and len(set(unknown.recordings)) == 3


def test_too_little_data_is_refused(codec: Codec, tmp_path: Path) -> None:
    with pytest.raises(EncoreError, match=r"_output.wav: 0\.49 s long; evaluation needs at least 1 s"):
        open_set(codec, write_pairs(tmp_path / "short", {"train": 1, "val": 2}, 0.5))
    with pytest.raises(EncoreError, match="there is one pair in val"):
        open_set(codec, write_pairs(tmp_path / "one", {"train": 1, "val": 1}))


def test_only_models_of_like_codecs_are_compared(codec: Codec) -> None:
    check_comparable(codec, {"twin": codec})
    other = load_codec("starter")
    other.sample_rate = 48000
    with pytest.raises(EncoreError, match="--against other: its codec has 48000 Hz"):
        check_comparable(codec, {"other": other})
