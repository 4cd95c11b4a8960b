"""No tracking."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from encore.config.schema import TrackingConfig
from encore.tracking.tracker import Tracker, register_tracker


@register_tracker("none")
class NoTracker(Tracker):
    """Logs nothing: what is known of the run is in its folder.

    It keeps the id of the run that it is given, so that a later resumption with another tracker continues that run.
    """

    def __init__(self, settings: TrackingConfig, run_id: str | None, folder: Path, log: Callable[[str], None]):
        self.run_id = run_id
