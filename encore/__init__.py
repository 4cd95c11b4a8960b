"""Encore continues music: a transformer in the latent space of a frozen codec, trained on losses of its audio.

    encore.commands                         the entry points, one module each
    encore.ablation, encore.evaluation      comparing runs, measuring models
    encore.training | encore.inference      fitting a model, continuing music with one
    encore.models | encore.data             the transformer and its priors, pairs of segments
    encore.codecs, config, reporting, …     what these are built on

An import may only point down. To continue music from Python:

    import encore

    model = encore.load()  # the small model that Encore comes with, or that of a checkpoint or folder
    audio = model.continue_("song.wav", seconds=16, seed=0)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from encore.inference.hub import ContinuationModel
    from encore.inference.pipeline import ContinuationPipeline

__all__ = ["ContinuationModel", "load"]


def load(
    path: str | Path | None = None,
    device: str | None = None,
    codec_repository: str | Path | None = None,
    precision: str = "auto",
) -> ContinuationPipeline:
    """Loads a model; see `encore.inference.pipeline.ContinuationPipeline`.

    Args:
        path: best_model.pt or last.pt of a training run, or a folder that `encore export` or `save_pretrained` wrote;
            default: the small model that Encore comes with.
        device: "cpu" or "cuda"; default: a GPU if there is one.
        codec_repository: folder with the pretrained codecs' files; default: that of the training run.
        precision: of the transformer's products: "fp32", "bf16", or "auto" for bf16 if this device is faster with it.

    Raises:
        EncoreError: not a model of this version, no such device, or the codec cannot be loaded.
    """
    from encore.inference.pipeline import ContinuationPipeline  # imports torch, which takes seconds

    return ContinuationPipeline.load(path, device, codec_repository, precision)


def __getattr__(name: str) -> Any:
    """`encore.ContinuationModel`, imported at its first use: huggingface_hub takes half a second."""
    if name == "ContinuationModel":
        from encore.inference.hub import ContinuationModel

        return ContinuationModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
