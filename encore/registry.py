"""Named building blocks that a module outside the package can add to.

The tables are here, below everything that fills or reads them: a wing registers its own entries when it is imported.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import losses
from encore.errors import EncoreError

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Entries by name, in the order in which they were registered.

    Args:
        kind: what the entries are, in error messages ("prior").
        flag: the flag that names one ("--prior").
    """

    def __init__(self, kind: str, flag: str):
        self.kind, self.flag = kind, flag
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that adds an entry under `name`.

        Raises:
            ValueError: the name is taken.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {self._entries[name]!r} and {entry!r}")
            self._entries[name] = entry
            return entry

        return add

    def find(self, name: str) -> T:
        """The entry of that name.

        Raises:
            EncoreError: there is none; names the flag, the choices and the nearest one.
        """
        if name not in self._entries:
            close = difflib.get_close_matches(name, self._entries, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise EncoreError(
                f"{self.flag} {name}: no such {self.kind}{hint}; there are {', '.join(self)}, and "
                "those that a module of your own registers (--plugins)"
            )
        return self._entries[name]

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


CODECS: Registry[Any] = Registry("codec", "--codec")
PRIORS: Registry[Any] = Registry("prior", "--prior")
DATASETS: Registry[Any] = Registry("dataset format", "--dataset_format")
METRICS: Registry[Any] = Registry("metric", "--metrics")
TRACKERS: Registry[Any] = Registry("tracker", "--tracker")
LOADED: set[str] = set()  # plugins, as they were named


def load_plugins(names: Iterable[str]) -> None:
    """Imports modules that register entries of their own, or losses, once each.

    Args:
        names: importable modules (`my_package.my_loss`), looked for in the current folder too, or files (`my_loss.py`).

    Raises:
        EncoreError: a module cannot be found or imported; names it, with the error.
    """
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))
    for name in names:
        try:
            losses.load_plugins(name)
        except ValueError as error:
            raise EncoreError(f"--plugins {name}: {error}") from error
        LOADED.add(name)
