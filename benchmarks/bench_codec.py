"""Prints the metrics of a codec's card: `python -m benchmarks.bench_codec MUSIC_FOLDER [--codec encodec_24khz]`.

The middle of each file is encoded and decoded by the codec and, for a codec of train_codec.py, by its initialisation
and by its coefficients alone. The output has the means of all metrics, also with noise added to the latents, the level
of decoded silence, and what decoding costs.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from encore.audio import find_audio_files, read_audio
from encore.codecs import Codec, load_codec
from encore.codecs.starter.initialisation import initialise
from encore.codecs.starter.network import Architecture, StarterDecoder, StarterEncoder
from encore.codecs.starter.trainer import below, stored_codec
from encore.codecs.starter.weights import StarterCodec
from encore.config.cli import new_app, run
from losses import SpectralLoss, functional

app = new_app()

NOISE = 0.3  # standard deviation, in units of each latent's own over the music
LOW = 4800.0  # Hz, where one of the metrics ends
CROPS, CROP_SECONDS = 8, 0.5  # whose decoding is timed


def card_metrics(prediction: Tensor, target: Tensor, sample_rate: int) -> dict[str, float]:
    """The metrics of the card, for audio `[1, C, N]`."""
    low = below(prediction, LOW / sample_rate), below(target, LOW / sample_rate)
    return {
        "SI-SDR (dB)": -float(functional.si_sdr(prediction, target, zero_mean=False)),
        "SI-SDR below 4.8 kHz": -float(functional.si_sdr(*low, zero_mean=False)),
        "multi-resolution STFT": float(SpectralLoss()(prediction, target)),
        "mel to 8 kHz": float(functional.mel(prediction, target, sample_rate)),
        "mel to 12 kHz": float(functional.mel(prediction, target, sample_rate, f_max=12000.0)),
        "mel 4.5-12 kHz": float(
            functional.mel(prediction, target, sample_rate, n_mels=24, f_min=4500.0, f_max=12000.0)
        ),
        "audible energy": float(functional.audible_energy(prediction, target, sample_rate)),
    }


def mean_card_metrics(codec: Codec, latents: list[Tensor], recordings: list[Tensor]) -> dict[str, float]:
    """Mean of each metric over recordings `[1, C, N]`, decoded from their latents `[1, D, T]`."""
    rows = [
        card_metrics(codec.decode(item)[..., : audio.shape[-1]], audio, codec.sample_rate)
        for item, audio in zip(latents, recordings, strict=True)
    ]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


@torch.no_grad()
def untrained_codec(recordings: Sequence[Tensor]) -> Codec:
    """The initialisation of a starter codec by recordings `[1, N]`, in half precision as it would be stored."""
    torch.manual_seed(0)
    architecture = Architecture()
    encoder, decoder = StarterEncoder(architecture), StarterDecoder(architecture)
    initialise(encoder, decoder, recordings)
    return stored_codec(architecture, encoder, decoder)


@torch.no_grad()
def coefficients_alone(codec: StarterCodec) -> StarterCodec:
    """A copy that decodes its coefficients and nothing else."""
    codec = copy.deepcopy(codec)
    for layer in (codec.decoder.rest, codec.decoder.carrier):
        for parameter in layer.parameters():
            parameter.zero_()
    return codec


def processor_time(codec: Codec, latents: Tensor, gradient: bool) -> float:
    """Processor seconds of decoding `[B, D, T]`, with or without the gradient, per second of audio: best of five."""
    best = math.inf
    for _ in range(5):
        given = latents.clone().requires_grad_(gradient)
        began = time.process_time()
        with torch.set_grad_enabled(gradient):
            audio = codec.decode(given)
            if gradient:
                audio.square().sum().backward()
        best = min(best, time.process_time() - began)
    return best * codec.frame_rate / (latents.shape[0] * latents.shape[2])


def middle(audio: Tensor, samples: int) -> Tensor:
    """The middle `samples` of `[C, N]`, or all of a shorter recording."""
    start = max(audio.shape[-1] - samples, 0) // 2
    return audio[:, start : start + samples]


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="folder of audio files, searched to any depth")],
    codec: Annotated[str, typer.Option("--codec", help="a codec's name, or the path of its weights")] = "starter",
    seconds: Annotated[float, typer.Option("--seconds", min=0.5, help="of the middle of each file")] = 20.0,
    repository: Annotated[
        Path | None, typer.Option("--codec_repository", help="folder with the weights of a pretrained codec")
    ] = None,
) -> None:
    """Print how well a codec reconstructs the music of a folder."""
    torch.manual_seed(0)
    model = load_codec(codec, repository)
    files = find_audio_files(folder)
    length = int(seconds * model.sample_rate)
    recordings = [middle(read_audio(path, model.sample_rate, model.channels), length)[None] for path in files]
    console = Console(width=160)
    console.print(f"{len(files)} files, {sum(r.shape[-1] for r in recordings) / model.sample_rate / 60:.1f} minutes")
    codecs: dict[str, Codec] = {"trained": model}
    if isinstance(model, StarterCodec):
        codecs["untrained start"] = untrained_codec([recording[0] for recording in recordings])
        codecs["coefficients alone"] = coefficients_alone(model)
    with torch.no_grad():
        console.print(metrics_table(codecs, recordings))
        silence = model.decode(model.encode(torch.zeros(1, model.channels, 2 * model.sample_rate)))
        latents = [model.encode(audio) for audio in recordings]
    deviation = torch.cat(latents, -1).std((0, 2))
    console.print(f"decoded silence: peak {20 * math.log10(float(silence.abs().max()) + 1e-9):.1f} dBFS")
    console.print(f"latents' standard deviation: {deviation.min():.2f} to {deviation.max():.2f}")
    console.print(f"frames needed before a crop (-60 dB): {model.measure_margin(latents[0])}")
    crop = latents[0][..., : round(CROP_SECONDS * model.frame_rate)].repeat(CROPS, 1, 1)
    for name, gradient in (("decoding", False), ("decoding and its gradient", True)):
        cost = processor_time(model, crop, gradient)
        console.print(f"{name}: {1000 * cost:.1f} ms of processor time per second of audio")


def metrics_table(codecs: dict[str, Codec], recordings: list[Tensor]) -> Table:
    """The means over recordings `[1, C, N]`, a row for each codec, and then one with noise on the latents."""
    rows: dict[str, dict[str, float]] = {}
    for name, codec in codecs.items():
        latents = [codec.encode(audio) for audio in recordings]
        deviation = torch.cat(latents, -1).std((0, 2))[:, None]
        off = [item + NOISE * deviation * torch.randn_like(item) for item in latents]
        rows[name] = mean_card_metrics(codec, latents, recordings)
        rows[f"{name}, latents off by {NOISE}"] = mean_card_metrics(codec, off, recordings)
    table = Table("mean over the files", *next(iter(rows.values())))
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.3f}" for value in row.values()))
    return table


if __name__ == "__main__":
    run(app)
