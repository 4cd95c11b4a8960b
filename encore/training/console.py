"""The output of training: a live display on a terminal, plain lines in a pipe, and plain lines in train.log always."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from encore.training.objective import ATTRACTION, REPULSION, Component

Values = Mapping[str, float]
GRADIENT = "grad_"  # prefix of metrics of the gradient
SHARE = GRADIENT + "share_"
PRIOR = "prior"
NAMES = {"floor": "Codec floor", "copy": "Copy baseline", "replay": "Replay baseline", PRIOR: "Prior alone"}


@dataclass
class EpochMetrics:
    """The metrics of one epoch, means over the items of all ranks; "loss" is the weighted total."""

    epoch: int
    epochs: int
    train: Values
    lr: float
    throughput: float  # seconds of audio per second
    skipped: int  # steps of the whole run
    val: Values = field(default_factory=dict)
    best: bool = False

    def by_name(self, components: Sequence[Component]) -> dict[str, float]:
        """All of them, by their names in the tracker."""
        named = {"learning_rate": self.lr, "throughput": self.throughput, "skipped_steps": self.skipped}
        gradients = {name: value for name, value in self.train.items() if name.startswith(GRADIENT)}
        trained = {name: value for name, value in self.train.items() if name not in gradients}
        return (
            named | gradients | named_metrics("train", trained, components) | named_metrics("val", self.val, components)
        )


def named_metrics(kind: str, values: Values, components: Sequence[Component]) -> dict[str, float]:
    """`<kind>_<name>` for every value; a loss that is minus a metric is followed by that metric."""
    negated = {c.metric: -values[c.name] for c in components if c.metric is not None and c.name in values}
    return {f"{kind}_{name}": value for name, value in {**values, **negated}.items()}


class TrainConsole:
    """The output of rank 0; silent on the other ranks. A context manager, which closes it.

    Args:
        active: whether this rank prints.
    """

    def __init__(self, active: bool):
        self.active = active
        self.console = Console(highlight=False, soft_wrap=True)
        self.live = active and self.console.is_terminal
        self.log: TextIO | None = None
        self.unlogged: list[str] = []  # lines from before there was a log file
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
        self.measured: Mapping[str, Values] = {}

    def open_log(self, path: Path) -> None:
        """Every line goes to this file too, including the earlier ones."""
        self.log = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed by __exit__)
        self._write("\n".join(self.unlogged))

    def __enter__(self) -> TrainConsole:
        return self

    def __exit__(self, *unused: object) -> None:
        self.progress.stop()
        if self.log is not None:
            self.log.close()
            self.log = None

    def print(self, line: str, style: str | None = None) -> None:
        """Writes a line to the terminal and the log."""
        self._write(line)
        if self.active:
            self.console.print(line, style=style, markup=False)
            sys.stdout.flush()

    @contextmanager
    def task(self, description: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
        """A progress bar; gives a function that advances it by one step and sets its note."""
        task = self.progress.add_task(description, total=total, completed=done, note="")
        yield lambda note="": self.progress.update(task, advance=1, note=note)
        self.progress.remove_task(task)

    def epoch(self, metrics: EpochMetrics) -> None:
        """The metrics of an epoch: lines to the log (and a pipe), a table to a terminal."""
        lines = [
            f"Epoch {metrics.epoch}/{metrics.epochs}:",
            f"  Train Loss: {metrics.train.get('loss', math.nan):.4f} ({self._parts(metrics.train)})",
            f"  Val Loss:   {metrics.val['loss']:.4f} ({self._parts(metrics.val)})",
            f"  LR: {metrics.lr:.2e}",
        ]
        if PRIOR in self.measured and metrics.val["loss"] > (prior := self.measured[PRIOR]["loss"]):
            lines.append(f"  Above the prior alone, {prior:.4f}: worse than without training so far")
        if metrics.skipped:
            lines.append(f"  Skipped: {metrics.skipped} steps that were not finite")
        if self.live:
            self._write("\n".join(lines))
            self.console.print(self._table(metrics))
        else:
            self.print("\n".join(lines))

    def baselines(self, components: Sequence[Component], measured: Mapping[str, Values]) -> None:
        """Prints the baselines (floor, copy, …), and keeps them and the components for the tables."""
        self.components, self.measured = components, measured
        for name, values in measured.items():
            self.print(f"{NAMES[name] + ':':17}{values['loss']:.4f} ({self._parts(values)})")
        no_repulsion = [c.name for c in components if c.weight and not c.distance]
        if "replay" in measured and no_repulsion:
            self.print(f"Without a repulsion term, as they are no distances: {', '.join(no_repulsion)}")

    def _write(self, text: str) -> None:
        if self.log is not None:
            self.log.write(text + "\n")
        else:
            self.unlogged.append(text)

    def _parts(self, values: Values) -> str:
        """Every component's value, or "off" where it was not computed. The adversary's are shown only in training."""
        shown = [c for c in self.components if c.loss is not None or c.name in values]
        parts = []
        for c in shown:
            parts.append(f"{c.label}: {values[c.name]:.4f}" if c.name in values else f"{c.label}: off")
            if c.metric is not None and c.name in values:
                parts.append(f"{c.metric}: {-values[c.name]:.4f}")
        return ", ".join(parts)

    def _table(self, metrics: EpochMetrics) -> Table:
        note = f"  {metrics.skipped} steps skipped" if metrics.skipped else ""
        norm = metrics.train.get("grad_norm", 0.0)
        table = Table(
            title=f"Epoch {metrics.epoch}/{metrics.epochs}{'  ★ best' if metrics.best else ''}",
            caption=f"lr {metrics.lr:.2e}  grad norm {norm:.3g}  {metrics.throughput:.1f} s/s{note}",
            title_justify="left",
            caption_justify="left",
        )
        table.add_column("component")
        for name in ("weight", "train", "val", "share", "gradient", *self.measured):
            table.add_column(name, justify="right")
        several = any(name.endswith(REPULSION) for name in metrics.val)
        for c in self.components:
            share = c.weight * metrics.val.get(c.name, math.nan) / (metrics.val["loss"] or math.nan)
            parts = [_percent(share), _percent(metrics.train.get(SHARE + c.name, math.nan))]
            table.add_row(c.name, f"{c.weight:g}", *self._row(c.name, metrics, parts))
            for part in (ATTRACTION, REPULSION):
                if c.name + part in metrics.val:
                    table.add_row(f"  {part[1:]}", "", *self._row(c.name + part, metrics, ["", ""]), style="dim")
            if several and not c.distance:
                table.add_row("  no repulsion", style="dim")
            if c.metric is not None:
                table.add_row(f"  {c.metric}", "", *self._row(c.name, metrics, ["", ""], sign=-1), style="dim")
        table.add_section()
        table.add_row("total", "", *self._row("loss", metrics, ["100%", "100%"]), style="bold")
        return table

    def _row(self, name: str, metrics: EpochMetrics, parts: list[str], sign: int = 1) -> list[str]:
        train, val, *known = (
            f"{sign * values[name]:.4f}" if name in values else "–"
            for values in (metrics.train, metrics.val, *self.measured.values())
        )
        return [train, val, *parts, *known]


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.0%}"
