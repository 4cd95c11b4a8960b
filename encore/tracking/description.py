"""What a tracker says about a run besides its settings: a name that tells runs apart, and what to filter by."""

from __future__ import annotations

import contextlib
import getpass
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from encore.config.components import WEIGHT, component_of
from encore.config.knobs import knobs_of, to_flags
from encore.config.schema import CodecConfig, DataConfig, RunConfig, TrackingConfig, TrainConfig

TRAINING = "training"
MAX_NAME = 64  # characters of a run's name
GIT_SECONDS = 5.0  # that git may take
# Flags that say where data and results are or how fast it goes, and those that a name begins with.
UNNAMED = {
    *("dataset_folder", "dataset_format", "cache_dir", "num_workers", "codec_repository", "embedding_weights"),
    *("metrics", "precision", "recompute", "compile", "objective", "unity_test", "shuffle_targets"),
    *(one.name for config in (RunConfig, TrackingConfig) for one in knobs_of(config) if one.name != "seed"),
}

AMOUNTS = ("decode_seconds", "epochs", "max_steps", "warmup_steps")  # of training, which a name ends with, as with data


def named(config: TrainConfig) -> TrackingConfig:
    """The tracking settings, with a name for the run if the user has given none."""
    return replace(config.tracking, run_name=config.tracking.run_name or run_name(config))


def run_name(config: TrainConfig) -> str:
    """Objective and losses of a resolved configuration, and what else is not as usual: `regression, mel 0.5, lr 0.001`.

    The folder stands before it unless it is the default; what is too long is counted.
    """
    data, kind = config.data, config.objective.kind
    usual = to_flags(TrainConfig.from_flags(objective=kind, unity_test=data.unity_test).resolved())
    last = {*AMOUNTS, *(one.name for group in (DataConfig, CodecConfig) for one in knobs_of(group))}
    flags = sorted(to_flags(config).items(), key=lambda flag: flag[0] in last)
    changed = {name: value for name, value in flags if name not in UNNAMED and value != usual[name]}
    weights = {component_of(name): value for name, value in changed.items() if name.startswith(WEIGHT) and value}
    others = {name: value for name, value in changed.items() if not name.startswith(WEIGHT)}
    parts = [name for name in (kind_of(config),) if name != TRAINING] + [str(kind)] * (not data.unity_test)
    parts += [_part(name, value) for name, value in (weights | others).items()]
    folder = config.run.checkpoint_dir
    start = "" if folder == RunConfig().checkpoint_dir else f"{folder.resolve().name}: "
    return start + _joined(parts, MAX_NAME - len(start))


def tags(config: TrainConfig) -> dict[str, str]:
    """What runs are often filtered by, in a word each."""
    data, objective = config.data, config.objective
    weights = {component_of(flag): weight for flag, weight in objective.loss_weights.items() if weight}
    return {
        "kind": kind_of(config),
        "codec": Path(config.codec.name).name,
        "objective": str(objective.kind),
        "prior": config.model.prior,
        "losses": " + ".join(f"{weight:g} {name}" for name, weight in weights.items()),
        "dataset": "" if data.dataset_folder is None else data.dataset_folder.resolve().name,
    }


def kind_of(config: TrainConfig) -> str:
    """`training`, or the test or control that a run is."""
    return "unity test" if config.data.unity_test else "shuffled targets" if config.data.shuffle_targets else TRAINING


def source() -> dict[str, str]:
    """Who runs which program of which git commit, as far as that is known: `user`, `source`, `commit`."""
    program = Path(sys.argv[0]).resolve()
    if "TORCHELASTIC_RUN_ID" in os.environ and len(command := psutil.Process(os.getppid()).cmdline()) > 1:
        program = Path(command[1]).resolve()  # the launcher's, which is what the user has started
    found = {"source": str(program)}
    with contextlib.suppress(OSError, KeyError, ImportError):  # a user without a name, as in some containers
        found["user"] = getpass.getuser()
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # no git, or Encore outside a repository
        asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
        found["commit"] = done.stdout.strip()
    return found


def _part(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if isinstance(value, Path):
        value = value.name
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


def _joined(parts: list[str], length: int) -> str:
    """As many parts as fit, at least one, and how many do not."""
    shown = [", ".join(parts)]
    shown += [f"{', '.join(parts[:count])} +{len(parts) - count}" for count in range(len(parts) - 1, 0, -1)]
    return next((text for text in shown if len(text) <= length), shown[-1])


def mlflow_tags(values: Mapping[str, str]) -> dict[str, str]:
    """Tags with those of `source` under the names by which MLflow's pages show them."""
    known = {"user": "mlflow.user", "source": "mlflow.source.name", "commit": "mlflow.source.git.commit"}
    named = {known.get(name, name): value for name, value in values.items()}
    return named | ({"mlflow.source.type": "LOCAL"} if "source" in values else {})
