"""How good the priors are by themselves, through a codec: energy scores over the validation pairs of a folder.

python -m benchmarks.bench_priors PAIRS [--items 108] [--samples 4] [--codec starter]

Skill is 1 − score / score of the replay, with a 95% bootstrap interval over the pairs, on the same pairs for all.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import losses
from encore.codecs import load_codec
from encore.data import find_pairs
from encore.data.dataset import Batch
from encore.evaluation.dataset import EvalSet
from encore.evaluation.metrics.energy_score import energy_score, skill
from encore.models.priors import RHYTHM_SHARE, FrameOrder, draw_lags, lag_probs, replay, take

DISTANCES = ("spectral_energy", "mel")
Prior = Callable[[Tensor, Tensor], Tensor]  # contexts and their lags' probabilities to latents


def replayed(context: Tensor, probs: Tensor) -> Tensor:
    """The context at uniform lags."""
    return replay(context, draw_lags(len(context), context.shape[-1]), 0, context.shape[-1])


def rhythmic(context: Tensor, probs: Tensor, share: float = RHYTHM_SHARE) -> Tensor:
    """The prior "rhythm", with another share of continuations that follow the rhythm."""
    order = [FrameOrder(row, rhythmic=share).indices(0, context.shape[-1]) for row in probs]
    return take(context, torch.stack(order))


def copied(context: Tensor, probs: Tensor) -> Tensor:
    """The context at the lag of its own length: always the same."""
    return context


def louder_or_softer(audio: Tensor, nepers: float) -> Tensor:
    return audio * torch.exp(nepers * torch.randn(len(audio), 1, 1))


DECODED = "rhythm, lags of the decoded context"  # instead of those of the recording
PRIORS: dict[str, tuple[Prior, float]] = {
    "replay": (replayed, 0.0),
    "replay, gain of 0.35 nepers": (replayed, 0.35),
    "copy": (copied, 0.0),
    "rhythm": (rhythmic, 0.0),
    DECODED: (rhythmic, 0.0),
    "rhythm, gain of 0.35 nepers": (rhythmic, 0.35),
    "rhythm, all of them": (partial(rhythmic, share=1.0), 0.0),
    "rhythm, a third of them": (partial(rhythmic, share=0.33), 0.0),
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--items", type=int)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--codec", default="starter")
    parser.add_argument("--cache_dir", type=Path)
    options = parser.parse_args()
    codec, cpu = load_codec(options.codec), torch.device("cpu")
    pairs = find_pairs(options.pairs, codec.sample_rate)
    data = EvalSet.open(codec, pairs, options.cache_dir or options.pairs / ".latents", options.items, 0, cpu)
    distances = {name: losses.create(name, codec.sample_rate) for name in DISTANCES}
    margin = codec.measure_margin(data.load([0]).context)
    scores: dict[str, dict[str, list[Tensor]]] = {name: {key: [] for key in DISTANCES} for name in PRIORS}

    def measure(batch: Batch, name: str) -> None:
        prior, nepers = PRIORS[name]
        torch.manual_seed(int(batch.number[0]))
        context = batch.context.repeat_interleave(options.samples, 0)
        heard = codec.decode(batch.context) if name == DECODED else batch.input_audio
        probs = lag_probs(heard, codec.hop_length, codec.frame_rate).repeat_interleave(options.samples, 0)
        audio = louder_or_softer(codec.decode_continuation(context, prior(context, probs), margin), nepers)
        candidates = audio.unflatten(0, (len(batch), options.samples))
        for key, distance in distances.items():
            scores[name][key].append(energy_score(distance, candidates, batch.target_audio).score)

    for first in range(0, len(data), 4):
        batch = data.load(range(first, min(first + 4, len(data))))
        for name in PRIORS:
            measure(batch, name)
    table = Table(title=f"{len(data)} pairs, {options.samples} samples each")
    table.add_column("prior")
    for key in DISTANCES:
        table.add_column(f"score, {key}", justify="right")
        table.add_column("skill", justify="right")
    for name in PRIORS:
        cells = []
        for key in DISTANCES:
            mine, reference = (torch.cat(scores[which][key]).numpy().astype(np.float64) for which in (name, "replay"))
            found = skill(mine, reference, data.names)
            low, high = (math.nan if bound is None else bound for bound in (found.low, found.high))
            cells += [f"{mine.mean():.4f}", f"{found.value:+.3f} [{low:+.3f}, {high:+.3f}]"]
        table.add_row(name, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
