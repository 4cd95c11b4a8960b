"""The report of an ablation: `ablation.json`, and a page with the runs' continuations and the table of metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encore.ablation import verdict
from encore.ablation.comparison import Comparison
from encore.ablation.plan import Plan
from encore.ablation.runner import AblationRun, duration
from encore.ablation.verdict import RANKED_BY
from encore.data import find_pairs
from encore.errors import disk_space
from encore.evaluation.baselines import TRUTH
from encore.evaluation.dataset import song_name
from encore.evaluation.metrics.registry import GOALS, MetricSpec
from encore.evaluation.report import ASIDE, GAIN_NOTE, reference_of
from encore.inference.continuation import continue_song
from encore.models.loading import Generator, choose_device, load_generator
from encore.reporting.charts import Chart, Style, chart
from encore.reporting.html import AudioSample, SampleGroup, card_groups, render

MAX_PLAYERS, MAX_PAIRS = 40, 3  # on the page
LEAD_SECONDS = 4.0  # of the input, before each continuation


def write_json(comparison: Comparison, runs: Sequence[AblationRun], run_id: str, path: Path) -> None:
    """Writes the metrics and settings of all runs as JSON: to a temporary name, then renamed."""
    content = {
        "run_id": run_id,
        "runs": {
            run.name: {
                "run_id": run.state.run_id,
                "failure": run.failure,
                "settings": run.config.to_dict(),
                "measures": {name: asdict(interval) for name, interval in comparison.runs[run.name].items()},
            }
            for run in runs
        },
        "baselines": {
            system: {name: asdict(interval) for name, interval in values.items()}
            for system, values in comparison.baselines.items()
        },
        "measures": {m.name: {"group": m.group, "note": m.note, "goal": m.goal} for m in comparison.metrics},
        "best": {metric.name: sorted(comparison.best(metric)) for metric in comparison.metrics},
    }
    temporary = path.with_suffix(".tmp")
    with disk_space(path, "the results"):
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)


def write_report(comparison: Comparison, plan: Plan, runs: Sequence[AblationRun], path: Path) -> None:
    """Writes the page, with the same validation pairs continued by every run that has not failed."""
    completed = [run for run in runs if run.failure is None]
    samples, sample_rate = continuations(completed)
    settings = {run.name: describe_settings(plan.grid.runs[run.name], run) for run in runs}
    write_page(comparison, samples, sample_rate, settings, metadata_of(plan, completed), path)


def write_page(
    comparison: Comparison,
    samples: Sequence[SampleGroup],
    sample_rate: int,
    settings: Mapping[str, str],
    metadata: Mapping[str, str],
    path: Path,
) -> None:
    """Writes the page: the ranking, the audio samples, a chart per metric, the settings of each run, and metadata."""
    failures = [f"{name}: {reason}" for name, reason in comparison.failures.items()]
    page = render(
        "ablation.html.j2",
        title="Which run is best?",
        answer=verdict.sentences(comparison),
        first=ranking_chart(comparison),
        warnings=[*failures, *comparison.warnings],
        listening=card_groups(samples, sample_rate),
        groups=[
            (group, [metric_chart(comparison, metric) for metric in metrics])
            for group, metrics in groupby(comparison.metrics, lambda metric: metric.group)
        ],
        settings=settings,
        metadata=metadata,
    )
    with disk_space(path, "the page"):
        path.write_text(page, encoding="utf-8")


def ranking_chart(comparison: Comparison) -> Chart | None:
    """The runs from the best to the worst, then the baselines; None if no run can be ranked."""
    order = verdict.ranking(comparison)
    if not order:
        return None
    found = {name: comparison.runs[name][RANKED_BY] for name in order}
    found |= {
        name: values[RANKED_BY]
        for name, values in comparison.baselines.items()
        if RANKED_BY in values and name not in ASIDE
    }
    style = Style(percent=True, reference=0.0, kinds=_kinds(comparison))
    return chart("The runs, best first", GAIN_NOTE, "", found, style)


def metric_chart(comparison: Comparison, metric: MetricSpec) -> Chart:
    """A metric of every run and baseline that has it."""
    systems = {**comparison.runs, **comparison.baselines}
    estimates = {name: values[metric.name] for name, values in systems.items() if metric.name in values}
    reference = reference_of(metric, comparison.baselines.get(TRUTH, {}).get(metric.name))
    style = Style(reference=reference, best=comparison.best(metric), kinds=_kinds(comparison), aside=ASIDE)
    return chart(metric.name, metric.note, GOALS.get(metric.goal or "", ""), estimates, style)


def _kinds(comparison: Comparison) -> dict[str, str]:
    return {**dict.fromkeys(comparison.runs, "model"), **dict.fromkeys(comparison.baselines, "baseline")}


@torch.no_grad()
def continuations(runs: Sequence[AblationRun]) -> tuple[list[SampleGroup], int]:
    """Some validation pairs, spread over all of them, continued by every run; and the sample rate in Hz."""
    groups: dict[Path, SampleGroup] = {}
    rate = 1
    for run in runs:
        generator = load_generator(run.checkpoint, choose_device(None))
        data, rate = run.config.data, generator.codec.sample_rate
        assert data.dataset_folder is not None
        pairs = find_pairs(data.dataset_folder, rate, data.dataset_format, data.latent_folder)["val"]
        count = min(len(pairs), MAX_PAIRS, max(1, MAX_PLAYERS // len(runs)))
        for number in [turn * len(pairs) // count for turn in range(count)]:
            pair, (song, truth) = pairs[number], pairs.audio(number, rate, generator.codec.channels)
            lead = min(song.shape[-1], round(LEAD_SECONDS * rate))
            reference = AudioSample("truth", "", torch.cat([song[:, song.shape[-1] - lead :], truth], -1), lead / rate)
            title = song_name(pair.recording or pair.name)
            note = f"{pair.name}, after {lead / rate:.3g} s of the input"
            earlier = groups.get(pair.input, SampleGroup(title, [reference], note))
            made = continuation(run.name, generator, song, truth.shape[-1] / rate)
            groups[pair.input] = replace(earlier, samples=[*earlier.samples, made])
    return list(groups.values()), rate


def continuation(title: str, generator: Generator, song: Tensor, seconds: float) -> AudioSample:
    """A continuation of `song [C, N]`, after the last `LEAD_SECONDS` of it."""
    made = continue_song(generator, song, seconds)
    rate, context = generator.codec.sample_rate, made.context.shape[-1]
    start = max(0, context - round(LEAD_SECONDS * rate))
    return AudioSample(title, "", made.full[0, :, start:], (context - start) / rate)


def describe_settings(flags: Mapping[str, Any], run: AblationRun) -> str:
    """A run's own flags, without those that are 0, and how long it was trained."""
    own = ", ".join(f"{name} {format_flag(value)}" for name, value in flags.items() if value != 0.0)
    return f"{own or 'the common settings'}; trained for {duration(run.state.seconds)}"


def metadata_of(plan: Plan, completed: Sequence[AblationRun]) -> dict[str, str]:
    """How the comparison was made."""
    config = next(iter(plan.configs.values()))
    common = [f"{name} {format_flag(value)}" for name, value in plan.grid.common.items() if name != "dataset_folder"]
    metadata = {
        "Data": str(config.data.dataset_folder),
        "Codec": config.codec.name,
        "Common settings": ", ".join(common) or "the defaults",
    }
    if completed:
        results = completed[0].results()
        metadata["Evaluated on"] = f"{results.items} validation pairs of {results.seconds:.2f} s"
        metadata["Candidates"] = f"{results.candidates} per pair from runs with randomness"
    return metadata


def format_flag(value: Any) -> str:
    """A flag's value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
