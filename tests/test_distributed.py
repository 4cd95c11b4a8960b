"""Ranks: what they agree on, and how a process of a group ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from encore.errors import EncoreError
from encore.training.distributed import AgreedError, Ranks
from encore.training.trainer import Trainer
from tests.conftest import Command, Forks

# Each ending in a fork of its own, with an object that lives until the interpreter is torn down and then aborts the
# process, as a thread of gloo's may.
RANKS = """
import atexit, json, os, sys
from encore.training.distributed import end_process

class Late:
    def __del__(self):
        os.abort()

def fail():
    raise ValueError("what went wrong")

def rank(ending):
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(f"{folder}/{ending}.{stream.name[4:7]}", os.O_CREAT | os.O_WRONLY), stream.fileno())
    sys.late = Late()
    atexit.register(print, "tidied up")
    end_process(lambda: (print("worked"), ENDINGS[ending]()))

ENDINGS = {"return": int, "exit": sys.exit, "exit 3": lambda: sys.exit(3), "raise": fail}
folder, statuses = sys.argv[1], {}
for ending in ENDINGS:
    child = os.fork()
    if not child:
        rank(ending)
    statuses[ending] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(statuses))
"""


@pytest.mark.slow
def test_a_rank_ends_with_its_status_and_without_a_teardown(tmp_path: Path, run_program: Command) -> None:
    result = run_program(RANKS, tmp_path)
    assert result.returncode == 0, result.stderr
    statuses = json.loads(result.stdout)
    assert statuses == {"return": 0, "exit": 0, "exit 3": 3, "raise": 1}
    for ending in statuses:
        assert (tmp_path / f"{ending}.out").read_text() == "worked\ntidied up\n"
        said = (tmp_path / f"{ending}.err").read_text()
        assert said.endswith("ValueError: what went wrong\n") if ending == "raise" else said == ""


def agreed(ranks: Ranks, folder: Path) -> tuple[list[str], list[int] | None, str]:
    """On each of two ranks: blocks in which nobody, one rank, or every rank fails."""
    said = []
    for failing in ((), (1,), (0, 1)):
        try:
            with ranks.agree():
                if ranks.rank in failing:
                    raise EncoreError(f"rank {ranks.rank} found something")
            said.append("")
        except EncoreError as error:
            said.append(str(error))
    return said, ranks.gather(10 * ranks.rank), ranks.broadcast_from_main(lambda: f"from {ranks.rank}")


@pytest.mark.slow
def test_what_fails_on_one_rank_fails_on_all_with_its_message(tmp_path: Path, forks: Forks) -> None:
    for said, gathered, sent in forks.results_of_two_ranks(agreed, tmp_path):
        assert said == ["", "rank 1 found something", "rank 0 found something"]
        assert gathered == [0, 10] and sent == "from 0"


WORKER = """#!/bin/sh
[ $RANK = 0 ] && [ $ENDING != TERM ] && exit 0
[ $ENDING != TERM ] && exit $ENDING
trap 'echo saved > rank$RANK; exit 143' TERM
touch up$RANK
while :; do
    [ $RANK = 1 ] && [ -z "$sent" ] && [ -e up0 ] && [ -e watched ] && sent=1 && kill -TERM $PPID
    sleep 0.05
done
"""


@pytest.mark.parametrize(("ending", "status"), [("2", 2), ("7", 7), ("TERM", 143)])
def test_the_launcher_ends_as_its_workers_do_and_passes_signals_on(
    ending: str,
    status: int,
    tiny_pairs: Path,
    tmp_path: Path,
    call_command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two workers that are shell scripts: rank 1 fails, or the launcher gets a SIGTERM once it watches them."""
    watch = LocalElasticAgent._monitor_workers

    def note(*given: Any) -> Any:
        (tmp_path / "watched").touch()
        return watch(*given)

    monkeypatch.setattr(LocalElasticAgent, "_monitor_workers", note)
    worker = tmp_path / "worker"
    worker.write_text(WORKER)
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    flags = ("--dataset_folder", tiny_pairs, "--codec", "starter", "--world_size", 2)
    result = call_command("train_ddp.py", *flags, cwd=tmp_path, env={"ENDING": ending, "CUDA_VISIBLE_DEVICES": ""})
    assert result.returncode == status, result.stderr
    said = {"7": "error: rank 1 ended with status 7; its last lines are above\n", "TERM": "stopped by SIGTERM\n"}
    assert result.stderr == said.get(ending, "")
    saved = ["rank0", "rank1"] if ending == "TERM" else []
    assert sorted(path.name for path in tmp_path.glob("rank?")) == saved


@pytest.mark.parametrize("kind", [EncoreError, AgreedError])
def test_an_error_of_one_rank_is_printed_by_it_and_one_of_all_ranks_by_rank_0(
    kind: type[EncoreError], tmp_path: Path, call_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*unused: object) -> None:
        raise kind("song.wav: broken")

    monkeypatch.setattr(Ranks, "is_main", False)
    monkeypatch.setattr(Trainer, "from_config", fail)
    result = call_command("train_worker.py", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == ("" if kind is AgreedError else "error: song.wav: broken\n")
