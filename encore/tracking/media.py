"""The examples that training gives a tracker: audio and pictures in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def examples(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names in groups (`examples/prediction`), and files: wavs and then PNGs."""
    for suffix in (".wav", ".png"):
        for path in sorted(folder.glob(f"*{suffix}")):
            yield f"examples/{path.stem}", path
