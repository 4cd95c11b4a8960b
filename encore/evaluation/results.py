"""The results of an evaluation: as tables for the terminal, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from encore.errors import EncoreError, disk_space
from encore.evaluation.baselines import MODEL
from encore.evaluation.metrics.registry import MetricSpec
from encore.statistics import Interval

ARROWS = {"low": " ↓", "high": " ↑", "zero": " →0", "one": " →1", "half": " →½", "truth": " →t"}
HEADLINE_TITLE = "Headline"
TOLERANCE = 1e-6  # values closer than this are equally good
MOST_COLUMNS = 4  # of a table, readable at a width of 100 characters


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
        """The ranked continuers with the best value; none if no value is better than another."""
        ranked = {name: values for name, values in self.values.items() if name not in self.unranked}
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


def best_of(spec: MetricSpec, values: Mapping[str, Mapping[str, Interval]], truth: Interval | None) -> set[str]:
    """The names with the best value of a metric, of those that have one; none if no value is better than another.

    Args:
        values: by name and metric.
        truth: the truth's value, which is the goal of some metrics.
    """
    if spec.goal is None or (spec.goal == "truth" and truth is None):
        return set()
    errors = {name: _error(spec.goal, own[spec.name].value, truth) for name, own in values.items() if spec.name in own}
    finite = {name: error for name, error in errors.items() if math.isfinite(error)}
    return {name for name, error in finite.items() if error <= min(finite.values()) + TOLERANCE}


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
    """The headline, then a table per group of metrics: continuers as rows, the best in bold, with ★."""
    headline = results.headline_specs()
    groups = {HEADLINE_TITLE: headline} if headline else {}
    for group, specs in {**groups, **results.groups()}.items():
        tables = math.ceil(len(specs) / MOST_COLUMNS)
        width = math.ceil(len(specs) / tables)
        for first in range(0, len(specs), width):
            part = specs[first : first + width]
            table = Table("", title=group if first == 0 else f"{group}, continued", box=box.SIMPLE_HEAD)
            table.title_justify = "left"
            for spec in part:
                table.add_column(spec.title + ARROWS.get(spec.goal or "", ""), justify="right")
            best = {spec.name: results.best(spec) for spec in part}
            for name, values in results.values.items():
                if any(spec.name in values for spec in part):
                    table.add_row(name, *(_cell(values.get(s.name), name in best[s.name]) for s in part))
            console.print(table)
        if group == HEADLINE_TITLE:
            console.print(results.caption, markup=False)
    for warning in results.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)


def format_value(value: float) -> str:
    """Three significant digits, at most four decimals."""
    if not math.isfinite(value):
        return "–"
    if abs(value) < 5e-5:
        return "0"
    return f"{value:.{min(4, max(0, 2 - math.floor(math.log10(abs(value)))))}f}".replace("-", "−")


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


def _cell(interval: Interval | None, best: bool) -> str:
    if interval is None:
        return "–"
    text = ("★ " if best else "") + format_value(interval.value)
    text = f"[bold]{text}[/]" if best else text
    if interval.low is None or interval.high is None:
        return text
    half = (interval.high - interval.low) / 2
    return f"{text} [dim]±{format_value(half)}[/]"
