"""The tracker of training runs, which writes to a spool what a thread sends to MLflow."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from encore.config.schema import TrackingConfig
from encore.errors import EncoreError
from encore.tracking.description import mlflow_tags
from encore.tracking.groups import first_screen
from encore.tracking.mlflow import ID, MlflowRun, page
from encore.tracking.sender import Sender, reason
from encore.tracking.spool import Record, Spool, is_open, read_spool
from encore.tracking.tracker import Tracker, register_tracker

SPOOL = "mlflow_spool.jsonl"


@register_tracker("mlflow")
class MlflowTracker(Tracker):
    """One MLflow run, for which training never waits.

    Everything is written to a spool in the run's folder, and sent from there by a thread. What has not been sent when
    the process ends, or is killed, is sent when the run is resumed, or by `python -m encore.tracking upload`.

    Args:
        settings: server or store, experiment and name of the run.
        run_id: run to continue; None takes that of a spool in the folder, or the environment's MLFLOW_RUN_ID, or else a
            new one.
        folder: where the spool is.
        log: gets one line when the server is lost, and one when it is back.
    """

    def __init__(self, settings: TrackingConfig, run_id: str | None, folder: Path, log: Callable[[str], None]):
        self.folder, self._log = folder, log
        path = folder / SPOOL
        header, records = _unsent(path, run_id, log)
        # The last is MLflow's own variable: the run that has been created for this process.
        ids = (run_id, header.get("run_id"), os.environ.get("MLFLOW_RUN_ID"))
        self.run_id: str = next((str(one) for one in ids if _is_id(one)), uuid.uuid4().hex)
        records = [record for record in records if record["kind"] != "status"]  # it goes on
        self._spool = Spool(path, _header(settings, self.run_id), records, log)
        self._run = MlflowRun(settings, self.run_id, folder)
        self._sender = Sender(self._spool, self._run, log)
        self._sender.start()

    @staticmethod
    def prepare(settings: TrackingConfig) -> None:
        with contextlib.suppress(Exception):  # which the thread will meet again, and report
            import mlflow.tracking  # noqa: F401

    def params(self, values: Mapping[str, Any]) -> None:
        self._spool.append({"kind": "params", "values": {name: str(value) for name, value in values.items()}})

    def tags(self, values: Mapping[str, str]) -> None:
        self._spool.append({"kind": "tags", "values": mlflow_tags(values)})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        now, numbers = int(time.time() * 1000), {name: float(value) for name, value in values.items()}
        numbers |= first_screen(numbers)
        self._spool.append({"kind": "metrics", "values": numbers, "step": step, "time": now})

    def artifact(self, path: Path, folder: str | None = None) -> None:
        path, own = path.resolve(), self.folder.resolve()
        relative = path.relative_to(own) if path.is_relative_to(own) else path  # as the folder may be moved
        self._spool.append({"kind": "artifact", "path": str(relative), "folder": folder})

    def flush(self) -> None:
        self._sender.wake()

    def close(self, status: str) -> None:
        """Ends the run. Waits for the rest to be sent: at most 300 s if MLflow answers, 30 s if it does not."""
        self._spool.append({"kind": "status", "status": status})
        if self._sender.close():
            for line in page(self._run.settings.mlflow_uri, self._run.experiment_id, self._run.mlflow_id):
                self._log(line)
        else:
            self._log(f"MLflow has not got all of the run; send the rest with: {upload_command(self.folder)}")


def upload(folder: Path, uri: str | None, log: Callable[[str], None]) -> bool:
    """Sends what runs that have ended could not send; returns whether there was anything.

    A run that was killed is marked so.

    Args:
        folder: a run's checkpoint folder.
        uri: server or store; None for the run's own.
        log: gets a line for each run, and for what is refused.

    Raises:
        EncoreError: a run is still going, a spool cannot be read, or MLflow cannot be reached.
    """
    paths = sorted(folder.glob(f"{Path(SPOOL).stem}*.jsonl"))
    for path in paths:
        try:
            running, (header, records) = is_open(path), read_spool(path)
        except OSError as error:
            raise EncoreError(f"{path}: cannot be read ({error.strerror})") from error
        if running:
            raise EncoreError(f"{path}: its run is still going, and sends this itself")
        if header.keys() != _header(TrackingConfig(), "").keys() or not _is_id(header["run_id"]):
            raise EncoreError(
                f"{path}: its first line does not say of which run it is; resume that run, which mends it"
            )
        run_id, own = header["run_id"], header["mlflow_uri"]
        settings = TrackingConfig(mlflow_uri=uri or own, experiment=header["experiment"], run_name=header["run_name"])
        spool, run = Spool(path, header, records, log), MlflowRun(settings, run_id, folder, running=False)
        try:
            Sender(spool, run, log).send_all()
            run.mark_killed()
        except Exception as error:
            what = f"--mlflow_uri {settings.mlflow_uri}: cannot be reached ({reason(error)})"
            raise EncoreError(f"{what}; {path} has what is still to be sent") from error
        finally:
            spool.close()
        log(f"logged to run {run.mlflow_id}")
    return bool(paths)


def upload_command(folder: Path) -> str:
    """The command that sends what is left of a run."""
    return f"python -m encore.tracking upload {shlex.quote(str(folder))}"


def _header(settings: TrackingConfig, run_id: str) -> Record:
    """The first line of a spool."""
    uri, prefix = settings.mlflow_uri, "sqlite:///"
    if uri.startswith(prefix):  # relative to the current folder
        uri = prefix + os.path.abspath(uri.removeprefix(prefix))
    return {"run_id": run_id, "mlflow_uri": uri, "experiment": settings.experiment, "run_name": settings.run_name}


def _is_id(run_id: object) -> bool:
    return isinstance(run_id, str) and ID.fullmatch(run_id) is not None


def _unsent(path: Path, run_id: str | None, log: Callable[[str], None]) -> tuple[Record, list[dict[str, Any]]]:
    """The header and the records of a run's spool, if it has left one; that of another run is moved out of the way."""
    try:
        if not path.is_file():
            return {}, []
        header, records = read_spool(path)
        found = header.get("run_id")
        if not _is_id(run_id) or not _is_id(found) or found == run_id:
            return header, records
        other = path.with_name(f"{path.stem}_{found}{path.suffix}")
        path.replace(other)
        log(f"{other} has what an earlier run could not log; send it with: {upload_command(path.parent)}")
    except OSError as error:
        log(f"{path} cannot be read ({error.strerror}), so what an earlier run could not log is not sent")
    return {}, []
