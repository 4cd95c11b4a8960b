"""Every number that a command takes has bounds; those beyond are refused, all together, before anything begins."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from encore.config.knobs import knobs_of, problems_of
from encore.config.schema import TrainConfig
from encore.errors import EncoreError
from tests.conftest import MODULES, Command

BEYOND: dict[type, tuple[str, ...]] = {int: ("-" + "9" * 22, "9" * 22), float: ("-1e31", "1e31", "nan", "inf")}
TOGETHER = [name for name in MODULES if name.endswith(".py")]  # the others look at one flag after the other


def numbers_of(app: typer.Typer) -> dict[str, type]:
    """The flags of a command that take a number, and of which kind."""
    (command,) = app.registered_commands
    assert command.callback is not None
    kinds = {name: get_args(hint)[0] for name, hint in command.callback.__annotations__.items()}
    return {
        f"--{name}": number for name, kind in kinds.items() for number in BEYOND if number in (kind, *get_args(kind))
    }


@pytest.mark.parametrize("script", TOGETHER)
def test_all_numbers_beyond_their_bounds_are_refused_together(script: str, tmp_path: Path) -> None:
    app = importlib.import_module(MODULES[script]).app
    flags = numbers_of(app)
    assert len(flags) >= 3
    folder = [str(tmp_path)] if script in ("prepare_data.py", "train_codec.py") else []
    for turn in range(4):
        values = {flag: BEYOND[kind][turn % len(BEYOND[kind])] for flag, kind in flags.items()}
        arguments = [f"{flag}={value}" for flag, value in values.items()]
        result = CliRunner().invoke(app, [*folder, *arguments])
        assert isinstance(result.exception, EncoreError), result.exception
        lines = str(result.exception).splitlines()
        for flag in flags:
            named = [line for line in lines if line.startswith(f"{flag} ")]
            assert any((" from " in line and " to " in line) or "one of" in line for line in named), flag


def test_defaults_and_bounds_themselves_are_allowed() -> None:
    assert not problems_of(TrainConfig())
    for one in knobs_of(TrainConfig):
        if one.kind in (int, float):
            assert one.minimum is not None and one.maximum is not None
            for value in (one.minimum, one.maximum):
                assert not problems_of(TrainConfig.from_flags({one.name: one.kind(value)})), one.name


@pytest.mark.parametrize(("flag", "value"), [("--seconds", "1e31"), ("--seconds", "nan"), ("--sample_rate", "9" * 22)])
def test_the_doctor_refuses_numbers_too(flag: str, value: str, call_command: Command, tmp_path: Path) -> None:
    result = call_command("-m", "losses", flag, value, cwd=tmp_path)
    assert result.returncode == 2
    assert f"{flag} {float(value):g}: must be" in result.stderr or f"{flag} {value}: must be" in result.stderr
