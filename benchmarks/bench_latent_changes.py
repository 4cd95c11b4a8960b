"""How much random changes of a prior's latents cost, without any training: what an output layer must not do.

python -m benchmarks.bench_latent_changes PAIRS [--items 36] [--samples 2] [--codec starter] [--prior rhythm]

Every change has a standard deviation of 5% of the latents, relative to each item's own context; the last rows are gains
of the same size in bands of the decoded audio (`encore.codecs.bands`). Skill is 1 − score /
score of the unchanged prior, with a 95% bootstrap interval over recordings; the last column is the worst recording.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import losses
from encore.codecs import load_codec
from encore.codecs.bands import BANDS
from encore.data import find_pairs
from encore.evaluation.dataset import EvalSet
from encore.evaluation.metrics.energy_score import energy_score
from encore.models.generation import GenerationConfig, Sampler, generate_prior, make_generators
from encore.models.priors import Context
from encore.statistics import skill

DISTANCES = ("spectral_energy", "mel")
AMOUNT, SMOOTH, CURVES = 0.05, 31, 8  # of the latents; frames; cosines
Change = Callable[[Tensor], Tensor]  # white noise [R, D, T] to a factor less 1 of the same shape, or one that expands


def smooth(noise: Tensor) -> Tensor:
    """Means over `SMOOTH` frames, of the same deviation."""
    return F.avg_pool1d(noise, SMOOTH, 1, SMOOTH // 2, count_include_pad=False) * SMOOTH**0.5


def curves(noise: Tensor) -> Tensor:
    """The first `CURVES` channels as weights of as many cosines over the channels, of the same deviation."""
    phase = torch.pi * (torch.arange(noise.shape[1]) + 0.5) / noise.shape[1]
    shapes = torch.stack([torch.ones_like(phase), *(2**0.5 * torch.cos(k * phase) for k in range(1, CURVES))])
    return torch.einsum("rkt,kd->rdt", noise[:, :CURVES], shapes) / CURVES**0.5


CHANGES: dict[str, Change] = {
    "every channel and frame": lambda noise: noise,
    "every channel, smooth over 0.4 s": smooth,
    "every channel, constant": lambda noise: noise[..., :1],
    "8 curves over the channels, smooth over 0.4 s": lambda noise: curves(smooth(noise)),
    "8 curves over the channels, constant": lambda noise: curves(noise[..., :1]),
    "all channels alike, every frame": lambda noise: noise[:, :1],
    "all channels alike, smooth over 0.4 s": lambda noise: smooth(noise)[:, :1],
    "all channels alike, constant": lambda noise: noise[:, :1, :1],
}
GAINS: dict[str, Change] = {
    "bands of the decoded audio, smooth over 0.4 s": smooth,
    "bands of the decoded audio, constant": lambda noise: noise[..., :1].expand_as(noise),
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--items", type=int)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--codec", default="starter")
    parser.add_argument("--prior", default="rhythm")
    parser.add_argument("--cache_dir", type=Path)
    options = parser.parse_args()
    codec = load_codec(options.codec)
    pairs, folder = find_pairs(options.pairs, codec.sample_rate), options.cache_dir or options.pairs / ".latents"
    data = EvalSet.open(codec, pairs, folder, options.items, 0, torch.device("cpu"))
    distances = {name: losses.create(name, codec.sample_rate, reduction="none") for name in DISTANCES}
    scores: dict[str, dict[str, list[Tensor]]] = {
        name: {key: [] for key in DISTANCES} for name in ("none", *CHANGES, *GAINS)
    }
    config = GenerationConfig(round(codec.frame_rate), generative=True, prior=options.prior)
    for number in range(len(data)):
        batch = data.load([number])
        latents = batch.context.repeat_interleave(options.samples, 0)
        context = Context(latents, codec, lambda audio=batch.input_audio: audio, options.samples)  # type: ignore[misc]
        seeds = [number * options.samples + sample for sample in range(options.samples)]
        prior = generate_prior(Sampler(config, context, make_generators(seeds)), batch.target_latents.shape[-1])
        mean = latents.mean(-1, keepdim=True)
        noise = torch.randn(prior.shape, generator=torch.Generator().manual_seed(number))
        for name in scores:
            change = AMOUNT * CHANGES[name](noise) * (prior - mean) if name in CHANGES else torch.zeros_like(prior)
            made = prior + change
            if name in GAINS:
                made = torch.cat([made, AMOUNT * GAINS[name](noise[:, :BANDS])], 1)
            audio = codec.decode_continuation(latents, made, codec.margin).unflatten(0, (1, -1))
            for key, distance in distances.items():
                scores[name][key].append(energy_score(distance, audio, batch.target_audio).score)
    table = Table(title=f"{len(data)} pairs of {len(set(data.recordings))} recordings, {options.samples} samples each")
    table.add_column("5% of the latents")
    for key in DISTANCES:
        table.add_column(f"skill, {key}", justify="right")
        table.add_column("worst", justify="right")
    recordings = np.array(data.recordings)
    for name in (*CHANGES, *GAINS):
        cells = []
        for key in DISTANCES:
            mine, alone = (torch.cat(scores[which][key]).numpy().astype(np.float64) for which in (name, "none"))
            worst = min(1 - mine[recordings == one].mean() / alone[recordings == one].mean() for one in set(recordings))
            found = skill(mine, alone, data.recordings)
            cells += [f"{found.value:+.3f} [{found.low or 0:+.3f}, {found.high or 0:+.3f}]", f"{worst:+.3f}"]
        table.add_row(name, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
