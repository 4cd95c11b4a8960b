"""Adversarial losses with the interface of `audiocraft.adversarial`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from losses.adversarial.losses import _CRITERIA
from losses.compat.audiocraft.discriminators import (
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    MultiScaleSTFTDiscriminator,
)

__all__ = [
    "ADVERSARIAL_LOSSES",
    "AdversarialLoss",
    "FeatureMatchingLoss",
    "MultiPeriodDiscriminator",
    "MultiScaleDiscriminator",
    "MultiScaleSTFTDiscriminator",
    "get_adv_criterion",
    "get_fake_criterion",
    "get_real_criterion",
]

Criterion = Callable[[Tensor], Tensor]
FeatureLoss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]

GENERATOR, REAL, FAKE = range(3)  # the order of criteria in a GAN type
_KINDS = {"mse": "lsgan", "hinge": "hinge", "hinge2": "hinge"}
ADVERSARIAL_LOSSES = list(_KINDS)


def get_adv_criterion(loss_type: str) -> Criterion:
    """The generator's loss on logits of any shape, a scalar; 0 for no logits.

    "mse" is `(D − 1)²`, "hinge" `−D`, "hinge2" `max(0, 1 − D)`, mean over logits.

    Raises:
        ValueError: another name.
    """
    return _Mean(loss_type, REAL if loss_type == "hinge2" else GENERATOR)


def get_real_criterion(loss_type: str) -> Criterion:
    """The discriminator's loss on logits of real signals: "mse" `(D − 1)²`, "hinge" and "hinge2" `max(0, 1 − D)`."""
    return _Mean(loss_type, REAL)


def get_fake_criterion(loss_type: str) -> Criterion:
    """The discriminator's loss on logits of generated signals: "mse" `D²`, "hinge" and "hinge2" `max(0, 1 + D)`."""
    return _Mean(loss_type, FAKE)


class _Mean:
    """The mean of a criterion over logits of any shape."""

    def __init__(self, loss_type: str, role: int):
        if loss_type not in _KINDS:
            raise ValueError(f"loss_type must be one of {', '.join(_KINDS)}, got {loss_type!r}")
        self.loss_type, self.role = loss_type, role

    def __call__(self, x: Tensor) -> Tensor:
        if not x.numel():
            return x.new_zeros(1)
        return _CRITERIA[_KINDS[self.loss_type]][self.role](x).mean()


class FeatureMatchingLoss(nn.Module):
    """Distance of the features of one discriminator, a scalar: `loss` of each layer, mean over layers.

    Args:
        loss: of two tensors.
        normalize: the mean over layers; without, their sum.

    Raises:
        AssertionError: at the call, no layers, or layers that differ in number or shape.
    """

    def __init__(self, loss: nn.Module | None = None, normalize: bool = True):
        super().__init__()
        self.loss, self.normalize = loss or nn.L1Loss(), normalize

    def forward(self, fmap_fake: Sequence[Tensor], fmap_real: Sequence[Tensor]) -> Tensor:
        shapes = [[list(features.shape) for features in layers] for layers in (fmap_fake, fmap_real)]
        assert shapes[0] and shapes[0] == shapes[1], f"features must be equal in number and shape, got {shapes}"
        values = torch.stack([self.loss(fake, real) for fake, real in zip(fmap_fake, fmap_real, strict=True)])
        return values.mean() if self.normalize else values.sum()


class AdversarialLoss(nn.Module):
    """A discriminator, its optimiser and the losses of both sides, as one loss of a generator::

        loss = AdversarialLoss(discriminator, optimizer, adversarial, on_real, on_fake, FeatureMatchingLoss())
        loss.train_adv(fake, real)
        adversarial, features = loss(fake, real)

    `losses.Adversary` is that of a training loop that accumulates gradients, skips steps and resumes.

    Args:
        adversary: module of a signal that returns a list of logits and a list of lists of features.
        optimizer: of its weights.
        loss: the generator's loss on logits; see `get_adv_criterion`.
        loss_real: the discriminator's on logits of real signals.
        loss_fake: the discriminator's on logits of generated signals.
        loss_feat: distance of features of one discriminator; None for none.
        normalize: means over discriminators; without, sums.
    """

    def __init__(
        self,
        adversary: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Criterion,
        loss_real: Criterion,
        loss_fake: Criterion,
        loss_feat: FeatureLoss | None = None,
        normalize: bool = True,
    ):
        super().__init__()
        self.adversary, self.optimizer = adversary, optimizer
        self.loss, self.loss_real, self.loss_fake, self.loss_feat = loss, loss_real, loss_fake, loss_feat
        self.normalize = normalize
        if _is_distributed():
            for tensor in itertools.chain(adversary.parameters(), adversary.buffers()):
                dist.broadcast(tensor.detach(), src=0)

    def train_adv(self, fake: Tensor, real: Tensor) -> Tensor:
        """One step of the discriminator, with the mean gradient of all ranks; returns its loss."""
        fake_logits, _ = self.adversary(fake.detach())
        real_logits, _ = self.adversary(real.detach())
        pairs = zip(fake_logits, real_logits, strict=True)
        loss = self._combined([self.loss_fake(fake) + self.loss_real(real) for fake, real in pairs])
        self.optimizer.zero_grad()
        loss.backward()
        if _is_distributed():
            for weight in self.adversary.parameters():
                if weight.grad is not None:
                    dist.all_reduce(weight.grad)
                    weight.grad /= dist.get_world_size()
        self.optimizer.step()
        return loss

    def forward(self, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The generator's adversarial loss and distance of features; no gradient reaches the discriminator."""
        weights = {name: weight.detach() for name, weight in self.adversary.named_parameters()}
        fake_logits, fake_features = torch.func.functional_call(self.adversary, weights, (fake,))
        _, real_features = torch.func.functional_call(self.adversary, weights, (real,))
        adversarial = self._combined([self.loss(logits) for logits in fake_logits])
        if self.loss_feat is None:
            return adversarial, adversarial.new_zeros(())
        pairs = zip(fake_features, real_features, strict=True)
        return adversarial, self._combined([self.loss_feat(*pair) for pair in pairs])

    def _combined(self, values: list[Tensor]) -> Tensor:
        total = torch.stack([value.squeeze() for value in values])
        return total.mean() if self.normalize else total.sum()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "optimizer"] = self.optimizer.state_dict()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        self.optimizer.load_state_dict(state_dict.pop(prefix + "optimizer"))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
