"""Tracking: training waits for no server, nothing is lost while one is away, and another tracker can take its place."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from encore.config.schema import TrackingConfig
from encore.errors import EncoreError
from encore.tracking import SPOOL, MlflowTracker, build_tracker, sender
from encore.tracking.__main__ import upload
from encore.tracking.sender import Destination, Refused, Sender
from encore.tracking.spool import Record, Spool, read_spool
from tests.conftest import Command, largest_file
from tests.mlflow_server import Server
from tests.test_extending import MOST_LINES, example

NOWHERE = "http://127.0.0.1:9"  # nothing listens on this port
REJECTED = "mlflow_rejected.jsonl"


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
    spool = tmp_path / "checkpoints" / SPOOL
    assert result.stdout.count("MLflow cannot be reached") == 1
    assert "send the rest with: python -m encore.tracking upload checkpoints\n" in result.stdout
    assert "Traceback" not in result.stderr and "Epoch 2/2" in result.stdout

    before = spool.read_bytes()
    with pytest.raises(EncoreError, match=f"--mlflow_uri {NOWHERE}: cannot be reached"):
        upload(spool.parent)
    assert spool.read_bytes() == before
    sent = call_command("-m", "encore.tracking", "upload", spool.parent, "--mlflow_uri", store, cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    assert not spool.exists()
    again = call_command("-m", "encore.tracking", "upload", "checkpoints", cwd=tmp_path)
    assert again.returncode == 0 and again.stdout == "nothing to send: MLflow has got everything of checkpoints\n"
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


@pytest.fixture
def server(tmp_path: Path, store: str) -> Iterator[Server]:
    running = Server(tmp_path, store)
    try:
        yield running
    finally:
        running.close()


class Lines(queue.Queue[str]):
    """Lines that a tracker prints."""

    def wait_for(self, part: str) -> None:
        """Takes lines until one has `part` in it."""
        while part not in self.get(timeout=120):
            pass


def history(client: MlflowClient, run: Run, name: str) -> list[tuple[int, float]]:
    """Steps and values of all rows."""
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name))


def run_of(store: str, experiment: str) -> Run:
    """The only run of an experiment."""
    client = MlflowClient(store)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    return run


@pytest.mark.slow
def test_a_server_that_comes_back_gets_all_records_in_order(
    tmp_path: Path, store: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "FIRST_PAUSE", 0.1)
    lines, note = Lines(), tmp_path / "note.txt"
    note.write_text("kept")
    server.start()
    tracker = MlflowTracker(settings(server.uri, "away", "run"), None, tmp_path, lines.put)
    tracker.params({"lr": 0.1, "path": Path("x")})
    tracker.metrics({"loss": 3.0}, step=1)
    tracker.artifact(tmp_path / "missing.txt")
    tracker.flush()
    lines.wait_for("missing.txt cannot be sent to MLflow")
    server.stop()
    for step in (2, 3):
        tracker.metrics({"loss": 3.0 - step / 2}, step=step)
        tracker.artifact(note, "notes")
        tracker.flush()
    lines.wait_for("MLflow cannot be reached ([Errno 111] Connection refused)")
    _, waiting = read_spool(tmp_path / SPOOL)
    assert [record["kind"] for record in waiting[-4:]] == ["metrics", "artifact", "metrics", "artifact"]
    server.start()
    lines.wait_for("MLflow can be reached again")
    tracker.close("FINISHED")
    assert [line.partition(":")[0] for line in lines.queue] == ["charts of all runs", "charts of this run"]
    assert not (tmp_path / SPOOL).exists()
    client, run = MlflowClient(server.uri), run_of(store, "away")
    assert history(client, run, "loss") == [(1, 3.0), (2, 2.0), (3, 1.5)]
    assert run.data.params == {"lr": "0.1", "path": "x"} and run.info.status == "FINISHED"
    assert [item.path for item in client.list_artifacts(run.info.run_id, "notes")] == ["notes/note.txt"]


def test_a_resumed_run_continues_and_tags_changed_parameters(tmp_path: Path, store: str) -> None:
    first = MlflowTracker(settings(store, "resume"), None, tmp_path, print)
    first.params({"lr": 0.1, "epochs": 3})
    first.close("KILLED")
    assert run_of(store, "resume").info.status == "KILLED"
    second = MlflowTracker(settings(store, "resume"), first.run_id, tmp_path, print)
    second.params({"lr": 0.1, "epochs": 6})
    second.close("FINISHED")
    assert second.run_id == first.run_id
    run = run_of(store, "resume")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "epochs": "3"}
    assert run.data.tags["resumed_epochs"] == "6" and "resumed_lr" not in run.data.tags


def test_what_a_resumed_run_repeats_is_logged_once(tmp_path: Path, store: str) -> None:
    """Epochs 3 and 4 are repeated, 3 having been sent and 4 not; a metric is added."""
    first = MlflowTracker(settings(store, "repeated"), None, tmp_path, print)
    first.metrics({"floor": 0.5}, step=0)
    for step in (1, 2, 3):
        first.metrics({"loss": step}, step)
    first.close("KILLED")
    left = [
        {"kind": "metrics", "values": {"loss": 4.0}, "step": 4, "time": 1},
        {"kind": "status", "status": "FAILED"},
    ]
    header = {"run_id": first.run_id, "mlflow_uri": store, "experiment": "repeated", "run_name": None}
    (tmp_path / SPOOL).write_text("".join(json.dumps(line) + "\n" for line in [header, *left]))
    second = MlflowTracker(settings(store, "repeated"), first.run_id, tmp_path, print)
    second.metrics({"floor": 0.5, "floor_mel": 0.1}, step=0)
    for step in (3, 4, 5):
        second.metrics({"loss": step, "mel": step}, step)
    second.close("FINISHED")
    client, run = MlflowClient(store), run_of(store, "repeated")
    assert history(client, run, "loss") == [(step, float(step)) for step in (1, 2, 3, 4, 5)]
    assert history(client, run, "mel") == [(step, float(step)) for step in (3, 4, 5)]
    assert history(client, run, "floor") == [(0, 0.5)] and history(client, run, "floor_mel") == [(0, 0.1)]
    assert run.info.status == "FINISHED"


def test_what_mlflow_refuses_is_set_aside_by_name(tmp_path: Path, store: str) -> None:
    lines = Lines()
    tracker = MlflowTracker(settings(store, "refused"), None, tmp_path, lines.put)
    for step in (1, 2):
        tracker.metrics({"loss": 1.0, "bad?": 2.0, "mel": 3.0}, step)
        tracker.artifact(tmp_path / "missing.txt")
    tracker.close("FINISHED")
    printed = [lines.get() for _ in range(lines.qsize())]
    named = [line.partition(" ")[0] for line in printed if "cannot be sent" in line]
    assert named == ["bad?", "missing.txt"]  # each once
    header, refused = read_spool(tmp_path / REJECTED)
    assert header["run_id"] == tracker.run_id
    assert [record.get("path") or record["values"] for record in refused] == [{"bad?": 2.0}, "missing.txt"] * 2
    assert "Invalid value" in refused[0]["reason"]
    client, run = MlflowClient(store), run_of(store, "refused")
    assert history(client, run, "loss") == [(1, 1.0), (2, 1.0)] and history(client, run, "mel") == [(1, 3.0), (2, 3.0)]
    assert run.info.status == "FINISHED" and not (tmp_path / SPOOL).exists()


def test_a_run_that_was_deleted_or_is_in_another_store_is_made_again(tmp_path: Path, store: str) -> None:
    first = MlflowTracker(settings(store, "deleted"), None, tmp_path, print)
    first.close("KILLED")
    MlflowClient(store).delete_run(run_of(store, "deleted").info.run_id)
    second = MlflowTracker(settings(store, "deleted"), first.run_id, tmp_path, print)
    second.metrics({"loss": 1.0}, 1)
    second.close("FINISHED")
    assert history(MlflowClient(store), run_of(store, "deleted"), "loss") == [(1, 1.0)]
    assert not (tmp_path / REJECTED).exists()


def test_an_upload_marks_a_killed_run_and_leaves_other_statuses(tmp_path: Path, store: str) -> None:
    """A killed run leaves a spool with no status; one without records has sent everything."""
    client = MlflowClient(store)
    for status in ("RUNNING", "FAILED"):
        tracker = MlflowTracker(settings(store, f"killed {status}"), None, tmp_path, print)
        tracker.close("FINISHED")
        run = run_of(store, f"killed {status}")
        client.update_run(run.info.run_id, status=status)
        header = {"run_id": tracker.run_id, "mlflow_uri": store, "experiment": "unused", "run_name": None}
        (tmp_path / SPOOL).write_text(json.dumps(header) + "\n")
        upload(tmp_path)
        assert client.get_run(run.info.run_id).info.status == {"RUNNING": "KILLED"}.get(status, status)
        assert not (tmp_path / SPOOL).exists()


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


class Notes(Destination):
    """Notes what it is sent; waits, fails or refuses as it is told to."""

    name = "notes"

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.opened, self.error = 0, ""
        self.asked, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    def open(self) -> None:
        self.opened += 1

    def send(self, record: Record) -> None:
        self.asked.set()
        assert self.may_go_on.wait(60)
        if self.error:
            raise ConnectionError(self.error)
        if "bad" in record["values"]:
            raise Refused("is bad")
        self.sent.append(record["values"])

    def close(self) -> None:
        self.sent.append("closed")


def values(**numbers: float) -> Record:
    return {"kind": "metrics", "values": numbers}


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / SPOOL, {"run_id": "a"}, [], print)


def test_a_server_that_does_not_answer_is_not_waited_for(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(sender, "NOTE_SECONDS", 0.05)
    notes, lines = Notes(), Lines()
    notes.may_go_on.clear()
    sending = Sender(spool, notes, lines.put)
    sending.start()
    for number in range(3):
        spool.append(values(a=number))
        sending.wake()
        assert notes.asked.wait(60)
    assert not sending.close()  # while `send` still waits
    assert len(spool) == 3 and "sending the rest to notes" in lines.get()
    notes.may_go_on.set()


def test_attempts_pause_longer_and_longer_and_begin_anew_after_a_success(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, lines, pauses = Notes(), Lines(), []
    sending = Sender(spool, notes, lines.put)

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        if len(pauses) == 4:
            notes.error = ""
        return False

    monkeypatch.setattr(sending._end, "wait", wait)
    notes.error = "no route"
    sending.start()
    spool.append(values(a=1))
    sending.wake()
    lines.wait_for("notes cannot be reached (no route); training continues, and what could not be logged is saved in")
    lines.wait_for("notes can be reached again")
    assert pauses == [5, 10, 20, 40] and notes.opened == 5
    assert sending.close() and notes.sent == [{"a": 1}, "closed"] and lines.empty()
    assert not spool.path.exists()


def test_only_the_refused_values_of_a_record_are_set_aside(spool: Spool) -> None:
    notes, lines = Notes(), Lines()
    sending = Sender(spool, notes, lines.put)
    for number in (1, 2):
        spool.append(values(a=number, bad=number))
    sending.start()
    assert sending.close()
    assert notes.sent == [{"a": 1}, {"a": 2}, "closed"]
    assert lines.get() == f"bad cannot be sent to notes (is bad); it is set aside in {spool.path.parent / REJECTED}"
    assert lines.empty()
    assert [record["values"] for record in read_spool(spool.path.parent / REJECTED)[1]] == [{"bad": 1}, {"bad": 2}]


def test_records_survive_in_the_file_until_the_last_is_taken(spool: Spool, tmp_path: Path) -> None:
    for number in range(3):
        spool.append(values(a=number))
    for number in range(3):
        assert read_spool(spool.path)[1] == [values(a=n) for n in range(3)]  # as a killed process leaves it
        assert spool.first() == values(a=number)
        spool.drop()
    assert spool.first() is None and read_spool(spool.path) == ({"run_id": "a"}, [])
    spool.append(values(a=4))
    assert spool.first() == values(a=4) and len(read_spool(spool.path)[1]) == 1


def test_a_full_disk_loses_no_record_while_the_process_lives(tmp_path: Path) -> None:
    lines = Lines()
    spool = Spool(tmp_path / SPOOL, {"run_id": "a"}, [values(a=0)], lines.put)
    with largest_file(spool.path.stat().st_size + 10):
        spool.append(values(a=1))
    spool.append(values(a=2))
    assert f"{spool.path} cannot be written (" in lines.get() and lines.empty()
    assert read_spool(spool.path)[1] == [values(a=0)]  # no half a line
    for number in range(3):
        assert spool.first() == values(a=number)
        spool.drop()
    spool.append(values(a=3))  # there is room again
    assert read_spool(spool.path)[1] == [values(a=3)]


def damages(whole: bytes) -> dict[str, tuple[bytes, list[float]]]:
    """What may be left of a spool with the losses 1 and 2, and the losses that can be saved."""
    first = whole.index(b"\n") + 1
    return {
        "empty": (b"", []),
        "cut in the header": (whole[: first // 2], []),
        "cut in a record": (whole[:-5], [1.0]),
        "without its header": (whole[first:], [1.0, 2.0]),
        "garbage": (bytes(range(256)), []),
        "garbage between": (whole[:first] + b"\xff\0\n[1]\n" + whole[first:], [1.0, 2.0]),
    }


@pytest.mark.parametrize("damage", damages(b"\n"))
def test_a_damaged_spool_gives_what_is_whole(damage: str, tmp_path: Path, store: str) -> None:
    run_id = "0" * 31 + str([*damages(b"\n")].index(damage))
    header = {"run_id": run_id, "mlflow_uri": store, "experiment": damage, "run_name": None}
    records = [{"kind": "metrics", "values": {"loss": step}, "step": step, "time": step} for step in (1.0, 2.0)]
    content, saved = damages("".join(json.dumps(line) + "\n" for line in [header, *records]).encode())[damage]
    (tmp_path / SPOOL).write_bytes(content)
    if "header" in damage or damage in ("empty", "garbage"):
        with pytest.raises(EncoreError, match="its first line does not say of which run it is"):
            upload(tmp_path)
    tracker = MlflowTracker(settings(store, damage), run_id, tmp_path, print)
    tracker.metrics({"loss": 3.0}, 3)
    tracker.close("FINISHED")
    assert [value for _, value in history(MlflowClient(store), run_of(store, damage), "loss")] == [*saved, 3.0]
    assert not (tmp_path / SPOOL).exists()


def test_the_spool_of_another_run_is_kept_and_can_be_sent(tmp_path: Path, store: str) -> None:
    header = {"run_id": "a" * 32, "mlflow_uri": store, "experiment": "other", "run_name": None}
    record = {"kind": "metrics", "values": {"loss": 1.0}, "step": 1, "time": 1}
    (tmp_path / SPOOL).write_text(json.dumps(header) + "\n" + json.dumps(record) + "\n")
    lines = Lines()
    tracker = MlflowTracker(settings(store, "own"), "b" * 32, tmp_path, lines.put)
    tracker.metrics({"loss": 2.0}, 1)
    tracker.close("FINISHED")
    assert f"send it with: python -m encore.tracking upload {tmp_path}" in lines.get()
    upload(tmp_path)
    client = MlflowClient(store)
    other, own = run_of(store, "other"), run_of(store, "own")
    assert history(client, other, "loss") == [(1, 1.0)] and other.info.status == "KILLED"
    assert history(client, own, "loss") == [(1, 2.0)] and own.info.status == "FINISHED"


def test_an_upload_leaves_a_run_alone_that_is_still_going(
    tmp_path: Path, run_program: Callable[..., Any], store: str
) -> None:
    header = {"run_id": "c" * 32, "mlflow_uri": store, "experiment": "going", "run_name": None}
    spool = Spool(tmp_path / SPOOL, header, [values(a=1)], print)
    result = run_program(
        "import sys; from pathlib import Path; from encore.tracking.mlflow_tracker import upload\n"
        "upload(Path(sys.argv[1]), None, print)",
        tmp_path,
    )
    assert f"EncoreError: {spool.path}: its run is still going, and sends this itself" in result.stderr
    assert len(spool) == 1


def test_no_tracker_writes_nothing_and_keeps_the_id_of_the_run(tmp_path: Path) -> None:
    for run_id in (None, "of an earlier tracker"):
        tracker = build_tracker(TrackingConfig(tracker="none"), run_id, tmp_path, print)
        tracker.params({"lr": 0.1})
        tracker.metrics({"loss": 1.0}, step=1)
        tracker.artifact(tmp_path)
        tracker.flush()
        tracker.close("FINISHED")
        assert tracker.run_id == run_id and not list(tmp_path.iterdir())
