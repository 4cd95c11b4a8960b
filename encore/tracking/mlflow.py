"""The MLflow client, and the MLflow run that a training run's records are sent to."""

from __future__ import annotations

import importlib
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encore.config.schema import TrackingConfig
from encore.tracking.sender import Destination, Refused, reason
from encore.tracking.spool import Record

# An experiment's page then opens on its runs, not on chats. Versions that go by what was last looked at (3.17) need an
# address that says so.
KIND = {"mlflow.experimentKind": "custom_model_development"}
TRAINING_PAGES = "workflowType=machine_learning"
UI = "http://127.0.0.1:5000"  # where `mlflow ui` is
RUN_TAG = "encore.run"  # what Encore calls a run, so that it has a name before MLflow can be reached
ID = re.compile("[0-9a-f]{32}")  # of a run
MAX_PARAMS, MAX_METRICS = 100, 1000  # MLflow's limits for one request
NOT_THE_RECORD = (401, 403, 408, 429)  # HTTP status codes of errors that another record would get too


def connect(uri: str, retries: int = 1, timeout: int = 10) -> Any:
    """An `MlflowClient` that notices a dead server in seconds; MLflow's defaults would try for minutes.

    MLflow's loggers are silenced: what fails is reported by the callers, once.

    Args:
        uri: tracking server or store.
        retries: of a failed request, unless the environment has MLFLOW_HTTP_REQUEST_MAX_RETRIES.
        timeout: of a request in seconds, unless the environment has MLFLOW_HTTP_REQUEST_TIMEOUT.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(retries))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(timeout))
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # `page` has better ones
    from mlflow.tracking import MlflowClient  # takes seconds to import, so only those who log import it

    if _is_database(uri):
        # Opening one is tried ten times in 102 s.
        importlib.import_module("mlflow.store.db.utils").MAX_RETRY_COUNT = retries + 1  # type: ignore[attr-defined]
    for name in ("mlflow", "alembic", "urllib3"):  # the import has set their levels, so after it
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(uri)


def _is_database(uri: str) -> bool:
    return "sql" in uri.partition(":")[0]


def experiment_id(client: Any, name: str) -> str:
    """The id of an experiment, which is created if it is missing."""
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name, tags=KIND)


def page(uri: str, experiment_id: str, run_id: str = "") -> list[str]:
    """Lines that say how to see the charts of an experiment's runs side by side, and of one run.

    Args:
        uri: tracking server or store; for a store, a command that shows it comes first.
        experiment_id: MLflow's.
        run_id: MLflow's; "" for none.
    """
    served = uri.startswith(("http:", "https:"))
    runs = f"{uri.rstrip('/') if served else UI}/#/experiments/{experiment_id}/runs"
    lines = [] if served else [f"to see charts: {ui_command(uri)}"]
    lines.append(f"charts of all runs: {runs}?{TRAINING_PAGES}&compareRunsMode=CHART")
    return lines + ([f"charts of this run: {runs}/{run_id}/model-metrics?{TRAINING_PAGES}"] if run_id else [])


def ui_command(uri: str) -> str:
    """The command that shows a store, for the folder that this process is in."""
    python = sys.executable
    if shutil.which("python") == python:
        python = "python"
    elif Path(python).is_relative_to(Path.cwd()):
        python = str(Path(python).relative_to(Path.cwd()))
    return f"{shlex.quote(python)} -m mlflow ui --host 127.0.0.1 --backend-store-uri {shlex.quote(uri)}"


def log_metrics(client: Any, run_id: str, values: Mapping[str, float], step: int, milliseconds: int) -> None:
    """Logs metrics of one step, in as many requests as MLflow's limit asks for."""
    from mlflow.entities import Metric

    entries = [Metric(name, value, milliseconds, step) for name, value in values.items()]
    for first in range(0, len(entries), MAX_METRICS):
        client.log_batch(run_id, metrics=entries[first : first + MAX_METRICS])


def find_run(client: Any, run_id: str) -> Any:
    """The run that has the id, given by MLflow or as the tag `RUN_TAG`; None if there is none, or it was deleted."""
    if not ID.fullmatch(run_id):
        return None
    experiments = [one.experiment_id for one in client.search_experiments()]
    tagged = client.search_runs(experiments, f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1) if experiments else []
    if tagged:
        return tagged[0]
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


