"""MLflow that answers with errors, hangs, is gone, locked or unmakeable; and runs that are killed while they log."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from encore.config.schema import TrackingConfig
from encore.tracking import SPOOL, MlflowTracker, register_tracker, sender
from encore.tracking.__main__ import upload
from encore.tracking.spool import read_spool
from tests.conftest import Command, Forks
from tests.test_tracking import NOWHERE, Lines, history, run_of
from tests.test_train import equal_weights

SECONDS_PER_EPOCH = 1.0  # that training may wait
KILL = "KILL_RUN"  # environment variable: a step and "written" or "sent", or seconds


class Answer(BaseHTTPRequestHandler):
    """Answers every request with the server's status."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Failing)
        self.send_error(self.server.status)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


class Failing(ThreadingHTTPServer):
    status = 500


@pytest.fixture(scope="module")
def failing() -> Iterator[Callable[[int], str]]:
    """Addresses of servers that answer with a status; 0: that accept connections and never answer."""
    servers: list[Failing] = []
    hanging = socket.create_server(("127.0.0.1", 0))

    def start(status: int) -> str:
        if not status:
            return f"http://127.0.0.1:{hanging.getsockname()[1]}"
        servers.append(Failing(("127.0.0.1", 0), Answer))
        servers[-1].status = status
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    hanging.close()
    for server in servers:
        server.shutdown()
        server.server_close()


def copy_of(store: str, folder: Path) -> Path:
    """A store's file, since making one takes seconds."""
    return Path(shutil.copy(store.removeprefix("sqlite:///"), folder / "copy.db"))


def store_of(kind: str, folder: Path, store: str, failing: Callable[[int], str]) -> tuple[str, str]:
    """A `--mlflow_uri` that fails, and a part of what is said of it."""
    (folder / "file").write_text("x")
    if kind.isdecimal():
        return failing(int(kind)), f"error code {kind}" if kind == "404" else f"too many {kind}"
    if kind == "locked":
        return f"sqlite:///{copy_of(store, folder)}", ""
    if kind == "damaged":
        (folder / "damaged.db").write_bytes(bytes(range(256)) * 20)
    addresses = {
        "hanging": (failing(0), "timed out"),
        "gone": (NOWHERE, "Connection refused"),
        "no host": ("http://no-such-host.invalid", "[Errno -"),
        "unknown scheme": ("foo://bar", "unsupported URI"),
        "folder of files": ("./mlruns", "filesystem tracking backend"),
        "a folder": (f"sqlite:///{folder}", "unable to open database file"),
        "unmakeable": (f"sqlite:///{folder / 'file' / 'mlflow.db'}", "File exists"),
        "damaged": (f"sqlite:///{folder / 'damaged.db'}", "file is not a database"),
    }
    return addresses[kind]


