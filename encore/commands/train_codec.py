"""Trains a small codec of our own on a folder of music: `python train_codec.py AUDIO_FOLDER --output weights`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from encore.audio import find_audio_files, read_audio
from encore.codecs.starter.dct_init import coefficient_deviations, initialise_linear_path
from encore.codecs.starter.texture_init import initialise_texture
from encore.codecs.starter.trainer import (
    LEAST_SECONDS,
    CodecTrainer,
    CodecTraining,
    CropSampler,
    excerpts,
    log_relative_error,
    measure,
    si_sdr,
    split_files,
    validation_crops,
)
from encore.codecs.starter.weights import Architecture, save_codec
from encore.config.cli import new_app, run
from encore.errors import EncoreError
from losses import MelLoss, SpectralLoss, functional

app = new_app()

MEL_SIZES = ((2048, 160), (1024, 80), (512, 48), (256, 24))  # FFT size, bands
STATISTICS_SECONDS = 600


class Init(str, Enum):
    """Where training starts."""

    dct = "dct"
    random = "random"


@app.command()
def main(
    audio_folder: Annotated[Path, typer.Argument(help="folder of wav, flac, ogg, mp3 files, to any depth")],
    output: Annotated[Path, typer.Option("--output", help="folder that codec.safetensors is written to")],
    init: Annotated[
        Init, typer.Option("--init", help="dct: start as an exact linear codec; random: from nothing")
    ] = Init.dct,
    n_filters: Annotated[int, typer.Option("--n_filters", min=1, help="channels of the widest-band layers")] = 16,
    dimension: Annotated[int, typer.Option("--dimension", min=1, help="latent channels")] = 128,
    coefficients: Annotated[
        int, typer.Option("--coefficients", min=1, help="with dct: latents that hold DCT coefficients, the lowest ones")
    ] = 120,
    minutes: Annotated[float | None, typer.Option("--minutes", help="stop after so many minutes")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="stop after so many steps")] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="crops per step")] = 8,
    crop_seconds: Annotated[float, typer.Option("--crop_seconds", help="length of a crop in seconds")] = 0.8,
    lr: Annotated[float, typer.Option("--lr", help="highest learning rate")] = 3e-4,
    val_fraction: Annotated[float, typer.Option("--val_fraction", help="share of the files held out, 0 to 1")] = 0.12,
    validate_every: Annotated[int, typer.Option("--validate_every", min=1, help="steps between validations")] = 250,
    seed: Annotated[int, typer.Option("--seed", help="of the split, the start and the crops")] = 0,
) -> None:
    """Train a continuous autoencoder (24 kHz, mono, causal) and keep the best weights on held-out files."""
    problems = []
    if minutes is None and steps is None:
        problems.append("give --minutes or --steps, or both: training has no other end")
    if minutes is not None and minutes <= 0:
        problems.append(f"--minutes {minutes:g}: must be above 0")
    if not 0 < val_fraction < 1:
        problems.append(f"--val_fraction {val_fraction:g}: must lie between 0 and 1")
    if crop_seconds < LEAST_SECONDS:
        problems.append(f"--crop_seconds {crop_seconds:g}: must be at least {LEAST_SECONDS}, the losses need that much")
    if lr <= 0:
        problems.append(f"--lr {lr:g}: must be above 0")
    if problems:
        raise EncoreError("\n".join(problems))
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EncoreError(f"--output {output}: can't be made a folder ({error.strerror})") from error

    torch.manual_seed(seed)
    architecture = Architecture(n_filters=n_filters, dimension=dimension)
    rate = architecture.sample_rate
    train_files, val_files = split_files(find_audio_files(audio_folder), val_fraction, seed)
    console = Console(highlight=False, soft_wrap=True)
    for path in val_files:
        console.print(f"held out: {path.relative_to(audio_folder)}", markup=False)
    recordings = [read_audio(path, rate, architecture.channels) for path in train_files]
    held_out = validation_crops([read_audio(path, rate, architecture.channels) for path in val_files], rate)
    sampler = CropSampler(recordings, int(crop_seconds * rate), seed)

    encoder, decoder = architecture.build()
    rates: dict[str, Tensor] = {}
    if init is Init.dct:
        examples = excerpts(recordings, STATISTICS_SECONDS * rate)
        block = math.prod(architecture.ratios)
        rates = initialise_linear_path(encoder, decoder, coefficient_deviations(examples, block, coefficients))
        initialise_texture(encoder, decoder, coefficients, examples, rates, seed)
        encoder.requires_grad_(False)  # all latents are set: only the decoder has something to learn

    def objective(prediction: Tensor, target: Tensor) -> Tensor:
        mel = sum(
            functional.mel(prediction, target, rate, size, size // 4, bands, 0.0, rate / 2) for size, bands in MEL_SIZES
        )
        return mel.mean() / len(MEL_SIZES) + 0.3 * log_relative_error(prediction, target)  # type: ignore[union-attr]

    figures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "objective": objective,
        "si_sdr": si_sdr,
        "spectral": SpectralLoss(),
        "mel": MelLoss(rate),
    }
    settings = CodecTraining(steps, minutes, batch_size, lr, validate_every)
    target_file = output / "codec.safetensors"
    began, done = time.monotonic(), 0
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=1.0)

        def on_step(step: int, progress: float, loss: float) -> None:
            nonlocal done
            done = step
            bar.update(task, completed=progress, description=f"step {step}, loss {loss:.3f}")

        def validate() -> float:
            measured = measure(encoder, decoder, held_out, figures)
            values = ", ".join(f"{name}: {value:.4f}" for name, value in measured.items())
            console.print(f"step {done}, {(time.monotonic() - began) / 60:.1f} min: {values}")
            return measured["objective"]

        trainer = CodecTrainer(encoder, decoder, rates, objective, settings)
        trainer.fit(sampler, validate, on_step, lambda: save_codec(target_file, architecture, encoder, decoder))
    console.print(f"wrote {target_file}")


if __name__ == "__main__":
    run(app)
