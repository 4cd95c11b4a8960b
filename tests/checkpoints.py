"""The smallest checkpoints that can be read."""

from __future__ import annotations

from typing import Any

import torch

from encore.models.loading import FORMAT


def content(step: int = 0, run: str = "a", size: int = 1000) -> dict[str, Any]:
    """What a checkpoint of a run holds after so many steps: weights whose values are their number."""
    parts: dict[str, Any] = {name: {} for name in ("config", "optimizer", "schedule", "objective", "yardstick")}
    counts = {"context_frames": 1, "segment_frames": 1, "margin": 0, "ranks": 1, "step_pairs": 1}
    weights = {"weight": torch.full((size,), float(step))}
    known = {"format": FORMAT, "run": run, "codec": {"identity": "x"}, "progress": {"step": step}}
    return {**parts, **counts, **known, "model": weights, "ema": None}
