"""Continuations that are written to disk while they are made, however long they get."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor

from encore.audio import append_wav, start_wav
from encore.inference.continuation import Continuation

CONTINUATION, FULL = "continuation", "full"


@dataclass(frozen=True)
class Recording:
    """What has been written.

    Attributes:
        beginning: of it, as much as was to be kept.
        samples: that each continuation's file holds.
        complete: whether that is all; Ctrl-C ends a stream earlier.
    """

    beginning: Continuation
    samples: int
    complete: bool


def wav_name(stem: str, number: int) -> str:
    """`stem.wav` for the first candidate, `stem_2.wav` for the second, and so on; `number` counts from 0."""
    return f"{stem}.wav" if number == 0 else f"{stem}_{number + 1}.wav"


def record(
    context: Tensor,
    pieces: Iterator[Tensor],
    samples: int,
    sample_rate: int,
    folder: Path,
    keep: int,
    stream: bool,
    console: Console,
) -> Recording:
    """Writes what `stream_song` yields to a `continuation.wav` and a `full.wav` (with the context) per candidate.

    Memory holds one piece and what is kept of the beginning, however many samples there are.

    Args:
        context: `[C, K]`; the first of the pieces is as long.
        pieces: `[S, C, n]`.
        samples: of each continuation, in all.
        sample_rate: Hz.
        folder: where the files are written.
        keep: samples of each continuation that are kept in memory.
        stream: the files are there from the first piece on, can be played after every one, and stay there if Ctrl-C
            ends the stream. Otherwise they take their places when all is done.
        console: shows how far it is.

    Raises:
        KeyboardInterrupt: Ctrl-C, without `stream` or before there was anything.
    """
    kept: list[Tensor] = []
    made, complete = -context.shape[-1], True
    columns = TextColumn("{task.completed:.1f} of {task.total:.1f} s made"), BarColumn()
    with (
        nullcontext(folder) if stream else tempfile.TemporaryDirectory(dir=folder, prefix=".") as place,
        Progress(*columns, console=console) as progress,
    ):
        task = progress.add_task("", total=samples / sample_rate)
        try:
            for piece in pieces:
                if not kept:
                    start(Path(place), piece, context.shape[-1], samples, sample_rate)
                for number, audio in enumerate(piece):
                    append_wav(place / Path(wav_name(FULL, number)), audio)
                    if made >= 0:
                        append_wav(place / Path(wav_name(CONTINUATION, number)), audio)
                if made < keep:
                    kept.append(piece[..., : keep - made].clone())
                begun = made == 0
                made += piece.shape[-1]
                progress.update(task, completed=max(0, made) / sample_rate)
                if stream and begun:  # said when Ctrl-C would keep it
                    console.print(f"{folder / wav_name(FULL, 0)} can be played, and grows", soft_wrap=True)
        except KeyboardInterrupt:
            if not stream or made <= 0:
                raise
            complete = False
        if not stream:
            for path in Path(place).iterdir():
                path.replace(folder / path.name)
    return Recording(Continuation(context, torch.cat(kept, -1)), made, complete)


def start(folder: Path, piece: Tensor, context: int, samples: int, sample_rate: int) -> None:
    """Empty files for the candidates of a piece `[S, C, n]`."""
    for number in range(len(piece)):
        start_wav(folder / wav_name(FULL, number), piece.shape[1], sample_rate, context + samples)
        start_wav(folder / wav_name(CONTINUATION, number), piece.shape[1], sample_rate, samples)
