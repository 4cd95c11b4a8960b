"""The losses as pure functions of `(prediction, target)`, both `[B, C, N]`; each returns one value per item, `[B]`."""

from losses.audible import audible_energy, floored_mel
from losses.embedding.loss import embedding
from losses.multi_resolution import mrstft, multi_resolution_stft, smooth_mrstft, spectral, sum_and_difference_stft
from losses.pesq import pesq
from losses.spectrograms import (
    complex_spec,
    complex_stft,
    log_spectrogram,
    loudness,
    mel,
    mse_spectrogram,
    multi_complex_spec,
    multi_mel,
    phase_distance,
    spectral_energy,
)
from losses.stft import stft
from losses.time_frequency import time_frequency_loss
from losses.transport import multi_resolution_transport
from losses.variogram import variogram
from losses.waveform import dc, esr, log_cosh, rms, sd_sdr, si_sdr, snr, waveform_l1, waveform_mse

__all__ = [
    "audible_energy",
    "complex_spec",
    "complex_stft",
    "dc",
    "embedding",
    "esr",
    "floored_mel",
    "log_cosh",
    "log_spectrogram",
    "loudness",
    "mel",
    "mrstft",
    "mse_spectrogram",
    "multi_complex_spec",
    "multi_mel",
    "multi_resolution_stft",
    "multi_resolution_transport",
    "pesq",
    "phase_distance",
    "rms",
    "sd_sdr",
    "si_sdr",
    "smooth_mrstft",
    "snr",
    "spectral",
    "spectral_energy",
    "stft",
    "sum_and_difference_stft",
    "time_frequency_loss",
    "variogram",
    "waveform_l1",
    "waveform_mse",
]
