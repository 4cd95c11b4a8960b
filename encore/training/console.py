"""The output of training: a live display on a terminal, plain lines in a pipe, and plain lines in train.log always."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from encore.reporting.terminal import Column, table, that_fit
from encore.training.objective import ATTRACTION, REPULSION, Component
from encore.training.pace import Memory, duration

Values = Mapping[str, float]
GRADIENT = "grad_"  # prefix of metrics of the gradient
SHARE = GRADIENT + "share_"
PRIOR = "prior"
LINE_SECONDS = 60.0  # between two lines of progress in a log
WIDE, WIDE_BAR, NARROW_BAR = 100, 40, 20  # characters: of a terminal, and of the bars on it and on narrower ones
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
    seconds_left: float | None = None  # of the whole run
    memory: Memory | None = None  # of the GPU

    def by_name(self, components: Sequence[Component]) -> dict[str, float]:
        """All of them, by their names in the tracker."""
        named = {"learning_rate": self.lr, "throughput": self.throughput, "skipped_steps": self.skipped}
        named |= {"gpu_memory_gb": self.memory.most} if self.memory is not None else {}
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
        self.console = Console(highlight=False)
        self.live = active and self.console.is_terminal
        self.log: TextIO | None = None
        self.unlogged: list[str] = []  # lines from before there was a log file
        self.progress = Bars(self.console, self.live)
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

    def print(self, line: str, style: str | None = None, whole: bool = False) -> None:
        """Writes a line to the log and the terminal, there wrapped between words; not if `whole` or with a long word.

        So a command or an address can be copied.
        """
        self._write(line)
        if self.active:
            whole = whole or any(len(word) > self.console.width for word in line.split())
            self.console.print(line, style=style, markup=False, soft_wrap=whole or not self.live)
            sys.stdout.flush()

    @contextmanager
    def task(self, description: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
        """A progress bar; gives a function that advances it by one step and sets its note, which stands below it.

        In a log and a pipe there is a line instead, every minute.
        """
        task = self.progress.add_task(description, total=total, completed=done, note="")
        said = time.monotonic()

        def advance(note: str = "") -> None:
            nonlocal done, said
            done += 1
            self.progress.update(task, advance=1, note=note)
            if self.active and time.monotonic() - said >= LINE_SECONDS:
                said = time.monotonic()
                line = f"{description}: {done} of {total}{', ' * bool(note)}{note}"
                if self.live:
                    self._write(line)
                else:
                    self.print(line)

        yield advance
        self.progress.remove_task(task)

    def epoch(self, metrics: EpochMetrics) -> None:
        """The metrics of an epoch: lines to the log (and a pipe), a table to a terminal."""
        lines = [
            f"Epoch {metrics.epoch}/{metrics.epochs}:",
            f"  Train Loss: {metrics.train.get('loss', math.nan):.4f} ({self._parts(metrics.train)})",
            f"  Val Loss:   {metrics.val['loss']:.4f} ({self._parts(metrics.val)})",
            f"  LR: {metrics.lr:.2e}",
            f"  {_pace(metrics)}",
        ]
        if PRIOR in self.measured and metrics.val["loss"] > (prior := self.measured[PRIOR]["loss"]):
            lines.append(f"  Above the prior alone, {prior:.4f}: worse than without training so far")
        if metrics.skipped:
            lines.append(f"  Skipped: {metrics.skipped} steps that were not finite")
        if self.live:
            self._write("\n".join(lines))
            self.console.print(self._table(metrics))
            for line in lines[5:]:  # what is unusual
                self.console.print(line, style="yellow", markup=False)
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

    def _table(self, metrics: EpochMetrics) -> Group:
        """The components as rows; of the baselines, which are above the first epoch, as many as there is space for."""
        rows = self._rows(metrics)
        label = Column("component", [row.name for row in rows], left=True)
        texts = {
            "weight": [row.weight for row in rows],
            "train": [_value(metrics.train, row) for row in rows],
            "val": [_value(metrics.val, row) for row in rows],
            "share": [row.share for row in rows],
            "gradient": [row.gradient for row in rows],
        }
        known = {name: self.measured[name] for name in sorted(self.measured, key=lambda name: name != PRIOR)}
        texts |= {name: [_value(values, row) for row in rows] for name, values in known.items()}
        styles = {number: row.style for number, row in enumerate(rows) if row.style}
        label.styles = styles
        columns = {name: Column(name, cells, styles=styles) for name, cells in texts.items()}
        needed = [columns[name] for name in ("train", "val")]
        rest = [column for column in columns.values() if column not in needed]
        chosen = that_fit(label, needed, rest, self.console.width)
        shown = [column for column in columns.values() if column in chosen]
        title = f"Epoch {metrics.epoch}/{metrics.epochs}{'  ★ best' if metrics.best else ''}"
        grid = table(label, shown, title, ends=[len(rows) - 2])
        return Group(grid, Text(f"learning rate {metrics.lr:.2e}, {_pace(metrics)}", style="dim"))

    def _rows(self, metrics: EpochMetrics) -> list[Row]:
        several = any(name.endswith(REPULSION) for name in metrics.val)
        rows = []
        for c in self.components:
            share = c.weight * metrics.val.get(c.name, math.nan) / (metrics.val["loss"] or math.nan)
            gradient = metrics.train.get(SHARE + c.name, math.nan)
            rows.append(Row(c.name, c.name, f"{c.weight:g}", _percent(share), _percent(gradient)))
            for part in (ATTRACTION, REPULSION):
                if c.name + part in metrics.val:
                    rows.append(Row(f"  {part[1:]}", c.name + part, style="dim"))
            if several and not c.distance:
                rows.append(Row("  no repulsion", "", style="dim"))
            if c.metric is not None:
                rows.append(Row(f"  {c.metric}", c.name, sign=-1, style="dim"))
        return [*rows, Row("total", "loss", "", "100%", "100%", style="bold")]


@dataclass(frozen=True)
class Row:
    """A row of an epoch's table.

    Attributes:
        name: as it is shown.
        metric: whose values are in it; empty for none.
        weight, share, gradient: as they are shown.
        sign: 1, or −1 for what is minus a loss.
    """

    name: str
    metric: str
    weight: str = ""
    share: str = ""
    gradient: str = ""
    sign: int = 1
    style: str = ""


class Bars(Progress):
    """Progress bars, each with a line below it that is wrapped rather than cut."""

    def __init__(self, console: Console, live: bool):
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=WIDE_BAR if console.width >= WIDE else NARROW_BAR),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not live,
            transient=True,
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if note := task.fields["note"]:
                yield Text("  " + note, style="dim", no_wrap=False)


def _value(values: Values, row: Row) -> str:
    if not row.metric:
        return ""
    return f"{row.sign * values[row.metric]:.4f}" if row.metric in values else "–"


def _pace(metrics: EpochMetrics) -> str:
    """What else there is to say of an epoch."""
    parts = [f"gradient norm {metrics.train.get('grad_norm', 0.0):.3g}", f"{metrics.throughput:.1f} s of audio per s"]
    parts += [str(metrics.memory)] if metrics.memory is not None else []
    parts += [f"the run ends in {duration(metrics.seconds_left)}"] if metrics.seconds_left else []
    return ", ".join(parts)


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.0%}"
