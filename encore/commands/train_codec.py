"""Trains a small codec on a folder of music: `python train_codec.py AUDIO_FOLDER --output weights`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from encore.audio import find_audio_files, read_audio
from encore.codecs.starter.initialisation import initialise
from encore.codecs.starter.network import BLOCK, EDGE, GROUP, PARTS, Architecture, StarterDecoder, StarterEncoder
from encore.codecs.starter.trainer import (
    MIN_SECONDS,
    CodecTrainer,
    CodecTraining,
    CropSampler,
    Loss,
    below,
    log_relative_error,
    mean_metrics,
    split_files,
    stored_codec,
    validation_crops,
)
from encore.codecs.starter.weights import save_codec
from encore.config import cli
from encore.config.knobs import MAX_COUNT, MAX_SEED, knob, problems_of
from encore.config.schema import MAX_RATE, MIN_RATE
from encore.errors import EncoreError, make_folder
from losses import AudibleEnergyLoss, MelLoss, SpectralLoss, functional

MEL_SIZES = ((2048, 160), (1024, 80), (512, 48), (256, 24))  # FFT size, bands
CUTOFF = 4800.0  # Hz; the waveform's relative error counts below it, too


@dataclass(frozen=True)
class TrainCodecConfig:
    """All settings of a codec's training. `output` has no default: `check` refuses None."""

    audio_folder: Path = knob(None, "folder of wav, flac, ogg and mp3 files, at any depth", argument=True)
    output: Path = knob(None, "folder that codec.safetensors is written to", common=True)
    coefficients: int = knob(
        120,
        "latents that hold coefficients of the waveform, of 320 a frame: its band up to 4.5 kHz",
        minimum=EDGE,
        maximum=BLOCK - 1,
        common=True,
    )
    envelopes: int = knob(
        8,
        "latents that hold the envelopes of the bands above",
        minimum=1,
        maximum=Architecture.bands + PARTS,
        common=True,
    )
    width: int = knob(384, "channels of the decoder's network", minimum=1, maximum=16384, common=True)
    layers: int = knob(3, "of the decoder's network; each looks back two frames", minimum=1, maximum=256, common=True)
    minutes: float | None = knob(
        None, "stop after so many minutes of processor time", minimum=1e-6, maximum=MAX_COUNT, common=True
    )
    steps: int | None = knob(None, "stop after so many steps", minimum=1, maximum=MAX_COUNT, common=True)
    batch_size: int = knob(8, "crops per step", minimum=1, maximum=65536, common=True)
    crop_seconds: float = knob(0.8, "length of a crop in seconds", minimum=MIN_SECONDS, maximum=3600, common=True)
    lr: float = knob(1e-3, "peak learning rate", minimum=MIN_RATE, maximum=MAX_RATE, common=True)
    val_fraction: float = knob(0.12, "share of the files held out, 0 to 1", minimum=1e-9, maximum=0.999, common=True)
    validate_every: int = knob(250, "steps between validations", minimum=1, maximum=MAX_COUNT, common=True)
    seed: int = knob(0, "seed of the split, the weights and the crops", minimum=0, maximum=MAX_SEED, common=True)

    def check(self) -> None:
        """Raises EncoreError with everything that is wrong with the settings, one line each."""
        problems = [] if self.output is not None else ["--output: missing; name a folder for the weights"]
        if self.minutes is None and self.steps is None:
            problems.append("--minutes, --steps: both are missing; give one of them, or training never ends")
        if self.coefficients % GROUP:
            problems.append(f"--coefficients {self.coefficients}: must be a multiple of {GROUP}")
        problems += problems_of(self)
        if problems:
            raise EncoreError("\n".join(problems))


@dataclass(frozen=True)
class Music:
    """Recordings `[C, N]` to train on, and crops of held-out ones."""

    recordings: list[Tensor]
    held_out: list[Tensor]


