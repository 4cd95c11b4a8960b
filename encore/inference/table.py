"""The table of losses of continuations against the truth."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import losses
from encore.codecs.losses import build_losses
from encore.config.knobs import listed
from encore.errors import EncoreError
from encore.inference.presentation import CODEC, COPY
from encore.models.loading import Generator

if TYPE_CHECKING:
    from encore.reporting.html import Table

ALWAYS = {"rms", "spectral", "mel"}  # in every table, whatever a model was trained on
REFERENCES = ("Input", "Truth", CODEC)  # signals that are not continuations


def build_table_losses(generator: Generator, metrics: str | None, truth: Tensor) -> dict[str, nn.Module]:
    """The losses of the table by name, each computed once on `truth [C, N]` before anything is generated.

    Args:
        generator: the model, whose training losses are the default.
        metrics: names a,b,c instead.
        truth: example of the audio to compare; the losses are moved to its device.

    Raises:
        EncoreError: losses of `metrics` that cannot be computed here, a line each: another package, more samples or
            other channels needed. Of the default ones such a loss is left out, with a message on standard error.
    """
    objective = generator.config.objective
    names = ALWAYS | objective.loss_names if metrics is None else set(listed(metrics))
    built, problems = build_losses(names, objective, generator.codec, truth[None])
    if metrics is not None and problems:
        raise EncoreError("\n".join(f"--metrics {name}: {problem}" for name, problem in problems.items()))
    for name, problem in problems.items():
        print(f"the table is without {name}: {problem}", file=sys.stderr)
    return built


@torch.no_grad()
def loss_table(
    signals: Mapping[str, Tensor], table_losses: Mapping[str, nn.Module], sample_rate: int, device: torch.device
) -> Table:
    """Losses against the truth, over its length.

    Columns are the continuations, the codec's reconstruction of the truth (a lower bound for what a model can reach
    through the codec), and the input repeated from its beginning.

    Args:
        signals: `[C, N]` by title: "Input", "Truth", its reconstruction and the continuations.
        table_losses: by name.
        sample_rate: Hz.
        device: of the losses.
    """
    from encore.reporting.html import Table  # imports matplotlib, which delays the first audio

    truth, context = signals["Truth"].to(device), signals["Input"]
    samples = truth.shape[-1]
    copy = context.repeat(1, math.ceil(samples / context.shape[-1]))
    continuations = {title: audio for title, audio in signals.items() if title not in REFERENCES}
    columns = {**continuations, CODEC: signals[CODEC], COPY: copy}
    compared = [audio[None, :, :samples].to(device) for audio in columns.values()]
    rows = {name: [float(loss(audio, truth[None])) for audio in compared] for name, loss in table_losses.items()}
    caption = f"Against the truth, over {samples / sample_rate:.2f} s; lower is better."
    if len(continuations) > 1:
        caption += " The best candidate's value is marked."
    notes = {name: losses.REGISTRY[name].summary for name in table_losses}
    return Table(caption, list(columns), rows, notes, ranked=len(continuations))


def mean_table(tables: Mapping[str, Table]) -> Table:
    """The means of tables of several songs, by name; a loss that a song is too short for is left out of its mean."""
    from encore.reporting.html import Table

    first = next(iter(tables.values()))
    rows: dict[str, list[float]] = {}
    notes: dict[str, str] = {}
    for name in dict.fromkeys(name for table in tables.values() for name in table.rows):
        values = [table.rows[name] for table in tables.values() if name in table.rows]
        rows[name] = [sum(column) / len(values) for column in zip(*values, strict=True)]
        notes[name] = next(table.notes[name] for table in tables.values() if name in table.notes)
        if len(values) < len(tables):
            notes[name] += f" Of {len(values)} songs."
    caption = f"Against the truth, means over {len(tables)} songs; lower is better."
    return Table(caption, first.columns, rows, notes, first.ranked)
