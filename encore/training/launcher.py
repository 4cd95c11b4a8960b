"""Starts the workers through torch's elastic agent; rendezvous, restarts and membership are its business."""

from __future__ import annotations

import logging
import os
import signal
import sys

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from encore.config import cli
from encore.config.schema import TrainConfig
from encore.errors import EncoreError

WORKER = "encore.commands.train_worker"


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


def launch(config: TrainConfig) -> int:
    """Runs `train_worker.py` with the configuration as flags, once per rank, and returns the exit status for the shell.

    A script and not a function, because a restarted group of functions cannot connect again (gloo, torch 2.14).
    """
    least, _, most = config.run.nnodes.partition(":")
    alone = config.run.nnodes == "1" and not config.run.rdzv_endpoint
    settings = LaunchConfig(
        min_nodes=int(least),
        max_nodes=int(most or least),
        nproc_per_node=ranks_here(config),
        run_id="encore",
        rdzv_backend="c10d",
        rdzv_endpoint=config.run.rdzv_endpoint or "localhost:0",
        max_restarts=config.run.max_restarts,
        monitor_interval=0.5,
        local_addr="localhost" if alone else None,
        # A worker finishes its step and saves before it exits; a large model takes a while to write.
        shutdown_timeout=300,
    )
    os.environ |= cli.importable()
    # The agent's own store outlives a restart with the addresses of the ranks before it (gloo, torch 2.14), to which
    # the new ones then cannot connect; without it every attempt gets a new store.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # What a user needs to know of the agent's work is said below; each of its loggers has a level of its own.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        elastic_launch(settings, sys.executable)("-u", "-m", WORKER, *config.to_argv())
    except SignalException as stop:
        print(f"stopped by {signal.Signals(stop.sigval).name}", file=sys.stderr)
        return 128 + stop.sigval
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        # A worker that ends with status 2 or 3 has said why; one that was killed could not.
        if failure.exitcode not in (2, 3):
            print(f"error: rank {rank} ended with status {failure.exitcode}; its last lines are above", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 1
    return 0
