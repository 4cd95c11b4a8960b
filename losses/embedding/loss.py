"""Distances between the activations of a frozen network on the prediction and on the target."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import gcd
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchaudio.functional import resample

from losses.base import Loss, full_precision
from losses.dsp.compilation import eager
from losses.embedding.networks import NETWORKS, Network
from losses.registry import register

FLOOR_SHARE = 0.1  # a target counts as at least this share of a layer's mean magnitude on white noise of −20 dBFS


@full_precision
@eager  # compiling an LSTM unrolls its steps and takes minutes
def embedding(
    prediction: Tensor, target: Tensor, sample_rate: int, network: Network, floors: Sequence[float], layers: str = "all"
) -> Tensor:
    """Mean over the layers of `mean(|P − T|) / max(mean(|T|), floor)`, P and T the activations of one layer.

    Relative to the target's mean magnitude in each layer and item, so that layers count alike; dimensionless, 0 at
    identity. The activations are computed in the precision of the network's weights, the target's without gradient.

    Args:
        prediction: `[B, C, N]`.
        target: `[B, C, N]`.
        sample_rate: Hz, of both.
        network: frozen; returns a list of activations.
        floors: for each layer, the least value that the target's mean magnitude counts as.
        layers: "all" or "last".

    Returns:
        One value per item, `[B]`.

    Raises:
        ValueError: shapes that differ, or too few samples.
    """
    start = 0 if layers == "all" else -1
    predicted = _activations(prediction, sample_rate, network)[start:]
    # Not under no_grad, where an LSTM rounds differently, so that identity would not be 0. Nothing is recorded anyway.
    wanted = _activations(target.detach(), sample_rate, network)[start:]
    total = prediction.new_zeros(len(prediction))
    for p, t, floor in zip(predicted, wanted, floors[start:], strict=True):
        p, t = p.reshape(len(prediction), -1), t.reshape(len(prediction), -1)
        total = total + (p - t).abs().mean(1) / t.abs().mean(1).clamp_min(floor)
    return (total / len(predicted)).to(prediction.dtype)


def _activations(signal: Tensor, sample_rate: int, network: Network) -> list[Tensor]:
    rate = network.rate or sample_rate
    divisor = gcd(sample_rate, rate)
    least = (network.shortest - 1) * (sample_rate // divisor) // (rate // divisor) + 1
    if signal.shape[-1] < least:
        raise ValueError(f"a signal of shape {list(signal.shape)} is too short: at least {least} samples are needed")
    return network(resample(signal.contiguous().to(next(network.parameters()).dtype), sample_rate, rate))


@register("embedding", group="perceptual")
class EmbeddingLoss(Loss):
    """Distance between the activations of a frozen network, by default the codec's encoder.

    Formula: mean over layers of `mean(|A_p − A_t|) / mean(|A_t|)`, A the network's activations.
    Use: what is called a perceptual or deep-feature loss.

    Args:
        sample_rate: Hz of the audio; it is resampled to the network's rate.
        model: "codec" (`Codec`), "crepe" (`Crepe`), "panns" (`Panns`) or "openl3" (`OpenL3`).
        encoder: for "codec", which needs it: the frozen codec's encoder, for audio at `sample_rate`.
        weights: for "panns" and "openl3": a local file of the pretrained weights; None downloads them at first use.
        layers: "all" or "last".
        capacity: for "crepe": "tiny" (default) or "full".
        hop_length: for "crepe" and "openl3": samples at the network's rate from frame to frame.

    Raises:
        ValueError: an unknown model or value, an option of another model, no encoder for "codec", unsuitable weights.
        ImportError: the model's package is not installed.
        FileNotFoundError: the weights do not exist or cannot be downloaded.
    """

    def __init__(
        self,
        sample_rate: int,
        model: str = "codec",
        encoder: nn.Module | None = None,
        weights: str | Path | None = None,
        layers: str = "all",
        capacity: str | None = None,
        hop_length: int | None = None,
        reduction: str = "mean",
    ):
        if model not in NETWORKS:
            raise ValueError(f"model must be one of {', '.join(NETWORKS)}, got {model!r}")
        if layers not in ("all", "last"):
            raise ValueError(f"layers must be 'all' or 'last', got {layers!r}")
        options = {"encoder": encoder, "weights": weights, "capacity": capacity, "hop_length": hop_length}
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if foreign := given.keys() - NETWORKS[model].options:
            raise ValueError(f"the embedding model {model!r} takes no {', '.join(sorted(foreign))}")
        network = NETWORKS[model](**given)
        with torch.no_grad():
            like = next(network.parameters())
            noise = 0.1 * torch.randn(1, network.channels, sample_rate, generator=torch.Generator().manual_seed(0))
            floors = [FLOOR_SHARE * a.abs().mean().item() for a in _activations(noise.to(like), sample_rate, network)]
        super().__init__(
            partial(embedding, sample_rate=sample_rate, network=network, floors=floors, layers=layers), reduction
        )
        self.network = network
