"""Validation: the components of the objective for a model, and for the baselines that it is compared with."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from encore.audio import write_wav
from encore.data.dataset import Batch, PairDataset, collate
from encore.errors import disk_space
from encore.registry import PRIORS
from encore.training.console import PRIOR
from encore.training.distributed import Ranks
from encore.training.meters import WeightedMean, means
from encore.training.objective import Objective

Values = dict[str, float]
Loader = Iterable[Batch]
Advance = Callable[[], object]  # called after each batch


@dataclass(frozen=True)
class Validation:
    """What was found on all validation pairs, of all ranks.

    Attributes:
        values: means of all components, and of the weighted total as "loss".
        totals: the weighted total of each pair, in the order of the pairs.
    """

    values: Values
    totals: list[float]


def validate_model(
    objective: Objective, model: nn.Module, loader: Loader, ranks: Ranks, advance: Advance = lambda: None
) -> Validation:
    """All components over every validation pair of all ranks, each counted once; `advance` is called for each batch."""
    model.eval()
    sample = objective.synthesizer.sample
    measures = {"": lambda batch: objective.measure(sample(model, batch), batch)}
    return _measure(objective, loader, ranks, measures, advance)[""]


def measure_baselines(
    objective: Objective, loader: Loader, ranks: Ranks, advance: Advance = lambda: None
) -> dict[str, Validation]:
    """The same for the "floor", the "copy" and, for an objective of several samples, the "replay" and the "prior".

    The floor is the codec's own error, the copy takes the end of the input for the prediction, the replay repeats the
    context at a lag that is drawn for every sample. The prior alone is what the model starts from: its values are
    exactly those of the model before training.
    """
    synthesizer = objective.synthesizer
    measures = {"floor": objective.floor, "copy": lambda batch: objective.measure(batch.input_end, batch)}
    if synthesizer.samples > 1:
        measures["replay"] = lambda batch: objective.measure(synthesizer.replay(batch), batch)
        if not PRIORS.find(synthesizer.generation.prior).empty:
            measures[PRIOR] = lambda batch: objective.measure(synthesizer.prior_alone(batch), batch)
    return _measure(objective, loader, ranks, measures, advance)


@torch.no_grad()
def _measure(
    objective: Objective,
    loader: Loader,
    ranks: Ranks,
    measures: Mapping[str, Callable[[Batch], dict[str, Tensor]]],
    advance: Advance,
) -> dict[str, Validation]:
    running = {name: WeightedMean() for name in measures}
    pairs: dict[str, dict[int, float]] = {name: {} for name in measures}  # totals by the number of the pair
    for batch in loader:
        ranks.move()
        batch = batch.to(ranks.device)
        numbers = batch.number.tolist()
        for name, measure in measures.items():
            values = measure(batch)
            total = objective.total(values)
            running[name].add(values, total)
            pairs[name] |= dict(zip(numbers, total.tolist(), strict=True))
        advance()
    gathered = ranks.gather(pairs)
    every = {name: dict(ChainMap(*(found[name] for found in gathered))) for name in measures}
    return {
        name: Validation(means(mean.sum_over(ranks)), [every[name][number] for number in sorted(every[name])])
        for name, mean in running.items()
    }


@torch.no_grad()
def write_example(folder: Path, objective: Objective, model: nn.Module, val_set: PairDataset, ranks: Ranks) -> None:
    """Writes the first validation pair and its prediction as audio and spectrograms."""
    from encore.reporting.spectrograms import spectrograms  # imports matplotlib, which the other ranks do not need

    batch = collate([val_set[0]]).to(ranks.device)
    prediction = objective.synthesizer.sample(model.eval(), batch)
    signals = {"input": batch.input_audio[0], "target": batch.target_audio[0], "prediction": prediction[0]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, audio in signals.items():
        write_wav(folder / f"{name}.wav", audio, objective.sample_rate)
    path = folder / "spectrograms.png"
    with disk_space(path, "a picture"):
        spectrograms(signals, objective.sample_rate, path)
