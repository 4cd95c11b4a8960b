"""The losses by name. A name gives the flag `--loss_weight_<name>`, the metrics and the row in every table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from losses.modules import Loss, MelLoss, RMSLoss, SpectralLoss


@dataclass(frozen=True)
class Entry:
    """One registered loss: what it is in a line, and how to build it for audio of a sample rate in Hz."""

    summary: str
    build: Callable[[int], Loss]


REGISTRY: dict[str, Entry] = {
    "rms": Entry("root mean square error of the waveform", lambda sample_rate: RMSLoss(reduction="none")),
    "spectral": Entry(
        "multi-resolution STFT: spectral convergence + L1 of log magnitudes",
        lambda sample_rate: SpectralLoss(reduction="none"),
    ),
    "mel": Entry("L1 of log-mel spectrograms", lambda sample_rate: MelLoss(sample_rate, reduction="none")),
}


def create(name: str, sample_rate: int) -> Loss:
    """The registered loss `name` for audio at `sample_rate` Hz, one value per item.

    Raises:
        ValueError: no loss of that name.
    """
    if name not in REGISTRY:
        raise ValueError(f"no loss named {name!r}; there are {', '.join(REGISTRY)}")
    return REGISTRY[name].build(sample_rate)
