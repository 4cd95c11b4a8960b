"""A tracker that training does not wait for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from encore.tracking.tracker import Tracker

MOST_CALLS = 1000  # that wait for their turn; a run makes about three per epoch


class BackgroundTracker(Tracker):
    """Calls another tracker's methods on one thread of its own, in order.

    A flush is left out if the next one has been asked for by its turn, so that a server that does not answer delays no
    more than the log. `close` returns when everything is done. MLflow's own asynchronous logging is no alternative: it
    knows neither artifacts nor runs that are still to be created, and several threads send in any order.

    Args:
        tracker: to call; nothing else may use it.

    Raises:
        Exception: from any method, what an earlier call of the tracker raised.
    """

    def __init__(self, tracker: Tracker):
        self._tracker = tracker
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_CALLS)
        self._asked = 0  # flushes
        self._flushed = threading.Event()  # once
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:  # type: ignore[override]
        """The tracker's, once it has tried to send for the first time; waits for that."""
        if self._asked:
            self._flushed.wait()
        return self._tracker.run_id

    def params(self, values: Mapping[str, Any]) -> None:
        self._call(partial(self._tracker.params, dict(values)))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._call(partial(self._tracker.metrics, dict(values), step))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self._call(partial(self._tracker.artifact, path, folder))

    def flush(self) -> None:
        self._asked += 1
        self._call(partial(self._flush, self._asked))

    def close(self, status: str) -> None:
        self._calls.put(None)
        self._thread.join()
        self._tracker.close(status)
        if self._error is not None:
            raise self._error

    def _call(self, call: Callable[[], None]) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
        self._calls.put(call)

    def _flush(self, number: int) -> None:
        if number == self._asked:
            self._tracker.flush()
            self._flushed.set()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._error is not None:  # as if it had been raised at once
                continue
            try:
                call()
            except Exception as error:
                self._error = error
                self._flushed.set()
