#!/usr/bin/env python3
"""Continues a song with a trained model: audio, a picture, a listening page, and the losses against the truth."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor, nn

import losses
from encore import cli
from encore.audio import read_audio, write_wav
from encore.checkpoint import Generator, load_generator, loss_options
from encore.config import ADVERSARIAL, TrainConfig, registered_name
from encore.errors import EncoreError, make_folder
from encore.page import Exhibit, Table, write_page
from encore.pictures import spectrograms
from encore.sampling import Continuation, continue_song, reconstruct

BEST = "checkpoints/best_model.pt"  # the artifact of a training run
LEAST_TRUTH_SECONDS = 0.25  # below this there is too little to compare
CODEC = "Truth through the codec"
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
    output: Annotated[Path, typer.Option("--output", help="folder for the results")] = Path("out"),
    codec_repository: Annotated[
        Path | None, typer.Option("--codec_repository", help="folder with the pretrained codecs' files")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda; default: a GPU if there is one")] = None,
) -> None:
    """Continue a song: writes continuation.wav, full.wav, spectrogram.png and index.html."""
    check_options(checkpoint, run_id, seconds, start, metrics)
    make_folder(output, "--output")
    place = choose_device(device)
    if checkpoint is not None:
        generator = load_generator(checkpoint, place, codec_repository)
    else:
        assert run_id is not None
        with tempfile.TemporaryDirectory() as folder:
            generator = load_generator(download_best(run_id, mlflow_uri, Path(folder)), place, codec_repository)
    codec = generator.codec
    song, truth = read_song(input, start, target, seconds, codec.sample_rate, codec.channels)
    measures = {} if truth is None else measures_of(generator, metrics, truth.to(place))
    made = continue_song(generator.model, codec, song, seconds, generator.segment_frames)

    signals = {"Input": made.context, "Continuation": made.audio}
    if truth is not None:
        signals |= {"Truth": truth, CODEC: reconstruct(codec, truth, generator.segment_frames)}
    table = None if truth is None else loss_table(signals, codec.sample_rate, measures, place)
    write_wav(output / "continuation.wav", made.audio, codec.sample_rate)
    write_wav(output / "full.wav", made.full, codec.sample_rate)
    spectrograms(signals, codec.sample_rate, output / "spectrogram.png")
    facts = {
        "Song": input.name,
        "Continued from": f"{song.shape[-1] / codec.sample_rate:.2f} s",
        "Model": f"run {run_id}" if checkpoint is None else str(checkpoint),
        "Window": f"{generator.segment_frames / codec.frame_rate:.2f} s",
        "Codec": f"{generator.config.codec}, {codec.sample_rate} Hz",
    }
    exhibits = describe(made, signals, codec.sample_rate)
    write_page(output / "index.html", f"{input.stem}, continued", facts, exhibits, codec.sample_rate, table)
    report(table, output)


def check_options(
    checkpoint: Path | None, run_id: str | None, seconds: float, start: float | None, metrics: str | None
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
    unknown = [name for name in named(metrics or "") if name not in losses.REGISTRY]
    if unknown:
        problems.append(f"--metrics {','.join(unknown)}: no such loss; there are {', '.join(losses.REGISTRY)}")
    if problems:
        raise EncoreError("\n".join(problems))


def choose_device(name: str | None) -> torch.device:
    """The named device, else a GPU if there is one, else the CPU.

    Raises:
        EncoreError: there is no such device here.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EncoreError(f"--device {name}: not a device of this machine; give cpu, or cuda with a GPU") from error
    return device


