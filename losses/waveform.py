"""Losses on the samples themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from losses.base import Entry, Loss, check_same_shape


def rms(prediction: Tensor, target: Tensor) -> Tensor:
    """Root mean square error, `sqrt(mean((prediction − target)²))` over channels and samples.

    In units of the waveform; 0 at identity, where its gradient is taken as 0.
    """
    check_same_shape(prediction, target)
    error = (prediction - target).flatten(1)
    return torch.linalg.vector_norm(error, dim=1) / error.shape[1] ** 0.5


class RMSLoss(Loss):
    """Root mean square error of the waveforms; see `rms`."""

    def __init__(self, reduction: str = "mean"):
        super().__init__(rms, reduction)


ENTRIES = {"rms": Entry("root mean square error of the waveform", lambda sample_rate: RMSLoss(reduction="none"))}
