"""Starts one rank: `python -m encore.commands.rank`. What must come before imports that take seconds stands here."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

LAUNCHER = "ENCORE_LAUNCHER"  # environment variable: the launcher's process id
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def run() -> None:
    """Runs a rank and ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save, Ctrl-C just ends the process
    die_with_launcher()
    # What a rank says when it loses another one must not drown in stacks of C++; a level of the user's own stays.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from encore.commands import train_worker

    train_worker.run()


def die_with_launcher() -> None:
    """Lets the kernel kill this process when the elastic agent that has started it is gone, however it went.

    By prctl(2), which reaches a process that hangs or is stopped too; only on Linux. The kernel goes by the thread that
    made this process, which in torch's agent is the main thread. Under srun that would be some thread of SLURM's, which
    ends what it has started by itself.
    """
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None and os.getppid() != int(launcher):  # it was gone before the call
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    run()
