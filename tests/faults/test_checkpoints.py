"""Checkpoints that are damaged, cut short, not written for want of space, or whose process is killed."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from encore.errors import EncoreError
from encore.models.loading import read
from encore.training.checkpoint_writer import CheckpointWriter, write
from encore.training.run_folder import newest_checkpoint
from tests.checkpoints import content
from tests.conftest import ENVIRONMENT, Command, Finished, Forks, command
from tests.faults.unlucky_names import FULL, UNLUCKY
from tests.test_train import equal_weights

LAST = Path("checkpoints/last.pt")
SMALL = ("--tracker", "none", "--objective", "regression", "--decode_seconds", 0.2, "--precision", "fp32")


def check_equal(found: dict, expected: dict) -> None:
    assert torch.equal(found["model"]["weight"], expected["model"]["weight"])
    assert {**found, "model": None} == {**expected, "model": None}


def test_a_changed_bit_is_noticed_or_harmless(tmp_path: Path, tries: int) -> None:
    write(content(1), tmp_path / "last.pt")
    whole, noticed = (tmp_path / "last.pt").read_bytes(), 0
    places = random.Random(0).sample(range(8 * len(whole)), min(100 * tries, 8 * len(whole)))
    # Of the last entry's attributes in the zip's directory: says that it is a folder.
    folder = 8 * (whole.rindex(b"archive/data/0") - 46 + 38) + 4
    for place in [*places, folder]:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        (tmp_path / "last.pt").write_bytes(damaged)
        try:
            check_equal(read(tmp_path / "last.pt"), content(1))
        except EncoreError as error:
            noticed += 1
            assert len(str(error).splitlines()) == 1
    assert noticed > 0.5 * len(places)


def test_the_checkpoints_before_the_last_are_kept_and_used_if_it_is_damaged(tmp_path: Path) -> None:
    writer, last = CheckpointWriter(), tmp_path / "last.pt"
    (tmp_path / "last_notes.pt").write_text("the user's own")
    for step in range(1, 5):
        writer.write(content(step), (last, 3), (tmp_path / "best_model.pt", None))
    writer.close()
    names = {"last.pt": 4, "last_1.pt": 3, "last_2.pt": 2, "best_model.pt": 4}
    assert {name: read(tmp_path / name)["progress"]["step"] for name in names} == names
    assert {path.name for path in tmp_path.iterdir()} == {*names, "last_notes.pt"}
    last.write_bytes(last.read_bytes()[:-1000])
    damaged = bytearray((tmp_path / "last_1.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "last_1.pt").write_bytes(damaged)
    path, run, notes = newest_checkpoint(tmp_path, "a")
    assert path == tmp_path / "last_2.pt" and run == "a"
    assert re.match(rf"{last}: not a checkpoint of Encore \(.*\); last_2.pt is used instead", notes[0])
    assert "last_1.pt: not a checkpoint of Encore (damaged: the checksum of " in notes[1]
    write(content(5), last, keep=1)  # of a run that keeps fewer
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "best_model.pt", "last_notes.pt"}
    for path in (last, tmp_path / "best_model.pt"):
        path.write_text("nothing")
    with pytest.raises(EncoreError, match=f"--checkpoint_dir {tmp_path}: no whole checkpoint in it"):
        newest_checkpoint(tmp_path, None)


def test_a_copy_is_written_and_training_need_not_wait(tmp_path: Path) -> None:
    writer, state = CheckpointWriter(), content(1)
    state["model"] = torch.nn.Linear(3, 3).state_dict()
    expected = {name: value.clone() for name, value in state["model"].items()}
    writer.write(state, (tmp_path / "last.pt", None))
    for value in state["model"].values():
        value.zero_()  # the next step
    writer.close()
    found = read(tmp_path / "last.pt")["model"]
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_damaged_checkpoint_leads_to_the_same_end(train_flags: list[object], tmp_path: Path, forks: Forks) -> None:
    """The last of three epochs is trained again, as its checkpoint is cut short."""
    flags = (*train_flags, *SMALL, "--batch_size", 4, "--epochs", 3)
    (whole,) = forks.ranks(1, *flags, cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    shutil.copy(tmp_path / LAST, tmp_path / "whole.pt")
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:-100])
    (tmp_path / "checkpoints" / "last.pt.tmp").write_text("left over")
    (result,) = forks.ranks(1, *flags, "--resume", "auto", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "last.pt: not a checkpoint of Encore (" in result.stdout and "last_1.pt is used instead" in result.stdout
    assert "resumed from checkpoints/last_1.pt at epoch 3, step 0" in result.stdout
    assert equal_weights(tmp_path / LAST, tmp_path / "whole.pt")
    assert not [*tmp_path.glob("checkpoints/*.tmp")]


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(
    train_flags: list[object], tmp_path: Path, forks: Forks
) -> None:
    """After the first step of the second epoch."""
    flags = (*train_flags, *SMALL, *UNLUCKY, "--batch_size", 4, "--epochs", 2, "--save_minutes", 0)
    (full,) = forks.ranks(1, *flags, cwd=tmp_path, env={FULL: "3:20000"})
    assert full.returncode == 2, full.stdout
    # Whatever is being written then, which may still be the checkpoint before.
    what = (
        r"checkpoints/\w+\.pt: no space for a checkpoint \(File too large\); make space there, or name another folder"
    )
    assert re.fullmatch(rf"error: {what}\n", full.stderr)
    assert 1 <= read(tmp_path / LAST)["progress"]["step"] <= 2
    assert not [*tmp_path.glob("checkpoints/*.tmp")]


WRITERS = """
import os, random, sys, time
from pathlib import Path
from encore.models.loading import read
from encore.training.checkpoint_writer import write
from encore.training.run_folder import newest_checkpoint
from tests.checkpoints import content

