#!/usr/bin/env python3
"""Compares weightings and objectives: trains the same model with each, evaluates all, and puts them side by side."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import losses
from encore.ablation.comparison import Comparison, compare, print_comparison, write_comparison
from encore.ablation.grid import Grid, common_configuration, configurations, read_grid
from encore.ablation.runner import Ablation, Run, duration, open_runs
from encore.audio import read_audio
from encore.codecs.encodec import load_codec
from encore.codecs.losses import loss_options
from encore.config import cli
from encore.config.schema import WEIGHT, TrainConfig, loss_knobs
from encore.data.dataset import find_pairs, segment_frames
from encore.errors import EncoreError, make_folder
from encore.evaluation.baselines import BASELINES
from encore.inference.continuation import continue_song
from encore.models.loading import choose_device, load_generator
from encore.reporting.html import AudioSample, SampleGroup
from encore.tracking import NestedRuns

FAILED = 1  # exit status if a run failed
WIDTH = 120  # of what is not a terminal
TRIED_SECONDS = 2.0  # of silence that every loss must take, where --decode_seconds says nothing
MOST_PLAYERS, MOST_PAIRS = 40, 3  # on the page
LEAD_SECONDS = 2.0  # of the input, before each continuation

app = cli.new_app()


@app.command()
def ablate(
    grid: Annotated[
        Path | None, typer.Option("--grid", help="YAML file: common flags of train_ddp.py, and runs with their own")
    ] = None,
    each_loss: Annotated[
        bool, typer.Option("--each_loss", help="one run per loss, trained on it alone; of --grid only common: counts")
    ] = False,
    dataset_folder: Annotated[
        Path | None, typer.Option("--dataset_folder", help="folder with train/ and val/ pairs, instead of the grid's")
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="folder for runs, table and page")] = Path("ablation"),
    parallel: Annotated[int, typer.Option("--parallel", min=1, help="runs at the same time")] = 1,
    items: Annotated[
        int | None, typer.Option("--items", min=1, help="validation pairs to evaluate on; default: evaluate.py's")
    ] = None,
    candidates: Annotated[
        int | None, typer.Option("--candidates", min=2, help="continuations of each; default: evaluate.py's")
    ] = None,
    mlflow_uri: Annotated[
        str, typer.Option("--mlflow_uri", help="MLflow tracking server or store")
    ] = "sqlite:///mlflow.db",
    experiment: Annotated[str, typer.Option("--experiment", help="MLflow experiment")] = "encore",
) -> None:
    """Train the same model with each weighting or objective, evaluate all, and compare: a table and a page."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    plan = planned(grid, each_loss)
    given: dict[str, Any] = {"mlflow_uri": mlflow_uri, "experiment": experiment}
    given |= {} if dataset_folder is None else {"dataset_folder": dataset_folder}
    make_folder(output, "--output")
    if each_loss:
        if plan.runs:
            say(f"{plan.source}: its runs are left out, --each_loss makes its own")
        names = losses_here(common_configuration(plan, output, given), losses.REGISTRY, say)
        plan = Grid(plan.source, plan.common, runs_of_each_loss(names))
    configs = configurations(plan, output, given)
    measured = losses_here(next(iter(configs.values())), losses_of(configs.values()), say)
    runs = open_runs(configs)
    nest = nested(runs, output, mlflow_uri, experiment)

    options = {"--items": items, "--candidates": candidates, "--long_items": 0, "--metrics": ",".join(measured)}
    flags = [text for flag, value in options.items() if value is not None for text in (flag, str(value))]
    ablation = Ablation(runs, flags, parallel, say)
    stopped = ablation.work()
    if stopped:
        nest.close("KILLED")
        print(f"stopped by {signal.Signals(stopped).name}; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + stopped)

    good = [run for run in runs if run.failure is None]
    comparison = compare(
        {run.name: run.evaluation() for run in good},
        {run.name: run.state.seconds for run in runs},
        {run.name: run.failure for run in runs if run.failure is not None},
    )
    keep(comparison, runs, nest.run_id, output / "ablation.json")
    heard, sample_rate = listen(good)
    settings = {run.name: described(plan.runs[run.name], run) for run in runs}
    write_comparison(comparison, heard, sample_rate, settings, facts(plan, runs[0].config, good), output / "index.html")
    print_comparison(comparison, console)
    say(f"listen: {output / 'index.html'}")
    failed = [str(run.state.run_id) for run in runs if run.failure is not None]
    nest.close("FAILED" if failed else "FINISHED", failed, [output / "index.html", output / "ablation.json"])
    sys.exit(FAILED if failed else 0)


def planned(path: Path | None, each_loss: bool) -> Grid:
    """The grid of the file.

    Raises:
        EncoreError: there is none where one is needed, it is no grid, or a run has the name of a baseline.
    """
    if path is None and not each_loss:
        raise EncoreError("--grid: missing; name a YAML file of runs (ablation.yaml is one), or ask for --each_loss")
    plan = Grid("--each_loss", {}, {}) if path is None else read_grid(path)
    if taken := [name for name in plan.runs if name in BASELINES]:
        raise EncoreError(f"{plan.source}: runs: {', '.join(taken)}: is the name of a baseline; give another one")
    return plan


def runs_of_each_loss(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A run for each registered loss of these names, with weight 1 and all other weights 0."""
    off = {one.name: 0.0 for one in loss_knobs()}
    return {name: {**off, WEIGHT + ("target" if name == "rms" else name): 1.0} for name in names}


def losses_of(configs: Iterable[TrainConfig]) -> set[str]:
    """Registered names of the losses that any run is trained on or measured by: all are evaluated on all of them."""
    return {name for config in configs for name in config.objective.loss_names}


@torch.no_grad()
def losses_here(config: TrainConfig, wanted: Iterable[str], say: Callable[[str], None]) -> list[str]:
    """Those of the registered losses `wanted` that can be computed here, in the registry's order.

    One that needs another package, more samples than there are in a training step, or more channels, is said.

    Raises:
        EncoreError: the codec can't be had, or the pairs can't be used.
    """
    codec = load_codec(config.codec.name, config.codec.repository, config.codec.bandwidth)
    assert config.data.dataset_folder is not None
    segment = (
        segment_frames(find_pairs(config.data.dataset_folder, codec.sample_rate), codec.hop_length) * codec.hop_length
    )
    step = round((config.objective.decode_seconds or TRIED_SECONDS) * codec.sample_rate)
    silence, here = torch.zeros(1, codec.channels, min(segment, step)), []
    for name in losses.REGISTRY:
        if name in set(wanted):
            try:
                losses.create(name, codec.sample_rate, **loss_options(config.objective, codec, name))(silence, silence)
                here.append(name)
            except (ImportError, OSError, ValueError) as error:
                say(f"without {name}: {error}")
    return here


def nested(runs: Sequence[Run], output: Path, uri: str, experiment: str) -> NestedRuns:
    """The MLflow runs: those of an earlier call in this folder, else new ones.

    Raises:
        EncoreError: MLflow can't be reached or doesn't know the earlier runs, or what the earlier call left is broken.
    """
    kept = output / "ablation.json"
    try:
        run_id = json.loads(kept.read_text())["run_id"] if kept.is_file() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoreError(f"{kept}: can't be gone on with ({error}); move it away") from error
    nest = NestedRuns(uri, experiment)
    nest.open(output.resolve().name, run_id)
    if run_id is None:
        kept.write_text(json.dumps({"run_id": nest.run_id}) + "\n")
    for run in runs:
        run.state.run_id = nest.child(run.name, run.state.run_id)
        run.keep()
    return nest


def keep(comparison: Comparison, runs: Sequence[Run], run_id: str, path: Path) -> None:
    """Writes everything that was found as JSON: to a temporary name, then renamed."""
    content = {
        "run_id": run_id,
        "runs": {
            run.name: {
                "run_id": run.state.run_id,
                "failure": run.failure,
                "settings": run.config.to_dict(),
                "measures": {name: vars(figure) for name, figure in comparison.runs[run.name].items()},
            }
            for run in runs
        },
        "baselines": {
            system: {name: vars(figure) for name, figure in figures.items()}
            for system, figures in comparison.baselines.items()
        },
        "measures": {m.name: {"group": m.group, "note": m.note, "goal": m.goal} for m in comparison.measures},
        "best": {measure.name: sorted(comparison.best(measure)) for measure in comparison.measures},
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


@torch.no_grad()
def listen(runs: Sequence[Run]) -> tuple[list[SampleGroup], int]:
    """The same validation pairs, continued by every run; and their rate in Hz."""
    if not runs:
        return [], 1
    device = choose_device(None)
    samples: dict[Path, list[AudioSample]] = {}
    rate = 0
    for run in runs:
        generator = load_generator(run.checkpoint, device)
        codec = generator.codec
        rate, lead = codec.sample_rate, round(LEAD_SECONDS * codec.sample_rate)
        assert run.config.data.dataset_folder is not None
        pairs = find_pairs(run.config.data.dataset_folder, rate)["val"]
        count = min(len(pairs), MOST_PAIRS, max(1, MOST_PLAYERS // len(runs)))
        for number in range(count):
            pair = pairs[number * len(pairs) // count]
            song, truth = (read_audio(path, rate, codec.channels) for path in (pair.input, pair.output))
            if pair.input not in samples:
                note = f"What all runs were given, then how it really goes on, from {song.shape[-1] / rate:.2f} s."
                samples[pair.input] = [AudioSample("Input and truth", note, torch.cat([song, truth], -1))]
            made = continue_song(generator, song, truth.shape[-1] / rate)
            begin = max(0, made.context.shape[-1] - lead)
            seam = (made.context.shape[-1] - begin) / rate
            note = f"The continuation begins at {seam:.2f} s."
            samples[pair.input].append(AudioSample(run.name, note, made.full[0, :, begin:]))
    return [SampleGroup(path.name.removesuffix("_input.wav"), shown) for path, shown in samples.items()], rate


def described(flags: Mapping[str, Any], run: Run) -> str:
    """A run's own flags, and how long it was trained."""
    own = ", ".join(f"{name} {shown(value)}" for name, value in flags.items() if value != 0.0) or "the common settings"
    return f"{own}; trained for {duration(run.state.seconds)}"


def facts(plan: Grid, config: TrainConfig, good: Sequence[Run]) -> dict[str, str]:
    """How the comparison was made."""
    common = ", ".join(f"{name} {shown(value)}" for name, value in plan.common.items() if name != "dataset_folder")
    found = {
        "Data": str(config.data.dataset_folder),
        "Codec": config.codec.name,
        "Common settings": common or "the defaults",
    }
    if good:
        evaluation = good[0].evaluation()
        found["Evaluated on"] = f"{evaluation['items']} validation pairs of {evaluation['seconds']:.2f} s"
        found["Candidates"] = f"{evaluation['candidates']} per pair where a run draws"
    return found


def shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    cli.run(app)
