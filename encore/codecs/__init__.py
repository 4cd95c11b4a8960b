"""Frozen codecs: audio to continuous latents and back.

`Codec` is the interface, `load_codec` finds one by the value of `--codec`. Registered here: `encodec_24khz` and
`encodec_48khz` (encodec.py), and `starter`, which is bundled (starter/weights.py).
"""

from __future__ import annotations

from pathlib import Path

import torch

from encore.codecs.base import Codec, register_codec
from encore.codecs.starter.weights import build_from_file
from encore.errors import EncoreError
from encore.registry import CODECS

__all__ = ["CODECS", "Codec", "load_codec", "register_codec"]


def load_codec(name: str, repository: Path | None = None, bandwidth: float | None = None) -> Codec:
    """The codec that `--codec` names, frozen.

    Args:
        name: a registered codec (see `CODECS`), or the path of weights that train_codec.py wrote.
        repository: folder with the pretrained models' files, instead of a download at first use.
        bandwidth: kbit/s of the residual quantiser that latents pass through; None keeps them continuous.

    Raises:
        EncoreError: no such codec, its weights cannot be loaded, or it has no quantiser of this bandwidth.
    """
    # TF32 convolutions have 10 bits of mantissa: audible noise at −60 dB.
    torch.backends.cudnn.allow_tf32 = False
    if name in CODECS:
        codec: Codec = CODECS[name](repository, bandwidth)
    elif Path(name).suffix or Path(name).is_file():
        codec = build_from_file(Path(name), bandwidth)
    else:
        raise EncoreError(
            f"--codec {name}: no such codec; there are {', '.join(CODECS)}, those of a module of your own (--plugins), "
            "and files that train_codec.py wrote"
        )
    codec.requires_grad_(False)
    codec.train(False)
    return codec
