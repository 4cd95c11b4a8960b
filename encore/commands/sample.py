#!/usr/bin/env python3
"""Continues a song with a trained model: audio, a picture, a listening page, and the losses against the truth."""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

import losses
from encore.audio import read_audio
from encore.codecs.losses import build_losses
from encore.config import cli
from encore.config.schema import listed
from encore.errors import EncoreError, make_folder
from encore.inference.continuation import reconstruct, stream_song
from encore.inference.presentation import CODEC, describe, describe_candidates, print_table, titles
from encore.inference.streaming import record
from encore.models.loading import Generator, choose_device, load_generator
from encore.reporting.html import Table, write_page
from encore.reporting.spectrograms import spectrograms
from encore.tracking import download_artifact

BEST = "checkpoints/best_model.pt"  # the artifact of a training run
SHOWN_SECONDS = 60.0  # of a continuation, at most, in picture, page and table
GREATEST_SEED = 2**32 - 1
STOPPED = 130  # exit status after Ctrl-C, as shells have it
LEAST_TRUTH_SECONDS = 0.25  # below this there is too little to compare
ALWAYS = {"rms", "spectral", "mel"}  # in every table, whatever a model was trained on

app = cli.new_app()


@app.command()
def sample(
    input: Annotated[Path, typer.Option("--input", help="song to continue: wav, flac, ogg or mp3")],
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", help="checkpoint of a training run")] = None,
    run_id: Annotated[str | None, typer.Option("--run_id", help="MLflow run whose best checkpoint to use")] = None,
    mlflow_uri: Annotated[
        str, typer.Option("--mlflow_uri", help="MLflow tracking server or store of --run_id")
    ] = "sqlite:///mlflow.db",
    seconds: Annotated[float, typer.Option("--seconds", help="length of the continuation in seconds")] = 16.0,
    start: Annotated[
        float | None, typer.Option("--start", help="second of the song where it begins; default: the song's end")
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--target", help="the true continuation, if it isn't the song's own")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="losses of the table: a,b,c; default: the training run's")
    ] = None,
    candidates: Annotated[
        int, typer.Option("--candidates", help="continuations to make, each from a seed of its own")
    ] = 1,
    seed: Annotated[
        int, typer.Option("--seed", help="seed of the first candidate; the next ones have the seeds after it")
    ] = 0,
    temperature: Annotated[
        float,
        typer.Option("--temperature", help="scale of the noise; at 0 candidates differ in what their prior draws only"),
    ] = 1.0,
    stream: Annotated[
        bool, typer.Option("--stream", help="write the wavs while they are made, to be listened to; Ctrl-C ends it")
    ] = False,
    output: Annotated[Path, typer.Option("--output", help="folder for the results")] = Path("out"),
    codec_repository: Annotated[
        Path | None, typer.Option("--codec_repository", help="folder with the pretrained codecs' files")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda; default: a GPU if there is one")] = None,
) -> None:
    """Continue a song: writes continuation.wav, full.wav, spectrogram.png and index.html.

    full.wav has the end of the song in front. Further candidates are continuation_2.wav, full_2.wav and so on. A
    continuation may be as long as the disk allows; picture, page and table are of its first minute.
    """
    check_options(checkpoint, run_id, seconds, start, metrics, candidates, seed, temperature)
    make_folder(output, "--output")
    place = choose_device(device)
    if checkpoint is not None:
        generator = load_generator(checkpoint, place, codec_repository)
    else:
        assert run_id is not None
        with tempfile.TemporaryDirectory() as folder:
            best = download_artifact(mlflow_uri, run_id, BEST, Path(folder))
            generator = load_generator(best, place, codec_repository)
    check_generative(generator, candidates, temperature)
    codec = generator.codec
    shown = min(seconds, SHOWN_SECONDS)
    song, truth = read_song(input, start, target, shown, codec.sample_rate, codec.channels)
    measures = {} if truth is None else table_losses(generator, metrics, truth.to(place))
    seeds = range(seed, seed + candidates)
    context, pieces = stream_song(generator, song, seconds, seeds, temperature)
    console = Console(highlight=False)
    made = record(
        context,
        pieces,
        round(seconds * codec.sample_rate),
        codec.sample_rate,
        output,
        round(shown * codec.sample_rate),
        stream,
        console,
    )

    continuations = dict(zip(titles(candidates), made.beginning.audio, strict=True))
    signals = {"Input": context, **continuations}
    if truth is not None and made.samples < truth.shape[-1]:
        truth = None  # the stream was stopped too early to be compared
    if truth is not None:
        signals |= {"Truth": truth, CODEC: reconstruct(codec, truth, generator.segment_frames)}
    table = None if truth is None else loss_table(signals, list(continuations), codec.sample_rate, measures, place)
    spectrograms(signals, codec.sample_rate, output / "spectrogram.png")
    facts = {
        "Song": input.name,
        "Continued from": f"{song.shape[-1] / codec.sample_rate:.2f} s",
        "Made": f"{made.samples / codec.sample_rate:.2f} s",
        "Model": f"run {run_id}" if checkpoint is None else str(checkpoint),
        "Window": f"{generator.segment_frames / codec.frame_rate:.2f} s",
        "Codec": f"{generator.config.codec.name}, {codec.sample_rate} Hz",
    }
    if generator.generation.generative:
        facts |= {"Seeds": ", ".join(map(str, seeds)), "Temperature": f"{temperature:g}"}
    samples = describe(made, signals, codec.sample_rate)
    heard = [] if candidates == 1 else describe_candidates(made, seeds, codec.sample_rate)
    write_page(output / "index.html", f"{input.stem}, continued", facts, samples, codec.sample_rate, table, heard)
    if table is not None:
        print_table(console, table)
    console.print(f"listen: {output / 'index.html'}", soft_wrap=True, markup=False)
    if not made.complete:
        far = made.samples / codec.sample_rate
        console.print(f"stopped after {far:.2f} of {seconds:g} s; the files hold that much", soft_wrap=True)
        raise typer.Exit(STOPPED)


def check_options(
    checkpoint: Path | None,
    run_id: str | None,
    seconds: float,
    start: float | None,
    metrics: str | None,
    candidates: int,
    seed: int,
    temperature: float,
) -> None:
    """Raises EncoreError with all that is wrong with the flags themselves."""
    problems = []
    if (checkpoint is None) == (run_id is None):
        found = "neither is" if checkpoint is None else "both are"
        problems.append(f"--checkpoint, --run_id: {found} given; name a checkpoint or an MLflow run, one of the two")
    if checkpoint is not None and not checkpoint.is_file():
        problems.append(f"--checkpoint {checkpoint}: no such file; training writes CHECKPOINT_DIR/best_model.pt")
    if not 0 < seconds < math.inf:
        problems.append(f"--seconds {seconds:g}: must be a finite number above 0")
    if start is not None and not 0 < start < math.inf:
        problems.append(f"--start {start:g}: must be a second of the song above 0")
    if candidates < 1:
        problems.append(f"--candidates {candidates}: must be at least 1")
    if not 0 <= seed <= GREATEST_SEED:
        problems.append(f"--seed {seed}: must be a whole number from 0 to {GREATEST_SEED}")
    if not 0 <= temperature < math.inf:
        problems.append(f"--temperature {temperature:g}: must be a finite number of at least 0")
    unknown = [name for name in listed(metrics or "") if name not in losses.REGISTRY]
    if unknown:
        problems.append(f"--metrics {','.join(unknown)}: no such loss; there are {', '.join(losses.REGISTRY)}")
    if problems:
        raise EncoreError("\n".join(problems))


def check_generative(generator: Generator, candidates: int, temperature: float) -> None:
    """Raises EncoreError if a model that draws nothing is asked for several candidates, or for more or less noise."""
    if generator.generation.generative:
        return
    given = {"--candidates": (candidates, 1), "--temperature": (temperature, 1)}
    problems = [
        f"{flag} {value:g}: this model was trained with --objective regression and makes one continuation only, "
        "without noise; leave the flag out, or train with --objective energy"
        for flag, (value, neutral) in given.items()
        if value != neutral
    ]
    if problems:
        raise EncoreError("\n".join(problems))


def read_song(
    path: Path, start: float | None, target: Path | None, seconds: float, sample_rate: int, channels: int
) -> tuple[Tensor, Tensor | None]:
    """The song up to where it is to be continued, and what truly follows: both `[C, N]`.

    The truth is at most `round(seconds * sample_rate)` samples of `target`, else of what the song has after `start`
    (None if that is hardly anything).

    Raises:
        EncoreError: a file can't be read, `start` lies beyond the song's end, or the target is hardly anything.
    """
    song = read_audio(path, sample_rate, channels)
    duration = song.shape[-1] / sample_rate
    if start is not None and start > duration:
        raise EncoreError(f"--start {start:g}: {path} ends at {duration:.2f} s; give an earlier second")
    end = song.shape[-1] if start is None else round(start * sample_rate)
    truth = song[:, end:] if target is None else read_audio(target, sample_rate, channels)
    truth = truth[:, : round(seconds * sample_rate)]
    if truth.shape[-1] >= LEAST_TRUTH_SECONDS * sample_rate:
        return song[:, :end], truth
    if target is not None:
        length = truth.shape[-1] / sample_rate
        raise EncoreError(f"--target {target}: only {length:.2f} s to compare; at least {LEAST_TRUTH_SECONDS} s needed")
    return song[:, :end], None


def table_losses(generator: Generator, metrics: str | None, truth: Tensor) -> dict[str, nn.Module]:
    """The losses of the table, by name, each tried on the truth `[C, N]` before anything is generated.

    One of the training run's that cannot be computed here is left out, with a message.

    Raises:
        EncoreError: losses of --metrics that cannot be computed here, a line each: another package, more samples or
            channels needed.
    """
    wanted = ALWAYS | generator.config.objective.loss_names if metrics is None else set(listed(metrics))
    built, problems = build_losses(wanted, generator.config.objective, generator.codec, truth[None])
    if metrics is not None and problems:
        raise EncoreError("\n".join(f"--metrics {name}: {problem}" for name, problem in problems.items()))
    for name, problem in problems.items():  # of losses that nobody asked for by name
        print(f"the table is without {name}: {problem}", file=sys.stderr)
    return built


@torch.no_grad()
def loss_table(
    signals: dict[str, Tensor],
    continuations: list[str],
    sample_rate: int,
    measures: dict[str, nn.Module],
    device: torch.device,
) -> Table:
    """Losses against the truth, over as much as there is of it.

    For each continuation, the codec's reconstruction of the truth (no model gets below that by its own merit) and the
    input played again, from its beginning and as often as it takes.
    """
    truth, context = signals["Truth"].to(device), signals["Input"]
    samples = truth.shape[-1]
    copy = context.repeat(1, math.ceil(samples / context.shape[-1]))
    columns = {**{name: signals[name] for name in continuations}, CODEC: signals[CODEC], "Copy of the input": copy}
    compared = [audio[None, :, :samples].to(device) for audio in columns.values()]
    rows = {name: [float(loss(audio, truth[None])) for audio in compared] for name, loss in measures.items()}
    caption = f"Against the truth, over {samples / sample_rate:.2f} s; lower is better."
    if len(continuations) > 1:
        caption += " The best candidate's value is marked."
    notes = {name: losses.REGISTRY[name].summary for name in measures}
    return Table(caption, list(columns), rows, notes, rivals=len(continuations))


if __name__ == "__main__":
    cli.run(app)
