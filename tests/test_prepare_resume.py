"""prepare_data.py, stopped by real signals at moments that are the same in every run, and started again."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from filelock import FileLock

import encore.data.to_shards
from tests.conftest import Command, Finished, Forks
from tests.test_prepare_data import contents, tune

FLAGS = ("--context_seconds", 1, "--segment_seconds", 1, "--test_fraction", 0)
SHARD_BYTES = 10_000  # one recording each
# A plugin that sends this process a signal just before the nth time that a file or folder gets a name that begins so.
# Python reports renamings to audit hooks.
STOPPER = """
import os, signal, sys
import encore.data.to_shards
encore.data.to_shards.SHARD_BYTES = {bytes}
left = [{count}]

def watch(event, arguments):
    if event == "os.rename" and os.path.basename(str(arguments[1])).startswith("{name}"):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.{signal})

sys.addaudithook(watch)
"""
WAVS: tuple[str, ...] = ()
SHARDS = ("--shards",)


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """Five files of three pairs each, and a copy of one."""
    for number in range(5):
        tune(tmp_path / "music" / f"{number}.wav", 3.2, seed=number)
    shutil.copy(tmp_path / "music" / "1.wav", tmp_path / "music" / "copy.wav")
    return tmp_path / "music"


@pytest.fixture
def prepare(music: Path, call_command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Prepares the music in this process: `prepare(output, *flags)`."""
    monkeypatch.setattr(encore.data.to_shards, "SHARD_BYTES", SHARD_BYTES)

    def run(output: str, *flags: object) -> Finished:
        arguments = (music, "--output", music.parent / output, *FLAGS, "--num_workers", 0, *flags)
        return call_command("prepare_data.py", *arguments, cwd=music.parent)

    return run


def stop(run: Command, music: Path, name: str, count: int, number: str, *flags: object, workers: int = 0) -> Finished:
    """Prepares the music in a process that gets a signal."""
    plugin = music.parent / "stopper.py"
    plugin.write_text(STOPPER.format(bytes=SHARD_BYTES, count=count, name=name, signal=number))
    arguments = (music, "--output", "pairs", "--plugins", plugin, *FLAGS, "--num_workers", workers, *flags)
    done = run("prepare_data.py", *arguments, cwd=music.parent)
    assert not (music.parent / "pairs").exists()
    return done


MOMENTS = [
    # The third file's segments are written, but not yet the list of them: nothing of it is used.
    (WAVS, "source.json", 3, "SIGKILL", "2 of 6"),
    (WAVS, "source.json", 3, "SIGINT", "2 of 6"),
    # Some pairs are at their place in train.
    (WAVS, "pair_0002", 2, "SIGKILL", "6 of 6"),
    # The second shard is written under its temporary name.
    (SHARDS, "shard-000001.tar", 1, "SIGKILL", "1 of 6"),
    # It has its name, but what is in it is not noted.
    (SHARDS, "shard-000001.json", 1, "SIGKILL", "1 of 6"),
    (SHARDS, "shard-000003.tar", 1, "SIGINT", "3 of 6"),
    # The files themselves are done, and some of the altered copies of the four for training.
    (("--augment", "1"), "source.json", 8, "SIGKILL", "1 of 4"),
    ((*SHARDS, "--augment", "1"), "altered-000001.json", 1, "SIGKILL", "1 of 4"),
    # All is done but the last renaming.
    (SHARDS, "pairs", 1, "SIGKILL", "5 of 6"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "name", "count", "number", "note"), MOMENTS, ids=["_".join(m[1:4:2]) for m in MOMENTS]
)
def test_the_same_command_goes_on_after_a_signal(
    music: Path,
    prepare: Command,
    forks: Forks,
    flags: tuple[str, ...],
    name: str,
    count: int,
    number: str,
    note: str,
) -> None:
    assert prepare("undisturbed", *flags).returncode == 0
    stopped = stop(forks, music, name, count, number, *flags)
    if number == "SIGKILL":
        assert stopped.returncode == -signal.SIGKILL
    else:
        assert stopped.returncode == 128 + signal.SIGINT, stopped.stderr
        assert "stopped; the same command goes on" in stopped.stderr and "Traceback" not in stopped.stderr
    finished = {path.stat().st_ino for path in (music.parent / ".pairs.partial").rglob("*.wav")}
    again = prepare("pairs", *flags)
    assert again.returncode == 0, again.stderr
    assert f"going on where an earlier run was stopped: {note} files are finished" in again.stdout
    assert contents(music.parent / "pairs") == contents(music.parent / "undisturbed")
    # What was finished has been moved, not made again.
    kept = finished & {path.stat().st_ino for path in (music.parent / "pairs").rglob("*.wav")}
    assert len(kept) >= (0 if flags else 8)
    assert not (music.parent / ".pairs.partial").exists()


