"""Differentiable audio losses, usable on their own: `from losses import SpectralLoss`.

Every loss is called `loss(prediction, target)` with float tensors `[B, C, N]` and falls when things get better. It
returns the mean over the items of the batch, or one value per item with `reduction="none"`.
"""

from losses.adversarial import Adversary, DiscriminatorLoss, FeatureMatchingLoss, GeneratorLoss
from losses.adversarial.discriminators import discriminator
from losses.balancer import LossBalancer, WeightedGradient, WeightedSum
from losses.dsp.filters import FIRFilter, SumAndDifference
from losses.dsp.stft import shared_rows, shared_spectra
from losses.embedding import EmbeddingLoss
from losses.multi_resolution import (
    MRSTFTLoss,
    MultiResolutionSTFTLoss,
    RandomResolutionSTFTLoss,
    SmoothMRSTFTLoss,
    SpectralLoss,
    SumAndDifferenceSTFTLoss,
)
from losses.pesq import PESQLoss
from losses.registry import REGISTRY, create
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
from losses.stft import ChromaSTFTLoss, MelSTFTLoss, STFTLoss
from losses.time_frequency import TimeFrequencyLoss
from losses.transport import SpectralOptimalTransportLoss
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

__all__ = [
    "REGISTRY",
    "Adversary",
    "ChromaSTFTLoss",
    "ComplexSTFTLoss",
    "ComplexSpecLoss",
    "DCLoss",
    "DiscriminatorLoss",
    "ESRLoss",
    "EmbeddingLoss",
    "FIRFilter",
    "FeatureMatchingLoss",
    "GeneratorLoss",
    "LogCoshLoss",
    "LogSpectrogramLoss",
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
    "WaveformL1Loss",
    "WaveformMSELoss",
    "WeightedGradient",
    "WeightedSum",
    "create",
    "discriminator",
    "shared_rows",
    "shared_spectra",
]
