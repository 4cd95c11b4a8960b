"""The launcher: killed, signalled at any moment, with several machines that come and go, and under SLURM."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from encore.models.loading import read
from encore.training import slurm
from tests.conftest import ENVIRONMENT, Command, Forks, command
from tests.faults.test_ranks import LAST, MISBEHAVE, equal_weights, flags, is_running, wait_for_end, wait_until

__all__ = ["flags"]  # a fixture


@pytest.mark.slow
def test_ranks_die_with_a_launcher_that_is_killed(flags: list[object], tmp_path: Path, forks: Forks) -> None:
    """The rank kills it and then hangs, where no signal handler of its own could end it."""
    result = forks("train_ddp.py", *flags, "--world_size", 1, cwd=tmp_path, env={MISBEHAVE: "0:1:launcher"})
    assert result.returncode == -signal.SIGKILL
    wait_for_end(int((tmp_path / "misbehaved").read_text()))


@pytest.mark.full
def test_a_launcher_and_ranks_that_are_killed_at_random_moments_are_resumed_to_the_same_weights(
    flags: list[object], tmp_path: Path, run_command: Command, forks: Forks, tries: int
) -> None:
    """Each try kills the launcher one tenth of a second later than the one before; the last one is left alone."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
    for rank in forks.ranks(2, *flags, cwd=undisturbed):
        assert rank.returncode == 0, rank.stderr
    launch = (*flags, "--world_size", 2, "--resume", "auto")
    for number in range(tries):
        with subprocess.Popen(command("train_ddp.py", *launch), cwd=killed, env=ENVIRONMENT) as launcher:
            ranks = wait_until(lambda: children(launcher.pid, 2))
            with pytest.raises(subprocess.TimeoutExpired):
                launcher.wait(1 + number % 50 / 10)
            launcher.kill()
        for process in ranks:
            wait_for_end(process)
    result = run_command("train_ddp.py", *launch, cwd=killed)
    assert result.returncode == 0, result.stderr
    assert equal_weights(killed / LAST, undisturbed / LAST)


