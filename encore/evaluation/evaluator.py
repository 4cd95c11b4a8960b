"""A system measured over all held-out pairs: item after item, as a distribution, and for long."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from encore.evaluation.baselines import System
from encore.evaluation.dataset import Clips, HeldOut, load_clips
from encore.evaluation.metrics.distribution import energy_distance, frechet_distance, frechet_warning, kernel_distance
from encore.evaluation.metrics.embeddings import latent_patches
from encore.evaluation.per_item import REFERENCE, Judges, Tally, long_course, mean, measure, skill, transformed
from encore.statistics import Interval

SCORE, SKILL = "energy_score_", "skill_"
PATCHES = "log_mel"  # the features of the patch distance
PATCH_HOP_SECONDS = 0.125
ENOUGH_PAIRS, ENOUGH_RECORDINGS = 50, 8
Sounds = dict[int, dict[str, Tensor]]  # by a pair's number and a system's name, context and continuation, [C, K + M]


def judge(
    system: System,
    data: HeldOut,
    judges: Judges,
    candidates: int,
    seed: int,
    batch_size: int,
    device: torch.device,
    sounds: Sounds,
    scored: bool = True,
) -> Tally:
    """All pairs, continued and measured; the first candidate of those in `sounds` is kept there."""
    tally = Tally()
    for first in range(0, len(data.val), batch_size):
        numbers = range(first, min(first + batch_size, len(data.val)))
        clips = load_clips(data.val, numbers, device)
        audio = system.draw(clips, candidates, seed)
        measure(audio, clips, judges, tally, scored)
        for number in sounds.keys() & set(numbers):
            sounds[number][system.name] = after_context(clips, audio, number - first)
    return tally


def after_context(clips: Clips, audio: Tensor, row: int) -> Tensor:
    """The input of a row of `clips` and its first continuation in `audio [B, N, C, S]`: `[C, K + S]`, on the CPU."""
    return torch.cat([clips.input[row], audio[row, 0]], dim=-1).cpu()


def summaries(tallies: Mapping[str, Tally], recordings: list[str]) -> dict[str, dict[str, Interval]]:
    """By system, the figures that are means over the pairs, and its skill."""
    found: dict[str, dict[str, Interval]] = {}
    for system, tally in tallies.items():
        figures = {name: mean(values, recordings) for name, values in tally.values.items()}
        if "texture_log" in figures:
            figures["texture_ratio"] = transformed(figures.pop("texture_log"), math.exp)
        for name, values in tally.values.items():
            if name.startswith(SCORE):
                reference = tallies[REFERENCE].values[name]
                figures[SKILL + name.removeprefix(SCORE)] = skill(values, reference, recordings)
        found[system] = figures
    return found


def distribution(tally: Tally, truth: Tally) -> dict[str, Interval]:
    """How far the continuations, as a whole, are from what really follows."""
    figures = {}
    for space in tally.features:
        made, real = tally.feature(space), truth.feature(space)
        figures[f"kernel_distance_{space}"] = kernel_distance(made, real)
        figures[f"frechet_{space}"] = frechet_distance(made, real)
        if space == PATCHES:
            figures["patch_distance"] = energy_distance(made, real)
    return figures


def training_patches(data: HeldOut, judges: Judges) -> Tensor:
    """Overlapping latent patches of the training segments, `[N, F]`: a copy is found wherever it was taken from."""
    rate = judges.codec.frame_rate
    deviation = judges.deviation.cpu()
    patches = [
        latent_patches(data.cache.load(file).float()[None], rate, deviation, PATCH_HOP_SECONDS)[0]
        for file in data.train
    ]
    return torch.cat(patches)


def go_on(
    system: System, data: HeldOut, numbers: list[int], seconds: float, seed: int, device: torch.device
) -> tuple[dict[str, Interval], dict[str, list[float]], Tensor]:
    """Long continuations of the pairs of these numbers, one after the other.

    Returns:
        The drift: by name, the typical change from start to end as a fraction.
        The mean course: by the title of a plot, a value per second.
        The first one, with its context in front.
    """
    rate, hop = data.val.sample_rate, data.val.hop_length
    drifts: dict[str, list[float]] = {}
    courses: dict[str, list[list[float]]] = {}
    heard = None
    for number in numbers:
        clips = load_clips(data.val, [number], device, math.ceil(seconds * rate / hop))
        audio = system.draw(clips, 1, seed)
        changes, course = long_course(audio[:, 0], clips, rate)
        for name, values in changes.items():
            drifts.setdefault(name, []).extend(values)
        for name, curve in course.items():
            courses.setdefault(name, []).append(curve)
        heard = after_context(clips, audio, 0) if heard is None else heard
    assert heard is not None
    chosen = [data.recordings[number] for number in numbers]
    figures = {name: transformed(mean(values, chosen), math.expm1) for name, values in drifts.items()}
    curves = {name: torch.tensor(lines).mean(0).tolist() for name, lines in courses.items()}
    return figures, curves, heard


def warnings_of(data: HeldOut, truth: Tally) -> list[str]:
    """Why some figures are not to be trusted."""
    pairs, recordings = len(data.val), len(set(data.recordings))
    found = []
    if pairs < ENOUGH_PAIRS:
        found.append(
            f"{pairs} validation pairs are few: below {ENOUGH_PAIRS} most differences between systems are chance"
        )
    if not data.known:
        found.append(
            "metadata.csv is missing: every pair is taken for a recording of its own, so intervals may be too narrow, "
            "and other_music may be of the same recording"
        )
    elif recordings < 2:
        found.append("all pairs are of one recording: there are no intervals, and there is no other music")
    elif recordings < ENOUGH_RECORDINGS:
        found.append(f"{recordings} recordings are few: intervals over recordings are rough below {ENOUGH_RECORDINGS}")
    for space in truth.features:
        warning = frechet_warning(truth.feature(space), truth.feature(space))
        if warning is not None:
            found.append(f"{space} features: {warning}")
    return found
