"""Synthesised music for the demonstration: deterministic, and structured enough to tell good continuations from bad.

Each file has its own key, tempo and chord progression, played by a bass on the root, a plucked arpeggio of a fixed
pattern and drums. Chords change every two beats and the progression of four chords repeats, so that about four seconds
determine the next four.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import torch
import typer
from numpy.random import Generator
from numpy.typing import NDArray

from encore.audio import write_wav
from encore.config import cli
from encore.errors import EncoreError

SAMPLE_RATE = 24_000  # Hz
RMS = 10 ** (-18 / 20)  # of full scale
CEILING = 0.94  # of full scale

MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)  # semitones
PROGRESSIONS = ((0, 4, 5, 3), (0, 5, 3, 4), (5, 3, 0, 4), (0, 3, 5, 4), (0, 2, 3, 4), (0, 6, 5, 6))  # scale degrees
PATTERNS = ((0, 1, 2, 3), (0, 2, 1, 3), (0, 2, 3, 2), (3, 2, 1, 0))  # notes of the chord, a quarter of a beat apart

Samples = NDArray[np.float64]


@lru_cache(maxsize=32)  # a progression has 20 notes, which return
def pluck(frequency: float, seconds: float, decay: float, brightness: float) -> Samples:
    """A plucked string: `sum_k brightness^(k-1) / k · sin(2π k f t) · exp(-t (1 + k/4) / decay)`, `[N]`.

    Higher harmonics fade faster, as on a string; harmonics stop below 11 kHz.

    Args:
        frequency: of the fundamental, Hz.
        seconds: length of the note.
        decay: seconds in which the amplitude falls to about 1/e.
        brightness: ratio of neighbouring harmonics' levels, beyond their fall of 1/k.
    """
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    harmonics = np.arange(1, 1 + min(16, int(11_000 / frequency)))[:, None]
    partials = np.sin(2 * np.pi * frequency * harmonics * time) * np.exp(-time * (1 + harmonics / 4) / decay)
    return (partials * brightness ** (harmonics - 1) / harmonics).sum(0) * _edges(len(time))


def kick() -> Samples:
    """A bass drum: a sine that falls from 150 to 45 Hz and fades within a quarter of a second, `[N]`."""
    time = np.arange(int(0.25 * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * np.pi * (45 * time + 105 * 0.03 * (1 - np.exp(-time / 0.03)))
    return np.sin(phase) * np.exp(-time / 0.07) * _edges(len(time))


def noise_burst(rng: Generator, decay: float) -> Samples:
    """A snare drum or a hi-hat: noise without its low end, fading to 1/e in `decay` seconds, `[N]`."""
    time = np.arange(int(4 * decay * SAMPLE_RATE)) / SAMPLE_RATE
    return np.diff(rng.standard_normal(len(time)), prepend=0) * np.exp(-time / decay) * _edges(len(time))


def _edges(length: int) -> Samples:
    """Gain with ramps of 2 ms at both ends, which avoids clicks: `[N]`, between 0 and 1."""
    place = np.arange(length)
    return np.minimum(1, np.minimum(place, length - 1 - place) / (0.002 * SAMPLE_RATE))


def compose(seconds: float, rng: Generator) -> Samples:
    """One piece of music: `[N]` samples at 24 kHz, −18 dBFS RMS, peaks below 0.95."""
    track = np.zeros(int(seconds * SAMPLE_RATE))
    beat = 60 / rng.uniform(100, 140)  # seconds
    scale = MAJOR if rng.random() < 0.5 else MINOR
    root = int(rng.integers(40, 52))  # MIDI number of the bass: E2 to D#3
    progression = PROGRESSIONS[rng.integers(len(PROGRESSIONS))]
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    brightness, decay = rng.uniform(0.6, 0.9), rng.uniform(0.25, 0.6)
    drums = (0.9 * kick(), 0.35 * noise_burst(rng, 0.06), 0.12 * noise_burst(rng, 0.02))

    def play(at_beat: float, sound: Samples, level: float = 1.0) -> None:
        start = round(at_beat * beat * SAMPLE_RATE)
        stretch = track[start : start + len(sound)]
        stretch += level * sound[: len(stretch)]

    def play_note(at_beat: float, level: float, *settings: float) -> None:
        if round(at_beat * beat * SAMPLE_RATE) < len(track):
            play(at_beat, pluck(*settings), level)

    def note(degree: int, octave: int) -> float:
        semitones = root + 12 * (octave + degree // 7) + scale[degree % 7]
        return 440 * 2 ** ((semitones - 69) / 12)

    for chord in range(int(seconds / (2 * beat)) + 1):
        degree, start = progression[chord % 4], 2 * chord
        for eighth in (0, 1.5):
            play_note(start + eighth, 0.5, note(degree, 0), 1.2 * beat, 0.5, 0.5)
        tones = [note(degree + step, 2) for step in (0, 2, 4, 7)]
        for sixteenth in range(8):
            # Levels vary a little from note to note, as when played by hand.
            level = rng.uniform(0.22, 0.3)
            play_note(start + sixteenth / 4, level, tones[pattern[sixteenth % 4]], 1.5 * beat, decay, brightness)
        for at, drum in ((0.0, drums[0]), (1.0, drums[1]), *((half / 2, drums[2]) for half in range(4))):
            play(start + at, drum)

    track *= RMS / np.sqrt(np.mean(track**2))
    return CEILING * np.tanh(track / CEILING) * _edges(len(track))


app = cli.new_app()


@app.command(cls=cli.HelpfulCommand)
def write(
    folder: Annotated[Path, typer.Argument(help="Folder for the files; created if it does not exist.")],
    files: Annotated[int, typer.Option("--files", min=1, help="Number of pieces.")] = 12,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Length of each, in seconds.")] = 20.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the music.")] = 0,
) -> None:
    """Write synthesised music, demo_00.wav and so on, 24 kHz mono."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(files):
            audio = torch.from_numpy(compose(seconds, np.random.default_rng([seed, index])))[None]
            write_wav(folder / f"demo_{index:02d}.wav", audio, SAMPLE_RATE)
    except (OSError, soundfile.SoundFileError) as error:
        raise EncoreError(f"{folder}: cannot be written ({error}); name another folder") from error
    print(f"{files} pieces of {seconds:g} s in {folder}")


if __name__ == "__main__":
    cli.run(app)
