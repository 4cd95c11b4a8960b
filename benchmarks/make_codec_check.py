"""Synthesises the second of music for the starter codec's test: `python -m benchmarks.make_codec_check OUT.flac`.

A plucked chord with overtones to 10 kHz, a bass note, two strokes of a hi-hat (noise above 5 kHz). Free for any use.
"""

from __future__ import annotations

import math
import sys

import soundfile
import torch
from torch import Tensor

RATE = 24000


def pluck(frequency: float, start: float, decay: float) -> Tensor:
    """One second with a note at `start` s: overtones to 10 kHz fall off as 1/k and fade faster the higher."""
    time = (torch.arange(RATE) / RATE - start).clamp(min=0)
    note = torch.zeros(RATE)
    for k in range(1, int(10000 / frequency) + 1):
        note += torch.sin(2 * math.pi * k * frequency * time) / k * torch.exp(-time * decay * (1 + k / 8))
    return note


def hat(start: float, generator: torch.Generator) -> Tensor:
    """One second with a stroke at `start` s: noise above 5 kHz that fades within a tenth of a second."""
    time = torch.arange(RATE) / RATE - start
    spectrum = torch.fft.rfft(torch.randn(RATE, generator=generator))
    spectrum[:5000] = 0
    return torch.fft.irfft(spectrum) * torch.exp(-30 * time.clamp(min=0)) * (time >= 0)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    music = 0.5 * pluck(55.0, 0.0, 1.5)
    for frequency, start in ((220.0, 0.0), (277.18, 0.25), (329.63, 0.5), (440.0, 0.75)):
        music += 0.3 * pluck(frequency, start, 3.0)
    for start in (0.25, 0.75):
        music += 0.15 * hat(start, generator)
    soundfile.write(sys.argv[1], (0.7 * music / music.abs().max()).numpy(), RATE, subtype="PCM_16")


if __name__ == "__main__":
    main()
