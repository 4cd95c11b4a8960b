"""The exact linear codec: a SEANet encoder and decoder that start out as a block DCT.

A SEANet of a few filters trained from random weights gets nowhere in hours on a CPU. So part of its channels, *the
path*, is set to compute a linear transform exactly, and the rest of the network is trained around it:

    encoder   samples ─ space to depth ─► blocks of prod(ratios) samples ─ DCT-II ─► lowest K coefficients / deviation
    decoder   latents · deviation ─ inverse DCT ─► blocks ─ depth to space ─► samples

With 24 kHz and ratios 8·5·4·2 a block has 320 samples and K coefficients reach up to K · 37.5 Hz. The first K latents
are the path's.

ELU is the identity above zero, so everything on the path carries an offset (samples x + 1.5, coefficients 0.07 c + 1.5)
that is taken off again at the end. Rows that write into the path are constant: `initialise_linear_path` returns each
element's share of the learning rate, 0 for these. All constants are chosen so that they survive half precision, in
which codecs are stored.
"""

import math

import torch
from encodec.modules import SLSTM, SConv1d, SConvTranspose1d, SEANetDecoder, SEANetEncoder
from encodec.modules.seanet import SEANetResnetBlock
from torch import Tensor, nn

from encore.errors import EncoreError

OFFSET = 1.5  # keeps samples in [-1, 1] and scaled coefficients on the linear side of ELU
SCALE = 0.07  # an orthonormal coefficient of a full-scale block of 320 is at most sqrt(320) = 17.9, times 0.07: 1.25
FINE = 2.0**-10  # the second constant channel's value: it carries what half precision rounds off the first


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
    """Root mean square of each of the lowest `count` DCT coefficients over the blocks of audio `[N]`; `[count]`."""
    blocks = audio[: audio.shape[-1] // block * block].reshape(-1, block)
    coefficients = blocks @ dct_basis(block, count).to(blocks.dtype).T
    return coefficients.square().mean(0).sqrt()


class Rows:
    """Writes constant rows into parameters and notes their share of the learning rate: 1 trainable, 0 constant."""

    def __init__(self, prefix: str, module: nn.Module) -> None:
        self.names = {id(parameter): f"{prefix}.{name}" for name, parameter in module.named_parameters()}
        self.rates: dict[str, Tensor] = {}

    def write(
        self, parameter: nn.Parameter | None, where: slice | tuple[slice | int, ...], value: Tensor | float
    ) -> None:
        assert parameter is not None
        rate = self.rates.setdefault(self.names[id(parameter)], torch.ones_like(parameter, requires_grad=False))
        rate[where] = 0
        parameter.data[where] = value.to(parameter.dtype) if isinstance(value, Tensor) else value

    def silence_lstm(self, layer: SLSTM, units: int) -> None:
        """The last layer's first `units` cells stay at zero (their cell-gate rows are), so the skip passes them on."""
        hidden, last = layer.lstm.hidden_size, layer.lstm.num_layers - 1
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            self.write(getattr(layer.lstm, f"{name}_l{last}"), (slice(2 * hidden, 2 * hidden + units),), 0.0)

    def pass_residual(self, layer: SEANetResnetBlock, channels: int) -> None:
        """The first `channels` go through the block unchanged: identity shortcut, nothing added by the branch."""
        shortcut, branch = layer.shortcut, layer.block[-1].conv.conv
        if isinstance(shortcut, SConv1d):
            weight = torch.eye(channels, shortcut.conv.conv.in_channels)[:, :, None]
            self.write(shortcut.conv.conv.weight, (slice(channels),), weight)
            self.write(shortcut.conv.conv.bias, (slice(channels),), 0.0)
        self.write(branch.weight, (slice(channels),), 0.0)
        self.write(branch.bias, (slice(channels),), 0.0)


def initialise_linear_path(encoder: SEANetEncoder, decoder: SEANetDecoder, deviations: Tensor) -> dict[str, Tensor]:
    """Make `decoder(encoder(x))` the block DCT codec that keeps the K = len(deviations) lowest coefficients.

    Args:
        encoder, decoder: a mono, causal pair of one architecture with `norm="none"`, changed in place. Channels beside
            the path keep their weights, except the last convolution's, which start at zero.
        deviations: `[K]`, standard deviation of each orthonormal coefficient over the training audio, by which the
            latents are divided.

    Returns:
        Rates (1 trainable, 0 constant) of every parameter with constant elements, named `encoder.<name>` and
        `decoder.<name>` by the state dicts' keys.

    Raises:
        EncoreError: the architecture has too few channels or latents for K coefficients, or can't carry the path.
    """
    count = len(deviations)
    _check_room(encoder, count)
    gains = _short_mantissa(1 / (SCALE * deviations.double().clamp(min=1e-3)))
    encoder_rows, decoder_rows = Rows("encoder", encoder), Rows("decoder", decoder)
    _write_encoder(encoder, encoder_rows, gains)
    _write_decoder(decoder, decoder_rows, gains)
    return encoder_rows.rates | decoder_rows.rates


def _check_room(encoder: SEANetEncoder, count: int) -> None:
    first = encoder.model[0]
    if encoder.channels != 1 or not first.causal or first.conv.norm_type != "none":
        raise EncoreError("the linear path needs a mono, causal codec without normalisation; --init random doesn't")
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
        raise EncoreError(f"{count} coefficients don't fit a block of {block} and {encoder.dimension} latents")


def _short_mantissa(values: Tensor) -> Tensor:
    """Round to 9 significant bits, so that the value times 1.5 is exact in half precision (11 bits)."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp(torch.round(mantissa * 512) / 512, exponent)


def _half(values: Tensor) -> Tensor:
    return values.half().double()


def _write_encoder(encoder: SEANetEncoder, rows: Rows, gains: Tensor) -> None:
    count, block = len(gains), int(encoder.hop_length)
    basis = _half(dct_basis(block, count) * SCALE)
    width = 0  # the path's channels so far: channel i is sample i of a block of `width` samples
    for layer in encoder.model:
        if isinstance(layer, SEANetResnetBlock):
            rows.pass_residual(layer, width)
        elif isinstance(layer, SLSTM):
            rows.silence_lstm(layer, count)
        elif isinstance(layer, SConv1d):
            conv = layer.conv.conv
            stride = conv.stride[0]
            if layer is encoder.model[0]:  # the current sample, lifted by the offset
                weight, bias = torch.zeros(1, 1, conv.kernel_size[0]), torch.tensor([OFFSET])
                weight[0, 0, -1] = 1
                width = 1
            elif layer is encoder.model[-1]:  # off with the offset, to unit deviation
                weight = torch.zeros(count, conv.in_channels, conv.kernel_size[0])
                weight[range(count), range(count), -1] = gains.float()
                bias = -OFFSET * gains
            else:
                # With causal padding the current block lies under taps stride … 2·stride - 1.
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
    # The offset of the coefficients makes a different constant at each sample of the block, which no bias can take off:
    # two constant channels do, a coarse one and one for what half precision rounds off it.
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
            # The current block lies under taps 0 … stride - 1; what the frame before adds (later taps) stays zero.
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
            else:  # the last convolution: the rest of the network joins here, from zero
                conv.weight.data.zero_()
                rows.write(conv.weight, (0, 0), torch.eye(conv.kernel_size[0])[-1])
                rows.write(conv.bias, (slice(None),), -OFFSET)
