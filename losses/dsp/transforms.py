"""Time-frequency transforms: a signal `[B, C, N]` to a spectrogram `[B, C, frames, bins]`."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.dsp.compilation import constant_tensor
from losses.dsp.filterbanks import erb_frequencies, erb_spectrogram, mel_spectrogram
from losses.dsp.stft import POWER_FLOOR, Resolution, Window, magnitude, window_values


@constant_tensor
def chroma_filters(sample_rate: float, n_fft: int, n_chroma: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Chroma filter bank `[n_chroma, n_fft // 2 + 1]`, the first row is C.

    A bin at `f` Hz lies at `p(f) = n_chroma log2(f / 27.5)` on the circle of pitch classes and gives to class `c`
    `exp(−½ (2 d / w)²)`, d the distance of p and c around the circle, w the width of the bin (at least one class). Each
    column has unit Euclidean norm before it is weighted by `exp(−½ ((p / n_chroma − 5) / 2)²)`, which favours the
    octaves around 880 Hz. Equal to `librosa.filters.chroma` with its defaults (Ellis 2007).
    """
    frequencies = torch.arange(1, n_fft, dtype=torch.float64) * (sample_rate / n_fft)
    position = n_chroma * torch.log2(frequencies / 27.5)
    position = torch.cat([position[:1] - 1.5 * n_chroma, position])  # 0 Hz: an octave and a half below the first bin
    width = torch.cat([position.diff().clamp_min(1), position.new_ones(1)])
    half = round(n_chroma / 2)
    distance = torch.remainder(position - torch.arange(n_chroma)[:, None] + half, n_chroma) - half
    weights = torch.exp(-2 * (distance / width) ** 2)
    weights = weights / torch.linalg.vector_norm(weights, dim=0)
    weights = weights * torch.exp(-0.5 * ((position / n_chroma - 5) / 2) ** 2)
    weights = weights.roll(-3 * (n_chroma // 12), dims=0)  # class 0 was A
    return weights[:, : n_fft // 2 + 1].to(device=device, dtype=dtype).contiguous()


@dataclass(frozen=True)
class STFT:
    """`max(|X|, √eps) ** power` of the short-time Fourier transform X, `[B, C, frames, n_fft // 2 + 1]`.

    Centred frames, one per hop; below √eps there is no gradient. Sizes and defaults are those of `korvax.spectrogram`,
    which pads with zeros unless told otherwise. Within `losses.shared_spectra()` each transform is computed once.

    Attributes:
        n_fft: transform size, samples.
        hop_length: samples from frame to frame; default a quarter of the window.
        win_length: samples of the window; default `n_fft`.
        window: by name, as in `losses.dsp.stft.Resolution`.
        power: 1 for magnitudes, 2 for powers.
        pad_mode: "reflect" or "constant" (zeros) beyond the ends.
        eps: least power of a bin.

    Raises:
        ValueError: at the call, an unknown window, or a signal too short to be reflected.
    """

    n_fft: int = 2048
    hop_length: int | None = None
    win_length: int | None = None
    window: Window = "hann_window"
    power: float = 2.0
    pad_mode: str = "reflect"
    eps: float = POWER_FLOOR

    @property
    def resolution(self) -> Resolution:
        """Frames, window and size of the transform."""
        return Resolution(self.n_fft, self.hop_length or 0, self.win_length or 0, self.window, self.pad_mode)

    def __call__(self, signal: Tensor) -> Tensor:
        value = magnitude(signal, self.resolution, self.eps)
        return self.bands(value if self.power == 1 else value**self.power)

    def bands(self, spectrogram: Tensor) -> Tensor:
        """The bands of this transform from the bins of an FFT, `[…, n_fft // 2 + 1]`; here the bins themselves."""
        return spectrogram


@dataclass(frozen=True)
class Mel(STFT):
    """Mel bands of an `STFT`, `[B, C, frames, n_mels]`: Slaney's filters, as `korvax.mel_spectrogram`.

    Attributes, beside those of `STFT`:
        sample_rate: Hz.
        n_mels: bands.
        f_min: lower end of the lowest, Hz.
        f_max: upper end of the highest, Hz; None for half the sample rate.
        unit_area: filters of unit area in Hz; otherwise of height 1, so that a band is the sum of its bins.
    """

    _: KW_ONLY
    sample_rate: int
    n_mels: int = 128
    f_min: float = 0.0
    f_max: float | None = None
    unit_area: bool = True

    def bands(self, spectrogram: Tensor) -> Tensor:
        return mel_spectrogram(
            spectrogram, self.sample_rate, self.n_fft, self.n_mels, self.f_min, self.f_max, self.unit_area
        )


@dataclass(frozen=True)
class ERB(STFT):
    """Bands of an `STFT` as wide as those of hearing, `[B, C, frames, bands]`: each is the sum of its bins.

    Attributes, beside those of `STFT`:
        sample_rate: Hz.
    """

    _: KW_ONLY
    sample_rate: int

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Centres of the bands, Hz; see `erb_frequencies`."""
        return erb_frequencies(self.sample_rate, self.n_fft)

    def bands(self, spectrogram: Tensor) -> Tensor:
        return erb_spectrogram(spectrogram, self.sample_rate, self.n_fft)


@dataclass(frozen=True)
class Chroma(STFT):
    """Pitch classes of an `STFT`, `[B, C, frames, n_chroma]`, C first; see `chroma_filters`.

    Frames are not normalised (`librosa.feature.chroma_stft` with `norm=None`).

    Attributes, beside those of `STFT`:
        sample_rate: Hz.
        n_chroma: classes of an octave.
    """

    _: KW_ONLY
    sample_rate: int
    n_chroma: int = 12

    def bands(self, spectrogram: Tensor) -> Tensor:
        filters = chroma_filters(self.sample_rate, self.n_fft, self.n_chroma, spectrogram.device, spectrogram.dtype)
        return spectrogram @ filters.T


@dataclass(frozen=True)
class VQT:
    """Variable-Q transform, `max(|V|, 1e-4) ** power`, `[B, C, frames, n_bins]`.

    `V_k(m) = sqrt(L_k) Σ_n x(m hop + n) w_k(n) e^(−2πi n f_k / sample_rate) / Σ w_k` with a window w_k of
    `L_k = ceil(sample_rate / (α f_k + γ))` samples around n = 0, `f_k = f_min 2^(k / bins_per_octave)` and
    `α = 2^(1 / bins_per_octave) − 1`. Exact: each octave is correlated with kernels of its own length, without
    resampling. As `korvax.vqt` (zeros beyond the ends) and nnAudio's `CQT1992v2`; librosa resamples for the lower
    octaves, about 2 % apart. The frames take as much memory as `2 L_0 / hop_length` copies of the signal.

    Attributes:
        sample_rate: Hz.
        hop_length: samples from frame to frame.
        f_min: frequency of the lowest bin, Hz; default C1.
        n_bins: rising bins.
        bins_per_octave: bins of an octave.
        window: by name, as in `losses.dsp.stft.Resolution`.
        power: 1 for magnitudes, 2 for powers.
        gamma: bandwidth in Hz added to each bin's `α f_k`, which shortens the low bins; 0 is constant Q.

    Raises:
        ValueError: the highest bin lies above half the sample rate.
    """

    sample_rate: int
    hop_length: int = 512
    f_min: float = 32.70
    n_bins: int = 84
    bins_per_octave: int = 12
    window: Window = "hann"
    power: float = 2.0
    gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.frequencies[-1] > self.sample_rate / 2:
            most = int(self.bins_per_octave * math.log2(self.sample_rate / 2 / self.f_min)) + 1
            raise ValueError(
                f"{self.n_bins} bins from {self.f_min:g} Hz end at {self.frequencies[-1]:.0f} Hz, above half the "
                f"sample rate of {self.sample_rate} Hz: at most {most} bins fit"
            )

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Frequencies of the bins, Hz."""
        return tuple(self.f_min * 2 ** (bin_ / self.bins_per_octave) for bin_ in range(self.n_bins))

    def __call__(self, signal: Tensor) -> Tensor:
        powers = []
        for first in range(0, self.n_bins, self.bins_per_octave):
            octave = self.frequencies[first : first + self.bins_per_octave]
            settings = self.sample_rate, octave, self.bins_per_octave, self.gamma, self.window
            kernels = _constant_q_kernels(*settings, signal.device, signal.dtype)
            half = len(kernels) // 2
            # A product of matrices, not a convolution: cuDNN would compute that in TF32.
            frames = F.pad(signal, (half, half)).unfold(-1, 2 * half, self.hop_length)
            real, imaginary = (frames @ kernels).chunk(2, dim=-1)
            powers.append(real.square() + imaginary.square())
        power = torch.cat(powers, dim=-1).clamp_min(POWER_FLOOR)
        return power if self.power == 2 else power ** (self.power / 2)


@dataclass(frozen=True)
class CQT(VQT):
    """Constant-Q transform: a `VQT` with gamma 0."""

    gamma: float = field(default=0.0, init=False)


@constant_tensor
def _constant_q_kernels(
    sample_rate: int,
    frequencies: tuple[float, ...],
    bins_per_octave: int,
    gamma: float,
    window: Window,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Kernels of an octave's bins, `[width, 2 bins]`, real parts then imaginary ones, n = 0 at `width / 2`."""
    q = 1 / (2 ** (1 / bins_per_octave) - 1)
    lengths = [math.ceil(q * sample_rate / (frequency + gamma * q)) for frequency in frequencies]
    half = (lengths[0] + 1) // 2
    kernels = torch.zeros(2 * half, len(lengths), dtype=torch.complex128)
    for column, (frequency, length) in enumerate(zip(frequencies, lengths, strict=True)):
        values = window_values(window, length, torch.device("cpu"), torch.float64)
        start = -((length + 1) // 2)
        turns = torch.arange(start, start + length, dtype=torch.float64) * frequency / sample_rate
        wave = torch.polar(torch.ones_like(turns), -2 * math.pi * turns)
        kernels[half + start : half + start + length, column] = wave * values * length**0.5 / values.abs().sum()
    return torch.cat([kernels.real, kernels.imag], dim=1).to(device=device, dtype=dtype)
