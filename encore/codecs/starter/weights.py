"""The starter codec, and its file format; codecs that train_codec.py trained are such files too.

A codec is one safetensors file: tensors `encoder.*` and `decoder.*` (the state dicts of `StarterEncoder` and
`StarterDecoder`) and, in the metadata, its `Architecture`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from encore.audio import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from encore.codecs.base import Codec, hash_tensors, register_codec
from encore.codecs.encodec import PRETRAINED
from encore.codecs.starter.network import BLOCK, PARTS, Architecture, StarterDecoder, StarterEncoder
from encore.errors import EncoreError

STARTER_WEIGHTS = Path(__file__).with_name("starter_codec.safetensors")
FORMAT = 2


class StarterCodec(Codec):
    """A codec of the starter's architecture: mono, causal, 320 samples per frame."""

    def __init__(self, architecture: Architecture, encoder: StarterEncoder, decoder: StarterDecoder) -> None:
        super().__init__(architecture.sample_rate, 1, BLOCK, architecture.coefficients + architecture.envelopes)
        self.encoder, self.decoder = encoder, decoder
        self.requires_grad_(False)
        self.train(False)

    def hash_weights(self) -> str:
        return hash_tensors((self.sample_rate, self.channels, None, None), self.state_dict())

    def feature_encoder(self) -> nn.Module:
        return FeatureEncoder(self.encoder)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        latents: Tensor = self.encoder(audio)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        audio: Tensor = self.decoder(latents)
        return audio


class FeatureEncoder(nn.Module):
    """The encoder as a network of one layer, whose activations are the latents."""

    channels = 1

    def __init__(self, encoder: StarterEncoder) -> None:
        super().__init__()
        self.model = nn.Sequential(encoder)

    def forward(self, audio: Tensor) -> Tensor:
        latents: Tensor = self.model(audio)
        return latents


def save_codec(path: Path, architecture: Architecture, encoder: nn.Module, decoder: nn.Module) -> None:
    """Writes a codec in half precision, under a temporary name that is replaced when the file is complete."""
    tensors = {
        f"{part}.{name}": value.detach().cpu().half().contiguous()
        for part, module in (("encoder", encoder), ("decoder", decoder))
        for name, value in module.state_dict().items()
    }
    temporary = path.with_suffix(path.suffix + ".tmp")
    metadata = {"encore_codec": json.dumps({"format": FORMAT, **asdict(architecture)})}
    try:
        save_file(tensors, temporary, metadata=metadata)
    except (SafetensorError, OSError) as error:
        temporary.unlink(missing_ok=True)
        raise EncoreError(f"{path}: cannot be written ({error}); make space there, or name another folder") from error
    temporary.replace(path)


def load_codec_file(path: Path) -> tuple[Architecture, StarterEncoder, StarterDecoder]:
    """Reads what `save_codec` wrote.

    Raises:
        EncoreError: no such file, or not a codec file of this version.
    """
    if not path.is_file():
        raise EncoreError(f"--codec {path}: no such file; train_codec.py writes codec.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["encore_codec"])
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a dict)
        if description.pop("format") != FORMAT:
            raise KeyError("format")
        architecture = Architecture(**description)
        check_architecture(architecture, tensors)
        encoder, decoder = StarterEncoder(architecture), StarterDecoder(architecture)
        for part, module in (("encoder", encoder), ("decoder", decoder)):
            prefix = part + "."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except Exception as error:  # a file of another kind, or sizes that no network has, can make almost anything fail
        raise EncoreError(
            f"--codec {path}: not a codec that train_codec.py wrote with this version ({error!r:.200})"
        ) from error
    return architecture, encoder, decoder


def check_architecture(architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
    """Checks an architecture against the tensors beside it, before networks of its sizes are allocated.

    Raises:
        ValueError: the sizes are not those of the tensors, or the sample rate is none.
        KeyError: a tensor is missing.
    """
    rows, envelopes = tensors["decoder.components"].shape
    sizes = {
        "coefficients": len(tensors["decoder.deviation"]),
        "envelopes": envelopes,
        "bands": rows - PARTS,
        "width": len(tensors["decoder.first.weight"]),
        "layers": sum(name.endswith(".inner.weight") for name in tensors),
    }
    for name, size in sizes.items():
        if getattr(architecture, name) != size:
            raise ValueError(f"{name} {getattr(architecture, name)!r:.20} instead of {size}")
    if not MIN_SAMPLE_RATE <= architecture.sample_rate <= MAX_SAMPLE_RATE:
        raise ValueError(f"sample_rate {architecture.sample_rate}")


def build_from_file(path: Path, bandwidth: float | None, name: str | None = None) -> StarterCodec:
    """The codec of a file; it has no quantiser, so `bandwidth` must be None. `name` replaces the path in errors.

    Raises:
        EncoreError: a bandwidth, or a file that cannot be read.
    """
    if bandwidth is not None:
        raise EncoreError(
            f"--encodec_bandwidth {bandwidth:g}: codec {name or path} has no quantiser; leave the flag out or use "
            f"--codec {next(iter(PRETRAINED))}"
        )
    return StarterCodec(*load_codec_file(path))


@register_codec("starter")
def build_starter(repository: Path | None, bandwidth: float | None) -> StarterCodec:
    """The bundled codec: 24 kHz, mono, 75 frames per second, causal; needs no download."""
    return build_from_file(STARTER_WEIGHTS, bandwidth, "starter")
