"""The one exception for what the user can put right."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path


class EncoreError(Exception):
    """Something the user can put right: the message says what was wrong, where, and what to do.

    The entry points print it without a traceback and exit with status 2.
    """


class RestartError(EncoreError):
    """An error that a new start mends: what was damaged has been removed, and is made again."""


def listing(problems: Sequence[str], most: int = 10) -> str:
    """Joins problems into one message, a line each, and counts those beyond `most`."""
    lines = [*problems[:most], *([f"… and {len(problems) - most} more like these"] if len(problems) > most else [])]
    return "\n".join(lines)


def make_folder(folder: Path, flag: str) -> None:
    """Creates an output folder, and fails early if it cannot be written to.

    Raises:
        EncoreError: it cannot be made or written to; names the flag.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("no permission to write")
    except OSError as error:
        raise EncoreError(
            f"{flag} {folder}: cannot be written to ({error.strerror or error}); name another folder"
        ) from error


@contextlib.contextmanager
def disk_space(path: Path, what: str) -> Iterator[None]:
    """A block that writes `what` to a file.

    Raises:
        EncoreError: there is no space for it: the disk or the user's quota is full, or files may not be that large.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise EncoreError(
            f"{path}: no space for {what} ({error.strerror}); make space there, or name another folder"
        ) from error
