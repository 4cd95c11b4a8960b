"""STFT losses over several resolutions, and well-known presets of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from losses.base import FunctionLoss, Loss, check_same_shape
from losses.dsp.compilation import eager
from losses.dsp.filters import a_weighted, sum_and_difference
from losses.dsp.stft import check_long_enough
from losses.registry import register
from losses.stft import STFTLoss, STFTSettings, STFTTerms, stft, stft_terms

SPECTRAL: dict[str, Any] = {
    "fft_sizes": (512, 1024, 2048),
    "hop_sizes": (128, 256, 512),
    "win_lengths": (512, 1024, 2048),
}
MRSTFT: dict[str, Any] = {
    "fft_sizes": (64, 128, 256, 512, 1024, 2048),
    "hop_sizes": (32, 64, 128, 256, 512, 1024),
    "win_lengths": (64, 128, 256, 512, 1024, 2048),
    "window": "hann",
    "w_sc": 0.0,
    "w_log_mag": 1.0,
    "w_lin_mag": 1.0,
    "eps": 0.0,
    "log_eps": 1e-7,
    "pad_mode": "constant",
}
SMOOTH_MRSTFT: dict[str, Any] = MRSTFT | {
    "fft_sizes": (67, 127, 257, 509, 1021, 2053),
    "hop_sizes": (32, 63, 128, 254, 510, 1026),
    "win_lengths": (67, 127, 257, 509, 1021, 2053),
    "window": "flattop",
    "w_lin_mag": 0.0,
    "mag_distance": "L2",
    "log_eps": 1.0,
}
RANDOM_WINDOWS = ("hann_window", "bartlett_window", "blackman_window", "hamming_window", "kaiser_window")


def multi_resolution_stft_terms(
    prediction: Tensor,
    target: Tensor,
    fft_sizes: Sequence[int] = (1024, 2048, 512),
    hop_sizes: Sequence[int] = (120, 240, 50),
    win_lengths: Sequence[int] = (600, 1200, 240),
    n_bins: int | Sequence[int] | None = None,
    perceptual_weighting: bool = False,
    sample_rate: int | None = None,
    **settings: Any,
) -> STFTTerms:
    """The terms of `multi_resolution_stft`, means over resolutions, each `[B]`."""
    check_same_shape(prediction, target)
    bins = n_bins if isinstance(n_bins, Sequence) else [n_bins] * len(fft_sizes)
    if not len(fft_sizes) == len(hop_sizes) == len(win_lengths) == len(bins) > 0:
        raise ValueError(
            "fft_sizes, hop_sizes, win_lengths and n_bins must be equally long, got "
            f"{len(fft_sizes)}, {len(hop_sizes)}, {len(win_lengths)} and {len(bins)}"
        )
    if settings.get("pad_mode", "reflect") == "reflect":
        check_long_enough(prediction, max(fft_sizes))
    if perceptual_weighting:  # once for all resolutions
        if sample_rate is None:
            raise ValueError("perceptual weighting needs the sample_rate, in Hz")
        prediction, target = a_weighted(prediction, sample_rate), a_weighted(target, sample_rate)
    terms = [
        stft_terms(prediction, target, STFTSettings(fft, hop, win, n_bins=count, sample_rate=sample_rate, **settings))
        for fft, hop, win, count in zip(fft_sizes, hop_sizes, win_lengths, bins, strict=True)
    ]
    return STFTTerms(*(torch.stack(values).mean(0) for values in zip(*terms, strict=True)))


def multi_resolution_stft(prediction: Tensor, target: Tensor, **settings: Any) -> Tensor:
    """The mean of `stft` over resolutions, `[B]`. Yamamoto et al. 2020; defaults of auraloss 0.4.

    Args:
        prediction: `[B, C, N]`.
        target: likewise.
        **settings: fft_sizes, hop_sizes, win_lengths: samples, one of each per resolution. n_bins: bands of a mel or
            chroma scale, one number or one per resolution. The other settings of `stft` apply to all resolutions.

    Raises:
        ValueError: as `stft`, or lists of different lengths.
    """
    return multi_resolution_stft_terms(prediction, target, **settings).loss


def spectral(prediction: Tensor, target: Tensor, **settings: Any) -> Tensor:
    """`multi_resolution_stft` with the settings of `SpectralLoss`, `[B]`."""
    return multi_resolution_stft(prediction, target, **SPECTRAL | settings)


def mrstft(prediction: Tensor, target: Tensor, **settings: Any) -> Tensor:
    """`multi_resolution_stft` with the settings of `MRSTFTLoss`, `[B]`."""
    return multi_resolution_stft(prediction, target, **MRSTFT | settings)


def smooth_mrstft(prediction: Tensor, target: Tensor, **settings: Any) -> Tensor:
    """`multi_resolution_stft` with the settings of `SmoothMRSTFTLoss`, `[B]`."""
    return multi_resolution_stft(prediction, target, **SMOOTH_MRSTFT | settings)


@register("multi_resolution_stft", group="spectral")
class MultiResolutionSTFTLoss(STFTLoss):
    """STFT loss at auraloss's three resolutions: spectral convergence + L1 of log magnitudes.

    Formula: mean of `stft` over FFT 1024, 2048, 512, hop 120, 240, 50, window 600, 1200, 240.
    Use: to compare with published values.

    See `multi_resolution_stft` for the settings.
    """

    terms = staticmethod(multi_resolution_stft_terms)


@register("random_resolution_stft", group="spectral")
class RandomResolutionSTFTLoss(Loss):
    """STFT loss at resolutions drawn anew for every training step.

    Formula: mean of `stft` over 3 resolutions drawn for each step, FFT 16 to 16384.
    Use: without a fixed grid that a generator could learn to please.

    Steinmetz & Reiss 2020, auraloss 0.4.
    An FFT is a power of two from `min_fft_size` to below `max_fft_size` (and short enough for the signal), its hop
    between `min_hop_size` and `max_hop_size` of it, its window the whole, half or a quarter of it.

    The sizes follow from `seed` and the number of training calls so far, which is part of the state: ranks with equally
    many calls draw the same, and a resumed run continues exactly. Without gradient (validation) they are always those
    of the first call.

    Args:
        resolutions: sizes per call.
        min_fft_size: samples, a power of two.
        max_fft_size: samples, a power of two; itself never drawn, as in auraloss.
        min_hop_size: share of the FFT.
        max_hop_size: share of the FFT.
        windows: names to draw from.
        seed: of the draws.
        reduction: "mean" over items or "none".
        **settings: others of `stft`.
    """

    def __init__(
        self,
        resolutions: int = 3,
        min_fft_size: int = 16,
        max_fft_size: int = 32768,
        min_hop_size: float = 0.1,
        max_hop_size: float = 1.0,
        windows: Sequence[str] = RANDOM_WINDOWS,
        seed: int = 0,
        reduction: str = "mean",
        **settings: Any,
    ):
        super().__init__(self._compare, reduction)
        self.resolutions, self.windows, self.seed, self.settings = resolutions, tuple(windows), seed, settings
        self.fft_sizes, self.hop_sizes = (min_fft_size, max_fft_size), (min_hop_size, max_hop_size)
        self.calls = 0

    def draw(self, samples: int, call: int) -> list[dict[str, Any]]:
        """The sizes and windows for the given training call on signals of `samples` samples.

        Raises:
            ValueError: the signal is too short for the smallest FFT.
        """
        # PyTorch's generator uses the lowest 32 bits only; the factor is a prime far above the steps of a run.
        generator = torch.Generator().manual_seed((self.seed * 15_485_863 + call) % 2**32)
        low, high = (size.bit_length() - 1 for size in self.fft_sizes)
        high = min(high, (2 * samples - 1).bit_length())
        if high <= low:
            raise ValueError(
                f"a signal of {samples} samples is too short for an FFT of {2**low}: at least {2 ** (low - 1) + 1} "
                "samples are needed"
            )
        least, most = self.hop_sizes
        drawn = []
        for _ in range(self.resolutions):
            size = 2 ** int(torch.randint(low, high, (), generator=generator))
            share = least + (most - least) * float(torch.rand((), generator=generator))
            part, window = (int(torch.randint(count, (), generator=generator)) for count in (3, len(self.windows)))
            sizes = {"fft_size": size, "hop_size": max(1, int(size * share)), "win_length": size // (1, 2, 4)[part]}
            drawn.append({**sizes, "window": self.windows[window]})
        return drawn

    def extra_repr(self) -> str:
        return f"resolutions={self.resolutions}, seed={self.seed}, calls={self.calls}, reduction={self.reduction!r}"

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]

    @eager  # otherwise each count of calls would be compiled anew
    def _compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        training = torch.is_grad_enabled() and prediction.requires_grad
        sizes = self.draw(prediction.shape[-1], self.calls if training else 0)
        self.calls += training
        return torch.stack([stft(prediction, target, **size, **self.settings) for size in sizes]).mean(0)


@register("sum_and_difference_stft", group="spectral", channels=2)
def sum_and_difference_stft(
    prediction: Tensor, target: Tensor, w_sum: float = 1.0, w_diff: float = 1.0, **settings: Any
) -> Tensor:
    """Multi-resolution STFT loss of the sum and difference of stereo channels.

    Formula: `(w_sum L(l + r) + w_diff L(l − r)) / 2`, L the `multi_resolution_stft`, weights 1.
    Use: stereo only: balance and width.

    Steinmetz et al. 2020, auraloss 0.4, whose value for several items needs `batch=True` (see `stft`).

    Raises:
        ValueError: not stereo, or as `multi_resolution_stft`.
    """
    check_same_shape(prediction, target)
    both = [
        multi_resolution_stft(predicted, wanted, **settings)
        for predicted, wanted in zip(sum_and_difference(prediction), sum_and_difference(target), strict=True)
    ]
    return (w_sum * both[0] + w_diff * both[1]) / 2


class SumAndDifferenceSTFTLoss(FunctionLoss):
    """Multi-resolution STFT loss of sum and difference of stereo channels; see `sum_and_difference_stft`."""

    compare = staticmethod(sum_and_difference_stft)


@register("spectral", group="spectral")
class SpectralLoss(MultiResolutionSTFTLoss):
    """Multi-resolution STFT loss: spectral convergence + L1 of log magnitudes.

    Formula: mean over FFT 512, 1024, 2048, hop a quarter, of `‖T − P‖_F / ‖T‖_F + mean(|ln P − ln T|)`.
    Use: the first choice for texture.

    Hann windows; see `stft` for the floors.
    """

    def __init__(self, **settings: Any):
        super().__init__(**SPECTRAL | settings)


@register("mrstft", group="spectral", distance=True)
class MRSTFTLoss(MultiResolutionSTFTLoss):
    """Multi-scale spectral loss: L1 of magnitudes and of log magnitudes, FFT 64 to 2048.

    Formula: mean over FFT 64, 128, … 2048, hop a half, of `mean(|P − T|) + mean(|ln(P + 1e-7) − ln(T + 1e-7)|)`.
    Use: the multi-scale spectral loss of DDSP.

    Engel et al. 2020, with the defaults of korvax 0.3's `mrstft_loss`: Hann windows, zeros beyond the ends.
    """

    def __init__(self, **settings: Any):
        super().__init__(**MRSTFT | settings)


@register("smooth_mrstft", group="spectral")
class SmoothMRSTFTLoss(MultiResolutionSTFTLoss):
    """Smooth multi-scale spectral loss: mean square of log magnitudes, flat-top windows.

    Formula: mean over flat-top windows of 67, 127, 257, 509, 1021, 2053 of `mean((ln(1 + P) − ln(1 + T))²)`.
    Use: pitch that is to be found by gradient descent: few local minima.

    The smooth configuration of Schwär & Müller 2023, "Multi-Scale Spectral Loss Revisited", as korvax 0.3 has it.
    """

    def __init__(self, **settings: Any):
        super().__init__(**SMOOTH_MRSTFT | settings)
