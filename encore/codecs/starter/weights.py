"""Codecs that train_codec.py trained, as files, and the bundled one among them: `starter`.

A codec is one safetensors file: tensors `encoder.*` and `decoder.*` (the state dicts of the encodec package's
SEANetEncoder and SEANetDecoder) and, in the metadata, its `Architecture`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from encodec.modules import SEANetDecoder, SEANetEncoder
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from encore.codecs.base import register_codec
from encore.codecs.encodec import PRETRAINED, SEANetCodec
from encore.errors import EncoreError

STARTER_WEIGHTS = Path(__file__).with_name("starter_codec.safetensors")
FORMAT = 1


@dataclass(frozen=True)
class Architecture:
    """Sample rate in Hz, and the arguments of the encodec package's SEANet under their own names."""

    sample_rate: int = 24000
    channels: int = 1
    dimension: int = 128
    n_filters: int = 16
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    norm: str = "none"
    causal: bool = True
    lstm: int = 2
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    compress: int = 2
    n_residual_layers: int = 1
    true_skip: bool = False
    pad_mode: str = "reflect"

    def build(self) -> tuple[SEANetEncoder, SEANetDecoder]:
        """A new, randomly initialised encoder and decoder."""
        arguments = {name: value for name, value in asdict(self).items() if name != "sample_rate"}
        arguments["ratios"] = list(self.ratios)
        return SEANetEncoder(**arguments), SEANetDecoder(**arguments)


def save_codec(path: Path, architecture: Architecture, encoder: nn.Module, decoder: nn.Module) -> None:
    """Writes a codec in half precision, under a temporary name that is replaced when the file is complete."""
    tensors = {
        f"{part}.{name}": value.detach().cpu().half().contiguous()
        for part, module in (("encoder", encoder), ("decoder", decoder))
        for name, value in module.state_dict().items()
    }
    temporary = path.with_suffix(path.suffix + ".tmp")
    metadata = {"encore_codec": json.dumps({"format": FORMAT, **asdict(architecture)})}
    save_file(tensors, temporary, metadata=metadata)
    temporary.replace(path)


def load_codec_file(path: Path) -> tuple[Architecture, SEANetEncoder, SEANetDecoder]:
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
        description["ratios"] = tuple(description["ratios"])
        architecture = Architecture(**description)
        encoder, decoder = architecture.build()
        for part, module in (("encoder", encoder), ("decoder", decoder)):
            prefix = part + "."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise EncoreError(
            f"--codec {path}: not a codec that train_codec.py wrote with this version ({error!r:.200})"
        ) from error
    return architecture, encoder, decoder


def build_from_file(path: Path, bandwidth: float | None, name: str | None = None) -> SEANetCodec:
    """The codec of a file; it has no quantiser, so `bandwidth` must be None. `name` replaces the path in errors.

    Raises:
        EncoreError: a bandwidth, or a file that cannot be read.
    """
    if bandwidth is not None:
        raise EncoreError(
            f"--encodec_bandwidth {bandwidth:g}: codec {name or path} has no quantiser; leave the flag out or use "
            f"--codec {next(iter(PRETRAINED))}"
        )
    architecture, encoder, decoder = load_codec_file(path)
    return SEANetCodec(encoder, decoder, architecture.sample_rate, architecture.channels)


@register_codec("starter")
def build_starter(repository: Path | None, bandwidth: float | None) -> SEANetCodec:
    """The bundled codec: 24 kHz, mono, 75 frames per second, causal; needs no download."""
    return build_from_file(STARTER_WEIGHTS, bandwidth, "starter")
