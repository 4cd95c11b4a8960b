"""STFT losses with the interface of `auraloss.freq`; those of one resolution are defined in `stft`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from losses.base import full_precision
from losses.compat.auraloss.perceptual import FIRFilter, SumAndDifference
from losses.compat.auraloss.stft import (
    ChromaSTFTLoss,
    MelSTFTLoss,
    SpectralConvergenceLoss,
    STFTLoss,
    STFTMagnitudeLoss,
    Term,
)
from losses.compat.auraloss.utils import apply_reduction
from losses.multi_resolution import AURALOSS_SIZES, RANDOM_WINDOWS
from losses.stft import checked_output

__all__ = [
    "ChromaSTFTLoss",
    "FIRFilter",
    "MelSTFTLoss",
    "MultiResolutionSTFTLoss",
    "RandomResolutionSTFTLoss",
    "STFTLoss",
    "STFTMagnitudeLoss",
    "SpectralConvergenceLoss",
    "SumAndDifference",
    "SumAndDifferenceSTFTLoss",
    "apply_reduction",
]


class MultiResolutionSTFTLoss(nn.Module):
    """The mean of `STFTLoss` over resolutions (Yamamoto et al. 2020).

    With `output="full"` each term is a list with one value per resolution.

    Args:
        fft_sizes, hop_sizes, win_lengths: samples, one of each per resolution.
        **kwargs: others of `STFTLoss`, for all resolutions.

    Raises:
        ValueError: lists of different lengths, or as `STFTLoss`.
    """

    def __init__(
        self,
        fft_sizes: Sequence[int] = AURALOSS_SIZES[0],
        hop_sizes: Sequence[int] = AURALOSS_SIZES[1],
        win_lengths: Sequence[int] = AURALOSS_SIZES[2],
        window: str = "hann_window",
        w_sc: float = 1.0,
        w_log_mag: float = 1.0,
        w_lin_mag: float = 0.0,
        w_phs: float = 0.0,
        sample_rate: float | None = None,
        scale: str | None = None,
        n_bins: int | None = None,
        perceptual_weighting: bool = False,
        scale_invariance: bool = False,
        **kwargs: Any,
    ):
        super().__init__()
        if not len(fft_sizes) == len(hop_sizes) == len(win_lengths) > 0:
            raise ValueError(
                "fft_sizes, hop_sizes and win_lengths must be equally long, got "
                f"{len(fft_sizes)}, {len(hop_sizes)} and {len(win_lengths)}"
            )
        self.fft_sizes, self.hop_sizes, self.win_lengths = fft_sizes, hop_sizes, win_lengths
        options: Any = (w_sc, w_log_mag, w_lin_mag, w_phs, sample_rate, scale, n_bins)
        options = (window, *options, perceptual_weighting, scale_invariance)
        self.stft_losses = nn.ModuleList(
            STFTLoss(*sizes, *options, **kwargs) for sizes in zip(fft_sizes, hop_sizes, win_lengths, strict=True)
        )

    def forward(self, x: Tensor, y: Tensor) -> Any:
        losses, *terms = full_precision(self._terms)(x, y)
        mean = sum(losses) / len(losses)
        return (mean, *terms) if self._first.output == "full" else mean

    @property
    def _first(self) -> STFTLoss:
        first = self.stft_losses[0]
        assert isinstance(first, STFTLoss)
        return first

    def _terms(self, prediction: Tensor, target: Tensor) -> list[list[Term]]:
        if self._first.perceptual_weighting:  # once for all resolutions
            prediction, target = self._first.prefilter(prediction, target)
        resolutions = [loss.terms(prediction, target) for loss in self.stft_losses]  # type: ignore[operator]
        return [list(values) for values in zip(*resolutions, strict=True)]


class RandomResolutionSTFTLoss(nn.Module):
    """The mean of `STFTLoss` over resolutions drawn at random (Steinmetz & Reiss 2020).

    They are drawn from NumPy's global generator, as auraloss draws them: `np.random.seed` gives both the same.
    `losses.RandomResolutionSTFTLoss` has a seed of its own and is the same on all ranks and after a resumed run.

    Args:
        resolutions: how many.
        min_fft_size, max_fft_size: samples, powers of two; the largest is never drawn.
        min_hop_size, max_hop_size: shares of the FFT.
        windows: names to draw from.
        n_mels: bands of the scale.
        randomize_rate: calls until resolutions are drawn anew.
        **kwargs: others of `STFTLoss`.

    Raises:
        ValueError: at the call, a signal not longer than `max_fft_size`; as `STFTLoss`.
    """

    def __init__(
        self,
        resolutions: int = 3,
        min_fft_size: int = 16,
        max_fft_size: int = 32768,
        min_hop_size: float = 0.1,
        max_hop_size: float = 1.0,
        windows: Sequence[str] = RANDOM_WINDOWS,
        w_sc: float = 1.0,
        w_log_mag: float = 1.0,
        w_lin_mag: float = 0.0,
        w_phs: float = 0.0,
        sample_rate: float | None = None,
        scale: str | None = None,
        n_mels: int | None = None,
        randomize_rate: int = 1,
        **kwargs: Any,
    ):
        super().__init__()
        if "output" in kwargs:
            raise TypeError("RandomResolutionSTFTLoss returns the loss alone and has no option 'output'")
        self.resolutions, self.windows, self.randomize_rate = resolutions, windows, randomize_rate
        self.min_fft_size, self.max_fft_size = min_fft_size, max_fft_size
        self.min_hop_size, self.max_hop_size = min_hop_size, max_hop_size
        self.w_sc, self.w_log_mag, self.w_lin_mag, self.w_phs = w_sc, w_log_mag, w_lin_mag, w_phs
        self.sample_rate, self.scale, self.n_mels, self.kwargs = sample_rate, scale, n_mels, kwargs
        self.nforwards = 0
        self.randomize_losses()

    def randomize_losses(self) -> None:
        """Draws new resolutions."""
        self.stft_losses = nn.ModuleList(self._drawn() for _ in range(self.resolutions))

    def forward(self, input: Tensor, target: Tensor) -> Any:
        for signal in (input, target):
            if signal.shape[-1] <= self.max_fft_size:
                raise ValueError(
                    f"a signal of {signal.shape[-1]} samples must be longer than max_fft_size, {self.max_fft_size}"
                )
        if self.nforwards % self.randomize_rate == 0:
            self.randomize_losses()
        self.nforwards += 1
        return sum(loss(input, target) for loss in self.stft_losses) / len(self.stft_losses)

    def _drawn(self) -> STFTLoss:
        fft_size = int(2 ** np.random.randint(np.log2(self.min_fft_size), np.log2(self.max_fft_size)))
        share = self.min_hop_size + np.random.rand() * (self.max_hop_size - self.min_hop_size)
        win_length = int(fft_size * np.random.choice([1.0, 0.5, 0.25]))
        sizes = fft_size, int(fft_size * share), win_length, str(np.random.choice(list(self.windows)))
        weights = self.w_sc, self.w_log_mag, self.w_lin_mag, self.w_phs
        return STFTLoss(*sizes, *weights, self.sample_rate, self.scale, self.n_mels, **self.kwargs)


class SumAndDifferenceSTFTLoss(nn.Module):
    """`(w_sum L(l + r) + w_diff L(l − r)) / 2` of stereo signals, L `MultiResolutionSTFTLoss` (Steinmetz et al. 2020).

    Args:
        fft_sizes, hop_sizes, win_lengths: samples, one of each per resolution.
        window: as in `STFTLoss`.
        w_sum, w_diff: weights.
        output: "loss", or "full" for the loss, L(l + r) and L(l − r).
        **kwargs: others of `MultiResolutionSTFTLoss`.

    Raises:
        ValueError: not stereo; as `MultiResolutionSTFTLoss`.
    """

    def __init__(
        self,
        fft_sizes: Sequence[int],
        hop_sizes: Sequence[int],
        win_lengths: Sequence[int],
        window: str = "hann_window",
        w_sum: float = 1.0,
        w_diff: float = 1.0,
        output: str = "loss",
        **kwargs: Any,
    ):
        super().__init__()
        self.sd = SumAndDifference()
        self.w_sum, self.w_diff, self.output = w_sum, w_diff, checked_output(output)
        self.mrstft = MultiResolutionSTFTLoss(fft_sizes, hop_sizes, win_lengths, window, **kwargs)

    def forward(self, input: Tensor, target: Tensor) -> Any:
        pairs = zip(self.sd(input), self.sd(target), strict=True)
        of_sum, of_difference = (self.mrstft(predicted, wanted) for predicted, wanted in pairs)
        loss = (self.w_sum * of_sum + self.w_diff * of_difference) / 2
        return (loss, of_sum, of_difference) if self.output == "full" else loss
