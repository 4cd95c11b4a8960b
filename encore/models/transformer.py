"""The continuation model: a transformer that turns noise and a prior into the latents that follow a context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encore.codecs.bands import BANDS
from encore.models.attention import block_attention, rotate, window_attention
from encore.models.band_levels import MATCHED_SECONDS
from encore.models.pointer import Pointer

LEAST_STD = 1e-3  # of a channel in a context, as a share of its standard deviation in the corpus
MOST_GAIN = 1.5  # nepers, 13 dB
MATCH_RATE = 10.0  # how much faster than the other weights those of `BandGains` are learned
RESIDUAL_RATE = 0.1  # likewise, slower, the scale of gate and residual
FADE_FRAMES = 15  # in which the fading gain falls by a factor of e: 0.2 s of EnCodec's frames
LEAST_POWER = 1e-3  # of normalised latents, in their levels
MOST_NORMAL = 10.0  # standard deviations: larger inputs are clipped, as after a context in which a channel was silent
NOISE_CHANNELS = 64  # per frame: first those of the continuation, then of the block, then of the frame
PER_CONTINUATION, PER_BLOCK = NOISE_CHANNELS // 4, NOISE_CHANNELS // 4


@dataclass
class KVCache:
    """Keys and values of the past frames, one tensor per layer.

    Attributes:
        keys: `[B, H, F, d]` of the last F frames.
        values: likewise.
        mean: of each channel of the context, `[B, D, 1]`; with `std`, what all latents are normalised with.
        std: standard deviation of each channel of the context, `[B, D, 1]`.
        end: index of the next frame, counted from the first frame of the context.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mean: Tensor
    std: Tensor
    end: int = 0

    @property
    def start(self) -> int:
        """Index of the first frame."""
        return self.end - self.keys[0].shape[2]


