"""Measuring over the validation pairs: a model, and what it is to be compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from encore.audio import write_wav
from encore.data.dataset import Batch, PairDataset, collate
from encore.reporting.spectrograms import spectrograms
from encore.training.distributed import Ranks
from encore.training.meters import Sums, means
from encore.training.objective import Objective

Values = dict[str, float]
Loader = Iterable[Batch]


def validation(objective: Objective, model: nn.Module, loader: Loader, ranks: Ranks) -> Values:
    """Means of all components over every validation pair of all ranks, each counted once."""
    model.eval()
    hear = objective.hearing.sample
    return _means(objective, loader, ranks, {"": lambda batch: objective.measure(hear(model, batch), batch)})[""]


def baselines(objective: Objective, loader: Loader, ranks: Ranks) -> dict[str, Values]:
    """The codec's "floor", the "copy" (the output is the input) and, for an objective of several samples, the "replay".

    The replay is the context again, at a lag drawn for every sample. Like `validation`.
    """
    known = {"floor": objective.floor, "copy": lambda batch: objective.measure(batch.input_audio, batch)}
    if objective.hearing.samples > 1:
        known["replay"] = lambda batch: objective.measure(objective.hearing.replay(batch), batch)
    return _means(objective, loader, ranks, known)


@torch.no_grad()
def _means(
    objective: Objective, loader: Loader, ranks: Ranks, measures: dict[str, Callable[[Batch], dict[str, Tensor]]]
) -> dict[str, Values]:
    sums = {name: Sums() for name in measures}
    for batch in loader:
        batch = batch.to(ranks.device)
        for name, measure in measures.items():
            values = measure(batch)
            sums[name].add(values, objective.total(values))
    return {name: means(part.over_ranks(ranks.device)) for name, part in sums.items()}


@torch.no_grad()
def write_example(
    folder: Path, objective: Objective, model: nn.Module, val_set: PairDataset, device: torch.device, sample_rate: int
) -> None:
    """One validation pair, as audio and as a picture of spectrograms."""
    batch = collate([val_set[0]]).to(device)
    prediction = objective.hearing.sample(model.eval(), batch)
    signals = {"input": batch.input_audio[0], "target": batch.target_audio[0], "prediction": prediction[0]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, audio in signals.items():
        write_wav(folder / f"{name}.wav", audio, sample_rate)
    spectrograms(signals, sample_rate, folder / "spectrograms.png")
