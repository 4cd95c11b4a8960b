"""The grid of an ablation: a YAML file of runs, as configurations, and all that is wrong with it at once."""

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

OWN = ("checkpoint_dir", "resume", "run_name", "experiment", "mlflow_uri")  # flags that the ablation sets for each run
# What all runs are compared on is one.
SHARED = ("dataset_folder", "codec", "codec_repository", "encodec_bandwidth", "unity_test", "shuffle_targets")
NAMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # a run's name is a folder's


@dataclass(frozen=True)
class Grid:
    """Flags of train_ddp.py, by name without the dashes: those of all runs, and by a run's name those of its own."""

    source: str
    common: Mapping[str, Any]
    runs: Mapping[str, Mapping[str, Any]]


def read_grid(path: Path) -> Grid:
    """Reads `common:` and `runs:`; either may be missing.

    Raises:
        EncoreError: no such file, no YAML, or all that is wrong with its keys and values, a line each.
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
    if len(set(lowered)) < len(runs):  # 1 and "1"; on some disks a and A too are one folder
        problems.append(f"{path}: runs: two have the same name, capitals aside; give each its own")
    if problems:
        raise EncoreError("\n".join(problems))
    return grid


def configurations(grid: Grid, output: Path, given: Mapping[str, Any]) -> dict[str, TrainConfig]:
    """The configuration of every run of the grid, checked; its checkpoints go to `output/<run>/checkpoints`.

    Args:
        given: settings of all runs that win over the grid's.

    Raises:
        EncoreError: no runs, or all problems of all of them, a line each, with file and run; what is wrong with every
            run is said once.
    """
    if not grid.runs:
        raise EncoreError(f"{grid.source}: runs: holds none; give each a name and its flags")
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
    """The configuration of the common flags alone, checked, for who makes runs of it.

    Raises:
        EncoreError: all that is wrong with it, a line each, with the file.
    """
    config = TrainConfig.from_flags({**grid.common, **given, "checkpoint_dir": output}).resolved()
    try:
        validate(config)
    except EncoreError as error:
        raise EncoreError("\n".join(f"{grid.source}: {line}" for line in str(error).splitlines())) from error
    return config


def differences(before: TrainConfig, after: TrainConfig) -> list[str]:
    """What two configurations differ in, apart from what the ablation sets: `--lr 0.0001 is now 0.001`."""
    return [
        f"--{name} {_shown(value)} is now {_shown(to_flags(after)[name])}"
        for name, value in to_flags(before).items()
        if name not in OWN and _comparable(value) != _comparable(to_flags(after)[name])
    ]


def _run(name: str, flags: Any, path: Path, problems: list[str]) -> dict[str, Any]:
    where = f"{path}: runs: {name}"
    if not NAMED.fullmatch(name):
        problems.append(f"{where}: is the name of a folder; letters, digits, - and _ will do")
    if flags is None:  # `name:` with nothing in it is the common settings
        return {}
    if not isinstance(flags, dict):
        problems.append(f"{where}: must hold flags, not {flags!r}")
        return {}
    return _flags(flags, where, SHARED, problems)


def _flags(flags: Mapping[Any, Any], where: str, shared: tuple[str, ...], problems: list[str]) -> dict[str, Any]:
    """The values in the types that the configuration has for them."""

    def refuse(name: str) -> str | None:
        if name in OWN:
            return "is set for every run by ablate.py; leave it out"
        return "must be the same for all runs; put it under common:" if name in shared else None

    return typed_flags(flags, TrainConfig, where, problems, refuse)


def _comparable(value: Any) -> Any:
    return value.resolve() if isinstance(value, Path) else value


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
