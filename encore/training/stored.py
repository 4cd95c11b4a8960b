"""Values that are measured once and then read from the latent cache's folder, as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from encore.errors import EncoreError
from encore.json_files import read_json, write_json

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
        return read_json(path)


def write(path: Path, value: object) -> None:
    """Writes a file under a temporary name and renames it, so that there is never half a file.

    Raises:
        EncoreError: the file cannot be written.
    """
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise EncoreError(f"--cache_dir: {path} cannot be used ({error}); delete it or name another folder") from error