@pytest.mark.slow
def test_workers_end_when_the_command_is_killed(music: Path, prepare: Command, run_command: Command) -> None:
    """They share its standard output: `run_command` returns when the last one has closed it."""
    stopped = stop(run_command, music, "shard-000000.tar", 1, "SIGKILL", *SHARDS, workers=2)
    assert stopped.returncode == -signal.SIGKILL
    assert prepare("pairs", *SHARDS).returncode == 0 == prepare("undisturbed", *SHARDS).returncode
    assert contents(music.parent / "pairs") == contents(music.parent / "undisturbed")


CHANGES = [
    (WAVS, "source.json", 6, "4 of 6 files are finished"),
    (WAVS, "pair_0002", 1, "files or the division changed since the run that was stopped: all files are cut again"),
    (SHARDS, "shard-000004", 1, "files changed since the run that was stopped: cut again from 3.wav on"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "name", "count", "note"), CHANGES, ids=[change[1] for change in CHANGES])
def test_a_changed_file_is_cut_again(
    music: Path, prepare: Command, forks: Forks, flags: tuple[str, ...], name: str, count: int, note: str
) -> None:
    stop(forks, music, name, count, "SIGKILL", *flags)
    tune(music / "3.wav", 4.2, seed=9)
    again = prepare("pairs", *flags)
    assert again.returncode == 0, again.stderr
    assert note in again.stdout
    assert prepare("fresh", *flags).returncode == 0
    assert contents(music.parent / "pairs") == contents(music.parent / "fresh")


@pytest.mark.slow
def test_changed_settings_start_afresh(music: Path, prepare: Command, forks: Forks) -> None:
    stop(forks, music, "source.json", 4, "SIGKILL")
    again = prepare("pairs", "--min_rms", 0.002)
    assert again.returncode == 0, again.stderr
    assert "--min_rms changed since the run that was stopped: all files are cut again" in again.stdout
    assert "files are finished" not in again.stdout


@pytest.mark.slow
def test_another_division_keeps_what_is_cut(music: Path, prepare: Command, forks: Forks) -> None:
    """The seed only says which files go to val."""
    stop(forks, music, "source.json", 4, "SIGKILL")
    again = prepare("pairs", "--seed", 5, "--val_fraction", 0.4)
    assert again.returncode == 0 and "3 of 6 files are finished" in again.stdout
    assert prepare("fresh", "--seed", 5, "--val_fraction", 0.4).returncode == 0
    assert contents(music.parent / "pairs") == contents(music.parent / "fresh")


def test_two_commands_do_not_write_the_same_output(music: Path, prepare: Command) -> None:
    (music.parent / ".pairs.partial").mkdir()
    with FileLock(music.parent / ".pairs.partial" / "lock"):
        refused = prepare("pairs")
    assert refused.returncode == 2 and "another prepare_data.py is writing it" in refused.stderr
    assert os.listdir(music.parent / ".pairs.partial") == ["lock"]
