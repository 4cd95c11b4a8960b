"""Continuations that are written to disk while they are generated, however long they get."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch import Tensor

from encore.audio import append_wav, start_wav
from encore.inference.continuation import Continuation

CONTINUATION, FULL = "continuation", "full"


@dataclass(frozen=True)
class WrittenContinuation:
    """What has been written.

    Attributes:
        beginning: the first part, which was kept in memory.
        samples: length of each continuation's file.
        complete: False if Ctrl-C ended the stream early.
    """

    beginning: Continuation
    samples: int
    complete: bool


def wav_name(stem: str, number: int) -> str:
    """`stem.wav` for the first candidate, `stem_2.wav` for the second, and so on; `number` counts from 0."""
    return f"{stem}.wav" if number == 0 else f"{stem}_{number + 1}.wav"


class WavWriter:
    """Writes a `continuation.wav` and a `full.wav` (with the context in front) per candidate, piece by piece.

    Used as a context manager. With `stream` the files appear with the first piece and are complete after every piece;
    otherwise they are written to a temporary folder, and moved to `folder` if the block ends without an exception.

    Args:
        folder: where the files are written.
        sample_rate: Hz.
        context: samples of the context, which comes first.
        samples: of each continuation, in all.
        stream: see above.
    """

    def __init__(self, folder: Path, sample_rate: int, context: int, samples: int, stream: bool):
        self.folder, self.sample_rate, self.context, self.samples = folder, sample_rate, context, samples
        self.stream = stream
        self.written = -context  # samples of each continuation; negative within the context
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> WavWriter:
        if not self.stream:
            self._temporary = tempfile.TemporaryDirectory(dir=self.folder, prefix=".")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._temporary is None:
            return
        if kind is None:
            for path in Path(self._temporary.name).iterdir():
                path.replace(self.folder / path.name)
        self._temporary.cleanup()

    @property
    def full(self) -> Path:
        """The first candidate's `full.wav`."""
        return self.folder / wav_name(FULL, 0)

    def write(self, piece: Tensor) -> None:
        """Appends `[S, C, n]`, one row per candidate; the first piece is as long as the context."""
        folder = self.folder if self._temporary is None else Path(self._temporary.name)
        for number, audio in enumerate(piece):
            full, continuation = (folder / wav_name(stem, number) for stem in (FULL, CONTINUATION))
            if self.written < 0:
                start_wav(full, len(audio), self.sample_rate, self.context + self.samples)
                start_wav(continuation, len(audio), self.sample_rate, self.samples)
            else:
                append_wav(continuation, audio)
            append_wav(full, audio)
        self.written += piece.shape[-1]


def write_stream(
    contexts: Tensor, pieces: Iterator[Tensor], writers: Sequence[WavWriter], keep: int, console: Console
) -> list[WrittenContinuation]:
    """Writes what `stream_batch` yields, with a progress bar.

    Memory holds one piece and the first `keep` samples, however many samples there are. Ctrl-C ends a stream after its
    first piece without an error.

    Args:
        contexts: of the B songs, `[B, C, K]`; the first piece has as many samples.
        pieces: `[B · S, C, n]`, the S candidates of a song in order.
        writers: of the songs' files, one each; all write as many samples.
        keep: samples of each continuation to keep in memory.
        console: for the progress bar.

    Raises:
        KeyboardInterrupt: Ctrl-C without `stream`, or before there was anything.
    """
    writer, rate = writers[0], writers[0].sample_rate
    kept: list[Tensor] = []
    complete, began, first = True, time.perf_counter(), 0.0
    columns = TextColumn("{task.completed:.1f} of {task.total:.1f} s generated"), BarColumn()
    with contextlib.ExitStack() as opened, Progress(*columns, console=console) as progress:
        for one in writers:
            opened.enter_context(one)
        task = progress.add_task("", total=writer.samples / rate)
        try:
            for piece in pieces:
                before = writer.written
                if before < keep:
                    kept.append(piece[..., : keep - before].clone())
                for one, rows in zip(writers, piece.chunk(len(writers)), strict=True):
                    one.write(rows)
                progress.update(task, completed=max(0, writer.written) / rate)
                if before < 0:
                    first = time.perf_counter() - began
                if writer.stream and before == 0:  # from now on Ctrl-C keeps the files
                    console.print(f"{writer.full} can be played, and grows", soft_wrap=True)
        except KeyboardInterrupt:
            if not writer.stream or writer.written <= 0:
                raise
            complete = False
    beginnings, took = torch.cat(kept, -1), time.perf_counter() - began
    made = writer.written * len(beginnings) / rate
    console.print(
        f"{made:.2f} s of audio in {took:.2f} s: {made / took:.1f} times real time, the first after {first:.2f} s"
    )
    return [
        WrittenContinuation(Continuation(context, rows), one.written, complete)
        for context, rows, one in zip(contexts, beginnings.chunk(len(writers)), writers, strict=True)
    ]
