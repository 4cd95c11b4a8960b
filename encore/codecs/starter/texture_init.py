"""Initialises the band above a linear codec: envelopes in the free latents, and texture from noise patterns.

A block DCT of K coefficients contains nothing above K · 37.5 Hz (24 kHz, blocks of 320). This module initialises
channels outside the linear path of `encore.codecs.starter.dct_init` so that the codec starts with a high band of about
the right level, which training alone does not reach within hours on a CPU. With B = dimension − K bands and
f(x) = ELU(x) + ELU(−x) ≈ |x| − 1:

    encoder   the envelope e_j >= 0 of band j is the mean of f over the outputs of a few band-pass filters; latent K + j
              is e_j, normalised to zero mean and unit deviation
    decoder   the sum over bands j and sets s of  sign(r_sj) · e_j · pattern_sj

Here `sign(r) · e ≈ (f(e + r) − f(e − r)) / 2`. The *carrier* r is a random projection of the path's latents, so that
the patterns do not repeat at 75 Hz. The patterns are band-passed noise of one and a half blocks with overlapping ends.
The decoder's part is trained further, at reduced learning rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from encodec.modules import SLSTM, SConv1d, SConvTranspose1d, SEANetDecoder, SEANetEncoder
from torch import Tensor

from encore.codecs.starter.dct_init import OFFSET, Rows
from encore.errors import EncoreError

LEVEL = 60.0  # RMS of a filter's output: large, so that f(x) is close to |x| − 1
DRIVE = 1 / 12  # the envelope's scale in the decoder
CARRIER = 3.0  # deviation of r relative to the envelope: large, so that mostly only its sign matters
GAIN = 0.8  # of the texture: at its full level the waveform loses more accuracy than the spectrum gains
MEAN_MAGNITUDE = 0.8  # mean |x| of a unit normal variable
# Factors of the learning rate: Adam's steps are equally large for all weights, and these are far smaller than others.
PATTERN_RATE, ENVELOPE_RATE, CONTEXT_RATE = 0.01, 0.2, 0.05


def band_edges(block: int, count: int, bands: int) -> list[int]:
    """Geometrically spaced edges of the bands between coefficients `count` and `block`, in DCT coefficients."""
    return [round(count * (block / count) ** (band / bands)) for band in range(bands + 1)]


def initialise_texture(
    encoder: SEANetEncoder, decoder: SEANetDecoder, count: int, audio: Tensor, rates: dict[str, Tensor], seed: int
) -> None:
    """Initialises the high band of a codec whose linear path has `count` coefficients, if there are free latents.

    Args:
        encoder: after `initialise_linear_path`; changed in place.
        decoder: likewise.
        count: K, the coefficients of the path.
        audio: training audio `[N]`, over which the envelopes are normalised.
        rates: returned by `initialise_linear_path`; the texture's factors of the learning rate are added.
        seed: of the noise.

    Raises:
        EncoreError: the network is too narrow for one set of patterns.
    """
    bands, block = encoder.dimension - count, int(encoder.hop_length)
    if not bands:
        return
    width = encoder.n_filters * 2 ** len(encoder.ratios)
    filters, sets = (width - count) // (2 * bands), (width - count - 2) // (4 * bands)
    if not filters or not sets:
        raise EncoreError(
            f"{encoder.n_filters} filters are too few for {count} coefficients and {bands} bands above them: the "
            f"widest layer has {width} channels of {count + 2 + 4 * bands} needed; raise --n_filters or --coefficients"
        )
    generator = torch.Generator().manual_seed(seed)
    bank = _band_filters(block, band_edges(block, count, bands), filters, generator)
    envelope = _measure_envelope(audio, block, bank)
    _write_encoder(encoder, count, bank * envelope.gain[:, None, None], envelope)
    patterns = _noise_patterns(block, band_edges(block, count, bands), sets, generator) / envelope.gain[:, None]
    _write_decoder(decoder, count, patterns, envelope, rates, generator)


def _band_filters(block: int, edges: list[int], filters: int, generator: torch.Generator) -> Tensor:
    """Unit-norm windowed cosines for each band, `[bands, filters, 3/2 block]`: half of the last block and this one."""
    n = torch.arange(block * 3 // 2)
    window = torch.hann_window(len(n))
    bank = []
    for low, high in zip(edges, edges[1:], strict=False):
        coefficient = low + (high - low) * (torch.arange(filters) + 0.5) / filters
        phase = 2 * math.pi * torch.rand(filters, 1, generator=generator)
        bank.append(window * torch.cos(math.pi * coefficient[:, None] * n / block + phase))
    return torch.nn.functional.normalize(torch.stack(bank), dim=-1)


@dataclass(frozen=True)
class Envelope:
    """Of each band, `[bands]`: the gain that brings its filters to LEVEL, the envelope's mean and its deviation."""

    gain: Tensor
    mean: Tensor
    deviation: Tensor


def _measure_envelope(audio: Tensor, block: int, bank: Tensor) -> Envelope:
    """The envelopes of audio `[N]`."""
    length = bank.shape[-1]
    frames = torch.nn.functional.pad(audio, (length - block, 0)).unfold(0, length, block)
    filtered = torch.einsum("tn,bmn->tbm", frames, bank)
    gain = LEVEL / filtered.square().mean((0, 2)).sqrt().clamp(min=1e-3)
    magnitude = (filtered * gain[:, None]).abs()
    envelope = (magnitude - 1 + (-magnitude).exp()).mean(2)
    return Envelope(gain, envelope.mean(0), envelope.std(0).clamp(min=1e-2))


