"""The losses as thin modules over `losses.functional`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from losses import functional


class Loss(nn.Module):
    """A loss of `(prediction, target)`, both `[B, C, N]`.

    Args:
        function: gives one value per item, `[B]`.
        reduction: "mean" over the items, or "none" for all of them.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], reduction: str = "mean"):
        super().__init__()
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
        self.function, self.reduction = function, reduction

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        values = self.function(prediction, target)
        return values.mean() if self.reduction == "mean" else values


class RMSLoss(Loss):
    """Root mean square error of the waveforms; see `functional.rms`."""

    def __init__(self, reduction: str = "mean"):
        super().__init__(functional.rms, reduction)


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
