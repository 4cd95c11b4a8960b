"""Differentiable audio losses, usable on their own: `from losses import SpectralLoss`.

Every loss is called `loss(prediction, target)` with float tensors `[B, C, N]` and falls when things get better. It
returns the mean over the items of the batch, or one value per item with `reduction="none"`.
"""

from losses.adversarial import Adversary, DiscriminatorLoss, FeatureMatchingLoss, GeneratorLoss
from losses.combining import LossBalancer, WeightedGradient, WeightedSum
from losses.discriminators import discriminator
from losses.filters import FIRFilter, SumAndDifference
from losses.modules import MelLoss, SpectralLoss
from losses.registry import REGISTRY, create
from losses.spectra import shared_spectra
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
    "DCLoss",
    "DiscriminatorLoss",
    "ESRLoss",
    "FIRFilter",
    "FeatureMatchingLoss",
    "GeneratorLoss",
    "LogCoshLoss",
    "LossBalancer",
    "MelLoss",
    "RMSLoss",
    "SDSDRLoss",
    "SISDRLoss",
    "SNRLoss",
    "SpectralLoss",
    "SumAndDifference",
    "WaveformL1Loss",
    "WaveformMSELoss",
    "WeightedGradient",
    "WeightedSum",
    "create",
    "discriminator",
    "shared_spectra",
]
