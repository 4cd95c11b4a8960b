"""Adversarial losses, the discriminators they need, and the `Adversary` that trains one beside a generator."""

from losses.adversarial.discriminators import discriminator
from losses.adversarial.losses import (
    GAN_TYPES,
    Adversary,
    DiscriminatorLoss,
    FeatureMatchingLoss,
    GeneratorLoss,
    discriminator_loss,
    feature_matching,
    generator_loss,
)

__all__ = [
    "GAN_TYPES",
    "Adversary",
    "DiscriminatorLoss",
    "FeatureMatchingLoss",
    "GeneratorLoss",
    "discriminator",
    "discriminator_loss",
    "feature_matching",
    "generator_loss",
]
