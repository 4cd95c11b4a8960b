"""Continuing music from Python: waveforms in, waveforms out, at any sample rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encore.audio import resample, to_channels
from encore.errors import EncoreError
from encore.inference.continuation import Continuation, Draws, continue_songs
from encore.models.loading import Generator, choose_device, load_generator
from encore.models.precision import AUTO

LEAD_SECONDS = 0.05  # of the context that is resampled with a continuation, for the resampler's filter


class ContinuationPipeline:
    """A trained model that continues waveforms.

        model = encore.load("checkpoints/best_model.pt")
        audio = model.continue_(waveform, sample_rate, seconds=16, seed=0)

    Args:
        generator: the model with its codec.
    """

    def __init__(self, generator: Generator):
        self.generator = generator

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | None = None,
        codec_repository: str | Path | None = None,
        precision: str = AUTO,
    ) -> ContinuationPipeline:
        """Loads a checkpoint of a training run.

        Args:
            path: best_model.pt or last.pt of the run.
            device: "cpu" or "cuda"; default: a GPU if there is one.
            codec_repository: folder with the pretrained codecs' files; default: that of the training run.
            precision: of the transformer's products: "fp32", "bf16", or "auto" for bf16 if this device is faster with
                it. With bf16 a continuation is another one of the same quality.

        Raises:
            EncoreError: not a checkpoint of this version, no such device, or the codec cannot be loaded.
        """
        repository = None if codec_repository is None else Path(codec_repository)
        return cls(load_generator(Path(path), choose_device(device), repository, precision))

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
        waveform: NDArray[np.floating] | Tensor,
        sample_rate: int,
        seconds: float = 16.0,
        seed: int | np.integer | Sequence[int] = 0,
        temperature: float = 1.0,
    ) -> Tensor:
        """Continues a waveform from its end.

        Args:
            waveform: floating point in [-1, 1], `[N]` or `[C, N]`. Channels are averaged or repeated to the codec's.
            sample_rate: of the waveform, Hz.
            seconds: length of the continuation.
            seed: equal seeds give equal continuations. A sequence gives one continuation per seed.
            temperature: standard deviation of the model's noise; 1 is that of training.

        Returns:
            The continuation alone, `[C, round(seconds · sample_rate)]` at `sample_rate`, with the codec's channels,
            float32 on the CPU; `[S, C, …]` for a sequence of S seeds.

        Raises:
            TypeError: samples that are not floating point.
            ValueError: another shape, samples that are not finite, or a number out of its range.
            EncoreError: the waveform is shorter than one second (or a training segment, if that is less), or several
                seeds or a temperature for a model that was trained by regression.
        """
        (audio,) = self.continue_batch([waveform], sample_rate, seconds, seed, temperature)
        return audio

    def continue_batch(
        self,
        waveforms: Sequence[NDArray[np.floating] | Tensor],
        sample_rate: int,
        seconds: float = 16.0,
        seed: int | np.integer | Sequence[int] = 0,
        temperature: float = 1.0,
    ) -> list[Tensor]:
        """Continues waveforms of any lengths, up to eight at once, which is faster than one after the other.

        Each is continued with the same seeds, as `continue_` would continue it alone, up to rounding.

        Args:
            waveforms: as in `continue_`, all with the same sample rate; the other arguments likewise.

        Returns:
            What `continue_` returns, for each of the waveforms.

        Raises:
            TypeError, ValueError, EncoreError: as `continue_`, for any of the waveforms; none is continued then.
        """
        songs = [_checked(waveform) for waveform in waveforms]
        seeds = [int(number) for number in seed] if isinstance(seed, Sequence) else [int(seed)]
        self._check(sample_rate, seconds, seeds, temperature)
        codec, rate = self.generator.codec, int(sample_rate)
        songs = [resample(to_channels(song, codec.channels), rate, codec.sample_rate) for song in songs]
        # The last samples of a resampled signal lack their neighbours.
        margin = 0.0 if rate == codec.sample_rate else LEAD_SECONDS
        made = continue_songs(self.generator, songs, Draws(seconds + margin, seeds, temperature))
        audio = [_at_rate(one, codec.sample_rate, rate)[..., : round(seconds * sample_rate)] for one in made]
        return audio if isinstance(seed, Sequence) else [rows[0] for rows in audio]

    def _check(self, sample_rate: int, seconds: float, seeds: Sequence[int], temperature: float) -> None:
        if not (sample_rate == int(sample_rate) and sample_rate > 0):
            raise ValueError(f"sample_rate must be a whole number of Hz above 0, got {sample_rate}")
        if not 0 < seconds < math.inf:
            raise ValueError(f"seconds must be a finite number above 0, got {seconds}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be a finite number of at least 0, got {temperature}")
        if not self.generator.generation.generative and (len(seeds) > 1 or temperature != 1):
            raise EncoreError(
                "this model was trained with --objective regression and makes one continuation only, without noise: "
                "give one seed and no temperature, or train with --objective energy"
            )


def _checked(waveform: NDArray[np.floating] | Tensor) -> Tensor:
    """The waveform as float32 `[C, N]` on the CPU."""
    audio = torch.as_tensor(waveform).detach().cpu()
    shape = list(audio.shape)
    if not audio.is_floating_point():
        raise TypeError(
            f"waveform: samples of type {audio.dtype} must be floating point in [-1, 1]; divide 16-bit samples by 32768"
        )
    if audio.dim() not in (1, 2):
        raise ValueError(
            f"waveform: shape {shape} must be [N] or [C, N]; continue the items of a batch with continue_batch"
        )
    audio = audio.float() if audio.dim() == 2 else audio.float()[None]
    if not audio.numel():
        raise ValueError(f"waveform: shape {shape} holds no samples")
    if len(audio) > audio.shape[-1]:
        raise ValueError(f"waveform: shape {shape} has more channels than samples; transpose it to [C, N]")
    if not audio.isfinite().all():
        raise ValueError("waveform: holds NaN or infinite samples")
    return audio


def _at_rate(made: Continuation, codec_rate: int, rate: int) -> Tensor:
    """The continuations `[S, C, M]` at another rate; the end of their context is resampled with them."""
    if rate == codec_rate:
        return made.audio
    context = made.context.shape[-1]
    step = codec_rate // math.gcd(codec_rate, rate)  # samples that are a whole number of samples at both rates
    lead = min(step * math.ceil(LEAD_SECONDS * codec_rate / step), context // step * step)
    resampled = torch.stack([resample(audio, codec_rate, rate) for audio in made.full[..., context - lead :]])
    return resampled[..., lead * rate // codec_rate :]