def main(config: TrainCodecConfig) -> None:
    """Train a continuous autoencoder (24 kHz, mono, causal) and keep the best weights on held-out files."""
    config.check()
    make_folder(config.output, "--output")
    torch.manual_seed(config.seed)
    architecture = Architecture(
        coefficients=config.coefficients, envelopes=config.envelopes, width=config.width, layers=config.layers
    )
    console = Console(highlight=False, soft_wrap=True)
    music = read_music(config, architecture, console)
    sampler = CropSampler(music.recordings, int(config.crop_seconds * architecture.sample_rate), config.seed)
    encoder, decoder = StarterEncoder(architecture), StarterDecoder(architecture)
    initialise(encoder, decoder, music.recordings)
    settings = CodecTraining(config.steps, config.minutes, config.batch_size, config.lr, config.validate_every)
    loss = partial(objective, sample_rate=architecture.sample_rate)
    trainer = CodecTrainer(encoder, decoder, loss, settings)
    path = config.output / "codec.safetensors"
    train(trainer, sampler, music.held_out, architecture, path, console)
    console.print(f"wrote {path}")


def train(
    trainer: CodecTrainer,
    sampler: CropSampler,
    held_out: Sequence[Tensor],
    architecture: Architecture,
    path: Path,
    console: Console,
) -> None:
    """Runs the training loop with a progress bar and a line per validation; the best weights are saved at `path`."""
    encoder, decoder = trainer.encoder, trainer.decoder
    metrics: dict[str, Loss] = {
        "objective": trainer.objective,
        "si_sdr": lambda prediction, target: -functional.si_sdr(prediction, target, zero_mean=False).mean(),
        "spectral": SpectralLoss(),
        "mel": MelLoss(architecture.sample_rate),
        "audible": AudibleEnergyLoss(architecture.sample_rate),
    }
    started, done = time.monotonic(), 0
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=1.0)

        def on_step(step: int, progress: float, value: float) -> None:
            nonlocal done
            done = step
            bar.update(task, completed=progress, description=f"step {step}, loss {value:.3f}")

        def validate() -> float:
            values = mean_metrics(stored_codec(architecture, encoder, decoder), held_out, metrics)
            listed = ", ".join(f"{name}: {value:.4f}" for name, value in values.items())
            console.print(f"step {done}, {(time.monotonic() - started) / 60:.1f} min: {listed}")
            return values["objective"]

        trainer.fit(sampler, validate, on_step, lambda: save_codec(path, architecture, encoder, decoder))


def read_music(config: TrainCodecConfig, architecture: Architecture, console: Console) -> Music:
    """Reads all files at the codec's rate and prints which are held out.

    Raises:
        EncoreError: fewer than two files, or one that cannot be read or held-out files that are too short.
    """
    rate, channels = architecture.sample_rate, 1
    train, val = split_files(find_audio_files(config.audio_folder), config.val_fraction, config.seed)
    for path in val:
        console.print(f"held out: {path.relative_to(config.audio_folder)}", markup=False)
    recordings = [read_audio(path, rate, channels) for path in train]
    return Music(recordings, validation_crops([read_audio(path, rate, channels) for path in val], rate))


def objective(prediction: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """What is minimised, the mean over items: how unlike the spectra are, and how far the waveforms are apart.

    Log-mel L1 at four resolutions + the multi-resolution STFT loss + 2 audible energy + 0.15 `log_relative_error` of
    the waveform + 0.15 of that below 4.8 kHz.
    """
    mel = prediction.new_zeros(len(prediction))
    for size, bands in MEL_SIZES:
        mel = mel + functional.mel(prediction, target, sample_rate, size, size // 4, bands, 0.0, sample_rate / 2)
    spectral = mel / len(MEL_SIZES) + functional.spectral(prediction, target)
    spectral = spectral + 2 * functional.audible_energy(prediction, target, sample_rate)
    low = below(prediction, CUTOFF / sample_rate), below(target, CUTOFF / sample_rate)
    return spectral.mean() + 0.15 * (log_relative_error(prediction, target) + log_relative_error(*low))


app = cli.new_app()
cli.add_command(app, TrainCodecConfig, main)

if __name__ == "__main__":
    cli.run(app)
