#!/usr/bin/env python3
"""Tells how good a model's continuations are: tables, JSON and a page, for the model and for every baseline."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

import losses
from encore.codecs.losses import loss_options
from encore.config import cli
from encore.config.schema import listed
from encore.errors import EncoreError, make_folder
from encore.evaluation.baselines import BASELINES, OTHER_MUSIC, TRUTH, baselines, check_comparable, model_system
from encore.evaluation.catalog import catalogue
from encore.evaluation.dataset import load_clips, open_held_out, partners_elsewhere
from encore.evaluation.evaluator import (
    SCORE,
    Sounds,
    distribution,
    go_on,
    judge,
    summaries,
    training_patches,
    warnings_of,
)
from encore.evaluation.metrics.embeddings import WEIGHTS, latent_deviation, load_embedding
from encore.evaluation.metrics.memorization import memorisation as memorised
from encore.evaluation.per_item import LATENTS, Judges, Tally
from encore.evaluation.report import write_report
from encore.evaluation.results import Results, print_tables, write_json
from encore.models.loading import Generator, choose_device, load_generator, read
from encore.reporting.html import AudioSample, SampleGroup
from encore.tracking import log_evaluation, open_run

MODEL = "model"
TAKEN = (MODEL, *BASELINES)
DISTANCES = ("spectral_energy", "mel")  # losses that are scoring distances; the codec's encoder is the third
HEARD_ITEMS = 3
PLAIN_WIDTH = 100  # characters, of tables that go to a file or a pipe
UNHEARD = ("silence", "copy", "other_music", "codec")  # they are no continuations to listen to

app = cli.new_app()


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="checkpoint of a training run")],
    dataset_folder: Annotated[Path, typer.Option("--dataset_folder", help="folder with train/ and val/ pairs")],
    output: Annotated[Path, typer.Option("--output", help="folder for the report")] = Path("report"),
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="checkpoints to compare with: FILE or NAME=FILE, a list a,b or several flags"),
    ] = None,
    candidates: Annotated[int, typer.Option("--candidates", help="continuations per pair, at least 2")] = 4,
    seed: Annotated[int, typer.Option("--seed", help="of all that is random")] = 0,
    temperature: Annotated[float, typer.Option("--temperature", help="scale of the models' noise")] = 1.0,
    items: Annotated[int | None, typer.Option("--items", help="validation pairs; default: all")] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", help="pairs at once")] = 4,
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="losses to the truth: a,b,c; default: the training run's")
    ] = None,
    long_seconds: Annotated[float, typer.Option("--long_seconds", help="length of the long continuations")] = 60.0,
    long_items: Annotated[int, typer.Option("--long_items", help="how many pairs are continued so far; 0: none")] = 4,
    embedding: Annotated[
        str, typer.Option("--embedding", help="further features to compare distributions in", metavar="none|panns|clap")
    ] = "none",
    embedding_weights: Annotated[
        Path | None, typer.Option("--embedding_weights", help="their weights; default: downloaded if need be")
    ] = None,
    memorisation: Annotated[
        int, typer.Option("--memorisation", help="training segments to look for copies in; 0: none")
    ] = 500,
    mlflow_uri: Annotated[
        str | None, typer.Option("--mlflow_uri", help="MLflow server or store to log to; default: none")
    ] = None,
    experiment: Annotated[str, typer.Option("--experiment", help="MLflow experiment of a new run")] = "encore",
    run_id: Annotated[
        str | None, typer.Option("--run_id", help="MLflow run to log to; default: the checkpoint's, or a new one")
    ] = None,
    codec_repository: Annotated[
        Path | None, typer.Option("--codec_repository", help="folder with the pretrained codecs' files")
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option("--cache_dir", help="folder for encoded latents; default DATASET_FOLDER/.latents")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda; default: a GPU if there is one")] = None,
) -> None:
    """Measure continuations of all validation pairs: writes evaluation.json and index.html, and prints tables."""
    named = named_checkpoints(against or [])
    numbers = {
        "--candidates": (candidates, 2),
        "--temperature": (temperature, 0),
        "--items": (2 if items is None else items, 2),
        "--batch_size": (batch_size, 1),
        "--long_seconds": (long_seconds, 2),
        "--long_items": (long_items, 0),
        "--memorisation": (memorisation, 0),
    }
    files = {"--checkpoint": checkpoint, **{f"--against {name}:": path for name, path in named.items()}}
    check_options(files, dataset_folder, numbers, metrics, embedding)
    make_folder(output, "--output")
    place = choose_device(device)
    generator = load_generator(checkpoint, place, codec_repository)
    others = {name: load_generator(path, place, codec_repository) for name, path in named.items()}
    check_comparable(generator.codec, {name: other.codec for name, other in others.items()})
    extra = {} if embedding == "none" else {embedding: load_embedding(embedding, embedding_weights, str(place))}
    progress = read(checkpoint)["progress"]
    run = None if mlflow_uri is None else open_run(mlflow_uri, experiment, run_id, progress["run_id"])
    log = Console(stderr=True, highlight=False)

    codec = generator.codec
    with timed(log, "finding and encoding the pairs"):
        data = open_held_out(codec, dataset_folder, cache_dir, items, memorisation, place)
    chosen = choose_losses(generator, metrics, load_clips(data.val, [0], place).truth)
    contexts = torch.stack([data.val[number][0] for number in range(len(data.val))])
    distances = {name: losses.create(name, codec.sample_rate).to(place) for name in DISTANCES}
    judges = Judges(codec, latent_deviation(contexts).to(place), distances, chosen, losses.shared_spectra, extra)

    systems = [model_system(MODEL, generator, temperature)]
    for name, other in others.items():
        systems.append(model_system(name, other, temperature, own_latents=other.codec.identity != codec.identity))
    margin = codec.measure_margin(load_clips(data.val, [0], place).context)
    systems += baselines(codec, data.val, partners_elsewhere(data.recordings, seed), margin)

    sounds: Sounds = {number: {} for number in data.one_of_each(HEARD_ITEMS)}
    tallies: dict[str, Tally] = {}
    for system in systems:
        with timed(log, f"{system.name}, {len(data.val)} pairs"):
            scored = system.name != TRUTH
            tallies[system.name] = judge(system, data, judges, candidates, seed, batch_size, place, sounds, scored)
    figures = summaries(tallies, data.recordings)
    with timed(log, "distributions"):
        for name, tally in tallies.items():
            if name not in (TRUTH, OTHER_MUSIC):  # other music is the truth in another order
                figures[name] |= distribution(tally, tallies[TRUTH])
    if memorisation:
        with timed(log, f"memorisation, {len(data.train)} training segments"):
            patches, real = training_patches(data, judges), tallies[TRUTH].feature(LATENTS)
            for name, tally in tallies.items():
                figures[name]["memorisation"] = memorised(tally.feature(LATENTS), real, patches).ratio

    results = Results(
        facts={
            "Name": "/".join(checkpoint.resolve().parts[-2:]),
            "Checkpoint": str(checkpoint),
            **{f"Against: {name}": str(path) for name, path in named.items()},
            "Data": f"{dataset_folder}: {len(data.val)} of {data.everything} validation pairs, "
            f"{len(set(data.recordings))} recordings",
            "Candidates": f"{candidates}, seed {seed}, temperature {temperature:g}",
            "Codec": f"{generator.config.codec.name}, {codec.sample_rate} Hz",
            "Intervals": "95%, bootstrap over recordings; of distributions over pairs",
        },
        items=len(data.val),
        candidates=candidates,
        seconds=data.val.frames / codec.frame_rate,
        measures=catalogue(
            [*DISTANCES, LATENTS],
            {name: losses.REGISTRY[name].summary for name in chosen},
            list(tallies[TRUTH].features),
            long_seconds,
        ),
        systems=figures,
        per_item={
            measure: {name: tally.values[measure] for name, tally in tallies.items() if measure in tally.values}
            for measure in tallies[MODEL].values
            if measure.startswith(SCORE)
        },
        pairs=[pair.input.name.removesuffix("_input.wav") for pair in data.val.pairs],
        recordings=data.recordings,
        warnings=warnings_of(data, tallies[TRUTH]),
        notes={system.name: system.note for system in systems},
    )
    listening = [
        SampleGroup(
            f"{results.pairs[n]} ({data.recordings[n]}), continued from {results.seconds:.1f} s on", samples_of(s)
        )
        for n, s in sounds.items()
    ]
    if long_items:
        chosen_pairs = data.one_of_each(long_items)
        long: dict[str, Tensor] = {}
        for system in systems:
            if system.endless:
                with timed(log, f"{system.name}, {len(chosen_pairs)} continuations of {long_seconds:g} s"):
                    drift, courses, long[system.name] = go_on(system, data, chosen_pairs, long_seconds, seed, place)
                figures[system.name] |= drift
                for title, curve in courses.items():
                    results.courses.setdefault(title, {})[system.name] = curve
        listening.append(SampleGroup(f"{long_seconds:g} s on from {results.pairs[chosen_pairs[0]]}", samples_of(long)))
    write_json(results, output / "evaluation.json")
    write_report(results, listening, codec.sample_rate, output / "index.html")
    print_tables(results, Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH))
    log.print(f"listen and compare: {output / 'index.html'}", soft_wrap=True, markup=False)
    if run is not None:
        log_evaluation(run, results.metrics(), output, progress["step"])
        log.print(f"logged to run {run.run_id}", markup=False)


@contextmanager
def timed(log: Console, what: str) -> Iterator[None]:
    """Says what was done and how long it took."""
    start = time.monotonic()
    yield
    log.print(f"{time.monotonic() - start:7.1f} s  {what}", markup=False)


def samples_of(sounds: Mapping[str, Tensor]) -> list[AudioSample]:
    """Those to listen to, the truth first."""
    order = sorted(sounds, key=lambda name: name != TRUTH)
    return [AudioSample(name, "", sounds[name]) for name in order if name not in UNHEARD]


def named_checkpoints(against: list[str]) -> dict[str, Path]:
    """The checkpoints of --against by the name that they get: NAME=FILE, or the file's stem.

    Raises:
        EncoreError: two systems of one name.
    """
    named: dict[str, Path] = {}
    for part in [part.strip() for entry in against for part in entry.split(",") if part.strip()]:
        name, equals, path = part.rpartition("=")
        file = Path(path if equals else part)
        name = re.sub(r"[^\w.-]", "_", name if equals else file.stem)
        if name in TAKEN or name in named:
            raise EncoreError(f"--against {part}: there is a system {name!r} already; give it a name: other={file}")
        named[name] = file
    return named


def check_options(
    files: Mapping[str, Path],
    folder: Path,
    numbers: Mapping[str, tuple[float, float]],
    metrics: str | None,
    embedding: str,
) -> None:
    """Raises EncoreError with all that is wrong with the flags themselves.

    Args:
        files: checkpoints, by flag.
        numbers: value and least value, by flag.
    """
    problems = [
        f"{flag} {path}: no such file; training writes CHECKPOINT_DIR/best_model.pt"
        for flag, path in files.items()
        if not path.is_file()
    ]
    if not folder.is_dir():
        problems.append(f"--dataset_folder {folder}: no such folder; python prepare_data.py MUSIC --output {folder}")
    for flag, (value, least) in numbers.items():
        if not least <= value < math.inf:
            why = "; pairs of different candidates make the energy score" if flag == "--candidates" else ""
            problems.append(f"{flag} {value:g}: must be a finite number of at least {least:g}{why}")
    if embedding not in ("none", *WEIGHTS):
        problems.append(f"--embedding {embedding}: must be one of none, {', '.join(WEIGHTS)}")
    unknown = [name for name in listed(metrics or "") if name not in losses.REGISTRY]
    if unknown:
        problems.append(f"--metrics {','.join(unknown)}: no such loss; there are {', '.join(losses.REGISTRY)}")
    if problems:
        raise EncoreError("\n".join(problems))


def choose_losses(generator: Generator, metrics: str | None, truth: Tensor) -> dict[str, nn.Module]:
    """The losses to the truth, by name, each tried on `truth [1, C, N]`: the training run's, or those of --metrics.

    One of the run's that can't be computed here is left out, and said.

    Raises:
        EncoreError: losses of --metrics that can't be computed here, a line each.
    """
    config, codec = generator.config, generator.codec
    wanted = config.objective.loss_names if metrics is None else {*listed(metrics)}
    chosen: dict[str, nn.Module] = {}
    problems = []
    for name in losses.REGISTRY:
        if name not in wanted:
            continue
        try:
            loss = losses.create(name, codec.sample_rate, **loss_options(config.objective, codec, name)).to(
                truth.device
            )
            loss(truth, truth)
            chosen[name] = loss
        except (ImportError, OSError, ValueError) as error:
            if metrics is None:  # nobody asked for it by name
                print(f"the tables are without {name}: {error}", file=sys.stderr)
            else:
                problems.append(f"--metrics {name}: {error}")
    if problems:
        raise EncoreError("\n".join(problems))
    return chosen


if __name__ == "__main__":
    cli.run(app)
