"""A plugin for the tests of faults: a rank that dies, stops or hangs, or whose launcher does, at a pair it is to read.

MISBEHAVE is `RANK:PAIR:HOW`: which rank, at which of the pairs that it reads (counted from 1), and how: the name of a
signal to itself, `launcher` for SIGKILL to its launcher, `error` for one that the user can put right, or `hang`. It
happens once in a folder; a file `misbehaved` there then holds the process id of the rank.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from encore.data.dataset import PairDataset
from encore.errors import EncoreError

MISBEHAVE = "MISBEHAVE"


def misbehave(how: str) -> None:
    Path("misbehaved.tmp").write_text(str(os.getpid()))
    Path("misbehaved.tmp").rename("misbehaved")
    if how == "error":
        raise EncoreError("song.wav: broken")
    if how not in ("hang", "launcher"):
        os.kill(os.getpid(), signal.Signals[how])
        return
    if how == "launcher":
        os.kill(os.getppid(), signal.SIGKILL)
    os.mkfifo("nobody_writes")
    with open("nobody_writes"):  # as a file on a disk that does not answer
        raise AssertionError("it was written to")


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
