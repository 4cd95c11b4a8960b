"""Values that are measured once and then read from the latent cache's folder, as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from encore.errors import EncoreError

T = TypeVar("T")
MARGIN_FILE = "margin.json"


def stored(path: Path, measure: Callable[[], T]) -> T:
    """The value in a file; what `measure` returns, which is then written there, if there is no such file.

    Raises:
        EncoreError: the file cannot be read or written.
    """
    value: T | None = read(path)
    if value is None:
        value = measure()
        write(path, value)
    return value


def read(path: Path) -> Any:
    """The value in a file; None if there is no such file.

    Raises:
        EncoreError: the file cannot be read.
    """
    with _explained(path):
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write(path: Path, value: object) -> None:
    """Writes a file under a temporary name and renames it, so that there is never half a file.

    Raises:
        EncoreError: the file cannot be written.
    """
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(value), encoding="utf-8")
        temporary.replace(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise EncoreError(f"--cache_dir: {path} cannot be used ({error}); delete it or name another folder") from error
