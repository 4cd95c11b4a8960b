"""The functions of `losses.dsp.autograd` and `losses.dsp.norms` in operations of torch alone, which do everything.

They can be compiled, differentiated any number of times and forwards, and mapped over a batch by `torch.func.vmap`. The
hand-written ones compute the same in fewer passes, for a value and its first gradient; they turn to these where more is
asked for. Where a gradient is cut off, so is it here, and so are its own derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Any], gradient: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients at the inputs that need one, from that at the function's value; they can be differentiated."""
    with torch.enable_grad():
        # Views, as two inputs may be the same tensor.
        own = [value.view_as(value) if need else value for value, need in zip(inputs, needed, strict=True)]
        wanted = [value for value, need in zip(own, needed, strict=True) if need]
        found = iter(torch.autograd.grad(function(*own), wanted, gradient, create_graph=True))
    return tuple(next(found) if need else None for need in needed)


def solid(gradient: Tensor) -> Tensor:
    """A gradient that can be calculated with in place; in second derivatives torch passes zeros that cannot."""
    return gradient.clone() if gradient._is_zerotensor() else gradient


def transform(signal: Tensor, window: Tensor, n_fft: int, hop: int, pad_mode: str) -> Tensor:
    """Rows of samples `[R, N]` to the real and imaginary parts of their spectra, `[2, R, frames, bins]`."""
    length, left = len(window), (n_fft - len(window)) // 2
    whole = padded(signal, n_fft // 2, n_fft - n_fft // 2, pad_mode)
    inner = whole[:, left : whole.shape[-1] - (n_fft - length - left)]
    spectrum = torch.fft.rfft(inner.unfold(-1, length, hop) * window, n=n_fft)
    return torch.stack([spectrum.real, spectrum.imag])


def padded(signal: Tensor, before: int, after: int, pad_mode: str) -> Tensor:
    """Rows of samples with so many more at their ends, zeros ("constant") or reflected ("reflect")."""
    if pad_mode == "constant":
        return F.pad(signal, (before, after))
    # A seventh of the time of F.pad, which reflects sample by sample.
    return torch.cat([signal[:, 1 : before + 1].flip(-1), signal, signal[:, -after - 1 : -1].flip(-1)], dim=1)


def root(power: Tensor, eps: float = 0.0) -> Tensor:
    """`sqrt(max(power, eps))`; all derivatives are 0 where the power is not above eps."""
    above = power > eps
    return torch.where(above, torch.where(above, power, 1).sqrt(), math.sqrt(eps))


def magnitude(parts: Tensor, other: Tensor | None, eps: float) -> Tensor:
    """`sqrt(max(|X|², eps))` from parts `[2, …]` of X or, with others Y, of X − Y."""
    real, imag = (parts if other is None else parts - other).unbind()
    return root(real.square() + imag.square(), eps)


def log_ratio(prediction: Tensor, target: Tensor) -> Tensor:
    """`ln(prediction / target)` of positive values."""
    return (prediction / target).log()


def angle(parts: Tensor, magnitude: Tensor, eps: float) -> Tensor:
    """Angles of a spectrum from its parts `[2, …]`; constant where its magnitude is clamped at √eps."""
    real, imag = _constant_below(parts, magnitude, eps).unbind()
    return _atan2(imag, real)


def phase_distance(
    prediction: Tensor, target: Tensor, magnitude: Tensor, wanted_magnitude: Tensor, eps: float
) -> Tensor:
    """Mean magnitudes of relative angles and their differences, `[B]`; see `losses.dsp.autograd.PhaseDistance`."""
    p, t = _constant_below(prediction, magnitude, eps), _constant_below(target, wanted_magnitude, eps)
    angles = _atan2(p[1] * t[0] - p[0] * t[1], p[0] * t[0] + p[1] * t[1])
    angles = torch.where(torch.maximum(magnitude, wanted_magnitude) > math.sqrt(eps), angles, 0)
    steps = [angles, *(angles.diff(dim=dim) for dim in (-1, -2))]
    steps[1:] = [step - 2 * math.pi * (step / (2 * math.pi)).round() for step in steps[1:]]
    return sum((item_mean(step.abs()) for step in steps[1:]), item_mean(steps[0].abs()))


def item_mean(values: Tensor) -> Tensor:
    """Mean per item, `[B, …] → [B]`; first along the last axis, which keeps float32 sums exact to 1e-6."""
    return values.sum(-1).flatten(1).mean(1) / values.shape[-1]


def mean_abs(values: Tensor, other: Tensor | None) -> Tensor:
    """Mean magnitude per item of the values, or of `values − other`, `[B, …] → [B]`."""
    return item_mean((values if other is None else values - other).abs())


def norm_along_bins(values: Tensor, other: Tensor | None) -> Tensor:
    """Euclidean norm along the last axis of the values, or of `values − other`."""
    return root((values if other is None else values - other).square().sum(-1))


def product(magnitudes: Tensor, filters: Tensor) -> Tensor:
    """Bins times filters."""
    return magnitudes @ filters.T


def _constant_below(parts: Tensor, magnitude: Tensor, eps: float) -> Tensor:
    return torch.where(magnitude > math.sqrt(eps), parts, parts.detach())


def _atan2(imag: Tensor, real: Tensor) -> Tensor:
    """The angle, 0 and constant at 0."""
    zero = (real == 0) & (imag == 0)
    return torch.atan2(imag, torch.where(zero, 1, real))
