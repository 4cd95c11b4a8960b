"""Encore continues music: a transformer in the latent space of a frozen codec, trained on losses of its audio.

    encore.commands                         the entry points, one module each
    encore.ablation, encore.evaluation      comparing runs, measuring models
    encore.training | encore.inference      fitting a model, continuing music with one
    encore.models | encore.data             the transformer and its priors, pairs of segments
    encore.codecs, config, reporting, …     what these are built on

An import may only point down. To continue music from Python:

    import encore

    model = encore.load("checkpoints/best_model.pt")
    audio = model.continue_(waveform, sample_rate, seconds=16, seed=0)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from encore.inference.pipeline import ContinuationPipeline

__all__ = ["load"]


def load(
    path: str | Path,
    device: str | None = None,
    codec_repository: str | Path | None = None,
    precision: str = "auto",
) -> ContinuationPipeline:
    """Loads the model of a checkpoint; see `encore.inference.pipeline.ContinuationPipeline`.

    Args:
        path: best_model.pt or last.pt of a training run.
        device: "cpu" or "cuda"; default: a GPU if there is one.
        codec_repository: folder with the pretrained codecs' files; default: that of the training run.
        precision: of the transformer's products: "fp32", "bf16", or "auto" for bf16 if this device is faster with it.

    Raises:
        EncoreError: not a checkpoint of this version, no such device, or the codec cannot be loaded.
    """
    from encore.inference.pipeline import ContinuationPipeline  # imports torch, which takes seconds

    return ContinuationPipeline.load(path, device, codec_repository, precision)
