"""Initialises a SEANet encoder and decoder as an exact linear codec: a block DCT.

Training a small SEANet from random weights makes no progress within hours on a CPU. Therefore some of its channels, the
*linear path*, are set to compute a linear transform exactly, and the rest of the network is trained around them:

    encoder   samples ─ space to depth ─► blocks of prod(ratios) samples ─ DCT-II ─► lowest K coefficients / deviation
    decoder   latents · deviation ─ inverse DCT ─► blocks ─ depth to space ─► samples

At 24 kHz with ratios 8·5·4·2 a block has 320 samples, and K coefficients cover frequencies up to K · 37.5 Hz. The path
uses the first K latents.

ELU is the identity for positive values, so signals on the path carry an offset (samples x + 1.5, coefficients
0.07 c + 1.5) that is subtracted at the end. Weights that write into the path are constant: `initialise_linear_path`
returns a factor of the learning rate for each element, 0 for these. All constants are exact in half precision, in which
codecs are stored.
"""

from __future__ import annotations

import math

import torch
from encodec.modules import SLSTM, SConv1d, SConvTranspose1d, SEANetDecoder, SEANetEncoder
from encodec.modules.seanet import SEANetResnetBlock
from torch import Tensor, nn

from encore.errors import EncoreError

OFFSET = 1.5  # keeps samples in [-1, 1] and scaled coefficients in the linear range of ELU
SCALE = 0.07  # an orthonormal coefficient of a full-scale block of 320 is at most sqrt(320) = 17.9, times 0.07: 1.25
FINE = 2.0**-10  # value of the second constant channel, which corrects the rounding of the first in half precision


def dct_basis(block: int, count: int) -> Tensor:
    """The `count` lowest rows of the orthonormal DCT-II of a block, `[count, block]`, float64.

    `basis[k, n] = sqrt((1 if k == 0 else 2) / block) · cos(pi · k · (n + 1/2) / block)`
    """
    n = torch.arange(block, dtype=torch.float64)
    k = torch.arange(count, dtype=torch.float64)[:, None]
    basis = torch.cos(math.pi * k * (n + 0.5) / block) * math.sqrt(2 / block)
    basis[0] /= math.sqrt(2)
    return basis


