"""auraloss 0.4's modules and classes (Steinmetz & Reiss 2020): `from losses.compat import auraloss`.

Values and gradients are those of auraloss on any signal; docs/compat.md lists the exceptions.
"""

from losses.compat.auraloss import freq, perceptual, time, utils

__all__ = ["freq", "perceptual", "time", "utils"]
