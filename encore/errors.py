"""The one exception for what the user can put right."""

from __future__ import annotations

from collections.abc import Sequence


class EncoreError(Exception):
    """Something the user can put right: the message says what was wrong, where, and what to do.

    Doors print it without a traceback and exit with status 2.
    """


def listing(problems: Sequence[str], most: int = 10) -> str:
    """Joins problems into one message, a line each, and counts those beyond `most`."""
    lines = [*problems[:most], *([f"… and {len(problems) - most} more like these"] if len(problems) > most else [])]
    return "\n".join(lines)
