"""What is measured once and then read from the latent cache's folder: the codec's margin, the baselines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from encore.errors import EncoreError

T = TypeVar("T")
MARGIN_FILE = "margin.json"


def stored(path: Path, measure: Callable[[], T]) -> T:
    """The value in a JSON file; what `measure` returns, which is then written there, if there is no such file.

    Raises:
        EncoreError: the file cannot be read or written.
    """
    try:
        if path.is_file():
            value: T = json.loads(path.read_text(encoding="utf-8"))
            return value
        value = measure()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(value), encoding="utf-8")
        temporary.replace(path)
        return value
    except (OSError, ValueError) as error:
        raise EncoreError(f"--cache_dir: {path} cannot be used ({error}); delete it or name another folder") from error
