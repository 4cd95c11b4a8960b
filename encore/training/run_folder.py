"""The folder of a run: used by one run at a time, and known again by the ranks that are restarted for that run."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import psutil

from encore.config.schema import RunConfig
from encore.errors import EncoreError
from encore.json_files import read_json, write_json
from encore.models.loading import read
from encore.training.distributed import Ranks

LAST, BEST, IDENTITY, LOCK = "last.pt", "best_model.pt", "run.json", ".lock"
AUTO = "auto"  # --resume
UNSENT = "mlflow_*.jsonl"  # what the tracker could not send; a pattern
TRACKED = ("tensorboard", "wandb")  # folders of trackers
# What `move_aside` moves; patterns. Anything else in the folder is the user's.
RUN_FILES = ("last.pt", "last_*.pt", BEST, IDENTITY, "config.json", "train.log", "examples", UNSENT, *TRACKED)
LEFTOVERS = ("*.pt.tmp", "*.json.*.tmp")  # of files that were being written when their process was killed
LOCK_SECONDS = 3.0  # that a run whose ranks are being ended gets to let go of its folder
TOLERANCE = 5.0  # seconds by which the start of one process may seem to move when the clock is put right


@dataclass(frozen=True)
class Process:
    """A process of some machine.

    Attributes:
        host: name of the machine.
        process: its id there.
        start: seconds since 1970.
    """

    host: str
    process: int
    start: float

    def is_same(self, other: Process) -> bool:
        return (self.host, self.process) == (other.host, other.process) and abs(self.start - other.start) < TOLERANCE


def launcher() -> Process | None:
    """The process that has started this rank and starts it again if need be; None without torch's elastic agent."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = psutil.Process(os.getppid())
    return Process(socket.gethostname(), parent.pid, parent.create_time())


