#!/usr/bin/env python3
"""Makes pairs to train on from a folder of music: cuts it into segments, each with the segment that follows it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from encore.config import cli
from encore.data.prepare import PrepareReport, SegmentConfig, prepare

app = cli.new_app()
console = Console(highlight=False, soft_wrap=True)


@app.command()
def main(
    music_folder: Annotated[Path, typer.Argument(help="Folder with wav, flac, ogg and mp3 files, at any depth.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for the pairs; must not exist yet or be empty.")],
    segment_seconds: Annotated[
        float, typer.Option("--segment_seconds", help="Length of an input and of an output, in seconds.")
    ] = SegmentConfig.segment_seconds,
    val_fraction: Annotated[
        float, typer.Option("--val_fraction", help="Share of the files that goes to val; whole files, at least one.")
    ] = SegmentConfig.val_fraction,
    seed: Annotated[
        int, typer.Option("--seed", help="Another seed, another choice of files for val.")
    ] = SegmentConfig.seed,
    min_rms: Annotated[
        float,
        typer.Option("--min_rms", help="Drop pairs with a segment of less RMS, full scale being 1; 0.001 is −60 dBFS."),
    ] = SegmentConfig.min_rms,
    sample_rate: Annotated[
        int, typer.Option("--sample_rate", min=1000, help="Sample rate of the codec, in Hz.")
    ] = SegmentConfig.sample_rate,
    channels: Annotated[
        int, typer.Option("--channels", min=1, max=2, help="Channels of the codec: 1 mixes to mono, 2 keeps stereo.")
    ] = SegmentConfig.channels,
    num_workers: Annotated[
        int,
        typer.Option(
            "--num_workers", min=0, help="Processes that read files, about 4 GB each for an hour of stereo; 0: none."
        ),
    ] = 2,
) -> None:
    """Cut a folder of music into pairs of a segment and the segment that follows it.

    Each file is cut into segments without overlap; every segment is the input of a pair, and the next one its output.
    """
    config = SegmentConfig(segment_seconds, val_fraction, seed, min_rms, sample_rate, channels)
    columns = TextColumn("Reading"), BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        report = prepare(music_folder, output, config, num_workers, lambda items, total: bar.track(items, total=total))
    show(report, output)


def show(report: PrepareReport, output: Path) -> None:
    """Prints what was made, and what was left out with the reason."""
    table = Table(title=str(output))
    for heading in ("split", "files", "pairs", "minutes"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for name, split in report.splits.items():
        table.add_row(name, str(split.files), str(split.pairs), f"{split.minutes:.1f}")
    console.print(table)
    silent = sum(source.silent for source in report.sources)
    if silent:
        console.print(f"Pairs dropped as silent (--min_rms): {silent}")
    turned_down = [source for source in report.sources if source.scale < 1]
    if turned_down:
        console.print(f"Files turned down, because their peaks would have clipped: {len(turned_down)}")
    for heading, unreadable in (("Files that cannot be read", True), ("Files left out", False)):
        chosen = [source for source in report.sources if source.problem and source.unreadable == unreadable]
        if chosen:
            console.print(f"{heading}: {len(chosen)}")
        for source in chosen:
            line = f"  {source.name}: {source.problem}"
            # Names on Linux are bytes, not always UTF-8.
            console.print(Text(line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")))


if __name__ == "__main__":
    cli.run(app)
