"""Tracking: nothing is lost while MLflow cannot be reached, and a tracker of one's own can take its place."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient

from encore.config.schema import TrackingConfig
from encore.errors import EncoreError
from encore.tracking import BackgroundTracker, MlflowTracker, Tracker, build_tracker
from encore.tracking.__main__ import send
from tests.conftest import ENVIRONMENT, Command
from tests.test_extending import MOST_LINES, example

NOWHERE = "http://127.0.0.1:9"  # nothing listens on this port


def settings(uri: str, experiment: str, run_name: str | None = None) -> TrackingConfig:
    return TrackingConfig(mlflow_uri=uri, experiment=experiment, run_name=run_name)


@pytest.mark.slow
def test_a_run_whose_server_is_down_finishes_and_is_logged_later(
    tmp_path: Path, call_command: Command, train_flags: list[object], store: str
) -> None:
    flags = (
        *train_flags,
        "--objective",
        "regression",
        "--epochs",
        2,
        "--batch_size",
        4,
        "--decode_seconds",
        0.2,
        "--mlflow_uri",
        NOWHERE,
        "--experiment",
        "later",
        "--run_name",
        "offline",
    )
    result = call_command("train_worker.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    journal = tmp_path / "checkpoints" / "missed_mlflow.jsonl"
    assert result.stdout.count("MLflow cannot be reached") == 1 and journal.name in result.stdout
    assert "Traceback" not in result.stderr and "Epoch 2/2" in result.stdout

    with pytest.raises(EncoreError, match=f"--mlflow_uri {NOWHERE}: cannot be reached; .* is unchanged"):
        send(journal, NOWHERE)
    assert journal.is_file()
    sent = call_command("-m", "encore.tracking", journal, "--mlflow_uri", store, cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    assert not journal.exists()
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("later").experiment_id])
    assert run.info.run_name == "offline" and run.info.status == "FINISHED"
    losses = [metric.value for metric in client.get_metric_history(run.info.run_id, "val_loss")]
    log = (tmp_path / "checkpoints" / "train.log").read_text()
    assert [f"{value:.4f}" for value in losses] == [
        line.split()[2] for line in log.splitlines() if line.startswith("  Val Loss:")
    ]
    assert run.data.params["epochs"] == "2"
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"config.json", "checkpoints", "examples"}


class Server:
    """A real tracking server on a port of this machine."""

    def __init__(self, folder: Path, store: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.command = [
            *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(self.port)),
            *("--default-artifact-root", str(folder / "artifacts"), "--workers", "1"),
        ]

    def __enter__(self) -> Server:
        self.process = subprocess.Popen(
            self.command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:  # ends with the process
            seen.append(line)
            if "Uvicorn running on" in line:  # it listens now, and not before
                return self
        raise AssertionError("".join(seen))

    def __exit__(self, *_: object) -> None:
        parent = psutil.Process(self.process.pid)
        parent.suspend()  # it would end, or start others, while its children are killed
        processes = [*parent.children(recursive=True), parent]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # a helper that ends by itself
                process.kill()
        _, alive = psutil.wait_procs(processes, timeout=60)
        assert not alive
        self.process.wait()
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(self.uri, timeout=5)


@pytest.mark.slow
def test_a_server_that_comes_back_gets_all_records_in_order(tmp_path: Path, store: str) -> None:
    server, journal = Server(tmp_path, store), tmp_path / "missed_mlflow.jsonl"
    logged: list[str] = []
    note = tmp_path / "note.txt"
    note.write_text("kept")
    with server:
        tracker = MlflowTracker(settings(server.uri, "away", "run"), None, tmp_path, logged.append)
        tracker.params({"lr": 0.1, "path": Path("x")})
        tracker.metrics({"loss": 3.0}, step=1)
        tracker.flush()
        assert not logged and not journal.exists()
    for step in (2, 3):
        tracker.metrics({"loss": 3.0 - step / 2}, step=step)
        tracker.artifact(note, "notes")
        tracker.flush()
    assert len(logged) == 1 and "cannot be reached" in logged[0]
    kinds = [json.loads(line).get("kind") for line in journal.read_text().splitlines()]
    assert kinds == [None, "metrics", "artifact", "metrics", "artifact"]
    with server:
        tracker.close("FINISHED")
        assert len(logged) == 2 and "again" in logged[1] and not journal.exists()
        client = MlflowClient(server.uri)
        assert tracker.run_id is not None
        run = client.get_run(tracker.run_id)
        history = client.get_metric_history(tracker.run_id, "loss")
        assert [(metric.step, metric.value) for metric in history] == [(1, 3.0), (2, 2.0), (3, 1.5)]
        assert run.data.params == {"lr": "0.1", "path": "x"} and run.info.status == "FINISHED"
        assert [item.path for item in client.list_artifacts(tracker.run_id, "notes")] == ["notes/note.txt"]


def test_a_resumed_run_continues_and_tags_changed_parameters(tmp_path: Path, store: str) -> None:
    first = MlflowTracker(settings(store, "resume"), None, tmp_path, print)
    first.params({"lr": 0.1, "epochs": 3})
    first.close("KILLED")
    second = MlflowTracker(settings(store, "resume"), first.run_id, tmp_path, print)
    second.params({"lr": 0.1, "epochs": 6})
    second.flush()
    client = MlflowClient(store)
    assert first.run_id is not None
    assert client.get_run(first.run_id).info.status == "RUNNING"
    second.close("FINISHED")
    run = client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "epochs": "3"}
    assert run.data.tags["resumed_epochs"] == "6" and "resumed_lr" not in run.data.tags


@pytest.mark.slow
def test_the_tracker_of_the_documentation_takes_the_place_of_mlflow(
    tmp_path: Path, call_command: Command, train_flags: list[object]
) -> None:
    code = example("A tracker")
    assert 0 < len(code.strip().splitlines()) <= MOST_LINES
    (tmp_path / "my_tracker.py").write_text(code)
    flags = (
        *train_flags,
        "--objective",
        "regression",
        "--epochs",
        2,
        "--batch_size",
        4,
        "--decode_seconds",
        0.2,
        "--mlflow_uri",
        "sqlite:///unused.db",
        "--plugins",
        "my_tracker.py",
    )
    result = call_command("train_worker.py", *flags, "--tracker", "json_lines", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "checkpoints" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    log = (tmp_path / "checkpoints" / "train.log").read_text()
    assert losses.keys() == {1, 2}
    assert [f"{losses[epoch]:.4f}" for epoch in (1, 2)] == [
        line.split()[2] for line in log.splitlines() if line.startswith("  Val Loss:")
    ]
    assert not (tmp_path / "unused.db").exists()

    unknown = call_command("train_worker.py", *flags[:-2], "--tracker", "json_line", cwd=tmp_path)
    assert unknown.returncode == 2 and "--tracker json_line" in unknown.stderr


class Slow(Tracker):
    """Notes its calls; `flush` waits until it may go on, and raises what it is told to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.sending, self.may_go_on = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def params(self, values: Mapping[str, Any]) -> None:
        self.calls.append(f"params {dict(values)}")

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.calls.append(f"metrics {step} {values['loss']}")

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self.calls.append(f"artifact {path} {folder}")

    def flush(self) -> None:
        self.sending.set()
        assert self.may_go_on.wait(60)
        self.run_id = "known"
        self.calls.append("flush")
        if self.error is not None:
            raise self.error

    def close(self, status: str) -> None:
        self.calls.append(f"close {status}")


