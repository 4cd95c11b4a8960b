"""The entry points, and the command `encore` that holds them: `encore train`, `encore sample` and so on."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import typer

from encore.startup import announce

COMMANDS = {
    "demo": ("encore.commands.demo", "Continue a song with the model that Encore comes with."),
    "prepare": ("encore.commands.prepare", "Cut a folder of music into pairs to train on."),
    "train": ("encore.commands.train", "Train a model to continue music."),
    "sample": ("encore.commands.sample", "Continue a song with a trained model."),
    "export": ("encore.commands.export", "Write a model as a folder to pass on, as on the Hugging Face Hub."),
    "app": ("encore.commands.app", "Continue songs on an interactive page."),
    "evaluate": ("encore.commands.evaluate", "Evaluate a model beside baselines."),
    "ablate": ("encore.commands.ablate", "Train with several weightings or objectives and compare them."),
    "losses": ("losses.__main__", "Examine the losses: values, safety, shortest input, cost."),
    "train_codec": ("encore.commands.train_codec", "Train a small codec on a folder of audio."),
}


def main() -> None:
    """The command `encore`. A command's module is imported only when it is called, as torch takes seconds."""
    app = typer.Typer(
        add_completion=False, no_args_is_help=True, context_settings={"help_option_names": ["--help", "-h"]}
    )
    app.callback()(_describe)
    for name, (module, help) in COMMANDS.items():
        settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
        app.command(name, help=help, context_settings=settings)(_forward(name, module))
    app(prog_name="encore")


def _describe() -> None:
    """Train, sample and evaluate models that continue music. `encore COMMAND --help` lists a command's flags."""


def _forward(name: str, module: str) -> Callable[[typer.Context], None]:
    def forward(context: typer.Context) -> None:
        announce()
        from encore.config import cli

        cli.run(import_module(module).app, context.args, f"encore {name}")

    return forward
