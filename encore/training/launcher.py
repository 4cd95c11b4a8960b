"""Starts the workers through torch's elastic agent; rendezvous, restarts and membership are its business."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid

import torch
import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from encore.config import cli
from encore.config.schema import TrainConfig
from encore.errors import EncoreError
from encore.training import slurm
from encore.training.agent import FINAL, Agent, Machines, Signals, counted, say

WORKER = "encore.commands.rank"
LAUNCHER = "ENCORE_LAUNCHER"  # environment variable for the workers: this process's id
JOIN = 600  # seconds that a machine waits for others
LAST_CALL = 10  # seconds that the least number of machines waits for more; who comes later joins with a restart
CONNECT = 300  # seconds within which the machine of --rdzv_endpoint must be there


def ranks_here(config: TrainConfig) -> int:
    """How many ranks to start on this machine: as asked, else one per GPU, else one.

    Raises:
        EncoreError: more ranks were asked for than there are GPUs.
    """
    gpus = torch.cuda.device_count()
    if config.run.world_size is not None and 0 < gpus < config.run.world_size:
        raise EncoreError(
            f"--world_size {config.run.world_size}: this machine has {gpus} GPU{'s' * (gpus > 1)}; ask for at most "
            f"{gpus}, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on the CPU"
        )
    return config.run.world_size or gpus or 1


def machines_of(config: TrainConfig) -> Machines:
    """The machines that `--nnodes` allows, and where they meet: as told, else in a SLURM job at its first machine."""
    least, _, most = config.run.nnodes.partition(":")
    given = config.run.rdzv_endpoint
    if not given and int(most or least) > 1:
        given = str(slurm.endpoint() or "")
    return Machines(int(least), int(most or least), given or "localhost:0")


def launch(config: TrainConfig) -> int:
    """Runs `train_worker.py` with the configuration as flags, once per rank, and returns the exit status for the shell.

    A script and not a function, because a restarted group of functions cannot connect again (gloo, torch 2.14).
    """
    # The agent's own store outlives a restart with the addresses of the ranks before it (gloo, torch 2.14), to which
    # the new ones then cannot connect; without it every attempt gets a new store.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ |= {**cli.importable(), LAUNCHER: str(os.getpid())}
    # What a user needs to know of the agent's work is said below; each of its loggers has a level of its own.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there are ranks, Ctrl-C just ends the process
    machines = machines_of(config)
    try:
        failures = run_agent(config, machines)
    except SignalException as stop:
        say(f"stopped by {signal.Signals(stop.sigval).name}")
        return 128 + stop.sigval
    except RendezvousClosedError:
        say("error: the job has ended on another machine")
        return 1
    except RendezvousTimeoutError:
        say(f"error: {machines.endpoint}: there were never {machines} within {JOIN // 60} minutes")
        return 1
    except (RendezvousError, dist.DistError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        say(
            f"error: --rdzv_endpoint {machines.endpoint}: no connection, or no more ({reason}); the launcher on that "
            "machine must be there from the first to the last"
        )
        return 1
    if not failures:
        return 0
    final = [one for one in failures.items() if one[1].exitcode in FINAL]
    rank, failure = min(final or failures.items(), key=lambda item: item[1].timestamp)
    if not final:  # a rank that ends with one of those statuses has said why; one that was killed could not
        say(f"error: rank {rank} ended with status {failure.exitcode}; its last lines are above")
    return failure.exitcode if failure.exitcode > 0 else 1


def run_agent(config: TrainConfig, machines: Machines) -> dict[int, ProcessFailure]:
    """Trains to the end; the ranks of this machine that failed at last."""
    alone = machines.most == 1 and not config.run.rdzv_endpoint
    if machines.most > 1:
        say(f"waiting at {machines.endpoint} for {machines}")
    parameters = RendezvousParameters(
        "c10d",
        machines.endpoint,
        run_id=uuid.uuid4().hex if alone else "encore",
        min_nodes=machines.least,
        max_nodes=machines.most,
        local_addr="localhost" if alone else None,
        join_timeout=JOIN,
        last_call_timeout=LAST_CALL,
        read_timeout=CONNECT,
    )
    ranks = ranks_here(config)
    if sys.stderr.isatty():  # for the seconds in which they load PyTorch
        say(f"starting {counted(ranks, 'rank')} on this machine …")
    spec = WorkerSpec(
        role="rank",
        local_world_size=ranks,
        rdzv_handler=get_rendezvous_handler(parameters),
        entrypoint=sys.executable,
        args=("-u", "-m", WORKER, *config.to_argv()),
        max_restarts=config.run.max_restarts,
        monitor_interval=0.5,
        local_addr="localhost" if alone else None,
    )
    try:
        # From here on; a connection that does not come about lets no handler in Python run.
        result = Agent(machines, Signals(), spec).run()
    except SignalException:
        raise  # and leave the rendezvous open: this machine may come back
    except BaseException:
        spec.rdzv_handler.shutdown()
        raise
    spec.rdzv_handler.shutdown()
    return result.failures if result is not None else {}  # None: the job ended while this machine was one too many
