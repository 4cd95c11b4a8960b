"""What a training run has come to, in sentences, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from encore.config.schema import TrainConfig
from encore.reporting.wording import compared, sentence
from encore.statistics import ENOUGH_RECORDINGS, skill
from encore.training.console import PRIOR
from encore.training.validation import Validation

FLOOR, COPY = "floor", "copy"
PASSED = 1.1  # a unity test's loss may be so many times the codec's floor
Recordings = Sequence[str | None]  # of the validation pairs; None where it is unknown


def verdict(
    best: Validation, measured: Mapping[str, Validation], recordings: Recordings, config: TrainConfig
) -> list[str]:
    """The sentences at the end of a run.

    Args:
        best: the best validation; its totals are missing if it was before this version kept them.
        measured: the baselines, by name.
        recordings: of the validation pairs.
        config: of the run.
    """
    if config.data.unity_test:
        return [unity(best.values["loss"], measured[FLOOR].values["loss"])]
    return gain(best, measured, recordings)


def unity(loss: float, floor: float) -> str:
    """Whether a unity test has reached what the codec's own error allows."""
    figures = f"{loss:.4f} against {floor:.4f}"
    if floor <= 0:  # of a loss that is minus a metric
        return f"Unity test: {figures} through the codec alone; with this loss there is no pass mark."
    if loss <= PASSED * floor:
        return f"Unity test: reached the codec's floor: {figures}, passed."
    return (
        f"Unity test: has not reached the codec's floor: {figures}, not passed ({PASSED:g} times the floor would be "
        "enough). Train for longer (--epochs), with another --lr or without --dropout."
    )


def gain(best: Validation, measured: Mapping[str, Validation], recordings: Recordings) -> list[str]:
    """What training has gained over the prior, or where there is none over playing the input's end again."""
    reference, name = (PRIOR, "its prior alone") if PRIOR in measured else (COPY, "the input's end, played again,")
    base = measured[reference]
    if len(best.totals) != len(base.totals):
        return []
    if best.totals == base.totals:
        return ["Nothing gained over the prior alone: the best model is the untrained one."]
    if base.values["loss"] <= 0:  # of losses that are minus a metric: a share of them means nothing
        return []
    where = f"on {len(base.totals)} validation pairs{_of(recordings)}, on which it was chosen"
    few = None not in recordings and 1 < len(set(recordings)) < ENOUGH_RECORDINGS
    found = sentence(compared(skill(best.totals, base.totals, named(recordings)), name, where))
    return [found, *(["With so few recordings the interval is rough."] if few else [])]


def data_warnings(recordings: Recordings) -> list[str]:
    """Why validation should not be trusted, before any time is spent on training."""
    found = set(recordings)
    if None in found or len(found) >= ENOUGH_RECORDINGS:
        return []
    remedy = "prepare more music, or with a larger --val_fraction"
    if len(found) == 1:
        (name,) = found
        return [
            f"all {len(recordings)} validation pairs are of one recording ({name}): the validation loss says little of "
            f"other music, and no interval can be given; {remedy}"
        ]
    return [
        f"{len(recordings)} validation pairs of {len(found)} recordings are few: which epoch is the best may be "
        f"chance; {remedy}"
    ]


def named(recordings: Recordings) -> list[str]:
    """A name for the recording of each pair; where it is unknown, the pair counts as a recording of its own."""
    return [f"pair {n}" if name is None else f"recording {name}" for n, name in enumerate(recordings)]


def next_command(config: TrainConfig, path: Path) -> str:
    """The command that judges the model beside the baselines."""
    words = ["python", "evaluate.py", "--checkpoint", str(path), "--dataset_folder", str(config.data.dataset_folder)]
    for flag, value in (("--plugins", config.run.plugins), ("--cache_dir", config.data.cache_dir)):
        words += [flag, str(value)] if value else []
    return shlex.join(words)


def _of(recordings: Recordings) -> str:
    count = len(set(recordings))
    return "" if None in recordings else f" of {count} recording{'s' * (count > 1)}"
