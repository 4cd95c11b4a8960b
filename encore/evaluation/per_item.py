"""Metrics of every continuation of a held-out pair, computed batch after batch and accumulated over the pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from torch import Tensor, nn

import losses
from encore.codecs import Codec
from encore.codecs.losses import build_losses
from encore.config.knobs import listed
from encore.data.dataset import Batch
from encore.errors import EncoreError
from encore.evaluation.config import EvalConfig
from encore.evaluation.dataset import EvalSet
from encore.evaluation.metrics.critic import Windows, windows_of
from encore.evaluation.metrics.drift import compare_contours
from encore.evaluation.metrics.embeddings import (
    Embedding,
    latent_deviation,
    latent_distance,
    latent_patches,
    log_mel_patches,
)
from encore.evaluation.metrics.energy_score import score_values
from encore.evaluation.metrics.losses import loss_values
from encore.evaluation.metrics.registry import METRICS, Item
from encore.models.loading import Generator

Distance = Callable[[Tensor, Tensor], Tensor]  # [B, C, N] twice to one value per item, [B]
Values = Mapping[str, Tensor | Sequence[float]]  # one per item, by name
LATENTS = "codec"  # name of the distance between latents
# Losses that are scoring distances; that between latents is one too.
DISTANCES = ("spectral_energy", "audible_energy", "mel", "floored_mel", "variogram")


@dataclass(frozen=True)
class Measured:
    """What was found about the continuations of a batch.

    Attributes:
        values: one per item, by metric.
        features: patches of the first candidate, `[B, P, F]` by space.
        windows: what the critic gets of all candidates; None without a critic.
    """

    values: Values
    features: Mapping[str, Tensor]
    windows: Windows | None = None


@dataclass
class MetricAccumulator:
    """What was found about all continuations of one continuer."""

    values: dict[str, list[float]] = field(default_factory=dict)
    parts: dict[str, list[Tensor]] = field(default_factory=dict)
    heard: list[Windows] = field(default_factory=list)

    def add(self, measured: Measured) -> None:
        for name, part in measured.values.items():
            numbers = part.detach().cpu().double().tolist() if isinstance(part, Tensor) else list(part)
            self.values.setdefault(name, []).extend(numbers)
        for name, feature in measured.features.items():
            self.parts.setdefault(name, []).append(feature.detach().cpu())
        if measured.windows is not None:
            self.heard.append(measured.windows)

    def features(self) -> dict[str, Tensor]:
        """`[items, P, F]` by space."""
        return {name: torch.cat(parts) for name, parts in self.parts.items()}

    def windows(self) -> Windows:
        """What the critic gets of all items."""
        return Windows.cat(self.heard)


@dataclass(frozen=True)
class Metrics:
    """Everything that continuations are measured with.

    Attributes:
        codec: its encoder gives the latents that are compared.
        deviation: σ of each latent channel in real music, `[D]`.
        distances: symmetric distances of audio under which the energy score is computed, by name.
        losses: losses to the truth, by name.
        embeddings: pretrained embeddings by name, as further feature spaces.
        margin: latent frames that the decoder needs on the left of a crop.
        critic: whether continuations are kept for the critic.
    """

    codec: Codec
    deviation: Tensor
    distances: Mapping[str, Distance]
    losses: Mapping[str, Distance]
    embeddings: Mapping[str, Embedding]
    margin: int
    critic: bool = True

    @property
    def spaces(self) -> list[str]:
        """The feature spaces in which distributions are compared."""
        return [LATENTS, "log_mel", *self.embeddings]

    @torch.no_grad()
    def compute(
        self, audio: Tensor, batch: Batch, before: Tensor, is_truth: bool = False, recorded: bool = False
    ) -> Measured:
        """Computes the metrics of the continuations `audio [B, N, C, S]` of a batch.

        Energy scores, losses and contours use all N candidates. Features and the registered metrics use the first
        one, so that stochastic and deterministic continuers are measured on equally many continuations.

        Args:
            before: the inputs as they are heard before the continuations, `[B, C, K]`.
            is_truth: the continuations are the truth, so nothing is compared with it.
            recorded: they went through no codec, so they go through this one for the critic, except for the truth.
        """
        latents = self.codec.encode(audio.flatten(0, 1)).unflatten(0, audio.shape[:2])
        values: dict[str, Tensor | Sequence[float]] = {}
        if not is_truth:
            values |= self._scores(audio, latents, batch)
            values |= loss_values(self.losses, audio, batch.target_audio)
            compared = compare_contours(audio, batch.target_audio[:, None], self.codec.sample_rate)
            values |= {name: value.mean(1) for name, value in compared.items()}
        values |= self._registered(audio[:, 0].cpu(), before, batch, is_truth)
        features = self._features(audio[:, 0], latents[:, 0])
        if not self.critic:
            return Measured(values, features)
        if recorded and not is_truth:
            context = batch.context.repeat_interleave(audio.shape[1], 0)
            audio = self.codec.decode_continuation(context, latents.flatten(0, 1), self.margin).view_as(audio)
        return Measured(values, features, windows_of(batch.input_audio, audio, self.codec.sample_rate))

    def _scores(self, audio: Tensor, latents: Tensor, batch: Batch) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for name, distance in self.distances.items():
            with losses.shared_spectra():
                values |= score_values(name, distance, audio, batch.target_audio)
        return values | score_values(
            LATENTS, lambda one, other: latent_distance(one, other, self.deviation), latents, batch.target_latents
        )

    def _registered(self, audio: Tensor, before: Tensor, batch: Batch, is_truth: bool) -> dict[str, list[float]]:
        """The registered metrics of one continuation per pair, `[B, C, S]`."""
        audios = audio, before.cpu(), batch.target_audio.cpu()
        items = [
            Item(context, made, truth, self.codec.sample_rate) for made, context, truth in zip(*audios, strict=True)
        ]
        return {
            name: [metric.compute(item) for item in items]
            for name, metric in METRICS.items()
            if not (is_truth and metric.against_truth)
        }

    def _features(self, audio: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """Patches of `audio [B, C, S]`, whose latents are `[B, D, T]`, by feature space: `[B, P, F]`."""
        return {
            LATENTS: latent_patches(latents, self.codec.frame_rate, self.deviation),
            "log_mel": log_mel_patches(audio, self.codec.sample_rate),
            **{name: embed(audio, self.codec.sample_rate) for name, embed in self.embeddings.items()},
        }


def make_metrics(
    model: Generator, data: EvalSet, config: EvalConfig, embeddings: Mapping[str, Embedding], console: Console
) -> Metrics:
    """What the continuations are measured with.

    The unit of each latent channel is its deviation over all inputs of the pairs.
    """
    codec = model.codec
    contexts = torch.stack([data.held_out[number][0] for number in range(len(data))])
    distances = {name: losses.create(name, codec.sample_rate, reduction="none").to(data.device) for name in DISTANCES}
    functions = choose_losses(model, config.metrics, data.load([0]).target_audio, console)
    deviation = latent_deviation(contexts).to(data.device)
    return Metrics(codec, deviation, distances, functions, embeddings, model.margin, config.critic)


def choose_losses(model: Generator, names: str | None, example: Tensor, console: Console) -> dict[str, nn.Module]:
    """The losses to the truth, by name: those of --metrics, else those of the training run.

    A loss of the training run that cannot be computed here is left out, with a message.

    Raises:
        EncoreError: losses of --metrics that cannot be computed here, one line each.
    """
    wanted = model.config.objective.loss_names if names is None else listed(names)
    built, problems = build_losses(wanted, model.config.objective, model.codec, example)
    if problems and names is not None:
        raise EncoreError("\n".join(f"--metrics {name}: {problem}" for name, problem in problems.items()))
    for name, problem in problems.items():
        console.print(f"the tables are without {name}: {problem}", markup=False, soft_wrap=True)
    return built
