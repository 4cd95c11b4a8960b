"""A thread that sends what a spool holds, and leaves a server alone that does not answer."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Protocol

from encore.tracking.spool import Record, Spool

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0  # seconds between attempts to reach a server that has failed
CLOSE_SECONDS, LOST_SECONDS = 300.0, 30.0  # that the end of a run waits for a server that answers; one that does not
NOTE_SECONDS = 3.0  # after which it says so
REASON_LENGTH = 200  # characters


class Refused(Exception):
    """A record cannot be sent; others can."""


class Destination(Protocol):
    """Where records are sent to. Its methods may take their time, and raise anything if it cannot be reached."""

    name: str

    def open(self) -> None:
        """Connects; called before the first record, and again after something has failed."""

    def send(self, record: Record) -> None:
        """Sends a record, which it may have got before.

        Raises:
            Refused: because of the record.
        """

    def close(self) -> None:
        """Called after the last record, or when there is no more time for it."""


class Sender:
    """Sends records, oldest first. After a failure it pauses, twice as long after each further one.

    A record that the destination refuses is set aside in a file; of one with several values, those that are refused.

    Args:
        spool: of the records; nothing else may take any.
        destination: called on one thread.
        log: prints a line to the user.
    """

    def __init__(self, spool: Spool, destination: Destination, log: Callable[[str], None]):
        self._spool, self._destination, self._print = spool, destination, log
        self._open = self._failed = self._abandoned = False
        self._refused: set[str] = set()  # what the user has been told of
        self._wake, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Has the thread send what there is. Returns at once."""
        self._wake.set()

    def close(self) -> bool:
        """Tries a last time, for a bounded time; returns whether all has been sent."""
        until = time.monotonic() + (CLOSE_SECONDS if self._open else LOST_SECONDS)
        self._end.set()
        self._wake.set()
        self._thread.join(NOTE_SECONDS)
        if self._thread.is_alive():
            self._log(f"sending the rest to {self._destination.name}, for at most {until - time.monotonic():.0f} s")
            self._thread.join(max(0, until - time.monotonic()))
        self._abandoned = self._thread.is_alive()
        if not self._abandoned:
            self._spool.close()
        return not len(self._spool)

    def send_all(self) -> None:
        """Sends until the spool is empty.

        Raises:
            Exception: what the destination raises if it cannot be reached.
        """
        if not self._open:
            self._destination.open()
            self._open = True
        while (record := self._spool.first()) is not None:
            self._send(record)
            self._spool.drop()

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while not self._abandoned:
            self._wake.wait()
            self._wake.clear()
            closing = self._end.is_set()
            sent = self._attempt()
            if closing or (not sent and self._end.is_set()):
                break
            if sent:
                pause = FIRST_PAUSE
            else:
                self._end.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                self._wake.set()
        with contextlib.suppress(Exception):
            self._destination.close()

    def _attempt(self) -> bool:
        """Sends everything; whether that worked."""
        try:
            self.send_all()
        except Exception as error:  # whatever a tracking backend raises, training continues
            self._open = False
            if not self._failed:
                self._log(
                    f"{self._destination.name} cannot be reached ({reason(error)}); training continues, and what could "
                    f"not be logged is saved in {self._spool.path}"
                )
            self._failed = True
            self._spool.sync()
            return False
        if self._failed:
            self._log(f"{self._destination.name} can be reached again; what was missing has been logged")
        self._failed = False
        return True

    def _send(self, record: Record) -> None:
        try:
            self._destination.send(record)
        except Refused as error:
            values = record.get("values", {})
            if len(values) > 1:
                for name, value in values.items():
                    self._send({**record, "values": {name: value}})
                return
            file = self._spool.set_aside(record, str(error))
            what = ", ".join(values) or record.get("path", record["kind"])
            if what not in self._refused:
                self._log(f"{what} cannot be sent to {self._destination.name} ({error}); it is set aside in {file}")
            self._refused.add(what)

    def _log(self, line: str) -> None:
        if not self._abandoned:
            self._print(line)


def reason(error: Exception) -> str:
    """The first line of an error's message; of a failed request, of what the connection says."""
    found: BaseException = error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) or type(cause).__module__.startswith("urllib3"):
            found = cause
        cause = cause.__cause__ or cause.__context__
    return (str(found).strip() or type(found).__name__).partition("\n")[0][:REASON_LENGTH]