def _noise_patterns(block: int, edges: list[int], sets: int, generator: torch.Generator) -> Tensor:
    """Noise of each band, `[sets, bands, 2 block]`, for which a filter has a mean magnitude of 1.

    For white noise of deviation d a unit-norm filter has a mean magnitude of 0.8 d, and a band of n coefficients a
    deviation of `d · sqrt(n / block)`. The sets share the energy; the ends of successive patterns overlap at constant
    energy.
    """
    half = block // 2
    rise = torch.sin(math.pi / 2 * (torch.arange(half) + 0.5) / half)
    window = torch.cat([rise, torch.ones(block - half), rise.flip(0), torch.zeros(half)])
    patterns = torch.zeros(sets, len(edges) - 1, 2 * block)
    for band, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        spectrum = torch.fft.rfft(torch.randn(sets, 2 * block, generator=generator))
        frequency = torch.arange(spectrum.shape[1])  # bins of a transform of 2 block are as wide as DCT coefficients
        spectrum[:, (frequency < low) | (frequency >= high)] = 0
        patterns[:, band] = torch.fft.irfft(spectrum) * window
    return patterns * GAIN / MEAN_MAGNITUDE / math.sqrt(sets)


def _write_encoder(encoder: SEANetEncoder, count: int, bank: Tensor, envelope: Envelope) -> None:
    bands, filters, length = bank.shape
    block = int(encoder.hop_length)
    *_, down, last = [layer.conv.conv for layer in encoder.model if isinstance(layer, SConv1d)]
    stride = down.stride[0]
    units = slice(count, count + 2 * bands * filters)
    signed = torch.zeros(bands, filters, 2, 2 * block)
    signed[..., 2 * block - length :] = torch.stack([bank, -bank], 2)
    weight = signed.view(-1, 2 * stride, block // stride).transpose(1, 2).half().float()
    down.weight.data[units] = 0
    down.weight.data[units, : block // stride] = weight
    down.bias.data[units] = -OFFSET * weight.sum((1, 2))
    rows = Rows("encoder", encoder)
    for layer in encoder.model:
        if isinstance(layer, SLSTM):
            rows.silence_lstm(layer, units.stop)
    last.weight.data[count:] = 0
    for band in range(bands):
        first = count + 2 * filters * band
        last.weight.data[count + band, first : first + 2 * filters, -1] = 1 / (filters * envelope.deviation[band])
    last.bias.data[count:] = -envelope.mean / envelope.deviation


def _write_decoder(
    decoder: SEANetDecoder,
    count: int,
    patterns: Tensor,
    envelope: Envelope,
    rates: dict[str, Tensor],
    generator: torch.Generator,
) -> None:
    sets, bands, length = patterns.shape
    first = decoder.model[0].conv.conv
    up = next(layer for layer in decoder.model if isinstance(layer, SConvTranspose1d)).convtr.convtr
    stride = up.stride[0]
    units = slice(count + 2, count + 2 + 4 * sets * bands)  # after the path and its two constant channels

    weight, bias = _unit_inputs(first.in_channels, count, sets, envelope, generator)
    first.weight.data[units] = 0
    first.weight.data[units, :, -1] = DRIVE * weight.view(-1, first.in_channels)
    first.bias.data[units] = DRIVE * bias.view(-1)

    rows = Rows("decoder", decoder)
    for layer in decoder.model:
        if isinstance(layer, SLSTM):
            rows.silence_lstm(layer, units.stop)
    rates.update(rows.rates)

    signed = patterns[:, :, None] * torch.tensor([0.5, 0.5, -0.5, -0.5])[:, None] / DRIVE
    spread = signed.reshape(-1, 2 * stride, length // (2 * stride)).transpose(1, 2)
    up.weight.data[units, : spread.shape[1]] = spread

    name = rows.names
    rates[name[id(first.weight)]][units] = CONTEXT_RATE
    rates[name[id(first.weight)]][units, :, -1] = ENVELOPE_RATE
    rates[name[id(first.bias)]][units] = ENVELOPE_RATE
    rates[name[id(up.weight)]][units, : spread.shape[1]] = PATTERN_RATE


def _unit_inputs(
    channels: int, count: int, sets: int, envelope: Envelope, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Weights `[sets, bands, 4, channels]` and biases of e + r, −e − r, e − r and r − e, from the latents."""
    bands = len(envelope.mean)
    # Carriers use the upper half of the path, which is active wherever there is a high band.
    carrier = torch.zeros(sets, bands, count)
    carrier[..., count // 2 :] = torch.randn(sets, bands, count - count // 2, generator=generator)
    level = (envelope.mean.square() + envelope.deviation.square()).sqrt()
    carrier = CARRIER * level[:, None] * torch.nn.functional.normalize(carrier, dim=-1)
    weight, bias = torch.zeros(sets, bands, 4, channels), torch.zeros(sets, bands, 4)
    for unit, (envelope_sign, carrier_sign) in enumerate([(1, 1), (-1, -1), (1, -1), (-1, 1)]):
        weight[:, :, unit, :count] = carrier_sign * carrier
        weight[:, range(bands), unit, range(count, count + bands)] = envelope_sign * envelope.deviation
        bias[:, :, unit] = envelope_sign * envelope.mean
    return weight, bias
