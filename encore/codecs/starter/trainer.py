"""Training of a codec of our own: crops of music, the loop, and what is measured on files never trained on.

What to minimise comes from the caller as a function of (prediction, target), both `[B, C, N]`.
"""

import copy
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from encore.audio import split_whole
from encore.errors import EncoreError

Loss = Callable[[Tensor, Tensor], Tensor]

VALIDATION_SECONDS = 4.0
LEAST_SECONDS = 0.1  # the losses need that much
QUIETEST_GAIN_DB = -50.0
QUIETER_DB = -20.0


def split_files(files: Sequence[Path], val_fraction: float, seed: int) -> tuple[list[Path], list[Path]]:
    """Whole files for training and validation, at least one of each. Raises EncoreError for fewer than two files."""
    if len(files) < 2:
        raise EncoreError(f"found {len(files)} audio file(s): training and validation need one each, so at least two")
    return split_whole(sorted(files), val_fraction, seed)


class CropSampler:
    """Random crops of a list of recordings `[C, N]`, each sample of them equally likely.

    Six in ten crops are played quieter, evenly down to -50 dB, and one in fifty is digital silence: a codec that has
    only heard loud music takes a quiet passage's high band away and hums in the pauses.
    """

    def __init__(self, recordings: Sequence[Tensor], crop_samples: int, seed: int) -> None:
        self.recordings = [r for r in recordings if r.shape[-1] >= crop_samples]
        if not self.recordings:
            raise EncoreError(f"no training file is as long as one crop ({crop_samples} samples): lower --crop_seconds")
        self.crop_samples = crop_samples
        self.random = random.Random(seed)

    def batch(self, size: int) -> Tensor:
        """`[size, C, crop_samples]`"""
        chosen = self.random.choices(self.recordings, weights=[r.shape[-1] for r in self.recordings], k=size)
        return torch.stack([self._crop(recording) for recording in chosen])

    def _crop(self, recording: Tensor) -> Tensor:
        start = self.random.randint(0, recording.shape[-1] - self.crop_samples)
        crop = recording[:, start : start + self.crop_samples]
        draw = self.random.random()
        if draw < 0.02:
            return torch.zeros_like(crop)
        if draw < 0.62:
            return crop * 10 ** (QUIETEST_GAIN_DB * self.random.random() / 20)
        return crop


