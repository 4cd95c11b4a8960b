"""Continues a song with a trained model: audio, spectrograms, a listening page, and the losses against the truth."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import typer
from rich.console import Console
from torch import Tensor

from encore.config import cli
from encore.config.cli import print_error
from encore.errors import EncoreError, disk_space, make_folder
from encore.inference.config import SampleConfig
from encore.inference.continuation import Draws, stream_batch
from encore.inference.folder import FolderContinuation, compared_signals, write_folder_page
from encore.inference.presentation import describe, describe_candidates, print_table, summary, titles
from encore.inference.songs import SHOWN_SECONDS, Song, read_song
from encore.inference.streaming import WavWriter, WrittenContinuation, write_stream
from encore.inference.table import build_table_losses, loss_table
from encore.inference.threads import use_one_thread
from encore.models.allocator import keep_freed_memory
from encore.models.loading import Generator, choose_device, load_generator
from encore.models.model_folder import PRETRAINED
from encore.tracking import download_artifact

if TYPE_CHECKING:
    from encore.reporting.html import Table

BEST = "checkpoints/best_model.pt"  # the artifact of a training run
INCOMPLETE = 1  # exit status if some songs of a folder were not continued
STOPPED = 130  # exit status after Ctrl-C, as in shells


def main(config: SampleConfig) -> None:
    """Continue a song, or all songs of a folder.

    Of a song: continuation.wav, full.wav, which has the end of the song in front, spectrogram.png and index.html;
    further candidates are continuation_2.wav, full_2.wav and so on. Of a folder: a folder with these wavs per song, and
    one index.html. Spectrograms, page and table show the first minute of a longer continuation.
    """
    config.check()
    keep_freed_memory()
    use_one_thread()
    make_folder(config.output, "--output")
    device = choose_device(config.device)
    generator = load_model(config, device)
    config.check_model(generator.generation.generative)
    console = Console(highlight=False)
    if config.inputs is not None:
        continue_folder(config, generator, console)
    else:
        continue_one(config, generator, console)


def continue_one(config: SampleConfig, generator: Generator, console: Console) -> None:
    """Continues the song --input.

    Raises:
        EncoreError: it cannot be continued, or not be compared as wished.
        typer.Exit: Ctrl-C ended a stream; what there was has been written.
    """
    assert config.input is not None
    device, rate = generator.codec.device, generator.codec.sample_rate
    song = read_song(config, config.input, generator)
    truth = song.truth
    losses = {} if truth is None else build_table_losses(generator, config.metrics, truth.to(device))
    written = write_continuations(config, generator, song, console)
    if truth is not None and written.samples < truth.shape[-1]:
        truth = None  # the stream was stopped too early to be compared
    signals, table = {"Input": written.beginning.context}, None
    signals |= dict(zip(titles(config.candidates), written.beginning.audio, strict=True))
    if truth is not None:
        signals = compared_signals(generator, truth, written)
        table = loss_table(signals, losses, rate, device)
    write_report(config, signals, metadata_of(config, generator, song, written), written, rate, table)
    if table is not None:
        print_table(console, table)
    console.print(f"listen: {config.output / 'index.html'}", soft_wrap=True, markup=False)
    if not written.complete:
        seconds = written.samples / rate
        console.print(f"stopped after {seconds:.2f} of {config.seconds:g} s; the files hold that much", soft_wrap=True)
        raise typer.Exit(STOPPED)


def continue_folder(config: SampleConfig, generator: Generator, console: Console) -> None:
    """Continues the songs of --inputs.

    Raises:
        EncoreError: there are none.
        typer.Exit: some could not be continued; the others have been.
    """
    assert config.inputs is not None
    folder = FolderContinuation(config, generator, console)
    results = folder.run()
    if results:
        metadata = {"Songs": f"{len(results)}, in {config.inputs}"} | metadata_of(config, generator)
        page = config.output / "index.html"
        title = f"{len(results)} songs of {config.inputs.resolve().name}, continued"
        table = write_folder_page(page, title, metadata, results, folder.problems)
        if table is not None:
            print_table(console, table)
        console.print(f"listen: {page}", soft_wrap=True, markup=False)
    if folder.problems:
        count = f"{len(folder.problems)} of {len(folder.problems) + len(results)} songs were not continued"
        print_error(EncoreError("\n".join([f"{count}:", *map(str, folder.problems)])))
        raise typer.Exit(INCOMPLETE)


def load_model(config: SampleConfig, device: torch.device) -> Generator:
    """The model of --checkpoint, or the best one of --run_id.

    Raises:
        EncoreError: it cannot be downloaded or loaded.
    """
    if config.checkpoint is not None:
        return load_generator(config.checkpoint, device, config.codec_repository, config.precision)
    assert config.run_id is not None
    with tempfile.TemporaryDirectory() as folder:
        path = download_artifact(config.mlflow_uri, config.run_id, BEST, Path(folder))
        return load_generator(path, device, config.codec_repository, config.precision)


def write_continuations(
    config: SampleConfig, generator: Generator, song: Song, console: Console
) -> WrittenContinuation:
    """Generates the continuations of a song and writes them to --output."""
    rate, samples = generator.codec.sample_rate, round(config.seconds * generator.codec.sample_rate)
    draws = Draws(config.seconds, config.seeds, config.temperature)
    pieces = stream_batch(generator, song.context[None], draws)
    writer = WavWriter(config.output, rate, song.context.shape[-1], samples, config.stream)
    shown = round(min(config.seconds, SHOWN_SECONDS) * rate)
    return write_stream(song.context[None], pieces, [writer], shown, console)[0]


def metadata_of(
    config: SampleConfig, generator: Generator, song: Song | None = None, written: WrittenContinuation | None = None
) -> dict[str, str]:
    """How continuations were made, for the page: of one song, or of a folder."""
    codec = generator.codec
    metadata: dict[str, str] = {}
    if song is not None:
        metadata |= {"Song": song.path.name, "Continued from": f"{song.end:.2f} s"}
    samples = round(config.seconds * codec.sample_rate) if written is None else written.samples
    metadata |= {
        "Made": f"{samples / codec.sample_rate:.2f} s",
        "Model": model_name(config),
        "Window": f"{generator.context_frames / codec.frame_rate:.2f} s",
        "Codec": f"{generator.config.codec.name}, {codec.sample_rate} Hz",
    }
    if generator.generation.generative:
        metadata |= {"Seeds": ", ".join(map(str, config.seeds)), "Temperature": f"{config.temperature:g}"}
    return metadata


def model_name(config: SampleConfig) -> str:
    """What the page calls the model."""
    if config.checkpoint == PRETRAINED:
        return "the one that Encore comes with"
    return f"run {config.run_id}" if config.checkpoint is None else str(config.checkpoint)


def write_report(
    config: SampleConfig,
    signals: dict[str, Tensor],
    metadata: dict[str, str],
    written: WrittenContinuation,
    sample_rate: int,
    table: Table | None,
) -> None:
    """Writes spectrogram.png and index.html to --output."""
    from encore.reporting.html import Heading, write_page
    from encore.reporting.spectrograms import spectrograms

    assert config.input is not None
    with disk_space(config.output / "spectrogram.png", "the spectrograms"):
        spectrograms(signals, sample_rate, config.output / "spectrogram.png")
    samples = describe(written, signals, sample_rate)
    candidates = [] if config.candidates == 1 else describe_candidates(written, config.seeds, sample_rate)
    heading = Heading(f"{config.input.stem}, continued", summary(table))
    write_page(config.output / "index.html", heading, metadata, samples, sample_rate, table, candidates)


app = cli.new_app()
cli.add_command(app, SampleConfig, main)

if __name__ == "__main__":
    cli.run(app)
