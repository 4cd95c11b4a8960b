"""The settings of STFT losses, with auraloss's names and defaults: checked, and as types for keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from inspect import Parameter, signature
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor

from losses.dsp.scales import Log
from losses.dsp.stft import POWER_FLOOR, Window, window_values
from losses.dsp.transforms import STFT, Chroma, Mel
from losses.time_frequency import Norm, l1, l2

SILENCE = 1e-3  # −60 dBFS: convergence is relative to at least this level, or silent targets would outweigh all others
LEAST = 1e-12  # what a mel filter without bins counts as under a logarithm
DISTANCES: dict[str, Norm] = {"L1": l1, "L2": l2}
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


class STFTOptions(TypedDict, total=False):
    """What every STFT loss takes by name; see `STFTSettings`."""

    w_sc: float
    w_log_mag: float
    w_lin_mag: float
    w_phs: float
    perceptual_weighting: bool
    scale_invariance: bool
    eps: float
    mag_distance: str
    log_fac: float
    log_eps: float
    pad_mode: str
    batch: bool


class ScaledSTFTOptions(STFTOptions, total=False):
    """`STFTOptions`, and those of a mel or chroma scale."""

    sample_rate: int | None
    scale: str | None
    n_bins: int | None


class MultiSTFTOptions(STFTOptions, total=False):
    """`ScaledSTFTOptions` of several resolutions, which may differ in their number of bands."""

    sample_rate: int | None
    scale: str | None
    n_bins: int | Sequence[int] | None


@dataclass(frozen=True)
class STFTSettings:
    """The settings of `stft`, with auraloss's names and defaults.

    Attributes:
        fft_size: transform size, samples.
        hop_size: samples from frame to frame.
        win_length: window, samples.
        window: by name, as in `losses.dsp.stft.Resolution`.
        w_sc: weight of the spectral convergence.
        w_log_mag: weight of the distance of log magnitudes.
        w_lin_mag: weight of the distance of magnitudes.
        w_phs: weight of the mean square difference of the angles.
        sample_rate: Hz, for mel, chroma and perceptual weighting.
        scale: None, "mel" or "chroma".
        n_bins: bands of the scale; default 128, or 12 for chroma.
        perceptual_weighting: A-weight both signals first.
        scale_invariance: scale T to P by least squares, per channel.
        eps: least power of a bin.
        mag_distance: "L1" or "L2", for magnitudes and log magnitudes.
        log_fac: factor under the logarithm.
        log_eps: offset under the logarithm.
        pad_mode: "reflect" or "constant" (zeros) beyond the ends.
        batch: spectral convergence over the whole batch, the same value for each item, as auraloss has it.

    Raises:
        ValueError: an unknown scale or distance, or no sample rate where it is needed.
    """

    fft_size: int = 1024
    hop_size: int = 256
    win_length: int = 1024
    window: Window = "hann_window"
    w_sc: float = 1.0
    w_log_mag: float = 1.0
    w_lin_mag: float = 0.0
    w_phs: float = 0.0
    sample_rate: int | None = None
    scale: str | None = None
    n_bins: int | None = None
    perceptual_weighting: bool = False
    scale_invariance: bool = False
    eps: float = POWER_FLOOR
    mag_distance: str = "L1"
    log_fac: float = 1.0
    log_eps: float = 0.0
    pad_mode: str = "reflect"
    batch: bool = False

    def __post_init__(self) -> None:
        if self.scale not in (None, "mel", "chroma"):
            raise ValueError(f"scale must be None, 'mel' or 'chroma', got {self.scale!r}")
        if self.mag_distance not in DISTANCES:
            raise ValueError(f"mag_distance must be one of {', '.join(DISTANCES)}, got {self.mag_distance!r}")
        if self.sample_rate is None and (self.scale or self.perceptual_weighting):
            raise ValueError("a mel or chroma scale and perceptual weighting need the sample_rate, in Hz")
        window_values(self.window, self.transform.resolution.win_length, torch.device("cpu"), torch.float32)

    @property
    def transform(self) -> STFT:
        """The magnitudes that are compared."""
        sizes = self.fft_size, self.hop_size, self.win_length, self.window, 1, self.pad_mode, self.eps
        if self.scale is None:
            return STFT(*sizes)
        assert self.sample_rate is not None
        if self.scale == "mel":
            return Mel(*sizes, sample_rate=self.sample_rate, n_mels=self.n_bins or 128)
        return Chroma(*sizes, sample_rate=self.sample_rate, n_chroma=self.n_bins or 12)

    @property
    def log(self) -> Log:
        """The logarithm of the log magnitudes; that of plain magnitudes, which are above 0, needs no floor."""
        plain = self.scale is None and not self.scale_invariance and (self.log_fac, self.log_eps) == (1, 0)
        return Log() if plain else Log(self.log_fac, self.log_eps, LEAST)

    def silent_norm(self, spectrogram: Tensor) -> Tensor:
        """The norm of an item of the spectrogram's shape for white noise at −60 dBFS."""
        window = window_values(self.window, self.win_length, spectrogram.device, spectrogram.dtype)
        magnitudes = (SILENCE * window.square().sum().sqrt()).expand(1, self.fft_size // 2 + 1)
        frames = spectrogram.shape[1] * spectrogram.shape[2]
        return torch.linalg.vector_norm(self.transform.bands(magnitudes)) * frames**0.5


def checked_settings(loss: Callable[..., Any], sizes: Mapping[str, Any], options: Mapping[str, Any]) -> STFTSettings:
    """The settings of a loss, a class or function, of one resolution.

    Raises:
        TypeError: an option that STFT losses do not take.
        ValueError: as `STFTSettings`.
    """
    if unknown := sorted(options.keys() - {field.name for field in fields(STFTSettings)}):
        raise TypeError(
            f"{loss.__name__} takes no {', '.join(unknown)}; it takes {', '.join(signature(loss).parameters)}"
        )
    return STFTSettings(**sizes, **options)


def resolutions(
    loss: Callable[..., Any],
    fft_sizes: Sequence[int],
    hop_sizes: Sequence[int],
    win_lengths: Sequence[int],
    window: Window,
    options: Mapping[str, Any],
) -> tuple[STFTSettings, ...]:
    """The settings of a loss of several resolutions, one for each.

    Raises:
        TypeError: as `checked_settings`.
        ValueError: as `STFTSettings`, or lists of different lengths.
    """
    options = dict(options)
    n_bins = options.pop("n_bins", None)
    bins = n_bins if isinstance(n_bins, Sequence) else [n_bins] * len(fft_sizes)
    if not len(fft_sizes) == len(hop_sizes) == len(win_lengths) == len(bins) > 0:
        raise ValueError(
            "fft_sizes, hop_sizes, win_lengths and n_bins must be equally long, got "
            f"{len(fft_sizes)}, {len(hop_sizes)}, {len(win_lengths)} and {len(bins)}"
        )
    return tuple(
        checked_settings(
            loss, {"fft_size": fft, "hop_size": hop, "win_length": win, "window": window}, {**options, "n_bins": count}
        )
        for fft, hop, win, count in zip(fft_sizes, hop_sizes, win_lengths, bins, strict=True)
    )


def changed_settings(settings: STFTSettings) -> dict[str, Any]:
    """The settings that differ from the defaults."""
    return {name: value for name, value in asdict(settings).items() if value != getattr(STFTSettings, name)}


def spelled_out(options: type, **defaults: Any) -> Callable[[AnyFunction], AnyFunction]:
    """Decorates a function of `**options`: help, editors and `inspect.signature` show each option with its default.

    Args:
        options: `STFTOptions` or one of its extensions.
        **defaults: those that are not as in `STFTSettings`.
    """

    def decorate(function: AnyFunction) -> AnyFunction:
        given = signature(function)
        shown = [
            Parameter(
                name,
                Parameter.KEYWORD_ONLY,
                default=defaults.get(name, getattr(STFTSettings, name)),
                annotation=getattr(annotation, "__forward_arg__", annotation),
            )
            for name, annotation in options.__annotations__.items()
        ]
        function.__signature__ = given.replace(parameters=[*given.parameters.values()][:-1] + shown)  # type: ignore[attr-defined]
        return function

    return decorate
