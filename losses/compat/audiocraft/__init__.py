"""audiocraft's loss balancer and adversarial losses: `from losses.compat.audiocraft.losses import Balancer`."""

from losses.compat.audiocraft import adversarial, discriminators, losses

__all__ = ["adversarial", "discriminators", "losses"]
