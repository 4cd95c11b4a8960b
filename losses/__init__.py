"""Differentiable audio losses, usable on their own: `from losses import SpectralLoss`.

Every loss is called `loss(prediction, target)` with float tensors `[B, C, N]`; lower is better. It returns the mean
over the items of the batch, their sum with `reduction="sum"`, or one value per item with "none". Losses can be added:
`0.5 * RMSLoss() + 0.25 * SpectralLoss()`. The pure functions are in `losses.functional`.
"""

# ruff: isort: skip_file
# Each of the first imports registers its losses: their order is that of every table and help text.
from losses.waveform import (
    DCLoss,
    ESRLoss,
    LogCoshLoss,
    RMSLoss,
    SDSDRLoss,
    SISDRLoss,
    SNRLoss,
    WaveformL1Loss,
    WaveformMSELoss,
)
from losses.stft import ChromaSTFTLoss, MelSTFTLoss, STFTLoss
from losses.multi_resolution import (
    MRSTFTLoss,
    MultiResolutionSTFTLoss,
    RandomResolutionSTFTLoss,
    SmoothMRSTFTLoss,
    SpectralLoss,
    SumAndDifferenceSTFTLoss,
)
from losses.spectrograms import (
    ComplexSpecLoss,
    ComplexSTFTLoss,
    LogSpectrogramLoss,
    LoudnessLoss,
    MelLoss,
    MSESpectrogramLoss,
    MultiComplexSpecLoss,
    MultiMelLoss,
    PhaseLoss,
    SpectralEnergyLoss,
)
from losses.audible import AudibleEnergyLoss, FlooredMelLoss
from losses.variogram import VariogramLoss
from losses.transport import SpectralOptimalTransportLoss
from losses.pesq import PESQLoss
from losses.embedding import EmbeddingLoss

from losses.adversarial import Adversary, DiscriminatorLoss, FeatureMatchingLoss, GeneratorLoss, discriminator
from losses.balancer import BalancedGradient, LossBalancer, WeightedGradient
from losses.base import FunctionLoss, Loss
from losses.dsp.filters import FIRFilter, SumAndDifference
from losses.dsp.bank import shared_rows, shared_spectra
from losses.registry import REGISTRY, Entry, create, load_plugins, register
from losses.time_frequency import TimeFrequencyLoss
from losses.weighted_sum import WeightedSum
from losses import functional

__all__ = [
    "REGISTRY",
    "Adversary",
    "AudibleEnergyLoss",
    "BalancedGradient",
    "ChromaSTFTLoss",
    "ComplexSTFTLoss",
    "ComplexSpecLoss",
    "DCLoss",
    "DiscriminatorLoss",
    "ESRLoss",
    "EmbeddingLoss",
    "Entry",
    "FIRFilter",
    "FeatureMatchingLoss",
    "FlooredMelLoss",
    "FunctionLoss",
    "GeneratorLoss",
    "LogCoshLoss",
    "LogSpectrogramLoss",
    "Loss",
    "LossBalancer",
    "LoudnessLoss",
    "MRSTFTLoss",
    "MSESpectrogramLoss",
    "MelLoss",
    "MelSTFTLoss",
    "MultiComplexSpecLoss",
    "MultiMelLoss",
    "MultiResolutionSTFTLoss",
    "PESQLoss",
    "PhaseLoss",
    "RMSLoss",
    "RandomResolutionSTFTLoss",
    "SDSDRLoss",
    "SISDRLoss",
    "SNRLoss",
    "STFTLoss",
    "SmoothMRSTFTLoss",
    "SpectralEnergyLoss",
    "SpectralLoss",
    "SpectralOptimalTransportLoss",
    "SumAndDifference",
    "SumAndDifferenceSTFTLoss",
    "TimeFrequencyLoss",
    "VariogramLoss",
    "WaveformL1Loss",
    "WaveformMSELoss",
    "WeightedGradient",
    "WeightedSum",
    "create",
    "discriminator",
    "functional",
    "load_plugins",
    "register",
    "shared_rows",
    "shared_spectra",
]
