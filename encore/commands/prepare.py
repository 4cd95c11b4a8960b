"""Makes pairs to train on from a folder of music: cuts it into inputs, each with the output that follows it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from encore.config import cli
from encore.config.knobs import knob, problems_of
from encore.config.schema import MAX_PROCESSES
from encore.data.cutting import SegmentConfig
from encore.data.prepare import PrepareReport, folder_problems, length_problems, prepare
from encore.errors import EncoreError

T = TypeVar("T")


@dataclass(frozen=True)
class PrepareConfig:
    """All settings of a preparation. `output` has no default: None is refused."""

    music_folder: Path = knob(None, "folder with wav, flac, ogg and mp3 files, at any depth", argument=True)
    output: Path = knob(None, "folder for the pairs; must not exist yet or be empty", common=True)
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    num_workers: int | None = knob(
        None,
        "processes that read files, about 4 GB each for an hour of stereo; default: one per core; 0: none",
        minimum=0,
        maximum=MAX_PROCESSES,
        common=True,
    )

    def check(self) -> None:
        """Raises EncoreError with everything that is wrong with the settings, one line each."""
        problems = problems_of(self)
        if self.output is None:
            problems.append("--output: missing; name a folder for the pairs")
        else:
            problems += folder_problems(self.music_folder, self.output)
        problems = problems or length_problems(self.segments)
        if problems:
            raise EncoreError("\n".join(problems))


class Bar:
    """A progress bar of files, and lines above it."""

    def __init__(self, console: Console):
        columns = TextColumn("Reading"), BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeRemainingColumn()
        self.console, self.progress = console, Progress(*columns, console=console)

    def say(self, line: str) -> None:
        self.console.print(line, markup=False)

    def track(self, items: Iterable[T], total: int, done: int) -> Iterable[T]:
        return self.progress.track(items, total=total, completed=done)


def main(config: PrepareConfig) -> None:
    """Cut a folder of music into pairs: --context_seconds, and the --segment_seconds that follow them.

    The outputs of a file follow each other without a gap, their inputs overlap. Shorter files are left out and listed.
    If it is stopped, the same command goes on from there.
    """
    config.check()
    console = Console(highlight=False, soft_wrap=True)
    workers = len(os.sched_getaffinity(0)) if config.num_workers is None else config.num_workers
    bar = Bar(console)
    try:
        with bar.progress:
            report = prepare(config.music_folder, config.output, config.segments, workers, bar)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; the same command goes on from here")
        sys.exit(128 + signal.SIGINT)
    print_report(report, config.output, console)


def print_report(report: PrepareReport, output: Path, console: Console) -> None:
    """Prints the size of the data set, and which files were left out, with the reason."""
    table = Table(title=str(output))
    for heading in ("split", "files", "pairs", "minutes"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for name, split in report.splits.items():
        table.add_row(name, str(split.files), str(split.pairs), f"{split.minutes:.1f}")
    console.print(table)
    altered = sum(split.altered for split in report.splits.values())
    if altered:
        console.print(f"Pairs of altered copies (--augment), in train: {altered}")
    originals = [source for source in report.sources if not source.altered]
    silent = sum(source.silent for source in originals)
    if silent:
        console.print(f"Pairs dropped as silent (--min_rms): {silent}")
    gains = [source.gain_db for source in originals if source.gain_db]
    if gains:
        console.print(f"Files brought to one loudness (--loudness_lufs), by {min(gains):+.1f} to {max(gains):+.1f} dB")
    attenuated = [source for source in originals if source.scale < 1]
    if attenuated:
        console.print(f"Files attenuated, because their peaks would have clipped: {len(attenuated)}")
    for heading, unreadable in (("Files that cannot be read", True), ("Files left out", False)):
        chosen = [source for source in originals if source.problem and source.unreadable == unreadable]
        if chosen:
            console.print(f"{heading}: {len(chosen)}")
        for source in chosen:
            line = f"  {source.name}: {source.problem}"
            # File names on Linux need not be UTF-8.
            console.print(Text(line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")))


app = cli.new_app()
cli.add_command(app, PrepareConfig, main)

if __name__ == "__main__":
    cli.run(app)