def coefficient_deviations(audio: Tensor, block: int, count: int) -> Tensor:
    """RMS of each of the lowest `count` DCT coefficients over the blocks of audio `[N]`: `[count]`."""
    blocks = audio[: audio.shape[-1] // block * block].reshape(-1, block)
    coefficients = blocks @ dct_basis(block, count).to(blocks.dtype).T
    return coefficients.square().mean(0).sqrt()


class Rows:
    """Writes constants into parameters and records factors of the learning rate: 1 trainable, 0 constant.

    Args:
        prefix: of the parameters' names in `rates`.
        module: that has the parameters.
    """

    def __init__(self, prefix: str, module: nn.Module) -> None:
        self.names = {id(parameter): f"{prefix}.{name}" for name, parameter in module.named_parameters()}
        self.rates: dict[str, Tensor] = {}

    def write(
        self, parameter: nn.Parameter | None, where: slice | tuple[slice | int, ...], value: Tensor | float
    ) -> None:
        """Sets `parameter[where]` to a constant."""
        assert parameter is not None
        rate = self.rates.setdefault(self.names[id(parameter)], torch.ones_like(parameter, requires_grad=False))
        rate[where] = 0
        parameter.data[where] = value.to(parameter.dtype) if isinstance(value, Tensor) else value

    def silence_lstm(self, layer: SLSTM, units: int) -> None:
        """Keeps the last layer's first `units` cells at zero by their cell gates; the skip passes these channels."""
        hidden, last = layer.lstm.hidden_size, layer.lstm.num_layers - 1
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            self.write(getattr(layer.lstm, f"{name}_l{last}"), (slice(2 * hidden, 2 * hidden + units),), 0.0)

    def pass_residual(self, layer: SEANetResnetBlock, channels: int) -> None:
        """Lets the first `channels` through the block unchanged: identity shortcut, and zeros from the branch."""
        shortcut, branch = layer.shortcut, layer.block[-1].conv.conv
        if isinstance(shortcut, SConv1d):
            weight = torch.eye(channels, shortcut.conv.conv.in_channels)[:, :, None]
            self.write(shortcut.conv.conv.weight, (slice(channels),), weight)
            self.write(shortcut.conv.conv.bias, (slice(channels),), 0.0)
        self.write(branch.weight, (slice(channels),), 0.0)
        self.write(branch.bias, (slice(channels),), 0.0)


def initialise_linear_path(encoder: SEANetEncoder, decoder: SEANetDecoder, deviations: Tensor) -> dict[str, Tensor]:
    """Makes `decoder(encoder(x))` a block DCT codec that keeps the K = len(deviations) lowest coefficients.

    Args:
        encoder: mono and causal, with `norm="none"`; changed in place. Channels outside the path keep their weights.
        decoder: of the same architecture. Channels outside the path keep their weights, except in the last convolution,
            where these start at zero.
        deviations: standard deviation of each orthonormal coefficient over the training audio, `[K]`, by which the
            latents are divided.

    Returns:
        Factors of the learning rate (1 trainable, 0 constant) for every parameter with constant elements, by
        `encoder.<name>` and `decoder.<name>`, the keys of the state dicts.

    Raises:
        EncoreError: the architecture has too few channels or latents for K coefficients, or has normalisation, several
            channels or look-ahead.
    """
    count = len(deviations)
    _check_architecture(encoder, count)
    gains = _short_mantissa(1 / (SCALE * deviations.double().clamp(min=1e-3)))
    encoder_rows, decoder_rows = Rows("encoder", encoder), Rows("decoder", decoder)
    _write_encoder(encoder, encoder_rows, gains)
    _write_decoder(decoder, decoder_rows, gains)
    return encoder_rows.rates | decoder_rows.rates


def _check_architecture(encoder: SEANetEncoder, count: int) -> None:
    first = encoder.model[0]
    if encoder.channels != 1 or not first.causal or first.conv.norm_type != "none":
        raise EncoreError("the linear path needs a mono, causal codec without normalisation; use --init random")
    block = int(encoder.hop_length)
    ratios = list(encoder.ratios)
    widths = [encoder.n_filters * 2**i for i in range(len(ratios) + 1)]
    path = [math.prod(ratios[:i]) for i in range(len(ratios))] + [count + 2]  # two constant channels in the decoder
    if any(need > width for need, width in zip(path, widths, strict=True)):
        raise EncoreError(
            f"{encoder.n_filters} filters are too few for {count} coefficients: the path needs {path} channels, the"
            f" network has {widths}; raise --n_filters or lower --coefficients"
        )
    if not 0 < count <= min(block, encoder.dimension):
        raise EncoreError(
            f"{count} coefficients do not fit a block of {block} and {encoder.dimension} latents; lower --coefficients"
        )


def _short_mantissa(values: Tensor) -> Tensor:
    """Rounds to 9 significant bits, so that 1.5 times the value is exact in half precision (11 bits)."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp(torch.round(mantissa * 512) / 512, exponent)


def _half(values: Tensor) -> Tensor:
    return values.half().double()


def _write_encoder(encoder: SEANetEncoder, rows: Rows, gains: Tensor) -> None:
    count, block = len(gains), int(encoder.hop_length)
    basis = _half(dct_basis(block, count) * SCALE)
    width = 0  # channels of the path at this layer: channel i is sample i of a block of `width` samples
    for layer in encoder.model:
        if isinstance(layer, SEANetResnetBlock):
            rows.pass_residual(layer, width)
        elif isinstance(layer, SLSTM):
            rows.silence_lstm(layer, count)
        elif isinstance(layer, SConv1d):
            conv = layer.conv.conv
            stride = conv.stride[0]
            if layer is encoder.model[0]:  # the current sample plus the offset
                weight, bias = torch.zeros(1, 1, conv.kernel_size[0]), torch.tensor([OFFSET])
                weight[0, 0, -1] = 1
                width = 1
            elif layer is encoder.model[-1]:  # without the offset, at unit deviation
                weight = torch.zeros(count, conv.in_channels, conv.kernel_size[0])
                weight[range(count), range(count), -1] = gains.float()
                bias = -OFFSET * gains
            else:
                # With causal padding, taps stride … 2·stride − 1 see the current block.
                is_dct = width * stride == block
                transform = basis if is_dct else torch.eye(width * stride, dtype=torch.float64)
                weight = torch.zeros(len(transform), conv.in_channels, conv.kernel_size[0], dtype=torch.float64)
                weight[:, :width, stride : 2 * stride] = transform.view(-1, stride, width).transpose(1, 2)
                bias = OFFSET - OFFSET * transform.sum(1) if is_dct else torch.zeros(width * stride)
                width = len(transform)
            rows.write(conv.weight, (slice(width),), weight)
            rows.write(conv.bias, (slice(width),), bias)


def _write_decoder(decoder: SEANetDecoder, rows: Rows, gains: Tensor) -> None:
    count, block = len(gains), int(decoder.hop_length)
    basis = _half(dct_basis(block, count) / SCALE)
    # The offset of the coefficients becomes a different constant at each sample of the block, which a bias cannot
    # subtract. Two constant channels do: a coarse one, and a fine one that corrects its rounding in half precision.
    constant = OFFSET * (1 - basis.sum(0))
    fine = (constant - _half(constant)) / FINE
    first_up = next(layer for layer in decoder.model if isinstance(layer, SConvTranspose1d))
    width = 0
    for layer in decoder.model:
        if isinstance(layer, SEANetResnetBlock):
            rows.pass_residual(layer, width)
        elif isinstance(layer, SLSTM):
            rows.silence_lstm(layer, count + 2)
        elif isinstance(layer, SConvTranspose1d):
            # Taps 0 … stride − 1 write the current block; those of the next one (later taps) stay zero.
            conv = layer.convtr.convtr
            stride = conv.stride[0]
            is_dct = layer is first_up
            transform = torch.cat([basis, _half(constant)[None], fine[None]]) if is_dct else torch.eye(width).double()
            width = transform.shape[1] // stride
            weight = torch.zeros(conv.in_channels, width, conv.kernel_size[0], dtype=torch.float64)
            weight[: len(transform), :, :stride] = transform.view(-1, stride, width).transpose(1, 2)
            rows.write(conv.weight, (slice(None), slice(width)), weight)
            rows.write(conv.bias, (slice(width),), 0.0)
        elif isinstance(layer, SConv1d):
            conv = layer.conv.conv
            if layer is decoder.model[0]:
                width = count + 2
                weight = torch.zeros(width, conv.in_channels, conv.kernel_size[0])
                weight[range(count), range(count), -1] = 1 / gains.float()
                rows.write(conv.weight, (slice(width),), weight)
                rows.write(conv.bias, (slice(width),), torch.tensor([OFFSET] * count + [1.0, FINE]))
            else:  # the last convolution, where the rest of the network is added, starting from zero
                conv.weight.data.zero_()
                rows.write(conv.weight, (0, 0), torch.eye(conv.kernel_size[0])[-1])
                rows.write(conv.bias, (slice(None),), -OFFSET)
