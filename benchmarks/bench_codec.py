"""Prints the metrics of a codec's card: `python -m benchmarks.bench_codec MUSIC_FOLDER`.

The middle of each file is encoded and decoded by the codec, by its initialisation and by the linear codec alone. The
output has the means of all metrics, also with noise added to the latents, and the level of decoded silence.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from encore.audio import find_audio_files, read_audio
from encore.codecs import Codec, load_codec
from encore.codecs.encodec import SEANetCodec
from encore.codecs.starter.dct_init import coefficient_deviations, initialise_linear_path
from encore.codecs.starter.texture_init import initialise_texture
from encore.codecs.starter.weights import Architecture
from encore.config.cli import new_app, run
from losses import SpectralLoss, functional

app = new_app()

NOISE = 0.3  # standard deviation, in units of each latent's own over the music


def card_metrics(prediction: Tensor, target: Tensor, sample_rate: int) -> dict[str, float]:
    """The metrics of the card, for audio `[1, C, N]`."""
    return {
        "SI-SDR (dB)": -float(functional.si_sdr(prediction, target, zero_mean=False)),
        "multi-resolution STFT": float(SpectralLoss()(prediction, target)),
        "mel to 8 kHz": float(functional.mel(prediction, target, sample_rate)),
        "mel to 12 kHz": float(functional.mel(prediction, target, sample_rate, f_max=12000.0)),
        "mel 4.5-12 kHz": float(
            functional.mel(prediction, target, sample_rate, n_mels=24, f_min=4500.0, f_max=12000.0)
        ),
    }


def mean_card_metrics(codec: Codec, latents: list[Tensor], recordings: list[Tensor]) -> dict[str, float]:
    """Mean of each metric over recordings `[1, C, N]`, decoded from their latents `[1, D, T]`."""
    rows = [
        card_metrics(codec.decode(item)[..., : audio.shape[-1]], audio, codec.sample_rate)
        for item, audio in zip(latents, recordings, strict=True)
    ]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def untrained_codec(recordings: list[Tensor], coefficients: int, texture: bool) -> Codec:
    """The initialisation of a starter codec, with or without texture, in half precision as it would be stored."""
    architecture = Architecture()
    encoder, decoder = architecture.build()
    audio = torch.cat([recording[0].mean(0) for recording in recordings])
    deviations = coefficient_deviations(audio, math.prod(architecture.ratios), coefficients)
    rates = initialise_linear_path(encoder, decoder, deviations)
    if texture:
        initialise_texture(encoder, decoder, coefficients, audio, rates, seed=0)
    return SEANetCodec(encoder.half().float(), decoder.half().float(), architecture.sample_rate, architecture.channels)


def middle(audio: Tensor, samples: int) -> Tensor:
    """The middle `samples` of `[C, N]`, or all of a shorter recording."""
    start = max(audio.shape[-1] - samples, 0) // 2
    return audio[:, start : start + samples]


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="folder of audio files, searched to any depth")],
    codec: Annotated[str, typer.Option("--codec", help="starter, or the path of a codec's weights")] = "starter",
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="of the middle of each file")] = 20.0,
) -> None:
    """Print how well a codec reconstructs the music of a folder."""
    torch.manual_seed(0)
    model = load_codec(codec)
    files = find_audio_files(folder)
    length = int(seconds * model.sample_rate)
    recordings = [middle(read_audio(path, model.sample_rate, model.channels), length)[None] for path in files]
    console = Console(width=140)
    rows: dict[str, dict[str, float]] = {}
    codecs = {
        "trained": model,
        "untrained start": untrained_codec(recordings, 120, texture=True),
        "linear, 120 coefficients": untrained_codec(recordings, 120, texture=False),
        "linear, 128 coefficients": untrained_codec(recordings, 128, texture=False),
    }
    with torch.no_grad():
        for name, each in codecs.items():
            latents = [each.encode(audio) for audio in recordings]
            deviation = torch.cat(latents, -1).std((0, 2))[:, None]
            off = [item + NOISE * deviation * torch.randn_like(item) for item in latents]
            rows[name] = mean_card_metrics(each, latents, recordings)
            rows[f"{name}, latents off by {NOISE}"] = mean_card_metrics(each, off, recordings)
        latents = [model.encode(audio) for audio in recordings]
        deviation = torch.cat(latents, -1).std((0, 2))
        table = Table("mean over the files", *next(iter(rows.values())))
        for name, row in rows.items():
            table.add_row(name, *(f"{value:.3f}" for value in row.values()))
        console.print(
            f"{len(files)} files, {sum(r.shape[-1] for r in recordings) / model.sample_rate / 60:.1f} minutes"
        )
        console.print(table)
        silence = model.decode(model.encode(torch.zeros(1, model.channels, 2 * model.sample_rate)))
        console.print(f"decoded silence: peak {20 * math.log10(float(silence.abs().max()) + 1e-9):.1f} dBFS")
        console.print(f"latents' standard deviation: {deviation.min():.2f} to {deviation.max():.2f}")
        console.print(f"frames needed before a crop (-60 dB): {model.measure_margin(latents[0])}")
        began = time.perf_counter()
        model.decode(latents[0])
        speed = recordings[0].shape[-1] / model.sample_rate / (time.perf_counter() - began)
        console.print(f"decoding: {speed:.0f} times real time on {torch.get_num_threads()} thread(s)")


if __name__ == "__main__":
    run(app)
