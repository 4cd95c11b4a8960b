"""Continuing music with a trained model: latents, audio, files, listening pages, and the pipeline of `encore.load`."""
