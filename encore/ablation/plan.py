"""What an ablation trains: the configurations of its runs, and the losses that all of them are evaluated on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import losses
from encore.ablation.grid import Grid, common_configuration, configurations
from encore.codecs import load_codec
from encore.codecs.losses import build_losses
from encore.config.components import WEIGHT, loss_knobs
from encore.config.schema import TrainConfig
from encore.data import find_pairs, segment_frames

DEFAULT_STEP_SECONDS = 2.0  # of audio that a loss must accept if --decode_seconds is not given


@dataclass(frozen=True)
class Plan:
    """The runs of an ablation.

    Attributes:
        grid: the flags as they were given, for all runs and for each.
        configs: the configuration of every run, by its name.
        metrics: registered names of the losses that every run is evaluated on.
    """

    grid: Grid
    configs: Mapping[str, TrainConfig]
    metrics: list[str]


def make_plan(grid: Grid, each_loss: bool, output: Path, given: Mapping[str, Any], log: Callable[[str], None]) -> Plan:
    """Plans an ablation: the runs of the grid, or one for each loss.

    Args:
        grid: see `read_grid`.
        each_loss: train one run per loss that can be computed here, instead of the grid's.
        output: folder of the runs.
        given: flags that override the grid's, for all runs.
        log: gets a line for whatever is left out.

    Raises:
        EncoreError: a configuration is wrong, the codec cannot be loaded, or the pairs cannot be used.
    """
    if each_loss:
        if grid.runs:
            log(f"{grid.source}: its runs are left out, because --each_loss makes its own")
        names = computable_losses(common_configuration(grid, output, given), losses.REGISTRY, log)
        grid = Grid(grid.source, grid.common, runs_of_each_loss(names))
    configs = configurations(grid, output, given)
    wanted = {name for config in configs.values() for name in config.objective.loss_names}
    return Plan(grid, configs, computable_losses(next(iter(configs.values())), wanted, log))


def runs_of_each_loss(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The flags of one run for each of the registered losses `names`: its weight is 1 and all others are 0."""
    off = {one.name: 0.0 for one in loss_knobs()}
    return {name: {**off, WEIGHT + ("target" if name == "rms" else name): 1.0} for name in names}


def computable_losses(config: TrainConfig, names: Iterable[str], log: Callable[[str], None]) -> list[str]:
    """Those of the registered losses `names` that can be computed on a training step's audio, in registry order.

    The others need another package, more samples or other channels; `log` gets a line for each.

    Raises:
        EncoreError: the codec cannot be loaded, or the pairs cannot be used.
    """
    codec = load_codec(config.codec.name, config.codec.repository, config.codec.bandwidth)
    data = config.data
    assert data.dataset_folder is not None
    pairs = find_pairs(data.dataset_folder, codec.sample_rate, data.dataset_format, data.latent_folder)
    segment = segment_frames(pairs, codec.hop_length).target * codec.hop_length
    step = round((config.objective.decode_seconds or DEFAULT_STEP_SECONDS) * codec.sample_rate)
    silence = torch.zeros(1, codec.channels, min(segment, step))
    built, problems = build_losses(names, config.objective, codec, silence)
    for name, problem in problems.items():
        log(f"without {name}: {problem}")
    return list(built)
