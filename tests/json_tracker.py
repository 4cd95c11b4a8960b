"""A tracker of the tests' own, a plugin: writes a run's metrics to a file, and can send the ranks a signal."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from encore.config.schema import TrackingConfig
from encore.tracking import Tracker, register_tracker

FLAGS = ("--plugins", "tests.json_tracker", "--tracker", "json")
SIGNAL = "SIGNAL_AFTER_FIRST_EPOCH"  # environment variable


@register_tracker("json")
class JsonTracker(Tracker):
    """Appends a line `[step, metrics]` to `metrics.jsonl` in the run's folder; never sends anything.

    After the first epoch it sends this machine's ranks the signal that the environment names. Restarted ranks get none.
    """

    def __init__(self, settings: TrackingConfig, run_id: str | None, folder: Path, log: Callable[[str], None]):
        self.path, self.run_id = folder / "metrics.jsonl", run_id or settings.run_name
        self.step = 0

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps([step, dict(values)]) + "\n")
        self.step = step

    def flush(self) -> None:  # the epoch is saved by then, or about to be
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if self.step == 1 and first and SIGNAL in os.environ:
            for rank in psutil.Process(os.getppid()).children():
                rank.send_signal(signal.Signals[os.environ[SIGNAL]])


def tracked(folder: Path) -> dict[str, list[float]]:
    """The history of every metric of a run in `folder`, in the order in which it was logged."""
    found: dict[str, list[float]] = {}
    for line in (folder / "checkpoints" / "metrics.jsonl").read_text().splitlines():
        for name, value in json.loads(line)[1].items():
            found.setdefault(name, []).append(value)
    return found
