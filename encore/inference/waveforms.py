"""Waveforms as users have them: NumPy or torch, of several types and layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Waveform: TypeAlias = "NDArray[Any] | Tensor | Sequence[float]"
FULL_SCALE = {torch.int16: 2.0**15, torch.int32: 2.0**31}  # of the integers that audio is stored in
MAX_CHANNELS = 64
LOUDEST = 100.0  # 40 dB above full scale; beyond that it is integers that were converted without being scaled


def to_waveform(samples: Waveform) -> Tensor:
    """The samples as float32 `[C, N]` on the CPU.

    Two-dimensional samples whose first axis is the longer one are taken for `[N, C]`, as soundfile reads them.

    Raises:
        TypeError: neither floating point nor int16 nor int32.
        ValueError: another shape, no samples, or values that are not finite or far beyond [-1, 1].
    """
    audio = _tensor(samples)
    shape = list(audio.shape)
    if audio.dim() not in (1, 2):
        raise ValueError(
            f"waveform: shape {shape} must be [N], [C, N] or [N, C]; continue the items of a batch with continue_batch"
        )
    if not audio.numel():
        raise ValueError(f"waveform: shape {shape} holds no samples")
    if audio.dim() == 1:
        audio = audio[None]
    elif len(audio) > audio.shape[1]:
        audio = audio.T
    if len(audio) > MAX_CHANNELS:
        raise ValueError(f"waveform: shape {shape} has {len(audio)} channels; it must be [N], [C, N] or [N, C]")
    audio = audio.float() / FULL_SCALE.get(audio.dtype, 1.0)
    if not audio.isfinite().all():
        raise ValueError("waveform: holds NaN or infinite samples")
    if (peak := float(audio.abs().max())) > LOUDEST:
        raise ValueError(
            f"waveform: samples of up to {peak:.0f}; floating point must be in [-1, 1]: divide 16-bit samples by 32768"
        )
    return audio.contiguous()


def _tensor(samples: Waveform) -> Tensor:
    """The samples as a tensor of their own type, on the CPU."""
    if not isinstance(samples, Tensor):
        try:
            array = np.asarray(samples)
        except ValueError as error:
            raise TypeError(
                "waveform: no array of samples; waveform and sample rate are two arguments, continue_(waveform, 44100)"
            ) from error
        if array.dtype.kind in "fiu":  # torch has neither the other byte order nor long doubles
            array = array.astype(np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("="))
            samples = torch.from_numpy(array)
    if not isinstance(samples, Tensor) or not (samples.is_floating_point() or samples.dtype in FULL_SCALE):
        kind = samples.dtype if isinstance(samples, Tensor) else array.dtype
        raise TypeError(
            f"waveform: samples of type {kind} must be floating point in [-1, 1], or int16 or int32 at full scale"
        )
    return samples.detach().cpu()
