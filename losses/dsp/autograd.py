"""Short-time Fourier transforms, magnitudes and angles with hand-written gradients.

Faster than `torch.stft`: frames are the last axis but one, so nothing is transposed; only the window's length is
multiplied; the gradient takes one inverse transform of the half spectrum. A spectrum is a real tensor `[2, …]` of its
real and then its imaginary parts, since arithmetic on the parts of interleaved complex numbers is three times as slow.
Clamped values have no gradient, where that of torch is not finite. `compute` of each function is what to call: it takes
the same function of `losses.dsp.plain` where hand-written gradients will not do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from losses.dsp import plain
from losses.dsp.compilation import plain_only
from losses.dsp.plain import item_mean


class Transform(torch.autograd.Function):
    """Rows of samples `[R, N]` to the real and imaginary parts of their spectra, `[2, R, frames, bins]`."""

    @classmethod
    def compute(cls, *inputs: Any) -> Tensor:
        value: Tensor = plain.transform(*inputs) if plain_only() else cls.apply(*inputs)
        return value

    @staticmethod
    def forward(ctx: Any, signal: Tensor, window: Tensor, n_fft: int, hop: int, pad_mode: str) -> Tensor:
        ctx.save_for_backward(window)
        ctx.settings = n_fft, hop, pad_mode, signal.shape[-1]
        length, left = len(window), (n_fft - len(window)) // 2
        padded = plain.padded(signal, n_fft // 2, n_fft - n_fft // 2, pad_mode)
        inner = padded[:, left : padded.shape[-1] - (n_fft - length - left)]
        spectrum = torch.fft.rfft(inner.unfold(-1, length, hop) * window, n=n_fft)
        return torch.view_as_real(spectrum).movedim(-1, 0).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (window,) = ctx.saved_tensors
        n_fft, hop, pad_mode, samples = ctx.settings
        if torch.is_grad_enabled():  # the gradient is to be differentiated
            anywhere = gradient.new_zeros(gradient.shape[1], samples).requires_grad_()  # as the transform is linear
            inputs = anywhere, window, n_fft, hop, pad_mode
            return plain.gradients(plain.transform, inputs, gradient, (True, False, False, False, False))
        bins = torch.complex(*plain.solid(gradient))
        # An inverse real transform counts every bin twice, except the first and (of an even size) the last.
        bins[..., 0] *= 2
        if n_fft % 2 == 0:
            bins[..., -1] *= 2
        frames = torch.fft.irfft(bins, n=n_fft, norm="forward")[..., : len(window)].mul_(window / 2)
        padded = _overlap_add(frames, hop, (n_fft - len(window)) // 2, samples + n_fft)
        return _unpadded(padded, n_fft // 2, n_fft - n_fft // 2, pad_mode), None, None, None, None


def _unpadded(gradient: Tensor, before: int, after: int, pad_mode: str) -> Tensor:
    """The gradient at a signal from that at the padded signal."""
    samples = gradient.shape[1] - before - after
    result = gradient[:, before : before + samples].clone()
    if pad_mode == "reflect":
        result[:, 1 : before + 1] += gradient[:, :before].flip(-1)
        result[:, -after - 1 : -1] += gradient[:, before + samples :].flip(-1)
    return result


def _overlap_add(frames: Tensor, hop: int, left: int, samples: int) -> Tensor:
    """Rows of `samples` to which the frames `[R, frames, length]` add up, the first of them at `left`."""
    count, blocks = frames.shape[1], -(-frames.shape[2] // hop)
    hops = count + blocks - 1
    rows = frames.new_zeros(len(frames), max(samples, left + hops * hop))
    added = rows[:, left : left + hops * hop].unflatten(1, (hops, hop))
    for block in range(blocks):  # block j of frame f belongs at hop f + j
        part = frames[..., block * hop : (block + 1) * hop]
        added[:, block : block + count, : part.shape[-1]] += part
    return rows[:, :samples]


class Magnitude(torch.autograd.Function):
    """`sqrt(max(|X|², eps))` from parts `[2, …]` of X or, with others Y, of X − Y; no gradient below eps or at 0."""

    @classmethod
    def compute(cls, *inputs: Any) -> Tensor:
        value: Tensor = plain.magnitude(*inputs) if plain_only() else cls.apply(*inputs)
        return value

    @staticmethod
    def forward(ctx: Any, parts: Tensor, other: Tensor | None, eps: float) -> Tensor:
        real, imag = parts if other is None else parts - other
        value = (real * real).addcmul_(imag, imag).clamp_min_(eps).sqrt_()
        ctx.save_for_backward(parts, other, value)
        ctx.eps = eps
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts, other, value = ctx.saved_tensors
        if torch.is_grad_enabled():
            return plain.gradients(plain.magnitude, (parts, other, ctx.eps), gradient, ctx.needs_input_grad)
        factor = _above(plain.solid(gradient) / value, value, ctx.eps)
        slope = parts * factor if other is None else (parts - other).mul_(factor)
        return slope if ctx.needs_input_grad[0] else None, -slope if ctx.needs_input_grad[1] else None, None


def _above(values: Tensor, magnitude: Tensor, eps: float) -> Tensor:
    """The values, 0 where a magnitude, clamped at √eps, is not above that; in place and in one pass."""
    floor = float(torch.tensor(eps, dtype=magnitude.dtype).sqrt())
    return torch.ops.aten.threshold_backward.grad_input(values, magnitude, floor, grad_input=values)


class LogRatio(torch.autograd.Function):
    """`ln(prediction / target)` of positive values."""

    @classmethod
    def compute(cls, *inputs: Any) -> Tensor:
        value: Tensor = plain.log_ratio(*inputs) if plain_only() else cls.apply(*inputs)
        return value

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(prediction, target)
        return (prediction / target).log_()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        prediction, target = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return plain.gradients(plain.log_ratio, (prediction, target), gradient, needed)
        return gradient / prediction if needed[0] else None, -gradient / target if needed[1] else None


class Angle(torch.autograd.Function):
    """Angles of a spectrum from its parts `[2, …]` and its magnitudes clamped at √eps; no gradient where they are."""

    @classmethod
    def compute(cls, *inputs: Any) -> Tensor:
        value: Tensor = plain.angle(*inputs) if plain_only() else cls.apply(*inputs)
        return value

    @staticmethod
    def forward(ctx: Any, parts: Tensor, magnitude: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(parts, magnitude)
        ctx.eps = eps
        return torch.atan2(parts[1], parts[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts, magnitude = ctx.saved_tensors
        if torch.is_grad_enabled():
            return plain.gradients(plain.angle, (parts, magnitude, ctx.eps), gradient, ctx.needs_input_grad)
        return _turned(parts, plain.solid(gradient), gradient.new_ones(()), magnitude, ctx.eps), None, None


def _turned(parts: Tensor, gradient: Tensor, scale: Tensor, magnitude: Tensor, eps: float) -> Tensor:
    """The gradient at a spectrum X from that at its angle, `scale` times `gradient`: times `i X / |X|²`."""
    factor = _above((scale / magnitude).mul_(gradient).div_(magnitude), magnitude, eps)
    result = torch.empty_like(parts)
    torch.mul(parts[0], factor, out=result[1])
    torch.mul(parts[1], factor.neg_(), out=result[0])
    return result


class PhaseDistance(torch.autograd.Function):
    """Mean magnitudes of the angles of P relative to T and of their wrapped differences along bins and frames.

    From parts `[2, B, C, frames, bins]` and magnitudes clamped at √eps to `[B]`. An angle counts as 0 where both
    magnitudes are clamped, and has no gradient at a spectrum where its own is. All slopes are ±1 and known in the
    forward pass, so one tensor is saved for the backward pass instead of ten.
    """

    @classmethod
    def compute(cls, *inputs: Any) -> Tensor:
        value: Tensor = plain.phase_distance(*inputs) if plain_only() else cls.apply(*inputs)
        return value

    @staticmethod
    def forward(
        ctx: Any, prediction: Tensor, target: Tensor, magnitude: Tensor, wanted_magnitude: Tensor, eps: float
    ) -> Tensor:
        real = (prediction[0] * target[0]).addcmul_(prediction[1], target[1])
        # A fused multiply-add would not give exactly 0 for equal signals.
        imag = (prediction[1] * target[0]).sub_(prediction[0] * target[1])
        angles = torch.atan2(imag, real, out=imag)
        angles = _above(angles, torch.maximum(magnitude, wanted_magnitude, out=real), eps)
        value = item_mean(angles.abs())
        slope = angles.sgn().div_(angles[0].numel())
        for dim in (-1, -2):
            # Differences of the angles' differences are those of this one, up to whole turns.
            steps = angles.diff(dim=dim)
            steps.sub_(steps.div(2 * math.pi).round_(), alpha=2 * math.pi)
            value = value + item_mean(steps.abs())
            count, share = steps.shape[dim], 1 / steps[0].numel()
            steps.sgn_()
            slope.narrow(dim, 1, count).add_(steps, alpha=share)
            slope.narrow(dim, 0, count).sub_(steps, alpha=share)
        ctx.save_for_backward(prediction, target, magnitude, wanted_magnitude, slope)
        ctx.eps = eps
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        prediction, target, magnitude, wanted_magnitude, slope = ctx.saved_tensors
        share, needed = plain.solid(gradient)[:, None, None, None], ctx.needs_input_grad
        if torch.is_grad_enabled():
            inputs = prediction, target, magnitude, wanted_magnitude, ctx.eps
            return plain.gradients(plain.phase_distance, inputs, gradient, needed)
        return (
            _turned(prediction, slope, share, magnitude, ctx.eps) if needed[0] else None,
            _turned(target, slope, -share, wanted_magnitude, ctx.eps) if needed[1] else None,
            *(None, None, None),
        )
