"""The page of an evaluation: one HTML file with its charts and audio samples inside, which needs no network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from encore.errors import disk_space
from encore.evaluation import verdict
from encore.evaluation.baselines import BASELINES, MODEL, NEGATIVES, TRUTH
from encore.evaluation.headline import LOG_MEL
from encore.evaluation.metrics.energy_score import GROUPS, SKILL, SKILL_PRIOR
from encore.evaluation.metrics.registry import GOALS, MetricSpec
from encore.evaluation.results import Results
from encore.reporting.charts import Chart, Style, chart
from encore.reporting.html import SampleGroup, card_groups, image, render
from encore.reporting.plots import colours, curves
from encore.statistics import Interval

FIRST = SKILL + LOG_MEL  # the metric of the chart on top
SKILLS = (GROUPS[SKILL][0], GROUPS[SKILL_PRIOR][0])  # groups of metrics that are 0 for what they compare with
CHANCE = 0.5  # AUC of a critic that cannot tell two things apart
GAIN_NOTE = "Gain over replaying the input, in percent of its log-mel energy score; right is better."
ASIDE = ("silence", *NEGATIVES)  # so far below all others that they would set the ends of every axis


def write_report(results: Results, groups: Sequence[SampleGroup], sample_rate: int, path: Path) -> None:
    """Writes the page: the answer in words and a chart, audio samples, a chart per metric, and how it was made."""
    page = render(
        "evaluation.html.j2",
        title=f"How good is {results.metadata['Name']}?",
        answer=verdict.sentences(results),
        first=first_chart(results),
        warnings=results.warnings,
        listening=card_groups(groups, sample_rate),
        headline=[metric_chart(results, spec) for spec in results.headline_specs()],
        caption=results.caption,
        drift=_drift(results),
        groups=[(group, [metric_chart(results, spec) for spec in specs]) for group, specs in results.groups().items()],
        systems=results.notes,
        metadata=results.metadata,
    )
    with disk_space(path, "the page"):
        path.write_text(page, encoding="utf-8")


def first_chart(results: Results) -> Chart | None:
    """How much better than replaying the input each continuer is, without those that are far below; None if unknown."""
    found = {name: values[FIRST] for name, values in results.values.items() if FIRST in values and name not in ASIDE}
    if not found:
        return None
    style = Style(percent=True, reference=0.0, kinds=kinds(found))
    return chart("Closer to the real continuation than a replay of the input?", GAIN_NOTE, "", found, style)


def metric_chart(results: Results, spec: MetricSpec) -> Chart:
    """A metric of all continuers that have it."""
    estimates = {name: values[spec.name] for name, values in results.values.items() if spec.name in values}
    truth = results.values.get(TRUTH, {}).get(spec.name)
    style = Style(reference=reference_of(spec, truth), best=results.best(spec), kinds=kinds(estimates), aside=ASIDE)
    return chart(spec.title, spec.note, GOALS.get(spec.goal or "", ""), estimates, style)


def reference_of(spec: MetricSpec, truth: Interval | None) -> float | None:
    """The value of a metric that a line marks: its goal, the truth's, chance, or for a skill that of the replay."""
    if spec.goal == "truth":
        return None if truth is None or not math.isfinite(truth.value) else truth.value
    if spec.group in SKILLS:
        return 0.0
    return {"zero": 0.0, "one": 1.0, "half": CHANCE}.get(spec.goal or "")


def kinds(names: Iterable[str]) -> dict[str, str]:
    """The style of each row: the model's, that of other models, and that of baselines."""
    return {name: "model" if name == MODEL else "baseline" if name in BASELINES else "other" for name in names}


def _drift(results: Results) -> str | None:
    """The contours of long continuations as an image; None without any."""
    if not results.contours:
        return None
    looks = colours([name for name in results.values if any(name in panel for panel in results.contours.values())])
    return image(lambda file: curves(results.contours, looks, file, "seconds after the continuation begins"))
