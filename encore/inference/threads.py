"""How many threads a continuation is computed on."""

from __future__ import annotations

import os

import torch


def use_one_thread() -> None:
    """Makes torch compute on one thread of the CPU, unless OMP_NUM_THREADS says how many.

    A continuation is made of small operations, each of which needs the one before. Threads wait for each other longer
    than they work: two on two cores were half as fast as one, and a tenth as fast beside other programs.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
