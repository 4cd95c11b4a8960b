"""The grid of an ablation: a YAML file with the flags of each run, read and checked as configurations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encore.config.checks import validate
from encore.config.files import read_yaml, typed_flags
from encore.config.knobs import to_flags
from encore.config.schema import TrainConfig
from encore.errors import EncoreError

RESERVED = ("checkpoint_dir", "resume", "run_name", "experiment", "mlflow_uri")  # flags that the ablation sets itself
# Flags that must be the same for all runs: what they are evaluated on.
SHARED = (
    *("dataset_folder", "dataset_format", "codec", "codec_repository", "encodec_bandwidth"),
    *("unity_test", "shuffle_targets"),
)
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # also the name of the run's folder


@dataclass(frozen=True)
class Grid:
    """Flags of train_ddp.py, by name without the dashes.

    Attributes:
        source: the file, for error messages.
        common: flags of all runs.
        runs: further flags of each run, by its name.
    """

    source: str
    common: Mapping[str, Any]
    runs: Mapping[str, Mapping[str, Any]]


def read_grid(path: Path) -> Grid:
    """Reads `common:` and `runs:`; either may be missing.

    Raises:
        EncoreError: the file cannot be read or is not YAML, or everything wrong with its keys and values, a line each.
    """
    content = read_yaml(path, "--grid", "; ablation.yaml is an example")
    if not isinstance(content, dict) or not content or content.keys() - {"common", "runs"}:
        raise EncoreError(f"--grid {path}: must have common: and runs: with flags in them, and nothing else")
    common, runs = content.get("common") or {}, content.get("runs") or {}
    if not isinstance(common, dict) or not isinstance(runs, dict):
        raise EncoreError(f"--grid {path}: common: must hold flags, and runs: names, each with flags of its own")
    problems: list[str] = []
    grid = Grid(
        str(path),
        _flags(common, f"{path}: common", (), problems),
        {str(name): _run(str(name), flags, path, problems) for name, flags in runs.items()},
    )
    lowered = [name.lower() for name in grid.runs]
    if len(set(lowered)) < len(runs):  # 1 and "1"; some file systems have one folder for a and A
        problems.append(f"{path}: runs: two names differ in upper and lower case at most; give each run its own")
    if problems:
        raise EncoreError("\n".join(problems))
    return grid


def configurations(grid: Grid, output: Path, given: Mapping[str, Any]) -> dict[str, TrainConfig]:
    """The checked configuration of every run of the grid; its checkpoints go to `output/<run>/checkpoints`.

    Args:
        given: flags that override the grid's, for all runs.

    Raises:
        EncoreError: there are no runs, or all problems of all of them, a line each, with file and run; a problem that
            every run has is reported once.
    """
    if not grid.runs:
        raise EncoreError(f"{grid.source}: runs: is empty; give each run a name and its flags")
    configs, problems = {}, {}
    for name, flags in grid.runs.items():
        own = {"checkpoint_dir": output / name / "checkpoints", "resume": "auto", "run_name": name}
        configs[name] = TrainConfig.from_flags({**grid.common, **flags, **given, **own}).resolved()
        try:
            validate(configs[name])
        except EncoreError as error:
            problems[name] = str(error).splitlines()
    everywhere = [
        line for line in problems.get(next(iter(grid.runs)), []) if all(line in problems.get(n, []) for n in grid.runs)
    ]
    lines = [f"{grid.source}: {line}" for line in everywhere]
    for name, found in problems.items():
        lines += [f"{grid.source}: runs: {name}: {line}" for line in found if line not in everywhere]
    if lines:
        raise EncoreError("\n".join(lines))
    return configs


def common_configuration(grid: Grid, output: Path, given: Mapping[str, Any]) -> TrainConfig:
    """The checked configuration of the common flags, from which `--each_loss` derives its runs.

    Raises:
        EncoreError: everything that is wrong with it, a line each, with the file.
    """
    config = TrainConfig.from_flags({**grid.common, **given, "checkpoint_dir": output}).resolved()
    try:
        validate(config)
    except EncoreError as error:
        raise EncoreError("\n".join(f"{grid.source}: {line}" for line in str(error).splitlines())) from error
    return config


def differences(before: TrainConfig, after: TrainConfig) -> list[str]:
    """Flags in which two configurations differ, except those that the ablation sets: `--lr 0.0001 is now 0.001`."""
    return [
        f"--{name} {_shown(value)} is now {_shown(to_flags(after)[name])}"
        for name, value in to_flags(before).items()
        if name not in RESERVED and _comparable(value) != _comparable(to_flags(after)[name])
    ]


def _run(name: str, flags: Any, path: Path, problems: list[str]) -> dict[str, Any]:
    where = f"{path}: runs: {name}"
    if not RUN_NAME.fullmatch(name):
        problems.append(f"{where}: names a folder, so use letters, digits, - and _ only")
    if flags is None:  # `name:` alone: the common settings
        return {}
    if not isinstance(flags, dict):
        problems.append(f"{where}: must hold flags, not {flags!r}")
        return {}
    return _flags(flags, where, SHARED, problems)


def _flags(flags: Mapping[Any, Any], where: str, shared: tuple[str, ...], problems: list[str]) -> dict[str, Any]:
    """The flags with values of the right types; what is wrong is added to `problems`."""

    def refuse(name: str) -> str | None:
        if name in RESERVED:
            return "is set by ablate.py for every run; leave it out"
        if name == "plugins":  # a file of settings does not decide what code is run
            return "give it to ablate.py itself: --plugins"
        return "must be the same for all runs; put it under common:" if name in shared else None

    return typed_flags(flags, TrainConfig, where, problems, refuse)


def _comparable(value: Any) -> Any:
    return value.resolve() if isinstance(value, Path) else value


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
