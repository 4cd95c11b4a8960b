"""Short-time Fourier transforms for all losses, each computed once per signal and step inside `shared_spectra()`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from losses.dsp.autograd import Angle, AngleDifference, LogRatio, Magnitude, Spectrum, SpectrumAndMagnitude
from losses.dsp.compilation import constant, eager

POWER_FLOOR = 1e-8  # keeps the gradients of root and logarithm finite on silence

Window = str | tuple[str, float]

_bank: ContextVar[dict[tuple[Any, ...], tuple[Any, Any]] | None] = ContextVar("bank", default=None)


@contextmanager
def shared_spectra() -> Iterator[None]:
    """Within this context the spectrum of a tensor is computed once for all losses that ask for it.

    The bank of spectra is emptied at the end of the outermost context, which should contain the losses of one step.
    Losses that use one transform in several ways enter it themselves.
    """
    token = _bank.set({} if _bank.get() is None else _bank.get())
    try:
        yield
    finally:
        _bank.reset(token)


def shared_rows(signal: Tensor, index: Tensor) -> Tensor:
    """`signal[index]`: items of a signal `[B, C, N]`, which share its spectra within `shared_spectra()`.

    So each item is transformed once, however many others it is compared with.
    """
    rows = signal.index_select(0, index)
    bank = _bank.get()
    if bank is not None:
        key = (*_identity(rows), "rows")
        bank[key] = (rows, (signal, index))
    return rows


@eager
def spectrum(
    signal: Tensor,
    n_fft: int,
    hop_length: int,
    win_length: int | None = None,
    window: Window = "hann_window",
    pad_mode: str = "reflect",
) -> Tensor:
    """Short-time Fourier transform of `signal [B, C, N]`, complex `[B, C, frames, n_fft // 2 + 1]`.

    The values are those of `torch.stft` with centred frames. For an odd `n_fft` the end is padded by one sample more.

    Args:
        signal: real.
        n_fft: transform size, samples.
        hop_length: samples from frame to frame.
        win_length: samples of the window, centred in the frame; default `n_fft`.
        window: a name of `scipy.signal.get_window` ("flattop"), with its parameter if it has one (("kaiser", 8.0)), or
            a function of torch ("hann_window"); periodic.
        pad_mode: "reflect" or "constant" (zeros) beyond the ends.

    Raises:
        ValueError: an unknown window, a window longer than the transform, or a signal too short to be reflected.
    """
    win_length = n_fft if win_length is None else win_length
    raw = _raw_spectrum(signal, n_fft, hop_length, win_length, window, pad_mode)
    left = (n_fft - win_length) // 2
    if left == 0:
        return raw
    # The frames contain only the part under the window; its place in the frame is a phase shift.
    return raw * _shift(n_fft, left, raw.device, raw.dtype)


@eager
def magnitude(
    signal: Tensor,
    n_fft: int,
    hop_length: int,
    win_length: int | None = None,
    window: Window = "hann_window",
    pad_mode: str = "reflect",
    eps: float = POWER_FLOOR,
) -> Tensor:
    """`sqrt(max(|X|², eps))` of the `spectrum` X, `[B, C, frames, n_fft // 2 + 1]`; no gradient below eps."""
    settings = n_fft, hop_length, n_fft if win_length is None else win_length, window, pad_mode

    def compute() -> Tensor:
        if (origin := _origin(signal)) is not None:
            return magnitude(origin[0], *settings, eps).index_select(0, origin[1])
        if _is_held(signal, ("spectrum", *settings)):
            return absolute(_raw_spectrum(signal, *settings), eps)
        both = SpectrumAndMagnitude.apply(*_checked(signal, *settings), eps)
        transformed, value = (part.unflatten(0, signal.shape[:2]) for part in both)
        _shared(signal, ("spectrum", *settings), lambda: transformed)
        return value

    return _shared(signal, ("magnitude", *settings, eps), compute)


@eager
def log_ratio(prediction: Tensor, target: Tensor) -> Tensor:
    """`ln P − ln T` of two positive spectrograms, such as `magnitude`s, with one logarithm for both."""

    def compute() -> Tensor:
        value: Tensor = LogRatio.apply(prediction, target)
        return value

    return _shared(prediction, ("log ratio", *_identity(target)), compute, target)


@eager
def phase(
    signal: Tensor,
    n_fft: int,
    hop_length: int,
    win_length: int | None = None,
    window: Window = "hann_window",
    pad_mode: str = "reflect",
    eps: float = POWER_FLOOR,
) -> Tensor:
    """Angle of the `spectrum`, radians in (−π, π]; no gradient where the power is below eps."""
    settings = n_fft, hop_length, n_fft if win_length is None else win_length, window, pad_mode

    def compute() -> Tensor:
        value: Tensor = Angle.apply(spectrum(signal, *settings), eps)
        return value

    return _shared(signal, ("phase", *settings, eps), compute)


@eager
def absolute(values: Tensor, eps: float = 0.0) -> Tensor:
    """`sqrt(max(|values|², eps))` of complex values; no gradient below eps or at 0."""
    result: Tensor = Magnitude.apply(values, eps)
    return result


@eager
def phase_difference(prediction: Tensor, target: Tensor, eps: float = POWER_FLOOR) -> Tensor:
    """Angle of P relative to T, complex tensors of equal shape, radians in (−π, π]; no gradient at powers below eps."""
    result: Tensor = AngleDifference.apply(prediction, target, eps)
    return result


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


@constant
def window_values(window: Window, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A periodic window by name, `[length]`; see `spectrum`."""
    if isinstance(window, str) and window.endswith("_window") and hasattr(torch, window):
        values: Tensor = getattr(torch, window)(length, dtype=torch.float64)
    else:
        import scipy.signal  # slow to import, and not needed for torch's windows

        try:
            values = torch.from_numpy(scipy.signal.get_window(window, length, fftbins=True))
        except (ValueError, TypeError) as error:
            raise ValueError(f"no window {window!r} of {length} samples: {error}") from None
    return values.to(device=device, dtype=dtype)


