"""Continuations that are listened to and seen while they are generated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from encore.audio import audio_header, audio_length, read_excerpt
from encore.errors import EncoreError
from encore.inference.continuation import LEAST_SECONDS, context_of, stream_song
from encore.inference.live_audio import LiveAudio, LiveSounds
from encore.models.loading import Generator
from encore.reporting.html import image
from encore.reporting.spectrograms import peak, spectrograms

LEAD_SECONDS = 3.0  # of the song in front of a continuation


@dataclass(frozen=True)
class Limits:
    """What is accepted.

    Attributes:
        song_minutes: length of a song.
        seconds: length of a continuation.
    """

    song_minutes: float = 30.0
    seconds: float = 60.0


@dataclass(frozen=True)
class Wish:
    """What is to be generated.

    Attributes:
        song: its file.
        end: second of the song where the continuations begin.
        seconds: length of each.
        seeds: one continuation per seed; of a model that was trained by regression only the first.
        temperature: scale of the noise; such a model has none.
    """

    song: Path
    end: float
    seconds: float
    seeds: range
    temperature: float


class Take:
    """Continuations of a song by one model, which grow as `pieces` is iterated over.

    Args:
        store: keeps their sounds, which have the end of the song in front.

    Raises:
        EncoreError: the song cannot be read, or there is too little of it before `wish.end`.
    """

    def __init__(self, generator: Generator, wish: Wish, store: LiveSounds):
        codec = generator.codec
        generative = generator.generation.generative
        self.generator, self.seconds, self.sample_rate = generator, wish.seconds, codec.sample_rate
        self.seeds = wish.seeds if generative else wish.seeds[:1]
        self.temperature = wish.temperature if generative else 1.0
        self.context = read_context(wish, generator)
        self.lead = min(self.context.shape[-1], round(LEAD_SECONDS * codec.sample_rate))
        self.samples = self.lead + round(wish.seconds * codec.sample_rate)
        self.sounds = [LiveAudio(codec.sample_rate, codec.channels, self.samples) for _ in self.seeds]
        self.urls = [store.add(sound) for sound in self.sounds]
        self.parts: list[Tensor] = []

    def pieces(self) -> Iterator[float]:
        """Generates piece after piece; yields how many seconds of each continuation there are."""
        _, pieces = stream_song(self.generator, self.context, self.seconds, self.seeds, self.temperature)
        try:
            for piece in pieces:
                if not self.parts:  # the first piece is the context, of which the end is heard
                    piece = piece[..., -self.lead :]
                self.parts.append(piece)
                for sound, audio in zip(self.sounds, piece, strict=True):
                    sound.append(audio)
                yield (sum(part.shape[-1] for part in self.parts) - self.lead) / self.sample_rate
        finally:
            for sound in self.sounds:
                sound.finish()

    def pictures(self) -> list[str]:
        """A spectrogram of each continuation as a data URI, on the time axis of the complete one."""
        audio = torch.cat(self.parts, -1)
        whole = torch.nn.functional.pad(audio, (0, self.samples - audio.shape[-1]))
        reference_db, begins = peak(self.context, self.sample_rate), self.lead / self.sample_rate

        def picture(row: Tensor) -> str:
            return image(lambda file: spectrograms({"": row}, self.sample_rate, file, reference_db, begins))

        return [picture(row) for row in whole]


def read_context(wish: Wish, generator: Generator) -> Tensor:
    """What the model is given of a song, `[C, K]`; reads no more of it.

    Raises:
        EncoreError: the song cannot be read, or there is too little of it before `wish.end`.
    """
    codec = generator.codec
    end = min(audio_length(wish.song, codec.sample_rate), round(wish.end * codec.sample_rate))
    first = max(0, end - generator.context_frames * codec.hop_length)
    return context_of(generator, read_excerpt(wish.song, codec.sample_rate, codec.channels, first, end))


def song_seconds(song: Path, limits: Limits) -> float:
    """The length of a song in seconds.

    Raises:
        EncoreError: it cannot be read, or is too short or too long.
    """
    samples, rate = audio_header(song)
    seconds = samples / rate
    if seconds < LEAST_SECONDS:
        raise EncoreError(f"{song.name} is {seconds:.2f} s long; at least {LEAST_SECONDS:g} s are needed")
    if seconds > 60 * limits.song_minutes:
        raise EncoreError(
            f"{song.name} is {seconds / 60:.2f} minutes long, and at most {limits.song_minutes:g} are taken; cut it, "
            "or start the app with a larger --max_minutes"
        )
    return seconds
