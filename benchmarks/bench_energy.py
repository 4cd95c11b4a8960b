"""What an energy step costs beside a regression step on the same audio, with the starter codec.

python -m benchmarks.bench_energy [--threads 1] [--repeats 9] [--device cpu] [--samples 2]

Both make the same blocks of the same pairs with the same model and compare them with the same losses, forward and
backward; the energy draws several samples and compares them with one another too. Cases are run in turn within one
process; figures are medians relative to the regression's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import losses
from encore.codecs import Codec, load_codec
from encore.config.schema import TrainConfig
from encore.data.dataset import Batch
from encore.models.loading import build_model, generation_config
from encore.training.objective import Component, Objective
from encore.training.synthesis import Synthesizer

ITEMS, FRAMES, RATE = 8, 300, 24000
MIXTURES = (("spectral_energy",), ("spectral_energy", "mel", "mrstft"))


def batch_of(codec: Codec, device: torch.device) -> Batch:
    """Noise in place of music: how long a step takes does not depend on it."""
    generator = torch.Generator().manual_seed(0)
    sounds = [0.1 * torch.randn(ITEMS, 1, FRAMES * codec.hop_length, generator=generator).to(device) for _ in range(2)]
    return Batch(codec.encode(sounds[0]), sounds[0], sounds[1], codec.encode(sounds[1]), torch.arange(ITEMS))


def case(
    codec: Codec, device: torch.device, batch: Batch, names: tuple[str, ...], samples: int, blocks: int
) -> Callable[[], None]:
    """One training step without the optimiser's part; one sample is a regression."""
    objective = "energy" if samples > 1 else "regression"
    config = TrainConfig.from_flags(
        codec="starter", objective=objective, generation="blocks", block_seconds=0.4, d_model=128, dropout=0.0
    )
    generation = generation_config(config, codec, FRAMES)
    model: nn.Module = build_model(config, codec, FRAMES).to(device)
    synthesizer = Synthesizer(
        codec,
        generation,
        samples=samples,
        margin=8,
        crop_frames=blocks * generation.block_frames,
    )
    components = [
        Component(
            name, name, 1.0, False, losses.create(name, RATE, reduction="none"), distance=losses.REGISTRY[name].distance
        )
        for name in names
    ]
    combiner = losses.WeightedGradient(dict.fromkeys(names, 1.0))
    goal = Objective(components, synthesizer, combiner)

    def step() -> None:
        torch.manual_seed(0)
        goal.backward(goal(model, batch, synthesizer.plan(FRAMES)), 1.0, measure=False)

    return step


def seconds(step: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--samples", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    codec = load_codec("starter").to(device)
    batch = batch_of(codec, device)
    table = Table(
        title=f"A step of {ITEMS} pairs of 4 s, {options.threads} threads, {device}: median of {options.repeats}"
    )
    for name in ("losses", "blocks, 0.4 s decoded", "regression", f"energy, {options.samples} samples", "ratio"):
        table.add_column(name, justify="right")
    for names in MIXTURES:
        for blocks in (1, 5):
            steps = [case(codec, device, batch, names, samples, blocks) for samples in (1, options.samples)]
            for step in steps:
                step()
            times = [[seconds(step, device) for step in steps] for _ in range(options.repeats)]
            regression, energy = (statistics.median(part) for part in zip(*times, strict=True))
            # The ratio within each round, as a busy machine slows both.
            ratio = statistics.median(second / first for first, second in times)
            table.add_row(" + ".join(names), str(blocks), f"{regression:.2f} s", f"{energy:.2f} s", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
