"""What is measured of every continuation of a validation pair, batch after batch, and its mean over recordings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from encore.codecs import Codec
from encore.evaluation.dataset import Clips
from encore.evaluation.metrics.boundary import seam
from encore.evaluation.metrics.drift import compare, course, drift
from encore.evaluation.metrics.embeddings import latent_distance, latent_patches, log_mel_patches
from encore.evaluation.metrics.energy_score import energy_score
from encore.evaluation.metrics.repetition import repetition
from encore.evaluation.metrics.rhythm_harmony import chroma_following, chroma_similarity, onset_rate, pulse_agreement
from encore.statistics import Interval, bootstrap

Distance = Callable[[Tensor, Tensor], Tensor]  # [B, C, N] twice to one value per item, [B]
LATENTS = "codec"  # the distance in the codec's encoder
REFERENCE = "replay"  # the system that skill is measured by


@dataclass(frozen=True)
class Judges:
    """What compares continuations with the truth.

    Attributes:
        codec: whose encoder gives latents to compare.
        deviation: σ of each latent channel in real music, `[D]`.
        distances: symmetric distances of audio under which the energy score is taken, by name.
        losses: losses to the truth, by name.
        shared: a context within which distances and losses may share spectra.
        embeddings: further features in which distributions are compared: `f(audio [B, C, S], rate)` to `[B, P, F]`.
    """

    codec: Codec
    deviation: Tensor
    distances: Mapping[str, Distance]
    losses: Mapping[str, Distance]
    shared: Callable[[], AbstractContextManager[None]]
    embeddings: Mapping[str, Callable[[Tensor, int], Tensor]]


@dataclass
class Tally:
    """A system's figures, a value per pair, and the features of its continuations, `[B, P, F]` by space."""

    values: dict[str, list[float]] = field(default_factory=dict)
    features: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, values: Mapping[str, Tensor | Sequence[float]], features: Mapping[str, Tensor]) -> None:
        for name, part in values.items():
            numbers = part.detach().cpu().double().tolist() if isinstance(part, Tensor) else list(part)
            self.values.setdefault(name, []).extend(numbers)
        for name, feature in features.items():
            self.features.setdefault(name, []).append(feature.detach().cpu())

    def feature(self, name: str) -> Tensor:
        """`[items, P, F]`."""
        return torch.cat(self.features[name])


@torch.no_grad()
def measure(audio: Tensor, clips: Clips, judges: Judges, tally: Tally, scored: bool = True) -> None:
    """Adds what there is to say of the continuations `audio [B, N, C, S]` of `clips` to a tally.

    Losses and energy scores are of all N candidates. Features, seam, music and repetition are of the first one, so
    that a system that is random and one that isn't are judged by equally many continuations.

    Args:
        scored: whether they are compared with the truth; not if they are the truth.
    """
    candidates = audio.shape[1]
    latents = judges.codec.encode(audio.flatten(0, 1)).unflatten(0, (len(clips), candidates))
    values: dict[str, Tensor | Sequence[float]] = {}
    if scored:
        for name, distance in judges.distances.items():
            with judges.shared():
                values |= _scores(name, distance, audio, clips.truth)
        values |= _scores(
            LATENTS, lambda one, other: latent_distance(one, other, judges.deviation), latents, clips.truth_latents
        )
        values |= _losses(judges, audio, clips.truth)
        compared = compare(audio, clips.truth[:, None], judges.codec.sample_rate)
        values |= {name: figures.mean(1) for name, figures in compared.items()}
    values |= _alone(audio[:, 0].cpu(), clips, judges.codec.sample_rate, scored)
    tally.add(values, features_of(audio[:, 0], latents[:, 0], judges))


def features_of(audio: Tensor, latents: Tensor, judges: Judges) -> dict[str, Tensor]:
    """Patches of `audio [B, C, S]`, whose latents are `[B, D, T]`, by the space that they lie in: `[B, P, F]`."""
    return {
        LATENTS: latent_patches(latents, judges.codec.frame_rate, judges.deviation),
        "log_mel": log_mel_patches(audio, judges.codec.sample_rate),
        **{name: embed(audio, judges.codec.sample_rate) for name, embed in judges.embeddings.items()},
    }


