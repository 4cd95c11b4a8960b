"""The precision that the transformer computes in: float32, or bfloat16 where the processor is faster with it."""

from __future__ import annotations

import contextlib
import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from encore.config.schema import PRECISIONS
from encore.errors import EncoreError

AUTO, FP32, BF16 = PRECISIONS
PROBE_FRAMES, PROBE_RUNS = 128, 3
WORTHWHILE = 1.2  # speed-up from which bfloat16 is chosen: well above the measurement's noise


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Context in which matrix products and attention are computed in `precision`, "fp32" or "bf16".

    Weights, normalisation and the residual stream stay in float32.
    """
    return torch.autocast(device.type, torch.bfloat16) if precision == BF16 else contextlib.nullcontext()


def choose_precision(name: str, layer: nn.Module, d_model: int, device: torch.device) -> str:
    """What `--precision name` means on a device: "fp32" or "bf16".

    On a GPU "auto" is bfloat16 if the GPU has it. A processor may compute bfloat16 without being fast at it, so there a
    forward and backward pass through `layer` is timed in both.

    Args:
        name: one of `PRECISIONS`.
        layer: maps `[1, T, d_model]` to the same shape; its gradients are left alone.
        d_model: its width.
        device: of the layer.

    Raises:
        EncoreError: bf16 on a GPU that does not have it.
    """
    if device.type == "cuda":
        available = torch.cuda.is_bf16_supported(including_emulation=False)
        if name == BF16 and not available:
            raise EncoreError("--precision bf16: this GPU does not have bfloat16; use fp32 or auto")
        return (BF16 if available else FP32) if name == AUTO else name
    if name != AUTO:
        return name
    return BF16 if speedup_of_bf16(layer, d_model, device) >= WORTHWHILE else FP32


def speedup_of_bf16(layer: nn.Module, d_model: int, device: torch.device) -> float:
    """Time of a forward and backward pass in float32 divided by that in bfloat16, the best of several each."""
    x = torch.ones(1, PROBE_FRAMES, d_model, device=device, requires_grad=True)
    best = dict.fromkeys((FP32, BF16), float("inf"))
    for _ in range(PROBE_RUNS + 1):  # the first run, which also prepares the kernels, is never the best
        for precision in best:
            start = time.perf_counter()
            with autocast(precision, device):
                made = layer(x)
            torch.autograd.grad(made.float().sum(), [x, *layer.parameters()])
            best[precision] = min(best[precision], time.perf_counter() - start)
    return best[FP32] / best[BF16]
