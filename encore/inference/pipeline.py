"""Continuing music from Python: a song in, its continuation out, at any sample rate."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encore.audio import MAX_SAMPLE_RATE, audio_header, read_excerpt, resample, to_channels
from encore.errors import EncoreError
from encore.inference.continuation import Continuation, Draws, continue_songs
from encore.inference.waveforms import Waveform, to_waveform
from encore.models.loading import Generator, choose_device, load_generator
from encore.models.model_folder import PRETRAINED
from encore.models.precision import AUTO

LEAD_SECONDS = 0.05  # of the context that is resampled with a continuation, for the resampler's filter
P = TypeVar("P", bound="ContinuationPipeline")


class ContinuationPipeline:
    """A trained model that continues songs.

        model = encore.load()
        audio = model.continue_("song.wav", seconds=16, seed=0)

    `encore.ContinuationModel` is the same with `from_pretrained`, `save_pretrained` and `push_to_hub`.

    Args:
        generator: the model with its codec.
    """

    def __init__(self, generator: Generator):
        self.generator = generator

    @classmethod
    def load(
        cls: type[P],
        path: str | Path | None = None,
        device: str | None = None,
        codec_repository: str | Path | None = None,
        precision: str = AUTO,
    ) -> P:
        """Loads a model.

        Args:
            path: best_model.pt or last.pt of a training run, or a folder that `encore export` or `save_pretrained`
                wrote; default: the small model that Encore comes with.
            device: "cpu" or "cuda"; default: a GPU if there is one.
            codec_repository: folder with the pretrained codecs' files; default: that of the training run.
            precision: of the transformer's products: "fp32", "bf16", or "auto" for bf16 if this device is faster with
                it. With bf16 a continuation is another one of the same quality.

        Raises:
            EncoreError: not a model of this version, no such device, or the codec cannot be loaded.
        """
        repository = None if codec_repository is None else Path(codec_repository)
        return cls(load_generator(Path(path or PRETRAINED), choose_device(device), repository, precision))

    @property
    def sample_rate(self) -> int:
        """Of the codec, in Hz. Other rates are converted from and to."""
        return self.generator.codec.sample_rate

    @property
    def channels(self) -> int:
        """Audio channels of the codec, and of every continuation."""
        return self.generator.codec.channels

    def continue_(
        self,
        song: str | Path | Waveform,
        sample_rate: int | None = None,
        seconds: float = 16.0,
        seed: int | Sequence[int] | NDArray[np.integer] = 0,
        temperature: float = 1.0,
    ) -> Tensor:
        """Continues a song from its end.

        Args:
            song: a wav, flac, ogg or mp3 file, or a waveform: NumPy, torch or lists; `[N]`, `[C, N]`, or `[N, C]` as
                soundfile reads it; floating point in [-1, 1], or int16 or int32 at full scale. Channels are averaged or
                repeated to the codec's.
            sample_rate: of the waveform, Hz. Of a file it is that of the result, by default the file's own.
            seconds: length of the continuation.
            seed: equal seeds give equal continuations. A sequence gives one continuation per seed.
            temperature: standard deviation of the model's noise; 1 is that of training.

        Returns:
            The continuation alone, `[C, round(seconds · sample_rate)]` at `sample_rate`, with the codec's channels,
            float32 on the CPU; `[S, C, …]` for a sequence of S seeds.

        Raises:
            TypeError: samples of another type, or a waveform without a sample rate.
            ValueError: another shape, samples that are not finite or far from [-1, 1], or a number out of its range.
            EncoreError: the song is shorter than one second (or a training segment, if that is less), a file cannot be
                read, or several seeds or a temperature for a model that was trained by regression.
        """
        (audio,) = self.continue_batch([song], sample_rate, seconds, seed, temperature)
        return audio

    def continue_batch(
        self,
        songs: Sequence[str | Path | Waveform],
        sample_rate: int | None = None,
        seconds: float = 16.0,
        seed: int | Sequence[int] | NDArray[np.integer] = 0,
        temperature: float = 1.0,
    ) -> list[Tensor]:
        """Continues songs of any lengths, up to eight at once, which is faster than one after the other.

        Each is continued with the same seeds, as `continue_` would continue it alone, up to rounding.

        Args:
            songs: as in `continue_`, files and waveforms; the waveforms have the same sample rate. The other arguments
                as there.

        Returns:
            What `continue_` returns, for each of the songs.

        Raises:
            TypeError, ValueError, EncoreError: as `continue_`, for any of the songs; none is continued then.
        """
        several = isinstance(seed, Sequence | np.ndarray)
        seeds = _seeds(seed)
        self._check(sample_rate, seconds, seeds, temperature)
        read = [self._read(song, sample_rate) for song in songs]
        codec_rate = self.generator.codec.sample_rate
        # The last samples of a resampled signal lack their neighbours.
        margin = 0.0 if all(rate == codec_rate for _, rate in read) else LEAD_SECONDS
        made = continue_songs(self.generator, [audio for audio, _ in read], Draws(seconds + margin, seeds, temperature))
        audio = [
            _at_rate(one, codec_rate, rate)[..., : round(seconds * rate)]
            for one, (_, rate) in zip(made, read, strict=True)
        ]
        return audio if several else [rows[0] for rows in audio]

    def _read(self, song: str | Path | Waveform, sample_rate: int | None) -> tuple[Tensor, int]:
        """A song as the codec takes it, `[C, N]`, of a file only the end that the model sees; and the result's rate."""
        codec = self.generator.codec
        if isinstance(song, str | os.PathLike):
            path = Path(song)
            samples, rate = audio_header(path)
            end = math.ceil(samples * codec.sample_rate / rate)
            first = max(0, end - self.generator.context_frames * codec.hop_length - 1)
            return read_excerpt(path, codec.sample_rate, codec.channels, first, end), int(sample_rate or rate)
        audio = to_waveform(song)
        if sample_rate is None:
            raise TypeError("sample_rate: missing; give the waveform's in Hz, as in continue_(waveform, 44100)")
        rate = int(sample_rate)
        return resample(to_channels(audio, codec.channels), rate, codec.sample_rate), rate

    def _check(self, sample_rate: int | None, seconds: float, seeds: Sequence[int], temperature: float) -> None:
        if not (sample_rate is None or np.isscalar(sample_rate) and sample_rate in range(1, MAX_SAMPLE_RATE + 1)):
            raise ValueError(f"sample_rate must be a whole number of Hz above 0, got {sample_rate!r:.50}")
        if not 0 < seconds < math.inf:
            raise ValueError(f"seconds must be a finite number above 0, got {seconds}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be a finite number of at least 0, got {temperature}")
        if not self.generator.generation.generative and (len(seeds) > 1 or temperature != 1):
            raise EncoreError(
                "this model was trained with --objective regression and makes one continuation only, without noise: "
                "give one seed and no temperature, or train with --objective energy"
            )


def _seeds(seed: int | Sequence[int] | NDArray[np.integer]) -> list[int]:
    """The seeds of one or several continuations.

    Raises:
        TypeError: a seed that is no whole number.
        ValueError: none at all.
    """
    try:
        seeds = [operator.index(one) for one in (seed if isinstance(seed, Sequence | np.ndarray) else [seed])]
    except TypeError as error:
        raise TypeError(f"seed must be a whole number or several of them, got {seed!r:.50}") from error
    if not seeds:
        raise ValueError("seed: an empty list; give one seed for each continuation")
    return seeds


def _at_rate(made: Continuation, codec_rate: int, rate: int) -> Tensor:
    """The continuations `[S, C, M]` at another rate; the end of their context is resampled with them."""
    if rate == codec_rate:
        return made.audio
    context = made.context.shape[-1]
    step = codec_rate // math.gcd(codec_rate, rate)  # samples that are a whole number of samples at both rates
    lead = min(step * math.ceil(LEAD_SECONDS * codec_rate / step), context // step * step)
    resampled = torch.stack([resample(audio, codec_rate, rate) for audio in made.full[..., context - lead :]])
    return resampled[..., lead * rate // codec_rate :]
