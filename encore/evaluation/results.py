"""The results of an evaluation: as tables for the terminal, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from encore.errors import EncoreError, disk_space
from encore.evaluation.baselines import MODEL
from encore.evaluation.metrics.registry import MetricSpec
from encore.reporting.terminal import Column, folded, narrowed, parts, table
from encore.reporting.wording import is_even
from encore.statistics import Interval

ARROWS = {"low": " ↓", "high": " ↑", "zero": " →0", "one": " →1", "half": " →½", "truth": " →t"}
HEADLINE_TITLE = "Headline"
ABSENT = "–"  # in the place of a value that there is not
LEVEL = "level_db"  # the metric of the level, less the truth's, in dB
SILENT_DB = -30.0  # below it a continuation is as good as silence


@dataclass
class Results:
    """What an evaluation found.

    Attributes:
        metadata: how it was made, by name.
        items: number of pairs.
        candidates: continuations per pair of a stochastic continuer.
        seconds: length of each.
        specs: the columns, in order.
        values: by continuer and metric; a continuer lacks the metrics that make no sense for it.
        per_item: the values of single pairs, by metric and continuer, in the order of `pairs`.
        pairs: names of the pairs.
        recordings: what each pair was cut from.
        contours: by quantity and continuer, the value in every second of long continuations.
        warnings: why some values should not be trusted.
        notes: what a continuer is, by its name.
        unranked: continuers that are never marked as the best: those that use the truth, and those that are no music.
        headline: headings of the figures that sum up an evaluation, by metric.
        caption: how to read them.
    """

    metadata: dict[str, str]
    items: int
    candidates: int
    seconds: float
    specs: list[MetricSpec] = field(default_factory=list)
    values: dict[str, dict[str, Interval]] = field(default_factory=dict)
    per_item: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    pairs: list[str] = field(default_factory=list)
    recordings: list[str] = field(default_factory=list)
    contours: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    unranked: tuple[str, ...] = ("codec", "truth")
    headline: dict[str, str] = field(default_factory=dict)
    caption: str = ""

    def headline_specs(self) -> list[MetricSpec]:
        """The columns of the headline, as far as any continuer has values for them."""
        specs = {spec.name: spec for group in self.groups().values() for spec in group}
        return [replace(specs[name], title=title) for name, title in self.headline.items() if name in specs]

    def groups(self) -> dict[str, list[MetricSpec]]:
        """The columns that any continuer has values for, by group."""
        found: dict[str, list[MetricSpec]] = {}
        for spec in self.specs:
            if any(spec.name in values for values in self.values.values()):
                found.setdefault(spec.group, []).append(spec)
        return found

    def best(self, spec: MetricSpec) -> set[str]:
        """The ranked continuer that is better than every other as far as the intervals tell, if there is one."""
        ranked = {
            name: values for name, values in self.values.items() if name not in self.unranked and not is_silence(values)
        }
        return best_of(spec, ranked, self.values.get("truth", {}).get(spec.name))

    def tracked(self) -> dict[str, float]:
        """The model's finite values, for MLflow; what else was found is in `evaluation.json`.

        They are `eval_model_<metric>`, and those of the headline as `eval/<metric>`, which MLflow's charts show in a
        group, and as `headline_<metric>`, with the ends of the interval as `headline_<metric>_low` and `_high`.
        """
        values = self.values.get(MODEL, {})
        tracked = {f"eval_{MODEL}_{metric}": interval.value for metric, interval in values.items()}
        for metric in self.headline:
            if (found := values.get(metric)) is not None:
                tracked[f"eval/{metric}"] = tracked[f"headline_{metric}"] = found.value
                ends = {f"headline_{metric}_low": found.low, f"headline_{metric}_high": found.high}
                tracked |= {name: end for name, end in ends.items() if end is not None}
        return {name: value for name, value in tracked.items() if math.isfinite(value)}

    @classmethod
    def from_json(cls, path: Path) -> Results:
        """What `write_json` wrote; titles and notes on the continuers are not in the file.

        Raises:
            EncoreError: there is no such file, or it is not an evaluation.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                metadata=content["facts"],
                specs=[
                    MetricSpec(name, name, entry["group"], entry["note"], entry["goal"])
                    for name, entry in content["measures"].items()
                ],
                values={name: _intervals(values) for name, values in content["systems"].items()},
                contours=content["courses"],
                **{
                    key: content[key]
                    for key in ("items", "candidates", "seconds", "per_item", "pairs", "recordings", "warnings")
                },
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EncoreError(f"{path}: not an evaluation ({error}); evaluate again") from error


def is_silence(values: Mapping[str, Interval]) -> bool:
    """Whether what has these metrics is silence, which is the best at nothing."""
    return LEVEL in values and values[LEVEL].value < SILENT_DB


def best_of(spec: MetricSpec, values: Mapping[str, Mapping[str, Interval]], truth: Interval | None) -> set[str]:
    """The name with the best value of a metric, of those that have one, if no other's interval overlaps with its own.

    Where values have no intervals there is nothing that tells which is better, and so there is no best one.

    Args:
        values: by name and metric.
        truth: the truth's value, which is the goal of some metrics.
    """
    if spec.goal is None or (spec.goal == "truth" and truth is None):
        return set()
    errors = {name: _errors(spec.goal, own[spec.name], truth) for name, own in values.items() if spec.name in own}
    finite = {name: error for name, error in errors.items() if math.isfinite(error[0])}
    if len(finite) < 2:
        return set()
    first = min(finite, key=lambda name: finite[name])
    others = min(least for name, (_, least, _) in finite.items() if name != first)
    return {first} if finite[first][2] < others else set()


