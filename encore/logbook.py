"""An evaluation in MLflow: its figures as metrics and its report as artifacts, in the run of the checkpoint."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encore.errors import EncoreError

MOST_PER_CALL = 1000  # MLflow's limit for the metrics of one request


@dataclass(frozen=True)
class Run:
    """A run that can be logged to."""

    client: Any
    uri: str
    run_id: str
    new: bool


def open_run(uri: str, experiment: str, run_id: str | None, trained: str | None) -> Run:
    """The run `run_id`, else the run of the training, `trained`, if the store has it, else a new one in `experiment`.

    Raises:
        EncoreError: the store or server can't be reached, or there is no run `run_id`.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow.exceptions import MlflowException  # takes seconds to import, and only who logs needs it
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)  # fails where nothing can be reached
    except Exception as error:  # whatever a tracking backend raises
        raise EncoreError(f"--mlflow_uri {uri}: can't be reached ({_reason(error)})") from error
    for candidate in filter(None, [run_id or trained]):
        try:
            client.get_run(candidate)
            return Run(client, uri, candidate, False)
        except MlflowException as error:
            if run_id is not None:
                raise EncoreError(f"--run_id {run_id}: not in --mlflow_uri {uri} ({_reason(error)})") from error
    number = found.experiment_id if found else client.create_experiment(experiment)
    return Run(client, uri, client.create_run(number, run_name="evaluation").info.run_id, True)


def log_evaluation(run: Run, metrics: Mapping[str, float], folder: Path, step: int) -> None:
    """Logs metrics at a step, and the files of `folder` as artifacts below `evaluation/`.

    Raises:
        EncoreError: the server can't be reached any more.
    """
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    entries = [Metric(name, value, now, step) for name, value in metrics.items()]
    try:
        for first in range(0, len(entries), MOST_PER_CALL):
            run.client.log_batch(run.run_id, metrics=entries[first : first + MOST_PER_CALL])
        for file in ("evaluation.json", "index.html"):
            run.client.log_artifact(run.run_id, str(folder / file), "evaluation")
        if run.new:
            run.client.set_terminated(run.run_id, "FINISHED")
    except Exception as error:  # whatever a tracking backend raises
        raise EncoreError(
            f"--mlflow_uri {run.uri}: the report could not be logged ({_reason(error)}); it is in {folder}"
        ) from error


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:160]
