"""PESQ and embedding distances: equal to their packages, safe on silence, clear errors about missing packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encodec.modules import SEANetEncoder
from torch import Tensor, nn

from losses import REGISTRY
from losses.embedding import EmbeddingLoss
from losses.embedding import networks as embedding_networks
from losses.pesq import PESQLoss, _measure, pesq
from tests.signals import seeded

CAP = 45.0  # of both disturbances, by P.862

torch_pesq = importlib.import_module("torch_pesq")
torchcrepe = importlib.import_module("torchcrepe")


def signals(seed: int, shape: tuple[int, ...], level: float = 0.2) -> tuple[Tensor, Tensor]:
    """A prediction that is the target and some noise."""
    generator = torch.Generator().manual_seed(seeded(seed))
    target = torch.randn(shape, generator=generator) * level
    return target + 0.5 * level * torch.randn(shape, generator=generator), target


def value_and_gradient(loss: Any, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    prediction = prediction.detach().clone().requires_grad_()
    values = loss(prediction, target)
    return values.detach(), torch.autograd.grad(values.sum(), prediction)[0]


def relative(a: Tensor, b: Tensor) -> float:
    return (torch.linalg.vector_norm(a.double() - b.double()) / torch.linalg.vector_norm(b.double())).item()


def slope_is_that_of_finite_differences(loss: Any, prediction: Tensor, target: Tensor) -> None:
    prediction, target = prediction.double(), target.double()
    direction = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    _, gradient = value_and_gradient(loss, prediction, target)
    with torch.no_grad():
        above, below = (loss(prediction + sign * 1e-7 * direction, target).sum() for sign in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx(((above - below) / 2e-7).item(), rel=1e-4)


def hard_signals(samples: int) -> dict[str, tuple[Tensor, Tensor]]:
    noise, other = signals(5, (2, 1, samples))
    silence, impulse, gap = torch.zeros_like(noise), torch.zeros_like(noise), noise.clone()
    impulse[..., samples // 2] = 1
    gap[..., : 2 * samples // 3] = 0
    return {
        "silence": (silence, silence),
        "same": (noise, noise),
        "to silence": (noise, silence),
        "from silence": (silence, noise),
        "clipping": ((100 * noise).clamp(-1, 1), noise),
        "clipping to silence": ((100 * noise).clamp(-1, 1), silence),
        "impulse": (impulse, noise),
        "DC": (silence + 0.5, noise),
        "to DC": (noise, silence + 0.5),
        "a third of sound": (gap, 0.5 * gap),
        "nearly silent": (1e-6 * noise, other),
    }


class Small(nn.Module):
    """An encoder that NumPy can follow."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Conv1d(1, 3, 4, stride=2), nn.ReLU(), nn.Conv1d(3, 2, 3))


def seanet(**settings: Any) -> SEANetEncoder:
    torch.manual_seed(0)
    return SEANetEncoder(**{"n_filters": 4, "dimension": 8, **settings})


def build(name: str) -> EmbeddingLoss:
    options: dict[str, Any] = {
        "codec": {"encoder": seanet()},
        "codec, last": {"encoder": seanet(norm="none", causal=True), "layers": "last"},
        "crepe": {"model": "crepe"},
    }[name]
    loss = REGISTRY["embedding"].build(24000, reduction="none", **options)
    assert isinstance(loss, EmbeddingLoss)
    return loss


# ------------------------------------------------------------------------------------------------------------- PESQ


@pytest.mark.parametrize("shape", [(3, 1, 16000), (1, 1, 5248), (2, 2, 9001)])
def test_pesq_equals_the_package(shape: tuple[int, ...]) -> None:
    prediction, target = signals(0, shape)
    package = torch_pesq.PesqLoss(1.0, sample_rate=16000).double()

    def reference(prediction: Tensor, target: Tensor) -> Tensor:
        return package(target.double().flatten(0, 1), prediction.double().flatten(0, 1)).view(shape[:2]).mean(1)

    values, gradient = value_and_gradient(lambda p, t: pesq(p, t, 16000), prediction, target)
    expected, slope = value_and_gradient(reference, prediction, target)
    assert relative(values, expected) < 1e-5 and relative(gradient, slope) < 1e-4
    package.float()
    # In float32 the package's own filter rounds.
    assert relative(values[:1], package(target[0], prediction[0]).mean()[None]) < 1e-3


