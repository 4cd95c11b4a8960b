"""The file in which a run keeps what its tracking server has not got yet."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]

MOST_IN_MEMORY = 1000  # records, while the file cannot be written; a run makes about two per epoch


def read_spool(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and the records of a spool. What is not whole, as after a power cut, is left out.

    Raises:
        OSError: it cannot be read.
    """
    found = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            content = json.loads(line)
            if isinstance(content, dict):
                found.append(content)
    header = found.pop(0) if found and "kind" not in found[0] else {}
    return header, [record for record in found if "kind" in record]


class Spool:
    """A queue of records in a file of JSON lines, the first of which says whose they are.

    A record is in the file when `append` returns, so a killed process loses none; all leave it when the last has been
    taken. Any thread may append; one takes. If the file cannot be written (a full disk), records are kept in memory.

    Args:
        path: of the file, which is replaced.
        header: the first line.
        records: the first in the queue.
        log: prints a line to the user.
    """

    def __init__(self, path: Path, header: Record, records: Sequence[Record], log: Callable[[str], None]):
        self.path, self._header, self._log = path, header, log
        self._lock = threading.Lock()
        self._file: int | None = None
        self._start = self._next = 0  # bytes at which the records begin, and the oldest of them
        self._lengths: deque[int] = deque()  # of the records in the file, in bytes
        self._memory: deque[bytes] = deque(maxlen=MOST_IN_MEMORY)  # those that came after the last one in the file
        try:
            self._replace([header, *records])
        except OSError as error:
            self._file = None
            self._lengths.clear()
            self._memory.extend(map(_line, records))
            self._cannot_write(error)

    def __len__(self) -> int:
        with self._lock:
            return len(self._lengths) + len(self._memory)

    def append(self, record: Record) -> None:
        """Adds the newest record."""
        line = _line(record)
        with self._lock:
            if self._file is not None and not self._memory:
                try:
                    self._write(line)
                    return
                except OSError as error:
                    self._cannot_write(error)
            self._memory.append(line)

    def first(self) -> dict[str, Any] | None:
        """The oldest record; None if there is none."""
        with self._lock:
            if self._lengths:
                assert self._file is not None
                line = os.pread(self._file, self._lengths[0], self._next)
            elif self._memory:
                line = self._memory[0]
            else:
                return None
        record: dict[str, Any] = json.loads(line)
        return record

    def drop(self) -> None:
        """Takes the oldest record away."""
        with self._lock:
            if not self._lengths:
                self._memory.popleft()
                return
            assert self._file is not None
            self._next += self._lengths.popleft()
            if not self._lengths:
                self._next = self._start
                os.ftruncate(self._file, self._start)

    def set_aside(self, record: Record, reason: str) -> Path:
        """Writes a record to a file of those that are refused, which is a spool too; returns that file."""
        path = self.path.with_name(self.path.name.replace("spool", "rejected"))
        with contextlib.suppress(OSError), open(path, "ab") as file:
            lines = [{**record, "reason": reason}] if file.tell() else [self._header, {**record, "reason": reason}]
            file.write(b"".join(map(_line, lines)))
        return path

    def sync(self) -> None:
        """Waits until the disk has what has been written."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file)

    def close(self) -> None:
        """Removes the file if all has been sent. No other method may be called any more but `len`."""
        with self._lock:
            file, self._file = self._file, None
            if file is None:
                return
            with contextlib.suppress(OSError):
                whole = not self._lengths and not self._memory
                if whole and os.path.samestat(os.fstat(file), os.stat(self.path)):  # not that of a run that took over
                    self.path.unlink()
            os.close(file)

    def _replace(self, lines: Sequence[Record]) -> None:
        """Opens the file with other content; it has the old or the new one, even if the process is killed."""
        temporary = self.path.with_suffix(".tmp")
        self._file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            for line in lines:
                self._write(_line(line))
            os.fsync(self._file)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.replace(self.path)
        except OSError:
            os.close(self._file)
            temporary.unlink()
            raise
        self._start = self._next = self._lengths.popleft()

    def _write(self, line: bytes) -> None:
        """Appends a line to the file: all of it, or nothing."""
        assert self._file is not None
        written = os.write(self._file, line)
        if written < len(line):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._lengths.append(len(line))

    def _cannot_write(self, error: OSError) -> None:
        self._log(
            f"{self.path} cannot be written ({error.strerror}); what the tracking server has not got when the run ends "
            "will be lost"
        )


def _line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"


def is_open(path: Path) -> bool:
    """Whether a process has a file open as its spool. Its lock is not inherited by processes that it forks."""
    with open(path, "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EACCES, errno.EAGAIN)
    return False
