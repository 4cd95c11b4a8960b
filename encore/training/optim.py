"""The optimiser, the learning-rate schedule, and the averaged weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]
PLATEAU_FACTOR, PLATEAU_PATIENCE = 0.5, 5


def adamw(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (betas 0.9, 0.95); weight decay for matrices only, not for biases and norms."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


class Schedule:
    """The learning rate of each step: `peak · warm-up · factor`.

    It counts samples, not steps, so that it is the same for any number of ranks and any batch size. The warm-up rises
    linearly over the first `warmup` samples. The factor is 1 (constant), half a cosine from 1 to 0 over the samples
    from there to `total` (cosine), or halved whenever the validation loss has not fallen for 5 epochs (plateau).
    """

    def __init__(self, kind: str, peak: float, warmup: int, total: int):
        self.kind, self.peak, self.warmup, self.total = kind, peak, warmup, total
        self.factor, self.best, self.waited = 1.0, math.inf, 0

    def lr(self, done: int, batch: int = 1) -> float:
        """The learning rate of the step that takes `batch` samples, after `done` in all steps before it."""
        warmup = min(1.0, (done + batch) / self.warmup) if self.warmup else 1.0
        factor = self.factor
        if self.kind == "cosine" and done >= self.warmup:
            share = (done - self.warmup) / max(1, self.total - self.warmup)
            factor = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        return self.peak * warmup * factor

    def forget_best(self) -> None:
        """Losses from now on cannot be compared with earlier ones."""
        self.best, self.waited = math.inf, 0

    def epoch_ended(self, loss: float) -> None:
        """Tells the schedule an epoch's validation loss."""
        if self.kind != "plateau":
            return
        self.waited = 0 if loss < self.best else self.waited + 1
        self.best = min(self.best, loss)
        if self.waited > PLATEAU_PATIENCE:
            self.factor, self.waited = self.factor * PLATEAU_FACTOR, 0

    def state_dict(self) -> dict[str, float]:
        return {"factor": self.factor, "best": self.best, "waited": self.waited, "warmup": self.warmup}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.factor, self.best, self.waited = state["factor"], state["best"], int(state["waited"])
        self.warmup = int(state["warmup"])


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights.

    The decay rises to `decay`: it is `min(decay, (1 + n) / (10 + n))` after n updates, so that the random
    initialisation does not dominate short runs.
    """

    @torch.no_grad()
    def update(averages: Tensors, weights: Tensors, updates: Tensor | int) -> None:
        count = int(updates)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + count) / (10 + count)))

    return AveragedModel(model, multi_avg_fn=update)
