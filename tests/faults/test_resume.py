"""Runs that are killed, resumed with other ranks and batches, or come to no good."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile

from encore.models.loading import read
from tests.conftest import ONE_RANK, SAMPLE_RATE, Forks, write_pairs
from tests.faults.unlucky_names import KILL, UNLUCKY
from tests.test_train import equal_weights

LAST = Path("checkpoints/last.pt")
AGENT = {"TORCHELASTIC_RUN_ID": "encore"}  # the forks' parent stands for the agent that starts ranks again
REGRESSION = ("--tracker", "none", "--objective", "regression", "--decode_seconds", 0.2, "--precision", "fp32")


def progress(folder: Path) -> dict:
    return read(folder / LAST)["progress"]


@pytest.mark.slow
def test_ranks_that_are_killed_in_the_middle_of_an_epoch_go_on_from_there(
    train_flags: list[object], tmp_path: Path, forks: Forks
) -> None:
    """Rank 1 after a step of the second epoch; the group that is started again reaches the same weights."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = (*train_flags, *REGRESSION, *UNLUCKY, "--batch_size", 2, "--epochs", 2, "--save_minutes", 0)
    for folder in (whole, killed):
        folder.mkdir()
    results = forks.ranks(2, *flags, cwd=whole)
    died = forks.ranks(2, *flags, cwd=killed, env={**AGENT, KILL: "1:4"})
    assert died[1].returncode == -signal.SIGKILL and died[0].returncode != 0
    assert progress(killed)["epoch_step"] == 1
    results += forks.ranks(2, *flags, cwd=killed, env=AGENT)
    assert not any(result.returncode for result in results), [result.stderr for result in results]
    assert "resumed from checkpoints/last.pt at epoch 2, step 1\n" in results[2].stdout
    assert equal_weights(killed / LAST, whole / LAST)
    assert not [*killed.glob("checkpoints/earlier_*")]


@pytest.mark.slow
def test_a_run_that_is_killed_before_its_first_save_begins_again_where_it_was_told_to(
    trained_regression: Path, regression_flags: list[object], tmp_path: Path, forks: Forks
) -> None:
    """From `--resume base.pt`, in a folder with an earlier run: neither from random weights nor from that run's."""
    base = tmp_path / "base.pt"
    shutil.copy(trained_regression / LAST, base)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        (folder / "checkpoints").mkdir(parents=True)
        shutil.copy(base, folder / LAST)
    flags = (*regression_flags, *UNLUCKY, "--tracker", "none", "--epochs", 5, "--resume", base)
    (undisturbed,) = forks.ranks(1, *flags, cwd=whole)
    (died,) = forks.ranks(1, *flags, cwd=killed, env={**AGENT, KILL: "0:1"})
    assert died.returncode == -signal.SIGKILL
    assert not (killed / LAST).exists() and (killed / "checkpoints" / "earlier_1" / "last.pt").is_file()
    (again,) = forks.ranks(1, *flags, cwd=killed, env=AGENT)
    for result in (undisturbed, again):
        assert result.returncode == 0, result.stderr
        assert f"resumed from {base} at epoch 5, step 0\n" in result.stdout
    assert progress(killed)["step"] == 10 and equal_weights(killed / LAST, whole / LAST)
    assert not (killed / "checkpoints" / "earlier_2").exists()


