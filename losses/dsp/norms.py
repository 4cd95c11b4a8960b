"""Means and norms with hand-written gradients that need few passes and keep no differences in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from losses.dsp import plain
from losses.dsp.compilation import plain_only
from losses.dsp.plain import item_mean

BLOCK = 4096


def mean_abs(values: Tensor, other: Tensor | None = None) -> Tensor:
    """Mean magnitude per item of the values, or of `values − other`, `[B, …] → [B]`; its gradient at 0 is 0."""
    result: Tensor = plain.mean_abs(values, other) if plain_only() else _MeanAbs.apply(values, other)
    return result


def norm_along_bins(values: Tensor, other: Tensor | None = None) -> Tensor:
    """Euclidean norm along the last axis of the values, or of `values − other`; its gradient at 0 is 0."""
    result: Tensor = plain.norm_along_bins(values, other) if plain_only() else _NormAlongBins.apply(values, other)
    return result


def row_norm(rows: Tensor) -> Tensor:
    """Euclidean norm of each row `[R, N] → [R]`, by blocks, so that float32 is exact to 1e-6 however long they are."""
    blocks = rows.shape[1] // BLOCK
    if blocks < 2:
        return norm_along_bins(rows)
    whole, rest = rows[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK)), rows[:, blocks * BLOCK :]
    return row_norm(torch.cat([norm_along_bins(whole), norm_along_bins(rest)[:, None]], dim=1))


class _MeanAbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, other: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, other)
        return item_mean(_difference(values, other).abs())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, other = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated
            return plain.gradients(plain.mean_abs, (values, other), gradient, ctx.needs_input_grad)
        share = (plain.solid(gradient) / values[0].numel()).view(-1, *[1] * (values.dim() - 1))
        return _to_both(_difference(values, other).sgn().mul_(share), ctx.needs_input_grad)


class _NormAlongBins(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, other: Tensor | None) -> Tensor:
        norm = torch.linalg.vector_norm(_difference(values, other), dim=-1)
        ctx.save_for_backward(values, other, norm)
        return norm

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, other, norm = ctx.saved_tensors
        if torch.is_grad_enabled():
            return plain.gradients(plain.norm_along_bins, (values, other), gradient, ctx.needs_input_grad)
        share = (plain.solid(gradient) / norm).masked_fill_(norm == 0, 0)
        return _to_both(_difference(values, other) * share[..., None], ctx.needs_input_grad)


def _difference(values: Tensor, other: Tensor | None) -> Tensor:
    return values if other is None else values - other


def _to_both(slope: Tensor, needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The gradients at values and other from that at their difference."""
    return slope if needed[0] else None, -slope if needed[1] else None
