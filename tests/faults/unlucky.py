"""A plugin for the tests of faults: what goes wrong after an optimiser step, and a loss that breaks on silent targets.

KILL_AFTER is `RANK:STEP`: the rank that kills itself, and after how many steps; once in a folder, where a file `killed`
then says that it has. FULL_AFTER is `STEP:BYTES`: from then on the files of rank 0 cannot grow beyond so many bytes.
"""

from __future__ import annotations

import os
import resource
import signal
from itertools import count
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from losses import register

KILL, FULL = "KILL_AFTER", "FULL_AFTER"
steps = count(1)


def after_step(*unused: object) -> None:
    step = next(steps)
    if os.environ.get(KILL) == f"{os.environ['RANK']}:{step}" and not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    after, _, most = os.environ.get(FULL, "").partition(":")
    if after == str(step) and os.environ["RANK"] == "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), resource.RLIM_INFINITY))


if KILL in os.environ or FULL in os.environ:
    register_optimizer_step_post_hook(after_step)


@register("fragile", group="waveform")
def fragile(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error; not finite where the target is silent.

    Formula: `mean(|p − t|)`.
    Use: in tests.
    """
    error = (prediction - target).abs().flatten(1).mean(1)
    return torch.where(target.flatten(1).any(1), error, torch.nan)
