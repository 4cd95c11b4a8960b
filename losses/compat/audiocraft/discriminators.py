"""Discriminators with the interface of `audiocraft.adversarial`, made of the convolutions of the package `encodec`.

Each returns a list of logits and a list of lists of features, and names its weights as audiocraft does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad

SLOPE = 0.2  # of the leaky ReLU

Output = tuple[list[Tensor], list[list[Tensor]]]


class _Convolutions(nn.Module):
    """Convolutions with leaky ReLU, and one to the logits, which count among the features."""

    def __init__(self, convs: Sequence[nn.Module], conv_post: nn.Module):
        super().__init__()
        self.convs, self.conv_post = nn.ModuleList(convs), conv_post

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for layer in self.convs:
            x = leaky_relu(layer(x), SLOPE)
            features.append(x)
        logits = self.conv_post(x)
        return logits, [*features, logits]


class ScaleDiscriminator(_Convolutions):
    """Strided and grouped convolutions of a signal `[B, C, N]` (Kumar et al. 2019).

    Args:
        in_channels: of the signal.
        out_channels: of the logits.
        kernel_sizes: samples of the last two convolutions; the first has as many as their product.
        filters: channels of the first convolution.
        max_filters: most channels.
        downsample_scales: strides of the convolutions between.
        norm: "weight_norm", "spectral_norm" or "none".
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        kernel_sizes: Sequence[int] = (5, 3),
        filters: int = 16,
        max_filters: int = 1024,
        downsample_scales: Sequence[int] = (4, 4, 4, 4),
        norm: str = "weight_norm",
    ):
        from encodec.modules import NormConv1d

        first = math.prod(kernel_sizes)
        with _without_warning():
            convs = [
                nn.Sequential(nn.ReflectionPad1d((first - 1) // 2), NormConv1d(in_channels, filters, first, norm=norm))
            ]
            width = filters
            for stride in downsample_scales:
                wider, options = min(width * stride, max_filters), {"stride": stride, "padding": 5 * stride}
                convs.append(NormConv1d(width, wider, 10 * stride + 1, groups=width // 4, norm=norm, **options))
                width = wider
            wider, (size, last) = min(2 * width, max_filters), kernel_sizes
            convs.append(NormConv1d(width, wider, size, padding=size // 2, norm=norm))
            super().__init__(convs, NormConv1d(wider, out_channels, last, padding=last // 2, norm=norm))


class PeriodDiscriminator(_Convolutions):
    """Convolutions of every `period`-th sample of a signal `[B, C, N]` (Kong et al. 2020).

    Args:
        period: samples.
        in_channels: of the signal.
        out_channels: of the logits.
        n_layers: convolutions before the logits.
        kernel_sizes: of the convolutions, and of that to the logits.
        stride: of all convolutions but the last.
        filters: channels, times `filters_scale` at each convolution, the first included.
        filters_scale: growth of the channels.
        max_filters: most channels.
        norm: "weight_norm", "spectral_norm" or "none".
    """

    def __init__(
        self,
        period: int,
        in_channels: int = 1,
        out_channels: int = 1,
        n_layers: int = 5,
        kernel_sizes: Sequence[int] = (5, 3),
        stride: int = 3,
        filters: int = 8,
        filters_scale: int = 4,
        max_filters: int = 1024,
        norm: str = "weight_norm",
    ):
        from encodec.modules import NormConv2d

        size, last = kernel_sizes
        widths = [in_channels] + [min(filters * filters_scale ** (i + 1), max_filters) for i in range(n_layers)]
        strides = [stride] * (n_layers - 1) + [1]
        with _without_warning():
            convs = [
                NormConv2d(width, wider, (size, 1), (step, 1), padding=(size // 2, 0), norm=norm)
                for width, wider, step in zip(widths, widths[1:], strides, strict=False)
            ]
            logits = NormConv2d(widths[-1], out_channels, (last, 1), padding=(last // 2, 0), norm=norm)
        super().__init__(convs, logits)
        self.period = period

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        missing = -x.shape[-1] % self.period
        whole = pad(x, (0, missing), mode="reflect") if missing else x
        return super().forward(whole.unflatten(-1, (-1, self.period)))


class _MultiDiscriminator(nn.Module):
    """Several discriminators of one signal."""

    def __init__(self, discriminators: Sequence[nn.Module]):
        super().__init__()
        self.discriminators = nn.ModuleList(discriminators)

    @property
    def num_discriminators(self) -> int:
        return len(self.discriminators)

    def forward(self, x: Tensor) -> Output:
        outputs = [discriminator(x) for discriminator in self.discriminators]
        return [logits for logits, _ in outputs], [features for _, features in outputs]


class MultiScaleDiscriminator(_MultiDiscriminator):
    """A `ScaleDiscriminator` for each of `scale_norms`, all of the signal itself.

    As in audiocraft, whose code computes the signal at lower rates and does not use it.

    Args:
        in_channels: of the signal.
        out_channels: of the logits.
        downsample_factor: has no effect.
        scale_norms: norm of each discriminator.
        **kwargs: others of `ScaleDiscriminator`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        downsample_factor: int = 2,
        scale_norms: Sequence[str] = ("weight_norm", "weight_norm", "weight_norm"),
        **kwargs: Any,
    ):
        super().__init__([ScaleDiscriminator(in_channels, out_channels, norm=norm, **kwargs) for norm in scale_norms])


class MultiPeriodDiscriminator(_MultiDiscriminator):
    """A `PeriodDiscriminator` for each of `periods`, in samples; the other arguments are that one's."""

    def __init__(
        self, in_channels: int = 1, out_channels: int = 1, periods: Sequence[int] = (2, 3, 5, 7, 11), **kwargs: Any
    ):
        super().__init__([PeriodDiscriminator(period, in_channels, out_channels, **kwargs) for period in periods])


class MultiScaleSTFTDiscriminator(_MultiDiscriminator):
    """EnCodec's discriminator, a network for each FFT size (Défossez et al. 2022).

    Args:
        filters: channels of the convolutions.
        in_channels: of the signal.
        out_channels: of the logits.
        sep_channels: has no effect, as in audiocraft.
        n_ffts, hop_lengths, win_lengths: samples, one of each per network.
        **kwargs: others of `encodec.msstftd.DiscriminatorSTFT`.
    """

    def __init__(
        self,
        filters: int,
        in_channels: int = 1,
        out_channels: int = 1,
        sep_channels: bool = False,
        n_ffts: Sequence[int] = (1024, 2048, 512),
        hop_lengths: Sequence[int] = (256, 512, 128),
        win_lengths: Sequence[int] = (1024, 2048, 512),
        **kwargs: Any,
    ):
        from encodec.msstftd import DiscriminatorSTFT

        sizes = zip(n_ffts, hop_lengths, win_lengths, strict=True)
        with _without_warning():
            networks = [
                DiscriminatorSTFT(
                    filters, in_channels, out_channels, n_fft=fft, hop_length=hop, win_length=win, **kwargs
                )
                for fft, hop, win in sizes
            ]
        super().__init__(networks)


@contextmanager
def _without_warning() -> Iterator[None]:
    """Without that of torch about the weight norm that the package uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*weight_norm", category=FutureWarning)
        yield
