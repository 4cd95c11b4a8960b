"""MLflow, on rank 0: what can't be sent now is kept in a file and sent later; training never waits for a server.

`python -m encore.tracking JOURNAL --mlflow_uri URI` sends what a run could not.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from encore.config import cli
from encore.errors import EncoreError

KIND = {"mlflow.experimentKind": "custom_model_development"}  # the page then opens on runs and charts, not on chats
MOST_PER_CALL = 100  # MLflow's limit for the parameters of one request


class Tracker:
    """One MLflow run.

    Records are collected and sent by `flush`, oldest first. A record that can't be sent stays, with those after it,
    in `journal` (JSON lines), and the next flush tries again.

    Args:
        uri: tracking server or store.
        experiment: name; made if missing.
        run_name: None lets MLflow choose.
        run_id: run to go on with; None takes that of the environment's MLFLOW_RUN_ID, or else a new one.
        journal: file for what could not be sent; one that is there is taken up again.
        say: gets one line when the server is lost, and one when it is back.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str | None,
        run_id: str | None,
        journal: Path,
        say: Callable[[str], None],
    ):
        # A dead server is noticed in seconds; MLflow would try for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow.tracking import MlflowClient  # takes seconds to import, and only rank 0 needs it

        # What is lost and found again is said by this class, once; importing has set the levels, so after it.
        for name in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

        self.uri, self.experiment, self.run_name, self.run_id = uri, experiment, run_name, run_id
        self.client = MlflowClient(uri)
        self.journal, self.say = journal, say
        self.records: list[dict[str, Any]] = []
        self.lost = False
        self.monitor: Any = None
        if journal.is_file():
            header, *records = (json.loads(line) for line in journal.read_text().splitlines())
            if run_id in (None, header["run_id"]):
                self.run_id, self.records = header["run_id"], records
        # MLflow's own variable: the run that has been made for this process.
        self.run_id = self.run_id or os.environ.get("MLFLOW_RUN_ID")

    def params(self, values: Mapping[str, Any]) -> None:
        self.records.append({"kind": "params", "values": {name: str(value) for name, value in values.items()}})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.records.append({"kind": "metrics", "values": dict(values), "step": step, "time": int(time.time() * 1000)})

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Stores a copy of a file (or of a folder's files) under `folder`; it must stay in place until it is sent."""
        self.records.append({"kind": "artifact", "path": str(path.resolve()), "folder": folder})

    def flush(self) -> None:
        """Sends what has been collected, as far as that works."""
        try:
            self._open()
            while self.records:
                self._send(self.records[0])
                self.records.pop(0)
        except Exception as error:  # whatever a tracking backend raises, training goes on
            self._write_journal()
            if not self.lost:
                reason = str(error).strip().partition("\n")[0][:160]
                self.say(
                    f"MLflow can't be reached ({reason}); training goes on, what is missed is kept in {self.journal}"
                )
            self.lost = True
            return
        self.journal.unlink(missing_ok=True)
        if self.lost:
            self.say("MLflow can be reached again; what was missed has been logged")
        self.lost = False

    def close(self, status: str) -> None:
        """Sends the rest and ends the run with FINISHED, FAILED or KILLED."""
        if self.monitor is not None:
            self.monitor.finish()
        self.records.append({"kind": "status", "status": status})
        self.flush()

    def _open(self) -> None:
        """Finds or makes the run, and starts the log of the machine's load."""
        if self.run_id is None:
            found = self.client.get_experiment_by_name(self.experiment)
            number = found.experiment_id if found else self.client.create_experiment(self.experiment, tags=KIND)
            self.run_id = self.client.create_run(number, run_name=self.run_name).info.run_id
        if self.monitor is None and any(record["kind"] != "status" for record in self.records):
            self.client.update_run(self.run_id, status="RUNNING")
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self.monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self.uri)
            self.monitor.start()

    def _send(self, record: dict[str, Any]) -> None:
        from mlflow.entities import Metric, Param

        assert self.run_id is not None
        kind = record["kind"]
        if kind == "params":
            known = self.client.get_run(self.run_id).data.params
            new = [Param(name, value) for name, value in record["values"].items() if name not in known]
            for first in range(0, len(new), MOST_PER_CALL):
                self.client.log_batch(self.run_id, params=new[first : first + MOST_PER_CALL])
            # A parameter can't be changed in MLflow: what a resumed run does differently becomes a tag.
            for name, value in record["values"].items():
                if known.get(name, value) != value:
                    self.client.set_tag(self.run_id, f"resumed_{name}", value)
        elif kind == "metrics":
            entries = [Metric(name, value, record["time"], record["step"]) for name, value in record["values"].items()]
            self.client.log_batch(self.run_id, metrics=entries)
        elif kind == "artifact":
            path = Path(record["path"])
            send = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
            send(self.run_id, str(path), record["folder"])
        else:
            self.client.set_terminated(self.run_id, record["status"])

    def _write_journal(self) -> None:
        header = {"experiment": self.experiment, "run_name": self.run_name, "run_id": self.run_id}
        temporary = self.journal.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in [header, *self.records]))
        temporary.replace(self.journal)


app = cli.new_app()


@app.command()
def send(
    journal: Annotated[Path, typer.Argument(help="missed_mlflow.jsonl of a checkpoint folder")],
    mlflow_uri: Annotated[str, typer.Option("--mlflow_uri", help="tracking server or store")] = "sqlite:///mlflow.db",
) -> None:
    """Send what a run could not log to MLflow."""
    if not journal.is_file():
        raise EncoreError(f"{journal}: no such file; a run writes it to its checkpoint folder when MLflow is away")
    header = json.loads(journal.read_text().partition("\n")[0])
    tracker = Tracker(mlflow_uri, header["experiment"], header["run_name"], header["run_id"], journal, say=print)
    tracker.flush()
    if tracker.lost:
        raise EncoreError(f"--mlflow_uri {mlflow_uri}: can't be reached; {journal} is as it was")
    print(f"logged to run {tracker.run_id}")


if __name__ == "__main__":
    cli.run(app)
