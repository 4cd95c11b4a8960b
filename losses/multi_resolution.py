"""STFT losses over several resolutions, and well-known presets of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from losses.base import Loss, full_precision
from losses.dsp.bank import sharing_spectra
from losses.dsp.compilation import eager
from losses.dsp.filters import a_weighted, sum_and_difference
from losses.dsp.stft import Window, check_long_enough
from losses.registry import register
from losses.stft import checked_output, stft, stft_terms
from losses.stft_settings import (
    MultiSTFTOptions,
    ScaledSTFTOptions,
    STFTSettings,
    changed_settings,
    checked_settings,
    resolutions,
    spelled_out,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

AURALOSS_SIZES = (1024, 2048, 512), (120, 240, 50), (600, 1200, 240)
SPECTRAL_SIZES = (512, 1024, 2048), (128, 256, 512), (512, 1024, 2048)
MRSTFT_SIZES = (64, 128, 256, 512, 1024, 2048), (32, 64, 128, 256, 512, 1024), (64, 128, 256, 512, 1024, 2048)
MRSTFT: MultiSTFTOptions = {"w_sc": 0.0, "w_lin_mag": 1.0, "eps": 0.0, "log_eps": 1e-7, "pad_mode": "constant"}
SMOOTH_SIZES = (67, 127, 257, 509, 1021, 2053), (32, 63, 128, 254, 510, 1026), (67, 127, 257, 509, 1021, 2053)
SMOOTH: MultiSTFTOptions = {"w_sc": 0.0, "eps": 0.0, "mag_distance": "L2", "log_eps": 1.0, "pad_mode": "constant"}
RANDOM_WINDOWS = ("hann_window", "bartlett_window", "blackman_window", "hamming_window", "kaiser_window")
Sizes = Sequence[int]


class MultiSTFTTerms(NamedTuple):
    """The loss, `[B]` (or a mean over items), and its terms before weighting, of each resolution; 0 at weight 0."""

    loss: Tensor
    sc_mag_loss: tuple[Tensor, ...]
    log_mag_loss: tuple[Tensor, ...]
    lin_mag_loss: tuple[Tensor, ...]
    phs_loss: tuple[Tensor, ...]


class SumAndDifferenceTerms(NamedTuple):
    """The loss and its terms before weighting, of sum and difference; each `[B]` (or a mean over items)."""

    loss: Tensor
    sum_loss: Tensor
    diff_loss: Tensor


@sharing_spectra
def multi_resolution_stft_terms(prediction: Tensor, target: Tensor, settings: Sequence[STFTSettings]) -> MultiSTFTTerms:
    """The terms of `multi_resolution_stft`."""
    longest = max(settings, key=lambda one: one.fft_size)
    if longest.pad_mode == "reflect":
        check_long_enough(prediction, longest.fft_size)
    if longest.perceptual_weighting:  # once for all resolutions
        assert longest.sample_rate is not None
        prediction, target = (a_weighted(signal, longest.sample_rate) for signal in (prediction, target))
    terms = [stft_terms(prediction, target, one, weighted=True) for one in settings]
    loss, *parts = zip(*terms, strict=True)
    return MultiSTFTTerms(torch.stack(loss).mean(0), *parts)


@full_precision
@spelled_out(MultiSTFTOptions)
def multi_resolution_stft(
    prediction: Tensor,
    target: Tensor,
    fft_sizes: Sizes = AURALOSS_SIZES[0],
    hop_sizes: Sizes = AURALOSS_SIZES[1],
    win_lengths: Sizes = AURALOSS_SIZES[2],
    window: Window = "hann_window",
    **options: Unpack[MultiSTFTOptions],
) -> Tensor:
    """The mean of `stft` over resolutions, `[B]`. Yamamoto et al. 2020; defaults of auraloss 0.4.

    Args:
        prediction: `[B, C, N]`.
        target: likewise.
        fft_sizes: transform sizes, samples, one per resolution.
        hop_sizes: samples from frame to frame, likewise.
        win_lengths: samples of the windows, likewise.
        window: by name, as in `losses.dsp.stft.Resolution`.
        **options: n_bins: bands of a mel or chroma scale, one number or one per resolution. The other options of `stft`
            apply to all resolutions.

    Raises:
        ValueError: as `stft`, or lists of different lengths.
        TypeError: an option that it does not take.
    """
    settings = resolutions(multi_resolution_stft, fft_sizes, hop_sizes, win_lengths, window, options)
    return multi_resolution_stft_terms(prediction, target, settings).loss


@spelled_out(MultiSTFTOptions)
def spectral(
    prediction: Tensor,
    target: Tensor,
    fft_sizes: Sizes = SPECTRAL_SIZES[0],
    hop_sizes: Sizes = SPECTRAL_SIZES[1],
    win_lengths: Sizes = SPECTRAL_SIZES[2],
    window: Window = "hann_window",
    **options: Unpack[MultiSTFTOptions],
) -> Tensor:
    """`multi_resolution_stft` with the settings of `SpectralLoss`, `[B]`."""
    return multi_resolution_stft(prediction, target, fft_sizes, hop_sizes, win_lengths, window, **options)


@spelled_out(MultiSTFTOptions, **MRSTFT)
def mrstft(
    prediction: Tensor,
    target: Tensor,
    fft_sizes: Sizes = MRSTFT_SIZES[0],
    hop_sizes: Sizes = MRSTFT_SIZES[1],
    win_lengths: Sizes = MRSTFT_SIZES[2],
    window: Window = "hann",
    **options: Unpack[MultiSTFTOptions],
) -> Tensor:
    """`multi_resolution_stft` with the settings of `MRSTFTLoss`, `[B]`."""
    merged: MultiSTFTOptions = {**MRSTFT, **options}
    return multi_resolution_stft(prediction, target, fft_sizes, hop_sizes, win_lengths, window, **merged)


@spelled_out(MultiSTFTOptions, **SMOOTH)
def smooth_mrstft(
    prediction: Tensor,
    target: Tensor,
    fft_sizes: Sizes = SMOOTH_SIZES[0],
    hop_sizes: Sizes = SMOOTH_SIZES[1],
    win_lengths: Sizes = SMOOTH_SIZES[2],
    window: Window = "flattop",
    **options: Unpack[MultiSTFTOptions],
) -> Tensor:
    """`multi_resolution_stft` with the settings of `SmoothMRSTFTLoss`, `[B]`."""
    merged: MultiSTFTOptions = {**SMOOTH, **options}
    return multi_resolution_stft(prediction, target, fft_sizes, hop_sizes, win_lengths, window, **merged)


@full_precision
@spelled_out(MultiSTFTOptions)
def sum_and_difference_stft(
    prediction: Tensor,
    target: Tensor,
    fft_sizes: Sizes = AURALOSS_SIZES[0],
    hop_sizes: Sizes = AURALOSS_SIZES[1],
    win_lengths: Sizes = AURALOSS_SIZES[2],
    window: Window = "hann_window",
    w_sum: float = 1.0,
    w_diff: float = 1.0,
    **options: Unpack[MultiSTFTOptions],
) -> Tensor:
    """`(w_sum L(l + r) + w_diff L(l − r)) / 2`, L the `multi_resolution_stft`, `[B]`; see `SumAndDifferenceSTFTLoss`.

    Raises:
        ValueError: not stereo, or as `multi_resolution_stft`.
        TypeError: an option that it does not take.
    """
    settings = resolutions(sum_and_difference_stft, fft_sizes, hop_sizes, win_lengths, window, options)
    return sum_and_difference_terms(prediction, target, settings, w_sum, w_diff).loss


def sum_and_difference_terms(
    prediction: Tensor, target: Tensor, settings: Sequence[STFTSettings], w_sum: float = 1.0, w_diff: float = 1.0
) -> SumAndDifferenceTerms:
    """The terms of `sum_and_difference_stft`, each `[B]`."""
    both = zip(sum_and_difference(prediction), sum_and_difference(target), strict=True)
    sums, differences = (multi_resolution_stft_terms(*pair, settings).loss for pair in both)
    return SumAndDifferenceTerms((w_sum * sums + w_diff * differences) / 2, sums, differences)


@register("multi_resolution_stft", group="spectral")
class MultiResolutionSTFTLoss(Loss):
    """STFT loss at auraloss's three resolutions: spectral convergence + L1 of log magnitudes.

    Formula: mean of `stft` over FFT 1024, 2048, 512, hop 120, 240, 50, window 600, 1200, 240.
    Use: to compare with published values.

    Args:
        fft_sizes: transform sizes, samples, one per resolution.
        hop_sizes: samples from frame to frame, likewise.
        win_lengths: samples of the windows, likewise.
        window: by name, as in `losses.dsp.stft.Resolution`.
        output: "loss", or "full" for `MultiSTFTTerms`, the loss and its terms, one per resolution.
        reduction: "mean" or "sum" over items, "none" for all of them, or "batch": the mean, with spectral convergence
            over the whole batch, as auraloss has it.
        **options: see `multi_resolution_stft`.

    Raises:
        ValueError: a setting has no such value, or lists of different lengths.
        TypeError: an option that it does not take.
    """

    @spelled_out(MultiSTFTOptions)
    def __init__(
        self,
        fft_sizes: Sizes = AURALOSS_SIZES[0],
        hop_sizes: Sizes = AURALOSS_SIZES[1],
        win_lengths: Sizes = AURALOSS_SIZES[2],
        window: Window = "hann_window",
        *,
        output: str = "loss",
        reduction: str = "mean",
        **options: Unpack[MultiSTFTOptions],
    ):
        if reduction == "batch":
            options["batch"], reduction = True, "mean"
        self.output = checked_output(output)
        sizes = fft_sizes, hop_sizes, win_lengths, window
        self.resolutions = resolutions(type(self), *sizes, options)
        super().__init__(partial(multi_resolution_stft_terms, settings=self.resolutions), reduction)

    def settings(self) -> Mapping[str, Any]:
        names = {"fft_sizes": "fft_size", "hop_sizes": "hop_size", "win_lengths": "win_length"}
        sizes = {several: tuple(getattr(one, name) for one in self.resolutions) for several, name in names.items()}
        changed = changed_settings(self.resolutions[0])
        if "n_bins" in changed:
            changed["n_bins"] = tuple(one.n_bins for one in self.resolutions)
        others = {name: value for name, value in changed.items() if name not in names.values()}
        return {**sizes, **others, **({} if self.output == "loss" else {"output": self.output})}

    def reduced(self, values: Any) -> Any:
        reduce = super().reduced
        if self.output == "loss":
            return reduce(values.loss)
        return MultiSTFTTerms(reduce(values.loss), *(tuple(map(reduce, terms)) for terms in values[1:]))


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
        reduction: "mean" or "sum" over items, or "none".
        **options: others of `stft`.

    Raises:
        ValueError: a setting has no such value.
        TypeError: an option that it does not take.
    """

    @spelled_out(ScaledSTFTOptions)
    def __init__(
        self,
        resolutions: int = 3,
        min_fft_size: int = 16,
        max_fft_size: int = 32768,
        min_hop_size: float = 0.1,
        max_hop_size: float = 1.0,
        windows: Sequence[str] = RANDOM_WINDOWS,
        *,
        seed: int = 0,
        reduction: str = "mean",
        **options: Unpack[ScaledSTFTOptions],
    ):
        super().__init__(self._compare, reduction)
        drawn = dict.fromkeys(("fft_size", "hop_size", "win_length"), 1024)
        for window in windows:
            checked_settings(type(self), {**drawn, "window": window}, options)
        self.resolutions, self.windows, self.seed, self.options = resolutions, tuple(windows), seed, options
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

    def settings(self) -> dict[str, Any]:
        return {"resolutions": self.resolutions, "seed": self.seed, "calls": self.calls, **self.options}

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]

    @eager  # otherwise each count of calls would be compiled anew
    def _compare(self, prediction: Tensor, target: Tensor) -> Tensor:
        training = torch.is_grad_enabled() and prediction.requires_grad
        sizes = self.draw(prediction.shape[-1], self.calls if training else 0)
        self.calls += training
        return torch.stack([stft(prediction, target, **size, **self.options) for size in sizes]).mean(0)


