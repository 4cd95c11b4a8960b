"""The package `losses` under a name of Encore's own: `from encore.losses import SpectralLoss, functional`."""

from __future__ import annotations

from losses import *  # noqa: F403
from losses import __all__ as __all__
