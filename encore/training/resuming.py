"""What a resumed run does differently from the one that wrote its checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encore.config.knobs import to_flags
from encore.config.schema import TrainConfig
from encore.models.precision import AUTO
from encore.training.checkpoint import TrainState
from encore.training.data import PairData
from encore.training.objective import Objective
from encore.training.run_folder import BEST, RunFolder

# Flags whose change says nothing about training.
SILENT = ("resume", "checkpoint_dir", "plugins", "world_size", "nnodes", "rdzv_endpoint", "max_restarts", "num_workers")


def yardstick(config: TrainConfig, data: PairData, objective: Objective) -> dict[str, str]:
    """What the validation loss depends on besides the model. Losses by different ones cannot be compared."""
    settings, synthesizer = config.objective, objective.synthesizer
    weights = {c.name: c.weight for c in objective.components if c.weight and c.loss is not None}
    embedding = [settings.embedding_model, str(settings.embedding_weights), settings.embedding_layers]
    parts = {
        "loss weights": weights,
        "objective": [settings.kind, synthesizer.samples],
        "validation pairs": data.val.content_hash,
        "codec": synthesizer.codec.identity,
        "embedding": embedding if "embedding" in weights else None,
    }
    return {
        name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16] for name, part in parts.items()
    }


def settle(state: TrainState, saved: Mapping[str, Any], config: TrainConfig, folder: RunFolder) -> list[str]:
    """Adapts a state that was loaded from a checkpoint to what this run does differently.

    Returns:
        What the user should know, a line each.
    """
    lines = []
    if differences := changes(state, saved, config):
        lines.append(f"changed since {folder.start.source}: {', '.join(differences)}")
    other = [name for name, part in state.yardstick.items() if saved["yardstick"].get(name) != part]
    if other:
        state.schedule.forget_best()
        lines.append(f"the best validation loss begins anew: it is measured by other {' and '.join(other)}")
    elif not (folder.path / BEST).is_file():
        other = [BEST]  # what was the best is not in this folder
    if other:
        state.progress.forget_best()
    return lines


def changes(state: TrainState, saved: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """The differences: of ranks, of pairs per step and of flags."""
    before, now = to_flags(TrainConfig.from_dict(saved["config"])), to_flags(config)
    tracking = to_flags(config.tracking)
    division, silent = state.division, {*SILENT, *tracking}
    if config.optim.precision == AUTO:  # the run keeps what it began with
        silent.add("precision")
    found = [("ranks", saved["ranks"], division.ranks), ("pairs per step", saved["step_pairs"], division.pairs)]
    found += [(f"--{name}", value, now[name]) for name, value in before.items() if name not in silent]
    return [f"{name} {_short(old)} → {_short(new)}" for name, old, new in found if _short(old) != _short(new)]


def _short(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
