"""How long the rest of a run takes, and how much memory of the GPU it needs."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch


class Pace:
    """The time of steps and validations, from those of this process."""

    def __init__(self) -> None:
        self.steps, self.step_seconds = 0, 0.0
        self.validations, self.validation_seconds = 0, 0.0
        self.last = time.monotonic()

    def begin(self) -> None:
        """Steps follow from now on."""
        self.last = time.monotonic()

    def stepped(self) -> None:
        """A step has ended."""
        now = time.monotonic()
        if self.steps == 1:  # the first one, in which memory is allocated and kernels are chosen, does not count
            self.step_seconds = 0.0
        self.steps, self.step_seconds, self.last = self.steps + 1, self.step_seconds + now - self.last, now

    def validated(self, seconds: float) -> None:
        """A validation has ended."""
        self.validations, self.validation_seconds = self.validations + 1, self.validation_seconds + seconds

    def left(self, steps: int, validations: int) -> float | None:
        """Seconds that so many steps and validations are going to take; None before there was any step."""
        if not self.steps:
            return None
        each = self.validation_seconds / self.validations if self.validations else 0.0
        return steps * self.step_seconds / max(1, self.steps - 1) + validations * each


@dataclass(frozen=True)
class Memory:
    """Memory of a GPU in GB (10⁹ bytes): the most that tensors took so far, and all that there is."""

    most: float
    whole: float

    def __str__(self) -> str:
        return f"GPU {self.most:.1f} of {self.whole:.0f} GB"


def gpu_memory(device: torch.device) -> Memory | None:
    """The memory of this rank's GPU; None on a CPU."""
    if device.type != "cuda":
        return None
    return Memory(
        torch.cuda.max_memory_allocated(device) / 1e9, torch.cuda.get_device_properties(device).total_memory / 1e9
    )


def duration(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