def mean(values: Sequence[float], recordings: Sequence[str]) -> Interval:
    """The mean over pairs; its interval is over recordings, as pairs of one recording are alike."""
    sums, counts = _by_recording(values, recordings), _by_recording([1.0] * len(values), recordings)
    return bootstrap(lambda part, count: float(part.sum() / count.sum()), sums, counts)


def skill(score: Sequence[float], reference: Sequence[float], recordings: Sequence[str]) -> Interval:
    """`1 − mean score / mean reference`, of the same pairs; its interval is over recordings."""
    sums = _by_recording(score, recordings), _by_recording(reference, recordings)
    return bootstrap(lambda mine, other: 1 - float(mine.sum() / other.sum()), *sums)


def transformed(interval: Interval, function: Callable[[float], float]) -> Interval:
    """An interval on another, growing, scale."""
    low, high = (None if end is None else function(end) for end in (interval.low, interval.high))
    return Interval(function(interval.value), low, high)


def _scores(name: str, distance: Distance, candidates: Tensor, truth: Tensor) -> dict[str, Tensor]:
    found = energy_score(distance, candidates, truth)
    values = {f"energy_score_{name}": found.score}
    if candidates.shape[1] > 1:
        values[f"diversity_{name}"] = found.repulsion
    return values


def _losses(judges: Judges, audio: Tensor, truth: Tensor) -> dict[str, Tensor]:
    values: dict[str, list[Tensor]] = {name: [] for name in judges.losses}
    for candidate in audio.unbind(1):
        with judges.shared():
            for name, loss in judges.losses.items():
                values[name].append(loss(candidate, truth))
    figures: dict[str, Tensor] = {}
    for name, parts in values.items():
        by_candidate = torch.stack(parts, 1)
        figures |= {f"mean_{name}": by_candidate.mean(1), f"best_{name}": by_candidate.amin(1)}
    return figures


def _alone(audio: Tensor, clips: Clips, sample_rate: int, scored: bool) -> dict[str, list[float]]:
    """Seam, repetition and music of one continuation per pair, `[B, C, S]`."""
    values: dict[str, list[float]] = {}
    for made, context, truth in zip(audio, clips.input.cpu(), clips.truth.cpu(), strict=True):
        join = seam(context, made, sample_rate, truth)
        found = {
            "seam_flux": join.flux,
            "seam_step": join.step,
            "repetition": repetition(context, made, sample_rate).similarity,
            "onset_rate": onset_rate(made, sample_rate),
            "pulse_context": pulse_agreement(context, made, sample_rate),
            "chroma_context": chroma_similarity(context, made, sample_rate),
        }
        if scored:
            found["chroma_truth"] = chroma_following(made, truth, sample_rate)
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    return values


def _by_recording(values: Sequence[float], recordings: Sequence[str]) -> np.ndarray:
    """The sum over the pairs of each recording."""
    sums: dict[str, float] = {}
    for value, recording in zip(values, recordings, strict=True):
        sums[recording] = sums.get(recording, 0.0) + value
    return np.array(list(sums.values()))


def long_course(audio: Tensor, clips: Clips, sample_rate: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """How long continuations `audio [B, C, N]` run.

    Returns:
        By name, `drift_level`, `drift_centroid` and `drift_texture`: a value per item, the logarithm of how many times
        more there is at the end than at the start (`course.drift`).
        By the title of a plot, the mean over the items second by second, against the mean of the item's real music
        (context and truth): level in dB, the others as a ratio.
    """
    real = course(torch.cat([clips.input, clips.truth], dim=-1), sample_rate).log_curves()
    made = course(audio, sample_rate)
    drifts = {f"drift_{name}": values.tolist() for name, values in drift(made).items()}
    relative = {name: (curve - real[name].mean(-1, keepdim=True)).mean(0) for name, curve in made.log_curves().items()}
    return drifts, {
        "Level against real music, dB": (relative["level"] * 20 / math.log(10)).tolist(),
        "Spectral centroid, real music = 1": relative["centroid"].exp().tolist(),
        "Texture, real music = 1": relative["texture"].exp().tolist(),
    }
