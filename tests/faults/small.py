"""A checkpoint like one of a small run, without the run."""

from __future__ import annotations

from typing import Any

from encore.codecs import load_codec
from encore.config.schema import TrainConfig
from encore.models.loading import FORMAT, build_model


def checkpoint_content() -> dict[str, Any]:
    """What a small run would save."""
    config = TrainConfig.from_flags(codec="starter", d_model=16, nhead=2, num_layers=1, block_seconds=0.2).resolved()
    codec = load_codec("starter")
    model = build_model(config, codec, 20)
    return {
        "format": FORMAT,
        **{"run": "a", "yardstick": {}, "ranks": 1, "step_pairs": 8},
        "config": config.to_dict(),
        "codec": {"identity": codec.identity, "latent_dim": codec.latent_dim},
        **{"context_frames": 20, "segment_frames": 20, "margin": 3},
        **{"model": model.state_dict(), "ema": None, "optimizer": {}, "schedule": {}, "objective": {}},
        "progress": {"step": 1, "run_id": None},
    }
