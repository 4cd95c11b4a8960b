"""Training of a small codec: crops of music, the training loop, and metrics on held-out files.

The caller gives the loss to minimise as a function of (prediction, target), both `[B, C, N]`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from encore.audio import split_whole
from encore.codecs.base import Codec
from encore.codecs.starter.network import Architecture, StarterDecoder, StarterEncoder
from encore.codecs.starter.weights import StarterCodec
from encore.errors import EncoreError

Loss = Callable[[Tensor, Tensor], Tensor]

VALIDATION_SECONDS = 4.0
MIN_SECONDS = 0.1  # of a crop, for the longest window of the losses
MIN_GAIN_DB = -50.0  # of training crops
QUIET_GAIN_DB = -20.0  # of every other validation crop


def split_files(files: Sequence[Path], val_fraction: float, seed: int) -> tuple[list[Path], list[Path]]:
    """Splits files into those for training and those for validation, at least one each.

    Raises:
        EncoreError: fewer than two files.
    """
    if len(files) < 2:
        raise EncoreError(f"found {len(files)} audio file(s): training and validation need one each, so at least two")
    return split_whole(sorted(files), val_fraction, seed)


class CropSampler:
    """Random crops of recordings `[C, N]`; longer recordings are chosen more often, in proportion to their length.

    Six in ten crops are attenuated by up to 50 dB (uniform in dB) and one in fifty is digital silence, because a codec
    trained on loud music alone loses the high band of quiet passages and hums in pauses.

    Args:
        recordings: at any level.
        crop_samples: length of a crop.
        seed: of the draws.

    Raises:
        EncoreError: no recording is as long as a crop.
    """

    def __init__(self, recordings: Sequence[Tensor], crop_samples: int, seed: int) -> None:
        self.recordings = [r for r in recordings if r.shape[-1] >= crop_samples]
        if not self.recordings:
            raise EncoreError(f"no training file is as long as one crop ({crop_samples} samples): lower --crop_seconds")
        self.crop_samples = crop_samples
        self.random = random.Random(seed)

    def batch(self, size: int) -> Tensor:
        """`[size, C, crop_samples]`."""
        chosen = self.random.choices(self.recordings, weights=[r.shape[-1] for r in self.recordings], k=size)
        return torch.stack([self._crop(recording) for recording in chosen])

    def _crop(self, recording: Tensor) -> Tensor:
        start = self.random.randint(0, recording.shape[-1] - self.crop_samples)
        crop = recording[:, start : start + self.crop_samples]
        draw = self.random.random()
        if draw < 0.02:
            return torch.zeros_like(crop)
        if draw < 0.62:
            return crop * 10 ** (MIN_GAIN_DB * self.random.random() / 20)
        return crop


def validation_crops(recordings: Sequence[Tensor], sample_rate: int) -> list[Tensor]:
    """Two crops of 4 s from each recording `[C, N]`, centred at thirds of it (or all of a shorter one, twice).

    The second crop is attenuated by 20 dB, so that a codec for loud music alone does not score best.

    Raises:
        EncoreError: all recordings are shorter than 0.1 s.
    """
    length = int(VALIDATION_SECONDS * sample_rate)
    crops: list[Tensor] = []
    for recording in recordings:
        if recording.shape[-1] < MIN_SECONDS * sample_rate:
            continue
        spare = max(recording.shape[-1] - length, 0)
        loud, quiet = (recording[:, start : start + length] for start in (spare // 3, 2 * spare // 3))
        crops += [loud, quiet * 10 ** (QUIET_GAIN_DB / 20)]
    if not crops:
        raise EncoreError(f"no held-out file is as long as {MIN_SECONDS} s: use longer music or another --seed")
    return crops


def log_relative_error(prediction: Tensor, target: Tensor) -> Tensor:
    """`ln((|p − t|² + e) / (|t|² + e))`, mean over items `[B, C, N]`; e is the energy of white noise at −80 dBFS.

    Its gradient is as strong at a relative error of −30 dB as at 0 dB, so that the waveform stays close to the target
    while spectral terms improve components far below it.
    """
    floor = 1e-8 * target.shape[-1]
    error = (prediction - target).square().sum(-1) + floor
    return (error / (target.square().sum(-1) + floor)).log().mean()


def below(audio: Tensor, frequency: float) -> Tensor:
    """Audio `[..., N]` without its frequencies from `frequency` on, in cycles per sample."""
    spectrum = torch.fft.rfft(audio)
    kept = torch.arange(spectrum.shape[-1], device=audio.device) < frequency * audio.shape[-1]
    return torch.fft.irfft(spectrum * kept, n=audio.shape[-1])


@dataclass(frozen=True)
class CodecTraining:
    """Settings of the training loop. The learning rate warms up over 100 steps, then decays along a cosine to a 50th.

    Attributes:
        steps: to stop after.
        minutes: of processor time to stop after, of all threads, with validation; with both, what comes first.
        batch_size: crops per step.
        learning_rate: peak.
        validate_every: steps between validations.
    """

    steps: int | None
    minutes: float | None
    batch_size: int
    learning_rate: float
    validate_every: int

    def progress(self, step: int, seconds: float) -> float:
        """Fraction of the training that is done, 0 to 1, after so many steps and seconds."""
        shares = [step / self.steps] if self.steps is not None else []
        shares += [seconds / (60 * self.minutes)] if self.minutes is not None else []
        return min(max(shares), 1.0)

    def rate(self, step: int, progress: float) -> float:
        """Learning rate at a step."""
        return self.learning_rate * min((step + 1) / 100, 1) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


class CodecTrainer:
    """Trains an encoder and a decoder as a continuous autoencoder with Adam.

    Args:
        encoder: parameters that need no gradient are not trained.
        decoder: likewise.
        objective: loss to minimise.
        settings: of the loop.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, objective: Loss, settings: CodecTraining) -> None:
        self.encoder, self.decoder = encoder, decoder
        self.objective, self.settings = objective, settings
        parameters = [*encoder.parameters(), *decoder.parameters()]
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=settings.learning_rate, betas=(0.8, 0.99))

    def fit(
        self,
        sampler: CropSampler,
        validate: Callable[[], float],
        on_step: Callable[[int, float, float], None],
        on_best: Callable[[], None],
    ) -> int:
        """Trains until the settings say stop; returns the number of steps.

        Args:
            sampler: of the training crops.
            validate: returns the validation loss; called before the first step, every `validate_every` steps and at the
                end.
            on_step: called with (steps done, fraction done, training loss).
            on_best: called when the validation loss is the lowest so far, to save the weights.

        Raises:
            EncoreError: the loss is not finite for ten steps in a row.
        """
        best, step, not_finite, progress = validate(), 0, 0, 0.0
        on_best()
        started = time.process_time()
        while progress < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.rate(step, progress)
            loss = self._step(sampler.batch(self.settings.batch_size))
            not_finite = 0 if math.isfinite(loss) else not_finite + 1
            if not_finite == 10:
                raise EncoreError("the training loss is not finite; lower --lr. The best weights so far are saved")
            step += 1
            progress = self.settings.progress(step, time.process_time() - started)
            on_step(step, progress, loss)
            if step % self.settings.validate_every == 0 or progress == 1:
                loss = validate()
                if loss < best:
                    best = loss
                    on_best()
        return step

    def _step(self, audio: Tensor) -> float:
        prediction = self.decoder(self.encoder(audio))
        loss = self.objective(prediction[..., : audio.shape[-1]], audio)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if torch.isfinite(norm):
            self.optimizer.step()
        return float(loss.detach())


def stored_codec(architecture: Architecture, encoder: nn.Module, decoder: nn.Module) -> StarterCodec:
    """The codec as `save_codec` would store it, in half precision; a copy."""
    stored = StarterEncoder(architecture), StarterDecoder(architecture)
    for copy, module in zip(stored, (encoder, decoder), strict=True):
        copy.load_state_dict({name: value.half().float() for name, value in module.state_dict().items()})
    return StarterCodec(architecture, *stored)


@torch.no_grad()
def mean_metrics(codec: Codec, crops: Sequence[Tensor], metrics: Mapping[str, Loss]) -> dict[str, float]:
    """Mean over crops `[C, N]` of each metric of their reconstruction."""
    totals = dict.fromkeys(metrics, 0.0)
    for crop in crops:
        prediction = codec.decode(codec.encode(crop[None]))[..., : crop.shape[-1]]
        for name, metric in metrics.items():
            totals[name] += float(metric(prediction, crop[None])) / len(crops)
    return totals
