"""Command lines made from configurations: a flag per setting, `--config` files, plugins, and errors in one line."""

from __future__ import annotations

import inspect
import io
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand

from encore.config.components import WEIGHT
from encore.config.files import read_flags
from encore.config.knobs import Knob, from_flags, knobs_of, listed
from encore.errors import EncoreError
from encore.registry import load_plugins
from encore.startup import started

USER_ERROR = 2
PANELS = 80  # columns of a terminal that Typer's panels need, for the longest names and values
# Of commands that do not keep it in their configuration; `run` loads the plugins of all commands.
PLUGINS = Knob(
    "plugins", str, "", "modules or files of your own that register building blocks: a,b.py", "Options", common=True
)
C = TypeVar("C")


class HelpfulCommand(TyperCommand):
    """A command whose help has every name in full: Typer's panels would cut them on a narrow terminal."""

    def get_params(self, context: Any) -> list[Any]:
        params = super().get_params(context)
        for one in params:
            if getattr(one, "is_flag", False):
                one.metavar = ""  # Typer would write a type, as if it had a value
        return params

    def format_help(self, context: Any, formatter: Any) -> None:
        if shutil.get_terminal_size().columns >= PANELS:
            super().format_help(context, formatter)
            return
        self.format_usage(context, formatter)
        self.format_help_text(context, formatter)
        write_flags(context, formatter)
        self.format_epilog(context, formatter)


class App(typer.Typer):
    """A Typer app with Encore's conventions: underscores in flags, dashes accepted too, `-h` for help."""

    def __init__(self) -> None:
        super().__init__(
            add_completion=False,
            pretty_exceptions_enable=False,
            context_settings={
                "token_normalize_func": lambda name: name.replace("-", "_") if len(name) > 1 else name,
                "help_option_names": ["--help", "-h"],
            },
        )
        self.build: Callable[[], None] = lambda: None
        self.switches: set[str] = set()  # flags that are true or false, for which no value means true
        self.has_argument = False  # whether a word without a flag may follow a switch


def new_app() -> App:
    return App()


def add_command(app: App, config_class: type[C], main: Callable[[C], None]) -> None:
    """Makes `main(config)` the app's command, with a flag for every setting of the configuration.

    Its docstring is the help text. Every command has --config, --plugins and --help_all too.
    """

    def build() -> None:
        app.registered_commands.clear()
        app.command(cls=HelpfulCommand, epilog=_epilog(config_class))(_command(config_class, main))
        app.switches = {f"--{one.name}" for one in knobs_of(config_class) if one.kind is bool}
        app.has_argument = any(one.argument for one in knobs_of(config_class))

    app.build = build
    build()


def run(app: typer.Typer, argv: Sequence[str] | None = None, name: str | None = None) -> None:
    """Runs a command, called `name` in its help. What the user can put right ends in a line and exit status 2."""
    started()
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be UTF-8, nor terminals know all of it
    try:
        if plugins := _plugins_of(argv):
            load_plugins(plugins)
            if isinstance(app, App):
                app.build()
        app(_with_values(argv, app) if isinstance(app, App) else argv, prog_name=name)
    except EncoreError as error:
        print_error(error)
        sys.exit(USER_ERROR)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        reason = " ".join(str(error).split()) or "for Python's objects"
        print_error(EncoreError(f"there is not enough memory ({reason:.200}); lower what is computed at once"))
        sys.exit(USER_ERROR)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of this machine or of its GPU; PyTorch says the former in a RuntimeError's text."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def print_error(error: EncoreError) -> None:
    """Prints an error's lines to standard error, each marked as one."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for line in str(error).splitlines():
        console.print(f"[bold red]error:[/] {escape(line)}")


def importable() -> dict[str, str]:
    """Environment in which `python -m encore…` finds this copy of Encore, installed or not, from any folder.

    PYTHONSAFEPATH (Python 3.11) keeps the current folder out of the path; a user may have a losses.py there.
    """
    root = str(Path(__file__).resolve().parents[2])
    return {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])), "PYTHONSAFEPATH": "1"}


def parse_bool(value: str | bool) -> bool:
    """true or false, in any case."""
    text = str(value).lower()
    if text not in ("true", "false"):
        raise typer.BadParameter("give true or false")
    return text == "true"


def _plugins_of(argv: Sequence[str]) -> list[str]:
    """The value of --plugins, which is needed before there are flags to parse."""
    for flag, value in zip(argv, [*argv[1:], ""], strict=False):
        name, equals, own = flag.partition("=")
        if name == "--plugins":
            return listed(own if equals else value)
    return []


def _with_values(argv: Sequence[str], app: App) -> list[str]:
    """The arguments with `true` after each of the app's switches that has no value."""
    complete = []
    for argument, following in zip(argv, [*argv[1:], "--"], strict=False):
        complete.append(argument)
        name = "--" + argument[2:].replace("-", "_")
        bare = following.startswith("-") or (app.has_argument and following.lower() not in ("true", "false"))
        if argument.startswith("--") and name in app.switches and bare:
            complete.append("true")
    return complete


