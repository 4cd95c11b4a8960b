"""What the user sees: a live display on a terminal, plain lines in a pipe, and always plain lines in train.log."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from encore.training.objective import ATTRACTION, REPULSION, Component

Values = Mapping[str, float]
GRADIENT = "grad_"  # begins the names of the figures that are the gradient's, and no component's
SHARE = GRADIENT + "share_"
NAMES = {"floor": "Codec floor", "copy": "Copy baseline", "replay": "Replay baseline"}


@dataclass
class EpochFigures:
    """The means of one epoch over all ranks' samples; "loss" is the weighted total, other names are components'."""

    epoch: int
    epochs: int
    train: Values
    lr: float
    throughput: float  # seconds of audio per second
    skipped: int  # steps of the whole run
    val: Values = field(default_factory=dict)
    best: bool = False

    def metrics(self, components: Sequence[Component]) -> dict[str, float]:
        """All figures under their names in MLflow."""
        named = {"learning_rate": self.lr, "throughput": self.throughput, "skipped_steps": self.skipped}
        gradients = {name: value for name, value in self.train.items() if name.startswith(GRADIENT)}
        trained = {name: value for name, value in self.train.items() if name not in gradients}
        return (
            named | gradients | named_metrics("train", trained, components) | named_metrics("val", self.val, components)
        )


def named_metrics(kind: str, values: Values, components: Sequence[Component]) -> dict[str, float]:
    """`<kind>_<name>` for every value, and for a loss that is minus a measure the measure beside it."""
    measures = {c.metric: -values[c.name] for c in components if c.metric is not None and c.name in values}
    return {f"{kind}_{name}": value for name, value in {**values, **measures}.items()}


class Screen:
    """The output of rank 0; on the other ranks it is silent.

    Args:
        active: whether this rank prints.
    """

    def __init__(self, active: bool):
        self.active = active
        self.console = Console(highlight=False, soft_wrap=True)
        self.live = active and self.console.is_terminal
        self.log: TextIO | None = None
        self.early: list[str] = []  # lines from before there was a log
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.live,
            transient=True,
        )
        self.progress.start()
        self.components: Sequence[Component] = ()
        self.known: Mapping[str, Values] = {}

    def open_log(self, path: Path) -> None:
        """Every line goes to this file too, also those said before."""
        self.log = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed by close)
        self._write("\n".join(self.early))

    def close(self) -> None:
        self.progress.stop()
        if self.log is not None:
            self.log.close()
            self.log = None

    def say(self, line: str, style: str | None = None) -> None:
        """One line, to the screen and the log."""
        self._write(line)
        if self.active:
            self.console.print(line, style=style, markup=False)
            sys.stdout.flush()

    def task(self, description: str, total: int, done: int = 0) -> TaskID:
        return self.progress.add_task(description, total=total, completed=done, note="")

    def advance(self, task: TaskID, note: str = "") -> None:
        self.progress.update(task, advance=1, note=note)

    def finish(self, task: TaskID) -> None:
        self.progress.remove_task(task)

    def epoch(self, figures: EpochFigures) -> None:
        """The figures of an epoch: lines to the log (and a pipe), a table to a terminal."""
        lines = [
            f"Epoch {figures.epoch}/{figures.epochs}:",
            f"  Train Loss: {figures.train.get('loss', math.nan):.4f} ({self._parts(figures.train)})",
            f"  Val Loss:   {figures.val['loss']:.4f} ({self._parts(figures.val)})",
            f"  LR: {figures.lr:.2e}",
        ]
        if figures.skipped:
            lines.append(f"  Skipped: {figures.skipped} steps that were not finite")
        if self.live:
            self._write("\n".join(lines))
            self.console.print(self._table(figures))
        else:
            self.say("\n".join(lines))

    def baselines(self, components: Sequence[Component], known: Mapping[str, Values]) -> None:
        """Keeps the terms, and what the baselines (floor, copy, …) have, for the tables, and writes these once."""
        self.components, self.known = components, known
        for name, values in known.items():
            self.say(f"{NAMES[name] + ':':17}{values['loss']:.4f} ({self._parts(values)})")
        attracting = [c.name for c in components if c.weight and not c.distance]
        if "replay" in known and attracting:
            self.say(f"Only attracting samples, as no distance between two of them: {', '.join(attracting)}")

    def _write(self, text: str) -> None:
        if self.log is not None:
            self.log.write(text + "\n")
        else:
            self.early.append(text)

    def _parts(self, values: Values) -> str:
        """Every component's value; one that was not computed is off. The adversary's are never validated by."""
        shown = [c for c in self.components if c.loss is not None or c.name in values]
        parts = []
        for c in shown:
            parts.append(f"{c.label}: {values[c.name]:.4f}" if c.name in values else f"{c.label}: off")
            if c.metric is not None and c.name in values:
                parts.append(f"{c.metric}: {-values[c.name]:.4f}")
        return ", ".join(parts)

    def _table(self, figures: EpochFigures) -> Table:
        note = f"  {figures.skipped} steps skipped" if figures.skipped else ""
        norm = figures.train.get("grad_norm", 0.0)
        table = Table(
            title=f"Epoch {figures.epoch}/{figures.epochs}{'  ★ best' if figures.best else ''}",
            caption=f"lr {figures.lr:.2e}  grad norm {norm:.3g}  {figures.throughput:.1f} s/s{note}",
            title_justify="left",
            caption_justify="left",
        )
        table.add_column("component")
        for name in ("weight", "train", "val", "share", "gradient", *self.known):
            table.add_column(name, justify="right")
        several = any(name.endswith(REPULSION) for name in figures.val)
        for c in self.components:
            share = c.weight * figures.val.get(c.name, math.nan) / (figures.val["loss"] or math.nan)
            parts = [_percent(share), _percent(figures.train.get(SHARE + c.name, math.nan))]
            table.add_row(c.name, f"{c.weight:g}", *self._row(c.name, figures, parts))
            for part in (ATTRACTION, REPULSION):
                if c.name + part in figures.val:
                    table.add_row(f"  {part[1:]}", "", *self._row(c.name + part, figures, ["", ""]), style="dim")
            if several and not c.distance:
                table.add_row("  attracts only", style="dim")
            if c.metric is not None:
                table.add_row(f"  {c.metric}", "", *self._row(c.name, figures, ["", ""], sign=-1), style="dim")
        table.add_section()
        table.add_row("total", "", *self._row("loss", figures, ["100%", "100%"]), style="bold")
        return table

    def _row(self, name: str, figures: EpochFigures, parts: list[str], sign: int = 1) -> list[str]:
        train, val, *known = (
            f"{sign * values[name]:.4f}" if name in values else "–"
            for values in (figures.train, figures.val, *self.known.values())
        )
        return [train, val, *parts, *known]


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.0%}"
