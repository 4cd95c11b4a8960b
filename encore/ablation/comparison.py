"""Runs side by side: every metric of every run, and the table for the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table

from encore.evaluation.baselines import MODEL, TRUTH, prior_name
from encore.evaluation.headline import LOG_MEL
from encore.evaluation.metrics.energy_score import SCORE
from encore.evaluation.metrics.registry import MetricSpec
from encore.evaluation.results import ARROWS, Results, best_of, format_value, is_silence
from encore.statistics import Interval

TIME = MetricSpec("training_seconds", "training_seconds", "Training", "wall-clock time of training in seconds", None)
HEAD_WIDTH = 14  # characters of a line above a column
GAP = 3  # characters between two columns

Values = Mapping[str, Interval]  # by metric


@dataclass(frozen=True)
class Comparison:
    """The metrics of all runs.

    Attributes:
        metrics: what was measured, in the order of the table.
        runs: values by run and metric; a run that failed has none.
        baselines: the same for the baselines, which are common to all runs.
        failures: why a run failed, by its name.
        warnings: why some values should not be trusted.
        scores: of every pair, by run: the energy score by which runs are ranked (log-mel with a floor).
        recordings: what each pair was cut from.
    """

    metrics: Sequence[MetricSpec]
    runs: Mapping[str, Values]
    baselines: Mapping[str, Values]
    failures: Mapping[str, str]
    warnings: Sequence[str]
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    recordings: Sequence[str] = ()

    def best(self, metric: MetricSpec) -> set[str]:
        """The run that is better than every other as far as the intervals tell, if there is one; not silence."""
        ranked = {name: values for name, values in self.runs.items() if not is_silence(values)}
        if sum(metric.name in values for values in self.runs.values()) < 2:
            return set()
        return best_of(metric, ranked, self.baselines.get(TRUTH, {}).get(metric.name))


def compare(
    evaluations: Mapping[str, Results], seconds: Mapping[str, float], failures: Mapping[str, str]
) -> Comparison:
    """Compares runs by their evaluations.

    Args:
        evaluations: the results of each run that did not fail, by its name.
        seconds: training time by the name of each run, in the order of the table.
        failures: why the other runs failed.
    """
    specs: dict[str, MetricSpec] = {}
    baselines: Mapping[str, Values] = {}
    runs: dict[str, dict[str, Interval]] = {name: {} for name in seconds}
    for name, results in evaluations.items():
        specs |= {spec.name: spec for spec in results.specs if spec.name not in specs}
        values = {system: _finite(found) for system, found in results.values.items()}
        runs[name] = {**values.pop(MODEL), TIME.name: Interval(seconds[name], None, None)}
        # All runs have the same items, seeds and codec, so the baselines of the first evaluation serve for all, except
        # for each run's own prior.
        values.pop(prior_name(MODEL), None)
        baselines = baselines or values
    everyone = [*runs.values(), *baselines.values()]
    rows = [spec for spec in [*specs.values(), TIME] if any(spec.name in values for values in everyone)]
    groups = list(dict.fromkeys(spec.group for spec in rows))
    rows.sort(key=lambda spec: groups.index(spec.group))  # stable: brings the metrics of a group together
    warnings = dict.fromkeys(warning for results in evaluations.values() for warning in results.warnings)
    scores = {name: results.per_item.get(SCORE + LOG_MEL, {}).get(MODEL, []) for name, results in evaluations.items()}
    recordings = next((results.recordings for results in evaluations.values()), [])
    return Comparison(rows, runs, baselines, failures, list(warnings), scores, recordings)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Prints the table, in parts as wide as the console; the best of the runs are bold, with ★."""
    columns = {**comparison.runs, **comparison.baselines}
    best = {metric.name: comparison.best(metric) for metric in comparison.metrics}
    cells = {
        name: [_text(values.get(m.name), name in best[m.name]) for m in comparison.metrics]
        for name, values in columns.items()
    }
    heads = {name: _fold(name) + ["✗ failed"] * (name in comparison.failures) for name in columns}
    widths = {name: max(map(len, [*heads[name], *cells[name]])) for name in columns}
    label = max((len(_label(metric)) for metric in comparison.metrics), default=0)
    for names in _parts(widths, console.width - label - GAP):
        table = Table("metric", box=box.SIMPLE_HEAD)
        for name in names:
            style = None if name in comparison.runs else "dim"
            table.add_column("\n".join(heads[name]), justify="right", style=style, no_wrap=True)
        for row, metric in enumerate(comparison.metrics):
            following = comparison.metrics[row + 1 : row + 2]
            values = [f"[bold]{cells[n][row]}[/]" if n in best[metric.name] else cells[n][row] for n in names]
            last = any(other.group != metric.group for other in following)
            table.add_row(_label(metric), *values, end_section=last)
        console.print(table)
    for name, reason in comparison.failures.items():
        console.print(f"{name}: {reason}", style="red", markup=False, soft_wrap=True)
    for warning in comparison.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=not console.is_terminal)


def _finite(values: Values) -> dict[str, Interval]:
    return {name: interval for name, interval in values.items() if math.isfinite(interval.value)}


def _label(metric: MetricSpec) -> str:
    return metric.name + ARROWS.get(metric.goal or "", "")


def _text(interval: Interval | None, best: bool) -> str:
    return "–" if interval is None else ("★ " if best else "") + format_value(interval.value)


def _fold(name: str) -> list[str]:
    """A name in short lines, broken after underscores."""
    # textwrap breaks at spaces, which are taken out again.
    return [line.replace(" ", "") for line in textwrap.wrap(name.replace("_", "_ "), HEAD_WIDTH)]


def _parts(widths: Mapping[str, int], available: int) -> list[list[str]]:
    """The names of the columns, in order, as many in each part as fit into the available width."""
    parts: list[list[str]] = []
    left = 0
    for name, width in widths.items():
        if not parts or width + GAP > left:
            parts.append([])
            left = available
        parts[-1].append(name)
        left -= width + GAP
    return parts
