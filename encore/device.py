"""The device that a door works on."""

from __future__ import annotations

import torch

from encore.errors import EncoreError


def choose_device(name: str | None) -> torch.device:
    """The named device, else a GPU if there is one, else the CPU.

    Raises:
        EncoreError: there is no such device here.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EncoreError(f"--device {name}: not a device of this machine; give cpu, or cuda with a GPU") from error
    return device
