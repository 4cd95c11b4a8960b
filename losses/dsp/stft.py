"""Short-time Fourier transforms for all losses, each computed once per signal and step inside `shared_spectra()`.

One transform serves all that is asked of a signal at a resolution: complex values, magnitudes, phases. Their gradients
add up at the spectrum and take one inverse transform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from losses.dsp.autograd import Angle, LogRatio, Magnitude, PhaseDistance, Transform
from losses.dsp.bank import origin, shared
from losses.dsp.compilation import constant_tensor

POWER_FLOOR = 1e-8  # keeps the gradients of root and logarithm finite on silence
PAD_MODES = ("reflect", "constant")

Window = str | tuple[str, float]


@dataclass(frozen=True)
class Resolution:
    """How a signal is cut into frames, one per hop, each centred at its time, and transformed.

    Attributes:
        n_fft: transform size, samples. For an odd one the signal's end is padded by one sample more.
        hop_length: samples from frame to frame; 0 stands for a quarter of the window.
        win_length: samples of the window, centred in the frame; 0 stands for `n_fft`.
        window: a name of `scipy.signal.get_window` ("flattop"), with its parameter if it has one (("kaiser", 8.0)), or
            a function of torch ("hann_window"); periodic.
        pad_mode: "reflect" or "constant" (zeros) beyond the ends.

    Raises:
        ValueError: a hop or window below 1 sample, a window longer than the transform, another `pad_mode`.
    """

    n_fft: int
    hop_length: int = 0
    win_length: int = 0
    window: Window = "hann_window"
    pad_mode: str = "reflect"

    def __post_init__(self) -> None:
        object.__setattr__(self, "win_length", self.win_length or self.n_fft)
        object.__setattr__(self, "hop_length", self.hop_length or self.win_length // 4)
        if self.hop_length < 1 or self.win_length < 1:
            raise ValueError(f"hop and window must be at least 1 sample, got {self.hop_length} and {self.win_length}")
        if self.win_length > self.n_fft:
            raise ValueError(f"a window of {self.win_length} samples does not fit into an FFT of {self.n_fft}")
        if self.pad_mode not in PAD_MODES:
            raise ValueError(f"pad_mode must be one of {', '.join(PAD_MODES)}, got {self.pad_mode!r}")


def spectrum(signal: Tensor, resolution: Resolution) -> Tensor:
    """Short-time Fourier transform of a real `signal [B, C, N]`, complex `[B, C, frames, n_fft // 2 + 1]`.

    The values are those of `torch.stft` with centred frames.

    Raises:
        ValueError: an unknown window, or a signal too short to be reflected.
    """
    return torch.complex(*_centred(signal, resolution))


def spectrum_parts(signal: Tensor, resolution: Resolution) -> Tensor:
    """Real and imaginary parts `[2, B, C, frames, n_fft // 2 + 1]` of the `spectrum`, turned if the window is short.

    With a window shorter than the transform, phases are those of frames that begin where their window does. This turns
    the spectra of all signals alike, so magnitudes and differences of phases are the same.
    """

    def compute() -> Tensor:
        if (whole := origin(signal)) is not None:
            return spectrum_parts(whole[0], resolution).index_select(1, whole[1])
        if resolution.pad_mode == "reflect":
            check_long_enough(signal, resolution.n_fft)
        window = window_values(resolution.window, resolution.win_length, signal.device, signal.dtype)
        sizes = resolution.n_fft, resolution.hop_length, resolution.pad_mode
        parts = Transform.compute(signal.flatten(0, 1), window, *sizes)
        return parts.unflatten(1, signal.shape[:2])

    return shared(("spectrum", resolution), (signal,), compute)


def magnitude(signal: Tensor, resolution: Resolution, eps: float = POWER_FLOOR) -> Tensor:
    """`sqrt(max(|X|², eps))` of the `spectrum` X, `[B, C, frames, n_fft // 2 + 1]`; no gradient below eps or at 0."""

    def compute() -> Tensor:
        if (whole := origin(signal)) is not None:
            return magnitude(whole[0], resolution, eps).index_select(0, whole[1])
        return absolute(spectrum_parts(signal, resolution), eps=eps)

    return shared(("magnitude", resolution, eps), (signal,), compute)


def phase(signal: Tensor, resolution: Resolution, eps: float = POWER_FLOOR) -> Tensor:
    """Angle of the `spectrum`, radians in (−π, π]; no gradient where the power is below eps."""

    def compute() -> Tensor:
        level = magnitude(signal, resolution, eps).detach()
        return Angle.compute(_centred(signal, resolution), level, eps)

    return shared(("phase", resolution, eps), (signal,), compute)


def anti_wrapped_distance(
    prediction: Tensor, target: Tensor, resolution: Resolution, eps: float = POWER_FLOOR
) -> Tensor:
    """`mean f(Δ) + mean f(∂_k Δ) + mean f(∂_t Δ)` of an item, `[B]`, as `losses.functional.phase_distance` has it.

    Δ is the angle of the prediction's `spectrum` relative to the target's. It counts as 0 where both powers are at most
    eps, and has no gradient at a signal where its own is.
    """
    parts = [spectrum_parts(signal, resolution) for signal in (prediction, target)]
    levels = [magnitude(signal, resolution, eps).detach() for signal in (prediction, target)]
    return PhaseDistance.compute(*parts, *levels, eps)


def absolute(parts: Tensor, other: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """`sqrt(max(|X|², eps))` from the parts `[2, …]` of X, or of X − `other`; no gradient below eps or at 0."""
    return Magnitude.compute(parts, other, eps)


def log_ratio(prediction: Tensor, target: Tensor) -> Tensor:
    """`ln P − ln T` of two positive spectrograms, such as `magnitude`s, with one logarithm for both."""

    return shared(("log ratio",), (prediction, target), lambda: LogRatio.compute(prediction, target))


def check_long_enough(signal: Tensor, n_fft: int) -> None:
    """Raises ValueError, naming the shortest possible length, if the signal's ends cannot be reflected for this FFT.

    Losses of several resolutions check the longest FFT first.
    """
    least = n_fft - n_fft // 2 + 1
    if signal.shape[-1] < least:
        raise ValueError(
            f"a signal of shape {list(signal.shape)} is too short for an FFT of {n_fft}: at least {least} samples are "
            "needed"
        )


@constant_tensor
def window_values(window: Window, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A periodic window by name, `[length]`; see `Resolution`."""
    if isinstance(window, str) and window.endswith("_window") and hasattr(torch, window):
        values: Tensor = getattr(torch, window)(length, dtype=torch.float64)
    else:
        import scipy.signal  # slow to import, and not needed for torch's windows

        try:
            values = torch.from_numpy(scipy.signal.get_window(window, length, fftbins=True))
        except (ValueError, TypeError) as error:
            raise ValueError(f"no window {window!r} of {length} samples: {error}") from None
    return values.to(device=device, dtype=dtype)


def _centred(signal: Tensor, resolution: Resolution) -> Tensor:
    """The `spectrum_parts`, with the phases of frames that begin half a transform before their time."""
    parts = spectrum_parts(signal, resolution)
    left = (resolution.n_fft - resolution.win_length) // 2
    if left == 0:
        return parts
    (real, imag), (cosine, sine) = parts.unbind(), _shift(resolution.n_fft, left, parts.device, parts.dtype).unbind()
    return torch.stack([real * cosine - imag * sine, real * sine + imag * cosine])


@constant_tensor
def _shift(n_fft: int, samples: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Cosine and sine of the angles by which bins turn in so many samples, `[2, n_fft // 2 + 1]`."""
    turns = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * samples / n_fft
    factors = torch.stack([(-2 * math.pi * turns).cos(), (-2 * math.pi * turns).sin()])
    if n_fft % 2 == 0:
        # Exactly real, or rounding would decide the sign of a real bin's angle π.
        factors[:, -1] = torch.tensor([(-1.0) ** samples, 0.0])
    return factors.to(device=device, dtype=dtype)
