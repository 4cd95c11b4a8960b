"""The continuation model: a transformer over latent frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): turns the channel pairs of `x [B, H, T, d]` by `angles [T, d / 2]` radians."""
    even, odd = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([even * cos - odd * sin, even * sin + odd * cos], dim=-1)


class Block(nn.Module):
    """One pre-norm transformer layer: rotary self-attention, then a GELU MLP of four times the width."""

    def __init__(self, d_model: int, nhead: int, dropout: float):
        super().__init__()
        self.nhead, self.dropout = nhead, dropout
        self.norm_attention, self.norm_mlp = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.mlp = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * d_model, d_model)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.nhead, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(
            rotate(q, angles), rotate(k, angles), v, dropout_p=self.dropout if self.training else 0.0
        )
        x = x + self.drop(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.drop(self.mlp(self.norm_mlp(x)))


class ContinuationTransformer(nn.Module):
    """Maps a context of latents to the latents of as many frames that follow it.

    Frame t of the output is predicted from the whole context; every output frame starts from the context frame of the
    same number (a residual), so that the identity is easy. Latents are normalised per channel on the way in, and the
    opposite on the way out, with `mean` and `std [D, 1]`, which are buffers and so part of every checkpoint.

    Args:
        latent_dim: D, channels of the latents.
        d_model: width; a multiple of `2 * nhead`.
        nhead: attention heads.
        num_layers: layers.
        dropout: probability, on attention weights and both branches of a layer.
    """

    mean: Tensor
    std: Tensor
    frequencies: Tensor

    def __init__(self, latent_dim: int, d_model: int, nhead: int, num_layers: int, dropout: float):
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent_dim, 1))
        self.register_buffer("std", torch.ones(latent_dim, 1))
        half = d_model // nhead // 2
        self.register_buffer("frequencies", 10000.0 ** (-torch.arange(half) / half), persistent=False)
        self.enter = nn.Linear(latent_dim, d_model)
        self.blocks = nn.ModuleList(Block(d_model, nhead, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        self.leave = nn.Linear(d_model, latent_dim)
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights of deviation 0.02, the branches' last layers scaled by 1 / sqrt(2 · layers), as in GPT-2."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("out.weight", "mlp.3.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * len(self.blocks)) ** 0.5)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Sets the normalisation, `[D]` each; a channel that never changes keeps its scale."""
        self.mean.copy_(mean[:, None])
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std))[:, None])

    def forward(self, context: Tensor, steps: int | None = None, noise: Tensor | None = None) -> Tensor:
        """Continues `context [B, D, T]` by `steps` frames (at most T, which is the default): `[B, D, steps]`.

        `noise [B, D, T]`, in units of each channel's standard deviation, is added to the context.

        Raises:
            ValueError: more steps than the context has frames.
        """
        frames = context.shape[-1]
        if steps is not None and steps > frames:
            raise ValueError(f"{steps} steps from a context of {frames} frames: at most {frames}")
        latents = (context - self.mean) / self.std
        if noise is not None:
            latents = latents + noise
        angles = torch.arange(frames, device=context.device)[:, None] * self.frequencies
        x = self.enter(latents.transpose(1, 2))
        for block in self.blocks:
            x = block(x, angles)
        latents = latents + self.leave(self.norm(x)).transpose(1, 2)
        return (latents * self.std + self.mean)[..., :steps]