class Block(nn.Module):
    """One pre-norm transformer layer: rotary attention, then a GELU MLP of four times the width.

    Dropout is on what each of the two adds to the residual stream. On the attention weights it would keep
    `scaled_dot_product_attention` from its fused kernels.
    """

    def __init__(self, d_model: int, nhead: int, dropout: float):
        super().__init__()
        self.nhead = nhead
        self.norm_attention, self.norm_mlp = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.mlp = nn.Sequential(nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model))
        self.drop = nn.Dropout(dropout)

    def project(self, x: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B, H, T, d]` of `x [B, T, d_model]`, positions included."""
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.nhead, -1)).permute(2, 0, 3, 1, 4)
        return rotate(q, angles), rotate(k, angles), v

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output `[B, T, d_model]`, from its input and the attention's result `[B, H, T, d]`."""
        x = x + self.drop(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.drop(self.mlp(self.norm_mlp(x)))


class ContinuationTransformer(nn.Module):
    """Maps a context of latents, noise and a prior to the latents of the frames that follow.

    Two kinds of tokens, one per frame, go through the same layers. *Past* tokens are known frames; each attends to
    itself and the `window − 1` frames before it, so its keys and values never change and are cached while a
    continuation grows (`prefill`). *Block* tokens are the frames being generated; each attends to its whole block and
    to the `window` frames before it (`decode_block`). So any number of blocks, at different places of one sequence, can
    be generated in one pass (`forward`), as training does.

    A block is `prior + scale · (gate · prior + residual)` in normalised latents, and has gains in bands of frequency,
    which are applied to the decoded audio (`Codec.render`). Latents are normalised per channel with mean and standard
    deviation of the item's own context (`statistics`) on the way in and denormalised on the way out (Kim et al. 2022),
    so that what is added is as loud as the music around it: a quieter context has an equally quieter continuation. The
    buffer `std` `[D, 1]`, the corpus' deviations, bounds a context's from below.

    Changes of latents that differ from channel to channel are heard as hiss, however small, unless they are right in
    every detail. So a model learns first what it can hardly do wrong, the gains: see `BandGains`. Gate and residual
    have a value per channel and frame, and a learned scale per channel that starts at zero (Touvron et al. 2021).

    Args:
        latent_dim: D, channels of the latents.
        d_model: width; a multiple of `2 * nhead`.
        nhead: attention heads.
        num_layers: transformer layers.
        dropout: probability, on both branches of a layer.
        window: past frames that a frame attends to.
        start_at_prior: initialise the scale with zeros, so that the first prediction is the prior itself, and have
            gains. Not useful without a prior: the first prediction would be silence, whose magnitudes have no gradient.

    Attributes:
        pointer: of the prior "pointer": part of the checkpoint, but trained by itself; else None.
        recompute: keep only each layer's input for the backward pass, and compute the rest of the layer again there.
    """

    std: Tensor
    frequencies: Tensor

    def __init__(
        self,
        latent_dim: int,
        d_model: int,
        nhead: int,
        num_layers: int,
        dropout: float,
        window: int,
        start_at_prior: bool = False,
    ):
        super().__init__()
        self.register_buffer("std", torch.ones(latent_dim, 1))
        half = d_model // nhead // 2
        self.register_buffer("frequencies", 10000.0 ** (-torch.arange(half).double() / half), persistent=False)
        self.window, self.recompute = window, False
        self.pointer: Pointer | None = None
        self.in_proj = nn.Linear(2 * latent_dim + 1, d_model)  # the last input is the level of the noise on the latents
        self.block_in_proj = nn.Linear(2 * latent_dim + NOISE_CHANNELS, d_model)
        self.blocks = nn.ModuleList(Block(d_model, nhead, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        self.out_proj = nn.Linear(d_model, 2 * latent_dim)
        self.scale = nn.Parameter(torch.ones(latent_dim, 1))
        self.gains = BandGains(d_model) if start_at_prior else None
        self._initialise(start_at_prior)

    def _initialise(self, start_at_prior: bool) -> None:
        """GPT-2's initialisation: standard deviation 0.02, and 0.02 / sqrt(2 · layers) where a branch ends."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("out.weight", "mlp.2.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * len(self.blocks)) ** 0.5)
        # There are fewer channels of noise than of the prior; this makes both contribute about equally to a token.
        nn.init.normal_(self.block_in_proj.weight[:, -NOISE_CHANNELS:], std=0.03)
        if start_at_prior:
            nn.init.zeros_(self.scale)
        if self.gains is not None:
            nn.init.zeros_(self.gains.spread.weight)

    def set_statistics(self, std: Tensor) -> None:
        """Sets the standard deviations of the corpus, `[D]`; that of a constant channel is taken to be 1."""
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std))[:, None])

    def statistics(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of `context [B, D, T]`, `[B, D, 1]` each.

        The deviation is at least a thousandth (−60 dB) of the corpus'.
        """
        std, mean = torch.std_mean(context, -1, correction=0, keepdim=True)
        return mean, torch.maximum(std, LEAST_STD * self.std)

    def forward(
        self,
        context: Tensor,
        steps: int,
        noise: Tensor | None = None,
        prior: Tensor | None = None,
        starts: Sequence[int] | None = None,
        level: Tensor | None = None,
        context_frames: int | None = None,
        bands: Tensor | None = None,
    ) -> Tensor:
        """Generates the frames that follow `context [B, D, T]`, or several blocks within it, in one pass.

        Args:
            context: latents. R, the number of rows generated, is a multiple of B: each item has R / B consecutive rows,
                which share its past.
            steps: frames of a block.
            noise: `[R, NOISE_CHANNELS, n · steps]`; None: zeros.
            prior: what the n blocks start from, `[R, D, n · steps]`; None: zeros after normalisation.
            starts: first frame of each of the n blocks, counted from the first frame of the context; each block attends
                to what comes before it. Default: one block, after the context.
            level: standard deviation of the noise that was added to the context, relative to each channel's, `[B]`;
                default: 0.
            context_frames: frames, the first ones, whose statistics normalise all; default: those before every block.
            bands: what the gains of each block follow, `[R, n, BANDS, FEATURES]`; see `BandLevels`. None: no gains.

        Returns:
            The blocks in the order of `starts`, `[R, D, n · steps]`; with gains, `[R, D + BANDS, n · steps]`. R = B
            where neither noise nor prior is given.
        """
        starts = [context.shape[-1]] if starts is None else starts
        statistics = self.statistics(context[..., : min(starts) if context_frames is None else context_frames])
        cache = self.prefill(context[..., : max(starts)], None, level, min(starts) - self.window, statistics)
        return self.decode_block(cache, steps, noise, prior, starts, bands)

    def prefill(
        self,
        latents: Tensor,
        cache: KVCache | None = None,
        level: Tensor | None = None,
        first: int | None = None,
        statistics: tuple[Tensor, Tensor] | None = None,
    ) -> KVCache:
        """Appends frames `[B, D, F]` to a cache (default: an empty one).

        Args:
            latents: of the frames.
            cache: of the frames before them.
            level: as in `forward`.
            first: first frame that later ones attend to, counted from the first frame of the context. Earlier frames
                are not kept, nor is anything computed that only they would need. Default: `window` before the end.
            statistics: mean and standard deviation that an empty cache begins with; default: those of `latents`.
        """
        if cache is None:
            mean, std = self.statistics(latents) if statistics is None else statistics
        else:
            mean, std = cache.mean, cache.std
        start = 0 if cache is None else cache.end
        end = start + latents.shape[-1]
        first = max(0, end - self.window if first is None else first)
        normal = (latents - mean) / std
        noisy = torch.zeros_like(normal[:, :1]) if level is None else level[:, None, None].expand_as(normal[:, :1])
        # Each layer looks `window` frames further back than the next one.
        needed = [max(start, first - (self.window - 1) * later) for later in reversed(range(len(self.blocks)))]
        x = self.in_proj(torch.cat([_features(normal), noisy], 1)[..., needed[0] - start :].transpose(1, 2))
        keys, values = [], []
        for number, block in enumerate(self.layers):
            past = None if cache is None else (cache.keys[number], cache.values[number])
            angles = self._angles(torch.arange(needed[number], end, device=x.device))
            skipped = needed[number + 1] - needed[number] if number < len(self.blocks) - 1 else None
            x, k, v = self._run(self._prefill_layer, block, x, angles, past, skipped)
            kept = max(0, first - (end - k.shape[2]))
            keys.append(k[:, :, kept:])
            values.append(v[:, :, kept:])
        return KVCache(keys, values, mean, std, end)

    def _prefill_layer(
        self, block: Block, x: Tensor, angles: Tensor, past: tuple[Tensor, Tensor] | None, skipped: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A layer's output without the first `skipped` frames (None: its input), and all keys and values."""
        q, k, v = block.project(x, angles)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        if skipped is not None:
            x = block(x[:, skipped:], window_attention(q[:, :, skipped:], k, v, self.window))
        return x, k, v

    def decode_block(
        self,
        cache: KVCache,
        steps: int,
        noise: Tensor | None = None,
        prior: Tensor | None = None,
        starts: Sequence[int] | None = None,
        bands: Tensor | None = None,
    ) -> Tensor:
        """Generates blocks of `steps` frames at `starts` (default: one, at the cache's end); see `forward`.

        `bands` may be `[R, BANDS, FEATURES]` for one block.
        """
        device, dtype = self.std.device, self.std.dtype
        starts = [cache.end] if starts is None else list(starts)
        frames = (torch.tensor(starts, device=device)[:, None] + torch.arange(steps, device=device)).flatten()
        rows = next((len(part) for part in (prior, noise) if part is not None), len(cache.keys[0]))
        mean, std = (part.repeat_interleave(rows // len(part), 0) for part in (cache.mean, cache.std))
        if prior is None:
            prior, normal = mean, torch.zeros(rows, len(self.std), len(frames), device=device, dtype=dtype)
        else:
            normal = (prior - mean) / std
        if noise is None:
            noise = torch.zeros(rows, NOISE_CHANNELS, len(frames), device=device, dtype=dtype)
        x, angles = self.block_in_proj(torch.cat([_features(normal), noise], 1).transpose(1, 2)), self._angles(frames)
        pasts = [slice(max(0, start - self.window - cache.start), start - cache.start) for start in starts]
        for block, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            x = self._run(self._decode_layer, block, x, angles, keys, values, pasts)
        with torch.autocast(device.type, enabled=False):  # rounded to bfloat16, gains would add hiss
            x = self.norm(x.float())
            gate, residual = self.out_proj(x).transpose(1, 2).chunk(2, 1)
            made = prior + RESIDUAL_RATE * self.scale * (gate * normal + residual) * std
            if self.gains is None or bands is None:
                return made
            each = bands.unflatten(1, (-1, BANDS)) if bands.dim() == 3 else bands
            return torch.cat([made, self.gains(x, noise, each)], 1)

    def _decode_layer(
        self, block: Block, x: Tensor, angles: Tensor, keys: Tensor, values: Tensor, pasts: Sequence[slice]
    ) -> Tensor:
        """A layer's output for blocks with the frames `pasts` of the cache before them."""
        steps = x.shape[1] // len(pasts)
        parts = zip(pasts, *(part.split(steps, 2) for part in block.project(x, angles)), strict=True)
        attended = [block_attention(q, k, v, keys[:, :, past], values[:, :, past]) for past, q, k, v in parts]
        return block(x, torch.cat(attended, 2))

    def _run(self, layer: Callable[..., Any], *given: Any) -> Any:
        return checkpoint(layer, *given, use_reentrant=False) if self.recompute else layer(*given)

    @property
    def layers(self) -> list[Block]:
        """The layers, in order."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def _angles(self, frames: Tensor) -> Tensor:
        """Rotary angles in radians; double precision until reduced to one turn, as a continuation can be hours long."""
        return (frames.double()[:, None] * self.frequencies.double()).remainder(2 * torch.pi).float()


def _features(normal: Tensor) -> Tensor:
    """The tokens' inputs: normalised latents `[B, D, T]`, clipped, and their levels in nepers, `[B, 2 D, T]`."""
    levels = 1 + 0.5 * (normal.square() + LEAST_POWER).log()
    return torch.cat([normal.clamp(-MOST_NORMAL, MOST_NORMAL), levels], 1)


class BandGains(nn.Module):
    """Gains of blocks in bands of frequency, in nepers; zeros at first.

    An excerpt follows what was just played as it followed what precedes it in the context, if it is raised by how much
    louder the one is than the other (`BandLevels`). What share of that is best is learned: of each of the two
    mismatches a share that holds for the whole block, and one that fades within a fifth of a second.

    Besides, samples of a prior differ too little from one another: the gain of a continuation in each band is drawn
    with its noise, with a spread that is so many deviations of the band's level in the context, and a mean that keeps
    the mean magnitude; how many follows from the block's mean token. It sets in within the first block as the fading
    share fades out. In later ones it is in what was just played already, and is completed to its full size. (When a
    mean was learned, too, other recordings became a decibel too quiet.)
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.shares = nn.Parameter(torch.zeros(2, len(MATCHED_SECONDS)))  # held and fading
        self.spread = nn.Linear(d_model, 1)

    def forward(self, x: Tensor, noise: Tensor, bands: Tensor) -> Tensor:
        """`[R, BANDS, n · steps]` of the last layer's output `[R, n · steps, d_model]`; see `decode_block`."""
        steps = x.shape[1] // bands.shape[1]
        mismatch, (deviation, first) = bands[..., :-2], bands[..., -2:].unbind(-1)
        spread = self.spread(x.unflatten(1, (-1, steps)).mean(2)) * deviation
        drawn = spread * noise[:, None, :BANDS, 0] - spread**2 / 2  # these channels are constant in a continuation
        decay = (-torch.arange(steps, device=x.device) / FADE_FRAMES).exp()
        shares = MATCH_RATE * (self.shares[0] + self.shares[1] * decay[:, None])  # [steps, windows]
        matched = mismatch @ shares.T  # [R, n, BANDS, steps]
        full = 1 - torch.where(first[..., None] > 0, decay, shares.sum(1))
        gains = matched + drawn[..., None] * full
        return gains.clamp(-MOST_GAIN, MOST_GAIN).transpose(1, 2).flatten(2)
