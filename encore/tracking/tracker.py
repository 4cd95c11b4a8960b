"""What a training run needs of a tracker, and the trackers by name."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from encore.config.schema import TrackingConfig
from encore.registry import TRACKERS


class Tracker(Protocol):
    """One tracked run. Training calls these methods on rank 0 only, and waits for them.

    A subclass overrides those that it needs; the inherited ones do nothing. No method may raise because a server
    cannot be reached: training must continue. `encore.tracking.sender.Sender` sends to a slow server on a thread.

    Attributes:
        requires: optional packages that it cannot do without.
        run_id: what the tracker calls this run; saved in checkpoints and given back when the run is resumed.
    """

    requires: tuple[str, ...] = ()
    run_id: str | None = None

    @staticmethod
    def prepare(settings: TrackingConfig) -> None:
        """What can be done before there is a run and takes seconds, such as imports; called on a thread."""
        return None

    def params(self, values: Mapping[str, Any]) -> None:
        """Records the settings of the run."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Records what runs are filtered by: codec, objective, prior, …; who runs which program of which commit."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Records metrics at a step (an epoch; 0 for what is measured before training)."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Stores a copy of a file, or of a folder's files, under `folder`. The file stays in place until `close`."""

    def flush(self) -> None:
        """Sends what has been recorded; called at the end of every epoch."""

    def close(self, status: str) -> None:
        """Sends the rest and ends the run as `FINISHED`, `FAILED` or `KILLED` (stopped by a signal)."""


F = TypeVar("F", bound=Callable[..., Any])


def register_tracker(name: str) -> Callable[[F], F]:
    """Decorator that makes a class, or a function that returns a tracker, available as `--tracker name`.

    It is called as `factory(settings, run_id, folder, log)`; see `build_tracker`.
    """
    return TRACKERS.register(name)


def build_tracker(settings: TrackingConfig, run_id: str | None, folder: Path, log: Callable[[str], None]) -> Tracker:
    """The tracker of `--tracker`; what it raises later is printed and does not end training.

    Args:
        settings: the tracking flags.
        run_id: the tracker's id of the run to resume; None for a new one.
        folder: the run's checkpoint folder, for files of the tracker's own.
        log: prints a line to the user.

    Raises:
        EncoreError: no such tracker.
    """
    from encore.tracking.guarded import GuardedTracker  # a tracker itself

    return GuardedTracker(TRACKERS.find(settings.tracker)(settings, run_id, folder, log), settings.tracker, log)


@contextlib.contextmanager
def preparing(settings: TrackingConfig) -> Iterator[None]:
    """Within the block, the tracker's `Tracker.prepare` runs on a thread, which has ended when the block has.

    No longer than that: a process that is forked (as data loaders do) while a thread imports a module can never import
    that module in the child.
    """
    prepare = getattr(TRACKERS.get(settings.tracker), "prepare", Tracker.prepare)  # a factory may be a function
    thread = threading.Thread(target=prepare, args=(settings,), name="prepare tracker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()
