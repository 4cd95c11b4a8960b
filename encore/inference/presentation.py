"""The contents of the listening page of a continuation, and its table of losses in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from torch import Tensor

from encore.inference.streaming import CONTINUATION, FULL, WrittenContinuation, wav_name
from encore.reporting.terminal import Column, folded, narrowed, parts, table

if TYPE_CHECKING:
    from encore.reporting.html import AudioSample, Table

LEAD_SECONDS = 2.0  # of the song in front of each candidate on the page
CODEC = "Truth through the codec"
COPY = "Copy of the input"
TRUTH = "truth.wav"


def titles(candidates: int) -> list[str]:
    """The titles of the continuations."""
    return ["Continuation"] if candidates == 1 else [f"Candidate {number + 1}" for number in range(candidates)]


def describe(written: WrittenContinuation, signals: Mapping[str, Tensor], sample_rate: int) -> list[AudioSample]:
    """The audio samples of the page in order, without candidates, which have a place of their own.

    Args:
        written: the continuations.
        signals: `[C, N]` by title.
        sample_rate: Hz.
    """
    from encore.reporting.html import AudioSample  # imports matplotlib, which delays the first audio

    notes = {
        "Input": "What the model was given: the song up to where the continuation begins.",
        "Continuation": "What the model generated." + _extent(written, sample_rate),
        "Truth": "How the music really continues.",
        CODEC: "The truth, encoded and decoded: the best quality that the codec allows.",
    }
    samples = [AudioSample(title, notes[title], audio) for title, audio in signals.items() if title in notes]
    if "Continuation" in signals:
        seconds = written.beginning.context.shape[-1] / sample_rate
        note = f"The continuation begins at {seconds:.2f} s."
        samples.insert(0, AudioSample("The song, then its continuation", note, written.beginning.full[0], seconds))
    return samples


def describe_candidates(written: WrittenContinuation, seeds: Sequence[int], sample_rate: int) -> list[AudioSample]:
    """The candidates, each after the last two seconds of the song."""
    from encore.reporting.html import AudioSample

    context, full = written.beginning.context.shape[-1], written.beginning.full
    lead = min(context, round(LEAD_SECONDS * sample_rate))
    samples = []
    for number, (title, seed) in enumerate(zip(titles(len(seeds)), seeds, strict=True)):
        name = wav_name(CONTINUATION, number)
        note = f"Seed {seed}, {name}; it begins at {lead / sample_rate:.2f} s, after the song."
        audio = full[number, :, context - lead :]
        samples.append(AudioSample(title, note + _extent(written, sample_rate), audio, lead / sample_rate))
    return samples


def describe_files(
    written: WrittenContinuation, seeds: Sequence[int], truth: Tensor | None, sample_rate: int
) -> dict[str, AudioSample]:
    """The audio samples of one song among many, by the name of their files: its continuations and the truth."""
    from encore.reporting.html import AudioSample

    begins = written.beginning.context.shape[-1] / sample_rate
    samples = {}
    for number, (title, seed) in enumerate(zip(titles(len(seeds)), seeds, strict=True)):
        note = f"Seed {seed}; the continuation begins at {begins:.2f} s, after the song." + _extent(
            written, sample_rate
        )
        samples[wav_name(FULL, number)] = AudioSample(title, note, written.beginning.full[number], begins)
    if truth is not None:
        samples[TRUTH] = AudioSample("Truth", "How the music really continues.", truth)
    return samples


def _extent(written: WrittenContinuation, sample_rate: int) -> str:
    """A sentence if only the beginning is shown."""
    shown = written.beginning.audio.shape[-1]
    if shown == written.samples:
        return ""
    return f" These are the first {shown / sample_rate:.0f} s of {written.samples / sample_rate:.0f} s."


def summary(table: Table | None) -> str:
    """Which continuation is the closest to the truth, in a sentence; empty without a truth to compare with."""
    if table is None:
        return ""
    continuations, copy = table.columns[: table.ranked], table.columns.index(COPY)
    best = [table.best(name) for name in table.rows] if table.ranked > 1 else [0] * len(table.rows)
    first = max(range(table.ranked), key=best.count)
    closer = sum(values[first] < values[copy] for values in table.rows.values())
    count = f"{len(table.rows)} losses"
    ahead = f"is the closest to the truth by {best.count(first)} of {count}, and " if table.ranked > 1 else "is "
    return f"{continuations[first]} {ahead}closer than a copy of the input by {closer} of {count}."


def print_table(console: Console, losses: Table) -> None:
    """Prints the losses, in parts as wide as the console; the best candidate's value has a star."""
    names = [*losses.rows]
    best = [losses.best(name) for name in names]
    columns = []
    for place, heading in enumerate(losses.columns):
        starred = [place == winner for winner in best]
        cells = [f"{losses.rows[n][place]:.4f}{' *' if star else '  '}" for n, star in zip(names, starred, strict=True)]
        styles = {row: "bold" for row, star in enumerate(starred) if star}
        columns.append(Column(folded(heading), cells, styles=styles))
    label = narrowed(Column("loss", names, left=True), console.width)
    console.print(losses.caption)
    for part in parts(label, columns, console.width):
        console.print(table(label, part))
        console.print()