WORKER = """#!/bin/sh
echo $$ > started.$RANK
[ $RANK != 0 ] || kill -$SIGNAL $PPID
exec sleep 100
"""


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("INT", 130)])
def test_a_signal_while_the_launcher_starts_its_ranks_leaves_none_behind(
    name: str, status: int, tiny_pairs: Path, tmp_path: Path, call_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of 16 ranks, shell scripts here, sends it while the others are being started."""
    worker = tmp_path / "worker"
    worker.write_text(WORKER)
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    flags = ("--dataset_folder", tiny_pairs, "--codec", "starter", "--world_size", 16)
    env = {"SIGNAL": name, "CUDA_VISIBLE_DEVICES": ""}
    result = call_command("train_ddp.py", *flags, cwd=tmp_path, env=env)
    assert (result.returncode, result.stderr) == (status, f"stopped by SIG{name}\n")
    started = [int(path.read_text()) for path in tmp_path.glob("started.*")]
    assert started and not any(is_running(process) for process in started)


@pytest.mark.slow
def test_ctrl_c_in_the_first_second_prints_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(command("train_ddp.py"), cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE) as launcher:
        wait_until(lambda: "libtorch" in Path(f"/proc/{launcher.pid}/maps").read_text())
        launcher.send_signal(signal.SIGINT)
        _, errors = launcher.communicate(timeout=60)
    assert (launcher.returncode, errors) == (-signal.SIGINT, b"")


@pytest.mark.slow
def test_two_tasks_of_srun_train_as_two_ranks_at_the_endpoint_that_follows_from_the_job(
    flags: list[object], tmp_path: Path, forks: Forks
) -> None:
    """Two jobs on one machine at the same time, each of two tasks; without MASTER_ADDR and MASTER_PORT."""
    job = {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    number = 1000 * os.getpid()
    tasks = [
        {**job, "SLURM_JOB_ID": str(number), "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(2)
    ]
    ranks = forks.run(tasks, "train_worker.py", *flags, "--epochs", 1, "--max_steps", 1, cwd=tmp_path)
    assert [rank.returncode for rank in ranks] == [0, 0], ranks[0].stderr + ranks[1].stderr
    assert "Epoch 1/1" in ranks[0].stdout and ranks[1].stdout == ""


@pytest.mark.parametrize(
    ("machines", "first"),
    [("gpu7", "gpu7"), ("gpu[003-005,009],cpu1", "gpu003"), ("a1,b[2-3]", "a1"), ("r[1-2]n[05,07]", "r1n05")],
)
def test_the_first_machine_of_a_list_is_where_processes_meet(
    machines: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("STEP_NODELIST", machines), ("JOB_ID", "123456"), ("STEP_ID", "0")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    meeting = slurm.endpoint()
    assert meeting is not None and meeting.host == first and meeting.port in slurm.PORTS


def test_two_jobs_or_steps_on_one_machine_get_different_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu7")
    ports = []
    for job in range(200000, 200100):
        for step in ("", "1", "2"):
            monkeypatch.setenv("SLURM_JOB_ID", str(job))
            monkeypatch.setenv("SLURM_STEP_ID", step)
            meeting = slurm.endpoint()
            assert meeting is not None
            ports.append(meeting.port)
    assert len(set(ports)) == len(ports)


class Machine:
    """A launcher that trains together with others at an endpoint; what it says goes to a file."""

    def __init__(self, folder: Path, name: str, *flags: object):
        self.output = folder / f"{name}.log"
        with open(self.output, "w") as file:
            launch = command("train_ddp.py", *flags)
            self.launcher = subprocess.Popen(launch, cwd=folder, env=ENVIRONMENT, stdout=file, stderr=file)

    @property
    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, pattern: str, count: int = 1) -> None:
        wait_until(lambda: len(re.findall(pattern, self.said, re.MULTILINE)) >= count, self.launcher)

    def end(self) -> int:
        return self.launcher.wait(120)


@contextmanager
def machines(folder: Path, flags: list[object], *more: object) -> Iterator[Callable[[str], Machine]]:
    """Starts machines by their names, which meet at a free port; all are gone at the end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        several = ("--nnodes", "1:2", "--rdzv_endpoint", f"localhost:{free.getsockname()[1]}", "--max_restarts", 3)
    started: list[Machine] = []

    def start(name: str) -> Machine:
        started.append(Machine(folder, name, *flags, *several, *more))
        return started[-1]

    try:
        yield start
    finally:
        for machine in started:
            machine.launcher.kill()
            machine.launcher.wait()


@pytest.mark.full
def test_machines_join_and_leave_a_run_that_goes_on_from_its_last_checkpoint(
    flags: list[object], tmp_path: Path
) -> None:
    """One trains, a second one joins, is killed, comes back, is told to stop; the first is alone at the end."""
    with machines(tmp_path, flags, "--epochs", 10000, "--lr", 1e-4) as start:
        first = start("first")
        first.wait_for("^Epoch 3/")
        second = start("second")
        first.wait_for("^1 machine joined: training on 2 machines with 2 ranks$")
        epochs = len(re.findall("^Epoch", first.said + second.said, re.MULTILINE))
        wait_until(lambda: len(re.findall("^Epoch", first.said + second.said, re.MULTILINE)) > epochs + 3)
        second.launcher.kill()
        first.wait_for("^1 machine left: training on 1 machine with 1 rank$")
        first.wait_for("^resumed from", 1 if "resumed from" in second.said else 2)
        third = start("third")
        first.wait_for("^1 machine joined", 2)
        third.wait_for("^training on 2 machines with 2 ranks$")
        epochs = len(re.findall("^Epoch", first.said + third.said, re.MULTILINE))
        wait_until(lambda: len(re.findall("^Epoch", first.said + third.said, re.MULTILINE)) > epochs + 3)
        third.launcher.terminate()
        assert third.end() == 128 + signal.SIGTERM
        first.wait_for("^1 machine left", 2)
        first.wait_for("^Epoch", len(re.findall("^Epoch", first.said, re.MULTILINE)) + 3)
        first.launcher.send_signal(signal.SIGINT)
        assert first.end() == 128 + signal.SIGINT
        said = "".join(machine.said for machine in (first, second, third))
    assert "Traceback" not in said
    log = (tmp_path / "checkpoints" / "train.log").read_text()
    epochs_logged = [int(number) for number in re.findall(r"^Epoch (\d+)/", log, re.MULTILINE)]
    # An epoch after the last checkpoint may come again; none is left out, and nothing begins anew.
    assert all(0 <= after - before <= 1 for before, after in zip(epochs_logged, epochs_logged[1:], strict=False))
    assert not list((tmp_path / "checkpoints").glob("earlier_*"))
    assert read(tmp_path / LAST)["progress"]["epoch"] >= epochs_logged[-1]


@pytest.mark.full
@pytest.mark.parametrize("in_a_slurm_job", [False, True])
def test_two_machines_train_as_one_job_to_the_weights_of_two_ranks_on_one(
    in_a_slurm_job: bool, flags: list[object], tmp_path: Path, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each launcher is told where to meet, or is a task of srun and finds the place in the job."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    for rank in forks.ranks(2, *flags, cwd=one):
        assert rank.returncode == 0, rank.stderr
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost"}
    for name, value in job.items() if in_a_slurm_job else ():
        monkeypatch.setitem(ENVIRONMENT, name, value)
    with machines(two, flags, "--nnodes", 2, *["--rdzv_endpoint", ""] * in_a_slurm_job) as start:
        both = [start("first"), start("second")]
        assert [machine.end() for machine in both] == [0, 0], both[0].said + both[1].said
    assert equal_weights(one / LAST, two / LAST)


@pytest.mark.full
def test_the_others_end_with_a_line_when_the_machine_where_they_meet_is_lost(
    flags: list[object], tmp_path: Path
) -> None:
    with machines(tmp_path, flags, "--epochs", 10000, "--lr", 1e-4) as start:
        first = start("first")
        first.wait_for("^training on 1 machine with 1 rank$")  # it holds the port
        second = start("second")
        second.wait_for("^training on 2 machines with 2 ranks$")
        first.wait_for("^Epoch", 3) if "1 machine joined" in first.said else second.wait_for("^Epoch", 3)
        first.launcher.kill()
        assert second.end() == 1
        said = second.said
    assert "error: --rdzv_endpoint localhost:" in said and "Traceback" not in said, said


@pytest.mark.full
def test_an_error_that_a_retry_cannot_help_ends_the_job_on_all_machines_at_once(
    flags: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank of one machine finds what the other has not: the other loses it, and would start again."""
    monkeypatch.setitem(ENVIRONMENT, MISBEHAVE, "1:5:error")
    with machines(tmp_path, flags, "--nnodes", 2) as start:
        both = [start("first"), start("second")]
        statuses = [machine.end() for machine in both]
        said = "".join(machine.said for machine in both)
    assert sorted(statuses) == [1, 2]
    assert said.count("error: song.wav: broken") == 1 and "Traceback" not in said
    assert said.count("training on 2 machines") == 2  # each says so once: nobody has started again


def children(process: int, count: int) -> list[int]:
    """The processes that a process has started, once there are `count`."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found] if len(found) >= count else []
