"""The folder of a run: where it begins, what is moved aside, and who may use it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

from encore.config.schema import RunConfig
from encore.errors import EncoreError
from encore.training.run_folder import Identity, Process, RunFolder, Start, find_start, launcher
from tests.checkpoints import content
from tests.conftest import Forks

AGENT, OTHER = Process("node1", 100, 1000.0), Process("node2", 100, 1000.0)


def checkpoint(path: Path, run: str) -> Path:
    torch.save(content(run=run), path)
    return path


def begin(settings: RunConfig, *launchers: Process) -> Start:
    """A run that begins; the folder's files become its own."""
    start = find_start(settings, launchers)
    RunFolder(settings.checkpoint_dir, start, None).begin()
    return start


def test_a_new_run_sets_an_earlier_one_aside(tmp_path: Path) -> None:
    for name in ("last_1.pt", "best_model.pt", "train.log", "notes.txt"):
        (tmp_path / name).write_text(name)
    checkpoint(tmp_path / "last.pt", "earlier")
    first = begin(RunConfig(checkpoint_dir=tmp_path))
    assert first.source is None and first.identity.run != "earlier"
    moved = {path.name for path in (tmp_path / "earlier_1").iterdir()}
    assert moved == {"last.pt", "last_1.pt", "best_model.pt", "train.log"}
    assert {path.name for path in tmp_path.iterdir()} == {"earlier_1", "notes.txt", "run.json"}
    checkpoint(tmp_path / "last.pt", first.identity.run)
    begin(RunConfig(checkpoint_dir=tmp_path, resume=str(tmp_path / "earlier_1" / "last.pt")))
    assert {path.name for path in (tmp_path / "earlier_2").iterdir()} == {"last.pt", "run.json"}
    assert not (tmp_path / "last.pt").exists()


def test_a_new_run_does_not_take_over_what_one_without_a_checkpoint_could_not_log(tmp_path: Path) -> None:
    for name in ("mlflow_spool.jsonl", "mlflow_rejected.jsonl"):
        (tmp_path / name).write_text(name)
    begin(RunConfig(checkpoint_dir=tmp_path, resume="auto"))
    assert not (tmp_path / "earlier_1").exists()
    begin(RunConfig(checkpoint_dir=tmp_path))
    moved = {path.name for path in (tmp_path / "earlier_1").iterdir()}
    assert moved == {"mlflow_spool.jsonl", "mlflow_rejected.jsonl", "run.json"}


def test_resume_auto_continues_the_run_in_the_folder(tmp_path: Path) -> None:
    auto = RunConfig(checkpoint_dir=tmp_path, resume="auto")
    first = begin(auto)
    assert first.source is None  # as there is nothing to resume
    last = checkpoint(tmp_path / "last.pt", first.identity.run)
    again = begin(auto)
    assert (again.source, again.identity.run, again.continues) == (last, first.identity.run, True)
    checkpoint(last, "copied from elsewhere")
    assert begin(auto).identity.run == "copied from elsewhere"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "run.json"]


def test_a_restarted_group_goes_on_with_its_own_run(tmp_path: Path) -> None:
    """From its last checkpoint; before there is one, from what it was told to resume. Never from an earlier run."""
    base = checkpoint(tmp_path / "base.pt", "another run")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    earlier = checkpoint(folder / "last.pt", "earlier run")
    settings = RunConfig(checkpoint_dir=folder, resume=str(base))
    first = begin(settings, AGENT, OTHER)
    assert first.source == base and not earlier.exists()
    moved = Process(AGENT.host, AGENT.process, AGENT.start + 0.5)  # the clock was put right
    joined = Process("node3", 7, 2000.0)
    second = begin(settings, joined, moved)
    assert second.source == base and second.identity.run == first.identity.run
    assert second.identity.launchers == (AGENT, OTHER, joined)
    last = checkpoint(folder / "last.pt", first.identity.run)
    third = begin(settings, joined)
    assert (third.source, third.identity.run, third.continues) == (last, first.identity.run, True)
    checkpoint(folder / "last.pt", "yet another run")
    assert begin(settings, joined).source == base
    stranger = Process(AGENT.host, AGENT.process, AGENT.start + 100)  # the number was given to another process
    assert begin(settings, stranger).identity.run != first.identity.run


def test_a_run_that_resumes_an_older_checkpoint_of_its_folder_does_so_again_after_a_restart(tmp_path: Path) -> None:
    checkpoint(tmp_path / "last.pt", "first")
    older = checkpoint(tmp_path / "last_1.pt", "first")
    settings = RunConfig(checkpoint_dir=tmp_path, resume=str(older))
    first = begin(settings, AGENT)
    assert first.source == older and first.identity.run != "first"
    assert begin(settings, AGENT).source == older


def test_a_damaged_run_file_is_named(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"run": "a", "resume": null, "launchers": [1], "started": ""}', "\xff"):
        (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(EncoreError, match=f"^{tmp_path}/run.json: cannot be read"):
            find_start(RunConfig(checkpoint_dir=tmp_path), [])


def test_the_run_file_names_run_and_launchers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getppid() == 0:
        pytest.skip("the parent of the tests is outside of their container")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launcher() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "encore")
    parent = launcher()
    assert parent is not None and parent.process == os.getppid()
    identity = begin(RunConfig(checkpoint_dir=tmp_path), parent).identity
    assert Identity.read(tmp_path) == identity
    assert json.loads((tmp_path / "run.json").read_text())["launchers"][0]["process"] == os.getppid()


HOLDER = """
import os, signal, sys
from pathlib import Path
from encore.errors import EncoreError
from encore.training import run_folder

folder = Path(sys.argv[1])
ready, told = os.pipe()
holder = os.fork()
if not holder:
    lock = run_folder.Lock(folder)
    if child := os.fork():
        os.write(told, child.to_bytes(4, "little"))
    signal.pause()
child = int.from_bytes(os.read(ready, 4), "little")
try:
    run_folder.LOCK_SECONDS = 0.0
    try:
        run_folder.Lock(folder)
    except EncoreError as error:
        print(str(error).replace(str(holder), "HOLDER"))
    run_folder.LOCK_SECONDS = 60.0
    os.kill(holder, signal.SIGKILL)
    run_folder.Lock(folder).close()  # which waits until the killed one has ended
    print("locked again")
finally:
    os.kill(child, signal.SIGKILL)
"""


def test_a_folder_is_locked_until_its_process_is_killed(tmp_path: Path, forks: Forks) -> None:
    """Not until the processes that it has started end."""
    (tmp_path / "holder.py").write_text(HOLDER)
    result = forks(str(tmp_path / "holder.py"), tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    refused, again = result.stdout.splitlines()
    remedy = "wait for its end, or name another folder"
    assert re.fullmatch(
        rf"--checkpoint_dir {tmp_path}: in use by another run, process HOLDER on \S+, .*; {remedy}", refused
    )
    assert again == "locked again"
