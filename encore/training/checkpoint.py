"""The state of a training run and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from encore.config.knobs import to_flags
from encore.config.schema import TrainConfig
from encore.data import PairFrames
from encore.errors import EncoreError
from encore.models.loading import FORMAT, read
from encore.models.precision import AUTO
from encore.training.objective import Objective
from encore.training.optim import Schedule

# Flags that a resumed run cannot change: they determine the shapes of the tensors, or what the model has learned to do.
FIXED = ("d_model", "nhead", "num_layers", "objective", "generation", "block_seconds", "prior")


@dataclass
class Progress:
    """How far training is. All randomness follows from the seed and `step`, so no generator's state is needed."""

    step: int = 0  # optimiser steps taken or skipped, in all
    epoch: int = 0  # finished epochs
    epoch_step: int = 0  # steps in the current epoch
    skipped: int = 0  # steps skipped because something was not finite, in all
    skipped_in_a_row: int = 0
    best: float = math.inf  # lowest validation loss
    waited: int = 0  # epochs since then
    run_id: str | None = None  # of the tracker
    sums: dict[str, float] = field(default_factory=dict)  # of the current epoch's training metrics, over all ranks


@dataclass
class TrainState:
    """All that changes during training."""

    model: nn.Module
    ema: AveragedModel | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    objective: Objective
    run: str = ""  # id, of `run_folder.Identity`
    progress: Progress = field(default_factory=Progress)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated: the averaged weights, where they are kept."""
        return self.model if self.ema is None else self.ema.module

    def save(self, path: Path, config: TrainConfig, frames: PairFrames) -> None:
        """Writes everything."""
        synthesizer = self.objective.synthesizer
        codec = synthesizer.codec
        content = {
            "format": FORMAT,
            "run": self.run,
            "config": {**config.to_dict(), "precision": synthesizer.precision},
            "codec": {"identity": codec.identity, "latent_dim": codec.latent_dim},
            "context_frames": frames.context,
            "segment_frames": frames.target,
            "margin": synthesizer.margin,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "objective": self.objective.state_dict(),
            "progress": vars(self.progress),
        }
        write(content, path)

    def load(self, path: Path, config: TrainConfig) -> None:
        """Continues from a checkpoint, with its precision if `config` leaves the choice.

        Raises:
            EncoreError: not a checkpoint, or one of another model or codec.
        """
        content = read(path)
        saved = TrainConfig.from_dict(content["config"])
        before, now = to_flags(saved), to_flags(config)
        changed = [name for name in FIXED if before[name] != now[name]]
        problems = [f"was trained with --{name} {before[name]}, not {now[name]}" for name in changed]
        if content["codec"]["identity"] != self.objective.synthesizer.codec.identity:
            problems.append(f"was trained with another codec (--codec {saved.codec.name}); name that one")
        if (content["ema"] is None) != (self.ema is None):
            problems.append(f"was trained with --ema_decay {saved.optim.ema_decay:g}, keep it on or off")
        adversary = self.objective.adversary
        had_adversary = "adversary" in content["objective"]
        discriminator = saved.objective.discriminator
        if had_adversary and adversary is not None and discriminator != config.objective.discriminator:
            problems.append(f"was trained with --discriminator {discriminator}; keep that one")
        if problems:
            raise EncoreError("\n".join(f"--resume {path}: {problem}" for problem in problems))
        self.model.load_state_dict(content["model"])
        if self.ema is not None:
            self.ema.load_state_dict(content["ema"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        self.objective.load_state_dict(content["objective"])
        self.progress = Progress(**content["progress"])
        if config.optim.precision == AUTO:
            self.objective.synthesizer.precision = saved.optim.precision
        if adversary is not None and not had_adversary:
            adversary.steps = self.progress.step  # it counts the run's steps, whenever it joined


def write(content: Mapping[str, Any], path: Path) -> None:
    """Writes to a temporary name and renames it, so that there is never half a checkpoint."""
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    temporary.replace(path)


def add_run_id(path: Path, run_id: str | None) -> None:
    """Completes a checkpoint that was written before the tracker had given the run an id."""
    content = read(path)
    content["progress"]["run_id"] = run_id
    write(content, path)
