"""The test cases of the loss doctor: all losses, small networks for those that need one, and signals."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from losses.adversarial import Adversary, discriminator, feature_matching, generator_loss
from losses.base import Loss
from losses.registry import REGISTRY, Entry, described

LEVEL = 0.1  # RMS of the synthesised signals, −20 dBFS
NEEDS_ENCODEC = ("embedding", "gan", "feature_matching")


@dataclass(frozen=True)
class Material:
    """Signals on which losses are checked.

    Attributes:
        pairs: a prediction and a target `[B, C, N]` by name; the first pair is timed.
        sample_rate: Hz.
        channels: how many channels losses get that do not need a certain number.
    """

    pairs: dict[str, tuple[Tensor, Tensor]]
    sample_rate: int
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(next(iter(self.pairs.values()))[0].shape)

    def with_channels(self, channels: int) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: (p[:, :channels], t[:, :channels]) for name, (p, t) in self.pairs.items()}


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """White noise of RMS 0.1."""
    return LEVEL * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def music(shape: tuple[int, ...], sample_rate: int, seed: int) -> Tensor:
    """Plucked notes with overtones, eight per second, over noise of −70 dBFS; RMS 0.1 in every channel."""
    random = np.random.default_rng(seed)
    samples = shape[-1]
    clock = np.arange(samples) / sample_rate
    rows = []
    for _ in range(math.prod(shape[:-1])):
        row = random.normal(0, 10 ** (-70 / 20), samples)
        for onset in np.arange(0, samples / sample_rate, 0.125):
            since = clock[int(onset * sample_rate) :] - onset
            pitch, decay = 55 * 2 ** random.uniform(0, 4), random.uniform(2, 8)
            for overtone in range(1, 9):
                partial = np.sin(2 * np.pi * pitch * overtone * since) * np.exp(-decay * overtone * since) / overtone
                row[-len(since) :] += (pitch * overtone < sample_rate / 2) * partial
        rows.append(LEVEL * row / np.sqrt(np.mean(row**2)))
    return torch.from_numpy(np.stack(rows).astype(np.float32)).reshape(shape)


def synthesised(sample_rate: int, seconds: float) -> Material:
    """Noise against noise, and music against other music: two items, mono except for stereo losses."""
    shape = (2, 2, round(seconds * sample_rate))
    pairs = {
        "noise": (noise(shape, 0), noise(shape, 1)),
        "music": (music(shape, sample_rate, 2), music(shape, sample_rate, 3)),
    }
    return Material(pairs, sample_rate, 1)


def all_entries() -> dict[str, Entry]:
    """The registered and the adversarial losses; those that need a network have a small one with random weights."""
    adversarial = {
        "gan": Entry(build=_Adversarial, minimum=None, group="adversarial", **described(generator_loss)),
        "feature_matching": Entry(build=_FeatureMatching, group="adversarial", **described(feature_matching)),
    }
    entries = REGISTRY | adversarial
    if "embedding" in entries:
        entries["embedding"] = replace(entries["embedding"], build=_embedding)
    return entries


class _Adversarial(Loss):
    """One of an adversary's losses, with a small discriminator of random weights for mono and one for stereo."""

    term = "gan"

    def __init__(self, sample_rate: int):
        super().__init__(self._compare, "none")
        self.adversaries = nn.ModuleList(_adversary(sample_rate, channels) for channels in (1, 2))

    def _compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        value: Tensor = self.adversaries[prediction.shape[1] - 1](prediction, target)[self.term]
        return value


class _FeatureMatching(_Adversarial):
    term = "feature_matching"


def _adversary(sample_rate: int, channels: int) -> Adversary:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Adversary(discriminator("msstft", sample_rate, channels, filters=2))


def _embedding(sample_rate: int) -> Loss:
    """The loss `embedding` with a small encoder like EnCodec's and random weights."""
    from encodec.modules import SEANetEncoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            # The package uses a deprecated weight norm of torch.
            warnings.filterwarnings("ignore", message=".*weight_norm", category=FutureWarning)
            encoder = SEANetEncoder(channels=1, dimension=16, n_filters=4)
    encoder.channels = 1
    return REGISTRY["embedding"].build(sample_rate, encoder=encoder)
