"""audiocraft's loss balancer and adversarial losses: `from losses.compat.audiocraft.losses import Balancer`."""

from losses.compat.audiocraft import adversarial, losses

__all__ = ["adversarial", "losses"]
