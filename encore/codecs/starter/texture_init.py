"""What lies above the linear codec's band: its envelope in the free latents, its texture from noise patterns.

A block DCT of K coefficients says nothing above K · 37.5 Hz (24 kHz, blocks of 320). This module sets up the
channels beside the path of `encore.codecs.starter.dct_init` so that the codec starts with a high band of about the
right level, which training alone does not find in hours on a CPU. With B = dimension - K bands and
f(x) = ELU(x) + ELU(-x) ≈ |x| - 1:

    encoder   the mean of f(filter) over a few band-pass filters of each band is its envelope e_j >= 0; latent K + j
              is e_j, shifted and scaled to zero mean and unit deviation
    decoder   the sum over bands j and sets s of  sign(r_sj) · e_j · pattern_sj

where `sign(r) · e ≈ (f(e + r) - f(e - r)) / 2` takes its sign from a random projection r of the path's latents, so
that a pattern does not repeat at 75 Hz, and the patterns are band-passed noise of one and a half blocks whose ends
overlap. The decoder's part goes on training, at reduced rates.
"""

import math

import torch
from encodec.modules import SLSTM, SConv1d, SConvTranspose1d, SEANetDecoder, SEANetEncoder
from torch import Tensor

from encore.codecs.starter.dct_init import OFFSET, Rows
from encore.errors import EncoreError

LEVEL = 60.0  # a filter's root mean square, in units of ELU's bend: large, so that f(x) is close to |x|
DRIVE = 1 / 12  # the envelope's scale in the decoder
CARRIER = 3.0  # deviation of r against the envelope's level: mostly larger, so that mostly only its sign counts
GAIN = 0.8  # texture of the full level costs more of the waveform's accuracy than it gives to the spectrum
MEAN_MAGNITUDE = 0.8  # mean |x| of a unit normal variable
# Shares of the learning rate: a step of Adam is the same for all weights, and these are far smaller than others.
PATTERN_RATE, ENVELOPE_RATE, CONTEXT_RATE = 0.01, 0.2, 0.05


def band_edges(block: int, count: int, bands: int) -> list[int]:
    """Edges of the bands between coefficient `count` and `block`, in DCT coefficients, geometrically spaced."""
    return [round(count * (block / count) ** (band / bands)) for band in range(bands + 1)]


def initialise_texture(
    encoder: SEANetEncoder, decoder: SEANetDecoder, count: int, audio: Tensor, rates: dict[str, Tensor], seed: int
) -> None:
    """Set up the high band of a codec whose linear path has `count` coefficients; does nothing without free latents.

    Args:
        encoder, decoder: as `initialise_linear_path` leaves them; changed in place.
        count: K, the path's coefficients.
        audio: `[N]`, training audio over which the envelopes are normalised.
        rates: of `initialise_linear_path`, changed in place: the texture's shares of the learning rate.
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
    sharpness, mean, deviation = _envelope_statistics(audio, block, bank)
    _write_encoder(encoder, count, bank * sharpness[:, None, None], mean, deviation)
    patterns = _noise_patterns(block, band_edges(block, count, bands), sets, generator) / sharpness[:, None]
    _write_decoder(decoder, count, patterns, mean, deviation, rates, generator)


def _band_filters(block: int, edges: list[int], filters: int, generator: torch.Generator) -> Tensor:
    """Unit-norm windowed cosines over each band, `[bands, filters, 3/2 block]`: half a block back and this one."""
    n = torch.arange(block * 3 // 2)
    window = torch.hann_window(len(n))
    bank = []
    for low, high in zip(edges, edges[1:], strict=False):
        coefficient = low + (high - low) * (torch.arange(filters) + 0.5) / filters
        phase = 2 * math.pi * torch.rand(filters, 1, generator=generator)
        bank.append(window * torch.cos(math.pi * coefficient[:, None] * n / block + phase))
    return torch.nn.functional.normalize(torch.stack(bank), dim=-1)


def _envelope_statistics(audio: Tensor, block: int, bank: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per band: the sharpness that brings the filters to LEVEL, and the envelope's mean and deviation; `[bands]`."""
    length = bank.shape[-1]
    frames = torch.nn.functional.pad(audio, (length - block, 0)).unfold(0, length, block)
    filtered = torch.einsum("tn,bmn->tbm", frames, bank)
    sharpness = LEVEL / filtered.square().mean((0, 2)).sqrt().clamp(min=1e-3)
    magnitude = (filtered * sharpness[:, None]).abs()
    envelope = (magnitude - 1 + (-magnitude).exp()).mean(2)
    return sharpness, envelope.mean(0), envelope.std(0).clamp(min=1e-2)


def _noise_patterns(block: int, edges: list[int], sets: int, generator: torch.Generator) -> Tensor:
    """Noise of each band, `[sets, bands, 2 block]`, that follows a filter's mean magnitude of 1.

    White noise of deviation d gives a unit-norm filter a mean magnitude of 0.8 d, and a band of n coefficients a
    deviation of `d · sqrt(n / block)`; the sets share the energy. Rising and falling ends overlap at constant energy.
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


def _write_encoder(encoder: SEANetEncoder, count: int, bank: Tensor, mean: Tensor, deviation: Tensor) -> None:
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
        last.weight.data[count + band, first : first + 2 * filters, -1] = 1 / (filters * deviation[band])
    last.bias.data[count:] = -mean / deviation


def _write_decoder(
    decoder: SEANetDecoder,
    count: int,
    patterns: Tensor,
    mean: Tensor,
    deviation: Tensor,
    rates: dict[str, Tensor],
    generator: torch.Generator,
) -> None:
    sets, bands, length = patterns.shape
    first = decoder.model[0].conv.conv
    up = next(layer for layer in decoder.model if isinstance(layer, SConvTranspose1d)).convtr.convtr
    stride = up.stride[0]
    units = slice(count + 2, count + 2 + 4 * sets * bands)  # behind the path and its two constant channels

    # The carriers r listen to the upper half of the path, which has something to say wherever there is a high band.
    carrier = torch.zeros(sets, bands, count)
    carrier[..., count // 2 :] = torch.randn(sets, bands, count - count // 2, generator=generator)
    level = (mean.square() + deviation.square()).sqrt()
    carrier = CARRIER * level[:, None] * torch.nn.functional.normalize(carrier, dim=-1)
    weight, bias = torch.zeros(sets, bands, 4, first.in_channels), torch.zeros(sets, bands, 4)
    for unit, (envelope_sign, carrier_sign) in enumerate([(1, 1), (-1, -1), (1, -1), (-1, 1)]):
        weight[:, :, unit, :count] = carrier_sign * carrier
        weight[:, range(bands), unit, range(count, count + bands)] = envelope_sign * deviation
        bias[:, :, unit] = envelope_sign * mean
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
