"""The unfinished output of prepare_data.py: a hidden folder beside the output, from which the same command goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from filelock import FileLock, Timeout

from encore.errors import EncoreError
from encore.json_files import read_json, write_json

T = TypeVar("T")


class Progress(Protocol):
    """Shows how far a preparation is."""

    def say(self, line: str) -> None:
        """Prints a line."""

    def track(self, items: Iterable[T], total: int, done: int) -> Iterable[T]:
        """Counts items that are finished, beginning with `done`."""


@dataclass(frozen=True)
class MusicFile:
    """A file to cut.

    Attributes:
        path: where it is.
        name: its path relative to the music folder.
        key: hash of name, size and modification time, by which a changed file is noticed.
    """

    path: Path
    name: str
    key: str

    @classmethod
    def of(cls, path: Path, music: Path) -> MusicFile:
        name, status = path.relative_to(music).as_posix(), path.stat()
        stamp = f"{name}\0{status.st_size}\0{status.st_mtime_ns}".encode("utf-8", "surrogateescape")
        return cls(path, name, hashlib.sha256(stamp).hexdigest()[:20])


def read_note(path: Path) -> Any:
    """What a run that was stopped has noted; None if there is no such note.

    Raises:
        EncoreError: the note is damaged.
    """
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise EncoreError(f"{path}: damaged ({error}); delete {path.parent}, and all files are cut again") from error


class Staging:
    """The folder with what is finished; `data` in it becomes the output when all is.

    Attributes:
        folder: of the finished parts.
        data: of the data set.
        note: what became of an earlier run's parts, empty if there were none.
    """

    def __init__(self, output: Path, settings: dict[str, Any], division: dict[str, Any], files: Sequence[MusicFile]):
        self.output = output.resolve()
        self.folder = self.output.with_name(f".{self.output.name}.partial")
        self.data = self.folder / "data"
        self.settings = settings
        listing = json.dumps([settings, division, [file.key for file in files]])
        self._division = hashlib.sha256(listing.encode()).hexdigest()
        self.note = ""

    @contextmanager
    def open(self) -> Iterator[None]:
        """Takes over what an earlier run with the same settings has finished.

        Raises:
            EncoreError: another process is writing to it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            with lock.acquire(timeout=0):
                self._begin()
                yield
        except Timeout as error:
            raise EncoreError(
                f"--output {self.output}: another prepare_data.py is writing it; wait for it, or name another folder"
            ) from error

    def _begin(self) -> None:
        path = self.folder / "settings.json"
        stored = read_note(path)
        if stored is not None and stored != self.settings:
            changed = ", ".join(f"--{name}" for name in self.settings if stored.get(name) != self.settings[name])
            self.start_afresh(f"{changed} changed since the run that was stopped: all files are cut again")
        elif self._moving.is_file() and self._moving.read_text() != self._division:
            self.start_afresh("files or the division changed since the run that was stopped: all files are cut again")
        write_json(path, self.settings)
        self.data.mkdir(exist_ok=True)

    def start_afresh(self, note: str) -> None:
        """Deletes whatever is finished."""
        self.note = note
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()

    def say_what_is_kept(self, done: int, total: int, progress: Progress) -> None:
        """Tells what became of an earlier run's parts."""
        if self.note:
            progress.say(self.note)
            self.note = ""
        if done:
            progress.say(f"going on where an earlier run was stopped: {done} of {total} files are finished")

    def start_moving(self) -> None:
        """Notes that parts are being moved to `data`, which can only go on with the same files and settings."""
        self._moving.write_text(self._division)

    @property
    def _moving(self) -> Path:
        return self.folder / "moving"

    def finish(self) -> None:
        """Makes `data` the output, and deletes the rest."""
        self.data.rename(self.output)
        self.discard()

    def discard(self) -> None:
        """Deletes everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
