"""Sends to MLflow what a training run could not log: `python -m encore.tracking upload DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encore.config import cli
from encore.errors import EncoreError
from encore.tracking import mlflow_tracker

app = cli.new_app()


@app.callback()
def tracking() -> None:
    """What training runs have logged."""


@app.command(cls=cli.HelpfulCommand)
def upload(
    folder: Annotated[Path, typer.Argument(help="checkpoint folder of a run", metavar="DIR")],
    mlflow_uri: Annotated[
        str | None, typer.Option("--mlflow_uri", help="tracking server or store; default: the run's own")
    ] = None,
) -> None:
    """Send to MLflow what a run that has ended could not log, and mark a run that was killed."""
    if not folder.is_dir():
        raise EncoreError(f"{folder}: no such folder; name the checkpoint folder of a run")
    if not mlflow_tracker.upload(folder, mlflow_uri, print):
        print(f"nothing to send: MLflow has got everything of {folder}")


if __name__ == "__main__":
    cli.run(app)
