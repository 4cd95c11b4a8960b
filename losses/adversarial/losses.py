"""Adversarial losses of generator and discriminator, and the `Adversary` that trains a discriminator.

The losses take the outputs of discriminators, a list of logits (one tensor `[B, …]` per discriminator) and a list of
lists of features (one tensor `[B, …]` per discriminator and layer), and give one value per item, `[B]`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from losses.base import check_signals

FEATURE_FLOOR = 1e-4  # least divisor of relative feature matching, so that dead features cannot outweigh all others

# Per GAN type: the generator's on fake logits; the discriminator's on real and on fake logits.
_CRITERIA: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "hinge": (lambda fake: -fake, lambda real: (1 - real).relu(), lambda fake: (1 + fake).relu()),
    "lsgan": (lambda fake: (fake - 1).square(), lambda real: (real - 1).square(), lambda fake: fake.square()),
}
GAN_TYPES = tuple(_CRITERIA)


def generator_loss(fake_logits: Sequence[Tensor], gan_type: str = "hinge") -> Tensor:
    """Adversarial loss of the generator: low where the discriminator takes its output for real.

    Formula: hinge: `−D(p)`; LSGAN: `(D(p) − 1)²`; mean over discriminators and logits.
    Use: realism where averages sound dull; hinge has no lower bound.

    One value per item, `[B]`. "hinge" (Lim & Ye 2017; audiocraft) is minus the mean logit. "lsgan" (Mao et al. 2017,
    without their factor ½, as HiFi-GAN) is at least 0, where all logits are 1, those of a real signal.

    Raises:
        ValueError: an unknown `gan_type`.
    """
    generator, _, _ = _criteria(gan_type)
    return _mean([_per_item(generator(logits)) for logits in fake_logits])


def discriminator_loss(real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor], gan_type: str = "hinge") -> Tensor:
    """The discriminators' loss, `[B]`: mean over discriminators of an item's means on real and on fake logits, added.

    "hinge": `max(0, 1 − D(x)) + max(0, 1 + D(x̂))`; "lsgan": `(D(x) − 1)² + D(x̂)²`. The better real and fake are told
    apart, the lower, down to 0; a discriminator that answers 0 to everything has 2 ("hinge") or 1 ("lsgan").

    Raises:
        ValueError: an unknown `gan_type`, or lists that differ in length.
    """
    _, on_real, on_fake = _criteria(gan_type)
    pairs = zip(real_logits, fake_logits, strict=True)
    return _mean([_per_item(on_real(real)) + _per_item(on_fake(fake)) for real, fake in pairs])


def feature_matching(
    fake_features: Sequence[Sequence[Tensor]], real_features: Sequence[Sequence[Tensor]], relative: bool = False
) -> Tensor:
    """L1 distance of the discriminator's features.

    Formula: mean over discriminators k and layers l of `mean(|D_kl(p) − D_kl(t)|)`.
    Use: always beside `gan`, as it ties the output to the target.

    One value per item, `[B]`; the innermost mean is over one item's features of a layer (Larsen et al. 2016; HiFi-GAN).
    With `relative` it is divided by `mean(|D_kl(t)|)` of the same item, at least 1e-4, as in EnCodec's paper
    (Défossez et al. 2022), so that layers of any magnitude weigh the same. audiocraft's code does not divide.

    Raises:
        ValueError: lists or tensors that differ in length or shape.
    """
    distances = []
    for fake_layers, real_layers in zip(fake_features, real_features, strict=True):
        layers = []
        for fake, real in zip(fake_layers, real_layers, strict=True):
            if fake.shape != real.shape:
                raise ValueError(f"features must be equal in shape, got {list(fake.shape)} and {list(real.shape)}")
            distance = _per_item((fake - real).abs())
            layers.append(distance / _per_item(real.abs()).clamp_min(FEATURE_FLOOR) if relative else distance)
        distances.append(_mean(layers))
    return _mean(distances)


class GeneratorLoss(nn.Module):
    """The generator's loss, `(fake_logits) -> [B]`; see `generator_loss`."""

    def __init__(self, gan_type: str = "hinge"):
        super().__init__()
        _criteria(gan_type)
        self.gan_type = gan_type

    def forward(self, fake_logits: Sequence[Tensor]) -> Tensor:
        return generator_loss(fake_logits, self.gan_type)


class DiscriminatorLoss(nn.Module):
    """The discriminators' loss, `(real_logits, fake_logits) -> [B]`; see `discriminator_loss`."""

    def __init__(self, gan_type: str = "hinge"):
        super().__init__()
        _criteria(gan_type)
        self.gan_type = gan_type

    def forward(self, real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor]) -> Tensor:
        return discriminator_loss(real_logits, fake_logits, self.gan_type)


class FeatureMatchingLoss(nn.Module):
    """Distance of the discriminators' features, `(fake_features, real_features) -> [B]`; see `feature_matching`."""

    def __init__(self, relative: bool = False):
        super().__init__()
        self.relative = relative

    def forward(self, fake_features: Sequence[Sequence[Tensor]], real_features: Sequence[Sequence[Tensor]]) -> Tensor:
        return feature_matching(fake_features, real_features, self.relative)


