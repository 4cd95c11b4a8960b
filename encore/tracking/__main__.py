"""Sends to MLflow what a training run could not log: `python -m encore.tracking JOURNAL --mlflow_uri URI`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from encore.config import cli
from encore.config.schema import TrackingConfig
from encore.errors import EncoreError
from encore.tracking.mlflow import JOURNAL, MlflowTracker

app = cli.new_app()


@app.command()
def send(
    journal: Annotated[Path, typer.Argument(help=f"{JOURNAL} of a checkpoint folder")],
    mlflow_uri: Annotated[str, typer.Option("--mlflow_uri", help="tracking server or store")] = "sqlite:///mlflow.db",
) -> None:
    """Send what a run could not log to MLflow."""
    if not journal.is_file():
        raise EncoreError(
            f"{journal}: no such file; a run writes it to its checkpoint folder if MLflow cannot be reached"
        )
    try:
        header = json.loads(journal.read_text(encoding="utf-8").partition("\n")[0])
        settings = TrackingConfig(mlflow_uri=mlflow_uri, experiment=header["experiment"], run_name=header["run_name"])
        tracker = MlflowTracker(settings, header["run_id"], journal.parent, print, journal.name)
    except (ValueError, KeyError, TypeError) as error:
        raise EncoreError(f"{journal}: is not a journal of unsent records ({error}); name a run's {JOURNAL}") from error
    tracker.flush()
    if tracker.lost:
        raise EncoreError(f"--mlflow_uri {mlflow_uri}: cannot be reached; {journal} is unchanged")
    print(f"logged to run {tracker.run_id}")


if __name__ == "__main__":
    cli.run(app)
