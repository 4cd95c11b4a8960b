"""Models from checkpoints, ready to continue music."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from encore.codecs.encodec import FrozenCodec, load_codec
from encore.config.schema import TrainConfig
from encore.errors import EncoreError
from encore.models.generation import Recipe
from encore.models.transformer import ContinuationTransformer

FORMAT = 2


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; only tensors and plain values are ever unpickled.

    Raises:
        EncoreError: no such file, or no checkpoint of ours.
    """
    if not path.is_file():
        raise EncoreError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != FORMAT:
            raise KeyError("format")
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, EOFError, OSError) as error:
        reason = str(error).strip().partition("\n")[0][:120]
        raise EncoreError(f"{path}: not a checkpoint of this version of Encore ({reason})") from error
    return content


@dataclass(frozen=True)
class Generator:
    """A trained model, ready to continue music, with its codec.

    `segment_frames` is the length in latent frames of the contexts and continuations that it was trained on.
    """

    model: ContinuationTransformer
    codec: FrozenCodec
    config: TrainConfig
    segment_frames: int

    @property
    def recipe(self) -> Recipe:
        return recipe_of(self.config, self.codec, self.segment_frames)


def load_generator(path: Path, device: torch.device, codec_repository: Path | None = None) -> Generator:
    """The averaged weights of a checkpoint (the plain ones where none were kept), in evaluation mode.

    Raises:
        EncoreError: no checkpoint, or its codec can't be had or has changed since.
    """
    content = read(path)
    config = TrainConfig.from_dict(content["config"])
    codec = load_codec(config.codec.name, codec_repository or config.codec.repository, config.codec.bandwidth).to(
        device
    )
    if codec.identity != content["codec"]["identity"]:
        raise EncoreError(f"{path}: was trained with other weights of --codec {config.codec.name} than are there now")
    model = build_model(config, codec, content["segment_frames"])
    weights = content["model"]
    if content["ema"] is not None:
        prefix = "module."
        weights = {k.removeprefix(prefix): v for k, v in content["ema"].items() if k.startswith(prefix)}
    model.load_state_dict(weights)
    return Generator(model.to(device).eval(), codec, config, content["segment_frames"])


def build_model(config: TrainConfig, codec: FrozenCodec, segment_frames: int) -> ContinuationTransformer:
    """A new model for a configuration and the codec whose latents it works on."""
    seconds = config.model.context_seconds
    return ContinuationTransformer(
        codec.latent_dim,
        config.model.d_model,
        config.model.nhead,
        config.model.num_layers,
        config.model.dropout,
        window=segment_frames if seconds is None else max(1, round(seconds * codec.frame_rate)),
        start_at_prior=config.objective.kind == "energy" and config.model.prior != "none",
    )


def recipe_of(config: TrainConfig, codec: FrozenCodec, segment_frames: int) -> Recipe:
    """How a configuration's model is used.

    Raises:
        EncoreError: blocks that don't fit the segments, or the codec.
    """
    block_frames = segment_frames
    if config.model.generation == "blocks":
        block_frames = max(1, round(config.model.block_seconds * codec.frame_rate))
        if block_frames > segment_frames:
            raise EncoreError(
                f"--block_seconds {config.model.block_seconds:g}: longer than the segments "
                f"({segment_frames / codec.frame_rate:g} s); shorten it, or use --generation whole"
            )
    piece = codec.segment_frames
    if piece is not None and (block_frames % piece or segment_frames % piece):
        raise EncoreError(
            f"--generation {config.model.generation}: {config.codec.name} works in pieces of "
            f"{piece / codec.frame_rate:g} s; segments ({segment_frames / codec.frame_rate:g} s, --segment_seconds of "
            f"prepare_data.py) and blocks ({block_frames / codec.frame_rate:g} s, --block_seconds) must be whole ones"
        )
    return Recipe(block_frames, config.objective.kind == "energy", config.model.prior)


def choose_device(name: str | None) -> torch.device:
    """The named device, else a GPU if there is one, else the CPU.

    Raises:
        EncoreError: there is no such device here.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EncoreError(f"--device {name}: not a device of this machine; give cpu, or cuda with a GPU") from error
    return device
