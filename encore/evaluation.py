"""Measuring over the validation pairs: a model, what the codec can reach at best, and the copy of the input."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from encore.audio import write_wav
from encore.distributed import Ranks
from encore.figures import Sums, means
from encore.objective import Regression
from encore.pairs import Batch, PairDataset, collate
from encore.pictures import spectrograms

Values = dict[str, float]
Loader = Iterable[Batch]


@torch.no_grad()
def validation(objective: Regression, model: nn.Module, loader: Loader, ranks: Ranks) -> Values:
    """Means of all components over every validation pair of all ranks, each counted once."""
    model.eval()
    sums = Sums()
    for batch in loader:
        batch = batch.to(ranks.device)
        values = objective.measure(objective.predict(model, batch, objective.whole(batch)), batch)
        sums.add(values, objective.total(values))
    return means(sums.over_ranks(ranks.device))


def baselines(objective: Regression, loader: Loader, ranks: Ranks) -> tuple[Values, Values]:
    """The codec's floor and the copy baseline (the output is the input), like `validation`."""
    floor, copy = Sums(), Sums()
    for batch in loader:
        batch = batch.to(ranks.device)
        for sums, values in ((floor, objective.floor(batch)), (copy, objective.measure(batch.input_audio, batch))):
            sums.add(values, objective.total(values))
    return means(floor.over_ranks(ranks.device)), means(copy.over_ranks(ranks.device))


@torch.no_grad()
def write_example(
    folder: Path, objective: Regression, model: nn.Module, val_set: PairDataset, device: torch.device, sample_rate: int
) -> None:
    """One validation pair, as audio and as a picture of spectrograms."""
    batch = collate([val_set[0]]).to(device)
    prediction = objective.predict(model.eval(), batch, objective.whole(batch))
    signals = {"input": batch.input_audio[0], "target": batch.target_audio[0], "prediction": prediction[0]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, audio in signals.items():
        write_wav(folder / f"{name}.wav", audio, sample_rate)
    spectrograms(signals, sample_rate, folder / "spectrograms.png")
