"""korvax 0.3's losses and what they are made of, for PyTorch: `from losses.compat import korvax`.

A signal is `[…, N]` and a spectrogram `[…, bins, frames]`, as in korvax; every axis before them is a channel, and a
loss is one number for all. Functions take tensors, and arrays of NumPy or JAX, for which they return such arrays;
gradients are PyTorch's.
"""

from losses.compat.korvax import loss
from losses.compat.korvax.convert import (
    A_weighting,
    amplitude_to_db,
    cqt_frequencies,
    db_to_amplitude,
    db_to_power,
    fft_frequencies,
    power_to_db,
)
from losses.compat.korvax.transforms import (
    cqt,
    mel_filterbank,
    mel_spectrogram,
    spectrogram,
    stft,
    to_mel_scale,
    vqt,
)

__all__ = [
    "A_weighting",
    "amplitude_to_db",
    "cqt",
    "cqt_frequencies",
    "db_to_amplitude",
    "db_to_power",
    "fft_frequencies",
    "loss",
    "mel_filterbank",
    "mel_spectrogram",
    "power_to_db",
    "spectrogram",
    "stft",
    "to_mel_scale",
    "vqt",
]

_ELSEWHERE = {
    "istft": "torch.istft",
    "griffin_lim": "torchaudio.transforms.GriffinLim",
    "resample": "torchaudio.functional.resample",
    "mfcc": "torchaudio.transforms.MFCC",
    "cepstral_coefficients": "torchaudio.transforms.MFCC",
    "filter": "torchaudio.functional.lfilter",
    "pitch": "librosa.pyin",
}


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    instead = f": use {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
    raise AttributeError(f"losses.compat.korvax has korvax's losses and what they need, but no {name!r}{instead}")