@pytest.mark.parametrize("rate", [24000, 44100, 48000])
def test_pesq_of_other_rates_is_that_of_the_package(rate: int) -> None:
    prediction, target = signals(1, (2, 1, rate // 2))
    package = torch_pesq.PesqLoss(1.0, sample_rate=rate).double()
    # The package's filter for resampling is rounded to float32.
    assert relative(pesq(prediction, target, rate), package(target[:, 0].double(), prediction[:, 0].double())) < 1e-4


@pytest.mark.parametrize("kind", list(hard_signals(100)))
def test_pesq_is_safe(kind: str) -> None:
    prediction, target = hard_signals(16000)[kind]
    values, gradient = value_and_gradient(PESQLoss(24000, reduction="none"), prediction, target)
    assert values.isfinite().all() and gradient.isfinite().all()
    assert values.max() <= 0.1309 * CAP * (1 + 1e-6)
    if kind in ("silence", "same", "a third of sound"):  # PESQ is independent of the level
        assert values.max() < 1e-12 and gradient.abs().max() < 1e-12
    else:
        assert values.min() > 0.1


def test_pesq_is_flat_where_all_frames_are_at_their_cap_and_at_silence() -> None:
    tone = 0.1 * torch.sin(2 * torch.pi * 1000 / 16000 * torch.arange(16000))[None, None]
    hiss = signals(17, (1, 1, 16000), 0.07)[1]
    values, gradient = value_and_gradient(lambda p, t: pesq(p, t, 16000), tone + hiss, tone)
    assert values.item() == pytest.approx(0.1309 * CAP, rel=1e-5) and not gradient.any()
    values, gradient = value_and_gradient(lambda p, t: pesq(p, t, 16000), torch.zeros_like(tone), tone)
    assert values.item() > 1 and not gradient.any()
    values, gradient = value_and_gradient(lambda p, t: pesq(p, t, 16000), tone + 0.1 * hiss, tone)
    assert 1 < values.item() < 0.1309 * CAP - 0.1 and gradient.norm() > 0.1


def test_pesq_gradient_in_float64_and_dtype() -> None:
    prediction, target = signals(3, (1, 1, 9000))
    slope_is_that_of_finite_differences(PESQLoss(24000, reduction="none"), prediction, target)
    assert pesq(prediction.double(), target.double(), 24000).dtype == torch.float64
    assert pesq(prediction, target, 24000).dtype == torch.float32


def test_pesq_items_and_layout_are_independent_and_the_input_stays() -> None:
    prediction, target = signals(4, (3, 2, 8000))
    prediction[1] *= 1000
    before = prediction.clone()
    loss = REGISTRY["pesq"].build(24000, reduction="none")
    values = loss(prediction, target)
    assert torch.equal(prediction, before)
    for item in range(3):
        assert values[item].item() == pytest.approx(loss(prediction[item, None], target[item, None]).item(), rel=1e-6)
    turned = [signal.transpose(1, 2).contiguous().transpose(1, 2) for signal in (prediction, target)]
    assert not turned[0].is_contiguous() and torch.equal(loss(*turned), values)
    assert not loss.state_dict()


@pytest.mark.parametrize(("rate", "least"), [(16000, 5248), (24000, 7871), (44100, 14463)])
def test_pesq_names_the_least_length(rate: int, least: int) -> None:
    assert pesq(*signals(6, (1, 1, least)), rate).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {least} samples"):
        pesq(*signals(6, (1, 1, least - 1)), rate)


def test_missing_packages_are_named_when_their_loss_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    _measure.cache_clear()
    for package, call in (
        ("torch_pesq", lambda: REGISTRY["pesq"].build(24000)),
        ("torchcrepe", lambda: EmbeddingLoss(24000, "crepe")),
        ("torchopenl3.core", lambda: EmbeddingLoss(24000, "openl3")),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=r"pip install -r requirements-losses\.txt"):
            call()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"panns-inference \(not installed\).*requirements-losses\.txt"):
        EmbeddingLoss(24000, "panns")


# -------------------------------------------------------------------------------------------------------- embeddings


def small_activations(encoder: Small, signal: np.ndarray) -> list[np.ndarray]:
    layers: Any = encoder.model[::2]
    weights = [(layer.weight.double().numpy(), layer.bias.double().numpy()) for layer in layers]
    activations, x = [], signal.astype(np.float64)[None]
    for (kernel, bias), stride in zip(weights, (2, 1), strict=True):
        frames = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2], axis=1)[:, ::stride]
        x = np.einsum("itk,oik->ot", frames, kernel) + bias[:, None]
        activations.append(x)
        x = np.maximum(x, 0)
    return activations


