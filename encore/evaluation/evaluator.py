"""Continues the validation pairs with models and baselines, and measures the continuations."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from rich.console import Console
from torch import Tensor

import losses
from encore.data.dataset import Batch
from encore.evaluation.baselines import OTHER_MUSIC, TRUTH, Baselines, Continuer, model_continuer
from encore.evaluation.catalog import catalogue
from encore.evaluation.config import MODEL, EvalConfig
from encore.evaluation.dataset import EvalSet
from encore.evaluation.metrics.distribution import RealMusic, frechet_warning
from encore.evaluation.metrics.drift import contours, drift, relative_contours
from encore.evaluation.metrics.embeddings import Embedding, latent_patches
from encore.evaluation.metrics.energy_score import SCORE, SKILL, skill
from encore.evaluation.metrics.memorization import memorization
from encore.evaluation.per_item import DISTANCES, LATENTS, MetricAccumulator, make_metrics
from encore.evaluation.results import Results
from encore.models.loading import Generator
from encore.reporting.html import AudioSample, SampleGroup
from encore.statistics import Interval, group_mean

REFERENCE = "replay"  # the continuer that skill is relative to
SAMPLE_PAIRS = 3  # pairs whose audio is on the page
NOT_ON_PAGE = ("silence", "copy", "other_music", "codec")
TRAINING_HOP_SECONDS = 0.125  # from patch to patch of training music
ENOUGH_PAIRS, ENOUGH_RECORDINGS = 50, 8

Accumulators = Mapping[str, MetricAccumulator]
Samples = dict[str, Tensor]  # by continuer, context and continuation, [C, K + M]


class Evaluator:
    """Evaluates a model and compares it with other models and the baselines.

    Args:
        model: the model to evaluate; its codec encodes and decodes.
        others: further models, by name; their codecs must have the same sample rate, channels and hop.
        embeddings: pretrained embeddings by name, as further feature spaces (`load_embedding`).
        console: reports what was done, and how long it took.

    Raises:
        EncoreError: a loss of --metrics that cannot be computed, or a metric registered under a name that is taken.
    """

    def __init__(
        self,
        model: Generator,
        data: EvalSet,
        config: EvalConfig,
        console: Console,
        others: Mapping[str, Generator] | None = None,
        embeddings: Mapping[str, Embedding] | None = None,
    ):
        self.model, self.data, self.config, self.console = model, data, config, console
        codec, others = model.codec, others or {}
        self.metrics = make_metrics(model, data, config.metrics, embeddings or {}, console)
        self.continuers = [model_continuer(MODEL, model, config.temperature)]
        for name, other in others.items():
            own = other.codec.identity != codec.identity
            self.continuers.append(model_continuer(name, other, config.temperature, own_latents=own))
        self.continuers += Baselines(codec, data, model.margin, config.seed).continuers()
        self.specs = catalogue(
            [*DISTANCES, LATENTS],
            {name: losses.REGISTRY[name].summary for name in self.metrics.losses},
            self.metrics.spaces,
            config.long_seconds,
        )
        self.samples: dict[int, Samples] = {number: {} for number in data.one_of_each(SAMPLE_PAIRS)}

    def run(self) -> tuple[Results, list[SampleGroup]]:
        """Evaluates everything: the results, and audio samples to listen to."""
        accumulators: dict[str, MetricAccumulator] = {}
        for continuer in self.continuers:
            with timed(self.console, f"{continuer.name}, {len(self.data)} pairs"):
                accumulators[continuer.name] = self.accumulate(continuer)
        values = self.summaries(accumulators)
        self.add_distributions(values, accumulators)
        if self.config.memorisation:
            self.add_memorization(values, accumulators)
        results = self.results(values, accumulators)
        names, recordings = self.data.names, self.data.recordings
        context = self.data.val.frames.context / self.model.codec.frame_rate
        groups = [
            sample_group(f"{names[n]} ({recordings[n]}), continued from {context:.1f} s on", samples)
            for n, samples in self.samples.items()
        ]
        if self.config.long_items:
            groups.append(self.add_long_form(results))
        return results, groups

    def accumulate(self, continuer: Continuer) -> MetricAccumulator:
        """Continues and measures all pairs; keeps the first candidate of those that are on the page."""
        accumulator = MetricAccumulator()
        for first in range(0, len(self.data), self.config.batch_size):
            numbers = range(first, min(first + self.config.batch_size, len(self.data)))
            batch = self.data.load(numbers)
            audio = continuer.draw(batch, self.config.candidates, self.config.seed)
            accumulator.add(*self.metrics.compute(audio, batch, is_truth=continuer.name == TRUTH))
            for number in self.samples.keys() & set(numbers):
                self.samples[number][continuer.name] = with_context(batch, audio, number - first)
        return accumulator

    def summaries(self, accumulators: Accumulators) -> dict[str, dict[str, Interval]]:
        """By continuer, the means over the pairs, and the skill."""
        found: dict[str, dict[str, Interval]] = {}
        for continuer, accumulator in accumulators.items():
            found[continuer] = self.means(accumulator.values, self.data.recordings)
            for name, values in accumulator.values.items():
                if name.startswith(SCORE):
                    reference = accumulators[REFERENCE].values[name]
                    found[continuer][SKILL + name.removeprefix(SCORE)] = skill(values, reference, self.data.recordings)
        return found

    def means(self, values: Mapping[str, list[float]], recordings: list[str]) -> dict[str, Interval]:
        """The mean of each metric over the pairs, on the metric's own scale."""
        transforms = {spec.name: spec.transform for spec in self.specs}
        means = {name: group_mean(numbers, recordings) for name, numbers in values.items()}
        return {name: mean if (f := transforms[name]) is None else mean.map(f) for name, mean in means.items()}

    def add_distributions(self, values: dict[str, dict[str, Interval]], accumulators: Accumulators) -> None:
        """Distances of the distribution of the continuations from that of the truths."""
        with timed(self.console, "distributions"):
            real = RealMusic(accumulators[TRUTH].features())
            for name, accumulator in accumulators.items():
                if name not in (TRUTH, OTHER_MUSIC):  # other music is the truth in another order
                    values[name] |= real.distances(accumulator.features())

    def add_memorization(self, values: dict[str, dict[str, Interval]], accumulators: Accumulators) -> None:
        """Distances to the nearest training music. Overlapping patches: copies are found wherever they begin."""
        with timed(self.console, f"memorisation, {len(self.data.train)} training segments"):
            rate, deviation = self.model.codec.frame_rate, self.metrics.deviation.cpu()
            latents = (self.data.cache.load(file).float()[None] for file in self.data.train)
            training = torch.cat([latent_patches(x, rate, deviation, TRAINING_HOP_SECONDS)[0] for x in latents])
            real = accumulators[TRUTH].features()[LATENTS]
            for name, accumulator in accumulators.items():
                values[name]["memorisation"] = memorization(accumulator.features()[LATENTS], real, training).ratio

    def add_long_form(self, results: Results) -> SampleGroup:
        """Long continuations of a few pairs: adds their drift and contours, and returns the first pair's."""
        numbers = self.data.one_of_each(self.config.long_items)
        seconds = self.config.long_seconds
        samples: Samples = {}
        for continuer in self.continuers:
            if continuer.long_form:
                with timed(self.console, f"{continuer.name}, {len(numbers)} continuations of {seconds:g} s"):
                    drifts, curves, samples[continuer.name] = self.continue_long(continuer, numbers)
                results.values[continuer.name] |= drifts
                for title, curve in curves.items():
                    results.contours.setdefault(title, {})[continuer.name] = curve
        return sample_group(f"{seconds:g} s on from {self.data.names[numbers[0]]}", samples)

    def continue_long(
        self, continuer: Continuer, numbers: list[int]
    ) -> tuple[dict[str, Interval], dict[str, list[float]], Tensor]:
        """Long continuations of the pairs of these numbers, one after the other.

        Returns:
            The drift by name, the mean contours by the title of their plot, the first continuation with its context.
        """
        rate = self.data.val.sample_rate
        frames = math.ceil(self.config.long_seconds * rate / self.data.val.hop_length)
        drifts: dict[str, list[float]] = {}
        curves: dict[str, list[list[float]]] = {}
        samples = []
        for number in numbers:
            batch = self.data.load([number])
            audio = continuer.draw(batch, 1, self.config.seed, frames)
            made = contours(audio[:, 0], rate)
            real = contours(torch.cat([batch.input_audio, batch.target_audio], dim=-1), rate)
            for name, values in drift(made).items():
                drifts.setdefault(name, []).extend(values.tolist())
            for title, curve in relative_contours(made, real).items():
                curves.setdefault(title, []).append(curve)
            samples.append(with_context(batch, audio, 0))
        recordings = [self.data.recordings[number] for number in numbers]
        means = {title: torch.tensor(lines).mean(0).tolist() for title, lines in curves.items()}
        return self.means(drifts, recordings), means, samples[0]

    def results(self, values: dict[str, dict[str, Interval]], accumulators: Accumulators) -> Results:
        scores = [name for name in accumulators[MODEL].values if name.startswith(SCORE)]
        return Results(
            metadata=self.metadata(),
            items=len(self.data),
            candidates=self.config.candidates,
            seconds=self.data.val.frames.target / self.model.codec.frame_rate,
            specs=self.specs,
            values=values,
            per_item={
                score: {name: part.values[score] for name, part in accumulators.items() if score in part.values}
                for score in scores
            },
            pairs=self.data.names,
            recordings=self.data.recordings,
            warnings=warnings_of(self.data, accumulators[TRUTH].features()),
            notes={continuer.name: continuer.note for continuer in self.continuers},
        )

    def metadata(self) -> dict[str, str]:
        """How the evaluation was made."""
        config, data = self.config, self.data
        return {
            "Name": "/".join(config.checkpoint.resolve().parts[-2:]),
            "Checkpoint": str(config.checkpoint),
            **{f"Against: {name}": str(path) for name, path in config.others.items()},
            "Data": f"{config.dataset_folder}: {len(data)} of {data.total} validation pairs, "
            f"{len(set(data.recordings))} recordings",
            "Candidates": f"{config.candidates}, seed {config.seed}, temperature {config.temperature:g}",
            "Codec": f"{self.model.config.codec.name}, {self.model.codec.sample_rate} Hz",
            "Intervals": "95%, bootstrap over recordings; of distributions over pairs",
        }