KINDS = (
    *("500", "503", "404", "hanging", "gone", "no host", "unknown scheme", "folder of files", "a folder", "unmakeable"),
    *("damaged", "locked"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_fails_from_the_start_is_not_waited_for(
    kind: str, tmp_path: Path, store: str, failing: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    if kind == "locked":  # SQLite waits for 20 s
        monkeypatch.setattr(sender, "LOST_SECONDS", 0.5)
    uri, said = store_of(kind, tmp_path, store, failing)
    folder, lines = tmp_path / "run", Lines()
    folder.mkdir()
    with closing(sqlite3.connect(tmp_path / "copy.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        tracker = MlflowTracker(TrackingConfig(mlflow_uri=uri), None, folder, lines.put)
        for step in range(3):
            start = time.monotonic()
            tracker.metrics({"loss": 1.0}, step)
            tracker.flush()
            assert tracker.run_id is not None
            assert time.monotonic() - start < SECONDS_PER_EPOCH
        tracker.close("FINISHED")
        printed = [lines.get() for _ in range(lines.qsize())]
        other.rollback()
    assert printed[-1] == f"MLflow has not got all of the run; send the rest with: {command(folder)}"
    lost = [line for line in printed if "MLflow cannot be reached (" in line]
    assert len(lost) == (kind != "locked") and all(said in line for line in lost)
    assert [record.get("step") for record in read_spool(folder / SPOOL)[1]] == [0, 1, 2, None]


def command(folder: Path) -> str:
    return f"python -m encore.tracking upload {folder}"


def test_a_store_that_another_process_has_locked_gets_everything_when_it_is_free(tmp_path: Path, store: str) -> None:
    path = copy_of(store, tmp_path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        tracker = MlflowTracker(
            TrackingConfig(mlflow_uri=f"sqlite:///{path}", experiment="locked"), None, tmp_path, print
        )
        tracker.metrics({"loss": 1.0}, 1)
        tracker.flush()
        other.rollback()
    tracker.close("FINISHED")
    run = run_of(f"sqlite:///{path}", "locked")
    assert history(MlflowClient(f"sqlite:///{path}"), run, "loss") == [(1, 1.0)] and run.info.status == "FINISHED"


def test_a_spool_that_cannot_be_written_or_read_costs_nothing_but_itself(tmp_path: Path, store: str) -> None:
    (tmp_path / SPOOL).mkdir()
    lines = Lines()
    tracker = MlflowTracker(TrackingConfig(mlflow_uri=store, experiment="no spool"), None, tmp_path, lines.put)
    tracker.metrics({"loss": 1.0}, 1)
    tracker.close("FINISHED")
    assert f"{tmp_path / SPOOL} cannot be written (Is a directory)" in lines.get()
    assert "mlflow ui" in lines.get()
    run = run_of(store, "no spool")
    assert history(MlflowClient(store), run, "loss") == [(1, 1.0)] and run.info.status == "FINISHED"
    assert [path.name for path in tmp_path.iterdir()] == [SPOOL]


@register_tracker("timed")
class TimedTracker(MlflowTracker):
    """Logs to MLflow, and adds to a file the seconds that training has waited for it in each epoch."""

    waited = 0.0

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._time(lambda: super(TimedTracker, self).metrics(values, step))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self._time(lambda: super(TimedTracker, self).artifact(path, folder))

    def flush(self) -> None:
        self._time(super().flush)
        with open(self.folder / "waited", "a", encoding="utf-8") as file:
            print(self.waited, file=file)
        self.waited = 0.0

    def _time(self, call: Callable[[], None]) -> None:
        start = time.monotonic()
        call()
        self.waited += time.monotonic() - start


@pytest.mark.slow
@pytest.mark.parametrize("status", [0, pytest.param(500, marks=pytest.mark.full)])
def test_training_does_not_wait_for_a_server_that_hangs_or_fails(
    status: int,
    train_flags: list[object],
    tmp_path: Path,
    call_command: Command,
    store: str,
    failing: Callable[[int], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole run without MLflow, which gets everything afterwards."""
    monkeypatch.setattr(sender, "LOST_SECONDS", 1.0)
    experiment, folder = f"status {status}", tmp_path / "checkpoints"
    flags = (*train_flags, "--objective", "regression", "--epochs", 3, "--batch_size", 4, "--experiment", experiment)
    flags = (*flags, "--mlflow_uri", failing(status), "--tracker", "timed")
    result = call_command("train_worker.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (
        "Traceback" not in result.stderr
        and "Epoch 3/3" in result.stdout
        and command(Path("checkpoints")) in result.stdout
    )
    waited = [float(line) for line in (folder / "waited").read_text().splitlines()]
    assert len(waited) == 4 and max(waited) < SECONDS_PER_EPOCH
    upload(folder, store)
    run = run_of(store, experiment)
    assert [step for step, _ in history(MlflowClient(store), run, "val_loss")] == [1, 2, 3]
    assert run.info.status == "FINISHED"


@register_tracker("killed")
class KilledTracker(MlflowTracker):
    """Logs to MLflow, and kills its process when the environment says: between logging an epoch and saving it."""

    def __init__(self, settings: TrackingConfig, run_id: str | None, folder: Path, log: Callable[[str], None]):
        super().__init__(settings, run_id, folder, log)
        self.step, _, self.moment = os.environ[KILL].partition(" ")
        if not self.moment:
            threading.Timer(float(self.step), os.kill, (os.getpid(), signal.SIGKILL)).start()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        super().metrics(values, step)
        if self.moment and step == int(self.step):
            if self.moment == "sent":
                self.flush()
                while len(self._spool):
                    time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)


def killed(forks: Forks, flags: tuple[object, ...], folder: Path, when: str) -> int:
    """Runs a rank that is to be killed; returns its status."""
    plugin = ("--plugins", __name__, "--tracker", "killed", "--resume", "auto")
    (result,) = forks.ranks(1, *flags, *plugin, cwd=folder, env={KILL: when})
    assert result.returncode in (0, -signal.SIGKILL), result.stdout + result.stderr
    return result.returncode


def assert_undisturbed(folder: Path, undisturbed: Path, store: str, experiment: str) -> None:
    """The weights of an undisturbed run, bit for bit, and one MLflow run with its rows, one for each epoch."""
    assert equal_weights(folder / "checkpoints" / "last.pt", undisturbed / "checkpoints" / "last.pt")
    client, run, expected = MlflowClient(store), run_of(store, experiment), run_of(store, "regression")
    assert run.info.status == "FINISHED"
    for name in ("train_loss", "val_loss", "learning_rate", "floor_loss", "copy_loss"):
        rows, theirs = history(client, run, name), history(client, expected, name)
        assert [step for step, _ in rows] == [step for step, _ in theirs], name
        assert [value for _, value in rows] == pytest.approx([value for _, value in theirs], rel=1e-6), name
    assert [step for step, _ in history(client, run, "train_loss")] == [1, 2, 3, 4]


@pytest.mark.full
def test_a_run_that_is_killed_after_logging_an_epoch_has_one_row_per_epoch(
    trained_regression: Path, regression_flags: list[object], tmp_path: Path, forks: Forks, store: str
) -> None:
    """Killed twice between logging an epoch and saving it, once before MLflow has got the epoch and once after."""
    flags = (*regression_flags, "--experiment", "killed")
    assert killed(forks, flags, tmp_path, "2 written") == -signal.SIGKILL
    assert killed(forks, flags, tmp_path, "3 sent") == -signal.SIGKILL
    run = run_of(store, "killed")
    assert run.info.status == "RUNNING"
    assert [step for step, _ in history(MlflowClient(store), run, "train_loss")] == [1, 2, 3]
    upload(tmp_path / "checkpoints")
    assert run_of(store, "killed").info.status == "KILLED"
    assert killed(forks, flags, tmp_path, "9 written") == 0
    assert_undisturbed(tmp_path, trained_regression, store, "killed")


@pytest.mark.full
def test_a_run_that_is_killed_at_any_moment_has_one_row_per_epoch(
    trained_regression: Path, regression_flags: list[object], tmp_path: Path, forks: Forks, store: str, tries: int
) -> None:
    for number in range(tries):
        folder, experiment, kills = tmp_path / str(number), f"killed at any moment {number}", 0
        folder.mkdir()
        flags = (*regression_flags, "--experiment", experiment)
        while killed(forks, flags, folder, str(random.uniform(0.1, 2 + kills))):
            kills += 1
        assert_undisturbed(folder, trained_regression, store, experiment)
        print(f"survived {kills} kills")