@pytest.mark.parametrize("layers", ["all", "last"])
@pytest.mark.parametrize("quiet", [False, True])
def test_embedding_equals_an_independent_reference(layers: str, quiet: bool) -> None:
    encoder = Small()
    loss = EmbeddingLoss(8000, encoder=encoder, layers=layers, reduction="none")
    prediction, target = signals(7, (3, 2, 500))
    if quiet:
        for name, parameter in encoder.named_parameters():
            if name.endswith("bias"):
                parameter.data.zero_()
        loss = EmbeddingLoss(8000, encoder=encoder, layers=layers, reduction="none")
        target = target * 1e-6  # below the floor
    noise = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(0)).numpy()
    floors = [0.1 * np.abs(activation).mean() for activation in small_activations(encoder, noise)]
    values = loss(prediction, target)
    for item in range(3):
        p, t = (
            [np.stack(pair) for pair in zip(*(small_activations(encoder, c) for c in s[item].numpy()), strict=True)]
            for s in (prediction, target)
        )
        shares = [np.abs(a - b).mean() / max(np.abs(b).mean(), f) for a, b, f in zip(p, t, floors, strict=True)]
        expected = np.mean(shares) if layers == "all" else shares[-1]
        assert values[item].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_crepe_equals_the_package() -> None:
    prediction, target = signals(8, (2, 1, 4000))
    loss = EmbeddingLoss(16000, "crepe", layers="last", hop_length=400, reduction="none")

    def package(signal: Tensor) -> Tensor:
        # The package normalises frames in place, which has no gradient; its values must be these.
        frames = torch.nn.functional.pad(signal[:, 0], (512, 512)).unfold(1, 1024, 400).reshape(-1, 1024)
        frames = (frames - frames.mean(1, keepdim=True)) / frames.std(1, keepdim=True)
        with torch.no_grad():
            own = torch.cat([next(torchcrepe.preprocess(row, 16000, 400)) for row in signal])
        assert torch.allclose(frames, own, atol=1e-6)
        return torchcrepe.infer(frames, "tiny", embed=True).reshape(len(signal), -1)

    def reference(prediction: Tensor, target: Tensor) -> Tensor:
        wanted = package(target)
        return (package(prediction) - wanted).abs().mean(1) / wanted.abs().mean(1)

    values, gradient = value_and_gradient(loss, prediction, target)
    expected, slope = value_and_gradient(reference, prediction, target)
    assert relative(values, expected) < 1e-5 and relative(gradient, slope) < 1e-4


@pytest.mark.parametrize("name", ["codec", "codec, last", "crepe"])
class TestEmbedding:
    @pytest.mark.slow
    def test_safe(self, name: str) -> None:
        loss = build(name)
        for kind, (prediction, target) in hard_signals(3000).items():
            values, gradient = value_and_gradient(loss, prediction, target)
            assert values.isfinite().all() and gradient.isfinite().all() and values.max() < 100, kind
            if kind in ("silence", "same"):
                assert values.max() == 0 and gradient.abs().max() == 0, kind
            elif kind != "a third of sound":  # CREPE is independent of the level
                assert values.min() > 1e-3, kind

    def test_gradient(self, name: str) -> None:
        slope_is_that_of_finite_differences(build(name).double(), *signals(10, (1, 1, 2100)))

    @pytest.mark.slow
    def test_items_and_layout_are_independent(self, name: str) -> None:
        loss = build(name)
        prediction, target = signals(11, (3, 2, 2000))
        prediction[1] *= 100
        values = loss(prediction, target)
        for item in range(3):
            alone = loss(prediction[item, None], target[item, None]).item()
            assert values[item].item() == pytest.approx(alone, rel=1e-5)
        turned = [signal.transpose(1, 2).contiguous().transpose(1, 2) for signal in (prediction, target)]
        assert torch.allclose(loss(*turned), values)
        with pytest.raises(ValueError, match="at least 1 samples"):
            loss(prediction[..., :0], target[..., :0])
        assert loss(prediction[..., :1], target[..., :1]).isfinite().all()

    @pytest.mark.slow
    def test_it_stays_frozen_and_in_evaluation_mode(self, name: str) -> None:
        loss = build(name).train()
        before = {key: value.clone() for key, value in loss.state_dict().items()}
        prediction, target = signals(12, (2, 1, 3000))
        values, gradient = value_and_gradient(loss, prediction, target)
        assert gradient.abs().max() > 0 and not any(weight.requires_grad for weight in loss.parameters())
        loss.network.eval()  # as other users of the encoder may do
        assert torch.equal(loss(prediction, target), values)
        recurrent = [module for module in loss.modules() if isinstance(module, nn.RNNBase)]
        assert all(module.training for module in recurrent) and len(recurrent) == name.startswith("codec")
        batch_norms = [module for module in loss.modules() if isinstance(module, nn.BatchNorm2d)]
        assert not any(module.training for module in batch_norms)
        assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())
        other = build(name)
        other.load_state_dict(loss.state_dict())
        assert torch.equal(other(prediction, target), values)


