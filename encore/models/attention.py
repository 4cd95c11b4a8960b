"""Attention of frames to the frames before them: to a sliding window, or to a block and its past."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

QUERY_CHUNK = 256  # frames: long enough for the kernel, short against the window


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021): rotates channel pairs of `x [..., T, d]` by `angles [T, d / 2]`.

    Angles are in radians; channel i is paired with channel i + d / 2.
    """
    even, odd = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([even * cos - odd * sin, even * sin + odd * cos], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of `q [..., T, d]` to `k` and `v [..., F, d]`, where `mask [T, F]` is true.

    The fused kernel for CPUs computes bfloat16 no faster than float32 (torch 2.14), while matrix products are up to
    four times as fast. There the products are taken one by one; the weights are computed again in the backward pass
    instead of kept.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    bias = None if mask is None else torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    with torch.autocast("cpu", enabled=False):
        if not torch.is_grad_enabled():  # `checkpoint` imports torch._dynamo, which takes longer than a second of music
            return _attend_unfused(q, k, v, bias)
        return checkpoint(_attend_unfused, q, k, v, bias, use_reentrant=False, preserve_rng_state=False)


def _attend_unfused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores if bias is None else scores + bias).softmax(-1) @ v


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention of each frame to itself and the `window − 1` frames before it.

    Queries are taken `QUERY_CHUNK` at a time, each chunk with the keys that it sees, so that time and memory are in
    proportion to the number of frames and not to its square.

    Args:
        q: `[B, H, T, d]`, the last T of the frames in `k`.
        k: `[B, H, F, d]`, F ≥ T.
        v: likewise.
        window: frames.

    Returns:
        `[B, H, T, d]`.
    """
    frames, before = q.shape[2], k.shape[2] - q.shape[2]
    chunks = []
    for start in range(0, max(1, frames), QUERY_CHUNK):
        end = min(start + QUERY_CHUNK, frames)
        seen = slice(max(0, before + start - window + 1), before + end)
        query = torch.arange(before + start, before + end, device=q.device)[:, None]
        key = torch.arange(seen.start, seen.stop, device=q.device)
        mask = (key <= query) & (key > query - window)
        chunks.append(attend(q[:, :, start:end], k[:, :, seen], v[:, :, seen], mask))
    return torch.cat(chunks, 2)


def block_attention(q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor) -> Tensor:
    """Attention of the frames of a block to the whole block and to all frames of its past.

    Blocks that have the same past are queries of one call, which neither copies that past nor lets one block see
    another.

    Args:
        q: `[R, H, T, d]`; each row of the past belongs to R / B consecutive rows.
        k: likewise.
        v: likewise.
        past_k: `[B, H, F, d]`.
        past_v: likewise.

    Returns:
        `[R, H, T, d]`.
    """
    rows, steps = len(past_k), q.shape[2]
    same = len(q) // rows
    q, k, v = (part.unflatten(0, (rows, same)).transpose(1, 2).flatten(2, 3) for part in (q, k, v))
    mask = None
    if same > 1:
        block = torch.arange(same * steps, device=q.device) // steps
        mask = F.pad(block[:, None] == block, (past_k.shape[2], 0), value=True)
    k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    attended = attend(q, k, v, mask)
    return attended.unflatten(2, (same, steps)).transpose(1, 2).flatten(0, 1)
