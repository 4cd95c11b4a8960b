"""Discriminators of audio: modules of `audio [B, C, N]` that return `(logits, features)`.

`logits` is a list with one tensor `[B, …]` per discriminator, higher where the audio is taken for real; `features` is a
list of lists with the tensors `[B, …]` of each discriminator's layers.
"""

from __future__ import annotations

import math
import warnings

from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad
from torch.nn.utils.parametrizations import weight_norm

Output = tuple[list[Tensor], list[list[Tensor]]]

PERIODS = (2, 3, 5, 7, 11)
WIDTHS = (1, 4, 16, 32, 32)  # output channels of the multi-period discriminator's layers, times `filters`
STRIDES = (3, 3, 3, 3, 1)


def discriminator(name: str, sample_rate: int, channels: int, filters: int = 32) -> nn.Module:
    """The discriminator `name` for audio at `sample_rate` Hz with `channels` channels; see the classes below.

    Args:
        name: "msstft" (multi-scale STFT), "mpd" (multi-period), or several joined by "+", e.g. "msstft+mpd".
        filters: channels of the first convolution, of which all others are multiples; 32 in the papers.

    Raises:
        ValueError: an unknown name.
    """
    builders = {
        "msstft": lambda: MultiScaleSTFT(sample_rate, channels, filters),
        "mpd": lambda: MultiPeriod(channels, filters),
    }
    parts = name.split("+")
    if not set(parts) <= set(builders):
        raise ValueError(f"no discriminator named {name!r}; there are {', '.join(builders)}, and {'+'.join(builders)}")
    modules = [builders[part]() for part in parts]
    return modules[0] if len(modules) == 1 else Together(modules)


class MultiScaleSTFT(nn.Module):
    """EnCodec's discriminator (Défossez et al. 2022): 2-d convolutions on complex spectra, one network per FFT size.

    From the package `encodec`, with its FFT sizes 512, 1024 and 2048 and hops of a quarter; at 48 kHz they are doubled,
    as in the paper (other rates: the factor of the nearest of 24 kHz, 48 kHz, 96 kHz …). The input's channels are the
    channels of the first convolution's input.

    Raises:
        ValueError: at the call, audio that is not `[B, channels, N]` or shorter than the longest window.
    """

    def __init__(self, sample_rate: int, channels: int, filters: int = 32):
        super().__init__()
        from encodec.msstftd import MultiScaleSTFTDiscriminator

        scale = 2 ** max(0, round(math.log2(sample_rate / 24000)))
        sizes = [scale * size for size in (1024, 2048, 512)]
        hops = [size // 4 for size in sizes]
        with warnings.catch_warnings():
            # The package uses a deprecated weight norm of torch.
            warnings.filterwarnings("ignore", message=".*weight_norm", category=FutureWarning)
            self.network = MultiScaleSTFTDiscriminator(
                filters, channels, n_ffts=sizes, hop_lengths=hops, win_lengths=sizes
            )
        self.channels, self.least = channels, max(sizes)

    def forward(self, audio: Tensor) -> Output:
        _check(audio, self.channels, self.least)
        return self.network(audio)


class MultiPeriod(nn.Module):
    """HiFi-GAN's discriminator (Kong et al. 2020), one network per period p of 2, 3, 5, 7 and 11 samples.

    Each gets the audio folded to `[B, C, N / p, p]` and convolves along time only, so that every column is every p-th
    sample of the signal. Periods are in samples, whatever the sample rate.

    Raises:
        ValueError: at the call, audio that is not `[B, channels, N]` or shorter than the longest period.
    """

    def __init__(self, channels: int, filters: int = 32):
        super().__init__()
        self.networks = nn.ModuleList(_Period(period, channels, filters) for period in PERIODS)
        self.channels = channels

    def forward(self, audio: Tensor) -> Output:
        _check(audio, self.channels, max(PERIODS))
        outputs = [network(audio) for network in self.networks]
        return [logits for logits, _ in outputs], [features for _, features in outputs]


class _Period(nn.Module):
    """The network of one period: five convolutions of 5 × 1 with leaky ReLU, and one of 3 × 1 to the logits.

    The logits count among the features, as in the authors' code.
    """

    def __init__(self, period: int, channels: int, filters: int):
        super().__init__()
        self.period = period
        self.layers = nn.ModuleList()
        for width, stride in zip(WIDTHS, STRIDES, strict=True):
            convolution = nn.Conv2d(channels, width * filters, (5, 1), (stride, 1), padding=(2, 0))
            self.layers.append(weight_norm(convolution))
            channels = width * filters
        self.last = weight_norm(nn.Conv2d(channels, 1, (3, 1), padding=(1, 0)))

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        missing = -audio.shape[-1] % self.period
        signal = pad(audio, (0, missing), mode="reflect").unflatten(-1, (-1, self.period))
        features = []
        for layer in self.layers:
            signal = leaky_relu(layer(signal), 0.1)
            features.append(signal)
        logits = self.last(signal)
        return logits, [*features, logits]


class Together(nn.Module):
    """Several discriminators as one: all their logits and features, one after another."""

    def __init__(self, discriminators: list[nn.Module]):
        super().__init__()
        self.discriminators = nn.ModuleList(discriminators)

    def forward(self, audio: Tensor) -> Output:
        outputs = [module(audio) for module in self.discriminators]
        return (
            [logits for found, _ in outputs for logits in found],
            [features for _, found in outputs for features in found],
        )


def _check(audio: Tensor, channels: int, least: int) -> None:
    if audio.dim() != 3 or audio.shape[1] != channels:
        raise ValueError(f"audio must be [B, {channels}, N], got {list(audio.shape)}")
    if audio.shape[-1] < least:
        raise ValueError(
            f"audio of shape {list(audio.shape)} is too short for a discriminator: at least {least} samples are needed"
        )