class Adversary(nn.Module):
    """A discriminator and its optimiser, used as one more loss of a training loop::

        adversary = Adversary(discriminator("msstft", 24000, 1)).to(device)
        adversary.synchronise()
        for every step of the generator:
            for every batch of the step:
                values = adversary(prediction, target)                        # into the generator's loss
                adversary.accumulate(prediction, target, 1 / batches)         # the discriminator's own gradients
            adversary.step()                                                  # after the generator's backward passes

    Adam with betas (0.5, 0.9), as EnCodec. The discriminator computes in float32 even under autocast. `state_dict`
    holds weights, optimiser and step count; the learning rate after loading is that of the constructor.

    Args:
        discriminator: `module(audio [B, C, N]) -> (logits, features)`, lists as described at the top of this module.
        gan_type: "hinge" or "lsgan".
        lr: learning rate of the discriminator.
        update_freq: the discriminator is trained at steps that are multiples of this.
        start_step: before this step all losses are zeros and nothing is computed or trained.

    Raises:
        ValueError: an unknown `gan_type`, or `update_freq` below 1.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        gan_type: str = "hinge",
        lr: float = 1e-4,
        update_freq: int = 1,
        start_step: int = 0,
    ):
        super().__init__()
        if update_freq < 1:
            raise ValueError(f"update_freq must be at least 1, got {update_freq}")
        self.discriminator = discriminator
        self.generator_loss = GeneratorLoss(gan_type)
        self.discriminator_loss = DiscriminatorLoss(gan_type)
        self.feature_matching = FeatureMatchingLoss()
        self.optimizer = torch.optim.Adam(discriminator.parameters(), lr=lr, betas=(0.5, 0.9))
        self.lr, self.update_freq, self.start_step = lr, update_freq, start_step
        self.steps = 0

    @property
    def started(self) -> bool:
        """Whether `start_step` is reached."""
        return self.steps >= self.start_step

    @property
    def due(self) -> bool:
        """Whether the discriminator is trained at this step."""
        return self.started and self.steps % self.update_freq == 0

    def synchronise(self) -> None:
        """Broadcasts rank 0's discriminator; every rank calls this, on its training device."""
        if dist.is_initialized():
            for tensor in itertools.chain(self.discriminator.parameters(), self.discriminator.buffers()):
                dist.broadcast(tensor.detach(), src=0)

    def forward(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The generator's losses "gan" and "feature_matching", `[B]` each, of signals `[B, C, N]`.

        Gradients flow to the prediction, not to the discriminator's weights or the target. Before `start_step` both
        losses are zeros.

        Raises:
            ValueError: shapes that differ, are not `[B, C, N]`, or are too short for the discriminator.
        """
        check_signals(prediction, target)
        if not self.started:
            return {name: self._zeros(prediction) for name in ("gan", "feature_matching")}
        # On detached weights; their requires_grad stays, so the discriminator can be trained at any time.
        weights = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        discriminate = partial(torch.func.functional_call, self.discriminator, weights)
        with torch.autocast(prediction.device.type, enabled=False):
            with torch.no_grad():
                _, real_features = discriminate(target.float())
            fake_logits, fake_features = discriminate(prediction.float())
            return {
                "gan": self.generator_loss(fake_logits),
                "feature_matching": self.feature_matching(fake_features, real_features),
            }

    def accumulate(self, prediction: Tensor, target: Tensor, scale: float = 1.0) -> Tensor:
        """The discriminator's loss on both signals `[B, C, N]`, `[B]`, detached; zeros unless this step trains it.

        The gradient of `scale` times its mean is added to the gradients of the discriminator's weights.

        Raises:
            ValueError: as the adversary's call.
        """
        check_signals(prediction, target)
        if not self.due:
            return self._zeros(prediction)
        with torch.autocast(prediction.device.type, enabled=False):
            real_logits, _ = self.discriminator(target.detach().float())
            fake_logits, _ = self.discriminator(prediction.detach().float())
            values = self.discriminator_loss(real_logits, fake_logits)
            (values.mean() * scale).backward()
        return values.detach()

    def step(self, skip: bool = False) -> None:
        """Ends a training step: updates the discriminator, if that is due, with the mean gradient of all ranks.

        Every rank calls this. With `skip` on any rank, or a gradient that is not finite, the weights stay as they are.
        In any case the step is counted and the gradients are cleared.
        """
        if self.due and self._average_gradients(skip):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    @torch.no_grad()
    def _average_gradients(self, skip: bool) -> bool:
        """Replaces the gradients by their means over ranks; returns whether all are finite and no rank skips."""
        weights = [weight for weight in self.discriminator.parameters() if weight.requires_grad]
        # The gradient of a weight that this rank did not use is 0: all ranks must reduce the same number of values.
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        flag = gradients[0].new_tensor([float(skip)])
        flat = torch.cat([flag, *(gradient.flatten() for gradient in gradients)])
        if dist.is_initialized():
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        skipped, mean = flat[0], flat[1:]
        if not bool((skipped == 0) & mean.isfinite().all()):
            return False
        for weight, part in zip(weights, mean.split([weight.numel() for weight in weights]), strict=True):
            weight.grad = part.view_as(weight)
        return True

    def get_extra_state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.steps = state["steps"]

    @staticmethod
    def _zeros(signal: Tensor) -> Tensor:
        return torch.zeros(len(signal), device=signal.device)


def _criteria(gan_type: str) -> tuple[Callable[[Tensor], Tensor], ...]:
    if gan_type not in _CRITERIA:
        raise ValueError(f"gan_type must be one of {', '.join(GAN_TYPES)}, got {gan_type!r}")
    return _CRITERIA[gan_type]


def _per_item(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)
