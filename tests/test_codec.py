"""Codecs: shapes, gradients, crops, files, and the loading of pretrained models, with weights made by the tests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encodec import EncodecModel
from encodec.modules.conv import SConv1d, pad1d
from torch import nn

from encore.codecs import Codec, load_codec
from encore.codecs.elu import ELU
from encore.codecs.encodec import PRETRAINED, _pretrained_state
from encore.codecs.padding import ReflectConv1d, reflect
from encore.codecs.starter.network import Architecture, StarterDecoder, StarterEncoder
from encore.codecs.starter.weights import STARTER_WEIGHTS, load_codec_file, save_codec
from encore.errors import EncoreError
from tests.conftest import SAMPLE_RATE, melody, random_seanet


@pytest.fixture(scope="module")
def starter() -> Codec:
    return load_codec("starter")


@pytest.fixture(scope="module")
def latents(starter: Codec) -> torch.Tensor:
    return starter.encode(torch.from_numpy(melody(8, 3))[None, None])


def test_starter_has_the_documented_shape(starter: Codec, latents: torch.Tensor) -> None:
    assert (starter.sample_rate, starter.channels, starter.frame_rate, starter.latent_dim) == (24000, 1, 75, 128)
    assert latents.shape == (1, 128, 600)
    assert starter.decode(latents).shape == (1, 1, 8 * SAMPLE_RATE)
    assert starter.encode(torch.zeros(1, 1, 321)).shape[-1] == 2  # the last frame is padded


def test_gradients_reach_the_latents_and_weights_stay(starter: Codec, latents: torch.Tensor) -> None:
    before = starter.identity
    part = latents[..., :20].clone().requires_grad_()
    starter.decode(part).square().sum().backward()
    assert part.grad is not None and part.grad.isfinite().all() and part.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in starter.parameters())
    assert starter.hash_weights() == before
    assert not starter.encode(torch.randn(1, 1, 3200, requires_grad=True)).requires_grad


def test_only_the_decoders_lstm_is_ever_in_training_mode() -> None:
    codec = random_seanet()
    codec.train()
    training = {name for name, module in codec.named_modules() if module.training}
    lstms = {name for name, module in codec.decoder.named_modules(prefix="decoder") if isinstance(module, nn.LSTM)}
    assert training == lstms and lstms


def random_codec() -> Codec:
    """A codec of random weights, whose LSTM has a longer memory than a trained one."""
    torch.manual_seed(0)
    return random_seanet(4)


@pytest.mark.parametrize("build", [lambda: load_codec("starter"), random_codec], ids=["starter", "random"])
@pytest.mark.slow
def test_a_crop_equals_the_whole_decoding(build: Callable[[], Codec]) -> None:
    """The margin is measured on noise, in the middle of it; it must hold at other positions of music too."""
    codec = build()
    margin = codec.margin
    assert 8 <= margin < 300
    latents = codec.encode(torch.from_numpy(melody(6, 17))[None, None])
    whole = codec.decode(latents)
    for start, frames in ((0, 30), (200, 40), (311, 139)):
        assert relative_error(codec.decode_crop(latents, start, frames, margin), whole, start) < -50


def relative_error(crop: torch.Tensor, whole: torch.Tensor, start: int) -> float:
    """Error of a crop that begins at frame `start`, in dB relative to the whole decoding."""
    wanted = whole[..., start * 320 : start * 320 + crop.shape[-1]]
    assert crop.shape == wanted.shape
    return 20 * torch.log10((crop - wanted).norm() / wanted.norm() + 1e-9).item()


@pytest.mark.slow
def test_a_crop_without_its_margin_differs() -> None:
    codec = random_codec()
    latents = codec.encode(torch.from_numpy(melody(6, 17))[None, None])
    whole, margin = codec.decode(latents), codec.measure_margin(latents)
    bare, measured = (relative_error(codec.decode_crop(latents, 311, 139, m), whole, 311) for m in (0, margin))
    assert measured < -60 < bare
    assert codec.measure_margin(latents, tolerance_db=-50) == margin == codec.margin
    assert codec.measure_margin(latents, tolerance_db=-130) > margin


def test_a_codec_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    architecture = Architecture(sample_rate=8000, coefficients=24, envelopes=4, bands=6, width=8, layers=2)
    encoder, decoder = StarterEncoder(architecture), StarterDecoder(architecture)
    for parameter in [*encoder.parameters(), *decoder.parameters()]:
        parameter.data = (0.1 * torch.randn_like(parameter)).half().float()  # what half precision keeps
    save_codec(tmp_path / "own.safetensors", architecture, encoder, decoder)
    codec = load_codec(str(tmp_path / "own.safetensors"))
    assert (codec.sample_rate, codec.channels, codec.latent_dim, codec.hop_length) == (8000, 1, 28, 320)
    audio = torch.randn(3, 1, 800)
    with torch.no_grad():
        torch.testing.assert_close(codec.encode(audio), encoder(audio), atol=1e-5, rtol=0)
        torch.testing.assert_close(codec.decode(encoder(audio)), decoder(encoder(audio)), atol=1e-5, rtol=0)
    assert load_codec(str(tmp_path / "own.safetensors")).identity == codec.identity
    with torch.no_grad():
        decoder.rest.bias[0] += 1
    save_codec(tmp_path / "other.safetensors", architecture, encoder, decoder)
    assert load_codec(str(tmp_path / "other.safetensors")).identity != codec.identity


@pytest.mark.parametrize("content", [b"no codec", STARTER_WEIGHTS.read_bytes()[:5000]])
def test_other_files_than_codecs_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(EncoreError, match=f"--codec {path}: not a codec"):
        load_codec_file(path)


def test_a_codec_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        EncoreError, match="--codec encodec_32khz: no such codec; there are encodec_24khz, encodec_48khz, starter"
    ):
        load_codec("encodec_32khz")
    with pytest.raises(EncoreError, match="--encodec_bandwidth 6: codec starter has no quantiser"):
        load_codec("starter", bandwidth=6)


def repository(folder: Path, name: str) -> EncodecModel:
    """Writes randomly initialised weights under a name like those of the package, with their checksum."""
    torch.manual_seed(1)
    build = {"encodec_24khz": EncodecModel.encodec_model_24khz, "encodec_48khz": EncodecModel.encodec_model_48khz}
    model = build[name](pretrained=False)
    for quantiser in model.quantizer.vq.layers:
        quantiser._codebook.embed.normal_()
    torch.save(model.state_dict(), folder / "weights")
    checksum = hashlib.sha256((folder / "weights").read_bytes()).hexdigest()[:8]
    (folder / "weights").rename(folder / f"{name}-{checksum}.th")
    return model


@pytest.mark.slow
def test_encodec_24khz_from_a_repository_is_the_packages_model(tmp_path: Path) -> None:
    reference = repository(tmp_path, "encodec_24khz")
    codec = load_codec("encodec_24khz", tmp_path)
    audio = torch.from_numpy(melody(0.5, 1))[None, None]
    with torch.no_grad():
        wanted = reference.encoder(audio)
        assert torch.allclose(codec.encode(audio), wanted, atol=1e-4)  # weight norm is folded: other rounding
        assert torch.allclose(codec.decode(wanted), reference.decoder(wanted), atol=1e-4)
    assert not any("weight_g" in name for name in codec.state_dict())

    quantised = load_codec("encodec_24khz", tmp_path, bandwidth=6.0)
    reference.set_target_bandwidth(6.0)
    with torch.no_grad():
        codes, _ = reference.encode(audio)[0]
        expected = reference.quantizer.decode(codes.transpose(0, 1))
    assert torch.allclose(quantised.encode(audio), expected, atol=1e-4)
    assert quantised.identity != codec.identity
    with pytest.raises(EncoreError, match="--encodec_bandwidth 7: encodec_24khz has 1.5, 3, 6, 12, 24 kbit/s"):
        load_codec("encodec_24khz", tmp_path, bandwidth=7.0)

    (file,) = tmp_path.glob("*.th")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(EncoreError, match="is damaged"):
        load_codec("encodec_24khz", tmp_path)


@pytest.mark.slow
def test_encodec_48khz_keeps_each_seconds_volume_as_a_latent(tmp_path: Path) -> None:
    reference = repository(tmp_path, "encodec_48khz")
    codec = load_codec("encodec_48khz", tmp_path)
    assert (codec.channels, codec.frame_rate, codec.latent_dim, codec.segment_frames) == (2, 150, 129, 150)
    audio = torch.randn(2, 2, 72000) * torch.tensor([0.1, 0.5])[:, None, None]
    latents = codec.encode(audio)
    assert latents.shape == (2, 129, 225)
    with torch.no_grad():
        scale = audio[..., :48000].mean(1, keepdim=True).square().mean(2, keepdim=True).sqrt() + 1e-8
        assert torch.allclose(latents[:, :128, :150], reference.encoder(audio[..., :48000] / scale), atol=1e-3)
        assert torch.allclose(latents[:, 128:, :150].exp(), scale.expand(-1, 1, 150))
        decoded = codec.decode(latents[..., :150])
        assert torch.allclose(decoded, reference.decoder(latents[:, :128, :150]) * scale, atol=1e-3)
    # Segments are independent, so a crop within the second one is decoded exactly.
    whole = codec.decode(latents)
    assert torch.allclose(codec.decode_crop(latents, 160, 20, margin=0), whole[..., 160 * 320 : 180 * 320], atol=1e-5)


def test_missing_weights_are_explained(tmp_path: Path) -> None:
    with pytest.raises(EncoreError, match=r"no encodec_24khz-d7cc33bc.th in it; put it there, or use --codec starter"):
        load_codec("encodec_24khz", tmp_path)


def test_a_download_that_fails_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A proxy on a closed port: the download fails the same way with and without a network.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(EncoreError) as caught:
        load_codec("encodec_24khz")
    for part in ("could not be downloaded", "encodec_24khz-d7cc33bc.th", "--codec_repository", "--codec starter"):
        assert part in str(caught.value)


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, made: Path):
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.made),))


def test_a_file_planted_in_the_cache_runs_no_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / PRETRAINED["encodec_24khz"]
    cached.parent.mkdir(parents=True)
    torch.save(Evil(tmp_path / "made"), cached)
    with pytest.raises(EncoreError, match=f"{cached} is damaged .checksum., and .* could not be downloaded"):
        load_codec("encodec_24khz")
    # Nor does one whose name carries the right checksum.
    digest = hashlib.sha256(cached.read_bytes()).hexdigest()
    renamed = cached.rename(cached.with_name(f"encodec_24khz-{digest[:8]}.th"))
    with pytest.raises(EncoreError, match=f"--codec encodec_24khz: {renamed} holds no weights .*posix.mkdir"):
        load_codec("encodec_24khz", renamed.parent)
    # A name without a checksum is no promise.
    renamed.rename(renamed.with_name("encodec_24khz-.th"))
    with pytest.raises(EncoreError, match="no encodec_24khz-d7cc33bc.th in it"):
        load_codec("encodec_24khz", renamed.parent)
    assert not (tmp_path / "made").exists()


def test_a_damaged_file_in_the_cache_is_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = {"a": torch.arange(3.0)}
    torch.save(weights, tmp_path / "weights")
    name = f"encodec_24khz-{hashlib.sha256((tmp_path / 'weights').read_bytes()).hexdigest()[:8]}.th"
    (tmp_path / "weights").rename(tmp_path / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(PRETRAINED, "encodec_24khz", name)
    monkeypatch.setattr("encore.codecs.encodec.ROOT_URL", tmp_path.as_uri() + "/")
    cached = tmp_path / "home" / "hub" / "checkpoints" / name
    for _ in range(2):
        assert torch.equal(_pretrained_state("encodec_24khz", None)["a"], weights["a"])
        cached.write_bytes(cached.read_bytes()[:-100])
    (tmp_path / name).write_bytes(b"another file")
    with pytest.raises(EncoreError, match=f"{cached} is damaged .* could not be downloaded .invalid hash value"):
        _pretrained_state("encodec_24khz", None)


def test_the_fast_elu_is_pytorchs_with_its_gradients() -> None:
    x = torch.cat([torch.tensor([0.0, -1e-6, 1e-6, -30.0, 30.0]), torch.linspace(-3, 3, 10_001)])
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    made, expected = ELU()(ours), nn.functional.elu(theirs)
    torch.testing.assert_close(made, expected, atol=1e-7, rtol=0)
    (made * x).sum().backward()
    (expected * x).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradcheck(ELU(), torch.randn(50, dtype=torch.float64, requires_grad=True))
    assert not any(isinstance(module, nn.ELU) for module in random_seanet().modules())


@pytest.mark.parametrize(
    ("length", "left", "right"), [(9, 4, 2), (9, 8, 0), (5, 0, 3), (5, 0, 0), (3, 4, 1), (1, 2, 0)]
)
def test_the_fast_padding_is_that_of_the_encodec_package(length: int, left: int, right: int) -> None:
    x = torch.randn(2, 3, length, dtype=torch.float64, requires_grad=True)
    assert torch.equal(reflect(x, left, right), pad1d(x, (left, right), "reflect"))
    assert torch.autograd.gradcheck(lambda x: reflect(x, left, right), x)


@pytest.mark.parametrize("causal", [True, False])
def test_the_fast_convolution_is_that_of_the_encodec_package(causal: bool) -> None:
    for kernel, stride, dilation in ((7, 1, 1), (3, 1, 2), (8, 4, 1), (5, 3, 1)):
        original = SConv1d(2, 3, kernel, stride, dilation, causal=causal)
        fast = ReflectConv1d(original)
        assert fast.state_dict().keys() == original.state_dict().keys()
        for length in (2, 50, 51):
            x = torch.randn(2, 2, length)
            assert torch.equal(fast(x), original(x))


def test_no_slow_padding_is_left() -> None:
    kinds = [type(module) for module in random_seanet().modules()]
    assert ReflectConv1d in kinds and SConv1d not in kinds
