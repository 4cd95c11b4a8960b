"""The activation of SEANet networks, an order of magnitude faster on processors than PyTorch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ELU(nn.Module):
    """`x` if x > 0, else `exp(x) − 1` (Clevert et al. 2016, with α = 1).

    PyTorch's computes `expm1`, which is exact near 0 and takes ten times as long on a processor as `exp`. This one
    computes `max(x, exp(min(x, 0)) − 1)`, which differs by less than 1e-7. Half of a decoder's time is spent here.
    On GPUs it is PyTorch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return nn.functional.elu(x)
        result: Tensor = _ELU.apply(x)
        return result


class _ELU(torch.autograd.Function):
    """Keeps the result for the gradient, and no other tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result = x.clamp_max(0).exp_().sub_(1)
        torch.maximum(x, result, out=result)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.elu_backward(gradient, 1, 1, 1, True, result)


def replace_elu(network: nn.Module) -> None:
    """Puts `ELU` in the place of each of PyTorch's with α = 1."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ELU) and child.alpha == 1:
                setattr(module, name, ELU())