def with_context(batch: Batch, audio: Tensor, row: int) -> Tensor:
    """The input of a row of a batch and its first continuation in `audio [B, N, C, S]`: `[C, K + S]`, on the CPU."""
    return torch.cat([batch.input_audio[row], audio[row, 0]], dim=-1).cpu()


def sample_group(title: str, samples: Samples) -> SampleGroup:
    """The audio samples to listen to, the truth first."""
    order = sorted(samples, key=lambda name: name != TRUTH)
    return SampleGroup(title, [AudioSample(name, "", samples[name]) for name in order if name not in NOT_ON_PAGE])


def warnings_of(data: EvalSet, features: Mapping[str, Tensor]) -> list[str]:
    """Why some values should not be trusted; `features` are those of the truths, `[items, P, F]` by space."""
    pairs, recordings = len(data), len(set(data.recordings))
    found = []
    if pairs < ENOUGH_PAIRS:
        found.append(
            f"{pairs} validation pairs are few: below {ENOUGH_PAIRS} most differences between systems are chance"
        )
    if not data.recordings_known:
        found.append(
            "the recordings are unknown (no metadata.csv of prepare_data.py): every pair is taken for a recording of "
            "its own, so intervals may be too narrow, and other_music may be of the same recording"
        )
    elif recordings < 2:
        found.append("all pairs are of one recording: there are no intervals, and there is no other music")
    elif recordings < ENOUGH_RECORDINGS:
        found.append(f"{recordings} recordings are few: intervals over recordings are rough below {ENOUGH_RECORDINGS}")
    for space, patches in features.items():
        warning = frechet_warning(patches, patches)
        if warning is not None:
            found.append(f"{space} features: {warning}")
    return found


@contextmanager
def timed(console: Console, what: str) -> Iterator[None]:
    """Reports what was done and how long it took."""
    start = time.monotonic()
    yield
    console.print(f"{time.monotonic() - start:7.1f} s  {what}", markup=False)
