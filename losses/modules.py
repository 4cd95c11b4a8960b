"""The losses as thin modules over `losses.functional`."""

from __future__ import annotations

from collections.abc import Sequence

from losses import functional
from losses.base import Entry, Loss


class SpectralLoss(Loss):
    """Multi-resolution STFT loss; see `functional.spectral`."""

    def __init__(
        self,
        fft_sizes: Sequence[int] = functional.FFT_SIZES,
        hop_sizes: Sequence[int] = functional.HOP_SIZES,
        win_lengths: Sequence[int] = functional.FFT_SIZES,
        reduction: str = "mean",
    ):
        sizes = tuple(fft_sizes), tuple(hop_sizes), tuple(win_lengths)
        super().__init__(lambda prediction, target: functional.spectral(prediction, target, *sizes), reduction)


class MelLoss(Loss):
    """L1 of log-mel spectrograms; see `functional.mel`."""

    def __init__(
        self,
        sample_rate: int,
        n_fft: int = 1024,
        hop_length: int = 256,
        n_mels: int = 80,
        f_min: float = 0.0,
        f_max: float = 8000.0,
        reduction: str = "mean",
    ):
        settings = (sample_rate, n_fft, hop_length, n_mels, f_min, f_max)
        super().__init__(lambda prediction, target: functional.mel(prediction, target, *settings), reduction)


ENTRIES = {
    "spectral": Entry(
        "multi-resolution STFT: spectral convergence + L1 of log magnitudes",
        lambda sample_rate: SpectralLoss(reduction="none"),
    ),
    "mel": Entry("L1 of log-mel spectrograms", lambda sample_rate: MelLoss(sample_rate, reduction="none")),
}
