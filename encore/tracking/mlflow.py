"""The MLflow client, and the tracker of training runs, which saves what cannot be sent and sends it later."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from encore.config.schema import TrackingConfig
from encore.tracking.background import BackgroundTracker
from encore.tracking.tracker import Tracker, register_tracker

JOURNAL = "missed_mlflow.jsonl"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # its page then opens on runs and charts, not on chats
MAX_PARAMS, MAX_METRICS = 100, 1000  # MLflow's limits for one request
REASON_LENGTH = 200  # characters


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
    from mlflow.tracking import MlflowClient  # takes seconds to import, so only those who log import it

    for name in ("mlflow", "alembic", "urllib3"):  # the import has set their levels, so after it
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(uri)


def experiment_id(client: Any, name: str) -> str:
    """The id of an experiment, which is created if it is missing."""
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name, tags=KIND)


def log_metrics(client: Any, run_id: str, values: Mapping[str, float], step: int, milliseconds: int) -> None:
    """Logs metrics of one step, in as many requests as MLflow's limit asks for."""
    from mlflow.entities import Metric

    entries = [Metric(name, value, milliseconds, step) for name, value in values.items()]
    for first in range(0, len(entries), MAX_METRICS):
        client.log_batch(run_id, metrics=entries[first : first + MAX_METRICS])


def reason(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).strip().partition("\n")[0][:REASON_LENGTH]


class MlflowTracker(Tracker):
    """One MLflow run, with the load of the machine.

    Records are collected and sent by `flush`, oldest first. One that cannot be sent is saved, with those after it, to
    a journal (JSON lines), and the next flush tries again.

    Args:
        settings: server or store, experiment (created if missing) and name of the run (None lets MLflow choose).
        run_id: run to continue; None takes the environment's MLFLOW_RUN_ID, or else a new one.
        folder: where the journal is written; one that is there already is continued.
        log: gets one line when the server is lost, and one when it is back.
        journal: name of the journal's file.
    """

    def __init__(
        self,
        settings: TrackingConfig,
        run_id: str | None,
        folder: Path,
        log: Callable[[str], None],
        journal: str = JOURNAL,
    ):
        self.settings, self.run_id, self.log = settings, run_id, log
        self.journal = folder / journal
        self.lost = False
        self._records: list[dict[str, Any]] = []
        self._client: Any = None
        self._monitor: Any = None
        if self.journal.is_file():
            header, *records = (json.loads(line) for line in self.journal.read_text().splitlines())
            if run_id in (None, header["run_id"]):
                self.run_id, self._records = header["run_id"], records
        # MLflow's own variable: the run that has been created for this process.
        self.run_id = self.run_id or os.environ.get("MLFLOW_RUN_ID")

    def params(self, values: Mapping[str, Any]) -> None:
        self._records.append({"kind": "params", "values": {name: str(value) for name, value in values.items()}})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._records.append({"kind": "metrics", "values": dict(values), "step": step, "time": now})

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self._records.append({"kind": "artifact", "path": str(path.resolve()), "folder": folder})

    def flush(self) -> None:
        try:
            self._open()
            while self._records:
                self._send(self._records[0])
                self._records.pop(0)
        except Exception as error:  # whatever a tracking backend raises, training continues
            self._write_journal()
            if not self.lost:
                self.log(
                    f"MLflow cannot be reached ({reason(error)}); training continues, and what could not be logged is "
                    f"saved in {self.journal}"
                )
            self.lost = True
            return
        self.journal.unlink(missing_ok=True)
        if self.lost:
            self.log("MLflow can be reached again; what was missing has been logged")
        self.lost = False

    def close(self, status: str) -> None:
        if self._monitor is not None:
            self._monitor.finish()
        self._records.append({"kind": "status", "status": status})
        self.flush()

    def _open(self) -> None:
        """Finds or creates the run, and starts the log of the machine's load."""
        uri = self.settings.mlflow_uri
        if self._client is None:
            self._client = connect(uri)
        if self.run_id is None:
            number = experiment_id(self._client, self.settings.experiment)
            self.run_id = self._client.create_run(number, run_name=self.settings.run_name).info.run_id
        if self._monitor is None and any(record["kind"] != "status" for record in self._records):
            self._client.update_run(self.run_id, status="RUNNING")
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=uri)
            self._monitor.start()

    def _send(self, record: dict[str, Any]) -> None:
        assert self.run_id is not None
        kind = record["kind"]
        if kind == "params":
            self._send_params(record["values"])
        elif kind == "metrics":
            log_metrics(self._client, self.run_id, record["values"], record["step"], record["time"])
        elif kind == "artifact":
            path = Path(record["path"])
            send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            send(self.run_id, str(path), record["folder"])
        else:
            self._client.set_terminated(self.run_id, record["status"])

    def _send_params(self, values: Mapping[str, str]) -> None:
        """Logs parameters. MLflow's cannot be changed: what a resumed run does differently becomes a tag."""
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params
        new = [Param(name, value) for name, value in values.items() if name not in known]
        for first in range(0, len(new), MAX_PARAMS):
            self._client.log_batch(self.run_id, params=new[first : first + MAX_PARAMS])
        for name, value in values.items():
            if known.get(name, value) != value:
                self._client.set_tag(self.run_id, f"resumed_{name}", value)

    def _write_journal(self) -> None:
        header = {
            "experiment": self.settings.experiment,
            "run_name": self.settings.run_name,
            "run_id": self.run_id,
        }
        temporary = self.journal.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in [header, *self._records]))
        temporary.replace(self.journal)


@register_tracker("mlflow")
class BackgroundMlflowTracker(BackgroundTracker):
    """`MlflowTracker` on a thread of its own: training never waits for a server."""

    def __init__(self, settings: TrackingConfig, run_id: str | None, folder: Path, log: Callable[[str], None]):
        super().__init__(MlflowTracker(settings, run_id, folder, log))

    @staticmethod
    def prepare(settings: TrackingConfig) -> None:
        with contextlib.suppress(Exception):  # which the tracker will meet again, and report
            from mlflow.tracking import MlflowClient  # noqa: F401
