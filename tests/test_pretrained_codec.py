"""The pretrained EnCodec, where its weights are: in torch.hub's cache, or in the folder of --codec_repository.

    python -m pytest tests/test_pretrained_codec.py --codec_repository DIR

Without weights these tests are skipped; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.bench_codec import card_metrics
from encore.audio import read_audio
from encore.codecs import Codec, load_codec
from encore.codecs.encodec import PRETRAINED
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def repository(request: pytest.FixtureRequest) -> Path:
    """The folder that has the weights of encodec_24khz."""
    given = request.config.getoption("--codec_repository")
    folder = Path(given) if given else Path(torch.hub.get_dir()) / "checkpoints"
    if not given and not (folder / PRETRAINED["encodec_24khz"]).is_file():
        pytest.skip(f"no {PRETRAINED['encodec_24khz']} in {folder}; name its folder with --codec_repository")
    return folder


@pytest.fixture(scope="module")
def codec(repository: Path) -> Codec:
    return load_codec("encodec_24khz", repository)


@pytest.fixture(scope="module")
def music() -> Tensor:
    """Four seconds: the bundled second, repeated."""
    return read_audio(ROOT / "assets" / "starter_codec_check.flac", 24000, 1).repeat(1, 4)[None]


def test_latents_are_75_frames_a_second_of_128_channels(codec: Codec, music: Tensor) -> None:
    assert (codec.sample_rate, codec.channels, codec.frame_rate, codec.latent_dim) == (24000, 1, 75, 128)
    latents = codec.encode(music[..., :-100])
    assert latents.shape == (1, 128, 300)
    assert torch.isfinite(latents).all() and (latents.std((0, 2)) > 1e-3).all()
    assert codec.decode(latents).shape == (1, 1, 96000)


def test_the_round_trip_sounds_like_the_music(codec: Codec, music: Tensor) -> None:
    decoded = codec.decode(codec.encode(music))
    metrics = card_metrics(decoded, music, 24000)
    assert metrics["SI-SDR (dB)"] > 3
    assert metrics["mel to 12 kHz"] < 1
    assert decoded.square().mean() / music.square().mean() == pytest.approx(1, abs=0.5)


def test_the_margin_holds_in_the_middle_of_music(codec: Codec, music: Tensor) -> None:
    margin = codec.margin
    assert 8 <= margin < 300
    latents = codec.encode(music)
    whole = codec.decode(latents)[..., 200 * 320 : 240 * 320]
    error = codec.decode_crop(latents, 200, 40, margin) - whole
    assert 20 * torch.log10(error.norm() / whole.norm()) < -50


def test_the_quantiser_keeps_most_of_it(repository: Path, codec: Codec, music: Tensor) -> None:
    quantised = load_codec("encodec_24khz", repository, bandwidth=24.0)
    assert quantised.identity != codec.identity
    coarse, exact = quantised.encode(music), codec.encode(music)
    assert 0 < (coarse - exact).norm() < 0.7 * exact.norm()
