"""Sets the constants of a starter codec by statistics of music, and its texture to the right level.

This start needs no training, and training on a CPU for minutes improves on it (from random weights it takes days).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encore.codecs.starter.network import BLOCK, PARTS, StarterDecoder, StarterEncoder
from encore.errors import EncoreError

SEGMENT_FRAMES = 150  # whose autocorrelation is one item of the basis's statistics
LEAST_POWER = 1e-8  # of a segment that counts, −80 dBFS
LEAST_ERROR = 1e-7  # relative error of a segment, −70 dB, below which it gets no more weight
PARTS_WEIGHT = 2.0  # of the powers of parts of a block among those of bands
TEXTURE_GAIN = 0.8  # at its full level the waveform loses more accuracy than the spectrum gains
ROUNDS = 2  # of adjusting the texture's level
AUDIBLE = -20.0  # ln of the least power that counts there, −87 dBFS


@torch.no_grad()
def initialise(encoder: StarterEncoder, decoder: StarterDecoder, recordings: Sequence[Tensor]) -> None:
    """Sets basis, deviations and principal components, and the texture's level in each band; in place.

    Args:
        encoder: new.
        decoder: new, of the same architecture.
        recordings: training music, `[1, N]` each, not all of it below −80 dBFS.

    Raises:
        EncoreError: silence alone.
    """
    count = len(encoder.deviation)
    basis = block_basis(recordings, count)
    encoder.basis.data = basis[:count, None].clone()
    decoder.basis.data = basis
    items = [recording[None, :, : recording.shape[-1] // BLOCK * BLOCK] for recording in recordings]
    coefficients = torch.cat([F.conv1d(item, encoder.basis, stride=BLOCK)[0] for item in items], 1)
    deviation = coefficients.square().mean(1).sqrt().clamp_min(1e-3)
    for module in (encoder, decoder):
        module.deviation.data = deviation.clone()
    _set_components(encoder, decoder, torch.cat([encoder.powers(item)[0] for item in items], 1))
    for _ in range(ROUNDS):
        _adjust_level(encoder, decoder, items)
    decoder.texture_gain.bias.data += math.log(TEXTURE_GAIN)


def block_basis(recordings: Sequence[Tensor], count: int) -> Tensor:
    """An orthonormal basis of blocks, `[320, 320]`, whose first `count` rows describe music with little error.

    The Karhunen-Loève transform of the autocovariance of music, averaged over segments of 2 s with weights that are the
    inverse of each one's error in the DCT-II of `count` coefficients. The DCT is nearly optimal for bright music; dull
    music, whose spectrum falls steeply, loses in it by the ends of blocks, where its cosines have no slope.

    Raises:
        EncoreError: no segment is louder than −80 dBFS.
    """
    segments = []
    for recording in recordings:
        audio = recording.flatten().double()
        length = min(BLOCK * SEGMENT_FRAMES, len(audio))
        for segment in audio[: len(audio) // length * length].view(-1, length):
            if segment.square().mean() > LEAST_POWER:
                segments.append(autocorrelation(segment, BLOCK))
    if not segments:
        raise EncoreError("all training files are silent: use louder music")
    distance = (torch.arange(BLOCK)[:, None] - torch.arange(BLOCK)).abs()
    correlations, cosines = torch.stack(segments), dct_basis(BLOCK, count)
    # The share of a block's energy in the first cosines is the sum of (cosines' cosines)_ij r(|i − j|) / N over i, j.
    pairs = torch.zeros(BLOCK, dtype=torch.float64).index_add(0, distance.flatten(), (cosines.T @ cosines).flatten())
    weights = 1 / ((1 - correlations @ pairs / BLOCK).clamp_min(0) + LEAST_ERROR)
    _, vectors = torch.linalg.eigh((weights @ correlations)[distance])
    return vectors.T.flip(0).float()


def autocorrelation(audio: Tensor, lags: int) -> Tensor:
    """`r(0) = 1` to `r(lags − 1)` of `audio [N]`, `[lags]`: the transform of its power spectrum under a Hann window.

    Steep spectra need the window: the ends of a bare segment leak more than is in their quiet part.
    """
    window = torch.hann_window(len(audio), dtype=audio.dtype)
    power = torch.fft.rfft(audio * window, n=2 * len(audio)).abs().square()
    correlation = torch.fft.irfft(power)[:lags]
    return correlation / correlation[0]


def dct_basis(block: int, count: int) -> Tensor:
    """The `count` lowest rows of the orthonormal DCT-II of a block, `[count, block]`, float64.

    `basis[k, n] = sqrt((1 if k == 0 else 2) / block) · cos(pi · k · (n + 1/2) / block)`
    """
    n = torch.arange(block, dtype=torch.float64)
    k = torch.arange(count, dtype=torch.float64)[:, None]
    basis = torch.cos(math.pi * k * (n + 0.5) / block) * math.sqrt(2 / block)
    basis[0] /= math.sqrt(2)
    return basis


def _set_components(encoder: StarterEncoder, decoder: StarterDecoder, powers: Tensor) -> None:
    """Principal components of log powers `[bands + 4, T]`, each with unit deviation."""
    mean, weights = powers.mean(1), torch.ones(len(powers))
    weights[-PARTS:] = PARTS_WEIGHT
    weighted = (powers - mean[:, None]) * weights[:, None]
    _, vectors = torch.linalg.eigh((weighted @ weighted.T).double())
    chosen = vectors.flip(1)[:, : len(encoder.components)].float()
    deviation = (chosen.T @ weighted).std(1).clamp_min(1e-3)
    encoder.components.data = chosen.T * weights / deviation[:, None]
    decoder.components.data = chosen * deviation / weights[:, None]
    for module in (encoder, decoder):
        module.mean.data = mean.clone()


def _adjust_level(encoder: StarterEncoder, decoder: StarterDecoder, items: Sequence[Tensor]) -> None:
    """Subtracts the mean difference of log powers between texture and latents from the gain of each band."""
    bands = len(decoder.mean) - PARTS
    total, frames = torch.zeros(bands), torch.zeros(bands)
    for item in items:
        latents = encoder(item)
        wanted = (decoder.components @ latents[0, -decoder.components.shape[1] :] + decoder.mean[:, None])[:bands]
        made = encoder.powers(decoder(latents))[0, :bands]
        total += ((made - wanted) * (wanted > AUDIBLE)).sum(1)
        frames += (wanted > AUDIBLE).sum(1)
    bias: nn.Parameter = decoder.texture_gain.bias
    bias.data -= (total / frames.clamp_min(1) / 2).repeat(PARTS)