def write_json(results: Results, path: Path) -> None:
    """Writes all results; values that are not finite become null."""
    found = asdict(results)
    content = {
        "checkpoint": found["metadata"]["Checkpoint"],
        "items": found["items"],
        "candidates": found["candidates"],
        "headline": {
            "caption": found["caption"],
            "measures": found["headline"],
            "systems": {
                name: {metric: values[metric] for metric in found["headline"] if metric in values}
                for name, values in found["values"].items()
            },
        },
        "seconds": found["seconds"],
        "systems": found["values"],
        "warnings": found["warnings"],
        "measures": {spec["name"]: {key: spec[key] for key in ("group", "note", "goal")} for spec in found["specs"]},
        "pairs": found["pairs"],
        "recordings": found["recordings"],
        "per_item": found["per_item"],
        "courses": found["contours"],
        "facts": found["metadata"],
    }
    with disk_space(path, "the results"):
        path.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def print_tables(results: Results, console: Console) -> None:
    """The headline, then a table per group of metrics: continuers as rows, the best in bold, with ★.

    Tables are as wide as the console; columns that do not fit stand in a further table.
    """
    headline = results.headline_specs()
    groups = {HEADLINE_TITLE: headline} if headline else {}
    for group, specs in {**groups, **results.groups()}.items():
        title = group
        names = [name for name, values in results.values.items() if any(spec.name in values for spec in specs)]
        label = narrowed(Column("", names, left=True), console.width)
        for columns in parts(label, [_column(results, spec, names) for spec in specs], console.width):
            rows = [row for row in range(len(names)) if any(column.cells[row] != ABSENT for column in columns)]
            console.print(table(label.of(rows), [column.of(rows) for column in columns], title))
            console.print()
            title = f"{group}, continued"
        if group == HEADLINE_TITLE:
            console.print(results.caption, markup=False)
            console.print()
    for warning in results.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=not console.is_terminal)


def print_verdict(sentences: Sequence[str], console: Console) -> None:
    """What was found, in words, below all tables."""
    if sentences:
        console.print()
        console.print(" ".join(sentences), style="bold", markup=False)


def format_value(value: float) -> str:
    """Three significant digits, at most four decimals."""
    if not math.isfinite(value):
        return "–"
    if abs(value) < 5e-5:
        return "0"
    return f"{value:.{min(4, max(0, 2 - math.floor(math.log10(abs(value)))))}f}".replace("-", "−")


def _errors(goal: str, interval: Interval, truth: Interval | None) -> tuple[float, float, float]:
    """How far a value is from the best one, and the least and the greatest that its interval allows."""
    value, low, high = interval.value, interval.low, interval.high
    if low is None or high is None:
        return _error(goal, value, truth), -math.inf, math.inf
    aims = {"zero": 0.0, "one": 1.0, "half": 0.5, "truth": truth.value if truth is not None else value}
    nearest = min(max(aims.get(goal, value), low), high) if goal in aims else value
    found = [_error(goal, each, truth) for each in (low, high, nearest)]
    return _error(goal, value, truth), min(found), max(found)


def _error(goal: str, value: float, truth: Interval | None) -> float:
    """How far a value is from the best one; lower is better."""
    if goal == "truth" and truth is not None:
        return abs(value - truth.value)
    if goal == "high":
        return -value
    if goal == "zero":
        return abs(value)
    if goal == "half":
        return max(0.0, value - 0.5)
    if goal == "one":
        return abs(math.log(value)) if value > 0 else math.inf
    return value


def _intervals(values: Mapping[str, Mapping[str, float | None]]) -> dict[str, Interval]:
    """Intervals as they stand in the JSON file, where a value that is not finite is null."""
    return {
        name: Interval(math.nan if (value := entry["value"]) is None else value, entry["low"], entry["high"])
        for name, entry in values.items()
    }


def _finite(tree: Any) -> Any:
    """The tree with None in the place of numbers that are not finite."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _column(results: Results, spec: MetricSpec, names: Sequence[str]) -> Column:
    """A metric's column of a table with these continuers as rows."""
    best = results.best(spec)
    cells = [_cell(results.values[name].get(spec.name), name in best) for name in names]
    heading = folded(spec.title + ARROWS.get(spec.goal or "", ""))
    return Column(heading, cells, styles={row: "bold" for row, name in enumerate(names) if name in best})


def _cell(interval: Interval | None, best: bool) -> str:
    """A value with its interval: ± half of it, or where its sides differ, from which to which value."""
    if interval is None or not math.isfinite(interval.value):
        return ABSENT
    text = ("★ " if best else "") + format_value(interval.value)
    if interval.low is None or interval.high is None:
        return text
    if is_even(interval):
        return f"{text} ±{format_value((interval.high - interval.low) / 2)}"
    return f"{text} [{format_value(interval.low)}, {format_value(interval.high)}]"
