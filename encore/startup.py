"""A sign of life while the imports take seconds. Imports nothing that does."""

from __future__ import annotations

import sys

NOTE = "starting: PyTorch is being loaded …"
CLEAR = "\r\033[K"  # back to the beginning of the line, which is emptied


class _Note:
    shown = False


def announce() -> None:
    """Says on a terminal that the program is starting."""
    if sys.stderr is not None and sys.stderr.isatty() and not _Note.shown:
        sys.stderr.write(NOTE)
        sys.stderr.flush()
        _Note.shown = True


def started() -> None:
    """Takes back what `announce` has written."""
    if _Note.shown:
        sys.stderr.write(CLEAR)
        sys.stderr.flush()
        _Note.shown = False
