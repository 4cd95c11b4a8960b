"""MLflow runs outside training: of an evaluation, of an ablation with runs nested in it, and a run's artifacts.

Other than a training run's tracker, these fail with an `EncoreError` if MLflow cannot be reached.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encore.errors import EncoreError
from encore.tracking.description import mlflow_tags, source
from encore.tracking.mlflow import connect, experiment_id, find_run, log_metrics
from encore.tracking.sender import reason

PARENT = "mlflow.parentRunId"  # the tag by which MLflow's page nests runs
DESCRIPTION = "mlflow.note.content"  # the tag that a run's page shows
RETRIES = 2  # of a request after hours of work
DOWNLOAD_TIMEOUT = 120  # seconds without an answer; a server may have to fetch the file first


@contextmanager
def failing_with(message: str) -> Iterator[None]:
    """Raises whatever a tracking backend raises as an EncoreError: `message (reason)`."""
    try:
        yield
    except Exception as error:
        raise EncoreError(f"{message} ({reason(error)})") from error


@dataclass(frozen=True)
class EvaluationRun:
    """A run that an evaluation is logged to; `new` if it was created for it."""

    client: Any
    uri: str
    run_id: str
    new: bool


def open_run(uri: str, experiment: str, run_id: str | None, trained: str | None) -> EvaluationRun:
    """The run `run_id`, else the training's run `trained` if the store has it, else a new one in `experiment`.

    Raises:
        EncoreError: the store or server cannot be reached, or it has no run `run_id`.
    """
    with failing_with(f"--mlflow_uri {uri}: cannot be reached"):
        client = connect(uri, RETRIES)
        wanted = run_id or trained
        found = find_run(client, wanted) if wanted else None
    if found is not None:
        return EvaluationRun(client, uri, found.info.run_id, False)
    if run_id is not None:
        raise EncoreError(f"--run_id {run_id}: not in --mlflow_uri {uri}; MLflow's page of the run shows its id")
    with failing_with(f"--mlflow_uri {uri}: cannot create a run"):
        tags = mlflow_tags({"kind": "evaluation"} | source())
        created = client.create_run(experiment_id(client, experiment), run_name="evaluation", tags=tags)
    return EvaluationRun(client, uri, created.info.run_id, True)


def log_evaluation(
    run: EvaluationRun, metrics: Mapping[str, float], folder: Path, step: int, found: Sequence[str] = ()
) -> None:
    """Logs metrics at a step, the report in `folder` as artifacts below `evaluation/`, and what was found in sentences.

    Metrics in groups, `eval/…`, are logged at step 0, as MLflow draws bars of these and courses of others.

    Raises:
        EncoreError: the server can no longer be reached.
    """
    with failing_with(f"--mlflow_uri {run.uri}: the report could not be logged; it is in {folder}"):
        now, grouped = int(time.time() * 1000), {name: value for name, value in metrics.items() if "/" in name}
        log_metrics(run.client, run.run_id, grouped, 0, now)
        others = {name: value for name, value in metrics.items() if name not in grouped}
        log_metrics(run.client, run.run_id, others, step, now)
        for file in ("evaluation.json", "index.html"):
            run.client.log_artifact(run.run_id, str(folder / file), "evaluation")
        _describe(run.client, run.run_id, "Evaluation", found)
        if run.new:
            run.client.set_terminated(run.run_id, "FINISHED")


def _describe(client: Any, run_id: str, title: str, found: Sequence[str]) -> None:
    """Makes sentences the run's description, unless it has one of the user's."""
    known = client.get_run(run_id).data.tags.get(DESCRIPTION, "")
    start = f"**{title}**: "
    if found and (not known or known.startswith(start)):
        client.set_tag(run_id, DESCRIPTION, start + " ".join(found))


class NestedRuns:
    """A parent run, and child runs nested in it.

    Args:
        uri: tracking server or store.
        experiment: its name; created if missing.

    Raises:
        EncoreError: from every method, if the server cannot be reached or does not know a run.
    """

    def __init__(self, uri: str, experiment: str):
        self._failure = f"--mlflow_uri {uri}: the ablation's runs could not be updated"
        with failing_with(f"--mlflow_uri {uri}: cannot be reached"):
            self._client = connect(uri)
            self._experiment = experiment_id(self._client, experiment)
        self.run_id = ""

    def open(self, name: str, run_id: str | None) -> str:
        """Continues the parent run `run_id`, or creates one; returns its id."""
        with failing_with(self._failure):
            self.run_id = self._find_or_create(name, run_id, mlflow_tags({"kind": "ablation"} | source()))
            self._client.update_run(self.run_id, status="RUNNING")
        return self.run_id

    def child(self, name: str, run_id: str | None) -> str:
        """Finds the child run `run_id`, or creates one, as SCHEDULED; returns its id."""
        with failing_with(self._failure):
            child = self._find_or_create(name, run_id, {PARENT: self.run_id})
            if run_id is None:
                self._client.update_run(child, status="SCHEDULED")
        return child

    def close(
        self, status: str, failed: Sequence[str] = (), artifacts: Sequence[Path] = (), found: Sequence[str] = ()
    ) -> None:
        """Ends the parent as FINISHED, FAILED or KILLED, after storing copies of files and what was found with it.

        Children that have failed are marked so here, since one that ended before it reached MLflow could not do so.
        """
        with failing_with(self._failure):
            for run_id in failed:
                self._client.set_terminated(run_id, "FAILED")
            for path in artifacts:
                self._client.log_artifact(self.run_id, str(path))
            _describe(self._client, self.run_id, "Ablation", found)
            self._client.set_terminated(self.run_id, status)

    def _find_or_create(self, name: str, run_id: str | None, tags: Mapping[str, str]) -> str:
        if run_id is None:
            return self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id
        self._client.get_run(run_id)
        return run_id


def download_artifact(uri: str, run_id: str, artifact: str, folder: Path) -> Path:
    """Downloads an artifact of a run into `folder`; returns the file's path.

    Raises:
        EncoreError: no such store, run or artifact, or the server cannot be reached.
    """
    store = uri.removeprefix("sqlite:///")
    if store != uri and not Path(store).is_file():  # MLflow would create an empty one
        raise EncoreError(f"--mlflow_uri {uri}: no such file; name the store that the run was logged to")
    with failing_with(f"--run_id {run_id}: {artifact} cannot be downloaded from --mlflow_uri {uri}"):
        client = connect(uri, RETRIES, DOWNLOAD_TIMEOUT)
        return Path(client.download_artifacts(run_id, artifact, str(folder)))
