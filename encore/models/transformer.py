"""The continuation model: a transformer that turns noise, and a guess, into the latents that follow a context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NOISE_CHANNELS = 64  # of a frame's noise; see `encore.models.generation.Draw` for what they are


@dataclass
class Memory:
    """What the layers keep of the frames that came before: keys and values `[B, H, F, d]` of the last F ≤ window.

    `end` is the number of the frame that comes next, counted from the context's first.
    """

    keys: list[Tensor]
    values: list[Tensor]
    end: int = 0

    def repeat(self, times: int) -> Memory:
        """The same for `times` rows per item, each item's next to one another."""
        keys, values = ([part.repeat_interleave(times, 0) for part in parts] for parts in (self.keys, self.values))
        return Memory(keys, values, self.end)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): turns the channel pairs of `x [B, H, T, d]` by `angles [T, d / 2]` radians."""
    even, odd = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([even * cos - odd * sin, even * sin + odd * cos], dim=-1)


class Block(nn.Module):
    """One pre-norm transformer layer: rotary attention, then a GELU MLP of four times the width."""

    def __init__(self, d_model: int, nhead: int, dropout: float):
        super().__init__()
        self.nhead, self.dropout = nhead, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * d_model, d_model)
        )
        self.drop = nn.Dropout(dropout)

    def project(self, x: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B, H, T, d]` of `x [B, T, d_model]`, positions included."""
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.nhead, -1)).permute(2, 0, 3, 1, 4)
        return rotate(q, angles), rotate(k, angles), v

    def forward(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """The layer's output; query t may look at key j where `mask[t, j]`."""
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        x = x + self.drop(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.drop(self.mlp(self.norm_mlp(x)))


class ContinuationTransformer(nn.Module):
    """Maps a context of latents, noise and a prior's guess to the latents of the frames that follow.

    Two kinds of tokens, one per frame, go through the same layers. *Memory* tokens are the frames that are known; each
    sees itself and the `window − 1` before it, so what the layers make of them never changes and is kept while a
    continuation grows. *Answer* tokens are the frames of a block that is to be made; each sees the whole block and the
    `window` frames before it. So any number of blocks at different places of one sequence can be made in one pass.

    A block is `(1 + gate) · prior + residual` in normalised latents, gate and residual being the output layer's, one
    of each per channel and frame. Latents are normalised per channel on the way in, and the opposite on the way out,
    with `mean` and `std [D, 1]`, which are buffers and so part of every checkpoint.

    Args:
        latent_dim: D, channels of the latents.
        d_model: width; a multiple of `2 * nhead`.
        nhead: attention heads.
        num_layers: layers.
        dropout: probability, on attention weights and both branches of a layer.
        window: frames of the past that a frame sees.
        start_at_prior: the output layer starts at zero, so that the first answer is the prior itself. Without a prior
            that would be silence, whose magnitudes have no gradient.
    """

    mean: Tensor
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
        self.register_buffer("mean", torch.zeros(latent_dim, 1))
        self.register_buffer("std", torch.ones(latent_dim, 1))
        half = d_model // nhead // 2
        self.register_buffer("frequencies", 10000.0 ** (-torch.arange(half).double() / half), persistent=False)
        self.window = window
        self.enter = nn.Linear(latent_dim + 1, d_model)  # the last input is the level of noise on the latents
        self.enter_block = nn.Linear(latent_dim + NOISE_CHANNELS, d_model)
        self.blocks = nn.ModuleList(Block(d_model, nhead, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        self.leave = nn.Linear(d_model, 2 * latent_dim)
        self._initialise(start_at_prior)

    def _initialise(self, start_at_prior: bool) -> None:
        """Normal weights of deviation 0.02, the branches' last layers scaled by 1 / sqrt(2 · layers), as in GPT-2."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("out.weight", "mlp.3.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * len(self.blocks)) ** 0.5)
        # Noise and guess weigh about the same in a token, as there are fewer channels of noise.
        nn.init.normal_(self.enter_block.weight[:, -NOISE_CHANNELS:], std=0.03)
        if start_at_prior:
            nn.init.zeros_(self.leave.weight)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Sets the normalisation, `[D]` each; a channel that never changes keeps its scale."""
        self.mean.copy_(mean[:, None])
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std))[:, None])

    def forward(
        self,
        context: Tensor,
        steps: int,
        noise: Tensor | None = None,
        prior: Tensor | None = None,
        starts: Sequence[int] | None = None,
        level: Tensor | None = None,
    ) -> Tensor:
        """The frames that follow `context [B, D, T]`, `[R, D, steps]`; or blocks within it, in one pass.

        Args:
            context: latents. What there are R > B rows of below, R / B for each item next to one another, is made as
                often from it.
            steps: frames of a block.
            noise: `[R, NOISE_CHANNELS, n · steps]`; None: zeros.
            prior: the guess that the blocks start from, `[R, D, n · steps]`; None: nothing, and R = B.
            starts: the n blocks' first frames, counted from the context's first; each sees what comes before its own.
                Default: one block, after the context.
            level: deviation of the noise that lies on the context, in units of each channel's, `[B]`; default: 0.

        Returns:
            The blocks in the order of `starts`, `[R, D, n · steps]`.
        """
        starts = [context.shape[-1]] if starts is None else starts
        given = next((part for part in (prior, noise) if part is not None), context)
        memory = self.remember(context[..., : max(starts)], level=level, trim=False)
        return self.answer(memory.repeat(len(given) // len(context)), steps, noise, prior, starts)

    def remember(
        self, latents: Tensor, memory: Memory | None = None, level: Tensor | None = None, trim: bool = True
    ) -> Memory:
        """Adds frames `[B, D, F]` to a memory (by default a new one); `trim` keeps no more than the next can see."""
        begin = 0 if memory is None else memory.end
        frames = torch.arange(begin, begin + latents.shape[-1], device=latents.device)
        old = 0 if memory is None else memory.keys[0].shape[2]
        seen = torch.arange(begin - old, begin + latents.shape[-1], device=latents.device)
        mask = (seen <= frames[:, None]) & (seen > frames[:, None] - self.window)
        normal = (latents - self.mean) / self.std
        noisy = torch.zeros_like(normal[:, :1]) if level is None else level[:, None, None].expand_as(normal[:, :1])
        x, angles = self.enter(torch.cat([normal, noisy], 1).transpose(1, 2)), self._angles(frames)
        keys, values = [], []
        for number, block in enumerate(self._layers()):
            q, k, v = block.project(x, angles)
            if memory is not None:
                k, v = torch.cat([memory.keys[number], k], 2), torch.cat([memory.values[number], v], 2)
            keys.append(k[:, :, -self.window :] if trim else k)
            values.append(v[:, :, -self.window :] if trim else v)
            if number < len(self.blocks) - 1:
                x = block(x, q, k, v, mask)
        return Memory(keys, values, begin + latents.shape[-1])

    def answer(
        self,
        memory: Memory,
        steps: int,
        noise: Tensor | None = None,
        prior: Tensor | None = None,
        starts: Sequence[int] | None = None,
    ) -> Tensor:
        """Blocks of `steps` frames at `starts` (default: one, at the memory's end); see `forward`."""
        begins = torch.tensor([memory.end] if starts is None else list(starts), device=self.mean.device)
        frames = (begins[:, None] + torch.arange(steps, device=begins.device)).flatten()
        first, block_of = (
            begins.repeat_interleave(steps)[:, None],
            torch.arange(len(frames), device=begins.device) // steps,
        )
        old = memory.keys[0].shape[2]
        seen = torch.arange(memory.end - old, memory.end, device=begins.device)
        mask = torch.cat([(seen < first) & (seen >= first - self.window), block_of[:, None] == block_of], 1)
        rows, dtype = len(memory.keys[0]), self.mean.dtype
        if prior is None:
            guess = torch.zeros(rows, len(self.mean), len(frames), device=begins.device, dtype=dtype)
        else:
            guess = (prior - self.mean) / self.std
        if noise is None:
            noise = torch.zeros(rows, NOISE_CHANNELS, len(frames), device=begins.device, dtype=dtype)
        x, angles = self.enter_block(torch.cat([guess, noise], 1).transpose(1, 2)), self._angles(frames)
        for number, block in enumerate(self._layers()):
            q, k, v = block.project(x, angles)
            k, v = torch.cat([memory.keys[number], k], 2), torch.cat([memory.values[number], v], 2)
            x = block(x, q, k, v, mask)
        gate, residual = self.leave(self.norm(x)).transpose(1, 2).chunk(2, 1)
        return ((1 + gate) * guess + residual) * self.std + self.mean

    def _layers(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _angles(self, frames: Tensor) -> Tensor:
        """Radians, in double precision until they are within a turn: a continuation can be hours long."""
        return (frames.double()[:, None] * self.frequencies.double()).remainder(2 * torch.pi).float()
