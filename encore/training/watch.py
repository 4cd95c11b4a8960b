"""Notices ranks that hang: each rank tells the others where it stands, and ends the group when one does not move on."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple, NoReturn, TypeVar

import torch.distributed as dist

from encore.config import cli
from encore.errors import EncoreError, listing

T = TypeVar("T")

HUNG = 1  # exit status of ranks that end because one of them hangs: the launcher restarts them
BEAT = 5.0  # seconds between what a rank tells of itself, at most
SILENCE = 1.0  # seconds, at least, in which a rank that responds tells something of itself
ANSWER = 10.0  # seconds that the store, a thread in rank 0's process, may take to answer
ENDING = 10.0  # seconds that a rank may stand still once a signal has come, at least
SAVING = "saving"  # what a signal does not hurry


@dataclass(frozen=True)
class Place:
    """Where a rank stands.

    Attributes:
        step: the optimiser step, counted from 1; None outside of training, where a phase may take any time.
        waits: whether it waits for other ranks.
    """

    phase: str
    step: int | None = None
    waits: bool = False

    def __str__(self) -> str:
        where = self.phase if self.step is None else f"step {self.step}, {self.phase}"
        return where + ", waiting for other ranks" * self.waits


class Report(NamedTuple):
    """What a rank has told: how often, on which host, and for how many seconds it has stood where."""

    beats: int = 0
    host: str = "unknown host"
    still: float = 0.0
    place: Place = Place("starting")


class Watch:
    """A thread that ends this process when its group does not move on.

    A rank that waits for another is patient for as long as that one works. It gives up after `limit` seconds, if
    - a rank has not told anything meanwhile: it is stopped, or its machine is gone;
    - a rank has stood at the same place of training for that long;
    - or all ranks wait for each other.
    A rank also ends itself once it has stood still in training for that long. Seconds are counted in beats of the
    thread, so that those during which the process itself was suspended do not count.

    The process ends with status `HUNG`, at once, because a thread that hangs can do nothing more; one of the ranks
    prints which of them hangs and where it stood.

    Args:
        store: of the process group; connections of its own are made to it.
        limit: seconds.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, limit: float):
        self.store, self._questions = store.clone(), store.clone()  # one for each thread that uses it
        self.rank, self.world_size, self.limit = rank, world_size, limit
        self.interval = min(BEAT, limit / 20)
        self.place = Place("starting")
        self.longest = 0.0  # seconds that the rank has stood still so far and gone on
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")
        self._signals, self._signalled = socket.socketpair()
        for end in (self._signals, self._signalled):
            end.setblocking(False)

    def at(self, phase: str, step: int | None = None, waits: bool = False) -> None:
        """Notes that this rank has moved on, and to where."""
        self.place = Place(phase, step, waits)

    def move(self) -> None:
        """Notes that this rank has got on within the same place."""
        self.place = replace(self.place)  # an equal one, but another

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A block in which this rank waits for the others."""
        before = self.place
        self.place = replace(before, waits=True)
        yield
        self.place = replace(before)

    def __enter__(self) -> Watch:
        # A handler in Python must wait until what the process waits for is done; this tells of a signal at once.
        with suppress(ValueError):  # not in the main thread, which alone gets signals
            signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)
        self._ended.set()
        self._thread.join()
        self._signals.close()
        self._signalled.close()

    def _run(self) -> None:
        place, still, beats, signalled, host = self.place, 0.0, 0, False, socket.gethostname()
        suspected: tuple[float, dict[int, Report]] | None = None  # when, and what ranks had told by then
        while not self._ended.wait(self.interval):
            self.longest = self.longest if self.place is place else max(self.longest, still)
            still = still + self.interval if self.place is place else 0.0
            place, beats, signalled = self.place, beats + 1, signalled or self._has_signal()
            limit = min(self.limit, max(ENDING, 2 * self.longest)) if signalled else self.limit
            own = Report(beats, host, still, place)
            try:
                told = {"beats": beats, "host": host, "still": still, **asdict(place)}
                self.store.set(str(self.rank), json.dumps(told))
            except dist.DistError:  # the store is gone with rank 0, which the main thread notices too
                return
            if not self._exceeds(own, limit) or (place.step is None and not place.waits):
                suspected = None
            elif suspected is None:
                suspected = still, self._reports()
            elif still - suspected[0] >= max(3 * self.interval, SILENCE):
                self._judge(limit, suspected[1], self._reports())
                suspected = None

    def _has_signal(self) -> bool:
        with suppress(BlockingIOError):
            return bool(self._signals.recv(1))
        return False

    def _exceeds(self, report: Report, limit: float) -> bool:
        """Whether a rank has stood still for longer than it may, which is `limit` unless it saves."""
        return report.still > (self.limit if report.place.phase == SAVING and not report.place.waits else limit)

    def _judge(self, limit: float, before: dict[int, Report], now: dict[int, Report]) -> None:
        """Ends the process if some rank hangs."""
        silent = [rank for rank, report in now.items() if rank != self.rank and report.beats == before[rank].beats]
        if silent:
            self._end([f"rank {r} ({now[r].host}) does not respond; it last told of {now[r].place}" for r in silent])
        stuck = {rank: report for rank, report in now.items() if self._exceeds(report, limit)}
        working = {rank: report for rank, report in stuck.items() if report.place.step and not report.place.waits}
        if working or (len(stuck) == self.world_size and all(report.place.waits for report in stuck.values())):
            said = [
                f"rank {r} ({o.host}) has been at {o.place} for {o.still:.0f} s" for r, o in (working or stuck).items()
            ]
            self._end(said)

    def _reports(self) -> dict[int, Report]:
        """What every rank has told last."""

        def ask() -> dict[int, Report]:
            reports = {}
            for rank in range(self.world_size):
                reports[rank] = Report()
                if self._questions.check([str(rank)]):
                    told = json.loads(self._questions.get(str(rank)))
                    place = Place(told.pop("phase"), told.pop("step"), told.pop("waits"))
                    reports[rank] = Report(**told, place=place)
            return reports

        return self._answer(ask)

    def _answer(self, question: Callable[[], T]) -> T:
        """What the store answers to a question, which ends the process if it does not.

        Asked in a thread, because a store whose process is stopped lets one wait for ever, whatever the timeout.
        """
        found: list[T] = []

        def ask() -> None:
            with suppress(dist.DistError):
                found.append(question())

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(ANSWER)
        if asking.is_alive():
            self._say_and_end([f"rank 0 does not answer rank {self.rank}, which is at {self.place}"])
        if not found:  # the process with the store has ended, and has said why
            self._exit()
        return found[0]

    def _end(self, problems: list[str]) -> NoReturn:
        """Ends the process; the first rank to come here says why."""
        if self._answer(lambda: self._questions.add("ended", 1)) > 1:
            self._ended.wait(1.0)  # the launcher ends all ranks as soon as one has ended
            self._exit()
        self._say_and_end(problems)

    def _say_and_end(self, problems: list[str]) -> NoReturn:
        cli.print_error(EncoreError(listing(problems)))
        self._exit()

    def _exit(self) -> NoReturn:
        os._exit(HUNG)
