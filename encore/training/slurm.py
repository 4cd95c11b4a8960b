"""What SLURM tells a process of a job: its rank, and where the processes of its step meet."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

RANK_VARIABLES = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
PORTS = range(20000, 32000)  # below those that Linux gives to programs that ask for any


class Endpoint(NamedTuple):
    """Where processes meet."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def endpoint() -> Endpoint | None:
    """The first machine of this process's step, and a port that follows from the job and the step; None outside a job.

    Two jobs on one machine get different ports, unless their numbers differ by a multiple of 12,000.
    """
    machines = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    if not machines or "SLURM_JOB_ID" not in os.environ:
        return None
    job, step = int(os.environ["SLURM_JOB_ID"]), os.environ.get("SLURM_STEP_ID", "")
    # Steps that run at the same time are far apart, so that they do not take the ports of the next jobs.
    number = job + 997 * int(step if step.isdecimal() else 0)
    return Endpoint(first_machine(machines), PORTS[number % len(PORTS)])


def first_machine(machines: str) -> str:
    """The first of a list as SLURM writes it: `gpu003` of `gpu[003-005,009],cpu1`."""
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", machines).partition(",")[0]


def set_rank() -> None:
    """Sets the variables that torchrun would, for a process that `srun` has started as one rank."""
    if "RANK" in os.environ or "SLURM_PROCID" not in os.environ:
        return
    for name, theirs in RANK_VARIABLES.items():
        os.environ[name] = os.environ[theirs]
    if meeting := endpoint():
        os.environ.setdefault("MASTER_ADDR", meeting.host)
        os.environ.setdefault("MASTER_PORT", str(meeting.port))