def excerpts(recordings: Sequence[Tensor], samples: int) -> Tensor:
    """The beginnings of all recordings `[C, N]`, as mono `[N]`, about `samples` in all."""
    return torch.cat([recording[:, : samples // len(recordings)].mean(0) for recording in recordings])


def validation_crops(recordings: Sequence[Tensor], sample_rate: int) -> list[Tensor]:
    """Two stretches of 4 s of each recording, a third and two thirds in (of a shorter one twice the whole).

    The second is played 20 dB quieter, so that a codec for loud music alone is not the best.

    Raises:
        EncoreError: all recordings are shorter than 0.1 s.
    """
    length = int(VALIDATION_SECONDS * sample_rate)
    crops: list[Tensor] = []
    for recording in recordings:
        if recording.shape[-1] < LEAST_SECONDS * sample_rate:
            continue
        room = max(recording.shape[-1] - length, 0)
        loud, quiet = (recording[:, start : start + length] for start in (room // 3, 2 * room // 3))
        crops += [loud, quiet * 10 ** (QUIETER_DB / 20)]
    if not crops:
        raise EncoreError(f"no held-out file is as long as {LEAST_SECONDS} s: use longer music or another --seed")
    return crops


def si_sdr(prediction: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB of `[B, C, N]`, mean over the items: higher is closer.

    `10 log10(|a t|² / |a t - p|²)` with `a = <p, t> / |t|²` (Le Roux et al. 2019).
    """
    eps = 1e-8
    scale = (prediction * target).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + eps)
    projection = scale * target
    ratio = (projection.square().sum(-1) + eps) / ((projection - prediction).square().sum(-1) + eps)
    return 10 * ratio.log10().mean()


def log_relative_error(prediction: Tensor, target: Tensor) -> Tensor:
    """`ln((|p - t|² + e) / (|t|² + e))`, mean over items `[B, C, N]`; e is the energy of white noise at -80 dBFS.

    The logarithm pulls as hard at an error of -30 dB as at one of 0 dB, so the waveform stays close while other terms
    work on what lies far below it.
    """
    floor = 1e-8 * target.shape[-1]
    error = (prediction - target).square().sum(-1) + floor
    return (error / (target.square().sum(-1) + floor)).log().mean()


@dataclass(frozen=True)
class CodecTraining:
    """How long and how to train. The learning rate warms up over 100 steps, then falls along a cosine to a 50th."""

    steps: int | None  # stop after so many steps …
    minutes: float | None  # … or so many minutes, whichever comes first
    batch_size: int
    learning_rate: float
    validate_every: int  # steps

    def progress(self, step: int, seconds: float) -> float:
        """Share of the training that is done, 0 to 1."""
        shares = [step / self.steps] if self.steps is not None else []
        shares += [seconds / (60 * self.minutes)] if self.minutes is not None else []
        return min(max(shares), 1.0)

    def rate(self, step: int, progress: float) -> float:
        """Learning rate at a step."""
        return self.learning_rate * min((step + 1) / 100, 1) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


class CodecTrainer:
    """Trains an encoder and a decoder as a continuous autoencoder; parameters that need no gradient stay as they are.

    `rates` gives for some parameters (`encoder.<name>`, `decoder.<name>`) each element's share of the learning rate:
    0 for constant elements.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        rates: Mapping[str, Tensor],
        objective: Loss,
        settings: CodecTraining,
    ) -> None:
        self.encoder, self.decoder = encoder, decoder
        self.objective, self.settings = objective, settings
        named = {f"encoder.{name}": parameter for name, parameter in encoder.named_parameters()}
        named |= {f"decoder.{name}": parameter for name, parameter in decoder.named_parameters()}
        trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        self.parameters = list(trained.values())
        self.slowed = [(parameter, rates[name]) for name, parameter in trained.items() if name in rates]
        self.optimiser = torch.optim.Adam(self.parameters, lr=settings.learning_rate, betas=(0.8, 0.99))

    def fit(
        self,
        sampler: CropSampler,
        validate: Callable[[], float],
        on_step: Callable[[int, float, float], None],
        on_best: Callable[[], None],
    ) -> int:
        """Train to the end of the settings; returns the number of steps.

        Args:
            sampler: where the crops come from.
            validate: figure on the held-out files, lower is better; called before the first step, every
                `validate_every` steps and at the end.
            on_step: called with (steps done, share done, training loss).
            on_best: called when validation is better than ever before, to save.

        Raises:
            EncoreError: the loss is not finite for ten steps in a row.
        """
        best, step, bad, progress = validate(), 0, 0, 0.0
        on_best()
        began = time.monotonic()
        while progress < 1:
            for group in self.optimiser.param_groups:
                group["lr"] = self.settings.rate(step, progress)
            loss = self._step(sampler.batch(self.settings.batch_size))
            bad = 0 if math.isfinite(loss) else bad + 1
            if bad == 10:
                raise EncoreError("the training loss is not finite: lower --lr; the best weights so far are saved")
            step += 1
            progress = self.settings.progress(step, time.monotonic() - began)
            on_step(step, progress, loss)
            if step % self.settings.validate_every == 0 or progress == 1:
                figure = validate()
                if figure < best:
                    best = figure
                    on_best()
        return step

    def _step(self, audio: Tensor) -> float:
        prediction = self.decoder(self.encoder(audio))
        loss = self.objective(prediction[..., : audio.shape[-1]], audio)
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if torch.isfinite(norm):
            # Adam's step does not depend on a gradient's scale, so it is the step that is scaled.
            before = [parameter.detach().clone() for parameter, _ in self.slowed]
            self.optimiser.step()
            for (parameter, rate), old in zip(self.slowed, before, strict=True):
                parameter.data = torch.lerp(old, parameter.data, rate)
        return float(loss.detach())


@torch.no_grad()
def reconstruct(encoder: nn.Module, decoder: nn.Module, audio: Tensor) -> Tensor:
    """`decode(encode(audio))` of `[C, N]`, cut to the same length."""
    return decoder(encoder(audio[None]))[0, :, : audio.shape[-1]]


@torch.no_grad()
def measure(
    encoder: nn.Module, decoder: nn.Module, crops: Sequence[Tensor], figures: Mapping[str, Loss]
) -> dict[str, float]:
    """Mean of each figure over the crops, of the codec as it will be stored: in half precision."""
    encoder, decoder = (_rounded(module) for module in (encoder, decoder))
    totals = dict.fromkeys(figures, 0.0)
    for crop in crops:
        prediction = reconstruct(encoder, decoder, crop)[None]
        for name, figure in figures.items():
            totals[name] += float(figure(prediction, crop[None])) / len(crops)
    return totals


def _rounded(module: nn.Module) -> nn.Module:
    rounded = copy.deepcopy(module)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.half().float()
    return rounded
