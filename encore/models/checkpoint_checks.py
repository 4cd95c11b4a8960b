"""What a checkpoint must consist of: parts of the right kinds, settings within their bounds, and whole tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from encore.config.files import typed_flags
from encore.config.knobs import knobs_of, out_of_bounds
from encore.config.schema import TrainConfig

Parts = dict[str, type | tuple[type, ...]]
# What playing a model needs, and what a checkpoint consists of; `format` apart, which is looked at first.
MODEL_PARTS: Parts = {
    **dict.fromkeys(("config", "codec", "model", "progress"), dict),
    **dict.fromkeys(("context_frames", "segment_frames", "margin"), int),
    "ema": (dict, type(None)),
}
PARTS: Parts = {
    **MODEL_PARTS,
    **dict.fromkeys(("optimizer", "schedule", "objective", "yardstick"), dict),
    **dict.fromkeys(("ranks", "step_pairs"), int),
    "run": str,
}
MAX_FRAMES = 2**31  # of contexts, segments and margins


def checkpoint_problems(content: dict[str, Any], parts: Parts = PARTS) -> Iterator[str]:
    """What is wrong with the values of a checkpoint, or of those of its parts that are there."""
    for name, kind in parts.items():
        if not isinstance(content.get(name, ...), kind):
            yield f"{name} is missing or of another kind"
            return
    for name, least in (("context_frames", 1), ("segment_frames", 1), ("margin", 0)):
        if not least <= content[name] <= MAX_FRAMES:
            yield f"{name} is {content[name]}"
    for name in ("model", "ema"):
        if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in (content[name] or {}).items()):
            yield f"{name} does not hold tensors by name"
    if not isinstance(content["codec"].get("identity"), str):
        yield "codec has no identity"
    if type(content["progress"].get("step")) is not int:
        yield "progress has no step"
    if not all(_whole(tensor) for tensor in _tensors(content)):
        yield "a tensor claims more than there is"
    yield from _config_problems(content["config"])


def _config_problems(values: dict[Any, Any]) -> Iterator[str]:
    """Settings of the wrong types or beyond their bounds. What needs a plugin that is not loaded is no problem here."""
    known = {one.name: one for one in knobs_of(TrainConfig)}
    problems: list[str] = []
    typed = typed_flags({n: v for n, v in values.items() if n in known}, TrainConfig, "config", problems)
    yield from problems
    for name, value in typed.items():
        if problem := out_of_bounds(known[name], value):
            yield f"config: {problem}"
        if known[name].choices and isinstance(known[name].choices, tuple) and value not in (None, *known[name].choices):
            yield f"config: --{name} {value}: must be one of {', '.join(map(str, known[name].choices))}"


def _tensors(content: Any) -> Iterator[Tensor]:
    """All tensors in containers within each other."""
    seen, waiting = set[int](), [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def _whole(tensor: Tensor) -> bool:
    """Whether each element of a tensor has a place of its own: a few bytes can be made to look like a million."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
