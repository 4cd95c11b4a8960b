"""The baselines of a data set, measured once and then read from the latent cache's folder."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

import losses
from encore.codecs.base import hash_tensors
from encore.config.schema import ObjectiveConfig
from encore.registry import LOADED
from encore.training.console import TrainConsole
from encore.training.data import PairData
from encore.training.distributed import Ranks
from encore.training.objective import Objective
from encore.training.stored import read, write
from encore.training.validation import Validation, measure_baselines


def baselines(
    objective: Objective, settings: ObjectiveConfig, data: PairData, ranks: Ranks, console: TrainConsole
) -> dict[str, Validation]:
    """`measure_baselines` on the validation pairs, or what it returned for an equal key before.

    With --plugins they are measured every time: code outside Encore may change without a trace.

    Raises:
        EncoreError: the cache's folder cannot be used.
    """
    path = data.cache.folder / "baselines" / f"{key(objective, settings, data, ranks.device)}.json"
    with ranks.agree():
        known = read(path) if ranks.is_main and not LOADED else None
    known = ranks.broadcast_from_main(lambda: known)
    if known is not None:
        return {name: Validation(**found) for name, found in known.items()}
    with console.task("baselines", len(data.val_loader)) as advance:
        measured = measure_baselines(objective, data.val_loader, ranks, advance)
    with ranks.agree():
        if ranks.is_main and not LOADED:
            write(path, {name: asdict(found) for name, found in measured.items()})
    return measured


def key(objective: Objective, settings: ObjectiveConfig, data: PairData, device: torch.device) -> str:
    """A hash of everything that determines the baselines, up to rounding; 16 hexadecimal digits.

    The content of the pairs, the codec, what is compared and how, the losses with their state, the code of Encore and
    the version of every package.
    """
    synthesizer = objective.synthesizer
    state = objective.losses.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    parts = {
        "pairs": data.val.content_hash,
        "codec": synthesizer.codec.identity,
        "synthesis": [synthesizer.samples, synthesizer.margin, asdict(synthesizer.generation)],
        "components": [[c.name, c.weight, c.against_input, c.metric, c.distance] for c in objective.components],
        "pointer": None if synthesizer.pointer is None else hash_tensors((), synthesizer.pointer.state_dict()),
        "embedding": [settings.embedding_model, settings.embedding_layers],
        "state": [hash_tensors((), tensors), {name: repr(state[name]) for name in state.keys() - tensors.keys()}],
        "device": device.type,
        "code": _hash_of_code(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _hash_of_code() -> str:
    """Hash of the code of both packages, and of the names of all installed ones, which hold their versions."""
    digest = hashlib.sha256()
    for package in (Path(__file__).parents[1], Path(losses.__path__[0])):
        for file in sorted(package.rglob("*.py")):
            digest.update(file.read_bytes())
    installed = {found.name for folder in sys.path for found in Path(folder).glob("*.dist-info")}
    digest.update(repr([sys.version, *sorted(installed)]).encode())
    return digest.hexdigest()
