"""Models from checkpoints, ready to continue music."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encore.codecs import Codec, load_codec
from encore.config.schema import ModelConfig, TrainConfig
from encore.errors import EncoreError
from encore.models.checkpoint_checks import MODEL_PARTS, PARTS, Parts, checkpoint_problems
from encore.models.generation import GenerationConfig
from encore.models.model_folder import is_model_folder, read_model_folder, save_model_folder
from encore.models.pointer import Pointer
from encore.models.pointer_prior import POINTER
from encore.models.precision import FP32, choose_precision
from encore.models.transformer import ContinuationTransformer
from encore.registry import PRIORS
from encore.tensor_files import check_stored, load_tensors, verify

FORMAT = 8


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, checked as far as that is possible without its codec; nothing in it is run.

    Raises:
        EncoreError: no such file, not a checkpoint, a damaged one, or one of another version of Encore.
    """
    if not path.is_file():
        what = "a folder without a config.json, so not a model" if path.is_dir() else "no such checkpoint"
        raise EncoreError(f"{path}: {what}")
    try:
        check_stored(path)
        verify(path)
        content = load_tensors(path)
        if not isinstance(content, dict) or type(content.get("format")) is not int:
            raise ValueError("it has no format")
    except (OSError, ValueError) as error:
        raise EncoreError(f"{path}: not a checkpoint of Encore ({error})") from error
    return _checked(path, content, PARTS)


def _checked(path: Path, content: dict[str, Any], parts: Parts) -> dict[str, Any]:
    """The content, if it is of this version and has these parts.

    Raises:
        EncoreError: it is another version's, or damaged.
    """
    if content.get("format") != FORMAT:
        raise EncoreError(
            f"{path}: a checkpoint of format {content.get('format')}, and this version of Encore reads format "
            f"{FORMAT}; train again, or use the version that wrote it"
        )
    if problem := next(checkpoint_problems(content, parts), None):
        raise EncoreError(f"{path}: a damaged checkpoint ({problem}); use another one, or train again")
    return content


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """What does not fit together in a checkpoint is an EncoreError with its name."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EncoreError(
            f"{path}: its parts do not fit together ({reason:.160}); use another checkpoint, or train again"
        ) from error


@dataclass(frozen=True)
class Generator:
    """A trained model with its codec.

    Attributes:
        model: in evaluation mode.
        codec: whose latents it works on.
        config: of the training run.
        context_frames: latent frames of the contexts that it was trained on.
        segment_frames: likewise of the continuations.
        margin: latent frames to decode in front of a crop (`Codec.margin`), as measured for the training run.
        precision: that the model computes in when it continues songs, "fp32" or "bf16".
        progress: of its training: steps, epochs, pairs (`samples`), best validation loss; `run_id` of a checkpoint.
    """

    model: ContinuationTransformer
    codec: Codec
    config: TrainConfig
    context_frames: int
    segment_frames: int
    margin: int
    precision: str = FP32
    progress: Mapping[str, Any] = field(default_factory=dict)

    @property
    def generation(self) -> GenerationConfig:
        return generation_config(self.config, self.codec, self.segment_frames)

    def save(self, folder: Path, half: bool = False) -> None:
        """Writes the model to a folder from which `load_generator` reads it; see `encore.models.model_folder`."""
        save_model_folder(self, folder, FORMAT, half)


def load_generator(
    path: Path, device: torch.device, codec_repository: Path | None = None, precision: str = FP32
) -> Generator:
    """Loads the model of a checkpoint with its averaged weights, or the plain ones of a run without averaging.

    Args:
        path: checkpoint of a training run, or a folder that `encore export` wrote.
        device: for model and codec.
        codec_repository: folder with the pretrained codecs' files; default: that of the training run.
        precision: fp32, bf16, or auto for the faster one on this device.

    Raises:
        EncoreError: not a checkpoint of this version, its codec cannot be loaded or has other weights now, or bf16 on a
            GPU without it.
    """
    content = _checked(path, read_model_folder(path), MODEL_PARTS) if is_model_folder(path) else read(path)
    config = TrainConfig.from_dict(content["config"])
    codec = load_codec(config.codec.name, codec_repository or config.codec.repository, config.codec.bandwidth).to(
        device
    )
    if codec.identity != content["codec"]["identity"]:
        raise EncoreError(
            f"{path}: was trained with other weights of --codec {config.codec.name} than the present ones"
        )
    weights = content["model"]
    if content["ema"] is not None:
        prefix = "module."
        weights = {k.removeprefix(prefix): v for k, v in content["ema"].items() if k.startswith(prefix)}
    with fitting(path):
        check_weights(config.model, weights)
        model = build_model(config, codec, content["context_frames"])
        model.load_state_dict(weights)
    model = model.to(device).eval()
    chosen = choose_precision(precision, model.layers[0].mlp, config.model.d_model, device)
    lengths = content["context_frames"], content["segment_frames"]
    return Generator(model, codec, config, *lengths, content["margin"], chosen, content["progress"])


def check_weights(config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Compares weights with the settings of a model before one of that size is allocated.

    Raises:
        ValueError: the settings ask for another size, or for heads that cannot be, or weights are not finite.
        KeyError: weights are missing.
    """
    width, layers = (
        len(weights["in_proj.weight"]),
        {name.split(".")[1] for name in weights if name.startswith("blocks.")},
    )
    for name, asked, held in (("d_model", config.d_model, width), ("num_layers", config.num_layers, len(layers))):
        if asked != held:
            raise ValueError(f"--{name} {asked}, but its weights are those of {held}")
    if width % config.nhead or width // config.nhead % 2:
        raise ValueError(f"--nhead {config.nhead} at --d_model {width}")
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} is not finite")


