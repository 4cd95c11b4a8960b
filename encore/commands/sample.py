"""Continues a song with a trained model: audio, spectrograms, a listening page, and the losses against the truth."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import typer
from rich.console import Console
from torch import Tensor

from encore.audio import read_audio
from encore.codecs import Codec
from encore.config import cli
from encore.errors import EncoreError, make_folder
from encore.inference.config import SampleConfig
from encore.inference.continuation import reconstruct, stream_song
from encore.inference.presentation import CODEC, describe, describe_candidates, print_table, titles
from encore.inference.streaming import WavWriter, WrittenContinuation, write_stream
from encore.inference.table import build_table_losses, loss_table
from encore.models.loading import Generator, choose_device, load_generator
from encore.reporting.html import Table, write_page
from encore.reporting.spectrograms import spectrograms
from encore.tracking import download_artifact

BEST = "checkpoints/best_model.pt"  # the artifact of a training run
SHOWN_SECONDS = 60.0  # of a continuation, at most, in spectrograms, page and table
MIN_TRUTH_SECONDS = 0.25  # less than that is not compared
STOPPED = 130  # exit status after Ctrl-C, as in shells


def main(config: SampleConfig) -> None:
    """Continue a song: writes continuation.wav, full.wav, spectrogram.png and index.html.

    full.wav has the end of the song in front; further candidates are continuation_2.wav, full_2.wav and so on.
    Spectrograms, page and table show the first minute of a longer continuation.
    """
    config.check()
    make_folder(config.output, "--output")
    device = choose_device(config.device)
    generator = load_model(config, device)
    config.check_model(generator.generation.generative)
    song, truth = read_song(config, generator.codec)
    losses = {} if truth is None else build_table_losses(generator, config.metrics, truth.to(device))
    console = Console(highlight=False)
    written = write_continuations(config, generator, song, console)
    if truth is not None and written.samples < truth.shape[-1]:
        truth = None  # the stream was stopped too early to be compared
    signals = {"Input": written.beginning.context}
    signals |= dict(zip(titles(config.candidates), written.beginning.audio, strict=True))
    table = None
    if truth is not None:
        signals |= {"Truth": truth, CODEC: reconstruct(generator.codec, truth, generator.segment_frames)}
        table = loss_table(signals, losses, generator.codec.sample_rate, device)
    metadata = metadata_of(config, generator, song, written)
    write_report(config, signals, metadata, written, generator.codec.sample_rate, table)
    if table is not None:
        print_table(console, table)
    console.print(f"listen: {config.output / 'index.html'}", soft_wrap=True, markup=False)
    if not written.complete:
        seconds = written.samples / generator.codec.sample_rate
        console.print(f"stopped after {seconds:.2f} of {config.seconds:g} s; the files hold that much", soft_wrap=True)
        raise typer.Exit(STOPPED)


def load_model(config: SampleConfig, device: torch.device) -> Generator:
    """The model of --checkpoint, or the best one of --run_id.

    Raises:
        EncoreError: it cannot be downloaded or loaded.
    """
    if config.checkpoint is not None:
        return load_generator(config.checkpoint, device, config.codec_repository)
    assert config.run_id is not None
    with tempfile.TemporaryDirectory() as folder:
        path = download_artifact(config.mlflow_uri, config.run_id, BEST, Path(folder))
        return load_generator(path, device, config.codec_repository)


def read_song(config: SampleConfig, codec: Codec) -> tuple[Tensor, Tensor | None]:
    """The song up to where the continuation begins, and what really follows, both `[C, N]`.

    What follows is taken from --target, else from the song after --start, up to as much as will be shown; None if that
    is less than 0.25 s.

    Raises:
        EncoreError: a file cannot be read, --start lies beyond the song's end, or --target is shorter than 0.25 s.
    """
    rate, start, target = codec.sample_rate, config.start, config.target
    song = read_audio(config.input, rate, codec.channels)
    duration = song.shape[-1] / rate
    if start is not None and start > duration:
        raise EncoreError(f"--start {start:g}: {config.input} ends at {duration:.2f} s; give an earlier second")
    end = song.shape[-1] if start is None else round(start * rate)
    truth = song[:, end:] if target is None else read_audio(target, rate, codec.channels)
    truth = truth[:, : round(min(config.seconds, SHOWN_SECONDS) * rate)]
    if truth.shape[-1] >= MIN_TRUTH_SECONDS * rate:
        return song[:, :end], truth
    if target is not None:
        raise EncoreError(
            f"--target {target}: only {truth.shape[-1] / rate:.2f} s to compare; at least {MIN_TRUTH_SECONDS} s needed"
        )
    return song[:, :end], None


def write_continuations(
    config: SampleConfig, generator: Generator, song: Tensor, console: Console
) -> WrittenContinuation:
    """Generates the continuations of `song [C, N]` and writes them to --output.

    Raises:
        EncoreError: the song is too short.
    """
    context, pieces = stream_song(generator, song, config.seconds, config.seeds, config.temperature)
    rate = generator.codec.sample_rate
    writer = WavWriter(config.output, rate, context.shape[-1], round(config.seconds * rate), config.stream)
    shown = round(min(config.seconds, SHOWN_SECONDS) * rate)
    return write_stream(context, pieces, writer, shown, console)


def metadata_of(
    config: SampleConfig, generator: Generator, song: Tensor, written: WrittenContinuation
) -> dict[str, str]:
    """How the continuations were made, for the page."""
    codec = generator.codec
    metadata = {
        "Song": config.input.name,
        "Continued from": f"{song.shape[-1] / codec.sample_rate:.2f} s",
        "Made": f"{written.samples / codec.sample_rate:.2f} s",
        "Model": f"run {config.run_id}" if config.checkpoint is None else str(config.checkpoint),
        "Window": f"{generator.segment_frames / codec.frame_rate:.2f} s",
        "Codec": f"{generator.config.codec.name}, {codec.sample_rate} Hz",
    }
    if generator.generation.generative:
        metadata |= {"Seeds": ", ".join(map(str, config.seeds)), "Temperature": f"{config.temperature:g}"}
    return metadata


def write_report(
    config: SampleConfig,
    signals: dict[str, Tensor],
    metadata: dict[str, str],
    written: WrittenContinuation,
    sample_rate: int,
    table: Table | None,
) -> None:
    """Writes spectrogram.png and index.html to --output."""
    spectrograms(signals, sample_rate, config.output / "spectrogram.png")
    samples = describe(written, signals, sample_rate)
    candidates = [] if config.candidates == 1 else describe_candidates(written, config.seeds, sample_rate)
    title = f"{config.input.stem}, continued"
    write_page(config.output / "index.html", title, metadata, samples, sample_rate, table, candidates)


app = cli.new_app()
cli.add_command(app, SampleConfig, main)

if __name__ == "__main__":
    cli.run(app)