class MlflowRun(Destination):
    """An MLflow run, created if it is missing, with the load of the machine.

    A metric is logged at increasing steps, once at each: what a resumed run repeats is left out.

    Args:
        settings: server or store, experiment (created if missing) and name of the run (None lets MLflow choose).
        run_id: MLflow's id of the run, or its `RUN_TAG`, with which it is created.
        folder: that the artifacts' paths are relative to.
        running: whether the training still runs.
    """

    name = "MLflow"

    def __init__(self, settings: TrackingConfig, run_id: str, folder: Path, running: bool = True):
        self.settings, self.run_id, self.folder, self.running = settings, run_id, folder, running
        self.mlflow_id = self.experiment_id = ""
        self._client: Any = None
        self._monitor: Any = None
        self._steps: dict[str, int] = {}  # the last one of each metric

    def open(self) -> None:
        uri = self.settings.mlflow_uri
        self._client = connect(uri)
        run = find_run(self._client, self.run_id)
        if run is None:
            number = experiment_id(self._client, self.settings.experiment)
            run = self._client.create_run(number, run_name=self.settings.run_name, tags={RUN_TAG: self.run_id})
        self.mlflow_id, self.experiment_id = run.info.run_id, run.info.experiment_id
        self._steps = {metric.key: metric.step for metric in run.to_proto().data.metrics}
        if self.running:
            if run.info.status != "RUNNING":
                self._client.update_run(self.mlflow_id, status="RUNNING")
            self._stop_monitor()  # which ends when MLflow cannot be reached
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self.mlflow_id, resume_logging=True, tracking_uri=uri)
            self._monitor.start()

    def send(self, record: Record) -> None:
        try:
            self._send(record)
        except Exception as error:
            if self._refuses(record, error):
                raise Refused(reason(error)) from error
            raise

    def close(self) -> None:
        self._stop_monitor()

    def mark_killed(self) -> None:
        """Ends a run that did not say how it ended."""
        if self._client.get_run(self.mlflow_id).info.status == "RUNNING":
            self._client.set_terminated(self.mlflow_id, "KILLED")

    def _send(self, record: Record) -> None:
        kind = record["kind"]
        if kind == "params":
            self._send_params(record["values"])
        elif kind == "tags":
            from mlflow.entities import RunTag

            self._client.log_batch(self.mlflow_id, tags=[RunTag(*item) for item in record["values"].items()])
        elif kind == "metrics":
            step = record["step"]
            values = {name: value for name, value in record["values"].items() if step > self._steps.get(name, -1)}
            log_metrics(self._client, self.mlflow_id, values, step, record["time"])
            self._steps.update(dict.fromkeys(values, step))
        elif kind == "artifact":
            path = self.folder / record["path"]
            send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            send(self.mlflow_id, str(path), record["folder"])
        else:
            self._stop_monitor()
            self._client.set_terminated(self.mlflow_id, record["status"])

    def _refuses(self, record: Record, error: Exception) -> bool:
        """Whether an error concerns the record, or any artifact: MLflow says so, or answers, and still has the run."""
        answer = getattr(error, "response", None)
        code = answer.status_code if answer is not None else getattr(error, "get_http_status_code", lambda: 500)()
        if record["kind"] != "artifact" and (not 400 <= code < 500 or code in NOT_THE_RECORD):
            return False
        run = self._client.get_run(self.mlflow_id)
        return bool(run.info.lifecycle_stage == "active")

    def _stop_monitor(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.finish()

    def _send_params(self, values: Mapping[str, str]) -> None:
        """Logs parameters. MLflow's cannot be changed: what a resumed run does differently becomes a tag."""
        from mlflow.entities import Param

        known = self._client.get_run(self.mlflow_id).data.params
        new = [Param(name, value) for name, value in values.items() if name not in known]
        for first in range(0, len(new), MAX_PARAMS):
            self._client.log_batch(self.mlflow_id, params=new[first : first + MAX_PARAMS])
        for name, value in values.items():
            if known.get(name, value) != value:
                self._client.set_tag(self.mlflow_id, f"resumed_{name}", value)
