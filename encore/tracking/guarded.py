"""A tracker whose failures do not end training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from encore.tracking.sender import reason
from encore.tracking.tracker import Tracker


class GuardedTracker(Tracker):
    """Passes everything on to a tracker; what that raises is printed, once for each of its methods.

    Args:
        tracker: the one that logs.
        name: of `--tracker`.
        log: prints a line to the user.
    """

    def __init__(self, tracker: Tracker, name: str, log: Callable[[str], None]):
        self.tracker, self._name, self._log = tracker, name, log
        self._failed: set[str] = set()

    @property
    def run_id(self) -> str | None:  # type: ignore[override]
        return self.tracker.run_id

    def params(self, values: Mapping[str, Any]) -> None:
        self._try("params", values)

    def tags(self, values: Mapping[str, str]) -> None:
        self._try("tags", values)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._try("metrics", values, step)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self._try("artifact", path, folder)

    def flush(self) -> None:
        self._try("flush")

    def close(self, status: str) -> None:
        self._try("close", status)

    def _try(self, method: str, *values: Any) -> None:
        try:
            getattr(self.tracker, method)(*values)
        except Exception as error:  # whatever a tracker raises, training continues
            if method not in self._failed:
                self._log(f"--tracker {self._name}: {method} failed ({reason(error)}); training continues")
            self._failed.add(method)
