"""The losses that can be computed on a codec's audio: built with their options, and tried before they are relied on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

import losses
from encore.codecs import Codec
from encore.config.schema import ObjectiveConfig


def loss_options(objective: ObjectiveConfig, codec: Codec, name: str) -> dict[str, Any]:
    """Keyword arguments for the loss registered as `name`, besides the sample rate: one value per item, safely."""
    options = {"reduction": "none", **losses.REGISTRY[name].training}
    if name != "embedding":
        return options
    return {
        **options,
        "model": objective.embedding_model,
        "encoder": codec.feature_encoder() if objective.embedding_model == "codec" else None,
        "weights": objective.embedding_weights,
        "layers": objective.embedding_layers,
    }


@torch.no_grad()
def build_losses(
    names: Iterable[str], objective: ObjectiveConfig, codec: Codec, example: Tensor
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Builds losses for a codec's audio and computes each once on `example`, so that failures come before any work.

    Args:
        names: registered names, see `losses.REGISTRY`.
        objective: options of the loss "embedding".
        codec: gives the sample rate in Hz and, for "embedding", the encoder.
        example: audio `[B, C, N]` with as many channels and samples as the losses will get. They are moved to its
            device.

    Returns:
        The losses by name, in the registry's order, one value per item each, and by name why the others cannot be
        computed: a package or weights that are missing, too few samples, or a number of channels that does not fit.
    """
    built: dict[str, nn.Module] = {}
    problems: dict[str, str] = {}
    wanted = set(names)
    for name in [*filter(wanted.__contains__, losses.REGISTRY), *sorted(wanted - losses.REGISTRY.keys())]:
        try:
            loss = losses.create(name, codec.sample_rate, **loss_options(objective, codec, name)).to(example.device)
            loss(example, example)
        except (ImportError, OSError, ValueError) as error:
            problems[name] = str(error)
        else:
            built[name] = loss
    return built, problems
