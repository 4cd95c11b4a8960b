"""Means and norms with hand-written gradients that need few passes and keep no differences in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from losses.dsp.compilation import eager


def item_mean(values: Tensor) -> Tensor:
    """Mean per item, `[B, …] → [B]`; first along the last axis, which keeps float32 sums exact to 1e-6."""
    return values.sum(-1).flatten(1).mean(1) / values.shape[-1]


@eager
def mean_abs(values: Tensor, other: Tensor | None = None) -> Tensor:
    """Mean magnitude per item of the values, or of `values − other`, `[B, …] → [B]`; its gradient at 0 is 0."""
    result: Tensor = _MeanAbs.apply(values, other)
    return result


@eager
def norm_along_bins(values: Tensor, other: Tensor | None = None) -> Tensor:
    """Euclidean norm along the last axis of the values, or of `values − other`; its gradient at 0 is 0."""
    result: Tensor = _NormAlongBins.apply(values, other)
    return result


class _MeanAbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, other: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, other)
        return item_mean(_difference(values, other).abs())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, other = ctx.saved_tensors
        share = (gradient / values[0].numel()).view(-1, *[1] * (values.dim() - 1))
        return _to_both(_difference(values, other).sgn().mul_(share), ctx.needs_input_grad)


class _NormAlongBins(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, other: Tensor | None) -> Tensor:
        norm = torch.linalg.vector_norm(_difference(values, other), dim=-1)
        ctx.save_for_backward(values, other, norm)
        return norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, other, norm = ctx.saved_tensors
        share = (gradient / norm).masked_fill_(norm == 0, 0)
        return _to_both(_difference(values, other) * share[..., None], ctx.needs_input_grad)


def _difference(values: Tensor, other: Tensor | None) -> Tensor:
    return values if other is None else values - other


def _to_both(slope: Tensor, needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The gradients at values and other from that at their difference."""
    return slope if needed[0] else None, -slope if needed[1] else None
