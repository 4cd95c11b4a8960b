"""JSON files that are read and replaced as a whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from encore.errors import disk_space


def read_json(path: Path) -> Any:
    """The content of a file; None if it does not exist.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON.
    """
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_json(path: Path, content: Any) -> None:
    """Writes a file under a temporary name and renames it, so that it is complete or absent.

    The name has the process's number in it, as several may write the same file at once.

    Raises:
        EncoreError: the disk is full.
        OSError: it cannot be written for another reason.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with disk_space(path, "this file"), open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
