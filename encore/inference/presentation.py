"""What is shown of continuations: the sounds of their page, and the table of losses in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor

from encore.inference.streaming import CONTINUATION, Recording, wav_name
from encore.reporting.html import AudioSample, Table

BEFORE_SECONDS = 2.0  # of the song in front of each candidate on the page
CODEC = "Truth through the codec"


def titles(candidates: int) -> list[str]:
    """What the continuations are called."""
    return ["Continuation"] if candidates == 1 else [f"Candidate {number + 1}" for number in range(candidates)]


def extent(made: Recording, sample_rate: int) -> str:
    """A sentence if what is shown is only a part, else nothing."""
    shown = made.beginning.audio.shape[-1]
    if shown == made.samples:
        return ""
    return f" These are the first {shown / sample_rate:.0f} s of {made.samples / sample_rate:.0f} s."


def describe(made: Recording, signals: Mapping[str, Tensor], sample_rate: int) -> list[AudioSample]:
    """The sounds of the page, in order, each with what it is; without candidates, which have a place of their own."""
    seam = made.beginning.context.shape[-1] / sample_rate
    notes = {
        "Input": "What the model was given: the song, up to where it is to be continued.",
        "Continuation": "What the model makes of it." + extent(made, sample_rate),
        "Truth": "How the music really goes on.",
        CODEC: "The truth, encoded and decoded: as good as the codec lets a continuation sound.",
    }
    samples = [AudioSample(title, notes[title], audio) for title, audio in signals.items() if title in notes]
    if "Continuation" in signals:
        note = f"The continuation begins at {seam:.2f} s."
        samples.insert(0, AudioSample("The song, then its continuation", note, made.beginning.full[0]))
    return samples


def describe_candidates(made: Recording, seeds: Sequence[int], sample_rate: int) -> list[AudioSample]:
    """The candidates, each with the last seconds of the song in front."""
    context, full = made.beginning.context.shape[-1], made.beginning.full
    before = min(context, round(BEFORE_SECONDS * sample_rate))
    samples = []
    for number, (title, seed) in enumerate(zip(titles(len(seeds)), seeds, strict=True)):
        note = (
            f"Seed {seed}, {wav_name(CONTINUATION, number)}; it begins at {before / sample_rate:.2f} s, after the song."
        )
        samples.append(AudioSample(title, note + extent(made, sample_rate), full[number, :, context - before :]))
    return samples


def print_table(console: Console, table: Table) -> None:
    """Prints the losses; the best candidate's have a star."""
    shown = RichTable(title=table.caption, box=box.SIMPLE_HEAD, title_justify="left")
    shown.add_column("loss", no_wrap=True)
    for column in table.columns:
        shown.add_column(column, justify="right", min_width=max(len(word) for word in (*column.split(), "0.0000 *")))
    for name, values in table.rows.items():
        cells = [f"{value:.4f}" for value in values]
        if (best := table.best(name)) is not None:
            cells = [f"[bold]{cell} *[/]" if n == best else f"{cell}  " for n, cell in enumerate(cells)]
        shown.add_row(name, *cells)
    # A terminal may be narrower than many candidates; lines are better wrapped than figures cut.
    least = console.measure(shown, options=console.options.update_width(10_000)).minimum
    console.print(shown, width=max(console.width, least), crop=False)