def test_a_run_goes_on_with_twice_the_batch_in_the_middle_of_an_epoch(
    train_flags: list[object], tmp_path: Path, forks: Forks
) -> None:
    """8 pairs an epoch: 2 steps of 2, then steps of 4. Other loss weights begin a new best model."""
    flags = (*train_flags, *REGRESSION, "--scheduler", "constant", "--resume", "auto", "--warmup_steps", 4)
    (first,) = forks.ranks(1, *flags, "--batch_size", 2, "--max_steps", 2, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    before = progress(tmp_path)
    assert (before["epoch"], before["epoch_samples"], before["samples"]) == (0, 4, 4)
    flags = (*flags, "--global_batch_size", 4, "--epochs", 2, "--loss_weight_target", 100)
    (result,) = forks.ranks(1, *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    after = progress(tmp_path)
    assert (after["epoch"], after["step"], after["samples"]) == (2, 5, 16)
    line = r"changed since checkpoints/last.pt: pairs per step 2 → 4, (.*, )?--global_batch_size None → 4, "
    assert re.search(line, result.stdout)
    assert "the best validation loss begins anew: it is measured by other loss weights\n" in result.stdout
    assert before["best"] < after["best"] == read(tmp_path / "checkpoints" / "best_model.pt")["progress"]["best"]
    # The warm-up is over after 4 steps of 2, which are 2 of 4: one of them is left.
    assert [*re.findall(r"  LR: (.*)\n", result.stdout)] == ["1.00e-02", "1.00e-02"]
    assert re.findall(r"  LR: (.*)\n", first.stdout) == ["5.00e-03"]


@pytest.mark.full
def test_one_rank_goes_on_where_two_were_stopped_with_the_same_global_batch(
    train_flags: list[object], tmp_path: Path, forks: Forks
) -> None:
    """Weights as if nothing had changed, up to rounding: the same pairs in every step, the same learning rates."""
    flags = (*train_flags, *REGRESSION, *UNLUCKY, "--batch_size", 2, "--global_batch_size", 4, "--epochs", 2)
    flags = (*flags, "--dropout", 0, "--decode_seconds", 1, "--generation", "whole")  # what depends on the rank's draws
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    two = forks.ranks(2, *flags, cwd=tmp_path / "two")
    part = forks.ranks(2, *flags, "--max_steps", 3, cwd=tmp_path / "one")
    one = forks.ranks(1, *flags, "--resume", "auto", cwd=tmp_path / "one")
    for result in (*two, *part, *one):
        assert result.returncode == 0, result.stderr
    assert "changed since checkpoints/last.pt: ranks 2 → 1, --max_steps 3 → None\n" in one[0].stdout
    ours, others = (read(tmp_path / name / LAST)["model"] for name in ("one", "two"))
    assert progress(tmp_path / "one")["samples"] == 16
    for name, weight in ours.items():
        np.testing.assert_allclose(weight, others[name], atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all_and_its_pair_named(
    train_flags: list[object], tmp_path: Path, forks: Forks
) -> None:
    pairs = write_pairs(tmp_path / "pairs", {"train": 8, "val": 1})
    soundfile.write(pairs / "train" / "pair_0002_output.wav", np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE)
    flags = (*train_flags, *REGRESSION, *UNLUCKY, "--dataset_folder", pairs, "--epochs", 1)
    flags = (*flags, "--loss_weight_fragile", 1, "--loss_weight_target", 1, "--batch_size", 2)
    results = forks.ranks(2, *flags, cwd=tmp_path)
    for result in results:
        assert result.returncode == 0, result.stderr
    skipped = r"^step \d skipped: its loss or gradient is not finite \(fragile of pair_0002, on rank [01]\)$"
    assert len(re.findall(skipped, results[0].stdout, re.MULTILINE)) == 1
    assert progress(tmp_path)["skipped"] == 1 and progress(tmp_path)["samples"] == 8


def test_a_run_without_a_finite_validation_fails(train_flags: list[object], tmp_path: Path, forks: Forks) -> None:
    pairs = write_pairs(tmp_path / "pairs", {"train": 2, "val": 1}, seconds=0.5)
    soundfile.write(pairs / "val" / "pair_0000_output.wav", np.zeros(SAMPLE_RATE // 2, np.float32), SAMPLE_RATE)
    flags = (*train_flags, *REGRESSION, *UNLUCKY, "--dataset_folder", pairs, "--epochs", 2, "--loss_weight_fragile", 1)
    (result,) = forks.ranks(1, *flags, cwd=tmp_path)
    assert result.returncode == 3
    assert result.stderr.startswith("error: no validation loss was finite, so this run has no best_model.pt: lower")
    assert result.stdout.count("validation is not finite: fragile, loss\n") == 2
    assert "best" not in result.stdout and not (tmp_path / "checkpoints" / "best_model.pt").exists()


def test_weights_that_run_away_do_not_end_in_success(train_flags: list[object], tmp_path: Path, forks: Forks) -> None:
    flags = (*train_flags, *REGRESSION, "--lr", 1e30, "--warmup_steps", 0, "--ema_decay", 0, "--epochs", 3)
    (result,) = forks.ranks(1, *flags, cwd=tmp_path)
    assert result.returncode == 3, result.stdout
    assert "error: epoch 2: loss or gradient was not finite in any of its 4 steps, so training ends" in result.stderr
    assert "best validation loss" not in result.stdout and not (tmp_path / "checkpoints" / "best_model.pt").exists()


HELD = """
import os, signal, sys
from pathlib import Path
from encore.commands import train_worker
from encore.config import cli
from encore.training.run_folder import Lock

ready, told = os.pipe()
first = os.fork()
if not first:
    lock = Lock(Path("checkpoints"))
    os.write(told, b"!")
    signal.pause()
os.read(ready, 1)
try:
    cli.run(train_worker.app, sys.argv[1:])
finally:
    os.kill(first, signal.SIGKILL)
"""


def test_a_second_run_in_a_folder_is_refused(train_flags: list[object], tmp_path: Path, forks: Forks) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "last.pt").write_text("of the first")
    (tmp_path / "held.py").write_text(HELD)
    second = forks(str(tmp_path / "held.py"), *train_flags, *REGRESSION, cwd=tmp_path, env=ONE_RANK)
    assert second.returncode == 2
    holder = (
        r"in use by another run, process \d+ on \S+, started \d{4}-\S+ \S+; wait for its end, or name another folder"
    )
    assert re.fullmatch(rf"error: --checkpoint_dir checkpoints: {holder}\n", second.stderr)
    assert {path.name for path in folder.iterdir()} == {"last.pt", ".lock"}
    assert (folder / "last.pt").read_text() == "of the first"