def download_best(run_id: str, uri: str, folder: Path) -> Path:
    """Fetches a run's best checkpoint into `folder`.

    Raises:
        EncoreError: no such store, run or artifact, or the server can't be reached.
    """
    store = uri.removeprefix("sqlite:///")
    if store != uri and not Path(store).is_file():
        # MLflow would make an empty one.
        raise EncoreError(f"--mlflow_uri {uri}: no such file; name the store that the run was logged to")
    # The default retries for minutes before it says that a server can't be reached.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Importing MLflow takes seconds, so only who needs it does.
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        return Path(client.download_artifacts(run_id, BEST, str(folder)))
    except (MlflowException, OSError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise EncoreError(f"--run_id {run_id}: {BEST} can't be had from --mlflow_uri {uri} ({reason})") from error


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


def named(metrics: str) -> list[str]:
    """The names of a list a,b,c."""
    return [name.strip() for name in metrics.split(",") if name.strip()]


def trained_names(config: TrainConfig) -> set[str]:
    """The losses that a run was trained on and measured by."""
    components = {name for name, weight in config.loss_weights.items() if weight} | set(config.metric_names)
    return {registered_name(name) for name in components - {*ADVERSARIAL}}


def measures_of(generator: Generator, metrics: str | None, truth: Tensor) -> dict[str, nn.Module]:
    """The losses of the table, by name, each tried on the truth `[C, N]` before there is anything to lose.

    One of the run's that can't be computed here is left out, and said.

    Raises:
        EncoreError: losses of --metrics that can't be computed here, a line each: another package, more samples or
            channels needed.
    """
    config, codec = generator.config, generator.codec
    wanted = ALWAYS | trained_names(config) if metrics is None else set(named(metrics))
    measures: dict[str, nn.Module] = {}
    problems = []
    for name in losses.REGISTRY:
        if name not in wanted:
            continue
        try:
            loss = losses.create(name, codec.sample_rate, **loss_options(config, codec, name)).to(truth.device)
            loss(truth[None], truth[None])
            measures[name] = loss
        except (ImportError, OSError, ValueError) as error:
            if metrics is None:  # nobody asked for it by name
                print(f"the table is without {name}: {error}", file=sys.stderr)
            else:
                problems.append(f"--metrics {name}: {error}")
    if problems:
        raise EncoreError("\n".join(problems))
    return measures


@torch.no_grad()
def loss_table(
    signals: dict[str, Tensor], sample_rate: int, measures: dict[str, nn.Module], device: torch.device
) -> Table:
    """Losses against the truth, over as much as there is of it.

    For the continuation, the codec's reconstruction of the truth (no model gets below that by its own merit) and the
    input played again, from its beginning and as often as it takes.
    """
    truth, context = signals["Truth"].to(device), signals["Input"]
    samples = truth.shape[-1]
    copy = context.repeat(1, math.ceil(samples / context.shape[-1]))
    columns = {"Continuation": signals["Continuation"], CODEC: signals[CODEC], "Copy of the input": copy}
    compared = [audio[None, :, :samples].to(device) for audio in columns.values()]
    rows = {name: [float(loss(audio, truth[None])) for audio in compared] for name, loss in measures.items()}
    caption = f"Against the truth, over {samples / sample_rate:.2f} s; lower is better."
    return Table(caption, list(columns), rows, {name: losses.REGISTRY[name].summary for name in measures})


def describe(made: Continuation, signals: dict[str, Tensor], sample_rate: int) -> list[Exhibit]:
    """The sounds of the page, in order, each with what it is."""
    seam = made.context.shape[-1] / sample_rate
    notes = {
        "Input": "What the model was given: the song, up to where it is to be continued.",
        "Continuation": "What the model makes of it.",
        "Truth": "How the music really goes on.",
        CODEC: "The truth, encoded and decoded: as good as the codec lets a continuation sound.",
    }
    whole = Exhibit("The song, then its continuation", f"The continuation begins at {seam:.2f} s.", made.full)
    return [whole, *(Exhibit(title, notes[title], audio) for title, audio in signals.items())]


def report(table: Table | None, output: Path) -> None:
    """Prints the losses and where the results are."""
    console = Console(highlight=False)
    if table is not None:
        shown = RichTable("loss", title=table.caption, box=box.SIMPLE_HEAD, title_justify="left")
        for column in table.columns:
            shown.add_column(column, justify="right")
        for name, values in table.rows.items():
            shown.add_row(name, *(f"{value:.4f}" for value in values))
        console.print(shown)
    console.print(f"listen: {output / 'index.html'}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    cli.run(app)