def test_a_server_that_does_not_answer_delays_nothing_but_the_log() -> None:
    """All of this happens while the first flush waits: it could not if a call waited for it."""
    slow = Slow()
    tracker = BackgroundTracker(slow)
    assert tracker.run_id is None  # nothing has been sent yet
    tracker.flush()
    assert slow.sending.wait(60)
    tracker.params({"lr": 0.1})
    values = {"loss": 3.0}
    for step in (1, 2):
        tracker.metrics(values, step)
        values["loss"] -= 1  # what is logged is what the values were
        tracker.artifact(Path("note.txt"), "notes")
        tracker.flush()
    assert slow.calls == []
    slow.may_go_on.set()
    assert tracker.run_id == "known"
    tracker.close("FINISHED")
    steps = ["metrics 1 3.0", "artifact note.txt notes", "metrics 2 2.0", "artifact note.txt notes"]
    assert slow.calls == ["flush", "params {'lr': 0.1}", *steps, "flush", "close FINISHED"]  # one flush for both steps


def test_what_a_tracker_raises_on_its_thread_ends_the_run_and_the_tracked_one_too() -> None:
    slow = Slow()
    slow.error = ValueError("broken")
    slow.may_go_on.set()
    tracker = BackgroundTracker(slow)
    tracker.flush()
    assert tracker.run_id == "known"  # waits for the flush, and so for the error
    with pytest.raises(ValueError, match="broken"):
        tracker.metrics({"loss": 1.0}, 1)
    tracker.flush()
    with pytest.raises(ValueError, match="broken"):
        tracker.close("FAILED")
    assert slow.calls == ["flush", "flush", "close FAILED"]


def test_a_file_that_is_not_a_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for content in ("no JSON\n", "[1]\n", "{}\n"):
        path.write_text(content)
        with pytest.raises(EncoreError, match="notes.txt: is not a journal"):
            send(path, NOWHERE)
        assert path.read_text() == content
    with pytest.raises(EncoreError, match="no such file"):
        send(tmp_path / "missing.jsonl", NOWHERE)


def test_no_tracker_writes_nothing_and_keeps_the_id_of_the_run(tmp_path: Path) -> None:
    for run_id in (None, "of an earlier tracker"):
        tracker = build_tracker(TrackingConfig(tracker="none"), run_id, tmp_path, print)
        tracker.params({"lr": 0.1})
        tracker.metrics({"loss": 1.0}, step=1)
        tracker.artifact(tmp_path)
        tracker.flush()
        tracker.close("FINISHED")
        assert tracker.run_id == run_id and not list(tmp_path.iterdir())
