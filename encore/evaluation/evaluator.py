"""Continues the held-out pairs with models and baselines, and measures the continuations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

import losses
from encore.evaluation.baselines import (
    CODEC,
    MODEL,
    NEGATIVES,
    OTHER_MUSIC,
    TRUTH,
    Baselines,
    Continuer,
    model_continuers,
)
from encore.evaluation.catalog import catalogue
from encore.evaluation.config import EvalConfig
from encore.evaluation.dataset import EvalSet, song_name
from encore.evaluation.headline import HEADLINE, PULSE, PULSE_DIFFERENCE, caption
from encore.evaluation.metrics.critic import CRITIC, critic_values
from encore.evaluation.metrics.distribution import RealMusic
from encore.evaluation.metrics.drift import contours, drift, relative_contours
from encore.evaluation.metrics.embeddings import Embedding, latent_patches
from encore.evaluation.metrics.energy_score import SCORE, SKILL, SKILL_PRIOR
from encore.evaluation.metrics.memorization import memorization
from encore.evaluation.metrics.repetition import REPETITION, REPETITION_DIFFERENCE
from encore.evaluation.per_item import DISTANCES, LATENTS, MetricAccumulator, make_metrics
from encore.evaluation.results import Results
from encore.evaluation.warnings import critic_warnings, dependence_warnings, warnings_of
from encore.models.loading import Generator
from encore.reporting.html import AudioSample, SampleGroup
from encore.statistics import Interval, group_mean, skill

REFERENCE = "replay"  # the continuer that skill is relative to
SAMPLE_PAIRS = 3  # pairs whose audio is on the page
NOT_ON_PAGE = ("silence", "noise", "shards", OTHER_MUSIC, "copy", CODEC)
LEAD_SECONDS = 4.0  # of the input in front of each continuation on the page, at most
TRAINING_HOP_SECONDS = 0.125  # from patch to patch of training music

Advance = Callable[[str, int], None]  # is told what is being done, and how much has been done since
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
        self.others = others or {}
        codec = model.codec
        self.metrics = make_metrics(model, data, config, embeddings or {}, console)
        self.continuers = model_continuers(MODEL, model, config.temperature)
        for name, other in self.others.items():
            own = other.codec.identity != codec.identity
            self.continuers += model_continuers(name, other, config.temperature, own_codec=own)
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
        with progress(self.console, len(self.continuers) * len(self.data)) as advance:
            for continuer in self.continuers:
                with timed(self.console, f"{continuer.name}, {len(self.data)} pairs"):
                    accumulators[continuer.name] = self.accumulate(continuer, advance)
        if self.config.critic and len(set(self.data.recordings)) > 1:
            self.ask_critic(accumulators)
        values = self.summaries(accumulators)
        self.add_distributions(values, accumulators)
        if self.config.memorisation:
            self.add_memorization(values, accumulators)
        results = self.results(values, accumulators)
        groups = [
            self.sample_group(number, samples, self.data.names[number]) for number, samples in self.samples.items()
        ]
        if self.config.long_items:
            groups.append(self.add_long_form(results))
        return results, groups

    def accumulate(self, continuer: Continuer, advance: Advance) -> MetricAccumulator:
        """Continues and measures all pairs; keeps the first candidate of those that are on the page."""
        accumulator = MetricAccumulator()
        advance(continuer.name, 0)
        for first in range(0, len(self.data), self.config.batch_size):
            numbers = range(first, min(first + self.config.batch_size, len(self.data)))
            batch = self.data.load(numbers)
            before, audio = continuer.hear(batch, self.config.candidates, self.config.seed)
            is_truth = continuer.name == TRUTH
            accumulator.add(self.metrics.compute(audio, batch, before, is_truth, continuer.recorded))
            for number in self.samples.keys() & set(numbers):
                self.samples[number][continuer.name] = with_context(before, audio, number - first, self.lead)
            advance(continuer.name, len(numbers))
        return accumulator

    def ask_critic(self, accumulators: Accumulators) -> None:
        """Whether a critic tells the continuations of each continuer from those of its reference."""
        judged = [continuer for continuer in self.continuers if continuer.name != continuer.reference]
        with progress(self.console, len(judged)) as advance:
            for continuer in judged:
                advance(what := f"critic of {continuer.name}", 0)
                with timed(self.console, what):
                    made, real = (accumulators[name].windows() for name in (continuer.name, continuer.reference))
                    accumulators[continuer.name].values[CRITIC] = critic_values(
                        real, made, self.data.recordings, self.config.seed
                    ).tolist()
                advance(what, 1)

    def summaries(self, accumulators: Accumulators) -> dict[str, dict[str, Interval]]:
        """By continuer, the means over the pairs, and its skill against the replay and against its own prior."""
        found: dict[str, dict[str, Interval]] = {}
        recordings, truth = self.data.recordings, accumulators[TRUTH].values
        for continuer in self.continuers:
            own = accumulators[continuer.name].values
            values = self.means(own, recordings)
            for name, difference in ((PULSE, PULSE_DIFFERENCE), (REPETITION, REPETITION_DIFFERENCE)):
                differences = [mine - real for mine, real in zip(own[name], truth[name], strict=True)]
                values[difference] = group_mean(differences, recordings)
            references = {SKILL: REFERENCE, SKILL_PRIOR: continuer.prior}
            for score in [name for name in own if name.startswith(SCORE)]:
                for prefix, reference in references.items():
                    if reference is not None:
                        base = accumulators[reference].values[score]
                        values[prefix + score.removeprefix(SCORE)] = skill(own[score], base, recordings)
            found[continuer.name] = values
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
        long = [continuer for continuer in self.continuers if continuer.long_form]
        with progress(self.console, len(long)) as advance:
            for continuer in long:
                advance(what := f"{continuer.name}, {len(numbers)} continuations of {seconds:g} s", 0)
                with timed(self.console, what):
                    drifts, curves, samples[continuer.name] = self.continue_long(continuer, numbers)
                advance(what, 1)
                results.values[continuer.name] |= drifts
                for title, curve in curves.items():
                    results.contours.setdefault(title, {})[continuer.name] = curve
        return self.sample_group(numbers[0], samples, f"continued for {seconds:g} s")

    def continue_long(
        self, continuer: Continuer, numbers: list[int]
    ) -> tuple[dict[str, Interval], dict[str, list[float]], Tensor]:
        """Long continuations of the pairs of these numbers, one after the other.

        Returns:
            The drift by name, the mean contours by the title of their plot, the first continuation with its context.
        """
        rate = self.data.held_out.sample_rate
        frames = math.ceil(self.config.long_seconds * rate / self.data.held_out.hop_length)
        drifts: dict[str, list[float]] = {}
        curves: dict[str, list[list[float]]] = {}
        samples = []
        for number in numbers:
            batch = self.data.load([number])
            before, audio = continuer.hear(batch, 1, self.config.seed, frames)
            made = contours(audio[:, 0], rate)
            real = contours(torch.cat([batch.input_audio, batch.target_audio], dim=-1), rate)
            for name, values in drift(made).items():
                drifts.setdefault(name, []).extend(values.tolist())
            for title, curve in relative_contours(made, real).items():
                curves.setdefault(title, []).append(curve)
            samples.append(with_context(before, audio, 0, self.lead))
        recordings = [self.data.recordings[number] for number in numbers]
        means = {title: torch.tensor(lines).mean(0).tolist() for title, lines in curves.items()}
        return self.means(drifts, recordings), means, samples[0]

    def results(self, values: dict[str, dict[str, Interval]], accumulators: Accumulators) -> Results:
        scores = [name for name in accumulators[MODEL].values if name.startswith(SCORE)]
        return Results(
            metadata=self.metadata(),
            items=len(self.data),
            candidates=self.config.candidates,
            seconds=self.data.held_out.frames.target / self.model.codec.frame_rate,
            specs=self.specs,
            values=values,
            per_item={
                score: {name: part.values[score] for name, part in accumulators.items() if score in part.values}
                for score in scores
            },
            pairs=self.data.names,
            recordings=self.data.recordings,
            warnings=[
                *warnings_of(self.data, accumulators[TRUTH].features()),
                *dependence_warnings(self.continuers, self.data.load([0])),
                *critic_warnings(values),
            ],
            notes={continuer.name: continuer.note for continuer in self.continuers},
            unranked=(*NEGATIVES, *(one.name for one in self.continuers if one.reference == TRUTH)),
            headline=HEADLINE,
            caption=caption(self.codecs(), values),
        )

    @property
    def lead(self) -> int:
        """Samples of the input in front of each continuation on the page."""
        codec = self.model.codec
        return min(self.data.held_out.frames.context * codec.hop_length, round(LEAD_SECONDS * codec.sample_rate))

    def sample_group(self, number: int, samples: Samples, note: str) -> SampleGroup:
        """What continued a pair, to listen to: the truth first."""
        order = sorted((name for name in samples if name not in NOT_ON_PAGE), key=lambda name: name != TRUTH)
        begins = self.lead / self.model.codec.sample_rate
        note += f", after {begins:.3g} s of the input"
        shown = [AudioSample(name, "", samples[name], begins) for name in order]
        return SampleGroup(song_name(self.data.recordings[number]), shown, note)

    def codecs(self) -> dict[str, str]:
        """The name of each model's codec, by the row with the truth through it."""
        models = {CODEC: self.model, **{f"{name}_{CODEC}": other for name, other in self.others.items()}}
        rows = {continuer.name for continuer in self.continuers}
        return {row: model.config.codec.name for row, model in models.items() if row in rows}

    def metadata(self) -> dict[str, str]:
        """How the evaluation was made."""
        config, data = self.config, self.data
        return {
            "Name": "/".join(config.checkpoint.resolve().parts[-2:]),
            "Checkpoint": str(config.checkpoint),
            **{f"Against: {name}": str(path) for name, path in config.others.items()},
            "Data": f"{config.dataset_folder}: {len(data)} of {data.total} pairs for {data.split}, "
            f"{len(set(data.recordings))} recordings",
            "Candidates": f"{config.candidates}, seed {config.seed}, temperature {config.temperature:g}",
            "Codec": f"{self.model.config.codec.name}, {self.model.codec.sample_rate} Hz",
            "Intervals": "95%, bootstrap over recordings; of distributions over pairs",
        }


def with_context(before: Tensor, audio: Tensor, row: int, lead: int) -> Tensor:
    """The end of what is heard before, and the first continuation of a row of `audio [B, N, C, S]`: `[C, lead + S]`."""
    return torch.cat([before[row, :, before.shape[-1] - lead :], audio[row, 0]], dim=-1).cpu()


@contextmanager
def progress(console: Console, total: int) -> Iterator[Advance]:
    """A bar on a terminal; gives a function that says what is being done, and how much of the total has been."""
    columns = TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.percentage:.0f}%")
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda what, done: bar.update(task, description=what, advance=done)


@contextmanager
def timed(console: Console, what: str) -> Iterator[None]:
    """Reports what was done and how long it took."""
    start = time.monotonic()
    yield
    console.print(f"{time.monotonic() - start:7.1f} s  {what}", markup=False)
