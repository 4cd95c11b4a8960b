"""What a run has logged so far, by trackers that keep it in the run's folder."""

from __future__ import annotations

import uuid
from pathlib import Path

from encore.errors import EncoreError
from encore.json_files import read_json, write_json

FILE = "logged.json"


class LoggedSteps:
    """Remembers in a file which run has been logged up to which step: what a resumed run repeats is logged once.

    Args:
        folder: of the tracker's files, which is made if it is missing.
        run_id: of the run; None takes the one in the file, else a new one. What another run has logged does not count.

    Raises:
        EncoreError: the file cannot be read.
    """

    def __init__(self, folder: Path, run_id: str | None):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        try:
            found = read_json(self._path) or {"run_id": None, "step": -1}
            before, known = int(found["step"]), found["run_id"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EncoreError(f"{self._path}: cannot be read ({error}); move {folder} away") from error
        self.run_id: str = run_id or known or uuid.uuid4().hex
        self._before = self._step = before if known == self.run_id else -1

    def is_new(self, step: int) -> bool:
        """Whether the step had not been logged when this process began."""
        self._step = max(self._step, step)
        return step > self._before

    def save(self) -> None:
        """Notes that all steps so far have been logged."""
        write_json(self._path, {"run_id": self.run_id, "step": self._step})
