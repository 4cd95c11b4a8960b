"""Short-time Fourier transforms, magnitudes and angles with hand-written gradients.

Faster than `torch.stft`: frames are the last axis but one, so nothing is transposed; only the window's length is
multiplied; the gradient takes one inverse transform of the half spectrum. Clamped values have no gradient, where that
of torch is not finite.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def mean_abs(values: Tensor) -> Tensor:
    """Mean magnitude per item, `[B, …] → [B]`; first along the last axis, which keeps float32 sums exact to 1e-6."""
    return torch.linalg.vector_norm(values, ord=1, dim=-1).flatten(1).mean(1) / values.shape[-1]


class Spectrum(torch.autograd.Function):
    """`[B, N]` to `[B, frames, bins]`."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, window: Tensor, n_fft: int, hop: int, pad_mode: str) -> Tensor:
        ctx.save_for_backward(window)
        ctx.settings = n_fft, hop, pad_mode, signal.shape[-1]
        return _transformed(signal, window, n_fft, hop, pad_mode)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (window,) = ctx.saved_tensors
        return _back(gradient.clone(), window, *ctx.settings), None, None, None, None


class SpectrumAndMagnitude(torch.autograd.Function):
    """`Spectrum` and its `Magnitude` in one, whose backward pass needs no tensor between the two."""

    @staticmethod
    def forward(
        ctx: Any, signal: Tensor, window: Tensor, n_fft: int, hop: int, pad_mode: str, eps: float
    ) -> tuple[Tensor, Tensor]:
        spectrum = _transformed(signal, window, n_fft, hop, pad_mode)
        value = _magnitude(spectrum, eps)
        ctx.save_for_backward(window, spectrum, value)
        ctx.settings, ctx.eps = (n_fft, hop, pad_mode, signal.shape[-1]), eps
        ctx.set_materialize_grads(False)
        return spectrum, value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, direct: Tensor | None, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        window, spectrum, value = ctx.saved_tensors
        if gradient is not None:
            whole = _along(spectrum, value, gradient, ctx.eps)
            whole = whole if direct is None else whole.add_(direct)
        elif direct is not None:
            whole = direct.clone()
        else:
            return (None,) * 6
        return _back(whole, window, *ctx.settings), None, None, None, None, None