@register("sum_and_difference_stft", group="spectral", channels=2)
class SumAndDifferenceSTFTLoss(MultiResolutionSTFTLoss):
    """Multi-resolution STFT loss of the sum and difference of stereo channels.

    Formula: `(w_sum L(l + r) + w_diff L(l − r)) / 2`, L the `multi_resolution_stft`, weights 1.
    Use: stereo only: balance and width.

    Steinmetz et al. 2020, auraloss 0.4, whose value for several items needs `reduction="batch"`.

    Args:
        w_sum: weight of the sum of the channels.
        w_diff: weight of their difference.
        output: "loss", or "full" for `SumAndDifferenceTerms`.
        others: see `MultiResolutionSTFTLoss`.

    Raises:
        ValueError: at the call, not stereo; or as `MultiResolutionSTFTLoss`.
        TypeError: an option that it does not take.
    """

    @spelled_out(MultiSTFTOptions)
    def __init__(
        self,
        fft_sizes: Sizes = AURALOSS_SIZES[0],
        hop_sizes: Sizes = AURALOSS_SIZES[1],
        win_lengths: Sizes = AURALOSS_SIZES[2],
        window: Window = "hann_window",
        *,
        w_sum: float = 1.0,
        w_diff: float = 1.0,
        output: str = "loss",
        reduction: str = "mean",
        **options: Unpack[MultiSTFTOptions],
    ):
        sizes = fft_sizes, hop_sizes, win_lengths, window
        super().__init__(*sizes, output=output, reduction=reduction, **options)
        self.weights = {"w_sum": w_sum, "w_diff": w_diff}
        self.function = partial(sum_and_difference_terms, settings=self.resolutions, w_sum=w_sum, w_diff=w_diff)

    def settings(self) -> Mapping[str, Any]:
        return {**super().settings(), **{name: weight for name, weight in self.weights.items() if weight != 1}}

    def reduced(self, values: Any) -> Any:
        reduce = partial(Loss.reduced, self)
        return reduce(values.loss) if self.output == "loss" else SumAndDifferenceTerms(*map(reduce, values))