@dataclass(frozen=True)
class Identity:
    """What a run writes into `run.json` before its first step.

    Attributes:
        run: its id, also in its checkpoints. --resume auto and restarts keep it, --resume FILE does not.
        resume: the checkpoint that it was told to begin from.
        launchers: that have had ranks in it. A group of ranks that has one of them is a part of this run.
        started: local time.
    """

    run: str
    resume: str | None
    launchers: tuple[Process, ...]
    started: str

    @classmethod
    def read(cls, folder: Path) -> Identity | None:
        """That of the last run in a folder; None if there was none.

        Raises:
            EncoreError: its file cannot be read.
        """
        path = folder / IDENTITY
        try:
            content = read_json(path)
            if content is None:
                return None
            launchers = tuple(Process(p["host"], int(p["process"]), float(p["start"])) for p in content["launchers"])
            return cls(content["run"], content["resume"], launchers, content["started"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise EncoreError(
                f"{path}: cannot be read ({type(error).__name__}: {error}), so it is unknown whose folder this is; "
                "move it away, and name what to resume with --resume"
            ) from error

    def write(self, folder: Path) -> None:
        write_json(folder / IDENTITY, asdict(self))

    def launched_by(self, launchers: Sequence[Process]) -> bool:
        """Whether one of the processes has had ranks in this run."""
        return any(known.is_same(present) for known in self.launchers for present in launchers)


@dataclass(frozen=True)
class Start:
    """Where a group of ranks begins.

    Attributes:
        identity: of the run that it belongs to.
        source: the checkpoint to begin from; None: from the start.
        continues: whether what is in the folder is of the same run.
        notes: what the user should know about the choice, a line each.
    """

    identity: Identity
    source: Path | None
    continues: bool
    notes: tuple[str, ...] = ()


def find_start(settings: RunConfig, launchers: Sequence[Process]) -> Start:
    """Decides what run the ranks of `launchers` belong to and where they begin.

    Ranks that were started again by a launcher of the run in the folder go on with its last whole checkpoint; before
    there is one, with what the run was told to resume, else from the start. `--resume auto` does the same, with the
    newest whole checkpoint in the folder, whatever its run.

    Raises:
        EncoreError: there are checkpoints to choose from, and all of them are damaged.
    """
    folder, known = settings.checkpoint_dir, Identity.read(settings.checkpoint_dir)
    restarted = known is not None and known.launched_by(launchers)
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    if not restarted and settings.resume != AUTO:
        source = Path(settings.resume) if settings.resume else None
        absolute = source.resolve() if source else None
        identity = Identity(uuid.uuid4().hex, str(absolute) if absolute else None, tuple(launchers), started)
        return Start(identity, source, continues=absolute is not None and absolute.parent == folder.resolve())
    source, run, notes = newest_checkpoint(folder, known.run if known is not None and restarted else None)
    if known is None:
        known = Identity(run or uuid.uuid4().hex, None, (), started)
    if source is None and known.resume is not None:
        source = Path(known.resume)
    new = [process for process in launchers if not known.launched_by([process])]
    identity = Identity(run or known.run, known.resume, (*known.launchers, *new), known.started)
    return Start(identity, source, continues=True, notes=tuple(notes))


def newest_checkpoint(folder: Path, run: str | None) -> tuple[Path | None, str | None, list[str]]:
    """The newest whole checkpoint in a folder, of the run `run` or of any; its run; and a line for each damaged one.

    Raises:
        EncoreError: all are damaged.
    """
    notes: list[str] = []
    for path in checkpoints(folder):
        try:
            found = read(path)["run"]
        except EncoreError as error:
            notes.append(str(error))
            continue
        if run in (None, found):
            return path, found, [f"{note}; {path.name} is used instead" for note in notes]
    if notes:
        remedy = "name another one with --resume, or begin again without it"
        raise EncoreError("\n".join([*notes, f"--checkpoint_dir {folder}: no whole checkpoint in it; {remedy}"]))
    return None, None, []


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder that a run may continue from: the last one, those before it, at last the best."""
    older = sorted(folder.glob("last_*.pt"), key=number_of)
    return [path for path in (folder / LAST, *older, folder / BEST) if path.is_file()]


def number_of(path: Path) -> float:
    """How many saves before the last one a checkpoint was written: 2 for `last_2.pt`."""
    number = path.stem.partition("_")[2]
    return int(number) if number.isdecimal() else float("inf")


def move_aside(folder: Path) -> None:
    """Moves the files of an earlier run to `earlier_<n>/`."""
    if not checkpoints(folder) and not any(found for name in (UNSENT, *TRACKED) for found in folder.glob(name)):
        return
    number = next(n for n in itertools.count(1) if not (folder / f"earlier_{n}").exists())
    (folder / f"earlier_{number}").mkdir()
    for pattern in RUN_FILES:
        for path in folder.glob(pattern):
            shutil.move(path, folder / f"earlier_{number}" / path.name)


class Lock:
    """Exclusive use of a folder, until `close` or the end of this process, however it ends.

    A POSIX lock (`fcntl`) on a file in the folder: unlike `flock`'s it is not inherited by processes that read the
    data, which may outlive their parent by seconds. On a shared disk it holds between machines as far as the file
    system supports such locks (NFS 4 does; Lustre if mounted with `flock`).

    Raises:
        EncoreError: another process has it; says which.
    """

    def __init__(self, folder: Path):
        self.file: TextIO = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 (closed by close)
        deadline = time.monotonic() + LOCK_SECONDS
        while not self._acquire():
            if time.monotonic() > deadline:
                holder = self._holder()
                self.file.close()
                raise EncoreError(
                    f"--checkpoint_dir {folder}: in use by another run, {holder}; wait for its end, or name another "
                    "folder"
                )
            time.sleep(0.1)
        self.file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        json.dump({"process": os.getpid(), "host": socket.gethostname(), "since": since}, self.file)
        self.file.flush()

    def close(self) -> None:
        self.file.close()

    def _acquire(self) -> bool:
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            return False
        return True

    def _holder(self) -> str:
        try:
            self.file.seek(0)
            holder = json.load(self.file)
            return f"process {holder['process']} on {holder['host']}, started {holder['since']}"
        except (ValueError, TypeError, KeyError):  # it has only just begun to write
            return "just started"


class RunFolder:
    """The folder of this run; a context manager that gives it free again.

    Attributes:
        path: the folder.
        start: where the run begins; the same on all ranks.
    """

    def __init__(self, path: Path, start: Start, lock: Lock | None):
        self.path, self.start, self._lock = path, start, lock

    @classmethod
    def open(cls, settings: RunConfig, ranks: Ranks) -> RunFolder:
        """Locks the folder on rank 0 and finds out where to begin; changes nothing in it. Called by all ranks.

        Raises:
            EncoreError: another run uses it, or all its checkpoints are damaged.
        """
        launchers: list[Process] = []
        for process in ranks.gather(launcher()):
            if process is not None and process not in launchers:
                launchers.append(process)
        held: list[tuple[Lock, Start]] = []
        with ranks.agree():
            if ranks.is_main:
                lock = Lock(settings.checkpoint_dir)
                try:
                    held.append((lock, find_start(settings, launchers)))
                except BaseException:
                    lock.close()
                    raise
        start = ranks.broadcast_from_main(lambda: held[0][1])
        return cls(settings.checkpoint_dir, start, held[0][0] if held else None)

    def begin(self) -> None:
        """Makes the folder this run's: an earlier one's files are moved aside. For rank 0, once all is checked."""
        if not self.start.continues:
            move_aside(self.path)
        for pattern in LEFTOVERS:
            for path in self.path.glob(pattern):
                path.unlink()
        self.start.identity.write(self.path)

    def close(self) -> None:
        """Lets another run use the folder."""
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()
