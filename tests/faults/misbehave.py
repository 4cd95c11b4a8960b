"""A plugin for the tests of faults: a rank that dies, stops or hangs at a training pair of a run's first process.

MISBEHAVE is `RANK:PAIR:HOW`: which rank, at which of the pairs that it reads (counted from 1), and how. It happens once
in a folder: a file `misbehaved` there says that it has.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from encore.data.dataset import PairDataset

MISBEHAVE = "MISBEHAVE"


def misbehave(how: str) -> None:
    Path("misbehaved").write_text(str(os.getpid()))
    if how == "hang":
        os.mkfifo("nobody_writes")
        with open("nobody_writes"):
            return
    os.kill(os.getpid(), signal.Signals[how])


def with_fault(rank: str, pair: str, how: str) -> None:
    read, count = PairDataset.__getitem__, 0

    def get(self: PairDataset, index: int) -> Any:
        nonlocal count
        count += 1
        if count == int(pair) and not Path("misbehaved").exists():
            misbehave(how)
        return read(self, index)

    if os.environ["RANK"] == rank:
        PairDataset.__getitem__ = get  # type: ignore[method-assign]


if MISBEHAVE in os.environ and "RANK" in os.environ:
    with_fault(*os.environ[MISBEHAVE].split(":"))
