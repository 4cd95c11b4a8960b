"""The state of a training run and its checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from encore.config.knobs import to_flags
from encore.config.schema import TrainConfig
from encore.data import PairFrames
from encore.data.dataset import Division
from encore.errors import EncoreError
from encore.models.loading import FORMAT, fitting, read
from encore.models.precision import AUTO
from encore.training.objective import Objective
from encore.training.optim import Schedule
from encore.training.parallel import gathered, load_optimizer, load_weights

# Flags that a resumed run cannot change: they determine the shapes of the tensors, or what the model has learned to do.
FIXED = ("d_model", "nhead", "num_layers", "objective", "generation", "block_seconds", "prior")


@dataclass
class Progress:
    """How far training is. All randomness follows from the seed and `step`, so no generator's state is needed.

    The place in the data is `epoch` and `epoch_samples`: it does not depend on the number of ranks or the batch size.
    """

    step: int = 0  # optimiser steps taken or skipped, in all
    samples: int = 0  # pairs that they have used, of all ranks
    epoch: int = 0  # finished epochs
    epoch_step: int = 0  # steps in the current epoch
    epoch_samples: int = 0  # pairs that they have used
    epoch_skipped: int = 0  # of these steps
    skipped: int = 0  # steps skipped because something was not finite, in all
    skipped_in_a_row: int = 0
    best: float = math.inf  # lowest validation loss
    best_totals: list[float] = field(default_factory=list)  # that of each pair, which it is the mean of
    waited: int = 0  # epochs since then
    run_id: str | None = None  # of the tracker
    sums: dict[str, float] = field(default_factory=dict)  # of the current epoch's training metrics, over all ranks

    def step_done(self, pairs: int, skipped: bool) -> None:
        """Counts a step."""
        self.step, self.samples = self.step + 1, self.samples + pairs
        self.epoch_step, self.epoch_samples = self.epoch_step + 1, self.epoch_samples + pairs
        self.skipped, self.epoch_skipped = self.skipped + skipped, self.epoch_skipped + skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def epoch_done(self) -> None:
        """The next epoch begins."""
        self.epoch += 1
        self.epoch_step = self.epoch_samples = self.epoch_skipped = 0
        self.sums = {}

    def validated(self, loss: float, totals: list[float]) -> bool:
        """Counts a validation, whose loss, the mean of `totals`, may not be finite; whether it is the best so far."""
        better = loss < self.best and math.isfinite(loss)
        if better:
            self.best, self.best_totals = loss, totals
        self.waited = 0 if better else self.waited + 1
        return better

    def forget_best(self) -> None:
        """Validation losses from now on cannot be compared with earlier ones, or the best model is not there."""
        self.best, self.best_totals, self.waited = math.inf, [], 0


@dataclass
class TrainState:
    """All that changes during training, and what the run is known by.

    Attributes:
        division: of a step's pairs among the ranks.
        run: id of the run (`run_folder.Identity`).
        yardstick: what the validation loss depends on besides the model (`resuming.yardstick`).
    """

    model: nn.Module
    ema: AveragedModel | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    objective: Objective
    division: Division
    run: str = ""
    yardstick: dict[str, str] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is validated: the averaged weights, where they are kept."""
        return self.model if self.ema is None else self.ema.module

    def content(self, config: TrainConfig, frames: PairFrames) -> dict[str, Any]:
        """What a checkpoint holds; called by all ranks. Tensors of a model that is not split are the state's own."""
        synthesizer = self.objective.synthesizer
        codec = synthesizer.codec
        return {
            "format": FORMAT,
            "run": self.run,
            "yardstick": self.yardstick,
            "ranks": self.division.ranks,
            "step_pairs": self.division.pairs,
            "config": {**config.to_dict(), "precision": synthesizer.precision},
            "codec": {"identity": codec.identity, "latent_dim": codec.latent_dim},
            "context_frames": frames.context,
            "segment_frames": frames.target,
            "margin": synthesizer.margin,
            "model": gathered(self.model.state_dict()),
            "ema": gathered(self.ema.state_dict()) if self.ema is not None else None,
            "optimizer": gathered(self.optimizer.state_dict()),
            "schedule": self.schedule.state_dict(),
            "objective": self.objective.state_dict(),
            "progress": vars(self.progress),
        }

    def load(self, path: Path, config: TrainConfig) -> dict[str, Any]:
        """Continues from a checkpoint, with its precision if `config` leaves the choice; returns its content.

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
        with fitting(path):
            load_weights(self.model, content["model"])
            if self.ema is not None:
                load_weights(self.ema, content["ema"])
            load_optimizer(self.optimizer, content["optimizer"])
            warmup = self.schedule.warmup
            self.schedule.load_state_dict(content["schedule"])
            if saved.optim.warmup_steps != config.optim.warmup_steps:
                self.schedule.warmup = warmup
            self.objective.load_state_dict(content["objective"])
            self.progress = Progress(**content["progress"])
        if config.optim.precision == AUTO:
            self.objective.synthesizer.precision = saved.optim.precision
        if adversary is not None and not had_adversary:
            adversary.steps = self.progress.step  # it counts the run's steps, whenever it joined
        return content
