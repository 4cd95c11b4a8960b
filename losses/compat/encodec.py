"""The loss balancer with the interface of `encodec.balancer`: `from losses.compat.encodec import Balancer`."""

from __future__ import annotations

from collections.abc import Mapping

from losses.compat.audiocraft import losses


class Balancer(losses.Balancer):
    """audiocraft's `Balancer`, whose `balance_grads` is `rescale_grads` here."""

    def __init__(
        self,
        weights: Mapping[str, float],
        rescale_grads: bool = True,
        total_norm: float = 1.0,
        ema_decay: float = 0.999,
        per_batch_item: bool = True,
        epsilon: float = 1e-12,
        monitor: bool = False,
    ):
        super().__init__(weights, rescale_grads, total_norm, ema_decay, per_batch_item, epsilon, monitor)
