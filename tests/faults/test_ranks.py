"""Ranks that hang, are stopped or die: the others notice, say which and where, and the run goes on."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from encore.models.loading import read
from tests.conftest import ENVIRONMENT, Command, Forks, command

T = TypeVar("T")
MISBEHAVE = "MISBEHAVE"  # environment variable of the plugin, which only ranks may import
LAST = Path("checkpoints/last.pt")


@pytest.fixture(scope="session")
def flags(train_flags: list[object]) -> list[object]:
    """A regression of two epochs of two steps, on two ranks; a rank reads six pairs and more."""
    quick = ("--objective", "regression", "--tracker", "none", "--batch_size", 2, "--epochs", 2, "--save_every", 1)
    return [*train_flags, *quick, "--plugins", "tests.faults.misbehave"]


def equal_weights(one: Path, other: Path) -> bool:
    first, second = read(one)["model"], read(other)["model"]
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_rank_that_hangs_in_the_loader_is_named_with_the_place_and_all_ranks_end(
    flags: list[object], tmp_path: Path, forks: Forks
) -> None:
    env = {MISBEHAVE: "1:5:hang"}
    started = time.monotonic()
    ranks = forks.ranks(2, *flags, "--timeout_minutes", 0.05, cwd=tmp_path, env=env)
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert (tmp_path / "misbehaved").exists() and time.monotonic() - started < 60
    said = "".join(rank.stderr for rank in ranks)
    assert re.search(r"^error: rank 1 \(\S+\) has been at step \d, loading data for [34] s$", said, re.MULTILINE), said
    assert "rank 0 (" not in said and "Traceback" not in said


@pytest.mark.full
@pytest.mark.parametrize("how", ["hang", "SIGSTOP", "SIGKILL"])
def test_a_run_whose_rank_hangs_or_dies_is_restarted_and_ends_with_the_same_weights(
    how: str, flags: list[object], tmp_path: Path, run_command: Command, forks: Forks, tries: int
) -> None:
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    for rank in forks.ranks(2, *flags, cwd=undisturbed):
        assert rank.returncode == 0, rank.stderr
    launch = (*flags, "--world_size", 2, "--max_restarts", 1, "--timeout_minutes", 0.05)
    for number in range(tries):
        folder = tmp_path / str(number)
        folder.mkdir()
        where, pair = random.randrange(2), random.randint(3, 8)
        result = run_command("train_ddp.py", *launch, cwd=folder, env={MISBEHAVE: f"{where}:{pair}:{how}"})
        assert result.returncode == 0 and (folder / "misbehaved").exists(), (where, pair, result.stderr)
        assert "Traceback" not in result.stderr, result.stderr
        assert result.stderr.count("starting again, from the last checkpoint\n") == 1
        if how != "SIGKILL":
            named = re.findall(r"^error: rank (\d) (?:\(\S+\) |does not answer)", result.stderr, re.MULTILINE)
            assert named == [str(where)], result.stderr
        assert equal_weights(folder / LAST, undisturbed / LAST)


@pytest.mark.full
@pytest.mark.parametrize("how", ["hang", "SIGSTOP"])
def test_a_signal_ends_a_run_soon_even_though_a_rank_hangs(
    how: str, flags: list[object], tmp_path: Path, tries: int
) -> None:
    """A rank that hangs ends itself some seconds after the signal; one that is stopped is continued, and saves."""
    for number in range(tries):
        folder = tmp_path / str(number)
        folder.mkdir()
        launch = command("train_ddp.py", *flags, "--world_size", 2)
        env = {**ENVIRONMENT, MISBEHAVE: f"{random.randrange(2)}:{random.randint(3, 6)}:{how}"}
        with subprocess.Popen(launch, cwd=folder, env=env, stderr=subprocess.PIPE, text=True) as launcher:
            wait_until((folder / "misbehaved").exists, launcher)
            signalled = time.monotonic()
            launcher.send_signal(signal.SIGTERM)
            _, errors = launcher.communicate(timeout=120)
        assert launcher.returncode == 128 + signal.SIGTERM and errors.endswith("stopped by SIGTERM\n"), errors
        assert time.monotonic() - signalled < 45 and "Traceback" not in errors, errors
        assert not is_running(int((folder / "misbehaved").read_text()))
        if how == "SIGSTOP" and (folder / LAST).exists():
            assert read(folder / LAST)["progress"]["step"] > 0


def wait_until(condition: Callable[[], T], process: subprocess.Popen[Any] | None = None, seconds: float = 120) -> T:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        assert process is None or process.poll() is None, f"process has ended with status {process and process.poll()}"
        time.sleep(0.05)
    return result


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(process: int, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while is_running(process):
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            raise AssertionError(f"process {process} still runs after {seconds} s")
        time.sleep(0.05)
