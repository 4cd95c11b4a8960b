"""The networks of the starter codec: a linear transform of blocks, and a decoder that adds what it leaves out.

All of it works at the frame rate, on blocks of 320 samples (75 a second at 24 kHz), and is causal:

    encoder   a block ─► its first K coefficients in an orthonormal basis / deviation             K latents
              log powers of 32 bands above the coefficients' and of 4 parts of the block ─► principal components
                                                                                                  E latents
    decoder   coefficients ─► block, exactly
              + the remaining 320 − K coefficients, which a convolutional network estimates
              + texture: carriers, which are projections of the coefficients' signs, in windows of 160 samples, with the
                powers that the latents and the network give them

The network sees relative levels alone: music that is 20 dB quieter sounds the same, 20 dB quieter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 320  # samples per frame
PARTS = 4  # of a block, with a power of their own
PART = BLOCK // PARTS
WINDOW = 2 * PART  # of the texture, samples
LONG_WINDOW = BLOCK * 3 // 2  # of the bands' powers: half of the previous block and this one
GROUP = 3  # coefficients whose power is one input of the network
POWER_FLOOR = 1e-10  # of a band: noise of −100 dBFS over the whole spectrum
RELATIVE_FLOOR = 1e-7  # of a group's power
LATENT_FLOOR = 1e-8  # of a group's power, in latents
EDGE = 24  # coefficients next to those that are left out; their level is the unit in which these are estimated
LARGEST = 16.0  # of these, in that unit: far above what music has, so that latents of no music do not get loud
LOUDEST = -1.5  # ln of the texture's amplitude, which stays below: −13 dBFS over the whole spectrum
KERNEL = 3  # frames


@dataclass(frozen=True)
class Architecture:
    """Sample rate in Hz, and sizes: latents of coefficients and of envelopes, bands, channels and layers."""

    sample_rate: int = 24000
    coefficients: int = 120
    envelopes: int = 8
    bands: int = 32
    width: int = 384
    layers: int = 3

    @property
    def lowest(self) -> float:
        """Frequency in Hz up to which a block of music can be described by the coefficients; the bands begin here."""
        return self.coefficients / BLOCK * self.sample_rate / 2

    @property
    def edges(self) -> Tensor:
        """Geometrically spaced edges of the bands, Hz, `[bands + 1]`."""
        return self.lowest * (self.sample_rate / 2 / self.lowest) ** (torch.arange(self.bands + 1) / self.bands)

    @property
    def bins(self) -> Tensor:
        """The bins of windows of WINDOW samples that have texture: those above the coefficients, without Nyquist's."""
        return torch.arange(math.ceil(self.lowest / self.sample_rate * WINDOW), WINDOW // 2)


def sinusoids(frequencies: Tensor, window: Tensor) -> Tensor:
    """Cosines, then sines, of frequencies in cycles per sample, windowed: `[2 · frequencies, len(window)]`."""
    phase = 2 * math.pi * frequencies[:, None] * torch.arange(len(window))
    return torch.cat([phase.cos(), phase.sin()]) * window


class Envelopes(nn.Module):
    """Natural logarithms of powers above the coefficients: of each band, then of each part of the block.

    `audio [B, 1, T · 320]` to `[B, bands + 4, T]`. A power is the mean over bins of the power spectral density, that of
    white noise of variance v being v. Bands have a Hann window of one and a half blocks, parts one of two parts.
    """

    members: Tensor
    long: Tensor
    short: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        rate, bands = architecture.sample_rate, architecture.bands
        frequencies = torch.arange(LONG_WINDOW // 2 + 1) / LONG_WINDOW
        band = torch.bucketize(frequencies * rate, architecture.edges, right=True) - 1
        inside = (band >= 0) & (band < bands)
        members = F.one_hot(band[inside], bands).float().T
        self.register_buffer("members", members / members.sum(1, keepdim=True), persistent=False)
        bins = architecture.bins / WINDOW
        for name, part, length in (("long", frequencies[inside], LONG_WINDOW), ("short", bins, WINDOW)):
            window = F.normalize(torch.hann_window(length), dim=0)
            self.register_buffer(name, sinusoids(part, window)[:, None], persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        spectrum = F.conv1d(F.pad(audio, (LONG_WINDOW - BLOCK, 0)), self.long, stride=BLOCK).square()
        bands = self.members @ spectrum.unflatten(1, (2, -1)).sum(1)
        spectrum = F.conv1d(F.pad(audio, (WINDOW - PART, 0)), self.short, stride=PART).square()
        parts = 2 * spectrum.mean(1).unflatten(-1, (-1, PARTS)).transpose(1, 2)
        return torch.cat([bands, parts], 1).add(POWER_FLOOR).log()


class StarterEncoder(nn.Module):
    """Audio `[B, 1, N]` to latents `[B, D, ceil(N / 320)]`; N is padded with zeros. Nothing in it is trained."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        powers = architecture.bands + PARTS
        self.basis = nn.Parameter(torch.zeros(architecture.coefficients, 1, BLOCK))
        self.deviation = nn.Parameter(torch.ones(architecture.coefficients))
        self.mean = nn.Parameter(torch.zeros(powers))
        self.components = nn.Parameter(torch.zeros(architecture.envelopes, powers))
        self.powers = Envelopes(architecture)
        self.requires_grad_(False)

    def forward(self, audio: Tensor) -> Tensor:
        audio = F.pad(audio, (0, -audio.shape[-1] % BLOCK))
        coefficients = F.conv1d(audio, self.basis, stride=BLOCK) / self.deviation[:, None]
        envelopes = self.components @ (self.powers(audio) - self.mean[:, None])
        return torch.cat([coefficients, envelopes], 1)


class Layer(nn.Module):
    """A causal ConvNeXt layer (Liu et al. 2022), `[B, T, W]` to the same shape: depthwise, then pointwise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, KERNEL, groups=width)
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, frames: Tensor) -> Tensor:
        past = F.pad(frames.transpose(1, 2), (KERNEL - 1, 0))
        inner = F.silu(self.inner(self.norm(self.depthwise(past).transpose(1, 2))))
        return frames + self.outer(inner)


class StarterDecoder(nn.Module):
    """Latents `[B, D, T]` to audio `[B, 1, T · 320]`.

    Constant are `basis [320, 320]`, whose first K rows are the encoder's, `deviation`, `mean` and `components`, the
    inverse of the encoder's.
    """

    basis: Tensor
    deviation: Tensor
    mean: Tensor
    components: Tensor
    windows: Tensor
    spread: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        count, bands, width = architecture.coefficients, architecture.bands, architecture.width
        for name, shape in (
            ("basis", (BLOCK, BLOCK)),
            ("deviation", (count,)),
            ("mean", (bands + PARTS,)),
            ("components", (bands + PARTS, architecture.envelopes)),
        ):
            setattr(self, name, nn.Parameter(torch.zeros(shape), requires_grad=False))
        self.first = nn.Conv1d(count + count // GROUP + bands + PARTS, width, 2)
        self.layers = nn.Sequential(*(Layer(width) for _ in range(architecture.layers)), nn.LayerNorm(width))
        self.rest, self.rest_gain = nn.Linear(width, BLOCK - count), nn.Linear(width, BLOCK - count)
        self.texture_gain = nn.Linear(width, PARTS * bands)
        for head in (self.rest, self.rest_gain, self.texture_gain):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        bins = architecture.bins
        self.carrier = nn.Linear(count, PARTS * 2 * len(bins), bias=False)
        nn.init.normal_(self.carrier.weight, std=count**-0.5)
        window = torch.sin(math.pi * (torch.arange(WINDOW) + 0.5) / WINDOW) / math.sqrt(WINDOW)
        self.register_buffer("windows", sinusoids(bins / WINDOW, window), persistent=False)
        centres = (architecture.edges[1:] * architecture.edges[:-1]).sqrt()
        spread = interpolation(bins / WINDOW * architecture.sample_rate, centres)
        self.register_buffer("spread", spread, persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        latents, envelopes = latents.tensor_split([self.architecture.coefficients], 1)
        coefficients = latents * self.deviation[:, None]
        powers = self.components @ envelopes + self.mean[:, None]
        group_powers = coefficients.unflatten(1, (-1, GROUP)).square().mean(2)
        signs = self._signs(latents)
        frames = self._frames(signs, group_powers, powers)
        edge = group_powers[:, -EDGE // GROUP :].mean(1).add(1e-14).sqrt()[..., None]
        rest = self.rest(frames) * self.rest_gain(frames).clamp(-6, 6).exp()
        rest = edge * LARGEST * (rest / LARGEST).tanh()
        blocks = torch.cat([coefficients.transpose(1, 2), rest], -1) @ self.basis
        return (blocks + self._texture(signs, powers, frames)).flatten(1)[:, None]

    @staticmethod
    def _signs(latents: Tensor) -> Tensor:
        """The latents divided by the RMS of their group, `[B, K, T]`: their signs and relations."""
        groups = latents.unflatten(1, (-1, GROUP))
        power = groups.square().mean(2, keepdim=True)
        floor = 1e-5 * power.mean(1, keepdim=True) + LATENT_FLOOR
        return (groups / (power + floor).sqrt()).flatten(1, 2)

    def _frames(self, signs: Tensor, group_powers: Tensor, powers: Tensor) -> Tensor:
        """The network's activations `[B, T, W]`."""
        level = group_powers.mean(1, keepdim=True) + 1e-12
        relative = torch.cat([(group_powers / level + RELATIVE_FLOOR).log(), powers - level.log()], 1)
        inputs = torch.cat([signs, relative / 4 + 2], 1)  # about unit deviation and zero mean
        frames: Tensor = self.layers(self.first(F.pad(inputs, (1, 0))).transpose(1, 2))
        return frames

    def _texture(self, signs: Tensor, powers: Tensor, frames: Tensor) -> Tensor:
        """`[B, T, 320]`."""
        bands, parts = powers.transpose(1, 2).tensor_split([self.architecture.bands], -1)
        parts = parts - parts.mean(-1, keepdim=True)
        gain = (bands[..., None, :] + parts[..., None]) / 2 + self.texture_gain(frames).unflatten(-1, (PARTS, -1))
        gain = LOUDEST - F.softplus(LOUDEST - gain)
        carriers = self.carrier(signs.transpose(1, 2)).unflatten(-1, (PARTS, 2, -1))
        # [B, T, 4, 2, bins]: cosines and sines of every window of two parts, of which the second overlaps the next
        spectrum = carriers * (gain.exp() @ self.spread.T)[..., None, :]
        now, later = (spectrum.flatten(3) @ self.windows).flatten(1, 2).split(PART, -1)
        return (now + F.pad(later[:, :-1], (0, 0, 1, 0))).reshape(*frames.shape[:2], BLOCK)


def interpolation(points: Tensor, centres: Tensor) -> Tensor:
    """Weights `[points, centres]` of linear interpolation; points beyond the centres get the nearest value."""
    upper = torch.bucketize(points, centres).clamp(1, len(centres) - 1)
    share = ((points - centres[upper - 1]) / (centres[upper] - centres[upper - 1])).clamp(0, 1)
    weights = torch.zeros(len(points), len(centres))
    weights[torch.arange(len(points)), upper - 1] = 1 - share
    weights[torch.arange(len(points)), upper] += share
    return weights