def _raw_spectrum(
    signal: Tensor, n_fft: int, hop_length: int, win_length: int, window: Window, pad_mode: str
) -> Tensor:
    """The spectrum, with the phase of frames that begin where their window does."""
    settings = n_fft, hop_length, win_length, window, pad_mode

    def compute() -> Tensor:
        if (origin := _origin(signal)) is not None:
            return _raw_spectrum(origin[0], *settings).index_select(0, origin[1])
        transformed: Tensor = Spectrum.apply(*_checked(signal, *settings))
        return transformed.unflatten(0, signal.shape[:2])

    return _shared(signal, ("spectrum", *settings), compute)


def _checked(
    signal: Tensor, n_fft: int, hop_length: int, win_length: int, window: Window, pad_mode: str
) -> tuple[Tensor, Tensor, int, int, str]:
    """The arguments of `autograd.Spectrum`, checked."""
    if hop_length < 1 or win_length < 1:
        raise ValueError(f"hop and window must be at least 1 sample, got {hop_length} and {win_length}")
    if win_length > n_fft:
        raise ValueError(f"a window of {win_length} samples does not fit into an FFT of {n_fft}")
    if pad_mode == "reflect":
        check_long_enough(signal, n_fft)
    values = window_values(window, win_length, signal.device, signal.dtype)
    return signal.flatten(0, 1), values, n_fft, hop_length, pad_mode


def _origin(signal: Tensor) -> tuple[Tensor, Tensor] | None:
    """The signal of which this one is rows, and their indices; None if it is not made by `shared_rows`."""
    bank = _bank.get()
    held = None if bank is None else bank.get((*_identity(signal), "rows"))
    return None if held is None else held[1]


def _is_held(signal: Tensor, key: tuple[Any, ...]) -> bool:
    bank = _bank.get()
    return bank is not None and (*_identity(signal), *key) in bank


def _shared(signal: Tensor, key: tuple[Any, ...], compute: Callable[[], Tensor], other: Tensor | None = None) -> Tensor:
    """The result of `compute`, or the one in the bank under `key` and the tensors `signal` and `other`."""
    bank = _bank.get()
    if bank is None:
        return compute()
    key = (*_identity(signal), *key)
    if key not in bank:
        bank[key] = ((signal, other), compute())  # both are kept alive, so that no other tensor gets their ids
    return bank[key][1]


def _identity(signal: Tensor) -> tuple[int, int, bool, bool]:
    """Identifies a tensor; it changes with in-place changes and with whether a gradient is recorded."""
    version = 0 if signal.is_inference() else signal._version
    return id(signal), version, signal.requires_grad and torch.is_grad_enabled(), torch.is_inference_mode_enabled()


@constant
def _shift(n_fft: int, samples: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    turns = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * samples / n_fft
    factors = torch.polar(torch.ones_like(turns), -2 * math.pi * turns)
    if n_fft % 2 == 0:
        factors[-1] = (-1) ** samples  # exactly real, or rounding would decide the sign of a real bin's angle π
    return factors.to(device=device, dtype=dtype)