def _command(config_class: type[C], main: Callable[[C], None]) -> Callable[..., None]:
    def command(**values: Any) -> None:
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        main(from_flags(config_class, {one.name: values[one.name] for one in settings if one is not PLUGINS}))

    settings = knobs_of(config_class)
    if PLUGINS.name not in {one.name for one in settings}:
        settings.append(PLUGINS)
    annotations = {"config": _config_option(config_class)} | {one.name: _option(one) for one in settings}
    defaults = {"config": None, "help_all": False} | {one.name: _default(one) for one in settings}
    annotations["help_all"] = Annotated[
        bool, typer.Option("--help_all", help="Show all flags and exit.", is_eager=True, callback=_help_all)
    ]
    # Typer keeps single line breaks of all paragraphs but the first.
    command.__doc__ = "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(main.__doc__ or "").split("\n\n"))
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=annotation)
            for name, annotation in annotations.items()
        ]
    )
    command.__annotations__ = annotations
    return command


def _option(one: Knob) -> Any:
    kind: Any = one.kind
    if one.argument:
        return Annotated[kind, typer.Argument(help=one.help, metavar=one.name.upper())]
    settings: dict[str, Any] = {"help": one.help, "rich_help_panel": one.panel, "hidden": not one.common}
    if one.kind is bool:
        # A parser, because Typer would make a pair of flags of a bool.
        kind = str
        settings |= {"parser": parse_bool, "metavar": "true|false"}
    elif one.kind is tuple:
        kind = list[str]
    elif one.choices:
        settings["metavar"] = "|".join(map(str, one.choices))
    if one.default is None:
        kind = kind | None
    elif one.name.startswith(WEIGHT) and not one.default:
        settings["show_default"] = False  # dozens of losses that are off by default
    elif one.kind is str and "," in one.default:
        settings["show_default"] = one.default.replace(",", ", ")  # a list without spaces could not be wrapped
    return Annotated[kind, typer.Option(f"--{one.name}", **settings)]


def _default(one: Knob) -> Any:
    if one.argument:
        return inspect.Parameter.empty
    if one.kind is bool:
        return str(one.default).lower()
    return list(one.default) if one.kind is tuple else one.default


def _config_option(config_class: type) -> Any:
    def read(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            # Click's own place for values that flags on the command line override.
            context.default_map = {
                name: str(value).lower() if isinstance(value, bool) else value
                for name, value in read_flags(path, config_class).items()
            }
        return path

    option = typer.Option(
        "--config",
        help="YAML or JSON file of this command's flags; those on the command line override it",
        is_eager=True,
        callback=read,
    )
    return Annotated[Path | None, option]


def _help_all(context: typer.Context, value: bool) -> None:
    """Prints all flags as plain text, because Typer's panels cut long names on a narrow terminal."""
    if not value:
        return
    for parameter in context.command.params:
        parameter.hidden = False  # type: ignore[attr-defined]
    formatter = context.make_formatter()
    context.command.format_usage(context, formatter)
    write_flags(context, formatter)
    typer.echo(formatter.getvalue().rstrip())
    raise typer.Exit()


def write_flags(context: Any, formatter: Any) -> None:
    """The flags that are not hidden, in their groups, as plain text."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in context.command.get_params(context):
        is_argument = parameter.param_type_name == "argument"
        name = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Options"
        if (record := parameter.get_help_record(context)) is not None:
            panels.setdefault(name, []).append(record)
    for name, records in panels.items():
        with formatter.section(name):
            formatter.write_dl(records)


def _epilog(config_class: type) -> str | None:
    hidden = sum(not (one.common or one.argument) for one in knobs_of(config_class))
    return f"{hidden} more flag{'s' * (hidden > 1)}: --help_all" if hidden else None