@register("spectral", group="spectral")
class SpectralLoss(MultiResolutionSTFTLoss):
    """Multi-resolution STFT loss: spectral convergence + L1 of log magnitudes.

    Formula: mean over FFT 512, 1024, 2048, hop a quarter, of `‖T − P‖_F / ‖T‖_F + mean(|ln P − ln T|)`.
    Use: the first choice for texture.

    Hann windows; see `stft` for the floors.
    """

    @spelled_out(MultiSTFTOptions)
    def __init__(
        self,
        fft_sizes: Sizes = SPECTRAL_SIZES[0],
        hop_sizes: Sizes = SPECTRAL_SIZES[1],
        win_lengths: Sizes = SPECTRAL_SIZES[2],
        window: Window = "hann_window",
        *,
        output: str = "loss",
        reduction: str = "mean",
        **options: Unpack[MultiSTFTOptions],
    ):
        sizes = fft_sizes, hop_sizes, win_lengths, window
        super().__init__(*sizes, output=output, reduction=reduction, **options)


@register("mrstft", group="spectral", distance=True)
class MRSTFTLoss(MultiResolutionSTFTLoss):
    """Multi-scale spectral loss: L1 of magnitudes and of log magnitudes, FFT 64 to 2048.

    Formula: mean over FFT 64, 128, … 2048, hop a half, of `mean(|P − T|) + mean(|ln(P + 1e-7) − ln(T + 1e-7)|)`.
    Use: the multi-scale spectral loss of DDSP.

    Engel et al. 2020, with the defaults of korvax 0.3's `mrstft_loss`: Hann windows, zeros beyond the ends.
    """

    @spelled_out(MultiSTFTOptions, **MRSTFT)
    def __init__(
        self,
        fft_sizes: Sizes = MRSTFT_SIZES[0],
        hop_sizes: Sizes = MRSTFT_SIZES[1],
        win_lengths: Sizes = MRSTFT_SIZES[2],
        window: Window = "hann",
        *,
        output: str = "loss",
        reduction: str = "mean",
        **options: Unpack[MultiSTFTOptions],
    ):
        sizes, merged = (fft_sizes, hop_sizes, win_lengths, window), MRSTFT.copy()
        merged.update(options)
        super().__init__(*sizes, output=output, reduction=reduction, **merged)


@register("smooth_mrstft", group="spectral")
class SmoothMRSTFTLoss(MultiResolutionSTFTLoss):
    """Smooth multi-scale spectral loss: mean square of log magnitudes, flat-top windows.

    Formula: mean over flat-top windows of 67, 127, 257, 509, 1021, 2053 of `mean((ln(1 + P) − ln(1 + T))²)`.
    Use: pitch that is to be found by gradient descent: few local minima.

    The smooth configuration of Schwär & Müller 2023, "Multi-Scale Spectral Loss Revisited", as korvax 0.3 has it.
    """

    @spelled_out(MultiSTFTOptions, **SMOOTH)
    def __init__(
        self,
        fft_sizes: Sizes = SMOOTH_SIZES[0],
        hop_sizes: Sizes = SMOOTH_SIZES[1],
        win_lengths: Sizes = SMOOTH_SIZES[2],
        window: Window = "flattop",
        *,
        output: str = "loss",
        reduction: str = "mean",
        **options: Unpack[MultiSTFTOptions],
    ):
        sizes, merged = (fft_sizes, hop_sizes, win_lengths, window), SMOOTH.copy()
        merged.update(options)
        super().__init__(*sizes, output=output, reduction=reduction, **merged)
