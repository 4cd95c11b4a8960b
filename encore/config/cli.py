"""The command line: Typer options made from the configuration's fields, and errors in one clear line."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from encore.config.schema import WEIGHT, TrainConfig, knobs
from encore.errors import EncoreError

USER_ERROR = 2


def parse_bool(value: str | bool) -> bool:
    """true or false, in any case."""
    text = str(value).lower()
    if text not in ("true", "false"):
        raise typer.BadParameter("give true or false")
    return text == "true"


def new_app() -> typer.Typer:
    """A Typer app with Encore's conventions: underscores in flags, dashes accepted too."""
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"token_normalize_func": lambda name: name.replace("-", "_")},
    )


def config_command(app: typer.Typer, main: Callable[[TrainConfig], None]) -> None:
    """Registers `main(config)` as the app's command, with an option for every field of the configuration."""

    def command(**values: Any) -> None:
        main(TrainConfig(**values))

    command.__doc__ = main.__doc__
    parameters = []
    for name, kind, entry in knobs():
        settings: dict[str, Any] = {"help": entry.metadata["help"], "rich_help_panel": entry.metadata["group"]}
        annotation: Any = kind
        default = entry.default
        if kind is bool:
            # A parser, because Typer would make a pair of flags of a bool.
            annotation, default = str, str(default).lower()
            settings |= {"parser": parse_bool, "metavar": "true|false"}
        elif entry.metadata["choices"]:
            settings["metavar"] = "|".join(entry.metadata["choices"])
        elif default is None:
            annotation = kind | None
        elif name.startswith(WEIGHT) and not default:
            settings["show_default"] = False  # of dozens of losses, that one is off needn't be said
        option = typer.Option(f"--{name}", **settings)
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option]
            )
        )
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command()(command)


def importable() -> dict[str, str]:
    """Environment in which `python -m encore…` finds this copy of Encore, installed or not, from any folder."""
    root = str(Path(__file__).resolve().parents[2])
    return {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


def run(app: typer.Typer) -> None:
    """Runs a door: what the user can put right is printed without a traceback, with exit status 2."""
    try:
        app()
    except EncoreError as error:
        print_error(error)
        sys.exit(USER_ERROR)


def print_error(error: EncoreError) -> None:
    """Prints an error's lines to standard error, each marked as one."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for line in str(error).splitlines():
        console.print(f"[bold red]error:[/] {_escape(line)}")


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