def _transformed(signal: Tensor, window: Tensor, n_fft: int, hop: int, pad_mode: str) -> Tensor:
    length, left = len(window), (n_fft - len(window)) // 2
    padded = F.pad(signal[:, None], (n_fft // 2, n_fft - n_fft // 2), mode=pad_mode)[:, 0]
    inner = padded[:, left : padded.shape[-1] - (n_fft - length - left)]
    return torch.fft.rfft(inner.unfold(-1, length, hop) * window, n=n_fft)


def _back(gradient: Tensor, window: Tensor, n_fft: int, hop: int, pad_mode: str, samples: int) -> Tensor:
    """The gradient at the signal from the gradient at the spectrum, which is overwritten."""
    length, left = len(window), (n_fft - len(window)) // 2
    # An inverse real transform counts every bin twice, except the first and (of an even size) the last.
    gradient[..., 0] *= 2
    if n_fft % 2 == 0:
        gradient[..., -1] *= 2
    frames = torch.fft.irfft(gradient, n=n_fft, norm="forward")[..., :length].mul_(window / 2)
    # Overlap-add in blocks of one hop: block j of frame f belongs at hop f + j.
    count, blocks = frames.shape[1], -(-length // hop)
    hops = count + blocks - 1
    padded = frames.new_zeros(len(frames), max(samples + n_fft, left + hops * hop))
    added = padded[:, left : left + hops * hop].unflatten(1, (hops, hop))
    for block in range(blocks):
        part = frames[..., block * hop : (block + 1) * hop]
        added[:, block : block + count, : part.shape[-1]] += part
    padded = padded[:, : samples + n_fft]
    before, after = n_fft // 2, n_fft - n_fft // 2
    result = padded[:, before : before + samples].clone()
    if pad_mode == "reflect":
        result[:, 1 : before + 1] += padded[:, :before].flip(-1)
        result[:, -after - 1 : -1] += padded[:, before + samples :].flip(-1)
    return result


class Magnitude(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spectrum: Tensor, eps: float) -> Tensor:
        value = _magnitude(spectrum, eps)
        ctx.save_for_backward(spectrum, value)
        ctx.eps = eps
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        spectrum, value = ctx.saved_tensors
        return _along(spectrum, value, gradient, ctx.eps), None


def _magnitude(spectrum: Tensor, eps: float) -> Tensor:
    power = spectrum.real * spectrum.real
    return power.addcmul_(spectrum.imag, spectrum.imag).clamp_min_(eps).sqrt_()


def _along(spectrum: Tensor, value: Tensor, gradient: Tensor, eps: float) -> Tensor:
    """The gradient at a spectrum X from that at its magnitude: times X / |X|, and 0 where it was clamped."""
    floor = float(torch.tensor(eps, dtype=value.dtype).sqrt())
    # In one pass: the gradient where the value is above the floor, else 0.
    kept = torch.ops.aten.threshold_backward(gradient, value, floor)
    divisor = value if eps else value.clamp_min(torch.finfo(value.dtype).tiny)
    return _scaled(spectrum, kept.div_(divisor))


class LogRatio(torch.autograd.Function):
    """`ln(prediction / target)` of positive values."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(prediction, target)
        return (prediction / target).log_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        prediction, target = ctx.saved_tensors
        needed = ctx.needs_input_grad
        return gradient / prediction if needed[0] else None, -gradient / target if needed[1] else None


class AngleDifference(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(prediction, target)
        ctx.eps = eps
        # The angle of P·T*, from contiguous parts: four times as fast as from strided ones.
        real = prediction.real * target.real
        real.addcmul_(prediction.imag, target.imag)
        imag = prediction.imag * target.real
        imag.sub_(prediction.real * target.imag)  # a fused multiply-add would not give exactly 0 for equal signals
        return torch.atan2(imag, real)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        prediction, target = ctx.saved_tensors
        return (
            _turned(prediction, gradient, ctx.eps) if ctx.needs_input_grad[0] else None,
            _turned(target, -gradient, ctx.eps) if ctx.needs_input_grad[1] else None,
            None,
        )


class Angle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spectrum: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(spectrum)
        ctx.eps = eps
        return torch.atan2(spectrum.imag, spectrum.real)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (spectrum,) = ctx.saved_tensors
        return _turned(spectrum, gradient, ctx.eps), None


def _turned(spectrum: Tensor, gradient: Tensor, eps: float) -> Tensor:
    """The gradient at a spectrum X from that at its angle: times `i X / |X|²`, and 0 where the power is below eps."""
    power = spectrum.real * spectrum.real
    power.addcmul_(spectrum.imag, spectrum.imag)
    factor = (gradient / power).masked_fill_(power <= eps, 0)
    result = torch.empty_like(spectrum)
    parts = torch.view_as_real(result)
    torch.mul(spectrum.imag, -factor, out=parts[..., 0])
    torch.mul(spectrum.real, factor, out=parts[..., 1])
    return result


def _scaled(spectrum: Tensor, factor: Tensor) -> Tensor:
    """A complex tensor times a real one, which is not converted to complex."""
    result = torch.empty_like(spectrum)
    parts = torch.view_as_real(result)
    torch.mul(spectrum.real, factor, out=parts[..., 0])
    torch.mul(spectrum.imag, factor, out=parts[..., 1])
    return result


class AntiWrapped(torch.autograd.Function):
    """Mean magnitudes of angles and of their wrapped differences along bins and frames, `[B, C, frames, bins] → [B]`.

    All slopes are ±1 and known in the forward pass, so one tensor is saved for the backward pass instead of nine.
    """

    @staticmethod
    def forward(ctx: Any, angles: Tensor) -> Tensor:
        value = mean_abs(angles)
        slope = angles.sgn().div_(angles[0].numel())
        for dim in (-1, -2):
            steps = angles.diff(dim=dim)
            steps -= steps.div(2 * math.pi).round_().mul_(2 * math.pi)
            value = value + mean_abs(steps)
            steps.sgn_().div_(steps[0].numel())
            count = steps.shape[dim]
            slope.narrow(dim, 1, count).add_(steps)
            slope.narrow(dim, 0, count).sub_(steps)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return slope * gradient[:, None, None, None]
