"""The loss balancer with the interface of `audiocraft.losses` (Défossez et al. 2022, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch import distributed as dist

from losses.balancer import Average, balance


class Balancer:
    """Gradients of several losses at one signal, scaled so that each loss's weight is its share.

    The gradient is `Σ_k w_k / Σ w · total_norm · g_k / (n_k + epsilon)`, g_k the gradient of the loss k and n_k a
    moving average of its norm, averaged over ranks. `losses.LossBalancer` differs where that matters in training: a
    larger batch gives no larger gradient, and a loss that is not finite or has no gradient is left out.

    Args:
        weights: of each loss by name.
        balance_grads: without, the gradient is the plain weighted sum.
        total_norm: norm of the gradient, if all losses pointed the same way.
        ema_decay: decay of the averages per step.
        per_batch_item: the norm of a gradient is the mean of the norms of its items, not that of the whole.
        epsilon: added to the norms.
        monitor: keep each loss's part of the sum of norms in `metrics`, as `ratio_<name>`.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        balance_grads: bool = True,
        total_norm: float = 1.0,
        ema_decay: float = 0.999,
        per_batch_item: bool = True,
        epsilon: float = 1e-12,
        monitor: bool = False,
    ):
        self.weights, self.balance_grads, self.total_norm = weights, balance_grads, total_norm or 1.0
        self.ema_decay, self.per_batch_item = ema_decay or 1.0, per_batch_item
        self.epsilon, self.monitor = epsilon, monitor
        self.metrics: dict[str, float] = {}
        self._averages: dict[str, Average] = {}

    def backward(self, losses: Mapping[str, Tensor], input: Tensor) -> Tensor:
        """Sends the combined gradient at `input` into what made it; returns the loss of which it is the gradient.

        Args:
            losses: scalars computed from `input`, by name; each needs a weight.
            input: the signal, its first axis the items.

        Raises:
            KeyError: a loss without weight.
            ZeroDivisionError: the weights of the losses add up to 0.
        """
        gradients = {name: torch.autograd.grad(loss, input, retain_graph=True)[0] for name, loss in losses.items()}
        norms = self._average_norms(gradients, len(input) if self.per_batch_item else 1)
        total = sum(norms.values())
        self.metrics = {f"ratio_{name}": norm / total for name, norm in norms.items()} if self.monitor else {}
        sizes = {name: norm + self.epsilon for name, norm in norms.items()}
        scales = balance(self.weights, sizes, self.total_norm) if self.balance_grads else self.weights
        # Each product is rounded before it is added, so that equal and opposite gradients add up to exactly 0.
        input.backward(torch.stack([scales[name] * gradient for name, gradient in gradients.items()]).sum(0))
        return torch.stack([scales[name] * loss.detach() for name, loss in losses.items()]).sum()

    def _average_norms(self, gradients: Mapping[str, Tensor], items: int) -> dict[str, float]:
        """The moving averages of the norms, over all ranks weighted by their `items`."""
        axes = tuple(range(1, next(iter(gradients.values())).dim())) if self.per_batch_item else ()
        norms = [torch.linalg.vector_norm(gradient, dim=axes or None).mean() for gradient in gradients.values()]
        for name, norm in zip(gradients, torch.stack(norms).tolist(), strict=True):
            self._averages.setdefault(name, Average()).add(norm, self.ema_decay)
        averages = [self._averages[name].size(shrink=False) for name in gradients]
        if dist.is_available() and dist.is_initialized():
            report = torch.tensor([*averages, 1.0], device=norms[0].device, dtype=torch.float64) * items
            dist.all_reduce(report)
            averages = (report[:-1] / report[-1]).tolist()
        return dict(zip(gradients, averages, strict=True))