folder, tries = Path(sys.argv[1]), int(sys.argv[2])
last, known = folder / "last.pt", 0

write(content(known, size=50000), last, keep=2)
for number in range(tries):
    child = os.fork()
    if not child:
        for step in range(known + 1, 10**9):
            write(content(step, size=50000), last, keep=2)
    time.sleep(random.uniform(0, 0.05))
    os.kill(child, 9)
    os.waitpid(child, 0)
    path, run, notes = newest_checkpoint(folder, "a")
    assert not notes, notes
    found = read(path)
    step, weight = found["progress"]["step"], found["model"]["weight"]
    assert step >= known and (weight == step).all()
    known = step
print(known)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_a_whole_checkpoint(
    tmp_path: Path, forks: Forks, tries: int
) -> None:
    (tmp_path / "writers.py").write_text(WRITERS)
    result = forks(str(tmp_path / "writers.py"), tmp_path, 10 * tries, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 0


@pytest.mark.full
def test_a_job_that_is_killed_while_it_saves_reaches_the_same_end(
    train_flags: list[object], tmp_path: Path, run_command: Command, tries: int
) -> None:
    """Launcher and both ranks, at random moments of a run that saves after every step, until it comes to its end."""
    whole, killed, chance = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    flags = (*train_flags, *SMALL, "--batch_size", 1, "--epochs", 20, "--save_minutes", 0, "--world_size", 2)
    for folder in (whole, killed):
        folder.mkdir()
    assert run_command("train_ddp.py", *flags, cwd=whole).returncode == 0
    for _ in range(tries):
        again = command("train_ddp.py", *flags, "--resume", "auto")
        with subprocess.Popen(
            again, cwd=killed, env=ENVIRONMENT, stdout=subprocess.PIPE, start_new_session=True
        ) as job:
            assert job.stdout is not None
            if any(b"Epoch" in line for line in job.stdout):  # the first of this attempt
                with pytest.raises(subprocess.TimeoutExpired):
                    job.wait(chance.uniform(0, 0.5))
            os.killpg(job.pid, signal.SIGKILL)
        assert newest_checkpoint(killed / "checkpoints", None)[2] == []
    result: Finished = run_command("train_ddp.py", *flags, "--resume", "auto", cwd=killed)
    assert result.returncode == 0, result.stderr
    assert equal_weights(killed / LAST, whole / LAST)
