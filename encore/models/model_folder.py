"""Folders with a model to continue music with: its weights and settings, without the state of its training.

    model.safetensors   the averaged weights, float32 or float16
    config.json         the parts of a checkpoint that playing needs: settings, codec, lengths, progress
    codec.safetensors   the codec, if it is a file that train_codec.py wrote

The names are those of models on the Hugging Face Hub. Nothing that is read here can run code.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from encore.config.knobs import knobs_of
from encore.config.schema import RANKS, RUN, TRACKING, TrainConfig
from encore.errors import EncoreError, make_folder
from encore.json_files import read_json
from encore.registry import CODECS

if TYPE_CHECKING:
    from encore.models.loading import Generator

WEIGHTS_FILE, CONFIG_FILE, CODEC_FILE = "model.safetensors", "config.json", "codec.safetensors"
MAX_CONFIG_BYTES = 10**6
PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"  # the model that Encore comes with
PRIVATE = (RUN, RANKS, TRACKING)  # settings that say where and how a run was done, not what its model is
SHOWN_PROGRESS = ("step", "epoch", "samples", "best")


def is_model_folder(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file()


def is_model(path: Path) -> bool:
    """Whether there is a file, which should be a checkpoint, or a folder with a model."""
    return path.is_file() or is_model_folder(path)


def read_model_folder(folder: Path) -> dict[str, Any]:
    """The content of a folder as of a checkpoint that holds nothing but the model.

    Raises:
        EncoreError: it is no such folder, or a file of it is damaged.
    """
    try:
        if (folder / CONFIG_FILE).stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"{CONFIG_FILE} has more than {MAX_CONFIG_BYTES} bytes")
        content = read_json(folder / CONFIG_FILE)
        if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
            raise ValueError(f"{CONFIG_FILE} has no settings of a model")
        weights = {name: value.float() for name, value in load_file(folder / WEIGHTS_FILE).items()}
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise EncoreError(f"{folder}: not a model that `encore export` wrote ({reason:.200})") from error
    config = dict(content["config"])
    if config.get("codec") == CODEC_FILE:
        config["codec"] = str(folder / CODEC_FILE)
    return {**content, "config": config, "model": weights, "ema": None}


def save_model_folder(generator: Generator, folder: Path, format: int, half: bool = False) -> None:
    """Writes a model, its settings and, unless it has a name, its codec.

    Paths, names of runs and plugins are left out: they mean nothing on another machine.

    Args:
        generator: the model.
        folder: is made if need be; what it holds of a model is replaced.
        format: of the checkpoints of this version.
        half: store float16, half the size.

    Raises:
        EncoreError: the folder cannot be written to.
    """
    make_folder(folder, "--output")
    values, codec = generator.config.to_dict(), generator.config.codec.name
    shared = [one.name for one in knobs_of(TrainConfig) if one.kind is not Path and one.panel not in PRIVATE]
    config = {name: values[name] for name in shared}
    weights = {name: value.detach().cpu().contiguous() for name, value in generator.model.state_dict().items()}
    try:
        if codec not in CODECS:
            config["codec"] = CODEC_FILE
            if Path(codec).resolve() != (folder / CODEC_FILE).resolve():
                shutil.copyfile(codec, folder / CODEC_FILE)
        temporary = folder / f"{WEIGHTS_FILE}.tmp"
        save_file({name: value.half() if half else value for name, value in weights.items()}, temporary)
        temporary.replace(folder / WEIGHTS_FILE)
        content = {
            "format": format,
            "codec": {"identity": generator.codec.identity, "latent_dim": generator.codec.latent_dim},
            "context_frames": generator.context_frames,
            "segment_frames": generator.segment_frames,
            "margin": generator.margin,
            "progress": {name: generator.progress[name] for name in SHOWN_PROGRESS if name in generator.progress},
            "config": config,
        }
        (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)  # safetensors makes files that only the user reads
    except (OSError, SafetensorError) as error:
        raise EncoreError(f"{folder}: cannot be written ({error}); make space there, or name another folder") from error
