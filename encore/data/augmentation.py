"""Altered copies of recordings: more music to train on, for models that should not learn a recording by heart.

Latents are cached, so recordings are altered when they are cut, before anything is encoded, and training stays as fast.
Each copy is drawn from these, all of which leave music music:

- speed and pitch together, as on a tape that runs faster or slower: ±2 semitones, which is ±12% of tempo;
- shelving filters for bass (below 100 Hz) and treble (above 3 kHz), ±4 dB each;
- for a quarter of the copies, another recording 3 to 12 dB below it;
- gain of ±6 dB, and either polarity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from encore.audio import resample

SEMITONES, SHELF_DB, GAIN_DB = 2.0, 4.0, 6.0  # largest, up or down
MIXED_SHARE, MIXED_DB = 0.25, (-12.0, -3.0)


@dataclass(frozen=True)
class Alteration:
    """What is done to a recording.

    Attributes:
        semitones: by which pitch and tempo rise together.
        bass_db, treble_db: gains of the shelving filters.
        gain_db: gain of the whole.
        inverted: whether the polarity is changed.
        other: name of the recording that is mixed in; empty: none.
        other_db: its RMS level relative to the recording's.
        other_start: where it begins, as a share of its length; it is repeated where it is shorter.
    """

    semitones: float
    bass_db: float
    treble_db: float
    gain_db: float
    inverted: bool
    other: str = ""
    other_db: float = 0.0
    other_start: float = 0.0

    def __str__(self) -> str:
        """For metadata.csv."""
        parts = [f"{self.semitones:+.2f} semitones", f"bass {self.bass_db:+.1f} dB", f"treble {self.treble_db:+.1f} dB"]
        parts += [f"gain {self.gain_db:+.1f} dB"] + ["inverted"] * self.inverted
        parts += [f"with {self.other} at {self.other_db:.1f} dB"] if self.other else []
        return ", ".join(parts)


def draw_alteration(generator: np.random.Generator, others: list[str]) -> Alteration:
    """Draws an alteration; `others` are the recordings that may be mixed in."""
    semitones, bass, treble, gain = generator.uniform(-1, 1, 4) * (SEMITONES, SHELF_DB, SHELF_DB, GAIN_DB)
    drawn = Alteration(float(semitones), float(bass), float(treble), float(gain), bool(generator.random() < 0.5))
    if not others or generator.random() >= MIXED_SHARE:
        return drawn
    name, level, start = others[generator.integers(len(others))], generator.uniform(*MIXED_DB), generator.random()
    return replace(drawn, other=name, other_db=float(level), other_start=float(start))


def alter(audio: Tensor, sample_rate: int, alteration: Alteration, other: Tensor | None) -> Tensor:
    """Alters a recording.

    Args:
        audio: `[C, N]`.
        sample_rate: Hz.
        alteration: what is done.
        other: the recording `alteration.other`, `[C, M]`; None: there is none.

    Returns:
        `[C, N / 2^(semitones / 12)]`, which may exceed ±1.
    """
    from torchaudio import functional  # takes half a second to import

    audio = resample(audio, sample_rate * 2 ** (alteration.semitones / 12), sample_rate)
    if other is not None:
        start, length = int(alteration.other_start * other.shape[-1]), audio.shape[-1]
        other = other.roll(-start, -1).repeat(1, math.ceil(length / other.shape[-1]))[:, :length]
        level = 10 ** (alteration.other_db / 20) * audio.square().mean().sqrt()
        audio = audio + other * level / other.square().mean().sqrt().clamp_min(torch.finfo(other.dtype).tiny)
    # The filters clamp to ±1: there is room above what they get.
    peak = audio.abs().max().clamp_min(torch.finfo(audio.dtype).tiny)
    audio = functional.bass_biquad(audio / peak / 4, sample_rate, alteration.bass_db)
    audio = functional.treble_biquad(audio, sample_rate, alteration.treble_db)
    return audio * 4 * peak * (10 ** (alteration.gain_db / 20)) * (-1 if alteration.inverted else 1)
