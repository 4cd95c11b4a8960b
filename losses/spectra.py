"""The bank of spectra: what several losses need of one signal is computed once per step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

POWER_FLOOR = 1e-8  # keeps the root's gradient finite on silence

_Key = tuple[int, int, int, int, int]
_bank: ContextVar[dict[_Key, tuple[Tensor, Tensor]] | None] = ContextVar("bank", default=None)


@contextmanager
def shared_spectra() -> Iterator[None]:
    """Within this context the spectrum of a tensor is computed once for all losses that ask for it.

    The bank is emptied on leaving, so a context should span the losses of one step and no more.
    """
    token = _bank.set({})
    try:
        yield
    finally:
        _bank.reset(token)


def stft_magnitude(signal: Tensor, n_fft: int, hop_length: int, win_length: int) -> Tensor:
    """Magnitudes `[B, C, n_fft // 2 + 1, frames]` of the short-time Fourier transform of `signal [B, C, N]`.

    `sqrt(max(re² + im², 1e-8))`, Hann window, centred frames with reflected ends.

    Raises:
        ValueError: the signal is too short to be reflected at its ends.
    """
    if signal.shape[-1] <= n_fft // 2:
        raise ValueError(
            f"a signal of shape {list(signal.shape)} is too short for an FFT of {n_fft}: at least "
            f"{n_fft // 2 + 1} samples are needed"
        )
    bank = _bank.get()
    key = (id(signal), signal._version, n_fft, hop_length, win_length)
    if bank is not None and key in bank:
        return bank[key][1]
    window = _hann(win_length, signal.device, signal.dtype)
    spectrum = torch.stft(signal.flatten(0, 1), n_fft, hop_length, win_length, window, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    magnitude = power.clamp_min(POWER_FLOOR).sqrt().unflatten(0, signal.shape[:2])
    if bank is not None:
        bank[key] = (signal, magnitude)  # the signal is kept so that its id stays its own
    return magnitude


@lru_cache(maxsize=64)
def _hann(length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.hann_window(length, device=device, dtype=dtype)


@lru_cache(maxsize=64)
def mel_filters(
    sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Mel filter bank `[n_mels, n_fft // 2 + 1]`, Slaney scale and area norm (librosa's default)."""
    bank = melscale_fbanks(n_fft // 2 + 1, f_min, f_max, n_mels, sample_rate, norm="slaney", mel_scale="slaney")
    return bank.T.to(device=device, dtype=dtype).contiguous()
