"""The state of a training run, its checkpoints, and models loaded from them."""

from __future__ import annotations

import itertools
import math
import os
import pickle
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from encore.codec import FrozenCodec, load_codec
from encore.config import TrainConfig
from encore.errors import EncoreError
from encore.generation import Recipe
from encore.model import ContinuationTransformer
from encore.objective import Objective
from encore.optim import Schedule

FORMAT = 2
RUN_FILES = ("last.pt", "best_model.pt", "config.json", "train.log", "examples", "missed_mlflow.jsonl")
# What a model can't change while it is trained: its tensors' shape, and what it has learnt to start from and to make.
SHAPE = ("d_model", "nhead", "num_layers", "objective", "generation", "block_seconds", "prior")


@dataclass
class Progress:
    """How far training is. All randomness follows from the seed and `step`, so no generator's state is needed."""

    step: int = 0  # optimiser steps taken or skipped, in all
    epoch: int = 0  # finished epochs
    epoch_step: int = 0  # steps in the current epoch
    skipped: int = 0  # steps left out because something was not finite, in all
    skipped_in_a_row: int = 0
    best: float = math.inf  # lowest validation loss
    waited: int = 0  # epochs since then
    run_id: str | None = None  # of MLflow
    sums: dict[str, float] = field(default_factory=dict)  # of the current epoch's training figures, over all ranks


@dataclass
class TrainState:
    """All that changes during training."""

    model: nn.Module
    ema: AveragedModel | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    objective: Objective
    progress: Progress

    def save(self, path: Path, config: TrainConfig, codec: FrozenCodec, segment_frames: int) -> None:
        """Writes everything to a temporary name, then renames it: there is never half a checkpoint."""
        content = {
            "format": FORMAT,
            "config": config.to_dict(),
            "codec": {"identity": codec.identity, "latent_dim": codec.latent_dim},
            "segment_frames": segment_frames,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "objective": self.objective.state_dict(),
            "progress": vars(self.progress),
        }
        temporary = path.with_suffix(".tmp")
        torch.save(content, temporary)
        temporary.replace(path)

    def load(self, path: Path, config: TrainConfig, codec: FrozenCodec) -> None:
        """Continues from a checkpoint.

        Raises:
            EncoreError: not a checkpoint, or one of another model or codec.
        """
        content = read(path)
        saved = TrainConfig.from_dict(content["config"])
        problems = [
            f"--resume {path}: was trained with --{name} {getattr(saved, name)}, not {getattr(config, name)}"
            for name in SHAPE
            if getattr(saved, name) != getattr(config, name)
        ]
        if content["codec"]["identity"] != codec.identity:
            problems.append(f"--resume {path}: was trained with another codec (--codec {saved.codec}); name that one")
        if (content["ema"] is None) != (self.ema is None):
            problems.append(f"--resume {path}: was trained with --ema_decay {saved.ema_decay:g}, keep it on or off")
        judged = "adversary" in content["objective"] and self.objective.adversary is not None
        if judged and saved.discriminator != config.discriminator:
            problems.append(f"--resume {path}: was trained with --discriminator {saved.discriminator}; keep that one")
        if problems:
            raise EncoreError("\n".join(problems))
        self.model.load_state_dict(content["model"])
        if self.ema is not None:
            self.ema.load_state_dict(content["ema"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        self.objective.load_state_dict(content["objective"])
        self.progress = Progress(**content["progress"])
        if self.objective.adversary is not None and not judged:
            self.objective.adversary.steps = self.progress.step  # it counts the run's steps, from whenever it is there


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
    codec = load_codec(config.codec, codec_repository or config.codec_repository, config.encodec_bandwidth).to(device)
    if codec.identity != content["codec"]["identity"]:
        raise EncoreError(f"{path}: was trained with other weights of --codec {config.codec} than are there now")
    model = build_model(config, codec, content["segment_frames"])
    weights = content["model"]
    if content["ema"] is not None:
        prefix = "module."
        weights = {k.removeprefix(prefix): v for k, v in content["ema"].items() if k.startswith(prefix)}
    model.load_state_dict(weights)
    return Generator(model.to(device).eval(), codec, config, content["segment_frames"])


def build_model(config: TrainConfig, codec: FrozenCodec, segment_frames: int) -> ContinuationTransformer:
    """A new model for a configuration and the codec whose latents it works on."""
    seconds = config.context_seconds
    return ContinuationTransformer(
        codec.latent_dim,
        config.d_model,
        config.nhead,
        config.num_layers,
        config.dropout,
        window=segment_frames if seconds is None else max(1, round(seconds * codec.frame_rate)),
        start_at_prior=config.objective == "energy" and config.prior != "none",
    )


def recipe_of(config: TrainConfig, codec: FrozenCodec, segment_frames: int) -> Recipe:
    """How a configuration's model is used.

    Raises:
        EncoreError: blocks that don't fit the segments, or the codec.
    """
    block_frames = segment_frames
    if config.generation == "blocks":
        block_frames = max(1, round(config.block_seconds * codec.frame_rate))
        if block_frames > segment_frames:
            raise EncoreError(
                f"--block_seconds {config.block_seconds:g}: longer than the segments "
                f"({segment_frames / codec.frame_rate:g} s); shorten it, or use --generation whole"
            )
    piece = codec.segment_frames
    if piece is not None and (block_frames % piece or segment_frames % piece):
        raise EncoreError(
            f"--generation {config.generation}: {config.codec} works in pieces of {piece / codec.frame_rate:g} s; "
            f"segments ({segment_frames / codec.frame_rate:g} s, --segment_seconds of prepare_data.py) and blocks "
            f"({block_frames / codec.frame_rate:g} s, --block_seconds) must be whole ones"
        )
    return Recipe(block_frames, config.objective == "energy", config.prior)


def loss_options(config: TrainConfig, codec: FrozenCodec, name: str) -> dict[str, Any]:
    """What the loss `name` is built with, beside the sample rate."""
    if name != "embedding":
        return {}
    encoder = codec.encoder if config.embedding_model == "codec" else None
    return {
        "model": config.embedding_model,
        "encoder": encoder,
        "weights": config.embedding_weights,
        "layers": config.embedding_layers,
    }


def resume_source(config: TrainConfig) -> Path | None:
    """The checkpoint to go on from; workers that the elastic agent started again go on from the last one."""
    last = config.checkpoint_dir / "last.pt"
    if config.resume == "auto" or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        return last if last.is_file() else None
    return Path(config.resume) if config.resume else None


def set_aside(folder: Path, source: Path | None) -> None:
    """Moves an earlier run's files to `earlier_<n>/`, unless this run goes on from there."""
    continues = source is not None and source.resolve().parent == folder.resolve()
    if continues or not any((folder / name).exists() for name in ("last.pt", "best_model.pt")):
        return
    number = next(n for n in itertools.count(1) if not (folder / f"earlier_{n}").exists())
    (folder / f"earlier_{number}").mkdir()
    for name in RUN_FILES:
        if (folder / name).exists():
            shutil.move(folder / name, folder / f"earlier_{number}" / name)
