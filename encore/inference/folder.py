"""Continuing all songs of a folder, in batches: files per song, and one page and table over all of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import torch
from rich.console import Console
from torch import Tensor, nn

from encore.audio import write_wav
from encore.config.cli import print_error
from encore.errors import EncoreError, disk_space, make_folder
from encore.inference.config import SampleConfig
from encore.inference.continuation import Draws, reconstruct, stream_batch
from encore.inference.presentation import CODEC, TRUTH, describe_files, titles
from encore.inference.songs import SHOWN_SECONDS, Song, find_songs, output_names, read_song
from encore.inference.streaming import WavWriter, WrittenContinuation, write_stream
from encore.inference.table import build_table_losses, loss_table, mean_table
from encore.models.loading import Generator

if TYPE_CHECKING:
    from encore.reporting.html import AudioCard, Table

EACH_SONG = "Each song's losses against the truth, means over its continuations."


@dataclass(frozen=True)
class SongResult:
    """What has been made of a song: its name, cards for the page, and its losses if there is a truth."""

    name: str
    cards: list[AudioCard]
    table: Table | None


@dataclass(frozen=True)
class Waiting:
    """A song that has been read, with the losses of its table, and the name of its folder."""

    name: str
    song: Song
    losses: Mapping[str, nn.Module]


@dataclass
class FolderContinuation:
    """Continues the songs of --inputs.

    Attributes:
        config: the settings.
        generator: the model.
        console: for progress.
        problems: what was wrong with songs that were left out, by path.
    """

    config: SampleConfig
    generator: Generator
    console: Console
    problems: dict[Path, str] = field(default_factory=dict)
    _losses: dict[int, dict[str, nn.Module]] = field(default_factory=dict)  # by the truth's length

    def run(self) -> list[SongResult]:
        """Continues all songs, those with contexts of one length together, and returns results in the songs' order.

        A song that cannot be continued is named on standard error and in `problems`; the others go on. Memory holds a
        batch, and songs shorter than the context until their batch is full.

        Raises:
            EncoreError: there are no songs.
        """
        songs = find_songs(self.config)
        assert self.config.inputs is not None
        names = output_names(songs, self.config.inputs)
        waiting: dict[int, list[Waiting]] = {}
        made: dict[str, SongResult] = {}
        for path, name in zip(songs, names, strict=True):
            try:
                song = read_song(self.config, path, self.generator)
                batch = waiting.setdefault(song.context.shape[-1], [])
                batch.append(Waiting(name, song, self._losses_for(song)))
            except EncoreError as error:
                self.problems[path] = str(error)
                print_error(error if str(path) in str(error) else EncoreError(f"{path}: {error}"))
                continue
            if len(batch) == self.config.batch_size:
                made |= self._continue(waiting.pop(song.context.shape[-1]))
        for batch in waiting.values():
            made |= self._continue(batch)
        return [made[name] for name in names if name in made]

    def _losses_for(self, song: Song) -> Mapping[str, nn.Module]:
        if song.truth is None:
            return {}
        length = song.truth.shape[-1]
        if length not in self._losses:
            truth = song.truth.to(self.generator.codec.device)
            self._losses[length] = build_table_losses(self.generator, self.config.metrics, truth)
        return self._losses[length]

    def _continue(self, batch: list[Waiting]) -> dict[str, SongResult]:
        """Continues songs whose contexts are equally long, and writes their files."""
        config, rate = self.config, self.generator.codec.sample_rate
        contexts = torch.stack([one.song.context for one in batch])
        pieces = stream_batch(self.generator, contexts, Draws(config.seconds, config.seeds, config.temperature))
        writers = []
        for one in batch:
            make_folder(config.output / one.name, "--output")
            samples = round(config.seconds * rate)
            writers.append(WavWriter(config.output / one.name, rate, contexts.shape[-1], samples, stream=False))
        shown = round(min(config.seconds, SHOWN_SECONDS) * rate)
        written = write_stream(contexts, pieces, writers, shown, self.console)
        return {one.name: self._result(one, each) for one, each in zip(batch, written, strict=True)}

    def _result(self, one: Waiting, written: WrittenContinuation) -> SongResult:
        from encore.reporting.html import audio_card
        from encore.reporting.spectrograms import peak

        rate, truth = self.generator.codec.sample_rate, one.song.truth
        samples = describe_files(written, self.config.seeds, truth, rate)
        if truth is not None:
            write_wav(self.config.output / one.name / TRUTH, truth, rate)
        reference_db = peak(one.song.context, rate)
        # The page would hold hundreds of megabytes if the audio was within it.
        cards = [
            audio_card(sample, rate, reference_db, quote(os.fsencode(f"{one.name}/{file}")))
            for file, sample in samples.items()
        ]
        table = None
        if truth is not None:
            signals = compared_signals(self.generator, truth, written)
            table = loss_table(signals, one.losses, rate, self.generator.codec.device)
        return SongResult(one.name, cards, table)


def compared_signals(generator: Generator, truth: Tensor, written: WrittenContinuation) -> dict[str, Tensor]:
    """The signals of a table of losses by title, `[C, N]`; see `loss_table`."""
    signals = {"Input": written.beginning.context}
    signals |= dict(zip(titles(len(written.beginning.full)), written.beginning.audio, strict=True))
    return signals | {"Truth": truth, CODEC: reconstruct(generator.codec, truth, generator.segment_frames)}


def write_folder_page(
    path: Path, title: str, metadata: Mapping[str, str], results: list[SongResult], problems: Mapping[Path, str]
) -> Table | None:
    """Writes the listening page of a folder; returns the table of mean losses, None if no song has a truth."""
    from encore.reporting.html import CardGroup, Table, render

    tables = {result.name: result.table for result in results if result.table is not None}
    mean = mean_table(tables) if tables else None
    shown = [] if mean is None else [mean]
    if mean is not None and len(tables) > 1:
        rows = {name: [_mean_over_candidates(table, loss) for loss in mean.rows] for name, table in tables.items()}
        shown.append(Table(EACH_SONG, list(mean.rows), rows, dict.fromkeys(rows, "")))
    page = render(
        "songs.html.j2",
        title=title,
        metadata=metadata,
        tables=shown,
        groups=[CardGroup(result.name, "", result.cards) for result in results],
        problems=[f"{song}: {problem}" for song, problem in problems.items()],
    )
    with disk_space(path, "the page"):
        path.write_text(page, encoding="utf-8")
    return mean


def _mean_over_candidates(table: Table, loss: str) -> float:
    """Not a number if the song is too short for the loss."""
    values = table.rows.get(loss, [math.nan])[: table.ranked]
    return sum(values) / len(values)
