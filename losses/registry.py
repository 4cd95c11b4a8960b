"""The losses by name. A name gives the flag `--loss_weight_<name>`, the metrics and the row in every table."""

from __future__ import annotations

from typing import Any

from losses import multi_resolution, pesq, spectrograms, stft, transport, waveform
from losses.base import Entry, Loss
from losses.embedding import loss as embedding

# Every room of losses lists its own.
REGISTRY: dict[str, Entry] = {
    **waveform.ENTRIES,
    **stft.ENTRIES,
    **multi_resolution.ENTRIES,
    **spectrograms.ENTRIES,
    **transport.ENTRIES,
    **pesq.ENTRIES,
    **embedding.ENTRIES,
}


def create(name: str, sample_rate: int, **options: Any) -> Loss:
    """The registered loss `name` for audio at `sample_rate` Hz, one value per item.

    Raises:
        ValueError: no loss of that name.
    """
    if name not in REGISTRY:
        raise ValueError(f"no loss named {name!r}; there are {', '.join(REGISTRY)}")
    return REGISTRY[name].build(sample_rate, **options)