def test_an_encoder_of_stereo_takes_both_channels() -> None:
    loss = EmbeddingLoss(24000, encoder=seanet(channels=2), reduction="none")
    prediction, target = signals(13, (2, 2, 2000))
    assert (loss(prediction, target) > 0).all()
    with pytest.raises(ValueError, match=r"takes 2 channels, got audio of shape \[2, 1, 2000\]"):
        loss(prediction[:, :1], target[:, :1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs the frozen codec's encoder: give encoder="),
        ({"encoder": nn.Conv1d(1, 1, 1)}, "nn.Sequential `model`"),
        ({"model": "clap"}, "model must be one of codec, crepe, panns, openl3, got 'clap'"),
        ({"encoder": seanet(), "layers": "first"}, "layers must be"),
        ({"model": "crepe", "capacity": "huge"}, "capacity must be"),
        ({"model": "crepe", "weights": "a.pth"}, "'crepe' takes no weights"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REGISTRY["embedding"].build(24000, reduction="none", **options)


def test_weights_that_cannot_be_loaded_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(2, 2)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    kept = tmp_path / "hub" / "hub" / "checkpoints" / "w.pth"

    def load(weights: Path | None, url: str = "") -> None:
        embedding_networks._load(network, "panns", weights, url, "w.pth")

    with pytest.raises(
        FileNotFoundError, match=r"w\.pth could not be .*127\.0\.0\.1.*--embedding_weights PATH"
    ) as error:
        load(None, "http://127.0.0.1:9/w.pth")  # no server listens there
    assert str(kept) in str(error.value) and not kept.exists()
    with pytest.raises(FileNotFoundError, match=r"no weights in .*none\.pth"):
        load(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("weights")
    torch.save({"model": {"weight": torch.zeros(3)}}, tmp_path / "other.pth")
    for name in ("text.pth", "other.pth"):
        with pytest.raises(ValueError, match=f"{name} does not hold the weights of w.pth"):
            load(tmp_path / name)

    state = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    torch.save({"iteration": 1, "model": state}, tmp_path / "published.pth")
    load(None, (tmp_path / "published.pth").as_uri())
    assert kept.is_file() and torch.equal(network.weight, state["weight"])
    load(None, "http://127.0.0.1:9/w.pth")  # the second time it is there


# ------------------------------------------- networks whose packages only those install who want them; random weights


def randomise(network: nn.Module, mean: float, deviation: float) -> None:
    """Statistics of batch norms as a trained network would have them; the first one's are those of its decibels."""
    torch.manual_seed(2)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
    assert norms[0].running_mean is not None and norms[0].running_var is not None
    norms[0].running_mean.fill_(mean)
    norms[0].running_var.fill_(deviation**2)
    network.eval()


def check(loss: EmbeddingLoss) -> None:
    hard = hard_signals(10000)
    for kind in ("silence", "to silence", "from silence", "impulse"):
        prediction, target = hard[kind]
        values, gradient = value_and_gradient(loss, prediction, target)
        assert values.isfinite().all() and gradient.isfinite().all() and values.max() < 100, kind
    slope_is_that_of_finite_differences(loss.double(), *signals(14, (1, 1, 10000)))


@pytest.mark.skipif(importlib.util.find_spec("panns_inference") is None, reason="panns-inference is optional")
def test_panns_equals_the_package_and_imports_nothing_that_downloads(tmp_path: Path) -> None:
    network = embedding_networks.panns_models().Cnn14(32000, 1024, 320, 64, 50, 14000, 527)
    randomise(network, -20, 10)
    torch.save({"iteration": 600000, "model": network.state_dict()}, tmp_path / "cnn14.pth")
    loss = EmbeddingLoss(32000, "panns", weights=tmp_path / "cnn14.pth", reduction="none")
    assert "panns_inference" not in sys.modules
    audio = signals(15, (2, 1, 16000))[0]
    activations = loss.network(audio)
    assert len(activations) == 7 and torch.allclose(activations[-1], network(audio[:, 0])["embedding"], rtol=1e-5)
    with pytest.raises(ValueError, match="at least 9920 samples"):
        loss(audio[..., :9919], audio[..., :9919])
    check(loss)


@pytest.mark.skipif(importlib.util.find_spec("torchopenl3") is None, reason="torchopenl3 is optional")
def test_openl3_equals_the_package(tmp_path: Path) -> None:
    package = importlib.import_module("torchopenl3")
    network = package.core.PytorchOpenl3(content_type="music", input_repr="mel256", embedding_size=6144)
    randomise(network, -40, 20)
    torch.save(network.state_dict(), tmp_path / "openl3.pth")
    loss = EmbeddingLoss(48000, "openl3", weights=tmp_path / "openl3.pth", reduction="none")
    audio = signals(16, (2, 1, 60000))[0]
    expected = package.get_audio_embedding(audio[:, 0], 48000, model=network, hop_size=0.5, verbose=False)[0]
    activations = loss.network(audio)
    assert len(activations) == 8
    assert torch.allclose(activations[-1].permute(0, 2, 3, 1).reshape(expected.shape), expected, atol=1e-6)
    check(loss)