def build_model(config: TrainConfig, codec: Codec, context_frames: int) -> ContinuationTransformer:
    """A new model for a configuration and the codec whose latents it works on.

    It sees `config.model.context_seconds` of the past, or `context_frames`, the length of the contexts.

    Raises:
        EncoreError: no prior of the configured name is registered.
    """
    seconds = config.model.context_seconds
    model = ContinuationTransformer(
        codec.latent_dim,
        config.model.d_model,
        config.model.nhead,
        config.model.num_layers,
        config.model.dropout,
        window=context_frames if seconds is None else max(1, round(seconds * codec.frame_rate)),
        start_at_prior=config.objective.kind == "energy" and not PRIORS.find(config.model.prior).empty,
    )
    if config.model.prior == POINTER:
        model.pointer = Pointer()
    return model


def generation_config(config: TrainConfig, codec: Codec, segment_frames: int) -> GenerationConfig:
    """How the model of a configuration generates continuations, which are `segment_frames` long in training.

    Raises:
        EncoreError: blocks that do not fit the segments, or the codec's own segments.
    """
    block_frames = segment_frames
    if config.model.generation == "blocks":
        block_frames = max(1, round(config.model.block_seconds * codec.frame_rate))
        if block_frames > segment_frames:
            raise EncoreError(
                f"--block_seconds {config.model.block_seconds:g}: longer than the segments "
                f"({segment_frames / codec.frame_rate:g} s); shorten it, or use --generation whole"
            )
    piece = codec.segment_frames
    if piece is not None and (block_frames % piece or segment_frames % piece):
        raise EncoreError(
            f"--generation {config.model.generation}: {config.codec.name} works on segments of "
            f"{piece / codec.frame_rate:g} s; data segments ({segment_frames / codec.frame_rate:g} s, "
            "--segment_seconds of prepare_data.py) and blocks "
            f"({block_frames / codec.frame_rate:g} s, --block_seconds) must be multiples of that"
        )
    return GenerationConfig(block_frames, config.objective.kind == "energy", config.model.prior)


def choose_device(name: str | None) -> torch.device:
    """The named device; by default a GPU if there is one, else the CPU.

    Raises:
        EncoreError: this machine has no such device.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EncoreError(
            f"--device {name}: not a device of this machine; use cpu, or cuda where there is a GPU"
        ) from error
    return device
