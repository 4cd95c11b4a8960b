"""Runs within a run, in MLflow."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from encore.errors import EncoreError

PARENT = "mlflow.parentRunId"  # MLflow's own tag, by which its page nests runs
REASON_LENGTH = 200


class Nest:
    """A parent run, and children in it.

    Args:
        uri: tracking server or store.
        experiment: name; made if missing.

    Raises:
        EncoreError: from every method, if the server can't be reached or does not know a run.
    """

    def __init__(self, uri: str, experiment: str):
        # A dead server is noticed in seconds; MLflow would try for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow.tracking import MlflowClient  # takes seconds to import

        for name in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.uri = uri
        self.client = self._asked(lambda: MlflowClient(uri))
        self.experiment_id = self._asked(lambda: self._experiment(experiment))
        self.run_id = ""

    def open(self, name: str, run_id: str | None) -> str:
        """The parent: `run_id`, or a new one; its id."""
        self.run_id = self._run(name, run_id, {})
        self._asked(lambda: self.client.update_run(self.run_id, status="RUNNING"))
        return self.run_id

    def child(self, name: str, run_id: str | None) -> str:
        """A run within the parent: `run_id`, or a new one, which waits; its id."""
        child = self._run(name, run_id, {PARENT: self.run_id})
        if run_id is None:
            self._asked(partial(self.client.update_run, child, status="SCHEDULED"))
        return child

    def close(self, status: str, failed: Sequence[str] = (), artifacts: Sequence[Path] = ()) -> None:
        """Ends the parent with FINISHED, FAILED or KILLED, after storing copies of files with it.

        Children that have failed are marked so here: one that ended before it was at MLflow could not do it itself.
        """
        for run_id in failed:
            self._asked(partial(self.client.set_terminated, run_id, "FAILED"))
        for path in artifacts:
            self._asked(partial(self.client.log_artifact, self.run_id, str(path)))
        self._asked(lambda: self.client.set_terminated(self.run_id, status))

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        return found.experiment_id if found else self.client.create_experiment(name)

    def _run(self, name: str, run_id: str | None, tags: Mapping[str, str]) -> str:
        if run_id is None:
            run_id = self._asked(
                lambda: self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
            )
        else:
            self._asked(lambda: self.client.get_run(run_id))
        assert run_id is not None
        return run_id

    def _asked(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception as error:  # whatever a tracking backend raises
            reason = str(error).strip().partition("\n")[0][:REASON_LENGTH]
            raise EncoreError(f"--mlflow_uri {self.uri}: {reason}") from error
