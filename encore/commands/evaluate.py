"""Measures how good a model's continuations are: tables, JSON and a page, for the model and for every baseline."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial

import torch
from rich.console import Console

from encore.config import cli
from encore.config.schema import latents_of
from encore.data import find_pairs
from encore.data.pairs import TEST
from encore.data.songs import is_songs, pairs_of_songs
from encore.errors import EncoreError, make_folder
from encore.evaluation.baselines import check_comparable
from encore.evaluation.config import EvalConfig
from encore.evaluation.dataset import VAL, EvalSet
from encore.evaluation.evaluator import Evaluator, timed
from encore.evaluation.metrics.embeddings import Embedding, load_embedding
from encore.evaluation.report import write_report
from encore.evaluation.results import print_tables, print_verdict, write_json
from encore.evaluation.verdict import sentences
from encore.models.loading import Generator, choose_device, load_generator
from encore.tracking import log_evaluation, open_run

PLAIN_WIDTH = 100  # characters, of tables that go to a file or a pipe


def main(config: EvalConfig) -> None:
    """Measure continuations of held-out pairs: writes evaluation.json and index.html, and prints tables."""
    config.check()
    make_folder(config.output, "--output")
    device, console = choose_device(config.device), Console(stderr=True, highlight=False)
    model, others = load_models(config, device)
    embeddings = load_embeddings(config, device)
    run = None
    if config.mlflow_uri is not None:
        run = open_run(config.mlflow_uri, config.experiment, config.run_id, model.progress.get("run_id"))
    with timed(console, what := "finding and encoding the pairs"), console.status(what):
        data = open_data(config, model, device)
    results, samples = Evaluator(model, data, config, console, others, embeddings).run()
    write_json(results, config.output / "evaluation.json")
    write_report(results, samples, model.codec.sample_rate, config.output / "index.html")
    tables = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    print_tables(results, tables)
    print_verdict(sentences(results), tables)
    console.print(f"listen and compare: {config.output / 'index.html'}", soft_wrap=True, markup=False)
    if run is not None:
        log_evaluation(run, results.tracked(), config.output, model.progress.get("step", 0), sentences(results))
        console.print(f"logged to run {run.run_id}", markup=False)


def load_models(config: EvalConfig, device: torch.device) -> tuple[Generator, Mapping[str, Generator]]:
    """The model, and by name those to compare it with.

    Raises:
        EncoreError: a checkpoint cannot be loaded, or the codecs' audio cannot be compared.
    """
    model = load_generator(config.checkpoint, device, config.codec_repository)
    others = {name: load_generator(path, device, config.codec_repository) for name, path in config.others.items()}
    check_comparable(model.codec, {name: other.codec for name, other in others.items()})
    return model, others


def open_data(config: EvalConfig, model: Generator, device: torch.device) -> EvalSet:
    """The pairs to judge on, encoded with the model's codec.

    Raises:
        EncoreError: there are no pairs that can be used, or none of --split.
    """
    dataset_format = config.dataset_format or model.config.data.dataset_format
    folder = config.dataset_folder
    if dataset_format == "pairs" and is_songs(folder):
        rate, channels = model.codec.sample_rate, model.codec.channels
        folder = pairs_of_songs(folder, config.cache_dir, rate, channels, partial(print, file=sys.stderr))
    cache_dir = config.cache_dir or latents_of(folder)
    pairs = find_pairs(folder, model.codec.sample_rate, dataset_format, cache_dir)
    split = config.split or (TEST if len(pairs.get(TEST, ())) else VAL)
    if not len(pairs.get(split, ())):
        raise EncoreError(f"--split {split}: {config.dataset_folder} has no pairs for {split}; use --split {VAL}")
    return EvalSet.open(model.codec, pairs, cache_dir, config.items, config.memorisation, device, split)


def load_embeddings(config: EvalConfig, device: torch.device) -> Mapping[str, Embedding]:
    """The pretrained embedding of --embedding by its name, if there is one."""
    if config.embedding == "none":
        return {}
    return {config.embedding: load_embedding(config.embedding, config.embedding_weights, str(device))}


app = cli.new_app()
cli.add_command(app, EvalConfig, main)

if __name__ == "__main__":
    cli.run(app)
