"""The signals that end a training run."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignal:
    """True once SIGINT or SIGTERM has come, so that the loop can finish its step and save."""

    def __init__(self) -> None:
        self.number = 0

    def listen(self) -> None:
        """Notes signals from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def __bool__(self) -> bool:
        return self.number > 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
