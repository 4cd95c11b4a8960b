"""Perceptual (deep-feature) loss: the distance between the activations of a frozen network."""

from losses.embedding.loss import EmbeddingLoss, embedding

__all__ = ["EmbeddingLoss", "embedding"]
